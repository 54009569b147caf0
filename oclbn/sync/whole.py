"""The statistics of a whole batch from those of its parts, on the host: what every member of a group computes alike.

For float32 data the maths is in float64, which holds a value and its rest; for float64 data in pairs. Parts are summed
by halves in their order, elementwise: the same parts in the same order give the same bits on every machine, and however
a batch is cut, results differ by one rounding at most.

Rows are arrays of C numbers of the data's dtype, a value and then the rest that its rounding lost: MOMENTS and SUMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.sync.pairs import Pair, concatenated, inverse_root

Rows = NDArray[Any]  # (rows, C)
Wide = Any  # float64s, or a Pair of them

MOMENTS = ("mean", "mean_rest", "m2", "m2_rest")
SUMS = ("sum_dy", "sum_dy_rest", "sum_dy_xmu", "sum_dy_xmu_rest", "sum_xmu", "sum_xmu_rest")


@dataclass(frozen=True)
class Gradients:
    """dscale and dbias of C channels each, in the data's dtype."""

    scale: NDArray[Any]
    bias: NDArray[Any]


def merge_moments(counts: Sequence[int], parts: Sequence[Rows]) -> tuple[int, Rows]:
    """Count and MOMENTS of all values; parts without values do not matter.

    With n_i values, mean_i and m2_i in part i:  mean = sum(n_i mean_i) / n,  m2 = sum(m2_i) + sum(n_i (mean_i -
    mean)^2), as T. Chan, G. Golub and R. LeVeque have it for two ("Updating formulae and a pairwise algorithm for
    computing sample variances", 1979).
    """
    full = [(count, rows) for count, rows in zip(counts, parts, strict=True) if count]
    if len(full) < 2:
        return (full[0][0], full[0][1]) if full else (0, np.zeros_like(parts[0]))
    total = sum(count for count, _ in full)
    stacked = np.stack([rows for _, rows in full])
    # By a power of two too small, so that sums over parts stay in the range that the parts are in.
    weights = np.array([[count] for count, _ in full], np.float64) / 2.0 ** total.bit_length()
    with np.errstate(all="ignore"):
        centre = stacked[0, 0].astype(np.float64)
        distances = _wide(stacked, 0) - centre
        step = _sum(distances * weights) / (total / 2.0 ** total.bit_length())
        off = distances - step
        squares = _sum(off * off * weights * 2.0 ** total.bit_length())
        return total, _rows([step + centre, _sum(_wide(stacked, 2)) + squares], stacked)


def merge_sums(parts: Sequence[Rows]) -> Rows:
    """SUMS over all values of the parts that have any."""
    if len(parts) < 2:
        return parts[0]
    stacked = np.stack(parts)
    with np.errstate(all="ignore"):
        return _rows([_sum(_wide(stacked, first)) for first in (0, 2, 4)], stacked)


def inverse_deviation(count: int, moments: Rows, epsilon: float) -> NDArray[Any]:
    """1 / sqrt(m2 / count + epsilon), in the data's dtype, as oclbn's kernels have it.

    0 where the root is, NaN where m2 is infinite.
    """
    return _rounded(_inverse_deviation(count, moments, epsilon), moments.dtype)


def gradients(count: int, moments: Rows, sums: Rows, own: Rows, epsilon: float) -> Gradients:
    """Those of scale and bias by `own` SUMS, a part's or the whole's.

    count, moments, sums: of the whole batch, whose mean's rounding error is taken off: dbias = sum(dy),
    dscale = sum(dy (x - mean)) / sqrt(var + epsilon).
    """
    with np.errstate(all="ignore"):
        deviation = _value(_wide(sums[None], 4))[0] / count
        mean, eps = moments[0].astype(np.float64), np.finfo(moments.dtype).eps
        rest = np.where(np.abs(deviation) <= np.abs(mean) * eps, deviation, 0.0)
        slope = _wide(own[None], 0)[0]
        product = _wide(own[None], 2)[0] - slope * rest
        scale = product * _inverse_deviation(count, moments, epsilon)
        return Gradients(_rounded(scale, moments.dtype), _rounded(slope, moments.dtype))


@dataclass(frozen=True)
class Averaging:
    """How a batch enters running statistics: see batch_norm_train."""

    factor: float
    init_factor: float
    guard: bool
    taken_off: int = 1  # from the number of values, where the variance is divided by it


def finite(moments: Rows) -> NDArray[np.bool_]:
    """Of each channel, whether its statistics are: the guard lets the others out."""
    both: NDArray[np.bool_] = np.isfinite(moments[0]) & np.isfinite(moments[2])
    return both


def averaged(count: int, moments: Rows, averaging: Averaging, old: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Running statistics and counters after a batch, by batch_norm_train's names, those of `old`."""
    moved = finite(moments) | (not averaging.guard)
    weight: Any = np.full(len(moved), averaging.factor)
    if "entered" in old:
        weight = np.maximum(averaging.init_factor / (old["entered"].astype(np.float64) + 1), averaging.factor)
    with np.errstate(all="ignore"):
        batch = {
            "running_mean": moments[0].astype(np.float64),
            "running_var": _value(_wide(moments[None], 2))[0] / (count - averaging.taken_off),
        }
        made = {}
        for name, before in old.items():
            if name in batch:
                kept = np.where(weight == 1, 0.0, (1 - weight) * before)
                after = np.where(weight == 0, before, kept + weight * batch[name])
                made[name] = np.where(moved, after, before).astype(before.dtype)
            else:
                counted = moved if name == "entered" else ~moved
                made[name] = before + counted.astype(before.dtype)
        return made


def gathered(new: NDArray[Any], scale: float, old: NDArray[Any] | None, momentum: float) -> NDArray[Any]:
    """scale new + momentum old, rounded once where the dtype is float32."""
    with np.errstate(all="ignore"):
        wide = scale * new.astype(np.float64)
        return (wide if old is None or momentum == 0 else wide + momentum * old.astype(np.float64)).astype(new.dtype)


def summed(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The sum of arrays of one shape and dtype, elementwise, by halves in their order, in float64 (pairs for that)."""
    stacked = np.stack(parts).astype(np.float64)
    with np.errstate(all="ignore"):
        whole = _sum(Pair(stacked) if parts[0].dtype == np.float64 else stacked)
        return _rounded(whole, parts[0].dtype)


def _inverse_deviation(count: int, moments: Rows, epsilon: float) -> Wide:
    with np.errstate(all="ignore"):
        m2 = _wide(moments[None], 2)[0]
        var = m2 / count + epsilon
        root = inverse_root(var) if isinstance(var, Pair) else 1 / np.sqrt(var)
        value, known = _value(var), np.isfinite(moments[2])
        exact = np.isfinite(_value(root)) & known
        rest = np.where(exact, root.rest, 0.0) if isinstance(root, Pair) else 0.0
        first = np.where(known, np.where(value == 0, 0.0, _value(root)), np.nan)
        return Pair(first, rest) if isinstance(root, Pair) else first


def _wide(stacked: Rows, first: int) -> Wide:
    """Values and rests in rows `first` and the next of (parts, rows, C)."""
    values, rests = stacked[:, first].astype(np.float64), stacked[:, first + 1].astype(np.float64)
    if stacked.dtype == np.float64:
        return Pair(values, rests)
    return values + np.where(np.isfinite(values), rests, 0.0)


def _sum(parts: Wide) -> Wide:
    """Over the first axis, by halves: 0 + 2, 1 + 3, then those."""
    while len(parts) > 1:
        half = len(parts) // 2
        folded = parts[:half] + parts[half : 2 * half]
        left = parts[2 * half :]
        if len(left):
            folded = concatenated(folded, left) if isinstance(parts, Pair) else np.concatenate([folded, left])
        parts = folded
    return parts[0]


def _value(wide: Wide) -> NDArray[np.float64]:
    return wide.value if isinstance(wide, Pair) else wide


def _rounded(wide: Wide, dtype: np.dtype[Any]) -> NDArray[Any]:
    rounded: NDArray[Any] = _value(wide).astype(dtype)
    return rounded


def _rows(wides: Sequence[Wide], like: Rows) -> Rows:
    """Value and rest of each, in rows of like's dtype."""
    made: list[NDArray[Any]] = []
    for wide in wides:
        value = _rounded(wide, like.dtype)
        rest = wide.rest if isinstance(wide, Pair) else wide - value
        made += [value, np.where(np.isfinite(value), rest, 0.0).astype(like.dtype)]
    return np.stack(made)
