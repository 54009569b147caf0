"""Calls that were made before: what they were checked and decided by, and what has been decided.

A call on arrays that lie as those of an earlier one did, with the same numbers, passes the same checks and is made by
the same kernels. `seen` looks at all that checks and decisions depend on, and makes a key of it; a call that is found
by it is made at once. All others are checked, and what is refused is told, in the one place: the operation itself.
What changes without a trace in the key is looked at again in each call: whether commands that write the arrays have
failed, and what has to be waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from oclbn.activations import Activation
from oclbn.call.calls import Again, Call
from oclbn.call.order import facts_of
from oclbn.program.kept import kept
from oclbn.tuning import tuning_for

_PLAIN = frozenset(
    (type(None), bool, int, float, str, Activation, np.bool_, np.float32, np.float64, np.int32, np.int64)
)
_MOST = 2048  # calls remembered per thread and context
_FLAGS, _SIZE = cl.mem_info.FLAGS, cl.mem_info.SIZE
_PARENT, _OFFSET = cl.mem_info.ASSOCIATED_MEMOBJECT, cl.mem_info.OFFSET


Key = tuple[Any, ...]
Known = dict[Key, Again[Any] | None]
Seen = tuple[list[Array], Again[Any] | None, Known, Key]


def seen(work: Callable[..., Any], given: Sequence[Any], options: Mapping[str, Any]) -> Seen | None:
    """From an operation and its arguments, by position, of which the first is x, and by name.

    The arrays among them, a call like this one, if there was one, and where such calls are found, by which key. None:
    there is something among them that no key is made of.
    """
    parts: list[Any] = [work, len(given), *options]
    arrays: list[Array] = []
    places: list[int] = []
    for value in (*given, *options.values()):
        kind = type(value)
        if kind is Array:
            memory = getattr(value.base_data, "_oclbn_memory", None) or _memory(value.base_data)
            if memory is None:
                return None
            arrays.append(value)
            places.append(memory[0])
            parts += (value.shape, value.strides, value.size, value.dtype, value.offset, memory[1])
        elif kind in _PLAIN:
            parts += (kind, value)  # 1, 1.0 and True are equal, and are not taken for each other
        elif kind is tuple:
            parts += (kind, len(value))
            for one in value:
                if type(one) not in _PLAIN:
                    return None
                parts += (type(one), one)
        else:
            return None
    if not arrays:
        return None
    x = arrays[0]
    queue, context = x.queue, x.context
    if queue is None or context is None:
        return None
    for array in arrays:
        if array.context is not context and array.context != context:
            return None
    if len(set(places)) < len(places):  # who shares memory, and who is the same object
        names = [id(array) for array in arrays]
        parts += map(places.index, places)
        parts += map(names.index, names)
    facts = facts_of(queue)
    # Addresses stay unique, as what is prepared keeps its objects alive; and a Tuning takes long to be hashed.
    parts += (type(x.allocator), facts.context, facts.device, id(tuning_for(*facts.names)))
    thread, key = kept(context).thread, tuple(parts)
    try:
        known = thread.calls
    except AttributeError:
        known = thread.calls = {}
    try:
        return arrays, known.get(key), known, key
    except TypeError:
        return None  # somebody has set shape or strides to what is no tuple of numbers


def remember(call: Call[Any], arrays: list[Array], known: Known, key: Key) -> None:
    """Find calls like this one by the key from now on, if they can be made so and this is the second one.

    Who gives another number at each call, as a factor that changes from step to step, has no use for it.
    """
    if len(known) >= _MOST:
        known.clear()
    known[key] = call.again(arrays) if key in known else None


def _memory(data: Any) -> tuple[int, tuple[int, int, int]] | None:
    """The address of a memory object, seen through sub-buffers, and with its offset there its size and flags.

    None: it is no buffer. The object keeps them, as they never change.
    """
    if not isinstance(data, cl.MemoryObjectHolder) or data.type != cl.mem_object_type.BUFFER:
        return None
    parent: Any = data.get_info(_PARENT)
    offset = 0 if parent is None else int(data.get_info(_OFFSET))  # type: ignore[call-overload]
    facts = offset, int(data.get_info(_SIZE)), int(data.get_info(_FLAGS))  # type: ignore[call-overload]
    found = (data if parent is None else parent).int_ptr, facts
    with contextlib.suppress(AttributeError):  # of a class that has no room for it
        data._oclbn_memory = found  # type: ignore[attr-defined]
    return found
