"""Memory for large results, kept when tensors are let go of, for the next ones of their size.

Linux hands out fresh memory in pages that it clears one by one, and takes it back when it is freed: for a tensor of
100 MB that takes longer than normalising it. A training step makes the same tensors as the one before, so what it lets
go of serves the next. PyTorch's own allocator keeps memory of a GPU in the same way, and none of the host's.
"""

from __future__ import annotations

import collections
import ctypes
import mmap
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from oclbn.device import pages

_LEAST = 1 << 20  # bytes; what is smaller the C library keeps with its pages
_LARGE_PAGE = 2 << 20
_SHARE = 4  # of the machine's memory one part in so many is kept at most
_CGROUP = Path("/sys/fs/cgroup/memory.max")


class _Block(NamedTuple):
    """Memory of the system's, and where in it a large page begins."""

    memory: mmap.mmap
    start: int


class Pool:
    """Memory of tensors that have been let go of, by size. most: bytes that are kept at most.

    Tensors may end in any thread, and while another one is being made: what lies here is changed by single steps of
    Python's own containers, which need no lock.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._free: dict[int, collections.deque[_Block]] = {}
        self._taken: dict[int, float] = {}  # when a block of this size was last wanted

    def tensor(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Any:
        """An uninitialised tensor without gaps, whose memory comes back here when the last tensor on it ends."""
        nbytes = dtype.itemsize
        for size in shape:
            nbytes *= size
        if nbytes < _LEAST or not self._most:
            return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")
        room = -(-nbytes // _LARGE_PAGE) * _LARGE_PAGE
        self._taken[room] = time.monotonic()
        try:
            block = self._free[room].pop()
        except (KeyError, IndexError):
            block = _new(room)
        view = np.frombuffer(block.memory, np.uint8, nbytes, block.start)
        weakref.finalize(view, self._take_back, room, block).atexit = False
        storage = torch.from_numpy(view).untyped_storage()
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, strides)

    def kept(self) -> int:
        """Bytes that lie here for tensors to come."""
        return sum(room * len(blocks) for room, blocks in [*self._free.items()])

    def release(self) -> None:
        """Give all of them back to the system."""
        for blocks in [*self._free.values()]:
            blocks.clear()

    def _take_back(self, room: int, block: _Block) -> None:
        self._free.setdefault(room, collections.deque()).append(block)
        excess = self.kept() - self._most
        for size in sorted([*self._free], key=lambda size: self._taken.get(size, 0.0)) if excess > 0 else ():
            while excess > 0:  # of the sizes that nobody has wanted for longest
                try:
                    self._free[size].popleft()
                except IndexError:
                    break
                excess -= size


def _new(room: int) -> _Block:
    """As many bytes of the system's, from where a large page begins, in large pages where they can be had."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, room + _LARGE_PAGE, **private)  # a forked child has its own from where either writes
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _LARGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE") and os.environ.get("OCLBN_LARGE_PAGES", "1") != "0" and pages.size_on_request():
        with suppress(OSError):  # small pages do as well
            memory.madvise(mmap.MADV_HUGEPAGE)
    return _Block(memory, start)


def _most() -> int:
    """Bytes to keep at most: OCLBN_TORCH_KEEPS, in MiB, or a part of the memory that this process may have."""
    if (told := os.environ.get("OCLBN_TORCH_KEEPS", "")).strip().isdecimal():
        return int(told) << 20
    there = 0
    with suppress(ValueError, OSError, AttributeError):  # not every system tells
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(ValueError, OSError):  # no container, or one without a limit ("max")
        there = min(there, int(_CGROUP.read_text()))
    return there // _SHARE if there > 0 else 1 << 30


pool = Pool(_most())


def release_memory() -> None:
    """Give back the memory that is kept for results to come.

    Up to a quarter of the machine's memory (or of the container's) is kept, of tensors that have been let go of; the
    environment variable OCLBN_TORCH_KEEPS says how many MiB at most instead, 0 for none.
    """
    pool.release()
