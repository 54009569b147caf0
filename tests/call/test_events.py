"""Order of work: on queues that keep none, and behind events that others set."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from invocations import CALLS as OPERATIONS
from invocations import EVERY, arrays_of, state, valid
from pyopencl.tools import ImmediateAllocator, MemoryPool

from oclbn import BatchNormND
from oclbn.errors import DeviceError
from oclbn.functional import (
    accumulate,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    bind,
    moments,
    recording,
)
from oclbn.truth.hostile import make
from oclbn.tuning import using

SHAPE = (16, 8, 64, 64)  # enough work that a call which does not wait comes too early
ROUNDS = 6


def chain(queue: cl.CommandQueue) -> list[bytes]:
    """Each call takes what the one before made, and overwrites what it has read."""
    x, dy, scale, bias, mean, var = arrays_of(queue, make(SHAPE, 1))
    out, gradient = cla.empty_like(x), cla.empty_like(x)
    for _ in range(ROUNDS):
        y, save_mean, save_invstd = batch_norm_train(x, scale, bias, mean, var, out=out)
        dx, dscale, dbias = batch_norm_backward(x, dy, scale, save_mean, save_invstd, out=gradient)
        x = batch_norm_infer(y, dscale, dbias, mean, var, out=x)
        dy = batch_norm_infer(dx, None, None, save_mean, var, out=dy)
    _, partial_mean, m2 = moments(dy)
    return [array.get().tobytes() for array in (x, dy, mean, var, dscale, dbias, partial_mean, m2)]


@pytest.fixture(scope="module")
def in_order(queue: cl.CommandQueue) -> list[bytes]:
    return chain(queue)


@pytest.mark.parametrize("attempt", range(3))
def test_a_chain_on_an_out_of_order_queue(free_queue: cl.CommandQueue, in_order: list[bytes], attempt: int) -> None:
    del attempt
    assert chain(free_queue) == in_order


def test_running_statistics_take_every_batch_in_turn(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    batches = [make((4, 8, 16, 16), 1, seed=seed).x for seed in range(20)]

    def settle(where: cl.CommandQueue) -> tuple[bytes, bytes]:
        mean, var = cla.zeros(where, 8, np.float32), cla.zeros(where, 8, np.float32)
        for batch in batches:
            batch_norm_train(cla.to_device(where, batch), None, None, mean, var, factor=0.3)
        return mean.get().tobytes(), var.get().tobytes()

    assert settle(free_queue) == settle(queue)


def test_what_is_still_read_is_not_overwritten(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    """The second call writes what the first one reads."""
    first, second = make((64, 8, 64, 64), 1, seed=1), make((64, 8, 64, 64), 1, seed=2)
    _, _, scale, bias, mean, var = arrays_of(free_queue, first)
    x, other = cla.to_device(free_queue, first.x), cla.to_device(free_queue, second.x)
    expected = batch_norm_infer(cla.to_device(queue, first.x), *arrays_of(queue, first)[2:]).get()
    for _ in range(ROUNDS):
        x.finish()  # which set() does not wait for
        x.set(first.x)
        y = batch_norm_infer(x, scale, bias, mean, var)
        batch_norm_infer(other, scale, bias, mean, var, out=x)
        assert y.get().tobytes() == expected.tobytes()


def test_arrays_carry_the_events_of_their_call(free_queue: cl.CommandQueue) -> None:
    """What is written must carry one, and what is read too: somebody may overwrite it next."""
    x, dy, scale, bias, mean, var = arrays_of(free_queue, make((4, 3, 5), 1))
    y, save_mean, save_invstd = batch_norm_train(x, scale, bias, mean, var)
    for array in (x, scale, bias, mean, var, y, save_mean, save_invstd):
        assert array.events
    results = batch_norm_backward(x, dy, scale, save_mean, save_invstd)
    for array in (dy, *results):
        assert array.events
    for array in (*moments(dy)[1:], batch_norm_infer(dy, scale, bias, mean, var)):
        assert array.events


@contextlib.contextmanager
def pending(array: cla.Array) -> Iterator[None]:
    """The array waits for an event that is set at the end; also after a while, in case somebody blocks on it."""
    ready = cl.UserEvent(array.context)
    lock = threading.Lock()

    def set_once() -> None:
        if lock.acquire(blocking=False):
            ready.set_status(cl.command_execution_status.COMPLETE)

    rescue = threading.Timer(5.0, set_once)
    rescue.start()
    array.add_event(ready)
    try:
        yield
    finally:
        rescue.cancel()
        set_once()


def finished(array: cla.Array) -> bool:
    return all(event.command_execution_status == cl.command_execution_status.COMPLETE for event in array.events)


Call = Callable[[tuple[cla.Array, ...]], tuple[cla.Array, ...]]
CALLS: dict[str, Call] = {
    "train": lambda a: batch_norm_train(a[0], *a[2:]),
    "backward": lambda a: batch_norm_backward(*a[:3], *a[4:]),
    "infer": lambda a: (batch_norm_infer(a[0], *a[2:]),),
    "moments": lambda a: moments(a[0])[1:],
}
WAITS = [
    *(("train", index) for index in (0, 2, 3, 4, 5)),
    *(("backward", index) for index in (0, 1, 2, 4, 5)),
    *(("infer", index) for index in (0, 2, 3, 4, 5)),
    ("moments", 0),
]


@pytest.mark.parametrize(("call", "index"), WAITS)
@pytest.mark.parametrize("order", ["in order", "out of order"])
def test_a_call_waits_for_the_events_of_each_array(
    request: pytest.FixtureRequest, queue: cl.CommandQueue, order: str, call: str, index: int
) -> None:
    """Nothing is computed, and the call does not block, until somebody says that the array is ready."""
    if order == "out of order":
        request.getfixturevalue("free_queue")
    properties = cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE if order == "out of order" else 0
    own = cl.CommandQueue(queue.context, properties=properties)
    host = make((4, 3, 5), 1)
    expected = [array.get().tobytes() for array in CALLS[call](arrays_of(queue, host))]
    arrays = arrays_of(own, host)
    own.finish()
    with pending(arrays[index]):
        results = CALLS[call](arrays)
        own.flush()
        waiting = [not finished(result) for result in results]
    assert waiting == [True] * len(results)
    assert [result.get().tobytes() for result in results] == expected


# --- commands that failed


def failed(context: cl.Context) -> cl.Event:
    event = cl.UserEvent(context)
    event.set_status(cl.status_code.OUT_OF_RESOURCES)
    return event


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
@pytest.mark.parametrize(("call", "name"), EVERY)
def test_what_a_failed_command_left_is_refused(queue: cl.CommandQueue, call: str, name: str, bound: bool) -> None:
    """On queues in order too, where the driver is told to wait for nothing of its own."""
    arguments = valid(queue, call)
    function, positional = OPERATIONS[call]
    given = [arguments[key] for key in positional]
    options = {key: value for key, value in arguments.items() if key not in positional}
    make_it = bind(function, *given, **options) if bound else lambda: function(*given, **options)
    make_it()
    before = state(arguments)
    arguments[name].add_event(failed(queue.context))
    result = {"train": "y", "infer": "y", "backward": "dx", "double_backward": "gx"}
    shown = result[call] if bound and name == "out" else name
    with recording() as launches, pytest.raises(DeviceError, match=rf"^{shown} was to be .* failed with .* status -5;"):
        make_it()
    assert not launches
    assert state(arguments) == before


def test_a_module_does_not_move_behind_a_failed_command(queue: cl.CommandQueue) -> None:
    host = make((4, 3, 5), 1)
    x, dy = cla.to_device(queue, host.x), cla.to_device(queue, host.dy)
    bn = BatchNormND(1, 3, queue=queue)
    bn(x)
    bn.backward(dy)
    before = [array.get().tobytes() for array in (bn.mean, bn.var, bn.scalegrad)]
    for array, call in ((x, bn), (dy, bn.backward)):
        array.add_event(failed(queue.context))
        with pytest.raises(DeviceError, match="failed with OpenCL's status -5"):
            call(array)
    assert [array.get().tobytes() for array in (bn.mean, bn.var, bn.scalegrad)] == before
    assert bn.numOfProps == 1


@pytest.mark.parametrize("index", [0, 1], ids=["into", "new"])
def test_nothing_is_accumulated_from_a_failed_command(queue: cl.CommandQueue, index: int) -> None:
    arrays = [cla.to_device(queue, np.full(5, value, np.float32)) for value in (1.0, 2.0)]
    arrays[index].add_event(failed(queue.context))
    with pytest.raises(DeviceError, match=rf"^{('into', 'new')[index]} was to be"):
        accumulate(*arrays, momentum=1.0)


# --- more of what is waited for


def test_out_is_not_written_before_it_is_free(free_queue: cl.CommandQueue) -> None:
    x, _, *four = arrays_of(free_queue, make((4, 3, 5), 1))
    for call in (
        lambda out: batch_norm_train(x, *four, out=out)[0],
        lambda out: batch_norm_infer(x, *four, out=out),
        lambda out: batch_norm_backward(x, x, *four[1:], out=out)[0],
    ):
        out = cla.empty_like(x)
        free_queue.finish()
        with pending(out):
            result = call(out)
            free_queue.flush()
            waiting = not finished(result)
        assert waiting


@pytest.mark.parametrize("index", [0, 1], ids=["into", "new"])
def test_accumulate_waits_for_both(free_queue: cl.CommandQueue, index: int) -> None:
    arrays = [cla.to_device(free_queue, np.full(5, value, np.float32)) for value in (1.0, 2.0)]
    free_queue.finish()
    with pending(arrays[index]):
        accumulate(*arrays, momentum=1.0)
        free_queue.flush()
        waiting = not finished(arrays[0])
    assert waiting
    assert arrays[0].get().tolist() == [3.0] * 5
    assert arrays[1].events


@pytest.mark.parametrize("index", [0, 1], ids=["scale_grad", "bias_grad"])
def test_gathering_waits_for_both(free_queue: cl.CommandQueue, index: int) -> None:
    x, dy, scale, _, mean, var = arrays_of(free_queue, make((4, 3, 5), 1))
    into = [cla.to_device(free_queue, np.ones(3, np.float32)) for _ in range(2)]
    free_queue.finish()
    with pending(into[index]):
        result = batch_norm_backward(x, dy, scale, mean, var, scale_grad=into[0], bias_grad=into[1], grad_momentum=1.0)
        free_queue.flush()
        waiting = not finished(result[0])
    assert waiting
    for array, new in zip(into, result[1:], strict=True):
        np.testing.assert_allclose(array.get(), 1 + new.get(), rtol=1e-6)


def test_two_queues_of_one_context(queue: cl.CommandQueue) -> None:
    """The work goes to x.queue and waits for arrays that another queue is still making (OpenCL wants that flushed)."""
    host = make(SHAPE, 1)
    other = cl.CommandQueue(queue.context)
    x, dy, *four = arrays_of(queue, host)
    y, *saved = batch_norm_train(x, *four)
    queue.flush()
    z, *_ = batch_norm_train(y.with_queue(other), None, None, four[2], four[3])
    dx, *_ = batch_norm_backward(x.with_queue(other), dy, four[0], *saved)
    assert z.queue == other
    assert dx.queue == other
    again = [array.get() for array in (z, four[2], dx)]
    x, dy, *four = arrays_of(queue, host)
    y, *saved = batch_norm_train(x, *four)
    queue.finish()
    z, *_ = batch_norm_train(y, None, None, four[2], four[3])
    queue.finish()
    dx, *_ = batch_norm_backward(x, dy, four[0], *saved)
    assert [array.get().tobytes() for array in (z, four[2], dx)] == [array.tobytes() for array in again]


def test_a_number_taken_off_out_of_order(free_queue: cl.CommandQueue) -> None:
    """Which leaves no event in pyopencl; what the pages on functions advise lets calls come after it."""
    host = make((64, 8, 64, 64), 1).x
    for _ in range(10):
        x = cla.to_device(free_queue, host + np.float32(100))
        free_queue.finish()
        x -= np.float32(100)  # a number of Python's is a double in pyopencl's kernel
        x.add_event(cl.enqueue_marker(x.queue))
        assert np.abs(moments(x)[1].get()).max() < 1
        x += np.float32(-100)
        assert np.abs(moments(x)[1].get() + 100).max() < 1


def test_events_do_not_pile_up_out_of_order(free_queue: cl.CommandQueue) -> None:
    """What is only read gets an event from each call, for whoever writes it next; the last one stands for all."""
    x, dy, *four = arrays_of(free_queue, make((4, 3, 5), 1))
    for _ in range(20):
        _, *saved = batch_norm_train(x, *four)
        batch_norm_backward(x, dy, four[0], *saved)
        batch_norm_infer(x, *four)
        accumulate(four[0], four[1])
    assert max(len(array.events) for array in (x, dy, *four)) == 1


def test_parameters_that_two_queues_share(queue: cl.CommandQueue) -> None:
    """One queue evaluates with the statistics that another one goes on training; each call comes in its turn."""
    large, small = make((64, 8, 64, 64), 1), make((4, 8, 5), 1)

    def rounds(training: cl.CommandQueue, finish: bool) -> list[bytes]:
        x, _, *four = arrays_of(queue, large)
        batch, results = cla.to_device(training, small.x), []
        for _ in range(ROUNDS):
            results.append(batch_norm_infer(x, *four))
            if finish:
                queue.finish()
            batch_norm_train(batch, None, None, *four[2:])
            if finish:
                training.finish()
        return [array.get().tobytes() for array in (*results, *four)]

    assert rounds(cl.CommandQueue(queue.context), finish=False) == rounds(queue, finish=True)


def test_launches_of_a_queue_in_order_are_not_linked(queue: cl.CommandQueue) -> None:
    """Only what other queues and the user set is waited for; what was waited for may stay in memory with the waiter."""
    other = cl.CommandQueue(queue.context)
    x, dy, *four = arrays_of(queue, make((4, 3, 5), 1))
    shared = cla.to_device(other, np.ones(3, np.float32))
    waited: list[int] = []
    enqueue = cl.enqueue_nd_range_kernel

    def seen(*given: object, **options: list[cl.Event]) -> cl.Event:
        waited.append(len(options["wait_for"]))
        return enqueue(*given, **options)

    def calls(scale: cla.Array) -> None:
        y, *saved = batch_norm_train(x, scale, *four[1:], out=dy)
        batch_norm_backward(x, y, scale, *saved)
        batch_norm_infer(x, scale, *four[1:], out=dy)

    with using(variant="split"):
        calls(four[0])  # kernels prove themselves before their first use, by launches of their own
        with mock.patch.object(cl, "enqueue_nd_range_kernel", seen):
            for scale in (four[0], shared):
                calls(scale)
    assert waited[:5] == [0, 1, 0, 1, 0]  # of a call's two launches the second depends on the first's success
    assert waited[5:] == [2, 1, 2, 1, 2]  # the other array's event, and a marker on its queue


def test_an_array_whose_queue_is_gone(queue: cl.CommandQueue) -> None:
    """Its events may not tell their queue any more: they are waited for."""
    if queue.device.platform.name == "rusticl" and int(queue.device.driver_version.split(".")[0]) >= 26:
        pytest.skip("Mesa 26 ends the process: its events do not keep their queue")
    host = make((4, 3, 5), 1)
    expected = [array.get().tobytes() for array in batch_norm_train(*arrays_of(queue, host)[:1], *[None] * 4)]
    for _ in range(3):
        x = cla.to_device(cl.CommandQueue(queue.context), host.x).with_queue(queue)
        results = batch_norm_train(x, None, None, None, None)
        assert [array.get().tobytes() for array in results] == expected
    mean, var = cla.zeros(queue, 3, np.float32), cla.zeros(queue, 3, np.float32)
    for _ in range(3):  # a worker's queue, that lives as long as its step
        own = cl.CommandQueue(queue.context)
        y, *_ = batch_norm_train(cla.to_device(own, host.x), None, None, mean, var)
        y.get()
        own.finish()
        del y, own


@pytest.mark.parametrize("queues", ["one out of order", "two"])
def test_scratch_outlives_a_pool(queue: cl.CommandQueue, queues: str, request: pytest.FixtureRequest) -> None:
    """A pool hands memory out again as soon as nobody in Python holds it: kernels that are still to run may."""
    if queues == "two":
        first, second = (cl.CommandQueue(queue.context) for _ in range(2))
    else:
        first = second = request.getfixturevalue("free_queue")
    pool = MemoryPool(ImmediateAllocator(queue))
    rng = np.random.default_rng(0)
    hosts = [rng.normal(mean, 2, (8, 3, 100, 100)).astype(np.float32) for mean in (5, -3)]
    arrays = [cla.to_device(q, host, allocator=pool) for q, host in zip((first, second), hosts, strict=True)]
    outs = [cla.empty_like(array) for array in arrays]
    with using(variant="split"):
        for _ in range(10):
            results = [  # all of them held: what the caller lets go of, the pool hands out again too
                batch_norm_train(array, None, None, None, None, out=out)
                for array, out in zip(arrays, outs, strict=True)
            ]
            first.finish()
            second.finish()
            for (_, mean, _), host in zip(results, hosts, strict=True):
                np.testing.assert_allclose(mean.get(), host.mean((0, 2, 3), dtype=np.float64), rtol=1e-5)
