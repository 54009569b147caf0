"""The compiler matrix's own reckoning: what is counted as tested, as failed and as unknown."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import matrix
import pyopencl as cl
import pytest
from click.testing import CliRunner
from covering import crossed
from matrix import LONG, OTHERS, PLANNED, RUNTIMES, Row, Runtime
from rich.console import Console

import oclbn.device
from oclbn.errors import DeviceNotFoundError
from oclbn.plan.operations import ALL

pytestmark = pytest.mark.once(reason="the reckoning is the host's")

HERE = Path(__file__).resolve().parents[1]


def line(test: str, outcome: str, *launches: tuple[str, int]) -> str:
    return json.dumps({"test": test, "outcome": outcome, "launches": launches})


def complete() -> list[tuple[str, int]]:
    return [(kernel, lanes) for kernel in (*PLANNED, *OTHERS) for lanes in (1, 16)]


def row_of(folder: Path, *lines: str) -> Row:
    (folder / "report").write_text("".join(f"{line}\n" for line in lines))
    row = Row(RUNTIMES[0])
    row.read(folder / "report")
    return row


def printed(rows: list[Row]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(matrix.table(rows))
    return capture.get()


def test_every_kernel_has_a_line_of_the_table() -> None:
    named = {name for operation in ALL.values() for name in operation.kernels}
    alone = {"compress", "expand", "invstd", "merge", "merge_sums", "pack", "renorm", "renorm_gradient"}
    assert {*PLANNED} == named | alone
    text = "".join(path.read_text() for path in (HERE.parent / "kernels").glob("*.cl"))
    assert {*PLANNED, *OTHERS} == {*re.findall(r"__kernel[^;{]*?\bvoid (\w+)\(", text)}


def test_a_row_is_good_when_every_kernel_ran_in_both_ways(tmp_path: Path) -> None:
    row = row_of(tmp_path, line("a", "begun"), line("a", "passed", *complete()))
    assert row.good
    assert row.unknown == []
    assert row.outcomes == {"passed": 1}
    assert "1 + 1" in printed([row])


@pytest.mark.parametrize("lanes", [1, 16], ids=["one work-item", "several"])
def test_a_kernel_that_ran_in_one_way_only_is_not_good(tmp_path: Path, lanes: int) -> None:
    ways = [way for way in complete() if way != ("infer", lanes)]
    row = row_of(tmp_path, line("a", "passed", *ways))
    assert row.unknown == ["infer"]
    assert not row.good
    assert "not tested" in printed([row])


def test_a_failure_stands_in_the_line_of_each_kernel_that_the_test_launched(tmp_path: Path) -> None:
    row = row_of(tmp_path, line("a", "passed", *complete()), line("b", "failed", ("infer", 1), ("infer", 16)))
    row.status = 1
    assert row.failed == {"infer": 1}
    assert row.outcomes == {"passed": 1, "failed": 1}
    assert not row.good
    assert "1 failed of 2 + 2" in printed([row])


def test_a_driver_that_aborts_is_told_with_the_test_that_it_died_in(tmp_path: Path) -> None:
    row = row_of(tmp_path, line("a", "passed", *complete()), line("b", "begun"))
    row.status = -6
    assert row.last == "b"
    assert not row.good
    assert "died in b" in printed([row])


@pytest.mark.parametrize("fails", ["", "pytest", "oclbn"])
def test_a_runtime_is_tested_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    asked = []

    def run(command: list[str], **more: Any) -> SimpleNamespace:
        if command[1] == "-c":
            return SimpleNamespace(returncode=0, stdout=b"3:0 OpenCL 3.0 of somebody\n")
        asked.append(command[2])
        if command[2] == "pytest":
            Path(command[command.index("--launches") + 1]).write_text(line("a", "passed", *complete()) + "\n")
        else:
            assert command[3:] == ["check", "--device", "3:0", *([] if LONG else ["--quick"])]
            assert more["env"]["POCL_CACHE_DIR"] == str(tmp_path / "oclgrind")
        return SimpleNamespace(returncode=int(command[2] == fails), stdout=f"{command[2]} says so".encode())

    monkeypatch.setattr(matrix.subprocess, "run", run)
    row = matrix.run(next(runtime for runtime in RUNTIMES if runtime.name == "oclgrind"), tmp_path)
    assert asked == ["pytest", "oclbn"]
    assert row.version == "OpenCL 3.0 of somebody"
    assert row.good == (not fails)
    assert ("oclbn says so" in row.printed) == (fails == "oclbn")
    assert ("`oclbn check` failed" in printed([row])) == (fails == "oclbn")


def test_the_last_part_has_what_ended_parts_have_compiled(tmp_path: Path) -> None:
    for name, ended in (("rusticl", True), ("pocl-system", True), ("intel", False)):
        kernels = tmp_path / "caches" / name / "kernels"
        kernels.mkdir(parents=True)
        (kernels / name).write_text("compiled")
        (kernels.parent / "launches").write_text("told")
        if ended:
            (kernels.parent / matrix.COMPLETE).touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = matrix.everything_in_sight(scratch, tmp_path / "caches")
    own = Path(environment["POCL_CACHE_DIR"])
    assert own == Path(environment["XDG_CACHE_HOME"])
    assert sorted(str(path.relative_to(own)) for path in own.rglob("*")) == [
        "kernels",
        "kernels/pocl-system",
        "kernels/rusticl",
    ]


def test_a_missing_runtime_is_loud_and_fails_where_all_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "RUNTIMES", (Runtime("oclgrind", "no such device at all", "cannot be had"),))
    skipped = CliRunner().invoke(matrix.main, ["--only", "oclgrind"])
    assert skipped.exit_code == 0, skipped.output
    assert "MISSING RUNTIME oclgrind: cannot be had" in skipped.output
    assert CliRunner().invoke(matrix.main, ["--only", "oclgrind", "--require-all"]).exit_code == 1


@pytest.mark.parametrize(
    ("last", "status", "wanted"),
    [
        pytest.param([], 0, "all green", id="passed"),
        pytest.param([line("b", "failed", ("infer", 1))], 1, "1 failed of 2 + 1", id="one failed"),
        pytest.param([line("b", "failed")], 1, "1 failed", id="one without kernels failed"),
        pytest.param([line("b", "begun")], 1, "died in b", id="not ended"),
    ],
)
def test_what_was_run_before_is_not_run_again(tmp_path: Path, last: list[str], status: int, wanted: str) -> None:
    file = tmp_path / "launches"
    file.write_text("".join(f"{text}\n" for text in [line("a", "begun"), line("a", "passed", *complete()), *last]))
    ended = CliRunner().invoke(matrix.main, ["--only", "intel", "--told", f"intel={file}"])
    assert ended.exit_code == status, ended.output
    assert wanted in ended.output


def test_what_a_runtime_told_is_kept_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(runtime: Runtime, scratch: Path) -> Row:
        (scratch / runtime.name).mkdir()
        row = Row(runtime, version="OpenCL 3.0 of somebody")
        (scratch / runtime.name / "launches").write_text(line("a", "passed", *complete()) + "\n")
        row.read(scratch / runtime.name / "launches")
        return row

    monkeypatch.setattr(matrix, "run", run)
    ended = CliRunner().invoke(matrix.main, ["--only", "intel", "--keep", str(tmp_path / "told")])
    assert ended.exit_code == 0, ended.output
    assert "intel: OpenCL 3.0 of somebody: 1 passed" in ended.output
    again = CliRunner().invoke(matrix.main, ["--only", "intel", "--told", f"intel={tmp_path / 'told' / 'intel'}"])
    assert again.exit_code == 0, again.output
    assert "1 + 1" in again.output


@pytest.mark.parametrize("version", ["3.0+debian", "3.1+debian", "6.0+debian", "7.1"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_two_pocls_are_told_apart_whatever_their_versions(
    monkeypatch: pytest.MonkeyPatch, version: str, first: bool
) -> None:
    wheel, system = (
        SimpleNamespace(platform="Portable Computing Language", platform_version=f"OpenCL 3.0 PoCL {v}  Linux, LLVM")
        for v in ("3.0-rc2", version)
    )
    monkeypatch.setattr(oclbn.device, "devices", lambda: [system, wheel] if first else [wheel, system])
    monkeypatch.setattr(conftest.importlib.metadata, "version", lambda name: "3.0")
    assert conftest.named("pocl-wheel") == [wheel]
    assert conftest.named("pocl-system") == [system]
    monkeypatch.setattr(oclbn.device, "devices", lambda: [wheel])
    with pytest.raises(DeviceNotFoundError, match=r"no pocl-system among OpenCL 3.0 PoCL 3.0-rc2"):
        conftest.named("pocl-system")


@pytest.mark.parametrize(
    ("given", "named"),
    [("nobody=x", "'nobody'"), ("intel=no such file", "'no such file'"), ("intel", "''")],
)
def test_what_was_told_of_nobody_or_nowhere_is_refused(given: str, named: str) -> None:
    ended = CliRunner().invoke(matrix.main, ["--told", given])
    assert ended.exit_code == 2
    assert named in ended.output


@pytest.mark.parametrize("text", ["no line of JSON", "[]", "{}"])
def test_what_no_suite_told_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    ended = CliRunner().invoke(matrix.main, ["--only", "intel", "--told", f"intel={tmp_path / 'file'}"])
    assert ended.exit_code == 1
    assert "file is not what `pytest --launches` writes" in ended.output


def test_the_suite_tells_which_kernels_each_test_launched(queue: cl.CommandQueue, tmp_path: Path) -> None:
    """As tests/matrix.py asks for it, on one small file."""
    report = tmp_path / "report"
    (tmp_path / "test_it.py").write_text(
        "import pyopencl.array as cla\n"
        "from oclbn.functional import moments\n"
        "def test_device(queue): moments(cla.zeros(queue, (2, 3), 'f'))\n"
        "def test_fails(queue): assert not moments(cla.zeros(queue, (2, 3), 'f'))\n"
        "def test_no_device(): pass\n"
    )
    info = next(info for info in oclbn.device.devices() if info.device == queue.device)
    options = ["-p", "conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--only-device"]
    options += ["--device", info.spec, "--launches", str(report), "test_it.py"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
        capture_output=True,
        check=False,
    )
    told: list[dict[str, Any]] = [json.loads(text) for text in report.read_text().splitlines()]
    assert [one["outcome"] for one in told] == ["begun", "passed", "begun", "failed"]
    assert {name for name, _ in told[1]["launches"]} == {"moments_partial", "moments_merge"}
    assert told[0]["launches"] == told[2]["launches"] == []


@pytest.mark.parametrize("sizes", [(2, 3), (4, 4), (5, 2, 3), (2, 6)], ids=str)
def test_of_a_product_each_runtime_has_each_value(sizes: tuple[int, ...]) -> None:
    """And the README's run all of it."""
    axes = [[pytest.param(f"{axis}{value}", id=str(value)) for value in range(size)] for axis, size in enumerate(sizes)]
    rows = crossed(*axes, reason="the others are compared once")
    everywhere = [row.values for row in rows if not row.marks]
    assert len({row.values for row in rows}) == len(rows) == math.prod(sizes)
    assert {value for values in everywhere for value in values} == {one.values[0] for axis in axes for one in axis}
    assert len(everywhere) == max(sizes)
    assert {mark.name for row in rows for mark in row.marks} == {"once"}
