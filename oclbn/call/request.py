"""What decides a call's plan and kernels: the key of all that is prepared and planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from pyopencl.array import Array

from oclbn.call.layout import Layout, common_layout, dense_strides
from oclbn.elements import kind, numbers_of
from oclbn.plan.operations import TENSORS, Operation, operation_of
from oclbn.plan.words import ALONE, Fusion, Problem

Strides = tuple[int, ...]
_ABSENT: dict[str, Any] = {  # what kernels can be given, and no call does that has nothing fused
    f"{name}{what}": None if what == "" else 0
    for name in ("aux", "offsets", "dresidual")
    for what in ("", "_start", "_row", "_channel")
} | {"slope": 0.0}


class Request(NamedTuple):
    """An operation (a key of OPERATIONS) on tensors of one shape, channels on `axis`, from 0 on.

    strides: bytes, of the tensors that it reads, and of its results; None: in x's order, without gaps. dtypes: of the
    same. fusion: what is done besides. groups: of samples, each a batch of its own; ragged ones differ by a sample.
    """

    operation: str
    shape: tuple[int, ...]
    dtypes: tuple[np.dtype[Any], ...]
    axis: int
    strides: tuple[Strides | None, ...]
    fusion: Fusion = ALONE
    groups: int = 1

    @classmethod
    def of(
        cls,
        operation: str,
        x: Any,
        axis: int,
        given: Mapping[str, Any],
        out: Array | None = None,
        fusion: Fusion = ALONE,
        groups: int = 1,
    ) -> Request:
        """From the tensors, those beside x by their names in the operation, and the array for its result.

        A second result is among those that are given.
        """
        wanted = operation_of(operation, fusion)
        strides: tuple[Strides | None, ...] = (x.strides,)
        dtypes: tuple[np.dtype[Any], ...] = (x.dtype,)
        for name in wanted.others:
            strides += (given[name].strides,)
            dtypes += (given[name].dtype,)
        if wanted.result:
            strides += (None if out is None else out.strides,)
            dtypes += (x.dtype if out is None else out.dtype,)
        if wanted.second:
            other = given.get(wanted.second)
            strides += (None if other is None else other.strides,)
            dtypes += (x.dtype if other is None else other.dtype,)
        return cls(operation, x.shape, dtypes, axis, strides, fusion, groups)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of x."""
        return self.dtypes[0]

    @property
    def described(self) -> Operation:
        """What the operation takes and gives."""
        return operation_of(self.operation, self.fusion)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that `strides` are of, as kernels call them."""
        wanted = self.described
        renamed = wanted.kernel_names
        return (*(renamed.get(name, name) for name in wanted.tensors), *wanted.results)

    def layout(self) -> Layout:
        """How kernels walk the tensors; NotWalked where they cannot walk them together."""
        x, *others = self.strides
        assert x is not None
        sizes = tuple(dtype.itemsize for dtype in self.dtypes)
        filled = [
            dense_strides(self.shape, x, sizes[0]) if one is None else one for one in others
        ]  # None: of x's own type
        return common_layout(self.shape, self.axis, sizes, (x, *filled), self.described.apart)

    def problem(self, layout: Layout) -> Problem:
        """What the planner is asked of it."""
        names = ["to" if name in self.described.results else name for name in self.names]
        kinds = dict(zip(names, map(kind, self.dtypes), strict=True))
        found = tuple(kinds.get(name) or 0 for name in TENSORS)
        made = replace(layout.problem(self.dtype.itemsize), kinds=found, fusion=self.fusion)
        return made.in_batches(self.groups, self.shape[0]) if self.described.apart else made

    def constants(self, layout: Layout) -> dict[str, Any]:
        """The kernels' arguments that the shapes decide, but for those of a plan."""
        count = layout.outer * layout.inner
        numbers: dict[str, Any] = {"outer": layout.outer, "channels": layout.channels, "inner": layout.inner}
        if self.described.apart:
            numbers |= self.problem(layout).batch_numbers
        numbers |= {
            "count": count,
            "unbiased": count - 1,
            "count_rest": count - int(numbers_of(self.dtype).type(count)),
        }
        numbers |= {name: value for name, value in _ABSENT.items() if name.partition("_")[0] not in self.names}
        for name, (row, channel) in zip(self.names, layout.strides, strict=True):
            numbers |= {f"{name}_row": row, f"{name}_channel": channel}
        return numbers
