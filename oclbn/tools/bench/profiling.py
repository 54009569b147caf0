"""Where the time of a call goes: the device's own clock (events) beside the host's."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn import functional
from oclbn.tools.bench.benchmark import TENSORS, checked_axis, room_for
from oclbn.tools.bench.suites import Shape
from oclbn.tools.bench.workload import SINGLE, Work
from oclbn.tools.peers import contract

_CALLS = 15


@dataclass(frozen=True)
class Launched:
    """One launch of a kernel, and its time on the device: median, in seconds; None where the driver keeps none."""

    kernel: str
    seconds: float | None


@dataclass(frozen=True)
class Profile:
    """One operation on one shape, outputs preallocated. Medians, in seconds."""

    shape: Shape
    axis: int
    operation: str
    wall: float  # on the host, from the call to the empty queue
    device: float | None  # on the device, all launches and the gaps between them; None: its driver keeps no time
    launches: tuple[Launched, ...]  # in order
    plan: str


def profile(
    queue: cl.CommandQueue,
    shape: Shape,
    axis: int = 1,
    *,
    operations: Sequence[str] = tuple(TENSORS),
    dtype: np.dtype[Any] = SINGLE,
) -> list[Profile]:
    """Time operations on a tensor by the events of a queue that keeps times, on queue's device and context.

    Errors as oclbn.tools.bench.benchmark.compare.
    """
    axis = checked_axis(shape, axis)
    room_for(queue, shape, dtype)
    timed = cl.CommandQueue(queue.context, queue.device, properties=cl.command_queue_properties.PROFILING_ENABLE)
    work = Work(timed, shape, axis, "preallocated", contract.block(math.prod(shape)), dtype)
    found = []
    for operation in operations:
        call = work.calls()[operation]
        call()  # compiles
        timed.finish()
        samples = [_sample(timed, call) for _ in range(_CALLS)]
        wall, device = (statistics.median(column) for column in zip(*(times for times, _ in samples), strict=True))
        kept = device > 0
        launches = []
        for column in zip(*(launches for _, launches in samples), strict=True):
            seconds = statistics.median(seconds for _, seconds in column)
            launches.append(Launched(column[0][0], seconds if kept else None))
        plan = work.plan(operation)
        found.append(Profile(shape, axis, operation, wall, device if kept else None, tuple(launches), plan))
    return found


def _sample(queue: cl.CommandQueue, call: Callable[[], Any]) -> tuple[tuple[float, float], list[tuple[str, float]]]:
    """Seconds on the host and on the device, and those of each launch by its kernel's name."""
    start = time.perf_counter()
    call()
    queue.finish()
    wall = time.perf_counter() - start
    # Held back until all of it is enqueued, so that the device never waits for the host.
    gate = cl.UserEvent(queue.context)
    opened = cl.enqueue_marker(queue, wait_for=[gate])
    with functional.recording() as launches:
        held = call()  # until all of it is done: what is let go of may be handed out again
    queue.flush()
    gate.set_status(cl.command_execution_status.COMPLETE)
    queue.finish()
    del held
    times = [(kernel, event.profile) for kernel, event in launches]
    device = (times[-1][1].end - opened.profile.end) * 1e-9
    return (wall, device), [(kernel, (ran.end - ran.start) * 1e-9) for kernel, ran in times]
