"""The benchmark: what it times is right, what it tells is complete. Never how long anything took."""

from __future__ import annotations

import json

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from click.testing import CliRunner

from oclbn import benchmark
from oclbn.cli.group import oclbn
from oclbn.errors import ParameterError


@pytest.mark.parametrize("count", [1, 7, 64, 1000, 100_003])
def test_every_copy_copies(queue: cl.CommandQueue, count: int) -> None:
    host = np.random.default_rng(count).standard_normal(count, dtype=np.float32)
    x = cla.to_device(queue, host)
    names = []
    for name, call in benchmark._copies(queue, x, y := cla.zeros_like(x)):
        y.fill(np.float32(-1))
        call()
        np.testing.assert_array_equal(y.get(), host)
        names.append(name)
    assert len(names) == 3


def test_rows_say_everything(queue: cl.CommandQueue) -> None:
    rows = benchmark.measure(queue, (3, 4, 5, 6), rounds=4)
    assert [row.operation for row in rows][-3:] == ["forward", "backward", "inference"]
    copies = [row for row in rows if row.operation.startswith("copy")]
    best = min(row.median for row in copies)
    for row in rows:
        assert row.low <= row.median <= row.high
        assert row.ratio == row.median / best
        assert row.bandwidth == row.nbytes / row.median
        assert bool(row.plan) is (row not in copies)
    assert {row.operation: row.nbytes for row in rows}["backward"] == 3 * 360 * 4


@pytest.mark.parametrize(
    ("shape", "axis", "rounds", "says"), [((3, 4), 1, 2, "rounds is 2"), ((3, 4), 2, 3, "axis is 2")]
)
def test_what_cannot_be_measured(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, rounds: int, says: str
) -> None:
    with pytest.raises(ParameterError, match=says):
        benchmark.measure(queue, shape, axis, rounds=rounds)


def test_geometric_mean() -> None:
    assert benchmark.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_suites_are_shapes(suite: str) -> None:
    for shape, axis in benchmark.SUITES[suite]:
        assert len(shape) > axis
        assert all(size > 0 for size in shape)


def test_the_command_prints_a_table(queue: cl.CommandQueue) -> None:
    result = CliRunner().invoke(oclbn, ["bench", "--shape", "4,8,6,6", "--shape", "32,10", "--rounds", "3"])
    assert result.exit_code == 0, result.output
    assert "4x8x6x6" in result.stdout
    assert "geometric mean" in result.stdout


def test_the_command_prints_json(queue: cl.CommandQueue) -> None:
    result = CliRunner().invoke(oclbn, ["bench", "--shape", "5,3,2", "--axis", "-1", "--rounds", "3", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert {row["operation"] for row in rows} > set(benchmark.TENSORS)
    assert all(row["device"] and row["driver"] and row["shape"] == [5, 3, 2] for row in rows)


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (["--shape", "4"], 2, "two positive numbers"),
        (["--shape", "4,x"], 2, "no list of numbers"),
        (["--suite", "vgg"], 2, "resnet50"),
        (["--rounds", "2"], 2, "x>=3"),
        (["--device", "no such device"], 1, "fits no device"),
        (["--shape", "4,5", "--axis", "3"], 1, "axis is 3"),
    ],
)
def test_wrong_options(queue: cl.CommandQueue, given: list[str], status: int, says: str) -> None:
    result = CliRunner().invoke(oclbn, ["bench", *given])
    assert result.exit_code == status
    assert says in result.stderr
