"""Programs on a terminal of their own, as people see them: what they write, and what they do with keys."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

PATIENCE = 60.0  # seconds without a word
_BEGIN = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # shells want it to be theirs
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A program on a terminal of so many columns; `keys` types, `until` reads. Ends it in the end."""

    def __init__(self, command: Sequence[str], *, columns: int = 80, **environment: str) -> None:
        import fcntl
        import termios

        self._mine, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=kept | {"TERM": "xterm-256color"} | environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.written, self._seen = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._mine)

    def keys(self, text: str) -> None:
        """Type it."""
        os.write(self._mine, text.encode())

    def until(self, wanted: str, patience: float = PATIENCE) -> str:
        """What is written behind what was waited for before, up to and including this."""
        end = time.monotonic() + patience
        while (place := self.written.find(wanted, self._seen)) < 0:
            assert self._read(0.2), f"it ended without {wanted!r}: {self.written[self._seen :]!r}"
            assert time.monotonic() < end, f"{wanted!r} did not come: {self.written[self._seen :]!r}"
        start, self._seen = self._seen, place + len(wanted)
        return self.written[start : self._seen]

    def ended(self) -> tuple[int, str]:
        """The exit status, and all that was written."""
        while self._read(PATIENCE):
            pass
        return self._process.wait(PATIENCE), self.written

    def _read(self, seconds: float) -> bool:
        """Take what is there, or comes within so many seconds; False where the other end is closed."""
        if not select.select([self._mine], [], [], seconds)[0]:
            return self._process.poll() is None
        try:
            part = os.read(self._mine, 1 << 16)
        except OSError:  # as Linux says that nobody has the other end any more
            return False
        self.written += part.decode(errors="replace")
        return bool(part)


def on_terminal(command: Sequence[str], *, columns: int = 80, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit status of a program on a terminal, and all that it writes there."""
    with Terminal(command, columns=columns, **environment) as terminal:
        return terminal.ended()
