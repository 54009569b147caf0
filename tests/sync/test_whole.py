"""oclbn.sync.whole: statistics of a whole from those of its parts, against rational arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from oclbn.sync import whole
from oclbn.sync.whole import Averaging

N, C = 60, 3
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
CUTS = {
    "whole": [N],
    "halves": [N // 2, N // 2],
    "uneven": [1, 7, 52],
    "empty ones": [0, 13, 0, 0, 47, 0],
    "one each": [1] * N,
    "one beside all": [N - 1, 1],
    "in fives": [5] * (N // 5),
    "in seven": [9, 9, 9, 9, 9, 9, 6],
}
DATA = {  # mean and deviation
    "N(0, 1)": (0.0, 1.0),
    "mean is 1e6 std": (1e6, 1.0),
    "mean is 1e6 std of 1e-3": (1e3, 1e-3),
    "mean is 1e7 std": (-1e7, 1.0),
    "tiny": (1e-12, 1e-15),
    "large": (1e15, 1e16),
}


def values(name: str, dtype: Any) -> np.ndarray:
    mean, deviation = DATA[name]
    return (mean + deviation * np.random.default_rng(3).standard_normal((N, C))).astype(dtype)


def exact_moments(x: np.ndarray) -> list[tuple[Fraction, Fraction]]:
    """Mean and m2 of each channel."""
    found = []
    for channel in range(x.shape[1]):
        numbers = [Fraction(float(value)) for value in x[:, channel]]
        mean = sum(numbers, Fraction()) / max(len(numbers), 1)
        found.append((mean, sum(((one - mean) ** 2 for one in numbers), Fraction())))
    return found


def rows_of(numbers: Sequence[Sequence[Fraction]], dtype: Any) -> np.ndarray:
    """Of each channel some numbers: rows of values, each followed by its rests."""
    made = []
    for row in zip(*numbers, strict=True):
        rounded = np.array([float(one) for one in row]).astype(dtype)
        made += [
            rounded,
            np.array([float(n - Fraction(float(r))) for n, r in zip(row, rounded, strict=True)]).astype(dtype),
        ]
    return np.stack(made)


def merged(x: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    parts = np.split(x, np.cumsum(lengths)[:-1])
    count, rows = whole.merge_moments([len(p) for p in parts], [rows_of(exact_moments(p), x.dtype) for p in parts])
    assert count == N
    assert rows.dtype == x.dtype
    return rows


def told(rows: np.ndarray, row: int, channel: int) -> Fraction:
    return Fraction(float(rows[row, channel])) + Fraction(float(rows[row + 1, channel]))


def unit_of(number: Any) -> Fraction:
    """Of its last place."""
    return Fraction(float(np.spacing(np.abs(number))))


# --- moments


@DTYPES
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", DATA)
def test_moments(name: str, cut: str, dtype: Any) -> None:
    """With their rests as exact as the parts are handed on; without, rounded once."""
    x = values(name, dtype)
    rows = merged(x, CUTS[cut])
    handed_on = Fraction(1, 2**47) if dtype == np.float32 else Fraction(1, 2**100)  # of a mean, by value and rest
    summed = Fraction(1, 2**46) if dtype == np.float32 else Fraction(1, 2**95)  # of m2
    for channel, (mean, m2) in enumerate(exact_moments(x)):
        error = handed_on * max(abs(Fraction(float(v))) for v in x[:, channel])
        assert abs(told(rows, 0, channel) - mean) <= error
        deviation = Fraction(math.sqrt(m2 / N))
        assert abs(told(rows, 2, channel) - m2) <= summed * m2 + 2 * N * deviation * error
        assert abs(Fraction(float(rows[0, channel])) - mean) <= unit_of(rows[0, channel]) / 2 + error
    assert (np.abs(rows[[1, 3]]) <= np.spacing(np.abs(rows[[0, 2]])) / 2).all()


@DTYPES
@pytest.mark.parametrize("name", DATA)
def test_any_cut_is_within_one_rounding(name: str, dtype: Any) -> None:
    x = values(name, dtype)
    cuts = [*CUTS.values(), *([at, N - at] for at in range(N + 1))]
    results = [merged(x, cut)[[0, 2]] for cut in cuts]
    assert len({one.tobytes() for one in results}) <= 3
    for one in results:
        assert (np.abs(one - results[0]) <= np.spacing(np.abs(results[0]))).all()


@DTYPES
def test_the_same_cut_gives_the_same_bits(dtype: Any) -> None:
    x = values("mean is 1e6 std", dtype)
    assert len({merged(x.copy(), CUTS["in seven"]).tobytes() for _ in range(5)}) == 1


@DTYPES
def test_parts_without_values_do_not_matter(dtype: Any) -> None:
    """Not even by what stands in their rows."""
    x = values("mean is 1e6 std", dtype)
    junk = np.full((4, C), np.nan, dtype)
    parts = [rows_of(exact_moments(p), dtype) for p in np.split(x, 2)]
    plain = whole.merge_moments([30, 30], parts)
    for counts, rows in (([30, 0, 30], [parts[0], junk, parts[1]]), ([0, 30, 30, 0], [junk, *parts, junk])):
        count, found = whole.merge_moments(counts, rows)
        assert (count, found.tobytes()) == (60, plain[1].tobytes())
    count, found = whole.merge_moments([0, 0], [junk, junk])
    assert count == 0
    assert not found.any()


@DTYPES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_bad_channel_spoils_no_other(where: int, value: float, dtype: Any) -> None:
    parts = [rows_of(exact_moments(p), dtype) for p in np.split(values("N(0, 1)", dtype), 3)]
    clean = whole.merge_moments([20] * 3, parts)[1]
    parts[where] = parts[where].copy()
    parts[where][:, 1] = value, 0.0, np.nan, 0.0
    found = whole.merge_moments([20] * 3, parts)[1]
    assert found[:, [0, 2]].tobytes() == clean[:, [0, 2]].tobytes()
    assert not np.isfinite(found[[0, 2], 1]).any()
    assert whole.finite(found).tolist() == [True, False, True]


@DTYPES
def test_counts_beyond_32_bits(dtype: Any) -> None:
    one = np.array([[1.0], [0.0], [5.0], [0.0]], dtype)
    other = np.array([[3.0], [0.0], [7.0], [0.0]], dtype)
    count, rows = whole.merge_moments([3 << 40, 1 << 40], [one, other])
    assert count == 1 << 42
    assert rows[0].tolist() == [1.5]
    assert rows[2].tolist() == [float(dtype((3 << 40) * 0.25 + (1 << 40) * 2.25 + 12))]


@DTYPES
def test_the_end_of_the_range(dtype: Any) -> None:
    """A sum of squares that leaves the range is infinite, whatever its parts; means stay in it."""
    most = float(np.finfo(dtype).max)
    root = math.sqrt(most)

    def of(mean: float, m2: float) -> np.ndarray:
        return np.array([[mean], [0.0], [m2], [0.0]], dtype)

    def both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return whole.merge_moments([3, 3], [one, other])[1]

    assert both(of(0.0, 0.75 * most), of(0.0, 0.75 * most))[2] == np.inf
    assert both(of(0.0, 0.375 * most), of(0.0, 0.375 * most))[2] == dtype(0.75 * most)
    assert both(of(2 * root, 0.0), of(-2 * root, 0.0))[[0, 2], 0].tolist() == [0.0, np.inf]
    near = both(of(0.25 * root, 0.0), of(-0.25 * root, 0.0))
    assert near[0] == 0
    assert near[2] == pytest.approx(0.375 * most, rel=1e-6)
    same = both(of(0.99 * most, 0.0), of(0.99 * most, 0.0))
    assert same[[0, 2], 0].tolist() == [dtype(0.99 * most), 0.0]
    spread = both(of(0.5 * most, 0.0), of(0.25 * most, 0.0))
    assert spread[0] == pytest.approx(0.375 * most, rel=1e-6)
    assert spread[2] == np.inf
    assert not whole.finite(spread)[0]
    assert np.isnan(whole.inverse_deviation(6, spread, 1e-5)).all()


@DTYPES
def test_one_part_is_itself(dtype: Any) -> None:
    rows = np.array([[1.5], [1e-20], [3.0], [0.0]], dtype)
    assert whole.merge_moments([4], [rows])[1].tobytes() == rows.tobytes()


# --- sums


@DTYPES
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_sums(parts: int, dtype: Any) -> None:
    rng = np.random.default_rng(parts)
    numbers = rng.standard_normal((parts, 3, C)) * np.exp2(rng.integers(-20, 20, (parts, 3, C)))
    rest = Fraction(1, 2**30) if dtype == np.float32 else Fraction(1, 2**60)
    exact = [[[Fraction(float(n)) * (1 + rest) for n in one[:, c]] for c in range(C)] for one in numbers]
    handed = [rows_of(one, dtype) for one in exact]
    found = whole.merge_sums(handed)
    room = Fraction(1, 2**46) if dtype == np.float32 else Fraction(1, 2**98)
    for row, channel in itertools.product(range(3), range(C)):
        terms = [told(one, 2 * row, channel) for one in handed]
        assert abs(told(found, 2 * row, channel) - sum(terms)) <= room * sum(map(abs, terms))


@DTYPES
def test_sums_that_cancel(dtype: Any) -> None:
    """What is left is what the rests held."""
    big, small = float(np.finfo(dtype).max) / 4, 2.0**-20

    def of(value: float, rest: float) -> np.ndarray:
        return np.repeat(np.array([[value], [rest]], dtype), 3, axis=0).reshape(2, 3, 1).swapaxes(0, 1).reshape(6, 1)

    found = whole.merge_sums([of(1e6, small), of(-1e6, small), of(3.0, 0.0)])
    assert [told(found, row, 0) for row in (0, 2, 4)] == [3 + 2 * Fraction(small)] * 3
    assert whole.merge_sums([of(big, 0.0)] * 5)[::2, 0].tolist() == [np.inf] * 3


# --- what is made of them


@DTYPES
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1.0])
def test_inverse_deviation(epsilon: float, dtype: Any) -> None:
    """Rounded once from the exact one."""
    m2 = np.geomspace(1e-12, 1e12, 97)
    rows = np.stack([0 * m2, 0 * m2, m2, 0 * m2]).astype(dtype)
    rows[3] = rows[2] * (1e-8 if dtype == np.float32 else 1e-17)
    found = whole.inverse_deviation(60, rows, epsilon)
    assert found.dtype == dtype
    for channel, one in enumerate(found):
        var = told(rows, 2, channel) / 60 + Fraction(epsilon)
        scaled = math.isqrt(int((1 / var) * Fraction(2) ** 400))
        exact = Fraction(scaled, 2**200)
        assert abs(Fraction(float(one)) - exact) <= unit_of(one) * Fraction(50_001, 100_000)


@DTYPES
def test_deviations_that_are_none(dtype: Any) -> None:
    rows = np.zeros((4, 3), dtype)
    rows[2] = 0.0, np.inf, np.nan
    found = whole.inverse_deviation(5, rows, 0.0)
    assert found[0] == 0
    assert np.isnan(found[1:]).all()
    assert whole.inverse_deviation(5, rows, 1e-2)[0] == dtype(10.0)


@DTYPES
def test_gradients_of_parameters(dtype: Any) -> None:
    """dbias = sum dy; dscale = sum dy (x - mean) / deviation, the error of a rounded mean taken off again."""
    rng = np.random.default_rng(5)
    x, dy = (1e6 + rng.standard_normal((N, 1))).astype(dtype), rng.standard_normal((N, 1)).astype(dtype)
    moments = rows_of(exact_moments(x), dtype)
    saved = Fraction(float(moments[0, 0]))
    pairs = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(x[:, 0], dy[:, 0], strict=True)]
    sums = [sum(b for _, b in pairs), sum(b * (a - saved) for a, b in pairs), sum(a - saved for a, _ in pairs)]
    found = whole.gradients(N, moments, rows_of([sums], dtype), rows_of([sums], dtype), 1e-5)
    mean, m2 = exact_moments(x)[0]
    exact = float(sum(b * (a - mean) for a, b in pairs)) / math.sqrt(m2 / N + Fraction(1e-5))
    eps = float(np.finfo(dtype).eps)
    assert found.scale[0] == pytest.approx(exact, rel=eps)
    assert found.bias[0] == dtype(float(sums[0]))
    assert found.scale.dtype == found.bias.dtype == dtype
    own = whole.gradients(N, moments, rows_of([sums], dtype), rows_of([[s / 2 for s in sums]], dtype), 1e-5)
    assert own.scale[0] == pytest.approx(exact / 2, rel=eps)


OLD, NEW_MEAN, M2 = 4.0, 2.0, 27.0


def averaged(dtype: Any, *, old: float = OLD, m2: float = M2, entered: int | None = None, **options: Any) -> Any:
    rows = np.array([[NEW_MEAN], [0.0], [m2], [0.0]], dtype)
    names = {"running_mean": np.array([old], dtype), "running_var": np.array([old], dtype)}
    if entered is not None:
        names["entered"] = np.array([entered], np.uint32)
    names["skipped"] = np.array([7], np.uint32)
    averaging = Averaging(**{"factor": 0.25, "init_factor": 1.0, "guard": True, **options})
    made = whole.averaged(10, rows, averaging, names)
    assert {name: one.dtype for name, one in made.items()} == {name: one.dtype for name, one in names.items()}
    return {name: one[0].item() for name, one in made.items()}


@DTYPES
def test_running_statistics(dtype: Any) -> None:
    """By hand: the sample variance is 27 / 9 = 3."""
    assert averaged(dtype) == {"running_mean": 3.5, "running_var": 3.75, "skipped": 7}
    assert averaged(dtype, factor=0.0) == {"running_mean": 4.0, "running_var": 4.0, "skipped": 7}
    assert averaged(dtype, old=np.nan, factor=1.0) == {"running_mean": 2.0, "running_var": 3.0, "skipped": 7}
    first = {"running_mean": 2.0, "running_var": 3.0, "skipped": 7, "entered": 1}
    assert averaged(dtype, entered=0, old=np.inf) == first
    assert averaged(dtype, entered=1) == {"running_mean": 3.0, "running_var": 3.5, "skipped": 7, "entered": 2}
    assert averaged(dtype, entered=99)["running_mean"] == 3.5
    half = averaged(dtype, entered=0, init_factor=0.5)
    assert (half["running_mean"], half["entered"]) == (3.0, 1)


@DTYPES
@pytest.mark.parametrize("m2", [np.nan, np.inf])
def test_the_guard(m2: float, dtype: Any) -> None:
    kept = averaged(dtype, m2=m2, entered=3)
    assert kept == {"running_mean": 4.0, "running_var": 4.0, "skipped": 8, "entered": 3}
    moved = averaged(dtype, m2=m2, entered=3, guard=False)
    assert not np.isfinite(moved["running_var"])
    assert (moved["skipped"], moved["entered"]) == (7, 4)
    assert averaged(dtype, m2=m2, guard=False, factor=0.0)["running_var"] == 4.0


@DTYPES
def test_gathered(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    new, old = (rng.standard_normal(50).astype(dtype) for _ in range(2))
    found = whole.gathered(new, 0.7, old, 0.9)
    assert found.dtype == dtype
    for got, n, o in zip(found, new, old, strict=True):
        a, b = Fraction(0.7) * Fraction(float(n)), Fraction(0.9) * Fraction(float(o))
        room = unit_of(got) / 2 if dtype == np.float32 else 2 * Fraction(2) ** -53 * (abs(a) + abs(b))
        assert abs(Fraction(float(got)) - a - b) <= room * Fraction(100_001, 100_000)
    bad = np.full(50, np.nan, dtype)
    assert whole.gathered(new, 1.0, bad, 0.0).tobytes() == new.tobytes()
    assert whole.gathered(new, 2.0, None, 0.9).tobytes() == (2 * new).tobytes()


@DTYPES
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("shape", [(4, 3), (0, 2), (7,), ()], ids=str)
def test_summed(shape: tuple[int, ...], parts: int, dtype: Any) -> None:
    rng = np.random.default_rng(parts)
    given = [np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4), dtype) for _ in range(parts)]
    found = whole.summed(given)
    assert (found.shape, found.dtype) == (shape, dtype)
    for index in np.ndindex(shape):
        exact = sum(Fraction(float(one[index])) for one in given)
        assert abs(Fraction(float(found[index])) - exact) <= unit_of(found[index]) / 2 * (1 + Fraction(1, 2**20))
