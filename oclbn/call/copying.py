"""Copies between arrays of any orders, and calls on arrays that lie in another order than x."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from pyopencl.array import Array

from oclbn.call.calls import Call, Several
from oclbn.call.layout import astray, dense_order
from oclbn.call.prepared import prepare_single
from oclbn.call.results import fresh_result, queue_of, temporary
from oclbn.plan import strided


def copy_strided(source: Array, target: Array) -> None:
    """target = source, element by element, whatever the orders of the two, on target.queue; of one shape and dtype."""
    if source.size:
        copying(target, source, target).run()


def copying(x: Array, source: Array, target: Array) -> Call[None]:
    """target = source on x.queue, as a part of a call."""
    itemsize = source.dtype.itemsize
    grain = math.gcd(itemsize, source.offset, target.offset)
    found = strided.cut(source.shape, itemsize, source.strides, target.strides, grain)
    prepared = prepare_single(
        "pack", queue_of(x), found, {"BYTES": found.item}, functools.partial(strided.numbers, found)
    )
    arrays: dict[str, Array | None] = {"source": source, "target": target}
    calls = [
        Call(None, prepared, x, arrays, {"source_start": begin, "target_start": place}, (target,))
        for begin, place in found.starts(source.offset // found.item, target.offset // found.item)
    ]
    return calls[0] if len(calls) == 1 else Several(None, calls)


def in_order(
    x: Array,
    axis: int,
    dy: Array | None,
    out: Array | None,
    call: Callable[[Any, Array | None], Call[Any]],
    writes: bool = True,
) -> Call[Any]:
    """A call whose dy or out lies in another order than x: copies before and after let it have them in the order of x.

    call: makes the call on another dy and out. writes: whether it has a result like x. Without out, where pyopencl
    would do nothing with a result that lies in the order of x, not even read it, the result is in C order.
    LayoutError where x itself cannot be walked.
    """
    given = {name: array for name, array in (("dy", dy), ("out", out)) if array is not None}
    others = astray(x, axis, {name: array.strides for name, array in given.items()})
    if writes and out is None and not dense_order(x)[1]:
        out = fresh_result(x, None)
        others.add("out")
    inner_dy, inner_out = (
        temporary(x, dtype=given[name].dtype) if name in others else given.get(name) for name in ("dy", "out")
    )
    calls: list[Call[Any]] = []
    if "dy" in others and inner_dy is not None:
        calls.append(copying(x, given["dy"], inner_dy))
    calls.append(main := call(inner_dy, inner_out))
    if "out" in others and inner_out is not None and out is not None:
        calls.append(copying(x, inner_out, out))
        return Several(out if main.results is inner_out else (out, *main.results[1:]), calls)
    return Several(main.results, calls)
