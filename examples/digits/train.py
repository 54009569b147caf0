"""Training on scikit-learn's handwritten digits, all of it on the device."""

from dataclasses import dataclass
from math import cos, pi

import numpy as np
from layers import cross_entropy
from model import Network
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH, SHIFT = 64, 1  # images; pixels, at most, by which each is moved in training


@dataclass(frozen=True)
class Epoch:
    """Means over images: over those trained on, as they were in their batch, and over the others after the epoch."""

    loss: float
    test_loss: float
    accuracy: float  # of the others


class Digits:
    """1,797 images of 8 x 8 pixels on the device. A quarter of each class, always the same, is kept for the test."""

    def __init__(self, kernels):
        self.kernels = kernels
        pixels, labels = load_digits(return_X_y=True)
        images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
        split = train_test_split(images, labels.astype(np.int32), test_size=0.25, stratify=labels, random_state=0)
        train, test, self.labels, test_labels = split
        self.images, self.test, self.test_labels = kernels.put(train), kernels.put(test), kernels.put(test_labels)

    def batches(self, rng):
        """All images but the rest that makes no batch, in any order, each moved: (images, labels) on the device."""
        order = rng.permutation(len(self.labels))
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[begin : begin + BATCH]
            moved = np.column_stack((chosen, rng.integers(-SHIFT, SHIFT + 1, (BATCH, 2)))).astype(np.int32)
            x = self.kernels.empty(BATCH, 8, 8, 1)
            self.kernels.run("batch", (8, 8, BATCH), self.images, self.kernels.put(moved), x)
            yield x, self.kernels.put(self.labels[chosen])


def train(digits, epochs, rate, seed=0, batch_norm=True):
    """An Epoch after each; the rate falls from `rate` to 0, as a half wave of the cosine does."""
    net, rng = Network(digits.kernels, seed, batch_norm), np.random.default_rng(seed)
    steps = len(digits.labels) // BATCH
    for epoch in range(epochs):
        losses = []
        for step, (images, labels) in enumerate(digits.batches(rng)):
            loss, _, dscores = cross_entropy(digits.kernels, net.forward(images), labels)
            net.backward(dscores)
            net.update(rate * (1 + cos(pi * (epoch + step / steps) / epochs)) / 2)
            losses.append(loss)  # read after the epoch, so that no step waits for the device
        yield Epoch(float(np.mean([loss.get() for loss in losses])), *evaluate(net, digits))


def evaluate(net, digits):
    """The mean loss and the accuracy on the test images, by running statistics: no image depends on the others."""
    for bn in net.norms:
        bn.evalMode()
    losses, hits, _ = cross_entropy(digits.kernels, net.forward(digits.test), digits.test_labels)
    for bn in net.norms:
        bn.trainMode()
    return float(losses.get().mean()), float(hits.get().mean())
