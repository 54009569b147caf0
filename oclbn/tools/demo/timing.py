"""How long calls take, with the host's share and the wait for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from oclbn import functional, gpuarray
from oclbn.tools.demo.data import Case
from oclbn.tools.demo.layers import Layer

TIMED_CALLS = 20
TIMED_SECONDS = 0.5  # enough of a slow call


@dataclass(frozen=True)
class Timing:
    """One operation on one mini-batch, host time included."""

    operation: str
    kernels: str
    first: float  # seconds, with the building of the kernels
    median: float  # seconds


class Clock:
    """Times calls until the device is through with them."""

    def __init__(self, queue: cl.CommandQueue) -> None:
        self.queue = queue
        self.firsts: dict[str, float] = {}

    def seconds(self, call: Callable[[], Any]) -> tuple[float, Any]:
        self.queue.finish()
        start = time.perf_counter()
        result = call()
        self.queue.finish()
        return time.perf_counter() - start, result

    def first(self, operation: str, call: Callable[[], Any]) -> Any:
        """The call's result; its time is kept when it is the first of this operation."""
        seconds, result = self.seconds(call)
        self.firsts.setdefault(operation, seconds)
        return result

    def median(self, call: Callable[[], Any]) -> float:
        times: list[float] = []
        while len(times) < TIMED_CALLS and (len(times) < 3 or sum(times) < TIMED_SECONDS):
            times.append(self.seconds(call)[0])
        return statistics.median(times)


def timings(case: Case, layer: Layer, clock: Clock, x: Array) -> tuple[Timing, ...]:
    """Medians for one mini-batch, everything built and warm."""
    dy = gpuarray.to_gpu(np.ones(x.shape, x.dtype), queue=clock.queue)
    medians = {
        "train": clock.median(lambda: layer.train(x)),
        "backward": clock.median(lambda: layer.backward(dy)),
    }
    with layer.evaluating() as evaluate:
        medians["infer"] = clock.median(lambda: evaluate(x))
    return tuple(
        Timing(operation, functional.explain(x, axis=case.axis, operation=operation), clock.firsts[operation], median)
        for operation, median in medians.items()
    )
