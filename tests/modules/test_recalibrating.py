"""Running statistics anew from a pass over data: exact, all at once on commit, and taken back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from faults import NO_RESOURCES, failing
from layers import C, host_of, put, state_of
from tolerances import assert_within

from oclbn import BatchNorm, BatchNorm2D, device
from oclbn.errors import ModuleDtypeError, ModuleShapeError, ModuleStateError, OclbnError, SkippedBatchesWarning
from oclbn.truth import reference
from oclbn.truth.bounds import Bound
from oclbn.truth.hostile import Offset, Spoiled, constant, gaussian, make

pytestmark = pytest.mark.once(reason="statistics and their merge are tested on each runtime")
CUTS = (1, 4, 4, 9)  # batches of one sample, some, none, the rest


@pytest.mark.parametrize("maker", [gaussian, Offset(1e4), constant], ids=["N(0,1)", "mean 1e4 std", "constant"])
@pytest.mark.parametrize("estimator", ["sample", "population"])
def test_statistics_of_all_values(queue: cl.CommandQueue, element: np.dtype, maker: Any, estimator: str) -> None:
    """Which no average over batches gives: they are of unequal sizes."""
    host = make((12, C, 2, 3), 1, element, maker)
    bn = BatchNorm2D(C, queue=queue, dtype=element, seed=1, estimator=estimator)
    bn(put(queue, make((4, C, 2, 3), 1, element, seed=5).x))
    before = state_of(bn)
    with bn.recalibrate() as pass_:
        for part in np.split(host.x, CUTS):
            pass_(put(queue, part))
        assert state_of(bn) == before
        assert (pass_.batches, pass_.statistics is not None and pass_.statistics.count) == (4, 72)
    assert state_of(bn) == before
    pass_.commit()
    wanted = reference.train(host.x)
    var = wanted.var if estimator == "population" else wanted.var * 72 / 71
    bound = Bound(host.x, wanted.mean, wanted.invstd, None, None, axis=1, dtype=element)
    assert_within(host_of(bn.mean).ravel(), wanted.mean, bound.stored_mean(), "mean")
    assert_within(host_of(bn.var).ravel(), var, bound.running_var(var, var, 1.0), "var")
    assert (bn.numOfProps, bn.skipped) == (4, 0)
    assert bn.inData is None


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_calls_of_the_module_are_collected(queue: cl.CommandQueue, train: bool) -> None:
    """And give what they give outside, gradients too, but for the running statistics, which stay."""
    bn, other = (BatchNorm2D(C, queue=queue, seed=1) for _ in range(2))
    other.update_running = False
    for one in (bn, other):
        one.mean, one.var = np.arange(C), np.arange(1, C + 1)  # type: ignore[assignment]
        one.trainMode() if train else one.evalMode()
    host = make((12, C, 2, 3), 1, maker=Offset(10.0))
    mean = host_of(bn.mean).tobytes()
    with bn.recalibrate() as pass_:
        for part, slope in zip(np.split(host.x, (2, 7)), np.split(host.dy, (2, 7)), strict=True):
            found = [(one(put(queue, part)), one.backward(put(queue, slope))) for one in (bn, other)]
            (y, dx), (wanted_y, wanted_dx) = found
            assert y.get().tobytes() == wanted_y.get().tobytes()
            assert host_of(dx).tobytes() == host_of(wanted_dx).tobytes()
            assert (bn.numOfProps, host_of(bn.mean).tobytes()) == (0, mean)
        pass_.commit()
    np.testing.assert_allclose(host_of(bn.mean).ravel(), host.x.astype(np.float64).mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(host_of(bn.var).ravel(), host.x.astype(np.float64).var((0, 2, 3), ddof=1), rtol=1e-5)
    assert bn.numOfProps == 3
    bn.trainMode()
    bn(put(queue, host.x))
    assert bn.numOfProps == 4, "training goes on"


def test_roll_back(queue: cl.CommandQueue) -> None:
    """After a commit everything is as it was; without one, what was collected is gone."""
    bn = BatchNorm2D(C, queue=queue, seed=1)
    bn(put(queue, make((3, C, 2, 2), 1, maker=Spoiled(np.nan)).x))
    bn(put(queue, make((3, C, 2, 2), 1).x))
    bn.reset()
    before, twin = state_of(bn), copy.deepcopy(bn)
    x = put(queue, make((6, C, 2, 2), 1, seed=3).x)
    with bn.recalibrate() as pass_:
        bn(x)
    pass_.commit()
    assert (bn.numOfProps, bn.skipped) == (1, 0)
    bn(x)
    pass_.rollback()
    assert state_of(bn) == before
    with pytest.raises(ModuleStateError, match=r"commit has nothing to do: no data came$"):
        pass_.commit()
    for one in (bn, twin):
        one(x)
    assert host_of(bn.mean).tobytes() == host_of(twin.mean).tobytes(), "counters of each channel as well"
    with bn.recalibrate() as pass_:
        bn(x)
        pass_.rollback()
        assert (pass_.batches, pass_.statistics) == (0, None)


def test_an_exception_leaves_all_as_it_was(queue: cl.CommandQueue) -> None:
    bn, x = BatchNorm2D(C, queue=queue, seed=1), put(queue, make((6, C, 2, 2), 1).x)
    with pytest.raises(ZeroDivisionError), bn.recalibrate() as pass_:  # noqa: PT012
        bn(x)
        raise ZeroDivisionError
    assert not host_of(bn.mean).any()
    with pytest.raises(ModuleStateError, match=r"^BatchNorm2D: commit has nothing to do: an exception left the block$"):
        pass_.commit()
    assert bn(x) is not None
    assert bn.numOfProps == 1


def test_channels_that_are_not_finite(queue: cl.CommandQueue) -> None:
    """The guard keeps them as they were, without it they show."""
    host = make((6, C, 2, 2), 1, maker=Spoiled(np.inf))
    bad = list(host.bad)
    bn, open_one = (BatchNorm2D(C, queue=queue, seed=1, guard=guard) for guard in (True, False))
    for one in (bn, open_one):
        one(put(queue, make((3, C, 2, 2), 1).x))
        old = host_of(one.mean).ravel()
        with one.recalibrate() as pass_:
            for part in np.split(host.x, 3):
                one(put(queue, part))
        pass_.commit()
        good = [channel for channel in range(C) if channel not in bad]
        np.testing.assert_allclose(host_of(one.mean).ravel()[good], host.x.mean((0, 2, 3))[good], rtol=1e-4, atol=1e-5)
        if one.guard:
            assert host_of(one.mean).ravel()[bad] == old[bad]
            assert (one.numOfProps, one.skipped) == (3, 2)
            one.load(one.save() or b"")
            assert one.skipped == 2
        else:
            assert not np.isfinite(host_of(one.mean).ravel()[bad]).any()
            assert (one.numOfProps, one.skipped) == (3, 0)


def test_no_finite_channel_at_all_is_told(queue: cl.CommandQueue) -> None:
    bn = BatchNorm(1, queue=queue)
    with bn.recalibrate() as pass_:
        bn(put(queue, np.float32([[1.0], [np.nan]])))
    pass_.commit()
    with pytest.warns(SkippedBatchesWarning, match="the guard has left every channel out"):
        assert bn.skipped == 1
    assert host_of(bn.mean).ravel().tolist() == [0.0]


def test_what_cannot_be_done(queue: cl.CommandQueue) -> None:
    x = put(queue, make((6, C, 2, 2), 1).x)
    bn = BatchNorm2D(C, queue=queue, seed=1)
    before = state_of(bn)
    with bn.recalibrate() as pass_:
        with pytest.raises(ModuleStateError, match=r"recalibrate\(\) is open already; its block has to end first$"):
            bn.recalibrate().__enter__()
        with pytest.raises(ModuleStateError, match=r"recalibrate\(\) is open already"):
            bn.accumulate().__enter__()
        for commit in (pass_.commit, pass_.commit):
            with pytest.raises(ModuleStateError, match=r"commit has nothing to do: no data came$"):
                commit()
        with pytest.raises(ModuleDtypeError, match=r"data is a numpy\.ndarray"):
            pass_(x.get())  # type: ignore[arg-type]
        with pytest.raises(ModuleShapeError, match=r"data has shape \(6, 5\)"):
            pass_(x[:, :, 0, 0])
        with pytest.raises(ModuleShapeError, match="one value per channel has no variance"):
            bn(x[:1, :, :1, :1])
        assert pass_.batches == 0
        pass_(x[:1, :, :1, :1])
        with pytest.raises(ModuleShapeError, match=r"1 values per channel were collected; two are wanted, for a var"):
            pass_.commit()
    assert repr(pass_) == "<Recalibration of BatchNorm2D: 1 batches>"
    with pytest.raises(ModuleStateError, match=r"data are collected in the block of recalibrate\(\) alone$"):
        pass_(x)
    assert state_of(bn) == before
    with pass_:
        pass_(x)
    pass_.commit()
    with pytest.raises(ModuleStateError, match=r"that was done already; rollback\(\) takes it back$"):
        pass_.commit()
    with pytest.raises(ModuleStateError, match=r"there are no running statistics to recalibrate \(running=False\)$"):
        BatchNorm2D(C, queue=queue, running=False).recalibrate().__enter__()
    with pytest.raises(ModuleStateError, match=r"made with empty=True"):
        BatchNorm2D(C, queue=queue, empty=True).recalibrate().__enter__()


def test_a_driver_that_fails(queue: cl.CommandQueue) -> None:
    """In a call nothing is collected, in a commit nothing is changed."""
    x = put(queue, make((6, C, 2, 2), 1).x)
    bn = BatchNorm2D(C, queue=queue, seed=1)
    with bn.recalibrate() as pass_:
        bn(x)
        with failing() as driver:
            bn(x)
        bn.reset()
        before = state_of(bn)
        for number in range(len(driver.asked)):
            with failing(NO_RESOURCES, number), pytest.raises(OclbnError):
                bn(x)
            assert pass_.batches == 2
            bn.reset()
            assert state_of(bn) == before
    with failing() as driver:
        pass_.commit()
    pass_.rollback()
    with pass_:
        bn(x)
    bn.reset()
    before = state_of(bn)
    for number in range(len(driver.asked)):
        with failing(NO_RESOURCES, number), pytest.raises(OclbnError):
            pass_.commit()
        assert state_of(bn) == before
    pass_.commit()


def test_copies_are_in_no_block(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    bn, x = BatchNorm2D(C, queue=queue, seed=1), put(queue, make((6, C, 2, 2), 1).x)
    with bn.recalibrate() as pass_:
        for other in (copy.copy(bn), pickle.loads(pickle.dumps(bn))):
            other(x)
            assert other.numOfProps == 1
        assert pass_.batches == 0
