"""Group and layer normalization against the reference: every walk, type and order that their views lead to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import all_bits, put
from forms import WALKS, forced, shrink

from oclbn import gpuarray
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import ArrayTypeError, DtypeError, OverlapError, ParameterError, ShapeError
from oclbn.functional import batch_norm_backward, batch_norm_train, bind
from oclbn.group_norm import group_norm, group_norm_backward, layer_norm, layer_norm_backward
from oclbn.truth.cases import judge
from oclbn.truth.expectation import EPSILON, Expected, expected
from oclbn.truth.hostile import MAKERS, Data, Host, Offset, make

SMALL = [walk for walk in WALKS if str(walk.id).startswith("small")]
LARGER = [walk for walk in WALKS if walk not in SMALL]


def in_batches(values: Host, axis: int, groups: int) -> Host:
    """(N, groups, rest) of a tensor, or of parameters that were broadcast to one."""
    moved = np.moveaxis(values, axis, 1)
    return np.ascontiguousarray(moved).reshape(moved.shape[0], groups, -1)


def back(values: Host, shape: tuple[int, ...], axis: int) -> Host:
    moved = (shape[0], shape[axis], *(n for place, n in enumerate(shape) if place not in (0, axis)))
    return np.moveaxis(values.reshape(moved), 1, axis)


def wanted_of(host: Data, axis: int, groups: int) -> Expected:
    """Of both directions: batch normalization of the samples' groups, each a batch, with weights and offsets."""
    shape = host.x.shape
    along = [1] * len(shape)
    along[axis] = shape[axis]
    wide = {name: np.broadcast_to(getattr(host, name).reshape(along), shape) for name in ("scale", "bias")}
    parts = {name: in_batches(one, axis, groups) for name, one in {"x": host.x, "dy": host.dy, **wide}.items()}
    ones, zeros = np.ones(groups, host.scale.dtype), np.zeros(groups, host.scale.dtype)
    same = replace(
        host,
        x=parts["x"],
        dy=parts["dy"],
        weights=parts["scale"],
        offsets=parts["bias"],
        scale=ones,
        bias=zeros,
        running_mean=zeros,
        running_var=ones,
        groups=shape[0],
    )
    forward, backward = expected("train", same, 1), expected("backward", same, 1)
    found = {name: forward[name] for name in ("save_mean", "save_invstd")}
    for name, (value, bound) in (("y", forward["y"]), ("dx", backward["dx"])):
        found[name] = back(value, shape, axis), back(bound, shape, axis)
    x = parts["x"].astype(np.float64)
    with np.errstate(all="ignore"):
        xhat = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + EPSILON)
        mean = np.abs(x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + EPSILON)
    xhat, mean = back(xhat, shape, axis), back(np.broadcast_to(mean, x.shape), shape, axis)
    others = tuple(place for place in range(len(shape)) if place != axis)
    dy, eps = host.dy.astype(np.float64), float(np.finfo(host.scale.dtype).eps)
    found["dscale"] = (dy * xhat).sum(others), 8 * eps * (np.abs(dy) * (np.abs(xhat) + mean + 1)).sum(others)
    found["dbias"] = dy.sum(others), 8 * eps * np.abs(dy).sum(others)
    return found


def check(queue: cl.CommandQueue, host: Data, axis: int, groups: int) -> None:
    x, dy, scale, bias = (put(queue, one) for one in (host.x, host.dy, host.scale, host.bias))
    y, mean, invstd = group_norm(x, groups, scale, bias, axis=axis)
    made = group_norm_backward(x, dy, groups, scale, mean, invstd, axis=axis)
    assert mean.shape == (host.x.shape[0], groups)
    found = {
        "y": y,
        "save_mean": mean,
        "save_invstd": invstd,
        **dict(zip(("dx", "dscale", "dbias"), made, strict=True)),
    }
    worst = judge({name: one.get() for name, one in found.items()}, wanted_of(host, axis, groups))
    assert worst.good, str(worst)


@pytest.mark.parametrize(("walk", "shape"), SMALL)
def test_every_small_walk(queue: cl.CommandQueue, walk: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Pairs of channels, and all of them."""
    channels = shape[1] + shape[1] % 2
    host = make((shape[0], channels, *shape[2:]), 1, np.float32, Offset(3.0))
    with forced(queue, **walk):
        for groups in (channels // 2, 1):
            check(queue, host, 1, groups)


@pytest.mark.parametrize(("walk", "shape"), LARGER)
def test_every_other_walk(
    queue: cl.CommandQueue,
    monkeypatch: pytest.MonkeyPatch,
    walk: dict[str, Any],
    shape: tuple[int, ...],
    request: pytest.FixtureRequest,
) -> None:
    if "past the cache" in request.node.name:
        shrink(queue, monkeypatch)
    with forced(queue, **walk):
        check(queue, make(shape, 1, np.float32, Offset(3.0)), 1, shape[1])


@pytest.mark.parametrize(
    ("shape", "axis", "groups", "dtype"),
    [
        pytest.param((3, 6, 5, 4), 1, 3, "float32", id="rows"),
        pytest.param((3, 6, 5, 4), 1, 3, "bfloat16", id="rows, bfloat16"),
        pytest.param((2, 64, 7, 7), 1, 32, "float16", id="many groups, float16"),
        pytest.param((3, 5, 4, 12), 3, 3, "float32", id="channels last"),
        pytest.param((3, 5, 4, 12), 3, 12, "float16", id="channels last, one to a group, float16"),
        pytest.param((3, 5, 6, 4), 2, 3, "float64", id="channels in the middle, float64"),
        pytest.param((5, 8), 1, 2, "float64", id="features, float64"),
        pytest.param((1, 8, 3), 1, 1, "float32", id="one sample, one group"),
    ],
)
def test_any_order_and_type(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, groups: int, dtype: str) -> None:
    if dtype == "float64" and not limits(queue.device).fp64:
        pytest.skip("needs fp64")
    check(queue, make(shape, axis, named(dtype)), axis, groups)


@pytest.mark.parametrize("data", ["mean is 1e4 std", "constant channels", "channels from 1e-3 to 1e3"])
def test_nasty_data(queue: cl.CommandQueue, data: str) -> None:
    check(queue, make((3, 6, 40), 1, np.float32, MAKERS[data]), 1, 3)


def test_a_nan_stays_in_its_group(queue: cl.CommandQueue) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)
    x[1, 2, 3] = np.nan
    y = group_norm(put(queue, x), 2)[0].get()
    assert np.isnan(y[1, 2:]).all()
    assert np.isfinite(y[0]).all()
    assert np.isfinite(y[1, :2]).all()


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        pytest.param((4, 5, 48), 1, "float32", id="last of three"),
        pytest.param((7, 33), 1, "float16", id="odd, float16"),
        pytest.param((4, 5, 6), 2, "bfloat16", id="two axes, bfloat16"),
        pytest.param((3, 4), 2, "float64", id="all axes, float64"),
        pytest.param((130, 2), 1, "float32", id="pairs"),
        pytest.param((2, 3, 5000), 1, "float32", id="long"),
    ],
)
def test_layers(queue: cl.CommandQueue, shape: tuple[int, ...], axes: int, dtype: str) -> None:
    """As groups of the whole row."""
    if dtype == "float64" and not limits(queue.device).fp64:
        pytest.skip("needs fp64")
    own = shape[len(shape) - axes :]
    flat = (math.prod(shape[: len(shape) - axes]), math.prod(own))
    host = make(flat, 1, named(dtype))
    x, dy = (put(queue, one.reshape(shape)) for one in (host.x, host.dy))
    scale, bias = put(queue, host.scale), put(queue, host.bias)
    y, mean, invstd = layer_norm(x, axes, scale.reshape(own), bias)
    made = layer_norm_backward(x, dy, axes, scale.reshape(own), mean, invstd)
    assert (mean.shape, made[1].shape, y.shape) == ((1, flat[0]), own, shape)  # type: ignore[union-attr]
    found = {
        "y": y,
        "save_mean": mean,
        "save_invstd": invstd,
        **dict(zip(("dx", "dscale", "dbias"), made, strict=True)),
    }
    hosts = {name: one.get().reshape(flat if name in ("y", "dx") else -1) for name, one in found.items()}
    worst = judge(hosts, wanted_of(host, 1, 1))
    assert worst.good, str(worst)
    assert layer_norm_backward(x, dy, axes, None, mean, invstd)[1].shape == own  # type: ignore[union-attr]


def test_without_parameters_and_without_their_gradients(queue: cl.CommandQueue) -> None:
    host = make((3, 6, 5, 4), 1)
    x, dy, scale, bias = (put(queue, one) for one in (host.x, host.dy, host.scale, host.bias))
    ones, zeros = put(queue, np.ones_like(host.scale)), put(queue, np.zeros_like(host.bias))
    for given, same in (((None, None), (ones, zeros)), ((scale, None), (scale, zeros)), ((None, bias), (ones, bias))):
        y, mean, invstd = group_norm(x, 3, *given)
        np.testing.assert_allclose(y.get(), group_norm(x, 3, *same)[0].get(), atol=1e-6)
        dx, dscale, dbias = group_norm_backward(x, dy, 3, given[0], mean, invstd, affine=False)
        assert (dscale, dbias) == (None, None)
        np.testing.assert_allclose(dx.get(), group_norm_backward(x, dy, 3, same[0], mean, invstd)[0].get(), atol=1e-6)


def test_any_strides_bound_and_in_place(queue: cl.CommandQueue) -> None:
    host = make((3, 6, 5, 4), 1)
    x, dy, scale, bias = (put(queue, one) for one in (host.x, host.dy, host.scale, host.bias))
    y, mean, invstd = group_norm(x, 3, scale, bias)
    base = put(queue, np.ascontiguousarray(host.x[:, :, ::-1]))
    turned = base[:, :, ::-1]
    wide = put(queue, np.repeat(host.scale, 2))[::2]
    step = bind(group_norm, turned, 3, wide, bias, order="C")
    np.testing.assert_allclose(step()[0].get(), y.get(), atol=1e-6)
    base.fill(0.0)
    np.testing.assert_allclose(step()[0].get(), np.broadcast_to(host.bias.reshape(1, 6, 1, 1), x.shape), atol=1e-6)
    into = [put(queue, host.scale), put(queue, host.scale)]
    wanted = group_norm_backward(x, dy, 3, scale, mean, invstd)
    over = dy.copy()
    options: dict[str, Any] = {"scale_grad": into[0], "bias_grad": into[1], "grad_scale": 2.0, "grad_momentum": 0.5}
    dx, dscale, dbias = group_norm_backward(x, over, 3, scale, mean, invstd, out=over, **options)
    assert dx is over
    assert all_bits(dx) == all_bits(wanted[0])
    for found, new in zip(into, (dscale, dbias), strict=True):
        np.testing.assert_allclose(found.get(), 2.0 * new.get() + 0.5 * host.scale, rtol=1e-5)  # type: ignore[union-attr]

    rows = put(queue, np.ascontiguousarray(host.x.transpose(3, 2, 1, 0))).transpose((3, 2, 1, 0))
    plain = layer_norm(put(queue, host.x), 2)
    out = gpuarray.empty(rows.shape, np.float32, queue=queue)[:, ::-1]
    again = layer_norm(rows, 2, out=out)
    assert again[0] is out
    np.testing.assert_allclose(gpuarray.pack(out).get(), plain[0].get(), atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 6, 5), (2, 6, 0)])
def test_empty(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    x = put(queue, np.zeros(shape, np.float32))
    y, mean, invstd = group_norm(x, 3)
    assert y.shape == shape
    dx, dscale, dbias = group_norm_backward(x, x, 3, None, mean, invstd)
    assert (dx.shape, dscale.get().tolist(), dbias.get().tolist()) == (shape, [0.0] * 6, [0.0] * 6)  # type: ignore[union-attr]


def test_bad_input(queue: cl.CommandQueue) -> None:
    x, one = put(queue, np.ones((2, 6, 5), np.float32)), put(queue, np.ones(6, np.float32))
    saved = put(queue, np.ones((2, 3), np.float32))
    for call, error, told in (
        (lambda: group_norm(x, 4), ParameterError, "groups is 4; a divisor of 6 is wanted, x's channels on axis 1"),
        (lambda: group_norm(x, 0), ParameterError, "groups is 0; a whole number from 1 on is wanted"),
        (lambda: group_norm(x, 3, axis=0), ParameterError, "axis is 0; samples are on axis 0"),
        (lambda: group_norm(x, 3, one[:3]), ShapeError, r"scale has 3 elements .* 6 are wanted"),
        (lambda: group_norm(x, 3, out=x), OverlapError, "out"),
        (lambda: group_norm(x, 3, put(queue, np.ones(6))), DtypeError, "scale is float64"),
        (lambda: group_norm(x[:, :, :1], 6), ShapeError, "one value has no variance"),
        (lambda: group_norm_backward(x, x, 3), ArrayTypeError, "save_mean is None and is needed"),
        (lambda: group_norm_backward(x, x, 3, one, one, one[:3]), ShapeError, "save_invstd has 3 elements"),
        (lambda: group_norm_backward(x, x[:1], 3, one, saved, saved), ShapeError, "dy has shape"),
        (
            lambda: group_norm_backward(x, x, 3, one, saved, saved, affine=False, scale_grad=one),
            ParameterError,
            "scale_grad is given and affine is False, so that there is nothing to gather; None is wanted",
        ),
        (lambda: layer_norm(x, 4), ParameterError, "axes is 4; a whole number from 1 to 3 is wanted"),
        (
            lambda: layer_norm(x, 2, one),
            ShapeError,
            r"scale has 6 elements .* 30 are wanted, as x of shape .* has 30 in a",
        ),
        (lambda: layer_norm(x[:, :, :1]), ShapeError, "one value has no variance"),
    ):
        with pytest.raises(error, match=told):
            call()


# Of PyTorch 2.13.0 in float64 on a processor: functional.instance_norm, group_norm with 2 groups and layer_norm over
# the last axis with epsilon 1e-5, and torch.autograd.grad of those with dy, on `torch_data`.
TORCH = {
    ("instance", "y"): """
        1.4523806925050942 0.6242726971534888 0.8633466103414167 -0.3827418681898856 0.03559444476678797
        -1.2848525765769023 1.186392790126413 1.7170911384510301 0.7895160714225569 2.1569953361756964
        1.0817389616965902 1.6272657021277137 1.4027149756254744 0.550382428430282 0.9869025959442436
        0.2336830350615024 -0.9750378549057336 -0.890645180155769 1.7675296173482424 0.9888460414852203
        0.9366243411665376 1.5511671537570582 1.1233740428950785 2.191458803347864""",
    ("instance", "dx"): """
        0.044884096772320796 0.1105791788453814 -0.1554632756177021 -0.22241062790110802 0.1519516356441436
        0.07045899225696448 -0.7109392186485776 0.304189203642975 0.40675001500560265 -0.18110543694230508
        -0.17578926856977123 0.3568947055120764 0.036288642504926756 0.03457134641268016 -0.07085998891760695
        0.05506336727075328 0.7321706534438609 -0.7872340207146139 -0.028939860204839546 0.45970328592790854
        -0.430763425723069 2.98127074338796 -1.7861953868240068 -1.1950753565639536""",
    ("instance", "dscale"): """
        -0.7739304476439041 5.348524703294434 -0.7044533579771275 -3.63052455527477""",
    ("instance", "dbias"): """
        -1.7309999999999999 0.0970000000000002 1.0699999999999998 -3.4509999999999996""",
    ("group", "y"): """
        1.1714374099430815 0.7628220193956529 0.8807888557930112 -0.3979750792511867 0.1519224133302491
        -1.583787549287132 1.5009428340289832 1.8545263385576671 1.2365194351091173 2.267193584974078
        1.6662424063894343 1.9711324264744934 1.561499451637433 0.9827186013376568 1.2791398920159678
        0.17662465629930413 -0.21879122101920176 -0.19118335571092773 1.317412006522023 0.7423793813027444
        0.7038153453342384 1.239021160185242 1.0875456862731576 1.4657393531647671""",
    ("group", "dx"): """
        0.5159735928720315 0.047438422598231805 0.06078853665579487 -0.4883840144307924 0.03494083781960439
        -0.1707573755148704 -0.4586336310408363 0.04401877641395732 0.4159293807301502 -0.2808285763158458
        0.08225046990077649 0.19726358031179805 0.12232457316869427 0.017134545157616587 -0.0011835543189665232
        0.4328750313693932 -0.06206037064491216 -0.5090902247318255 -0.3231047591443633 0.542704400063833
        -0.08101163985731896 1.126676005268274 0.14668988251529091 -1.4119538888457157""",
    ("group", "dscale"): """
        -0.5143524519308555 6.040475256286842 0.8912452292390112 -1.5690743173872055""",
    ("group", "dbias"): """
        -1.7309999999999999 0.0970000000000002 1.0699999999999998 -3.4509999999999996""",
    ("layer", "y"): """
        0.7903483700775954 1.3768687006212228 0.36972634613639593 2.570784980441222 1.4114583088081814
        -1.472982353003379 2.381660998562106 -1.304253095514342 1.2764943938143558 3.5699429788919734
        -1.2477223453837643 0.015158257936450346 0.9443406359198648 1.6242312381572461 -0.019759045261020517
        3.7779038018717985 -0.7253595298823589 -0.6881447597656599 0.7315382707401227 0.9283930570255751
        0.8518160466850218 2.0809028676625636 -1.1372328930005329 1.4249984220332728""",
    ("layer", "dx"): """
        -0.15198875591464578 -0.3744597525013553 0.5264485084160012 -0.4549727095517532 0.31083871521168477
        0.14413399434006813 2.0568744994850006 -0.8800755896136628 -1.1767989098713378 -0.4464589240992501
        -0.43335578389752427 0.8798147079967732 -0.12230452917816059 -0.1165163184335346 0.23882084761169514
        0.11179729662227356 1.4866772772154455 -1.5984745738377182 0.08432688348852624 -1.339573119507316
        1.25524623601879 7.47033211527884 -4.4758077451291065 -2.994524370149737""",
    ("layer", "dscale"): """
        -0.049238295242056695 0.5592560856775587 -0.27040144803686794""",
    ("layer", "dbias"): """
        1.717 -1.2429999999999999 -4.489""",
}


def torch_data() -> dict[str, Host]:
    rng, long = np.random.default_rng(12), (2, 4, 3)
    shapes = {"x": long, "dy": long, "scale": (4,), "bias": (4,), "row_scale": (3,), "row_bias": (3,)}
    return {name: rng.standard_normal(shape).round(3) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["instance", "group", "layer"])
def test_as_pytorch_has_it(queue: cl.CommandQueue, kind: str, dtype: str) -> None:
    if dtype == "float64" and not limits(queue.device).fp64:
        pytest.skip("needs fp64")
    given = {name: put(queue, one.astype(dtype)) for name, one in torch_data().items()}
    x, dy, scale, bias = (given[name] for name in ("x", "dy", "scale", "bias"))
    if kind == "instance":
        y, *saved = batch_norm_train(x, scale, bias, groups=2)
        made: Any = batch_norm_backward(x, dy, scale, *saved, groups=2)
    elif kind == "group":
        y, *saved = group_norm(x, 2, scale, bias)
        made = group_norm_backward(x, dy, 2, scale, *saved)
    else:
        y, *saved = layer_norm(x, 1, given["row_scale"], given["row_bias"])
        made = layer_norm_backward(x, dy, 1, given["row_scale"], *saved)
    room = 1e-13 if dtype == "float64" else 2e-5
    for name, found in zip(("y", "dx", "dscale", "dbias"), (y, *made), strict=True):
        exact = [float(word) for word in TORCH[kind, name].split()]
        np.testing.assert_allclose(found.get().ravel(), exact, rtol=room, atol=room)
