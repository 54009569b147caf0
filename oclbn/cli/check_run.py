"""The checks of one device, one after the other, with their progress on the standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import MofNCompleteColumn

from oclbn import device, tuning
from oclbn.cli import output
from oclbn.cli.check_report import in_progress
from oclbn.cli.progress import Elapsed, progress
from oclbn.device import DeviceInfo
from oclbn.tools.check import checklist
from oclbn.tools.check.checklist import BuildCheck
from oclbn.tools.check.outcomes import Checked, Outcome
from oclbn.tools.child import ChildProcess, Rejected
from oclbn.tools.tune import search
from oclbn.tools.tune.search import Choices

TIMEOUT = 180.0  # seconds for one check
MOST_FAULTS = 40  # after so many there is nothing more to be learned
MOST_DEATHS = 6  # of the child, each of which costs seconds
MOST_HANGS = 2  # each costs the whole timeout


def run(info: DeviceInfo, *, quick: bool, timeout: float = TIMEOUT, most_faults: int = MOST_FAULTS) -> Checked:
    """All checks of one device under the choices in force; simulators are always checked quickly.

    most_faults: after so many it is given up.
    """
    choices = choices_in_force(info)
    force = tuning.tuning_for(*device.tuning_names(info.device))
    todo = checklist.checks(info.limits, force, quick=quick or info.simulator)
    checked = Checked(info, choices, len(todo))
    start = {"device": info.spec, "choices": choices}
    with ChildProcess("oclbn.tools.check.checks", start, timeout=timeout) as child, _shown(info) as advance:
        while todo:
            check = todo.pop(0)
            if not isinstance(check, BuildCheck):
                more = checklist.more_builds(info.limits, force, checked.most)
                checked.planned += len(more)
                todo = [*more, check, *todo]
                check = todo.pop(0)
            advance(in_progress(check), checked.planned)
            try:
                told = child.ask("check", **checklist.request(check))
            except Rejected as rejected:
                checked.outcomes.append(Outcome(check, {}, str(rejected)))
                if len(checked.faults) >= most_faults or child.deaths >= MOST_DEATHS or child.hangs >= MOST_HANGS:
                    break
            else:
                checked.outcomes.append(Outcome(check, told or {}))
    return checked


def choices_in_force(info: DeviceInfo) -> Choices:
    """As a call on this device would find them, the user's table included."""
    return search.choices_of(tuning.tuning_for(*device.tuning_names(info.device)))


@contextlib.contextmanager
def _shown(info: DeviceInfo) -> Iterator[Callable[[str, int], None]]:
    with progress(output.errors(), MofNCompleteColumn, Elapsed) as bar:
        task = bar.add_task(info.name)

        def advance(text: str, total: int) -> None:
            bar.update(task, total=total, description=f"{info.spec} {text}", advance=1)

        yield advance
