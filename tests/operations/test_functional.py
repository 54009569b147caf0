"""The four calls of oclbn.functional against the float64 reference."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import (
    FOUR,
    all_bits,
    bits,
    check,
    everything,
    fixed,
    foreign,
    lying,
    put,
    surroundings,
)
from covering import crossed
from data import COLUMNS, EMPTY, FEW_SHAPES, NASTY, ONE_PER_CHANNEL, SHAPES
from forms import forced
from tolerances import assert_within

from oclbn import device
from oclbn.call.order import recording
from oclbn.errors import ArrayTypeError, ShapeError
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, explain, moments
from oclbn.program import building
from oclbn.truth import reference
from oclbn.truth.bounds import Bound
from oclbn.truth.hostile import Data, Offset, Spoiled, gaussian, make, per_channel, rare, two_values
from oclbn.tuning import using

NONE_PATTERNS = [
    pytest.param({"scale"}, id="no scale"),
    pytest.param({"bias"}, id="no bias"),
    pytest.param({"scale", "bias"}, id="not affine"),
    pytest.param({"running_mean"}, id="no running mean"),
    pytest.param({"running_var"}, id="no running variance"),
    pytest.param({"running_mean", "running_var"}, id="no running statistics"),
    pytest.param(set(FOUR), id="none of the four"),
]


# --- against the reference, over shapes


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_training(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    check("train", queue, make(shape, axis), axis)


@pytest.mark.parametrize(("shape", "axis"), SHAPES + ONE_PER_CHANNEL)
def test_inference(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    check("infer", queue, make(shape, axis), axis)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_backward(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    check("backward", queue, make(shape, axis), axis)


@pytest.mark.parametrize("training", [True, False], ids=["training", "constants"])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES + ONE_PER_CHANNEL)
def test_backward_with_foreign_statistics(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, training: bool
) -> None:
    host = make(shape, axis)
    host = dataclasses.replace(host, saved=foreign(host, axis))
    check("backward" if training else "constant", queue, host, axis)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_backward_with_constant_statistics(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    check("constant", queue, fixed(make(shape, axis)), axis)


@pytest.mark.parametrize(("shape", "axis"), SHAPES + ONE_PER_CHANNEL)
def test_moments(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    check("moments", queue, make(shape, axis), axis)


# --- float64


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
@pytest.mark.usefixtures("needs_fp64")
def test_float64(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    host = make(shape, axis, np.float64)
    check("train", queue, host, axis)
    check("infer", queue, host, axis)
    check("backward", queue, host, axis)
    check("moments", queue, host, axis)


# --- data that breaks batch normalizations


@pytest.mark.parametrize("maker", NASTY)
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_training_on_nasty_data(
    queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int, maker: Any
) -> None:
    check("train", queue, make(shape, axis, dtype, maker), axis)


@pytest.mark.parametrize("maker", NASTY)
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_backward_on_nasty_data(
    queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int, maker: Any
) -> None:
    check("backward", queue, make(shape, axis, dtype, maker), axis)


@pytest.mark.parametrize("maker", NASTY)
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_moments_of_nasty_data(
    queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int, maker: Any
) -> None:
    check("moments", queue, make(shape, axis, dtype, maker), axis)


@pytest.mark.parametrize("maker", NASTY)
def test_inference_on_nasty_data(queue: cl.CommandQueue, dtype: np.dtype, maker: Any) -> None:
    """With the statistics of the data itself, as an evaluation has them after a training."""
    host = make((6, 5, 11, 13), 1, dtype, maker)
    own = reference.train(host.x)
    mean, var = own.mean.astype(dtype), own.var.astype(dtype)
    expected = reference.infer(host.x, host.scale, host.bias, mean, var)
    y = batch_norm_infer(*(put(queue, array) for array in (host.x, host.scale, host.bias, mean, var)))
    with np.errstate(all="ignore"):
        invstd = 1 / np.sqrt(var.astype(np.float64) + 1e-5)
        bound = Bound(host.x, mean, invstd, host.scale, host.bias, axis=1, dtype=dtype).inferred()
    assert_within(y, expected, np.nan_to_num(bound, nan=0.0), "y")


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_slopes_of_two_values(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    """As behind a clipped activation: what rounding takes from a sum of alike numbers has one sign and piles up."""
    host = make(shape, axis)
    check("backward", queue, dataclasses.replace(host, dy=np.where(host.dy > 0.1, 1.1, 0.1).astype(np.float32)), axis)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["NaN", "inf", "minus inf"])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "unguarded"])
def test_a_bad_channel_spoils_no_other(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, value: float, guard: bool
) -> None:
    host = make(shape, axis, maker=Spoiled(value))
    clean = make(shape, axis)  # the same draws, without the bad value
    four = [put(queue, getattr(host, name)) for name in FOUR]
    clean_four = [put(queue, getattr(clean, name)) for name in FOUR]
    y, mean, invstd = batch_norm_train(put(queue, host.x), *four, axis=axis, guard=guard)
    clean_results = batch_norm_train(put(queue, clean.x), *clean_four, axis=axis, guard=guard)
    good, bad = host.good, list(host.bad)
    for spoiled, untouched in zip((mean, invstd, *four), (*clean_results[1:], *clean_four), strict=True):
        assert spoiled.get()[good].tobytes() == untouched.get()[good].tobytes()
    channels_first = np.moveaxis(y.get(), axis, 0)
    assert channels_first[good].tobytes() == np.moveaxis(clean_results[0].get(), axis, 0)[good].tobytes()
    assert np.isnan(channels_first[bad]).all()
    for after, before in zip(four[2:], (host.running_mean, host.running_var), strict=True):
        if guard:
            assert after.get()[bad].tobytes() == before[bad].tobytes()
        else:
            assert not np.isfinite(after.get()[bad]).any()


@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "unguarded"])
def test_skipped_counts_the_updates_that_were_left_out(queue: cl.CommandQueue, guard: bool) -> None:
    host = make((5, 4, 6), 1, maker=Spoiled(np.nan))
    skipped = cla.to_device(queue, np.array([[7, 0, 3, 0]], dtype=np.uint32))
    four = [put(queue, getattr(host, name)) for name in FOUR]
    x = put(queue, host.x)
    for _ in range(3):
        batch_norm_train(x, *four, guard=guard, skipped=skipped)
    assert skipped.get().tolist() == [[7, 0, 6 if guard else 3, 0]]


# --- every way to run

# test_kernels.py has more of them, on data that breaks nothing; the kernels of most of these are its own, built once.
WAYS = [
    pytest.param({"variant": "serial"}, id="serial"),
    pytest.param({"lanes": 1, "vec": 1, "unroll": 1}, id="one element at a time"),
    pytest.param({"lanes": 1, "vec": 4, "blocks": 2}, id="vectors of 4"),
    pytest.param({"variant": "resident", "lanes": 16, "vec": 1, "blocks": 1}, id="groups of 16"),
    pytest.param({"variant": "split", "lanes": 16, "vec": 4, "blocks": 1}, id="groups of 16, vectors of 4, split"),
    pytest.param({"chunk_bytes": 256}, id="small chunks"),
    pytest.param({"groups_per_unit": 500, "variant": "split"}, id="many slices"),
    pytest.param({"lanes": 1, "vec": 4, "most_steps": 500}, id="few steps for a work-item, no chains"),
]
ONE_EACH = (
    "on each runtime each way meets a shape, and each shape a way; test_kernels.py has every form with every shape"
)


@pytest.mark.parametrize(("shape", "axis", "way"), crossed(FEW_SHAPES, WAYS, reason=ONE_EACH))
def test_every_way_to_run(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, way: dict[str, Any]) -> None:
    """What the planner would choose elsewhere is right here too."""
    with forced(queue, **way):
        for maker in (Offset(1_000_003.0), Spoiled(np.nan)):
            host = make(shape, axis, maker=maker)
            check("train", queue, host, axis)
            check("infer", queue, host, axis)
            check("backward", queue, host, axis)
            check("moments", queue, host, axis)
        check("constant", queue, fixed(make(shape, axis)), axis)


@pytest.mark.parametrize(
    ("shape", "way"),
    crossed(
        [pytest.param((4, 6, 19), id="rows"), pytest.param((300, 33), id="columns")],
        WAYS,
        reason=ONE_EACH,
    ),
)
@pytest.mark.usefixtures("needs_fp64")
def test_every_way_to_run_in_float64(queue: cl.CommandQueue, shape: tuple[int, ...], way: dict[str, Any]) -> None:
    with forced(queue, **way):
        host = make(shape, 1, np.float64, Offset(1e3))
        check("train", queue, host, 1)
        check("backward", queue, host, 1)


# --- options


@pytest.mark.parametrize("absent", NONE_PATTERNS)
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_any_of_the_four_may_be_absent(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, absent: set[str]
) -> None:
    host = make(shape, axis)
    check("train", queue, host, axis, absent=absent)
    check("infer", queue, host, axis, absent=absent)
    check("backward", queue, host, axis, absent=absent)


@pytest.mark.parametrize("factor", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES[:1] + FEW_SHAPES[3:4])
def test_factor(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, factor: float) -> None:
    host = make(shape, axis)
    check("train", queue, host, axis, factor=factor)
    arrays = [put(queue, getattr(host, name)) for name in FOUR]
    batch_norm_train(put(queue, host.x), *arrays, axis=axis, factor=factor)
    if factor == 0.0:
        assert bits(arrays[2]) == host.running_mean.tobytes()
        assert bits(arrays[3]) == host.running_var.tobytes()


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3, 1.0, 1e10])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES[:1] + FEW_SHAPES[3:4])
def test_epsilon(queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int, epsilon: float) -> None:
    host = make(shape, axis, dtype)
    check("train", queue, host, axis, epsilon=epsilon)
    check("infer", queue, host, axis, epsilon=epsilon)


def test_puzzlelibs_example(queue: cl.CommandQueue) -> None:
    """The first batch of the page: mean 6 to 11, unbiased variance 36."""
    x = put(queue, np.arange(18).reshape(3, 6).astype(np.float32))
    mean, var = cla.zeros(queue, (1, 6, 1, 1), np.float32), cla.zeros(queue, (1, 6, 1, 1), np.float32)
    y, _, _ = batch_norm_train(x, None, None, mean, var, factor=1.0)
    assert mean.get().ravel().tolist() == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert var.get().ravel().tolist() == [36.0] * 6
    np.testing.assert_allclose(y.get(), np.outer([-1, 0, 1], np.full(6, 6 / np.sqrt(24 + 1e-5))), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1), (4, 1), (2, 2)], ids=str)
def test_per_channel_arrays_have_any_shape(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    host = make((6, 4, 5), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    plain = [put(queue, getattr(host, name)) for name in FOUR]
    shaped = [put(queue, getattr(host, name).reshape(shape)) for name in FOUR]
    expected, results = batch_norm_train(x, *plain), batch_norm_train(x, *shaped)
    assert all_bits(results) == all_bits(expected)
    assert all_bits(tuple(shaped)) == all_bits(tuple(plain))
    assert [result.shape for result in results] == [x.shape, shape, shape]
    _, mean, invstd = results
    gradients = batch_norm_backward(x, dy, shaped[0], mean, invstd)
    assert [gradient.shape for gradient in gradients] == [x.shape, shape, shape]
    assert all_bits(gradients) == all_bits(batch_norm_backward(x, dy, plain[0], *expected[1:]))
    assert bits(batch_norm_infer(x, *shaped)) == bits(batch_norm_infer(x, *plain))


def test_results_without_scale_have_one_axis(queue: cl.CommandQueue) -> None:
    host = make((6, 4, 5), 1)
    x = put(queue, host.x)
    _, mean, invstd = batch_norm_train(x, None, None, cla.zeros(queue, (1, 4, 1), np.float32), None)
    assert mean.shape == invstd.shape == (4,)
    _, dscale, dbias = batch_norm_backward(x, x, None, mean, invstd)
    assert dscale.shape == dbias.shape == (4,)


# --- gradients against finite differences


@pytest.mark.parametrize("training", [True, False], ids=["training", "constants"])
@pytest.mark.usefixtures("needs_fp64")
def test_gradients_are_those_of_the_forward(queue: cl.CommandQueue, training: bool) -> None:
    """Central differences of the device's own float64 forward."""
    host = make((3, 2, 4), 1, np.float64)
    weights = host.dy
    own = reference.train(host.x)
    var = 1 / own.invstd**2 - 1e-5

    def loss(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> float:
        arrays = [put(queue, array) for array in (x, scale, bias)]
        if training:
            y, _, _ = batch_norm_train(*arrays, None, None)
        else:
            y = batch_norm_infer(*arrays, put(queue, own.mean), put(queue, var))
        return float((y.get() * weights).sum())

    arguments = [host.x, host.scale, host.bias]
    arrays = [put(queue, array) for array in (host.x, weights, host.scale, own.mean, own.invstd)]
    gradients = batch_norm_backward(*arrays, training=training)
    step = 1e-5
    for which, gradient in enumerate(gradients):
        numeric = np.empty_like(arguments[which])
        for index in np.ndindex(numeric.shape):
            sides = []
            for sign in (1, -1):
                moved = [argument.copy() for argument in arguments]
                moved[which][index] += sign * step
                sides.append(loss(*moved))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        # Truncation step^2 * f'''/6 and rounding eps * loss / step are each about 1e-10.
        np.testing.assert_allclose(gradient.get(), numeric, rtol=1e-7, atol=1e-8)


# --- where arrays lie


@pytest.mark.parametrize("before", [1, 3, 8, 64])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_views_with_an_offset_change_nothing(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, before: int
) -> None:
    """Bitwise: neither does a result depend on where its arrays lie, nor is anything around them touched."""
    host = make(shape, axis)
    plain = [put(queue, getattr(host, name)) for name in FOUR]
    views = [lying(queue, getattr(host, name), before) for name in FOUR]
    x, dy = put(queue, host.x), put(queue, host.dy)
    x_view, dy_view = lying(queue, host.x, before), lying(queue, host.dy, before)
    out = lying(queue, np.zeros_like(host.x), before)

    expected = batch_norm_train(x, *plain, axis=axis)
    results = batch_norm_train(x_view, *views, axis=axis, out=out)
    assert results[0] is out
    assert all_bits(results) == all_bits(expected)
    assert all_bits(tuple(views)) == all_bits(tuple(plain))
    y = batch_norm_infer(x_view, *views, axis=axis, out=out)
    assert y is out
    assert bits(y) == bits(batch_norm_infer(x, *plain, axis=axis))
    mean, invstd = (lying(queue, result.get(), before) for result in expected[1:])
    gradients = batch_norm_backward(x_view, dy_view, views[0], mean, invstd, axis=axis, out=out)
    assert gradients[0] is out
    assert all_bits(gradients) == all_bits(batch_norm_backward(x, dy, plain[0], *expected[1:], axis=axis))
    count, *partial = moments(x_view, axis=axis)
    assert (count, all_bits(tuple(partial))) == (per_channel(shape, axis), all_bits(moments(x, axis=axis)[1:]))
    for view in (x_view, dy_view, out, *views):
        assert np.isnan(surroundings(view, before)).all()


def test_slices_of_the_batch(queue: cl.CommandQueue) -> None:
    host = make((9, 4, 15), 1)
    whole = put(queue, host.x)
    part = whole[2:7]
    expected = batch_norm_train(put(queue, host.x[2:7]), None, None, None, None)
    assert all_bits(batch_norm_train(part, None, None, None, None)) == all_bits(expected)


def test_calls_of_one_shape_keep_to_their_own_numbers(queue: cl.CommandQueue) -> None:
    """The kernels of a shape keep their arguments from call to call."""
    host = make((4, 3, 5), 1)
    x = put(queue, host.x)
    pool = put(queue, np.concatenate([np.zeros(2, np.float32), host.scale, host.bias]))
    scale, bias, moved_scale, moved_bias = put(queue, host.scale), put(queue, host.bias), pool[2:5], pool[5:8]
    first = all_bits(batch_norm_train(x, scale, bias, None, None, epsilon=1e-3))
    second = all_bits(batch_norm_train(x, bias, scale, None, None, epsilon=0.5))
    assert first != second
    for _ in range(2):
        assert all_bits(batch_norm_train(x, scale, bias, None, None, epsilon=1e-3)) == first
        assert all_bits(batch_norm_train(x, moved_scale, moved_bias, None, None, epsilon=1e-3)) == first
        assert all_bits(batch_norm_train(x, moved_bias, moved_scale, None, None, epsilon=0.5)) == second
        assert all_bits(batch_norm_train(x, bias, scale, None, None, epsilon=0.5)) == second
        assert all_bits(batch_norm_train(x, None, None, None, None, epsilon=0.5)) != second


def test_per_channel_slices_of_one_array(queue: cl.CommandQueue) -> None:
    """All parameters of a layer in one buffer, as a trainer may keep them."""
    host = make((6, 5, 7), 1)
    pool = put(queue, np.concatenate([getattr(host, name) for name in FOUR]))
    slices = [pool[5 * i : 5 * i + 5] for i in range(4)]
    plain = [put(queue, getattr(host, name)) for name in FOUR]
    x = put(queue, host.x)
    assert all_bits(batch_norm_train(x, *slices)) == all_bits(batch_norm_train(x, *plain))
    assert bits(pool) == b"".join(all_bits(tuple(plain)))


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_out_is_filled_and_returned(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    host = make(shape, axis)
    x, dy, scale = put(queue, host.x), put(queue, host.dy), put(queue, host.scale)
    fresh = batch_norm_train(x, scale, None, None, None, axis=axis)
    out = cla.empty_like(x)
    results = batch_norm_train(x, scale, None, None, None, axis=axis, out=out)
    assert results[0] is out
    assert all_bits(results) == all_bits(fresh)
    fresh = batch_norm_backward(x, dy, scale, *results[1:], axis=axis)
    out = cla.empty_like(x)
    results = batch_norm_backward(x, dy, scale, *results[1:], axis=axis, out=out)
    assert results[0] is out
    assert all_bits(results) == all_bits(fresh)


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_inference_in_place(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    host = make(shape, axis)
    x = put(queue, host.x)
    four = [put(queue, getattr(host, name)) for name in FOUR]
    expected = bits(batch_norm_infer(x, *four, axis=axis))
    assert bits(x) == host.x.tobytes()
    assert batch_norm_infer(x, *four, axis=axis, out=x) is x
    assert bits(x) == expected


def test_inputs_stay_as_they_are(queue: cl.CommandQueue) -> None:
    host = make((6, 5, 7), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    four = [put(queue, getattr(host, name)) for name in FOUR]
    _, mean, invstd = batch_norm_train(x, *four)
    saved = all_bits((mean, invstd, *four[2:]))
    batch_norm_backward(x, dy, four[0], mean, invstd)
    batch_norm_infer(x, *four)
    moments(x)
    inputs = [host.x, host.dy, host.scale, host.bias]
    assert all_bits((x, dy, *four[:2])) == [array.tobytes() for array in inputs]
    assert all_bits((mean, invstd, *four[2:])) == saved


# --- strides


def fetch(view: cla.Array) -> np.ndarray:
    """A device array of any strides on the host."""
    whole = np.empty(view.base_data.size, np.uint8)
    cl.enqueue_copy(view.queue, whole, view.base_data, wait_for=view.events)
    return np.ndarray(view.shape, view.dtype, whole, view.offset, view.strides).copy()


def strided(queue: cl.CommandQueue, host: np.ndarray, layout: str) -> cla.Array:
    """The array as a view of a bigger one, or in another order of its elements."""
    around = [(0, 0)] * host.ndim
    if layout == "channels last in memory":
        order = (0, *range(2, host.ndim), 1)
        back = (0, host.ndim - 1, *range(1, host.ndim - 1))
        return put(queue, np.ascontiguousarray(host.transpose(order))).transpose(back)
    if layout == "column major":
        return put(queue, np.asfortranarray(host))
    if layout == "every other sample":
        return put(queue, np.repeat(host, 2, axis=0))[::2]
    if layout == "every other channel":
        return put(queue, np.repeat(host, 2, axis=1))[:, ::2]
    if layout == "some of the channels":
        around[1] = (2, 3)
        return put(queue, np.pad(host, around, constant_values=np.nan))[:, 2 : 2 + host.shape[1]]
    if layout == "rows with gaps":
        around[-1] = (1, 4)
        return put(queue, np.pad(host, around, constant_values=np.nan))[..., 1 : 1 + host.shape[-1]]
    assert layout == "samples backwards"
    return put(queue, np.ascontiguousarray(host[::-1]))[::-1]


LAYOUTS = [
    ((5, 4, 7), "channels last in memory"),
    ((5, 4, 7), "column major"),
    ((5, 4, 7), "every other sample"),
    ((5, 4, 7), "every other channel"),
    ((5, 4, 7), "some of the channels"),
    ((5, 4, 7), "rows with gaps"),
    ((5, 4, 7), "samples backwards"),
    ((6, 9, 5, 4), "channels last in memory"),
    ((6, 9, 5, 4), "every other sample"),
    ((6, 9, 5, 4), "some of the channels"),
    ((40, 9), "column major"),
    ((40, 9), "every other sample"),
    ((40, 9), "every other channel"),
    ((40, 9), "some of the channels"),
    ((40, 9), "samples backwards"),
]


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS, ids=lambda value: str(value))
def test_strided_views(queue: cl.CommandQueue, shape: tuple[int, ...], layout: str) -> None:
    """Accepted without a copy; what comes out lies in the same order, and nothing in the gaps is read or written."""
    host = make(shape, 1)
    four = [put(queue, getattr(host, name)) for name in FOUR]
    x, dy = strided(queue, host.x, layout), strided(queue, host.dy, layout)
    assert np.array_equal(fetch(x), host.x)
    gaps = np.isnan(whole_of(x))
    expected = reference.train(host.x, *(getattr(host, name) for name in FOUR))
    bound = Bound(host.x, expected.mean, expected.invstd, host.scale, host.bias, axis=1, dtype=np.float32)

    y, mean, invstd = batch_norm_train(x, *four)
    assert y.shape == shape
    assert_within(fetch(y), expected.y, bound.y(), "y")
    assert_within(mean, expected.mean, bound.stored_mean(), "save_mean")
    assert_within(four[3], expected.running_var, bound.running_var(host.running_var, expected.var, 0.1), "running_var")
    results = batch_norm_backward(x, dy, four[0], mean, invstd)
    gradients = reference.backward(host.x, host.dy, host.scale, expected.mean, expected.invstd)
    for name, result, gradient, limit in zip(
        ("dx", "dscale", "dbias"), results, gradients, bound.gradients(host.dy, training=True), strict=True
    ):
        assert_within(fetch(result), gradient, limit, name)
    _, m2 = moments(x)[1:]
    assert_within(m2, expected.var * per_channel(shape, 1), bound.m2(), "m2")
    given = [array.get() for array in four]
    assert batch_norm_infer(x, *four, out=x) is x
    inferred = Bound(host.x, given[2], 1 / np.sqrt(given[3] + 1e-5), *given[:2], axis=1, dtype=np.float32).inferred()
    assert_within(fetch(x), reference.infer(host.x, *given), inferred, "y in place")
    assert np.array_equal(np.isnan(whole_of(x)), gaps)


def whole_of(view: cla.Array) -> np.ndarray:
    """Everything in the buffer of a view."""
    whole = np.empty(view.base_data.size // view.dtype.itemsize, view.dtype)
    cl.enqueue_copy(view.queue, whole, view.base_data, wait_for=view.events)
    return whole


# --- repeatability


@pytest.mark.parametrize(("shape", "axis"), [*FEW_SHAPES, *COLUMNS[-4:]])
def test_the_same_bits_every_time(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    host = make(shape, axis)
    first = everything(queue, host, axis)
    for _ in range(3):
        assert everything(queue, host, axis) == first


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_the_same_bits_from_other_threads(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    if device.select(queue.device).simulator:
        pytest.skip("needs a runtime that bears several threads; Oclgrind crashes")
    host = make(shape, axis)
    expected = everything(queue, host, axis)
    results: list[list[bytes] | BaseException] = []

    def run() -> None:
        own = cl.CommandQueue(queue.context)
        try:
            results.append(everything(own, host, axis))
        except BaseException as error:
            results.append(error)
            raise

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_the_same_bits_in_another_context(queue: cl.CommandQueue, other_queue: cl.CommandQueue) -> None:
    host = make((7, 5, 13), 1)
    assert everything(other_queue, host, 1) == everything(queue, host, 1)


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES[:3])
def test_a_sample_more_does_not_change_inference(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    """Evaluation knows no batch: a sample's output is the same alone and among others."""
    host = make(shape, axis)
    four = [put(queue, getattr(host, name)) for name in FOUR]
    together = batch_norm_infer(put(queue, host.x), *four, axis=axis).get()
    alone = batch_norm_infer(put(queue, host.x[1:2]), *four, axis=axis).get()
    assert alone.tobytes() == together[1:2].tobytes()


# --- empty batches


@pytest.mark.parametrize(("shape", "axis"), EMPTY)
def test_an_empty_batch_changes_nothing(
    queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int
) -> None:
    host = make(shape, axis, dtype)
    x, dy = cla.empty(queue, shape, dtype), cla.empty(queue, shape, dtype)
    four = [put(queue, getattr(host, name)) for name in FOUR]
    before = all_bits(tuple(four))
    skipped = cla.zeros(queue, shape[axis], np.uint32)
    y, mean, invstd = batch_norm_train(x, *four, axis=axis, skipped=skipped)
    assert y.shape == shape
    assert mean.shape == invstd.shape == (shape[axis],)
    assert all_bits(tuple(four)) == before
    assert not skipped.get().any()
    dx, dscale, dbias = batch_norm_backward(x, dy, four[0], mean, invstd, axis=axis)
    assert dx.shape == shape
    assert not dscale.get().any()
    assert not dbias.get().any()
    assert batch_norm_infer(x, *four, axis=axis).shape == shape
    count, mean, m2 = moments(x, axis=axis)
    assert count == 0
    assert not mean.get().any()
    assert not m2.get().any()


def test_an_empty_batch_fills_no_out(queue: cl.CommandQueue) -> None:
    x, out = cla.empty(queue, (0, 3, 4), np.float32), cla.empty(queue, (0, 3, 4), np.float32)
    assert batch_norm_train(x, None, None, None, None, out=out)[0] is out


# --- numbers that PyTorch's kernels get wrong


@pytest.mark.parametrize("exponent", [2, 4, 6])
def test_variance_of_tiny_spread_is_exact(queue: cl.CommandQueue, exponent: int) -> None:
    """Two values one ulp-ish apart around 10**exponent: E[x^2] - E[x]^2 has no digit of their variance."""
    base = np.float32(10.0**exponent)
    step = np.float32(np.spacing(base) * 4)
    x = np.where(np.arange(2 * 3 * 64) % 2, base, base + step).astype(np.float32).reshape(2, 3, 64)
    _, _, invstd = batch_norm_train(put(queue, x), None, None, None, None, epsilon=0.0)
    np.testing.assert_allclose(invstd.get(), 2.0 / float(step), rtol=8 * np.finfo(np.float32).eps)


def test_a_single_pair_normalises_to_one(queue: cl.CommandQueue) -> None:
    x = np.array([[1.0, -5.0], [3.0, 5.0]], np.float32)
    y, mean, _ = batch_norm_train(put(queue, x), None, None, None, None, epsilon=0.0)
    assert mean.get().tolist() == [2.0, 0.0]
    np.testing.assert_allclose(y.get(), [[-1, -1], [1, 1]], rtol=4 * np.finfo(np.float32).eps)


def test_makers_are_seeded() -> None:
    """Bitwise comparisons of this file rest on that."""
    assert make((4, 5), 1).x.tobytes() == make((4, 5), 1).x.tobytes()
    spoiled = make((4, 5), 1, maker=Spoiled(np.nan))
    assert np.array_equal(np.delete(spoiled.x, 2, axis=1), np.delete(make((4, 5), 1, maker=gaussian).x, 2, axis=1))


# --- what a review found


@pytest.mark.parametrize("rows", [32_769, 65_537], ids=["beyond 2**31", "beyond 2**32"])
def test_more_values_per_channel_than_32_bits_count(queue: cl.CommandQueue, rows: int) -> None:
    """Windows of one small buffer make a channel of billions without the memory."""
    if "LANES=1," not in explain(cla.empty(queue, (9, 9, 9), np.float32)):
        pytest.skip("needs a processor that walks whole rows: elsewhere billions of values take minutes")
    inner = 65_536
    host = np.linspace(0, 1, rows + inner, dtype=np.float32)
    memory = put(queue, host)
    x = cla.Array(queue, (rows, 1, inner), np.float32, strides=(4, 4, 4), data=memory.base_data)
    count, mean, m2 = moments(x)
    sums = np.concatenate([[0.0], np.cumsum(host, dtype=np.float64)])
    wanted = (sums[inner : inner + rows] - sums[:rows]).sum() / count
    squares = np.concatenate([[0.0], np.cumsum((host.astype(np.float64) - wanted) ** 2)])
    assert count == rows * inner
    np.testing.assert_allclose(mean.get(), wanted, rtol=1e-6)
    np.testing.assert_allclose(m2.get(), (squares[inner : inner + rows] - squares[:rows]).sum(), rtol=1e-5)


@pytest.mark.parametrize("value", [7.0, 1 / 3, -1e25, 1e-30], ids=["7", "a third", "squares out of range", "tiny"])
@pytest.mark.parametrize("shape", [(3, 4), (700, 4), (5, 4, 6), (50, 4, 6), (2, 4, 100)], ids=str)
@pytest.mark.parametrize("way", [{}, {"lanes": 1, "vec": 1}, {"variant": "serial"}], ids=str)
def test_constant_channels_without_epsilon_come_out_as_the_bias(
    queue: cl.CommandQueue, way: dict[str, Any], shape: tuple[int, ...], value: float
) -> None:
    x, bias = put(queue, np.full(shape, value, np.float32)), put(queue, np.arange(4, dtype=np.float32))
    with forced(queue, **way):
        y, mean, invstd = batch_norm_train(x, None, bias, None, None, epsilon=0.0)
    np.testing.assert_array_equal(
        np.moveaxis(y.get(), 1, -1), np.broadcast_to(np.arange(4), np.moveaxis(y.get(), 1, -1).shape)
    )
    np.testing.assert_array_equal(mean.get(), np.full(4, value, np.float32))
    np.testing.assert_array_equal(invstd.get(), np.zeros(4))


@pytest.mark.parametrize("size", [1e19, 1e25, 1e30, 1e37])
@pytest.mark.parametrize("shape", [(2000, 3), (2000, 3, 4), (2, 3, 4000)], ids=["columns", "short rows", "long rows"])
def test_a_variance_out_of_range_shows(queue: cl.CommandQueue, shape: tuple[int, ...], size: float) -> None:
    """Squares that no float32 can add up make NaN, not a quiet constant."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[:, 1] *= np.float32(size)
    y, _, invstd = batch_norm_train(put(queue, x), None, None, None, None)
    assert np.isnan(y.get()[:, 1]).all()
    assert np.isnan(invstd.get()[1])
    assert np.isfinite(y.get()[:, [0, 2]]).all()
    assert not np.isfinite(moments(put(queue, x))[2].get()[1])


STRIPS = [  # channels that share a strip, in several chunks
    pytest.param((3000, 5), {"run_bytes": 256, "unroll": 1}, id="columns"),
    pytest.param((600, 37), {"run_bytes": 64}, id="columns of several groups"),
    pytest.param((1000, 5, 7), {}, id="short rows"),
    pytest.param((1000, 9, 2), {}, id="rows below a vector"),
]


@pytest.mark.parametrize("start", [1e4, 1e14, 1e17, 1e18])
@pytest.mark.parametrize("way", [{}, {"lanes": 1, "vec": 1}, {"lanes": 1, "vec": 4}, {"variant": "serial"}], ids=str)
@pytest.mark.parametrize(("shape", "options"), STRIPS)
def test_first_rows_that_mislead(
    queue: cl.CommandQueue, shape: tuple[int, ...], options: dict[str, int], way: dict[str, Any], start: float
) -> None:
    """The first guess of the mean lies far from it: squares of distances from there lose digits, or overflow."""
    x = make(shape, 1).x
    x[: max(1, 32 // math.prod(shape[2:]))] += np.float32(start)
    _, _, wanted = reference.moments(x)
    with forced(queue, **options, **way):
        _, _, m2 = moments(put(queue, x))
    np.testing.assert_allclose(m2.get(), wanted, rtol=16 * np.finfo(np.float32).eps)


def wandering(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Channels in turn: steady, a small step, a step of 10^4 at another row, a long drift, one there and back."""
    x = np.moveaxis(rng.standard_normal(shape), (0, axis), (0, 1))
    rows = np.arange(shape[0]).reshape(-1, *(1,) * (x.ndim - 2))
    at = rows / shape[0]
    x[:, 1::5] += (3.0 * (at > 0.4))[:, None]
    x[:, 2::5] += (1e4 * (at > 0.7))[:, None]
    x[:, 3::5] += (1e3 * at)[:, None]
    x[:, 4::5] += (1e2 * np.sin(9 * at))[:, None]
    return np.moveaxis(x, (0, 1), (0, axis))


@pytest.mark.parametrize(
    ("shape", "way"),
    crossed(
        [pytest.param(s, id=str(s)) for s in ((1500, 1000), (4000, 65), (1031, 8, 49), (700, 40, 5), (2100, 4, 100))],
        [
            pytest.param({}, id="as planned"),
            pytest.param({"lanes": 1, "vec": 1, "unroll": 1}, id="one element at a time"),
            pytest.param({"lanes": 1, "vec": 4, "variant": "split"}, id="vectors of 4, split"),
        ],
        reason=ONE_EACH,
    ),
)
def test_means_that_wander_from_chunk_to_chunk(
    queue: cl.CommandQueue, shape: tuple[int, ...], way: dict[str, Any]
) -> None:
    host = make(shape, 1, maker=wandering)
    with forced(queue, **way):
        check("moments", queue, host, 1)
        check("train", queue, host, 1)
        check("backward", queue, host, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e4, 1e18, 1e30])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize(("shape", "options"), STRIPS)
def test_no_channel_moves_its_neighbours(
    queue: cl.CommandQueue, shape: tuple[int, ...], options: dict[str, int], place: str, value: float
) -> None:
    """Whatever one channel holds, and wherever, the others' results keep every bit."""
    host = make(shape, 1, maker=Offset(30.0))
    odd = dataclasses.replace(host, x=host.x.copy())
    odd.x[0 if place == "first" else -1, 2] = value
    others = [c for c in range(shape[1]) if c != 2]
    with forced(queue, **options, lanes=1):
        for one, other in zip(everything_of(queue, host), everything_of(queue, odd), strict=True):
            assert one[others].tobytes() == other[others].tobytes()


def everything_of(queue: cl.CommandQueue, host: Data) -> list[np.ndarray]:
    """All results of the calls on host, channels first."""
    x, dy, scale = put(queue, host.x), put(queue, host.dy), put(queue, host.scale)
    y, mean, invstd = batch_norm_train(x, scale, None, None, None)
    results = [y, *moments(x)[1:], mean, invstd]
    for training in (True, False):
        results += batch_norm_backward(x, dy, scale, mean, invstd, training=training)
    results.append(batch_norm_infer(x, scale, None, mean, invstd))
    return [np.moveaxis(r.get(), 1, 0) if r.ndim > 1 else r.get() for r in results]


@pytest.mark.parametrize("vec", [4, 8])
@pytest.mark.parametrize("shape", [(12, 4, 1024), (16, 6, 28, 28)], ids=["the longest rows of a run", "images"])
def test_long_rows_of_a_run_do_not_drift(queue: cl.CommandQueue, shape: tuple[int, ...], vec: int) -> None:
    """Alike numbers, whose sums lose the same at every addition, along rows as well as across them."""
    host = make(shape, 1, maker=two_values)
    host = dataclasses.replace(host, dy=np.where(host.dy > 0.1, 1.1, 0.1).astype(np.float32))
    with forced(queue, lanes=1, vec=vec):
        check("moments", queue, host, 1)
        check("train", queue, host, 1)
        check("backward", queue, host, 1)


@pytest.mark.parametrize("seed", range(8))
def test_many_short_rows_do_not_drift(queue: cl.CommandQueue, seed: int) -> None:
    host = make((500, 5, 7), 1, maker=Offset(3.0), seed=seed)
    check("train", queue, host, 1)
    check("backward", queue, host, 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(300, 700), (256, 16, 7, 7)], ids=["columns", "short rows"])
def test_sparse_features_do_not_drift(queue: cl.CommandQueue, shape: tuple[int, ...], seed: int) -> None:
    host = make(shape, 1, maker=rare, seed=seed)
    check("moments", queue, host, 1)
    check("train", queue, host, 1)


@pytest.mark.parametrize("shape", [(4, 7, 9, 11), (301, 37)], ids=["rows", "columns"])
def test_kernels_that_can_have_only_small_groups_get_them(
    queue: cl.CommandQueue, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kernel's registers may allow fewer work-items than the device's own limit; only the built kernel knows."""
    host = make(shape, 1, np.float32, gaussian)
    x = cla.to_device(queue, host.x)
    monkeypatch.setattr(building, "most_lanes", lambda kernel, _: 5 if "train" in kernel.function_name else 64)
    with using(lanes=8, vec=1, unroll=2, variant="resident"):
        assert "LANES=4," in explain(x)
    with using(lanes=8, vec=1, unroll=2):
        assert "LANES=8," in explain(x, operation="infer")
    with using(lanes=8, vec=1, unroll=2, variant="resident"):
        with recording() as launches:
            y, *_ = batch_norm_train(x, None, None, None, None, epsilon=1e-5)
        assert [name for name, _ in launches] == ["train_resident"]
    wanted = reference.train(host.x, epsilon=1e-5).y
    np.testing.assert_allclose(y.get(), wanted, rtol=0, atol=1e-5)


def test_explain_says_why_not_another_variant(queue: cl.CommandQueue) -> None:
    x = cla.zeros(queue, (9, 9, 9), np.float32)
    told = explain(x, operation="infer")
    assert "declines" not in told
    reason = "fused declines: no kernel reads a channel twice for this operation"
    assert explain(x, operation="infer", why=True) == f"{told}; {reason}"
    with using(variant="serial"):
        asked = explain(x, why=True)
    assert asked.endswith("; fused declines: reference is asked for; two-kernel declines: reference is asked for")


def test_arrays_by_name_and_left_out(queue: cl.CommandQueue) -> None:
    """By name, in any order, and without what has a default, as by position."""
    host = make((6, 4, 5), 1)
    x, dy, scale, bias = (put(queue, a) for a in (host.x, host.dy, host.scale, host.bias))
    mean, var = put(queue, host.running_mean), put(queue, host.running_var)
    assert all_bits(batch_norm_train(x)) == all_bits(batch_norm_train(x, None, None, None, None))
    y, save_mean, save_invstd = batch_norm_train(x, bias=bias, scale=scale)
    assert bits(y) == bits(batch_norm_train(x, scale, bias, None, None)[0])
    named = batch_norm_infer(x, mean=mean, var=var, scale=scale, bias=bias)
    assert bits(named) == bits(batch_norm_infer(x, scale, bias, mean, var))
    given = {"save_invstd": save_invstd, "save_mean": save_mean}
    positional = batch_norm_backward(x, dy, None, save_mean, save_invstd)
    assert all_bits(batch_norm_backward(x, dy, **given)) == all_bits(positional)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        pytest.param(lambda x, one: batch_norm_infer(x, mean=one), "var", id="inference without a variance"),
        pytest.param(lambda x, one: batch_norm_infer(x, var=one), "mean", id="inference without a mean"),
        pytest.param(lambda x, one: batch_norm_backward(x, x, save_mean=one), "save_invstd", id="backward"),
        pytest.param(
            lambda x, one: batch_norm_backward(x, x, save_mean=one, training=False, epsilon=0.0),
            "save_invstd",
            id="constants",
        ),
    ],
)
def test_what_is_needed_is_named(queue: cl.CommandQueue, call: Any, name: str) -> None:
    x = cla.zeros(queue, (6, 4, 5), np.float32)
    wanted = r"a pyopencl\.array\.Array with an element for each of x's 4 channels is wanted"
    with pytest.raises(ArrayTypeError, match=rf"^{name} is None and is needed; {wanted}"):
        call(x, cla.zeros(queue, 4, np.float32))


def test_arrays_that_fit_another_axis_say_which(queue: cl.CommandQueue) -> None:
    """Where the advice helps; it is tried."""
    one = cla.zeros(queue, 5, np.float32) + 1
    last, first = (cla.zeros(queue, shape, np.float32) for shape in ((6, 4, 3, 5), (6, 5, 3, 4)))
    for call in (
        lambda x, **options: batch_norm_infer(x, mean=one, var=one, **options),
        lambda x, **options: batch_norm_train(x, scale=one, **options),
        lambda x, **options: batch_norm_backward(x, x, save_mean=one, save_invstd=one, **options),
    ):
        with pytest.raises(ShapeError, match=r"has 4 channels on axis 1; for channels last give axis=-1$"):
            call(last)
        call(last, axis=-1)
        with pytest.raises(ShapeError, match=r"has 4 channels on axis 3; for channels on axis 1 leave axis out$"):
            call(first, axis=-1)
        call(first)
        with pytest.raises(ShapeError, match=r"has 7 channels on axis 1$"):
            call(cla.zeros(queue, (5, 7), np.float32))
