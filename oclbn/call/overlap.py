"""Who shares memory with whom: what is written must be the call's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from oclbn.call.layout import integers, reach, side_by_side
from oclbn.errors import OverlapError, ReadOnlyError

_READ_ONLY = cl.mem_flags.READ_ONLY
_MEMORY = (cl.Buffer, cl.MemoryObjectHolder)  # the class of most first, as being of a base takes longer to find out
_PARENT, _OFFSET = cl.mem_info.ASSOCIATED_MEMOBJECT, cl.mem_info.OFFSET
# Steps that NumPy may spend on proving that interleaved views are disjoint. Its types before 2.5 allow 0 and -1 only.
_OVERLAP_WORK: Any = 100_000
_TOO_HARD: Any = getattr(np, "exceptions", np).TooHardError  # before 1.25 it is NumPy's own

NO_ADVICE: Mapping[str, str] = MappingProxyType({})


def writable(name: str, a: Array) -> None:
    """ReadOnlyError where a kernel must not write into `a`, or would write one element twice."""
    if isinstance(a.base_data, _MEMORY) and a.base_data.flags & _READ_ONLY:
        raise ReadOnlyError(f"{name} lies in a buffer made with READ_ONLY; one that kernels may write is wanted")
    if _meets_itself(a.shape, a.strides, a.dtype.itemsize):
        raise ReadOnlyError(
            f"{name} has shape {a.shape} and strides {a.strides}: some of its elements are the same memory"
        )


@functools.lru_cache(maxsize=4096)
def _meets_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether two elements share memory."""
    if 0 in shape:
        return False  # whatever the strides: NumPy gives empty arrays any
    shape, strides, reach = integers(shape), integers(strides), itemsize
    dims = sorted((abs(stride), size) for size, stride in zip(shape, strides, strict=True) if size > 1)
    for index, (stride, size) in enumerate(dims):
        if stride < reach and (stride < itemsize or not _interlock(dims[: index + 1], itemsize)):
            return True
        reach += (size - 1) * stride
    return False


def _interlock(dims: list[tuple[int, int]], itemsize: int) -> bool:
    """Whether elements apart in the last dimension share nothing, though it steps less far than those below it reach.

    dims: strides, at least 0, and sizes, of which those below the last do not meet themselves.
    """
    (step, size), below = dims[-1], dims[:-1]
    strides, shape = tuple(stride for stride, _ in below), tuple(size for _, size in below)
    first = _shadow(shape, strides, itemsize, 0)
    others = _shadow((size - 1, *shape), (step, *strides), itemsize, step)
    try:
        return not np.shares_memory(first, others, max_work=_OVERLAP_WORK)
    except _TOO_HARD:
        return False


def exclusive(writes: dict[str, Array], reads: dict[str, Array], advice: Mapping[str, str] = NO_ADVICE) -> None:
    """What is written must be writable and share no element with anything else in the call, given by name.

    ReadOnlyError and OverlapError otherwise. advice: by the names of what is written, what to say of an overlap with x.
    """
    memories = {_memory(a) for a in reads.values()}
    for name, a in writes.items():
        writable(name, a)
        memory = _memory(a)
        if memory in memories:  # seldom, so that pairs need not be looked at
            for other_name, other in {**reads, **writes}.items():
                if other_name == name:
                    break  # what is written after it looks at it in its turn
                if shares_memory(a, other):
                    raise OverlapError(
                        f"{name} overlaps {other_name} in memory; {name} is written, so an array of its own is wanted"
                        + (advice.get(name, "") if other_name == "x" else "")
                    )
        memories.add(memory)


def same_elements(a: Array, b: Array) -> bool:
    """Whether two arrays of one size are the very same elements, in the same order where both are read in C order."""
    if _root(a) != _root(b):
        return False
    if a.shape != b.shape:
        return all(side_by_side(one.shape, one.strides, one.dtype.itemsize) for one in (a, b))
    return all(size <= 1 or mine == yours for size, mine, yours in zip(a.shape, a.strides, b.strides, strict=True))


def shares_memory(a: Array, b: Array) -> bool:
    """Whether two device arrays share an element; interleaved views that do not are told apart."""
    (a_memory, a_offset), (b_memory, b_offset) = _root(a), _root(b)
    if a_memory is None or a_memory != b_memory:
        return False
    a_low, a_high = reach(a.shape, a.strides, a.dtype.itemsize)
    b_low, b_high = reach(b.shape, b.strides, b.dtype.itemsize)
    if a_offset + a_high <= b_offset + b_low or b_offset + b_high <= a_offset + a_low:
        return False
    try:
        mine = _shadow(a.shape, a.strides, a.dtype.itemsize, a_offset)
        other = _shadow(b.shape, b.strides, b.dtype.itemsize, b_offset)
        return bool(np.shares_memory(mine, other, max_work=_OVERLAP_WORK))
    except _TOO_HARD:
        return True


class _Shadow:
    """Shape and strides of a device array at a made-up address, for NumPy's overlap solver; never dereferenced."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, offset: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{itemsize}",
            "shape": shape,
            "strides": strides,
            "data": ((1 << 40) + offset, True),
        }


def _shadow(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, offset: int) -> np.ndarray[Any, Any]:
    return np.asarray(_Shadow(shape, strides, itemsize, offset))


def _root(a: Array) -> tuple[int | None, int]:
    """The memory object that an array lies in, seen through sub-buffers, and the array's offset there in bytes."""
    data: Any = a.base_data
    inside = isinstance(data, _MEMORY) and data.get_info(_PARENT) is not None
    return _memory(a), a.offset + (data.get_info(_OFFSET) if inside else 0)


def _memory(a: Array) -> int | None:
    """The memory object that an array lies in, seen through sub-buffers."""
    data: Any = a.base_data
    if isinstance(data, _MEMORY):
        parent: Any = data.get_info(_PARENT)
        memory: int = (data if parent is None else parent).int_ptr
        return memory
    return None if data is None else int(data.svm_ptr)
