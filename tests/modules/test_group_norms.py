"""GroupNorm and LayerNorm as modules: what they compute, keep and refuse."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import all_bits, put

from oclbn import GroupNorm, LayerNorm
from oclbn.errors import ModuleError, ModuleParameterError, ModuleShapeError, ModuleStateError
from oclbn.group_norm import group_norm, group_norm_backward, layer_norm, layer_norm_backward
from oclbn.truth.hostile import make

SHAPE = (3, 6, 5, 4)
MAKERS = [
    pytest.param(lambda **options: GroupNorm(3, 6, **options), id="groups"),
    pytest.param(lambda **options: LayerNorm((5, 4), **options), id="layers"),
]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_module_is_as_its_functions(queue: cl.CommandQueue, maker: Any) -> None:
    host = make(SHAPE, 1)
    x, dy = put(queue, host.x), put(queue, host.dy)
    norm = maker(queue=queue, epsilon=1e-3)
    rng = np.random.default_rng(0)
    norm.scale, norm.bias = (rng.standard_normal(norm.scale.shape).astype(np.float32) for _ in range(2))
    if isinstance(norm, GroupNorm):
        wanted: Any = group_norm(x, 3, norm.scale, norm.bias, epsilon=1e-3)
        gradients: Any = group_norm_backward(x, dy, 3, norm.scale, *wanted[1:])
    else:
        wanted = layer_norm(x, 2, norm.scale, norm.bias, epsilon=1e-3)
        gradients = layer_norm_backward(x, dy, 2, norm.scale, *wanted[1:])
    y, dx = norm(x), norm.backward(dy, scale=0.5)
    pairs = [(y, wanted[0]), (norm.savemean, wanted[1]), (norm.saveinvvar, wanted[2]), (dx, gradients[0])]
    for found, one in [*pairs, (norm.scalegrad, gradients[1]), (norm.biasgrad, gradients[2])]:
        assert all_bits(found) == all_bits(one)
    np.testing.assert_allclose(norm.vars["scale"].grad.get(), 0.5 * norm.scalegrad.get(), rtol=1e-6)
    before = norm.scale.get()
    norm.updateParams(-0.1)
    np.testing.assert_allclose(norm.scale.get(), before - 0.05 * norm.scalegrad.get(), rtol=1e-5, atol=1e-6)
    norm.evalMode()
    grads = norm.vars["bias"].grad.get()
    norm(x)
    norm.backward(dy)
    assert norm.vars["bias"].grad.get().tolist() == grads.tolist()


@pytest.mark.parametrize("maker", MAKERS)
def test_what_a_module_keeps(queue: cl.CommandQueue, maker: Any, tmp_path: Path) -> None:
    norm = maker(queue=queue, name="norm")
    norm.scale = np.arange(norm.scale.size, dtype=np.float32)
    norm.save(tmp_path / "norm.hdf")
    other = maker(queue=queue, name="norm", empty=True)
    with pytest.raises(ModuleStateError, match="it lacks scale, bias; load"):
        other(put(queue, np.ones(SHAPE, np.float32)))
    other.load(tmp_path / "norm.hdf")
    for one in (other, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert one.scale.get().tolist() == norm.scale.get().tolist()
        assert one.blueprint["epsilon"] == 1e-5
    norm.calcMode(np.float16)
    x = put(queue, np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16))
    assert norm(x).dtype == np.float16
    assert norm.backward(x).dtype == np.float16
    assert norm.scale.dtype == np.float32
    plain = maker(queue=queue, affine=False)
    plain.calcMode(np.float16)
    plain(x)
    plain.backward(x)
    assert (plain.scalegrad, plain.biasgrad) == (None, None)
    with pytest.raises(ModuleError, match="a scale other than 1, at which affine=False keeps it"):
        plain.scale = norm.scale


def test_channels_last_and_any_rank(queue: cl.CommandQueue) -> None:
    host = make((4, 6, 5), 1)
    x = put(queue, host.x)
    norm = GroupNorm(2, 6, queue=queue)
    last = GroupNorm(2, 6, queue=queue, axis=-1)
    turned = last(put(queue, np.ascontiguousarray(host.x.transpose(0, 2, 1))))
    np.testing.assert_allclose(turned.get().transpose(0, 2, 1), norm(x).get(), atol=1e-6)
    assert norm(put(queue, host.x[:, :, 0].copy())).shape == (4, 6)
    assert "GroupNorm(2, 6, epsilon=1e-05, affine=True, axis=-1, dtype=float32" in repr(last)
    assert "LayerNorm(5, epsilon=1e-05" in repr(LayerNorm(5, queue=queue))


def test_bad_input(queue: cl.CommandQueue) -> None:
    for call, error, told in (
        (lambda: GroupNorm(4, 6, queue=queue), ModuleParameterError, "GroupNorm: groups is 4; a divisor of 6, of maps"),
        (lambda: GroupNorm(0, 6, queue=queue), ModuleParameterError, "GroupNorm: groups is 0; a whole number from 1"),
        (lambda: GroupNorm(2, 6, queue=queue, axis=0), ModuleParameterError, "axis is 0; that of the maps is wanted"),
        (lambda: LayerNorm(0, queue=queue), ModuleParameterError, "LayerNorm: shape is 0; that of the last axes"),
        (lambda: LayerNorm((3, "a"), queue=queue), ModuleParameterError, "LayerNorm: shape is "),
        (lambda: LayerNorm(None, queue=queue), ModuleParameterError, "LayerNorm: shape is None"),  # type: ignore[arg-type]
        (lambda: GroupNorm(2, 6, epsilon=-1, queue=queue), ModuleParameterError, "epsilon is -1"),
    ):
        with pytest.raises(error, match=told):
            call()
    x = put(queue, np.ones((2, 5, 3), np.float32))
    norm, layer = GroupNorm(5, 5, queue=queue), LayerNorm(4, queue=queue)
    with pytest.raises(ModuleShapeError, match=r"data has shape \(2, 5\): of one value there is no variance"):
        norm(put(queue, np.ones((2, 5), np.float32)))
    with pytest.raises(ModuleShapeError, match="with 5 maps on axis 1"):
        norm(put(queue, np.ones((2, 4, 3), np.float32)))
    with pytest.raises(ModuleShapeError, match=r"the last ones of shape \(4,\)"):
        layer(x)
    with pytest.raises(ModuleStateError, match="groups stays as the module was made"):
        norm.groups = 1
    with pytest.raises(ModuleStateError, match="backward needs a call of the module before it"):
        norm.backward(x)
