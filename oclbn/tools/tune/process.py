"""The child process in which choices are tried (oclbn.tools.tune.trials), seen from outside.

Where a driver aborts, or does not come back, the candidate is rejected and the next one gets a new child.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oclbn.errors import DeviceError
from oclbn.tools.child import TIMEOUT, ChildProcess, Rejected
from oclbn.tools.tune.search import Choices, Verdict


class TrialProcess(ChildProcess):
    """The child, as oclbn.tools.tune.search's judge. start: names the device and what is timed."""

    def __init__(self, start: dict[str, Any], *, command: Sequence[str] = (), timeout: float = TIMEOUT) -> None:
        super().__init__("oclbn.tools.tune.trials", start, command=command, timeout=timeout)

    def __call__(self, incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        """Compare two sets of choices: oclbn.tools.tune.search's judge."""
        try:
            done = self.ask("duel", incumbent=incumbent, candidate=candidate, thorough=thorough)
        except Rejected as rejected:
            return Verdict(rejected=str(rejected))
        return Verdict(gain=done["gain"], timed=done["timed"])

    def check(self, choices: Choices) -> None:
        """DeviceError where these choices do not give the reference's numbers."""
        try:
            self.ask("check", choices=choices)
        except Rejected as rejected:
            raise DeviceError(f"the choices in force do not work on this device: {rejected}") from rejected

    def report(self, before: Choices, after: Choices) -> list[dict[str, Any]]:
        """The rows of Trials.report; DeviceError where the device fails under choices that had worked."""
        try:
            rows: list[dict[str, Any]] = self.ask("report", before=before, after=after)
        except Rejected as rejected:
            raise DeviceError(f"the device failed at the last timing: {rejected}") from rejected
        return rows
