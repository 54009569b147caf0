"""Any shape, axis, place in a buffer, element type and choice of arguments: the reference agrees."""

from __future__ import annotations

import numpy as np
import pyopencl as cl
import pytest
from calls import FOUR, all_bits, check, lying, put
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oclbn import device
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, moments
from oclbn.truth.hostile import Data, Offset, gaussian, make, per_channel

Tensor = tuple[tuple[int, ...], int]  # shape and channel axis

several = settings(
    max_examples=60,
    deadline=None,  # the first example of a kind compiles a kernel
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A shape of two to five axes, at most 20,000 elements, and a channel axis that has two values a channel."""
    rank = draw(st.integers(2, 5))
    axis = draw(st.integers(-rank, rank - 1))
    left, shape = 20_000, []
    for _ in range(rank):
        extent = draw(st.integers(1, max(1, min(left, 300))))
        left //= extent
        shape.append(extent)
    order = draw(st.permutations(shape))
    if per_channel(tuple(order), axis) < 2:
        order[(axis + 1) % rank] = 2
    return tuple(order), axis


makers = st.sampled_from([gaussian, Offset(1e3), Offset(1e6)])
subsets = st.sets(st.sampled_from(FOUR))
seeds = st.integers(0, 2**16)


def host_of(
    queue: cl.CommandQueue, tensor: tuple[tuple[int, ...], int], double: bool, maker: object, seed: int
) -> Data:
    dtype = np.float64 if double and device.limits(queue.device).fp64 else np.float32
    return make(*tensor, dtype, maker, seed=seed)


@several
@given(
    tensor=tensors(),
    double=st.booleans(),
    maker=makers,
    absent=subsets,
    epsilon=st.sampled_from([1e-5, 1e-3, 0.0]),
    factor=st.floats(0, 1),
    seed=seeds,
)
def test_training(queue, tensor, double, maker, absent, epsilon, factor, seed) -> None:
    host = host_of(queue, tensor, double, maker, seed)
    if per_channel(*tensor) < 8:
        epsilon = 1e-3  # few values may lie so close together that zero would divide by next to nothing
    check("train", queue, host, tensor[1], absent=absent, epsilon=epsilon, factor=factor)


@several
@given(tensor=tensors(), double=st.booleans(), maker=makers, absent=subsets, seed=seeds)
def test_inference(queue, tensor, double, maker, absent, seed) -> None:
    check("infer", queue, host_of(queue, tensor, double, maker, seed), tensor[1], absent=absent)


@several
@given(tensor=tensors(), double=st.booleans(), maker=makers, scale=st.booleans(), seed=seeds)
def test_backward(queue, tensor, double, maker, scale, seed) -> None:
    check("backward", queue, host_of(queue, tensor, double, maker, seed), tensor[1], absent=() if scale else ("scale",))


@several
@given(tensor=tensors(), double=st.booleans(), seed=seeds, places=st.lists(st.integers(0, 70), min_size=9, max_size=9))
def test_places(queue, tensor, double, seed, places) -> None:
    """Bitwise the same wherever each array lies."""
    host, axis = host_of(queue, tensor, double, gaussian, seed), tensor[1]
    plain = [put(queue, getattr(host, name)) for name in FOUR]
    moved = [lying(queue, getattr(host, name), place) for name, place in zip(FOUR, places[:4], strict=True)]
    x, dy, out = (
        lying(queue, array, place)
        for array, place in zip((host.x, host.dy, np.zeros_like(host.x)), places[4:7], strict=True)
    )
    expected = batch_norm_train(put(queue, host.x), *plain, axis=axis)
    assert all_bits(batch_norm_train(x, *moved, axis=axis, out=out)) == all_bits(expected)
    assert all_bits(tuple(moved)) == all_bits(tuple(plain))
    saved = [lying(queue, array.get(), place) for array, place in zip(expected[1:], places[7:], strict=True)]
    gradients = batch_norm_backward(x, dy, moved[0], *saved, axis=axis, out=out)
    fresh = batch_norm_backward(put(queue, host.x), put(queue, host.dy), plain[0], *expected[1:], axis=axis)
    assert all_bits(gradients) == all_bits(fresh)
    y = batch_norm_infer(put(queue, host.x), *plain, axis=axis)
    assert batch_norm_infer(x, *moved, axis=axis, out=x).get().tobytes() == y.get().tobytes()


@several
@given(tensor=tensors(), seed=seeds)
def test_layouts_agree(queue, tensor, seed) -> None:
    """Channels last gives what channels in place give, up to the order of the sums."""
    shape, axis = tensor
    host = make(shape, axis, seed=seed)
    last = np.ascontiguousarray(np.moveaxis(host.x, axis, -1))
    count, mean, m2 = moments(put(queue, host.x), axis=axis)
    count_last, mean_last, m2_last = moments(put(queue, last), axis=-1)
    assert count == count_last == per_channel(shape, axis)
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(mean.get(), mean_last.get(), rtol=eps, atol=8 * eps)
    np.testing.assert_allclose(m2.get(), m2_last.get(), rtol=32 * eps, atol=eps**2)


@several
@given(tensor=tensors(), power=st.integers(-8, 8), seed=seeds)
def test_powers_of_two_change_no_digit(queue, tensor, power, seed) -> None:
    """With epsilon 0, y does not know the unit that x is measured in: exactly so for powers of two."""
    if per_channel(*tensor) < 8:
        return
    host, axis = make(*tensor, seed=seed), tensor[1]
    y, *_ = batch_norm_train(put(queue, host.x), None, None, None, None, epsilon=0.0, axis=axis)
    scaled = np.ldexp(host.x, power)
    z, _, invstd = batch_norm_train(put(queue, scaled), None, None, None, None, epsilon=0.0, axis=axis)
    assert np.isfinite(invstd.get()).all()
    assert z.get().tobytes() == y.get().tobytes()


@several
@given(tensor=tensors(), seed=seeds)
def test_outputs_are_normalised(queue, tensor, seed) -> None:
    """Mean 0 and variance 1 in each channel, whatever came in."""
    host, axis = make(*tensor, maker=Offset(1e3), seed=seed), tensor[1]
    y = batch_norm_train(put(queue, host.x), None, None, None, None, epsilon=0.0, axis=axis)[0].get()
    channels_first = np.moveaxis(y.astype(np.float64), axis, 0).reshape(host.scale.size, -1)
    if per_channel(*tensor) < 8:
        return
    assert channels_first.mean(axis=1) == pytest.approx(np.zeros(host.scale.size), abs=1e-5)
    assert channels_first.var(axis=1) == pytest.approx(np.ones(host.scale.size), rel=1e-5)
