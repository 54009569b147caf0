"""What `oclbn tune` does in a child process, where a driver that aborts or hangs takes nothing else with it.

`Trials` holds choices against the reference (oclbn.truth.cases) and times two sets of them against each other.
`serve` answers requests, one JSON object a line, from the standard input; oclbn.tools.tune.process asks.
"""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from numpy.typing import NDArray

from oclbn import device
from oclbn.elements import named, narrow
from oclbn.errors import DriverWarning, OclbnError
from oclbn.plan.words import Plan
from oclbn.proof import proving
from oclbn.tools.child import requests
from oclbn.tools.tune.calls import GUARD, Calls
from oclbn.tools.tune.search import Choices
from oclbn.tools.yardstick import plain_copy
from oclbn.truth.cases import Case, judge
from oclbn.truth.expectation import Expected
from oclbn.tuning import using

TIMED = ("train", "backward", "infer")
NASTY: tuple[tuple[tuple[int, ...], int, str], ...] = (  # shape, axis of the channels, element type
    ((5, 37, 7, 9), 1, "float32"),  # short rows, odd in everything
    ((2, 3, 9001), 1, "float32"),  # ragged rows of several chunks
    ((3, 2, 4096), 1, "float32"),  # whole vectors only
    ((401, 71), 1, "float32"),  # columns beside a power of two
    ((3, 20, 21, 33), 3, "float32"),  # channels last, a scrap
)
NASTY_TOO = (
    *NASTY,
    ((3, 5, 1, 3), 1, "float32"),
    ((4, 7, 13, 17), 1, "float64"),
    ((67, 19), 1, "float64"),
    ((5, 37, 7, 9), 1, "float16"),
    ((2, 3, 9001), 1, "bfloat16"),
    ((67, 19), 1, "bfloat16"),
)
_SAMPLED = 12  # channels of a large tensor that are held against the reference
_BATCH_SECONDS = 1e-3  # a timing takes at least so long: several calls where one is shorter
_MOST_CALLS = 32
_FIRST_ROUNDS = 2  # after which a candidate that is far behind is given up
_HOPELESS = 0.9
_FEW, _LOST = 6, 0.7  # or, after so many operations on shapes, one that is as far behind as this
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15


class WrongResult(Exception):
    """Choices under which a kernel gives other numbers than the reference."""


class Trials:
    """Checks and timings on one device; `cases` are what is timed."""

    def __init__(self, queue: cl.CommandQueue, cases: Sequence[Case], seconds: float = 0.05) -> None:
        """seconds: what the timing of one operation on one shape may take, about."""
        self.queue, self.seconds = queue, seconds
        known = {"float32", *narrow()} | ({"float64"} if device.limits(queue.device).fp64 else set())
        self._flat: dict[str, tuple[cla.Array, cla.Array, cla.Array]] = {}
        nasty = [Case(*row) for row in NASTY_TOO if row[2] in known]
        for dtype in {case.dtype for case in (*cases, *nasty)}:
            self._flat[dtype] = self._memory(dtype, [case for case in (*cases, *nasty) if case.dtype == dtype])
        self.timed = [Calls(queue, case, self._flat[case.dtype]) for case in cases]
        self.nasty = [Calls(queue, case, self._flat[case.dtype]) for case in nasty]
        self._wanted: dict[tuple[Case, str], Expected] = {}
        self._right: set[tuple[Case, str, Plan]] = set()

    def _memory(self, dtype: str, cases: Sequence[Case]) -> tuple[cla.Array, cla.Array, cla.Array]:
        size = max(math.prod(case.shape) for case in cases) + GUARD
        rng = np.random.default_rng(0)
        element = named(dtype)
        x, dy = ((rng.standard_normal(size) + shift).astype(element) for shift in (0.5, 0.0))
        return cla.to_device(self.queue, x), cla.to_device(self.queue, dy), cla.zeros(self.queue, size, element)

    def check(self, choices: Choices, *, thorough: bool = False, incumbent: Choices | None = None) -> None:
        """Run everything under these choices that has not been seen to be right; WrongResult where it is not.

        Plans, not choices, are what is remembered. Of the tensors to be timed, which are large, some channels are
        looked at. thorough: also other types, and what is not timed. incumbent: nor may a proof refuse a form that
        these choices lead to, but those do not: each process would have to go round it.
        """
        rows = NASTY_TOO if thorough else NASTY
        operations = (*TIMED, "constant", "moments") if thorough else TIMED
        few = [calls for calls in self.nasty if _row(calls.case) in rows]
        with using(**choices):
            for calls, operation in [(c, o) for c in few for o in operations] + [
                (c, o) for c in self.timed for o in TIMED
            ]:
                prepared = calls.prepared(operation, choices)
                if incumbent is not None and prepared.failures:
                    known = calls.prepared(operation, incumbent).failures
                    for failure in (failure for failure in prepared.failures if failure not in known):
                        raise WrongResult(f"{operation} of {calls.case}: its proof fails: {failure}")
                seen = (calls.case, operation, prepared.plan)
                if seen not in self._right:
                    self._compare(calls, operation)
                    self._right.add(seen)

    def _compare(self, calls: Calls, operation: str) -> None:
        channels = _some(calls.case.shape[calls.case.axis], all_of_them=calls in self.nasty)
        key = (calls.case, operation)
        if key not in self._wanted:
            self._wanted[key] = calls.expected(operation, channels)
        calls.prepare()
        found = {
            name: np.take(result.get(), channels, axis=calls.case.axis if result.ndim > 1 else 0)
            for name, result in calls.run(operation).items()
        }
        worst = judge(found, self._wanted[key])
        if not worst.good:
            raise WrongResult(f"{operation} of {calls.case}: {worst}")
        if not np.isnan(calls.guard.get()).all():
            raise WrongResult(f"{operation} of {calls.case} writes beyond its result")

    def duel(self, incumbent: Choices, candidate: Choices, *, thorough: bool = False) -> dict[str, Any]:
        """Check the candidate, then time it against the incumbent: {"gain": times as fast, "timed": whether it was}.

        Operations that both plan alike are not timed: they count as equal. Raises WrongResult, and what the compiler
        or the driver raises.
        """
        self.check(candidate, thorough=thorough, incumbent=incumbent)
        pairs = [(calls, operation) for calls in self.timed for operation in TIMED]
        unlike = [
            (calls, operation)
            for calls, operation in pairs
            if calls.plan(operation, incumbent) != calls.plan(operation, candidate)
        ]
        if not unlike:
            return {"gain": 1.0, "timed": False}
        samples: list[list[list[float]]] = []
        for calls, operation in unlike:
            samples.append(self._race(calls, operation, (incumbent, candidate), _FIRST_ROUNDS))
            if len(samples) >= _FEW and (gain := _gain(samples, len(samples))) < _LOST:
                return {"gain": gain, "timed": True}
        gain = _gain(samples, len(pairs))
        if gain > _HOPELESS:
            for (calls, operation), times in zip(unlike, samples, strict=True):
                rounds = round(self.seconds / max(sum(map(min, times)), 1e-9))
                more = self._race(calls, operation, (incumbent, candidate), _rounds(rounds * (1 + thorough)))
                for mine, new in zip(times, more, strict=True):
                    mine += new
            gain = _gain(samples, len(pairs))
        return {"gain": gain, "timed": True}

    def report(self, before: Choices, after: Choices) -> list[dict[str, Any]]:
        """Seconds of every operation on every shape under both sets of choices, and of the fastest copy: medians."""
        rows = []
        for calls in self.timed:
            copies = list(_copies(self.queue, calls.x, calls.out))
            for operation in TIMED:
                once = min(self._race(calls, operation, (before, after), 1)[0])
                rounds = _rounds(round(self.seconds / max(once, 1e-9)))
                first, second, *others = self._race(calls, operation, (before, after), rounds, copies)
                medians = [statistics.median(times) for times in (first, second)]
                rows.append(
                    {
                        "case": str(calls.case),
                        "operation": operation,
                        "copy": min(statistics.median(times) for times in others),
                        "before": medians[0],
                        "after": medians[1],
                        "plan": str(calls.plan(operation, after)),
                    }
                )
        return rows

    def _race(
        self,
        calls: Calls,
        operation: str,
        choices: Sequence[Choices],
        rounds: int,
        others: Sequence[Callable[[], object]] = (),
    ) -> list[list[float]]:
        """Seconds per call of each of several choices, then of each other call; round by round, in turn."""
        entries = [*((entry, lambda: calls.run(operation)) for entry in choices), *(({}, call) for call in others)]
        times: list[list[float]] = [[] for _ in entries]
        number = 1
        for turn in range(-1, rounds):
            order = list(enumerate(entries))
            for index, (entry, call) in order if turn % 2 else reversed(order):
                with using(**entry):
                    spent = self._timed(call, number)
                if turn >= 0:  # the first round warms up, and tells how often to call
                    times[index].append(spent)
                elif index == 0:
                    number = max(1, min(_MOST_CALLS, round(_BATCH_SECONDS / max(spent, 1e-9))))
        return times

    def _timed(self, call: Callable[[], object], number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            call()
        self.queue.finish()
        return (time.perf_counter() - start) / number


def _row(case: Case) -> tuple[tuple[int, ...], int, str]:
    return case.shape, case.axis, case.dtype


def _some(channels: int, *, all_of_them: bool) -> NDArray[np.intp]:
    """Indices of channels: first and last among them."""
    count = channels if all_of_them else min(channels, _SAMPLED)
    return np.unique(np.linspace(0, channels - 1, count).round().astype(np.intp))


def _rounds(number: int) -> int:
    return max(_LEAST_ROUNDS, min(_MOST_ROUNDS, number))


def _gain(samples: list[list[list[float]]], pairs: int) -> float:
    """Geometric mean of the ratios of medians; pairs that were not timed count as 1."""
    ratios = [math.log(statistics.median(old) / statistics.median(new)) for old, new in samples]
    return math.exp(math.fsum(ratios) / pairs)


def _copies(queue: cl.CommandQueue, x: cla.Array, y: cla.Array) -> Iterator[Callable[[], object]]:
    source: Any = x.base_data
    target: Any = y.base_data
    nbytes = x.nbytes
    yield lambda: cl.enqueue_copy(queue, target, source, byte_count=nbytes)
    for stream in (False, True):
        yield lambda stream=stream: plain_copy(x, y, stream=stream)  # type: ignore[misc]


def _answer(trials: Trials, request: dict[str, Any]) -> Any:
    action, given = request["do"], request["with"]
    if action == "check":
        trials.check(given["choices"], thorough=True)
        return None
    if action == "duel":
        return trials.duel(given["incumbent"], given["candidate"], thorough=given["thorough"])
    return trials.report(given["before"], given["after"])


def serve() -> None:
    """Answer requests until the input ends; the first one says which device and what to time."""
    os.environ[proving.VARIABLE] = "1"  # what a proof refuses is not run by anybody
    warnings.simplefilter("ignore", DriverWarning)  # it is a rejection
    trials: Trials | None = None
    for request, reply in requests():
        answer: dict[str, Any] = {}
        try:
            if trials is None:
                cases = [Case(tuple(shape), axis) for shape, axis in request["cases"]]
                trials = Trials(device.queue_for(request["device"]), cases, request["seconds"])
                answer["done"] = None
            else:
                answer["done"] = _answer(trials, request)
        except (WrongResult, OclbnError, cl.Error, MemoryError) as error:
            answer["rejected"] = str(error).strip().partition("\n")[0]
        reply(answer)


if __name__ == "__main__":
    serve()
