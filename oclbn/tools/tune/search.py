"""Looking for better choices: one field at a time, nearest values first, again and again until nothing more is gained.

Pure: it times nothing. Who calls `search` says how a candidate compares with the incumbent; oclbn.tools.tune.process
does it on a device. A candidate takes the incumbent's place when it is faster by a margin in two comparisons that know
nothing of each other: among dozens of candidates one always looks better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol

from oclbn.plan.variants import plan
from oclbn.plan.words import DeviceLimits, Plan, Problem, Tuning
from oclbn.truth.cases import Case

Value = int | bool | str
Choices = dict[str, Value]

MARGIN = 1.02  # times as fast, as the geometric mean over shapes and operations: below that is noise
MOST_PASSES = 4  # over all fields; the third seldom finds anything

# What is tried, in this order: field of Tuning -> kind of device -> values; a kind that is not there tries none.
SPACE: dict[str, dict[str, tuple[Value, ...]]] = {
    "lanes": {"cpu": (1, 16, 64), "gpu": (32, 64, 128, 256), "accelerator": (1, 16, 64, 256)},
    "vec": dict.fromkeys(("cpu", "gpu", "accelerator"), (1, 2, 4, 8, 16)),
    "groups_per_unit": dict.fromkeys(("cpu", "gpu", "accelerator"), (2, 4, 8, 16, 32)),
    "stream": dict.fromkeys(("cpu", "gpu", "accelerator"), (False, True)),
    "fetch": {"cpu": (False, True)},  # elsewhere global memory is not the processor's own
    "chains": {"cpu": (0, 1, 2, 4, 8)},  # groups of several work-items take one block each
    "chunk_bytes": dict.fromkeys(("cpu", "gpu", "accelerator"), (4096, 8192, 16384, 32768, 65536)),
    "run_bytes": {"cpu": (0, 2048, 4096, 8192)},
    "together_bytes": {"cpu": (3072, 6144, 12288, 24576, 49152)},
    "once_bytes": {"cpu": (16384, 65536, 262144)},
    "near_bytes": {"cpu": (131072, 262144, 524288, 1048576, 2097152)},
    "unroll": dict.fromkeys(("cpu", "gpu", "accelerator"), (1, 2, 4, 8)),
    "blocks": dict.fromkeys(("cpu", "gpu", "accelerator"), (1, 2, 4)),
}
NOT_SEARCHED = {"most_steps", "variant"}  # a driver's limit, which no timing shows; a tool of tests


# One sample of each tensor that is timed, and the axis of its channels; there are as many samples as it takes.
SAMPLES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((512, 14, 14), 1),  # short rows
    ((64, 56, 56), 1),  # long rows
    ((512,), 1),  # features: columns
    ((1024, 7, 7), 1),  # the shortest rows
    ((28, 28, 256), 3),  # channels last
    ((3, 512, 512), 1),  # too few channels to go round
)
_QUICK = 3  # of these
_LEAST_BYTES = {"cpu": 24 << 20, "gpu": 64 << 20, "accelerator": 64 << 20}  # below, launches count as much as memory
_MOST_BYTES = {"cpu": 48 << 20, "gpu": 256 << 20, "accelerator": 256 << 20}


@dataclass(frozen=True)
class Verdict:
    """How a candidate compares: times as fast as the incumbent, or why it is out of the question."""

    gain: float = 1.0
    rejected: str = ""
    timed: bool = True  # False: it would change nothing here


@dataclass(frozen=True)
class Tried:
    """A candidate and what came of it."""

    name: str
    value: Value
    verdict: Verdict
    adopted: bool


class Judge(Protocol):
    """Compares two sets of choices; `thorough`: the last comparison before the candidate is adopted."""

    def __call__(self, incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict: ...


@dataclass
class Found:
    """The best choices so far; kept up to date while `search` runs, so that an interrupted one is of use."""

    choices: Choices
    gain: float = 1.0  # times as fast as at the start, as the comparisons of the search have it
    passes: int = 0
    complete: bool = False  # nothing more to gain; False where the time was over
    best_around: bool = False  # no field's next value on either side gains anything


def choices_of(tuning: Tuning) -> Choices:
    """The choices as a dict, by field."""
    return asdict(tuning)


@dataclass(frozen=True)
class Planned:
    """How an operation on a tensor would run."""

    case: str
    operation: str
    plan: Plan


def shapes_for(device: DeviceLimits, *, quick: bool = False) -> list[tuple[tuple[int, ...], int]]:
    """The shapes that stand for all others, with the axis of their channels: large enough to leave the caches."""
    most = min(_MOST_BYTES[device.kind], device.max_alloc_bytes, device.memory_bytes // 8)
    nbytes = min(max(device.cache_bytes * 3 // 4, _LEAST_BYTES[device.kind]), most) // (4 if quick else 1)
    shapes = [((max(2, nbytes // (4 * math.prod(sample))), *sample), axis) for sample, axis in SAMPLES]
    if quick:
        return shapes[:_QUICK]
    sample, axis = SAMPLES[0]
    return [*shapes, ((max(2, nbytes // (64 * math.prod(sample))), *sample), axis)]  # and one that stays in a cache


def plans_for(device: DeviceLimits, tuning: Tuning) -> list[Planned]:
    """How training and backward on those shapes are planned, should the kernels bear groups of that size."""
    found = []
    for shape, axis in shapes_for(device):
        inner = math.prod(shape[axis + 1 :])
        problem = Problem(math.prod(shape[:axis]), shape[axis], inner, 4, columns=inner == 1, adjacent=True)
        case = str(Case(shape, axis))
        found += [Planned(case, name, plan(name, problem, device, tuning)) for name in ("train", "backward")]
    return found


def candidates(kind: str) -> list[tuple[str, Value]]:
    """Fields and values that one pass tries on a device of this kind, in order."""
    known = {field.name for field in fields(Tuning)}
    return [(name, value) for name, kinds in SPACE.items() if name in known for value in kinds.get(kind, ())]


def search(
    found: Found,
    moves: Sequence[tuple[str, Value]],
    judge: Judge,
    *,
    margin: float = MARGIN,
    enough: Callable[[], bool] = lambda: False,
    starting: Callable[[str, Value], None] = lambda name, value: None,
    report: Callable[[Tried], None] = lambda tried: None,
) -> None:
    """Improve found.choices in place, by `moves` (field, value), until a pass gains nothing or it is `enough`.

    margin: how many times as fast a candidate has to be. starting, report: told of each move before and after.
    """
    compared: set[tuple[tuple[str, Value], ...]] = set()  # what lost once loses to every later, faster incumbent
    while found.passes < MOST_PASSES:
        before = dict(found.choices)
        for name, value in nearest_first(moves, before):
            candidate = found.choices | {name: value}
            key = _key(candidate)
            if candidate == found.choices or key in compared:
                continue
            if enough():
                around = (found.choices | {name: value} for name, value in _around(moves, found.choices))
                found.best_around = all(_key(one) in compared for one in around)
                return
            starting(name, value)
            verdict = _compare(found.choices, candidate, judge, margin)
            compared.add(key)
            adopted = not verdict.rejected and verdict.gain >= margin
            if adopted:
                found.choices = candidate
                found.gain *= verdict.gain
            report(Tried(name, value, verdict, adopted))
        found.passes += 1
        if found.choices == before:
            found.complete = found.best_around = True
            return


def nearest_first(moves: Sequence[tuple[str, Value]], choices: Choices) -> list[tuple[str, Value]]:
    """The moves, those first that are the fewest steps from these choices along their field's values.

    What is far off is seldom better, and slow to compile or to run: it is tried when there is time left.
    """
    return sorted(moves, key=lambda move: _steps(moves, choices, move))


def _around(moves: Sequence[tuple[str, Value]], choices: Choices) -> list[tuple[str, Value]]:
    """The moves that are one step away."""
    return [move for move in moves if _steps(moves, choices, move) == 1]


def _steps(moves: Sequence[tuple[str, Value]], choices: Choices, move: tuple[str, Value]) -> int:
    """How many of the field's values lie between a move and these choices, the move's own among them."""
    name, value = move
    own, wanted = float(choices[name]), float(value)
    low, high = min(own, wanted), max(own, wanted)
    values = (float(other) for field, other in moves if field == name)
    return sum(low <= other <= high and other != own for other in values)


def _compare(incumbent: Choices, candidate: Choices, judge: Judge, margin: float) -> Verdict:
    verdict = judge(incumbent, candidate, thorough=False)
    if verdict.rejected or verdict.gain < margin:
        return verdict
    again = judge(incumbent, candidate, thorough=True)
    return again if again.rejected or again.gain < verdict.gain else verdict


def _key(choices: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(choices.items()))
