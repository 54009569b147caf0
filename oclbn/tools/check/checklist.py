"""What `oclbn check` asks of a device: kernels to build, tensors to normalise, speeds to measure.

Pure: from what a device can do and the choices in force for it to a list of checks, each of which
oclbn.tools.check.checks carries out in a child process.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from oclbn.activations import NAMES, PLAIN
from oclbn.elements import kind, named, narrow
from oclbn.plan.groups import floor_power
from oclbn.plan.operations import BATCHES, OPERATIONS
from oclbn.plan.variants import plan
from oclbn.plan.words import Build, DeviceLimits, Problem, Tuning
from oclbn.truth.cases import ORDINARY, Case, fused
from oclbn.truth.hostile import MAKERS, Data

Shape = tuple[int, ...]

# Extents of the tensors that the planner is asked about; it has no choice that none of them brings out.
_OUTER = (1, 2, 5, 32, 64, 300, 2000, 1 << 16, 1 << 22)
_CHANNELS = (1, 3, 8, 33, 64, 256, 1000, 4097, 1 << 16)
_INNER = (1, 2, 5, 9, 49, 64, 196, 784, 3136, 12_544, 1 << 20, 1 << 25)
_MOST_ELEMENTS = 1 << 31

_HARD: tuple[tuple[Shape, int], ...] = (  # with all data, by all variants
    ((5, 37, 7, 9), 1),  # short rows, odd in everything
    ((2, 3, 9001), 1),  # ragged rows of several chunks
    ((401, 71), 1),  # columns beside a power of two
)
_OTHERS: tuple[tuple[Shape, int], ...] = (
    ((2, 1), 1),  # the least that trains
    ((1, 7, 29), 1),  # one sample
    ((7, 5, 13), 1),  # all prime
    ((3, 2, 4096), 1),  # whole vectors only
    ((2, 4097, 2), 1),  # more channels than a power of two
    ((2, 3, 256, 257), 1),  # channels to be split
    ((20_011, 5), 1),  # few long columns
    ((3, 20, 21, 33), 3),  # channels last, a scrap
    ((3, 40, 5), 0),  # rows of the first axis
)
_LARGE: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 1024, 14, 14))  # where these go past the cache: other kernels do it
_QUICK: tuple[tuple[Shape, int], ...] = (((3, 7, 3, 5), 1), ((2, 3, 301), 1), ((37, 19), 1))
_NARROW: tuple[tuple[Shape, int], ...] = (((32, 64, 56, 56), 1), ((32, 1024, 14, 14), 1), ((32, 14, 14, 1024), 3))
_VARIANTS = ("resident", "split", "serial")
_FUSED = (("relu", True), ("gelu", False))  # with a tensor more, and with functions of our own
_TIMED: tuple[Shape, ...] = ((32, 256, 28, 28), (32, 512, 7, 7))
FAR_MEAN = "mean is 1e4 std"


@dataclass(frozen=True)
class BuildCheck:
    """One text for the compiler, and the kernels in it that are used."""

    build: Build
    kernels: tuple[str, ...]
    kind: ClassVar[str] = "build"

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that need it."""
        used = {*self.kernels}
        return tuple(name for name, wanted in OPERATIONS.items() if {*wanted.kernels} & used)

    def __str__(self) -> str:
        return str(self.build)


@dataclass(frozen=True)
class NumberCheck:
    """One operation on one tensor, its channels on `axis`, filled with data of oclbn.truth.hostile.MAKERS."""

    operation: str
    shape: Shape
    axis: int
    data: str
    dtype: str = "float32"
    variant: str = ""  # "": as planned
    activation: str = "none"
    residual: bool = False
    groups: int = 1  # of samples, each a batch of its own
    kind: ClassVar[str] = "numbers"

    @property
    def case(self) -> Case:
        """The tensor and its data."""
        return Case(self.shape, self.axis, self.dtype, self.data)

    def make(self) -> Data:
        """Its data."""
        own, activation = replace(self.case.make(self.operation), groups=self.groups), PLAIN[self.activation]
        return fused(own, self.operation, self.axis, activation, residual=self.residual)

    @property
    def operations(self) -> tuple[str, ...]:
        """The one operation."""
        return (self.operation,)

    def __str__(self) -> str:
        besides = ["" if self.activation == "none" else self.activation, "a residual" if self.residual else ""]
        besides.append(f"{self.groups} groups" if self.groups > 1 else "")
        return ", ".join(filter(None, (f"{self.operation} of {self.case}", self.data, self.variant, *besides)))


@dataclass(frozen=True)
class SpeedCheck:
    """Training, backward and inference of one float32 tensor, beside its copy."""

    shape: Shape
    kind: ClassVar[str] = "speed"

    def __str__(self) -> str:
        return f"speed at {'x'.join(map(str, self.shape))}"


Check = BuildCheck | NumberCheck | SpeedCheck


def checks(device: DeviceLimits, tuning: Tuning, *, quick: bool = False) -> list[Check]:
    """All checks, in order. quick: a few small tensors, what they need built, and no speeds."""
    numbers = list(_numbers(device, tuning, quick=quick))
    if quick:
        return list(numbers)
    return [*_builds(device, tuning), *numbers, *map(SpeedCheck, _TIMED)]


def more_builds(device: DeviceLimits, tuning: Tuning, most: Mapping[Build, Mapping[str, int]]) -> list[BuildCheck]:
    """Builds for plans with fewer work-items in a group, where some kernel may not have as many as were planned.

    most: what the device told of the kernels that are built already; empty where that is enough for all of them.
    """
    rooms = [room for build, told in most.items() for room in told.values() if room < dict(build.defines)["LANES"]]
    if not rooms:
        return []
    found = _builds(device, replace(tuning, lanes=floor_power(min(rooms))))
    return [check for check in found if check.build not in most]


def request(check: Check) -> dict[str, Any]:
    """A check as JSON can hold it; `asked` reads it."""
    return {"kind": check.kind, **asdict(check)}


def asked(request: dict[str, Any]) -> Check:
    """The check that `request` made this of, before it went through JSON."""
    given = {name: value for name, value in request.items() if name != "kind"}
    if request["kind"] == BuildCheck.kind:
        defines = tuple((name, value) for name, value in given["build"]["defines"])
        return BuildCheck(Build(given["build"]["source"], defines, given["build"]["kernel"]), tuple(given["kernels"]))
    given["shape"] = tuple(given["shape"])
    return SpeedCheck(**given) if request["kind"] == SpeedCheck.kind else NumberCheck(**given)


def _builds(device: DeviceLimits, tuning: Tuning) -> Iterator[BuildCheck]:
    found: dict[Build, dict[str, None]] = {}
    sizes = (4, 8) if device.fp64 else (4,)
    for operation, itemsize, columns, adjacent in itertools.product(OPERATIONS, sizes, (False, True), (False, True)):
        for outer, channels, inner in itertools.product(_OUTER, _CHANNELS, (1,) if columns else _INNER):
            if outer * channels * inner <= _MOST_ELEMENTS:
                problem = Problem(outer, channels, inner, itemsize, columns, adjacent)
                for launch in plan(operation, problem, device, tuning).launches:
                    found.setdefault(launch.build, {})[launch.kernel] = None
    # Of narrow types a sample, as they differ in how elements are loaded and saved alone.
    for name, operation, (shape, axis) in itertools.product(narrow(), OPERATIONS, (*_QUICK, *_NARROW)):
        for launch in plan(operation, _problem(operation, shape, axis, name), device, tuning).launches:
            found.setdefault(launch.build, {})[launch.kernel] = None
    for build, kernels in found.items():
        yield BuildCheck(build, tuple(kernels))


def _problem(operation: str, shape: Shape, axis: int, name: str) -> Problem:
    """Of a tensor without gaps of this narrow type, channels on axis 1 or last."""
    how = kind(named(name)) or 0
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis:][1:])
    return Problem(
        outer,
        shape[axis],
        inner,
        2,
        columns=inner == 1,
        adjacent=True,
        kinds=(how, how, how if OPERATIONS[operation].called else 0, how),
    )


def _numbers(device: DeviceLimits, tuning: Tuning, *, quick: bool) -> Iterator[NumberCheck]:
    hard, others = (_QUICK, ()) if quick else (_HARD, _OTHERS)
    makers = (ORDINARY, FAR_MEAN, "one NaN") if quick else tuple(MAKERS)
    for operation in OPERATIONS:
        for shape, axis in hard:
            for maker in makers:
                yield NumberCheck(operation, shape, axis, maker)
            for variant, maker in itertools.product(_VARIANTS, (ORDINARY, FAR_MEAN)):
                yield NumberCheck(operation, shape, axis, maker, variant=variant)
            for maker in (ORDINARY, FAR_MEAN) if device.fp64 else ():
                yield NumberCheck(operation, shape, axis, maker, dtype="float64")
            for name, maker in itertools.product(narrow(), (ORDINARY, "mean is 1e2 std")):
                yield NumberCheck(operation, shape, axis, maker, dtype=name)
        for shape, axis in others:
            yield NumberCheck(operation, shape, axis, ORDINARY)
        for (shape, axis), (activation, residual) in itertools.product(hard[1:2] if quick else hard, _FUSED):
            if OPERATIONS[operation].fusable:
                yield NumberCheck(operation, shape, axis, ORDINARY, activation=activation, residual=residual)
        for activation in () if quick or not OPERATIONS[operation].resident else NAMES[1:]:
            if OPERATIONS[operation].fusable and (activation, False) not in _FUSED:
                yield NumberCheck(operation, *hard[0], ORDINARY, activation=activation)
        for shape, axis in hard if f"{operation}_batches" in BATCHES else ():
            yield NumberCheck(operation, shape, axis, FAR_MEAN, groups=2)
        for shape in () if quick else _LARGE:
            outer, channels, *inner = shape
            problem = Problem(outer, channels, math.prod(inner), 4, columns=False, adjacent=True)
            planned = plan(operation, problem, device, tuning)
            if planned.geometry.beyond and any(dict(launch.build.defines)["STREAM"] for launch in planned.launches):
                yield NumberCheck(operation, shape, 1, FAR_MEAN)
