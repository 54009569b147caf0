"""Operations on data, every result against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from tolerances import assert_within

from oclbn import functional
from oclbn.functional import (
    Statistics,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    gradient,
    gradient_sums,
    merge,
    moments,
    normalize,
    statistics,
)
from oclbn.truth import reference
from oclbn.truth.bounds import Bound
from oclbn.truth.cases import GRADIENTS, TAKES, judge, run
from oclbn.truth.expectation import EPSILON, FACTOR, expected
from oclbn.truth.hostile import Data, per_channel

FOUR = ("scale", "bias", "running_mean", "running_var")


def put(queue: cl.CommandQueue, host: np.ndarray | None) -> cla.Array | None:
    return None if host is None else cla.to_device(queue, host)


def bits(array: cla.Array) -> bytes:
    return array.get().tobytes()


def all_bits(arrays: tuple[cla.Array, ...]) -> list[bytes]:
    return [bits(array) for array in arrays]


def check(
    operation: str, queue: cl.CommandQueue, host: Data, axis: int, *, absent: Collection[str] = (), **options: float
) -> None:
    """One call, every result against the reference; gradients are those after a training step on the device."""
    if operation == "infer":
        absent = {*absent} & {"scale", "bias"}  # it always has statistics
    if "ddx" in TAKES[operation]:
        host = host.pushed(axis)
    names = [name for name in TAKES[operation] if name not in absent]
    given = {name: put(queue, getattr(host, name)) for name in names}
    if host.saved:
        given |= {name: put(queue, array) for name, array in zip(("save_mean", "save_invstd"), host.saved, strict=True)}
    found = run(functional, operation, given, axis=axis, **options)
    for name, result in found.items():
        tensor = name in ("y", "dx", "gx", "gdy")
        assert result.shape == (host.x.shape if tensor else host.scale.shape), name
        assert result.dtype == (host.written if tensor else host.scale.dtype), name
    hosts = {name: result.get() for name, result in found.items()}
    worst = judge(hosts, expected(operation, host.without(absent), axis, **options))
    assert worst.good, str(worst)
    if operation == "moments":
        assert functional.moments(given["x"], axis=axis)[0] == per_channel(host.x.shape, axis)
        assert (hosts["m2"][host.good] >= 0).all()
    if operation == "train":
        for channel in host.bad:
            assert not np.isfinite(hosts["save_mean"][channel] * hosts["save_invstd"][channel])


def foreign(host: Data, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Statistics that are not those of x."""
    own = reference.train(host.x, axis=axis)
    return (own.mean + 0.25).astype(host.scale.dtype), (own.invstd * 1.5).astype(host.scale.dtype)


def fixed(host: Data) -> Data:
    """With constants to be given as a mean and the reciprocal of a deviation."""
    return replace(host, saved=(host.running_mean, (1 / np.sqrt(host.running_var)).astype(host.scale.dtype)))


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


def check_in_parts(queue: cl.CommandQueue, host: Data, axis: int, cuts: Sequence[int] = (1,)) -> None:
    """A batch that lies in parts along `cuts`: all results of the parts are within the bounds of calls on the whole."""
    ends = [0, *cuts, host.x.shape[0]]
    pieces = [slice(*pair) for pair in itertools.pairwise(ends)]
    xs, dys = ([put(queue, np.ascontiguousarray(a[piece])) for piece in pieces] for a in (host.x, host.dy))
    scale, bias = put(queue, host.scale), put(queue, host.bias)
    running = [put(queue, a) for a in (host.running_mean, host.running_var)]
    whole = merge(*(statistics(x, axis=axis) for x in xs))
    check_statistics(whole, host, axis)
    ys = [normalize(x, whole, scale, bias, epsilon=EPSILON, axis=axis).get() for x in xs[1:]]
    first = normalize(xs[0], whole, scale, bias, *running, epsilon=EPSILON, factor=FACTOR, axis=axis).get()
    sums = merge(*(gradient_sums(x, dy, whole, axis=axis) for x, dy in zip(xs, dys, strict=True)))
    made = [gradient(x, dy, whole, sums, scale, epsilon=EPSILON, axis=axis) for x, dy in zip(xs, dys, strict=True)]
    found = {"y": np.concatenate([first, *ys]), "running_mean": running[0].get(), "running_var": running[1].get()}
    worst = judge(found, expected("train", host, axis))
    assert worst.good, str(worst)
    found = dict(
        zip(GRADIENTS, (np.concatenate([one[0].get() for one in made]), *(a.get() for a in made[0][1:])), strict=True)
    )
    worst = judge(found, expected("backward", host, axis))
    assert worst.good, str(worst)
    for one in made[1:]:
        assert all_bits(one[1:]) == all_bits(made[0][1:])
