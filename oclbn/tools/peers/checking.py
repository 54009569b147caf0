"""Are results right? Against the float64 reference, on as many channels as are quick to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.activations import NONE, Activation
from oclbn.elements import NUMBERS, numbers_of
from oclbn.tools.peers import contract
from oclbn.truth.cases import judge
from oclbn.truth.expectation import Expected, expected
from oclbn.truth.hostile import Data

_MOST_VALUES = 1 << 21  # of the tensor, computed in float64
LOOSE = 1000.0  # of our own bounds: whether a peer is right or wrong, not how exact


def some_channels(shape: tuple[int, ...], axis: int) -> list[int]:
    """Channels spread over all of them: all, if the tensor is small, and at least one."""
    channels = shape[axis]
    per_channel = int(np.prod(shape, dtype=np.int64)) // channels
    count = min(channels, max(1, _MOST_VALUES // per_channel))
    return sorted({int(channel) for channel in np.linspace(0, channels - 1, count)})


@dataclass(frozen=True)
class Wanted:
    """What some channels of a case should give."""

    channels: list[int]
    results: dict[str, Expected]  # by operation
    loose: dict[str, Expected]  # the same where an activation's kink may be missed by LOOSE times as much

    def fault(self, operation: str, found: Mapping[str, NDArray[Any]], *, most: float = 1.0) -> str | None:
        """What is wrong with results of these channels, in a few words; None if they are right.

        most: how many times its bound a result may err by.
        """
        worst = judge(found, (self.results if most <= 1.0 else self.loose)[operation])
        return None if worst.units <= most else str(worst)


def wanted(
    values: contract.Floats,
    shape: tuple[int, ...],
    axis: int,
    dtype: np.dtype[Any] = NUMBERS[0],
    activation: Activation = NONE,
    *,
    residual: bool = False,
) -> Wanted:
    """Of the tensor of this type that is tiled with a block of values (oclbn.tools.peers.contract)."""
    channels = some_channels(shape, axis)
    given = contract.parameters(values, shape[axis])
    x, dy, added = (
        np.take(contract.tensor(values, shape, name), channels, axis=axis).astype(dtype)
        for name in ("x", "dy", "residual")
    )
    numbers = (given[name][channels].astype(numbers_of(dtype)) for name in ("scale", "bias", "mean", "var"))
    scale, bias, mean, var = numbers
    host = Data(x, dy, scale, bias, mean, var, activation=activation, residual=added if residual else None, second=True)
    return Wanted(channels, _results(host, axis), _results(replace(host, loose=LOOSE), axis))


def _results(host: Data, axis: int) -> dict[str, Expected]:
    train, backward = expected("train", host, axis), expected("backward", host, axis)
    inference = expected("infer", host, axis)
    return {"forward": train, "backward": backward, "inference": inference, "both": {**train, **backward}}
