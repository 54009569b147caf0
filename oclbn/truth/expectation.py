"""What each operation should give on data of oclbn.truth.hostile, and how far off it may be: `oclbn check`'s measure.

The results have the names of the kernels' arguments. Of channels with a value that is not finite, the output and the
gradient must be NaN and the running statistics must be kept; of their other results nothing is asked.
"""

from __future__ import annotations

import numpy as np

from oclbn.truth import reference
from oclbn.truth.bounds import Bound
from oclbn.truth.hostile import Data, Host, per_channel

EPSILON, FACTOR = 1e-5, 0.1

Expected = dict[str, tuple[Host, Host]]  # result -> in float64: what is wanted, and the bound on the difference


def expected(operation: str, host: Data, axis: int) -> Expected:
    """For a key of oclbn.plan.operations.OPERATIONS, with scale and bias, EPSILON and FACTOR.

    "train" moves host's running statistics; "infer" and "constant" normalise with them; "backward" goes with a training
    step on the same x.
    """
    made = {"train": trained, "infer": _infer, "moments": _moments}
    if operation in made:
        return made[operation](host, axis)
    if operation == "backward":
        own = reference.train(host.x, epsilon=EPSILON, axis=axis)
        return _gradients(host, axis, own.mean, own.invstd, training=True)
    return _gradients(host, axis, host.running_mean, invstd(host), training=False)


def invstd(host: Data) -> Host:
    """1 / sqrt(running_var + EPSILON), in float64."""
    root: Host = 1.0 / np.sqrt(host.running_var.astype(np.float64) + EPSILON)
    return root


def trained(h: Data, axis: int, entered: Host | None = None) -> Expected:
    """What "train" should give; with `entered`, the counters before it, each channel has a factor of its own.

    init_factor is 1 then, and the counters after it are among the results.
    """
    given = (h.scale, h.bias, h.running_mean, h.running_var)
    wanted = reference.train(h.x, *given, epsilon=EPSILON, factor=FACTOR, axis=axis, entered=entered)
    factor = FACTOR if entered is None else np.maximum(1.0 / (entered + 1.0), FACTOR)
    bound = Bound(h.x, wanted.mean, wanted.invstd, h.scale, h.bias, axis=axis, dtype=h.x.dtype)
    count = per_channel(h.x.shape, axis)
    assert wanted.running_mean is not None
    assert wanted.running_var is not None
    sample = wanted.var * count / (count - 1)
    counters = {} if wanted.entered is None else {"entered": (wanted.entered, np.zeros(wanted.entered.shape))}
    return {
        **counters,
        "y": (wanted.y, np.nan_to_num(bound.y(), nan=0.0)),
        "save_mean": (wanted.mean, _open(h, bound.stored_mean())),
        "save_invstd": (wanted.invstd, _open(h, bound.stored_invstd())),
        "running_mean": (wanted.running_mean, _closed(h, bound.running_mean(h.running_mean, factor))),
        "running_var": (wanted.running_var, _closed(h, bound.running_var(h.running_var, sample, factor))),
    }


def _infer(h: Data, axis: int) -> Expected:
    wanted = reference.infer(h.x, h.scale, h.bias, h.running_mean, h.running_var, epsilon=EPSILON, axis=axis)
    bound = Bound(h.x, h.running_mean, invstd(h), h.scale, h.bias, axis=axis, dtype=h.x.dtype)
    return {"y": (wanted, np.nan_to_num(bound.inferred(), nan=0.0))}


def _moments(h: Data, axis: int) -> Expected:
    _, mean, m2 = reference.moments(h.x, axis=axis)
    bound = Bound(h.x, mean, np.ones_like(mean), None, None, axis=axis, dtype=h.x.dtype)
    return {"mean": (mean, _open(h, bound.stored_mean())), "m2": (m2, _open(h, bound.m2()))}


def _gradients(h: Data, axis: int, mean: Host, deviation: Host, *, training: bool) -> Expected:
    dx, dscale, dbias = reference.backward(h.x, h.dy, h.scale, mean, deviation, axis=axis, training=training)
    bound = Bound(h.x, mean, deviation, h.scale, None, axis=axis, dtype=h.x.dtype)
    bounds = bound.gradients(h.dy, training=training)
    return {
        "dx": (dx, np.nan_to_num(bounds[0], nan=0.0)),
        "dscale": (dscale, _open(h, bounds[1])),
        "dbias": (dbias, bounds[2]),
    }


def _open(h: Data, bound: Host) -> Host:
    return _at_bad(h, bound, np.inf)


def _closed(h: Data, bound: Host) -> Host:
    return _at_bad(h, bound, 0.0)


def _at_bad(h: Data, bound: Host, value: float) -> Host:
    changed = bound.copy()
    changed[list(h.bad)] = value
    return changed
