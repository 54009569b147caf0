"""What the commands say about compiling."""

from __future__ import annotations

import logging
import subprocess
import sys

import pyopencl as cl
import pytest

import oclbn.device
from oclbn.cli import builds
from oclbn.plan.words import Build
from oclbn.program import building


def test_builds_are_counted_within_the_block(queue: cl.CommandQueue) -> None:
    def build(number: int) -> None:
        building.program(queue.context, Build("accumulate.cl", (("DOUBLE", 0), ("COUNTED", number))))

    logger = logging.getLogger("oclbn.program")
    before = (logger.level, list(logger.handlers))
    build(1)
    with builds.counted() as built:
        build(1)
        assert built.programs == 0
        build(2)
        build(3)
    assert built.programs == 2
    assert built.seconds > 0
    build(4)
    assert built.programs == 2
    assert (logger.level, logger.handlers) == before


@pytest.mark.parametrize(
    ("programs", "seconds", "says"),
    [
        (1, 0.04, "Compiled 1 program in 0.0 s"),
        (6, 12.34, "Compiled 6 programs in 12.3 s; where the driver caches them, only once"),
    ],
    ids=["from a cache", "from source"],
)
def test_the_line(programs: int, seconds: float, says: str) -> None:
    built = builds.Builds()
    built.programs, built.seconds = programs, seconds
    assert str(built) == says


@pytest.mark.once(reason="the line is the host's")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["demo", "--batches", "1"], id="demo"),
        pytest.param(["bench", "--shape", "4,8", "--rounds", "3", "--outputs", "preallocated"], id="bench"),
        pytest.param(["bench", "--shape", "4,8", "--profile"], id="profile"),
    ],
)
def test_commands_show_it(queue: cl.CommandQueue, arguments: list[str]) -> None:
    spec = oclbn.device.select(queue.device).spec
    command = [sys.executable, "-m", "oclbn", *arguments, "--device", spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Compiled ")]
    assert int(line.split()[1]) > 1
