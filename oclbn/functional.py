"""Batch normalization without state, on pyopencl.array.Array.

Shapes: x is (N, C) or (N, C, *spatial), C channels on `axis`; per-channel arrays hold C elements in any shape.
Order in memory: results lie as x does, without gaps, or in C order where that is neither C's nor Fortran's. dy and out
may lie otherwise than x, at the cost of a copy on the device.
Dtypes: x is float32, or float64 where the device has it; per-channel arrays have x's dtype. Work is enqueued on
x.queue and waits for the events of every array that it touches; results and arrays written in place carry the new
event, so that out-of-order queues and several queues are safe (but pyopencl's `array -= number` leaves no event: on a
queue that is out of order say `array += -number`). Per-channel results have scale's shape, or (C,) where
scale is None. Results come from x's allocator; where that is a pool, hold them until the work is done: like any array
of pyopencl's, what is let go of is handed out again at once.

Errors, all of oclbn.errors and raised before anything is allocated or changed: ArrayTypeError, DtypeError, ShapeError,
LayoutError, ContextError, ParameterError, OverlapError, ReadOnlyError; SizeError where the device cannot hold a result.
DeviceError, where a command that writes one of the arrays is seen to have failed, names the array, and nothing is done.
Where the driver fails, it names the call and what the driver said; where a launch fails, everything written in place is
as it was, but for an `out` of batch_norm_backward with constants, which its first launch fills.

Formulas: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", 2015 (arXiv:1502.03167), algorithm 1 and section 3; docs/design.md tells how they are rounded.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np
import pyopencl as cl
from pyopencl.array import Array, empty_like

from . import arguments, program, proof, strided
from .device import driver_errors, limits, tuning_names
from .errors import ArrayTypeError, ContextError, DtypeError, LayoutError, ParameterError, ShapeError
from .kept import kept
from .order import Order
from .plan import OPERATIONS, Build, DeviceLimits, Geometry, Launch, Plan, Tuning, fitting_plan, floor_power
from .results import allocated, fill, fresh_result, per_channel_results, queue_of, result_like, scratch, temporary
from .tuning import tuning_for

__all__ = [
    "Statistics",
    "batch_norm_backward",
    "batch_norm_infer",
    "batch_norm_train",
    "bind",
    "merge",
    "moments",
    "recording",
    "statistics",
]

_ACCUMULATE_GROUPS = 256  # per compute unit: parameters are small, and few work-items are many enough
_COPY_GROUPS = 64  # per compute unit: enough to share the work evenly, few enough to cost nothing
_MOST_PREPARED = 2048  # shapes remembered per thread
_BACKWARD = ("backward", "constant")
_DEFAULTS = {"epsilon": 1e-5, "factor": 0.1, "init_factor": 1.0, "guard": 1, "grad_scale": 1.0, "grad_momentum": 0.0}
_MOMENTS = ("mean", "mean_rest", "m2", "m2_rest")  # the arrays of Statistics
_calls: dict[Callable[..., Any], Callable[..., _Call[Any]]] = {}  # of each operation, what only prepares it
_recorders: contextvars.ContextVar[tuple[list[tuple[str, cl.Event]], ...]] = contextvars.ContextVar(
    "oclbn_recorders", default=()
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _operation(prepare: Callable[_P, _Call[_R]]) -> Callable[_P, _R]:
    """From a function that checks, compiles and allocates, the one that runs the call as well."""

    prepare.__annotations__["return"] = prepare.__annotations__["return"].removeprefix("_Call[").removesuffix("]")

    @driver_errors(prepare.__name__)
    @functools.wraps(prepare)  # whose annotations are shown as the call's own
    def run(*given: _P.args, **options: _P.kwargs) -> _R:
        return prepare(*given, **options).run()

    _calls[run] = prepare
    return run


@_operation
def batch_norm_train(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    /,
    *,
    epsilon: float = 1e-5,
    factor: float = 0.1,
    axis: int = 1,
    out: Array | None = None,
    guard: bool = True,
    skipped: Array | None = None,
    entered: Array | None = None,
    init_factor: float = 1.0,
) -> _Call[tuple[Array, Array, Array]]:
    """Normalise a batch with its own statistics, and move the running ones.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, var being the population variance (divided by m, the number of
    values per channel); running = (1 - factor) * running + factor * batch, with the sample variance (by m - 1):
    with factor 1 the batch replaces what was there, even NaN, with factor 0 and no `entered` nothing changes.

    x: (N, C, *spatial), channels on `axis`. scale, bias: C values, or None for 1 and 0. running_mean, running_var: C
    values that are updated in place, or None. epsilon: at least 0. factor: 0 to 1. out: an array of x's shape for
    y, which must not overlap x. guard: a channel whose batch statistics are not finite keeps its running
    statistics; skipped: uint32, C counters that then go up by one, in place.

    entered: uint32, C counters of the batches that the running statistics are of, which go up by one where these move:
    the factor of a channel is then max(init_factor / n, factor), n counting this batch as well. So running statistics
    are an average over the batches, without those that the guard left out, until 1 / n is below `factor`. init_factor:
    0 to 1.

    Returns (y, save_mean, save_invstd): y like x; the batch's mean and 1 / sqrt(var + epsilon), which
    batch_norm_backward takes. An empty batch gives an empty y and NaN statistics and changes nothing. One value per
    channel is a ShapeError: it has no variance.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> y, mean, invstd = batch_norm_train(x, None, None, None, None, epsilon=0.0)
    >>> print(y.get(), mean.get(), invstd.get())
    [[-1. -1.]
     [ 1.  1.]] [ 2. 20.] [1.  0.1]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    count = _count(x, axis)
    reads = arguments.per_channel(x, axis, {"scale": scale, "bias": bias})
    state = {"running_mean": running_mean, "running_var": running_var, "skipped": skipped, "entered": entered}
    writes = arguments.per_channel(x, axis, state)
    epsilon = arguments.epsilon_of(epsilon, x)
    factor = arguments.number("factor", factor, 0.0, 1.0)
    init_factor = arguments.number("init_factor", init_factor, 0.0, 1.0)
    if out is not None:
        arguments.like("out", out, x)
        writes["out"] = out
    arguments.exclusive(writes, {"x": x, **reads})
    if count == 1 and x.size:
        raise ShapeError(f"x has shape {x.shape}: one value per channel has no variance; training wants at least two")
    if x.size == 0:
        undefined = per_channel_results(x, axis, scale)
        return _Empty((result_like(x) if out is None else out, *undefined), undefined, math.nan)
    try:
        prepared = _prepare("train", x, axis, out=out)
        y = result_like(x) if out is None else out
    except LayoutError:
        again = functools.partial(_calls[batch_norm_train], x, scale, bias, running_mean, running_var)
        options = {"epsilon": epsilon, "factor": factor, "axis": axis, "guard": guard, "skipped": skipped}
        options |= {"entered": entered, "init_factor": init_factor}
        return _in_order(x, axis, None, out, lambda _, y: again(out=y, **options))
    save_mean, save_invstd = per_channel_results(x, axis, scale)
    return _Call(
        (y, save_mean, save_invstd),
        prepared,
        x,
        {
            "x": x,
            "y": y,
            "scale": scale,
            "bias": bias,
            "running_mean": running_mean,
            "running_var": running_var,
            "skipped": skipped,
            "entered": entered,
            "save_mean": save_mean,
            "save_invstd": save_invstd,
        },
        {
            "epsilon": epsilon,
            "factor": factor,
            "init_factor": init_factor,
            "guard": int(bool(guard)),
            "unbiased": count - 1,
        },
        (y, save_mean, save_invstd, running_mean, running_var, skipped, entered),
    )


@_operation
def batch_norm_infer(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mean: Array,
    var: Array,
    /,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> _Call[Array]:
    """Normalise with given statistics: y = (x - mean) / sqrt(var + epsilon) * scale + bias.

    x: (N, C, *spatial). scale, bias: C values, or None for 1 and 0. mean, var: C values, not changed. epsilon: at
    least 0. out: an array of x's shape for y; it may be x itself, but not overlap it otherwise. Returns y.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    vectors = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    reads = arguments.per_channel(x, axis, vectors, needed=("mean", "var"))
    epsilon = arguments.epsilon_of(epsilon, x)
    if out is not None:
        arguments.like("out", out, x)
        arguments.exclusive({"out": out}, reads if arguments.same_elements(out, x) else {"x": x, **reads})
    if x.size == 0:
        return _Empty(result_like(x) if out is None else out)
    try:
        prepared = _prepare("infer", x, axis, out=out)
        y = result_like(x) if out is None else out
    except LayoutError:
        again = functools.partial(_calls[batch_norm_infer], x, scale, bias, mean, var, epsilon=epsilon, axis=axis)
        return _in_order(x, axis, None, out, lambda _, y: again(out=y))
    arrays = {"x": x, "y": y, "scale": scale, "bias": bias, "mean": mean, "var": var}
    return _Call(y, prepared, x, arrays, {"epsilon": epsilon}, (y,))


@_operation
def batch_norm_backward(
    x: Array,
    dy: Array,
    scale: Array | None,
    save_mean: Array,
    save_invstd: Array,
    /,
    *,
    axis: int = 1,
    training: bool = True,
    epsilon: float | None = None,
    out: Array | None = None,
    scale_grad: Array | None = None,
    bias_grad: Array | None = None,
    grad_scale: float = 1.0,
    grad_momentum: float = 0.0,
) -> _Call[tuple[Array, Array, Array]]:
    """Gradients with respect to x, scale and bias.

    With x' = (x - save_mean) * save_invstd, sums over the m values of a channel, and the statistics depending on x:
    dbias = sum(dy), dscale = sum(dy * x'), dx = scale * save_invstd * (dy - dbias / m - x' * dscale / m).
    With training=False the statistics are constants: dx = scale * save_invstd * dy.

    x, dy: (N, C, *spatial). scale: C values, or None for 1. save_mean, save_invstd: C values each, as batch_norm_train
    returns them or of another origin. epsilon: for training=False only, at least 0; the fifth array is then the
    variance, as batch_norm_infer takes it, and save_invstd = 1 / sqrt(var + epsilon). out: an array of x's shape for
    dx, which must overlap neither x nor dy.

    scale_grad, bias_grad: C values each, or None; the same launches gather dscale and dbias in them, in place:
    scale_grad = grad_scale * dscale + grad_momentum * scale_grad, and bias_grad likewise; with grad_momentum 0 what was
    there does not count, NaN included. grad_scale, grad_momentum: finite.

    Returns (dx, dscale, dbias): dx like x, the others C values. An empty batch gives an empty dx and zeros.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> mean, var = (gpuarray.to_gpu(np.float32(values)) for values in ([2.0, 20.0], [1.0, 100.0]))
    >>> dx, dscale, dbias = batch_norm_backward(x, x, None, mean, var, training=False, epsilon=0.0)
    >>> print(dx.get(), dscale.get(), dbias.get())
    [[1. 1.]
     [3. 3.]] [ 2. 20.] [ 4. 40.]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    arguments.like("dy", dy, x)
    if epsilon is not None:
        if training:
            raise ParameterError(f"epsilon is {epsilon!r}; None is wanted in training, where save_invstd contains it")
        epsilon = arguments.epsilon_of(epsilon, x)
    deviation = "save_invstd" if epsilon is None else "var"
    vectors = {"scale": scale, "save_mean": save_mean, deviation: save_invstd}
    reads = {"dy": dy, **arguments.per_channel(x, axis, vectors, needed=("save_mean", deviation))}
    writes = arguments.per_channel(x, axis, {"scale_grad": scale_grad, "bias_grad": bias_grad})
    grad_scale = arguments.finite("grad_scale", grad_scale, x)
    grad_momentum = arguments.finite("grad_momentum", grad_momentum, x)
    if out is not None:
        arguments.like("out", out, x)
        writes["out"] = out
    if writes:
        arguments.exclusive(writes, {"x": x, **reads})
    if x.size == 0:
        sums = per_channel_results(x, axis, scale)
        gathered = [
            accumulation(into, array, scale=grad_scale, momentum=grad_momentum)
            for array, into in zip(sums, (scale_grad, bias_grad), strict=True)
            if into is not None
        ]
        return _Empty((result_like(x) if out is None else out, *sums), sums, 0, gathered)
    try:
        prepared = _prepare("backward" if training else "constant", x, axis, dy, out)
        dx = result_like(x) if out is None else out
    except LayoutError:
        again = functools.partial(_calls[batch_norm_backward], axis=axis, training=training, epsilon=epsilon)
        into = {"scale_grad": scale_grad, "bias_grad": bias_grad}
        numbers = {"grad_scale": grad_scale, "grad_momentum": grad_momentum}
        return _in_order(
            x, axis, dy, out, lambda dy, dx: again(x, dy, scale, save_mean, save_invstd, out=dx, **into, **numbers)
        )
    dscale, dbias = per_channel_results(x, axis, scale)
    count = _count(x, axis)
    return _Call(
        (dx, dscale, dbias),
        prepared,
        x,
        {
            "x": x,
            "dy": dy,
            "dx": dx,
            "scale": scale,
            "save_mean": save_mean,
            "save_invstd": save_invstd if epsilon is None else None,
            "var": None if epsilon is None else save_invstd,
            "dscale": dscale,
            "dbias": dbias,
            "scale_grad": scale_grad,
            "bias_grad": bias_grad,
        },
        {
            "count_rest": count - int(x.dtype.type(count)),
            "epsilon": epsilon or 0.0,
            "grad_scale": grad_scale,
            "grad_momentum": grad_momentum,
        },
        (dx, dscale, dbias, scale_grad, bias_grad),
    )


@_operation
def moments(x: Array, /, *, axis: int = 1) -> _Call[tuple[int, Array, Array]]:
    """Count, mean and sum of squared deviations of each channel.

    Returns (count, mean, m2): the number m of values per channel; mean and m2 = sum((x - mean)**2), C values each, of
    shape (C,). The population variance is m2 / count, the sample variance m2 / (count - 1). Both arrays are rounded,
    and sets merged from them would lose digits: `statistics` gives them without loss, and `merge` merges those. An
    empty batch gives count 0 and zeros.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    count = _count(x, axis)
    if x.size == 0:
        zeros = per_channel_results(x, axis, None)
        return _Empty((count, *zeros), zeros, 0)
    prepared = _prepare("moments", x, axis)
    mean, m2 = per_channel_results(x, axis, None)
    arrays = {"x": x, "mean": mean, "mean_rest": None, "m2": m2, "m2_rest": None}
    return _Call((count, mean, m2), prepared, x, arrays, {}, (mean, m2))


@dataclass(frozen=True)
class Statistics:
    """The moments of a set of values per channel, without loss: what parts of a batch hand on to be merged.

    count: the number m of values per channel. mean, mean_rest: their rounded mean and what rounding lost of it; m2,
    m2_rest: the sum of squared deviations from the mean, likewise. Device arrays of C values each, of one dtype. The
    population variance is m2 / count, the sample variance m2 / (count - 1).
    """

    count: int
    mean: Array
    mean_rest: Array
    m2: Array
    m2_rest: Array


@_operation
def statistics(x: Array, /, *, axis: int = 1) -> _Call[Statistics]:
    """The moments of each channel, and what rounding them to x's dtype loses: `merge` makes one set of several.

    x: (N, C, *spatial). Returns Statistics with arrays of shape (C,). An empty batch gives count 0 and zeros.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    count = _count(x, axis)
    made = (*per_channel_results(x, axis, None), *per_channel_results(x, axis, None))
    result = Statistics(count, *made)
    if x.size == 0:
        return _Empty(result, made, 0)
    prepared = _prepare("moments", x, axis)
    return _Call(result, prepared, x, {"x": x, **_arrays_of(result, "")}, {}, made)


@_operation
def merge(first: Statistics, /, *others: Statistics) -> _Call[Statistics]:
    """The statistics of several sets of values as those of all of them, as exact as one call on all.

    first, others: Statistics of any counts, 0 too, merged from left to right; all arrays are of one size, dtype and
    context, and contiguous. The work is enqueued on first.mean.queue, a launch for each set that has values but one;
    results are new arrays of first.mean's shape. The same sets in the same order give the same bits.

    Formula: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979. ArrayTypeError: something else than Statistics; ParameterError: a count that is none.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0], [7.0, 70.0]]))
    >>> whole = merge(statistics(x[:2]), statistics(x[2:]))
    >>> print(whole.count, whole.mean.get(), whole.m2.get())
    4 [ 4. 40.] [  20. 2000.]
    """
    given: dict[str, Any] = {"first": first} | {f"others[{index}]": other for index, other in enumerate(others)}
    counts = []
    for name, one in given.items():
        if not isinstance(one, Statistics):
            raise ArrayTypeError(f"{name} is a {type(one).__qualname__}; Statistics are wanted, as statistics(x) gives")
        counts.append(arguments.count(f"{name}.count", one.count))
    arguments.flat({key: array for name, one in given.items() for key, array in _arrays_of(one, f"{name}.").items()})
    total = arguments.count("the sum of all counts", sum(counts))
    model = first.mean
    if model.queue is None:
        raise ContextError("first.mean has no queue; give it one with first.mean.with_queue(queue)")
    _check_fp64("first.mean", model, model.queue)
    prepared = _prepare_merge(model) if model.size else None
    made = allocated(model, model.nbytes, lambda: [empty_like(model, model.queue, model.allocator) for _ in _MOMENTS])
    result = Statistics(total, *made)
    if prepared is None:
        return _Empty(result)
    full = [one for one in given.values() if one.count] or [first]
    so_far, calls = full[0], []
    for one in full[1:] or [None]:
        arrays = _arrays_of(so_far, "first_") | _arrays_of(one, "second_") | _arrays_of(result, "")
        numbers = {"first_count": so_far.count, "second_count": one.count if one else 0}
        calls.append(_Call(result, prepared, model, arrays, numbers, made))
        so_far = Statistics(sum(numbers.values()), *made)
    return _Sequence(result, calls)


def bind(operation: Callable[_P, _R], /, *given: _P.args, **options: _P.kwargs) -> Callable[[], _R]:
    """A call that is made again and again on the same arrays: everything is checked, compiled and allocated here, once.

    operation: batch_norm_train, batch_norm_infer, batch_norm_backward or moments; then what it takes. Each call of what
    comes back enqueues the work on x.queue, takes a third of the time that the operation takes on the host, and returns
    the same results, which it overwrites: let their last reader be enqueued first (on a queue that is out of order,
    with its event among theirs). It keeps all of the arrays, works on the memory that they have now, and belongs to the
    thread that made it.

    Errors are those of the operation; of what comes back, DeviceError.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> normalise = bind(batch_norm_train, x, None, None, None, None, epsilon=0.0)
    >>> y, mean, invstd = normalise()
    >>> x += 1
    >>> normalise()[1] is mean, mean.get()
    (True, array([ 3., 21.], dtype=float32))
    """
    prepare = _calls.get(operation) if isinstance(operation, Hashable) else None
    if prepare is None:
        names = ", ".join(sorted(call.__name__ for call in _calls))
        raise ParameterError(f"operation is {operation!r}; one of {names} is wanted")
    doing = driver_errors(operation.__name__)
    return doing(doing(lambda: prepare(*given, **options).bound())())


def accumulate(into: Array, new: Array, /, *, scale: float = 1.0, momentum: float = 0.0) -> None:
    """into = scale * new + momentum * into, in place; with momentum 0 what was in `into` does not count, NaN included.

    into, new: contiguous arrays of equal size, dtype (float32 or float64) and context, which must not overlap unless
    they are the same. scale, momentum: finite.
    """
    accumulation(into, new, scale=scale, momentum=momentum)()


@driver_errors("accumulate")
def accumulation(into: Array, new: Array, /, *, scale: float = 1.0, momentum: float = 0.0) -> Callable[[], None]:
    """`accumulate` in two steps: everything is checked here and the kernel built; what comes back starts it."""
    arguments.flat_pair("into", into, "new", new)
    arguments.exclusive({"into": into}, {} if arguments.same_elements(into, new) else {"new": new})
    scale = arguments.finite("scale", scale, into)
    momentum = arguments.finite("momentum", momentum, into)
    queue = into.queue or new.queue
    if queue is None:
        raise ContextError("neither into nor new has a queue; give one of them a queue with with_queue(queue)")
    _check_fp64("into", into, queue)
    build = Build("accumulate.cl", (("DOUBLE", int(into.dtype.itemsize == 8)), ("LANES", 1), ("VEC", 1)))
    proof.require(Launch("accumulate", build, 1, 1), queue.context, queue.device)
    kernel = program.kernel(queue.context, build, "accumulate")

    @driver_errors("accumulate")
    def start() -> None:
        if into.size == 0:
            return
        groups = min(into.size, limits(queue.device).compute_units * _ACCUMULATE_GROUPS)
        memory: tuple[Any, ...] = (into.base_data, _start(into), new.base_data, _start(new))
        kernel.set_args(*memory, into.size, scale, momentum)
        order = Order(queue, (into, new))
        order.note(_enqueue("accumulate", queue, kernel, groups, 1, order.events), (into,))

    return start


def plain_copy(x: Array, y: Array, /, *, stream: bool = False) -> None:
    """y = x by a kernel that does nothing else: the yardstick of oclbn.benchmark.

    x, y: contiguous float32 arrays of equal size that start their buffers. stream: write past the cache, where the
    compiler can.
    """
    arguments.flat_pair("x", x, "y", y)
    queue = queue_of(x)
    facts = limits(queue.device)
    lanes, vec = (1, 8) if facts.kind == "cpu" else (min(256, facts.max_group), 1)
    piece = max(lanes * vec, x.size // (facts.compute_units * _COPY_GROUPS) // (lanes * vec) * (lanes * vec))
    build = Build("copy.cl", (("DOUBLE", 0), ("LANES", lanes), ("STREAM", int(stream)), ("VEC", vec)))
    kernel = program.kernel(queue.context, build, "copy")
    memory: tuple[Any, ...] = (x.base_data, y.base_data)
    kernel.set_args(*memory, x.size, piece)
    order = Order(queue, (x, y))
    order.note(_enqueue("copy", queue, kernel, -(-x.size // piece), lanes, order.events), (y,))


def explain(x: Array, /, *, axis: int = 1, operation: str = "train") -> str:
    """How `operation` ("train", "infer", "backward", "constant" or "moments") on x would run, in one line.

    Behind it stand the forms that come before it and are not used, because they did not prove right on this device.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    if x.size == 0:
        return "nothing to do: x is empty"
    if operation not in OPERATIONS:
        raise ParameterError(f"operation is {operation!r}; one of {', '.join(OPERATIONS)} is wanted")
    prepared = _prepare(operation, x, axis, x if operation in _BACKWARD else None)
    return "; ".join(
        [str(prepared.plan), *(f"not used, as the driver fails it: {fault}" for fault in prepared.failures)]
    )


def plan_of(operation: str, x: Array, axis: int, dy: Array | None = None, out: Array | None = None) -> Plan:
    """What a call with these arguments runs; its kernels are built, as they say how many work-items they bear.

    axis: from 0 on. dy: like x where it is left out.
    """
    backward = operation in _BACKWARD
    return _prepare(operation, x, axis, (x if dy is None else dy) if backward else None, out).plan


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[str, cl.Event]]]:
    """Within the block, the name of each kernel that oclbn enqueues and its event go into a list, in order.

    Holds for the current thread or task; blocks may be nested, and the outer list gets the inner block's launches too.
    Events tell times where the queue was made with PROFILING_ENABLE.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> with recording() as launches:
    ...     _ = batch_norm_train(x, None, None, None, None)
    >>> [name for name, event in launches]
    ['train_resident']
    """
    launches: list[tuple[str, cl.Event]] = []
    token = _recorders.set((*_recorders.get(), launches))
    try:
        yield launches
    finally:
        _recorders.reset(token)


def _enqueue(
    name: str, queue: cl.CommandQueue, kernel: cl.Kernel, groups: int, lanes: int, wait_for: list[cl.Event]
) -> cl.Event:
    """Enqueue a kernel with the arguments that are set; every launch comes through here."""
    event = cl.enqueue_nd_range_kernel(queue, kernel, (groups * lanes,), (lanes,), wait_for=wait_for)
    for launches in _recorders.get():
        launches.append((name, event))
    return event


class _Step:
    """One launch, by a kernel of its own, so that arguments stay set from call to call."""

    def __init__(self, launch: Launch, context: cl.Context) -> None:
        self.name = launch.kernel
        self.kernel = program.new_kernel(context, launch.build, launch.kernel)
        self.groups, self.lanes = launch.groups, launch.lanes
        arguments = program.arguments(launch.build, launch.kernel)
        self._arguments = [name for name, _ in arguments]
        self._buffers = [(index, name) for index, (name, kind) in enumerate(arguments) if kind is None]

    def set_all(self, values: Mapping[str, Any]) -> None:
        """Set every argument, by name."""
        self.kernel.set_args(*[values[name] for name in self._arguments])

    def set_buffers(self, memory: Mapping[str, Any]) -> None:
        """Set the buffers anew: the driver need not keep them alive, and another may get a dead one's address."""
        set_argument = self.kernel.set_arg
        for index, name in self._buffers:
            buffer = memory[name]
            if buffer is not None:  # null pointers stay, and older pyopencl sets none singly
                set_argument(index, buffer)

    def enqueue(self, queue: cl.CommandQueue, wait_for: list[cl.Event]) -> cl.Event:
        """Enqueue with the arguments that are set."""
        return _enqueue(self.name, queue, self.kernel, self.groups, self.lanes, wait_for)


class _Prepared:
    """Everything about a call that its shapes decide; made once per shape and thread."""

    def __init__(
        self,
        plan: Plan,
        context: cl.Context,
        tuning: Tuning,
        constants: Mapping[str, Any],
        failures: tuple[proof.Failure, ...] = (),
    ) -> None:
        self.plan, self._tuning, self.failures = plan, tuning, failures  # the context is its users' (oclbn.kept)
        self._steps = tuple(_Step(launch, context) for launch in plan.launches)
        self._constants = constants
        self._changing: list[Any] | None = None  # offsets, None for no array, and numbers: most calls repeat those

    def anew(self, context: cl.Context) -> _Prepared:
        """The same with kernels of its own, in the same context."""
        return _Prepared(self.plan, context, self._tuning, self._constants, self.failures)

    def set(self, x: Array, arrays: Mapping[str, Array | None], numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Set the kernels' arguments, by the names that they give them; returns what has to live until the launch."""
        memory: dict[str, Any] = {name: None if array is None else array.base_data for name, array in arrays.items()}
        if self.plan.scratch:
            memory["partial"] = scratch(x, self.plan.scratch)
        changing: list[Any] = [None if array is None else array.offset for array in arrays.values()]
        changing += numbers.values()
        if changing == self._changing:
            for step in self._steps:
                step.set_buffers(memory)
        else:
            self._changing = None  # should setting them fail
            starts = {f"{name}_start": 0 if array is None else _start(array) for name, array in arrays.items()}
            for step in self._steps:
                step.set_all({**self._constants, **memory, **starts, **numbers})
            self._changing = changing
        return memory

    def launch(
        self, queue: cl.CommandQueue, touched: Collection[Array | None], written: Sequence[Array | None]
    ) -> None:
        """Enqueue all launches with the arguments that are set, which are of these arrays."""
        order = Order(queue, touched)
        wait_for, begun = order.events, False
        try:
            for step in self._steps:
                event = step.enqueue(queue, wait_for)
                wait_for, begun = [event], True  # in order too: should the first one fail, the second must not begin
        except BaseException:
            if begun:
                order.note(event, ())  # it still reads, and writes what the next call may write as well
            raise
        order.note(event, written)


class _Call(Generic[_R]):
    """One call with everything checked, compiled and allocated: what is left is to run it, once or again and again."""

    def __init__(
        self,
        results: _R,
        prepared: _Prepared,
        x: Array,
        arrays: dict[str, Array | None],
        numbers: dict[str, Any],
        written: Sequence[Array | None],
    ) -> None:
        self.results, self._prepared, self._x = results, prepared, x
        self._arrays, self._numbers, self._written = arrays, numbers, written

    def run(self) -> _R:
        """Enqueue it, by the kernels of all calls with these shapes."""
        memory = self._prepared.set(self._x, self._arrays, self._numbers)
        self._prepared.launch(queue_of(self._x), self._arrays.values(), self._written)
        del memory
        return self.results

    def bound(self) -> Callable[[], _R]:
        """What enqueues it each time, by kernels of its own, whose arguments are set now."""
        self._prepared, queue = self._prepared.anew(queue_of(self._x).context), queue_of(self._x)
        self._memory = self._prepared.set(self._x, self._arrays, self._numbers)  # kernels do not keep their buffers
        arrays = {name: array for name, array in self._arrays.items() if array is not None}
        touched = tuple(arrays.values())
        written = tuple(array for array in self._written if array is not None)

        def step() -> _R:
            arguments.sound(arrays)
            self._prepared.launch(queue, touched, written)
            return self.results

        return step


class _Empty(_Call[_R]):
    """A call on no elements: per-channel results get a value, and what gathers them is started."""

    def __init__(
        self, results: _R, fill: Sequence[Array] = (), value: float = 0, after: Sequence[Callable[[], None]] = ()
    ) -> None:
        self.results, self._fill, self._value, self._after = results, fill, value, after

    def run(self) -> _R:
        for array in self._fill:
            fill(array, self._value)
        for start in self._after:
            start()
        return self.results

    def bound(self) -> Callable[[], _R]:
        return self.run


class _Sequence(_Call[_R]):
    """Several calls that make up one, each of which takes what those before it made."""

    def __init__(self, results: _R, calls: Sequence[_Call[Any]]) -> None:
        self.results, self._calls = results, calls

    def run(self) -> _R:
        for call in self._calls:
            call.run()
        return self.results

    def bound(self) -> Callable[[], _R]:
        steps = [call.bound() for call in self._calls]

        def step() -> _R:
            for one in steps:
                one()
            return self.results

        return step


def _arrays_of(one: Statistics | None, before: str) -> dict[str, Array | None]:
    """The arrays of statistics by their names, with something before those; None where there are no statistics."""
    return {f"{before}{name}": getattr(one, name, None) for name in _MOMENTS}


def _remembered(context: cl.Context, key: Hashable, make: Callable[[], _Prepared]) -> _Prepared:
    """What this thread has prepared in this context under this key; made at first."""
    of_context = kept(context)
    known: dict[Any, _Prepared] | None = getattr(of_context.thread, "prepared", None)
    if known is None:
        known = of_context.thread.prepared = {}
    found = known.get(key)
    if found is None:
        of_context.note(context)
        if len(known) >= _MOST_PREPARED:
            known.clear()
        found = known[key] = make()
    return found


def _prepare_merge(model: Array) -> _Prepared:
    """The kernel that merges statistics like this one."""
    queue, channels = queue_of(model), model.size
    most = limits(queue.device).compute_units * _ACCUMULATE_GROUPS

    def cut(lanes: int) -> tuple[int, dict[str, int]]:
        return min(-(-channels // lanes), most), {"channels": channels}

    return _prepare_single("merge", queue, channels, {"DOUBLE": int(model.dtype.itemsize == 8), "VEC": 1}, cut)


def _prepare_single(
    name: str,
    queue: cl.CommandQueue,
    work: Hashable,
    defines: dict[str, int],
    cut: Callable[[int], tuple[int, dict[str, int]]],
) -> _Prepared:
    """A kernel of its own file, which needs no plan. cut: its groups and numbers, given the work-items of a group."""
    context, device = queue.context, queue.device
    tuning = tuning_for(*tuning_names(device))

    def make() -> _Prepared:
        lanes = min(tuning.lanes, floor_power(limits(device).max_group))
        while True:
            build = Build(f"{name}.cl", (*defines.items(), ("LANES", lanes)))
            room = program.most_lanes(program.kernel(context, build, name), device)
            if room >= lanes:
                break
            lanes = floor_power(room)
        groups, constants = cut(lanes)
        launch = Launch(name, build, groups, lanes)
        proof.require(launch, context, device)
        plan = Plan(name, Geometry(1, 1, 1, 1, 1, 1, 1, 1), (launch,), scratch=0)
        return _Prepared(plan, context, tuning, constants)

    return _remembered(context, (name, work, *defines.values(), device.int_ptr, id(tuning)), make)


def copy_strided(source: Array, target: Array) -> None:
    """target = source, element by element, whatever the orders of the two, on target.queue; of one shape and dtype."""
    if source.size:
        _copying(target, source, target).run()


def _copying(x: Array, source: Array, target: Array) -> _Call[None]:
    """target = source on x.queue, as a part of a call."""
    itemsize = source.dtype.itemsize
    grain = math.gcd(itemsize, source.offset, target.offset)
    found = strided.cut(source.shape, itemsize, source.strides, target.strides, grain)
    prepared = _prepare_single(
        "pack", queue_of(x), found, {"BYTES": found.item}, functools.partial(strided.numbers, found)
    )
    arrays: dict[str, Array | None] = {"source": source, "target": target}
    calls = [
        _Call(None, prepared, x, arrays, {"source_start": begin, "target_start": place}, (target,))
        for begin, place in found.starts(source.offset // found.item, target.offset // found.item)
    ]
    return calls[0] if len(calls) == 1 else _Sequence(None, calls)


def _in_order(
    x: Array, axis: int, dy: Array | None, out: Array | None, call: Callable[[Any, Array | None], _Call[Any]]
) -> _Call[Any]:
    """A call whose dy or out lies in another order than x: copies before and after let it have them in the order of x.

    call: makes the call on another dy and out. Without out, where pyopencl would do nothing with a result that lies in
    the order of x, not even read it, the result is in C order. LayoutError where x itself cannot be walked.
    """
    given = {name: array for name, array in (("dy", dy), ("out", out)) if array is not None}
    astray = arguments.astray(x, axis, {name: array.strides for name, array in given.items()})
    if out is None and not arguments.dense_order(x)[1]:
        out = fresh_result(x, None)
        astray.add("out")
    inner_dy, inner_out = (temporary(x) if name in astray else given.get(name) for name in ("dy", "out"))
    calls: list[_Call[Any]] = []
    if "dy" in astray and inner_dy is not None:
        calls.append(_copying(x, given["dy"], inner_dy))
    calls.append(main := call(inner_dy, inner_out))
    if "out" in astray and inner_out is not None and out is not None:
        calls.append(_copying(x, inner_out, out))
        return _Sequence(out if main.results is inner_out else (out, *main.results[1:]), calls)
    return _Sequence(main.results, calls)


def _prepare(operation: str, x: Array, axis: int, dy: Array | None = None, out: Array | None = None) -> _Prepared:
    """Layout, plan and kernels for these shapes and strides; without `out`, for a result as result_like makes it."""
    queue = queue_of(x)
    device = queue.device
    tuning = tuning_for(*tuning_names(device))
    strides = (x.strides, None if dy is None else dy.strides, None if out is None else out.strides)
    # Addresses stay unique, as what is prepared keeps its objects alive; and a Tuning takes long to be hashed.
    key = (operation, x.shape, strides, x.dtype, axis, device.int_ptr, id(tuning))
    return _remembered(queue.context, key, lambda: _make(operation, x, axis, dy, out, tuning))


def _make(operation: str, x: Array, axis: int, dy: Array | None, out: Array | None, tuning: Tuning) -> _Prepared:
    device = queue_of(x).device
    facts = limits(device)
    _check_fp64("x", x, queue_of(x))
    others: dict[str, tuple[int, ...]] = {}  # by the names that the caller knows
    if dy is not None:
        others["dy"] = dy.strides
    if operation != "moments":
        others["out"] = arguments.dense_strides(x) if out is None else out.strides
    layout = arguments.layout(x, axis, others)
    context = queue_of(x).context

    def most(launch: Launch) -> int:
        return program.most_lanes(program.kernel(context, launch.build, launch.kernel), device)

    problem = layout.problem(x.dtype.itemsize)
    planned, failures = proof.proven_plan(operation, problem, facts, tuning, most, context, device)
    return _Prepared(planned, context, tuning, _constants(operation, planned, layout, ("x", *others)), failures)


def _constants(operation: str, planned: Plan, layout: arguments.Layout, tensors: Sequence[str]) -> dict[str, Any]:
    """The arguments of the kernels that the shapes decide; `tensors` are the layout's, by the caller's names."""
    numbers: dict[str, Any] = asdict(planned.geometry)
    numbers |= {"outer": layout.outer, "channels": layout.channels, "inner": layout.inner}
    numbers["count"] = layout.outer * layout.inner
    result = "dx" if operation in _BACKWARD else "y"
    for name, (row, channel) in zip(tensors, layout.strides, strict=True):
        inside = result if name == "out" else name
        numbers[f"{inside}_row"] = row
        numbers[f"{inside}_channel"] = channel
    return numbers


def dissect(
    operation: str,
    host: np.ndarray[Any, Any],
    axis: int,
    facts: DeviceLimits,
    choices: Mapping[str, Any],
    most: Callable[[Launch], int],
) -> tuple[Plan, dict[str, Any]]:
    """How a call on a tensor like `host` would run on some device: its plan, and all numbers that its kernels get.

    most: how many work-items a group of a launch's kernel may have. Arrays start their buffers; options have their
    defaults; constants are given as a variance.
    """
    tensors = [*(["dy"] if operation in _BACKWARD else []), *(["out"] if operation != "moments" else [])]
    layout = arguments.layout(host, axis, dict.fromkeys(tensors, host.strides))
    planned = fitting_plan(operation, layout.problem(host.dtype.itemsize), facts, Tuning(**choices), most)
    numbers = _constants(operation, planned, layout, ("x", *tensors))
    count = numbers["count"]
    numbers |= {"unbiased": count - 1, "count_rest": count - int(host.dtype.type(count))}
    return planned, numbers | _DEFAULTS


def _check_fp64(name: str, array: Array, queue: cl.CommandQueue) -> None:
    if array.dtype.itemsize == 8 and not limits(queue.device).fp64:
        raise DtypeError(f"{name} is {array.dtype}; {queue.device.name.strip()} computes in float32 only")


def _start(array: Array) -> int:
    """Index in its buffer of an array's first element."""
    return array.offset // array.dtype.itemsize


def _count(x: Array, axis: int) -> int:
    """Values per channel."""
    channels = int(x.shape[axis])
    return x.size // channels if channels else math.prod(map(int, x.shape[:axis] + x.shape[axis + 1 :]))
