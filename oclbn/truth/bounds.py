"""How far a result may lie from the float64 reference: bounds on the error, by element type.

One rounding errs by eps / 2 of its result. At most ELEMENT roundings lie between an element that is read and one that
is written. A sum of same-signed numbers, added in chunks of bounded length that are merged in a tree, errs by at most
SUM * eps of itself, however many there are (a plain running sum does not hold that). A mean is found twice: roughly,
then the mean of the distances from that; so it errs by ELEMENT * eps of the standard deviation and by eps squared of
itself, not by eps of itself. With xhat = (x - mean) * invstd that gives

    mean, stored   eps |mean| for its own rounding, on top of the above; with its rest, without that
    var, m2        relative to themselves, and eps * (SUM eps mean)^2: the rough mean, squared
    invstd         half of var's
    y              relative to |scale xhat| + |scale| + |bias|, at every |mean| / std
    dbias, dscale  relative to the sum of the absolute values of the terms
    dx             relative to |scale| invstd times the sum of the absolute values of its three terms
    gx, gdy        (double backward) relative to the sums of the absolute values of all that they are made of, E(|a|)
                   standing for E(a); a product of such numbers errs by the sum of what each of them errs by
    gscale         likewise

Whatever lies below the least normal number may be lost: a device need not have denormal numbers.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from oclbn.elements import numbers_of, range_of
from oclbn.truth.hostile import along, others

ELEMENT = 3.0
SUM = 4.0
TWICE = 16.0  # of eps squared, for a mean that is found twice

Bounds = NDArray[np.float64]
_Pair = tuple[Any, Any]  # how large a number may be, and how far off


def excess(actual: NDArray[Any], expected: ArrayLike, bound: ArrayLike) -> Bounds:
    """The error of each element, in units of its tolerance: 1 is the most that is allowed.

    0 where NaN is expected and found, where the numbers are equal, and where the bound is infinite; infinite where only
    one of them is NaN, and where there is an error and no room for one. The bound broadcasts to the expected numbers,
    whose shape the result has.
    """
    wanted = np.asarray(expected, dtype=np.float64)
    got = actual.astype(np.float64).reshape(wanted.shape)
    room = np.broadcast_to(np.asarray(bound, dtype=np.float64), wanted.shape)
    with np.errstate(all="ignore"):
        units = np.nan_to_num(np.abs(got - wanted) / room, nan=np.inf, posinf=np.inf)
        fits = (got == wanted) | (np.isnan(got) & np.isnan(wanted)) | np.isposinf(room)
        return np.where(fits, 0.0, units)


def units(numbers: ArrayLike, dtype: DTypeLike) -> Bounds:
    """How far the next number of a type is away, towards larger ones: a unit in the last place."""
    exact, info = np.asarray(numbers, np.float64), range_of(np.dtype(dtype))
    unit = np.ldexp(info.eps, np.frexp(exact)[1] - 1)  # 0 has no exponent of its own
    return np.where(exact == 0.0, info.least, np.maximum(unit, info.least))


def stored(wanted: ArrayLike, bound: ArrayLike, dtype: DTypeLike) -> tuple[Bounds, Bounds]:
    """What is wanted of a tensor, and the bound on it, once its elements are rounded to this type.

    That adds half a unit in the last place. What lies beyond the largest number becomes infinite; where it may be
    either, either is right.
    """
    exact, room, info = np.asarray(wanted, np.float64), np.asarray(bound, np.float64), range_of(np.dtype(dtype))
    if numbers_of(np.dtype(dtype)) == np.dtype(dtype):
        return exact, room
    with np.errstate(all="ignore"):
        farthest, nearest = np.abs(exact) + room, np.abs(exact) - room
        unit = units(np.minimum(farthest, info.max), dtype)
        limit = info.max + 0.5 * units(info.max, dtype)
        over = nearest >= limit
        nearby = np.where(over, np.copysign(np.inf, exact), exact)
        return nearby, np.where(over, 0.0, np.where(farthest >= limit, np.inf, room + 0.5 * unit))


def rounded(exact: ArrayLike, dtype: DTypeLike) -> Bounds:
    """Numbers as a narrow type, or float32, holds them: rounded once, ties to even, in float64."""
    numbers, info = np.asarray(exact, np.float64), range_of(np.dtype(dtype))
    with np.errstate(all="ignore"):
        unit = units(numbers, dtype)
        near = np.where(np.isfinite(numbers) & (numbers != 0), np.rint(numbers / unit) * unit, numbers)
        return np.where(np.abs(near) > info.max, np.copysign(np.inf, near), near)


class Bound:
    """Bounds for the results of one call on x, normalised with these statistics (float64)."""

    def __init__(
        self,
        x: NDArray[Any],
        mean: ArrayLike,
        invstd: ArrayLike,
        scale: ArrayLike | None,
        bias: ArrayLike | None,
        *,
        axis: int,
        dtype: DTypeLike,
    ) -> None:
        info = range_of(numbers_of(np.dtype(dtype)))
        self.eps, self.tiny = info.eps, info.tiny
        self.shape, self.axis = x.shape, axis
        centre, self.invstd = _flat(mean), _flat(invstd)
        self.mean = np.abs(centre)
        self.scale = np.ones_like(centre) if scale is None else np.abs(_flat(scale))
        self.bias = np.zeros_like(centre) if bias is None else np.abs(_flat(bias))
        self.count = max(x.size // max(centre.size, 1), 1)
        with np.errstate(all="ignore"):
            distance = np.abs(x.astype(np.float64) - self._along(centre))
            self.xhat = distance * self._along(self.invstd)
            std = np.sqrt(self._sum(distance**2) / self.count)
            self.mean_error = ELEMENT * self.eps * std + TWICE * self.eps**2 * self.mean + self.tiny
            self.var_error = SUM * self.eps * std**2 + self.eps * (SUM * self.eps * self.mean) ** 2 + self.tiny

    def y(self) -> Bounds:
        """Training: mean and variance come from x."""
        with np.errstate(all="ignore"):
            unit = self.xhat * (ELEMENT * self.eps + self._along(0.5 * self.var_error * self.invstd**2))
            unit = unit + self._along((self.mean_error + self.tiny) * self.invstd)
            return self._along(self.scale) * unit + ELEMENT * self.eps * self._along(self.bias) + self.tiny

    def inferred(self) -> Bounds:
        """Inference: mean and variance are given, so x - mean errs by one rounding only."""
        unit = ELEMENT * self.eps * self.xhat + self._along(self.tiny * self.invstd)
        return self._along(self.scale) * unit + ELEMENT * self.eps * self._along(self.bias) + self.tiny

    def stored_mean(self) -> Bounds:
        return self.eps * self.mean + self.mean_error

    def mean_with_rest(self) -> Bounds:
        """Of one call, or merged of the statistics of several."""
        return self.mean_error

    def stored_invstd(self) -> Bounds:
        with np.errstate(all="ignore"):
            return self.invstd * (ELEMENT * self.eps + 0.5 * self.var_error * self.invstd**2)

    def m2(self) -> Bounds:
        return self.count * self.var_error

    def running_mean(self, old: ArrayLike, factor: float | Bounds) -> Bounds:
        return self._averaged(old, self.mean, self.stored_mean(), factor)

    def running_var(self, old: ArrayLike, var: ArrayLike, factor: float | Bounds) -> Bounds:
        """var: the unbiased one."""
        return self._averaged(old, var, 2.0 * self.var_error, factor)

    def gradients(self, dy: NDArray[Any], *, training: bool, error: ArrayLike = 0.0) -> tuple[Bounds, Bounds, Bounds]:
        """dx, dscale, dbias; each element of dy may be off by `error`."""
        slopes = np.abs(dy.astype(np.float64))
        with np.errstate(all="ignore"):
            off = np.full_like(self.mean, self.tiny)  # of x - mean, beyond one rounding
            if training:
                # The reference is handed a mean that is rounded to float64: it cannot know that mean's own error.
                off = off + self.mean_error + np.finfo(np.float64).eps * self.mean
            unit = 2.0 * self.eps * self.xhat + self._along(off * self.invstd)
            product = ELEMENT * self.eps * slopes * self.xhat + slopes * unit
            off_by = np.asarray(error, np.float64)
            product = product + off_by * self.xhat
            dbias = SUM * self.eps * self._sum(slopes) + self._sum(off_by) + self.tiny
            dscale = SUM * self.eps * self._sum(slopes * self.xhat) + self._sum(product) + self.tiny
            error = ELEMENT * self.eps * slopes + off_by
            if training:
                mean_slope, mean_product = self._sum(slopes) / self.count, self._sum(slopes * self.xhat) / self.count
                error = error + self._along(dbias / self.count + ELEMENT * self.eps * mean_slope)
                error = error + self.xhat * self._along(dscale / self.count + ELEMENT * self.eps * mean_product)
                error = error + unit * self._along(mean_product)
            slope = self._along(self.scale * self.invstd)
            return slope * error + self.tiny * (1.0 + slope), dscale, dbias

    def double_gradients(
        self, dy: NDArray[Any], ddx: NDArray[Any], ddscale: ArrayLike, *, ddbias: ArrayLike, training: bool
    ) -> tuple[Bounds, Bounds, Bounds]:
        """gx, gdy, gscale.

        Each number is a pair: a bound on its absolute value, and one on its error. The error of a sum of products is
        that of dscale; a product takes ELEMENT roundings and a sum of a few numbers two.
        """
        eps = self.eps
        slopes, pushes = np.abs(dy.astype(np.float64)), np.abs(ddx.astype(np.float64))
        with np.errstate(all="ignore"):
            off = np.full_like(self.mean, self.tiny)  # as `gradients` has it
            if training:
                off = off + self.mean_error + np.finfo(np.float64).eps * self.mean
            unit = 2.0 * eps * self.xhat + self._along(off * self.invstd)

            def mean(terms: Bounds, error: Bounds | float = 0.0) -> _Pair:
                whole = self._sum(terms)
                return whole / self.count, (SUM * eps * whole + self._sum(error + ELEMENT * eps * terms)) / self.count

            def times(*pairs: _Pair) -> _Pair:
                size, error = pairs[0]
                for other, off_by in pairs[1:]:
                    size, error = size * other, size * off_by + error * other
                return size, error + ELEMENT * eps * size

            def plus(*pairs: _Pair) -> _Pair:
                sizes, errors = (functools.reduce(operator.add, some) for some in zip(*pairs, strict=True))
                return sizes, errors + eps * sizes

            def given(values: ArrayLike) -> _Pair:
                return np.abs(_flat(values)), np.zeros(())

            def element(pair: _Pair) -> _Pair:
                return self._along(pair[0]), self._along(np.broadcast_to(pair[1], pair[0].shape))

            root, slope, both = given(self.invstd), given(ddscale), mean(pushes * slopes)
            gain = root[0] * self.scale, ELEMENT * eps * root[0] * self.scale
            xhat, level, push = (self.xhat, unit), mean(slopes), mean(pushes)
            if training:
                tied = mean(slopes * self.xhat, slopes * unit), mean(pushes * self.xhat, pushes * unit)
                both = plus(both, times(level, push), times(*tied))
                lean = plus(slope, times(gain, tied[1]))
                three = given(np.full_like(self.mean, 3.0))  # E(g xhat) E(v xhat), of which gx has three
                tilt = times(root, plus(times(gain, plus(both, times(three, *tied))), times(slope, tied[0])))
                terms = [
                    times(element(times(root, gain, tied[0])), plus((pushes, 0.0 * pushes), element(push))),
                    times(element(times(root, lean)), plus((slopes, 0.0 * slopes), element(level))),
                    times(element(tilt), xhat),
                ]
                gx = plus(*terms)
                gdy = times(element(gain), plus((pushes, 0.0 * pushes), element(push)))
            else:
                lean = slope
                gx = times(element(times(root, slope)), (slopes, 0.0 * slopes))
                gdy = times(element(gain), (pushes, 0.0 * pushes))
            gdy = plus(gdy, times(element(lean), xhat), element(given(ddbias)))
            gscale = times(root, both)
            lost = self.tiny * (1.0 + root[0] * (1.0 + self.scale + slope[0]) * (1.0 + root[0]))
            room = self._along(lost) * (1.0 + pushes + slopes + (self.xhat if training else 0.0))
            return gx[1] + room, gdy[1] + room + self._along(lost) * self.xhat, self.count * (gscale[1] + lost)

    def _along(self, values: ArrayLike) -> Bounds:
        return along(_flat(values), self.shape, self.axis)

    def _sum(self, terms: Bounds) -> Bounds:
        total: Bounds = np.sum(np.broadcast_to(terms, self.shape), axis=others(self.shape, self.axis))
        return total

    def _averaged(self, old: ArrayLike, new: ArrayLike, new_error: Bounds, factor: float | Bounds) -> Bounds:
        factor = np.asarray(factor)
        with np.errstate(all="ignore"):
            terms = (1.0 - factor) * np.abs(_flat(old)) + factor * np.abs(_flat(new))
            return ELEMENT * self.eps * terms + factor * new_error + self.tiny


def _flat(values: ArrayLike) -> Bounds:
    return np.asarray(values, dtype=np.float64).reshape(-1)
