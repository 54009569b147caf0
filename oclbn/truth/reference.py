"""Batch normalization in float64 NumPy: the oracle that the tests, the demo and the checks compare with.

    xhat = (x - mean) * invstd,    invstd = 1 / sqrt(var + epsilon),    y = xhat * scale + bias

Mean and (population) variance are taken per channel, over every axis but the channel axis. Formulas, forward
and backward: S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167, sections 3 and 3.1.

Whatever the element type that comes in, everything is computed and returned in float64. Non-finite data is
followed quietly to where IEEE arithmetic leads it. Results are new arrays; arguments are never written to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oclbn.errors import ShapeError

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Moments of a set of values per channel, arrays of shape (C,): the mean is mean + mean_rest."""

    count: int
    mean: Float64s
    mean_rest: Float64s  # what rounding to float64 lost
    m2: Float64s


@dataclass(frozen=True)
class TrainReference:
    """What a training step makes of a batch; y has the shape of x, all else is (C,)."""

    y: Float64s
    mean: Float64s
    var: Float64s  # population variance: the one that the batch is normalised with
    invstd: Float64s
    running_mean: Float64s | None
    running_var: Float64s | None
    entered: NDArray[np.int64] | None  # the counters after the batch


def moments(x: ArrayLike, *, axis: int = 1) -> tuple[int, Float64s, Float64s]:
    """Count, mean and M2 (sum of squared distances from the mean) of each channel.

    x: any real array of rank >= 2 with its channels on `axis`. Returns the number of elements in a channel,
    and two arrays of shape (C,). An empty channel has count, mean and M2 zero: nothing changes when it is merged.
    ShapeError: x has fewer than two axes.
    """
    rows, _ = _as_rows(x, axis, "x")
    with np.errstate(all="ignore"):
        mean, m2, _ = _moments_of_rows(rows)
    return rows.shape[1], mean, m2


def statistics(x: ArrayLike, *, axis: int = 1) -> Statistics:
    """As moments, with what rounding loses of the mean: beyond 10**6 standard deviations that is worth digits."""
    rows, _ = _as_rows(x, axis, "x")
    count = rows.shape[1]
    with np.errstate(all="ignore"):
        mean, m2, _ = _moments_of_rows(rows)
        lost = np.sum(rows - mean[:, None], axis=1) / max(count, 1)
    return Statistics(count, mean, np.where(np.isfinite(lost), lost, 0.0), m2)


def merge(*sets: Statistics) -> Statistics:
    """Those of all values: m2 is sum(m2_i) + sum(n_i d_i**2), where d_i is the distance of a mean from the whole's."""
    full = [one for one in sets if one.count] or list(sets[:1])
    centre = max(full, key=lambda one: one.count).mean
    counts = np.array([[one.count] for one in full], dtype=np.float64)
    count = sum(one.count for one in full)
    with np.errstate(all="ignore"):
        distances = np.array([(one.mean - centre) + one.mean_rest for one in full])
        step = np.sum(counts * distances, axis=0) / max(count, 1)
        mean = centre + step
        m2 = sum(one.m2 for one in full) + np.sum(counts * (distances - step) ** 2, axis=0)
        return Statistics(count, mean, (centre - mean) + step, m2)


def train(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    *,
    epsilon: float = 1e-5,
    factor: float = 0.1,
    axis: int = 1,
    guard: bool = True,
    entered: ArrayLike | None = None,
    init_factor: float = 1.0,
) -> TrainReference:
    """Normalise a batch with its own statistics and update the running ones.

    x: rank >= 2, channels on `axis`; the other arrays hold C elements of any shape, and any may be None
    (scale 1, bias 0, nothing to update). running = (1 - factor) * running + factor * batch, where the batch's
    variance is the unbiased one, M2 / (m - 1); what weighs nothing does not count, NaN included. With `guard`, a
    channel whose batch statistics are not finite keeps its running statistics; an empty batch changes none. With
    `entered`, for each channel the number of batches that moved it before, its factor is max(init_factor / n, factor),
    n counting this batch as well. ShapeError: ranks or channel counts do not fit.
    """
    rows, shape = _as_rows(x, axis, "x")
    channels, count = rows.shape
    with np.errstate(all="ignore"):
        mean, m2, centred = _moments_of_rows(rows)
        var = m2 / max(count, 1)
        invstd = _invstd(var, epsilon)
        y = centred * (invstd * _column(scale, channels, 1.0, "scale"))[:, None]
        y += _column(bias, channels, 0.0, "bias")[:, None]
        unbiased = m2 / np.float64(count - 1)
        keep = np.full(channels, count == 0) | (guard & ~(np.isfinite(mean) & np.isfinite(var)))
        before = None if entered is None else _column(entered, channels, 0.0, "entered").astype(np.int64)
        weight = np.full(channels, factor) if before is None else np.maximum(init_factor / (before + 1), factor)
        return TrainReference(
            y=_from_rows(y, shape, axis),
            mean=mean,
            var=var,
            invstd=invstd,
            running_mean=_averaged(running_mean, mean, weight, keep, "running_mean"),
            running_var=_averaged(running_var, unbiased, weight, keep, "running_var"),
            entered=None if before is None else before + ~keep,
        )


def infer(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Float64s:
    """Normalise x with statistics that are given; y has the shape of x.

    x: rank >= 2, channels on `axis`; the other arrays hold C elements of any shape; scale and bias may be
    None (1 and 0). ShapeError: ranks or channel counts do not fit.
    """
    rows, shape = _as_rows(x, axis, "x")
    channels = rows.shape[0]
    with np.errstate(all="ignore"):
        invstd = _invstd(_column(var, channels, 1.0, "var"), epsilon)
        y = rows - _column(mean, channels, 0.0, "mean")[:, None]
        y *= (invstd * _column(scale, channels, 1.0, "scale"))[:, None]
        y += _column(bias, channels, 0.0, "bias")[:, None]
    return _from_rows(y, shape, axis)


def backward(
    x: ArrayLike,
    dy: ArrayLike,
    scale: ArrayLike | None,
    mean: ArrayLike,
    invstd: ArrayLike,
    *,
    axis: int = 1,
    training: bool = True,
) -> tuple[Float64s, Float64s, Float64s]:
    """Gradients (dx, dscale, dbias) of a loss whose gradient with respect to y is dy.

    x, dy: one shape, rank >= 2, channels on `axis`; mean, invstd and scale (None: 1) hold C elements of any
    shape. dx has the shape of x, dscale and dbias are (C,). With `training`, mean and invstd depend on x; else
    they are constants. ShapeError: ranks, shapes or channel counts do not fit.
    """
    rows, shape = _as_rows(x, axis, "x")
    grads, grad_shape = _as_rows(dy, axis, "dy")
    if grad_shape != shape:
        raise ShapeError(f"dy has shape {grad_shape}; x has shape {shape}")
    channels, count = rows.shape
    with np.errstate(all="ignore"):
        deviation = _column(invstd, channels, 1.0, "invstd")
        centre = _column(mean, channels, 0.0, "mean")
        centred = rows - centre[:, None]
        if training and count:
            centred -= _error_of_own_mean(centred, centre)
        xhat = centred * deviation[:, None]
        dscale = np.sum(grads * xhat, axis=1)
        dbias = np.sum(grads, axis=1)
        if training and count:
            grads = grads - (dbias / count)[:, None] - xhat * (dscale / count)[:, None]
        dx = grads * (deviation * _column(scale, channels, 1.0, "scale"))[:, None]
    return _from_rows(dx, shape, axis), dscale, dbias


def double_backward(
    x: ArrayLike,
    dy: ArrayLike,
    scale: ArrayLike | None,
    mean: ArrayLike,
    invstd: ArrayLike,
    ddx: ArrayLike | None = None,
    ddscale: ArrayLike | None = None,
    ddbias: ArrayLike | None = None,
    *,
    axis: int = 1,
    training: bool = True,
) -> tuple[Float64s, Float64s, Float64s]:
    """Gradients (gx, gdy, gscale) of a loss that has these gradients with respect to what `backward` gives.

    With s = ddscale, b = ddbias, v = ddx, g = dy, E the mean over a channel and P(a) = a - E(a) - xhat E(a xhat), the
    loss is sum(v dx) + s dscale + b dbias = m (scale invstd E(v P(g)) + s E(g xhat) + b E(g)). That P(a) invstd is what
    comes of a gradient with respect to xhat, and that of invstd with respect to x is -invstd^2 xhat / m, give

        q      = s g - scale invstd (E(g xhat) v + E(v xhat) g)
        gx     = invstd P(q) - scale invstd^2 E(v P(g)) xhat
        gdy    = scale invstd P(v) + s xhat + b
        gscale = m invstd E(v P(g))

    and with constants, where dx = scale invstd g: gx = s invstd g, gdy = scale invstd v + s xhat + b and
    gscale = m invstd E(v g).

    Arrays are as `backward` has them, ddx like x, ddscale and ddbias like scale; None: 0. gx and gdy have the shape of
    x, gscale is (C,). ShapeError: ranks, shapes or channel counts do not fit.
    """
    rows, shape = _as_rows(x, axis, "x")
    grads, grad_shape = _as_rows(dy, axis, "dy")
    pushes, push_shape = (np.zeros_like(rows), shape) if ddx is None else _as_rows(ddx, axis, "ddx")
    for name, found in (("dy", grad_shape), ("ddx", push_shape)):
        if found != shape:
            raise ShapeError(f"{name} has shape {found}; x has shape {shape}")
    channels, count = rows.shape
    with np.errstate(all="ignore"):
        root = _column(invstd, channels, 1.0, "invstd")[:, None]
        gain = root * _column(scale, channels, 1.0, "scale")[:, None]
        slope = _column(ddscale, channels, 0.0, "ddscale")[:, None]
        offset = _column(ddbias, channels, 0.0, "ddbias")[:, None]
        centred = rows - _column(mean, channels, 0.0, "mean")[:, None]
        if training and count:
            centred -= _error_of_own_mean(centred, _column(mean, channels, 0.0, "mean"))
        xhat = centred * root

        def averaged(terms: Float64s) -> Float64s:
            found: Float64s = np.sum(terms, axis=1, keepdims=True) / max(count, 1)
            return found

        def projected(terms: Float64s) -> Float64s:
            return terms - averaged(terms) - xhat * averaged(terms * xhat)

        if training:
            both = averaged(pushes * projected(grads))
            q = slope * grads - gain * (averaged(grads * xhat) * pushes + averaged(pushes * xhat) * grads)
            gx = root * projected(q) - gain * root * both * xhat
            gdy = gain * projected(pushes) + slope * xhat + offset
        else:
            both = averaged(pushes * grads)
            gx = slope * root * grads
            gdy = gain * pushes + slope * xhat + offset
        gscale = (count * root * both)[:, 0]
    return _from_rows(gx, shape, axis), _from_rows(gdy, shape, axis), gscale


def _error_of_own_mean(centred: Float64s, mean: Float64s) -> Float64s:
    """What distances from a mean of x's own lack, as it is rounded: their mean; 0 where that is no rounding."""
    error = np.sum(centred, axis=1) / centred.shape[1]
    own = np.abs(error) <= np.abs(mean) * np.finfo(np.float64).eps
    found: Float64s = np.where(own, error, 0.0)[:, None]
    return found


def _invstd(var: Float64s, epsilon: float) -> Float64s:
    """1 / sqrt(var + epsilon), and 0 where that would divide by 0: a constant channel then comes out as its bias."""
    shifted = var + epsilon
    return np.where(shifted == 0.0, 0.0, 1.0 / np.sqrt(shifted))


def _moments_of_rows(rows: Float64s) -> tuple[Float64s, Float64s, Float64s]:
    """Mean, M2 and the distances from the mean, for each row."""
    divisor = max(rows.shape[1], 1)
    mean = np.sum(rows, axis=1) / divisor
    # The distances are nearly exact, so their mean is the rounding error of the mean: take it out of both.
    centred = rows - mean[:, None]
    error = np.sum(centred, axis=1) / divisor
    error[~np.isfinite(error)] = 0.0
    centred -= error[:, None]
    return mean + error, np.sum(centred * centred, axis=1), centred


def _averaged(
    running: ArrayLike | None, batch: Float64s, factor: Float64s, keep: NDArray[np.bool_], name: str
) -> Float64s | None:
    if running is None:
        return None
    old = _column(running, batch.size, 0.0, name)
    new = np.where(factor == 1.0, 0.0, (1.0 - factor) * old) + np.where(factor == 0.0, 0.0, factor * batch)
    return np.where(keep, old, new)


def _as_rows(array: ArrayLike, axis: int, name: str) -> tuple[Float64s, tuple[int, ...]]:
    """The array as (channels, elements of a channel) in float64, and its own shape."""
    given: NDArray[Any] = np.asarray(array)
    if given.ndim < 2:
        raise ShapeError(f"{name} has {given.ndim} axes; it needs at least 2")
    front = np.moveaxis(given, axis, 0)
    # One channel in one row: NumPy then adds pairwise along it.
    rows = np.array(front, dtype=np.float64, order="C").reshape(front.shape[0], math.prod(front.shape[1:]))
    return rows, given.shape


def _from_rows(rows: Float64s, shape: tuple[int, ...], axis: int) -> Float64s:
    others = list(shape)
    channels = others.pop(axis)
    return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *others), 0, axis))


def _column(values: ArrayLike | None, channels: int, default: float, name: str) -> Float64s:
    """A per-channel argument as a new float64 array of shape (channels,)."""
    if values is None:
        return np.full(channels, default)
    flat = np.array(values, dtype=np.float64).reshape(-1)
    if flat.size != channels:
        raise ShapeError(f"{name} has {flat.size} elements; x has {channels} channels")
    return flat
