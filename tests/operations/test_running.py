"""Running statistics: how much each batch weighs in them, channel by channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import put
from data import FEW_SHAPES
from forms import forced
from tolerances import assert_within

from oclbn.errors import ArrayTypeError, DtypeError, OclbnError, ParameterError, ShapeError
from oclbn.functional import batch_norm_train, bind, merge, move_running, normalize, statistics
from oclbn.gpuarray import pack
from oclbn.truth import reference
from oclbn.truth.bounds import Bound
from oclbn.truth.hostile import Offset, Spoiled, gaussian, make

WAYS = [
    pytest.param({}, id="as planned"),
    pytest.param({"variant": "split"}, id="split"),
    pytest.param({"variant": "serial"}, id="serial"),
    pytest.param({"variant": "resident", "lanes": 16, "vec": 1, "blocks": 1}, id="groups of 16"),
    pytest.param({"lanes": 1, "vec": 4, "blocks": 2}, id="vectors of 4"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_an_average_over_the_batches_that_entered(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, way: dict[str, Any]
) -> None:
    channels = shape[axis]
    mean, var, entered = np.zeros(channels), np.ones(channels), np.full(channels, 8, np.uint32)
    entered[-1], entered[0] = 1, 0
    state = [put(queue, a) for a in (mean.astype(np.float32), var.astype(np.float32), entered)]
    skipped = put(queue, np.zeros(channels, np.uint32))
    with forced(queue, **way):
        for n in range(5):
            host = make(shape, axis, maker=Spoiled(np.nan) if n % 2 else gaussian, seed=n)
            options: dict[str, Any] = {"axis": axis, "init_factor": 0.75, "factor": 0.08}
            given = state[0].get(), state[1].get()
            batch_norm_train(put(queue, host.x), None, None, *state[:2], entered=state[2], skipped=skipped, **options)
            wanted = reference.train(host.x, None, None, *given, entered=entered, **options)
            assert wanted.entered is not None
            bound = Bound(host.x, wanted.mean, wanted.invstd, None, None, axis=axis, dtype=np.float32)
            factors = np.maximum(0.75 / (entered + 1.0), 0.08)  # those of the batch
            unbiased = wanted.var * (host.x.size // channels) / (host.x.size // channels - 1)
            for found, value, room in (
                (state[0], wanted.running_mean, bound.running_mean(given[0], factors)),
                (state[1], wanted.running_var, bound.running_var(given[1], unbiased, factors)),
            ):
                assert_within(found, value, np.nan_to_num(room, nan=0.0), f"batch {n}")
            entered = wanted.entered
            assert state[2].get().tolist() == entered.tolist()
    start = np.full(channels, 8)
    start[-1], start[0] = 1, 0
    assert (skipped.get() + entered - start).tolist() == [5] * channels


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
def test_running_statistics_of_all_data(queue: cl.CommandQueue, bound: bool) -> None:
    """With factor 0 they are the plain average of the batches, however many, and of the finite ones alone."""
    data = np.random.default_rng(5).normal(3, 2, (40, 16, 4)).astype(np.float32)
    data[7, 3, 1] = np.nan
    x, mean, var = put(queue, data[0]), put(queue, np.zeros(4, np.float32)), put(queue, np.ones(4, np.float32))
    options: dict[str, Any] = {"factor": 0.0, "entered": put(queue, np.zeros(4, np.uint32))}
    step = bind(batch_norm_train, x, None, None, mean, var, **options) if bound else None
    for batch in data:
        x.set(batch)
        if step:
            step()
        else:
            batch_norm_train(x, None, None, mean, var, **options)
    assert options["entered"].get().tolist() == [40, 39, 40, 40]
    np.testing.assert_allclose(mean.get(), np.nanmean(data.astype(np.float64).mean(axis=1), axis=0), rtol=1e-5)
    np.testing.assert_allclose(var.get(), np.nanmean(data.astype(np.float64).var(axis=1, ddof=1), axis=0), rtol=1e-5)


def test_counters_stay_at_their_end(queue: cl.CommandQueue) -> None:
    """Rather than begin with 0 again, whose factor would wipe the statistics."""
    for shape in ((5, 4, 6), (9, 4)):
        most, mean = put(queue, np.full(4, 2**32 - 1, np.uint32)), put(queue, np.full(4, 7, np.float32))
        for _ in range(2):
            batch_norm_train(put(queue, make(shape, 1).x), None, None, mean, None, entered=most, factor=0.0)
        assert most.get().tolist() == [2**32 - 1] * 4
        np.testing.assert_allclose(mean.get(), 7, rtol=1e-6)


def test_an_initial_factor_out_of_range(queue: cl.CommandQueue) -> None:
    with pytest.raises(ParameterError, match="init_factor is 2; a number from 0 to 1 is wanted"):
        batch_norm_train(put(queue, make((5, 4, 6), 1).x), None, None, None, None, init_factor=2)


@pytest.mark.parametrize("way", WAYS)
def test_what_weighs_nothing_does_not_count(queue: cl.CommandQueue, way: dict[str, Any], dtype: np.dtype[Any]) -> None:
    """Factor 1 replaces what was there, and factor 0 keeps it, NaN and infinity included."""
    host = make((7, 5, 30), 1, dtype, Spoiled(np.nan))
    (bad,) = host.bad
    for old, factor in ((np.nan, 1.0), (np.inf, 1.0), (2.5, 0.0)):
        state = [put(queue, np.full(5, old, dtype)) for _ in range(2)]
        with forced(queue, **way):
            batch_norm_train(put(queue, host.x), None, None, *state, factor=factor, guard=False)
        given = np.full(5, old), np.full(5, old)
        wanted = reference.train(host.x, None, None, *given, factor=factor, guard=False)
        assert wanted.running_mean is not None
        assert np.isnan(wanted.running_mean[bad]) == (factor == 1)
        for found, value in zip(state, (wanted.running_mean, wanted.running_var), strict=True):
            np.testing.assert_allclose(found.get(), value, rtol=1e-5, atol=1e-5)
        assert np.isfinite(state[0].get()[host.good]).all()


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
@pytest.mark.parametrize("order", ["x in no order", "out in another order"])
def test_batches_are_counted_where_results_lie_otherwise(queue: cl.CommandQueue, order: str, bound: bool) -> None:
    """Copies before and after a call leave nothing of what it was given behind."""
    host = make((4, 3, 5), 1)
    outs: list[dict[str, Any]] = [{}, {}]
    xs = [put(queue, host.x), put(queue, host.x)]
    if order == "x in no order":
        xs[1] = put(queue, host.x.transpose(2, 0, 1).copy()).transpose((1, 2, 0))
    else:
        outs[1] = {"out": put(queue, np.full(host.x.shape, np.nan, np.float32, order="F"))}
    seen = []
    for x, out in zip(xs, outs, strict=True):
        state = [put(queue, array) for array in (host.running_mean, host.running_var, np.uint32([3, 0, 9]))]
        given = (x, put(queue, host.scale), put(queue, host.bias), *state[:2])
        options = {"epsilon": 0.1, "factor": 0.05, "entered": state[2], "init_factor": 0.5, **out}
        results = bind(batch_norm_train, *given, **options)() if bound else batch_norm_train(*given, **options)
        seen.append([pack(array).get() for array in (*results, *state)])
    for straight, astray in zip(*seen, strict=True):
        np.testing.assert_allclose(astray, straight, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen[1][-1], [4, 1, 10])


@pytest.mark.parametrize("estimator", ["sample", "population"])
@pytest.mark.parametrize("form", [{}, {"variant": "split"}, {"lanes": 16, "vec": 1, "blocks": 1}], ids=str)
def test_estimators_of_the_variance(
    queue: cl.CommandQueue, dtype: np.dtype, form: dict[str, Any], estimator: str
) -> None:
    """Of few values, where they differ: by one call, by its steps, and by what moves without normalising."""
    host = make((3, 5), 1, dtype, Offset(100.0))
    x, options = put(queue, host.x), {"factor": 0.25, "estimator": estimator}
    found = reference.train(host.x)
    var = found.var if estimator == "population" else found.var * 3 / 2
    bound = Bound(host.x, found.mean, found.invstd, None, None, axis=1, dtype=dtype)
    with forced(queue, **form):
        for way in ("train", "bound", "normalize", "move"):
            mean, moved = (put(queue, array) for array in (host.running_mean, host.running_var))
            if way == "train":
                batch_norm_train(x, None, None, mean, moved, **options)  # type: ignore[arg-type]
            elif way == "bound":
                bind(batch_norm_train, x, None, None, mean, moved, **options)()  # type: ignore[arg-type]
            elif way == "normalize":
                normalize(x[:1], statistics(x), None, None, mean, moved, **options)  # type: ignore[arg-type]
            else:
                move_running(merge(statistics(x[:1]), statistics(x[1:])), mean, moved, **options)  # type: ignore[arg-type]
            for got, old, new, room in (
                (mean, host.running_mean, found.mean, bound.running_mean(host.running_mean, 0.25)),
                (moved, host.running_var, var, bound.running_var(host.running_var, var, 0.25)),
            ):
                assert_within(got, 0.75 * old.astype(np.float64) + 0.25 * new, room, way)


@pytest.mark.once(reason="the kernel is that of normalize, and its arguments are compared with training's")
def test_moving_is_what_training_does(queue: cl.CommandQueue, dtype: np.dtype) -> None:
    """To the bit, counters and guard included; `bind` repeats it."""
    host = make((8, 4, 6), 1, dtype, Spoiled(np.nan))
    x, results = put(queue, host.x), []
    whole = statistics(x)
    for way in ("normalize", "move", "bound"):
        mean, var = put(queue, host.running_mean), put(queue, host.running_var)
        counters = {name: put(queue, np.arange(4, dtype=np.uint32)) for name in ("skipped", "entered")}
        options: dict[str, Any] = {"factor": 0.3, "init_factor": 0.7, **counters}
        if way == "normalize":
            normalize(x, whole, None, None, mean, var, **options)
        elif way == "move":
            assert move_running(whole, mean, var, **options) is None  # type: ignore[func-returns-value]
        else:
            bind(move_running, whole, mean, var, **options)()
        results.append([a.get().tobytes() for a in (mean, var, *counters.values())])
    assert results[0] == results[1] == results[2]
    assert np.frombuffer(results[0][2], np.uint32).tolist() == [0, 1, 3, 3]


@pytest.mark.once(reason="what is refused is refused on the host")
def test_what_is_not_moved(queue: cl.CommandQueue) -> None:
    x = put(queue, make((3, 5), 1).x)
    mean, var = put(queue, np.zeros(5, np.float32)), put(queue, np.ones(5, np.float32))
    wrong: list[tuple[type[OclbnError], str, Any]] = [
        (ParameterError, r"^estimator is 'unbiased'; 'sample' or 'population' is wanted$", {"estimator": "unbiased"}),
        (ParameterError, r"^estimator is None; ", {"estimator": None}),
        (ParameterError, r"^factor is 2; ", {"factor": 2}),
        (DtypeError, r"^entered is float32; uint32 is wanted", {"entered": mean}),
    ]
    for error, message, options in wrong:
        for call in (
            lambda options=options: batch_norm_train(x, None, None, mean, var, **options),
            lambda options=options: normalize(x, statistics(x), None, None, mean, var, **options),
            lambda options=options: move_running(statistics(x), mean, var, **options),
        ):
            with pytest.raises(error, match=message):
                call()
    half = put(queue, np.ones(5, np.float16))
    with pytest.raises(DtypeError, match=r"^running_var is float16; float32 is wanted, as statistics\.mean is"):
        move_running(statistics(x), mean, half)
    with pytest.raises(
        ShapeError, match=r"^running_mean has 4 elements and statistics\.mean 5; equal sizes are wanted$"
    ):
        move_running(statistics(x), mean[:4], var)
    with pytest.raises(ShapeError, match=r"^statistics are of 1 values per channel; two at least are wanted"):
        move_running(statistics(x[:1]), mean, var)
    with pytest.raises(ArrayTypeError, match=r"^statistics is a builtins\.tuple; Statistics are wanted"):
        move_running((1, 2), mean, var)  # type: ignore[arg-type]
    move_running(statistics(x[:0]), mean, var)
    move_running(statistics(x), None, None)
    move_running(statistics(x[:, :0]), mean[:0], None)
    assert (mean.get().tolist(), var.get().tolist()) == ([0.0] * 5, [1.0] * 5)
