"""Frozen statistics: scale and bias are trained, the running statistics stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from layers import MODULES, C, Maker, host_of, put
from tolerances import assert_within

from oclbn import BatchNorm2D
from oclbn.errors import ModuleStateError
from oclbn.truth import reference
from oclbn.truth.bounds import Bound, stored
from oclbn.truth.hostile import make


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
def test_parameters_are_trained_on_statistics_that_stay(
    queue: cl.CommandQueue, maker: Maker, shape: tuple[int, ...], parameters: tuple[int, ...], element: np.dtype[Any]
) -> None:
    bn = maker(C, queue=queue, dtype=element, seed=2, sscale=0.5)
    bn(put(queue, make(shape, 1, element, seed=1).x))
    bn.frozen_statistics = True
    bn.evalMode()
    bn.trainMode()
    mean, var, scale, bias = (host_of(array) for array in (bn.mean, bn.var, bn.scale, bn.bias))
    host = make(shape, 1, element)
    y = bn(put(queue, host.x))
    invstd = 1 / np.sqrt(var.astype(np.float64) + bn.epsilon)
    bound = Bound(host.x, mean, invstd, scale, bias, axis=1, dtype=element)
    inferred = reference.infer(host.x, scale, bias, mean, var, epsilon=bn.epsilon)
    assert_within(y, *stored(inferred, bound.inferred(), element), "y")
    result = bn.backward(put(queue, host.dy), scale=2.0)
    dx, dscale, dbias = reference.backward(host.x, host.dy, scale, mean, invstd, training=False)
    bounds = [2 * b for b in bound.gradients(host.dy, training=False)]  # one more rounding than with invstd given
    assert_within(result, *stored(dx, bounds[0], element), "grad")
    for name, wanted, room in (("scale", dscale, bounds[1]), ("bias", dbias, bounds[2])):
        assert_within(bn.vars[name].grad.get().ravel(), 2 * wanted, 2 * room, name)
    bn.updateParams(-0.5)
    np.testing.assert_allclose(host_of(bn.bias).ravel(), bias.ravel() - dbias, rtol=1e-4, atol=1e-4)
    assert host_of(bn.mean).tobytes() == mean.tobytes()
    assert host_of(bn.var).tobytes() == var.tobytes()
    assert (bn.numOfProps, bn.train) == (1, True)
    assert bn.savemean is bn.saveinvvar is None


def test_what_is_frozen_thaws(queue: cl.CommandQueue) -> None:
    bn, other = (BatchNorm2D(C, queue=queue, seed=1, frozen_statistics=frozen) for frozen in (True, False))
    x, dy = (put(queue, host) for host in (make((4, C, 3, 3), 1).x, make((4, C, 3, 3), 1).dy))
    bn(x)
    bn.backward(dy)
    assert bn.vars["scale"].grad.get().any()
    bn.zeroGradParams()
    bn.frozen_statistics = False
    assert bn(x).get().tobytes() == other(x).get().tobytes()
    for name in ("mean", "var"):
        assert host_of(getattr(bn, name)).tobytes() == host_of(getattr(other, name)).tobytes()


def test_evaluation_gathers_nothing(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, frozen_statistics=True)
    bn.evalMode()
    bn(put(queue, make((4, C, 3, 3), 1).x))
    bn.backward(put(queue, make((4, C, 3, 3), 1).dy))
    assert not any(var.grad.get().any() for var in bn.vars.values())


def test_one_value_per_channel_has_statistics_to_go_by(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, frozen_statistics=True, seed=1)
    x = make((1, C, 1, 1), 1).x
    np.testing.assert_allclose(bn(put(queue, x)).get(), x * host_of(bn.scale), rtol=1e-4)
    assert bn.backward(put(queue, x)) is bn.grad is not None


def test_in_place_is_for_evaluation_all_the_same(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, frozen_statistics=True, inplace=True)
    x = make((4, C, 3, 3), 1).x
    given = put(queue, x)
    with pytest.raises(ModuleStateError, match="inplace is for evaluation"):
        bn(given)
    assert given.get().tobytes() == x.tobytes()
