"""Calls leave nothing behind: no event, kernel or buffer, by the memory of a process of its own.

A step is a training call, backward, an update and an evaluation, seven kernels, or bound calls alone. With OCLBN_LONG=1
there are 100,000 calls of kernels and more, else 14,000.
"""

from __future__ import annotations

import sys
from typing import Any

import pyopencl as cl
import pytest
from conftest import LONG

STEPS = 30_000 if LONG else 2_000
WARM = 1_000  # before those: caches and pools then have what they keep
NOISE = 3 << 20  # bytes that a heap may grow by, whoever uses it
PER_STEP = 16  # an event alone takes hundreds
PER_MESA_STEP = 4096  # of Mesa 26's own out of order, for events that waited for each other
KEPT = ("pool", "recording", "threads")
OURS = pytest.mark.once(reason="what pools, lists and threads keep is Python's, whoever's events it is")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc, which tells a process's memory")
@pytest.mark.parametrize("kind", ["in order", "out of order", "bound", *(pytest.param(k, marks=OURS) for k in KEPT)])
def test_memory_levels_off(
    bears_threads: None, queue: cl.CommandQueue, spec: str, ask_apart: Any, kind: str, tally: Any
) -> None:
    free = cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE
    if kind == "out of order" and not queue.device.get_info(cl.device_info.QUEUE_PROPERTIES) & free:
        pytest.skip(f"needs out-of-order queues; {queue.device.name} has none")
    slow = queue.device.platform.name == "rusticl"  # tens of ms a step; events that are kept show in 1,000 as well
    steps, before = (STEPS // 3 if LONG else 1_000, WARM // 2) if slow else (STEPS, WARM)
    grown = ask_apart("growth", spec, before, steps, kind)
    tally[f"KiB grown in {steps:,} steps, {kind}"] = grown >> 10
    linked = kind == "out of order" and slow and int(queue.device.driver_version.split(".")[0]) >= 26
    own = PER_MESA_STEP if linked else 0
    assert grown <= NOISE + (PER_STEP + own) * steps


@pytest.mark.once(reason="events that a list keeps show in the memory of any process")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc, which tells a process's memory")
def test_a_leak_would_be_seen(bears_threads: None, queue: cl.CommandQueue, spec: str, ask_apart: Any) -> None:
    """The same with the events kept."""
    assert ask_apart("growth", spec, WARM, 2_000, "a leak") > NOISE + PER_STEP * 2_000
