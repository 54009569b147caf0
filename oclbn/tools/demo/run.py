"""One case of the demo on the device: train, evaluate, go backward, check each result, time each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from oclbn import functional, gpuarray
from oclbn.errors import ParameterError
from oclbn.tools.demo.data import Case
from oclbn.tools.demo.layers import EPSILON, Layer, layer_for
from oclbn.tools.demo.steps import Checks, Trainer, data_of
from oclbn.tools.demo.timing import Clock, Timing, timings
from oclbn.truth import reference
from oclbn.truth.expectation import expected
from oclbn.truth.hostile import others
from oclbn.truth.reference import Float64s


@dataclass(frozen=True)
class Schedule:
    """How long to train."""

    batch_size: int
    epochs: int
    batches: int | None  # at most so many, where given

    def size(self, case: Case) -> int:
        return min(self.batch_size, case.samples)

    def total(self, case: Case) -> int:
        whole = self.epochs * (case.samples // self.size(case))
        return whole if self.batches is None else min(whole, self.batches)

    def check(self, case: Case) -> None:
        """ParameterError: a batch has one value per channel."""
        size = self.size(case)
        if case.x.size // case.samples // case.channels * size < 2:
            raise ParameterError(
                f"batches of {size} have one value per channel of {case.name}: training needs at least 2"
            )


@dataclass(frozen=True)
class Settling:
    """How far the running statistics are from those of the whole data set, after so many batches."""

    batch: int
    mean: float  # root mean square over the channels, relative to that of the standard deviations
    var: float  # the same, relative to that of the variances


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each channel, (C,)."""

    mean: Float64s
    std: Float64s


@dataclass(frozen=True)
class Unfit:
    """Channels that nothing could normalise in the data's type, (C,)."""

    too_large: NDArray[np.bool_]  # the variance, or a sum that it is made of, exceeds the largest number
    without_numbers: NDArray[np.bool_]  # every value is NaN or infinite

    @classmethod
    def of(cls, case: Case, whole: Spread) -> Unfit:
        """Those of a case whose channels are spread like this."""
        finite = np.isfinite(case.x)
        rest = others(case.x.shape, case.axis)
        count, largest = case.x.size // case.channels, float(np.finfo(case.x.dtype).max)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = count * np.maximum(np.square(whole.std), np.abs(whole.mean))
        # What overflows already in float64 gives no number at all.
        return cls(~(sums <= largest) & finite.all(axis=rest), ~finite.any(axis=rest))

    @property
    def channels(self) -> NDArray[np.bool_]:
        """All of them."""
        either: NDArray[np.bool_] = self.too_large | self.without_numbers
        return either


@dataclass(frozen=True)
class Outcome:
    """All that the report tells about one case."""

    case: Case
    label: str
    batch_shape: tuple[int, ...]
    settling: tuple[Settling, ...]
    checks: Checks
    unfit: Unfit
    not_finite: NDArray[np.bool_]  # channels with a value that is NaN or infinite, (C,)
    before: Spread
    normalised: Spread  # by their own statistics, scale 1 and bias 0
    evaluated: Spread  # by the running statistics, with the layer's scale and bias
    timings: tuple[Timing, ...]
    y: NDArray[Any]  # the normalised data themselves


def run(case: Case, queue: cl.CommandQueue, schedule: Schedule, advance: Callable[[], None]) -> Outcome:
    """Run one case; `advance` is called after each batch. ParameterError: one value per channel in a batch."""
    schedule.check(case)
    size, total = schedule.size(case), schedule.total(case)
    layer = layer_for(case, queue)
    whole = _moments(case.x, case.axis)
    unfit = Unfit.of(case, whole)
    checks = Checks(case.axis, unfit.channels)
    clock = Clock(queue)
    trainer = Trainer(case, layer, checks, clock)
    settling = [_distance(0, layer, whole)]
    for number, batch in enumerate(_batches(case, size, total), start=1):
        trainer.step(batch)
        if number in {1, total // 2, total}:
            settling.append(_distance(number, layer, whole))
        advance()

    sample, x = gpuarray.to_gpu(batch, queue=queue), gpuarray.to_gpu(case.x, queue=queue)
    with layer.evaluating() as evaluate:
        clock.first("infer", lambda: evaluate(sample))
        evaluated = evaluate(x).get()
    host = data_of(case.x, case.axis, layer)
    checks.add({"evaluated": evaluated}, {"evaluated": expected("infer", host, case.axis, epsilon=EPSILON)["y"]})
    y = functional.batch_norm_train(x, epsilon=EPSILON, axis=case.axis)[0].get()
    plain = expected("train", host.without(("scale", "bias")), case.axis, epsilon=EPSILON)
    checks.add({"normalised": y}, {"normalised": plain["y"]})
    return Outcome(
        case=case,
        label=layer.label,
        batch_shape=batch.shape,
        settling=tuple(settling),
        checks=checks,
        unfit=unfit,
        not_finite=~np.isfinite(case.x).all(axis=others(case.x.shape, case.axis)),
        before=whole,
        normalised=_moments(y, case.axis),
        evaluated=_moments(evaluated, case.axis),
        timings=timings(case, layer, clock, sample),
        y=y,
    )


def _batches(case: Case, size: int, total: int) -> Iterator[NDArray[Any]]:
    """Shuffled anew in each epoch; samples that do not fill a batch wait for another epoch."""
    rng = np.random.default_rng(0)
    left = total
    while left:
        order = rng.permutation(case.samples)
        for start in range(0, case.samples - size + 1, size):
            if left == 0:
                return
            left -= 1
            yield case.batch(order[start : start + size])


def _moments(array: NDArray[Any], axis: int) -> Spread:
    count, mean, m2 = reference.moments(array, axis=axis)
    with np.errstate(all="ignore"):
        return Spread(mean, np.sqrt(m2 / count))


def _distance(batch: int, layer: Layer, whole: Spread) -> Settling:
    mean, var = (values.astype(np.float64) for values in layer.running())
    known = np.isfinite(whole.mean) & np.isfinite(whole.std)

    def relative(error: Float64s, unit: Float64s) -> float:
        with np.errstate(all="ignore"):
            return float(np.linalg.norm(error[known]) / np.linalg.norm(unit[known]))

    return Settling(batch, relative(mean - whole.mean, whole.std), relative(var - whole.std**2, whole.std**2))
