"""Are results right? Against the float64 reference, on as many channels as are quick to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.tools.peers.contract import Floats
from oclbn.truth import reference

_MOST_VALUES = 1 << 21  # of the tensor, computed in float64
_TOLERANCE = 1e-3  # relative to the largest value: right or wrong, not how exact


def some_channels(shape: tuple[int, ...], axis: int) -> list[int]:
    """Channels spread over all of them: all, if the tensor is small, and at least one."""
    channels = shape[axis]
    per_channel = int(np.prod(shape, dtype=np.int64)) // channels
    count = min(channels, max(1, _MOST_VALUES // per_channel))
    return sorted({int(channel) for channel in np.linspace(0, channels - 1, count)})


@dataclass(frozen=True)
class Wanted:
    """The float64 reference's results for some channels of a case."""

    channels: list[int]
    results: dict[str, dict[str, NDArray[np.float64]]]  # by operation, then by name
    sums: float  # what the sums over a channel are at least compared with

    def fault(self, operation: str, found: Mapping[str, NDArray[Any]]) -> str | None:
        """What is wrong with results of these channels, in a few words; None if they are right."""
        wanted = self.results[operation]
        if not found:
            return "no results to check"
        for name, array in found.items():
            expected = wanted[name]
            if array.size != expected.size:
                return f"{name} has shape {array.shape} instead of {expected.shape}"
            scale = max(float(np.abs(expected).max()), self.sums if name in ("dscale", "dbias") else 0.0, 1e-30)
            error = float(np.abs(array.reshape(expected.shape) - expected).max()) / scale
            if not error <= _TOLERANCE:  # not a number is wrong as well
                return f"{name} is wrong: off by {error:.1e} of the largest value"
        return None


def wanted(
    x: Floats,
    dy: Floats,
    parameters: Mapping[str, Floats],
    channels: list[int],
    axis: int,
    epsilon: float,
    factor: float,
) -> Wanted:
    """x, dy: these channels only; parameters: scale, bias, mean and var of all."""
    scale, bias, mean, var = (parameters[name][channels] for name in ("scale", "bias", "mean", "var"))
    train = reference.train(x, scale, bias, mean, var, epsilon=epsilon, factor=factor, axis=axis)
    dx, dscale, dbias = reference.backward(x, dy, scale, train.mean, train.invstd, axis=axis)
    infer = reference.infer(x, scale, bias, mean, var, epsilon=epsilon, axis=axis)
    assert train.running_mean is not None
    assert train.running_var is not None
    running = {"running_mean": train.running_mean, "running_var": train.running_var}
    gradients = {"dx": dx, "dscale": dscale, "dbias": dbias}
    results = {
        "forward": {"y": train.y, **running},
        "backward": gradients,
        "inference": {"y": infer},
        "both": {"y": train.y, **running, **gradients},
    }
    return Wanted(channels, results, float(np.sqrt(x.size / len(channels))))
