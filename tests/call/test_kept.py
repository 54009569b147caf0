"""What is kept for an OpenCL context goes when nobody uses it any more."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

import oclbn.program.kept
from oclbn.functional import batch_norm_backward, batch_norm_train, bind
from oclbn.program import building
from oclbn.program.kept import MOST_DORMANT, Kept, kept


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the contexts of other tests."""
    monkeypatch.setattr(oclbn.program.kept, "_all", {})


def step(queue: cl.CommandQueue) -> None:
    x = cla.to_device(queue, np.arange(24, dtype=np.float32).reshape(4, 2, 3))
    _, *saved = batch_norm_train(x, None, None, None, None)
    batch_norm_backward(x, x, None, *saved)
    bind(batch_norm_train, x, None, None, None, None)()
    queue.finish()


def step_in_a_new_context(queue: cl.CommandQueue) -> None:
    context = cl.Context([queue.device])  # held: Intel's queues do not keep theirs alive
    step(cl.CommandQueue(context))
    del context
    gc.collect()


def programs() -> list[weakref.ref[Kept]]:
    return [weakref.ref(one) for one in oclbn.program.kept._all.values()]


def test_contexts_that_nobody_uses_are_let_go_of(queue: cl.CommandQueue) -> None:
    for count in range(3 * MOST_DORMANT):
        step_in_a_new_context(queue)
        assert len(oclbn.program.kept._all) <= MOST_DORMANT + 1, count
    old = programs()
    for _ in range(MOST_DORMANT + 2):
        step_in_a_new_context(queue)
    assert all(one() is None for one in old)  # and with them their programs, kernels and prepared calls


def test_contexts_in_use_are_kept(queue: cl.CommandQueue) -> None:
    contexts = [cl.Context([queue.device]) for _ in range(3 * MOST_DORMANT)]
    queues = [cl.CommandQueue(context) for context in contexts]
    for one in queues:
        step(one)
    gc.collect()
    assert len(oclbn.program.kept._all) == len(queues)
    assert not any(one.is_dormant for one in oclbn.program.kept._all.values())


def test_a_context_that_comes_back_finds_its_programs(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone makes a queue for each call, all in one context."""
    context = cl.Context([queue.device])
    step(cl.CommandQueue(context))
    gc.collect()
    monkeypatch.setattr(building, "_compile", None)
    for _ in range(3):
        step(cl.CommandQueue(context))
        gc.collect()


def test_an_object_that_stands_for_a_context_is_only_weakly_known(queue: cl.CommandQueue) -> None:
    context = cl.Context([queue.device])
    held = cl.CommandQueue(context)
    step(held)
    ours = kept(context)
    assert not ours.is_dormant
    del held
    gc.collect()
    assert ours.is_dormant  # `context` itself made no call: only queues and arrays do
