"""Calls on arrays that kernels do not walk as they lie: packed before, unpacked after, by copies that are parts of it.

Which arrays that are is decided here, for a call as for what `explain` tells. Tensors are packed in one order that all
kernels of a call walk together; arrays of a number per channel as vectors. What is written in place is unpacked last,
so that a launch that fails before leaves it as it was; and what the call has written by then gets back what it held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyopencl as cl
from pyopencl.array import Array

from oclbn.call import arguments
from oclbn.call.calls import Call
from oclbn.call.copying import copying
from oclbn.call.layout import NotWalked, Strides, dense_strides, result_strides, side_by_side, walk
from oclbn.call.request import Request
from oclbn.call.results import model_of, queue_of, temporary
from oclbn.elements import is_narrow, numbers_of
from oclbn.errors import OclbnError
from oclbn.plan.operations import Operation, operation_of
from oclbn.plan.words import ALONE, Fusion

_R = TypeVar("_R")
_GAPS = "its elements do not lie side by side in C order"

Arrays = Mapping[str, Array | None]


@dataclass(frozen=True)
class Packing:
    """What a call copies, by the arrays' names, each with the reason; "out" is the tensor that is written."""

    order: Strides  # of the tensors as kernels walk them, told by strides of any array that lies so
    before: Mapping[str, str]
    after: Mapping[str, str]
    held: tuple[str, ...] = ()  # written in place before all is unpacked: what they held is kept until then

    def __str__(self) -> str:
        parts = [
            f"{when}: {', '.join(f'{_shown(name)} ({reason})' for name, reason in copied.items())}"
            for when, copied in (("packed before", self.before), ("unpacked after", self.after))
            if copied
        ]
        held = f"kept until all is unpacked: what {', '.join(self.held)} held"
        return "; ".join([*parts, held] if self.held else parts)


def _shown(name: str) -> str:
    return "the result" if name == "result" else name


def is_loose(array: Array) -> bool:
    """Whether an array of a number per channel, or another vector, has to be packed: for its places or its type."""
    itemsize = array.dtype.itemsize
    return (
        is_narrow(array.dtype) or array.offset % itemsize != 0 or not side_by_side(array.shape, array.strides, itemsize)
    )


def look(operation: Operation, x: Array, given: Arrays, out: Array | None) -> None:
    """NotWalked where an array has to be packed whatever the others' orders: off its place, or a vector with gaps."""
    others = operation.others
    if x.offset % x.dtype.itemsize or (out is not None and out.offset % out.dtype.itemsize):
        raise NotWalked
    second = operation.second
    for name, array in given.items():
        if array is not None:
            itemsize = array.dtype.itemsize
            if array.offset % itemsize or not (
                name in others
                or name == second
                or (
                    itemsize > 2 and side_by_side(array.shape, array.strides, itemsize)
                )  # as is_loose has it, but sooner
            ):
                raise NotWalked


def packing(operation: Operation, x: Array, axis: int, given: Arrays, out: Array | None, fresh: bool) -> Packing:
    """What has to be copied; nothing where kernels walk all as it lies.

    given: the operation's arrays but for x, by name. out: for the tensor that is written, if there is one; fresh: it is
    nobody's yet.
    """
    second = operation.second
    tensors = {name: array for name in (*operation.others, second) if (array := given.get(name)) is not None}
    if out is not None:
        tensors["out"] = out
    before, after = {}, {}
    order, astray = _order(x, axis, tensors, operation.apart)
    if order is None:
        off = bool(x.offset % x.dtype.itemsize)
        before["x"] = _off(x) if off else f"no kernel reads strides of {x.strides} bytes with channels on axis {axis}"
        order, astray = _packed_order(x, axis, tensors, operation.apart)
    for name, array in tensors.items():
        if name in astray:
            reason = _off(array) if array.offset % array.dtype.itemsize else "it lies otherwise than x"
            if name in ("out", second):
                called = "result" if fresh and name == "out" else name
                after[called] = reason if not before.get("x") else f"{reason} as packed"
            else:
                before[name] = reason
    vectors = {name: array for name, array in given.items() if array is not None and name not in tensors}
    loose = [name for name, array in vectors.items() if is_loose(array)]
    before |= {name: _why(vectors[name]) for name in loose}
    state = [name for name in operation.state if name in vectors]
    after = {
        name: _why(vectors[name]) for name in state if name in loose
    } | after  # a tensor last: what it held is not kept
    held = tuple(state) if len({*after, *state}) > 1 and after else ()  # one copy alone fails or is done
    return Packing(order, before, after, held)


def _why(vector: Array) -> str:
    return f"it is {vector.dtype}" if is_narrow(vector.dtype) else _GAPS


def _off(array: Array) -> str:
    return f"its elements do not lie at multiples of {array.dtype.itemsize} bytes"


def _order(x: Array, axis: int, tensors: Mapping[str, Array], apart: bool) -> tuple[Strides | None, set[str]]:
    """x's order and who is not walked in it; None where x itself is not."""
    found = None
    if not x.offset % x.dtype.itemsize:
        found = walk(x.shape, axis, x.strides, x.dtype.itemsize, _lying(tensors), apart)
    if found is None:
        return None, set()
    return x.strides, found | {name for name, array in tensors.items() if array.offset % array.dtype.itemsize}


def _packed_order(x: Array, axis: int, tensors: Mapping[str, Array], apart: bool) -> tuple[Strides, set[str]]:
    """The order that leaves the fewest tensors to be copied once x is: its own, that of another one, or C's."""
    best: tuple[Strides, set[str]] | None = None
    off = {name for name, array in tensors.items() if array.offset % array.dtype.itemsize}
    for order in (x.strides, (0,) * len(x.shape), *(array.strides for array in tensors.values())):
        dense = dense_strides(x.shape, order, x.dtype.itemsize)
        astray = walk(x.shape, axis, dense, x.dtype.itemsize, _lying(tensors), apart)
        if astray is None:
            continue
        if best is None or len(astray | off) < len(best[1]):
            best = dense, astray | off
    assert best is not None  # what has no gaps is walked in C order, and in any where samples need not be apart
    return best


def _lying(tensors: Mapping[str, Array]) -> dict[str, tuple[Strides, int]]:
    return {name: (array.strides, array.dtype.itemsize) for name, array in tensors.items()}


def call(
    operation: Operation,
    x: Array,
    axis: int,
    given: Arrays,
    out: Array | None,
    fresh: bool,
    results: _R,
    inner: Callable[[Array, Arrays, Array | None], Call[Any]],
) -> Call[_R]:
    """A call of which some arrays have to be packed.

    results: what it returns. inner: makes the call on another x, other arrays and another out.
    """
    found = packing(operation, x, axis, given, out, fresh)
    named = {"x": x, **{name: array for name, array in given.items() if array is not None}}
    if out is not None:
        named["out"] = out
    own = {
        name: _tensor(x, named[name], found.order) if name in operation.tensors else _vector(x, named[name])
        for name in found.before
    }
    before = [copying(x, named[name], own[name]) for name in found.before]
    inner_out, after = out, []
    second: dict[str, Array] = {}
    for name in found.after:
        if name in own:
            after.append(copying(x, own[name], named[name]))
        elif name == operation.second:
            second[name] = _tensor(x, named[name], found.order)
            after.append(copying(x, second[name], named[name]))
        elif out is not None:
            in_place = "x" in operation.in_place and "x" in own and out.dtype == x.dtype
            inner_out = own["x"] if in_place else _tensor(x, out, found.order)
            after.append(copying(x, inner_out, out))
    undo = []
    for name in found.held:
        old = temporary(x, named[name].shape, named[name].dtype)
        before.append(copying(x, named[name], old))
        undo.append(copying(x, old, named[name]))
    replaced = {name: own[name] for name in own if name != "x"}
    main = inner(own.get("x", x), {**given, **replaced, **second}, inner_out)
    return Packed(results, named, before, main, after, undo)


def as_walked(
    operation: str,
    x: Array,
    axis: int,
    given: Arrays,
    out: Array | None,
    order: str,
    fusion: Fusion = ALONE,
    groups: int = 1,
) -> tuple[Packing | None, Request]:
    """What a call packs, None for nothing, and what it asks of kernels then.

    Other tensors that are not given are taken to lie as x is walked; out, where there is none, is the result.
    """
    wanted, context, itemsize, fresh = (
        operation_of(operation, fusion),
        queue_of(x).context,
        x.dtype.itemsize,
        out is None,
    )
    strides, alike = result_strides(x.shape, x.strides, itemsize, itemsize, order)
    made = model_of(context, x.shape, x.dtype, strides) if wanted.result and fresh else out
    if wanted.second and given.get(wanted.second) is None and not (fresh and alike):
        given = {**given, wanted.second: made}
    taken = {**dict.fromkeys(wanted.others, x), **given}
    asked = Request.of(operation, x, axis, taken, None if fresh and alike else made, fusion, groups)
    try:
        look(wanted, x, given, made)
        asked.layout()
    except NotWalked:
        found = packing(wanted, x, axis, given, made, fresh)
    else:
        return None, asked

    def walked(array: Array) -> Array:
        dense = dense_strides(array.shape, found.order, array.dtype.itemsize)
        return model_of(context, array.shape, array.dtype, dense)

    model = walked(x) if "x" in found.before else x
    others = {}
    for name in wanted.others:
        array = given.get(name)
        others[name] = model if array is None else walked(array) if name in found.before else array
    if made is not None and found.after.keys() & {"out", "result"}:
        made = walked(made)
    if wanted.second and (other := given.get(wanted.second)) is not None:
        others[wanted.second] = walked(other) if wanted.second in found.after else other
    return found, Request.of(operation, model, axis, others, made, fusion, groups)


def vectors(x: Array, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], list[Call[None]]]:
    """The arrays, those with gaps replaced by vectors of the same elements in C order, and what fills these."""
    own, copies = dict(arrays), []
    for name, array in arrays.items():
        if array.size and is_loose(array):
            own[name] = _vector(x, array)
            copies.append(copying(x, array, own[name]))
    return own, copies


def dense_model(x: Array, like: Array | None) -> Array | None:
    """What results may be made like: `like`, or something of its shape and type without gaps."""
    if like is None or not is_loose(like):
        return like
    return model_of(queue_of(x).context, like.shape, numbers_of(like.dtype))


def dense(array: Array, queue: cl.CommandQueue) -> Array:
    """The array, on a queue, or a copy of it in C order."""
    own = array if array.queue is queue else array.with_queue(queue)
    if not array.size or not is_loose(array):
        return own
    made = temporary(own, own.shape, own.dtype)
    copying(own, own, made).run()
    return made


def _tensor(x: Array, model: Array, order: Strides) -> Array:
    """A temporary for a tensor, in this order."""
    return temporary(x, model.shape, model.dtype, order)


def _vector(x: Array, model: Array) -> Array:
    """A temporary for a vector, or parameters, of what is computed with; counters stay what they are."""
    return temporary(x, model.shape, numbers_of(model.dtype) if is_narrow(model.dtype) else model.dtype)


class Packed(Call[_R]):
    """A call with copies before and after it.

    named: the arrays that are given, as errors call them. undo: copies that give what is written in place what it held,
    where a copy of those after the call fails.
    """

    def __init__(
        self,
        results: _R,
        named: Mapping[str, Array],
        before: Sequence[Call[Any]],
        main: Call[Any],
        after: Sequence[Call[Any]],
        undo: Sequence[Call[Any]] = (),
    ) -> None:
        self.results, self._named = results, named
        self._first, self._after, self._undo = [*before, main], after, undo

    def run(self) -> _R:
        parts = (self._first, self._after, self._undo)
        _run(*([one.run for one in calls] for calls in parts))
        return self.results

    def bound(self) -> Callable[[], _R]:
        first, after, undo = ([one.bound() for one in calls] for calls in (self._first, self._after, self._undo))

        def step() -> _R:
            arguments.sound(self._named)
            _run(first, after, undo)
            return self.results

        return step


Steps = Sequence[Callable[[], Any]]


def _run(first: Steps, after: Steps, undo: Steps) -> None:
    for step in first:
        step()
    try:
        for step in after:
            step()
    except BaseException:
        for step in undo:
            with contextlib.suppress(cl.Error, OclbnError):  # of a device that is gone nothing can be put right
                step()
        raise
