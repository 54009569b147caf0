"""Calls on the positions inside a mask alone: their elements are put side by side, the call is made on those, and what
it writes is put back.

So results are those of a dense tensor of the values inside, bit for bit, and what lies outside never counts. That
tensor is (M, C) where channels are the fastest of x's axes, else (1, C, M), M being the number of positions inside,
in C order. What is written in place is put back last, so that a launch that fails before leaves it as it was; and what
the call has written by then gets back what it held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pyopencl.array import Array

from oclbn.call import overlap
from oclbn.call.calls import Call
from oclbn.call.copying import copying, in_place
from oclbn.call.layout import dense_strides
from oclbn.call.masks import Selection
from oclbn.call.packed import Packed
from oclbn.call.prepared import prepare_single
from oclbn.call.results import queue_of, temporary
from oclbn.device import pages
from oclbn.plan.operations import Operation
from oclbn.plan.selected import rounded_up, tiles

_R = TypeVar("_R")

AXIS = 1  # of channels, in a tensor of what is inside


def call(
    operation: Operation,
    selection: Selection,
    x: Array,
    axis: int,
    given: Mapping[str, Array | None],
    out: Array | None,
    results: _R,
    inner: Callable[[Array, Mapping[str, Array | None], Array | None], Call[Any]],
) -> Call[_R]:
    """A call on what is inside; out, and a second result among those that are given, are there where it writes them.

    results: what it returns. inner: makes the call on another x, with channels on AXIS, other arrays and another out.
    """
    named = {"x": x, **{name: array for name, array in given.items() if array is not None}}
    if out is not None:
        named["out"] = out
    before: list[Call[Any]] = []
    own = {}
    for name in ("x", *operation.others):
        own[name] = compact(selection, x, axis, named[name].dtype)
        before += _compressing(selection, x, axis, named[name], own[name])
    written = {}
    if operation.second:
        written[operation.second] = compact(selection, x, axis, named[operation.second].dtype)
    if out is not None:
        over = "x" in operation.in_place and out.dtype == x.dtype
        written["out"] = own["x"] if over else compact(selection, x, axis, out.dtype)
    after = [
        step
        for name, array in written.items()
        for step in _expanding(selection, x, axis, array, named[name], keeps=selection.keeps and name == "out")
    ]
    undo = []
    for name in operation.state if after else ():
        if name in named:
            old = temporary(x, named[name].shape, named[name].dtype)
            before.append(copying(x, named[name], old))
            undo.append(copying(x, old, named[name]))
    inner_out = written.pop("out", None)
    replaced = {name: array for name, array in own.items() if name != "x"} | written
    main = inner(own["x"], {**given, **replaced}, inner_out)
    return Packed(results, named, before, main, after, undo)


def as_called(
    selection: Selection,
    operation: Operation,
    x: Array,
    axis: int,
    given: Mapping[str, Array],
    out: Array | None,
) -> tuple[str, dict[str, Array], Array | None, Array, int]:
    """What a call moves, in words; and the other arrays, out, x and its axis that the call on what is inside is of.

    Of these there are shapes and types alone.
    """
    shape = compact_shape(selection, x, axis)

    def model(array: Array) -> Array:
        return Array(x.queue, shape, array.dtype, data=b"")

    taken = [name for name in operation.others if name in given]
    own = dict(given) | {name: model(given[name]) for name in (*taken, operation.second) if name in given}
    moved = f"{selection.count} of {selection.inside.size} positions put side by side before"
    moved += " and back after" if operation.result else ""
    return moved, own, model(x if out is None else out) if operation.result else None, model(x), AXIS


def is_apart(x: Array, axis: int) -> bool:
    """Whether the positions inside lie side by side for each channel, or else the channels for each position."""
    shape = tuple(map(int, x.shape))
    itemsize = x.dtype.itemsize
    return shape[axis] == 1 or dense_strides(shape, x.strides, itemsize)[axis] != itemsize


def compact_shape(selection: Selection, x: Array, axis: int) -> tuple[int, ...]:
    """Of a tensor of what is inside."""
    channels = int(x.shape[axis])
    return (1, channels, selection.count) if is_apart(x, axis) else (selection.count, channels)


def compact(selection: Selection, x: Array, axis: int, dtype: np.dtype[Any]) -> Array:
    """A temporary for what is inside of a tensor that is handled with x."""
    shape = compact_shape(selection, x, axis)
    made = temporary(x, shape, dtype) if math.prod(shape) else Array(x.queue, shape, dtype, data=b"")
    pages.enlarge(made, often=False)  # it is walked by single elements: large pages pay from the first bytes on
    return made


def nothing_inside(selection: Selection, x: Array, axis: int, written: Sequence[Array]) -> list[Call[None]]:
    """What fills tensors of x's shape with 0, where no position is inside."""
    return [
        step
        for array in written
        for step in _expanding(selection, x, axis, compact(selection, x, axis, array.dtype), array, keeps=False)
    ]


def _compressing(selection: Selection, x: Array, axis: int, source: Array, target: Array) -> list[Call[None]]:
    """What puts the elements of `source` that are inside side by side."""
    if not selection.count:
        return []
    if not in_place(source):
        own = temporary(x, source.shape, source.dtype)
        return [copying(x, source, own), *_compressing(selection, x, axis, own, target)]
    strides, step = _steps(source, axis)
    arrays: dict[str, Array | None] = {
        "source": source,
        "places": selection.places(x, strides, inside=True),
        "target": target,
    }
    numbers = {"source_channel": step, "inside": selection.count}
    return [_moving("compress", x, axis, arrays, numbers, selection.count, target)]


def _expanding(
    selection: Selection, x: Array, axis: int, source: Array, target: Array, *, keeps: bool
) -> list[Call[None]]:
    """What puts elements that lie side by side back at their positions; elsewhere come 0, or what x has there."""
    if not in_place(target):
        own = temporary(x, target.shape, target.dtype)
        return [*_expanding(selection, x, axis, source, own, keeps=keeps), copying(x, own, target)]
    first = []
    if keeps and not (target.dtype == x.dtype and overlap.same_elements(target, x)):
        first.append(copying(x, x, target))
    size = selection.count if keeps else selection.inside.size
    if not size:
        return first
    strides, step = _steps(target, axis)
    arrays: dict[str, Array | None] = {
        "source": source if selection.count else None,
        "ranks": selection.ranks(x, inside=keeps),
        "places": selection.places(x, strides, inside=keeps),
        "target": target,
    }
    numbers = {"target_channel": step, "inside": selection.count, "positions": size}
    return [*first, _moving("expand", x, axis, arrays, numbers, size, target)]


def _steps(array: Array, axis: int) -> tuple[tuple[int, ...], int]:
    """Strides of positions, and that of channels, in elements."""
    steps = [
        int(stride) // array.dtype.itemsize if size > 1 else 0
        for stride, size in zip(array.strides, array.shape, strict=True)
    ]
    return (*steps[:axis], *steps[axis + 1 :]), steps[axis]


def _moving(
    kernel: str,
    x: Array,
    axis: int,
    arrays: Mapping[str, Array | None],
    numbers: Mapping[str, int],
    positions: int,
    target: Array,
) -> Call[None]:
    """The launch of a kernel that goes over so many positions and all channels."""
    apart, channels = is_apart(x, axis), int(x.shape[axis])
    inner, rows = (positions, channels) if apart else (channels, positions)
    sizes = rounded_up(inner), rounded_up(rows)
    bytes_of = target.dtype.itemsize
    prepared = prepare_single(kernel, queue_of(x), sizes, {"BYTES": bytes_of}, lambda lanes: tiles(*sizes, lanes))
    return Call(None, prepared, x, dict(arrays), {**numbers, "channels": channels, "apart": int(apart)}, (target,))
