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
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Self

from oclbn.tuning.usertable import VARIABLE

TIMEOUT = 180.0  # seconds for one answer: some drivers compile for a minute
_TAIL = 4000  # bytes of what the child printed that are looked at


class Rejected(Exception):
    """The child gave no result: a wrong number, a refused build, an abort, a hang; the message says which."""


class ChildProcess:
    """Asks a child that runs `module`, which is started when it is needed and again after it has died.

    start: what each child is asked first. command: to be run instead of `module`.
    """

    def __init__(
        self, module: str, start: dict[str, Any], *, command: Sequence[str] = (), timeout: float = TIMEOUT
    ) -> None:
        self._start, self._timeout = start, timeout
        self._command = command or (sys.executable, "-P", "-m", module)
        self.deaths = 0  # of children that aborted, ended, or hung and were ended
        self.hangs = 0
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, action: str, **given: Any) -> Any:
        """The child's answer; Rejected where there is none."""
        if self._child is None:
            self._begin()
            try:
                self._exchange(self._start)
            except Rejected:
                self._end()
                raise
        return self._exchange({"do": action, "with": given})

    def close(self) -> None:
        """End the child, if there is one."""
        self._end()
        self._printed.close()

    def _begin(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))  # the oclbn that asks is the one that is tried
        self._printed.seek(0)
        self._printed.truncate()
        self._answers = queue.Queue()
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env=os.environ | {"PYTHONPATH": path, VARIABLE: ""},  # choices are told, none come from a table
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the one who asks
        )
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
            self._end()
            self.deaths += 1
            self.hangs += 1
            raise Rejected(f"the driver hung: no answer within {self._timeout:g} s") from None
        except BaseException:
            self._end()  # an answer that nobody waits for must not be taken for the next one
            raise
        if not line:
            self.deaths += 1
            raise Rejected(self._epitaph())
        answer = json.loads(line)
        if "rejected" in answer:
            raise Rejected(answer["rejected"])
        return answer["done"]

    def _epitaph(self) -> str:
        """What a child died of, and the last thing it said."""
        assert self._child is not None
        status = self._child.wait()
        self._end()
        if status < 0:
            what = f"the driver aborted (signal {-status}, {signal.Signals(-status).name})"
        else:
            what = f"the process ended with status {status}"
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - _TAIL))
        said = self._printed.read().decode(errors="replace").split("\n")
        telling = [line.strip() for line in said if line.strip()]
        errors = [line for line in telling if "error" in line.lower()]
        last = (errors or telling)[-1:]
        return ": ".join([what, *last])

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(BrokenPipeError):  # what it was not told it need not know
                assert stream is not None
                stream.close()


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
