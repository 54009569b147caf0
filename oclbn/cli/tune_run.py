"""The search on one device, with its progress on the standard error."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress, TaskID, TextColumn

from oclbn.cli import output
from oclbn.cli.progress import Elapsed, progress
from oclbn.device import DeviceInfo, check_size
from oclbn.errors import DeviceError
from oclbn.tools.tune import search
from oclbn.tools.tune.calls import GUARD
from oclbn.tools.tune.process import TrialProcess
from oclbn.tools.tune.search import Choices, Found, Tried, Value

TIMING_SECONDS = 0.05  # for one operation on one shape

Shapes = list[tuple[tuple[int, ...], int]]


@dataclass
class Tuned:
    """What the search on one device has found, and what the last timing, of before and after, says of it."""

    info: DeviceInfo
    before: Choices
    found: Found
    tried: list[Tried] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(
        default_factory=list
    )  # oclbn.tools.tune.trials.Trials.report's; none if interrupted

    @property
    def gain(self) -> float:
        """Times as fast as before: the geometric mean over shapes and operations."""
        if not self.rows:
            return self.found.gain
        return statistics.geometric_mean(row["before"] / row["after"] for row in self.rows)

    @property
    def worthwhile(self) -> bool:
        """Whether something was found that the last timing confirms."""
        return self.found.choices != self.before and self.gain >= search.MARGIN


def run(info: DeviceInfo, before: Choices, shapes: Shapes, seconds: float, *, keep: bool) -> Tuned:
    """Search for so many seconds at most, then time before and after side by side.

    keep: when interrupted, return what has been found until then instead of passing KeyboardInterrupt on. Raises
    DeviceError where the device fails under the choices in force, and for simulators; SizeError for a shape that the
    device cannot hold.
    """
    if info.simulator:
        raise DeviceError(f"{info.name} is a simulator: how long it takes says nothing of any device")
    for shape, _ in shapes:
        check_size("x".join(map(str, shape)), 4 * (math.prod(shape) + GUARD), info.device)
    tuned = Tuned(info, before, Found(before))
    start = {"device": info.spec, "cases": shapes, "seconds": TIMING_SECONDS}
    with TrialProcess(start) as trials, _shown(tuned) as shown:
        try:
            shown.say("checking the choices in force")
            trials.check(before)
            end = time.monotonic() + seconds
            search.search(
                tuned.found,
                shown.moves,
                trials,
                enough=lambda: time.monotonic() > end,
                starting=shown.starting,
                report=shown.report,
            )
            shown.say("timing before and after")
            tuned.rows = trials.report(before, tuned.found.choices)
        except KeyboardInterrupt:
            if not keep:
                raise
    return tuned


class _Shown:
    """The bar: how far the pass over all candidates is, and what it has brought."""

    def __init__(self, tuned: Tuned, bar: Progress, task: TaskID) -> None:
        self.tuned, self.moves = tuned, search.candidates(tuned.info.kind)
        self._bar, self._task = bar, task
        self._begun = (0, 0)  # the pass, and its candidates
        bar.update(task, total=len(self.moves))

    def say(self, text: str) -> None:
        best = f"{100 * (self.tuned.found.gain - 1):.1f} % faster so far"
        self._bar.update(self._task, description=text, best=best)

    def starting(self, name: str, value: Value) -> None:
        number, begun = self._begun
        self._begun = (number, begun + 1) if number == self.tuned.found.passes else (self.tuned.found.passes, 1)
        self._bar.update(self._task, completed=self._begun[1])
        self.say(f"pass {self.tuned.found.passes + 1}: {name} = {value}")

    def report(self, tried: Tried) -> None:
        self.tuned.tried.append(tried)


@contextlib.contextmanager
def _shown(tuned: Tuned) -> Iterator[_Shown]:
    best = functools.partial(TextColumn, "{task.fields[best]}")
    with progress(output.errors(), best, Elapsed) as bar:
        yield _Shown(tuned, bar, bar.add_task(tuned.info.name, best=""))
