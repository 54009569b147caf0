"""Activations and their derivatives in float64 NumPy, and how far off results may be that follow from them.

A function errs by FUNCTION roundings of itself (by FUNCTION_OF_DOUBLE in float64, where kernels take the device's own)
and by what an argument gives that is off: by its own bound, and by ARGUMENT roundings of its size, as functions of e^-z
turn those of the exponent into as many of the result. At a kink either side's derivative is right for an argument that
may lie on either side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oclbn.activations import Activation

Float64s = NDArray[np.float64]

FUNCTION = 6.0
FUNCTION_OF_DOUBLE = 24.0  # OpenCL allows 16 ulp for erfc
ARGUMENT = 4.0
_FAR = 1e3
_TANH_FACTOR = 2.0 * math.sqrt(2.0 / math.pi)
_TANH_CUBE = 0.044715
_ERFC: Any = np.frompyfunc(math.erfc, 1, 1)


def activated(z: ArrayLike, activation: Activation) -> Float64s:
    """f(z)."""
    x, name, slope = np.asarray(z, np.float64), activation.name, activation.slope
    with np.errstate(all="ignore"):
        if name == "none":
            return x
        if name == "relu":
            return np.where(x <= 0, 0.0, x)
        if name == "relu6":
            return np.where(x <= 0, 0.0, np.where(x > 6, 6.0, x))
        if name == "leaky_relu":
            return np.where(x > 0, x, slope * x)
        if name == "elu":
            return np.where(x > 0, x, slope * np.expm1(np.minimum(x, 0.0)))
        if name == "tanh":
            return np.tanh(x)
        if name == "softplus":
            return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))
        if name == "hardswish":
            return x * (np.clip(x, -3.0, 3.0) + 3.0) / 6.0
        return x * _gate(x, name) if name != "sigmoid" else _sigmoid(x)


def derivative(z: ArrayLike, activation: Activation) -> Float64s:
    """f'(z), at a kink that of the side below, but 0 at relu6's 6; of NaN 1 where the sides' are numbers."""
    x, name, slope = np.asarray(z, np.float64), activation.name, activation.slope
    with np.errstate(all="ignore"):
        if name == "none":
            return np.ones_like(x)
        if name == "relu":
            return np.where(x <= 0, 0.0, 1.0)
        if name == "relu6":
            return np.where((x <= 0) | (x >= 6), 0.0, 1.0)
        if name == "leaky_relu":
            return np.where(x > 0, 1.0, slope)
        if name == "elu":
            return np.where(x > 0, 1.0, slope * np.exp(np.minimum(x, 0.0)))
        if name == "hardswish":
            return np.where(x <= -3, 0.0, np.where(x > 3, 1.0, (2.0 * x + 3.0) / 6.0))
        if name == "tanh":
            return 4.0 * _sigmoid(2.0 * x) * _sigmoid(-2.0 * x)
        if name == "sigmoid":
            return _sigmoid(x) * _sigmoid(-x)
        if name == "softplus":
            return _sigmoid(x)
        first, second = _parts(x, name)
        return first + second


def derivative_by_output(y: ArrayLike, activation: Activation) -> Float64s:
    """f'(z), from y = f(z)."""
    out, name, slope = np.asarray(y, np.float64), activation.name, activation.slope
    with np.errstate(all="ignore"):
        if name == "elu":
            return np.where(out > 0, 1.0, out + slope)
        if name == "sigmoid":
            return out * (1.0 - out)
        if name == "tanh":
            return (1.0 - out) * (1.0 + out)
        if name == "softplus":
            return -np.expm1(-out)
        return derivative(out, activation)  # of the rest, y tells where z lies


def activated_bound(z: ArrayLike, room: ArrayLike, activation: Activation, eps: float, tiny: float) -> Float64s:
    """How far f(z) may be off, where z may be off by `room`."""
    x, wide = _widened(z, room, activation, eps)
    with np.errstate(all="ignore"):
        exact = activated(x, activation)
        spread = _spread(activated, x, wide, exact, activation)
        found = spread + _roundings(eps, activation) * eps * np.abs(exact) + _lost(x, tiny)
        return np.where(np.isfinite(exact), found, 0.0)


def derivative_bound(z: ArrayLike, room: ArrayLike, activation: Activation, eps: float, tiny: float) -> Float64s:
    """How far f'(z) may be off, where z may be off by `room`."""
    x, wide = _widened(z, room, activation, eps)
    with np.errstate(all="ignore"):
        spread = _spread(derivative, x, wide, derivative(x, activation), activation)
        if activation.name in ("silu", "gelu", "gelu_tanh"):
            first, second = _parts(x, activation.name)
            terms = np.abs(first) + np.abs(second)
        else:
            terms = np.abs(derivative(x, activation))
        return spread + _roundings(eps, activation) * eps * terms + _lost(x, tiny)


def derivative_by_output_bound(y: ArrayLike, activation: Activation, eps: float, tiny: float) -> Float64s:
    """How far f'(z) may be off that is made from y."""
    out = np.asarray(y, np.float64)
    with np.errstate(all="ignore"):
        terms = np.abs(derivative_by_output(out, activation))
        if activation.name == "elu":
            terms = np.where(out > 0, 0.0, np.abs(out) + activation.slope)
        return _roundings(eps, activation) * eps * terms + tiny


def _lost(x: Float64s, tiny: float) -> Float64s:
    """What is lost of numbers below the least normal one, which z may be multiplied by."""
    found: Float64s = tiny * (1.0 + np.minimum(np.nan_to_num(np.abs(x)), _FAR))
    return found


def _roundings(eps: float, activation: Activation) -> float:
    if activation.name in ("none", "relu", "relu6"):
        return 0.0
    return FUNCTION if eps > 1e-10 else FUNCTION_OF_DOUBLE


def _widened(z: ArrayLike, room: ArrayLike, activation: Activation, eps: float) -> tuple[Float64s, Float64s]:
    x = np.asarray(z, np.float64)
    own = ARGUMENT * eps if activation.code > 4 else 0.0  # those up to elu take nothing of the argument but its sign
    with np.errstate(all="ignore"):
        return x, np.broadcast_to(np.asarray(room, np.float64), x.shape) + own * np.abs(x)


def _spread(function: Any, x: Float64s, wide: Float64s, exact: Float64s, activation: Activation) -> Float64s:
    lower, upper = function(x - wide, activation), function(x + wide, activation)
    found: Float64s = np.where(np.isfinite(x), np.maximum(np.abs(lower - exact), np.abs(upper - exact)), 0.0)
    return found


def _sigmoid(x: Float64s) -> Float64s:
    t = np.exp(-np.abs(x))
    found: Float64s = np.where(x < 0, t, 1.0) / (1.0 + t)
    return found


def _normal(x: Float64s) -> Float64s:
    flat = np.asarray(_ERFC(np.asarray(x * -math.sqrt(0.5)).reshape(-1)), np.float64)
    return 0.5 * flat.reshape(x.shape)


def _gate(x: Float64s, name: str) -> Float64s:
    """What silu and both gelu multiply z by."""
    if name == "gelu":
        return _normal(x)
    return _sigmoid(x if name == "silu" else _TANH_FACTOR * (x + _TANH_CUBE * x**3))


def _parts(z: Float64s, name: str) -> tuple[Float64s, Float64s]:
    """The derivative of z times a gate: the gate, and z times the gate's derivative."""
    x = np.clip(z, -1e4, 1e4)
    if name == "gelu":
        return _normal(x), x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    change = 1.0 if name == "silu" else _TANH_FACTOR * (1.0 + 3.0 * _TANH_CUBE * x * x)
    inner = x if name == "silu" else _TANH_FACTOR * (x + _TANH_CUBE * x**3)
    return _sigmoid(inner), x * _sigmoid(inner) * _sigmoid(-inner) * change
