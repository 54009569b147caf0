"""The devices of a group in this process, and the arrays that lie on them: one of each queue, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyopencl as cl
from pyopencl.array import Array

from oclbn import device
from oclbn.call import arguments, values
from oclbn.call.prepared import check_type
from oclbn.errors import ArrayTypeError, ContextError, DtypeError, OclbnError, ParameterError, ShapeError


class Places:
    """Queues, each of another device or context."""

    def __init__(self, queues: cl.CommandQueue | Sequence[cl.CommandQueue] | None) -> None:
        self.queues = _queues(queues)

    def listed(self, name: str, given: Any, kinds: Any) -> tuple[list[Any], bool]:
        """One for each queue; and whether it came without a list."""
        if isinstance(given, kinds) and len(self.queues) == 1:
            return [given], True
        if not isinstance(given, (list, tuple)):
            one = "an array, or " if len(self.queues) == 1 else ""
            raise ArrayTypeError(f"{name} is {values.kind_of(given)}; {one}a list of {len(self.queues)} is wanted")
        if len(given) != len(self.queues):
            raise ParameterError(f"{name} has {len(given)} entries; the group has {len(self.queues)} queues here")
        return list(given), False

    def shards(self, name: str, shards: Any) -> tuple[list[Any], bool]:
        listed, alone = self.listed(name, shards, Array)
        for index, x in enumerate(listed):
            label = name if alone else f"{name}[{index}]"
            arguments.tensor(label, x)
            check_type(label, x.dtype, x.queue)
            self.on_device(label, x, index)
        for index, x in enumerate(listed):
            if x.dtype != listed[0].dtype:
                raise DtypeError(f"{name}[{index}] is {x.dtype}; {name}[0] is {listed[0].dtype}, and one is wanted")
            if len(x.shape) != len(listed[0].shape):
                raise ShapeError(f"{name}[{index}] has {len(x.shape)} axes; {name}[0] has {len(listed[0].shape)}")
        return listed, alone

    def on_device(self, name: str, array: Array, index: int) -> None:
        queue = self.queues[index]
        if array.context != queue.context or (array.queue is not None and array.queue.device != queue.device):
            found = [place for place, other in enumerate(self.queues) if other.context == array.context]
            where = f"; it is on that of queues[{found[0]}]" if found else ", nor on another of this group"
            raise ContextError(f"{name} is not on the device of queues[{index}], {queue.device.name.strip()}{where}")

    def each(self, given: Mapping[str, Any], xs: Sequence[Array]) -> list[dict[str, Any]]:
        """Of each shard, the arrays that go with it by name; None where nothing is given."""
        each: list[dict[str, Any]] = [{} for _ in xs]
        for name, arrays in given.items():
            listed = [None] * len(xs) if arrays is None else self.listed(name, arrays, Array)[0]
            if any(one is None for one in listed) and any(one is not None for one in listed):
                raise ArrayTypeError(f"{name} has None beside arrays; an array for each queue, or None, is wanted")
            for own, array in zip(each, listed, strict=True):
                own[name] = array
        return each

    @contextlib.contextmanager
    def of_shard(self, index: int) -> Iterator[None]:
        """Errors say which shard it is, where there are several."""
        try:
            yield
        except OclbnError as error:
            if len(self.queues) == 1:
                raise
            raise type(error)(f"of shard {index}: {error}") from None


def _queues(queues: Any) -> tuple[cl.CommandQueue, ...]:
    if queues is None:
        return (device.default_queue(),)
    listed = [queues] if isinstance(queues, cl.CommandQueue) else queues
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ParameterError(f"queues is {queues!r}; a pyopencl.CommandQueue, or a list of them, is wanted")
    for index, queue in enumerate(listed):
        if not isinstance(queue, cl.CommandQueue):
            raise ParameterError(f"queues[{index}] is {values.kind_of(queue)}; a pyopencl.CommandQueue is wanted")
        for before, other in enumerate(listed[:index]):
            if (other.device, other.context) == (queue.device, queue.context):
                raise ParameterError(
                    f"queues[{index}] and queues[{before}] are of one device, {queue.device.name.strip()}; another "
                    "device for each is wanted, or a context of its own"
                )
    return tuple(listed)
