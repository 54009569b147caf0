"""Batch normalization without state, on pyopencl.array.Array.

Shapes: x is (N, C) or (N, C, *spatial), C channels on `axis`; per-channel arrays hold C elements in any shape.
Per-channel results have scale's shape, or (C,) where scale is None.

Dtypes: x is float32, float16, ml_dtypes.bfloat16, or float64 where the device has it. Everything that is summed, and
per-channel arrays, are float32, and float64 where x is. Results of x's shape have x's dtype. Where x is float16 or
bfloat16, dy and `out` may be float32 as well, and parameters (scale, bias, running_mean, running_var, mean, var) may
have x's dtype: they are computed with as float32, and rounded once where they are moved in place.

Order in memory: any strides and offsets of every array, each in an order of its own; what is written may not name an
element twice. Kernels take what they can as it lies; all else, which `explain` tells, a call packs into temporaries on
the device before, and unpacks where it writes. The tensor that comes back has no gaps: with order="K" it lies as an x
without gaps does, whatever the order of its axes, and in C order for any other x; with order="C" always in C order.
pyopencl reads arrays with `.get()`, prints and adds them in C or Fortran order only, and mixes up the elements of two
that lie in different ones: for an x in any other order than C's, order="C" or oclbn.gpuarray.pack gives what it takes.

Order in time: work is enqueued on x.queue and waits for the events of every array that it touches; results and arrays
written in place carry the new event, so that queues out of order and several queues are safe. (pyopencl's
`array -= number` leaves no event: on a queue that is out of order say `array += -number`.)

Memory: results come from x's allocator. Where that is a pool, hold them until the work is done: like any array of
pyopencl's, what is let go of is handed out again at once.

Errors, all of oclbn.errors and raised before anything is allocated or changed: ArrayTypeError, DtypeError, ShapeError,
ContextError, ParameterError, OverlapError, ReadOnlyError; SizeError where the device cannot hold a result.
DeviceError, where a command that writes one of the arrays is seen to have failed, names the array, and nothing is done.
Where the driver fails, it names the call and what the driver said; where a launch fails, everything written in place is
as it was, but for an `out`, and an array for dresidual, that a launch before has filled: of batch_norm_backward with
constants, of calls with groups, of batch_renorm_backward, with outside="x" or nothing inside, and of a call that then
unpacks arrays of a number per channel.

Formulas: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", 2015 (arXiv:1502.03167), algorithm 1 and section 3; develop/numbers.md of docs/pages tells how they
are rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from pyopencl.array import Array

from oclbn import names
from oclbn.call import arguments, fusing, masks, overlap, packed, results, selected, values
from oclbn.call.ahead import prepare
from oclbn.call.calls import Call, Empty
from oclbn.call.copying import copying
from oclbn.call.making import (
    check,
    divisor,
    gathering_numbers,
    gradients_of,
    make,
    taken_off,
    training_numbers,
    wants_two,
)
from oclbn.call.operating import CALLS, operation
from oclbn.call.order import recording
from oclbn.call.prepared import (
    check_type,
    count_of,
    prepare_vector,
    prepared_for,
)
from oclbn.call.results import queue_of
from oclbn.device import driver_errors
from oclbn.errors import ContextError, ParameterError, ShapeError
from oclbn.plan.operations import BATCHES, OPERATIONS, operation_of
from oclbn.plan.words import ALONE, Fusion, in_words
from oclbn.steps import GradientSums, Statistics, gradient, gradient_sums, merge, move_running, normalize, statistics

__all__ = [
    "GradientSums",
    "Statistics",
    "accumulate",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "batch_norm_infer",
    "batch_norm_train",
    "bind",
    "explain",
    "gradient",
    "gradient_sums",
    "merge",
    "moments",
    "move_running",
    "normalize",
    "prepare",
    "recording",
    "result_like",
    "statistics",
]


P = ParamSpec("P")
R = TypeVar("R")

if not TYPE_CHECKING:  # checkers would take every name for one that is there
    __getattr__ = names.lacking(__name__)


@operation
def batch_norm_train(
    x: Array,
    /,
    scale: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
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
    groups: int = 1,
    mask: Any = None,
    lengths: Any = None,
    outside: str = "zero",
) -> Call[tuple[Array, Array, Array]]:
    """Normalise a batch with its own statistics, and move the running ones.

    By position scale and bias come before the statistics; PyTorch has them behind: say which is which by keyword.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, var being the population variance (divided by m, the number of
    values per channel); running = (1 - factor) * running + factor * batch, with the sample variance (by m - 1), or with
    estimator="population" with that by m: with factor 1 the batch replaces what was there, even NaN, with factor 0 and
    no `entered` nothing changes.

    x: (N, C, *spatial), channels on `axis`. scale, bias: C values, or None for 1 and 0. running_mean, running_var: C
    values that are updated in place, or None. epsilon: at least 0. factor: 0 to 1. out: an array of x's shape for
    y, which must not overlap x; it may be the residual itself. order: of y in memory where there is no out, "K" or "C".
    guard: a channel whose batch statistics are not finite keeps its running statistics; skipped: uint32, C counters
    that then go up by one, in place.

    entered: uint32, C counters of the batches that the running statistics are of, which go up by one where these move:
    the factor of a channel is then max(init_factor / n, factor), n counting this batch as well. So running statistics
    are an average over the batches, without those that the guard left out, until 1 / n is below `factor`. init_factor:
    0 to 1.

    activation, residual: y = f(bn(x) + residual), by the same kernels, so that y is the only tensor that is written.
    activation: None, "relu", "relu6", "leaky_relu" (0.01 x below 0), "elu" (alpha 1), "silu", "sigmoid", "tanh",
    "gelu" (with the normal distribution), "gelu_tanh", "hardswish", "softplus", or a pair of a name and its number,
    as ("leaky_relu", 0.2) and ("elu", 0.5). residual: an array of x's shape, of x's dtype or float32 where that is
    narrower, or None.

    groups: so many batches are made of x's samples, which lie on axis 0, each normalised with statistics of its own, by
    the same kernels: the first N % groups of N // groups + 1 samples, the others of one less, as np.array_split parts
    them. Running statistics are moved by one after the other, and save_mean and save_invstd have shape (groups, C).
    With N groups that is instance normalization. E. Hoffer et al., "Train longer, generalize better", 2017
    (arXiv:1705.08741), call them ghost batches.

    mask, lengths: which positions count, a position being an element's indices but that of its channel; one of the two,
    or None for all. Statistics, counts and running statistics are those of the values inside, and what lies outside
    never matters, NaN included: it is as if there were nothing but the values inside, in a tensor of shape (1, C, M),
    or (M, C) where channels are the fastest of x's axes, bit for bit. mask: a NumPy or device array of bool or uint8,
    true inside, of x's shape without the axis of channels, or with 1 there. lengths: for x of one axis beside channels
    and samples (axis 0), N integers: of sample n the first lengths[n] positions are inside. Both are read on the host,
    which waits for device arrays; `bind` takes them as they are then. outside: what y is there, "zero", or "x": as x
    is, in y's dtype. Where nothing is inside the statistics are NaN, and nothing moves; one position is a ShapeError.

    Returns (y, save_mean, save_invstd): y like x, which `.get()` reads in C or Fortran order only; the batch's mean and
    1 / sqrt(var + epsilon), which batch_norm_backward takes. An empty batch gives an empty y and NaN statistics and
    changes nothing. One value per channel is a ShapeError: it has no variance.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> y, mean, invstd = batch_norm_train(x, epsilon=0.0)
    >>> print(y.get(), mean.get(), invstd.get())
    [[-1. -1.]
     [ 1.  1.]] [ 2. 20.] [1.  0.1]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.chosen(x, axis, mask, lengths, outside)
    groups = masks.groups_of(groups, x, axis, selection)
    count = count_of(x, axis) if selection is None else selection.count
    given = {
        "scale": scale,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
        "skipped": skipped,
        "entered": entered,
    }
    fused = fusing.before(activation, residual)
    given |= fused.tensors
    numbers = training_numbers(x, epsilon, factor, init_factor, guard) | divisor(count, estimator) | fused.numbers
    operation = "train" if groups == 1 else "train_batches"
    fusion = check(operation, x, axis, given, out, order, fusion=fused.fusion)
    wants_two(x, count, "" if selection is None else "mask" if lengths is None else "lengths")
    if groups > 1:
        numbers["taken"] = taken_off(estimator)
        if x.size and count // x.shape[0] * (x.shape[0] // groups) == 1:
            raise ShapeError(
                f"x has shape {x.shape} and groups is {groups}: one value per channel in a group has no variance; "
                "training wants at least two"
            )
        if all(given[name] is None for name in ("running_mean", "running_var", "skipped", "entered")):
            fusion = fusion._replace(apart=True)
    options: dict[str, Any] = {"out": out, "order": order, "like": scale, "fusion": fusion, "groups": groups}
    return make(operation, x, axis, given, numbers, selection=selection, **options)


@operation
def batch_norm_infer(
    x: Array,
    /,
    scale: Array | None = None,
    bias: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
    order: str = "K",
    activation: Any = None,
    residual: Array | None = None,
    mask: Any = None,
    lengths: Any = None,
    outside: str = "zero",
) -> Call[Array]:
    """Normalise with given statistics: y = (x - mean) / sqrt(var + epsilon) * scale + bias.

    By position scale and bias come before mean and var; PyTorch has them behind: say which is which by keyword.

    x: (N, C, *spatial). scale, bias: C values, or None for 1 and 0. mean, var: C values, not changed. epsilon: at
    least 0. out: an array of x's shape for y; it may be x or the residual itself, but overlap neither otherwise. order:
    of y in memory where there is no out, "K" or "C". activation, residual, mask, lengths, outside: as batch_norm_train
    has them. Returns y, like x, which `.get()` reads in C or Fortran order only.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.chosen(x, axis, mask, lengths, outside)
    given = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    fused = fusing.before(activation, residual)
    given |= fused.tensors
    numbers = {"epsilon": arguments.epsilon_of(epsilon, x)} | fused.numbers
    fusion = check("infer", x, axis, given, out, order, fusion=fused.fusion)
    options: dict[str, Any] = {"out": out, "order": order, "fusion": fusion, "selection": selection}
    return make("infer", x, axis, given, numbers, returns=lambda y: y, **options)


@operation
def batch_norm_backward(
    x: Array,
    dy: Array,
    /,
    scale: Array | None = None,
    save_mean: Array | None = None,
    save_invstd: Array | None = None,
    *,
    axis: int = 1,
    training: bool = True,
    epsilon: float | None = None,
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
    groups: int = 1,
    mask: Any = None,
    lengths: Any = None,
    outside: str = "zero",
) -> Call[tuple[Array, ...]]:
    """Gradients with respect to x, scale and bias, and to a residual.

    With x' = (x - save_mean) * save_invstd, sums over the m values of a channel, and the statistics depending on x:
    dbias = sum(dy), dscale = sum(dy * x'), dx = scale * save_invstd * (dy - dbias / m - x' * dscale / m).
    With training=False the statistics are constants: dx = scale * save_invstd * dy.

    x, dy: (N, C, *spatial). scale: C values, or None for 1. save_mean, save_invstd: C values each, as batch_norm_train
    returns them or of another origin. epsilon: for training=False only, at least 0; the fifth array is then the
    variance, as batch_norm_infer takes it, and save_invstd = 1 / sqrt(var + epsilon). out: an array of x's shape for
    dx, which must not overlap x; it may be dy itself, but not overlap it otherwise. order: of dx in memory where there
    is no out, "K" or "C".

    scale_grad, bias_grad: C values each, or None; the same kernels accumulate dscale and dbias in them, in place:
    scale_grad = grad_scale * dscale + grad_momentum * scale_grad, and bias_grad likewise; with grad_momentum 0 what was
    there does not count, NaN included. grad_scale, grad_momentum: finite.

    activation: that of the forward call, as batch_norm_train takes it: dy is the gradient with respect to f(z), and
    dy f'(z) stands for dy in all formulas above. Its derivative comes from the least that tells it. Where there was no
    residual that is x, which is read anyway, with bias (C values, or None for 0): give nothing else. Where there was
    one, give y, what the forward call returned, for relu, relu6, leaky_relu, elu, sigmoid, tanh and softplus, or else
    the residual, for any. dresidual: True, and the gradient with respect to the residual, dy f'(z), comes back as well:
    like dx, or dy itself where there is no activation; or an array of x's shape and dx's dtype for it, which may be
    dy itself.

    z that is computed from x errs as in the forward call, and by the rounding of save_mean: for means far off zero, a
    million standard deviations, y tells more than x.

    groups: that of the forward call: sums and means are those of each group, and dscale and dbias are added up over
    them; save_mean and save_invstd have groups * C values. Only with training.

    mask, lengths, outside: those of the forward call. Sums and m are those of the values inside, whatever x, dy, y and
    the residual hold outside; dx is 0 there, and so is dresidual, which is an array of its own then. That is so with
    outside="x" as well: the gradient of y = x outside, dy, is no part of dx. Where nothing is inside all is 0.

    Returns (dx, dscale, dbias): dx like x, which `.get()` reads in C or Fortran order only, the others C values; with
    dresidual (dx, dscale, dbias, dresidual). An empty batch gives an empty dx and zeros.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> mean, var = (gpuarray.to_gpu(np.float32(values)) for values in ([2.0, 20.0], [1.0, 100.0]))
    >>> dx, dscale, dbias = batch_norm_backward(x, x, save_mean=mean, save_invstd=var, training=False, epsilon=0.0)
    >>> print(dx.get(), dscale.get(), dbias.get())
    [[1. 1.]
     [3. 3.]] [ 2. 20.] [ 4. 40.]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.behind(x, axis, mask, lengths, outside)
    operation = "backward" if training else "constant"
    if (groups := masks.groups_of(groups, x, axis, selection)) > 1:
        if not training:
            raise ParameterError(
                f"groups is {groups} and training is {training}; statistics that are constants have no groups, so 1 is "
                "wanted"
            )
        operation = "backward_batches"
    deviation = _deviation(x, save_invstd, epsilon, training=training)
    given = {
        "dy": dy,
        "scale": scale,
        "bias": bias,
        "save_mean": save_mean,
        "scale_grad": scale_grad,
        "bias_grad": bias_grad,
    }
    fused = fusing.behind(activation, y, residual, dresidual, copied=selection is not None)
    given |= fused.tensors
    numbers = deviation.numbers | gathering_numbers(x, grad_scale, grad_momentum) | fused.numbers
    called = given | deviation.called
    wanted: dict[str, Any] = {"needed": ("save_mean", "save_invstd"), "groups": groups}
    fusion = check(operation, x, axis, called, out, order, fusion=fused.fusion, **wanted)
    given |= deviation.arrays
    gather = functools.partial(accumulation, scale=numbers["grad_scale"], momentum=numbers["grad_momentum"])
    options: dict[str, Any] = {"out": out, "order": order, "like": scale, "gather": gather, "fusion": fusion}
    options |= {"groups": groups, "selection": selection}
    return make(operation, x, axis, given, numbers, returns=gradients_of(fusion, dy, dresidual), **options)


@operation
def batch_norm_double_backward(
    x: Array,
    dy: Array,
    /,
    scale: Array | None = None,
    save_mean: Array | None = None,
    save_invstd: Array | None = None,
    *,
    ddx: Array | None = None,
    ddscale: Array | None = None,
    ddbias: Array | None = None,
    axis: int = 1,
    training: bool = True,
    epsilon: float | None = None,
    out: Array | None = None,
    gdy: Array | None = None,
    order: str = "K",
) -> Call[tuple[Array, Array, Array]]:
    """Gradients of a loss that depends on batch_norm_backward's results, as a gradient penalty does.

    The loss's gradients with respect to dx, dscale and dbias are ddx, ddscale and ddbias; what comes back are those
    with respect to x, dy and scale. (The bias is in none of the three.) With m values per channel, E the mean over
    them, x' = (x - save_mean) * save_invstd, and P(a) = a - E(a) - x' * E(a * x'), where the statistics depend on x:

    q = ddscale * dy - scale * save_invstd * (E(dy * x') * ddx + E(ddx * x') * dy),
    gx = save_invstd * P(q) - scale * save_invstd**2 * E(ddx * P(dy)) * x',
    gdy = scale * save_invstd * P(ddx) + ddscale * x' + ddbias, gscale = m * save_invstd * E(ddx * P(dy)).
    With training=False the statistics are constants: gx = ddscale * save_invstd * dy,
    gdy = scale * save_invstd * ddx + ddscale * x' + ddbias, gscale = m * save_invstd * E(ddx * dy).

    x, dy, scale, save_mean, save_invstd, axis, training, epsilon: those of the call of batch_norm_backward. ddx: an
    array of x's shape, of x's dtype or float32 where that is narrower. ddscale, ddbias: C values each. Of the three
    each may be None, for 0, but not all. out, gdy: arrays of x's shape and of one dtype for gx and gdy, which must
    overlap nothing else; or None. order: of gx and gdy in memory where there is no out, "K" or "C".

    Returns (gx, gdy, gscale): the first two like x, which `.get()` reads in C or Fortran order only, the last C values.
    An empty batch gives empty gx and gdy and zeros.

    >>> x, dy = (gpuarray.to_gpu(np.float32(values)) for values in ([[1.0], [3.0]], [[0.0], [2.0]]))
    >>> mean, invstd = (gpuarray.to_gpu(np.float32([value])) for value in (2.0, 1.0))
    >>> gx, gdy, gscale = batch_norm_double_backward(x, dy, None, mean, invstd, ddx=x, training=False)
    >>> print(gx.get().ravel(), gdy.get().ravel(), gscale.get())
    [0. 0.] [1. 3.] [6.]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    operation = "double_backward" if training else "double_constant"
    deviation = _deviation(x, save_invstd, epsilon, training=training)
    if ddx is None and ddscale is None and ddbias is None:
        raise ParameterError("ddx, ddscale and ddbias are None; one of them at least is wanted")
    given = {
        "dy": dy,
        "ddx": ddx,
        "scale": scale,
        "ddscale": ddscale,
        "ddbias": ddbias,
        "save_mean": save_mean,
        "gdy": gdy,
    }
    fusion = ALONE if ddx is not None else Fusion(without=True)
    called = given | deviation.called
    check(operation, x, axis, called, out, order, needed=("save_mean", "save_invstd"), fusion=fusion)
    given |= deviation.arrays
    return make(operation, x, axis, given, deviation.numbers, out=out, order=order, like=scale, fusion=fusion)


class _Deviation(NamedTuple):
    """What a batch was divided by: its array as the caller calls it, that as kernels do, and what they are told."""

    called: dict[str, Array | None]
    arrays: dict[str, Array | None]
    numbers: dict[str, float]


def _deviation(x: Array, save_invstd: Array | None, epsilon: Any, *, training: bool) -> _Deviation:
    """From save_invstd, which is the variance where there is an epsilon; ParameterError: an epsilon in training."""
    called = {"save_invstd": save_invstd, "var": None}
    if epsilon is None:
        return _Deviation(called, called, {"epsilon": 0.0})
    if training:
        raise ParameterError(f"epsilon is {epsilon!r}; None is wanted in training, where save_invstd contains it")
    number = arguments.epsilon_of(epsilon, x)
    return _Deviation(called, {"save_invstd": None, "var": save_invstd}, {"epsilon": number})


@operation
def moments(x: Array, /, *, axis: int = 1) -> Call[tuple[int, Array, Array]]:
    """Count, mean and sum of squared deviations of each channel.

    Returns (count, mean, m2): the number m of values per channel; mean and m2 = sum((x - mean)**2), C values each, of
    shape (C,). The population variance is m2 / count, the sample variance m2 / (count - 1). Both arrays are rounded,
    and sets merged from them would lose digits: `statistics` gives them without loss, and `merge` merges those. An
    empty batch gives count 0 and zeros.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    count = count_of(x, axis)
    return make("moments", x, axis, {}, {}, returns=lambda *made: (count, *made))


def bind(operation: Callable[P, R], /, *given: P.args, **options: P.kwargs) -> Callable[[], R]:
    """A call that is made again and again on the same arrays: everything is checked, compiled and allocated here, once.

    operation: a function of this module that works on arrays (all but accumulate); then what it takes. Each call of
    what comes back, without arguments, enqueues the work on x.queue, which on the host takes little more than the
    driver's own enqueueing, and returns the same results, which it overwrites: let their last reader be enqueued first
    (on a queue that is out of order, with its event among theirs). It keeps all of the arrays, works on the memory that
    they have now, and belongs to the thread that made it.

    Errors are those of the operation; of what comes back, DeviceError.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> normalise = bind(batch_norm_train, x, epsilon=0.0)
    >>> y, mean, invstd = normalise()
    >>> x += 1
    >>> normalise()[1] is mean, mean.get()
    (True, array([ 3., 21.], dtype=float32))
    """
    prepared = CALLS.get(operation) if callable(operation) and isinstance(operation, Hashable) else None
    if prepared is None:
        known = ", ".join(sorted(call.__name__ for call in CALLS))
        raise ParameterError(
            f"operation is {_shown(operation)}; one of {known} is wanted, and then what it takes, "
            "as in bind(batch_norm_train, x)"
        )
    doing = driver_errors(operation.__name__)
    step = doing(doing(doing(prepared)(*given, **options).bound)())
    step.__name__ = step.__qualname__ = f"bound {operation.__name__}"
    return step


def _shown(operation: Any) -> str:
    if isinstance(operation, str):
        return repr(operation)
    return getattr(operation, "__name__", repr(operation)) if callable(operation) else values.kind_of(operation)


@driver_errors("result_like")
def result_like(x: Array, /, *, order: str = "K") -> Array:
    """An uninitialised array for a result, to be given as `out` from call to call: what a call would make, kept.

    x: (N, C, *spatial). order: as in batch_norm_train. Returns an array of x's shape and dtype on x's queue, from x's
    allocator. Where that is None, an array of 4 MB or more lies in huge pages on processors' drivers that have them on
    request; in those of pyopencl.array.empty_like, which are small, a call takes up to twice as long.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> y = result_like(x)
    >>> _ = batch_norm_train(x, epsilon=0.0, out=y)
    >>> print(y.get())
    [[-1. -1.]
     [ 1.  1.]]
    """
    arguments.tensor("x", x)
    arguments.order_of(order)
    return results.result_like(x, order, often=False)


@driver_errors("accumulate")
def accumulate(into: Array, new: Array, /, *, scale: float = 1.0, momentum: float = 0.0) -> None:
    """into = scale * new + momentum * into, in place; with momentum 0 what was in `into` does not count, NaN included.

    into, new: arrays of equal size, dtype (float32 or float64) and context, element by element in C order where shapes
    differ; they must not overlap unless they are the same. scale, momentum: finite.
    """
    accumulation(into, new, scale=scale, momentum=momentum)()


@driver_errors("accumulate")
def accumulation(into: Array, new: Array, /, *, scale: float = 1.0, momentum: float = 0.0) -> Callable[[], None]:
    """`accumulate` in two steps: everything is checked here and the kernel built; what comes back starts it."""
    arguments.flat({"into": into, "new": new})
    overlap.exclusive({"into": into}, {} if overlap.same_elements(into, new) else {"new": new})
    scale = arguments.finite("scale", scale, into)
    momentum = arguments.finite("momentum", momentum, into)
    queue = into.queue or new.queue
    if queue is None:
        raise ContextError("neither into nor new has a queue; give one of them a queue with with_queue(queue)")
    check_type("into", into.dtype, queue)
    if into.size == 0:
        return Empty(None).run
    numbers = {"scale": scale, "momentum": momentum}
    model = into if into.queue else new
    given = {"into": into, "new": new}
    own, copies = packed.vectors(model, given)
    arrays: dict[str, Array | None] = {"into": own["into"], "added": own["new"]}
    written = own["into"]
    made: Call[None] = Call(None, prepare_vector("accumulate", model, "count"), model, arrays, numbers, (written,))
    if copies:
        after = [] if written is into else [copying(model, written, into)]
        made = packed.Packed(None, given, copies, made, after)
    return driver_errors("accumulate")(made.run)


def _fused(
    operation: str,
    activation: Any,
    residual: Array | None,
    y: Array | None,
    dresidual: bool | Array,
    *,
    copied: bool,
) -> fusing.Fused:
    """What a call of this operation would do besides; ParameterError where it does nothing of the kind."""
    fusable = OPERATIONS[operation].fusable
    if not fusable and not (activation is None and residual is None):
        name = "activation" if activation is not None else "residual"
        raise ParameterError(f"{name} is given; {operation!r} takes none, so None is wanted")
    if "y" in fusable:
        return fusing.behind(activation, y, residual, dresidual, copied=copied)
    if y is not None or dresidual is not False:
        raise ParameterError(f"{'y' if y is not None else 'dresidual'} is given; {operation!r} takes none")
    return fusing.before(activation, residual)


@driver_errors("explain")
def explain(
    x: Array,
    /,
    *,
    axis: int = 1,
    operation: str = "train",
    why: bool = False,
    out: Array | None = None,
    order: str = "K",
    dy: Array | None = None,
    scale: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    save_mean: Array | None = None,
    save_invstd: Array | None = None,
    skipped: Array | None = None,
    entered: Array | None = None,
    scale_grad: Array | None = None,
    bias_grad: Array | None = None,
    activation: Any = None,
    residual: Array | None = None,
    y: Array | None = None,
    dresidual: bool | Array = False,
    ddx: Array | None = None,
    ddscale: Array | None = None,
    ddbias: Array | None = None,
    gdy: Array | None = None,
    groups: int = 1,
    mask: Any = None,
    lengths: Any = None,
) -> str:
    """How `operation` on x would run, in one line: a call of its own, or of those that a module makes.

    operation: "train", "infer", "backward", "constant" (backward with constants), "moments", "double_backward" or
    "double_constant" (with constants).

    Behind it stands what is packed before and unpacked after, each with the reason. out, order, dy, ddx, the arrays of
    a number per channel, activation, residual, y, dresidual, gdy and groups are those of the call; what is left out is
    taken to be without gaps, dy and ddx in the order that x is read in. With `why` come then the variants that come
    before it, each with the reason that it declines for these sizes on this device; then the kernels that are not used
    because they did not prove right on it. mask, lengths: those of the call; the kernels are told that run on what is
    inside.

    >>> x = gpuarray.zeros((4, 3, 5, 7))
    >>> print(explain(x, operation="infer", why=True).partition("; fused declines: ")[2])
    no kernel reads a channel twice for this operation
    >>> print(explain(x[:, :, :, ::-1]).partition("; ")[2].partition("; ")[2])
    packed before: x (no kernel reads strides of (420, 140, 28, -4) bytes with channels on axis 1)
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    if operation not in OPERATIONS:
        hint = names.hints(names.OPERATIONS, operation, OPERATIONS) if isinstance(operation, str) else ""
        raise ParameterError(f"operation is {operation!r}; one of {', '.join(OPERATIONS)} is wanted{hint}")
    arguments.order_of(order)
    selection = masks.chosen(x, axis, mask, lengths)
    if selection is not None and OPERATIONS[operation].optional:
        raise ParameterError(f"{'lengths is' if mask is None else 'mask is'} given; {operation!r} takes none")
    fused = _fused(operation, activation, residual, y, dresidual, copied=selection is not None)
    groups = masks.groups_of(groups, x, axis, selection)
    if groups > 1:
        if f"{operation}_batches" not in BATCHES:
            raise ParameterError(f"groups is {groups}; {operation!r} has none, so 1 is wanted")
        operation = f"{operation}_batches"
    described = operation_of(operation, fused.fusion)
    vectors = (*described.read, *described.state)
    every = {"dy": dy, "scale": scale, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    every |= {"mean": mean, "var": var, "save_mean": save_mean, "save_invstd": save_invstd, "skipped": skipped}
    every |= {"entered": entered, "scale_grad": scale_grad, "bias_grad": bias_grad}
    every |= {"ddx": ddx, "ddscale": ddscale, "ddbias": ddbias, "gdy": gdy}
    given = {name: array for name, array in every.items() if array is not None} | fused.tensors
    for name, array in given.items():
        if name not in (*described.others, *vectors, described.second):
            known = ", ".join((*described.others, *vectors)) or "none"
            raise ParameterError(
                f"{name} is no array that {operation!r} takes; x is by position, the others are {known}"
            )
        if name in described.others:
            arguments.like(name, array, x)
    arguments.per_channel(x, axis, given, [name for name in vectors if name in given], groups=groups)
    if out is not None:
        if not described.result:
            raise ParameterError(f"out is {values.kind_of(out)}; {operation!r} writes no tensor, so None is wanted")
        arguments.like("out", out, x)
    if described.second in given:
        arguments.like_result(described.second, given[described.second], x, out)
    if x.size == 0:
        return "nothing to do: x is empty"
    moved = ""
    if selection is not None:
        if not selection.count:
            return f"nothing to do but to write the result: none of {selection.inside.size} positions is inside"
        moved, given, out, x, axis = selected.as_called(selection, described, x, axis, given, out)
    packing, asked = packed.as_walked(operation, x, axis, given, out, order, fused.fusion, groups)
    prepared = prepared_for(asked, queue_of(x))
    declined = (one.replace(": ", " declines: ", 1) for one in (prepared.plan.declined if why else ()))
    failed = (f"not used, as the driver fails it: {fault}" for fault in prepared.failures)
    return in_words("; ".join(filter(None, [str(prepared.plan), moved, str(packing or ""), *declined, *failed])))
