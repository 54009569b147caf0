"""Whether drivers may be used in this process: they do not live on in a child of a process that had loaded them.

A fork copies a driver's memory and none of its threads, so that the child waits for ever for work that nobody does.
POCL and rusticl have threads as soon as somebody asks for platforms, even if only to list devices; and every driver is
loaded then. So a child is told if drivers were loaded before the fork, by whatever package:

- where oclbn was imported before the fork, on Linux, by a look at the process just before it;
- where it is imported in the child, on Linux, by whether the drivers there share what the loader wrote into them with
  another process. That is not seen where the parent has ended, nor where the child has children of its own: their
  memory would look the same, and a process that may use its drivers must not be refused them;
- elsewhere, if it was oclbn that listed devices or worked on them.

A fork by a library's own code, which Python does not hear of, counts as one before the import.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pyopencl as cl

from oclbn.errors import ContextError

_OF_A_DRIVER = "clGetExtensionFunctionAddress"  # what a loader asks every driver for; the loader has one itself
_LOADERS = ("libOpenCL.", "libOpenCL-")  # what files of loaders are called, in wheels too
_FORKED_ONLY = 0x40  # PF_FORKNOEXEC: a process that has run no program since its fork
_PROCESS = Path("/proc/self")

_loaded = False  # drivers, as far as is known
_orphaned = False
_looked_at: set[str] = set()  # libraries that are no drivers
_tells = (_PROCESS / "maps").exists()


def begin() -> None:
    """Before work on a device; ContextError where that would hang or worse."""
    if not _tells:
        note_use()
    if _orphaned:
        raise ContextError(
            "this process was forked from one that had loaded OpenCL's drivers (listing devices does), and drivers "
            'do not live on both sides of a fork; wanted: a process started with the method "spawn" or "forkserver", '
            "or forked before anything asks for devices or platforms"
        )


def note_use() -> None:
    """Drivers are loaded: from here on, children that are forked are told."""
    global _loaded
    _loaded = True


def _before_fork() -> None:
    global _loaded
    _loaded = _loaded or (_tells and any(_drivers()))


def _after_fork() -> None:
    global _orphaned
    _orphaned = _orphaned or _loaded


def _drivers() -> Iterator[str]:
    """Paths of the OpenCL drivers in this process: libraries with a driver's function that are no loader.

    A driver that stands in the loader's place counts as one: it is there before anything is asked of it.
    """
    spans: dict[str, list[range]] = {}
    for line in (_PROCESS / "maps").read_text(errors="replace").splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and ".so" in parts[5] and parts[5] not in _looked_at:
            spans.setdefault(parts[5], []).append(range(*(int(end, 16) for end in parts[0].split("-"))))
    asked = [_address(path, "clGetPlatformIDs") for path in (cl._cl.__file__, None)]  # by pyopencl; None: preloaded
    for path, places in spans.items():
        at = _address(path, _OF_A_DRIVER)
        if not _lie_in([at], places):  # a library that needs another one finds its functions too
            _looked_at.add(path)
        elif not (Path(path).name.startswith(_LOADERS) or _lie_in(asked, places)):
            yield path


def _lie_in(addresses: list[int], places: list[range]) -> bool:
    return any(address in place for address in addresses for place in places)


def _address(library: str | None, function: str) -> int:
    """Where a library, one it needs, or (None) the process finds the function; 0 where none does."""
    try:
        loaded = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(getattr(loaded, function), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):  # mapped but no library (the dynamic loader itself), or without it
        return 0


def _are_inherited() -> bool:
    """Whether this process was forked from one that had loaded drivers, as far as it can tell beyond doubt."""
    try:
        flags = int((_PROCESS / "stat").read_text().rpartition(")")[2].split()[6])
        if not flags & _FORKED_ONLY or _has_children():
            return False
        drivers = set(_drivers())
        return bool(drivers) and _share_memory(drivers)
    except OSError:  # no Linux, or one that does not tell
        return False


def _has_children() -> bool:
    threads = (_PROCESS / "task").iterdir()
    return any((thread / "children").read_text().strip() for thread in threads)


def _share_memory(libraries: set[str]) -> bool:
    """Whether a page that was written when one of these was loaded, and never since, is that of another process too."""
    relevant = False
    for line in (_PROCESS / "smaps").read_text(errors="replace").splitlines():
        parts = line.split(maxsplit=5)
        if not parts[0].endswith(":"):
            relevant = len(parts) == 6 and parts[5] in libraries and parts[1].startswith("r--")
        elif relevant and parts[0] == "Shared_Dirty:" and int(parts[1]):
            return True
    return False


if hasattr(os, "register_at_fork"):
    _orphaned = _are_inherited()
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
