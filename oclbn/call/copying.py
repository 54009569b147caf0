"""Copies between arrays of any orders and types."""

from __future__ import annotations

import functools
import math

from pyopencl.array import Array

from oclbn.call.calls import Call, Several
from oclbn.call.prepared import prepare_single
from oclbn.call.results import queue_of, temporary
from oclbn.elements import kind
from oclbn.plan import strided


def copy_strided(source: Array, target: Array) -> None:
    """target = source, element by element, whatever the orders and types of the two, on target.queue; of one shape."""
    if source.size:
        copying(target, source, target).run()


def copying(x: Array, source: Array, target: Array) -> Call[None]:
    """target = source on x.queue, as a part of a call."""
    if source.dtype != target.dtype:
        return _casting(x, source, target)
    itemsize = source.dtype.itemsize
    grain = math.gcd(itemsize, source.offset, target.offset)
    found = strided.cut(source.shape, itemsize, source.strides, target.strides, grain)
    starts = source.offset // found.item, target.offset // found.item
    return _prepared(x, source, target, found, {"BYTES": found.item}, starts)


def _casting(x: Array, source: Array, target: Array) -> Call[None]:
    """The same where elements are of two types that tensors can have; what lies off its place goes by way of a copy."""
    if not in_place(source):
        own = temporary(x, source.shape, source.dtype)
        return Several(None, [copying(x, source, own), _casting(x, own, target)])
    if not in_place(target):
        own = temporary(x, target.shape, target.dtype)
        return Several(None, [_casting(x, source, own), copying(x, own, target)])
    steps = [
        tuple(
            stride // array.dtype.itemsize if size > 1 else 0
            for stride, size in zip(array.strides, array.shape, strict=True)
        )
        for array in (source, target)
    ]
    defines = {"BYTES": 4, "CAST": 1}
    for name, array in (("x", source), ("to", target)):
        defines |= {f"KIND_{name}": kind(array.dtype) or 0, f"DOUBLE_{name}": int(array.dtype.itemsize == 8)}
    starts = source.offset // source.dtype.itemsize, target.offset // target.dtype.itemsize
    return _prepared(x, source, target, strided.cut(source.shape, 1, *steps, 1), defines, starts)


def in_place(array: Array) -> bool:
    """Whether all elements lie at multiples of their size."""
    itemsize = array.dtype.itemsize
    return not array.offset % itemsize and not any(
        stride % itemsize for stride, size in zip(array.strides, array.shape, strict=True) if size > 1
    )


def _prepared(
    x: Array, source: Array, target: Array, found: strided.Cut, defines: dict[str, int], starts: tuple[int, int]
) -> Call[None]:
    cut = functools.partial(strided.numbers, found)
    prepared = prepare_single("pack", queue_of(x), found, defines, cut)
    arrays: dict[str, Array | None] = {"source": source, "target": target}
    calls = [
        Call(None, prepared, x, arrays, {"source_start": begin, "target_start": place}, (target,))
        for begin, place in found.starts(*starts)
    ]
    return calls[0] if len(calls) == 1 else Several(None, calls)
