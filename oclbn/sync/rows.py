"""Rows of numbers per channel that go to and from a device together, in one transfer that nobody waits for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from pyopencl.array import Array

from oclbn.call import packed
from oclbn.call.copying import copy_strided
from oclbn.call.order import Order
from oclbn.call.results import model_of


class Rows:
    """Device memory of `rows` times C numbers of one dtype, each row also an array of shape (C,).

    numbers: (rows, C) that it holds from the beginning, copied as it is allocated, which costs less than a command.
    """

    def __init__(
        self,
        queue: cl.CommandQueue,
        rows: int,
        channels: int,
        dtype: np.dtype[Any],
        numbers: NDArray[Any] | None = None,
    ) -> None:
        self.queue, self.shape, self.dtype = queue, (rows, channels), dtype
        step = channels * dtype.itemsize
        if numbers is None or not numbers.size:
            self._buffer = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, max(1, rows * step))
        else:
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
            self._buffer = cl.Buffer(queue.context, flags, hostbuf=np.ascontiguousarray(numbers, dtype))
        model = model_of(queue.context, (channels,), dtype)
        self.arrays = [_placed(model, queue, self._buffer, row * step) for row in range(rows)]

    def read(self) -> Read:
        """What the rows hold once all that was enqueued on them is done."""
        return _read(self.queue, np.empty(self.shape, self.dtype), self._buffer, self.arrays)


class Read:
    """A transfer to the host that is under way."""

    def __init__(self, queue: cl.CommandQueue, host: NDArray[Any], event: cl.Event | None) -> None:
        self._queue, self._host, self._event = queue, host, event

    def get(self) -> NDArray[Any]:
        """Wait for the numbers."""
        if self._event is not None:
            self._event.wait()
        return self._host


def read(array: Array, queue: cl.CommandQueue) -> Read:
    """Begin to read an array, once all that was enqueued on it is done."""
    host = np.empty(array.shape, array.dtype)
    if not array.size:
        return Read(queue, host, None)
    array = packed.dense(array, queue)
    return _read(queue, host, array.base_data, (array,), src_offset=array.offset)


def write(array: Array, host: NDArray[Any], queue: cl.CommandQueue) -> None:
    """Give an array other numbers, after all that was enqueued on it; nobody waits."""
    if not array.size:
        return
    if packed.is_loose(array):
        made = Rows(queue, 1, array.size, array.dtype, host.reshape(1, -1)).arrays[0]
        copy_strided(shaped(made, array.shape), array.with_queue(queue))
        return
    order = Order(queue, (array,))
    numbers = np.ascontiguousarray(host)
    order.note(_copy(queue, array.base_data, numbers, order.events, dst_offset=array.offset), (array,))


def shaped(row: Array, shape: tuple[int, ...]) -> Array:
    """The same memory as an array of another shape."""
    queue = cast("cl.CommandQueue", row.queue)
    made = _placed(model_of(queue.context, shape, row.dtype), queue, row.base_data, row.offset)
    made.events = row.events
    return made


def _placed(model: Array, queue: cl.CommandQueue, memory: Any, offset: int) -> Array:
    """An array like the model, in memory that is there; the constructor would take ten times as long."""
    made: Array = model.with_queue(queue)
    made.base_data, made.offset, made.events = memory, offset, []
    return made


def _read(queue: cl.CommandQueue, host: NDArray[Any], memory: Any, arrays: Collection[Array], **options: Any) -> Read:
    """Begin to read what these arrays hold, once all that was enqueued on them is done."""
    return Read(queue, host, _copy(queue, host, memory, Order(queue, arrays).events, **options))


def _copy(queue: cl.CommandQueue, target: Any, source: Any, events: list[cl.Event], **options: Any) -> cl.Event:
    copy: Any = cl.enqueue_copy
    event: cl.Event = copy(queue, target, source, is_blocking=False, wait_for=events, **options)
    return event
