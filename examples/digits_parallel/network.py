"""A convolutional network whose batches lie in shards: lists of arrays, one for each device of this process.

    1 x 8 x 8 -> convolution -> batch norm, ReLU: 16 x 6 x 6 -> convolution -> batch norm, ReLU: 32 x 4 x 4 -> linear

Convolutions and the linear layer are plain NumPy, and keep the gradients of their weights for each shard. The batch
norms run on the devices, by the statistics of all shards of their group.
"""

import numpy as np

from oclbn import BatchNorm2D, gpuarray
from oclbn.sync import SyncBatchNorm


class Convolution:
    """3 x 3, without a border: (N, inputs, H, W) -> (N, outputs, H - 2, W - 2)."""

    def __init__(self, rng, inputs, outputs):
        self.weights = rng.normal(0, (2 / inputs / 9) ** 0.5, (inputs * 9, outputs)).astype(np.float32)

    def forward(self, shards):
        self.patches = []
        for x in shards:
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))  # (N, inputs, H, W, 3, 3)
            number, inputs, height, width, *_ = windows.shape
            self.patches.append(windows.transpose(0, 2, 3, 1, 4, 5).reshape(number, height, width, inputs * 9))
        return [np.ascontiguousarray((one @ self.weights).transpose(0, 3, 1, 2)) for one in self.patches]

    def backward(self, dmaps):
        self.grads, dxs = [], []
        for patches, dmap in zip(self.patches, dmaps, strict=True):
            number, height, width, nine = patches.shape
            dout = np.ascontiguousarray(dmap.transpose(0, 2, 3, 1))
            self.grads.append(patches.reshape(-1, nine).T @ dout.reshape(-1, dout.shape[-1]))
            dpatches = (dout @ self.weights.T).reshape(number, height, width, nine // 9, 3, 3)
            dx = np.zeros((number, nine // 9, height + 2, width + 2), np.float32)
            for i in range(3):
                for j in range(3):
                    dx[:, :, i : i + height, j : j + width] += dpatches[..., i, j].transpose(0, 3, 1, 2)
            dxs.append(dx)
        return dxs


class Linear:
    """(N, ...) -> (N, outputs)."""

    def __init__(self, rng, inputs, outputs):
        self.weights = rng.normal(0, 0.05, (inputs, outputs)).astype(np.float32)

    def forward(self, shards):
        self.shards = shards
        return [x.reshape(-1, len(self.weights)) @ self.weights for x in shards]

    def backward(self, douts):
        both = [*zip(self.shards, douts, strict=True)]
        self.grads = [x.reshape(-1, len(self.weights)).T @ dout for x, dout in both]
        return [(dout @ self.weights.T).reshape(x.shape) for x, dout in both]


class NormRelu:
    """A batch norm over a group, then a ReLU."""

    def __init__(self, maps, group, seed):
        self.bn = SyncBatchNorm(BatchNorm2D(maps, seed=seed, queue=group.queues[0]), group)

    def forward(self, shards):
        self.ys = [np.maximum(y.get(), 0) for y in self.bn(self._on_devices(shards))]
        return self.ys

    def backward(self, dys):
        masked = [dy * (y > 0) for dy, y in zip(dys, self.ys, strict=True)]
        return [dx.get() for dx in self.bn.backward(self._on_devices(masked))]

    def _on_devices(self, shards):
        return [gpuarray.to_gpu(one, queue=queue) for one, queue in zip(shards, self.bn.group.queues, strict=True)]


class Network:
    """group: over which gradients are summed. norms: over which batches are normalised, as a rule the same."""

    def __init__(self, group, norms, seed=0):
        rng = np.random.default_rng(seed)  # the same weights on all ranks
        self.group = group
        self.dense = Convolution(rng, 1, 16), Convolution(rng, 16, 32), Linear(rng, 32 * 4 * 4, 10)
        self.norms = NormRelu(16, norms, seed + 1), NormRelu(32, norms, seed + 2)
        self.layers = self.dense[0], self.norms[0], self.dense[1], self.norms[1], self.dense[2]

    def forward(self, shards):
        """The class scores of each shard."""
        for layer in self.layers:
            shards = layer.forward(shards)
        return shards

    def step(self, shards, labels, number, rate):
        """One of gradient descent on a batch of so many images in all; the loss of the batch."""
        scores = self.forward(shards)
        losses, douts = zip(*(loss_and_gradient(*one, number) for one in zip(scores, labels, strict=True)), strict=True)
        for layer in reversed(self.layers):
            douts = layer.backward(douts)
        own = [np.concatenate([*(one.grads[i].ravel() for one in self.dense), losses[i]]) for i in range(len(shards))]
        total = self.group.sum(own)[0]  # all gradients and the loss, in one exchange
        *gradients, loss = np.split(total, np.cumsum([layer.weights.size for layer in self.dense]))
        for layer, gradient in zip(self.dense, gradients, strict=True):
            layer.weights -= rate * gradient.reshape(layer.weights.shape)
        for layer in self.norms:
            if layer.bn.group is not self.group:  # those of this shard alone; a group of norms sums its own
                for var in layer.bn.module.vars.values():
                    var.grad.set(self.group.sum(var.grad.get()))
            layer.bn.updateParams(-rate)  # adds -rate * gradient to scale and bias
        return loss.item()


def loss_and_gradient(scores, labels, number):
    """Cross entropy of the softmax and its gradient: this shard's share in the mean over so many images."""
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    picked = np.arange(len(labels)), labels
    loss = -np.log(p[picked]).sum(keepdims=True) / np.float32(number)
    p[picked] -= 1
    return loss, p / np.float32(number)
