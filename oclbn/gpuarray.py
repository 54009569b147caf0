"""Device arrays on the default queue, under the names that PuzzleLib's users know.

Every function takes ``queue=``, a pyopencl.CommandQueue (all else is a ParameterError), to use another one than
:func:`oclbn.device.default_queue`. A dtype may be a name, "bfloat16" too (MissingExtraError without ml_dtypes); one
that is none is a DtypeError; something else than a device array, where one is the model, an ArrayTypeError. What comes
back is a plain C-contiguous pyopencl.array.Array. Large arrays, but for those of zeros, lie in huge pages where
oclbn.device.pages can have them.

    >>> import numpy as np
    >>> from oclbn import gpuarray
    >>> gpuarray.to_gpu(np.arange(3, dtype=np.float32)).get()
    array([0., 1., 2.], dtype=float32)
"""

from __future__ import annotations

import math
import typing
from typing import TYPE_CHECKING, Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cl_array
from numpy.typing import ArrayLike, DTypeLike, NDArray
from pyopencl.array import Array

from oclbn import device, names
from oclbn.call import arguments, values
from oclbn.call.copying import copy_strided
from oclbn.call.prepared import check_type
from oclbn.device import driver_errors, pages
from oclbn.elements import WANTED, dtype_of, kind
from oclbn.errors import ContextError, DtypeError, ParameterError

__all__ = ["Array", "cast", "empty", "empty_like", "full", "ones", "ones_like", "pack", "to_gpu", "zeros", "zeros_like"]

Shape = int | tuple[int, ...]

if not TYPE_CHECKING:  # checkers would take every name for one that is there
    __getattr__ = names.lacking(__name__)


@driver_errors("to_gpu")
def to_gpu(ary: ArrayLike | Array, *, queue: cl.CommandQueue | None = None) -> Array:
    """Copy a host array to the device, with its shape and element type; returns when the copy is done.

    Views that are not contiguous are packed, and foreign byte orders turned into the host's. A device array is
    copied on the device, as by :func:`pack`.
    DtypeError: elements that no device can hold (Python objects, strings). SizeError: more than it can hold.
    """
    if isinstance(ary, Array):
        return pack(ary, queue=queue)
    host: NDArray[Any] = np.asarray(ary)
    if host.dtype.hasobject or host.dtype.kind in "SUmM":
        raise DtypeError(f"ary has elements of type {host.dtype}; wanted numbers")
    packed = np.asarray(host, dtype=host.dtype.newbyteorder("="), order="C")
    array = _empty(packed.shape, packed.dtype, queue)
    if array.size:
        memory: Any = array.base_data
        array.add_event(cl.enqueue_copy(_queue_of(array), memory, packed, wait_for=array.events))
    return array


@driver_errors("pack")
def pack(view: Array, order: str = "C", *, queue: cl.CommandQueue | None = None) -> Array:
    """A new array with the elements of a device array that lies anyhow: without gaps, in C order, or "F".

    view: any shape, strides and offset (cropped, padded, mirrored, transposed, repeated by stride 0), and any element
    type; pyopencl itself copies, reads and adds only what lies without gaps in C or Fortran order, and converts
    (`astype`) what lies in C order. The work is enqueued
    on `queue`, or else view.queue, and waits for the view's events.

    ArrayTypeError: no device array; ParameterError: another order, or no queue; ContextError: a queue of another
    context; ShapeError: a view that reaches beyond its buffer; SizeError: more than the device can hold.

    >>> x = to_gpu(np.arange(6, dtype=np.float32).reshape(2, 3))
    >>> pack(x[:, ::-1]).get()
    array([[2., 1., 0.],
           [5., 4., 3.]], dtype=float32)
    """
    arguments.anyhow("view", view)
    made = _empty(view.shape, view.dtype, _order_and_queue(view, order, queue), order)
    copy_strided(view, made)
    return made


@driver_errors("cast")
def cast(view: Array, dtype: DTypeLike, order: str = "C", *, queue: cl.CommandQueue | None = None) -> Array:
    """A new array with the elements of a device array in another type, without gaps, in C order, or "F".

    view: float32, float64, float16 or bfloat16, any shape, strides and offset, as :func:`pack` takes it. dtype: one of
    these; "bfloat16" stands for ml_dtypes.bfloat16. Numbers are rounded once, to the nearest, ties to even: those
    beyond the largest become infinite, NaN stays NaN. pyopencl's own astype knows neither of the two narrow types,
    takes other orders for C's, and cannot convert on a device that lacks one of the types.

    DtypeError: another type, or float64 on a device without it; else as :func:`pack`.

    >>> cast(to_gpu(np.float32([1.0, 1 / 3, 70000.0])), np.float16).get()
    array([1.    , 0.3333,    inf], dtype=float16)
    """
    arguments.anyhow("view", view)
    wanted = dtype_of(dtype)
    if wanted is None:
        raise DtypeError(f"dtype is {dtype}; {WANTED} is wanted")
    if kind(view.dtype) is None:
        advice = arguments.converted("view", view, wanted)
        raise DtypeError(f"view, the array to cast, is {view.dtype}; {WANTED} is wanted{advice}")
    target = _order_and_queue(view, order, queue)
    for name, one in (("view", view.dtype), ("dtype", wanted)):
        check_type(name, one, target)
    made = _empty(view.shape, wanted, target, order)
    copy_strided(view, made)
    return made


@driver_errors("empty")
def empty(shape: Shape, dtype: DTypeLike = np.float32, *, queue: cl.CommandQueue | None = None) -> Array:
    """A new array of `shape`; its elements are whatever the memory held.

    Like any array it may have events, to be waited for on other queues and on a queue that is out of order.
    """
    return _empty(shape, dtype, queue)


@driver_errors("zeros")
def zeros(shape: Shape, dtype: DTypeLike = np.float32, *, queue: cl.CommandQueue | None = None) -> Array:
    """A new array of `shape`, filled with 0."""
    dtype = _type_of(dtype)
    return cl_array.zeros(_roomy(queue, shape, dtype), _sizes(shape), dtype)


@driver_errors("ones")
def ones(shape: Shape, dtype: DTypeLike = np.float32, *, queue: cl.CommandQueue | None = None) -> Array:
    """A new array of `shape`, filled with 1."""
    return full(shape, 1, dtype, queue=queue)


@driver_errors("full")
def full(
    shape: Shape, fill_value: float, dtype: DTypeLike = np.float32, *, queue: cl.CommandQueue | None = None
) -> Array:
    """A new array of `shape`, filled with `fill_value`."""
    # Filled on the host: pyopencl would compile a kernel for it, once for every element type.
    dtype = _type_of(dtype)
    queue = _roomy(queue, shape, dtype)
    return to_gpu(np.full(shape, fill_value, dtype), queue=queue)


@driver_errors("empty_like")
def empty_like(ary: Array, *, queue: cl.CommandQueue | None = None) -> Array:
    """A new array with the shape, element type and (unless `queue` says otherwise) queue of `ary`."""
    return empty(*_shape_of(ary), queue=queue or _queue_of(ary))


@driver_errors("zeros_like")
def zeros_like(ary: Array, *, queue: cl.CommandQueue | None = None) -> Array:
    """As :func:`empty_like`, filled with 0."""
    return zeros(*_shape_of(ary), queue=queue or _queue_of(ary))


@driver_errors("ones_like")
def ones_like(ary: Array, *, queue: cl.CommandQueue | None = None) -> Array:
    """As :func:`empty_like`, filled with 1."""
    return ones(*_shape_of(ary), queue=queue or _queue_of(ary))


def _empty(shape: Shape, dtype: DTypeLike, queue: cl.CommandQueue | None, order: str = "C") -> Array:
    dtype = _type_of(dtype)
    array = cl_array.empty(_roomy(queue, shape, dtype), _sizes(shape), dtype, order)
    pages.enlarge(array, often=False)
    return array


def _order_and_queue(view: Array, order: str, queue: cl.CommandQueue | None) -> cl.CommandQueue:
    """The queue to copy a view on, where that and the order can be had."""
    if order not in ("C", "F"):
        raise ParameterError(f"order is {order!r}; 'C' or 'F' is wanted")
    queue = arguments.queue("queue", queue) or _queue_of(view, "view")
    if queue.context != view.context:
        raise ContextError(
            f"queue belongs to {values.context_of(queue)}, view to another, {values.context_of(view)}; one context is "
            "wanted"
        )
    return queue


def _shape_of(ary: Array) -> tuple[tuple[int, ...], np.dtype[Any]]:
    ary = arguments.model("ary", ary)
    return ary.shape, ary.dtype


def _type_of(dtype: DTypeLike) -> np.dtype[Any]:
    wanted = f"dtype is {dtype!r}; an element type is wanted, such as np.float32"
    if isinstance(dtype, (int, np.integer)):  # NumPy would take the type that a number of its own has
        raise DtypeError(f"{wanted}; several sizes are one tuple, as in (3, 3)")
    try:
        found = dtype_of(dtype) or np.dtype(dtype)
    except TypeError:
        raise DtypeError(wanted) from None
    if found.hasobject or found.kind in "SUmM":
        raise DtypeError(wanted)
    return found


def _sizes(shape: Shape) -> Shape:
    """With Python's own integers for NumPy's, which pyopencl would keep."""
    if np.ndim(shape) == 0:
        return int(shape) if isinstance(shape, np.integer) else shape
    return tuple(int(size) if isinstance(size, np.integer) else size for size in typing.cast("tuple[int, ...]", shape))


def _queue_of(ary: Array, name: str = "ary") -> cl.CommandQueue:
    if ary.queue is None:
        raise ParameterError(f"{name} has no queue of its own; queue= must name one")
    return ary.queue


def _roomy(queue: cl.CommandQueue | None, shape: Shape, dtype: np.dtype[Any]) -> cl.CommandQueue:
    """The queue, on a device that can hold such an array; SizeError where it cannot."""
    queue = arguments.queue("queue", queue) or device.default_queue()
    nbytes = math.prod(np.atleast_1d(np.array(shape, dtype=object))) * dtype.itemsize
    device.check_size(f"an array of shape {shape}", nbytes, queue.device)
    return queue
