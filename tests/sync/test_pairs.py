"""oclbn.sync.pairs: numbers of twice float64's precision, against rational arithmetic."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from oclbn.sync.pairs import Pair, concatenated, inverse_root

COUNT = 300


def pairs(seed: int, exponents: int) -> Pair:
    """Of either sign, from 2**-exponents to 2**exponents, each with a rest of half a unit of its last place at most."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-1.0, 1.0], COUNT) * np.exp2(rng.uniform(-exponents, exponents, COUNT))
    return Pair(values, np.spacing(np.abs(values)) * rng.uniform(-0.5, 0.5, COUNT))


def exact(pair: Pair) -> list[Fraction]:
    return [Fraction(float(v)) + Fraction(float(r)) for v, r in zip(pair.value, pair.rest, strict=True)]


def check(found: Pair, wanted: list[Fraction], room: list[Fraction]) -> None:
    assert (np.abs(found.rest) <= np.spacing(np.abs(found.value)) / 2).all()
    for got, true, most in zip(exact(found), wanted, room, strict=True):
        assert abs(got - true) <= most * Fraction(1, 2**100)


@pytest.mark.parametrize("exponents", [0, 3, 60, 300])
@pytest.mark.parametrize("name", ["add", "sub"])
def test_sums(name: str, exponents: int) -> None:
    a, b = pairs(1, exponents), pairs(2, exponents)
    operate: Any = getattr(operator, name)
    wanted = [operate(x, y) for x, y in zip(exact(a), exact(b), strict=True)]
    check(operate(a, b), wanted, [abs(x) + abs(y) for x, y in zip(exact(a), exact(b), strict=True)])


def test_what_cancels_leaves_the_rest() -> None:
    a = pairs(1, 5)
    left = a - a.value
    assert (left.value == a.rest).all()
    assert not left.rest.any()


@pytest.mark.parametrize("exponents", [0, 60, 300])
def test_products(exponents: int) -> None:
    a, b = pairs(3, exponents), pairs(4, exponents)
    wanted = [x * y for x, y in zip(exact(a), exact(b), strict=True)]
    check(a * b, wanted, [abs(one) for one in wanted])


@pytest.mark.parametrize("divisor", [3, 7.0, 1e-3, float(2**53 - 1)])
def test_quotients(divisor: float) -> None:
    a = pairs(5, 100)
    wanted = [x / Fraction(divisor) for x in exact(a)]
    check(a / divisor, wanted, [abs(one) for one in wanted])


@pytest.mark.parametrize("exponents", [0, 300])
def test_inverse_roots(exponents: int) -> None:
    a = pairs(6, exponents)
    a = Pair(np.abs(a.value), np.sign(a.value) * a.rest)
    for number, root in zip(exact(a), exact(inverse_root(a)), strict=True):
        assert abs(number * root * root - 1) <= Fraction(1, 2**99)


def test_arrays_and_numbers_beside_pairs() -> None:
    a, number = pairs(7, 10), np.linspace(-3, 3, COUNT)
    for one, other in ((a + number, number + a), (a * number, number * a), (a + 2.0, 2.0 + a), (a * 3.0, 3.0 * a)):
        assert isinstance(other, Pair)
        assert (one.value.tobytes(), one.rest.tobytes()) == (other.value.tobytes(), other.rest.tobytes())
    wanted = [x - Fraction(float(y)) for x, y in zip(exact(a), number, strict=True)]
    check(a - number, wanted, [abs(x) + 3 for x in exact(a)])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_has_no_rest_and_spoils_nothing_else(value: float) -> None:
    bad = Pair(np.array([value, 2.0]), np.array([1.0, 1e-20]))
    assert bad.rest.tolist() == [0.0, 1e-20]
    with np.errstate(all="ignore"):
        for made in (bad + 1.0, bad - bad, bad * 0.5, bad * bad, bad / 3.0, inverse_root(bad)):
            assert made.rest[0] == 0
            assert np.isfinite(made.value[1])
            assert made.value[0] == 0 or not np.isfinite(made.value[0])


def test_products_beyond_what_can_be_split() -> None:
    a, b = Pair(np.array([2.0**1000 * 1.1, 2.0**1020])), Pair(np.array([1.0 / 3.0, 16.0]))
    with np.errstate(all="ignore"):
        made = a * b
    assert made.value.tolist() == [2.0**1000 * 1.1 / 3.0, np.inf]
    assert abs(exact(Pair(made.value[:1], made.rest[:1]))[0] / (exact(a)[0] * exact(b)[0]) - 1) < Fraction(1, 2**52)


def test_parts() -> None:
    a, b = pairs(8, 3), pairs(9, 3)
    both = concatenated(a, b)
    assert len(both) == 2 * COUNT
    assert exact(both[COUNT:]) == exact(b)
    assert exact(-a) == [-one for one in exact(a)]
