"""Batches of which every channel is left out: one warning, where the counters are read anyway."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from faults import DEVICE_GONE, failing
from layers import C, host_of, put

from oclbn import BatchNorm2D, BatchNormND
from oclbn.errors import DeviceError, SkippedBatchesWarning
from oclbn.functional import recording
from oclbn.truth.hostile import make

LOOKS: list[Any] = [
    pytest.param(lambda bn: bn.evalMode(), id="evalMode"),
    pytest.param(lambda bn: bn.save(), id="save"),
    pytest.param(lambda bn: bn.skipped, id="skipped"),
]
Look = Callable[[BatchNormND], Any]


def train(bn: BatchNormND, *channels: list[int]) -> None:
    """A batch for each list, NaN in these channels."""
    for seed, bad in enumerate(channels):
        x = make((4, C, 3, 3), 1, seed=seed).x
        x[1, bad, 1, 1] = np.nan
        bn(put(bn.queue, x))


@pytest.mark.parametrize("look", LOOKS)
def test_one_warning(queue: cl.CommandQueue, look: Look) -> None:
    bn = BatchNorm2D(C, queue=queue, name="layer")
    train(bn, [], list(range(C)))
    assert (host_of(bn.mean) != 0).all(), "neat statistics"
    message = r"^BatchNorm2D 'layer': the guard has left every channel out of its .*, each of them once in 2 batches:"
    with pytest.warns(SkippedBatchesWarning, match=message) as caught:
        look(bn)
    assert caught[0].filename == __file__, "where the user stands"
    train(bn, list(range(C)))
    for again in LOOKS:
        again.values[0](bn)


@pytest.mark.parametrize("look", LOOKS)
def test_no_warning(queue: cl.CommandQueue, look: Look) -> None:
    """While a channel goes on, nothing of the kind is wrong; nor is it without the guard, or in evaluation."""
    bn = BatchNorm2D(C, queue=queue)
    train(bn, [0, 1, 2, 3], [1, 2, 3], [])
    look(bn)
    unguarded = BatchNorm2D(C, queue=queue, guard=False)
    train(unguarded, list(range(C)))
    look(unguarded)
    bn.trainMode()
    evaluated = BatchNorm2D(C, queue=queue)
    evaluated.evalMode()
    train(evaluated, list(range(C)))
    look(evaluated)


def test_channels_that_are_left_out_one_after_the_other(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue)
    train(bn, *([channel] for channel in range(C)), [2])
    with pytest.warns(SkippedBatchesWarning, match=r"1 to 2 times in 6 batches"):
        bn.evalMode()


def test_what_a_file_tells_is_old(queue: cl.CommandQueue) -> None:
    bn, other = BatchNorm2D(C, queue=queue), BatchNorm2D(C, queue=queue)
    train(bn, list(range(C)))
    with pytest.warns(SkippedBatchesWarning):
        image = bn.save() or b""
    other.load(image)
    assert other.skipped == C
    train(other, list(range(C)))
    with pytest.warns(SkippedBatchesWarning, match="each of them 2 times in 2 batches"):
        other.evalMode()
    other.numOfProps = 0
    other.trainMode()
    train(other, list(range(C)))
    with pytest.warns(SkippedBatchesWarning, match="each of them once in 1 batch:"):
        copy.copy(other).evalMode()


@pytest.mark.parametrize("look", LOOKS)
def test_a_warning_that_is_an_error_changes_nothing(queue: cl.CommandQueue, look: Look) -> None:
    bn = BatchNorm2D(C, queue=queue)
    train(bn, list(range(C)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SkippedBatchesWarning):
            look(bn)
    assert bn.train
    assert bn.inData is not None
    look(bn)


def test_calls_read_no_counters(queue: cl.CommandQueue) -> None:
    """One launch and nothing else is asked of the driver, however bad the batch."""
    bn = BatchNorm2D(C, queue=queue)
    train(bn, [])
    x = put(queue, np.full((4, C, 3, 3), np.nan, np.float32))
    with recording() as launches, failing() as driver:
        bn(x)
    commands = [what for what in driver.asked if what.startswith("enqueue")]
    assert commands == ["enqueue_nd_range_kernel"] * len(launches)


def test_a_device_that_is_gone_before_evaluation(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue)
    train(bn, [])
    with failing(DEVICE_GONE), pytest.raises(DeviceError, match="DEVICE_NOT_AVAILABLE"):
        bn.evalMode()
    assert bn.train
    assert bn.inData is not None


@pytest.mark.parametrize("look", LOOKS)
def test_finite_data_whose_variance_overflows(queue: cl.CommandQueue, look: Look) -> None:
    """It is not said that there were values that are not finite: that is one cause of two."""
    bn = BatchNorm2D(C, queue=queue)
    bn(put(queue, make((4, C, 3, 3), 1).x * np.float32(1e30)))
    message = (
        r"each of them once in 1 batch: values that are not finite, or so large \(from about 1e19 on in float32\) that "
        r"their variance overflows\. Look at the data, at what comes before this layer, or at the driver "
        r"\(`oclbn check`\)$"
    )
    with pytest.warns(SkippedBatchesWarning, match=message):
        look(bn)
