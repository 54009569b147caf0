"""From checked arguments to a call, as the table of operations says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pyopencl.array import Array

from oclbn.call import arguments, overlap, packed, selected, values
from oclbn.call.calls import Call, Empty
from oclbn.call.copying import copying
from oclbn.call.layout import NotWalked, result_strides
from oclbn.call.masks import Selection
from oclbn.call.prepared import check_type, prepared_for
from oclbn.call.request import Request
from oclbn.call.results import fresh_result, model_of, per_channel_results, queue_of, result_like, temporary
from oclbn.elements import numbers_of
from oclbn.errors import ParameterError, ShapeError
from oclbn.plan.operations import Operation, operation_of
from oclbn.plan.words import ALONE, Fusion

_IN_PLACE = (
    "; to normalise in place give the batch's mean and var, of statistics(x), to batch_norm_infer(x, ..., out=x): "
    "the guide shows it (Functions, Results in place)"
)
ESTIMATORS = {"sample": 1, "population": 0}  # of a variance: what is taken off the number of values
_FAR = 1e30
Arrays = Mapping[str, Array | None]


def together(*made: Array) -> tuple[Array, ...]:
    """What most calls return: all results."""
    return made


def gradients_of(fusion: Fusion, dy: Array, dresidual: Any) -> Callable[..., tuple[Array, ...]]:
    """What a backward call returns: all results, the residual's gradient last, if that is wanted.

    Without an activation it is what came, dy, unless there is an array for it.
    """
    if fusion.second:
        return lambda dx, second, dscale, dbias: (dx, dscale, dbias, second)
    return (lambda *made: (*made, dy)) if dresidual is True else together


def training_numbers(x: Array, epsilon: Any, factor: Any, init_factor: Any, guard: Any) -> dict[str, Any]:
    """What training, or a part of it, is told beside arrays; ParameterError names what is none."""
    return {
        "epsilon": arguments.epsilon_of(epsilon, x),
        "factor": values.number("factor", factor, 0.0, 1.0),
        "init_factor": values.number("init_factor", init_factor, 0.0, 1.0),
        "guard": int(bool(guard)),
    }


def renorm_limits(
    r_max: Any, d_max: Any, *, error: type[ParameterError] = ParameterError, label: str = ""
) -> dict[str, float]:
    """How far the corrections of batch renormalization may go; ParameterError names what is no such number."""
    return {
        "r_max": values.number(f"{label}r_max", r_max, 1.0, _FAR, error=error),
        "d_max": values.number(f"{label}d_max", d_max, 0.0, _FAR, error=error),
    }


def wants_two(x: Array, count: int, selecting: str = "") -> None:
    """ShapeError where training is to find a variance of one value per channel, or of one that is selected by this."""
    if count == 1 and x.size:
        inside = f", and one position is inside {selecting}" if selecting else ""
        raise ShapeError(
            f"x has shape {x.shape}{inside}: one value per channel has no variance; training wants at least two"
        )


def taken_off(estimator: Any) -> int:
    """From the number of values, for what m2 is divided by; ParameterError names what is no estimator."""
    if not (isinstance(estimator, str) and estimator in ESTIMATORS):
        raise ParameterError(f"estimator is {values.shown(estimator)}; {' or '.join(map(repr, ESTIMATORS))} is wanted")
    return ESTIMATORS[estimator]


def divisor(count: int, estimator: Any) -> dict[str, int]:
    """What a batch's m2 is divided by in a running variance."""
    return {"unbiased": count - taken_off(estimator)}


def gathering_numbers(x: Array, grad_scale: Any, grad_momentum: Any) -> dict[str, Any]:
    """How gradients are gathered; ParameterError names what is no number."""
    return {
        "grad_scale": arguments.finite("grad_scale", grad_scale, x),
        "grad_momentum": arguments.finite("grad_momentum", grad_momentum, x),
    }


def check(
    operation: str,
    x: Array,
    axis: int,
    given: Arrays,
    out: Array | None,
    order: Any = "K",
    needed: Collection[str] = (),
    fusion: Fusion = ALONE,
    groups: int = 1,
) -> Fusion:
    """The errors of oclbn.functional for everything beside x and axis, by the names of the operation's arrays.

    needed: what may not be None, if that is more than the operation always needs. fusion: what is done besides,
    whose tensors are among those that are given. groups: batches that x is. Returns what kernels are told of the
    fusion.
    """
    wanted = operation_of(operation, fusion)
    arguments.order_of(order)
    for name in wanted.others:
        arguments.like(name, given[name], x)
    reads = arguments.per_channel(x, axis, given, wanted.read, needed or wanted.needed, groups)
    for name in wanted.others:
        reads[name] = given[name]  # type: ignore[assignment]
    writes = arguments.per_channel(x, axis, given, wanted.state) if wanted.state else {}
    if out is not None:
        writes["out"] = arguments.like("out", out, x)
    second = given.get(wanted.second) if wanted.second else None
    if second is not None:
        writes[wanted.second] = arguments.like_result(wanted.second, second, x, out)
    shared = False
    if writes:
        reads["x"] = x
        for result in (out, second):
            if result is not None and (under := _under(wanted, result, reads)):
                del reads[under]
                shared |= under != "x"
        advice = _IN_PLACE if operation in ("train", "normalize") else ""
        overlap.exclusive(writes, reads, {"out": advice})
    return fusion._replace(shared=True) if shared else fusion


def _under(wanted: Operation, result: Array, reads: Mapping[str, Array]) -> str:
    """The tensor that is read where this one is written, element by element, if the operation allows that."""
    for name in wanted.in_place:
        read = reads.get(name)
        if read is not None and read.dtype == result.dtype and overlap.same_elements(result, read):
            return name
    return ""


def all_gathered(
    x: Array, main: Call[Any], into: Mapping[str, Array], start: Mapping[str, Callable[[], None]]
) -> Call[Any]:
    """A call, and what gathers its results in arrays, by their names: where one fails, all are as they were."""
    old = {name: temporary(x, array.shape, array.dtype) for name, array in into.items()}
    keeping = [copying(x, into[name], array) for name, array in old.items()]
    after = [Empty(None, after=[start[name]]) for name in into]
    return packed.Packed(main.results, into, keeping, main, after, [copying(x, old[name], into[name]) for name in into])


def make(
    operation: str,
    x: Array,
    axis: int,
    given: Arrays,
    numbers: Mapping[str, Any],
    *,
    out: Array | None = None,
    like: Array | None = None,
    extra: bool = False,
    places: Sequence[Array] | None = None,
    order: str = "K",
    returns: Callable[..., Any] = together,
    gather: Callable[[Array, Array], Callable[[], None]] | None = None,
    fusion: Fusion = ALONE,
    groups: int = 1,
    selection: Selection | None = None,
) -> Call[Any]:
    """The call, of arguments that are checked.

    given: the operation's arrays but for x, by name. out: an array for the tensor that is written. like: what has the
    shape of per-channel results; None: (C,). extra: the results that most calls leave out are wanted as well. places:
    arrays for the per-channel results; None: new ones. order: of the tensor that is written, where there is no out.
    returns: what to return, given the tensor that is written, where there is one, and the per-channel results; all, if
    it is not said. gather: of an empty batch, what starts the gathering of a result (the second array) in an array of
    the state. fusion: as `check` returns it; of a second tensor that is written there is None or an array among those
    that are given. groups: batches that x is. selection: the positions that the call is of; None: all of them.
    """
    wanted = operation_of(operation, fusion)
    if wanted.per_batch and wanted.made == wanted.per_batch:
        like = model_of(queue_of(x).context, (groups, x.shape[axis]), numbers_of(x.dtype))
    names = wanted.made if not extra else wanted.made + wanted.extra
    if x.size == 0:
        like = packed.dense_model(x, like)
        made = per_channel_results(x, axis, like, len(names)) if places is None else list(places)
        results = dict(zip(names, made, strict=True))
        tensors = [result_like(x, order) if out is None else out] if wanted.result else []
        if wanted.second:
            other = given.get(wanted.second)
            tensors.append(result_like(tensors[0], order) if other is None else other)
        main = Empty(returns(*tensors, *made), made, wanted.empty)
        into = {name: array for name in wanted.gathered if (array := given[name]) is not None and array.size}
        if not (into and gather):
            return main
        return all_gathered(x, main, into, {name: gather(into[name], results[wanted.gathered[name]]) for name in into})
    own: list[Array] = []

    def new(strides: tuple[int, ...] | None, dtype: Any = None) -> Array:
        own.append(fresh_result(x, strides, dtype))
        return own[-1]

    if selection is not None:
        check_type("x", x.dtype, queue_of(x))
    strides, fresh = None, out is None
    if wanted.result and out is None:
        itemsize = x.dtype.itemsize
        strides, alike = result_strides(x.shape, x.strides, itemsize, itemsize, order)
        if not alike:
            out = new(strides)
    if wanted.second and given.get(wanted.second) is None and out is not None:
        given = {**given, wanted.second: new(out.strides, out.dtype)}
    prepared = None
    if selection is None:
        try:
            packed.look(wanted, x, given, out)
            prepared = prepared_for(Request.of(operation, x, axis, given, out, fusion, groups), queue_of(x))
        except NotWalked:
            pass
    if prepared is None:
        if wanted.result and out is None:
            out = fresh_result(x, strides)
        if wanted.second and given.get(wanted.second) is None:
            given = {**given, wanted.second: fresh_result(x, strides)}
        like = packed.dense_model(x, like)
        made = per_channel_results(x, axis, like, len(names)) if places is None else list(places)
        second = (given[wanted.second],) if wanted.second else ()
        results = returns(*((out,) if wanted.result else ()), *second, *made)

        if selection is not None:

            def of_those(x: Array, given: Arrays, out: Array | None) -> Call[Any]:
                others: dict[str, Any] = {"extra": extra, "places": made, "gather": gather}
                apart = fusion._replace(shared=False)  # what is put back lies nowhere else before
                return make(operation, x, selected.AXIS, given, numbers, out=out, fusion=apart, **others)

            return selected.call(wanted, selection, x, axis, given, out, results, of_those)

        def again(x: Array, given: Arrays, out: Array | None) -> Call[Any]:
            options: dict[str, Any] = {"extra": extra, "places": made, "fusion": fusion, "groups": groups}
            return make(operation, x, axis, given, numbers, out=out, **options)

        return packed.call(wanted, x, axis, given, out, fresh, results, again)
    tensors = [new(strides) if out is None else out] if wanted.result else []
    arrays: dict[str, Array | None] = {"x": x, **wanted.left_out, **given}
    if wanted.called:
        arrays["aux"] = arrays.pop(wanted.called)
    if tensors:
        arrays[wanted.result] = tensors[0]
    if wanted.second:
        other = given.get(wanted.second)
        tensors.append(new(strides) if other is None else other)
        arrays[wanted.second] = tensors[1]
    written = tensors
    if names:
        made = per_channel_results(x, axis, like, len(names)) if places is None else list(places)
        own += made if places is None else ()
        arrays.update(zip(names, made, strict=True))
        written = tensors + made
    results = returns(*written)
    changed = written + [given[name] for name in wanted.state]
    return Call(results, prepared, x, arrays, numbers, changed, wanted.callers_names, own)
