"""What a call allocates: results like its arguments, and memory between its launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np
import pyopencl as cl
from pyopencl.array import Array, empty_like

from oclbn.call.layout import Strides, dense_strides, result_strides
from oclbn.call.order import Order
from oclbn.device import check_size, lacks_memory, pages
from oclbn.elements import numbers_of
from oclbn.errors import SizeError

_EACH = ("queue", "context", "allocator", "base_data", "events")  # what every array has of its own
_READ_WRITE = cl.mem_flags.READ_WRITE
_blank = Array.__new__
_MOST_MODELS = 256  # shapes remembered per object that stands for a context


def temporary(x: Array, shape: tuple[int, ...], dtype: np.dtype[Any], order: Strides | None = None) -> Array:
    """An array without gaps, on x's queue, that lives until work on it is done, whoever lets go of it.

    order: strides of any array of this shape that lies in the order that is wanted; None: C order.
    """
    strides = dense_strides(shape, order or (0,) * len(shape), dtype.itemsize)
    return Array(x.queue, shape, dtype, strides=strides, data=scratch(x, math.prod(map(int, shape)) * dtype.itemsize))


def result_like(x: Array, order: str = "K", *, often: bool = True) -> Array:
    """An uninitialised array of x's shape and dtype without gaps: "K", in x's order where x has none; else in C order.

    From x's allocator; without one, on a processor, in large pages where those are worth the request. often: such
    arrays are made again and again.
    """
    itemsize = x.dtype.itemsize
    return fresh_result(x, result_strides(x.shape, x.strides, itemsize, itemsize, order)[0], often=often)


def fresh_result(
    x: Array, strides: tuple[int, ...] | None, dtype: np.dtype[Any] | None = None, *, often: bool = True
) -> Array:
    """An uninitialised array of x's shape and dtype, or another one; without strides in C order.

    With a dtype, strides are those of any array of that type; there are no gaps.
    """
    if dtype is not None and strides is not None:
        strides = dense_strides(x.shape, strides, dtype.itemsize)
    dtype = dtype or x.dtype
    alike = strides == x.strides and dtype == x.dtype
    model = x if alike else model_of(queue_of(x).context, x.shape, dtype, strides)

    def make() -> Array:
        made: Array = empty_like(model, x.queue, x.allocator)
        if x.allocator is None:
            pages.enlarge(made, often=often)
        return made

    made: Array = allocated(x, x.size * dtype.itemsize, make)
    return made


class Fresh:
    """An array that was made for a call, without its memory: its shape, dtype and strides."""

    def __init__(self, model: Array) -> None:
        self.nbytes = model.nbytes
        self.state = {name: value for name, value in vars(model).items() if name not in _EACH}


def made_again(x: Array, models: Iterable[Fresh]) -> list[Array]:
    """Uninitialised arrays like these, on x's queue, from x's allocator; SizeError where there is no memory left."""
    queue, context, allocator, made = x.queue, x.context, x.allocator, []
    for model in models:
        nbytes = model.nbytes
        try:
            memory: Any = cl.Buffer(context, _READ_WRITE, nbytes) if allocator is None else allocator(nbytes)  # type: ignore[arg-type]
        except (cl.Error, MemoryError) as error:
            _refuse(x, nbytes, error)
        array: Array = _blank(Array)  # what the constructor would make of all this takes several times as long
        state = model.state.copy()
        state["queue"], state["context"], state["allocator"] = queue, context, allocator
        state["base_data"], state["events"] = memory, []
        array.__dict__ = state
        if nbytes >= pages.LARGE and allocator is None:
            pages.enlarge(array, often=True)
        made.append(array)
    return made


def per_channel_results(x: Array, axis: int, like: Array | None, number: int = 2) -> list[Array]:
    """Uninitialised arrays of one number per channel, of the shape of `like`, or (C,)."""
    if not number:
        return []
    model, dtype = like, numbers_of(x.dtype)
    if model is None or model.allocator is not x.allocator or model.dtype != dtype:
        model = model_of(queue_of(x).context, (x.shape[axis],) if like is None else like.shape, dtype)
    made: list[Array] = allocated(
        x, model.nbytes, lambda: [empty_like(model, x.queue, x.allocator) for _ in range(number)]
    )
    return made


def model_of(
    context: cl.Context, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None = None
) -> Array:
    """An array without memory, to make others like: that takes an eighth of what the constructor does."""
    # On the object itself, as pyopencl does it: models keep it alive, and are to go with it.
    models: dict[Any, Array] | None = getattr(context, "_oclbn_models", None)
    if models is None or len(models) >= _MOST_MODELS:
        models = context._oclbn_models = {}  # type: ignore[attr-defined]
    key = (shape, dtype, strides)
    found = models.get(key)
    if found is None:
        found = models[key] = Array(context, shape, dtype, strides=strides, data=b"")
    return found


def scratch(x: Array, nbytes: int) -> Any:
    """A buffer on x's device.

    Never from x's allocator: a pool would hand it out again while kernels that are still to run use it. A buffer of the
    driver's own lives until they are done, whoever lets go of it.
    """
    context = queue_of(x).context
    return allocated(x, nbytes, lambda: cl.Buffer(context, cl.mem_flags.READ_WRITE, nbytes))


def allocated(x: Array, nbytes: int, make: Callable[[], Any]) -> Any:
    """What make() allocates on x's device, of `nbytes` each.

    SizeError where the device cannot hold those in one buffer, or has no memory left.
    """
    device = queue_of(x).device
    check_size("a result", nbytes, device)
    try:
        return make()
    except (cl.Error, MemoryError) as error:
        _refuse(x, nbytes, error)


def _refuse(x: Array, nbytes: int, error: Exception) -> NoReturn:
    """SizeError where an allocation of so many bytes failed as there is no memory left; else its own error."""
    if not lacks_memory(error):
        raise error
    name = queue_of(x).device.name.strip()
    raise SizeError(f"{name} has no room for a result of {nbytes:,} bytes: {error}") from error


def fill(array: Array, value: float) -> None:
    """Every element becomes `value`, by the driver's command: pyopencl's own fill would compile a kernel."""
    if array.size and array.queue is not None:
        memory: Any = array.base_data
        pattern, order = array.dtype.type(value), Order(array.queue, (array,))
        given = pattern, array.offset, array.nbytes, order.events
        order.note(cl.enqueue_fill_buffer(array.queue, memory, *given), (array,))


def queue_of(x: Array) -> cl.CommandQueue:
    """x's queue, which arguments.tensor has seen."""
    assert x.queue is not None
    return x.queue
