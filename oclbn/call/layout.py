"""How arrays lie in memory: what kernels walk together, and orders without gaps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from oclbn.plan.words import Problem

Strides = tuple[int, ...]


class NotWalked(Exception):
    """No kernel walks these arrays as they lie: the call has to pack them; no user sees this."""


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


def walk(
    shape: tuple[int, ...],
    axis: int,
    x: Strides,
    itemsize: int,
    others: Mapping[str, tuple[Strides, int]],
    apart: bool = False,
) -> set[str] | None:
    """Those of `others`, arrays of x's shape by name, that cannot be walked together with x; None: x itself cannot be.

    x: its byte strides. others: their byte strides and bytes of an element. apart: each sample (axis 0) has to be some
    rows. An array in x's order without gaps can be walked with any x that can be, so that the others can become one.
    """
    kept, sizes = [x, dense_strides(shape, x, itemsize)], [itemsize, itemsize]
    if _layout(shape, axis, tuple(sizes), tuple(kept), apart) is None:
        return None
    found = set()
    for name, (strides, size) in others.items():
        if _layout(shape, axis, (*sizes, size), (*kept, strides), apart) is None:
            found.add(name)
        else:
            kept.append(strides)
            sizes.append(size)
    return found


def common_layout(
    shape: tuple[int, ...],
    axis: int,
    itemsize: int | tuple[int, ...],
    byte_strides: tuple[Strides, ...],
    apart: bool = False,
) -> Layout:
    """The common layout of x and other arrays of its shape, by their strides.

    itemsize: bytes of an element, of all arrays or of each. apart: as `walk` has it. NotWalked where no kernel walks
    them together.
    """
    itemsizes = (itemsize,) * len(byte_strides) if isinstance(itemsize, int) else itemsize
    found = _layout(shape, axis, itemsizes, byte_strides, apart)
    if found is None:
        raise NotWalked
    return found


@functools.lru_cache(maxsize=4096)
def dense_strides(shape: tuple[int, ...], strides: Strides, itemsize: int) -> Strides:
    """Byte strides of an array without gaps whose elements lie in the order of one with these strides."""
    shape, dense, size = integers(shape), [0] * len(shape), itemsize
    for d in sorted(range(len(shape)), key=lambda d: (abs(strides[d]) or math.inf, -d)):
        dense[d] = size
        size *= max(1, shape[d])
    return tuple(dense)


@functools.lru_cache(maxsize=4096)
def result_strides(
    shape: tuple[int, ...], x: Strides, x_itemsize: int, itemsize: int, order: str
) -> tuple[Strides, bool]:
    """Byte strides of a result: of a dense x in x's order where `order` is "K", else in C order.

    x: its byte strides, of elements of x_itemsize bytes; those of the result have `itemsize`. Beside them stands
    whether it lies as x does, but for x's gaps.
    """
    dense = dense_strides(shape, x, x_itemsize)
    alike = dense_strides(shape, x, itemsize)
    gaps = any(size > 1 and own != other for size, own, other in zip(shape, x, dense, strict=True))
    if 0 in shape or gaps or order == "C":
        made = dense_strides(shape, (0,) * len(shape), itemsize)
        return made, all(size <= 1 or own == other for size, own, other in zip(shape, made, alike, strict=True))
    return alike, True


@functools.lru_cache(maxsize=4096)
def side_by_side(shape: tuple[int, ...], strides: Strides, itemsize: int) -> bool:
    """Whether an array's elements lie in C order without gaps."""
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= max(1, int(size))
    return True


@functools.lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...], axis: int, itemsizes: tuple[int, ...], byte_strides: tuple[Strides, ...], apart: bool
) -> Layout | None:
    shape = integers(shape)
    for one, itemsize in zip(byte_strides, itemsizes, strict=True):
        if any(stride % itemsize for stride, size in zip(one, shape, strict=True) if size > 1):
            return None
    strides = [
        tuple(int(stride) // itemsize for stride in one) for one, itemsize in zip(byte_strides, itemsizes, strict=True)
    ]
    channels = shape[axis]
    dims = [d for d in range(len(shape)) if d != axis and shape[d] != 1]
    dims.sort(key=lambda d: -(abs(strides[0][d]) or math.inf))
    if apart and dims and shape[0] > 1 and dims[0] != 0:
        return None
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
        if apart and len(sizes) == 1:  # samples and what each has lie side by side
            rows, step = shape[0], tuple(one[0] for one in strides)
            sizes = [sizes[0] // rows]
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


@functools.lru_cache(maxsize=4096)
def size_of(shape: tuple[int, ...]) -> int:
    """Elements of an array of this shape."""
    return math.prod(integers(shape))
