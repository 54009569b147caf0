"""Large pages under the large arrays of POCL's and Intel's processors, on Linux.

The driver takes an array's memory from the C library, and that takes what is large from Linux, at each allocation anew.
Linux finds and clears such memory in pages of 4 KB, each when it is first touched: for a result of 100 MB that takes
several times as long as normalising does. With pages of 2 MB it takes a quarter of that, and each later pass over the
array has fewer addresses to translate. Where Linux gives them on request (its setting "madvise", the usual one), they
have to be requested before the memory is touched, and POCL allocates it then rather than later. `OCLBN_LARGE_PAGES=0`
switches that off.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from oclbn.device.facts import limits

LARGE = 4 << 20  # bytes; NumPy requests large pages from there on as well
# Drivers whose buffers are the C library's memory, and whose mappings tell the address at once; with the bytes from
# which they get memory from Linux for each new array; what is smaller glibc keeps, with its pages, when it is let go
# of. Others get no request: rusticl does not know a mapping before it has been carried out.
_ANEW = {"Portable Computing Language": 32 << 20, "Intel(R) OpenCL": LARGE}
_ELSEWHERE = ("remote", "proxy")  # POCL's drivers whose buffers are other memory; POCL has to be told to use them
_MADV_HUGEPAGE = 14
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")


def enlarge(array: Array, *, often: bool) -> None:
    """Request large pages under a new array with a queue, whose elements may be anything, where that is of use.

    often: such arrays are made again and again, so that it has to pay at once. A mapping tells the address; its begin
    and end are enqueued on array.queue, and the host waits for neither; the end becomes an event of array's, which
    whoever touches the array next has to wait for.
    """
    queue = array.queue
    if array.nbytes < LARGE or queue is None or array.nbytes < _least(queue.device, often):
        return
    memory: Any = array.base_data
    flags, extent, byte = cl.map_flags.WRITE_INVALIDATE_REGION, (array.nbytes,), np.dtype(np.uint8)
    try:
        mapped, begun = cl.enqueue_map_buffer(queue, memory, flags, array.offset, extent, byte, is_blocking=False)
    except cl.Error:
        return  # small pages do as well; should the driver be failing, what the array is wanted for will tell
    begin = -(-mapped.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (mapped.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    # The mapping may not have begun yet, but nothing is read or written here. Where Linux declines, pages stay small.
    _madvise()(begin, end - begin, _MADV_HUGEPAGE)
    array.add_event(mapped.base.release(queue, wait_for=[begun]))


@functools.cache
def _least(device: cl.Device, often: bool) -> float:
    """Bytes from which a request pays."""
    platform = device.platform.name.strip()
    wanted = os.environ.get("OCLBN_LARGE_PAGES", "1") != "0" and limits(device).kind == "cpu"
    if not wanted or platform not in _ANEW or sys.platform != "linux" or _may_be_elsewhere():
        return math.inf
    size = size_on_request()
    return max(_ANEW[platform] if often else LARGE, 2 * size) if size else math.inf


def _may_be_elsewhere() -> bool:
    named = os.environ.get("POCL_DEVICES", "")
    return "POCL_DISCOVERY" in os.environ or any(driver in named for driver in _ELSEWHERE)


def size_on_request(settings: Path = _SETTINGS) -> int:
    """Bytes of a large page, where Linux gives such pages to those who request them and to no others; else 0."""
    with suppress(OSError, ValueError):  # no such files, or other contents: then nothing is known to be given
        size = int((settings / "hpage_pmd_size").read_text())
        chosen = "inherit"
        with suppress(FileNotFoundError):  # before Linux 6.8 one setting holds for all sizes
            chosen = _chosen(settings / f"hugepages-{size >> 10}kB" / "enabled")
        if (_chosen(settings / "enabled") if chosen == "inherit" else chosen) == "madvise":
            return size
    return 0


def _chosen(setting: Path) -> str:
    """The word in brackets, as in "always [madvise] never"."""
    return setting.read_text().partition("[")[2].partition("]")[0]


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
