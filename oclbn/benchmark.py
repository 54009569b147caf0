"""Timing against the device's own copy of the same tensor: in the same run, interleaved, medians.

Batch normalization moves bytes, so the copy of the tensor is the limit. Each round times every operation and every way
to copy once, one after the other, each until the queue is empty; what is compared are medians over the rounds. Outputs
are reused (out=), so that no allocation is timed; the host's work is.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from . import functional
from .errors import ParameterError

Shape = tuple[int, ...]

SUITES: dict[str, tuple[tuple[Shape, int], ...]] = {  # (shape, axis of the channels)
    "resnet50": tuple(
        ((32, channels, side, side), 1)
        for channels, side in (
            *((64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28)),
            *((256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7)),
        )
    ),
    "mlp": (((64, 64), 1), ((256, 1024), 1), ((1024, 4096), 1), ((65536, 64), 1), ((16384, 1024), 1)),
    "channels-last": (((32, 56, 56, 256), 3), ((32, 28, 28, 512), 3), ((32, 14, 14, 1024), 3), ((32, 7, 7, 2048), 3)),
    "extremes": (
        *(((1, 3, 2048, 2048), 1), ((65536, 64), 1), ((2, 4097, 1, 1), 1)),
        *(((256, 2048, 7, 7), 1), ((1, 1, 1 << 25), 1)),
    ),
}
TENSORS = {"forward": 2, "backward": 3, "inference": 2}  # that memory has to see: read or written once each
_SECONDS = 0.25  # aimed at per operation, where `rounds` leaves it open


@dataclass(frozen=True)
class Row:
    """One operation on one shape. Times in seconds, from the call to the empty queue."""

    shape: Shape
    axis: int
    operation: str  # "forward", "backward", "inference", or "copy ..." of some kind
    median: float
    low: float  # 10th percentile
    high: float  # 90th percentile
    nbytes: int  # that memory has to see
    ratio: float  # median over the median of the fastest copy
    plan: str

    @property
    def bandwidth(self) -> float:
        """Bytes per second, of those that memory has to see."""
        return self.nbytes / self.median


def measure(queue: cl.CommandQueue, shape: Shape, axis: int = 1, *, rounds: int | None = None) -> list[Row]:
    """Time forward (training), backward and inference of a float32 tensor, and three ways to copy it.

    shape: of the tensor, channels on `axis`. rounds: how often each is timed, at least 3; None: as many as fit into
    about a quarter of a second each. Allocates three such tensors on queue's device. Returns one Row per operation,
    copies first.
    """
    if rounds is not None and rounds < 3:
        raise ParameterError(f"rounds is {rounds}; at least 3 are wanted")
    if not -len(shape) <= axis < len(shape):
        raise ParameterError(f"axis is {axis}; shape {shape} has {len(shape)} dimensions")
    calls, plans, nbytes = _calls(queue, shape, axis)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _timed(queue, call)  # compiles, and touches the memory
    once = sum(_timed(queue, call) for call in calls.values()) / len(calls)
    for _ in range(rounds or min(200, max(9, round(_SECONDS / once)))):
        for name, call in calls.items():
            samples[name].append(_timed(queue, call))
    medians = {name: statistics.median(times) for name, times in samples.items()}
    best = min(median for name, median in medians.items() if name.startswith("copy"))
    rows = []
    for name, times in samples.items():
        low, *_, high = statistics.quantiles(times, n=10)
        moved = TENSORS.get(name, 2) * nbytes
        rows.append(Row(shape, axis, name, medians[name], low, high, moved, medians[name] / best, plans.get(name, "")))
    return rows


def geometric_mean(values: list[float]) -> float:
    """exp of the mean of logarithms: how ratios are averaged."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def _timed(queue: cl.CommandQueue, call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    queue.finish()
    return time.perf_counter() - start


def _calls(
    queue: cl.CommandQueue, shape: Shape, axis: int
) -> tuple[dict[str, Callable[[], object]], dict[str, str], int]:
    rng = np.random.default_rng(0)
    x = cla.to_device(queue, rng.standard_normal(shape, dtype=np.float32))
    dy = cla.to_device(queue, rng.standard_normal(shape, dtype=np.float32))
    out = cla.empty_like(x)
    channels = shape[axis]
    scale, bias, mean, var = (cla.to_device(queue, np.ones(channels, np.float32)) for _ in range(4))
    _, save_mean, save_invstd = functional.batch_norm_train(x, scale, bias, None, None, axis=axis, out=out)
    calls: dict[str, Callable[[], object]] = dict(_copies(queue, x, out))
    calls["forward"] = lambda: functional.batch_norm_train(x, scale, bias, mean, var, axis=axis, out=out)
    calls["backward"] = lambda: functional.batch_norm_backward(x, dy, scale, save_mean, save_invstd, axis=axis, out=out)
    calls["inference"] = lambda: functional.batch_norm_infer(x, scale, bias, mean, var, axis=axis, out=out)
    names = {"forward": "train", "backward": "backward", "inference": "infer"}
    plans = {name: functional.explain(x, axis=axis, operation=inner) for name, inner in names.items()}
    return calls, plans, x.nbytes


def _copies(queue: cl.CommandQueue, x: cla.Array, y: cla.Array) -> Iterator[tuple[str, Callable[[], object]]]:
    source: Any = x.base_data
    target: Any = y.base_data
    yield "copy command", lambda: cl.enqueue_copy(queue, target, source)
    yield "copy kernel", lambda: functional.plain_copy(x, y)
    yield "copy kernel, past the cache", lambda: functional.plain_copy(x, y, stream=True)
