"""PURE: how much a batch weighs in the running statistics."""

from __future__ import annotations

import math

from oclbn.errors import ModuleParameterError

# How many batches statistics of unknown age count for where all batches weigh the same (minFactor 0).
_UNKNOWN_AGE = 1000


def averaging_factor(n: int, initFactor: float, minFactor: float) -> float:
    """Weight of batch n (counted from 1) in the running statistics: max(initFactor / n, minFactor)."""
    if n < 1:
        raise ModuleParameterError(f"n is {n}; 1 or more is wanted (numOfProps counts the batches before it)")
    return max(initFactor / n, minFactor)


def settled_count(initFactor: float, minFactor: float) -> int:
    """The numOfProps of loaded statistics whose file does not tell it: the next batch must not wipe them.

    ceil(initFactor / minFactor): every later batch has the factor minFactor. With minFactor 0 the factor never
    settles; the statistics then count for 1000 batches, until the caller sets numOfProps.
    """
    if minFactor == 0.0:
        return _UNKNOWN_AGE
    return math.ceil(min(initFactor / minFactor, 2**53))
