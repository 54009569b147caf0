"""Batch normalization of a batch that lies in several places: statistics, their merge, and what is done with them.

    S = merge(statistics(x0), statistics(x1))           # of the parts x0 and x1, wherever they were made
    y0, y1 = normalize(x0, S, scale, bias), normalize(x1, S, scale, bias)
    G = merge(gradient_sums(x0, dy0, S), gradient_sums(x1, dy1, S))
    dx0, dscale, dbias = gradient(x0, dy0, S, G, scale)

Merged statistics are as exact as those of one call on all values, whatever the parts' sizes: mean and m2 are handed on
with what rounding them lost. Arrays that stand in for results of other devices or processes are of x's context.

Shapes, dtypes, orders, events and errors are those of oclbn.functional, where these functions are found as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from pyopencl.array import Array, empty_like

from oclbn.call import arguments, fusing, masks, packed, selected, values
from oclbn.call.calls import Call, Empty, Several
from oclbn.call.making import check, divisor, gathering_numbers, gradients_of, make, training_numbers
from oclbn.call.masks import Selection
from oclbn.call.operating import operation
from oclbn.call.prepared import check_type, count_of, prepare_vector
from oclbn.call.results import allocated, result_like, temporary
from oclbn.elements import numbers_of
from oclbn.errors import ArrayTypeError, ContextError, ParameterError, ShapeError
from oclbn.plan.words import ALONE, Fusion


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


@dataclass(frozen=True)
class GradientSums:
    """The sums over a set of values per channel that the gradient of a whole batch is made of, without loss.

    count: the number of values per channel. batch: that of the statistics which gradient_sums was given, so of the
    whole batch; `mean` is theirs. sum_dy, sum_dy_xmu, sum_xmu: the sums of dy, of dy (x - mean) and of x - mean (which
    is 0 but for the rounding of mean), each with a rest that its rounding has lost. Device arrays of C values each, of
    one dtype.
    """

    count: int
    batch: int
    sum_dy: Array
    sum_dy_rest: Array
    sum_dy_xmu: Array
    sum_dy_xmu_rest: Array
    sum_xmu: Array
    sum_xmu_rest: Array


_MERGES: dict[type, str] = {Statistics: "merge", GradientSums: "merge_sums"}  # the kernel, whose file is called so too
Parts = TypeVar("Parts", Statistics, GradientSums)
_R = TypeVar("_R")


@operation
def statistics(x: Array, /, *, axis: int = 1, mask: Any = None, lengths: Any = None) -> Call[Statistics]:
    """The moments of each channel, and what rounding them to x's dtype loses: `merge` makes one set of several.

    x: (N, C, *spatial). mask, lengths: as batch_norm_train takes them; the count is that of the values inside. Returns
    Statistics with arrays of shape (C,). An empty batch gives count 0 and zeros.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.chosen(x, axis, mask, lengths)
    count = count_of(x, axis) if selection is None else selection.count

    def returns(mean: Array, m2: Array, mean_rest: Array, m2_rest: Array) -> Statistics:
        return Statistics(count, mean, mean_rest, m2, m2_rest)

    return make("moments", x, axis, {}, {}, extra=True, returns=returns, selection=selection)


@operation
def merge(first: Parts, /, *others: Parts) -> Call[Parts]:
    """The statistics of several sets of values as those of all of them, as exact as one call on all; sums likewise.

    first, others: Statistics, or GradientSums, of any counts, 0 too, merged from left to right; all arrays are of one
    size, dtype and context. The work is enqueued on the queue of first's first array, a launch for each
    set that has values but one; results are new arrays of that array's shape. The same sets in the same order give the
    same bits.

    Sums are to be of one batch: ParameterError where their statistics were of other numbers of values.

    Formula: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979; sums are added without loss (D. Knuth's two-sum). ArrayTypeError: something else than one of the
    two, or both; ParameterError: a count that is none.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0], [7.0, 70.0]]))
    >>> whole = merge(statistics(x[:2]), statistics(x[2:]))
    >>> print(whole.count, whole.mean.get(), whole.m2.get())
    4 [ 4. 40.] [  20. 2000.]
    """
    given: dict[str, Any] = {"first": first} | {f"others[{index}]": other for index, other in enumerate(others)}
    kind: Any = GradientSums if isinstance(first, GradientSums) else Statistics
    counts = [_count(name, one, kind) for name, one in given.items()]
    own: dict[str, Any] = {"batch": _batch_of(given)} if isinstance(first, GradientSums) else {}
    came: Any = {key: array for name, one in given.items() for key, array in _arrays(one, kind, f"{name}.").items()}
    arguments.flat(came)
    total = arguments.count("the sum of all counts", sum(counts))
    name, model = next(iter(_arrays(first, kind, "first.").items()))
    if model is None or model.queue is None:
        raise ContextError(f"{name} has no queue; give it one with {name}.with_queue(queue)")
    check_type(name, model.dtype, model.queue)
    names = _names(kind)
    prepared = prepare_vector(_MERGES[kind], model, "channels") if model.size else None
    like: Any = packed.dense_model(model, model)
    made = allocated(model, model.nbytes, lambda: [empty_like(like, model.queue, model.allocator) for _ in names])
    result: Any = kind(total, **own, **dict(zip(names, made, strict=True)))
    if prepared is None:
        return Empty(result)
    own, copies = packed.vectors(model, came)
    parts = [
        replace(one, **{key: own[f"{name}.{key}"] for key in names}) if copies else one for name, one in given.items()
    ]
    full = [one for one in parts if one.count] or parts[:1]
    so_far, calls = full[0], []
    for one in full[1:] or [None]:
        arrays = _arrays(so_far, kind, "first_") | _arrays(one, kind, "second_") | _arrays(result, kind, "")
        numbers = {"first_count": so_far.count, "second_count": one.count if one else 0}
        calls.append(Call(result, prepared, model, arrays, numbers, made))
        so_far = replace(result, count=sum(numbers.values()))
    main = Several(result, calls)
    return packed.Packed(result, came, copies, main, ()) if copies else main


@operation
def normalize(
    x: Array,
    statistics: Statistics,
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
    mask: Any = None,
    lengths: Any = None,
    outside: str = "zero",
) -> Call[Array]:
    """Normalise a part of a batch with the statistics of all of it, and move the running ones.

    x: (N, C, *spatial), channels on `axis`. statistics: of at least two values per channel, with arrays of x's dtype;
    with those of x itself the results are batch_norm_train's. The rest is as batch_norm_train takes it: where several
    parts share running statistics, give them in one call only, as each moves them. Returns y, like x; out: an array
    for it. An empty part gives an empty y and moves nothing.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(normalize(x[:1], statistics(x), epsilon=0.0).get())
    [[-1. -1.]]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.chosen(x, axis, mask, lengths, outside)
    count = _of_a_batch(x, axis, statistics, selection)
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
    numbers["count"] = count
    fusion = check("normalize", x, axis, given, out, order, fusion=fused.fusion)
    options: dict[str, Any] = {"out": out, "order": order, "like": scale, "fusion": fusion, "selection": selection}
    return part_output(x, axis, given, statistics, numbers, returns=lambda y, *saved: y, **options)


def part_output(
    x: Array,
    axis: int,
    given: Mapping[str, Array | None],
    statistics: Statistics,
    numbers: Mapping[str, Any],
    returns: Callable[..., _R],
    **options: Any,
) -> Call[_R]:
    """What `normalize` does with arguments that are checked; returns: of the output and what is saved."""
    sets = {f"set_{name}": array for name, array in _arrays(statistics, Statistics, "").items()}
    return make("normalize", x, axis, {**given, **sets, "counts": None}, numbers, returns=returns, **options)


@operation
def move_running(
    statistics: Statistics,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    /,
    *,
    factor: float = 0.1,
    guard: bool = True,
    skipped: Array | None = None,
    entered: Array | None = None,
    init_factor: float = 1.0,
    estimator: str = "sample",
) -> Call[None]:
    """Move running statistics by those of a batch, or of all data, and normalise nothing.

    statistics: of at least two values per channel (ShapeError); those of none move nothing. running_mean, running_var:
    C values of the statistics' dtype that are updated in place, or None. The rest is as batch_norm_train takes it, and
    so are the bits: with factor 1 the running statistics become those of the statistics. The work is enqueued on the
    queue of statistics.mean.

    >>> mean, var = gpuarray.zeros(2), gpuarray.ones(2)
    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> move_running(statistics(x), mean, var, factor=1.0)
    >>> print(mean.get(), var.get())
    [ 2. 20.] [  2. 200.]
    """
    count = _count("statistics", statistics, Statistics)
    rows = _arrays(statistics, Statistics, "statistics.")
    running = {"running_mean": running_mean, "running_var": running_var}
    arguments.flat(rows | {name: array for name, array in running.items() if array is not None})
    if statistics.mean.queue is None:
        raise ContextError("statistics.mean has no queue; give it one with statistics.mean.with_queue(queue)")
    check_type("statistics.mean", statistics.mean.dtype, statistics.mean.queue)
    if not statistics.mean.size:
        return Empty(None)
    # a part of the batch of one value per channel, whose y nobody sees: the kernel that writes y moves them as well
    one = temporary(statistics.mean, (1, statistics.mean.size), statistics.mean.dtype)
    given: dict[str, Array | None] = {"scale": None, "bias": None, **running, "skipped": skipped, "entered": entered}
    numbers = training_numbers(one, 1.0, factor, init_factor, guard) | divisor(count, estimator) | {"count": count}
    check("normalize", one, 1, given, None)
    if not count:
        return Empty(None)
    _of_a_batch(one, 1, statistics)
    return part_output(one, 1, given, statistics, numbers, returns=lambda *made: None)


@operation
def gradient_sums(
    x: Array,
    dy: Array,
    statistics: Statistics,
    /,
    *,
    axis: int = 1,
    activation: Any = None,
    scale: Array | None = None,
    bias: Array | None = None,
    epsilon: float = 1e-5,
    y: Array | None = None,
    residual: Array | None = None,
    mask: Any = None,
    lengths: Any = None,
) -> Call[GradientSums]:
    """The sums that the gradient of a batch needs, over a part of it: `merge` makes one of those of all parts.

    x, dy: (N, C, *spatial), channels on `axis`. statistics: of the whole batch. Behind an activation: that of
    normalize, and the arrays that batch_norm_backward takes for it; scale, bias and epsilon are those of normalize, and
    count where the derivative is not made from y. mask, lengths: those of normalize. Returns GradientSums with arrays
    of shape (C,). An empty part gives count 0 and zeros.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.chosen(x, axis, mask, lengths)
    batch = _of_a_batch(x, axis, statistics, selection)
    count = count_of(x, axis) if selection is None else selection.count
    fused = fusing.behind(activation, y, residual, False)
    given: dict[str, Any] = {"dy": dy, "scale": scale, "bias": bias, "save_mean": statistics.mean, "save_invstd": None}
    given |= fused.tensors
    from_x = fused.from_x
    numbers = part_numbers(x, batch, epsilon)
    if from_x:
        given["save_invstd"] = temporary(x, (x.shape[axis],), numbers_of(x.dtype))
    fusion = check("sums", x, axis, given, None, fusion=fused.fusion)
    options: dict[str, Any] = {"returns": lambda *made: GradientSums(count, batch, *made), "fusion": fusion}
    options["selection"] = selection
    main = make("sums", x, axis, given, fused.numbers, **options)
    return _behind_invstd(x, statistics, given["save_invstd"], numbers, main) if from_x and x.size else main


@operation
def gradient(
    x: Array,
    dy: Array,
    statistics: Statistics,
    sums: GradientSums,
    /,
    scale: Array | None = None,
    *,
    epsilon: float = 1e-5,
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
    mask: Any = None,
    lengths: Any = None,
    outside: str = "zero",
) -> Call[tuple[Array, ...]]:
    """Gradients of a part of a batch, with the statistics and the sums of all of it.

    x, dy: (N, C, *spatial), channels on `axis`. statistics, sums: of the same number of values per channel;
    ParameterError otherwise. scale: C values, or None for 1. epsilon: as in normalize. activation: that of normalize
    and gradient_sums. The rest is as batch_norm_backward takes it.

    Returns (dx, dscale, dbias), and with dresidual that as well: dx like x; dscale and dbias, C values each, are those
    of the whole batch, the same for every part, an empty one too.
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    selection = masks.behind(x, axis, mask, lengths, outside)
    count = _of_a_batch(x, axis, statistics, selection)
    if _count("sums", sums, GradientSums) != count:
        raise ParameterError(f"sums.count is {sums.count}; {count} is wanted, as the statistics are of so many values")
    if sums.batch != count:
        raise ParameterError(
            f"sums are of a batch of {sums.batch} values per channel, statistics of one of {count}; gradient_sums "
            "wants the statistics of the whole batch, as gradient does"
        )
    rows = _arrays(sums, GradientSums, "sums.")
    arguments.per_channel(x, axis, rows, rows, rows)
    fused = fusing.behind(activation, y, residual, dresidual, copied=selection is not None)
    numbers = part_numbers(x, count, epsilon, grad_scale, grad_momentum) | fused.numbers
    deviation = temporary(x, (x.shape[axis],), numbers_of(x.dtype))
    gathered: dict[str, Array | None] = {"scale_grad": scale_grad, "bias_grad": bias_grad}
    given = {"dy": dy, "scale": scale, "bias": bias, "save_mean": statistics.mean, "save_invstd": deviation}
    given |= gathered | fused.tensors
    fusion = check("gradient", x, axis, given, out, order, fusion=fused.fusion)
    options: dict[str, Any] = {"out": out, "order": order, "fusion": fusion, "dresidual": dresidual}
    main = part_gradient(x, axis, given, sums, numbers, selection=selection, **options)
    return _behind_invstd(x, statistics, deviation, numbers, main)


def _behind_invstd(
    x: Array, statistics: Statistics, deviation: Array, numbers: Mapping[str, Any], main: Call[Any]
) -> Call[Any]:
    """A call on 1 / deviation, which is computed before."""
    prepared = prepare_vector("invstd", deviation, "channels")
    came = {"statistics.m2": statistics.m2, "statistics.m2_rest": statistics.m2_rest}
    own, copies = packed.vectors(x, came)
    arrays: dict[str, Array | None] = {name.removeprefix("statistics."): array for name, array in own.items()}
    first = Call(None, prepared, x, {**arrays, "save_invstd": deviation}, numbers, (deviation,))
    if copies:
        return packed.Packed(main.results, came, [*copies, first], main, ())
    return Several(main.results, [first, main])


def part_gradient(
    x: Array,
    axis: int,
    given: Mapping[str, Array | None],
    sums: GradientSums,
    numbers: Mapping[str, Any],
    *,
    out: Array | None,
    order: str = "K",
    fusion: Fusion = ALONE,
    dresidual: Any = False,
    selection: Selection | None = None,
) -> Call[tuple[Array, ...]]:
    """What `gradient` does once there is invstd, of arguments that are checked.

    given: the arrays of the operation, but for the sums. dresidual: as `gradient` was given it. selection: as `make`
    takes it.
    """
    given = dict(given)
    given |= {f"set_{name.removeprefix('sum_')}": array for name, array in _arrays(sums, GradientSums, "").items()}
    scale, dy = given["scale"], given["dy"]
    assert dy is not None
    if x.size and (selection is None or selection.count):
        options: dict[str, Any] = {"out": out, "order": order, "like": scale, "fusion": fusion, "selection": selection}
        return make("gradient", x, axis, given, numbers, returns=gradients_of(fusion, dy, dresidual), **options)
    # dscale and dbias are those of any part: of one with a value per channel, whose dx nobody sees
    dx = result_like(x, order) if out is None else out
    second = given.pop("dresidual", None) if fusion.second else dy
    others = (result_like(dx, order) if second is None else second,) if fusion.second or dresidual is True else ()
    one = given["dy"] = temporary(x, (1, x.shape[axis]), x.dtype)
    given = {name: array for name, array in given.items() if name not in ("y", "residual", "dresidual")}
    main = make("gradient", one, 1, given, numbers, like=scale, returns=lambda _, *sums: (dx, *sums, *others))
    if x.size and selection is not None:
        named = {"x": x, **{name: array for name, array in given.items() if array is not None}, "out": dx}
        return packed.Packed(main.results, named, selected.nothing_inside(selection, x, axis, (dx, *others)), main, ())
    return main


def part_numbers(x: Array, count: int, epsilon: Any, grad_scale: Any = 1.0, grad_momentum: Any = 0.0) -> dict[str, Any]:
    """What the gradient of a part of a batch of `count` values is told beside arrays; ParameterError as gradient's."""
    return {
        "epsilon": arguments.epsilon_of(epsilon, x),
        **gathering_numbers(x, grad_scale, grad_momentum),
        "count": count,
        "count_rest": count - int(numbers_of(x.dtype).type(count)),
    }


def _count(name: str, one: Any, kind: type[Any]) -> int:
    """Its number of values; ArrayTypeError where it is not of this kind."""
    if not isinstance(one, kind):
        makes = "statistics(x)" if kind is Statistics else "gradient_sums(x, dy, statistics)"
        wanted = f"{kind.__name__} {'are' if kind is Statistics else 'is'} wanted, as {makes} gives"
        hint = ""
        if isinstance(one, tuple) and [type(part) for part in one] == [int, Array, Array]:
            hint = "; what moments(x) gives is rounded, and is not merged"
        elif isinstance(one, (list, tuple)) and name == "first":
            hint = "; give them one by one: merge(*parts)"
        raise ArrayTypeError(f"{name} is {values.kind_of(one)}; {wanted}{hint}")
    return arguments.count(f"{name}.count", one.count)


def _of_a_batch(x: Array, axis: int, statistics: Any, selection: Selection | None = None) -> int:
    """The number of values that the statistics are of, whose arrays fit x."""
    count = _count("statistics", statistics, Statistics)
    rows = _arrays(statistics, Statistics, "statistics.")
    arguments.per_channel(x, axis, rows, rows, rows)
    if count < 2:
        raise ShapeError(f"statistics are of {count} values per channel; two at least are wanted, for a variance")
    own = count_of(x, axis) if selection is None else selection.count
    if own > count:
        raise ParameterError(
            f"statistics are of {count} values per channel, and x, a part of the batch, has {own}; those "
            "of the whole batch are wanted, as merge(*parts) gives"
        )
    return count


def _batch_of(given: Mapping[str, GradientSums]) -> int:
    """The number of values of the one batch that all sums, by name, are of."""
    batches = {name: arguments.count(f"{name}.batch", one.batch) for name, one in given.items()}
    for name, batch in batches.items():
        if batch != batches["first"]:
            raise ParameterError(
                f"{name} is of a batch of {batch} values per channel, first of one of {batches['first']}; sums about "
                "the statistics of one whole batch are wanted"
            )
    return batches["first"]


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """Of the arrays of statistics or sums."""
    return tuple(field.name for field in fields(kind) if field.name not in ("count", "batch"))


def _arrays(one: Any, kind: type, before: str) -> dict[str, Array | None]:
    """The arrays by their names, with something before those; None where there is nothing that has them."""
    return {f"{before}{name}": getattr(one, name, None) for name in _names(kind)}
