"""Modules that renormalise: the option, its mode and what it is refused with."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, put

from oclbn import BatchNorm2D
from oclbn.errors import ModuleParameterError, ModuleStateError, ShapeError
from oclbn.renorm import batch_renorm_backward, batch_renorm_train
from oclbn.sync import DeviceGroup, SyncBatchNorm
from oclbn.truth.hostile import make

C = 5


def test_a_module_is_as_its_functions(queue: cl.CommandQueue) -> None:
    host = make((7, C, 4, 3), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    bn = BatchNorm2D(C, queue=queue, seed=1, renorm=(2, 0.5), activation="relu", initFactor=0)
    bn.mean, bn.var = host.running_mean, host.running_var
    mean, var = bn.mean.copy(), bn.var.copy()
    wanted = batch_renorm_train(x, bn.scale, bn.bias, mean, var, r_max=2.0, d_max=0.5, activation="relu")
    y, dx = bn(x), bn.backward(dy)
    gradients = batch_renorm_backward(x, dy, bn.scale, *wanted[1:], bias=bn.bias, activation="relu")
    pairs = [(y, wanted[0]), (bn.savemean, wanted[1]), (bn.mean, mean), (bn.var, var), (dx, gradients[0])]
    pairs += [(bn.scalegrad, gradients[1]), (bn.biasgrad, gradients[2]), (bn.vars["scale"].grad, gradients[1])]
    for found, one in pairs:
        assert all_bits(found) == all_bits(one)
    assert bn.numOfProps == 1
    assert "renorm=(2.0, 0.5)" in repr(bn)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert other.renorm == (2.0, 0.5)
        assert other.corrections is None


def test_a_call_that_is_refused_leaves_the_corrections_of_the_last_one(queue: cl.CommandQueue) -> None:
    host = make((7, C, 4, 3), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    bn = BatchNorm2D(C, queue=queue, seed=1, renorm=(2, 0.5), initFactor=0)
    bn.mean, bn.var = host.running_mean, host.running_var
    bn(x)
    wanted, corrections = all_bits(bn.backward(dy)), bn.corrections
    short = cla.Array(queue, x.shape, x.dtype, data=cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, 4))
    with pytest.raises(ShapeError, match="an array that lies within its buffer is wanted"):
        bn(short)
    bn.groups = 2
    with pytest.raises(ModuleStateError, match="groups and renorm are both set"):
        bn(x)
    assert bn.corrections is corrections
    assert all_bits(bn.backward(dy)) == wanted


def test_evaluation_and_switches(queue: cl.CommandQueue) -> None:
    host = make((7, C, 4, 3), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    bn, plain = BatchNorm2D(C, queue=queue, seed=1, renorm=(3, 5)), BatchNorm2D(C, queue=queue, seed=1)
    for one in (bn, plain):
        one.mean, one.var = host.running_mean, host.running_var
        one.evalMode()
    assert all_bits(bn(x)) == all_bits(plain(x))
    assert all_bits(bn.backward(dy)) == all_bits(plain.backward(dy))
    bn.trainMode()
    bn.update_running = False
    bn(x)
    assert bn.mean.get().ravel().tolist() == host.running_mean.tolist()
    assert bn.numOfProps == 0
    assert np.abs(bn.corrections[0].get() - 1.0).max() > 0.01  # type: ignore[index]
    bn.renorm = None
    plain.trainMode()
    plain.update_running = False
    assert all_bits(bn(x)) == all_bits(plain(x))
    assert all_bits(bn.backward(dy)) == all_bits(plain.backward(dy))


def test_what_it_is_not_for(queue: cl.CommandQueue) -> None:
    x = put(queue, np.ones((4, C, 2, 2), np.float32))
    bn = BatchNorm2D(C, queue=queue, renorm=(3, 5), groups=2)
    with pytest.raises(ModuleStateError, match="groups and renorm are both set; groups=1 or renorm=None is wanted"):
        bn(x)
    bn.groups = 1
    with pytest.raises(ModuleStateError, match=r"set bn\.renorm = None for it"), bn.accumulate():
        pass
    with pytest.raises(ModuleParameterError, match="renorm is for one device; None is wanted over a group"):
        SyncBatchNorm(bn, DeviceGroup([queue]))
    for wrong, told in (
        (3.0, "renorm is 3.0; None or .r_max, d_max. is wanted"),
        ((0.5, 1), "renorm's r_max is 0.5; a number from 1"),
        ((2, "a"), "renorm's d_max is 'a'"),
    ):
        with pytest.raises(ModuleParameterError, match=told):
            bn.renorm = wrong  # type: ignore[assignment]
    assert bn.renorm == (3.0, 5.0)
    with pytest.raises(ModuleParameterError, match=r"renorm is \(3, 5\); None is wanted, as the module has no running"):
        BatchNorm2D(C, queue=queue, renorm=(3, 5), running=False)
