"""What each operation should give, and how far off it may be, within oclbn.truth.bounds.

The results have the names of the kernels' arguments. Of channels with a value that is not finite, the output and the
gradient must be NaN and the running statistics must be kept; of their other results nothing is asked.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from oclbn.elements import numbers_of, range_of
from oclbn.truth import reference
from oclbn.truth.activated import (
    activated,
    activated_bound,
    derivative,
    derivative_bound,
    derivative_by_output,
    derivative_by_output_bound,
)
from oclbn.truth.bounds import Bound, stored
from oclbn.truth.hostile import Data, Host, along, per_channel

EPSILON, FACTOR = 1e-5, 0.1

Expected = dict[str, tuple[Host, Host]]  # result -> in float64: what is wanted, and the bound on the difference


def expected(
    operation: str,
    host: Data,
    axis: int,
    *,
    epsilon: float = EPSILON,
    factor: float = FACTOR,
    entered: Host | None = None,
) -> Expected:
    """For a key of oclbn.plan.operations.OPERATIONS.

    "train" moves host's running statistics; with `entered`, the counters before it, each channel has a factor of its
    own (init_factor is 1 then), and the counters after it are among the results. "infer" and "constant" normalise with
    the running statistics, and so does "double_constant". "backward" and "double_backward" go with a training step on
    the same x. Where host has statistics that were saved, gradients take those. Of several groups "train" and
    "backward" give saved statistics of shape (groups, C), running ones that each has moved, and sums over all.
    """
    if host.groups > 1:
        return _in_groups(operation, host, axis, epsilon, factor, entered)
    if operation == "train":
        return _train(host, axis, epsilon, factor, entered)
    if operation == "infer":
        return _infer(host, axis, epsilon)
    if operation == "given":
        return _given(host, axis)
    if operation == "moments":
        return _moments(host, axis)
    if operation == "sums":
        return _sums(host, axis)
    training = operation in ("backward", "double_backward")
    if host.saved:
        mean, deviation = host.saved
    elif training:
        own = reference.train(host.x, epsilon=epsilon, axis=axis)
        mean, deviation = own.mean, own.invstd
    else:
        mean, deviation = host.running_mean, invstd(host, epsilon)
    if operation.startswith("double"):
        return _double(host, axis, mean, deviation, training=training)
    exact = host.saved is not None or not training
    return _gradients(host, axis, mean, deviation, training=training, exact=exact)


def _in_groups(operation: str, h: Data, axis: int, epsilon: float, factor: float, entered: Host | None) -> Expected:
    """Of one batch after the other; what they move or add up may be off by as much as all of them make it."""
    each: list[Expected] = []
    moved = {name: (getattr(h, name), np.zeros(h.scale.shape)) for name in ("running_mean", "running_var")}
    for one in h.batches(axis):
        state = {name: values for name, (values, _) in moved.items()}
        found = expected(operation, replace(one, **state), axis, epsilon=epsilon, factor=factor, entered=entered)
        each.append(found)
        moved = {
            name: (found[name][0], before + found[name][1]) for name, (_, before) in moved.items() if name in found
        }
        entered = found["entered"][0] if "entered" in found else entered
    whole: Expected = {}
    for name in each[0]:
        values, bounds = zip(*(found[name] for found in each), strict=True)
        if name in ("dscale", "dbias"):
            eps = range_of(numbers_of(h.x.dtype)).eps
            whole[name] = sum(values), sum(bounds) + eps * sum(np.abs(one) for one in values)
        elif name in moved or name == "entered":
            whole[name] = moved.get(name, each[-1][name])
        else:
            join = np.stack if name.startswith("save") else np.concatenate
            whole[name] = join(values), join(bounds)
    return whole


def _sums(h: Data, axis: int) -> Expected:
    """Of dy, dy (x - mean) and x - mean, each with its rest, mean being the one that is saved."""
    mean, deviation = h.saved or saved(h, axis)
    ones, result = np.ones(mean.size), {}
    bound = Bound(h.x, mean, ones, None, None, axis=axis, dtype=h.x.dtype)
    used, error = _used(h, axis, mean, deviation, exact=True)
    for name, dy, off in (("sum_dy_xmu", used, error), ("sum_xmu", np.ones_like(used), np.zeros_like(used))):
        _, product, total = reference.backward(h.x, dy, None, mean, ones, axis=axis, training=False)
        _, product_bound, total_bound = bound.gradients(dy, training=False, error=off)
        result[f"{name} + {name}_rest"] = product, _open(h, product_bound)
        if dy is used:
            result["sum_dy + sum_dy_rest"] = total, _bias_bound(h, total_bound)
    return result


def invstd(host: Data, epsilon: float = EPSILON) -> Host:
    """1 / sqrt(running_var + epsilon), in float64."""
    root: Host = 1.0 / np.sqrt(host.running_var.astype(np.float64) + epsilon)
    return root


def saved(host: Data, axis: int) -> tuple[Host, Host]:
    """x's own statistics in its element type, as an exact training step would save them: mean and 1 / deviation."""
    if host.groups > 1:
        mean, deviation = zip(*(saved(one, axis) for one in host.batches(axis)), strict=True)
        return np.stack(mean), np.stack(deviation)
    own = reference.train(host.x, epsilon=EPSILON, axis=axis)
    return own.mean.astype(host.scale.dtype), own.invstd.astype(host.scale.dtype)


def _train(h: Data, axis: int, epsilon: float, factor: float, entered: Host | None) -> Expected:
    given = (h.scale, h.bias, h.running_mean, h.running_var)
    wanted = reference.train(h.x, *given, epsilon=epsilon, factor=factor, axis=axis, entered=entered)
    weight = factor if entered is None else np.maximum(1.0 / (entered + 1.0), factor)
    bound = Bound(h.x, wanted.mean, wanted.invstd, h.scale, h.bias, axis=axis, dtype=h.x.dtype)
    count = per_channel(h.x.shape, axis)
    assert wanted.running_mean is not None
    assert wanted.running_var is not None
    sample = wanted.var * count / (count - 1)
    counters = {} if wanted.entered is None else {"entered": (wanted.entered, np.zeros(wanted.entered.shape))}
    return {
        **counters,
        "y": _output(h, wanted.y, bound.y()),
        "save_mean": (wanted.mean, _open(h, bound.stored_mean())),
        "save_invstd": (wanted.invstd, _open(h, bound.stored_invstd())),
        "running_mean": (wanted.running_mean, _closed(h, bound.running_mean(h.running_mean, weight))),
        "running_var": (wanted.running_var, _closed(h, bound.running_var(h.running_var, sample, weight))),
    }


def _infer(h: Data, axis: int, epsilon: float) -> Expected:
    wanted = reference.infer(h.x, h.scale, h.bias, h.running_mean, h.running_var, epsilon=epsilon, axis=axis)
    bound = Bound(h.x, h.running_mean, invstd(h, epsilon), h.scale, h.bias, axis=axis, dtype=h.x.dtype)
    return {"y": _output(h, wanted, bound.inferred())}


def _given(h: Data, axis: int) -> Expected:
    """With the statistics that are saved, or would be."""
    mean, deviation = h.saved or saved(h, axis)
    with np.errstate(all="ignore"):
        exact = (h.x.astype(np.float64) - along(mean.astype(np.float64), h.x.shape, axis)) * along(
            deviation.astype(np.float64), h.x.shape, axis
        )
    bound = Bound(h.x, mean, deviation, None, None, axis=axis, dtype=h.x.dtype)
    return {"y": stored(exact, _strict(bound.inferred()), h.written)}


def _moments(h: Data, axis: int) -> Expected:
    _, mean, m2 = reference.moments(h.x, axis=axis)
    bound = Bound(h.x, mean, np.ones_like(mean), None, None, axis=axis, dtype=h.x.dtype)
    return {"mean": (mean, _open(h, bound.stored_mean())), "m2": (m2, _open(h, bound.m2()))}


def _output(h: Data, z: Host, room: Host) -> tuple[Host, Host]:
    """y, where batch normalization gives z, which may be off by so much."""
    z, room = _with_residual(h, z, room)
    info = range_of(numbers_of(h.x.dtype))
    if h.weights is not None and h.offsets is not None:
        with np.errstate(all="ignore"):
            product, offsets = z * h.weights.astype(np.float64), h.offsets.astype(np.float64)
            room = room * np.abs(h.weights.astype(np.float64)) + info.eps * (np.abs(product) + np.abs(offsets))
            z = product + offsets
    if h.activation.code:
        room = activated_bound(z, h.loose * room, h.activation, info.eps, info.tiny)
        z = activated(z, h.activation)
    return stored(z, _strict(room), h.written)


def _with_residual(h: Data, z: Host, room: Host) -> tuple[Host, Host]:
    if h.residual is None:
        return z, room
    with np.errstate(all="ignore"):
        residual = h.residual.astype(np.float64)
        both = z + residual
        eps = range_of(numbers_of(h.x.dtype)).eps
        return both, room + eps * (np.abs(z) + np.abs(residual))


def _gradients(h: Data, axis: int, mean: Host, deviation: Host, *, training: bool, exact: bool) -> Expected:
    """exact: mean and deviation are what the device is given, and not what it has rounded."""
    dy, error = _used(h, axis, mean, deviation, exact=exact)
    dx, dscale, dbias = reference.backward(h.x, dy, h.scale, mean, deviation, axis=axis, training=training)
    bound = Bound(h.x, mean, deviation, h.scale, None, axis=axis, dtype=h.x.dtype)
    bounds = bound.gradients(dy, training=training, error=error)
    written = stored(dx, _strict(bounds[0]), h.written)
    result = {"dx": written, "dscale": (dscale, _open(h, bounds[1])), "dbias": (dbias, _bias_bound(h, bounds[2]))}
    if h.second:
        room = error + range_of(numbers_of(h.x.dtype)).tiny
        result["dresidual"] = stored(dy, _strict(room), h.written)
    return result


def _double(h: Data, axis: int, mean: Host, deviation: Host, *, training: bool) -> Expected:
    """What is None of what the second derivative takes is 0."""
    zeros = np.zeros_like(h.scale)
    slope, offset = (zeros if one is None else one for one in (h.ddscale, h.ddbias))
    given = (h.x, h.dy, h.scale, mean, deviation)
    gx, gdy, gscale = reference.double_backward(*given, h.ddx, slope, offset, axis=axis, training=training)
    bound = Bound(h.x, mean, deviation, h.scale, None, axis=axis, dtype=h.x.dtype)
    push = np.zeros_like(h.dy) if h.ddx is None else h.ddx
    bounds = bound.double_gradients(h.dy, push, slope, ddbias=offset, training=training)
    found = {"gx": stored(gx, _strict(bounds[0]), h.written), "gdy": stored(gdy, _strict(bounds[1]), h.written)}
    return found | {"gscale": (gscale, _open(h, bounds[2]) if training else bounds[2])}


def _used(h: Data, axis: int, mean: Host, deviation: Host, *, exact: bool) -> tuple[Host, Host]:
    """What is used of dy behind an activation, and how far off it may be."""
    dy = h.dy.astype(np.float64)
    if h.weights is not None:
        used = dy * h.weights.astype(np.float64)
        return used, range_of(numbers_of(h.x.dtype)).eps * np.abs(used)
    if not h.activation.code:
        return dy, np.zeros(dy.shape)
    info = range_of(numbers_of(h.x.dtype))
    eps, tiny = info.eps, info.tiny
    with np.errstate(all="ignore"):
        if h.output is not None:
            factor = derivative_by_output(h.output, h.activation)
            off = derivative_by_output_bound(h.output, h.activation, eps, tiny)
        else:
            centre = np.asarray(mean, np.float64)
            scale, root = (along(a, h.x.shape, axis) for a in (h.scale.astype(np.float64), deviation))
            z = (h.x.astype(np.float64) - along(centre, h.x.shape, axis)) * (scale * root)
            z = z + along(h.bias.astype(np.float64), h.x.shape, axis)
            bound = Bound(h.x, mean, deviation, h.scale, h.bias, axis=axis, dtype=h.x.dtype)
            room = (
                bound.inferred()
                if exact
                else bound.y() + along(eps * np.abs(centre * h.scale * deviation), h.x.shape, axis)
            )
            z, room = _with_residual(h, z, room)
            factor = derivative(z, h.activation)
            off = derivative_bound(z, h.loose * room, h.activation, eps, tiny)
        used = np.where(factor == 0, 0.0, dy * factor)
        return used, np.abs(dy) * off + eps * np.abs(used) * (h.activation.code > 2)


def _bias_bound(h: Data, bound: Host) -> Host:
    """Without an activation a bad channel's sum of dy is one like the others'."""
    return _open(h, bound) if h.activation.code else bound


def _strict(bound: Host) -> Host:
    """Where statistics are not finite there is no bound: NaN must be NaN."""
    return np.nan_to_num(bound, nan=0.0)


def _open(h: Data, bound: Host) -> Host:
    return _at_bad(h, bound, np.inf)


def _closed(h: Data, bound: Host) -> Host:
    return _at_bad(h, bound, 0.0)


def _at_bad(h: Data, bound: Host, value: float) -> Host:
    changed = bound.copy()
    changed[list(h.bad)] = value
    return changed
