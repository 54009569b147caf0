"""How far a result is from the reference, in units in the last place at the reference's scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]

BOUNDS = {  # units in the last place of the element type
    "y": 8.0,
    "save_mean": 8.0,
    "save_invstd": 8.0,
    "running_mean": 16.0,  # a rounding in every update, and an update forgets a tenth of what came before
    "running_var": 16.0,
    "evaluated": 8.0,
    "normalised": 8.0,
    "dx": 16.0,
    "dscale": 16.0,
    "dbias": 16.0,
}


@dataclass
class Checks:
    """The largest error seen in each result."""

    dtype: np.dtype[Any]
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, got: NDArray[Any], wanted: Float64s, scale: Float64s | float) -> None:
        """Take in one result; scale broadcasts against it (see channel_scale)."""
        error = ulps(got.reshape(wanted.shape), wanted, scale, self.dtype)
        self.worst[name] = max(error, self.worst.get(name, 0.0))

    def passed(self, name: str) -> bool:
        return self.worst[name] <= BOUNDS[name]

    @property
    def failed(self) -> list[str]:
        return [name for name in self.worst if not self.passed(name)]


def ulps(got: NDArray[Any], wanted: Float64s, scale: Float64s | float, dtype: np.dtype[Any]) -> float:
    """Largest |got - wanted| in units in the last place that dtype has at `scale`.

    Infinite when the two are not finite in the same places: NaN has to come out where NaN is due, and nowhere else.
    """
    finite = np.isfinite(wanted)
    if not np.array_equal(np.isfinite(got), finite):
        return math.inf
    if not finite.any():
        return 0.0
    with np.errstate(all="ignore"):
        unit = np.spacing(np.broadcast_to(scale, wanted.shape)[finite].astype(dtype)).astype(np.float64)
        return float(np.max(np.abs(got[finite] - wanted[finite]) / unit))


def channel_scale(wanted: Float64s, axis: int, least: Float64s) -> Float64s:
    """Largest finite magnitude in each channel, at least `least` (C,): shaped to broadcast against `wanted`.

    A channel is measured by itself, so that a wide one cannot hide errors in a narrow one.
    """
    others = tuple(a for a in range(wanted.ndim) if a != axis)
    largest = np.max(np.abs(np.where(np.isfinite(wanted), wanted, 0.0)), axis=others, keepdims=True)
    scale: Float64s = np.maximum(largest, np.where(np.isfinite(least), least, 0.0).reshape(largest.shape))
    return scale
