"""What the checks of a device have found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oclbn.device import DeviceInfo
from oclbn.plan.words import Build, Launch
from oclbn.tools.check.checklist import BuildCheck, Check, NumberCheck, SpeedCheck
from oclbn.tools.tune.search import Choices


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
