"""functional.statistics and functional.merge: moments that are handed on and merged without loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, arrays, check_statistics, put
from data import EMPTY, FEW_SHAPES, NASTY

from oclbn.errors import ArrayTypeError, ContextError, DtypeError, ParameterError, ShapeError
from oclbn.functional import Statistics, bind, merge, moments, recording, statistics
from oclbn.truth import reference
from oclbn.truth.hostile import Offset, Spoiled, make
from oclbn.tuning import using

FORMS = [
    pytest.param({"lanes": 1}, id="one work-item"),
    pytest.param({"lanes": 16, "vec": 1}, id="16 work-items"),
]
UNEVEN = (1, 7, 1000, 100_001)
FAR = Offset(1e6)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[dict[str, int]]:
    with using(**request.param):
        yield request.param


def cut(host: np.ndarray, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """The rows of an array in parts of these lengths."""
    return np.split(host, np.cumsum(lengths)[:-1])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("order", [UNEVEN, UNEVEN[::-1], (1000, 1, 100_001, 7)], ids=str)
def test_uneven_parts_far_from_zero(queue: cl.CommandQueue, dtype: np.dtype, order: tuple[int, ...]) -> None:
    host = make((sum(UNEVEN), 3), 1, dtype, FAR)
    parts = [statistics(put(queue, part)) for part in cut(host.x, order)]
    assert [part.count for part in parts] == list(order)
    with recording() as launches:
        whole = merge(*parts)
    assert [name for name, _ in launches] == ["merge"] * 3
    check_statistics(whole, host)
    check_statistics(statistics(put(queue, host.x)), host)


def test_without_the_rests_digits_are_lost(queue: cl.CommandQueue) -> None:
    """What moments() gives is rounded: of the variance of these parts that leaves three digits."""
    host = make((sum(UNEVEN), 3), 1, maker=FAR)
    parts = [moments(put(queue, part)) for part in cut(host.x, UNEVEN)]
    none = cla.zeros(queue, 3, np.float32)
    rounded = merge(*(Statistics(count, mean, none, m2, none) for count, mean, m2 in parts))
    wanted = reference.statistics(host.x)
    assert np.abs(rounded.m2.get() / wanted.m2 - 1).max() > 1e-5
    with pytest.raises(AssertionError, match="times its tolerance"):
        check_statistics(rounded, host)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("shape", "axis", "maker"),
    [
        *(pytest.param(*row.values, FAR, id=row.id) for row in FEW_SHAPES),
        *(pytest.param((9, 5, 70), 1, *row.values, id=row.id) for row in NASTY),
    ],
)
def test_statistics(queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int, maker: Any) -> None:
    """Those of a whole, those merged of its halves, and what moments gives."""
    host = make(shape, axis, dtype, maker)
    x = put(queue, host.x)
    whole = statistics(x, axis=axis)
    check_statistics(whole, host, axis)
    count, mean, m2 = moments(x, axis=axis)
    assert (count, all_bits((mean, m2))) == (whole.count, all_bits((whole.mean, whole.m2)))
    halves = np.array_split(host.x, 2, axis=1 if axis == 0 else 0)
    first, last = (statistics(put(queue, np.ascontiguousarray(half)), axis=axis) for half in halves)
    check_statistics(merge(first, last), host, axis)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("parts", [2, 3, 64, 300])
def test_any_number_of_parts(queue: cl.CommandQueue, parts: int) -> None:
    """Of which each tenth is empty."""
    host = make((1000, 37), 1, maker=FAR)
    cuts = np.sort(np.random.default_rng(parts).integers(0, 1000, parts - 1))
    cuts[::10] = cuts[0]
    pieces = [statistics(put(queue, np.ascontiguousarray(piece))) for piece in np.split(host.x, np.sort(cuts))]
    whole = merge(*pieces)
    check_statistics(whole, host)
    assert all_bits(arrays(merge(*pieces))) == all_bits(arrays(whole))


def test_one_set_is_copied_and_none_is_changed(queue: cl.CommandQueue) -> None:
    one = statistics(put(queue, make((30, 5), 1, maker=FAR).x))
    before = all_bits(arrays(one))
    copy, both = merge(one), merge(one, one)
    assert all_bits(arrays(copy)) == all_bits(arrays(one)) == before
    assert not {id(array) for array in arrays(one)} & {id(array) for array in (*arrays(copy), *arrays(both))}
    assert both.count == 60
    np.testing.assert_allclose(both.m2.get(), 2 * one.m2.get(), rtol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), EMPTY)
def test_empty_sets_are_left_out(queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int) -> None:
    none = statistics(cla.empty(queue, shape, dtype), axis=axis)
    assert none.count == 0
    assert not any(array.get().any() for array in (*arrays(none), *arrays(merge(none, none))))
    one = statistics(put(queue, make((30, shape[axis]), 1, dtype, Spoiled(np.inf)).x))
    for merged in (merge(none, one), merge(one, none), merge(none, one, none, none)):
        assert (merged.count, all_bits(arrays(merged))) == (one.count, all_bits(arrays(one)))


def test_no_channels(queue: cl.CommandQueue) -> None:
    none = statistics(cla.empty(queue, (7, 0), np.float32))
    merged = merge(none, none)
    assert (merged.count, merged.mean.shape) == (14, (0,))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_channel_spoils_no_other(queue: cl.CommandQueue, value: float) -> None:
    host, clean = make((30, 5), 1, maker=Spoiled(value)), make((30, 5), 1)
    merged, other = (merge(*(statistics(put(queue, part)) for part in np.split(h.x, 3))) for h in (host, clean))
    for got, wanted in zip(arrays(merged), arrays(other), strict=True):
        assert got.get()[host.good].tobytes() == wanted.get()[host.good].tobytes()
    assert not np.isfinite(merged.mean.get()[list(host.bad)]).any()


def test_counts_beyond_32_bits(queue: cl.CommandQueue) -> None:
    one = statistics(put(queue, np.float32([[1.0], [3.0]])))
    billions = replace(one, count=1 << 40)
    merged = merge(billions, one)
    assert merged.count == (1 << 40) + 2
    assert merged.mean.get().tolist() == [2.0]


def test_views_and_shapes_of_their_own(queue: cl.CommandQueue) -> None:
    """As they come out of one message: rows of one array."""
    host = make((30, 5), 1, maker=FAR)
    parts = [statistics(put(queue, part)) for part in np.split(host.x, 2)]
    message = cla.to_device(queue, np.stack([array.get() for array in arrays(parts[1])]))
    received = Statistics(parts[1].count, *(message[row] for row in range(4)))
    wanted = all_bits(arrays(merge(*parts)))
    assert all_bits(arrays(merge(parts[0], received))) == wanted
    shaped = Statistics(parts[0].count, *(array.reshape(1, 5, 1, 1) for array in arrays(parts[0])))
    merged = merge(shaped, received)
    assert merged.mean.shape == merged.m2_rest.shape == (1, 5, 1, 1)
    assert all_bits(arrays(merged)) == wanted


def test_bound(queue: cl.CommandQueue) -> None:
    """Prepared once; the parts' memory is read anew each time."""
    host = make((30, 5), 1, maker=FAR)
    batches = [put(queue, part) for part in np.split(host.x, 3)]
    steps = [bind(statistics, batch) for batch in batches]
    join = bind(merge, *(step() for step in steps))
    again = bind(merge, *(step() for step in steps))
    first = all_bits(arrays(join()))
    assert first == all_bits(arrays(merge(*map(statistics, batches))))
    batches[1].set(batches[1].get() + np.float32(50))
    for step in steps:
        step()
    assert join() is join()
    assert all_bits(arrays(join())) == all_bits(arrays(merge(*map(statistics, batches)))) != first
    assert all_bits(arrays(again())) == all_bits(arrays(join()))


def test_out_of_order(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    host = make((64, 8, 64, 64), 1)

    def run(where: cl.CommandQueue) -> list[bytes]:
        merged = merge(*(statistics(put(where, part)) for part in np.split(host.x, 8)))
        return all_bits(arrays(merge(merged, merged)))

    assert run(free_queue) == run(queue)


# --- what is refused


def some(queue: cl.CommandQueue, channels: int = 3, dtype: Any = np.float32) -> Statistics:
    return Statistics(2, *(cla.zeros(queue, channels, dtype) for _ in range(4)))


@pytest.mark.parametrize("field", [field.name for field in fields(Statistics)][1:])
@pytest.mark.parametrize("at", [0, 2])
def test_bad_arrays_are_named(queue: cl.CommandQueue, other_queue: cl.CommandQueue, field: str, at: int) -> None:
    name = rf"\b{'first' if at == 0 else f'others.{at - 1}.'}\.{field}\b"

    def refused(value: Any, error: type, builtin: type) -> None:
        parts = [some(queue) for _ in range(3)]
        parts[at] = replace(parts[at], **{field: value})
        with pytest.raises(error, match=name) as caught, recording() as launches:
            merge(*parts)
        assert isinstance(caught.value, builtin)
        assert not launches

    refused(np.zeros(3, np.float32), ArrayTypeError, TypeError)
    refused(cla.zeros(queue, 4, np.float32), ShapeError, ValueError)
    refused(cla.zeros(queue, 3, np.int32), DtypeError, TypeError)
    refused(cla.zeros(other_queue, 3, np.float32), ContextError, ValueError)


@pytest.mark.parametrize("value", [-1, 1.5, "2", None, True, 1 << 63], ids=str)
def test_bad_counts_are_named(queue: cl.CommandQueue, value: Any) -> None:
    with pytest.raises(ParameterError, match=r"\bothers\[0\]\.count is "):
        merge(some(queue), replace(some(queue), count=value))


def test_what_is_no_statistics_is_named(queue: cl.CommandQueue) -> None:
    with pytest.raises(ArrayTypeError, match=r"others\[0\] is a builtins\.tuple; Statistics are wanted"):
        merge(some(queue), moments(cla.zeros(queue, (4, 3), np.float32)))
    with pytest.raises(ParameterError, match="the sum of all counts is 9"):
        merge(*[replace(some(queue), count=(1 << 62) + 1)] * 2)
    with pytest.raises(ContextError, match=r"first\.mean has no queue"):
        merge(replace(some(queue), mean=some(queue).mean.with_queue(None)))


# --- the reference itself


def test_the_reference_is_exact() -> None:
    """Judged by rational arithmetic."""
    x = make((50, 2), 1, np.float64, FAR).x
    whole = reference.merge(*map(reference.statistics, np.split(x, [1, 8])))
    for channel in range(2):
        values = [Fraction(float(value)) for value in x[:, channel]]
        mean = sum(values) / len(values)
        m2 = sum((value - mean) ** 2 for value in values)
        for got in (whole, reference.statistics(x)):
            assert got.count == 50
            assert abs(Fraction(float(got.mean[channel])) + Fraction(float(got.mean_rest[channel])) - mean) < 1e-15
            assert abs(Fraction(float(got.m2[channel])) - m2) <= m2 * Fraction(2) ** -48
