"""What it costs that arrays have to be packed: such a call beside the plain one, and beside the copies that it adds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn import gpuarray
from oclbn.errors import DeviceError, ShapeError
from oclbn.tools.bench.benchmark import checked_axis, room_for
from oclbn.tools.bench.suites import Shape
from oclbn.tools.bench.turns import interleave
from oclbn.tools.bench.workload import Work
from oclbn.tools.peers import contract

OPERATIONS = ("forward", "backward", "inference")
_NEAR = 1e-4  # sums in another order differ by less; elements in another place by more


@dataclass(frozen=True)
class Packed:
    """One operation on one shape: prepared calls, with outputs preallocated. Medians, in seconds."""

    shape: Shape
    axis: int
    operation: str
    packed: float  # of tensors whose rows run backwards
    plain: float  # of tensors without gaps in C order
    copies: float  # of the packed call's tensors: those that it reads into temporaries, the result out of one
    plan: str

    @property
    def ratio(self) -> float:
        """The packed call's time in those of what it is made of."""
        return self.packed / (self.plain + self.copies)


def packed(
    queue: cl.CommandQueue,
    shape: Shape,
    axis: int = 1,
    *,
    rounds: int | None = None,
    operations: Sequence[str] = OPERATIONS,
    advance: Callable[[float], None] = lambda part: None,
) -> list[Packed]:
    """Time operations on a float32 tensor whose rows run backwards, in turns with what they are made of.

    rounds, advance and errors are those of oclbn.tools.bench.benchmark.compare. ShapeError: kernels walk a tensor of
    two axes as it lies, whatever its strides, so that nothing is packed.
    """
    axis = checked_axis(shape, axis)
    room_for(queue, shape)
    if len(shape) < 3:
        raise ShapeError(f"shape {shape}: nothing is packed of tensors with two axes")
    work = Work(queue, shape, axis, "prepared", contract.block(math.prod(shape)))
    work.check(operations)
    mirrored = work.mirrored()
    plain, views = work.calls(), mirrored.calls()
    for operation in operations:
        wanted = [array.get() for array in plain[operation]()]
        for place, (array, want) in enumerate(zip(views[operation](), wanted, strict=True)):
            got = gpuarray.pack(array).get()
            want = want if place else work.mirror(want)
            if not np.allclose(got, want, rtol=_NEAR, atol=_NEAR * max(1.0, float(np.abs(want).max(initial=0.0)))):
                raise DeviceError(f"oclbn's {operation} of {shape} differs where its arrays are packed")
    entries = []
    for operation in operations:
        for who, call in (("packed", views[operation]), ("plain", plain[operation])):
            entries.append(work.entry("oclbn", f"{operation}, {who}", call))
        entries.append(work.entry("copy", f"{operation}, copies", mirrored.packing(operation)))
    interleave(entries, rounds, advance)
    medians = {entry.operation: statistics.median(entry.samples) for entry in entries}
    found = []
    for operation in operations:
        times: Any = {what: medians[f"{operation}, {what}"] for what in ("packed", "plain", "copies")}
        found.append(Packed(shape, axis, operation, **times, plan=mirrored.plan(operation)))
    return found
