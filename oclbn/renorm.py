"""Batch renormalization without state: training on small batches as evaluation will be.

    r = sigma / running_sigma,              no less than 1 / r_max and no more than r_max
    d = (mean - running_mean) / running_sigma,   no less than -d_max and no more than d_max
    y = f((x' r + d) scale + bias + residual),   x' = (x - mean) / sigma

mean and sigma = sqrt(var + epsilon) being those of the batch, running_sigma = sqrt(running_var + epsilon) with the
running statistics as they are before the batch moves them. r and d are constants of the gradient. With r_max 1 and
d_max 0 that is batch normalization; evaluation is batch_norm_infer.

Arrays, order in memory and in time, and errors: as in oclbn.functional, whose `bind` takes these functions as well.
Source: S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017
(arXiv:1702.03275), algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pyopencl.array import Array

from oclbn.call import arguments, fusing, overlap, packed
from oclbn.call.calls import Call, Empty, Several
from oclbn.call.copying import copying
from oclbn.call.making import (
    check,
    divisor,
    gathering_numbers,
    gradients_of,
    make,
    renorm_limits,
    together,
    training_numbers,
    wants_two,
)
from oclbn.call.operating import CALLS, operation
from oclbn.call.prepared import count_of, prepare_vector
from oclbn.call.results import per_channel_results, temporary
from oclbn.elements import numbers_of
from oclbn.errors import ArrayTypeError
from oclbn.functional import accumulation, batch_norm_train
from oclbn.steps import part_output, statistics

__all__ = ["batch_renorm_backward", "batch_renorm_train"]


@operation
def batch_renorm_train(
    x: Array,
    /,
    scale: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    epsilon: float = 1e-5,
    factor: float = 0.1,
    axis: int = 1,
    out: Array | None = None,
    order: str = "K",
    guard: bool = True,
    skipped: Array | None = None,
    entered: Array | None = None,
    init_factor: float = 1.0,
    activation: Any = None,
    residual: Array | None = None,
    estimator: str = "sample",
) -> Call[tuple[Array, Array, Array, Array, Array]]:
    """Normalise a batch with its own statistics, corrected towards the running ones, and move those.

    r_max: at least 1. d_max: at least 0. The paper begins with 1 and 0 and ends with 3 and 5. running_mean,
    running_var: C values each, which are needed here. The rest is as batch_norm_train takes it.

    Returns (y, save_mean, save_invstd, r, d): what batch_norm_train returns, and the corrections, C values each, which
    batch_renorm_backward takes. An empty batch gives NaN for them and changes nothing.

    >>> import numpy as np
    >>> from oclbn import gpuarray
    >>> x = gpuarray.to_gpu(np.float32([[1.0], [3.0]]))
    >>> mean, var = gpuarray.ones(1), gpuarray.ones(1)
    >>> y, _, _, r, d = batch_renorm_train(x, None, None, mean, var, epsilon=0.0)
    >>> print(y.get().ravel(), r.get(), d.get())
    [0. 2.] [1.] [1.]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    count = count_of(x, axis)
    limits = renorm_limits(r_max, d_max)
    given: dict[str, Array | None] = {"scale": scale, "bias": bias}
    running = {"running_mean": running_mean, "running_var": running_var}
    given |= {**running, "skipped": skipped, "entered": entered}
    fused = fusing.before(activation, residual)
    given |= fused.tensors
    numbers = training_numbers(x, epsilon, factor, init_factor, guard) | divisor(count, estimator) | fused.numbers
    for name, array in running.items():
        if array is None:
            raise ArrayTypeError(
                f"{name} is None and is needed, as the batch's statistics are corrected towards it; a "
                f"pyopencl.array.Array of {x.shape[axis]} elements is wanted"
            )
    fusion = check("train", x, axis, given, out, order, fusion=fused.fusion)
    wants_two(x, count)
    options: dict[str, Any] = {"out": out, "order": order, "fusion": fusion}
    r, d = per_channel_results(x, axis, packed.dense_model(x, scale))
    if not x.size:
        plain = CALLS[batch_norm_train](x, scale, bias, axis=axis, out=out, order=order)
        y, mean, invstd = plain.results
        return Several((y, mean, invstd, r, d), [plain, Empty(None, (r, d), float("nan"))])
    own = CALLS[statistics](x, axis=axis)
    moments = {name: getattr(own.results, name) for name in ("mean", "m2", "m2_rest")}
    scaled, correcting = _corrected(
        x, axis, {**moments, **running}, scale, bias, (r, d), {"count": count, "epsilon": numbers["epsilon"], **limits}
    )
    numbers["count"] = count
    options |= {"returns": together, "like": scaled["scale"]}
    main = part_output(x, axis, {**given, **scaled}, own.results, numbers, **options)
    y, mean, invstd = main.results
    return Several((y, mean, invstd, r, d), [own, *correcting, main])


@operation
def batch_renorm_backward(
    x: Array,
    dy: Array,
    /,
    scale: Array | None = None,
    save_mean: Array | None = None,
    save_invstd: Array | None = None,
    r: Array | None = None,
    d: Array | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
    order: str = "K",
    scale_grad: Array | None = None,
    bias_grad: Array | None = None,
    grad_scale: float = 1.0,
    grad_momentum: float = 0.0,
    activation: Any = None,
    bias: Array | None = None,
    y: Array | None = None,
    residual: Array | None = None,
    dresidual: bool | Array = False,
) -> Call[tuple[Array, ...]]:
    """Gradients of batch_renorm_train, whose r and d are constants.

    dbias = sum(dy), dscale = r sum(dy x') + d dbias, dx = scale r save_invstd (dy - dbias / m - x' sum(dy x') / m).

    save_mean, save_invstd, r, d: as batch_renorm_train returns them. The rest is as batch_norm_backward takes it.
    Returns (dx, dscale, dbias), and with dresidual that as well.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    vectors = {"r": r, "d": d}
    arguments.per_channel(x, axis, vectors, vectors, vectors)
    assert r is not None
    assert d is not None
    gathered: dict[str, Array | None] = {"scale_grad": scale_grad, "bias_grad": bias_grad}
    given: dict[str, Array | None] = {"dy": dy, "scale": scale, "bias": bias}
    given |= {"save_mean": save_mean, "save_invstd": save_invstd}
    fused = fusing.behind(activation, y, residual, dresidual)
    given |= fused.tensors
    gathering = gathering_numbers(x, grad_scale, grad_momentum)
    fusion = check("backward", x, axis, given | gathered, out, order, ("save_mean", "save_invstd"), fused.fusion)
    writes = {**gathered, "out": out, "dresidual": fused.tensors.get("dresidual")}
    overlap.exclusive({name: one for name, one in writes.items() if one is not None}, {"r": r, "d": d})
    options: dict[str, Any] = {"out": out, "order": order, "fusion": fusion}
    options |= {"returns": gradients_of(fusion, dy, dresidual)}
    if not x.size:
        gather = functools.partial(accumulation, scale=gathering["grad_scale"], momentum=gathering["grad_momentum"])
        return make("backward", x, axis, given | gathered, gathering, like=scale, gather=gather, **options)
    corrections = {"mean": None, "m2": None, "m2_rest": None, "running_mean": None, "running_var": None}
    numbers = {"count": 1, "epsilon": 0.0, "r_max": 1.0, "d_max": 0.0}
    scaled, correcting = _corrected(x, axis, corrections, scale, bias, (r, d), numbers)
    given |= {**scaled, "scale_grad": None, "bias_grad": None}
    # what is gathered by it would be r too small, and is gathered by the last launch, so that no other one changes it
    main = make("backward", x, axis, given, gathering | fused.numbers, like=scaled["scale"], **options)
    came = {"r": r, "d": d, **{name: one for name, one in gathered.items() if one is not None}}
    own, copies = packed.vectors(x, came)
    into = {name: own.get(name) for name in gathered}
    arrays: dict[str, Array | None] = {**own, "dscale": main.results[1], "dbias": main.results[2], **into}
    prepared = prepare_vector("renorm_gradient", main.results[1], "channels")
    last: Call[None] = Call(None, prepared, x, arrays, gathering, (main.results[1], *into.values()))
    there = [name for name in gathered if name in came]
    after = [copying(x, own[name], came[name]) for name in there if own[name] is not came[name]]
    kept = {name: temporary(x, came[name].shape, came[name].dtype) for name in (there if after else ())}
    keeping = [copying(x, came[name], old) for name, old in kept.items()]
    undo = [copying(x, old, came[name]) for name, old in kept.items()]
    return packed.Packed(main.results, came, [*correcting, *copies, *keeping, main], last, after, undo)


def _corrected(
    x: Array,
    axis: int,
    found: Mapping[str, Array | None],
    scale: Array | None,
    bias: Array | None,
    corrections: tuple[Array, Array],
    numbers: Mapping[str, Any],
) -> tuple[dict[str, Array], list[Call[Any]]]:
    """Scale and bias with the corrections, and the calls that make them; `found` is what corrections are made of."""
    dtype, shape = numbers_of(x.dtype), (x.shape[axis],) if scale is None else scale.shape
    made = {"scale": temporary(x, shape, dtype), "bias": temporary(x, shape, dtype)}
    given = {**found, "scale": scale, "bias": bias, "r": corrections[0], "d": corrections[1]}
    own, copies = packed.vectors(x, {name: array for name, array in given.items() if array is not None})
    arrays: dict[str, Array | None] = {**given, **own, "scale_r": made["scale"], "bias_d": made["bias"]}
    prepared = prepare_vector("renorm", made["scale"], "channels")
    written = (*made.values(), *corrections) if found["running_var"] is not None else tuple(made.values())
    return made, [*copies, Call(None, prepared, x, arrays, numbers, written)]
