"""Tensors as device arrays, for the length of a call.

Three ways, by what the device does with the host's memory:

- shared: kernels read and write the tensor's memory where it lies, and the host sees at once what they wrote. Drivers
  for processors do that; whether one does is tried on it, once per process, with addresses of any alignment.
- mapped: the driver may hold what kernels wrote elsewhere until the host maps it, as OpenCL allows. So it is mapped,
  which on graphics that share the processor's memory costs next to nothing.
- copied: the device has memory of its own.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyopencl as cl
import torch
from pyopencl.array import Array, empty_like

from oclbn.call import arguments
from oclbn.call.results import model_of
from oclbn.device import check_size, driver_errors, limits
from oclbn.elements import bfloat16
from oclbn.functional import accumulate

Way = Literal["shared", "mapped", "copied"]

_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16"}
_NUMBERS = 1024  # of the arrays that the way is tried with
_ways: dict[int, tuple[cl.Device, Way]] = {}
_trying = threading.Lock()


def dtype_of(dtype: Any) -> np.dtype[Any] | None:
    """The type of an array's elements, for that of a tensor's; None: arrays have none such."""
    if dtype == torch.bfloat16:
        return bfloat16()
    return np.dtype(_TYPES[dtype]) if dtype in _TYPES else None


def way_of(queue: cl.CommandQueue) -> Way:
    """How the queue's device takes memory of the host's."""
    device = queue.device
    found = _ways.get(device.int_ptr)
    if found is None:
        with _trying:
            way: Way = "shared" if limits(device).kind == "cpu" and _is_shared(queue) else "copied"
            if way == "copied" and (limits(device).kind == "cpu" or _is_unified(device)):
                way = "mapped"
            found = _ways[device.int_ptr] = device, way  # held, so that no other device has its address
    return found[1]


def _is_unified(device: cl.Device) -> bool:
    try:
        return bool(device.host_unified_memory)
    except cl.Error:
        return False


def _is_shared(queue: cl.CommandQueue) -> bool:
    """Whether kernels see what the host writes and the host what they write, with nothing between, at any address."""
    for start in (0, 1, 16):  # in floats
        source, target = (np.zeros(_NUMBERS + start, np.float32)[start:] for _ in range(2))
        read, written = (
            _array(queue, _shared(queue, host.ctypes.data, host.nbytes), host) for host in (source, target)
        )
        for value in (1.0, 2.0):
            source[:] = value
            accumulate(written, read)
            queue.finish()
            if not (target == value).all():
                return False
    return True


def _array(queue: cl.CommandQueue, buffer: cl.Buffer, model: Any) -> Array:
    return Array(queue, model.shape, model.dtype, data=buffer, strides=model.strides)


def _bytes_at(address: int, nbytes: int) -> Any:
    return (ctypes.c_char * nbytes).from_address(address)


def _shared(queue: cl.CommandQueue, address: int, nbytes: int, access: int = cl.mem_flags.READ_WRITE) -> cl.Buffer:
    flags: Any = access | cl.mem_flags.USE_HOST_PTR
    return cl.Buffer(queue.context, flags, hostbuf=_bytes_at(address, nbytes))


@functools.lru_cache(maxsize=1024)
def _layout(kind: Any, sizes: Any, steps: Any) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...], int]:
    """For a tensor's dtype, shape and strides an array's, and the bytes from its first element to its last."""
    dtype = dtype_of(kind)
    assert dtype is not None  # the caller has looked
    shape, strides = tuple(sizes), tuple(step * dtype.itemsize for step in steps)
    return dtype, shape, strides, sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize


class _Lent:
    """A tensor's memory, from its first element to its last, as a buffer."""

    def __init__(self, tensor: Any, address: int, nbytes: int, buffer: cl.Buffer) -> None:
        self.tensor, self.address, self.nbytes, self.buffer = tensor, address, nbytes, buffer
        self.written: Array | None = None


class Loan:
    """Within the block, tensors are lent to a queue's device; at its end the host has back what was written.

    Whatever happens within, nothing is in use by the device after it.
    """

    def __init__(self, queue: cl.CommandQueue, way: Way | None = None) -> None:
        self._queue, self._way = queue, way or way_of(queue)
        self._lent: dict[tuple[int, int], _Lent] = {}
        self._copies: list[tuple[Any, Any]] = []  # tensors, and what was lent instead

    def read(self, tensor: Any) -> Any:
        """As an array that kernels read; None for None."""
        return None if tensor is None else self._lend(tensor.resolve_neg(), cl.mem_flags.READ_ONLY, filled=True)

    def change(self, tensor: Any) -> Any:
        """As an array that kernels read and write; None for None.

        Where there are gaps in the tensor, or a sign that PyTorch adds when it reads it, a copy is lent, and what was
        written goes into the tensor at the end: whose the gaps are nobody knows here.
        """
        if tensor is None:
            return None
        lent = tensor
        if tensor.is_neg() or not (tensor.is_contiguous() or 0 in tensor.stride()):
            lent = tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
            self._copies.append((tensor, lent))
        return self._lend(lent, cl.mem_flags.READ_WRITE, filled=True)

    def write(self, tensor: Any) -> Array:
        """As an array that kernels write every element of; there are no gaps in the tensor."""
        return self._lend(tensor, cl.mem_flags.READ_WRITE, filled=False)

    def _lend(self, tensor: Any, access: int, *, filled: bool) -> Array:
        dtype, shape, strides, nbytes = _layout(tensor.dtype, tensor.shape, tensor.stride())
        key = tensor.data_ptr(), nbytes
        lent = self._lent.get(key)
        if lent is None:
            lent = self._lent[key] = _Lent(tensor, *key, self._buffer(*key, access, filled=filled))
        made: Array = empty_like(
            model_of(self._queue.context, shape, dtype, strides), self._queue, lambda _: lent.buffer
        )
        made.allocator = None  # results come from the driver, like those of any array
        if access == cl.mem_flags.READ_WRITE:
            lent.written = made
        return made

    @driver_errors("lending a tensor")
    def _buffer(self, address: int, nbytes: int, access: int, *, filled: bool) -> cl.Buffer:
        queue = self._queue
        check_size("a tensor", nbytes, queue.device)
        if self._way != "copied":
            return _shared(queue, address, nbytes, access)
        buffer = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, nbytes)
        if filled:
            cl.enqueue_copy(queue, buffer, _bytes_at(address, nbytes))
        return buffer

    def __enter__(self) -> Self:
        return self

    @driver_errors("taking back tensors")
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.finish()
        if kind is None:
            written = {name: one.written for name, one in enumerate(self._lent.values()) if one.written is not None}
            arguments.sound({f"tensor {name}": array for name, array in written.items()})
            for one in self._lent.values():
                if one.written is not None:
                    self._bring_back(one)
            for tensor, copy in self._copies:
                with torch.no_grad():
                    tensor.copy_(copy)
        self._lent.clear()
        self._copies.clear()

    def _bring_back(self, one: _Lent) -> None:
        if self._way == "copied":
            cl.enqueue_copy(self._queue, _bytes_at(one.address, one.nbytes), one.buffer)
        elif self._way == "mapped":
            reading, extent, byte = cl.map_flags.READ, (one.nbytes,), np.dtype(np.uint8)
            mapped, _ = cl.enqueue_map_buffer(self._queue, one.buffer, reading, 0, extent, byte)
            mapped.base.release(self._queue)
            self._queue.finish()
