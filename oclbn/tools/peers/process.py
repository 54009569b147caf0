"""The parent's side of a peer: its process, asked one thing at a time, and stopped while others are timed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from oclbn.tools.peers.checking import LOOSE, Wanted
from oclbn.tools.peers.registry import Kind

_CHILD = Path(__file__).resolve().parent / "child.py"
_SECONDS = 600.0  # a peer that has not answered by then has failed
_CAN_STOP = hasattr(signal, "SIGSTOP")


class Absent(Exception):  # no error: the reason why a peer is missing from a table
    """The peer has no result; the text says why, and `gone` that it will not have one for any other shape."""

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone


class PeerProcess:
    """One peer in its process. It is started by the first request, and again after it died; close() ends it.

    python: the interpreter that has the peer. threads: for the peer's computation. library: of the OpenCL platform that
    a peer which cannot choose shall see. A peer that waits is stopped where the system can do that: OpenMP's threads
    would otherwise spin for a while in the time of the next one.
    """

    def __init__(self, kind: Kind, outputs: str, *, python: str = sys.executable, library: str | None = None) -> None:
        self.kind, self.outputs, self.python, self.library = kind, outputs, python, library
        self.version = ""
        self._gone = ""  # why it will never be there
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._errors: IO[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request of child.py. Absent: the peer declines, has failed or has died."""
        process = self._process or self._start(int(request.get("threads", 1)))
        line: str | None
        assert process.stdin is not None
        self._signal("SIGCONT")
        try:
            process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=_SECONDS)
        except OSError:  # it does not read any more: it has ended
            line = None
        except queue.Empty:
            self.close()
            raise Absent(f"no answer in {_SECONDS:.0f} s") from None
        if line is None:
            reason = self._last_words()
            self.close()
            raise Absent(reason)
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise Absent(f"{answer['declined']}: pip install {self.kind.install}", gone=True)
        if fault := answer.get("declined") or answer.get("error"):
            raise Absent(fault)
        return answer

    def load(self, **case: Any) -> None:
        """Give the peer a tensor. Absent: it cannot take it."""
        if self._gone:
            raise Absent(self._gone)
        try:
            self.version = self.ask("load", **case)["version"]
        except Absent as absent:
            self._gone = str(absent) if absent.gone else ""
            raise

    def prepare(self, operation: str, wanted: Wanted, folder: Path) -> float:
        """Make an operation ready and check its results, through a file in `folder`; returns the seconds of a call.

        Absent: the peer does not do it, or its results are wrong.
        """
        seconds = float(self.ask("prepare", operation=operation)["seconds"])
        file = folder / "results.npz"
        self.ask("check", operation=operation, channels=wanted.channels, to=str(file))
        with np.load(file) as found:
            if fault := wanted.fault(operation, dict(found), most=LOOSE):
                raise Absent(f"its results are wrong: {fault}")
        return min([seconds, *self.turn(operation)(2, False)])

    def turn(self, operation: str) -> Callable[[int, bool], list[float]]:
        """A function of a number of calls, and whether an untimed one comes before them: seconds of each call."""
        return lambda calls, warm: list(self.ask("time", operation=operation, calls=calls, warm=warm)["seconds"])

    def release(self) -> None:
        """Let go of the tensor. A process whose heap keeps what is freed is ended instead."""
        if self._process is None:
            return
        if self.outputs == "reused" and self.kind.reused:
            self.close()
            return
        with contextlib.suppress(Absent):  # it has ended: so has its memory
            self.ask("unload")

    def close(self) -> None:
        """End the process; the next request would start another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # which a stopped process obeys as well
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
        if self._errors is not None:
            self._errors.close()
            self._errors = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self, threads: int) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed with the process
        self._answers = queue.Queue()
        try:
            self._process = process = subprocess.Popen(
                [self.python, str(_CHILD), str(self.kind.file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self._environment(threads),
                text=True,
                process_group=0 if os.name == "posix" else None,  # Ctrl-C is for the parent, which ends the child
            )
        except OSError as error:
            self.close()
            raise Absent(f"{self.python} does not start: {error.strerror}", gone=True) from error
        threading.Thread(target=_read, args=(process.stdout, self._answers), daemon=True).start()
        return process

    def _environment(self, threads: int) -> dict[str, str]:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        if not _CAN_STOP:
            environment |= {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
        if self.outputs == "reused":
            environment |= self.kind.reused
        if self.kind.one_platform and self.library:
            self._folder = tempfile.TemporaryDirectory(prefix="oclbn-icd-")
            Path(self._folder.name, "only.icd").write_text(self.library + "\n")
            environment |= {"OCL_ICD_VENDORS": self._folder.name}
        return environment

    def _last_words(self) -> str:
        """What a process that died had to say."""
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        text = ""
        if self._errors is not None:
            self._errors.seek(0)
            text = "".join(f": {line}" for line in self._errors.read().strip().splitlines()[-1:])
        return f"its process {how}{text[:200]}"

    def _signal(self, name: str) -> None:
        if _CAN_STOP and self._process is not None:
            self._process.send_signal(getattr(signal, name))


def _read(stream: IO[str], answers: queue.Queue[str | None]) -> None:
    with contextlib.suppress(ValueError):  # the stream was closed meanwhile
        for line in stream:
            answers.put(line)
    answers.put(None)


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
