"""A batch normalization as y = a x + b, and folded into the layer before it: against both, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from layers import C, put, state_of

from oclbn import BatchNorm2D
from oclbn.elements import dtype_of, numbers_of, range_of
from oclbn.errors import ModuleDtypeError, ModuleParameterError, ModuleShapeError, ModuleStateError
from oclbn.truth import reference
from oclbn.truth.hostile import along

pytestmark = pytest.mark.once(reason="it is computed on the host")


def layer(queue: cl.CommandQueue, dtype: Any = np.float32, **options: Any) -> BatchNorm2D:
    rng = np.random.default_rng(3)
    bn = BatchNorm2D(C, queue=queue, dtype=dtype, **options)
    bn.scale, bn.bias = rng.uniform(-2, 2, C), rng.standard_normal(C)  # type: ignore[assignment]
    bn.mean, bn.var = 100 * rng.standard_normal(C), rng.uniform(0, 3, C)  # type: ignore[assignment]
    return bn


def normalized(bn: BatchNorm2D, x: np.ndarray, axis: int = 1) -> np.ndarray:
    given = (getattr(bn, name).get() for name in ("scale", "bias", "mean", "var"))
    return reference.infer(x, *given, epsilon=bn.epsilon, axis=axis)


def test_coefficients(queue: cl.CommandQueue, element: np.dtype) -> None:
    """Rounded once, from float64, to what parameters are of."""
    bn = layer(queue, element, epsilon=0.0)
    bn.var = np.float32([0.0, 1e-30, 1.0, 3.0, 1e30])  # type: ignore[assignment]
    before = state_of(bn)
    a, b = bn.fold()
    scale, bias, mean, var = (
        getattr(bn, name).get().ravel().astype(np.float64) for name in ("scale", "bias", "mean", "var")
    )
    root = np.sqrt(var)
    wanted = np.where(root == 0, 0, scale / np.where(root == 0, 1, root))
    numbers = numbers_of(element)
    assert (a.dtype, b.dtype, a.shape, b.shape) == (numbers, numbers, (C,), (C,))
    assert a.tobytes() == wanted.astype(numbers).tobytes()
    assert b.tobytes() == (bias - mean * wanted).astype(numbers).tobytes()
    assert b[0] == bn.bias.get().ravel()[0], "a constant channel comes out as its bias"  # type: ignore[union-attr]
    assert state_of(bn) == before


def test_y_is_a_x_plus_b(queue: cl.CommandQueue) -> None:
    bn = layer(queue)
    bn.evalMode()
    x = np.random.default_rng(1).standard_normal((3, C, 2, 2)).astype(np.float32)
    a, b = bn.fold()
    y = along(a, x.shape, 1) * x + along(b, x.shape, 1)
    np.testing.assert_allclose(bn(put(queue, x)).get(), y, atol=1e-3)
    np.testing.assert_allclose(y, normalized(bn, x), atol=1e-3)


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(N, in, H, W) by (out, in, kh, kw), without padding, in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    return np.einsum("nihwkl,oikl->nohw", windows, weight)


def spread(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The transposed one: (N, in, H, W) by (in, out, kh, kw)."""
    kh, kw = weight.shape[2:]
    flipped = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]
    return convolved(np.pad(x, ((0, 0), (0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1))), flipped)


LAYERS = [  # shapes of x and of weight, the axis of the outputs in weight, what the layer computes
    pytest.param((2, 3, 5, 4), (C, 3, 3, 2), 0, convolved, id="convolution"),
    pytest.param((2, 3, 5, 4), (3, C, 3, 2), 1, spread, id="transposed convolution"),
    pytest.param(
        (2, 3, 5, 4), (3, 2, 3, C), -1, lambda x, w: convolved(x, w.transpose(3, 2, 0, 1)), id="channels last"
    ),
    pytest.param((7, 6), (C, 6), 0, lambda x, w: x @ w.T, id="dense"),
    pytest.param((7, 6), (6, C), -1, lambda x, w: x @ w, id="dense, transposed"),
]


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("data", "shape", "axis", "compute"), LAYERS)
def test_a_layer_with_it_folded_in(
    queue: cl.CommandQueue, data: tuple[int, ...], shape: tuple[int, ...], axis: int, compute: Any, with_bias: bool
) -> None:
    """The two layers in float64, and the one, each with the float64 of its stored numbers."""
    rng, bn = np.random.default_rng(2), layer(queue)
    x, weight = rng.standard_normal(data), rng.standard_normal(shape)
    bias = rng.standard_normal(C) if with_bias else None
    y = compute(x, weight)
    y = y + along(np.zeros(C) if bias is None else bias, y.shape, 1)
    folded, moved = bn.fold_into(weight, bias, axis=axis)
    assert (folded.shape, moved.shape) == (shape, (C,))
    one = compute(x, folded) + along(moved, y.shape, 1)
    np.testing.assert_allclose(one, normalized(bn, y), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_weights_are_rounded_once(queue: cl.CommandQueue, name: str) -> None:
    """From a and b that are not: the nearest numbers of the weights' own type."""
    dtype = dtype_of(name)
    assert dtype is not None
    bn, rng = layer(queue), np.random.default_rng(4)
    weight, bias = rng.standard_normal((C, 200)).astype(dtype), rng.standard_normal(C).astype(dtype)
    kept = weight.tobytes(), bias.tobytes()
    folded, moved = bn.fold_into(weight, bias)
    wide, wide_moved = bn.fold_into(weight.astype(np.float64), bias.astype(np.float64))
    assert folded.dtype == moved.dtype == dtype
    assert folded.tobytes() == wide.astype(dtype).tobytes()
    assert moved.tobytes() == wide_moved.astype(dtype).tobytes()
    unit = range_of(dtype).eps / 2
    assert (np.abs(folded.astype(np.float64) - wide) <= unit * np.abs(wide)).all()
    assert (weight.tobytes(), bias.tobytes()) == kept


W = np.ones((C, 3, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ((W.tolist(),), {}, ModuleDtypeError, r"weight is a builtins\.list; a numpy\.ndarray is wanted$"),
        ((W.astype(int),), {}, ModuleDtypeError, r"weight is int64; float32, float64, float16 or bfloat16 is wanted$"),
        ((W, [1.0]), {}, ModuleDtypeError, r"bias is a builtins\.list; a numpy\.ndarray is wanted$"),
        ((W, np.ones(C, complex)), {}, ModuleDtypeError, r"bias is complex128; "),
        ((W, np.ones(3)), {}, ModuleShapeError, r"bias has 3 elements; 5 are wanted, or None$"),
        ((W,), {"axis": 1}, ModuleShapeError, r"weight has shape .*, with 5 output channels on axis 1; with axis=0 it"),
        ((W[:3],), {}, ModuleShapeError, r"weight has shape \(3, 3, 2, 2\); .* with 5 output channels on axis 0$"),
        ((np.ones(C),), {}, ModuleShapeError, r"weight has shape \(5,\); two axes or more are wanted, with 5 output"),
        ((W,), {"axis": 4}, ModuleParameterError, r"axis is 4; a whole number from -4 to 3 is wanted, as weight has"),
        ((W,), {"axis": None}, ModuleParameterError, r"axis is None; "),
    ],
)
def test_what_nothing_is_folded_into(
    queue: cl.CommandQueue, given: Any, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=rf"^BatchNorm2D: {message}"):
        layer(queue).fold_into(*given, **options)


def test_nothing_to_fold(queue: cl.CommandQueue) -> None:
    for call in (lambda bn: bn.fold(), lambda bn: bn.fold_into(W)):
        with pytest.raises(
            ModuleStateError, match=r"without running statistics \(running=False\) nothing can be folded"
        ):
            call(BatchNorm2D(C, queue=queue, running=False))
        with pytest.raises(ModuleStateError, match="made with empty=True"):
            call(BatchNorm2D(C, queue=queue, empty=True))
