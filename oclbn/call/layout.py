"""How arrays lie in memory: what kernels walk together, and orders without gaps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pyopencl.array import Array

from oclbn.errors import LayoutError
from oclbn.plan.words import Problem


@dataclass(frozen=True)
class Layout:
    """A tensor as [outer][channels][inner], and for each array of that shape how far rows and channels lie apart."""

    outer: int
    channels: int
    inner: int
    columns: bool
    strides: tuple[tuple[int, int], ...]  # per array: elements from row to row, from channel to channel

    def problem(self, itemsize: int) -> Problem:
        """What the planner is asked."""
        if self.columns:
            adjacent = all(row == self.channels for row, _ in self.strides)
        else:
            adjacent = all(channel == self.inner for _, channel in self.strides)
        return Problem(self.outer, self.channels, self.inner, itemsize, self.columns, adjacent)


def astray(x: Array, axis: int, others: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Those of `others`, arrays of x's shape by name and byte strides, that cannot be walked together with x.

    LayoutError where x itself cannot be walked, in its own order and without gaps.
    """
    itemsize = x.dtype.itemsize
    kept = {"": dense_strides(x.shape, x.strides, itemsize)}
    common_layout(x.shape, axis, itemsize, (x.strides, *kept.values()))
    found = set()
    for name, strides in others.items():
        if _layout(x.shape, axis, itemsize, (x.strides, *kept.values(), strides)) is None:
            found.add(name)
        else:
            kept[name] = strides
    return found


def common_layout(
    shape: tuple[int, ...], axis: int, itemsize: int, byte_strides: tuple[tuple[int, ...], ...]
) -> Layout:
    """The common layout of x and other arrays of its shape, by their strides.

    LayoutError where no kernel walks them together.
    """
    found = _layout(shape, axis, itemsize, byte_strides)
    if found is None:
        raise LayoutError(
            f"x has strides {byte_strides[0]} bytes for shape {shape} and channels on axis {axis}: the elements of a "
            "channel must lie in equally spaced rows of neighbours, or channels must be neighbours, equally spaced "
            "over the whole batch; oclbn.gpuarray.pack(x) makes such a copy"
        )
    return found


def in_items(strides: tuple[int, ...], itemsize: int, wanted: int) -> tuple[int, ...]:
    """Byte strides of an array with items of `itemsize` as if they had `wanted` bytes."""
    return strides if itemsize == wanted else tuple(stride // itemsize * wanted for stride in strides)


def dense_strides(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Byte strides of an array without gaps whose elements lie in the order of one with these strides."""
    return _dense_order(shape, strides, itemsize)[0]


def dense_order(x: Array) -> tuple[tuple[int, ...], bool]:
    """dense_strides of x, and whether pyopencl uses arrays that have them: it wants C or Fortran order."""
    return _dense_order(x.shape, x.strides, x.dtype.itemsize)


@functools.lru_cache(maxsize=4096)
def _dense_order(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], bool]:
    shape, dense, size = integers(shape), [0] * len(shape), itemsize
    for d in sorted(range(len(shape)), key=lambda d: (abs(strides[d]) or math.inf, -d)):
        dense[d] = size
        size *= max(1, shape[d])
    longer = [stride for stride, extent in zip(dense, shape, strict=True) if extent > 1]
    plain = 0 in shape or longer in (sorted(longer), sorted(longer, reverse=True))
    return tuple(dense), plain


@functools.lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...], axis: int, itemsize: int, byte_strides: tuple[tuple[int, ...], ...]
) -> Layout | None:
    shape = integers(shape)
    strides = [tuple(int(stride) // itemsize for stride in one) for one in byte_strides]
    channels = shape[axis]
    dims = [d for d in range(len(shape)) if d != axis and shape[d] != 1]
    dims.sort(key=lambda d: -(abs(strides[0][d]) or math.inf))
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []  # per merged dimension, per array
    for d in dims:
        step = tuple(one[d] for one in strides)
        if sizes and all(outer == inner * shape[d] for outer, inner in zip(steps[-1], step, strict=True)):
            sizes[-1] *= shape[d]
            steps[-1] = step
        else:
            sizes.append(shape[d])
            steps.append(step)
    across = tuple(one[axis] if channels > 1 else 0 for one in strides)
    none = (0,) * len(strides)
    unit = (1,) * len(strides)
    if len(sizes) <= 1 and across == unit:
        return Layout(math.prod(sizes), channels, 1, True, _pairs(steps[0] if steps else none, unit))
    if not sizes:
        return Layout(1, channels, 1, False, _pairs(none, across))
    if steps[-1] == unit and len(sizes) <= 2:
        rows, step = (sizes[0], steps[0]) if len(sizes) == 2 else (1, none)
        return Layout(rows, channels, sizes[-1], False, _pairs(step, across))
    if len(sizes) == 1:
        return Layout(sizes[0], channels, 1, False, _pairs(steps[0], across))
    return None


def integers(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """As Python's own: pyopencl takes NumPy's as sizes, whose products may leave their range."""
    return tuple(map(int, numbers))


def _pairs(rows: tuple[int, ...], channels: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(rows, channels, strict=True))


@functools.lru_cache(maxsize=4096)
def reach(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """First byte of an array and the one behind its last, counted from where its first element begins."""
    if 0 in shape:
        return 0, 0
    ends = [(int(size) - 1) * int(stride) for size, stride in zip(shape, strides, strict=True)]
    return sum(end for end in ends if end < 0), sum(end for end in ends if end > 0) + itemsize
