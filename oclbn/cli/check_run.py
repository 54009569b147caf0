"""The checks of one device, one after the other, with their progress on the standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from oclbn import checklist, device, tuner, tuning
from oclbn.checklist import BuildCheck, Check, NumberCheck, SpeedCheck
from oclbn.childprocess import ChildProcess, Rejected
from oclbn.cli.progress import progress
from oclbn.device import DeviceInfo
from oclbn.plan import Build, Launch
from oclbn.tuner import Choices

TIMEOUT = 180.0  # seconds for one check
MOST_FAULTS = 40  # after so many there is nothing more to be learned
MOST_DEATHS = 6  # of the child, each of which costs seconds
MOST_HANGS = 2  # each costs the whole timeout


@dataclass(frozen=True)
class Outcome:
    """One check: what it measured, or how it failed."""

    check: Check
    told: dict[str, Any]
    fault: str = ""


@dataclass
class Checked:
    """What the checks of one device have found."""

    info: DeviceInfo
    choices: Choices
    planned: int
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def faults(self) -> list[Outcome]:
        """Those that failed."""
        return [outcome for outcome in self.outcomes if outcome.fault]

    @property
    def good(self) -> bool:
        """Whether all checks were made and none failed."""
        return not self.faults and len(self.outcomes) == self.planned

    def of(self, operation: str) -> list[Outcome]:
        """Builds and numbers of one operation."""
        kinds = (BuildCheck, NumberCheck)
        return [o for o in self.outcomes if isinstance(o.check, kinds) and operation in o.check.operations]

    def worst(self, operation: str) -> Outcome | None:
        """The one whose numbers came nearest to their bounds."""
        told = [o for o in self.of(operation) if "units" in o.told]
        return max(told, key=lambda o: float(o.told["units"]), default=None)

    @property
    def most(self) -> dict[Build, dict[str, int]]:
        """Work-items that a group of each kernel may have, by build and kernel, as far as the device told."""
        return {o.check.build: o.told["most"] for o in self.outcomes if isinstance(o.check, BuildCheck) and o.told}

    def room(self, launch: Launch) -> int:
        """Work-items that a group of this launch may have; what it asks for where the device was not asked."""
        return self.most.get(launch.build, {}).get(launch.kernel, launch.lanes)

    def speeds(self, operation: str) -> dict[str, dict[str, float]]:
        """By shape: seconds, bytes per second, times the fastest copy."""
        name = {"train": "forward", "infer": "inference"}.get(operation, operation)
        timed = [o for o in self.outcomes if isinstance(o.check, SpeedCheck) and name in o.told]
        return {"x".join(map(str, o.check.shape)): o.told[name] for o in timed if isinstance(o.check, SpeedCheck)}


def run(info: DeviceInfo, *, quick: bool, timeout: float = TIMEOUT) -> Checked:
    """All checks of one device under the choices in force; simulators are always checked quickly."""
    choices = choices_in_force(info)
    force = tuning.tuning_for(*device.tuning_names(info.device))
    todo = checklist.checks(info.limits, force, quick=quick or info.simulator)
    checked = Checked(info, choices, len(todo))
    start = {"device": info.spec, "choices": choices}
    with ChildProcess("oclbn.checks", start, timeout=timeout) as child, _shown(info) as advance:
        while todo:
            check = todo.pop(0)
            if not isinstance(check, BuildCheck):
                more = checklist.more_builds(info.limits, force, checked.most)
                checked.planned += len(more)
                todo = [*more, check, *todo]
                check = todo.pop(0)
            advance(str(check), checked.planned)
            try:
                told = child.ask("check", **checklist.request(check))
            except Rejected as rejected:
                checked.outcomes.append(Outcome(check, {}, str(rejected)))
                if len(checked.faults) >= MOST_FAULTS or child.deaths >= MOST_DEATHS or child.hangs >= MOST_HANGS:
                    break
            else:
                checked.outcomes.append(Outcome(check, told or {}))
    return checked


def choices_in_force(info: DeviceInfo) -> Choices:
    """As a call on this device would find them, the user's table included."""
    return tuner.choices_of(tuning.tuning_for(*device.tuning_names(info.device)))


@contextlib.contextmanager
def _shown(info: DeviceInfo) -> Iterator[Callable[[str, int], None]]:
    with progress(Console(stderr=True), MofNCompleteColumn, TimeElapsedColumn) as bar:
        task = bar.add_task(info.name)

        def advance(text: str, total: int) -> None:
            bar.update(task, total=total, description=f"{info.spec} {text}", advance=1)

        yield advance
