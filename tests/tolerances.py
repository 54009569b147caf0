"""Assertions on results: the bounds are oclbn.truth.bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from oclbn.truth.cases import judge


def assert_within(actual: Any, expected: ArrayLike, bound: ArrayLike, what: str) -> None:
    """Each element within its bound; NaN where NaN is expected and nowhere else."""
    host = np.asarray(actual.get() if hasattr(actual, "get") else actual)
    worst = judge({what: host}, {what: (np.asarray(expected, dtype=np.float64), np.asarray(bound))})
    assert worst.good, str(worst)
