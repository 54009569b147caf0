"""What is accepted: types, dtypes, shapes, layout, contexts and who shares memory with whom.

Every check raises before anything is allocated or written, and its message names the argument, what came and what was
wanted.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from .errors import (
    ArrayTypeError,
    ContextError,
    DeviceError,
    DtypeError,
    LayoutError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    ShapeError,
)
from .plan import Problem

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_COUNTERS = dict.fromkeys(("skipped", "entered"), np.dtype(np.uint32))
_LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in DTYPES}
_MOST_COUNT = (1 << 63) - 1
_READ_ONLY = cl.mem_flags.READ_ONLY
_BUFFER = cl.Buffer
_MEMORY = (cl.Buffer, cl.MemoryObjectHolder)  # the class of most first, as being of a base takes longer to find out
_PARENT, _OFFSET, _SIZE = cl.mem_info.ASSOCIATED_MEMOBJECT, cl.mem_info.OFFSET, cl.mem_info.SIZE
_STATUS = cl.event_info.COMMAND_EXECUTION_STATUS  # asked for by get_info(), which takes half as long as a property
# Steps that NumPy may spend on proving that interleaved views are disjoint. Its types before 2.5 allow 0 and -1 only.
_OVERLAP_WORK: Any = 100_000


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


def array(name: str, value: Any) -> Array:
    """`value` if it is a device array, and was not left behind by a command that failed.

    ArrayTypeError and DeviceError otherwise.
    """
    if not isinstance(value, Array):
        came = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ArrayTypeError(
            f"{name} is a {came}; a pyopencl.array.Array is wanted (oclbn.gpuarray.to_gpu makes one of a NumPy array)"
        )
    for event in value.events:
        if event.get_info(_STATUS) < 0:  # type: ignore[operator]
            raise _failed(name, event)
    return value


def sound(arrays: Mapping[str, Array]) -> None:
    """DeviceError where one of these arrays, by name, was left behind by a command that failed.

    Drivers do not see to that: work that waits for such a command is dropped by some and done by others, on whatever
    the memory holds; and on a queue in order nothing is waited for.
    """
    last = None  # arrays that one call wrote have the same event
    for name, a in arrays.items():
        for event in a.events:
            if event is not last and event.get_info(_STATUS) < 0:  # type: ignore[operator]
                raise _failed(name, event)
            last = event


def _failed(name: str, event: cl.Event) -> DeviceError:
    return DeviceError(
        f"{name} was to be written by a command that failed with OpenCL's status {event.command_execution_status}; "
        "an array that holds its data is wanted"
    )


def tensor(name: str, value: Any) -> Array:
    """A device array of rank 2 or more, of float32 or float64 (where its device has that), with a queue."""
    x = array(name, value)
    if x.dtype not in DTYPES:
        raise DtypeError(f"{name} is {x.dtype}; float32 or float64 is wanted")
    if len(x.shape) < 2:
        raise ShapeError(f"{name} has shape {x.shape}; 2 dimensions or more are wanted: (N, C) or (N, C, *spatial)")
    if x.queue is None:
        raise ContextError(f"{name} has no queue; give it one with {name}.with_queue(queue)")
    _aligned(name, x)
    _within(name, x)
    return x


def anyhow(name: str, value: Any) -> Array:
    """A device array of any type, shape and strides, within its buffer."""
    a = array(name, value)
    _within(name, a)
    return a


def axis_of(axis: Any, x: Array) -> int:
    """`axis` as an index from 0 to x.ndim - 1."""
    try:
        index = operator.index(axis)
    except TypeError:
        index = None
    if index is None or isinstance(axis, bool):
        raise ParameterError(f"axis is {axis!r}; an integer is wanted")
    rank = len(x.shape)
    if not -rank <= index < rank:
        raise ParameterError(f"axis is {index}; x has {rank} dimensions, so {-rank} to {rank - 1} are wanted")
    return index % rank


def per_channel(x: Array, axis: int, values: Mapping[str, Any], needed: Collection[str] = ()) -> dict[str, Array]:
    """Those of `values` that are not None, by name: device arrays with one element per channel of x.

    Contiguous, of x's context, and of x's dtype but for counters. What is `needed` may not be None.
    """
    channels, context, dtype = x.shape[axis], x.context, x.dtype
    found: dict[str, Array] = {}
    for name, value in values.items():
        if value is None and name not in needed:
            continue
        found[name] = a = array(name, value)
        if a.size != channels:
            came = f"{a.size} elements (shape {a.shape})"
            raise ShapeError(f"{name} has {came}; x has {channels} channels on axis {axis}")
        wanted = _COUNTERS.get(name, dtype)
        if a.dtype != wanted:
            reason = "" if name in _COUNTERS else f", as x is {dtype}"
            raise DtypeError(f"{name} is {a.dtype}; {wanted} is wanted{reason}")
        if a.context is not context:
            _same_context(name, a, x)
        _dense(name, a)
    return found


def like(name: str, value: Any, x: Array) -> Array:
    """A device array of x's shape, dtype and context."""
    a = array(name, value)
    if a.shape != x.shape:
        raise ShapeError(f"{name} has shape {a.shape}; x has shape {x.shape}, and {name} must have the same")
    if a.dtype != x.dtype:
        raise DtypeError(f"{name} is {a.dtype}; {x.dtype} is wanted, as x is")
    if a.context is not x.context:
        _same_context(name, a, x)
    _aligned(name, a)
    _within(name, a)
    return a


def real(value: Any) -> float | None:
    """`value` as a float if it is one real number, of any type: NumPy's, a fraction, an array of no axes; else None.

    True and False are none here: as an epsilon or a factor they are a slip. Nor is text.
    """
    array_like = isinstance(value, (np.generic, np.ndarray))
    if isinstance(value, (bool, str, bytes, bytearray)) or (
        array_like and (value.ndim or value.dtype.kind not in "iuf")
    ):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer, or a fraction
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def number(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float from low to high, both included; infinities and NaN are refused."""
    converted = real(value)
    if converted is None:
        raise ParameterError(f"{name} is {value!r}; a number is wanted")
    if not (low <= converted <= high and math.isfinite(converted)):
        wanted = "a finite number" if low == -math.inf else f"a number from {low:g} to {high:g}"
        raise ParameterError(f"{name} is {value!r}; {wanted} is wanted")
    return converted


def count(name: str, value: Any) -> int:
    """`value` as a number of elements, which 64 bits can hold."""
    try:
        converted = operator.index(value)
    except TypeError:
        raise ParameterError(f"{name} is {value!r}; an integer is wanted") from None
    if not 0 <= converted <= _MOST_COUNT:
        raise ParameterError(f"{name} is {converted}; 0 to 2**63 - 1 is wanted")
    return converted


def epsilon_of(value: Any, x: Array) -> float:
    """`value` as an epsilon that x's dtype can hold."""
    return number("epsilon", value, 0.0, _LARGEST[x.dtype])


def finite(name: str, value: Any, x: Array) -> float:
    """`value` as a number that x's dtype can hold."""
    return number(name, value, -_LARGEST[x.dtype], _LARGEST[x.dtype])


def astray(x: Array, axis: int, others: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Those of `others`, arrays of x's shape by name and byte strides, that cannot be walked together with x.

    LayoutError where x itself cannot be walked, in its own order and without gaps.
    """
    kept = {"": dense_strides(x)}
    layout(x, axis, kept)
    found = set()
    for name, strides in others.items():
        if _layout(x.shape, axis, x.dtype.itemsize, (x.strides, *kept.values(), strides)) is None:
            found.add(name)
        else:
            kept[name] = strides
    return found


def layout(x: Array | np.ndarray[Any, Any], axis: int, others: dict[str, tuple[int, ...]]) -> Layout:
    """The common layout of x and of arrays of its shape, given by name and byte strides.

    LayoutError where no kernel walks them together.
    """
    found = _layout(x.shape, axis, x.dtype.itemsize, (x.strides, *others.values()))
    if found is None:
        raise LayoutError(
            f"x has strides {x.strides} bytes for shape {x.shape} and channels on axis {axis}: the elements of a "
            "channel must lie in equally spaced rows of neighbours, or channels must be neighbours, equally spaced "
            "over the whole batch; oclbn.gpuarray.pack(x) makes such a copy"
        )
    return found


def dense_strides(x: Array) -> tuple[int, ...]:
    """Byte strides of an array of x's shape without gaps, its elements in the order of x's."""
    return dense_order(x)[0]


def dense_order(x: Array) -> tuple[tuple[int, ...], bool]:
    """dense_strides, and whether pyopencl does anything with arrays that have them: it wants C or Fortran order."""
    return _dense_order(x.shape, x.strides, x.dtype.itemsize)


@functools.lru_cache(maxsize=4096)
def _dense_order(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], bool]:
    shape, dense, size = _integers(shape), [0] * len(shape), itemsize
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
    shape = _integers(shape)
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


def _integers(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """As Python's own: pyopencl takes NumPy's as sizes, whose products may leave their range."""
    return tuple(map(int, numbers))


def _pairs(rows: tuple[int, ...], channels: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(rows, channels, strict=True))


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
    """Whether a dimension steps less far than the dimensions below it reach."""
    if 0 in shape:
        return False  # whatever the strides: NumPy gives empty arrays any
    shape, strides, reach = _integers(shape), _integers(strides), itemsize
    for stride, size in sorted((abs(stride), size) for size, stride in zip(shape, strides, strict=True) if size > 1):
        if stride < reach:
            return True
        reach += (size - 1) * stride
    return False


def exclusive(writes: dict[str, Array], reads: dict[str, Array]) -> None:
    """What is written must be writable and share no element with anything else in the call, given by name.

    ReadOnlyError and OverlapError otherwise.
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
                    )
        memories.add(memory)


def same_elements(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape are the very same elements in the same order."""
    steps = zip(a.shape, a.strides, b.strides, strict=True)
    return _root(a) == _root(b) and all(size <= 1 or mine == yours for size, mine, yours in steps)


def shares_memory(a: Array, b: Array) -> bool:
    """Whether two device arrays share an element; interleaved views that do not are told apart."""
    (a_memory, a_offset), (b_memory, b_offset) = _root(a), _root(b)
    if a_memory is None or a_memory != b_memory:
        return False
    a_low, a_high = _reach(a.shape, a.strides, a.dtype.itemsize)
    b_low, b_high = _reach(b.shape, b.strides, b.dtype.itemsize)
    if a_offset + a_high <= b_offset + b_low or b_offset + b_high <= a_offset + a_low:
        return False
    try:
        return bool(np.shares_memory(_shadow(a, a_offset), _shadow(b, b_offset), max_work=_OVERLAP_WORK))
    except np.exceptions.TooHardError:
        return True


@functools.lru_cache(maxsize=4096)
def _reach(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """First byte of an array and the one behind its last, counted from where its first element begins."""
    if 0 in shape:
        return 0, 0
    ends = [(int(size) - 1) * int(stride) for size, stride in zip(shape, strides, strict=True)]
    return sum(end for end in ends if end < 0), sum(end for end in ends if end > 0) + itemsize


class _Shadow:
    """Shape and strides of a device array at a made-up address, for NumPy's overlap solver; never dereferenced."""

    def __init__(self, a: Array, offset: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": a.dtype.str,
            "shape": a.shape,
            "strides": a.strides,
            "data": ((1 << 40) + offset, True),
        }


def _shadow(a: Array, offset: int) -> np.ndarray[Any, Any]:
    return np.asarray(_Shadow(a, offset))


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


def flat(values: Mapping[str, Any]) -> None:
    """Device arrays, by name, of one size, one of DTYPES and one context, each with its elements side by side."""
    first_name, first = next(iter(values.items()))
    for name, value in values.items():
        a = array(name, value)
        if a.dtype not in DTYPES:
            raise DtypeError(f"{name} is {a.dtype}; float32 or float64 is wanted")
        if a.dtype != first.dtype:
            raise DtypeError(f"{name} is {a.dtype}; {first.dtype} is wanted, as {first_name} is")
        if a.size != first.size:
            raise ShapeError(f"{name} has {a.size} elements and {first_name} {first.size}; equal sizes are wanted")
        if a.context != first.context:
            raise ContextError(f"{name} belongs to context {a.context}, {first_name} to {first.context}; one is wanted")
        _dense(name, a)


def flat_pair(name: str, value: Any, other_name: str, other: Any) -> None:
    """Two device arrays of one size, one of DTYPES and one context, each with its elements side by side."""
    a, b = array(name, value), array(other_name, other)
    if a.dtype not in DTYPES or a.dtype != b.dtype:
        raise DtypeError(f"{name} is {a.dtype} and {other_name} {b.dtype}; float32 or float64, alike, is wanted")
    if a.size != b.size:
        raise ShapeError(f"{name} has {a.size} elements and {other_name} {b.size}; equal sizes are wanted")
    if a.context != b.context:
        raise ContextError(f"{name} belongs to context {a.context}, {other_name} to {b.context}; one is wanted")
    for each, one in ((name, a), (other_name, b)):
        _dense(each, one)


def _same_context(name: str, a: Array, x: Array) -> None:
    if a.context != x.context:
        raise ContextError(
            f"{name} belongs to context {a.context}; x belongs to {x.context}, and one context is wanted"
        )


def _dense(name: str, a: Array) -> None:
    """LayoutError or ShapeError unless the elements lie side by side within their buffer."""
    itemsize = a.dtype.itemsize
    if a.offset % itemsize or not _is_dense_vector(a.shape, a.strides, itemsize):
        _aligned(name, a)
        raise LayoutError(
            f"{name} has shape {a.shape} and strides {a.strides}; its elements must lie side by side, "
            f"as those of oclbn.gpuarray.pack({name}) do"
        )
    data: Any = a.base_data
    if type(data) is not _BUFFER or a.offset < 0 or a.offset + a.nbytes > data.get_info(_SIZE):  # type: ignore[operator]
        _inside(name, a, 0, a.nbytes)


def _within(name: str, a: Array) -> None:
    """ShapeError unless all elements lie within the buffer: a kernel would read and write what is not the array's."""
    low, high = _reach(a.shape, a.strides, a.dtype.itemsize)
    data: Any = a.base_data
    if type(data) is not _BUFFER or a.offset + low < 0 or a.offset + high > data.get_info(_SIZE):  # type: ignore[operator]
        _inside(name, a, low, high)


def _inside(name: str, a: Array, low: int, high: int) -> None:
    """The same of bytes counted from where the first element begins; ArrayTypeError for what is no memory."""
    data: Any = a.base_data
    if not a.size:
        return
    if not _is_memory(data):
        raise ArrayTypeError(
            f"{name} lies in a {type(data).__module__}.{type(data).__qualname__}; a pyopencl.Buffer or SVM is wanted"
        )
    if a.offset + low < 0 or a.offset + high > data.size:
        raise ShapeError(
            f"{name} with shape {a.shape}, strides {a.strides} and offset {a.offset} takes bytes {a.offset + low} to "
            f"{a.offset + high} of a buffer that has {data.size}; an array that lies within its buffer is wanted"
        )


def _is_memory(data: Any) -> bool:
    """Whether kernels can be given a pointer to it."""
    if isinstance(data, cl.MemoryObjectHolder):
        return bool(data.type == cl.mem_object_type.BUFFER)
    return isinstance(data, cl.SVMPointer)


def _aligned(name: str, a: Array) -> None:
    itemsize = a.dtype.itemsize
    if a.offset % itemsize or not _are_multiples(a.strides, itemsize):
        raise LayoutError(
            f"{name} has offset {a.offset} and strides {a.strides} bytes; multiples of {itemsize} are wanted "
            f"for {a.dtype}, as oclbn.gpuarray.pack({name}) has"
        )


@functools.lru_cache(maxsize=4096)
def _are_multiples(strides: tuple[int, ...], itemsize: int) -> bool:
    return not any(stride % itemsize for stride in strides)


@functools.lru_cache(maxsize=4096)
def _is_dense_vector(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected if size > 1 else stride % itemsize:
            return False
        expected *= max(1, int(size))
    return True
