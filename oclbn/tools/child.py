"""A child process that is asked one thing at a time, where a driver that aborts or hangs takes nothing else with it.

It lives as long as it answers, so that imports and compiled kernels serve many questions; after its death the next
question starts another one. Questions and answers are JSON, one a line; `requests` is the child's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Self

from oclbn.tuning.usertable import VARIABLE

TIMEOUT = 180.0  # seconds for one answer: some drivers compile for a minute
_TAIL = 4000  # bytes of what the child printed that are looked at
_LINE = 200  # characters of a line of it


class Rejected(Exception):
    """The child gave no result: a wrong number, a refused build, an abort, a hang; the message says which.

    gone: it will not have one for another question either.
    """

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone


class ChildProcess:
    """Asks a child that runs `module`, which is started when it is needed and again after it has died.

    start: what each child is asked first. command: to be run instead of `module`.
    """

    _culprit = "the driver"  # of aborts and hangs

    def __init__(
        self,
        module: str,
        start: dict[str, Any] | None = None,
        *,
        command: Sequence[str] = (),
        timeout: float = TIMEOUT,
    ) -> None:
        self._start, self._timeout = start, timeout
        self._command = command or (sys.executable, "-P", "-m", module)
        self.deaths = 0  # of children that aborted, ended, or hung and were ended
        self.hangs = 0
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._printed: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, action: str, **given: Any) -> Any:
        """The child's answer; Rejected where there is none."""
        if self._child is None:
            self._begin()
            try:
                if self._start is not None:
                    self._exchange(self._start)
            except Rejected:
                self.close()
                raise
        return self._exchange({"do": action, "with": given})

    def close(self) -> None:
        """End the child, if there is one; the next question would start another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()  # which a stopped process obeys as well
            child.wait()
            for stream in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):  # what it was not told it need not know
                    assert stream is not None
                    stream.close()
        if self._printed is not None:
            self._printed.close()
            self._printed = None

    def _environment(self) -> Mapping[str, str]:
        """What the child's environment has beyond ours, or instead."""
        path = os.pathsep.join(filter(None, sys.path))  # the oclbn that asks is the one that is tried
        return {"PYTHONPATH": path, VARIABLE: ""}  # choices are told, none come from a table

    def _begin(self) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._answers = queue.Queue()
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env=os.environ | self._environment(),
                encoding="utf-8",
                process_group=0 if os.name == "posix" else None,  # Ctrl-C is for the one who asks
            )
        except OSError as error:
            self.close()
            raise Rejected(f"{self._command[0]} does not start: {error.strerror}", gone=True) from error
        threading.Thread(target=_listen, args=(self._child.stdout, self._answers), daemon=True).start()

    def _exchange(self, request: dict[str, Any]) -> Any:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            print(json.dumps(request), file=self._child.stdin, flush=True)
            line = self._answers.get(timeout=self._timeout)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self.close()
            self.deaths += 1
            self.hangs += 1
            raise Rejected(f"{self._culprit} hung: no answer within {self._timeout:g} s") from None
        except BaseException:
            self.close()  # an answer that nobody waits for must not be taken for the next one
            raise
        if not line:
            self.deaths += 1
            raise Rejected(self._epitaph())
        answer = json.loads(line)
        if "rejected" in answer:
            raise Rejected(answer["rejected"], gone=answer.get("gone", False))
        return answer["done"]

    def _epitaph(self) -> str:
        """What a child died of, and the last thing it said."""
        assert self._child is not None
        assert self._printed is not None
        status = self._child.wait()
        if status < 0:
            what = f"{self._culprit} aborted (signal {-status}, {signal.Signals(-status).name})"
        else:
            what = f"the process ended with status {status}"
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - _TAIL))
        said = self._printed.read().decode(errors="replace").split("\n")
        self.close()
        telling = [line.strip()[:_LINE] for line in said if line.strip()]
        errors = [line for line in telling if "error" in line.lower()]
        last = (errors or telling)[-1:]
        return ": ".join([what, *last])


def _listen(stream: IO[str] | None, answers: queue.Queue[str]) -> None:
    """Pass on every line; an empty one says that the child is gone."""
    assert stream is not None
    with contextlib.suppress(ValueError):  # closed while it was read
        for line in stream:
            answers.put(line)
    answers.put("")


def requests() -> Iterator[tuple[dict[str, Any], Callable[[dict[str, Any]], None]]]:
    """In the child: each request until the input ends, and the function that answers it.

    Whatever a driver prints goes to the standard error, so that the answers stand alone.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        yield json.loads(line), lambda answer: print(json.dumps(answer), file=answers, flush=True)
