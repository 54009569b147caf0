"""What decides a call's plan and kernels: the key of all that is prepared and planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pyopencl.array import Array

from oclbn.call.layout import Layout, common_layout, dense_strides
from oclbn.plan.operations import ALL, Operation

Strides = tuple[int, ...]


class Request(NamedTuple):
    """An operation (a key of OPERATIONS) on tensors of one shape and dtype, channels on `axis`, from 0 on.

    strides: bytes, of the tensors that it reads, and of its result, if it has one; None: in x's order, without gaps.
    """

    operation: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int
    strides: tuple[Strides | None, ...]

    @classmethod
    def of(cls, operation: str, x: Any, axis: int, given: Mapping[str, Any], out: Array | None = None) -> Request:
        """From the tensors, those beside x by their names in the operation, and the array for its result."""
        wanted = ALL[operation]
        strides: tuple[Strides | None, ...] = (x.strides,)
        for name in wanted.others:
            strides += (given[name].strides,)
        if wanted.result:
            strides += (None if out is None else out.strides,)
        return cls(operation, x.shape, x.dtype, axis, strides)

    @property
    def described(self) -> Operation:
        """What the operation takes and gives."""
        return ALL[self.operation]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that `strides` are of, as kernels call them."""
        wanted = self.described
        return (*wanted.tensors, *filter(None, (wanted.result,)))

    def layout(self) -> Layout:
        """How kernels walk the tensors; NotWalked where they cannot walk them together."""
        x, *others = self.strides
        assert x is not None
        itemsize = self.dtype.itemsize
        filled = [dense_strides(self.shape, x, itemsize) if one is None else one for one in others]
        return common_layout(self.shape, self.axis, itemsize, (x, *filled))

    def constants(self, layout: Layout) -> dict[str, int]:
        """The kernels' arguments that the shapes decide, but for those of a plan."""
        count = layout.outer * layout.inner
        numbers = {"outer": layout.outer, "channels": layout.channels, "inner": layout.inner, "count": count}
        numbers |= {"unbiased": count - 1, "count_rest": count - int(self.dtype.type(count))}
        for name, (row, channel) in zip(self.names, layout.strides, strict=True):
            numbers |= {f"{name}_row": row, f"{name}_channel": channel}
        return numbers
