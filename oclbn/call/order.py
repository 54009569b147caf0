"""Order of work: what a launch has to wait for, who has to wait for it, and who is told of it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pyopencl as cl
from pyopencl.array import Array

from oclbn.device import tuning_names

_PROPERTIES, _QUEUE = cl.command_queue_info.PROPERTIES, cl.event_info.COMMAND_QUEUE
_STATUS = cl.event_info.COMMAND_EXECUTION_STATUS  # asked for by get_info(), which takes half as long as a property
_OUT_OF_ORDER = cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE
_recorders: contextvars.ContextVar[tuple[list[tuple[str, cl.Event]], ...]] = contextvars.ContextVar(
    "oclbn_recorders", default=()
)


class Facts(NamedTuple):
    """What never changes of a queue: whether it is in order, the addresses of its context and of its device.

    And what tunings know that by.
    """

    ordered: bool
    context: int
    device: int
    names: tuple[str, str, str, str, str]


def facts_of(queue: cl.CommandQueue) -> Facts:
    """From the object, which keeps them: asking the driver takes longer."""
    found: Facts | None = getattr(queue, "_oclbn_facts", None)
    if found is None:
        device, properties = queue.device, int(queue.get_info(_PROPERTIES))  # type: ignore[call-overload]
        found = Facts(not properties & _OUT_OF_ORDER, queue.context.int_ptr, device.int_ptr, tuning_names(device))
        with contextlib.suppress(AttributeError):  # of a class that has no room for it
            queue._oclbn_facts = found  # type: ignore[attr-defined]
    return found


def alone(
    queue: cl.CommandQueue, touched: Sequence[Array], settled: list[cl.Event | None] | None = None
) -> Alone | None:
    """The order of work on a queue in order that touches arrays of no other, none of them left by a failed command.

    None: it is otherwise. arguments.sound tells of failed commands, Order sees to all other work. settled: for whoever
    looks at the same arrays again and again, of each array an event that needs no other look: it was this queue's, and
    complete.
    """
    if not facts_of(queue).ordered:
        return None
    events: list[cl.Event] = []
    last = None  # arrays that one call wrote have the same event
    for place, array in enumerate(touched):
        if array.queue is not queue:
            return None
        for event in array.events:
            if event is last or (settled is not None and event is settled[place]):
                continue
            last = event
            status: Any = event.get_info(_STATUS)
            if status < 0:
                return None
            try:
                if event.get_info(_QUEUE) != queue:
                    events.append(event)
                elif status == 0 and settled is not None:
                    settled[place] = event
            except cl.Error:  # as _is_of has it, which would take a call
                events.append(event)
    return Alone(events)


class Alone:
    """The order of work that `alone` knows of: what it has to wait for, and who waits for it."""

    __slots__ = ("events",)

    def __init__(self, events: list[cl.Event]) -> None:
        self.events = events

    def note(self, event: cl.Event, written: Sequence[Array | None]) -> None:
        """Make `event` what is waited for by arrays that were written; who only reads has the queue's own order."""
        for array in written:
            if array is not None:
                array.events[:] = (event,)


class Order:
    """When work on `queue` that touches these arrays may begin, and who waits for it."""

    def __init__(self, queue: cl.CommandQueue, touched: Collection[Array | None]) -> None:
        self._queue, self._touched = queue, touched
        self._ordered = facts_of(queue).ordered
        self._elsewhere: list[Array] = []
        self.events: list[cl.Event] = []  # that the work has to wait for
        last = None  # arrays that one call wrote have the same event
        for array in touched:
            if array is None:
                continue
            if array.queue is not queue:
                self._elsewhere.append(array)
            for event in array.events:
                # A queue in order ends its own work before it begins more. Waiting for that all the same would link
                # each call to the one before: rusticl's events hold on to what they waited for, so that a long training
                # run would keep all of them, and overflow the stack when the last one is let go.
                if event is not last and not (self._ordered and _is_of(event, queue)):
                    self.events.append(event)
                last = event
        for array in self._foreign():
            # Reads on the array's own queue are not among its events; and OpenCL starts what another queue waits for
            # only once its own queue is flushed.
            if array.queue is not None:
                self.events.append(cl.enqueue_marker(array.queue))
                array.queue.flush()

    def note(self, event: cl.Event, written: Sequence[Array | None]) -> None:
        """Make `event` what the arrays wait for.

        What was written waits for it alone, as it comes after all that the array waited for before. What was only read
        waits for it as well where the queue would not see to that: out of order, and for arrays of other queues.
        """
        for array in written:
            if array is not None:
                array.events[:] = (event,)
        if self._ordered and not self._elsewhere:
            return
        foreign = self._foreign()
        if foreign:
            self._queue.flush()
        for array in foreign if self._ordered else self._touched:
            if array is not None and not any(array is other for other in written):
                if array.queue is self._queue:
                    array.events[:] = (event,)  # it comes after all that the array had: each call would leave one more
                else:
                    array.add_event(event)  # other threads may add theirs, for queues of their own

    def _foreign(self) -> list[Array]:
        return [array for array in self._elsewhere if array.queue != self._queue]


def _is_of(event: cl.Event, queue: cl.CommandQueue) -> bool:
    """Whether the event is that of a command on this very queue."""
    try:
        return bool(event.get_info(_QUEUE) == queue)
    except cl.Error:
        return False  # of a queue that is gone; Intel's events do not keep theirs alive


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[str, cl.Event]]]:
    """Within the block, the name of each kernel that oclbn enqueues and its event go into a list, in order.

    Holds for the current thread or task; blocks may be nested, and the outer list gets the inner block's launches too.
    Events tell times where the queue was made with PROFILING_ENABLE.

    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> with recording() as launches:
    ...     _ = batch_norm_train(x)
    >>> [name for name, event in launches]
    ['train_resident']
    """
    launches: list[tuple[str, cl.Event]] = []
    token = _recorders.set((*_recorders.get(), launches))
    try:
        yield launches
    finally:
        _recorders.reset(token)


def enqueue(
    name: str,
    queue: cl.CommandQueue,
    kernel: cl.Kernel,
    size: tuple[int, ...],
    group: tuple[int, ...],
    wait_for: list[cl.Event],
) -> cl.Event:
    """Enqueue a kernel with the arguments that are set; every launch comes through here. size, group: work-items."""
    event = cl.enqueue_nd_range_kernel(queue, kernel, size, group, wait_for=wait_for)
    for launches in _recorders.get():
        launches.append((name, event))
    return event
