"""Numbers of twice float64's precision, as a value and what rounding it lost, for NumPy arrays of them.

Sums by D. Knuth's two-sum, products by T. Dekker's and G. Veltkamp's splitting ("A floating-point technique for
extending the available precision", 1971). Every step is an addition, subtraction or multiplication of NumPy's, which
IEEE 754 rounds one way only: the same bits on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
_SPLIT = 2.0**27 + 1
_MOST_SPLIT = 2.0**995  # beyond that the splitting itself would leave the range


class Pair:
    """value + rest, elementwise; arrays of one shape. What is not finite has no rest."""

    __array_ufunc__ = None  # so that array * pair is the pair's business
    __slots__ = ("rest", "value")

    def __init__(self, value: Any, rest: Any = 0.0) -> None:
        self.value: Float64s = np.asarray(value, np.float64)
        self.rest: Float64s = np.where(np.isfinite(self.value), rest, 0.0)

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.value[index], self.rest[index])

    def __len__(self) -> int:
        return len(self.value)

    def __neg__(self) -> Pair:
        return Pair(-self.value, -self.rest)

    def __add__(self, other: Pair | Float64s | float) -> Pair:
        other = _pair(other)
        total, error = _two_sum(self.value, other.value)
        return _joined(total, error + (self.rest + other.rest))

    def __sub__(self, other: Pair | Float64s | float) -> Pair:
        return self + -_pair(other)

    def __mul__(self, other: Pair | Float64s | float) -> Pair:
        other = _pair(other)
        product, error = _two_product(self.value, other.value)
        return _joined(product, error + (self.value * other.rest + self.rest * other.value))

    def __truediv__(self, divisor: float) -> Pair:
        quotient = self.value / divisor
        back, error = _two_product(quotient, np.asarray(divisor, np.float64))
        return _joined(quotient, (((self.value - back) - error) + self.rest) / divisor)

    __radd__ = __add__
    __rmul__ = __mul__


def concatenated(first: Pair, second: Pair) -> Pair:
    """Along the first axis."""
    return Pair(np.concatenate([first.value, second.value]), np.concatenate([first.rest, second.rest]))


def inverse_root(number: Pair) -> Pair:
    """1 / sqrt(number): NumPy's, and one Newton step on the exact residual."""
    root = 1 / np.sqrt(number.value)
    residual = -(number * root * root + -1.0)
    return _joined(root, root * 0.5 * residual.value)


def _pair(other: Pair | Float64s | float) -> Pair:
    return other if isinstance(other, Pair) else Pair(other)


def _joined(value: Float64s, rest: Float64s) -> Pair:
    """A pair again, of a value and a rest that is small beside it; none where finding it has left the range."""
    rest = np.where(np.isfinite(value) & np.isfinite(rest), rest, 0.0)
    total = value + rest
    return Pair(total, rest - (total - value))


def _two_sum(a: Float64s, b: Float64s) -> tuple[Float64s, Float64s]:
    total = a + b
    late = total - a
    return total, (a - (total - late)) + (b - late)


def _two_product(a: Float64s, b: Float64s) -> tuple[Float64s, Float64s]:
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Float64s) -> tuple[Float64s, Float64s]:
    scaled = np.where(np.abs(a) < _MOST_SPLIT, a, a * 0.0)
    high = scaled * _SPLIT
    high = high - (high - scaled)
    return np.where(scaled == a, high, a), np.where(scaled == a, scaled - high, 0.0)
