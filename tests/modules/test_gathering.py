"""Gradients gathered over several batches: by the launches that find them, and by accumulate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, check, foreign, lying, put, surroundings
from data import FEW_SHAPES
from tolerances import assert_within

from oclbn.errors import DtypeError, ShapeError
from oclbn.functional import accumulate, batch_norm_backward
from oclbn.truth.hostile import make
from oclbn.tuning import using


@pytest.mark.parametrize(("scale", "momentum"), [(1.0, 0.0), (1.0, 1.0), (0.5, 0.9), (-2.0, 1.0)], ids=str)
def test_accumulate(queue: cl.CommandQueue, dtype: np.dtype, scale: float, momentum: float) -> None:
    old, new = np.random.default_rng(0).standard_normal((2, 1, 4097, 1)).astype(dtype)
    into, added = lying(queue, old, 3), put(queue, new.reshape(-1))
    accumulate(into, added, scale=scale, momentum=momentum)
    expected = scale * new.astype(np.float64) + momentum * old.astype(np.float64)
    assert_within(into, expected, 2 * np.finfo(dtype).eps * (abs(scale * new) + abs(momentum * old)), "into")
    assert added.get().tobytes() == new.tobytes()
    assert np.isnan(surroundings(into, 3)).all()


@pytest.mark.parametrize(
    ("size", "dtype", "error"), [(4, np.float32, ShapeError), (5, np.float16, DtypeError)], ids=["size", "dtype"]
)
def test_accumulate_refuses(queue: cl.CommandQueue, size: int, dtype: Any, error: type) -> None:
    into = cla.zeros(queue, 5, np.float32)
    with pytest.raises(error, match=r"\bnew (is float16|has 4 elements).*\binto\b.*"):
        accumulate(into, cla.empty(queue, size, dtype))
    assert not into.get().any()


@pytest.mark.parametrize(("scale", "momentum"), [(1.0, 0.0), (1.0, 1.0), (0.5, 0.9), (-2.0, 1.0)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "constants"])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_gradients_are_gathered(
    queue: cl.CommandQueue,
    dtype: np.dtype,
    shape: tuple[int, ...],
    axis: int,
    training: bool,
    scale: float,
    momentum: float,
) -> None:
    host = make(shape, axis, dtype)
    given = [put(queue, array) for array in (host.x, host.dy, host.scale, *foreign(host, axis))]
    old = np.random.default_rng(0).standard_normal((2, host.scale.size)).astype(dtype)
    into = [lying(queue, array, 3) for array in old]
    plain = batch_norm_backward(*given, axis=axis, training=training)
    gathered = batch_norm_backward(
        *given,
        axis=axis,
        training=training,
        scale_grad=into[0],
        bias_grad=into[1],
        grad_scale=scale,
        grad_momentum=momentum,
    )
    assert all_bits(gathered) == all_bits(plain)
    for before, now, new in zip(old, into, plain[1:], strict=True):
        added, kept = scale * new.get().astype(np.float64), momentum * before.astype(np.float64)
        assert_within(now, added + kept, 2 * np.finfo(dtype).eps * (abs(added) + abs(kept)), "gathered")
        assert np.isnan(surroundings(now, 3)).all()


@pytest.mark.parametrize("variant", ["resident", "split"])
def test_gradients_without_momentum_forget_nan(queue: cl.CommandQueue, variant: str) -> None:
    host = make((6, 5, 40), 1)
    given = [put(queue, array) for array in (host.x, host.dy, host.scale, *foreign(host, 1))]
    for training in (True, False):
        into = [put(queue, np.full(5, np.nan, np.float32)) for _ in range(2)]
        with using(variant=variant):
            _, *new = batch_norm_backward(*given, training=training, scale_grad=into[0], bias_grad=into[1])
        assert all_bits(tuple(into)) == all_bits(tuple(new))


@pytest.mark.parametrize("name", ["scale_grad", "bias_grad"])
def test_one_gradient_may_be_gathered_alone(queue: cl.CommandQueue, name: str) -> None:
    host = make((6, 5, 40), 1)
    given = [put(queue, array) for array in (host.x, host.dy, host.scale, *foreign(host, 1))]
    into = put(queue, np.ones(5, np.float32))
    new = batch_norm_backward(*given, **{name: into}, grad_scale=2.0, grad_momentum=1.0)
    np.testing.assert_allclose(into.get(), 2 * new[1 if name == "scale_grad" else 2].get() + 1, rtol=1e-6)


def test_an_empty_batch_adds_nothing(queue: cl.CommandQueue) -> None:
    x = cla.empty(queue, (0, 4, 3), np.float32)
    given = [put(queue, np.ones(4, np.float32)) for _ in range(3)]
    into = [put(queue, np.full(4, value, np.float32)) for value in (6.0, 8.0)]
    batch_norm_backward(x, x, *given, scale_grad=into[0], bias_grad=into[1], grad_scale=3.0, grad_momentum=0.5)
    assert [array.get().tolist() for array in into] == [[3.0] * 4, [4.0] * 4]


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.1])
@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_constants_may_be_given_as_a_variance(
    queue: cl.CommandQueue, dtype: np.dtype, shape: tuple[int, ...], axis: int, epsilon: float
) -> None:
    host = make(shape, axis, dtype)
    check("constant", queue, host, axis, epsilon=epsilon)
