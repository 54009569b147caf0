"""What is accepted: types, dtypes, shapes, layout, contexts and who shares memory with whom.

Every check raises before anything is allocated or written, and its message names the argument, what came and what was
wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from oclbn.call import values
from oclbn.call.layout import reach, size_of
from oclbn.device import limits
from oclbn.elements import NUMBERS, WANTED, as_code, is_narrow, kind, numbers_of, range_of
from oclbn.errors import (
    ArrayTypeError,
    ContextError,
    DeviceError,
    DtypeError,
    ParameterError,
    ShapeError,
)

_COUNTERS = dict.fromkeys(("skipped", "entered"), np.dtype(np.uint32))
_ORIGINS = {
    **dict.fromkeys(("mean", "var"), " (batch_norm_train computes the batch's own)"),
    "save_mean": ", as batch_norm_train returns it",
    "save_invstd": ", as batch_norm_train returns it (with epsilon: the variance)",
}
_PARAMETERS = frozenset(("scale", "bias", "running_mean", "running_var", "mean", "var"))  # of a network cast as a whole
_SAVED = ("save_mean", "save_invstd")
_OUT = "oclbn.gpuarray.empty_like(x) makes one"
_IN_PLACE = ("running_mean", "running_var", "skipped", "entered", "scale_grad", "bias_grad")
_MOST_COUNT = (1 << 63) - 1
_BUFFER = cl.Buffer
_SIZE = cl.mem_info.SIZE
_STATUS = cl.event_info.COMMAND_EXECUTION_STATUS  # asked for by get_info(), which takes half as long as a property


def array(name: str, value: Any, dtype: np.dtype[Any] | None = None, queue: str = "", size: int = 1) -> Array:
    """`value` if it is a device array, and was not left behind by a command that failed.

    ArrayTypeError and DeviceError otherwise. dtype, queue: what the advice for other values is to lead to; the queue as
    an expression; size: the elements that a single number is to become.
    """
    if not isinstance(value, Array):
        raise _no_array(name, value, dtype, queue, size)
    for event in value.events:
        if event.get_info(_STATUS) < 0:  # type: ignore[operator]
            raise _failed(name, event)
    return value


def model(name: str, value: Any) -> Array:
    """`value` if it is a device array, of which only shape, type and queue are asked for; else ArrayTypeError."""
    if not isinstance(value, Array):
        raise _no_array(name, value)
    return value


def _no_array(name: str, value: Any, dtype: Any = None, queue: str = "", size: int = 1) -> ArrayTypeError:
    advice = f": {_OUT}" if name == "out" else values.made_of(name, value, dtype, queue, size)
    return ArrayTypeError(f"{name} is {values.kind_of(value)}; a pyopencl.array.Array is wanted{advice}")


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


def are_sound(arrays: Iterable[Array]) -> bool:
    """Whether none of these arrays was left behind by a command that failed."""
    return not any(event.get_info(_STATUS) < 0 for a in arrays for event in a.events)  # type: ignore[operator]


def _failed(name: str, event: cl.Event) -> DeviceError:
    return DeviceError(
        f"{name} was to be written by a command that failed with OpenCL's status {event.command_execution_status}; "
        "an array that holds its data is wanted"
    )


def tensor(name: str, value: Any) -> Array:
    """A device array of rank 2 or more, with a queue, of a type that tensors have (float64 where its device does)."""
    x = array(name, value)
    if kind(x.dtype) is None:
        raise DtypeError(f"{name} is {x.dtype}; {WANTED} is wanted{converted(name, x, np.float32)}")
    if len(x.shape) < 2:
        raise ShapeError(f"{name} has shape {x.shape}; 2 dimensions or more are wanted: (N, C) or (N, C, *spatial)")
    if x.queue is None:
        raise ContextError(f"{name} has no queue; give it one with {name}.with_queue(queue)")
    if x.queue.context is not x.context and x.queue.context != x.context:
        raise ContextError(
            f"{name} belongs to {values.context_of(x)}, its queue to another, {values.context_of(x.queue)}; a queue of "
            f"its own context is wanted, as {name}.with_queue(pyopencl.CommandQueue({name}.context)) gives it"
        )
    _within(name, x)
    return x


def anyhow(name: str, value: Any) -> Array:
    """A device array of any type, shape and strides, within its buffer."""
    a = array(name, value)
    _within(name, a)
    return a


def axis_of(axis: Any, x: Array) -> int:
    """`axis` as an index from 0 to x.ndim - 1."""
    index = values.integer(axis)
    if index is None:
        raise ParameterError(f"axis is {axis!r}; an integer is wanted")
    rank = len(x.shape)
    if not -rank <= index < rank:
        raise ParameterError(f"axis is {index}; x has {rank} dimensions, so {-rank} to {rank - 1} are wanted")
    return index % rank


def per_channel(
    x: Array,
    axis: int,
    given: Mapping[str, Any],
    names: Collection[str],
    needed: Collection[str] = (),
    groups: int = 1,
    elements: tuple[int, str] | None = None,
) -> dict[str, Array]:
    """Those of `names` whose values are not None, by name: device arrays with one element per channel of x.

    Of x's context, and of what is computed with where x has its dtype, but for counters; parameters may have x's dtype.
    What is `needed` may not be None. groups: batches that x is, each of which has saved statistics of its own.
    elements: how many are wanted, if not one per channel, and why, in words.
    """
    channels, context, dtype = x.shape[axis], x.context, numbers_of(x.dtype)
    if elements is not None:
        channels = elements[0]
    found: dict[str, Array] = {}
    for name in names:
        value = given[name]
        if value is None:
            if name not in needed:
                continue
            one = f"of {channels} elements" if elements else f"with an element for each of x's {channels} channels"
            raise ArrayTypeError(
                f"{name} is None and is needed; a pyopencl.array.Array {one} is wanted{_ORIGINS.get(name, '')}"
            )
        wanted = _COUNTERS.get(name, dtype)
        found[name] = a = array(name, value, wanted, "x.queue", channels)
        if groups > 1 and name in _SAVED:
            if a.size != groups * channels:
                raise ShapeError(
                    f"{name} has {a.size} elements (shape {a.shape}); x has {channels} channels on axis {axis} and "
                    f"groups is {groups}: {groups} times {channels} are wanted, as batch_norm_train returns them"
                )
        elif a.size != channels:
            came = f"{a.size} elements (shape {a.shape})"
            if elements is not None:
                raise ShapeError(f"{name} has {came}; {channels} are wanted, as {elements[1]}")
            raise ShapeError(f"{name} has {came}; x has {channels} channels on axis {axis}{_other_axis(x, axis, a)}")
        if a.dtype != wanted and not (name in _PARAMETERS and a.dtype == x.dtype):
            reason = "" if name in _COUNTERS else f", as x is {x.dtype}"
            raise DtypeError(f"{name} is {a.dtype}; {wanted} is wanted{reason}{_alike(name, a, wanted, x)}")
        if a.context is not context:
            _same_context(name, a, x)
        _within(name, a)
    return found


def like(name: str, value: Any, x: Array) -> Array:
    """A device array of x's shape and context, and of its dtype, or of float32 where x is narrower."""
    a = array(name, value, x.dtype, "x.queue")
    if a.shape != x.shape:
        raise ShapeError(f"{name} has shape {a.shape}; x has shape {x.shape}, and {name} must have the same")
    if a.dtype != x.dtype and not (is_narrow(x.dtype) and a.dtype == NUMBERS[0]):
        wanted = (
            f"{x.dtype} or float32 is wanted, as x is {x.dtype}"
            if is_narrow(x.dtype)
            else f"{x.dtype} is wanted, as x is"
        )
        raise DtypeError(f"{name} is {a.dtype}; {wanted}{_alike(name, a, x.dtype, x)}")
    if a.context is not x.context:
        _same_context(name, a, x)
    _within(name, a)
    return a


def like_result(name: str, value: Any, x: Array, out: Array | None) -> Array:
    """A device array as `like` has it, of the dtype of the call's other result: that of out, or else of x."""
    a, wanted = like(name, value, x), x.dtype if out is None else out.dtype
    if a.dtype != wanted:
        raise DtypeError(f"{name} is {a.dtype}; {wanted} is wanted, as {'x' if out is None else 'out'} is")
    return a


def groups_of(value: Any, x: Array, axis: int) -> int:
    """`value` as a number of batches that x's samples, which lie on axis 0, can be parted into."""
    number = values.whole("groups", value, 1)
    if number == 1:
        return 1
    if axis == 0:
        raise ParameterError(f"groups is {number} and axis is 0; samples are on axis 0, so another one is wanted")
    if x.shape[0] and number > x.shape[0]:
        raise ParameterError(f"groups is {number}; x has {x.shape[0]} samples, so 1 to {x.shape[0]} are wanted")
    return number


def order_of(value: Any) -> None:
    """ParameterError unless `value` is an order that results may have."""
    if not (isinstance(value, str) and value in ("K", "C")):
        raise ParameterError(f"order is {value!r}; 'K', that of an x without gaps, or 'C' is wanted")


def count(name: str, value: Any) -> int:
    """`value` as a number of elements, which 64 bits can hold."""
    return values.whole(name, value, most=_MOST_COUNT)


def epsilon_of(value: Any, x: Array) -> float:
    """`value` as an epsilon that can be computed with, where x has its dtype."""
    return values.number("epsilon", value, 0.0, range_of(numbers_of(x.dtype)).max)


def finite(name: str, value: Any, x: Array) -> float:
    """`value` as a number that can be computed with, where x has its dtype."""
    largest = range_of(numbers_of(x.dtype)).max
    return values.number(name, value, -largest, largest)


def flat(given: Mapping[str, Any]) -> None:
    """Device arrays, by name, of one size, one of NUMBERS and one context."""
    first_name, first = next(iter(given.items()))
    for name, value in given.items():
        if not isinstance(value, Array):
            array(name, value, next((one.dtype for one in given.values() if isinstance(one, Array)), None))
        a = array(name, value)
        if a.dtype != first.dtype:
            advice = converted(name, a, first.dtype)
            raise DtypeError(f"{name} is {a.dtype}; {first.dtype} is wanted, as {first_name} is{advice}")
        if a.dtype not in NUMBERS:
            raise DtypeError(f"{name} is {a.dtype}; float32 or float64 is wanted{converted(name, a, np.float32)}")
        if a.size != first.size:
            raise ShapeError(f"{name} has {a.size} elements and {first_name} {first.size}; equal sizes are wanted")
        if a.context != first.context:
            raise ContextError(
                f"{name} belongs to {values.context_of(a)}, {first_name} to another, {values.context_of(first)}; one "
                "context is wanted"
            )
        _within(name, a)


def queue(name: str, value: Any, *, error: type[ParameterError] = ParameterError) -> cl.CommandQueue | None:
    """`value` if it is a queue, or None; else it is refused, by `error`."""
    if value is None or isinstance(value, cl.CommandQueue):
        return value
    came = repr(value) if isinstance(value, str) else values.kind_of(value)
    example = repr(value) if isinstance(value, str) else "'gpu'"
    raise error(f"{name} is {came}; a pyopencl.CommandQueue is wanted, as oclbn.device.queue_for({example}) makes it")


def converted(name: str, a: Array, dtype: Any) -> str:
    """What makes an array of this type of a device array, as advice, or nothing where its elements are no numbers.

    pyopencl converts on the device, in C's order only (it takes other strides for C's), neither from nor to float16 and
    bfloat16, which gpuarray.cast does; and neither converts on a device that lacks one of the two types.
    """
    wanted = np.dtype(dtype)
    if name == "out":
        return f"; {_OUT}"  # a copy would be written in its place
    narrow = is_narrow(a.dtype) or is_narrow(wanted)
    if (a.dtype.kind not in "iufb" and kind(a.dtype) is None) or a.queue is None:
        return ""
    dense = name if a.flags.c_contiguous else f"oclbn.gpuarray.pack({name})"
    doubles = np.dtype(np.float64) in (a.dtype, wanted)
    if narrow and kind(a.dtype) is not None and not (doubles and not limits(a.queue.device).fp64):
        made = f"oclbn.gpuarray.cast({name}, {as_code(wanted)})"
    elif a.dtype.kind == "b" or narrow or not a.dtype.isnative or (doubles and not limits(a.queue.device).fp64):
        made = f"oclbn.gpuarray.to_gpu({dense}.get().astype({as_code(wanted)}), queue={name}.queue)"
    else:
        made = f"{dense}.astype(np.{wanted})"
    return f"; convert it once, as it is written: {name} = {made}" if name in _IN_PLACE else f"; convert it with {made}"


def _other_axis(x: Array, axis: int, a: Array) -> str:
    """Advice, where a per-channel array fits x with its channels last, or on axis 1."""
    if axis != 1 and x.shape[1] == a.size:
        return "; for channels on axis 1 leave axis out"
    if axis != len(x.shape) - 1 and x.shape[-1] == a.size:
        return "; for channels last give axis=-1"
    return ""


def _alike(name: str, a: Array, wanted: np.dtype[Any], x: Array) -> str:
    """What makes an array and x of one type: the one that is wanted, or that of the array where x may have it."""
    advice = converted(name, a, wanted)
    if advice and name != "out" and wanted == x.dtype and kind(a.dtype) is not None:
        advice += f", or x: {converted('x', x, a.dtype).removeprefix('; convert it with ')}"
    return advice


def _same_context(name: str, a: Array, x: Array) -> None:
    if a.context != x.context:
        raise ContextError(
            f"{name} belongs to {values.context_of(a)}, x to another, {values.context_of(x)}, and one is wanted: "
            f"oclbn.gpuarray.to_gpu({name}.get(), queue=x.queue) makes a copy there"
        )


def _within(name: str, a: Array) -> None:
    """ShapeError unless all elements lie within the buffer: a kernel would read and write what is not the array's.

    So it would where an array has another size than its shape: results are allocated by x's, and vectors read by it.
    """
    low, high = reach(a.shape, a.strides, a.dtype.itemsize)
    if size_of(a.shape) != a.size:
        raise ShapeError(
            f"{name} has shape {a.shape}, of {size_of(a.shape)} elements, and size {a.size}; an array that has the "
            "size of its shape is wanted: setting shape leaves size as it was, so make another array, with pyopencl."
            f"array.Array({name}.queue, shape, {name}.dtype, data={name}.base_data, offset={name}.offset)"
        )
    data: Any = a.base_data
    if type(data) is not _BUFFER or a.offset + low < 0 or a.offset + high > data.get_info(_SIZE):  # type: ignore[operator]
        _inside(name, a, low, high)


def _inside(name: str, a: Array, low: int, high: int) -> None:
    """The same of bytes counted from where the first element begins; ArrayTypeError for what is no memory."""
    data: Any = a.base_data
    if not a.size:
        return
    if not _is_memory(data):
        raise ArrayTypeError(f"{name} lies in {values.kind_of(data)}; a pyopencl.Buffer or SVM is wanted")
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
