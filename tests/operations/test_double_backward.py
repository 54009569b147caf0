"""The second derivative, in every walk and type, against the reference, differences, and what PyTorch gives.

Walks named "small" are few and tiny enough for a simulator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, foreign, put
from forms import WALKS, forced, shrink

from oclbn import functional, gpuarray
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import DtypeError, OverlapError, ParameterError, ShapeError
from oclbn.functional import batch_norm_backward, batch_norm_double_backward, batch_norm_train, bind, explain, prepare
from oclbn.truth import reference
from oclbn.truth.cases import DOUBLE_GRADIENTS, TAKES, judge, run
from oclbn.truth.expectation import EPSILON, expected
from oclbn.truth.hostile import MAKERS, Data, Host, Offset, Spoiled, make

BOTH = ("double_backward", "double_constant")
PUSHES = ("ddx", "ddscale", "ddbias")
TYPES = ("float32", "float16", "bfloat16")


def check(queue: cl.CommandQueue, operation: str, host: Data) -> None:
    given = {name: put(queue, getattr(host, name)) for name in TAKES[operation]}
    if host.saved:
        given |= {name: put(queue, one) for name, one in zip(("save_mean", "save_invstd"), host.saved, strict=True)}
    found = run(
        functional, operation, {name: one for name, one in given.items() if one is not None}, axis=1, epsilon=EPSILON
    )
    assert found["gx"].shape == found["gdy"].shape == host.x.shape
    assert found["gx"].dtype == found["gdy"].dtype == host.written
    worst = judge({name: array.get() for name, array in found.items()}, expected(operation, host, 1))
    assert worst.good, str(worst)


# In float32 each walk is compared on each runtime; these, too, in a type of its own, and these without ddx.
OTHERWISE = {"small runs", "small columns, 16 work-items", "rows past the cache", "runs past the cache"}
WITHOUT = {"small rows", "small runs", "small sheets", "small columns, 16 work-items"}
ENOUGH = pytest.mark.once("of another type, and without ddx, are on each runtime rows, runs and columns")


def walks(*, small: bool) -> list[Any]:
    """Each walk with its shape in float32, in another type, and in that without ddx."""
    made = []
    for place, walk in enumerate(WALKS):
        name = str(walk.id)
        if name.startswith("small") != small:
            continue
        other = "float64" if small else TYPES[1 + place % 2]
        for dtype, operations, pushed, everywhere in (
            ("float32", BOTH, True, True),
            (other, BOTH, True, name in OTHERWISE),
            (other, BOTH[place % 2 :][:1], False, name in WITHOUT),
        ):
            told = f"{name}, {dtype}" + ("" if pushed else ", without ddx")
            marks = () if everywhere else (ENOUGH,)
            made.append(pytest.param(*walk.values, dtype, operations, pushed, id=told, marks=marks))
    return made


@pytest.mark.parametrize(("walk", "shape", "dtype", "operations", "pushed"), walks(small=True))
def test_every_small_walk(
    queue: cl.CommandQueue,
    walk: dict[str, Any],
    shape: tuple[int, ...],
    dtype: str,
    operations: tuple[str, ...],
    pushed: bool,
) -> None:
    """A simulator runs these, too: all kernels, by one work-item and by several."""
    check_walk(queue, walk, shape, dtype, operations, pushed)


@pytest.mark.parametrize(("walk", "shape", "dtype", "operations", "pushed"), walks(small=False))
def test_every_walk(
    queue: cl.CommandQueue,
    monkeypatch: pytest.MonkeyPatch,
    walk: dict[str, Any],
    shape: tuple[int, ...],
    dtype: str,
    operations: tuple[str, ...],
    pushed: bool,
    request: pytest.FixtureRequest,
) -> None:
    if "past the cache" in request.node.name:
        shrink(queue, monkeypatch)
    check_walk(queue, walk, shape, dtype, operations, pushed)


def check_walk(
    queue: cl.CommandQueue,
    walk: dict[str, Any],
    shape: tuple[int, ...],
    dtype: str,
    operations: tuple[str, ...],
    pushed: bool,
) -> None:
    if dtype == "float64" and not limits(queue.device).fp64:
        dtype = "float16"
    host = make(shape, 1, named(dtype), Offset(3.0)).pushed(1)
    with forced(queue, **walk):
        for operation in operations:
            check(queue, operation, host if pushed else replace(host, ddx=None))


def test_small_data_of_other_types_than_results(queue: cl.CommandQueue) -> None:
    """x of 16 bits, and dy, ddx and results of float32; and x alone of float32."""
    host = make((5, 3, 7), 1, named("float16"))
    host = replace(host, dy=host.dy.astype(np.float32)).pushed(1).widened()
    x, dy, ddx, scale = (put(queue, one) for one in (host.x, host.dy, host.ddx, host.scale))
    outs = [cla.empty(queue, host.x.shape, np.float32) for _ in range(2)]
    _, *saved = batch_norm_train(x, epsilon=EPSILON)
    pushes = {name: put(queue, getattr(host, name)) for name in PUSHES}
    made = batch_norm_double_backward(x, dy, scale, *saved, **pushes, out=outs[0], gdy=outs[1])
    assert made[:2] == tuple(outs)
    found = dict(zip(DOUBLE_GRADIENTS, (one.get() for one in made), strict=True))
    worst = judge(found, expected("double_backward", host, 1))
    assert worst.good, str(worst)
    with pytest.raises(DtypeError, match="gdy is float32; float16 is wanted, as x is"):
        batch_norm_double_backward(x, dy, scale, *saved, ddx=ddx, gdy=outs[1])


@pytest.mark.parametrize("data", MAKERS)
def test_hostile_data(queue: cl.CommandQueue, data: str) -> None:
    for shape in ((6, 5, 7), (2, 1), (13, 4)):
        host = make(shape, 1, np.float32, MAKERS[data]).pushed(1)
        for operation in BOTH:
            check(queue, operation, host)


def test_far_means_in_every_form(queue: cl.CommandQueue) -> None:
    """Where the rest of the rounded mean counts; and statistics of another origin, where there is none."""
    host = make((6, 5, 49), 1, np.float32, MAKERS["mean is 1e6 std and odd"]).pushed(1)
    plain = make((6, 5, 49), 1, np.float32, Offset(3.0)).pushed(1)
    ways = {str(walk.id): walk.values[0] for walk in WALKS}
    for name in ("small rows", "small rows, 16 work-items", "runs in slices", "small serial"):
        with forced(queue, **ways[name]):
            check(queue, "double_backward", host)
            check(queue, "double_backward", replace(plain, saved=foreign(plain, 1)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_channel(queue: cl.CommandQueue, value: float) -> None:
    host = make((6, 5, 7), 1, np.float32, Offset(3.0)).pushed(1)
    for name, operation in itertools.product(("x", "dy", "ddx"), BOTH):
        spoiled = replace(host, **{name: getattr(host, name).copy()})
        getattr(spoiled, name)[2, 3, 4] = value
        arrays = {one: put(queue, getattr(spoiled, one)) for one in TAKES[operation]}
        found = run(functional, operation, arrays, axis=1)
        for result, array in found.items():
            got = np.moveaxis(array.get(), 1, 0) if result != "gscale" else array.get()
            finite = np.isfinite(got.reshape(5, -1)).all(axis=1)
            assert finite[[0, 1, 2, 4]].all(), (name, operation, result)
            if operation == "double_backward" and (name, result) != ("dy", "gdy"):  # in which there is no dy
                assert not finite[3], (name, result)


def test_differences_of_backward(queue: cl.CommandQueue) -> None:
    """Of the device's own float64 backward, whose statistics go with x."""
    if not limits(queue.device).fp64:
        pytest.skip("needs float64")
    host = make((4, 2, 3), 1, np.float64).pushed(1)

    def loss(x: Host, dy: Host, scale: Host) -> float:
        arrays = [put(queue, one) for one in (x, dy, scale)]
        _, *saved = batch_norm_train(arrays[0])
        made = batch_norm_backward(*arrays, *saved)
        pushes = (host.ddx, host.ddscale, host.ddbias)
        return sum(float(np.sum(one.get() * push)) for one, push in zip(made, pushes, strict=True))

    given = [host.x, host.dy, host.scale]
    arrays = [put(queue, one) for one in given]
    _, *saved = batch_norm_train(arrays[0])
    made = batch_norm_double_backward(*arrays, *saved, **{name: put(queue, getattr(host, name)) for name in PUSHES})
    for place, found in enumerate(one.get() for one in made):
        for at in np.ndindex(found.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [one.copy() for one in given]
                moved[place][at] += step
                sides.append(loss(*moved))
            np.testing.assert_allclose(found[at], (sides[0] - sides[1]) / 2e-5, rtol=1e-6, atol=1e-7)


# Of PyTorch 2.13.0 in float64 on a processor: torch.autograd.grad of sum(ddx dx) + sum(ddscale dscale) + sum(ddbias
# dbias) with respect to x, dy and scale; dx, dscale and dbias are autograd.grad(..., create_graph=True) of
# functional.batch_norm with epsilon 1e-5, in training and with the running statistics of `torch_data`.
TORCH = {
    (True, "gx"): """
        0.015914080941362457 -0.30212156978247845 -0.28726106185705946 -0.10662952317379441 -0.12090773205069263
        0.43130326220621323 0.4771893889153166 0.39898666695534263 0.10054923385291609 -0.12473727516732089
        -0.008170017352742597 -0.47411545348706274""",
    (True, "gdy"): """
        1.3137251437825725 0.9139537072509136 2.224202972294582 0.34309591466957245 -0.5745140303833185
        -1.0791087829565764 1.9303409792387047 -0.8938749182072618 1.2209641246079377 0.004979837698471046
        1.4058453107376425 -0.20961025873323935""",
    (True, "gscale"): "0.1939702076289489 -0.5646508323608559",
    (False, "gx"): """
        0.21100013600638515 -0.28114495333826656 -0.8991479915218558 -0.3469031178362869 -0.2474867546991783
        0.26700285306974203 0.594246596472922 0.6766944226851337 0.27181116716104037 -0.2392843365434341
        -0.258232814174097 -0.9707064821966056""",
    (False, "gdy"): """
        1.7623638782667734 1.2589758192086447 1.672490332446381 -1.8227035351948062 -0.21519671278234637
        -0.8451565692437693 1.1490951269379839 -4.270329182137952 1.6241248481419466 0.2640790653179478
        0.19373270845325652 -2.8263608638878868""",
    (False, "gscale"): "0.23024612026182023 -1.2615210368184409",
}


def torch_data() -> dict[str, Host]:
    def wave(rate: float) -> Host:
        return np.sin(rate * np.arange(1, 13)).round(3).reshape(3, 2, 2)

    numbers = {"scale": (1.5, -0.75), "mean": (0.25, -0.5), "var": (2.0, 0.5)}
    numbers |= {"ddscale": (0.4, -1.1), "ddbias": (0.3, 0.8)}
    tensors = {"x": 2.0 * wave(1.7) + 0.5, "dy": wave(2.3), "ddx": wave(0.9)}
    return tensors | {name: np.array(values) for name, values in numbers.items()}


@pytest.mark.parametrize("training", [True, False])
def test_small_results_are_those_of_pytorch(queue: cl.CommandQueue, training: bool) -> None:
    data = torch_data()
    pushes = {name: data[name] for name in PUSHES}
    wanted = [np.array(TORCH[training, name].split(), np.float64) for name in DOUBLE_GRADIENTS]
    own = reference.train(data["x"], epsilon=1e-5)
    given = (own.mean, own.invstd) if training else (data["mean"], 1 / np.sqrt(data["var"] + 1e-5))
    made = reference.double_backward(data["x"], data["dy"], data["scale"], *given, **pushes, training=training)
    for mine, theirs in zip(made, wanted, strict=True):
        np.testing.assert_allclose(mine.ravel(), theirs, rtol=1e-13, atol=1e-15)
    dtype = np.float64 if limits(queue.device).fp64 else np.float32
    arrays = {name: put(queue, one.astype(dtype)) for name, one in data.items()}
    statistics = batch_norm_train(arrays["x"])[1:] if training else (arrays["mean"], arrays["var"])
    options = {} if training else {"training": False, "epsilon": 1e-5}
    on_device = batch_norm_double_backward(
        arrays["x"], arrays["dy"], arrays["scale"], *statistics, **{name: arrays[name] for name in PUSHES}, **options
    )
    eps = float(np.finfo(dtype).eps)
    for mine, theirs in zip(on_device, wanted, strict=True):
        np.testing.assert_allclose(mine.get().ravel(), theirs, rtol=32 * eps, atol=32 * eps)


# --- arrays and arguments


@pytest.fixture
def data() -> Data:
    return make((6, 5, 8, 7), 1).pushed(1)


@pytest.fixture
def given(queue: cl.CommandQueue, data: Data) -> dict[str, Any]:
    """A call's arguments by name."""
    arrays = {name: put(queue, getattr(data, name)) for name in ("x", "dy", "scale", *PUSHES)}
    _, arrays["save_mean"], arrays["save_invstd"] = batch_norm_train(arrays["x"])
    return arrays


def called(given: dict[str, Any], **options: Any) -> tuple[cla.Array, ...]:
    positional = ("x", "dy", "scale", "save_mean", "save_invstd")
    rest = {name: array for name, array in given.items() if name not in positional}
    return batch_norm_double_backward(*(given[name] for name in positional), **{**rest, **options})


def stepped(queue: cl.CommandQueue, host: Host) -> cla.Array:
    wide = np.full((*host.shape[:2], 2 * host.shape[2], host.shape[3]), np.nan, host.dtype)
    wide[:, :, ::2] = host
    return put(queue, wide)[:, :, ::2]


def channels_last(queue: cl.CommandQueue, host: Host) -> cla.Array:
    return put(queue, np.ascontiguousarray(np.moveaxis(host, 1, -1))).transpose((0, 3, 1, 2))


WAYS: list[Callable[..., cla.Array]] = [put, stepped, channels_last]


def on_host(array: cla.Array) -> Host:
    return gpuarray.pack(array).get()


def test_arrays_that_lie_in_any_order(queue: cl.CommandQueue, data: Data, given: dict[str, Any]) -> None:
    wanted = [one.get() for one in called(given)]
    for place, ways in enumerate(itertools.product(WAYS, repeat=3)):
        mixed = {name: way(queue, getattr(data, name)) for name, way in zip(("x", "dy", "ddx"), ways, strict=True)}
        if place % 2:
            mixed |= {"out": ways[2](queue, np.zeros_like(data.x)), "gdy": ways[1](queue, np.zeros_like(data.x))}
            mixed["scale"] = put(queue, np.repeat(data.scale, 2))[::2]
        made = called({**given, **mixed})
        for mine, theirs in zip(made, wanted, strict=True):
            np.testing.assert_allclose(on_host(mine), theirs, rtol=1e-4, atol=1e-5)
        if place % 2:
            assert made[:2] == (mixed["out"], mixed["gdy"])
        told = explain(mixed["x"], operation="double_backward", dy=mixed["dy"], ddx=mixed["ddx"])
        assert ("packed before" in told) == (len({*ways}) > 1 or stepped in ways[:1]), told


def test_an_empty_batch(queue: cl.CommandQueue, given: dict[str, Any]) -> None:
    empty = cla.zeros(queue, (0, 5, 2), np.float32)
    for training in (True, False):
        made = called({**given, "x": empty, "dy": empty, "ddx": empty}, training=training)
        assert [one.shape for one in made] == [(0, 5, 2), (0, 5, 2), (5,)]
        assert not made[2].get().any()


def test_what_is_none_is_zero(queue: cl.CommandQueue, given: dict[str, Any]) -> None:
    zeros = {name: cla.zeros_like(given[name]) for name in PUSHES}
    for names in ((), ("ddx",), ("ddscale",), ("ddbias",), ("ddx", "ddbias"), ("ddscale", "ddbias"), ("scale",)):
        for training in (True, False):
            less = called({**given, **dict.fromkeys(names)}, training=training)
            if names == ("scale",):
                full = called({**given, "scale": cla.zeros_like(given["scale"]) + 1.0}, training=training)
            else:
                full = called({**given, **{name: zeros[name] for name in names}}, training=training)
            for mine, theirs in zip(less, full, strict=True):
                np.testing.assert_allclose(mine.get(), theirs.get(), rtol=1e-5, atol=1e-6)


def test_constants_by_either_name(queue: cl.CommandQueue, given: dict[str, Any], data: Data) -> None:
    var = put(queue, data.running_var)
    invstd = put(queue, (1 / np.sqrt(data.running_var.astype(np.float64) + 0.5)).astype(np.float32))
    one = called({**given, "save_invstd": var}, training=False, epsilon=0.5)
    other = called({**given, "save_invstd": invstd}, training=False)
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine.get(), theirs.get(), rtol=1e-6, atol=1e-6)


def test_bound_and_prepared(queue: cl.CommandQueue, data: Data, given: dict[str, Any]) -> None:
    positional = [given[name] for name in ("x", "dy", "scale", "save_mean", "save_invstd")]
    pushes = {name: given[name] for name in PUSHES}
    step = bind(batch_norm_double_backward, *positional, **pushes)
    made = step()
    assert all_bits(made) == all_bits(called(given))
    given["ddx"].set(data.x)
    assert step()[0] is made[0]
    assert all_bits(made) == all_bits(called(given))
    prepare([given["x"].shape], operations=BOTH, queue=queue, processes=1)


def test_explain_tells_the_kernels(given: dict[str, Any]) -> None:
    for operation, kernel in zip(BOTH, ("double_", "double_constant_partial + double_constant_merge"), strict=True):
        told = explain(given["x"], operation=operation, ddscale=given["ddscale"], gdy=given["ddx"])
        assert f"({kernel}" in told
    with pytest.raises(ParameterError, match="activation is given; 'double_backward' takes none, so None is wanted"):
        explain(given["x"], operation="double_backward", activation="relu")
    with pytest.raises(ParameterError, match="ddx is no array that 'backward' takes"):
        explain(given["x"], operation="backward", ddx=given["ddx"])


def test_what_is_refused(queue: cl.CommandQueue, given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"ddx, ddscale and ddbias are None; one of them at least is wanted$"):
        called({**given, **dict.fromkeys(PUSHES)})
    with pytest.raises(ParameterError, match=r"epsilon is 0\.5; None is wanted in training"):
        called(given, epsilon=0.5)
    with pytest.raises(ShapeError, match=r"ddx has shape \(5,\); x has shape"):
        called({**given, "ddx": given["ddscale"]})
    with pytest.raises(ShapeError, match="ddbias has 4 elements"):
        called({**given, "ddbias": given["ddbias"][1:]})
    for name, under in itertools.product(("out", "gdy"), ("x", "dy", "ddx")):
        with pytest.raises(OverlapError, match=f"{name} overlaps {under} in memory"):
            called(given, **{name: given[under]})
    own = cla.empty_like(given["x"])
    with pytest.raises(OverlapError, match="gdy overlaps out in memory"):
        called(given, out=own, gdy=own)


def test_a_bad_channel_and_good_ones(queue: cl.CommandQueue) -> None:
    for operation in BOTH:
        check(queue, operation, make((6, 5, 7), 1, np.float32, Spoiled(np.nan)).pushed(1))
