"""The benchmark: what it times is right, what it tells is complete. Never how long anything took."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from click.testing import CliRunner

from oclbn.cli import bench, records
from oclbn.cli.group import oclbn
from oclbn.device import limits
from oclbn.errors import DeviceError, ParameterError, ShapeError, SizeError
from oclbn.gpuarray import pack
from oclbn.tools.bench import benchmark, packing, profiling, turns, workload
from oclbn.tools.child import Rejected
from oclbn.tools.peers import contract

TOLD = pytest.mark.once(reason="tables, and what is done with times, are the host's")


def work(queue: cl.CommandQueue, shape: tuple[int, ...], outputs: str, axis: int = 1) -> workload.Work:
    return workload.Work(queue, shape, axis, outputs, contract.block(int(np.prod(shape))))


@pytest.mark.parametrize("count", [2, 7, 64, 1000, 100_003])
def test_every_copy_copies(queue: cl.CommandQueue, count: int) -> None:
    made = work(queue, (2, count), "preallocated")
    target = made._target()
    seen = []
    for entry in made.copies():
        target.fill(np.float32(-1))
        entry.turn(1, False)
        np.testing.assert_array_equal(target.get(), made.x.get())
        seen.append(entry.operation)
    assert tuple(seen) == benchmark.COPIES


@TOLD
def test_rows_say_everything(queue: cl.CommandQueue) -> None:
    rows = benchmark.measure(queue, (3, 4, 5, 6), rounds=4)
    assert [row.operation for row in rows] == [*benchmark.COPIES, "forward", "backward", "inference", "both"]
    copies = [row for row in rows if row.who == "copy"]
    best = min(row.median for row in copies)
    for row in rows:
        assert row.low <= row.median <= row.high
        assert row.ratio == row.median / best
        assert row.bandwidth == row.nbytes / row.median
        assert row.samples >= 4
        assert bool(row.plan) is (row.who == "oclbn")
    assert {row.operation: row.nbytes for row in rows}["backward"] == 3 * 360 * 4
    assert {row.operation: row.nbytes for row in rows}["both"] == 5 * 360 * 4


@pytest.mark.parametrize("outputs", benchmark.OUTPUTS)
def test_outputs_lie_where_they_should(queue: cl.CommandQueue, outputs: str) -> None:
    made = work(queue, (4, 3, 5), outputs)
    call = made.calls()["inference"]
    (first,), (second,) = call(), call()
    assert (first.base_data == second.base_data) is (outputs in ("preallocated", "prepared"))
    assert (first.allocator is not None) is (outputs == "pool")
    rows = benchmark.compare(queue, (4, 3, 5), rounds=3, outputs=outputs, operations=("inference",)).rows
    assert {row.outputs for row in rows} == {outputs}
    assert [row.operation for row in rows if row.who == "oclbn"] == ["inference"]


@TOLD
def test_wrong_results_are_not_timed(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    right = workload.functional.batch_norm_infer
    monkeypatch.setattr(workload.functional, "batch_norm_infer", lambda *a, **k: right(*a, **k).fill(np.float32(7)))
    with pytest.raises(DeviceError, match=r"inference of .* y errs by"):
        benchmark.measure(queue, (3, 4, 5), rounds=3)


@pytest.mark.parametrize(
    ("shape", "axis", "options", "says"),
    [
        ((3, 4), 1, {"rounds": 2}, "rounds is 2"),
        ((3, 4), 2, {}, "axis is 2"),
        ((3, 4), 1, {"outputs": "lent"}, "'lent'; some of preallocated"),
        ((3, 4), 1, {"operations": ("forward", "sideways")}, "'sideways'"),
    ],
)
def test_what_cannot_be_measured(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ParameterError, match=says):
        benchmark.compare(queue, shape, axis, **options)


def test_too_large_is_said_before_anything_is_allocated(queue: cl.CommandQueue) -> None:
    with pytest.raises(SizeError, match=r"allocates at most|has .* free|four tensors need"):
        benchmark.measure(queue, (1 << 20, 1 << 20), rounds=3)


@TOLD
def test_negative_axes_count_from_the_end(queue: cl.CommandQueue) -> None:
    assert {row.axis for row in benchmark.measure(queue, (5, 3, 2), -1, rounds=3)} == {2}


def test_geometric_mean() -> None:
    assert benchmark.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_everyone_has_a_turn_in_each_round() -> None:
    turned: list[str] = []

    def turn(who: str, once: float):  # type: ignore[no-untyped-def]
        return lambda calls, warm: turned.append(who) or [once] * calls

    entries = [turns.Entry(who, "forward", turn(who, 1e-3), 1e-3) for who in ("copy", "oclbn", "peer")]
    assert turns.interleave(entries, 5) == {}
    assert [sorted(turned[i : i + 3]) for i in range(0, 15, 3)] == [["copy", "oclbn", "peer"]] * 5
    assert turned[:15] != ["copy", "oclbn", "peer"] * 5, "the order is shuffled"
    assert {len(entry.samples) for entry in entries} == {5 * 10}  # 10 ms of calls in a turn


def test_slow_peers_tire_and_failing_ones_go() -> None:
    def fail(calls: int, warm: bool) -> list[float]:
        raise Rejected("it fell over")

    entries = [
        turns.Entry("oclbn", "forward", lambda calls, warm: [1e-3] * calls, 1e-3),
        turns.Entry("slow", "forward", lambda calls, warm: [10.0] * calls, 10.0),
        turns.Entry("broken", "forward", fail, 1e-3),
        turns.Entry("broken", "backward", lambda calls, warm: [1e-3] * calls, 1e-3),
    ]
    assert turns.interleave(entries, None) == {"broken": "it fell over"}
    assert [entry.who for entry in entries] == ["oclbn", "slow"], "the process held its other operation as well"
    assert len(entries[0].samples) > len(entries[1].samples) >= 3


@pytest.mark.parametrize("operation", benchmark.TENSORS)
def test_device_times_are_parts_of_the_hosts(queue: cl.CommandQueue, operation: str) -> None:
    (found,) = profiling.profile(queue, (8, 3, 40, 40), operations=(operation,))
    assert found.operation == operation
    assert found.wall > 0
    assert found.plan
    assert [launched.kernel for launched in found.launches] == [
        kernel for part in found.plan.split("; ") if "(" in part for kernel in part.partition("(")[2].split(" + ")
    ]
    if found.device is not None:  # some drivers' events keep no time
        for launched in found.launches:
            assert launched.seconds is not None
            assert 0 <= launched.seconds <= found.device


@pytest.mark.parametrize(("shape", "axis"), [((8, 3, 10, 11), 1), ((4, 6, 7, 5), 3)], ids=["rows", "channels last"])
def test_packed_calls_stand_beside_what_they_are_made_of(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int
) -> None:
    done: list[float] = []
    found = packing.packed(queue, shape, axis, rounds=3, advance=done.append)
    assert [one.operation for one in found] == list(packing.OPERATIONS)
    for one in found:
        assert min(one.packed, one.plain, one.copies) > 0
        assert one.ratio == one.packed / (one.plain + one.copies)
        read = ["x", "dy"] if one.operation == "backward" else ["x"]
        assert re.findall(r"(\w+) \((?:no kernel|it lies)", one.plan) == [*read, "out"]
    assert done[-1] == 1
    with pytest.raises(ShapeError, match="nothing is packed of tensors with two axes"):
        packing.packed(queue, (8, 3), rounds=3)


def test_packed_calls_that_are_wrong_are_not_timed(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.gpuarray, "pack", lambda view: pack(view) + 1)
    with pytest.raises(DeviceError, match="differs where its arrays are packed"):
        packing.packed(queue, (8, 3, 10, 11), rounds=3)


# --- the command


def run(*given: str) -> str:
    result = CliRunner().invoke(oclbn, ["bench", *given])
    assert result.exit_code == 0, result.output
    return result.stdout


@TOLD
def test_the_command_prints_a_table(queue: cl.CommandQueue) -> None:
    printed = run("--shape", "4,8,6,6", "--shape", "32,10", "--rounds", "3")
    assert "4x8x6x6" in printed
    assert printed.count("geometric mean") == 2
    assert "outputs preallocated" in printed
    assert "outputs fresh" in printed


@TOLD
def test_means_are_over_all_copies_and_over_plain_ones(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the copy by non-temporal stores at 1 ms, the others at 4 and 2, and batch normalization at 3 and 6."""
    times = {"copy command": 4e-3, "copy kernel": 2e-3, "copy kernel, non-temporal stores": 1e-3}

    def timed(entries: list[Any], rounds: int | None, advance: Any) -> dict[str, str]:
        for entry in entries:
            entry.samples[:] = 3 * [times.get(entry.operation) or queued.pop()]
        return {}

    queued = [6e-3, 3e-3]  # of the second shape, and of the first
    monkeypatch.setattr(benchmark, "interleave", timed)
    printed = run("--shape", "4,8,6,6", "--shape", "32,10", "--operations", "forward", "--outputs", "prepared")
    lines = {line.partition("  ")[0]: line.split()[-1] for line in map(str.strip, printed.splitlines()) if line}
    assert lines["geometric mean"] == "(4.24)"
    assert lines["worst"] == "(6.00)"
    assert lines["over plain copy"] == "(2.12)"
    assert lines["worst over plain"] == "(3.00)"


@TOLD
def test_details_have_a_line_for_each_time(queue: cl.CommandQueue) -> None:
    printed = run("--shape", "4,8,6,6", "--rounds", "3", "--outputs", "pool", "--details", "--operations", "both")
    table = printed.partition("outputs pool: memory from a pyopencl MemoryPool\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == 2 + len(benchmark.COPIES) + 1, "a heading with units, the copies, and the one operation"
    assert "kernel, non-temporal stores" in printed


@TOLD
def test_the_command_prints_json(queue: cl.CommandQueue) -> None:
    printed = json.loads(run("--shape", "5,3,2", "--axis", "-1", "--rounds", "3", "--json"))
    assert set(printed) == {
        "schema",
        "command",
        "device",
        "versions",
        "peers",
        "dtype",
        "fused",
        "rows",
        "absences",
        "skipped",
        "complete",
    }
    assert printed["schema"] == records.SCHEMA
    assert set(printed["versions"]) == {"oclbn", "python", "pyopencl", "numpy"}
    assert printed["device"]["driver"]
    rows = printed["rows"]
    assert {row["operation"] for row in rows} == {*benchmark.TENSORS, *benchmark.COPIES}
    assert {row["outputs"] for row in rows} == {"preallocated", "fresh"}
    assert all(row["shape"] == [5, 3, 2] and row["axis"] == 2 and row["bytes_per_second"] > 0 for row in rows)
    assert all(row["plan"] for row in rows if row["who"] == "oclbn")


@TOLD
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_stand_beside_float32(queue: cl.CommandQueue, dtype: str) -> None:
    if dtype == "float64" and not limits(queue.device).fp64:
        pytest.skip("needs float64")
    printed = json.loads(run("--shape", "5,3,7", "--rounds", "3", "--outputs", "fresh", "--dtype", dtype, "--json"))
    assert printed["dtype"] == dtype
    rows = {(row["who"], row["operation"]): row for row in printed["rows"]}
    own, other = rows["oclbn", "forward"], rows["float32", "forward"]
    assert (own["dtype"], other["dtype"]) == (dtype, "float32")
    assert own["bytes"] == 2 * 5 * 3 * 7 * np.dtype(dtype if dtype != "bfloat16" else "float16").itemsize
    told = run("--shape", "5,3,7", "--rounds", "3", "--outputs", "fresh", "--dtype", dtype, "--operations", "forward")
    assert f"elements of {dtype}, in the same run as float32 ones" in told


@TOLD
@pytest.mark.parametrize(("activation", "residual"), [("relu", True), ("gelu", True), ("gelu", False), ("none", True)])
def test_what_is_fused_is_timed_beside_the_same_without(
    queue: cl.CommandQueue, activation: str, residual: bool
) -> None:
    given = ["--shape", "8,4,6", "--rounds", "3", "--activation", activation, "--outputs", "prepared,fresh", "--json"]
    printed = json.loads(run(*given, *(["--residual"] if residual else [])))
    assert printed["fused"].startswith(activation if activation != "none" else "the sum")
    assert ("residual" in printed["fused"]) == residual
    for operation, more in (("forward", 1), ("backward", 2 if activation != "none" else 0), ("inference", 1)):
        rows = {row["who"]: row for row in printed["rows"] if row["operation"] == operation}
        extra = rows["oclbn"]["bytes"] - rows["plain"]["bytes"]
        assert extra == (more if residual else 0) * 8 * 4 * 6 * 4


def test_packed_calls_are_of_float32(queue: cl.CommandQueue) -> None:
    told = CliRunner().invoke(oclbn, ["bench", "--packed", "--dtype", "float16", "--shape", "4,3,5"])
    assert told.exit_code == 2
    assert "leave out --dtype float16" in told.output


@TOLD
def test_a_shape_that_has_no_room_is_one_line(queue: cl.CommandQueue) -> None:
    printed = run("--shape", "4,8", "--shape", "1048576,1048576", "--rounds", "3", "--outputs", "preallocated")
    assert "1048576x1048576, outputs preallocated, is left out: " in printed
    assert "4x8 " in printed


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells")
def test_the_load_of_others_is_what_they_use_now() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        try:
            assert bench.busy_cores(0.5) > 0.3  # less than 1 where others want that core as well
        finally:
            other.kill()


def test_the_load_of_others_is_counted_in_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    hertz = bench.os.sysconf("SC_CLK_TCK")
    own = iter([1.0, 1.25])  # seconds
    told = iter([[100] * 8, [100 + hertz] + [100] * 2 + [900, 700, 100, 100] + [100 + hertz // 2]])
    monkeypatch.setattr(bench, "_ticks", lambda: next(told))
    monkeypatch.setattr(time, "process_time", lambda: next(own))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert bench.busy_cores(0.5) == 2.5  # 1 s of users' and 0.5 s stolen, less 0.25 s of our own, in half a second
    monkeypatch.setattr(bench, "_ticks", list)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    assert bench.busy_cores(0.5) == 0


def test_the_command_profiles(queue: cl.CommandQueue) -> None:
    printed = run("--shape", "4,8,6,6", "--profile", "--operations", "forward,inference")
    assert "its time" in printed
    assert "train_resident" in printed
    assert "infer" in printed
    found = json.loads(run("--shape", "4,8,6,6", "--profile", "--json"))
    assert [one["operation"] for one in found["profile"]] == list(benchmark.TENSORS)


def test_the_command_times_packed_calls(queue: cl.CommandQueue) -> None:
    given = ("--packed", "--shape", "4,8,6,6", "--shape", "9,4", "--rounds", "3")
    printed = run(*given, "--operations", "forward,both")
    assert re.search(r"geometric mean +forward +[\d.]+$", printed, re.MULTILINE)
    assert "9x4 is left out: shape (9, 4): nothing is packed" in printed
    found = json.loads(run(*given, "--json"))
    assert [one["operation"] for one in found["packed"]] == list(packing.OPERATIONS)
    assert [one["shape"] for one in found["skipped"]] == [[9, 4]]


def test_help_names_suites_and_libraries() -> None:
    printed = run("--help")
    for name in (*benchmark.SUITES, "onednn-blocked", "OCLBN_PEER_PYTHON"):
        assert name in printed


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (["--shape", "4"], 2, "two positive numbers"),
        (["--shape", "4,x"], 2, "no list of numbers"),
        (["--suite", "vgg"], 2, "resnet50"),
        (["--rounds", "2"], 2, "x>=3"),
        (["--against", "torch,caffe"], 2, "'caffe' is not one of torch, torch-compiled, numpy"),
        (["--outputs", "lent"], 2, "preallocated, prepared, fresh, pool"),
        (["--plot", "bench.txt"], 2, ".png, .svg, .pdf"),
        (["--device", "no such device"], 1, "fits no device"),
        (["--shape", "4,5", "--axis", "3"], 2, "3 is no axis of shape"),
        (["--packed", "--profile"], 2, "leave out one of them"),
        (["--activation", "relu", "--packed"], 2, "are timed without --profile and --packed"),
        (["--residual", "--profile"], 2, "are timed without --profile and --packed"),
        (["--activation", "relish"], 2, "'relish' is not one of"),
        (["--packed", "--against", "numpy"], 2, "--packed compares nothing and draws nothing"),
        (["--packed", "--operations", "both"], 2, "--packed times forward, backward, inference"),
    ],
)
def test_wrong_options(queue: cl.CommandQueue, given: list[str], status: int, says: str) -> None:
    result = CliRunner().invoke(oclbn, ["bench", *given])
    assert result.exit_code == status
    assert says in result.stderr
