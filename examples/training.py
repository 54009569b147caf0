"""Train a small convolutional network on scikit-learn's handwritten digits, with BatchNorm2D on an OpenCL device.

    1 x 8 x 8 pixels -> convolution, 16 maps of 6 x 6 -> BatchNorm2D -> ReLU -> linear -> 10 classes

The convolution and the linear layer are plain NumPy, so that the loop is all there is to read; the normalization runs
on the device, forward and backward. The first batch is compared with float64 NumPy, and the exit status is 1 where it
differs or where the network does not learn.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

from oclbn import BatchNorm2D, gpuarray

EPOCHS, BATCH, RATE = 5, 64, 0.3


def patches(images):
    """The 3 x 3 neighbourhoods of each inner pixel: (N, 8, 8) -> (N, 36, 9)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    return windows.reshape(len(images), 36, 9)


class Network:
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.filters = rng.normal(0, 0.3, (9, 16)).astype(np.float32)
        self.weights = rng.normal(0, 0.05, (16 * 36, 10)).astype(np.float32)
        self.bn = BatchNorm2D(16, seed=seed)  # in training mode, as every new module

    def forward(self, images):
        """The class scores; what backward needs is kept."""
        self.patches = patches(images)
        maps = (self.patches @ self.filters).transpose(0, 2, 1).reshape(-1, 16, 6, 6)  # (N, C, H, W)
        self.maps = np.ascontiguousarray(maps)
        self.normalised = self.bn(gpuarray.to_gpu(self.maps)).get()
        self.hidden = np.maximum(self.normalised, 0).reshape(len(images), -1)
        return self.hidden @ self.weights

    def backward(self, dscores, rate):
        """A step of gradient descent from the gradient of the scores."""
        dhidden = (dscores @ self.weights.T).reshape(self.normalised.shape)
        self.dnormalised = dhidden * (self.normalised > 0)
        self.dmaps = self.bn.backward(gpuarray.to_gpu(self.dnormalised)).get()
        dfilters = np.einsum("npk,nmp->km", self.patches, self.dmaps.reshape(-1, 16, 36))

        self.weights -= rate * (self.hidden.T @ dscores)
        self.filters -= rate * dfilters
        self.bn.updateParams(-rate)  # adds -rate * gradient to scale and bias


def loss_and_gradient(scores, labels):
    """Cross entropy of the softmax, averaged over the batch, and its gradient."""
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    picked = np.arange(len(labels)), labels
    loss = -np.log(p[picked]).mean()
    p[picked] -= 1
    return loss, p / len(labels)


def difference_from_numpy(net, scale, bias):
    """The largest one of y and dx in the batch just trained on, with the scale and bias that it was computed with."""
    x, dy = net.maps.astype(np.float64), net.dnormalised.astype(np.float64)
    over = (0, 2, 3)
    mean, var = x.mean(over, keepdims=True), x.var(over, keepdims=True)
    invstd = 1 / np.sqrt(var + net.bn.epsilon)
    xhat = (x - mean) * invstd
    y = xhat * scale + bias
    dx = scale * invstd * (dy - dy.mean(over, keepdims=True) - xhat * (dy * xhat).mean(over, keepdims=True))
    return max(np.abs(net.normalised - y).max(), np.abs(net.dmaps - dx).max())


def main():
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)
    test = np.arange(len(images)) % 5 == 0
    train_x, train_y, test_x, test_y = images[~test], labels[~test], images[test], labels[test]

    net, rng, losses, difference = Network(), np.random.default_rng(1), [], None
    print(net.bn.queue.device.name.strip(), file=sys.stderr)  # which device it is
    for epoch in range(EPOCHS):
        order, epoch_losses = rng.permutation(len(train_x)), []
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            scale, bias = net.bn.scale.get(), net.bn.bias.get()
            loss, dscores = loss_and_gradient(net.forward(train_x[batch]), train_y[batch])
            net.backward(dscores, RATE)
            epoch_losses.append(loss)
            if difference is None:
                difference = difference_from_numpy(net, scale, bias)
        losses.append(np.mean(epoch_losses))
        print(f"epoch {epoch}: loss {losses[-1]:.2f}")

    net.bn.evalMode()  # running statistics: the answer for one image does not depend on the others
    accuracy = np.mean(net.forward(test_x).argmax(1) == test_y)
    right = difference < 1e-5 and losses[-1] < losses[0] / 4 and accuracy > 0.95
    print(f"accuracy on {len(test_y)} images that it has not seen: {accuracy:.2f}")
    print(f"first batch as in NumPy: {'yes' if difference < 1e-5 else f'no, off by {difference:.2g}'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
