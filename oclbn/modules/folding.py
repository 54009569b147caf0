"""A batch normalization by running statistics as y = a x + b, folded into the layer before it; NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.call import values
from oclbn.elements import WANTED, kind
from oclbn.errors import ModuleDtypeError, ModuleParameterError, ModuleShapeError

__all__ = ["coefficients", "fold_into"]

Host = NDArray[Any]


def coefficients(
    scale: Host, bias: Host, mean: Host, var: Host, epsilon: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(a, b) with y = a x + b per channel, in float64: a = scale / sqrt(var + epsilon), b = bias - mean a.

    scale, bias, mean, var: C values each. Where var + epsilon is 0, a is 0, as the kernels have it.
    """
    wide = [np.asarray(one, np.float64) for one in (scale, bias, mean, var)]
    with np.errstate(all="ignore"):
        root = np.sqrt(wide[3] + epsilon)
        a = np.where(root == 0.0, 0.0, wide[0] / root)
        return a, wide[1] - wide[2] * a


def fold_into(label: str, folded: tuple[Host, Host], weight: Any, bias: Any, axis: Any) -> tuple[Host, Host]:
    """weight times a along `axis`, and a bias + b: computed in float64, rounded once, to weight's dtype.

    label: what errors begin with. folded: (a, b).
    """
    a, b = folded
    for name, one in (("weight", weight), ("bias", bias)):
        if name == "bias" and one is None:
            continue
        if not isinstance(one, np.ndarray):
            raise ModuleDtypeError(f"{label}: {name} is {values.kind_of(one)}; a numpy.ndarray is wanted")
        if kind(one.dtype) is None:
            raise ModuleDtypeError(f"{label}: {name} is {one.dtype}; {WANTED} is wanted")
    index = values.integer(axis)
    if index is None or not -weight.ndim <= index < weight.ndim:
        raise ModuleParameterError(
            f"{label}: axis is {values.shown(axis)}; a whole number from {-weight.ndim} to {weight.ndim - 1} is "
            f"wanted, as weight has shape {weight.shape}"
        )
    if weight.ndim < 2 or weight.shape[index] != a.size:
        fitting = [place for place, extent in enumerate(weight.shape) if extent == a.size]
        advice = f"; with axis={fitting[0]} it has" if fitting and weight.ndim > 1 else ""
        raise ModuleShapeError(
            f"{label}: weight has shape {weight.shape}; two axes or more are wanted, with {a.size} output channels on "
            f"axis {index}{advice}"
        )
    if bias is not None and bias.size != a.size:
        raise ModuleShapeError(f"{label}: bias has {bias.size} elements; {a.size} are wanted, or None")
    along = [1] * weight.ndim
    along[index] = -1
    with np.errstate(all="ignore"):
        made = weight.astype(np.float64) * a.reshape(along)
        moved = b if bias is None else a * bias.astype(np.float64).ravel() + b
        return made.astype(weight.dtype), moved.astype(weight.dtype)
