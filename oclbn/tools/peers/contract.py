"""What a peer is given and what it has to offer. Runs in the peer's process: standard library and NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
OPERATIONS = ("forward", "backward", "inference", "both")
_BLOCK = 1_048_573  # prime, so that repetitions of the block meet no channel at the same place


class Declined(Exception):
    """The peer does not do this; the text says why."""


@dataclass(frozen=True)
class Case:
    """One tensor to be normalised, and how."""

    x: Floats
    dy: Floats
    scale: Floats  # (C,), as the three below
    bias: Floats
    mean: Floats
    var: Floats
    axis: int
    epsilon: float
    factor: float
    threads: int
    outputs: str  # "preallocated": the same memory for every result; "fresh": new memory for each
    dtype: str  # "float32"; or another type, which a peer makes of x and dy itself if it is among its types
    activation: str  # "none", or that of y = f(bn(x) + residual)
    residual: Floats | None
    device: dict[str, Any]  # platform, version, device (names) and index of the OpenCL device

    @property
    def axes(self) -> tuple[int, ...]:
        """Those that a channel's values lie on."""
        return tuple(axis for axis in range(self.x.ndim) if axis != self.axis)

    @property
    def count(self) -> int:
        """Values per channel."""
        return int(self.x.size // self.x.shape[self.axis])

    def column(self, values: Floats) -> Floats:
        """A per-channel array in a shape that broadcasts against x."""
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(self.x.ndim)])


class Peer(Protocol):
    """Made once for each case; every *_peer.py has a class of this name and shape.

    `types`, if it is there, are the element types that it knows; without it, float32 is. `fuses`: whether it knows
    activations and residuals; without it, it does not.
    """

    version: str

    def __init__(self, case: Case) -> None: ...

    def call(self, operation: str) -> Callable[[], Any]:
        """What is timed: returns when its results are there. Declined: the peer does not do this operation."""

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        """y, dx, dresidual (channels on the axis), dscale, dbias, running_mean, running_var: those that there are."""


def block(size: int) -> Floats:
    """Random numbers, N(0, 1), that a tensor of `size` elements is tiled with: large ones are made quickly."""
    return np.random.default_rng(0).standard_normal(min(size, _BLOCK), dtype=np.float32)


def tensor(values: Floats, shape: tuple[int, ...], name: str) -> Floats:
    """The tensor x, dy or residual of a case, from its block."""
    blocks = {"x": values + np.float32(0.5), "dy": values[::-1], "residual": np.roll(values, values.size // 3)}
    return np.resize(blocks[name], shape)


def parameters(values: Floats, channels: int) -> dict[str, Floats]:
    """scale, bias, mean and var of a case, from its block."""
    some = np.resize(values, channels)
    return {"scale": 1 + some / 8, "bias": some[::-1] / 4, "mean": some / 2, "var": 1 + some * some}
