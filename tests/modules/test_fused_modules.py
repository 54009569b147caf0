"""Activations and residuals of modules: gradients beside differences, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import put

from oclbn import BatchNorm, BatchNorm2D
from oclbn.activations import PLAIN
from oclbn.errors import ModuleDtypeError, ModuleParameterError, ModuleShapeError
from oclbn.truth.activated import activated

pytestmark = pytest.mark.once("functions are compared on each runtime")
SHAPE = (5, 3, 4, 2)


def numbers(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.usefixtures("needs_fp64")
@pytest.mark.parametrize("mode", ["training", "frozen", "evaluation"])
@pytest.mark.parametrize("activation", [None, "tanh", ("leaky_relu", 0.3), "gelu"])
def test_gradients_are_those_of_differences(queue: cl.CommandQueue, activation: Any, mode: str) -> None:
    """In float64, along a random direction, with respect to data and residual."""
    x, added, dy, way = (numbers(seed) for seed in range(4))

    def made() -> BatchNorm2D:
        bn = BatchNorm2D(3, queue=queue, activation=activation, seed=1, dtype=np.float64)
        bn.mean, bn.var = [0.3, -0.2, 0.1], [1.5, 0.7, 1.1]
        bn.frozen_statistics = mode == "frozen"
        if mode == "evaluation":
            bn.evalMode()
        return bn

    def loss(data: np.ndarray[Any, Any], residual: np.ndarray[Any, Any]) -> float:
        return float((made()(put(queue, data), residual=put(queue, residual)).get() * dy).sum())

    bn, step = made(), 1e-6
    bn(put(queue, x), residual=put(queue, added))
    dx = bn.backward(put(queue, dy))
    assert dx is not None
    assert bn.residualgrad is not None
    slope = (loss(x + step * way, added) - loss(x - step * way, added)) / (2 * step)
    np.testing.assert_allclose((dx.get() * way).sum(), slope, rtol=1e-6, atol=1e-7)
    slope = (loss(x, added + step * way) - loss(x, added - step * way)) / (2 * step)
    np.testing.assert_allclose((bn.residualgrad.get() * way).sum(), slope, rtol=1e-6, atol=1e-7)


def test_the_activation_is_an_option_as_others(queue: cl.CommandQueue) -> None:
    bn = BatchNorm(4, queue=queue, activation=("elu", 0.5))
    assert "activation=('elu', 0.5)" in repr(bn)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert other.activation == ("elu", 0.5)
    bn.activation = ("elu", 1.0)
    assert bn.activation == "elu"
    with pytest.raises(ModuleParameterError, match="BatchNorm: activation is 'selu'; None or one of relu"):
        bn.activation = "selu"
    assert bn.activation == "elu"
    with pytest.raises(ModuleParameterError, match=r"did you mean 'relu'\?"):
        BatchNorm(4, queue=queue, activation="ReLU")


def test_what_was_called_is_what_is_derived(queue: cl.CommandQueue) -> None:
    """The activation of the last call counts, whatever the module has since."""
    x, dy = put(queue, numbers(0).astype(np.float32)), put(queue, numbers(1).astype(np.float32))
    bn = BatchNorm2D(3, queue=queue, activation="relu", seed=0)
    bn(x)
    wanted = bn.backward(dy)
    assert wanted is not None
    bn(x)
    bn.activation = None
    found = bn.backward(dy)
    assert found is not None
    np.testing.assert_array_equal(found.get(), wanted.get())
    assert bn.residualgrad is None


def test_evaluation_in_place_activates(queue: cl.CommandQueue) -> None:
    host, added = numbers(0).astype(np.float32), numbers(2).astype(np.float32)
    bn = BatchNorm2D(3, queue=queue, activation="silu", seed=0)
    bn.evalMode()
    wanted = bn(put(queue, host), residual=put(queue, added)).get()
    plain = BatchNorm2D(3, queue=queue, seed=0)
    plain.evalMode()
    exact = activated(plain(put(queue, host)).get().astype(np.float64) + added, PLAIN["silu"])
    np.testing.assert_allclose(wanted, exact, rtol=1e-5, atol=1e-6)
    bn.inplace = True
    x = put(queue, host)
    assert bn(x, residual=put(queue, added)) is x
    np.testing.assert_array_equal(x.get(), wanted)


def test_residuals_that_do_not_fit_change_nothing(queue: cl.CommandQueue) -> None:
    host = numbers(0).astype(np.float32)
    bn, x = BatchNorm2D(3, queue=queue, seed=0), put(queue, host)
    y = bn(x)
    with pytest.raises(ModuleDtypeError, match=r"residual is a numpy.ndarray; .* makes one"):
        bn(x, residual=host)
    with pytest.raises(ModuleShapeError, match=r"residual has shape \(2, 3, 4, 2\); the data had \(5, 3, 4, 2\)"):
        bn(x, residual=put(queue, host[:2]))
    with pytest.raises(ModuleDtypeError, match="residual has dtype float64; the module computes with float32"):
        bn(x, residual=put(queue, host.astype(np.float64)))
    assert bn.data is y
    assert bn.numOfProps == 1
