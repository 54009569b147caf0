"""Whether a layer's numbers are what training leaves: NaN, variances of 0 or below, statistics that hardly moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from oclbn.files.layers import Host, Layer, as_float64

FACTOR = 0.1  # weight of a new batch where the file does not say: PyTorch's
_STARTING = 0.01  # of the running statistics, that what they began with may still weigh
_SHOWN = 3  # channels


@dataclass(frozen=True)
class Finding:
    """What is noteworthy about a layer. fault: with it the layer's output is not finite, or is no normalization."""

    layer: str
    text: str
    fault: bool = False


def findings(layer: Layer, *, factor: float | None = None) -> list[Finding]:
    """All that is noteworthy about a layer's arrays and counter, faults first.

    factor: the weight of a new batch where the file does not say; None: 0.1.
    """
    found = [Finding(layer.name, text, fault=True) for text in _faults(layer)]
    return found + [Finding(layer.name, text) for text in _remarks(layer, factor or layer.factor or FACTOR)]


def _faults(layer: Layer) -> Iterator[str]:
    for name, array in layer.arrays.items():
        wide = as_float64(array)
        if (bad := ~np.isfinite(wide)).any():
            yield f"{name} is not finite in {_channels(bad)}"
    if layer.var is not None:
        var = as_float64(layer.var)
        if (below := var < 0).any():
            yield f"var is below 0 in {_channels(below)}, least {np.nanmin(var):.3g}"
        if layer.epsilon == 0 and (zero := var == 0).any():
            yield f"var and epsilon are 0 in {_channels(zero)}"


def _remarks(layer: Layer, factor: float) -> Iterator[str]:
    if layer.mean is None or layer.var is None:
        yield "it has no running statistics"
    else:
        yield from _statistics(layer, layer.mean, layer.var, factor)
    if layer.scale is not None and (dead := layer.scale == 0).any():
        yield f"scale is 0 in {_channels(dead)}: the output there is the bias"


def _statistics(layer: Layer, mean: Host, var: Host, factor: float) -> Iterator[str]:
    initial = bool((mean == 0).all() and (var == 1).all())
    if initial:
        yield "never trained: mean 0 and variance 1 in every channel"
    elif layer.batches == 0:
        yield "its counter says 0 batches, and its statistics have moved"
    elif layer.batches is not None and not layer.cumulative:
        left = (1 - factor) ** layer.batches
        if left > _STARTING:
            batches = "1 batch" if layer.batches == 1 else f"{layer.batches} batches"
            yield f"after {batches} what the statistics began with still weighs {left:.0%}"
    if (zero := var == 0).any() and layer.epsilon != 0:
        yield f"var is 0 in {_channels(zero)}: the input there was constant, or has underflowed"
    if not initial and var.size > 1 and (var == var[0]).all() and (mean == mean[0]).all():
        yield "all channels have the same statistics"


def _channels(which: Host) -> str:
    """The channels that a mask names, as "3 of 64 channels (0, 5, 7)"."""
    found = np.flatnonzero(which)
    shown = ", ".join(map(str, found[:_SHOWN])) + (", ..." if found.size > _SHOWN else "")
    return f"{found.size} of {which.size} channels ({shown})" if which.size > 1 else "its channel"
