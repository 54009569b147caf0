"""Copies between arrays of any orders."""

from __future__ import annotations

import functools
import math

from pyopencl.array import Array

from oclbn.call.calls import Call, Several
from oclbn.call.prepared import prepare_single
from oclbn.call.results import queue_of
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
