"""Assertions on results: the bounds are oclbn.truth.bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from oclbn.truth.bounds import excess


def assert_within(actual: Any, expected: ArrayLike, bound: ArrayLike, what: str) -> None:
    """Each element within its bound; NaN where NaN is expected and nowhere else."""
    host = np.asarray(actual.get() if hasattr(actual, "get") else actual)
    wanted = np.asarray(expected, dtype=np.float64)
    assert host.size == wanted.size, f"{what} has shape {host.shape}; expected {wanted.shape}"
    units = excess(host, wanted, bound)
    if np.all(units <= 1.0):
        return
    at = np.unravel_index(int(np.argmax(units)), wanted.shape)
    raise AssertionError(
        f"{what}: {int((units > 1.0).sum())} of {units.size} off; worst at {tuple(map(int, at))}: "
        f"{host.reshape(wanted.shape)[at]!r}, reference {wanted[at]!r}, {units[at]:.3g} times its bound"
    )
