"""Rows of numbers per channel that go to and from a device together, in one transfer that nobody waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from pyopencl.array import Array

from oclbn.call.order import Order


class Rows:
    """Device memory of `rows` times C numbers of one dtype, each row also an array of shape (C,)."""

    def __init__(self, queue: cl.CommandQueue, rows: int, channels: int, dtype: np.dtype[Any]) -> None:
        self.queue, self.shape, self.dtype = queue, (rows, channels), dtype
        nbytes = rows * channels * dtype.itemsize
        self._buffer = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, max(1, nbytes))
        step = channels * dtype.itemsize
        self.arrays = [Array(queue, (channels,), dtype, data=self._buffer, offset=row * step) for row in range(rows)]

    def read(self) -> Read:
        """What the rows hold once all that was enqueued on them is done."""
        host = np.empty(self.shape, self.dtype)
        order = Order(self.queue, self.arrays)
        return Read(self.queue, host, _copy(self.queue, host, self._buffer, order.events))

    def write(self, host: NDArray[Any]) -> Rows:
        """Give them the numbers of a host array, which must stay as it is until they are there."""
        _note(cl.enqueue_copy(self.queue, self._buffer, host, is_blocking=False), self.arrays)
        return self


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
    """Begin to read an array whose elements lie side by side, once all that was enqueued on it is done."""
    host = np.empty(array.shape, array.dtype)
    if not array.size:
        return Read(queue, host, None)
    order = Order(queue, (array,))
    return Read(queue, host, _copy(queue, host, array.base_data, order.events, src_offset=array.offset))


def write(array: Array, host: NDArray[Any], queue: cl.CommandQueue) -> None:
    """Give an array whose elements lie side by side other numbers, after all that was enqueued on it; nobody waits."""
    if not array.size:
        return
    order = Order(queue, (array,))
    copy: Any = cl.enqueue_copy
    packed = np.ascontiguousarray(host)
    event = copy(queue, array.base_data, packed, dst_offset=array.offset, is_blocking=False, wait_for=order.events)
    order.note(event, (array,))


def shaped(row: Array, shape: tuple[int, ...]) -> Array:
    """The same memory as an array of another shape."""
    reshape: Any = row.reshape
    made: Array = reshape(shape)
    return made


def _copy(queue: cl.CommandQueue, host: Any, memory: Any, events: list[cl.Event], **options: Any) -> cl.Event:
    copy: Any = cl.enqueue_copy
    event: cl.Event = copy(queue, host, memory, is_blocking=False, wait_for=events, **options)
    return event


def _note(event: cl.Event, arrays: list[Array]) -> None:
    for array in arrays:
        array.events[:] = (event,)
