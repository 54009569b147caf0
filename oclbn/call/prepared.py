"""Calls with everything decided: the layout, the plan, kernels with their arguments; remembered by shapes and strides.

The one file outside oclbn.proof that knows both plans and programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl
from pyopencl.array import Array

from oclbn.call import order
from oclbn.call.order import Alone, Order
from oclbn.call.request import Request
from oclbn.call.results import queue_of, scratch
from oclbn.device import limits, tuning_names
from oclbn.errors import DtypeError, ParameterError
from oclbn.plan.groups import floor_power
from oclbn.plan.operations import operation_of
from oclbn.plan.variants import fitting_plan
from oclbn.plan.words import ALONE, Build, DeviceLimits, Fusion, Geometry, Launch, Memory, Plan, Tuning
from oclbn.program import building
from oclbn.program.kept import kept
from oclbn.proof import proving
from oclbn.tuning import tuning_for

_GROUPS_PER_UNIT = 256  # parameters are small, and few work-items are many enough
_ALIGNED = 64  # bytes
_MOST_PREPARED = 2048  # shapes remembered per thread
_SCRATCH = -1  # the place of the buffer between launches


class _Step:
    """One launch, by a kernel of its own, so that arguments stay set from call to call."""

    def __init__(self, launch: Launch, context: cl.Context, constants: Collection[str]) -> None:
        self.name = launch.kernel
        self.kernel = building.new_kernel(context, launch.build, launch.kernel)
        self.size, self.group, self.numbers = (launch.groups * launch.lanes,), (launch.lanes,), dict(launch.numbers)
        arguments = building.arguments(launch.build, launch.kernel)
        self._arguments = [name for name, _ in arguments]
        buffers = [(index, name) for index, (name, kind) in enumerate(arguments) if kind is None]
        self._buffers = [(index, name) for index, name in buffers if name not in constants]  # those are null

    def values(self, values: Mapping[str, Any]) -> list[Any]:
        """What every argument is set to, of what is known by name."""
        return [values[name] for name in self._arguments]

    def places(self, places: Mapping[str, int]) -> list[tuple[int, int]]:
        """The index of each buffer, and its place in a list, of places by name; null pointers have none."""
        return [(index, places[name]) for index, name in self._buffers if name in places]

    def set_buffers(self, memory: Mapping[str, Any]) -> None:
        """Set the buffers anew: the driver need not keep them alive, and another may get a dead one's address."""
        set_argument = self.kernel.set_arg
        for index, name in self._buffers:
            buffer = memory[name]
            if buffer is not None:  # null pointers stay, and older pyopencl sets none singly
                set_argument(index, buffer)


class Setting(NamedTuple):
    """What the kernels of a call are told but for its buffers, whoever's they are."""

    changing: list[Any]  # as Prepared remembers it
    kernels: list[tuple[cl.Kernel, list[Any], list[tuple[int, int]]]]  # all values, None for buffers; their places
    scratch: int  # bytes


class Prepared:
    """Everything about a call that its shapes decide; made once per shape and thread."""

    def __init__(
        self,
        plan: Plan,
        context: cl.Context,
        tuning: Tuning,
        constants: Mapping[str, Any],
        failures: tuple[proving.Failure, ...] = (),
    ) -> None:
        self.plan, self._tuning, self.failures = plan, tuning, failures  # the context: oclbn.program.kept
        self._steps = tuple(_Step(launch, context, constants) for launch in plan.launches)
        self._places, self._scratch = _laid_out(plan.memory)
        self._constants = {**constants, **{f"{name}_start": start for name, start in self._places.items()}}
        self._changing: list[Any] | None = None  # offsets, None for no array, and numbers: most calls repeat those

    def anew(self, context: cl.Context) -> Prepared:
        """The same with kernels of its own, in the same context."""
        return Prepared(self.plan, context, self._tuning, self._constants, self.failures)

    def set(self, x: Array, arrays: Mapping[str, Array | None], numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Set the kernels' arguments, by the names that they give them; returns what has to live until the launch."""
        memory: dict[str, Any] = {name: None if array is None else array.base_data for name, array in arrays.items()}
        if self._places:
            memory |= dict.fromkeys(self._places, scratch(x, self._scratch))
        changing = _changing(arrays, numbers)
        if changing == self._changing:
            for step in self._steps:
                step.set_buffers(memory)
        else:
            self._changing = None  # should setting them fail
            starts = {f"{name}_start": 0 if array is None else start_of(array) for name, array in arrays.items()}
            for step in self._steps:
                values = {**self._constants, **memory, **starts, **numbers, **step.numbers}
                step.kernel.set_args(*step.values(values))
            self._changing = changing
        return memory

    def setting(
        self, arrays: Mapping[str, Array | None], numbers: Mapping[str, Any], places: Mapping[str, int]
    ) -> Setting:
        """What `set` would set, but for the buffers: their places, by the names of the arrays, in a list to come."""
        starts = {f"{name}_start": 0 if array is None else start_of(array) for name, array in arrays.items()}
        places = {**places, **dict.fromkeys(self._places, _SCRATCH)}
        none = dict.fromkeys((*arrays, *self._places))
        known = {**self._constants, **none, **starts, **numbers}
        kernels = [(step.kernel, step.values({**known, **step.numbers}), step.places(places)) for step in self._steps]
        return Setting(_changing(arrays, numbers), kernels, self._scratch)

    def set_again(self, setting: Setting, buffers: Sequence[Any]) -> None:
        """Set the kernels' arguments: those of `setting`, and these buffers; the last one is scratch."""
        if setting.changing == self._changing:
            for kernel, _, places in setting.kernels:
                set_argument = kernel.set_arg
                for index, place in places:
                    set_argument(index, buffers[place])
            return
        self._changing = None  # should setting them fail
        for kernel, values, places in setting.kernels:
            own = values.copy()
            for index, place in places:
                own[index] = buffers[place]
            kernel.set_args(*own)
        self._changing = setting.changing

    def launch(self, queue: cl.CommandQueue, waiting: Alone | Order, written: Sequence[Array | None]) -> None:
        """Enqueue all launches with the arguments that are set, which are of the arrays that `waiting` was made of."""
        wait_for, begun = waiting.events, False
        try:
            for step in self._steps:
                event = order.enqueue(step.name, queue, step.kernel, step.size, step.group, wait_for)
                wait_for, begun = [event], True  # in order too: should the first one fail, the second must not begin
        except BaseException:
            if begun:
                waiting.note(event, ())  # it still reads, and writes what the next call may write as well
            raise
        waiting.note(event, written)


def _changing(arrays: Mapping[str, Array | None], numbers: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = [None if array is None else array.offset for array in arrays.values()]
    found += numbers.values()
    return found


def _laid_out(memory: Sequence[Memory]) -> tuple[dict[str, int], int]:
    """Where each, and each of its rows, begins in one buffer for all, counted in its own numbers; and its bytes."""
    places: dict[str, int] = {}
    end = 0
    for one in memory:
        places |= {name: end // one.itemsize + start for name, start in one.starts.items()}
        end += -(-one.nbytes // _ALIGNED) * _ALIGNED
    return places, end


def remembered(context: cl.Context, key: Hashable, make: Callable[[], Prepared]) -> Prepared:
    """What this thread has prepared in this context under this key; made at first."""
    of_context = kept(context)
    known: dict[Any, Prepared] | None = getattr(of_context.thread, "prepared", None)
    if known is None:
        known = of_context.thread.prepared = {}
    found = known.get(key)
    if found is None:
        of_context.note(context)
        if len(known) >= _MOST_PREPARED:
            known.clear()
        found = known[key] = make()
    return found


def prepare_single(
    name: str,
    queue: cl.CommandQueue,
    work: Hashable,
    defines: dict[str, int],
    cut: Callable[[int], tuple[int, dict[str, int]]],
) -> Prepared:
    """A kernel of its own file, which needs no plan. cut: its groups and numbers, given the work-items of a group."""
    context, device = queue.context, queue.device
    tuning = tuning_for(*tuning_names(device))

    def make() -> Prepared:
        lanes = min(tuning.lanes, floor_power(limits(device).max_group))
        while True:
            build = Build(f"{name}.cl", (*defines.items(), ("LANES", lanes)))
            room = building.most_lanes(building.kernel(context, build, name), device)
            if room >= lanes:
                break
            lanes = floor_power(room)
        groups, constants = cut(lanes)
        launch = Launch(name, build, groups, lanes)
        proving.require(launch, context, device)
        plan = Plan(name, Geometry(1, 1, 1, 1, 1, 1, 1, 1), (launch,))
        return Prepared(plan, context, tuning, constants)

    return remembered(context, (name, work, *defines.values(), device.int_ptr, id(tuning)), make)


def prepare_vector(name: str, model: Array, length: str) -> Prepared:
    """The kernel `name` on arrays that are vectors like this one, whose size it calls `length`."""
    queue, size = queue_of(model), model.size
    most = limits(queue.device).compute_units * _GROUPS_PER_UNIT

    def cut(lanes: int) -> tuple[int, dict[str, int]]:
        return min(-(-size // lanes), most), {length: size}

    return prepare_single(name, queue, size, {"DOUBLE": int(model.dtype.itemsize == 8), "VEC": 1}, cut)


def prepared_for(request: Request, queue: cl.CommandQueue) -> Prepared:
    """Layout, plan and kernels of a request, for the queue's device."""
    device = queue.device
    tuning = tuning_for(*tuning_names(device))
    # Addresses stay unique, as what is prepared keeps its objects alive; and a Tuning takes long to be hashed.
    key = (request, device.int_ptr, id(tuning))
    return remembered(queue.context, key, lambda: _make(request, queue, tuning))


def _make(request: Request, queue: cl.CommandQueue, tuning: Tuning) -> Prepared:
    context, device = queue.context, queue.device
    check_type("x", request.dtype, queue)
    layout = request.layout()

    def most(launch: Launch) -> int:
        return building.most_lanes(building.kernel(context, launch.build, launch.kernel), device)

    problem = request.problem(layout)
    planned, failures = proving.proven_plan(request.operation, problem, limits(device), tuning, most, context, device)
    if tuning.most_steps and request.groups > 1 and request.described.after:
        _bring_together(planned, request.groups, tuning.most_steps, device)
    constants = {**planned.numbers, **request.constants(layout)}
    return Prepared(planned, context, tuning, constants, failures)


def _bring_together(planned: Plan, groups: int, most_steps: int, device: cl.Device) -> None:
    """ParameterError where one work-item, which takes one batch after the other at last, cannot go over so many."""
    most = most_steps // dict(planned.launches[-1].build.defines)["BLOCKS"] - 1
    if groups > most:
        raise ParameterError(
            f"groups is {groups:,}; {device.name.strip()} ends the loops of a work-item after {most_steps:,} turns "
            f"without a word, so 1 to {most:,} are wanted: give some of the samples at a time"
        )


def dissect(
    operation: str,
    host: np.ndarray[Any, Any],
    axis: int,
    facts: DeviceLimits,
    choices: Mapping[str, Any],
    most: Callable[[Launch], int],
    fusion: Fusion = ALONE,
    groups: int = 1,
) -> tuple[Plan, dict[str, Any]]:
    """How a call on a tensor like `host` would run on some device: its plan, and all numbers that its kernels get.

    most: how many work-items a group of a launch's kernel may have. Arrays start their buffers; options have their
    defaults; constants are given as a variance.
    """
    operation = operation if groups == 1 else f"{operation}_batches"
    tensors = dict.fromkeys(operation_of(operation, fusion).tensors, host)
    request = Request.of(operation, host, axis, tensors, fusion=fusion, groups=groups)
    layout = request.layout()
    planned = fitting_plan(operation, request.problem(layout), facts, Tuning(**choices), most)
    return planned, {**planned.numbers, **request.constants(layout), **request.described.numbers}


def check_type(name: str, dtype: np.dtype[Any], queue: cl.CommandQueue) -> None:
    """DtypeError where the queue's device cannot compute with numbers of this type, or store elements of it."""
    facts = limits(queue.device)
    if dtype.itemsize == 8 and not facts.fp64:
        raise DtypeError(f"{name} is {dtype}; {queue.device.name.strip()} computes in float32 only")
    if dtype.itemsize == 2 and not facts.stores16:
        raise DtypeError(f"{name} is {dtype}; {queue.device.name.strip()} stores nothing smaller than 32 bits")


def start_of(array: Array) -> int:
    """Index in its buffer of an array's first element."""
    return array.offset // array.dtype.itemsize


def count_of(x: Array, axis: int) -> int:
    """Values per channel."""
    channels = int(x.shape[axis])
    return x.size // channels if channels else math.prod(map(int, x.shape[:axis] + x.shape[axis + 1 :]))
