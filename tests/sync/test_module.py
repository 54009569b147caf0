"""SyncBatchNorm over several devices of one process, beside a module that has the whole batch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from layers import MODULES, C, Maker
from places import queues_of
from spread import cut, hosts_of, lengths_of, put, queues_on

from oclbn import BatchNorm1D, BatchNorm2D, BatchNormND
from oclbn.elements import is_narrow, numbers_of, range_of
from oclbn.errors import (
    ModuleDtypeError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    SkippedBatchesWarning,
)
from oclbn.functional import merge, statistics
from oclbn.sync import DeviceGroup, SyncBatchNorm
from oclbn.truth.hostile import Data, Offset, make

pytestmark = pytest.mark.once(reason="modules hand their shards to a group, which is tried on each runtime")
SHAPE = (11, C, 3, 4)


# Halves are two contexts again, and unlike devices are three: groups are tried on those, modules once.
PLACES = ("one device", "three contexts", "halves in one context")


@pytest.fixture(scope="module", params=PLACES)
def queues(request: pytest.FixtureRequest, queue: cl.CommandQueue) -> list[cl.CommandQueue]:
    return queues_of(request.param, queue.device)


@pytest.fixture
def group(queues: list[cl.CommandQueue]) -> DeviceGroup:
    return DeviceGroup(queues)


@pytest.fixture(scope="module")
def two(queue: cl.CommandQueue) -> list[cl.CommandQueue]:
    """Queues of two contexts of the device, for what does not depend on devices."""
    return [queue, *queues_on(queue.device)]


def batch(step: int = 0, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> Data:
    return make(shape, 1, dtype, Offset(1e2), seed=step)


def split(group: DeviceGroup, host: np.ndarray, how: str = "even") -> list[cla.Array]:
    return put(group.queues, cut(host, lengths_of(len(host), len(group.queues), how)))


def numbers(bn: BatchNormND) -> dict[str, np.ndarray]:
    """All that training moves, on the host."""
    found = {name: getattr(bn, name).get() for name in ("scale", "bias", "mean", "var")}
    found |= {f"{name}.grad": var.grad.get() for name, var in bn.vars.items()}
    return found | {"numOfProps": np.array(bn.numOfProps), "skipped": np.array(bn.skipped)}


def everywhere_alike(bn: SyncBatchNorm) -> dict[str, np.ndarray]:
    """What all of its modules hold: the same bits."""
    each = [numbers(one) for one in bn.modules]
    for name in each[0]:
        assert len({one[name].tobytes() for one in each}) == 1, f"{name} differs between devices"
    return each[0]


def assert_near(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], dtype: Any = np.float32) -> None:
    """To some units of what is computed with; what is stored in less may be rounded to the next number."""
    unit = np.finfo(numbers_of(np.dtype(dtype))).eps
    for name, one in wanted.items():
        assert found[name].dtype == one.dtype, name
        room = 200 * unit + (range_of(one.dtype).eps if is_narrow(one.dtype) else 0.0)
        given = found[name].astype(np.float64), one.astype(np.float64)
        np.testing.assert_allclose(*given, rtol=room, atol=2000 * unit, err_msg=name)


def step(bn: Any, x: Any, dy: Any, rate: float = -0.1) -> tuple[Any, Any]:
    y, dx = bn(x), bn.backward(dy, scale=0.5, momentum=0.9)
    bn.updateParams(rate)
    return y, dx


@pytest.mark.parametrize(("maker", "shape", "parameter_shape"), MODULES)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_training(
    group: DeviceGroup, dtype: np.dtype, maker: Maker, shape: Any, parameter_shape: Any, affine: bool
) -> None:
    """A loop of steps, then evaluation and its gradient: as one module with the whole batch."""
    queue = group.queues[0]
    alone = maker(C, queue=queue, dtype=dtype, seed=3, affine=affine)
    bn = SyncBatchNorm(alone, group)
    for number in range(4):
        host = batch(number, (7, *shape[1:]), dtype)
        ys, dxs = step(bn, *(split(group, one) for one in (host.x, host.dy)))
        y, dx = step(alone, *(cla.to_device(queue, one) for one in (host.x, host.dy)))
        found = {"y": np.concatenate(hosts_of(ys)), "dx": np.concatenate(hosts_of(dxs)), **everywhere_alike(bn)}
        assert_near(found, {"y": y.get(), "dx": dx.get(), **numbers(alone)}, dtype)
    assert bn.numOfProps == 4
    assert bn.module.scale.shape == bn.module.savemean.shape == parameter_shape
    bn.evalMode()
    alone.evalMode()
    ys, y = bn(split(group, host.x)), alone(cla.to_device(queue, host.x))
    dxs, dx = bn.backward(split(group, host.dy)), alone.backward(cla.to_device(queue, host.dy))
    found = {"y": np.concatenate(hosts_of(ys)), "dx": np.concatenate(hosts_of(dxs)), **everywhere_alike(bn)}
    assert_near(found, {"y": y.get(), "dx": dx.get(), **numbers(alone)}, dtype)


def test_frozen_statistics(group: DeviceGroup, element: np.dtype) -> None:
    """Gradients of parameters are those of the whole batch, by statistics that stay."""
    queue, host = group.queues[0], batch(dtype=element)
    alone = BatchNorm2D(C, queue=queue, dtype=element, seed=3, frozen_statistics=True)
    alone.mean, alone.var = np.linspace(-1, 1, C), np.linspace(1, 2, C)
    bn = SyncBatchNorm(alone, group)
    for _ in range(2):
        _, dxs = step(bn, split(group, host.x), split(group, host.dy))
        _, dx = step(alone, cla.to_device(queue, host.x), cla.to_device(queue, host.dy))
    assert_near(
        {"dx": np.concatenate(hosts_of(dxs)), **everywhere_alike(bn)}, {"dx": dx.get(), **numbers(alone)}, element
    )
    assert bn.numOfProps == 0
    assert bn.module.mean.get().ravel().tolist() == alone.mean.get().ravel().tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "population"},
        {"update_running": False},
        {"use_running": False, "update_running": True},
        {"running": False},
    ],
    ids=str,
)
def test_switches(two: list[cl.CommandQueue], options: dict[str, Any]) -> None:
    """In both modes as of a module on the whole batch."""
    group, host = DeviceGroup(two), batch(shape=(4, C, 3, 2))
    alone = BatchNorm2D(C, queue=two[0], seed=3, **options)
    bn = SyncBatchNorm(alone, group)
    for switch in ("trainMode", "evalMode"):
        for one in (bn, alone):
            getattr(one, switch)()
        ys, dxs = step(bn, split(group, host.x), split(group, host.dy))
        y, dx = step(alone, cla.to_device(two[0], host.x), cla.to_device(two[0], host.dy))
        found = {"y": np.concatenate(hosts_of(ys)), "dx": np.concatenate(hosts_of(dxs))}
        wanted = {"y": y.get(), "dx": dx.get()}
        for module, into in ((bn.module, found), (alone, wanted)):
            into |= {f"grad of {name}": var.grad.get() for name, var in module.vars.items()}
            into |= {name: attr.get() for name, attr in module.attrs.items()}
        assert_near(found, wanted, np.dtype(np.float32))
        assert bn.numOfProps == alone.numOfProps


def test_what_a_group_does_not_switch(two: list[cl.CommandQueue]) -> None:
    group = DeviceGroup(two)
    bn = SyncBatchNorm(BatchNorm2D(C, queue=two[0], use_running=True), group)
    with pytest.raises(ModuleStateError, match=r"use_running and update_running are both True; over a group one of"):
        bn(split(group, batch().x))
    assert bn.numOfProps == 0


def test_gradients_are_gathered_and_zeroed(two: list[cl.CommandQueue]) -> None:
    group, host = DeviceGroup(two), batch()
    bn = SyncBatchNorm(BatchNorm2D(C, queue=two[0], seed=1), group)
    xs, dys = split(group, host.x), split(group, host.dy)
    bn(xs)
    bn.backward(dys)
    once = everywhere_alike(bn)["bias.grad"]
    bn(xs)
    bn.backward(dys, scale=2.0, momentum=3.0)
    np.testing.assert_allclose(everywhere_alike(bn)["bias.grad"], 5 * once, rtol=1e-6)
    bn(xs)
    assert bn.backward(dys, updParamGrads=False, updGrad=False) is None
    np.testing.assert_allclose(everywhere_alike(bn)["bias.grad"], 5 * once, rtol=1e-6)
    bn.zeroGradParams()
    assert not everywhere_alike(bn)["bias.grad"].any()


def test_the_guard(group: DeviceGroup) -> None:
    """NaN in one shard: no device's statistics move, and the warning is the module's."""
    host = batch()
    host.x[-1] = np.nan
    bn = SyncBatchNorm(BatchNorm2D(C, queue=group.queues[0], seed=1), group)
    before = everywhere_alike(bn)
    ys = bn(split(group, host.x))
    assert all(np.isnan(y.get()).all() for y in ys if y.size)
    with pytest.warns(SkippedBatchesWarning):
        assert bn.skipped == C
    for name in ("mean", "var"):
        assert bn.module.__getattribute__(name).get().tobytes() == before[name].tobytes()


@pytest.mark.parametrize("how", ["all on the last", "one each, and the rest"])
def test_uneven_shards(group: DeviceGroup, how: str) -> None:
    host, bns = batch(), []
    for cut_so in (how, "even"):
        bn = SyncBatchNorm(BatchNorm2D(C, queue=group.queues[0], seed=1), group)
        step(bn, split(group, host.x, cut_so), split(group, host.dy, cut_so))
        bns.append(everywhere_alike(bn))
    assert_near(*bns)


def test_batched(two: list[cl.CommandQueue]) -> None:
    """Layers of two branches in one exchange: the same bits as one after the other."""
    group, host = DeviceGroup(two), batch()
    xs, dys = split(group, host.x), split(group, host.dy)

    def branches() -> list[SyncBatchNorm]:
        return [SyncBatchNorm(BatchNorm2D(C, queue=two[0], seed=seed), group) for seed in (1, 2)]

    together, apart = branches(), branches()
    with group.batched():
        forward = [bn.start(xs) for bn in together]
    ys = [one.result() for one in reversed(forward)][::-1]
    with group.batched():
        back = [bn.start_backward(dys) for bn in together]
    dxs = [one.result() for one in back]
    for index, bn in enumerate(apart):
        for found, wanted in ((ys[index], bn(xs)), (dxs[index], bn.backward(dys))):
            assert [one.tobytes() for one in hosts_of(found)] == [one.tobytes() for one in hosts_of(wanted)]
        for name, one in numbers(bn.module).items():
            assert everywhere_alike(together[index])[name].tobytes() == one.tobytes()


def test_files(two: list[cl.CommandQueue], tmp_path: Path) -> None:
    group, host = DeviceGroup(two), batch()
    bn = SyncBatchNorm(BatchNorm2D(C, queue=two[0], seed=1), group)
    for _ in range(2):
        step(bn, split(group, host.x), split(group, host.dy))
    bn.save(tmp_path / "bn.hdf")
    other = SyncBatchNorm(BatchNorm2D(C, queue=two[0], seed=2), group)
    other(split(group, host.x))
    for source in (tmp_path / "bn.hdf", bn.save()):
        other.load(source)
        for name in ("scale", "bias", "mean", "var", "numOfProps"):
            assert everywhere_alike(other)[name].tobytes() == everywhere_alike(bn)[name].tobytes()
    with pytest.raises(ModuleStateError, match="backward needs a call"):
        other.backward(split(group, host.dy))
    plain = BatchNorm2D(C, queue=two[0])
    plain.load(tmp_path / "bn.hdf")
    assert plain.mean.get().tobytes() == bn.module.mean.get().tobytes()


def test_recalibration(group: DeviceGroup) -> None:
    """Statistics of a pass over data that is spread, given to all modules."""
    hosts = [batch(number) for number in range(3)]
    shards = [split(group, host.x) for host in hosts]
    parts = [merge(*(statistics(xs[index]) for xs in shards)) for index in range(len(group.queues))]
    found = group.merge(parts)
    whole = np.concatenate([host.x for host in hosts]).astype(np.float64)
    np.testing.assert_allclose(found[0].mean.get(), whole.mean(axis=(0, 2, 3)), rtol=2e-7)
    np.testing.assert_allclose(found[0].m2.get() / found[0].count, whole.var(axis=(0, 2, 3)), rtol=1e-6)
    assert len({one.m2.get().tobytes() for one in found}) == 1


@pytest.mark.parametrize("places", [*PLACES, "unlike devices"])
def test_going_on_with_other_devices(two: list[cl.CommandQueue], places: str) -> None:
    """Elastic: one device, then the group's, then two: all that training has moved goes along."""
    host, group = batch(), DeviceGroup(queues_of(places, two[0].device))
    alone = BatchNorm2D(C, queue=two[0], seed=1)
    x, dy = (cla.to_device(two[0], one) for one in (host.x, host.dy))
    bn: Any = alone
    reference = BatchNorm2D(C, queue=two[0], seed=1)
    for now in (DeviceGroup(two[0]), group, DeviceGroup(two)):
        bn = SyncBatchNorm(bn if bn is alone else bn.module, now)
        for name, one in numbers(bn.module).items():
            if now is not group:
                assert everywhere_alike(bn)[name].tobytes() == one.tobytes()
        for _ in range(2):
            step(bn, split(now, host.x), split(now, host.dy))
            step(reference, x, dy)
        assert_near(everywhere_alike(bn), numbers(reference))
    assert bn.numOfProps == 6
    assert alone.numOfProps == 0


def test_a_single_queue_takes_an_array(queue: cl.CommandQueue) -> None:
    host = batch()
    bn = SyncBatchNorm(BatchNorm2D(C, queue=queue, seed=1), DeviceGroup(queue))
    x, dy = (cla.to_device(queue, one) for one in (host.x, host.dy))
    assert bn(x).shape == bn.backward(dy).shape == host.x.shape
    assert isinstance(bn([x]), list)
    assert bn.module.data is not None


def test_an_empty_batch_moves_nothing(two: list[cl.CommandQueue]) -> None:
    group = DeviceGroup(two)
    bn = SyncBatchNorm(BatchNorm2D(C, queue=two[0], seed=1), group)
    before = everywhere_alike(bn)
    xs = [cla.empty(queue, (0, C, 3, 4), np.float32) for queue in two]
    assert [y.shape for y in bn(xs)] == [dx.shape for dx in bn.backward(xs)] == [(0, C, 3, 4)] * 2
    for name, one in before.items():
        assert everywhere_alike(bn)[name].tobytes() == one.tobytes()


# --- what is refused


def _made(two: Sequence[cl.CommandQueue], **options: Any) -> tuple[DeviceGroup, SyncBatchNorm]:
    group = DeviceGroup(list(two))
    return group, SyncBatchNorm(BatchNorm2D(C, queue=two[0], seed=1, **options), group)


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
def test_bad_arguments(two: list[cl.CommandQueue]) -> None:
    group, bn = _made(two)
    for given, words in (
        ((5, group), "module is a builtins.int"),
        ((BatchNorm2D, group), "module is a oclbn.modules.foreign.Contract"),
        ((BatchNorm2D(C, queue=two[0]), two), "group is a builtins.list"),
        ((bn, group), "module is a oclbn.sync"),
    ):
        with pytest.raises(ModuleParameterError, match=words):
            SyncBatchNorm(*given)
    with pytest.raises(ModuleParameterError, match="parameters is 'all'"):
        SyncBatchNorm(bn.module, group, parameters="all")
    before = everywhere_alike(bn)
    xs = split(group, batch().x)
    for mode in (bn.trainMode, bn.evalMode):
        mode()
        for given, error, words in (
            (xs[0], ModuleShapeError, "data is a pyopencl.* a list of 2 is wanted"),
            (xs[:1], ModuleShapeError, "data is a list of 1; a list of 2"),
            (split(group, batch(shape=(11, C + 1, 3, 4)).x), ModuleShapeError, "data has shape"),
            (split(group, batch(dtype=np.float64).x), ModuleDtypeError, "float64"),
            (split(group, batch(dtype=np.float16).x), ModuleDtypeError, "float16"),
        ):
            with pytest.raises(error, match=words):
                bn(given)
        with pytest.raises(ModuleStateError, match="backward needs a call"):
            bn.backward(xs)
    bn.trainMode()
    bn(xs)
    with pytest.raises(ModuleShapeError, match="grad has shape"):
        bn.backward([xs[0], xs[1][:2]])
    for options in ({"scale": np.nan}, {"momentum": "0.9"}):
        with pytest.raises(ModuleParameterError, match=next(iter(options))):
            bn.backward(xs, **options)
    with pytest.raises(ModuleParameterError, match="learnRate"):
        bn.updateParams(None)
    assert everywhere_alike(bn)["scale"].tobytes() == before["scale"].tobytes()


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
def test_a_batch_of_one_value(two: list[cl.CommandQueue]) -> None:
    """In training two are wanted, on all devices together."""
    _, bn = _made(two)
    host = batch(shape=(1, C, 1, 1)).x
    before = everywhere_alike(bn)
    with pytest.raises(ValueError, match="one value per channel in all"):
        bn(put(two, [host, host[:0]]))
    assert everywhere_alike(bn)["mean"].tobytes() == before["mean"].tobytes()
    assert bn.numOfProps == 0
    assert len(bn(put(two, [host, host]))) == 2
    bn.evalMode()
    assert len(bn(put(two, [host, host[:0]]))) == 2


@pytest.mark.once(reason="what is copied are objects of Python's")
def test_copies_are_of_modules(two: list[cl.CommandQueue]) -> None:
    """A group stands for devices and ranks: what is pickled or copied is a module of it."""
    _, bn = _made(two)
    for call in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"SyncBatchNorm.*\.module"):
            call(bn)
    again = pickle.loads(pickle.dumps(bn.module))
    assert again.scale.get().tobytes() == bn.module.scale.get().tobytes()
    assert isinstance(again, BatchNorm2D)
    assert "SyncBatchNorm(BatchNorm2D(" in repr(bn)
    assert "DeviceGroup: rank 0 of 1" in repr(bn)
    assert isinstance(BatchNorm1D(C, queue=two[0]), BatchNormND)


@pytest.mark.parametrize(
    ("activation", "added"),
    [("relu", True), ("relu", False), ("gelu", True), ("gelu", False), (None, True)],
    ids=["relu, residual", "relu", "gelu, residual", "gelu", "residual"],
)
def test_activations_and_residuals(two: list[cl.CommandQueue], activation: Any, added: bool) -> None:
    """As of one module with the whole batch; where it evaluates, too."""
    queue, group = two[0], DeviceGroup(two)
    host, residual = batch(), make(SHAPE, 1, seed=3).x
    alone = BatchNorm2D(C, queue=queue, seed=1, activation=activation)
    together = SyncBatchNorm(BatchNorm2D(C, queue=queue, seed=1, activation=activation), group)
    for train in (True, False):
        if not train:
            alone.evalMode()
            together.evalMode()
        y = alone(cla.to_device(queue, host.x), cla.to_device(queue, residual) if added else None)
        ys = together(split(group, host.x), split(group, residual) if added else None)
        np.testing.assert_allclose(np.concatenate(hosts_of(ys)), y.get(), rtol=1e-4, atol=1e-5)
        dx = alone.backward(cla.to_device(queue, host.dy))
        dxs = together.backward(split(group, host.dy))
        assert dx is not None
        np.testing.assert_allclose(np.concatenate(hosts_of(dxs)), dx.get(), rtol=1e-4, atol=1e-4)
        if not added:
            assert together.module.residualgrad is None
            continue
        assert alone.residualgrad is not None
        made = np.concatenate(hosts_of([one.residualgrad for one in together.modules]))
        np.testing.assert_allclose(made, alone.residualgrad.get(), rtol=1e-4, atol=1e-4)
    assert_near(everywhere_alike(together), numbers(alone))
