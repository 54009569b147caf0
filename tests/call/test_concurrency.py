"""Several threads, queues, contexts, devices and processes at once: the results of each are those of it alone."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import threading
import weakref
from typing import Any

import apart
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from at_once import at_once
from calls import all_bits, everything, put

from oclbn import BatchNorm2D
from oclbn.functional import batch_norm_train
from oclbn.program.kept import kept
from oclbn.truth.hostile import make

pytestmark = pytest.mark.usefixtures("bears_threads")
SHAPES = [((7, 5, 13), 1), ((70, 37, 3, 3), 1), ((300, 33), 1), ((2, 3, 20_011), 1)]


def trained(queue: cl.CommandQueue, seed: int, steps: int = 15) -> list[bytes]:
    """The state of a module, and what its last step gave."""
    bn = BatchNorm2D(5, queue=queue, seed=seed)
    for step in range(steps):
        host = make((3 + step % 3, 5, 7, 7), 1, seed=100 * seed + step)
        bn(put(queue, host.x))
        bn.backward(put(queue, host.dy))
        bn.updateParams(-0.05)
        bn.zeroGradParams()
    return all_bits((bn.data, bn.grad, bn.mean, bn.var, bn.scale, bn.bias))


def test_modules_in_threads_with_queues_of_their_own(queue: cl.CommandQueue) -> None:
    alone = [trained(queue, seed) for seed in range(4)]
    queues = [cl.CommandQueue(queue.context) for _ in alone]
    together = at_once(*(lambda q=q, seed=seed: trained(q, seed) for seed, q in enumerate(queues)))
    assert together == alone


def test_threads_that_share_a_queue(queue: cl.CommandQueue) -> None:
    alone = [everything(queue, make(shape, axis), axis) for shape, axis in SHAPES]
    calls = [lambda s=shape, a=axis: [everything(queue, make(s, a), a) for _ in range(5)] for shape, axis in SHAPES]
    assert at_once(*calls) == [[expected] * 5 for expected in alone]


def test_threads_with_contexts_of_their_own(queue: cl.CommandQueue) -> None:
    alone = [everything(queue, make(shape, axis), axis) for shape, axis in SHAPES]
    contexts = [cl.Context([queue.device]) for _ in range(3)]

    def work(context: cl.Context) -> list[list[bytes]]:
        own = cl.CommandQueue(context)
        return [everything(own, make(shape, axis), axis) for shape, axis in SHAPES]

    assert at_once(*(lambda c=context: work(c) for context in contexts)) == [alone] * 3


def test_the_first_call_of_many_threads_builds_once(queue: cl.CommandQueue, caplog: pytest.LogCaptureFixture) -> None:
    host = make((4, 6, 28, 28), 1)
    expected = everything(queue, host, 1)
    context = cl.Context([queue.device])
    queues = [cl.CommandQueue(context) for _ in range(8)]
    with caplog.at_level(logging.INFO, logger="oclbn.program"):
        results = at_once(*(lambda q=q: everything(q, host, 1) for q in queues))
    assert results == [expected] * 8
    built = [record.getMessage().partition(" in ")[0] for record in caplog.records]
    assert built
    assert len(built) == len(set(built)), built


def test_a_thread_takes_its_kernels_with_it(queue: cl.CommandQueue) -> None:
    """Setting an argument changes a kernel, so none is shared; what a thread prepared goes when it ends."""
    x = cla.zeros(queue, (3, 4, 5), np.float32)
    kernels: list[Any] = []
    prepared: list[Any] = []

    def call() -> None:
        batch_norm_train(x, None, None, None, None)
        queue.finish()
        for found in kept(queue.context).thread.prepared.values():
            prepared.append(weakref.ref(found))
            kernels.append([step.kernel.int_ptr for step in found._steps])

    gate = threading.Barrier(2)

    def held() -> None:
        call()
        gate.wait(60)  # until both have theirs

    threads = [threading.Thread(target=held) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert len(kernels) == 2
    assert not set(kernels[0]) & set(kernels[1])
    assert all(found() is None for found in prepared)


def test_programs_are_shared_by_threads(queue: cl.CommandQueue) -> None:
    everything(queue, make((7, 5, 13), 1), 1)
    before = len(kept(queue.context).programs)
    at_once(*[lambda: everything(queue, make((7, 5, 13), 1), 1)] * 4)
    assert len(kept(queue.context).programs) == before


def test_arrays_die_in_one_thread_while_others_work(queue: cl.CommandQueue) -> None:
    alone = trained(queue, 1)
    own = cl.CommandQueue(queue.context)
    stop = threading.Event()
    dropped = 0

    def drop() -> None:
        nonlocal dropped
        while not stop.is_set():
            bn = BatchNorm2D(3, queue=own)
            bn(cla.zeros(own, (2, 3, 4, 4), np.float32))
            del bn
            gc.collect(0)
            dropped += 1

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        results = [trained(queue, 1) for _ in range(4)]
    finally:
        stop.set()
        thread.join()
    assert dropped
    assert results == [alone] * 4


def test_spawned_workers(queue: cl.CommandQueue, spec: str) -> None:
    """Two at once, from a process that has used the device."""
    expected = apart.digests(queue)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map_async(apart.work, [spec] * 2).get(300) == [expected] * 2


def test_a_child_forked_before_the_first_use(queue: cl.CommandQueue, spec: str, ask_apart: Any) -> None:
    assert ask_apart("forked early", spec) == apart.digests(queue)


def test_a_child_forked_after_the_first_use_is_told(queue: cl.CommandQueue, spec: str, ask_apart: Any) -> None:
    """Each call there is an error at once, where drivers hang."""
    said = ask_apart("forked late", spec).splitlines()
    assert len(said) == 4
    assert all("forked" in line and "spawn" in line for line in said), said
