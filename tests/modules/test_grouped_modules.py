"""Modules whose batches are parted into groups of samples; instance normalization."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import all_bits, put

from oclbn import BatchNorm, BatchNorm2D, InstanceNorm1D, InstanceNorm2D, InstanceNorm3D
from oclbn.errors import ModuleParameterError, ModuleShapeError, ModuleStateError
from oclbn.functional import batch_norm_backward, batch_norm_train
from oclbn.sync import DeviceGroup, SyncBatchNorm
from oclbn.truth.hostile import make

C = 5


def test_a_module_in_groups_is_as_its_functions(queue: cl.CommandQueue) -> None:
    host = make((7, C, 4, 3), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    bn = BatchNorm2D(C, queue=queue, seed=1, groups=3)
    mean, var = bn.mean.copy(), bn.var.copy()
    counts = put(queue, np.zeros(bn.scale.shape, np.uint32))
    options: dict[str, Any] = {"init_factor": bn.initFactor, "factor": bn.minFactor, "entered": counts}
    wanted = batch_norm_train(x, bn.scale, bn.bias, mean, var, groups=3, **options)
    y, dx = bn(x), bn.backward(dy)
    gradients = batch_norm_backward(x, dy, bn.scale, *wanted[1:], groups=3)
    pairs = [(y, wanted[0]), (bn.savemean, wanted[1]), (bn.saveinvvar, wanted[2]), (bn.mean, mean), (bn.var, var)]
    pairs += [(dx, gradients[0]), (bn.scalegrad, gradients[1]), (bn.biasgrad, gradients[2])]
    for found, one in pairs:
        assert all_bits(found) == all_bits(one)
    assert bn.numOfProps == 3
    assert bn.skipped == 0
    assert bn.vars["scale"].grad.get().ravel().tolist() == gradients[1].get().ravel().tolist()


def test_groups_end_with_evaluation_and_when_they_are_set(queue: cl.CommandQueue) -> None:
    host = make((6, C, 4, 3), 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    bn, plain = BatchNorm2D(C, queue=queue, seed=1, groups=2), BatchNorm2D(C, queue=queue, seed=1)
    for one in (bn, plain):
        one.evalMode()
    assert all_bits(bn(x)) == all_bits(plain(x))
    assert all_bits(bn.backward(dy)) == all_bits(plain.backward(dy))
    bn.groups = 1
    for one in (bn, plain):
        one.trainMode()
    assert all_bits(bn(x)) == all_bits(plain(x))
    assert all_bits(bn.backward(dy)) == all_bits(plain.backward(dy))


def test_copies_and_words_know_groups(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, groups=2)
    assert "groups=2" in repr(bn)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert other.groups == 2


@pytest.mark.parametrize(
    ("cls", "shape"),
    [
        pytest.param(InstanceNorm1D, (3, C, 40), id="1-D"),
        pytest.param(InstanceNorm2D, (3, C, 6, 7), id="2-D"),
        pytest.param(InstanceNorm3D, (3, C, 2, 3, 4), id="3-D"),
    ],
)
def test_instances(queue: cl.CommandQueue, cls: Any, shape: tuple[int, ...]) -> None:
    """In training and in evaluation, forward and backward, with channels on axis 1 and last; as NumPy has it."""
    host = make(shape, 1)
    spatial = tuple(range(2, len(shape)))
    x = host.x.astype(np.float64)
    mean, var = x.mean(spatial, keepdims=True), x.var(spatial, keepdims=True)
    xhat = (x - mean) / np.sqrt(var + 1e-5)
    wide = (1, C) + (1,) * len(spatial)
    scale, bias = host.scale.reshape(wide), host.bias.reshape(wide)
    used = host.dy.astype(np.float64) * scale
    dx = used - used.mean(spatial, keepdims=True) - xhat * (used * xhat).mean(spatial, keepdims=True)
    dx /= np.sqrt(var + 1e-5)
    for axis in (1, -1):
        norm = cls(C, queue=queue, axis=axis)
        assert (norm.scale.get() == 1.0).all()
        norm.scale, norm.bias = scale, bias
        given = [np.ascontiguousarray(np.moveaxis(one, 1, axis)) for one in (host.x, host.dy)]
        for mode in ("trainMode", "evalMode"):
            getattr(norm, mode)()
            y, gradient = norm(put(queue, given[0])), norm.backward(put(queue, given[1]))
            np.testing.assert_allclose(np.moveaxis(y.get(), axis, 1), xhat * scale + bias, atol=1e-5)
            np.testing.assert_allclose(np.moveaxis(gradient.get(), axis, 1), dx, atol=1e-4)
        grads = norm.vars["scale"].grad.get().ravel(), norm.vars["bias"].grad.get().ravel()
        sums = tuple(i for i in range(len(shape)) if i != 1)
        np.testing.assert_allclose(grads[0], (host.dy * xhat).sum(sums), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(grads[1], host.dy.sum(sums), rtol=1e-4, atol=1e-4)


def test_instances_keep_their_parameters_in_files(queue: cl.CommandQueue, tmp_path: Any) -> None:
    norm = InstanceNorm2D(C, queue=queue, name="norm")
    norm.scale = np.arange(C, dtype=np.float32)
    norm.save(tmp_path / "norm.hdf")
    other = InstanceNorm2D(C, queue=queue, name="norm", empty=True)
    other.load(tmp_path / "norm.hdf")
    assert other.scale.get().ravel().tolist() == list(range(C))
    assert other.numOfProps == 0


def test_an_empty_batch_of_instances(queue: cl.CommandQueue) -> None:
    norm = InstanceNorm2D(C, queue=queue)
    x = put(queue, np.zeros((0, C, 3, 3), np.float32))
    assert norm(x).shape == norm.backward(x).shape == (0, C, 3, 3)


def test_what_groups_are_not_for(queue: cl.CommandQueue) -> None:
    x = put(queue, np.ones((4, C, 2, 2), np.float32))
    bn = BatchNorm2D(C, queue=queue, groups=5)
    with pytest.raises(
        ModuleShapeError, match=r"data has shape \(4, 5, 2, 2\): 5 groups of samples are wanted, with two"
    ):
        bn(x)
    assert bn.numOfProps == 0
    with pytest.raises(ModuleShapeError, match="2 groups of samples are wanted, with two values per channel in each"):
        BatchNorm(C, queue=queue, groups=2)(put(queue, np.ones((3, C), np.float32)))
    bn.groups = 2
    with (
        pytest.raises(ModuleStateError, match=r"is for the statistics of a whole batch; set bn\.groups = 1"),
        bn.accumulate(),
    ):
        pass
    with pytest.raises(ModuleParameterError, match="its samples are batches of their own, which need no exchange"):
        SyncBatchNorm(bn, DeviceGroup([queue]))
    with pytest.raises(ModuleParameterError, match="groups is 0; a whole number from 1 on is wanted"):
        bn.groups = 0
    with pytest.raises(ModuleParameterError, match="groups is 2, of samples, and axis is 0, where they lie"):
        BatchNorm2D(C, queue=queue, groups=2, axis=0)
    across = BatchNorm2D(C, queue=queue, axis=0)
    with pytest.raises(ModuleParameterError, match="groups is 2, of samples, and axis is 0, where they lie"):
        across.groups = 2
    assert across.groups == 1
    with pytest.raises(ModuleParameterError, match="axis is 0, where samples lie; another one is wanted for channels"):
        InstanceNorm2D(C, queue=queue, axis=-4)
    bn.use_running = bn.update_running = True
    with pytest.raises(ModuleStateError, match="moves them, does so by whole batches; groups=1 is wanted"):
        bn(x)
    norm = InstanceNorm2D(C, queue=queue)
    with pytest.raises(ModuleStateError, match="groups stays as the module was made; each sample is a group"):
        norm.groups = 2
    with pytest.raises(
        ModuleStateError, match="each sample is a batch of its own; call the module with some at a time"
    ):
        norm.accumulate()
    with pytest.raises(ModuleParameterError, match="of one batch and its statistics; wanted is one sample, not 4"):
        norm(x, mask=np.ones((4, 2, 2), bool))
    with pytest.raises(ModuleShapeError, match="groups of samples are wanted, with two values per channel"):
        norm(put(queue, np.ones((4, C, 1, 1), np.float32)))
