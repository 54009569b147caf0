"""DeviceGroup: a batch over several devices of one process, beside the whole on one and the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from data import EMPTY, FEW_SHAPES, NASTY
from faults import NO_RESOURCES, counted, failing
from places import LAYOUTS, queues_of
from spread import (
    CUTS,
    PER_CHANNEL,
    alone,
    along,
    check,
    check_beside,
    cut,
    everywhere,
    hosts_of,
    lengths_of,
    put,
    queues_on,
    together,
    trained,
)

from oclbn import functional
from oclbn.elements import named, numbers_of, range_of
from oclbn.errors import (
    ArrayTypeError,
    ContextError,
    DtypeError,
    GroupError,
    OclbnError,
    OverlapError,
    ParameterError,
    ShapeError,
)
from oclbn.functional import batch_norm_train, statistics
from oclbn.gpuarray import pack
from oclbn.sync import DeviceGroup, GroupStatistics
from oclbn.truth.expectation import EPSILON, FACTOR
from oclbn.truth.hostile import Offset, Spoiled, make

FAR = Offset(1e6)


ALIKE = pytest.mark.once(reason="each type's kernels are compared on each runtime; what a group adds is the host's")
PLACES = {  # of each type that shards have: kernels are compiled anew for each device, halves of one too
    "float32": LAYOUTS,
    "float64": ("three contexts", "halves"),
    "float16": ("three contexts", "unlike devices"),
    "bfloat16": ("three contexts", "halves in one context"),
}


def placed(*types: str) -> pytest.MarkDecorator:
    """Layouts with types."""
    pairs = [(layout, name) for name in types for layout in PLACES[name]]
    return pytest.mark.parametrize(
        ("queues", "element"),
        [pytest.param(*pair, id=", ".join(pair), marks=() if pair[1] == "float32" else ALIKE) for pair in pairs],
        indirect=True,
    )


NUMBERS, ELEMENTS = placed("float32", "float64"), placed(*PLACES)


@pytest.fixture(params=["float32", *(pytest.param(name, marks=ALIKE) for name in PLACES if name != "float32")])
def element(request: pytest.FixtureRequest) -> np.dtype:
    """Each type that shards have; float64 only where the device computes it."""
    if request.param == "float64":
        request.getfixturevalue("needs_fp64")
    return named(request.param)


@pytest.fixture(scope="module", params=LAYOUTS)
def queues(request: pytest.FixtureRequest, queue: cl.CommandQueue) -> list[cl.CommandQueue]:
    return queues_of(request.param, queue.device)


@pytest.fixture
def group(queues: list[cl.CommandQueue]) -> DeviceGroup:
    return DeviceGroup(queues)


@pytest.fixture(scope="module")
def two(queue: cl.CommandQueue) -> list[cl.CommandQueue]:
    """Queues of two contexts of the device, for what does not depend on devices."""
    return [queue, *queues_on(queue.device)]


@ELEMENTS
@pytest.mark.parametrize("how", CUTS)
def test_beside_the_whole(group: DeviceGroup, element: np.dtype, how: str) -> None:
    host = make((13, 5, 6, 7), 1, element, FAR)
    lengths = lengths_of(13, len(group.queues), how)
    made = together(trained(group, host, lengths))
    check(made, host)
    check_beside(made, alone(group.queues[0], host), host)
    again = together(trained(group, host, lengths))
    assert {name: one.tobytes() for name, one in again.items()} == {name: one.tobytes() for name, one in made.items()}


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 40_000.0, -1e-6])
def test_halves_are_summed_as_float32(two: list[cl.CommandQueue], narrow: Any, mean: float) -> None:
    """Beside shards of float32 with the same values: what is exchanged is as exact, results are rounded once.

    The square of 40,000 is beyond float16, and a mean of so many of them beyond what its sums would hold.
    """
    rng, queues, group = np.random.default_rng(5), two, DeviceGroup(two)
    x = (mean + rng.standard_normal((9, 5, 31)) * (max(abs(mean), 1) / 50)).astype(narrow)
    dy = rng.standard_normal(x.shape).astype(narrow)
    lengths = lengths_of(9, len(queues), "one each, and the rest")
    made = {}
    for name, given, slope in (("narrow", x, dy), ("wide", x, dy), ("mixed", x, dy)):
        wide = np.float32 if name == "wide" else narrow
        xs = put(queues, cut(given.astype(wide), lengths))
        dys = put(queues, cut(slope.astype(narrow if name == "narrow" else np.float32), lengths))
        running = {each: everywhere(queues, np.ones(5, np.float32)) for each in ("running_mean", "running_var")}
        ys, found = group.train(xs, **running)
        dxs, *sums = group.backward(xs, dys, found)
        assert found.moments.dtype == np.float32
        tensors = [np.concatenate(hosts_of(each)) for each in (ys, dxs)]
        assert {one.dtype for one in tensors} == {np.dtype(wide)}
        shared = [found.moments, *hosts_of(found.invstd), *(one for each in sums for one in hosts_of(each))]
        shared += [one for each in running.values() for one in hosts_of(each)]
        made[name] = tensors, shared
    eps = range_of(np.dtype(narrow)).eps
    for name in ("narrow", "mixed"):
        for (found_, wanted), room in zip(zip(made[name], made["wide"], strict=True), (eps, 2e-6), strict=True):
            for one, other in zip(found_, wanted, strict=True):
                given = one.astype(np.float64), other.astype(np.float64)
                np.testing.assert_allclose(*given, rtol=0.51 * room, atol=1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.moments[0], exact.mean(axis=(0, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.moments[2], 279 * exact.var(axis=(0, 2)), rtol=1e-5)


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_parameters_of_the_type_of_shards(two: list[cl.CommandQueue], narrow: Any) -> None:
    """They are taken as they are, as functions take them; running statistics are rounded once."""
    host, lengths = make((9, 5, 31), 1, narrow), [2, 7]
    given = {name: getattr(host, name).astype(narrow) for name in PER_CHANNEL}
    cast = replace(host, **{name: one.astype(np.float32) for name, one in given.items()})
    group, wanted = DeviceGroup(two), alone(two[0], cast)
    arrays = {name: everywhere(two, one) for name, one in given.items()}
    xs, dys = (put(two, cut(one, lengths)) for one in (host.x, host.dy))
    ys, found = group.train(xs, epsilon=EPSILON, factor=FACTOR, **arrays)
    dxs, dscale, dbias = group.backward(xs, dys, found, scale=arrays["scale"])
    assert {one.dtype for one in (*dscale, *dbias)} == {np.dtype(np.float32)}
    eps = range_of(np.dtype(narrow)).eps
    made = {"y": np.concatenate(hosts_of(ys)), "dx": np.concatenate(hosts_of(dxs))}
    made |= {name: arrays[name][1].get() for name in ("running_mean", "running_var")}
    for name, one in made.items():
        assert one.dtype == narrow
        both = one.astype(np.float64), wanted[name].astype(np.float64)
        np.testing.assert_allclose(*both, rtol=0.51 * eps, atol=0.51 * eps if name in ("y", "dx") else 1e-6)


def test_shards_of_two_types(two: list[cl.CommandQueue]) -> None:
    xs = put(two, [np.zeros((2, 3), np.float16), np.zeros((2, 3), ml_dtypes.bfloat16)])
    with pytest.raises(DtypeError, match=r"^shards\[1\] is bfloat16; shards\[0\] is float16, and one is wanted"):
        DeviceGroup(two).train(xs)


@pytest.mark.parametrize(("shape", "axis"), [*FEW_SHAPES, pytest.param((5, 4097), 1, id="many channels")])
def test_shapes(group: DeviceGroup, shape: tuple[int, ...], axis: int) -> None:
    host = make(shape, axis, maker=FAR)
    lengths = lengths_of(shape[along(axis)], len(group.queues), "even")
    made = together(trained(group, host, lengths, axis), axis)
    check(made, host, axis)


@NUMBERS
@pytest.mark.parametrize("maker", NASTY)
def test_hostile_data(group: DeviceGroup, element: np.dtype, maker: Any) -> None:
    host = make((9, 5, 31), 1, element, maker)
    made = together(trained(group, host, lengths_of(9, len(group.queues), "one each, and the rest")))
    check(made, host)


def test_one_value_per_shard(queue: cl.CommandQueue, element: np.dtype) -> None:
    queues = queues_on(*[queue.device] * 4)
    group = DeviceGroup(queues)
    host = make((4, 7), 1, element, FAR)
    made = together(trained(group, host, [1] * 4))
    check(made, host)
    with pytest.raises(ShapeError, match="one value per channel in all"):
        group.train(put(queues, cut(host.x[:1], [0, 1, 0, 0])))
    assert group.train(put(queues, cut(host.x[:2], [0, 1, 0, 1])))[1].count == 2


def test_arrays_that_lie_anyhow(two: list[cl.CommandQueue]) -> None:
    """The same bits as arrays without gaps get: shards, gradients, outputs, parameters and what is moved."""
    group, host = DeviceGroup(two), make((7, 5, 6), 1)
    other = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    rows = dict(zip(("scale", "bias", "running_mean", "running_var"), (*other[:3], other[3] ** 2), strict=True))

    def step(lay: Any) -> tuple[list[Any], list[np.ndarray]]:
        xs, dys, outs = (
            [lay(queue, part) for queue, part in zip(two, cut(a, [3, 4]), strict=True)]
            for a in (host.x, host.dy, host.x * 0)
        )
        own = {name: [lay(queue, row) for queue in two] for name, row in rows.items()}
        own["entered"] = [lay(queue, np.arange(5, dtype=np.uint32)) for queue in two]
        ys, found = group.train(xs, **own, out=outs)
        assert ys[0] is outs[0]
        grads = {name: [lay(queue, rows["bias"]) for queue in two] for name in ("scale_grad", "bias_grad")}
        dxs, *_ = group.backward(xs, dys, found, scale=own["scale"], grad_momentum=0.5, **grads)
        merged = group.merge([replace(statistics(x), mean=lay(x.queue, statistics(x).mean.get())) for x in xs])
        summed = group.sum([*dys[:1], lay(two[1], host.dy[:3])])
        moved = [*own["running_mean"], *own["running_var"], *own["entered"], *grads["scale_grad"], *grads["bias_grad"]]
        arrays = [*ys, *dxs, *moved, *(one.mean for one in merged), *summed]
        return arrays, [pack(array).get() for array in arrays]

    def plain(queue: cl.CommandQueue, a: np.ndarray) -> cla.Array:
        return cla.to_device(queue, np.ascontiguousarray(a))

    def gaps(queue: cl.CommandQueue, a: np.ndarray) -> cla.Array:
        return plain(queue, np.repeat(a[..., ::-1], 2, axis=-1))[..., ::-2]

    arrays, found = step(gaps)
    _, wanted = step(plain)
    assert not arrays[0].flags.forc
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_channel_and_shards_of_unlike_extents(two: list[cl.CommandQueue]) -> None:
    """Only the channels have to be as many."""
    host = make((1, 1, 600), 1, maker=FAR)
    group = DeviceGroup(two)
    xs = put(two, [host.x[:, :, :400].reshape(4, 1, 100), host.x[:, :, 400:].reshape(1, 1, 200)])
    ys, found = group.train(xs, epsilon=EPSILON)
    whole = batch_norm_train(cla.to_device(two[0], host.x), epsilon=EPSILON)
    assert found.count == 600
    joined = np.concatenate([y.get().ravel() for y in ys])
    np.testing.assert_allclose(joined, whole[0].get().ravel(), rtol=1e-6, atol=1e-6)


def test_no_channels(two: list[cl.CommandQueue]) -> None:
    group = DeviceGroup(two)
    xs = put(two, [np.zeros((3, 0, 2), np.float32), np.zeros((1, 0, 2), np.float32)])
    ys, found = group.train(xs)
    dxs, dscale, _ = group.backward(xs, xs, found)
    assert [y.shape for y in ys] == [dx.shape for dx in dxs] == [(3, 0, 2), (1, 0, 2)]
    assert dscale[1].shape == (0,)


@ELEMENTS
@pytest.mark.parametrize(("shape", "axis"), EMPTY)
def test_an_empty_batch(group: DeviceGroup, element: np.dtype, shape: tuple[int, ...], axis: int) -> None:
    """Gives what is empty, and moves nothing."""
    queues, channels = group.queues, shape[axis]
    xs = [cla.empty(queue, shape, element) for queue in queues]
    rng = np.random.default_rng(0)
    before = {
        name: rng.standard_normal(channels).astype(numbers_of(element)) for name in ("running_mean", "running_var")
    }
    given = {name: everywhere(queues, one) for name, one in before.items()}
    counters = {name: everywhere(queues, np.full(channels, 5, np.uint32)) for name in ("entered", "skipped")}
    ys, found = group.train(xs, axis=axis, **given, **counters)
    assert (found.count, {y.shape for y in ys}) == (0, {shape})
    for name, arrays in given.items():
        assert {one.get().tobytes() for one in arrays} == {before[name].tobytes()}
    assert {value for arrays in counters.values() for one in arrays for value in one.get()} == {5}
    gathered = everywhere(queues, np.full(channels, 3.0, numbers_of(element)))
    dxs, dscales, dbiases = group.backward(xs, xs, found, axis=axis, scale_grad=gathered, grad_momentum=0.5)
    assert {dx.shape for dx in dxs} == {shape}
    assert not any(one.get().any() for one in (*dscales, *dbiases))
    assert {value for one in gathered for value in one.get()} == {1.5}


@ELEMENTS
def test_counters_and_the_guard(group: DeviceGroup, element: np.dtype) -> None:
    """NaN on one shard: its channel keeps its running statistics on all devices, and its results are NaN."""
    queues = group.queues
    host = make((9, 5, 31), 1, element, Spoiled(np.nan))
    counters = {"entered": np.arange(5, dtype=np.uint32), "skipped": np.full(5, 3, np.uint32)}
    given = {name: everywhere(queues, one) for name, one in counters.items()}
    made = together(trained(group, host, lengths_of(9, len(queues), "even"), forward=given))
    wanted = alone(queues[0], host, forward={name: cla.to_device(queues[0], one) for name, one in counters.items()})
    check_beside(made, wanted, host)
    bad = list(host.bad)
    assert made["running_mean"][bad].tobytes() == host.running_mean[bad].tobytes()
    for queue, entered, skipped in zip(queues, given["entered"], given["skipped"], strict=True):
        assert (entered.get() == counters["entered"] + [c not in bad for c in range(5)]).all(), queue
        assert (skipped.get() == counters["skipped"] + [c in bad for c in range(5)]).all()
    moved = together(trained(group, host, lengths_of(9, len(queues), "even"), forward={"guard": False}))
    assert np.isnan(moved["running_mean"][bad]).all()


@pytest.mark.parametrize("absent", [("scale",), ("bias",), ("scale", "bias"), ("running_mean",)], ids=str)
def test_what_may_be_left_out(two: list[cl.CommandQueue], absent: tuple[str, ...]) -> None:
    host = make((9, 5, 31), 1, maker=FAR)
    made = together(trained(DeviceGroup(two), host, [2, 7], absent=absent))
    check(made, host.without(absent))


@pytest.mark.parametrize("axis", [1, -1, 0])
def test_out(two: list[cl.CommandQueue], axis: int) -> None:
    host = make((6, 5, 8), axis, maker=FAR)
    places = [np.zeros_like(part) for part in cut(host.x, [2, host.x.shape[along(axis)] - 2], axis)]
    outs = [put(two, places) for _ in range(2)]
    lengths = [part.shape[along(axis)] for part in places]
    made = trained(DeviceGroup(two), host, lengths, axis, forward={"out": outs[0]}, backward={"out": outs[1]})
    check(together(made, axis), host, axis)
    for name, arrays in zip(("y", "dx"), outs, strict=True):
        assert [one.get().tobytes() for one in arrays] == [one.tobytes() for one in made[name]]


@ELEMENTS
def test_gradients_are_gathered(group: DeviceGroup, element: np.dtype) -> None:
    """As one call of batch_norm_backward on the whole gathers them; on all devices the same bits."""
    queues, host = group.queues, make((9, 5, 31), 1, element)
    before = np.linspace(-3, 3, 5).astype(numbers_of(element))
    options = {"grad_scale": 0.7, "grad_momentum": 0.9}

    def into(where: Any) -> dict[str, Any]:
        return {f"{name}_grad": everywhere(where, before) for name in ("scale", "bias")}

    given = into(queues)
    trained(group, host, lengths_of(9, len(queues), "even"), backward=given | options)
    one = {name: arrays[0] for name, arrays in into(queues[:1]).items()}
    alone(queues[0], host, backward=one | options)
    for name, arrays in given.items():
        assert len({array.get().tobytes() for array in arrays}) == 1
        np.testing.assert_allclose(arrays[0].get(), one[name].get(), rtol=20 * np.finfo(before.dtype).eps)
    spoilt = {name: everywhere(queues, np.full(5, np.nan, before.dtype)) for name in given}
    trained(group, host, lengths_of(9, len(queues), "even"), backward=spoilt)
    assert all(np.isfinite(array.get()).all() for arrays in spoilt.values() for array in arrays)


@NUMBERS
def test_own_gradients_sum_to_the_whole(group: DeviceGroup, element: np.dtype) -> None:
    """In one process `own` is the process's, so the whole's."""
    host = make((9, 5, 31), 1, element)
    lengths = lengths_of(9, len(group.queues), "even")
    whole, own = (trained(group, host, lengths, backward={"parameters": name}) for name in ("whole", "own"))
    assert whole["dscale"][0].tobytes() == own["dscale"][0].tobytes()


@NUMBERS
def test_sum(group: DeviceGroup, element: np.dtype) -> None:
    rng = np.random.default_rng(0)
    hosts = [rng.standard_normal((3, 4)).astype(element) for _ in group.queues]
    wanted = sum(host.astype(np.longdouble) for host in hosts)
    eps = np.finfo(element).eps
    for parts in (put(group.queues, hosts), hosts):
        found = group.sum(parts)
        assert {type(one) for one in found} == {type(parts[0])}
        told = [one.get() if isinstance(one, cla.Array) else one for one in found]
        assert len({one.tobytes() for one in told}) == 1
        np.testing.assert_allclose(told[0], wanted.astype(element), rtol=eps)


def test_sum_of_arrays_in_fortran_order(two: list[cl.CommandQueue]) -> None:
    """Elements are added to those of the same place."""
    hosts = [np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)), np.ones((2, 3), np.float32)]
    group = DeviceGroup(two)
    assert [one.tolist() for one in group.sum(hosts)] == [[[1, 2, 3], [4, 5, 6]]] * 2
    assert [one.get().tolist() for one in group.sum(put(two, hosts))] == [[[1, 2, 3], [4, 5, 6]]] * 2


@NUMBERS
def test_merge(group: DeviceGroup, element: np.dtype) -> None:
    """Statistics of a pass over data that is spread: those of the whole batch of train."""
    queues, host = group.queues, make((13, 5, 31), 1, element, FAR)
    parts = put(queues, cut(host.x, lengths_of(13, len(queues), "empty between")))
    found = group.merge([statistics(x) for x in parts])
    made = trained(group, host, lengths_of(13, len(queues), "empty between"))
    assert {one.count for one in found} == {13 * 31}
    for name in ("mean", "mean_rest", "m2", "m2_rest"):
        assert [getattr(one, name).get().tobytes() for one in found] == [one.tobytes() for one in made[name]]


def test_started_together_and_asked_out_of_order(group: DeviceGroup) -> None:
    queues = group.queues
    hosts = [make((9, 5, 31), 1, seed=seed) for seed in range(3)]
    lengths = lengths_of(9, len(queues), "even")
    each = [put(queues, cut(host.x, lengths)) for host in hosts]
    one_by_one = [hosts_of(group.train(xs)[0]) for xs in each]
    with group.batched():
        started = [group.start_train(xs) for xs in each]
    late = group.start_train(each[0])
    results = [hosts_of(one.result()[0]) for one in (late, *reversed(started))]
    wanted = [one_by_one[0], *reversed(one_by_one)]
    assert [[y.tobytes() for y in ys] for ys in results] == [[y.tobytes() for y in ys] for ys in wanted]
    assert started[1].result() is started[1].result()
    first = group.start_train(each[1])
    group.send()
    second = group.start_train(each[2])
    assert [y.tobytes() for y in hosts_of(second.result()[0])] == [y.tobytes() for y in one_by_one[2]]
    assert [y.tobytes() for y in hosts_of(first.result()[0])] == [y.tobytes() for y in one_by_one[1]]


def test_one_queue_takes_arrays_without_lists(queue: cl.CommandQueue) -> None:
    host = make((9, 5, 31), 1)
    group = DeviceGroup(queue)
    x, dy, scale = (cla.to_device(queue, one) for one in (host.x, host.dy, host.scale))
    y, found = group.train(x, scale=scale)
    dx, dscale, _ = group.backward(x, dy, found, scale=scale)
    assert (y.shape, dx.shape, dscale.shape) == (x.shape, x.shape, scale.shape)
    assert group.sum(host.x) is not host.x
    assert isinstance(group.merge(statistics(x)).mean, cla.Array)


def test_layouts_and_views(two: list[cl.CommandQueue]) -> None:
    """Shards and gradients in Fortran order, and per-channel arrays of other shapes."""
    host = make((6, 5, 8), 1, maker=FAR)
    parts = [np.asfortranarray(one) for one in cut(host.x, [2, 4])]
    group = DeviceGroup(two)
    scale = [one.reshape(1, 5, 1) for one in everywhere(two, host.scale)]
    xs, dys = put(two, parts), put(two, cut(host.dy, [2, 4]))
    ys, found = group.train(xs, scale=scale, epsilon=EPSILON)
    dxs, dscale, _ = group.backward(xs, dys, found, scale=scale)
    plain = trained(group, host, [2, 4], absent=("bias", "running_mean", "running_var"))
    np.testing.assert_allclose(np.concatenate(hosts_of(ys)), np.concatenate(plain["y"]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(hosts_of(dxs)), np.concatenate(plain["dx"]), rtol=1e-5, atol=1e-5)
    assert dscale[0].shape == (1, 5, 1)


def test_queues_out_of_order(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    host = make((32, 8, 40, 40), 1)
    wanted = trained(DeviceGroup(queue), host, [32])
    for _ in range(5):
        found = trained(DeviceGroup(free_queue), host, [32])
        for name, each in wanted.items():
            assert found[name][0].tobytes() == each[0].tobytes(), name


# --- what is refused: before anything is changed


def _some(two: list[cl.CommandQueue], shape: tuple[int, ...] = (3, 5, 4), dtype: Any = np.float32) -> list[cla.Array]:
    return everywhere(two, np.random.default_rng(0).standard_normal(shape).astype(dtype))


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        pytest.param(lambda xs: xs[0], ArrayTypeError, "shards is a pyopencl.array.Array; a list", id="no list"),
        pytest.param(lambda xs: None, ArrayTypeError, "shards is None; a list of 2", id="None"),
        pytest.param(lambda xs: xs[:1], ParameterError, "shards has 1 entries; the group has 2", id="too few"),
        pytest.param(lambda xs: [*xs, xs[0]], ParameterError, "shards has 3 entries", id="too many"),
        pytest.param(lambda xs: [xs[0], xs[1].get()], ArrayTypeError, r"shards\[1\] is a numpy\.ndarray", id="NumPy's"),
        pytest.param(lambda xs: [xs[0], None], ArrayTypeError, r"shards\[1\] is None", id="None in it"),
        pytest.param(lambda xs: xs[::-1], ContextError, r"shards\[0\] .* on that of queues\[1\]", id="swapped"),
        pytest.param(lambda xs: [xs[0], xs[0]], ContextError, r"shards\[1\] is not on the device", id="one twice"),
        pytest.param(lambda xs: [xs[0], xs[1].astype(np.float64)], DtypeError, r"shards\[1\] is float64", id="types"),
        pytest.param(lambda xs: [xs[0], xs[1][:, :4]], ShapeError, r"shards\[1\] has 4 channels", id="channels"),
        pytest.param(lambda xs: [xs[0], xs[1].reshape(3, 5, 2, 2)], ShapeError, r"shards\[1\] has 4 axes", id="axes"),
    ],
)
def test_shards_that_do_not_fit(two: list[cl.CommandQueue], change: Any, error: type, words: str) -> None:
    group, xs = DeviceGroup(two), _some(two)
    running = everywhere(two, np.zeros(5, np.float32))
    with pytest.raises(error, match=words):
        group.train(change(xs), running_mean=running, running_var=_some(two, (5,)))
    assert not any(one.get().any() for one in running)
    assert group.train(xs)[1].count == 24


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
def test_arrays_beside_shards_that_do_not_fit(two: list[cl.CommandQueue]) -> None:
    group, xs, five = DeviceGroup(two), _some(two), _some(two, (5,))
    for given, error, words in (
        ({"scale": five[0]}, ArrayTypeError, "scale is a pyopencl"),
        ({"scale": [five[0], None]}, ArrayTypeError, "scale has None beside arrays"),
        ({"scale": [five[0], five[0]]}, ContextError, "of shard 1: scale belongs to a context of"),
        ({"bias": _some(two, (4,))}, ShapeError, "of shard 0: bias has 4 elements"),
        ({"running_mean": _some(two, (5,), np.float64)}, DtypeError, "running_mean is float64"),
        ({"running_mean": five, "running_var": five}, OverlapError, "running_mean"),
        ({"out": _some(two, (3, 5, 3))}, ShapeError, "out"),
        ({"out": xs}, OverlapError, "out"),
        ({"epsilon": -1.0}, ParameterError, "epsilon is -1.0"),
        ({"factor": 2.0}, ParameterError, "factor is 2.0"),
        ({"axis": 3}, (ParameterError, ShapeError), "axis"),
        ({"layer": 7}, ParameterError, "layer is 7"),
    ):
        with pytest.raises(error, match=words):
            group.train(xs, **given)
    found = group.train(xs)[1]
    for arguments, given, error, words in (
        ((xs, xs, None), {}, ArrayTypeError, "statistics is None"),
        ((xs, None, found), {}, ArrayTypeError, "dy"),
        ((xs, xs[:1], found), {}, ParameterError, "dy has 1 entries"),
        ((xs, _some(two, (3, 5, 3)), found), {}, ShapeError, "dy"),
        ((xs, xs, found), {"parameters": "all"}, ParameterError, "parameters is 'all'"),
        ((xs, xs, found), {"grad_scale": np.nan}, ParameterError, "grad_scale"),
        ((xs, xs, found), {"scale": five[::-1]}, ContextError, "scale"),
        ((_some(two, (30, 5, 4)), _some(two, (30, 5, 4)), found), {}, ParameterError, "statistics are of 24 values"),
        ((_some(two, (2, 5, 4)), _some(two, (2, 5, 4)), found), {}, ParameterError, "statistics are of 24 values"),
        ((_some(two, (3, 4, 4)), _some(two, (3, 4, 4)), found), {}, ShapeError, "channels"),
    ):
        with pytest.raises(error, match=words):
            group.backward(*arguments, **given)
    other = DeviceGroup(two[0])
    with pytest.raises(ParameterError, match="of a group with 2 queues; this one has 1"):
        other.backward(xs[0], xs[0], found)
    assert group.backward(xs, xs, found)[0][0].shape == xs[0].shape


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
def test_parts_that_do_not_fit(two: list[cl.CommandQueue]) -> None:
    group = DeviceGroup(two)
    xs = _some(two)
    sets = [statistics(x) for x in xs]
    for parts, error, words in (
        (sets[0], ArrayTypeError, "a list of 2"),
        ([sets[0], xs[1]], ArrayTypeError, r"parts\[1\] is a pyopencl"),
        (sets[::-1], ContextError, r"parts\[0\]\.mean is not on the device"),
        ([sets[0], statistics(_some(two, (3, 4, 4))[1])], ShapeError, r"parts\[1\] has 4 channels"),
    ):
        with pytest.raises(error, match=words):
            group.merge(parts)
    for parts, error, words in (
        ([xs[0], 3.0], ArrayTypeError, r"parts\[1\] is a builtins\.float"),
        ([xs[0], xs[1].astype(np.int32)], DtypeError, "int32"),
        ([np.zeros(3, np.float16)] * 2, DtypeError, "float16"),
        ([xs[0], xs[1].reshape(-1)], ShapeError, r"parts\[1\] has shape"),
        (xs[::-1], ContextError, r"parts\[0\] is not on the device"),
    ):
        with pytest.raises(error, match=words):
            group.sum(parts)


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
def test_queues_that_do_not_fit(queue: cl.CommandQueue) -> None:
    again = cl.CommandQueue(queue.context, queue.device)
    for queues, words in (
        ([], r"queues is \[\]"),
        ([queue, again], r"queues\[1\] and queues\[0\] are of one device"),
        ([queue, queue.device], r"queues\[1\] is a .*Device"),
        ("gpu", "queues is 'gpu'"),
    ):
        with pytest.raises(ParameterError, match=words):
            DeviceGroup(queues)


def test_leaving(two: list[cl.CommandQueue]) -> None:
    group, xs = DeviceGroup(two), _some(two)
    with group:
        statistics_ = group.train(xs)[1]
        assert isinstance(statistics_, GroupStatistics)
    group.close()
    for call in (lambda: group.train(xs), lambda: group.sum(xs), lambda: group.merge([statistics(x) for x in xs])):
        with pytest.raises(GroupError, match="the group was closed"):
            call()
    with pytest.raises(ZeroDivisionError), DeviceGroup(two) as other:
        _ = 1 // 0
    with pytest.raises(GroupError, match="closed"):
        other.train(xs)


def test_a_driver_that_fails(two: list[cl.CommandQueue]) -> None:
    """Wherever it does, the error is oclbn's, and the group goes on."""
    group, xs = DeviceGroup(two), _some(two)
    five = {name: _some(two, (5,)) for name in ("scale", "bias", "running_mean", "running_var")}

    def step() -> None:
        found = group.train(xs, **five)[1]
        group.backward(xs, xs, found, scale=five["scale"])

    def running() -> list[bytes]:
        return [one.get().tobytes() for name in ("running_mean", "running_var") for one in five[name]]

    step()
    asked = counted(step)
    last = counted(lambda: group.train(xs, **five)).count("enqueue_nd_range_kernel")
    launches = [number for number, what in enumerate(asked) if what == "enqueue_nd_range_kernel"]
    for first in range(len(asked)):
        before = running()
        with failing(NO_RESOURCES, first), pytest.raises(OclbnError, match="OUT_OF_RESOURCES"):
            step()
        if first in launches[:last]:  # of training
            assert running() == before
    step()
    assert functional.moments(xs[0])[0] == 12
