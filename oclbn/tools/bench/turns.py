"""Who is timed, and when: a turn for everyone in each round, in shuffled order."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from oclbn.tools.child import Rejected

BASELINE = "float32"  # who oclbn is on elements of that type, beside itself on those of another one in the same run
UNFUSED = "plain"  # the same of oclbn without what is fused
_SECONDS = 0.25  # aimed at per operation, where the number of rounds is left open
_TURN = 0.01  # seconds of a turn: short calls are timed several times in it
_MOST_CALLS = 10  # in a turn
_LEAST_ROUNDS, _MOST_ROUNDS = 7, 20
_PATIENCE = 3.0  # seconds for a peer that is slow, where the number of rounds is left open
_SLOW = 0.5  # seconds of a call that is not preceded by an untimed one


@dataclass
class Entry:
    """One that is timed: an operation by somebody."""

    who: str
    operation: str
    turn: Callable[[int, bool], list[float]]  # number of timed calls, with an untimed one before them -> seconds
    once: float  # seconds of a call, about
    plan: str = ""
    samples: list[float] = field(default_factory=list)

    @property
    def own(self) -> bool:
        """In this process: oclbn's operations and the copies."""
        return self.who in ("oclbn", "copy", BASELINE, UNFUSED)


def interleave(
    entries: list[Entry], rounds: int | None, advance: Callable[[float], None] = lambda part: None
) -> dict[str, str]:
    """Fill the samples of all entries, at least three each.

    rounds: turns of each; None: as oclbn's own take about a quarter of a second each, and less for peers that are slow.
    advance: called after each turn with the part that is done, up to 1.
    Peers that fail on the way are taken out of `entries`, all their operations: returns the reason of each.
    """
    calls = {id(entry): _calls(entry.once) for entry in entries}
    mean = statistics.fmean(entry.once for entry in entries if entry.own)
    most = rounds or max(_LEAST_ROUNDS, min(_MOST_ROUNDS, math.ceil(_SECONDS / (mean * _calls(mean)))))
    failed: dict[str, str] = {}
    shuffled, order = list(entries), random.Random(0)
    for number in range(most):
        order.shuffle(shuffled)
        for place, entry in enumerate(shuffled, start=1):
            advance((number + place / len(shuffled)) / most)
            tired = rounds is None and not entry.own and number >= 3 and number * entry.once > _PATIENCE
            if tired or entry.who in failed:
                continue
            try:
                entry.samples += entry.turn(calls[id(entry)], entry.once < _SLOW)
            except Rejected as rejected:
                failed[entry.who] = str(rejected)
    entries[:] = [entry for entry in entries if entry.who not in failed]
    return failed


def _calls(once: float) -> int:
    return max(1, min(_MOST_CALLS, int(_TURN / once)))
