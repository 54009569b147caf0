"""Training steps and evaluation on the device, each result held against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn import gpuarray
from oclbn.tools.demo.checks import Checks, Float64s, channel_scale
from oclbn.tools.demo.data import Case
from oclbn.tools.demo.layers import EPSILON, LEAST_FACTOR, Layer
from oclbn.tools.demo.timing import Clock
from oclbn.truth import reference


class Trainer:
    """Training steps, each held against the reference, which keeps running statistics of its own."""

    def __init__(self, case: Case, layer: Layer, checks: Checks, clock: Clock) -> None:
        self.case, self.layer, self.checks, self.clock = case, layer, checks, clock
        self.scale, self.bias = layer.parameters()
        self.running_mean: Float64s
        self.running_var: Float64s
        self.running_mean, self.running_var = (values.astype(np.float64) for values in layer.running())
        self.entered = np.zeros(case.channels, np.int64)
        self.rng = np.random.default_rng(1)

    def step(self, host: NDArray[Any]) -> None:
        x = gpuarray.to_gpu(host, queue=self.clock.queue)
        axis, checks = self.case.axis, self.checks
        y, mean, invstd = self.clock.first("train", lambda: self.layer.train(x))
        exact = reference.train(
            host,
            self.scale,
            self.bias,
            self.running_mean,
            self.running_var,
            epsilon=EPSILON,
            factor=LEAST_FACTOR,
            entered=self.entered,
            axis=axis,
        )
        assert exact.running_mean is not None
        assert exact.running_var is not None
        assert exact.entered is not None
        self.entered = exact.entered
        self.running_mean, self.running_var = exact.running_mean, exact.running_var
        std = np.sqrt(exact.var)
        checks.add("y", y.get(), exact.y, channel_scale(exact.y, axis, np.abs(self.scale)))
        checks.add("save_mean", mean.get(), exact.mean, np.maximum(np.abs(exact.mean), std))
        checks.add("save_invstd", invstd.get(), exact.invstd, exact.invstd)
        running_mean, running_var = self.layer.running()
        checks.add("running_mean", running_mean, self.running_mean, _finite_maximum(np.abs(self.running_mean), std))
        checks.add("running_var", running_var, self.running_var, self.running_var + EPSILON)
        self._check_backward(host, exact)

    def _check_backward(self, host: NDArray[Any], exact: reference.TrainReference) -> None:
        axis = self.case.axis
        others = tuple(a for a in range(host.ndim) if a != axis)
        grads = self.rng.standard_normal(host.shape).astype(host.dtype)
        dy = gpuarray.to_gpu(grads, queue=self.clock.queue)
        got = self.clock.first("backward", lambda: self.layer.backward(dy))
        dx, dscale, dbias = reference.backward(host, grads, self.scale, exact.mean, exact.invstd, axis=axis)
        # A sum of terms that cancel is measured by the length of the vector of its terms.
        xhat = reference.infer(host, None, None, exact.mean, exact.var, epsilon=EPSILON, axis=axis)
        with np.errstate(all="ignore"):
            length = np.sqrt(np.sum(np.square(grads, dtype=np.float64), axis=others))
            weighted = np.sqrt(np.sum(np.square(grads * xhat), axis=others))
            gain = np.abs(self.scale) * exact.invstd
        self.checks.add("dx", got[0].get(), dx, channel_scale(dx, axis, gain))
        self.checks.add("dscale", got[1].get(), dscale, _finite_maximum(np.abs(dscale), weighted))
        self.checks.add("dbias", got[2].get(), dbias, _finite_maximum(np.abs(dbias), length))


def check_evaluation(checks: Checks, case: Case, layer: Layer, got: NDArray[Any]) -> None:
    scale, bias = layer.parameters()
    mean, var = layer.running()
    exact = reference.infer(case.x, scale, bias, mean, var, epsilon=EPSILON, axis=case.axis)
    checks.add("evaluated", got, exact, channel_scale(exact, case.axis, np.abs(scale)))


def _finite_maximum(one: Float64s, other: Float64s) -> Float64s:
    return np.fmax(one, np.where(np.isfinite(other), other, 0.0))
