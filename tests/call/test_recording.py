"""functional.recording: every launch, by name and event, and only where it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

from oclbn import BatchNormND
from oclbn.errors import ShapeError
from oclbn.functional import accumulate, batch_norm_backward, batch_norm_infer, batch_norm_train, moments, recording
from oclbn.tools.yardstick import plain_copy
from oclbn.truth.hostile import make
from oclbn.tuning import using


@pytest.fixture
def x(queue: cl.CommandQueue) -> cla.Array:
    return cla.to_device(queue, make((4, 3, 5), 1).x)


@pytest.fixture
def two_launches() -> Iterator[None]:
    with using(variant="split"):
        yield


def names(launches: list[tuple[str, cl.Event]]) -> list[str]:
    return [name for name, _ in launches]


@pytest.mark.usefixtures("two_launches")
def test_launches_are_listed_in_order(x: cla.Array) -> None:
    with recording() as launches:
        y, mean, invstd = batch_norm_train(x, None, None, None, None)
        batch_norm_backward(x, y, None, mean, invstd)
        batch_norm_backward(x, y, None, mean, invstd, training=False)
        batch_norm_infer(x, None, None, mean, invstd)
        moments(x)
        accumulate(mean, invstd)
        plain_copy(x, y)
    training = ["moments_partial", "train_apply", "backward_partial", "backward_apply"]
    others = ["constant_partial", "constant_merge", "infer", "moments_partial", "moments_merge", "accumulate", "copy"]
    assert names(launches) == training + others


@pytest.mark.parametrize("variant", ["resident", "split"])
def test_a_module_launches_twice_at_most(queue: cl.CommandQueue, x: cla.Array, variant: str) -> None:
    """Whatever a call does: parameter gradients and constants' deviations come out of the same launches."""
    bn = BatchNormND(x.ndim - 2, x.shape[1], queue=queue)
    with using(variant=variant), recording() as launches:
        for mode in (bn.trainMode, bn.evalMode):
            mode()
            for call in (bn, bn.backward, lambda dy: bn.backward(dy, scale=0.5, momentum=0.9)):
                before = len(launches)
                call(x)
                assert 1 <= len(launches) - before <= 2, names(launches[before:])


def test_events_are_those_of_the_results(x: cla.Array) -> None:
    with recording() as launches:
        y = batch_norm_train(x, None, None, None, None)[0]
    event = launches[-1][1]
    assert y.events == [event]
    event.wait()
    assert event.command_execution_status == cl.command_execution_status.COMPLETE


@pytest.mark.parametrize("size", [0, 4], ids=["empty", "wrong"])
def test_nothing_is_launched_for_nothing(queue: cl.CommandQueue, x: cla.Array, size: int) -> None:
    with recording() as launches:
        if size:
            with pytest.raises(ShapeError):
                batch_norm_train(x, cla.zeros(queue, size, np.float32), None, None, None)
        else:
            batch_norm_train(cla.empty(queue, (0, 3, 5), np.float32), None, None, None, None)
    assert launches == []


def test_a_block_ends(x: cla.Array) -> None:
    with recording() as launches:
        moments(x)
    moments(x)
    with recording() as later:
        pass
    assert len(launches) >= 1
    assert later == []
    count = len(launches)
    moments(x)
    assert len(launches) == count


def test_a_block_ends_with_an_error(x: cla.Array) -> None:
    with pytest.raises(RuntimeError, match="of ours"), recording() as launches:
        raise RuntimeError("of ours")
    moments(x)
    assert launches == []


def test_blocks_nest(x: cla.Array) -> None:
    with recording() as outer:
        batch_norm_infer(x, None, None, *moments(x)[1:])
        with recording() as inner:
            moments(x)
        moments(x)
    assert names(inner) == names(outer)[-2 * len(inner) : -len(inner)]
    assert len(outer) > 2 * len(inner)


def test_a_block_holds_for_its_thread(x: cla.Array) -> None:
    theirs: list[list[tuple[str, cl.Event]]] = []

    def work() -> None:
        moments(x)
        with recording() as launches:
            moments(x)
        theirs.append(launches)

    thread = threading.Thread(target=work)
    with recording() as launches:
        thread.start()
        thread.join()
    assert launches == []
    assert len(theirs[0]) >= 1
