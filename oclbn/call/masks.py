"""Masks and sequence lengths: which positions of a tensor a call is of.

A position is all of an element's indices but that of its channel. What masks and lengths say is read once, on the host,
where kernels' tables of places are made from it; who makes another call on the same positions gives the Selection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from pyopencl.array import Array

from oclbn.call import arguments, packed, values
from oclbn.call.results import allocated, queue_of
from oclbn.errors import ArrayTypeError, ContextError, DtypeError, ParameterError, ShapeError

OUTSIDE = ("zero", "x")  # what y is outside
_TRUTHS = (np.dtype(np.bool_), np.dtype(np.uint8))


@dataclass(frozen=True, eq=False)
class Selection:
    """The positions of a tensor that are inside, as they were when it was made.

    inside: for each position, the axis of channels left out. count: how many are. keeps: whether outside y is x itself,
    and not 0.
    """

    inside: NDArray[np.bool_]
    count: int
    keeps: bool = False
    _tables: dict[Any, cl.Buffer] = field(default_factory=dict)

    def places(self, x: Array, strides: tuple[int, ...], *, inside: bool) -> Array:
        """How far positions lie from the first one, in C order: those inside, or all; on x's device.

        strides: of the axes of `inside`.
        """

        def make() -> NDArray[np.int64]:
            found = np.zeros((1,) * self.inside.ndim, np.int64)
            for axis, (size, stride) in enumerate(zip(self.inside.shape, strides, strict=True)):
                steps = np.arange(size, dtype=np.int64) * stride
                found = found + steps.reshape(tuple(-1 if d == axis else 1 for d in range(self.inside.ndim)))
            return found[self.inside] if inside else found.reshape(-1)

        return self._table(x, (inside, strides), self.count if inside else self.inside.size, make)

    def ranks(self, x: Array, *, inside: bool) -> Array:
        """Which of those inside the positions are that `places` tells, -1 for none; on x's device."""

        def make() -> NDArray[np.int64]:
            if inside:
                return np.arange(self.count, dtype=np.int64)
            flat = self.inside.reshape(-1)
            return np.where(flat, np.cumsum(flat, dtype=np.int64) - 1, -1)

        return self._table(x, (inside, "ranks"), self.count if inside else self.inside.size, make)

    def _table(self, x: Array, key: Any, size: int, make: Callable[[], NDArray[np.int64]]) -> Array:
        context = queue_of(x).context
        key = (context.int_ptr, *key)  # which stays its own: the buffer keeps the context
        found = self._tables.get(key)
        if found is None:
            host = np.ascontiguousarray(make())
            flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
            found = allocated(x, host.nbytes, lambda: cl.Buffer(context, flags, hostbuf=host))
            self._tables[key] = found
        return Array(x.queue, (size,), np.int64, data=found)


def said(mask: Any, lengths: Any, outside: Any = "zero") -> bool:
    """Whether one of these arguments is not as it is by default."""
    return not (mask is None is lengths and isinstance(outside, str) and outside == "zero")


def chosen(x: Array, axis: int, mask: Any, lengths: Any, outside: Any = "zero") -> Selection | None:
    """What these arguments of a call select; None: they are as they are by default."""
    return selection_of(x, axis, mask, lengths, outside) if said(mask, lengths, outside) else None


def behind(x: Array, axis: int, mask: Any, lengths: Any, outside: Any = "zero") -> Selection | None:
    """The same of a backward call, whose results are 0 outside, whatever those of the forward call were."""
    selection = chosen(x, axis, mask, lengths, outside)
    return replace(selection, keeps=False) if selection is not None else None


def groups_of(groups: Any, x: Array, axis: int, selection: Selection | None) -> int:
    """Of how many batches a call is; ParameterError where a mask is to part them as well."""
    if type(groups) is int and groups == 1:  # nearly all calls
        return 1
    number = arguments.groups_of(groups, x, axis)
    if number > 1 and selection is not None:
        raise ParameterError(f"groups is {number} and a mask or lengths are given, which are of one batch; 1 is wanted")
    return number


def selection_of(
    x: Array, axis: int, mask: Any, lengths: Any, outside: Any = "zero", *, called: str = "x"
) -> Selection:
    """What these arguments select of x, which errors call so. Waits for the device where it has them.

    mask: a Selection as well, of a tensor of x's shape.
    """
    if not (isinstance(outside, str) and outside in OUTSIDE):
        raise ParameterError(f"outside is {values.shown(outside)}; {' or '.join(map(repr, OUTSIDE))} is wanted")
    if mask is None and lengths is None:
        raise ParameterError(
            f"outside is {outside!r}, and there is neither mask nor lengths, which say where that is; one is wanted"
        )
    if mask is not None and lengths is not None:
        raise ParameterError("mask and lengths are given; one of them is wanted")
    shape = tuple(map(int, x.shape))
    positions = shape[:axis] + shape[axis + 1 :]
    keeps = outside == "x"
    if isinstance(mask, Selection) and mask.inside.shape == positions:
        return replace(mask, keeps=keeps)
    inside = _masked(x, axis, mask, called) if lengths is None else _long(x, axis, lengths, called)
    inside = inside.reshape(positions)
    return Selection(inside, int(np.count_nonzero(inside)), keeps)


def _masked(x: Array, axis: int, mask: Any, called: str) -> NDArray[np.bool_]:
    if not isinstance(mask, (np.ndarray, Array)):
        advice = ": np.asarray(mask, bool) makes one" if isinstance(mask, (Sequence, np.generic, bool)) else ""
        raise ArrayTypeError(
            f"mask is {values.kind_of(mask)}; a numpy.ndarray or a pyopencl.array.Array of bool or uint8 is "
            f"wanted{advice}"
        )
    shape = tuple(map(int, x.shape))
    positions, single = shape[:axis] + shape[axis + 1 :], (*shape[:axis], 1, *shape[axis + 1 :])
    if mask.dtype not in _TRUTHS:
        raise DtypeError(f"mask is {mask.dtype}; bool or uint8 is wanted, where what is not 0 is inside")
    if tuple(mask.shape) not in (positions, single):
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}; {called} has shape {shape} with channels on axis {axis}, so "
            f"{positions} or {single} is wanted: a value for each position"
        )
    # a copy: the caller may change what is his
    return np.array(_host("mask", mask, x), np.bool_)


def _long(x: Array, axis: int, lengths: Any, called: str) -> NDArray[np.bool_]:
    shape = tuple(map(int, x.shape))
    if len(shape) != 3 or axis == 0:
        positions = shape[:axis] + shape[axis + 1 :]
        raise ShapeError(
            f"lengths is given, and {called} has shape {shape} with channels on axis {axis}; lengths are of one axis "
            f"beside those of samples, 0, and of channels, so here a mask is wanted, of shape {positions}"
        )
    samples, most = shape[0], shape[3 - axis]
    wanted = f"{samples} integers are wanted, one for each sample of {called}"
    if not isinstance(lengths, (np.ndarray, Array, Sequence)) or isinstance(lengths, (str, bytes, bytearray)):
        raise ArrayTypeError(f"lengths is {values.shown(lengths)}; {wanted}")
    try:
        host = lengths if isinstance(lengths, (np.ndarray, Array)) else np.asarray(lengths)
    except ValueError as error:
        raise ShapeError(f"lengths is {values.shown(lengths)}; {wanted}") from error
    if host.dtype.kind not in "iu" and not (host.size == samples == 0):
        raise DtypeError(f"lengths is {host.dtype}; {wanted}")
    if tuple(host.shape) != (samples,):
        raise ShapeError(f"lengths has shape {tuple(host.shape)}; {called} has shape {shape}, and {wanted}")
    own = _host("lengths", host, x)
    off = np.flatnonzero((own < 0) | (own > most))
    if off.size:
        raise ParameterError(
            f"lengths[{off[0]}] is {own[off[0]]}; 0 to {most} is wanted, as {called} has shape {shape} with channels "
            f"on axis {axis}"
        )
    return np.arange(most) < own[:, None]


def _host(name: str, value: Any, x: Array) -> NDArray[Any]:
    """What an array holds, which may lie anyhow on the device."""
    if not isinstance(value, Array):
        return np.asarray(value)
    held = arguments.anyhow(name, value)
    if held.queue is None and held.context != x.context:
        raise ContextError(f"{name} has no queue and is of another context than x; give it one with with_queue(queue)")
    read: NDArray[Any] = packed.dense(held, held.queue or queue_of(x)).get()
    return read
