"""Operations on data, every result against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from tolerances import assert_within

from oclbn.functional import (
    Statistics,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    moments,
)
from oclbn.truth import reference
from oclbn.truth.bounds import Bound
from oclbn.truth.hostile import Data, per_channel

FOUR = ("scale", "bias", "running_mean", "running_var")


def put(queue: cl.CommandQueue, host: np.ndarray | None) -> cla.Array | None:
    return None if host is None else cla.to_device(queue, host)


def bits(array: cla.Array) -> bytes:
    return array.get().tobytes()


def all_bits(arrays: tuple[cla.Array, ...]) -> list[bytes]:
    return [bits(array) for array in arrays]


def check_training(
    queue: cl.CommandQueue,
    host: Data,
    axis: int,
    *,
    absent: frozenset[str] | set[str] = frozenset(),
    **options: Any,
) -> None:
    """One training step, every result against the reference."""
    given = {name: None if name in absent else getattr(host, name) for name in FOUR}
    expected = reference.train(host.x, *given.values(), axis=axis, **options)
    arrays = {name: put(queue, array) for name, array in given.items()}
    y, save_mean, save_invstd = batch_norm_train(put(queue, host.x), *arrays.values(), axis=axis, **options)

    factor = options.get("factor", 0.1)
    bound = Bound(host.x, expected.mean, expected.invstd, given["scale"], given["bias"], axis=axis, dtype=host.x.dtype)
    good = host.good
    with np.errstate(all="ignore"):
        y_bound = np.nan_to_num(bound.y(), nan=0.0)  # a bad channel must be NaN: nothing else fits it
    assert y.shape == host.x.shape
    assert y.dtype == host.x.dtype
    assert_within(y, expected.y, y_bound, "y")
    assert save_mean.shape == save_invstd.shape == host.scale.shape
    assert save_mean.dtype == save_invstd.dtype == host.x.dtype
    assert_within(save_mean.get()[good], expected.mean[good], bound.stored_mean()[good], "save_mean")
    assert_within(save_invstd.get()[good], expected.invstd[good], bound.stored_invstd()[good], "save_invstd")
    for channel in host.bad:
        assert not np.isfinite(save_mean.get()[channel] * save_invstd.get()[channel])
    if arrays["running_mean"] is not None:
        limit = bound.running_mean(host.running_mean, factor)
        limit[list(host.bad)] = 0.0
        assert_within(arrays["running_mean"], expected.running_mean, limit, "running_mean")
    if arrays["running_var"] is not None:
        count = per_channel(host.x.shape, axis)
        limit = bound.running_var(host.running_var, expected.var * count / (count - 1), factor)
        limit[list(host.bad)] = 0.0
        assert_within(arrays["running_var"], expected.running_var, limit, "running_var")


def check_backward(queue: cl.CommandQueue, host: Data, axis: int, *, scale: bool = True) -> None:
    """Gradients after a training step: the device gets its own saved statistics, the reference exact ones."""
    forward = reference.train(host.x, axis=axis)
    given = host.scale if scale else None
    expected = reference.backward(host.x, host.dy, given, forward.mean, forward.invstd, axis=axis)
    x, gamma = put(queue, host.x), put(queue, given)
    _, save_mean, save_invstd = batch_norm_train(x, gamma, None, None, None, axis=axis)
    results = batch_norm_backward(x, put(queue, host.dy), gamma, save_mean, save_invstd, axis=axis)
    bound = Bound(host.x, forward.mean, forward.invstd, given, None, axis=axis, dtype=host.x.dtype)
    check_gradients(results, expected, bound.gradients(host.dy, training=True), host)


def check_gradients(results: Any, expected: Any, bounds: Any, host: Data) -> None:
    dx, dscale, dbias = results
    assert dx.shape == host.x.shape
    assert dscale.shape == dbias.shape == host.scale.shape
    assert dx.dtype == dscale.dtype == dbias.dtype == host.x.dtype
    good = host.good
    assert_within(dbias.get()[good], expected[2][good], bounds[2][good], "dbias")
    assert_within(dscale.get()[good], expected[1][good], bounds[1][good], "dscale")
    assert_within(dx, expected[0], np.nan_to_num(bounds[0], nan=0.0), "dx")


def foreign(host: Data, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Statistics that are not those of x."""
    own = reference.train(host.x, axis=axis)
    return (own.mean + 0.25).astype(host.x.dtype), (own.invstd * 1.5).astype(host.x.dtype)


def check_inference(
    queue: cl.CommandQueue, host: Data, axis: int, *, epsilon: float = 1e-5, absent: frozenset[str] = frozenset()
) -> None:
    scale, bias = (None if name in absent else getattr(host, name) for name in ("scale", "bias"))
    mean, var = host.running_mean, host.running_var
    expected = reference.infer(host.x, scale, bias, mean, var, epsilon=epsilon, axis=axis)
    arrays = [put(queue, array) for array in (host.x, scale, bias, mean, var)]
    y = batch_norm_infer(*arrays, epsilon=epsilon, axis=axis)
    invstd = 1 / np.sqrt(var.astype(np.float64) + epsilon)
    bound = Bound(host.x, mean, invstd, scale, bias, axis=axis, dtype=host.x.dtype)
    assert y.shape == host.x.shape
    assert y.dtype == host.x.dtype
    assert_within(y, expected, np.nan_to_num(bound.inferred(), nan=0.0), "y")


def check_constant_backward(queue: cl.CommandQueue, host: Data, axis: int) -> None:
    mean, invstd = host.running_mean, (1 / np.sqrt(host.running_var)).astype(host.x.dtype)
    expected = reference.backward(host.x, host.dy, host.scale, mean, invstd, axis=axis, training=False)
    arrays = [put(queue, array) for array in (host.x, host.dy, host.scale, mean, invstd)]
    results = batch_norm_backward(*arrays, axis=axis, training=False)
    bound = Bound(host.x, mean, invstd, host.scale, None, axis=axis, dtype=host.x.dtype)
    check_gradients(results, expected, bound.gradients(host.dy, training=False), host)


def check_moments(queue: cl.CommandQueue, host: Data, axis: int) -> None:
    expected_count, expected_mean, expected_m2 = reference.moments(host.x, axis=axis)
    count, mean, m2 = moments(put(queue, host.x), axis=axis)
    ones = np.ones_like(expected_mean)
    bound = Bound(host.x, expected_mean, ones, None, None, axis=axis, dtype=host.x.dtype)
    good = host.good
    assert count == expected_count
    assert mean.shape == m2.shape == host.scale.shape
    assert_within(mean.get()[good], expected_mean[good], bound.stored_mean()[good], "mean")
    assert_within(m2.get()[good], expected_m2[good], bound.m2()[good], "m2")
    assert (m2.get()[good] >= 0).all()


def lying(queue: cl.CommandQueue, host: np.ndarray, before: int, after: int = 3) -> cla.Array:
    """The array as a view that starts `before` elements into a bigger buffer filled with NaN."""
    parent = np.full(before + host.size + after, np.nan, host.dtype)
    parent[before : before + host.size] = host.ravel()
    return cla.to_device(queue, parent)[before : before + host.size].reshape(host.shape)


def surroundings(view: cla.Array, before: int, after: int = 3) -> np.ndarray:
    """What lies around such a view."""
    whole = np.empty(before + view.size + after, view.dtype)
    cl.enqueue_copy(view.queue, whole, view.base_data)
    return np.concatenate([whole[:before], whole[before + view.size :]])


def everything(queue: cl.CommandQueue, host: Data, axis: int) -> list[bytes]:
    x, dy = put(queue, host.x), put(queue, host.dy)
    four = [put(queue, getattr(host, name)) for name in FOUR]
    forward = batch_norm_train(x, *four, axis=axis)
    backward = batch_norm_backward(x, dy, four[0], *forward[1:], axis=axis)
    return all_bits((*forward, *backward, *four, batch_norm_infer(x, *four, axis=axis), *moments(x, axis=axis)[1:]))


def arrays(one: Statistics) -> tuple[cla.Array, ...]:
    return one.mean, one.mean_rest, one.m2, one.m2_rest


def check_statistics(got: Statistics, host: Data, axis: int = 1) -> None:
    """Mean and m2, each with its rest, within the bounds of one call; what is rounded is rounded once."""
    wanted = reference.statistics(host.x, axis=axis)
    bound = Bound(host.x, wanted.mean, np.ones_like(wanted.mean), None, None, axis=axis, dtype=host.x.dtype)
    good = host.good
    mean, mean_rest, m2, m2_rest = (array.get()[good] for array in arrays(got))
    assert got.count == wanted.count
    distance = (mean - wanted.mean[good]) + mean_rest.astype(np.float64)
    assert_within(distance, wanted.mean_rest[good], bound.mean_with_rest()[good], "mean")
    assert_within(m2.astype(np.float64) + m2_rest, wanted.m2[good], bound.m2()[good], "m2")
    assert (np.abs(mean_rest) <= np.spacing(np.abs(mean)) / 2).all()
    assert (np.abs(m2_rest) <= np.spacing(np.abs(m2)) / 2).all()
