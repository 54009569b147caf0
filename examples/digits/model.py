"""A small residual network.

    1 x 8 x 8 -> convolution, 16 maps of 8 x 8 -> block -> block, 32 maps of 4 x 4 -> block -> mean -> 10 classes

Batch normalization, residual and ReLU are one call of oclbn, forward and backward.
"""

import numpy as np
from layers import MOMENTUM, Convolution, Linear, Pool

from oclbn import BatchNorm2D


class Block:
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), the shortcut being x, or a convolution where shapes differ.

    conv, norm: make the layers.
    """

    def __init__(self, conv, norm, inputs, outputs, stride=1):
        self.conv1, self.norm1 = conv(inputs, outputs, stride=stride), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs), norm(outputs)
        self.straight = inputs == outputs and stride == 1
        if not self.straight:
            self.conv3, self.norm3 = conv(inputs, outputs, size=1, stride=stride), norm(outputs, activation=None)

    def forward(self, x):
        shortcut = x if self.straight else self.norm3(self.conv3.forward(x))
        y = self.norm1(self.conv1.forward(x))
        return self.norm2(self.conv2.forward(y), residual=shortcut)

    def backward(self, dy):
        dy = self.conv2.backward(self.norm2.backward(dy, momentum=MOMENTUM))
        dx = self.conv1.backward(self.norm1.backward(dy, momentum=MOMENTUM))
        dshortcut = self.norm2.residualgrad
        if not self.straight:
            dshortcut = self.conv3.backward(self.norm3.backward(dshortcut, momentum=MOMENTUM))
        return dx + dshortcut


class Network:
    """Images (N, 8, 8, 1) to scores (N, 10).

    Without batch_norm the statistics are constants, mean 0 and variance 1; scale, bias, residual and ReLU are the same.
    """

    def __init__(self, kernels, seed=0, batch_norm=True):
        rng = np.random.default_rng(seed)
        self.weighted, self.norms = [], []

        def conv(inputs, outputs, size=3, stride=1):
            self.weighted.append(Convolution(kernels, rng, inputs, outputs, size, stride))
            return self.weighted[-1]

        def norm(maps, activation="relu"):
            options = {"axis": -1, "activation": activation, "frozen_statistics": not batch_norm}
            self.norms.append(BatchNorm2D(maps, sscale=0, queue=kernels.queue, **options))
            return self.norms[-1]

        self.conv, self.norm = conv(1, 16), norm(16)
        self.blocks = Block(conv, norm, 16, 16), Block(conv, norm, 16, 32, stride=2), Block(conv, norm, 32, 32)
        self.pool, self.linear = Pool(kernels), Linear(kernels, rng, 32, 10)
        self.weighted.append(self.linear)

    def forward(self, images):
        """The class scores; what backward needs is kept."""
        x = self.norm(self.conv.forward(images))
        for block in self.blocks:
            x = block.forward(x)
        return self.linear.forward(self.pool.forward(x))

    def backward(self, dscores):
        """Gradients of all weights, from that of the scores; that of the images."""
        dx = self.pool.backward(self.linear.backward(dscores))
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        return self.conv.backward(self.norm.backward(dx, momentum=MOMENTUM))

    def update(self, rate):
        """A step down along all gradients."""
        for layer in self.weighted:
            layer.update(rate)
        for bn in self.norms:
            bn.updateParams(-rate)  # adds -rate * gradient to scale and bias
