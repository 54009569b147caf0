"""What POCL needs done for it: a processor name that fits its library, and threads that keep to their cores.

**The name.** POCL 3.0 asks LLVM twice about the processor: for its name, which kernels are compiled for, and for its
flags, by which it chooses among its built-in libraries. The two answers may disagree:

- An LLVM that is older than the processor answers "generic", and the Clang of the same LLVM refuses that name: every
  program fails to build with ``unknown target CPU 'generic'`` (pocl/pocl issue 1049).
- Or it answers with the nearest name that it knows: LLVM 14 calls a Zen 4 "znver3", which has no AVX-512, while the
  library is the one for AVX-512. Kernels then pass vectors of 512 bits in two halves to functions that take them
  whole, and what comes back is garbage.
- A hypervisor may mask AVX-512 of a processor whose name promises it.

POCL 3.0 has no setting for the name, so the one in its device structure is replaced, before the first build, by the one
that the library was compiled for, if the processor has what that name promises.

Only done on Linux, on x86-64, for a POCL that chooses its library so ("DISTRO" in its version), and only when the field
is found beyond doubt; ``OCLBN_MEND_POCL=0`` switches it off. Where it is not done, ``widest_vector`` says how wide a
vector both sides take alike, and plans keep to that.

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
_GENERIC = "generic"
_AVX = {"avx", "popcnt", "cx16"}
_AVX2 = _AVX | {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NAMES: tuple[tuple[str, set[str]], ...] = (  # what POCL's libraries are compiled for, and the flags that it promises
    ("skylake-avx512", _AVX512),
    ("haswell", _AVX2),
    ("sandybridge", _AVX),
    ("x86-64", set()),
)
_SSE, _YMM, _ZMM = 16, 32, 64  # bytes of the registers in which vectors are passed
_WITH_ZMM = "skylake-avx512 cascadelake cooperlake cannonlake icelake-client icelake-server tigerlake rocketlake"
_WITH_ZMM += " sapphirerapids emeraldrapids graniterapids graniterapids-d diamondrapids x86-64-v4 knl knm znver4 znver5"
_WITH_YMM = "sandybridge ivybridge haswell broadwell skylake alderlake raptorlake meteorlake arrowlake arrowlake-s"
_WITH_YMM += " lunarlake pantherlake sierraforest grandridge gracemont x86-64-v3"
_WITH_YMM += " bdver1 bdver2 bdver3 bdver4 btver2 znver1 znver2 znver3"
_WITH_SSE = "x86-64 x86-64-v2 nocona core2 penryn bonnell silvermont goldmont goldmont-plus tremont nehalem westmere"
_WITH_SSE += " k8 opteron athlon64 athlon-fx k8-sse3 opteron-sse3 athlon64-sse3 amdfam10 barcelona btver1"
_WIDTHS = {  # of LLVM's names for processors
    name: width for names, width in ((_WITH_ZMM, _ZMM), (_WITH_YMM, _YMM), (_WITH_SSE, _SSE)) for name in names.split()
}
_PROMISES = {_ZMM: {"avx512f"}, _YMM: {"avx"}, _SSE: set[str]()}  # by such a width
_lock = threading.Lock()
_seen: dict[int, str | None] = {}
_OF_THREADS = ("POCL_AFFINITY", "POCL_MAX_PTHREAD_COUNT", "POCL_CPU_MAX_CU_COUNT")
_asked = False  # for platforms, within pinned_threads


@contextlib.contextmanager
def pinned_threads() -> Iterator[None]:
    """A POCL that starts within the block keeps each of its threads on a core of its own; a running one is left alone.

    Only the first block of a process touches the environment: what is asked for in it runs from then on.
    Nothing is changed where the user has set POCL_AFFINITY or the number of threads: POCL pins them to the first cores,
    which several processes with a part of the cores each would then share. Nor where this process may not run on every
    core: POCL would take no notice of that.
    """
    global _asked
    if _asked or any(name in os.environ for name in _OF_THREADS) or not _may_use_every_core():
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
    """Give a POCL device a processor name that its compiler knows and that fits its library.

    Returns the name that was put in, or None where nothing had to be or could be done. Calling it again for the same
    device does nothing and returns the same.
    """
    key = device.int_ptr
    if key in _seen:
        return _seen[key]
    with _lock:
        if key not in _seen:
            _seen[key] = _mend(device)
        return _seen[key]


def better_name(name: str, flags: set[str]) -> str | None:
    """What to put in place of LLVM's `name` for a processor with these flags (as /proc/cpuinfo spells them).

    None where the name fits the library that POCL chooses by the flags, or none that POCL has fits better.
    """
    best = next(known for known, needed in _NAMES if needed <= flags)
    if name == _GENERIC:
        return best
    library = _library_width(flags)
    return best if _WIDTHS.get(name, library) != library == _WIDTHS[best] else None


def _library_width(flags: set[str]) -> int:
    """Bytes of the widest registers that POCL's built-in library for such a processor uses."""
    return next(width for width, needed in _PROMISES.items() if needed <= flags)


def widest_vector(device: cl.Device) -> int:
    """Bytes of the widest vector that POCL's compiler and its library pass alike; 0: any.

    The library is known by the native width that the device states, as POCL takes both from the same flags.
    """
    if not _chooses_its_library(device) or mend_target(device) is not None:
        return 0
    width = _WIDTHS.get(_name_of(device))
    library = {16: _ZMM, 8: _YMM, 4: _SSE}.get(device.native_vector_width_float)
    return 0 if width is None or library is None or width == library else min(width, library)


def _chooses_its_library(device: cl.Device) -> bool:
    """Whether this is a POCL that takes the library which the processor's flags ask for, as packages are built."""
    return "pocl" in device.version.lower() and "DISTRO" in device.platform.version


def _name_of(device: cl.Device) -> str:
    """The processor that POCL says it compiles for: the end of "OpenCL 3.0 PoCL HSTR: pthread-x86_64-...-znver3"."""
    version = device.version.strip()
    known = [name for name in (*_WIDTHS, _GENERIC) if version.endswith(f"-{name}")]
    return max(known, key=len, default="")


def _mend(device: cl.Device) -> str | None:
    if (
        sys.platform != "linux"
        or platform.machine() != "x86_64"
        or os.environ.get("OCLBN_MEND_POCL", "1") == "0"
        or not _chooses_its_library(device)
    ):
        return None
    old = _name_of(device)
    name = better_name(old, _processor_flags())
    field = None if name is None else _target_field(device.int_ptr, old)
    if name is None or field is None:
        return None
    libc = ctypes.CDLL(None)
    libc.strdup.restype = ctypes.c_void_p
    libc.strdup.argtypes = [ctypes.c_char_p]
    copy = libc.strdup(name.encode())  # from malloc, because POCL frees what the field points to
    ctypes.c_void_p.from_address(field).value = copy
    return name


def _target_field(address: int, name: str) -> int | None:
    """Address of the one pointer to `name` that stands right behind a pointer to the target's triple."""
    text = name.encode() + b"\0"
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
            if peek(words[index], len(text)) == text and peek(words[index - 1], 7) == b"x86_64-"
        ]
    return address + found[0] * _WORD if len(found) == 1 else None


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
