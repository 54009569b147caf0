"""Batch renormalization: statistics of a batch, corrected towards the running ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import all_bits, put
from faults import NO_RESOURCES, counted, failing
from forms import forced

from oclbn import gpuarray
from oclbn.activations import NONE, PLAIN, Activation
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import ArrayTypeError, DeviceError, OverlapError, ParameterError, ShapeError, SizeError
from oclbn.functional import batch_norm_backward, batch_norm_train, bind
from oclbn.renorm import batch_renorm_backward, batch_renorm_train
from oclbn.truth.cases import judge
from oclbn.truth.expectation import EPSILON, Expected, expected
from oclbn.truth.hostile import Data, Host, along, make, others

R_MAX, D_MAX = 1.5, 0.75


def corrections(host: Data, axis: int) -> tuple[Host, Host]:
    """r and d in float64, by the paper's algorithm."""
    x, sums = host.x.astype(np.float64), others(host.x.shape, axis)
    running = np.sqrt(host.running_var.astype(np.float64) + EPSILON)
    r = np.sqrt(x.var(sums) + EPSILON) / running
    d = (x.mean(sums) - host.running_mean) / running
    return np.clip(r, 1.0 / R_MAX, R_MAX), np.clip(d, -D_MAX, D_MAX)


def corrected(host: Data, axis: int) -> Data:
    """Data that batch normalization makes the same of, up to the rounding of r and d."""
    r, d = corrections(host, axis)
    scale = host.scale.astype(np.float64)
    return replace(host, scale=scale * r, bias=host.bias + scale * d)


def loosened(wanted: Expected, host: Data, axis: int) -> Expected:
    """Room for r and d, which are rounded, and for scale and bias with them."""
    eps = 8.0 * float(np.finfo(host.scale.dtype).eps)
    size = along(np.abs(host.scale) * (R_MAX * 9.0 + D_MAX) + np.abs(host.bias), host.x.shape, axis)
    y, bound = wanted["y"]
    return {**wanted, "y": (y, bound + eps * size)}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        pytest.param((6, 5, 4, 3), 1, id="rows"),
        pytest.param((6, 7, 5), 2, id="channels last"),
        pytest.param((9, 4097), 1, id="many channels"),
        pytest.param((3, 1, 40), 1, id="one channel"),
    ],
)
def test_against_the_paper(queue: cl.CommandQueue, dtype: str, shape: tuple[int, ...], axis: int) -> None:
    if dtype == "float64" and not limits(queue.device).fp64:
        pytest.skip("needs fp64")
    host = make(shape, axis, named(dtype))
    arrays = {name: put(queue, getattr(host, name)) for name in ("x", "scale", "bias", "running_mean", "running_var")}
    y, mean, invstd, r, d = batch_renorm_train(*arrays.values(), r_max=R_MAX, d_max=D_MAX, axis=axis)
    same = corrected(host, axis)
    wanted = loosened(expected("train", same, axis), host, axis)
    found = {"y": y, "save_mean": mean, "save_invstd": invstd}
    found |= {name: arrays[name] for name in ("running_mean", "running_var")}
    worst = judge({name: array.get() for name, array in found.items()}, wanted)
    assert worst.good, str(worst)
    rough = 64 * float(np.finfo(host.scale.dtype).eps)
    for device, exact in zip((r, d), corrections(host, axis), strict=True):
        np.testing.assert_allclose(device.get().ravel(), exact, rtol=rough, atol=rough)

    exact_r, exact_d = corrections(host, axis)
    gradients = expected("backward", same, axis)
    dscale, dbias = gradients["dscale"], gradients["dbias"]
    room = exact_r * dscale[1] + np.abs(exact_d) * dbias[1]
    room = room + rough * (np.abs(exact_r * dscale[0]) + np.abs(exact_d * dbias[0]))
    gradients["dscale"] = exact_r * dscale[0] + exact_d * dbias[0], room
    dx, bound = gradients["dx"]
    gradients["dx"] = dx, bound + rough * (np.abs(dx) + along(np.abs(same.scale), shape, axis) * 4.0)
    made = batch_renorm_backward(arrays["x"], put(queue, host.dy), arrays["scale"], mean, invstd, r, d, axis=axis)
    found = dict(zip(("dx", "dscale", "dbias"), made, strict=True))
    worst = judge({name: array.get() for name, array in found.items()}, gradients)
    assert worst.good, str(worst)


@pytest.mark.parametrize(
    ("activation", "residual"),
    [(PLAIN["relu"], False), (PLAIN["silu"], True), (Activation("leaky_relu", 0.25), True), (NONE, True)],
    ids=["relu", "silu of a sum", "leaky_relu of a sum", "a sum"],
)
def test_behind_an_activation(queue: cl.CommandQueue, activation: Activation, residual: bool) -> None:
    """As batch normalization with scale r and bias + scale d."""
    host = make((6, 5, 4, 3), 1)
    x, dy, scale, bias, mean, var = (
        put(queue, one) for one in (host.x, host.dy, host.scale, host.bias, host.running_mean, host.running_var)
    )
    added = put(queue, np.random.default_rng(3).standard_normal(host.x.shape).astype(np.float32)) if residual else None
    options: dict[str, Any] = {"activation": activation.option, "residual": added}
    y, save_mean, invstd, r, d = batch_renorm_train(x, scale, bias, mean, var, r_max=R_MAX, d_max=D_MAX, **options)
    scale_r, bias_d = (put(queue, one) for one in (host.scale * r.get(), host.bias + host.scale * d.get()))
    plain = batch_norm_train(x, scale_r, bias_d, **options)
    np.testing.assert_allclose(y.get(), plain[0].get(), rtol=1e-5, atol=1e-6)
    behind = options | {"dresidual": residual}
    if residual and activation.code and activation.by_output:
        behind |= {"y": y, "residual": None}
    found = batch_renorm_backward(x, dy, scale, save_mean, invstd, r, d, bias=bias, **behind)
    wanted = batch_norm_backward(x, dy, scale_r, save_mean, invstd, bias=bias_d, **behind)
    exact = [one.get() for one in wanted]
    exact[1] = r.get() * exact[1] + d.get() * exact[2]
    for device, one in zip(found, exact, strict=True):
        np.testing.assert_allclose(device.get(), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lanes", [1, 16])
def test_small_groups_of_one_work_item_and_of_several(queue: cl.CommandQueue, lanes: int) -> None:
    host = make((4, 70), 1)
    with forced(queue, lanes=lanes):
        x, mean, var = (put(queue, one) for one in (host.x, host.running_mean, host.running_var))
        y, *saved, r, d = batch_renorm_train(x, None, None, mean, var, r_max=R_MAX, d_max=D_MAX)
        dscale = batch_renorm_backward(x, put(queue, host.dy), None, *saved, r, d)[1]
    plain = replace(host, scale=np.ones_like(host.scale), bias=np.zeros_like(host.bias))
    for device, exact in zip((r, d), corrections(host, 1), strict=True):
        np.testing.assert_allclose(device.get(), exact, rtol=1e-5, atol=1e-5)
    wanted = expected("backward", plain, 1)
    exact = r.get() * wanted["dscale"][0] + d.get() * wanted["dbias"][0]
    np.testing.assert_allclose(dscale.get(), exact, rtol=1e-4, atol=1e-4)
    xhat = (host.x - host.x.mean(0)) / np.sqrt(host.x.var(0) + EPSILON)
    np.testing.assert_allclose(y.get(), xhat * r.get() + d.get(), atol=1e-4)


def test_without_room_it_is_batch_normalization(queue: cl.CommandQueue) -> None:
    host = make((6, 5, 4, 3), 1)
    x, dy, scale, bias = (put(queue, one) for one in (host.x, host.dy, host.scale, host.bias))
    running = [[put(queue, one) for one in (host.running_mean, host.running_var)] for _ in range(2)]
    y, mean, invstd, r, d = batch_renorm_train(x, scale, bias, *running[0], r_max=1, d_max=0)
    assert (set(r.get()), set(np.abs(d.get()))) == ({1.0}, {0.0})
    plain = batch_norm_train(x, scale, bias, *running[1])
    np.testing.assert_allclose(y.get(), plain[0].get(), rtol=1e-6, atol=1e-6)
    for one, other in zip(running[0], running[1], strict=True):
        np.testing.assert_allclose(one.get(), other.get(), rtol=1e-6)
    found = batch_renorm_backward(x, dy, scale, mean, invstd, r, d)
    for one, other in zip(found, batch_norm_backward(x, dy, scale, mean, invstd), strict=True):
        assert all_bits(one) == all_bits(other)


def test_any_order_of_arrays_bound_and_gathered(queue: cl.CommandQueue) -> None:
    host = make((6, 5, 4, 3), 1)
    names = ("x", "scale", "bias", "running_mean", "running_var")
    plain = [put(queue, getattr(host, name)) for name in names]
    wide = {name: put(queue, np.repeat(getattr(host, name), 2))[::2] for name in names[1:]}
    turned = put(queue, np.ascontiguousarray(host.x[:, :, ::-1]))[:, :, ::-1]
    wanted = batch_renorm_train(*plain, r_max=R_MAX)
    y, mean, invstd, r, d = bind(batch_renorm_train, turned, *wide.values(), r_max=R_MAX)()
    np.testing.assert_allclose(gpuarray.pack(y).get(), wanted[0].get(), rtol=1e-5, atol=1e-6)
    assert all_bits(gpuarray.pack(wide["running_var"])) == all_bits(plain[4])
    dy = put(queue, host.dy)
    made = batch_renorm_backward(plain[0], dy, plain[1], *wanted[1:])
    into = [put(queue, np.repeat(host.scale, 2))[::2] for _ in range(2)]
    options: dict[str, Any] = {"scale_grad": into[0], "bias_grad": into[1], "grad_scale": 2.0, "grad_momentum": 0.5}
    step = bind(batch_renorm_backward, plain[0], dy, wide["scale"], mean, invstd, r, d, **options)
    _, dscale, dbias = step()
    np.testing.assert_allclose(dscale.get(), made[1].get(), rtol=1e-5)
    for found, new in zip(into, (dscale, dbias), strict=True):
        np.testing.assert_allclose(gpuarray.pack(found).get(), 2.0 * new.get() + 0.5 * host.scale, rtol=1e-5)


def test_results_are_dense_where_parameters_have_gaps(queue: cl.CommandQueue) -> None:
    """Of an x that kernels read as it lies, which is why nothing else is packed."""
    host = make((6, 5, 4, 3), 1)
    x, scale, mean, var = (put(queue, one) for one in (host.x, host.scale, host.running_mean, host.running_var))
    wide = put(queue, np.repeat(host.scale, 2))[::2]
    wanted = batch_renorm_train(x, scale, None, mean.copy(), var.copy())
    found = batch_renorm_train(x, wide, None, mean, var)
    for one, other in zip(found, wanted, strict=True):
        assert all_bits(one) == all_bits(other)


def test_gradients_that_have_gaps_are_as_they_were_where_a_copy_fails(queue: cl.CommandQueue) -> None:
    host = make((6, 5, 4, 3), 1)
    arrays = (host.x, host.dy, host.scale, host.running_mean, host.running_var, host.running_var, host.running_mean)
    given = [put(queue, array) for array in arrays]

    into = [put(queue, np.repeat(host.scale, 2))[::2] for _ in range(2)]
    options: dict[str, Any] = {"scale_grad": into[0], "bias_grad": into[1], "grad_momentum": 0.5}
    asked = counted(lambda: batch_renorm_backward(*given, **options))
    before = [all_bits(gpuarray.pack(array)) for array in into]
    for number in range(len(asked)):
        with failing(NO_RESOURCES, number), pytest.raises((DeviceError, SizeError)):
            batch_renorm_backward(*given, **options)
        assert [all_bits(gpuarray.pack(array)) for array in into] == before, f"after {asked[number]}, number {number}"


def test_nasty_channels(queue: cl.CommandQueue) -> None:
    """Deviations of 0, without epsilon: of the batch, of what is running, and of both; a channel with a NaN; a running
    variance that is infinite, as one of float16 becomes."""
    x = np.ones((4, 3, 5), np.float32)
    x[1, 2, 3] = np.nan
    rising = np.arange(20, dtype=np.float32).reshape(4, 1, 5)
    x = np.concatenate([x, x[:, :1], rising, rising], axis=1)
    mean, var = np.float32([1, 1, 1, 0, 9.5, 7]), np.float32([0, 4, 1, 0, 0, np.inf])
    state = [put(queue, one) for one in (mean, var)]
    y, _, _, r, d = batch_renorm_train(put(queue, x), None, None, *state, epsilon=0.0, r_max=2.0)
    assert r.get()[[0, 1, 3, 4, 5]].tolist() == [1.0, 0.5, 1.0, 2.0, 0.5]
    assert d.get()[[0, 1, 3, 4, 5]].tolist() == [0.0, 0.0, 5.0, 0.0, 0.0]
    assert (y.get()[:, :2] == 0.0).all()
    assert np.isnan(y.get()[:, 2]).all()
    assert state[0].get()[2] == 1.0


def test_an_empty_batch(queue: cl.CommandQueue) -> None:
    x, state = put(queue, np.zeros((0, 3, 5), np.float32)), [put(queue, np.ones(3, np.float32)) for _ in range(2)]
    y, mean, invstd, r, d = batch_renorm_train(x, None, None, *state)
    assert y.shape == (0, 3, 5)
    assert np.isnan([one.get() for one in (mean, invstd, r, d)]).all()
    assert state[0].get().tolist() == [1.0] * 3
    dx, dscale, dbias = batch_renorm_backward(x, x, None, mean, invstd, r, d)
    assert (dx.shape, dscale.get().tolist(), dbias.get().tolist()) == ((0, 3, 5), [0.0] * 3, [0.0] * 3)


def test_bad_input_changes_nothing(queue: cl.CommandQueue) -> None:
    x, one = put(queue, np.ones((4, 3), np.float32)), put(queue, np.full(3, 7.0, np.float32))
    scale = one.copy()
    for options, error, told in (
        ({"r_max": 0.5}, ParameterError, "r_max is 0.5; a number from 1"),
        ({"d_max": -1}, ParameterError, "d_max is -1; a number from 0"),
        ({"d_max": float("nan")}, ParameterError, "d_max is nan"),
    ):
        with pytest.raises(error, match=told):
            batch_renorm_train(x, None, None, one, one.copy(), **options)
    with pytest.raises(ArrayTypeError, match="running_var is None and is needed"):
        batch_renorm_train(x, None, None, one)
    with pytest.raises(ShapeError, match="one value per channel has no variance"):
        batch_renorm_train(x[:1], None, None, one, one.copy())
    with pytest.raises(ArrayTypeError, match="r is None and is needed"):
        batch_renorm_backward(x, x, None, one, one)
    with pytest.raises(ShapeError, match="d has 4 elements"):
        batch_renorm_backward(x, x, None, one, one, one, x[:, 0])
    for other, told in ((one, "scale_grad overlaps "), (scale, "scale_grad overlaps scale")):
        with pytest.raises(OverlapError, match=told):
            batch_renorm_backward(x, x, scale, one, one, one, one, scale_grad=other)
    with pytest.raises(OverlapError, match="bias_grad overlaps bias"):
        batch_renorm_backward(x, x, None, one, one, one, one, bias=scale, bias_grad=scale)
    assert (one.get() == 7.0).all()
