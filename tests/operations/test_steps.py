"""A batch in parts: statistics and sums of parts, merged, do what one call on the whole does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, bits, check_in_parts, put
from covering import crossed

from oclbn.errors import ArrayTypeError, DtypeError, OverlapError, ParameterError, ShapeError
from oclbn.functional import (
    GradientSums,
    Statistics,
    batch_norm_backward,
    batch_norm_train,
    bind,
    gradient,
    gradient_sums,
    merge,
    normalize,
    recording,
    statistics,
)
from oclbn.truth import reference
from oclbn.truth.hostile import Data, Offset, make
from oclbn.tuning import using

FORMS = [
    pytest.param({}, id="as planned"),
    pytest.param({"variant": "split", "lanes": 32, "vec": 1, "blocks": 1}, id="groups of 32"),
    pytest.param({"variant": "serial"}, id="serial"),
    pytest.param({"variant": "resident"}, id="where there is no such variant"),
]


@pytest.mark.parametrize(
    ("shape", "axis", "cuts", "form"),
    crossed(
        [
            pytest.param((9, 5, 7), 1, (1, 2), id="rows, uneven parts"),
            pytest.param((40, 17), 1, (39,), id="columns, one value in a part"),
            pytest.param((6, 3, 5, 4), 3, (2, 4), id="channels last"),
            pytest.param((30, 2, 501), 1, (7, 11), id="long rows"),
        ],
        FORMS,
        reason="on each runtime each shape and each form comes in parts, one with the other",
    ),
)
@pytest.mark.parametrize("maker", [None, Offset(1e6)], ids=["N(0,1)", "mean 1e6 std"])
def test_parts_are_as_exact_as_the_whole(
    queue: cl.CommandQueue,
    dtype: np.dtype,
    shape: tuple[int, ...],
    axis: int,
    cuts: tuple[int, ...],
    form: dict[str, Any],
    maker: Any,
) -> None:
    host = make(shape, axis, dtype, maker) if maker else make(shape, axis, dtype)
    with using(**form):
        check_in_parts(queue, host, axis, cuts)


def test_a_whole_batch_in_steps_is_a_split_call(queue: cl.CommandQueue) -> None:
    """To the bit: where one launch cannot do it, the calls are made of these steps."""
    host = make((50, 3, 700), 1, maker=Offset(100.0))
    x, dy, scale, bias = (put(queue, a) for a in (host.x, host.dy, host.scale, host.bias))
    moved, alike = ([put(queue, a) for a in (host.running_mean, host.running_var)] for _ in range(2))
    with using(variant="split", groups_per_unit=1):
        with recording() as launches:
            y, mean, invstd = batch_norm_train(x, scale, bias, *moved)
            made = batch_norm_backward(x, dy, scale, mean, invstd)
        assert [name for name, _ in launches] == [
            "moments_partial",
            "train_apply",
            "backward_partial",
            "backward_apply",
        ]
        with recording() as launches:
            whole = statistics(x)
            assert bits(normalize(x, whole, scale, bias, *alike)) == bits(y)
            assert all_bits(gradient(x, dy, whole, gradient_sums(x, dy, whole), scale)) == all_bits(made)
        assert [name for name, _ in launches] == [
            "moments_partial",
            "moments_merge",
            "train_apply",
            "backward_partial",
            "sums_merge",
            "invstd",
            "backward_apply",
        ]
    assert all_bits(tuple(alike)) == all_bits(tuple(moved))


def test_what_a_training_call_does_beside_y(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    host.x[3, 2, 1] = np.nan
    x = put(queue, host.x)
    results = []
    for own in (False, True):
        mean, var = put(queue, host.running_mean), put(queue, host.running_var)
        counters = {name: cla.zeros(queue, 4, np.uint32) for name in ("skipped", "entered")}
        options: dict[str, Any] = {"factor": 0.3, "init_factor": 0.7, "epsilon": 1e-3, **counters}
        if own:
            y = normalize(x, statistics(x), None, None, mean, var, **options)
        else:
            y, *_ = batch_norm_train(x, None, None, mean, var, **options)
        results.append([a.get() for a in (y, mean, var, *counters.values())])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert results[1][3].tolist() == [0, 0, 1, 0]


def test_gradients_are_gathered(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    x, dy, scale = (put(queue, a) for a in (host.x, host.dy, host.scale))
    whole = statistics(x)
    into = {name: cla.zeros(queue, 4, np.float32) + 1 for name in ("scale_grad", "bias_grad")}
    _, dscale, dbias = gradient(
        x, dy, whole, gradient_sums(x, dy, whole), scale, **into, grad_scale=2.0, grad_momentum=0.5
    )
    for name, new in (("scale_grad", dscale), ("bias_grad", dbias)):
        np.testing.assert_allclose(into[name].get(), 2.0 * new.get() + 0.5, rtol=1e-6)


def test_results_lie_where_they_are_wanted(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    out, whole = cla.zeros(queue, (8, 4, 6), np.float32), statistics(x)
    assert normalize(x, whole, out=out) is out
    assert bits(out) == bits(normalize(x, whole))
    dx, *_ = gradient(x, dy, whole, gradient_sums(x, dy, whole), out=out)
    assert dx is out
    fortran = cla.to_device(queue, np.asfortranarray(host.dy))
    assert bits(gradient(x, fortran, whole, gradient_sums(x, fortran, whole))[0]) == bits(dx)


def test_bound_steps(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    first, total = bind(statistics, x), bind(merge, statistics(x), statistics(x))
    assert total().count == 2 * first().count
    step, y = bind(normalize, x, first()), normalize(x, first())
    assert bits(step()) == bits(y)
    sums = bind(gradient_sums, x, dy, first())
    back = bind(gradient, x, dy, first(), sums())
    assert all_bits(back()) == all_bits(gradient(x, dy, first(), sums()))


def test_empty_parts(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    nothing, whole = cla.zeros(queue, (0, 4, 6), np.float32), statistics(x)
    mean = put(queue, host.running_mean)
    assert normalize(nothing, whole, None, None, mean, None).shape == (0, 4, 6)
    assert bits(mean) == host.running_mean.tobytes()
    sums = gradient_sums(x, dy, whole)
    merged = merge(gradient_sums(nothing, nothing, whole), sums)
    assert merged.count == sums.count
    assert bits(merged.sum_dy) == bits(sums.sum_dy)
    dx, *parameters = gradient(nothing, nothing, whole, sums)
    assert dx.shape == (0, 4, 6)
    out = cla.zeros(queue, (0, 4, 6), np.float32)
    assert gradient(nothing, nothing, whole, sums, out=out)[0] is out
    assert all_bits(tuple(parameters)) == all_bits(gradient(x, dy, whole, sums)[1:])


def test_sums_that_cancel(queue: cl.CommandQueue) -> None:
    """Of two parts, whose sums are alike but for the sign; what is left is what rounding lost."""
    rng = np.random.default_rng(3)
    host = make((64, 3, 50), 1)
    x, dy = host.x[:32], (rng.standard_normal((32, 3, 50)) * 1e4).astype(np.float32)
    device = put(queue, x)
    whole = statistics(device)
    tiny = (dy * np.float32(2.0**-20)).astype(np.float32)
    parts = [gradient_sums(device, put(queue, one), whole) for one in (dy, -dy, tiny)]
    merged = merge(*parts)
    wanted = tiny.astype(np.float64).sum((0, 2))
    found = merged.sum_dy.get().astype(np.float64) + merged.sum_dy_rest.get()
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(tiny).sum()


def bad(queue: cl.CommandQueue, host: Data) -> dict[str, Any]:
    x, dy = put(queue, host.x), put(queue, host.dy)
    whole = statistics(x)
    return {"x": x, "dy": dy, "statistics": whole, "sums": gradient_sums(x, dy, whole)}


def test_bad_arguments_are_named(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    a = bad(queue, host)
    x, dy, whole, sums = a.values()
    with pytest.raises(
        ArrayTypeError, match=r"^statistics is a builtins\.tuple; Statistics are wanted, as statistics\(x\) gives"
    ):
        normalize(x, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ArrayTypeError, match=r"^sums is a oclbn\.steps\.Statistics; GradientSums is wanted"):
        gradient(x, dy, whole, whole)  # type: ignore[arg-type]
    with pytest.raises(ArrayTypeError, match=r"^others\[0\] is a oclbn\.steps\.GradientSums; Statistics are wanted"):
        merge(whole, sums)
    with pytest.raises(ShapeError, match=r"^statistics\.mean has 4 elements"):
        normalize(cla.zeros(queue, (8, 5, 6), np.float32), whole)
    with pytest.raises(ShapeError, match=r"^statistics are of 1 values per channel; two at least are wanted"):
        normalize(x, Statistics(1, whole.mean, whole.mean_rest, whole.m2, whole.m2_rest))
    with pytest.raises(ParameterError, match=r"^sums.count is 48; 96 is wanted, as the statistics are of so many"):
        gradient(x, dy, merge(whole, whole), sums)
    with pytest.raises(OverlapError, match=r"^out overlaps x"):
        normalize(x, whole, out=x)
    wide = [cla.zeros(queue, 4, np.uint32)] * 4
    with pytest.raises(DtypeError, match=r"^statistics\.mean is uint32; float32 is wanted"):
        normalize(x, Statistics(24, *wide))


def test_many_launches_keep_their_own_numbers(queue: cl.CommandQueue) -> None:
    """A step's launch has one set, whatever the slices of the plan; the split call that runs next has its own."""
    host = make((400, 3, 40), 1)
    x = put(queue, host.x)
    with using(variant="split"):
        y, mean, _ = batch_norm_train(x, None, None, None, None)
        assert bits(normalize(x, statistics(x))) == bits(y)
        again, mean_again, _ = batch_norm_train(x, None, None, None, None)
    assert bits(again) == bits(y)
    assert bits(mean_again) == bits(mean)
    np.testing.assert_allclose(mean.get(), reference.moments(host.x)[1], rtol=1e-5, atol=1e-6)


def test_sums_have_names(queue: cl.CommandQueue) -> None:
    host = make((8, 4, 6), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    sums = gradient_sums(x, dy, statistics(x))
    assert isinstance(sums, GradientSums)
    assert sums.count == 48
    np.testing.assert_allclose(sums.sum_dy.get(), host.dy.sum((0, 2)), rtol=1e-4, atol=1e-4)


def test_sums_are_of_one_batch(queue: cl.CommandQueue) -> None:
    """About each part's own statistics they make no gradient of the whole, though the counts add up."""
    host = make((8, 4, 6), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    parts = [(x[:3], dy[:3]), (x[3:], dy[3:])]
    own = [gradient_sums(part, slope, statistics(part)) for part, slope in parts]
    with pytest.raises(ParameterError, match=r"^others\[0\] is of a batch of 30 values per channel, first of one"):
        merge(*own)
    whole = statistics(x)
    with pytest.raises(ParameterError, match=r"^sums\.count is 18; 48 is wanted"):
        gradient(x, dy, whole, own[0])
    twice = merge(whole, whole)
    wrong = merge(*[gradient_sums(x, dy, whole)] * 2)
    with pytest.raises(ParameterError, match=r"^sums are of a batch of 48 values per channel, statistics of one of 96"):
        gradient(x, dy, twice, wrong)
    with pytest.raises(ParameterError, match=r"^statistics are of 18 values per channel, and x, a part of the batch"):
        normalize(x, statistics(x[:3]))
    with pytest.raises(ArrayTypeError, match=r"^first is a builtins\.list; .*; give them one by one: merge\(\*parts"):
        merge([whole, whole])  # type: ignore[type-var]
