"""Who uses the running statistics, and who moves them; a module without any, and how they are averaged."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from layers import MODULES, C, Maker, host_of, put, state_of
from tolerances import assert_within

from oclbn import BatchNorm, BatchNorm2D, BatchNorm3D, device
from oclbn.errors import (
    ModuleFileError,
    ModuleNameError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
)
from oclbn.truth import reference
from oclbn.truth.bounds import Bound, stored
from oclbn.truth.hostile import Data, Offset, Spoiled, make

pytestmark = pytest.mark.once(reason="modules choose among operations that are tested on each runtime")
SHAPE = (4, C, 3, 3)
COUNT = 36
Hosts = dict[str, np.ndarray]


def state(bn: BatchNorm2D) -> Hosts:
    return {name: host_of(getattr(bn, name)).ravel() for name in ("scale", "bias", "mean", "var")}


def check_call(bn: BatchNorm2D, host: Data, element: np.dtype, *, by_running: bool, moves: bool) -> None:
    """A call and its gradient against the reference; what the batch does to the running statistics as well."""
    before, batches = state(bn), bn.numOfProps
    for var in bn.vars.values():
        var.grad.fill(7)
    y, dx = bn(put(bn.queue, host.x)), bn.backward(put(bn.queue, host.dy))
    own = reference.train(host.x, before["scale"], before["bias"], epsilon=bn.epsilon)
    mean, invstd = own.mean, own.invstd
    if by_running:
        mean, invstd = before["mean"], 1 / np.sqrt(before["var"].astype(np.float64) + bn.epsilon)
    bound = Bound(host.x, mean, invstd, before["scale"], before["bias"], axis=1, dtype=element)
    wanted = own.y
    if by_running:
        given = (before[name] for name in ("scale", "bias", "mean", "var"))
        wanted = reference.infer(host.x, *given, epsilon=bn.epsilon)
    assert_within(y, *stored(wanted, bound.inferred() if by_running else bound.y(), element), "y")
    found = reference.backward(host.x, host.dy, before["scale"], mean, invstd, training=not by_running)
    bounds = [2 * one for one in bound.gradients(host.dy, training=not by_running)]
    assert_within(dx, *stored(found[0], bounds[0], element), "dx")
    for name, new, room in (("scale", found[1], bounds[1]), ("bias", found[2], bounds[2])):
        grad = bn.vars[name].grad.get().ravel()
        if bn.train:
            assert_within(grad, new, room, f"grad of {name}")
        else:
            assert (grad == 7).all(), "evaluation accumulates none"
    factor = max(bn.initFactor / (batches + 1), bn.minFactor)
    if moves:
        var = own.var * COUNT / (COUNT - (bn.estimator == "sample"))
        bound = Bound(host.x, own.mean, own.invstd, None, None, axis=1, dtype=element)
        for name, new, room in (
            ("mean", own.mean, bound.running_mean(before["mean"], factor)),
            ("var", var, bound.running_var(before["var"], var, factor)),
        ):
            after = (1 - factor) * before[name].astype(np.float64) + factor * new
            assert_within(host_of(getattr(bn, name)).ravel(), after, room, f"running {name}")
    else:
        assert all((state(bn)[name] == before[name]).all() for name in ("mean", "var"))
    assert bn.numOfProps == batches + moves
    assert (bn.savemean is None) is by_running


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("use", "update"), [*itertools.product((None, True, False), repeat=2)], ids=str)
def test_switches(queue: cl.CommandQueue, use: bool | None, update: bool | None, train: bool) -> None:
    """None is the mode's choice; True and False hold in both."""
    bn = BatchNorm2D(C, queue=queue, seed=1, sscale=0.5, use_running=use, update_running=update)
    bn.mean, bn.var = np.linspace(-1, 1, C), np.linspace(0.5, 2, C)  # type: ignore[assignment]
    bn.trainMode() if train else bn.evalMode()
    for seed in range(2):
        host = make(SHAPE, 1, maker=Offset(3.0), seed=seed)
        by_running = not train if use is None else use
        check_call(bn, host, np.dtype(np.float32), by_running=by_running, moves=train if update is None else update)


@pytest.mark.parametrize("estimator", ["sample", "population"])
def test_using_and_moving(queue: cl.CommandQueue, element: np.dtype, estimator: str) -> None:
    """A batch is normalised with what was there before it; its gradient as well, whatever was moved since."""
    options: dict[str, Any] = {"use_running": True, "estimator": estimator, "dtype": element}
    bn = BatchNorm2D(C, queue=queue, seed=1, **options)
    for seed in range(3):
        host = make(SHAPE, 1, element, Offset(100.0), seed=seed)
        check_call(bn, host, element, by_running=True, moves=True)
    bn(put(queue, np.zeros((0, C, 3, 3), element)))
    assert bn.numOfProps == 3


def test_the_guard_holds_for_what_is_used_and_moved(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, use_running=True)
    host = make(SHAPE, 1, maker=Spoiled(np.nan))
    bn(put(queue, host.x))
    assert (bn.skipped, bn.numOfProps) == (1, 1)
    assert np.isfinite(host_of(bn.mean)).all()
    before = state_of(bn)
    with pytest.raises(ModuleShapeError, match=r"one value per channel has no variance; training needs two$"):
        bn(put(queue, np.ones((1, C, 1, 1), np.float32)))
    assert state_of(bn) == before


def test_in_place_by_statistics_that_move(queue: cl.CommandQueue) -> None:
    bn, other = (BatchNorm2D(C, queue=queue, seed=1, update_running=True, inplace=inplace) for inplace in (True, False))
    for one in (bn, other):
        one.evalMode()
    host = make(SHAPE, 1).x
    given = put(queue, host)
    assert bn(given) is given
    assert given.get().tobytes() == other(put(queue, host)).get().tobytes()
    assert host_of(bn.mean).tobytes() == host_of(other.mean).tobytes()
    assert host_of(bn.mean).any()
    bn.use_running = False
    before = given.get().tobytes()
    with pytest.raises(ModuleStateError, match=r"inplace is for the running statistics, and use_running is False"):
        bn(given)
    assert given.get().tobytes() == before


def test_frozen_statistics_are_both_switches(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, frozen_statistics=True)
    assert (bn.use_running, bn.update_running) == (True, False)
    bn.frozen_statistics = False
    assert (bn.use_running, bn.update_running) == (None, None)
    bn.use_running, bn.update_running = True, False
    assert bn.frozen_statistics is True
    assert ", frozen_statistics=True, " in repr(bn)
    bn.update_running = None
    assert bn.frozen_statistics is False
    bn.frozen_statistics = False
    assert bn.use_running is True, "what is not frozen stays as it is"
    assert ", use_running=True, " in repr(bn)
    assert "running" not in repr(BatchNorm2D(C, queue=queue))


# --- no running statistics


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_without_running_statistics(
    queue: cl.CommandQueue, maker: Maker, shape: tuple[int, ...], parameters: tuple[int, ...], train: bool
) -> None:
    """Both modes use the batch's own, to the bit as training does."""
    bn, plain = (maker(C, queue=queue, seed=1, running=running) for running in (False, True))
    bn.trainMode() if train else bn.evalMode()
    host = make(shape, 1, maker=Offset(1e4))
    y, wanted = (one(put(queue, host.x)) for one in (bn, plain))
    dx, wanted_dx = (one.backward(put(queue, host.dy)) for one in (bn, plain))
    assert (y.get().tobytes(), host_of(dx).tobytes()) == (wanted.get().tobytes(), host_of(wanted_dx).tobytes())
    assert bn.vars["bias"].grad.get().any() == train
    assert bn.mean is bn.var is None
    assert (dict(bn.attrs), bn.numOfProps, bn.skipped) == ({}, 0, 0)


def test_copies_and_files_without_running_statistics(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    bn = BatchNorm2D(C, queue=queue, seed=1, running=False)
    x = put(queue, make(SHAPE, 1).x)
    bn.evalMode()
    wanted = bn(x).get().tobytes()
    full = BatchNorm2D(C, queue=queue, seed=2)
    full(x)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn)), BatchNorm2D(C, queue=queue, running=False)):
        other.load(bn.save() or b"")
        assert other(x).get().tobytes() == wanted
        assert ", running=False, " in repr(other)
    bn.calcMode(np.float16)
    bn.load(full.save() or b"")
    assert host_of(bn.scale).tobytes() == host_of(full.scale).tobytes()
    assert bn.mean is None
    before = state_of(full)
    with pytest.raises(ModuleFileError, match=r"has no dataset '\.mean'"):
        full.load(bn.save() or b"")
    assert state_of(full)[11:] == before[11:]
    empty = BatchNorm2D(C, queue=queue, running=False, empty=True)
    with pytest.raises(ModuleStateError, match=r"it lacks scale, bias; load\(\)"):
        empty(x)


def test_what_needs_running_statistics(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, running=False)
    before = repr(bn)
    for name in ("use_running", "update_running", "frozen_statistics"):
        with pytest.raises(
            ModuleParameterError, match=rf"^BatchNorm2D: {name} is True; False is wanted, as the module"
        ):
            setattr(bn, name, True)
        with pytest.raises(
            ModuleParameterError, match=rf"^BatchNorm2D: {name} is True; False is wanted, as the module"
        ):
            BatchNorm2D(C, queue=queue, running=False, **{name: True})  # type: ignore[arg-type]
        setattr(bn, name, False)
    with pytest.raises(
        ModuleStateError, match=r"^BatchNorm2D: there is no mean to assign to; the module was made with"
    ):
        bn.mean = np.zeros(C)  # type: ignore[assignment]
    with pytest.raises(
        ModuleParameterError, match=r"attribute is 'mean'; none, as the module was made without any, is"
    ):
        bn.setAttr("mean", put(queue, np.zeros((1, C, 1, 1), np.float32)))
    with pytest.raises(ModuleNameError):
        bn.getAttr("mean")
    with pytest.raises(ModuleStateError, match=r"running stays as the module was made; make another module$"):
        bn.running = True
    bn.evalMode()
    with pytest.raises(
        ModuleShapeError, match=r"one value per channel has no variance; the batch's own statistics nee"
    ):
        bn(put(queue, np.ones((1, C, 1, 1), np.float32)))
    bn.inplace = True
    with pytest.raises(ModuleStateError, match=r"inplace is for the running statistics, and running is False"):
        bn(put(queue, np.ones((4, C, 1, 1), np.float32)))
    bn.inplace, bn.use_running, bn.update_running = False, None, None
    assert repr(bn) == before


# --- averages


def test_cumulative_is_the_plain_average(queue: cl.CommandQueue) -> None:
    """Over all batches, each of which counts alike, whatever its size; of the guard's good ones alone."""
    bn = BatchNorm(C, queue=queue, cumulative=True)
    assert (bn.initFactor, bn.minFactor, bn.cumulative) == (1.0, 0.0, True)
    means, sample = [], []
    for seed, count in enumerate((3, 40, 7, 11, 2, 29)):
        host = make((count, C), 1, maker=Spoiled(np.nan) if seed == 2 else Offset(100.0), seed=seed).x
        bn(put(queue, host))
        means.append(host.astype(np.float64).mean(axis=0))
        sample.append(host.astype(np.float64).var(axis=0, ddof=1))
    assert (bn.numOfProps, bn.skipped) == (6, 1)
    np.testing.assert_allclose(host_of(bn.mean).ravel(), np.nanmean(means, axis=0), rtol=1e-6)
    np.testing.assert_allclose(host_of(bn.var).ravel(), np.nanmean(sample, axis=0), rtol=1e-5)


def test_cumulative_stands_for_two_options(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue)
    assert bn.cumulative is False
    bn.cumulative = False
    assert bn.minFactor == 0.1
    bn.cumulative = True
    assert (bn.initFactor, bn.minFactor) == (1.0, 0.0)
    assert BatchNorm2D(**bn.getBlueprint()["scheme"], queue=queue).cumulative is True
    with pytest.raises(
        ModuleParameterError, match=r"cumulative is False; set the least .*, as in bn\.minFactor = 0\.1$"
    ):
        bn.cumulative = False
    bn.minFactor = 0.1
    assert bn.cumulative is False
    for factors in ({"minFactor": 0.2}, {"initFactor": 0.5}):
        with pytest.raises(
            ModuleParameterError, match=r"cumulative is True, which makes initFactor 1 and minFactor 0; F"
        ):
            BatchNorm2D(C, queue=queue, cumulative=True, **factors)  # type: ignore[arg-type]


def test_population_variance(queue: cl.CommandQueue, element: np.dtype) -> None:
    bn = BatchNorm2D(C, queue=queue, seed=1, estimator="population", dtype=element)
    assert ", estimator='population', " in repr(bn)
    for seed in range(2):
        check_call(bn, make(SHAPE, 1, element, seed=seed), element, by_running=False, moves=True)
    bn.estimator = "sample"
    check_call(bn, make(SHAPE, 1, element, seed=3), element, by_running=False, moves=True)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("use_running", "no", "is 'no'; None, True or False is wanted"),
        ("update_running", 2, "is 2; None, True or False is wanted"),
        ("running", None, "is None; True or False is wanted"),
        ("cumulative", "yes", "is 'yes'; True or False is wanted"),
        ("estimator", "unbiased", "is 'unbiased'; 'sample' or 'population' is wanted"),
        ("estimator", None, "is None; 'sample' or 'population' is wanted"),
    ],
)
def test_what_options_are_not(queue: cl.CommandQueue, name: str, wrong: Any, message: str) -> None:
    with pytest.raises(ModuleParameterError, match=rf"^BatchNorm3D: {name} {message}$"):
        BatchNorm3D(C, queue=queue, **{name: wrong})
    bn = BatchNorm3D(C, queue=queue)
    with pytest.raises((ModuleParameterError, ModuleStateError), match=rf"^BatchNorm3D: {name} "):
        setattr(bn, name, wrong)
    with pytest.raises(ModuleStateError, match=rf"^BatchNorm3D: {name} cannot be deleted"):
        delattr(bn, name)
    for use, update in (({"use_running": False}, "use_running"), ({"update_running": True}, "update_running")):
        with pytest.raises(
            ModuleParameterError, match=rf"{update} is (True|False); beside frozen_statistics, which mak"
        ):
            BatchNorm3D(C, queue=queue, frozen_statistics=True, **use)


def test_options_survive_copies(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    options = {"use_running": True, "update_running": None, "estimator": "population", "cumulative": True}
    bn = BatchNorm2D(C, queue=queue, guard=False, **options)  # type: ignore[arg-type]
    for other in (copy.copy(bn), copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert {name: getattr(other, name) for name in options} == options
        assert repr(other) == repr(bn)
        assert ", guard=False, use_running=True, estimator='population', " in repr(other)
