"""Where the time of a call goes: the device's own clock (events) beside the host's."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyopencl as cl

from .benchmark import TENSORS, checked_axis, room_for
from .peers import contract
from .suites import Shape
from .workload import Work

_CALLS = 15


@dataclass(frozen=True)
class Profile:
    """One operation on one shape, outputs reused. Medians, in seconds."""

    shape: Shape
    axis: int
    operation: str
    wall: float  # on the host, from the call to the empty queue
    device: float | None  # on the device, all launches and the gaps between them; None: its driver keeps no time
    last: float | None  # on the device, the last launch alone
    plan: str


def profile(
    queue: cl.CommandQueue, shape: Shape, axis: int = 1, *, operations: Sequence[str] = tuple(TENSORS)
) -> list[Profile]:
    """Time operations on a float32 tensor by the events of a queue that keeps times, on queue's device and context.

    Errors as oclbn.benchmark.compare.
    """
    axis = checked_axis(shape, axis)
    room_for(queue, shape)
    timed = cl.CommandQueue(queue.context, queue.device, properties=cl.command_queue_properties.PROFILING_ENABLE)
    work = Work(timed, shape, axis, "reused", contract.block(math.prod(shape)))
    found = []
    for operation in operations:
        call = work.calls()[operation]
        call()  # compiles
        timed.finish()
        samples = [_sample(timed, call) for _ in range(_CALLS)]
        wall, device, last = (statistics.median(column) for column in zip(*samples, strict=True))
        kept = device > 0
        times = {"wall": wall, "device": device if kept else None, "last": last if kept else None}
        found.append(Profile(shape, axis, operation, **times, plan=work.plan(operation)))
    return found


def _sample(queue: cl.CommandQueue, call: Callable[[], Any]) -> tuple[float, float, float]:
    start = time.perf_counter()
    call()
    queue.finish()
    wall = time.perf_counter() - start
    # Held back until all of it is enqueued, so that the device never waits for the host.
    gate = cl.UserEvent(queue.context)
    opened = cl.enqueue_marker(queue, wait_for=[gate])
    results = call()
    queue.flush()
    gate.set_status(cl.command_execution_status.COMPLETE)
    queue.finish()
    last = results[-1].events[-1].profile
    return wall, (last.end - opened.profile.end) * 1e-9, (last.end - last.start) * 1e-9
