"""Copies of modules, and modules that were pickled: of the same state, and independent."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from layers import MODULES, C, host_of, put

from oclbn import BatchNorm2D, BatchNormND, device
from oclbn.errors import DeviceError, ModuleDtypeError
from oclbn.truth.hostile import Spoiled, gaussian, make

TENSORS = ("scale", "bias", "mean", "var")
SHAPE = (4, C, 3, 3)


@pytest.fixture(params=["copy", "deepcopy", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def remade(
    request: pytest.FixtureRequest, queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any], Any]:
    """Makes another one of the same."""
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    how = request.param
    if isinstance(how, str):
        return getattr(copy, how)  # type: ignore[no-any-return]
    return lambda given: pickle.loads(pickle.dumps(given, how))


def step(bn: BatchNormND, shape: tuple[int, ...], seed: int) -> list[bytes]:
    """A step of training, and all that it changes."""
    host = make(shape, 1, bn.calctype, Spoiled(np.nan) if seed == 1 else gaussian, seed=seed)
    bn(put(bn.queue, host.x))
    if not host.bad:
        bn.backward(put(bn.queue, host.dy), momentum=0.5)
        bn.updateParams(-0.125)
    return outcome(bn)


def outcome(bn: BatchNormND) -> list[Any]:
    arrays = [*(getattr(bn, name) for name in TENSORS), *(var.grad for var in bn.vars.values())]
    return [*(host_of(array).tobytes() for array in arrays), bn.numOfProps, bn.skipped]


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
def test_another_one_of_the_same_state(
    queue: cl.CommandQueue,
    remade: Callable[[Any], Any],
    maker: Any,
    shape: tuple[int, ...],
    parameters: tuple[int, ...],
) -> None:
    options = {"epsilon": 1e-3, "initFactor": 0.5, "minFactor": 0.25, "name": "layer", "guard": True}
    bn = maker(C, queue=queue, seed=5, **options)
    for seed in range(3):
        step(bn, shape, seed)
    before = outcome(bn)
    other = remade(bn)
    assert type(other) is type(bn)
    assert outcome(other) == before
    assert other.getBlueprint() == bn.getBlueprint()
    assert (other.queue, other.calctype, other.train, other.guard) == (bn.queue, bn.calctype, True, True)
    for name in ("inData", "data", "grad", "savemean", "saveinvvar", "scalegrad", "biasgrad"):
        assert getattr(other, name) is None
    for name in TENSORS:
        assert getattr(other, name) is not getattr(bn, name)
        assert getattr(other, name).shape == parameters
    assert other.scale is other.vars["scale"].data
    assert other.lock is not bn.lock

    after = step(other, shape, 7)
    assert outcome(bn) == before != after, "the copy's steps are its own"
    assert step(bn, shape, 7) == after
    other.load(bn.save() or b"")


def test_variables_that_modules_share(queue: cl.CommandQueue, remade: Callable[[Any], Any]) -> None:
    """Within what is copied at once they stay shared; alone, a module gets its own."""
    one, two = BatchNorm2D(C, queue=queue, seed=1), BatchNorm2D(C, queue=queue, seed=2)
    two.setVar("scale", one.vars["scale"])
    alone = remade(two)
    assert alone.vars["scale"] is not one.vars["scale"]
    if remade is copy.copy:
        return  # of a list it copies no more than the list
    first, second = remade([one, two])
    assert first.vars["scale"] is second.vars["scale"] is not one.vars["scale"]
    assert first.vars["bias"] is not second.vars["bias"]
    first.scale = np.full(C, 3.0)
    assert host_of(second.scale).ravel().tolist() == [3.0] * C
    assert host_of(one.scale).ravel().tolist() != [3.0] * C


def test_a_variable_alone(queue: cl.CommandQueue, remade: Callable[[Any], Any]) -> None:
    bn = BatchNorm2D(C, queue=queue)
    var = bn.vars["scale"]
    other = remade(var)
    assert (other.name, other.data.get().tobytes()) == (var.name, var.data.get().tobytes())
    assert other.data is not var.data
    bn.setVar("scale", other)


def test_modules_that_have_nothing_yet(queue: cl.CommandQueue, remade: Callable[[Any], Any]) -> None:
    bn, full = BatchNorm2D(C, empty=True, queue=queue), BatchNorm2D(C, queue=queue)
    other = remade(bn)
    assert dict(other.vars) == dict(other.attrs) == {}
    other.load(full.save() or b"")
    assert outcome(other) == outcome(full)
    assert bn.scale is None


def test_what_users_hang_on_a_module(queue: cl.CommandQueue, remade: Callable[[Any], Any]) -> None:
    bn = BatchNorm2D(C, queue=queue)
    bn.note, bn.mask = {"rate": [0.1]}, put(queue, np.arange(3))  # type: ignore[attr-defined]
    bn.evalMode()
    other = remade(bn)
    assert (other.note, other.mask.get().tolist(), other.train) == ({"rate": [0.1]}, [0, 1, 2], False)
    assert other.note is not bn.note  # type: ignore[attr-defined]
    assert other.mask is not bn.mask  # type: ignore[attr-defined]


def test_float64_where_the_device_has_none(
    queue: cl.CommandQueue, needs_fp64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pickle.dumps(BatchNorm2D(C, dtype=np.float64, queue=queue, name="layer"))
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    limits = device.limits(queue.device)
    monkeypatch.setattr(device, "limits", lambda _: type(limits)(**(vars(limits) | {"fp64": False})))
    with pytest.raises(
        ModuleDtypeError, match=r"'layer': dtype is .*float64.*; float32, .* is wanted \(.* has no float64\)$"
    ):
        pickle.loads(kept)


def test_a_driver_that_fails(queue: cl.CommandQueue) -> None:
    from faults import NO_RESOURCES, failing

    bn = BatchNorm2D(C, queue=queue)
    step(bn, SHAPE, 0)
    before = outcome(bn)
    for make_one in (copy.copy, pickle.dumps):
        with failing(NO_RESOURCES), pytest.raises(DeviceError, match="OUT_OF_RESOURCES"):
            make_one(bn)  # type: ignore[operator]
        assert outcome(bn) == before
