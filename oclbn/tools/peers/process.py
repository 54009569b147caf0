"""The parent's side of a peer: its process, asked one thing at a time, and stopped while others are timed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.tools.child import ChildProcess, Rejected
from oclbn.tools.peers.checking import LOOSE, Wanted
from oclbn.tools.peers.registry import Kind

_CHILD = Path(__file__).resolve().parent / "child.py"
_SECONDS = 600.0  # a peer that has not answered by then has failed
_CAN_STOP = hasattr(signal, "SIGSTOP")


class PeerProcess(ChildProcess):
    """One peer in its process; where it declines, fails or dies, that is a Rejected.

    python: the interpreter that has the peer. library: of the OpenCL platform, for a peer that cannot choose. A peer
    that waits is stopped where the system can do that: OpenMP's threads would otherwise spin for a while in the time of
    the next one.
    """

    _culprit = "its process"

    def __init__(self, kind: Kind, outputs: str, *, python: str = sys.executable, library: str | None = None) -> None:
        super().__init__("", command=(python, str(_CHILD), str(kind.file), kind.install), timeout=_SECONDS)
        self.kind, self.outputs, self.library = kind, outputs, library
        self.version = ""
        self._threads = 1
        self._gone = ""  # why it will never be there
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def ask(self, action: str, **given: Any) -> Any:
        """The answer to a request of child.py."""
        self._signal("SIGCONT")
        try:
            return super().ask(action, **given)
        finally:
            self._signal("SIGSTOP")

    def load(self, *, threads: int, **case: Any) -> None:
        """Give the peer a tensor. threads: for its computation."""
        if self._gone:
            raise Rejected(self._gone)
        self._threads = threads
        try:
            self.version = self.ask("load", threads=threads, **case)["version"]
        except Rejected as rejected:
            self._gone = str(rejected) if rejected.gone else ""
            raise

    def prepare(self, operation: str, wanted: Wanted, folder: Path) -> float:
        """Make an operation ready and check its results, through a file in `folder`; returns the seconds of a call.

        Rejected as well where its results are wrong.
        """
        seconds = float(self.ask("prepare", operation=operation)["seconds"])
        file = folder / "results.npz"
        self.ask("check", operation=operation, channels=wanted.channels, to=str(file))
        with np.load(file) as found:
            if fault := wanted.fault(operation, dict(found), most=LOOSE):
                raise Rejected(f"its results are wrong: {fault}")
        return min([seconds, *self.turn(operation)(2, False)])

    def turn(self, operation: str) -> Callable[[int, bool], list[float]]:
        """A function of a number of calls, and whether an untimed one comes before them: seconds of each call."""
        return lambda calls, warm: list(self.ask("time", operation=operation, calls=calls, warm=warm)["seconds"])

    def release(self) -> None:
        """Let go of the tensor. A process whose malloc keeps what is freed is ended instead."""
        if self._child is None:
            return
        if self.outputs == "preallocated" and self.kind.preallocated:
            self.close()
            return
        with contextlib.suppress(Rejected):  # it has ended: so has its memory
            self.ask("unload")

    def close(self) -> None:
        """End the process, if there is one; the next request would start another."""
        super().close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _environment(self) -> Mapping[str, str]:
        environment = {"OMP_NUM_THREADS": str(self._threads), "PYTHONUNBUFFERED": "1"}
        if not _CAN_STOP:
            environment |= {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
        if self.outputs == "preallocated":
            environment |= self.kind.preallocated
        if self.kind.one_platform and self.library:
            self._folder = tempfile.TemporaryDirectory(prefix="oclbn-icd-")
            Path(self._folder.name, "only.icd").write_text(self.library + "\n")
            environment |= {"OCL_ICD_VENDORS": self._folder.name}
        return environment

    def _signal(self, name: str) -> None:
        if _CAN_STOP and self._child is not None:
            self._child.send_signal(getattr(signal, name))


def platform_library(platform_handle: int) -> str | None:
    """The file of the library behind an OpenCL platform, which peers that cannot choose a platform are shown alone.

    A platform begins with a pointer to its table of functions (cl_khr_icd); the system knows whose they are. None where
    that cannot be found out.
    """

    class Found(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("at", ctypes.c_void_p),
        )

    if os.name != "posix":
        return None
    found, table = Found(), ctypes.c_void_p.from_address(platform_handle).value
    function = ctypes.c_void_p.from_address(table).value if table else None
    if not function or not ctypes.CDLL(None).dladdr(ctypes.c_void_p(function), ctypes.byref(found)):
        return None
    return str(Path(found.file.decode()).resolve()) if found.file else None
