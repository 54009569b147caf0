"""What POCL needs done for it: a processor name that its LLVM knows, and threads that keep to their cores.

**The name.** POCL fails on processors that are newer than the LLVM inside it.

POCL asks LLVM for the processor's name when it starts. An LLVM that has never heard of the processor answers
"generic", and the Clang of the same LLVM refuses that name: every program then fails to build with
``unknown target CPU 'generic'`` (pocl/pocl issue 1049). POCL 3.0 has no setting for the name, so the one in its
device structure is replaced, before the first build, by a name that both sides know and that has the
instructions which POCL's own built-in library for this processor uses.

Only done on Linux, on x86-64, for a POCL device whose version string ends in "-generic", and only when the field is
found beyond doubt; ``OCLBN_MEND_POCL=0`` switches it off.

**The threads.** POCL has one thread per core, and they sleep between launches. Woken together, two of them often land
on one core and stay there, because Linux moves no thread that has just been woken: launches of less than a millisecond
then take twice as long. POCL pins its threads when its setting POCL_AFFINITY is 1 at the moment that it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyopencl as cl

_WORD = ctypes.sizeof(ctypes.c_void_p)
_SCANNED_BYTES = 4096  # the structure is about 1.5 kB; the two fields lie near byte 640 in POCL 3.0
_NAMES: tuple[
    tuple[str, set[str]], ...
] = (  # LLVM's name, the processor flags that it promises; as POCL chooses among its built-in libraries
    ("skylake-avx512", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi1", "bmi2"}),
    ("haswell", {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}),
    ("sandybridge", {"avx", "popcnt", "cx16"}),
    ("x86-64", set()),
)
_lock = threading.Lock()
_seen: dict[int, str | None] = {}
_asked = False  # for platforms, within pinned_threads


@contextlib.contextmanager
def pinned_threads() -> Iterator[None]:
    """A POCL that starts within the block keeps each of its threads on a core of its own; a running one is left alone.

    Only the first block of a process touches the environment: what is asked for in it runs from then on.
    Nothing is changed where the user has set POCL_AFFINITY, nor where this process may not run on every core: POCL
    would take no notice of that.
    """
    global _asked
    if _asked or "POCL_AFFINITY" in os.environ or not _may_use_every_core():
        yield
        return
    _asked = True
    os.environ["POCL_AFFINITY"] = "1"
    try:
        yield
    finally:
        os.environ.pop("POCL_AFFINITY", None)


def _may_use_every_core() -> bool:
    if not hasattr(os, "sched_getaffinity"):
        return False  # only Linux tells
    return os.sched_getaffinity(0) == set(range(os.cpu_count() or 1))


def mend_target(device: cl.Device) -> str | None:
    """Give a POCL device a processor name that its compiler knows.

    Returns the name that was put in, or None where nothing had to be or could be done. Calling it again for the same
    device does nothing and returns the same.
    """
    key = device.int_ptr
    if key in _seen:
        return _seen[key]
    with _lock:
        if key not in _seen:
            _seen[key] = _mend(device) if _needs_mending(device) else None
        return _seen[key]


def target_name(flags: set[str]) -> str:
    """LLVM's name for a processor with these flags (as /proc/cpuinfo spells them): the most that is safe."""
    return next(name for name, needed in _NAMES if needed <= flags)


def _needs_mending(device: cl.Device) -> bool:
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and os.environ.get("OCLBN_MEND_POCL", "1") != "0"
        and "pocl" in device.version.lower()
        and device.version.strip().endswith("-generic")
    )


def _mend(device: cl.Device) -> str | None:
    field = _target_field(device.int_ptr)
    if field is None:
        return None
    name = target_name(_processor_flags())
    libc = ctypes.CDLL(None)
    libc.strdup.restype = ctypes.c_void_p
    libc.strdup.argtypes = [ctypes.c_char_p]
    copy = libc.strdup(name.encode())  # from malloc, because POCL frees what the field points to
    ctypes.c_void_p.from_address(field).value = copy
    return name


def _target_field(address: int) -> int | None:
    """Address of the one pointer to "generic" that stands right behind a pointer to the target's triple."""
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:  # a bad address is an OSError here, not a crash

        def peek(at: int, size: int) -> bytes:
            try:
                memory.seek(at)
                return memory.read(size) or b""
            except (OSError, OverflowError, ValueError):
                return b""  # not memory: then it is not the string that is looked for either

        raw = peek(address, _SCANNED_BYTES)
        words = [int.from_bytes(raw[i : i + _WORD], "little") for i in range(0, len(raw) - _WORD + 1, _WORD)]
        found = [
            index
            for index in range(1, len(words))
            if peek(words[index], 8) == b"generic\0" and peek(words[index - 1], 7) == b"x86_64-"
        ]
    return address + found[0] * _WORD if len(found) == 1 else None


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
