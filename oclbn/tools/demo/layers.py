"""The layer that a case is trained with: a module where one fits, else the functional calls."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from pyopencl.array import Array

from oclbn import functional, gpuarray
from oclbn.errors import SkippedBatchesWarning
from oclbn.modules.batchnorm import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D
from oclbn.tools.demo.data import Case

EPSILON = 1e-5
LEAST_FACTOR = 0.1  # of the running averages; batch n of those that entered a channel has max(1 / n, LEAST_FACTOR)
MODULES = {2: BatchNorm, 3: BatchNorm1D, 4: BatchNorm2D, 5: BatchNorm3D}  # by rank


class Layer(Protocol):
    """Batch normalization with its state on the device; per-channel host arrays are (C,)."""

    label: str

    def train(self, x: Array) -> tuple[Array, Array, Array]:
        """Normalise a batch: y, the batch's mean and 1 / sqrt(variance + epsilon)."""

    def backward(self, dy: Array) -> tuple[Array, ...]:
        """Gradients of the batch last trained on: dx, dscale, dbias."""

    def evaluating(self) -> AbstractContextManager[Callable[[Array], Array]]:
        """What normalises with the running statistics, within the block."""

    def parameters(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scale and bias."""

    def running(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Running mean and running variance."""


class ModuleLayer:
    """A module of oclbn."""

    def __init__(self, case: Case, queue: cl.CommandQueue) -> None:
        made = MODULES[case.x.ndim]
        axis = "" if case.axis == 1 else f", axis={-1 if case.axis == case.x.ndim - 1 else case.axis}"
        self.label = f"{made.__name__}({case.channels}{axis})"
        self.module: Any = made(case.channels, queue=queue, dtype=case.x.dtype, seed=0, axis=case.axis)

    def train(self, x: Array) -> tuple[Array, Array, Array]:
        return self.module(x), self.module.savemean, self.module.saveinvvar

    def backward(self, dy: Array) -> tuple[Array, ...]:
        return self.module.backward(dy), self.module.scalegrad, self.module.biasgrad

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Callable[[Array], Array]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedBatchesWarning)  # the demo's table tells of such data
            self.module.evalMode()
        yield self.module
        self.module.trainMode()

    def parameters(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.module.scale.get().reshape(-1), self.module.bias.get().reshape(-1)

    def running(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.module.mean.get().reshape(-1), self.module.var.get().reshape(-1)


class FunctionalLayer:
    """The functional calls, with the state that they need: for ranks that no module is for."""

    def __init__(self, case: Case, queue: cl.CommandQueue) -> None:
        self.label = f"functional, axis {case.axis}"
        self.axis = case.axis
        zeros, ones = np.zeros(case.channels, case.x.dtype), np.ones(case.channels, case.x.dtype)
        self.scale, self.bias = gpuarray.to_gpu(ones, queue=queue), gpuarray.to_gpu(zeros, queue=queue)
        self.mean, self.var = gpuarray.to_gpu(zeros, queue=queue), gpuarray.to_gpu(ones, queue=queue)
        self.entered = gpuarray.zeros(case.channels, np.uint32, queue=queue)

    def train(self, x: Array) -> tuple[Array, Array, Array]:
        self.x = x
        y, self.save_mean, self.save_invstd = functional.batch_norm_train(
            x,
            self.scale,
            self.bias,
            self.mean,
            self.var,
            epsilon=EPSILON,
            factor=LEAST_FACTOR,
            entered=self.entered,
            axis=self.axis,
        )
        return y, self.save_mean, self.save_invstd

    def backward(self, dy: Array) -> tuple[Array, ...]:
        return functional.batch_norm_backward(self.x, dy, self.scale, self.save_mean, self.save_invstd, axis=self.axis)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Callable[[Array], Array]]:
        given = self.scale, self.bias, self.mean, self.var
        yield lambda x: functional.batch_norm_infer(x, *given, epsilon=EPSILON, axis=self.axis)

    def parameters(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.scale.get(), self.bias.get()

    def running(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.mean.get(), self.var.get()


def layer_for(case: Case, queue: cl.CommandQueue) -> Layer:
    """A module when there is one of that rank."""
    if case.x.ndim in MODULES:
        return ModuleLayer(case, queue)
    return FunctionalLayer(case, queue)
