"""The child process in which choices are tried (oclbn.trials), seen from outside.

It lives as long as it answers, so that imports and compiled kernels serve many candidates. Where a driver aborts, or
does not come back, the candidate is rejected and the next one gets a new child.
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
from collections.abc import Sequence
from typing import IO, Any

from .errors import DeviceError
from .tuner import Choices, Verdict
from .usertable import VARIABLE

COMMAND = (sys.executable, "-P", "-m", "oclbn.trials")
TIMEOUT = 180.0  # seconds for one answer: some drivers compile for a minute
_TAIL = 4000  # bytes of what the child printed that are looked at


class Rejected(Exception):
    """The child gave no result: a wrong number, a refused build, an abort, a hang; the message says which."""


class TrialProcess:
    """Asks a child, which is started when it is needed and again after it has died.

    start: the first request that each child gets, which names the device and what is timed.
    """

    def __init__(self, start: dict[str, Any], *, command: Sequence[str] = COMMAND, timeout: float = TIMEOUT) -> None:
        self._start, self._command, self._timeout = start, command, timeout
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        """Compare two sets of choices: oclbn.tuner's judge."""
        try:
            done = self._ask("duel", incumbent=incumbent, candidate=candidate, thorough=thorough)
        except Rejected as rejected:
            return Verdict(rejected=str(rejected))
        return Verdict(gain=done["gain"], timed=done["timed"])

    def check(self, choices: Choices) -> None:
        """DeviceError where these choices do not give the reference's numbers."""
        try:
            self._ask("check", choices=choices)
        except Rejected as rejected:
            raise DeviceError(f"the choices in force do not work on this device: {rejected}") from rejected

    def report(self, before: Choices, after: Choices) -> list[dict[str, Any]]:
        """oclbn.trials.Trials.report's rows; DeviceError where the device fails under choices that had worked."""
        try:
            rows: list[dict[str, Any]] = self._ask("report", before=before, after=after)
        except Rejected as rejected:
            raise DeviceError(f"the device failed at the last timing: {rejected}") from rejected
        return rows

    def close(self) -> None:
        """End the child, if there is one."""
        self._end()
        self._printed.close()

    def _ask(self, action: str, **given: Any) -> Any:
        if self._child is None:
            self._begin()
            try:
                self._exchange(self._start)
            except Rejected:
                self._end()
                raise
        return self._exchange({"do": action, "with": given})

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
            env=os.environ | {"PYTHONPATH": path, VARIABLE: ""},  # all choices are told, none come from a table
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
            raise Rejected(f"the driver hung: no answer within {self._timeout:g} s") from None
        except BaseException:
            self._end()  # an answer that nobody waits for must not be taken for the next one
            raise
        if not line:
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
