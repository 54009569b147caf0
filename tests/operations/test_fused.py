"""Activations and residuals, forward and backward, in every walk and type, against the reference.

Walks named "small" are few and tiny enough for a simulator. Everything else about activations (names, errors, arrays in
place and in any order) does not depend on the walk, and is tested on one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, put
from covering import crossed
from forms import WALKS, forced, shrink

from oclbn import functional, gpuarray
from oclbn.activations import NAMES, PLAIN, SLOPES, Activation
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import ArrayTypeError, DtypeError, OverlapError, ParameterError, ShapeError
from oclbn.functional import (
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    explain,
    gradient,
    gradient_sums,
    merge,
    normalize,
    statistics,
)
from oclbn.truth import activated
from oclbn.truth.cases import TAKES, judge, run
from oclbn.truth.expectation import EPSILON, expected
from oclbn.truth.hostile import Data, Host, Offset, Spoiled, make

FUNCTIONS = [name for name in NAMES if name != "none"]
SOURCES = [pytest.param(name, id=name) for name in ("x", "y", "residual")]
TYPES = ("float16", "bfloat16")
LEAKY = Activation("leaky_relu", 0.25)


def fused(
    host: Data, activation: Activation, source: str, forward: str = "train", *, residual: bool | None = None
) -> Data:
    """The data with an activation, and what its derivative is made from: "x", "y" or "residual"."""
    added = source != "x" if residual is None else residual
    rng = np.random.default_rng(7)
    host = replace(host, activation=activation, residual=None)
    if added:
        host = replace(host, residual=rng.standard_normal(host.x.shape).astype(host.x.dtype))
    if source == "y":
        with np.errstate(all="ignore"):
            host = replace(host, output=expected(forward, host, 1)["y"][0].astype(host.x.dtype))
    return host


def arrays_of(queue: cl.CommandQueue, host: Data, operation: str) -> dict[str, Any]:
    given = {name: put(queue, getattr(host, name)) for name in TAKES[operation]}
    given["bias"] = put(queue, host.bias)
    given["output"] = put(queue, host.output)
    given["residual"] = None if host.output is not None and operation in ("backward", "constant") else host.residual
    given["residual"] = put(queue, given["residual"])
    return {name: array for name, array in given.items() if array is not None}


def check(queue: cl.CommandQueue, operation: str, host: Data, *, second: bool = False) -> None:
    host = replace(host, second=second)
    found = run(
        functional, operation, arrays_of(queue, host, operation), axis=1, activation=host.activation, second=second
    )
    worst = judge({name: array.get() for name, array in found.items()}, expected(operation, host, 1))
    assert worst.good, str(worst)


@pytest.mark.parametrize(
    ("walk", "shape", "source"),
    crossed(WALKS, SOURCES, reason="each walk, and each source of a derivative, is met on each runtime"),
)
def test_every_walk_activates_and_adds(
    queue: cl.CommandQueue,
    monkeypatch: pytest.MonkeyPatch,
    walk: dict[str, Any],
    shape: tuple[int, ...],
    source: str,
    request: pytest.FixtureRequest,
) -> None:
    """From x leaky_relu, which has a number; from y the same, of 16 bits; with a residual silu, of float64."""
    if "past the cache" in request.node.name:
        shrink(queue, monkeypatch)
    dtype, activation = "float32", LEAKY
    if source == "y":
        dtype = TYPES[len(shape) % 2]
    elif source == "residual":
        dtype, activation = (
            "float64" if limits(queue.device).fp64 and "small" in request.node.name else dtype,
            PLAIN["silu"],
        )
    host = make(shape, 1, named(dtype), Offset(3.0))
    with forced(queue, **walk):
        for forward, backward in (("train", "backward"), ("infer", "constant")):
            data = fused(host, activation, source, forward)
            check(queue, forward, data)
            check(queue, backward, data, second=source != "x")
            if source != "x" or "slices" not in request.node.name:
                break


def test_small_data_of_other_types_than_results(queue: cl.CommandQueue) -> None:
    """x of 16 bits, and dy, residual and results of float32."""
    host = make((5, 3, 7), 1, named("float16"))
    residual = np.random.default_rng(3).standard_normal(host.x.shape).astype(np.float32)
    host = replace(host, activation=PLAIN["tanh"], residual=residual, dy=host.dy.astype(np.float32)).widened()
    x, dy = put(queue, host.x), put(queue, host.dy)
    scale, bias = put(queue, host.scale), put(queue, host.bias)
    out = cla.empty(queue, host.x.shape, np.float32)
    y, *saved = batch_norm_train(
        x, scale, bias, epsilon=EPSILON, activation="tanh", residual=put(queue, residual), out=out
    )
    worst = judge({"y": y.get()}, expected("train", host, 1))
    assert worst.good, str(worst)
    made = batch_norm_backward(x, dy, scale, *saved, activation="tanh", y=y, dresidual=True, out=cla.empty_like(out))
    host = replace(host, output=y.get(), second=True)
    worst = judge({"dx": made[0].get(), "dresidual": made[3].get()}, expected("backward", host, 1))
    assert made[3].dtype == np.float32
    assert worst.good, str(worst)


# --- the functions themselves


def arguments(dtype: np.dtype[Any], rng: np.random.Generator) -> Host:
    """Numbers of all sizes that activations take, and what is odd."""
    near = [0.0, -0.0, 6.0, -3.0, 3.0, 1e-30, -1e-30, -0.7517916, -1.278465, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0]
    far = [1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, np.nan]
    spread = np.concatenate([rng.uniform(-12, 12, 2000), rng.uniform(-110, 110, 500), rng.standard_normal(500)])
    small = np.exp2(rng.uniform(-40, 0, 500)) * rng.choice([-1, 1], 500)
    with np.errstate(over="ignore"):
        return np.concatenate([near, far, spread, small]).astype(dtype).reshape(1, 1, -1)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.once("the device's own functions, within bounds"))]
)
def test_functions_and_derivatives_are_exact(queue: cl.CommandQueue, name: str, dtype: Any) -> None:
    """By the identity as normalisation: mean 0, variance 1, no epsilon."""
    dtype = np.dtype(dtype)
    z = arguments(dtype, np.random.default_rng(1))
    info = np.finfo(dtype)
    x, dy = put(queue, z), put(queue, np.ones_like(z))
    mean, var = put(queue, np.zeros(1, dtype)), put(queue, np.ones(1, dtype))
    activation = PLAIN[name]
    y = batch_norm_infer(x, mean=mean, var=var, epsilon=0.0, activation=name).get()
    room = activated.activated_bound(z, 0.0, activation, float(info.eps), float(info.tiny))
    worst = judge({"y": y}, {"y": (activated.activated(z, activation), room)})
    assert worst.good, f"{dtype}: {worst}"
    options: dict[str, Any] = {"save_mean": mean, "save_invstd": var, "training": False, "activation": name}
    exact = activated.derivative(z, activation)
    room = activated.derivative_bound(z, 0.0, activation, float(info.eps), float(info.tiny))
    dx = batch_norm_backward(x, dy, **options)[0].get()
    worst = judge({"dx": dx}, {"dx": (exact, room)})
    assert worst.good, f"{dtype}: {worst}"
    if activation.by_output:
        dx = batch_norm_backward(x, dy, **options, y=put(queue, y))[0].get()
        exact = activated.derivative_by_output(y, activation)
        room = activated.derivative_by_output_bound(y, activation, float(info.eps), float(info.tiny))
        worst = judge({"dx": dx}, {"dx": (exact, room)})
        assert worst.good, f"{dtype}: {worst}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reference_is_that_of_the_formulas(name: str) -> None:
    """Derivatives are those of differences, and what follows from y is what follows from z."""
    activation = replace(PLAIN[name], slope=0.3 if name in SLOPES else 0.0)
    z = np.linspace(-8.0, 8.0, 3201) + 1e-4  # beside the kinks
    step = 1e-6
    slope = (activated.activated(z + step, activation) - activated.activated(z - step, activation)) / (2 * step)
    np.testing.assert_allclose(activated.derivative(z, activation), slope, atol=1e-8)
    if activation.by_output:
        y = activated.activated(z, activation)
        np.testing.assert_allclose(activated.derivative_by_output(y, activation), slope, atol=1e-8)


def test_the_reference_agrees_with_tabulated_values() -> None:
    """Of gelu, silu, softplus and so on at 1 and -2, to the digits that tables have."""
    table = {
        "relu": (1.0, 0.0),
        "leaky_relu": (1.0, -0.02),
        "elu": (1.0, -0.8646647),
        "silu": (0.7310586, -0.2384058),
        "sigmoid": (0.7310586, 0.1192029),
        "tanh": (0.7615942, -0.9640276),
        "gelu": (0.8413447, -0.0455003),
        "gelu_tanh": (0.8411920, -0.0454023),
        "hardswish": (0.6666667, -0.3333333),
        "softplus": (1.3132617, 0.1269280),
        "relu6": (1.0, 0.0),
    }
    assert set(table) == set(FUNCTIONS)
    for name, values in table.items():
        np.testing.assert_allclose(activated.activated([1.0, -2.0], PLAIN[name]), values, atol=6e-8)


# --- hostile data


@pytest.mark.parametrize("maker", [Offset(1e4), Spoiled(np.nan), Spoiled(np.inf)], ids=["far", "nan", "inf"])
@pytest.mark.parametrize("source", ["x", "y", "residual"])
def test_hostile_data(queue: cl.CommandQueue, maker: Any, source: str) -> None:
    for shape in ((6, 5, 7), (2, 4), (13, 4)):
        host = make(shape, 1, np.float32, maker)
        data = fused(host, PLAIN["relu"], source)
        check(queue, "train", data)
        check(queue, "backward", data, second=True)


def test_constant_channels_pass_nothing_to_what_is_not_above_0(queue: cl.CommandQueue) -> None:
    x = put(queue, np.full((8, 3, 4), 1.0 / 3.0, np.float32))
    dy = put(queue, np.ones((8, 3, 4), np.float32))
    y, *saved = batch_norm_train(x, activation="relu")
    assert not y.get().any()
    dx, dscale, dbias = batch_norm_backward(x, dy, None, *saved, activation="relu")
    assert not dx.get().any()
    assert not dscale.get().any()
    assert not dbias.get().any()


# --- arrays


@pytest.fixture
def data(queue: cl.CommandQueue) -> Data:
    return make((6, 5, 8, 7), 1)


@pytest.fixture
def step(queue: cl.CommandQueue, data: Data) -> dict[str, Any]:
    """A step with relu and a residual: arrays, and what comes of them."""
    x, dy, scale, bias = (put(queue, getattr(data, name)) for name in ("x", "dy", "scale", "bias"))
    residual = put(queue, np.random.default_rng(2).standard_normal(data.x.shape).astype(np.float32))
    y, *saved = batch_norm_train(x, scale, bias, activation="relu", residual=residual)
    made = batch_norm_backward(x, dy, scale, *saved, activation="relu", y=y, dresidual=True)
    return {"x": x, "dy": dy, "scale": scale, "bias": bias, "residual": residual, "y": y, "saved": saved, "made": made}


def test_results_in_place(queue: cl.CommandQueue, data: Data, step: dict[str, Any]) -> None:
    x, scale, saved, y = step["x"], step["scale"], step["saved"], step["y"]
    own = step["residual"].copy()
    assert batch_norm_train(x, scale, step["bias"], activation="relu", residual=own, out=own)[0] is own
    assert all_bits((own,)) == all_bits((y,))
    own = step["residual"].copy()
    given = {"mean": scale, "var": put(queue, data.running_var), "activation": "silu"}
    wanted = batch_norm_infer(x, **given, residual=step["residual"])
    assert batch_norm_infer(x, **given, residual=own, out=own) is own
    assert all_bits((own,)) == all_bits((wanted,))
    for names in ({"out": True, "dresidual": False}, {"out": False, "dresidual": True}):
        dy = step["dy"].copy()
        options: dict[str, Any] = {"out": dy} if names["out"] else {}
        options["dresidual"] = dy if names["dresidual"] else True
        made = batch_norm_backward(x, dy, scale, *saved, activation="relu", y=y, **options)
        assert made[0 if names["out"] else 3] is dy
        assert all_bits(made) == all_bits(step["made"])


def test_a_residual_without_an_activation(queue: cl.CommandQueue, step: dict[str, Any]) -> None:
    """Its gradient is dy itself, which is copied only into an array that is given for it."""
    x, dy, scale, saved = step["x"], step["dy"], step["scale"], step["saved"]
    plain = batch_norm_backward(x, dy, scale, *saved)
    made = batch_norm_backward(x, dy, scale, *saved, dresidual=True)
    assert made[3] is dy
    assert all_bits(made[:3]) == all_bits(plain)
    own = cla.empty_like(dy)
    made = batch_norm_backward(x, dy, scale, *saved, dresidual=own)
    assert made[3] is own
    assert all_bits(made) == all_bits((*plain, dy))
    empty = put(queue, np.zeros((0, 5, 2), np.float32))
    made = batch_norm_backward(empty, empty, scale, *saved, activation="relu", dresidual=True)
    assert [array.shape for array in made] == [(0, 5, 2), (5,), (5,), (0, 5, 2)]


def layouts(queue: cl.CommandQueue) -> Iterator[Any]:
    """Ways in which an array may lie."""

    def stepped(host: Host) -> cla.Array:
        wide = np.full((*host.shape[:2], 2 * host.shape[2], host.shape[3]), np.nan, host.dtype)
        wide[:, :, ::2] = host
        return put(queue, wide)[:, :, ::2]

    def channels_last(host: Host) -> cla.Array:
        return put(queue, np.ascontiguousarray(np.moveaxis(host, 1, -1))).transpose((0, 3, 1, 2))

    yield from (lambda host: put(queue, host), stepped, channels_last)


def test_arrays_that_lie_in_any_order(queue: cl.CommandQueue, data: Data, step: dict[str, Any]) -> None:
    scale, bias, hosts = step["scale"], step["bias"], [step[name].get() for name in ("residual", "y")]
    wanted = [array.get() for array in step["made"]]
    for place, ways in enumerate(itertools.product(layouts(queue), repeat=3)):
        x, dy, residual = (way(host) for way, host in zip(ways, (data.x, data.dy, hosts[0]), strict=True))
        y, *saved = batch_norm_train(x, scale, bias, activation="relu", residual=residual)
        np.testing.assert_allclose(gpuarray.pack(y).get(), hosts[1], rtol=1e-5, atol=1e-6)
        options: dict[str, Any] = {"y": ways[0](hosts[1])} if place % 2 else {"residual": residual, "bias": bias}
        if place % 3:
            options |= {"out": ways[1](data.x), "dresidual": ways[2](data.x)}
        made = batch_norm_backward(x, dy, scale, *saved, activation="relu", **{"dresidual": True, **options})
        for array, host in zip(made, wanted, strict=True):
            np.testing.assert_allclose(gpuarray.pack(array).get(), host, rtol=1e-4, atol=2e-5)


@pytest.mark.once("their kernels are those of calls in slices, which are compared on each runtime")
def test_parts_of_a_batch(queue: cl.CommandQueue, data: Data, step: dict[str, Any]) -> None:
    scale, bias, pieces = step["scale"], step["bias"], (slice(0, 2), slice(2, 6))
    for name, source in (("relu", "y"), ("gelu", "residual"), ("elu", "x")):
        residual = None if source == "x" else step["residual"]
        y, *saved = batch_norm_train(step["x"], scale, bias, epsilon=EPSILON, activation=name, residual=residual)
        told = {"y": {"y": y}, "residual": {"residual": residual, "bias": bias}, "x": {"bias": bias}}[source]
        wanted = batch_norm_backward(step["x"], step["dy"], scale, *saved, activation=name, dresidual=True, **told)
        each = [
            {key: None if array is None else put(queue, np.ascontiguousarray(array.get()[piece]))}
            | {"x": put(queue, data.x[piece]), "dy": put(queue, data.dy[piece])}
            for piece in pieces
            for key, array in (("residual", residual),)
        ]
        whole = merge(*(statistics(one["x"]) for one in each))
        found, sums = [], []
        for one in each:
            part = normalize(one["x"], whole, scale, bias, epsilon=EPSILON, activation=name, residual=one["residual"])
            found.append(part.get())
            one["told"] = {"y": {"y": part}, "residual": {"residual": one["residual"], "bias": bias}}.get(
                source, {"bias": bias}
            )
            sums.append(
                gradient_sums(one["x"], one["dy"], whole, activation=name, scale=scale, epsilon=EPSILON, **one["told"])
            )
        np.testing.assert_allclose(np.concatenate(found), y.get(), rtol=1e-5, atol=1e-6)
        total = merge(*sums)
        made = [
            gradient(
                one["x"],
                one["dy"],
                whole,
                total,
                scale,
                epsilon=EPSILON,
                activation=name,
                dresidual=True,
                **one["told"],
            )
            for one in each
        ]
        for place in (0, 3):
            together = np.concatenate([one[place].get() for one in made])
            np.testing.assert_allclose(together, wanted[place].get(), rtol=1e-4, atol=2e-5)
        for place in (1, 2):
            np.testing.assert_allclose(made[0][place].get(), wanted[place].get(), rtol=1e-5, atol=1e-4)


# --- what is refused, and leaves everything as it was


@pytest.mark.once("errors are found before the device is asked")
def test_activations_that_are_none(queue: cl.CommandQueue, step: dict[str, Any]) -> None:
    x = step["x"]
    for wrong, told in (
        ("ReLU", r"'ReLU'; None or one of relu, .* did you mean 'relu'\?"),
        ("swish", r"did you mean 'silu'\?"),
        (np.tanh, r"did you mean 'tanh'\?"),
        (3, "activation is 3; None or one of relu"),
        (("relu", 3), r"\('relu', 3\); relu takes no number, so 'relu' alone is wanted"),
        (("elu", -3), "the number of activation 'elu' is -3; a number from 0"),
        (("leaky_relu", "a"), "the number of activation 'leaky_relu' is 'a'"),
        ((), "activation is"),
    ):
        with pytest.raises(ParameterError, match=told):
            batch_norm_train(x, activation=wrong)
        with pytest.raises(ParameterError, match=told):
            batch_norm_backward(x, x, None, *step["saved"], activation=wrong)


@pytest.mark.once("errors are found before the device is asked")
def test_tensors_that_do_not_fit(queue: cl.CommandQueue, step: dict[str, Any]) -> None:
    x, dy, scale, y, saved = (step[name] for name in ("x", "dy", "scale", "y", "saved"))
    host = x.get()
    with pytest.raises(ArrayTypeError, match=r"residual is a numpy.ndarray; .*makes one"):
        batch_norm_train(x, residual=host)
    with pytest.raises(ShapeError, match=r"residual has shape \(3, 5, 8, 7\); x has shape"):
        batch_norm_train(x, residual=put(queue, host[:3]))
    with pytest.raises(DtypeError, match="residual is int32; float32 is wanted, as x is; convert it with"):
        batch_norm_infer(x, mean=scale, var=scale, residual=put(queue, host.astype(np.int32)))
    both = put(queue, np.zeros(host.size + 8, np.float32))
    residual, out = both[: host.size].reshape(host.shape), both[8:].reshape(host.shape)
    with pytest.raises(OverlapError, match="out overlaps residual in memory"):
        batch_norm_train(x, residual=residual, out=out)
    assert not both.get().any()
    backward = {"scale": scale, "save_mean": saved[0], "save_invstd": saved[1]}
    with pytest.raises(ParameterError, match="y is given, from which the derivative of gelu does not follow"):
        batch_norm_backward(x, dy, **backward, activation="gelu", y=y)
    with pytest.raises(OverlapError, match="dresidual overlaps out in memory"):
        batch_norm_backward(x, dy, **backward, activation="relu", y=y, dresidual=dy, out=dy)
    with pytest.raises(OverlapError, match="dresidual overlaps y in memory"):
        batch_norm_backward(x, dy, **backward, activation="relu", y=y, dresidual=y)
    for wrong in ("yes", host, 1):
        with pytest.raises(ArrayTypeError, match=r"dresidual is .*; True, False or a pyopencl.array.Array is wanted"):
            batch_norm_backward(x, dy, **backward, activation="relu", y=y, dresidual=wrong)
    half = gpuarray.cast(x, np.float16)
    with pytest.raises(DtypeError, match="dresidual is float32; float16 is wanted, as x is"):
        batch_norm_backward(half, half, **backward, activation="relu", dresidual=cla.empty_like(x))
    with pytest.raises(ShapeError, match=r"bias has 3 elements \(shape \(3,\)\); x has 5 channels"):
        batch_norm_backward(x, dy, **backward, activation="relu", bias=put(queue, np.zeros(3, np.float32)))
    assert all_bits((dy,)) == all_bits((put(queue, make((6, 5, 8, 7), 1).dy),))


def test_explain_tells_what_is_fused(queue: cl.CommandQueue, step: dict[str, Any]) -> None:
    told = explain(step["x"], activation="relu", residual=step["residual"])
    assert "relu, with a residual" in told
    told = explain(step["x"], operation="backward", activation="tanh", y=step["y"], dresidual=True)
    assert "tanh, by its output, residual's gradient" in told
    assert "relu" not in explain(step["x"])
