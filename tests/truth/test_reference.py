"""The oracle itself: hand-worked numbers, finite differences, axes, missing parameters, non-finite data."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from oclbn.errors import ShapeError
from oclbn.truth import reference

SHAPES = [
    pytest.param((4, 3), 1, id="features"),
    pytest.param((3, 4), 0, id="channels on axis 0"),
    pytest.param((2, 3, 5), 1, id="sequence"),
    pytest.param((2, 3, 2, 3), 1, id="images"),
    pytest.param((2, 3, 2, 3), -1, id="images, channels last"),
    pytest.param((2, 2, 2, 3, 2), 3, id="volumes, channels on axis 3"),
    pytest.param((5, 1), 1, id="one channel"),
]


def column(values: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """Per-channel values, shaped to broadcast against an array with its channels on `axis`."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def drawn(shape: tuple[int, ...], axis: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    channels = shape[axis]
    x = rng.normal(2.0, 3.0, shape)
    return x, rng.normal(size=shape), rng.normal(1.0, 0.5, channels), rng.normal(size=channels)


def test_puzzlelib_example() -> None:
    x = np.arange(18, dtype=np.float32).reshape(3, 6)
    result = reference.train(x, running_mean=np.zeros(6), running_var=np.ones(6), epsilon=1e-5, factor=1.0)
    np.testing.assert_array_equal(result.mean, [6, 7, 8, 9, 10, 11])
    np.testing.assert_array_equal(result.var, np.full(6, 24.0))
    np.testing.assert_array_equal(result.running_mean, [6, 7, 8, 9, 10, 11])
    np.testing.assert_array_equal(result.running_var, np.full(6, 36.0))
    np.testing.assert_allclose(result.y, np.repeat([[-1.2247446], [0.0], [1.2247446]], 6, axis=1), atol=1e-7)


def test_training_by_hand() -> None:
    # Channel 0 holds 1, 3, 5, 7: mean 4, M2 = 9 + 1 + 1 + 9 = 20, population variance 5, unbiased 20/3.
    # With epsilon 4 the root is 3. Channel 1 is constant.
    x = np.array([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [2.0, 2.0]]])
    result = reference.train(x, [2.0, 5.0], [1.0, -1.0], [10.0, 2.0], [1.0, 3.0], epsilon=4.0, factor=0.25)
    expected = [[[-1.0, 1 / 3], [-1.0, -1.0]], [[5 / 3, 3.0], [-1.0, -1.0]]]
    np.testing.assert_allclose(result.y, expected, rtol=1e-15)
    np.testing.assert_array_equal(result.mean, [4.0, 2.0])
    np.testing.assert_array_equal(result.var, [5.0, 0.0])
    np.testing.assert_allclose(result.invstd, [1 / 3, 0.5], rtol=1e-16)
    np.testing.assert_allclose(result.running_mean, [8.5, 2.0], rtol=1e-16)
    np.testing.assert_allclose(result.running_var, [0.75 + 5 / 3, 2.25], rtol=1e-15)


def test_inference_by_hand() -> None:
    x = np.array([[3.0, 10.0], [-1.0, 20.0]])
    y = reference.infer(x, [6.0, 1.0], [0.5, 0.0], [1.0, 10.0], [5.0, 21.0], epsilon=4.0)
    np.testing.assert_allclose(y, [[4.5, 0.0], [-3.5, 2.0]], rtol=1e-15)


def test_backward_by_hand() -> None:
    # xhat = -1, 0, 1 (mean 2, invstd 1/2); dy = 1, 2, 6: dbias 9, dscale 5; dy - 3 - xhat * 5/3 = -1/3, -1, 4/3.
    x, dy = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [6.0]])
    dx, dscale, dbias = reference.backward(x, dy, [4.0], [2.0], [0.5])
    np.testing.assert_allclose(dx, [[-2 / 3], [-2.0], [8 / 3]], rtol=1e-15)
    np.testing.assert_array_equal(dscale, [5.0])
    np.testing.assert_array_equal(dbias, [9.0])
    dx, dscale, dbias = reference.backward(x, dy, [4.0], [2.0], [0.5], training=False)
    np.testing.assert_array_equal(dx, [[2.0], [4.0], [12.0]])
    np.testing.assert_array_equal(dscale, [5.0])
    np.testing.assert_array_equal(dbias, [9.0])


def numeric_gradient(loss, values: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.zeros(values.shape)
    for where in product(*map(range, values.shape)):
        up, down = values.copy(), values.copy()
        up[where] += step
        down[where] -= step
        gradient[where] = (loss(up) - loss(down)) / (2.0 * step)
    return gradient


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_training_gradients_agree_with_finite_differences(shape: tuple[int, ...], axis: int) -> None:
    x, dy, scale, bias = drawn(shape, axis)
    result = reference.train(x, scale, bias, axis=axis)
    dx, dscale, dbias = reference.backward(x, dy, scale, result.mean, result.invstd, axis=axis)

    def loss(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> float:
        return float(np.sum(dy * reference.train(x, scale, bias, axis=axis).y))

    np.testing.assert_allclose(dx, numeric_gradient(lambda v: loss(v, scale, bias), x), atol=2e-8)
    np.testing.assert_allclose(dscale, numeric_gradient(lambda v: loss(x, v, bias), scale), atol=2e-8)
    np.testing.assert_allclose(dbias, numeric_gradient(lambda v: loss(x, scale, v), bias), atol=2e-8)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_constant_statistics_gradients_agree_with_finite_differences(shape: tuple[int, ...], axis: int) -> None:
    x, dy, scale, bias = drawn(shape, axis)
    rng = np.random.default_rng(1)
    mean, var = rng.normal(size=scale.size), rng.uniform(0.5, 4.0, scale.size)
    invstd = 1.0 / np.sqrt(var + 1e-5)
    dx, dscale, dbias = reference.backward(x, dy, scale, mean, invstd, axis=axis, training=False)

    def loss(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> float:
        return float(np.sum(dy * reference.infer(x, scale, bias, mean, var, axis=axis)))

    np.testing.assert_allclose(dx, numeric_gradient(lambda v: loss(v, scale, bias), x), atol=2e-8)
    np.testing.assert_allclose(dscale, numeric_gradient(lambda v: loss(x, v, bias), scale), atol=2e-8)
    np.testing.assert_allclose(dbias, numeric_gradient(lambda v: loss(x, scale, v), bias), atol=2e-8)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_output_has_the_shape_and_order_of_x(shape: tuple[int, ...], axis: int) -> None:
    x, dy, scale, bias = drawn(shape, axis)
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    mean, var = x.mean(others, keepdims=True), x.var(others, keepdims=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * column(scale, x.ndim, axis) + column(bias, x.ndim, axis)
    result = reference.train(x, scale, bias, axis=axis)
    np.testing.assert_allclose(result.y, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(reference.infer(x, scale, bias, mean, var, axis=axis), expected, rtol=1e-12, atol=1e-14)
    for array in (result.y, *reference.backward(x, dy, scale, mean, result.invstd, axis=axis)):
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
    count, mean_again, m2 = reference.moments(x, axis=axis)
    assert count == x.size // scale.size
    np.testing.assert_array_equal(mean_again, result.mean)
    np.testing.assert_array_equal(m2 / count, result.var)


def test_missing_parameters_are_one_and_zero() -> None:
    x, dy, _, _ = drawn((5, 3, 4), 1)
    plain, given = reference.train(x), reference.train(x, np.ones(3), np.zeros(3))
    np.testing.assert_array_equal(plain.y, given.y)
    assert plain.running_mean is None
    assert plain.running_var is None
    np.testing.assert_array_equal(
        reference.infer(x, None, None, plain.mean, plain.var),
        reference.infer(x, np.ones(3), np.zeros(3), plain.mean, plain.var),
    )
    for one, other in zip(
        reference.backward(x, dy, None, plain.mean, plain.invstd),
        reference.backward(x, dy, np.ones(3), plain.mean, plain.invstd),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_running_statistics_can_be_updated_alone() -> None:
    x, _, _, _ = drawn((5, 3), 1)
    only_mean = reference.train(x, running_mean=np.zeros(3))
    only_var = reference.train(x, running_var=np.ones(3))
    assert only_mean.running_var is None
    assert only_var.running_mean is None
    np.testing.assert_allclose(only_mean.running_mean, 0.1 * x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(only_var.running_var, 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-12)


def test_per_channel_arguments_may_have_any_shape() -> None:
    x, dy, scale, bias = drawn((4, 3, 2, 2), 1)
    wide = {"scale": scale.reshape(1, 3, 1, 1), "bias": bias.reshape(1, 3, 1, 1)}
    flat, shaped = reference.train(x, scale, bias), reference.train(x, **wide)
    np.testing.assert_array_equal(flat.y, shaped.y)
    assert shaped.mean.shape == (3,)
    dx, dscale, _ = reference.backward(x, dy, wide["scale"], flat.mean.reshape(3, 1, 1), flat.invstd)
    assert dscale.shape == (3,)
    np.testing.assert_array_equal(dx, reference.backward(x, dy, scale, flat.mean, flat.invstd)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_channel_leaves_the_others_alone(bad: float) -> None:
    x, dy, scale, bias = drawn((4, 3, 5), 1)
    clean = reference.train(x, scale, bias, np.zeros(3), np.ones(3))
    broken = x.copy()
    broken[2, 1, 3] = bad
    result = reference.train(broken, scale, bias, np.zeros(3), np.ones(3))
    dx, dscale, _ = reference.backward(broken, dy, scale, result.mean, result.invstd)
    good = [0, 2]
    np.testing.assert_array_equal(result.y[:, good], clean.y[:, good])
    assert np.isnan(result.y[:, 1]).all()
    assert np.isnan(dx[:, 1]).all()
    assert np.isfinite(dx[:, good]).all()
    assert np.isnan(dscale).tolist() == [False, True, False]
    np.testing.assert_array_equal(result.running_mean[good], clean.running_mean[good])
    assert (result.running_mean[1], result.running_var[1]) == (0.0, 1.0)


def test_without_the_guard_non_finite_statistics_are_averaged_in() -> None:
    x = np.array([[1.0, np.nan], [3.0, 1.0]])
    result = reference.train(x, None, None, np.zeros(2), np.ones(2), guard=False)
    assert np.isnan(result.running_mean).tolist() == [False, True]
    assert np.isnan(result.running_var).tolist() == [False, True]


def test_statistics_are_exact_where_the_mean_dwarfs_the_spread() -> None:
    # Judged by rational arithmetic, which does not round.
    x = (np.float32(1e6) + np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)).astype(np.float32)
    count, mean, m2 = reference.moments(x)
    for channel in range(2):
        exact = [Fraction(float(value)) for value in x[:, channel]]
        exact_mean = sum(exact) / count
        exact_m2 = sum((value - exact_mean) ** 2 for value in exact)
        assert abs(Fraction(float(mean[channel])) - exact_mean) <= abs(exact_mean) * Fraction(2) ** -52
        assert abs(Fraction(float(m2[channel])) - exact_m2) <= exact_m2 * Fraction(2) ** -48


def test_a_constant_channel_is_its_bias() -> None:
    result = reference.train(np.full((7, 2, 3), 0.1), [2.0, 3.0], [0.5, -1.0])
    np.testing.assert_array_equal(result.var, [0.0, 0.0])
    np.testing.assert_array_equal(result.y[:, 0], np.full((7, 3), 0.5))
    np.testing.assert_array_equal(result.y[:, 1], np.full((7, 3), -1.0))


def test_an_empty_batch_changes_nothing() -> None:
    x = np.empty((0, 3, 4))
    result = reference.train(x, running_mean=[1.0, 2.0, 3.0], running_var=[4.0, 5.0, 6.0])
    assert result.y.shape == x.shape
    np.testing.assert_array_equal(result.running_mean, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(result.running_var, [4.0, 5.0, 6.0])
    dx, dscale, dbias = reference.backward(x, x, None, result.mean, result.invstd)
    assert dx.shape == x.shape
    assert dscale.tolist() == dbias.tolist() == [0.0, 0.0, 0.0]
    assert reference.moments(x)[0] == 0


def test_arguments_are_never_written_to() -> None:
    x, dy, scale, bias = drawn((4, 3), 0)
    running_mean, running_var = np.zeros(4), np.ones(4)
    scale, bias = scale.copy(), bias.copy()
    arrays = [x, dy, scale, bias, running_mean, running_var]
    before = [array.copy() for array in arrays]
    result = reference.train(x, scale, bias, running_mean, running_var, axis=0)
    reference.infer(x, scale, bias, running_mean, running_var, axis=0)
    reference.backward(x, dy, scale, result.mean, result.invstd, axis=0)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_wrong_shapes_name_the_argument() -> None:
    x = np.zeros((4, 3))
    with pytest.raises(ShapeError, match="x has 1 axes; it needs at least 2"):
        reference.train(np.zeros(3))
    with pytest.raises(ShapeError, match="scale has 2 elements; x has 3 channels"):
        reference.train(x, scale=np.ones(2))
    with pytest.raises(ShapeError, match="running_var has 4 elements"):
        reference.train(x, running_var=np.ones(4))
    with pytest.raises(ShapeError, match="mean has 1 elements"):
        reference.infer(x, None, None, np.zeros(1), np.ones(3))
    with pytest.raises(ShapeError, match=r"dy has shape \(3, 4\); x has shape \(4, 3\)"):
        reference.backward(x, np.zeros((3, 4)), None, np.zeros(3), np.ones(3))


@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_backward_takes_off_the_means_rounding_error(ratio: float) -> None:
    """float64 data with a large mean, against the same formula in a longer type."""
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("needs a type longer than float64; this platform has none")
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((400, 6)) + ratio, rng.standard_normal((400, 6))
    forward = reference.train(x)
    dx, dscale, _ = reference.backward(x, dy, None, forward.mean, forward.invstd)
    long_x, long_dy = x.astype(np.longdouble), dy.astype(np.longdouble)
    centred = long_x - long_x.mean(axis=0)
    invstd = 1 / np.sqrt((centred**2).mean(axis=0) + np.longdouble("1e-5"))
    xhat = centred * invstd
    wanted_dscale = (long_dy * xhat).sum(axis=0)
    wanted_dx = invstd * (long_dy - long_dy.mean(axis=0) - xhat * wanted_dscale / 400)
    np.testing.assert_allclose(dscale, wanted_dscale.astype(np.float64), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, wanted_dx.astype(np.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_double_backward_is_that_of_differences(shape: tuple[int, ...], axis: int, training: bool) -> None:
    x, dy, scale, slope = drawn(shape, axis)
    rng = np.random.default_rng(9)
    pushes = rng.normal(size=shape), slope, rng.normal(size=scale.size)
    constants = reference.train(np.sin(x), axis=axis)

    def loss(x: np.ndarray, dy: np.ndarray, scale: np.ndarray) -> float:
        """Each of backward's results, times what is pushed on it."""
        own = reference.train(x, axis=axis) if training else constants
        made = reference.backward(x, dy, scale, own.mean, own.invstd, axis=axis, training=training)
        return sum(float(np.sum(one * push)) for one, push in zip(made, pushes, strict=True))

    own = reference.train(x, axis=axis) if training else constants
    found = reference.double_backward(x, dy, scale, own.mean, own.invstd, *pushes, axis=axis, training=training)
    step = 1e-5
    for place, (array, gradient) in enumerate(zip((x, dy, scale), found, strict=True)):
        for at in np.ndindex(array.shape):
            sides = []
            for sign in (1.0, -1.0):
                moved = [x, dy, scale]
                moved[place] = array.copy()
                moved[place][at] += sign * step
                sides.append(loss(*moved))
            np.testing.assert_allclose(gradient[at], (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-7)
