"""Layers with weights: each keeps what its backward needs. Tensors are (images, height, width, channels).

Momentum is in the gradients, as with oclbn's modules: backward makes each `new + MOMENTUM * old`.
"""

import numpy as np

MOMENTUM, DECAY = 0.9, 5e-4


class Linear:
    """(rows, inputs) -> (rows, outputs), without a bias."""

    def __init__(self, kernels, rng, inputs, outputs):
        self.kernels = kernels
        weights = rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))  # He's, for the ReLU behind it
        self.weights = kernels.put(weights.astype(np.float32))
        self.grad = kernels.put(np.zeros_like(weights, np.float32))

    def forward(self, x):
        self.x = x
        return self.kernels.matmul(x, self.weights)

    def backward(self, dy):
        self.kernels.matmul(self.x, dy, self.grad, transpose_a=True, beta=MOMENTUM)
        return self.kernels.matmul(dy, self.weights, transpose_b=True)

    def update(self, rate):
        self.kernels.run("descend", (self.weights.size,), self.weights, self.grad, rate, DECAY)


class Convolution(Linear):
    """size x size, zeros beyond the border, of every stride-th pixel: a Linear of what is around each pixel."""

    def __init__(self, kernels, rng, inputs, outputs, size=3, stride=1):
        super().__init__(kernels, rng, size * size * inputs, outputs)
        self.size, self.stride = size, stride

    def forward(self, x):
        images, height, width, channels = self.shape = x.shape
        out = images, -(-height // self.stride), -(-width // self.stride)
        taps, rows = self.size * self.size, out[0] * out[1] * out[2]
        columns = self.kernels.empty(rows, taps * channels)
        self.kernels.run("im2col", (channels, taps, rows), x, height, width, self.size, self.stride, columns)
        return super().forward(columns).reshape(*out, -1)

    def backward(self, dy):
        images, height, width, channels = self.shape
        dcolumns = super().backward(dy.reshape(-1, dy.shape[-1]))
        dx, grid = self.kernels.empty(*self.shape), (channels, images * height * width)
        self.kernels.run("col2im", grid, dcolumns, height, width, self.size, self.stride, dx)
        return dx


class Pool:
    """The mean of each map: (images, height, width, channels) -> (images, channels)."""

    def __init__(self, kernels):
        self.kernels = kernels

    def forward(self, x):
        images, height, width, channels = self.shape = x.shape
        y = self.kernels.empty(images, channels)
        self.kernels.run("pool", (channels, images), x, height * width, y)
        return y

    def backward(self, dy):
        images, height, width, channels = self.shape
        dx = self.kernels.empty(*self.shape)
        self.kernels.run("unpool", (channels, height * width, images), dy, dx)
        return dx


def cross_entropy(kernels, scores, labels):
    """That of the softmax: each image's loss, whether it was told right (1.0 or 0.0), the gradient of the mean loss."""
    images, classes = scores.shape
    losses, hits, dscores = kernels.empty(images), kernels.empty(images), kernels.empty(images, classes)
    kernels.run("cross_entropy", (images,), scores, labels, classes, losses, hits, dscores)
    return losses, hits, dscores
