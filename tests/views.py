"""Arrays that lie anyhow: views of random strides and offsets, on the host and on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from oclbn.gpuarray import pack

WRITTEN = ("C", "any order", "cropped", "stepped", "mirrored", "all of these", "fields", "interlocked")
READ = (*WRITTEN, "broadcast", "windows")


@dataclass
class View:
    """A device array, what it holds, and all of the memory around it."""

    array: cla.Array
    host: np.ndarray
    memory: np.ndarray  # bytes of the whole buffer, as they were made
    way: str

    def seen(self, memory: np.ndarray) -> np.ndarray:
        """What the array holds where these are the buffer's bytes."""
        a = self.array
        return np.ndarray(a.shape, a.dtype, memory, a.offset, a.strides)

    def now(self) -> np.ndarray:
        """What it holds on the device; nothing beside it may have changed."""
        found = np.empty_like(self.memory)
        cl.enqueue_copy(self.array.queue, found, self.array.base_data, wait_for=self.array.events)
        held = self.seen(found).copy()
        np.testing.assert_array_equal(pack(self.array).get(), held)
        if self.way not in ("broadcast", "windows"):
            self.seen(found)[...] = self.host
        np.testing.assert_array_equal(found, self.memory, f"memory beside an array that lies {self.way}")
        return held


def lay(rng: np.random.Generator, queue: cl.CommandQueue, host: np.ndarray, way: str) -> View:
    """An array on the device that lies in one of the ways of READ, and holds what `host` does, where that can be.

    Broadcast it holds a part of that over and over; windows hold other numbers.
    """
    itemsize, rank = host.dtype.itemsize, host.ndim
    cell = itemsize + (int(rng.integers(1, 2 * itemsize)) if way == "fields" else 0)
    axes = list(range(rank))[::-1] if way == "C" else [int(axis) for axis in rng.permutation(rank)]
    strides, reach = [0] * rank, cell
    if way == "interlocked" and rank > 1:
        first, second, *axes = axes
        one = int(rng.integers(host.shape[first], host.shape[first] + 3))
        other = next(step for step in range(1, 99) if math.gcd(one, step) == 1 and rng.random() < 0.6)
        strides[first], strides[second] = other * cell, one * cell  # i * other + j * one names no element twice
        reach += (host.shape[first] - 1) * strides[first] + (host.shape[second] - 1) * strides[second]
    for axis in axes:
        step = int(rng.integers(1, 4)) if way in ("stepped", "all of these") else 1
        strides[axis] = reach * step
        reach += (host.shape[axis] - 1) * strides[axis]
        if way in ("cropped", "all of these"):
            reach += int(rng.integers(0, 3)) * strides[axis]
    if way == "broadcast":
        gone = [axis for axis in range(rank) if rng.random() < 0.5] or [int(rng.integers(rank))]
        host = np.broadcast_to(
            host[tuple(slice(0, 1) if axis in gone else slice(None) for axis in range(rank))], host.shape
        )
        strides = [0 if axis in gone else stride for axis, stride in enumerate(strides)]
    if way == "windows":
        strides = [int(rng.integers(0, 4)) * itemsize for _ in range(rank)]
    if way in ("mirrored", "all of these", "interlocked", "windows"):
        strides = [stride * int(rng.choice([1, -1])) for stride in strides]
    ends = [(size - 1) * stride for size, stride in zip(host.shape, strides, strict=True)]
    lead = int(rng.integers(0, 4)) * itemsize if way not in ("C", "any order") or rng.random() < 0.5 else 0
    if way == "fields":
        lead = int(rng.integers(0, 3 * itemsize))
    offset = lead - sum(end for end in ends if end < 0)
    size = offset + sum(end for end in ends if end > 0) + itemsize + int(rng.integers(0, 9))
    memory = np.full(size, 0xFF, np.uint8)  # floats of these bytes are NaN
    if way == "windows":
        whole = memory[: size // itemsize * itemsize].view(host.dtype)
        whole[:] = rng.integers(0, 9, whole.size) if host.dtype.kind == "u" else rng.uniform(0.5, 2.0, whole.size)
        host = np.ndarray(host.shape, host.dtype, memory, offset, strides).copy()
    else:
        np.ndarray(host.shape, host.dtype, memory, offset, strides)[...] = host
    buffer = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=memory)
    array = cla.Array(queue, host.shape, host.dtype, data=buffer, offset=offset, strides=tuple(strides))
    return View(array, np.ascontiguousarray(host), memory, way)


def is_dense(array: cla.Array) -> bool:
    """Whether it has no gaps, whatever the order of its axes."""
    reach = array.dtype.itemsize
    for stride, size in sorted(
        (stride, size) for stride, size in zip(array.strides, array.shape, strict=True) if size > 1
    ):
        if stride != reach:
            return False
        reach *= size
    return True


def any_shape(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    """A shape of so many elements."""
    divisor = int(rng.choice([d for d in range(1, size + 1) if size % d == 0]))
    ways: list[Any] = [(size,), (1, size, 1, 1), (divisor, size // divisor), (divisor, 1, size // divisor)]
    return ways[int(rng.integers(len(ways)))]
