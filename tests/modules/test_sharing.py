"""One module used by several threads: whole steps, in some order, and none is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from at_once import at_once
from layers import host_of, put

from oclbn import BatchNorm

pytestmark = pytest.mark.usefixtures("bears_threads")
C, THREADS, EACH = 6, 4, 50
WIDTH = np.linspace(-1, 1, 16, dtype=np.float32).reshape(16, 1) * np.ones(C, np.float32)  # of mean 0
SAMPLE = float(WIDTH[:, 0].var(ddof=1))


@pytest.fixture(params=["one queue", "queues of their own", "one queue out of order"])
def queues(request: pytest.FixtureRequest, queue: cl.CommandQueue) -> list[cl.CommandQueue]:
    """Of each thread."""
    if request.param == "queues of their own":
        return [cl.CommandQueue(queue.context) for _ in range(THREADS)]
    return [request.getfixturevalue("free_queue") if "out of order" in request.param else queue] * THREADS


def test_no_batch_is_lost(queue: cl.CommandQueue, queues: list[cl.CommandQueue]) -> None:
    bn = BatchNorm(C, minFactor=0.0, queue=queue)

    def train(thread: int) -> None:
        for step in range(EACH):
            bn(put(queues[thread], WIDTH + np.float32(THREADS * step + thread)))

    at_once(*(lambda t=thread: train(t) for thread in range(THREADS)))
    assert bn.numOfProps == THREADS * EACH
    np.testing.assert_allclose(host_of(bn.mean).ravel(), (THREADS * EACH - 1) / 2, rtol=1e-5)
    np.testing.assert_allclose(host_of(bn.var).ravel(), SAMPLE, rtol=1e-4)


def test_gradients_of_all_threads_are_gathered(queue: cl.CommandQueue, queues: list[cl.CommandQueue]) -> None:
    """A call and its gradient are one step where the caller holds the lock; each gets the gradient of its own data."""
    bn = BatchNorm(C, queue=queue, seed=1)

    def train(thread: int) -> float:
        x, dy = put(queues[thread], WIDTH * np.float32(thread + 1)), put(queues[thread], np.ones_like(WIDTH))
        worst = 0.0
        for _ in range(EACH):
            with bn.lock:
                bn(x)
                assert bn.inData is x
                dx = bn.backward(dy, momentum=1.0)
                assert dx is bn.grad is not None
            worst = max(worst, float(np.abs(dx.get()).max()))
        return worst

    assert max(at_once(*(lambda t=thread: train(t) for thread in range(THREADS)))) < 1e-5
    assert host_of(bn.vars["bias"].grad).ravel().tolist() == [16.0 * THREADS * EACH] * C
    bn.zeroGradParams()
    steps = [lambda: [bn.updateParams(0.5) for _ in range(EACH)]] * THREADS
    bn.vars["bias"].grad.set(np.ones((1, C, 1, 1), np.float32))
    at_once(*steps)
    assert host_of(bn.bias).ravel().tolist() == [0.5 * THREADS * EACH] * C


def while_trained(queue: cl.CommandQueue, bn: BatchNorm, look: Callable[[], Any]) -> list[Any]:
    """What `look` gives, again and again, while another thread trains: batch k has the mean k and the spread k."""
    stop, number = threading.Event(), 0

    def train() -> None:
        nonlocal number
        while not stop.is_set():
            number += 1
            bn(put(queue, (WIDTH + 1) * np.float32(number % 100 + 1)))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        seen = []
        while len(seen) < 40 or number <= 5:
            seen.append(look())
            time.sleep(1e-4)  # a lock goes to who asks first, and this thread would ask again at once
        return seen
    finally:
        stop.set()
        thread.join()
        assert number > 5


def is_whole(bn: BatchNorm) -> None:
    """Mean and variance are of one batch."""
    mean, var = host_of(bn.mean).ravel(), host_of(bn.var).ravel()
    assert (mean == mean[0]).all()
    np.testing.assert_allclose(var, SAMPLE * mean**2, rtol=1e-4)


def test_what_is_saved_while_training_is_of_one_step(queue: cl.CommandQueue) -> None:
    bn, other = (BatchNorm(C, minFactor=1.0, queue=queue) for _ in range(2))
    bn(put(queue, WIDTH + 1))
    counts = []
    for image in while_trained(cl.CommandQueue(queue.context), bn, bn.save):
        other.load(image)
        is_whole(other)
        counts.append(other.numOfProps)
        np.testing.assert_allclose(host_of(other.mean)[0, 0], (counts[-1] - 1) % 100 + 1, rtol=1e-5)
    assert counts == sorted(counts)


def test_loading_and_converting_while_training(queue: cl.CommandQueue, needs_fp64: None) -> None:
    """A step sees the module before or after, never half of it."""
    bn = BatchNorm(C, minFactor=1.0, queue=queue)
    bn(put(queue, WIDTH + 1))
    image = bn.save() or b""

    def change() -> None:
        with bn.lock:
            bn.calcMode(np.float64)
            bn.load(image)
            bn.calcMode(np.float32)
            is_whole(bn)

    while_trained(cl.CommandQueue(queue.context), bn, change)
    is_whole(bn)
