"""Training steps and evaluation on the device, each result held against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn import gpuarray
from oclbn.tools.demo.data import Case
from oclbn.tools.demo.layers import EPSILON, LEAST_FACTOR, Layer
from oclbn.tools.demo.timing import Clock
from oclbn.truth.cases import GRADIENTS, Judged, judge
from oclbn.truth.expectation import Expected, expected
from oclbn.truth.hostile import Data, along, others


class Checks:
    """For each result the one that was farthest off, in units of its tolerance.

    unfit: channels, on `axis` of a tensor, in which no result can be right, whoever computes it; they are left out.
    """

    def __init__(self, axis: int = 1, unfit: NDArray[np.bool_] | None = None) -> None:
        self.worst: dict[str, Judged] = {}
        self._axis, self._unfit = axis, unfit

    def add(self, found: Mapping[str, NDArray[Any]], wanted: Expected) -> None:
        """Take in results of a call."""
        for name, result in found.items():
            judged = judge({name: result}, {name: self._without_unfit(*wanted[name])})
            if name not in self.worst or judged.units > self.worst[name].units:
                self.worst[name] = judged

    def _without_unfit(self, wanted: NDArray[Any], bound: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._unfit is None or not self._unfit.any():
            return wanted, bound
        unfit = along(self._unfit, wanted.shape, self._axis) if wanted.ndim > 1 else self._unfit
        return wanted, np.where(unfit, np.inf, bound)

    @property
    def failed(self) -> list[str]:
        return [name for name, judged in self.worst.items() if not judged.good]


class Trainer:
    """Training steps, each held against what the reference makes of the running statistics that the step found."""

    def __init__(self, case: Case, layer: Layer, checks: Checks, clock: Clock) -> None:
        self.case, self.layer, self.checks, self.clock = case, layer, checks, clock
        self.entered = np.zeros(case.channels, np.int64)
        self.rng = np.random.default_rng(1)

    def step(self, batch: NDArray[Any]) -> None:
        x, axis = gpuarray.to_gpu(batch, queue=self.clock.queue), self.case.axis
        host = data_of(batch, axis, self.layer, self.rng.standard_normal(batch.shape).astype(batch.dtype))
        made = self.clock.first("train", lambda: self.layer.train(x))
        found = dict(zip(("y", "save_mean", "save_invstd"), (result.get() for result in made), strict=True))
        found |= dict(zip(("running_mean", "running_var"), self.layer.running(), strict=True))
        wanted = expected("train", host, axis, epsilon=EPSILON, factor=LEAST_FACTOR, entered=self.entered)
        self.entered = wanted["entered"][0].astype(np.int64)
        self.checks.add(found, wanted)
        dy = gpuarray.to_gpu(host.dy, queue=self.clock.queue)
        made = self.clock.first("backward", lambda: self.layer.backward(dy))
        found = dict(zip(GRADIENTS, (result.get() for result in made), strict=True))
        self.checks.add(found, expected("backward", host, axis, epsilon=EPSILON))


def data_of(x: NDArray[Any], axis: int, layer: Layer, dy: NDArray[Any] | None = None) -> Data:
    """What a call on x takes, with the layer's parameters and running statistics."""
    bad = np.flatnonzero(~np.isfinite(x).all(axis=others(x.shape, axis)))
    return Data(x, x if dy is None else dy, *layer.parameters(), *layer.running(), bad=tuple(bad))
