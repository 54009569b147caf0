"""`oclbn check`: what it asks, that it sees what is wrong, and that a driver that dies takes nothing with it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from oclbn import device, functional
from oclbn.call.prepared import dissect
from oclbn.cli import check as check_command
from oclbn.cli import check_report, check_run, remedy
from oclbn.cli.devices import as_size
from oclbn.cli.group import oclbn
from oclbn.device import DeviceInfo, pocl
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.words import DeviceLimits, Tuning
from oclbn.tools.check import checklist, checks
from oclbn.tools.check import repro as check_repro
from oclbn.tools.check.checklist import BuildCheck, NumberCheck, SpeedCheck
from oclbn.tools.child import ChildProcess, Rejected
from oclbn.truth import expectation, hostile
from oclbn.truth.bounds import excess

pytestmark = pytest.mark.once(
    reason="the matrix runs `oclbn check` on every runtime; what that makes of what it sees is the host's"
)

CPU = DeviceLimits("cpu", 8, 4096, 1 << 20, 32 << 20, 1 << 34, 1 << 32, fp64=True, fp16=False)


@pytest.fixture
def info(queue: cl.CommandQueue) -> DeviceInfo:
    return device.select(queue.device)


def run(*options: str) -> Result:
    return CliRunner().invoke(oclbn, ["check", *options])


# --- what is asked


def test_every_check_survives_json() -> None:
    found = checklist.checks(CPU, Tuning())
    assert {check.kind for check in found} == {"build", "numbers", "speed"}
    assert [checklist.asked(json.loads(json.dumps(checklist.request(check)))) for check in found] == found


def test_every_kernel_is_built_and_all_data_compared() -> None:
    found = checklist.checks(CPU, Tuning())
    built = {kernel for check in found if isinstance(check, BuildCheck) for kernel in check.kernels}
    assert built == {kernel for wanted in OPERATIONS.values() for kernel in (wanted.resident, *wanted.split) if kernel}
    numbers = [check for check in found if isinstance(check, NumberCheck)]
    assert {check.data for check in numbers} == set(hostile.MAKERS)
    assert {check.operation for check in numbers} == set(OPERATIONS)
    assert {check.dtype for check in numbers} == {"float32", "float64", "float16", "bfloat16"}


def test_a_device_without_fp64_is_not_asked_for_it() -> None:
    found = checklist.checks(dataclasses.replace(CPU, fp64=False), Tuning())
    assert not any(isinstance(check, NumberCheck) and check.dtype == "float64" for check in found)
    assert not any(isinstance(check, BuildCheck) and dict(check.build.defines)["DOUBLE"] for check in found)


def test_large_tensors_are_compared_where_other_kernels_do_them() -> None:
    def large(device: DeviceLimits, **options: bool) -> set[str]:
        found = checklist.checks(device, Tuning(), **options)
        return {c.operation for c in found if isinstance(c, NumberCheck) and c.shape in checklist._LARGE}

    device = dataclasses.replace(CPU, cache_bytes=32 << 20)
    assert large(device) == set(OPERATIONS) - {"moments"}  # which writes nothing past the cache
    assert not large(device, quick=True)
    assert not large(dataclasses.replace(device, cache_bytes=1 << 30))


def test_excess_is_in_units_of_the_bound() -> None:
    got = np.float32([1.5, np.nan, np.nan, 2.0, np.inf, 7.0, np.nan])
    units = excess(got, [1.0, np.nan, 1.0, 2.0, np.inf, 0.0, 0.0], [0.25, 0.0, 9.0, 0.0, 0.0, 0.0, np.inf])
    assert units.tolist() == [2.0, 0.0, np.inf, 0.0, 0.0, np.inf, 0.0]


# --- that it sees what is wrong


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_number_is_seen(queue: cl.CommandQueue, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = NumberCheck(operation, (3, 7, 3, 5), 1, checklist.ORDINARY)
    assert checks.numbers(queue, check)["units"] <= 1.0
    right = expectation.expected

    def wrong(*given: Any) -> Any:
        name, (value, bound) = next(iter((found := right(*given)).items()))
        return found | {name: (value + 4 * bound, bound)}

    monkeypatch.setattr(checks, "expected", wrong)
    with pytest.raises(checks.Fault, match=r"errs by [345]\.\d* times its tolerance"):
        checks.numbers(queue, check)


@pytest.mark.parametrize(
    ("operation", "activation", "residual"),
    [("train", "relu", True), ("infer", "gelu", False), ("backward", "relu", True), ("constant", "gelu", True)],
)
def test_what_is_fused_is_checked_and_makes_a_script(
    queue: cl.CommandQueue, info: DeviceInfo, tmp_path: Path, operation: str, activation: str, residual: bool
) -> None:
    check = NumberCheck(operation, (3, 7, 3, 5), 1, checklist.ORDINARY, activation=activation, residual=residual)
    assert str(check).endswith(f"{activation}, a residual" if residual else activation)
    see_it_run(queue, info, tmp_path, check, {"train": 5, "infer": 1}.get(operation, 3 + residual))


@pytest.mark.parametrize(("operation", "results"), [("train", 5), ("backward", 3)])
def test_groups_are_checked_and_make_a_script(
    queue: cl.CommandQueue, info: DeviceInfo, tmp_path: Path, operation: str, results: int
) -> None:
    check = NumberCheck(operation, (3, 7, 3, 5), 1, checklist.ORDINARY, groups=2)
    assert str(check).endswith("2 groups")
    see_it_run(queue, info, tmp_path, check, results)


def see_it_run(queue: cl.CommandQueue, info: DeviceInfo, folder: Path, check: NumberCheck, results: int) -> None:
    """As a check, through JSON, and as a script that finds so many results right."""
    assert checklist.asked(json.loads(json.dumps(checklist.request(check)))) == check
    assert checks.numbers(queue, check)["units"] <= 1.0
    if info.simulator:
        return  # it would have to be started anew
    file = folder / "repro.py"
    file.write_text(check_repro.script(asked_of(info), check, "y errs by 7 times"))
    done = run_script(file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong" not in done.stdout
    assert done.stdout.count(": right") == results


def test_fused_checks_are_of_what_can_be_fused() -> None:
    found = [check for check in checklist.checks(CPU, Tuning()) if isinstance(check, NumberCheck)]
    fused = {check.operation for check in found if check.activation != "none"}
    assert fused == {"train", "infer", "backward", "constant"}
    assert {check.activation for check in found if check.residual} == {"relu"}


def test_a_write_beyond_a_result_is_seen(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.batch_norm_infer

    def spilling(*given: Any, out: Any, **options: Any) -> Any:
        y = right(*given, out=out, **options)
        cl.enqueue_copy(queue, out.base_data, np.zeros(1, np.float32), dst_offset=out.offset + out.nbytes)
        return y

    monkeypatch.setattr(functional, "batch_norm_infer", spilling)
    with pytest.raises(checks.Fault, match="written beyond out"):
        checks.numbers(queue, NumberCheck("infer", (2, 3, 301), 1, checklist.ORDINARY))


def test_a_kernel_that_can_have_no_groups_is_seen(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    build = next(c for c in checklist.checks(CPU, Tuning()) if isinstance(c, BuildCheck))
    assert all(most >= 1 for most in checks.build(queue, build)["most"].values())
    monkeypatch.setattr(checks.building, "most_lanes", lambda *_: 0)
    with pytest.raises(checks.Fault, match="may have 0 work-items"):
        checks.build(queue, build)


def test_kernels_for_smaller_groups_are_built_where_plans_will_need_them() -> None:
    tuning = Tuning(lanes=64, vec=1)
    builds = [c for c in checklist.checks(CPU, tuning) if isinstance(c, BuildCheck)]
    room = {c.build: dict.fromkeys(c.kernels, 64) for c in builds}
    assert checklist.more_builds(CPU, tuning, room) == []
    room[builds[0].build] = dict.fromkeys(builds[0].kernels, 40)
    more = checklist.more_builds(CPU, tuning, room)
    assert more
    assert {dict(c.build.defines)["LANES"] for c in more} == {32}


# --- the command


@pytest.fixture
def one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation's first check: all of them are asked by CI, of each runtime."""
    every = checklist.checks

    def some(*given: Any, **options: Any) -> list[checklist.Check]:
        first: dict[str, checklist.Check] = {}
        for check in every(*given, **options):
            if isinstance(check, NumberCheck):
                first.setdefault(check.operation, check)
        return [*first.values()]

    monkeypatch.setattr(checklist, "checks", some)


@pytest.mark.usefixtures("one_each")
def test_a_good_device_is_green(info: DeviceInfo) -> None:
    result = run("--device", info.spec, "--quick")
    assert result.exit_code == 0, result.output
    assert f"OCLBN_DEVICE={info.spec}" in result.stdout
    assert f"PYOPENCL_CTX={info.spec}" in result.stdout
    assert "checks passed" in result.stdout
    assert "failed" not in result.stdout
    heading = next(line for line in result.stdout.splitlines() if "compared" in line)
    assert not {"built", "GB/s", "copies"} & {*heading.split()}  # nothing is built alone, or timed, in a quick check
    assert "backward, eval mode" in result.stdout


@pytest.mark.usefixtures("one_each")
def test_json(info: DeviceInfo) -> None:
    result = run("--device", info.spec, "--quick", "--json")
    printed = json.loads(result.stdout)
    (found,) = printed["devices"]
    assert printed["verdict"] == "pass"
    assert found["good"] is True
    assert found["name"] == info.name
    assert set(found["operations"]) == set(OPERATIONS)
    for told in found["operations"].values():
        assert told["compared"] > 0
        assert 0 < told["worst_in_tolerances"] <= 1
    assert found["faults"] == []


def test_a_device_that_does_not_exist() -> None:
    result = run("--device", "no such device")
    assert result.exit_code == 1
    assert "no such device" in result.output


def test_all_and_device_exclude_each_other() -> None:
    assert run("--all", "--device", "0:0").exit_code == 2


def test_a_repro_that_cannot_be_written_shows_at_once(info: DeviceInfo, tmp_path: Path) -> None:
    result = run("--device", info.spec, "--repro", str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path) in result.output


def test_a_repro_replaces_no_file_and_is_a_script(info: DeviceInfo, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("months of work")
    result = run("--device", info.spec, "--repro", str(script))
    assert result.exit_code == 2
    assert "is there already: give another name, or --overwrite" in " ".join(result.output.split())
    assert script.read_text() == "months of work"
    result = run("--device", info.spec, "--repro", str(tmp_path / "bn.hdf"))
    assert result.exit_code == 2
    assert "does not end in .py" in " ".join(result.output.split())


# --- a driver that dies


DYING = """
import json, os, signal, sys
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if number == 0 or request["with"]["data"] != "one NaN":
        told = {"done": {"units": 0.5, "of": "y"}}
        print(json.dumps(told), flush=True)
    else:
        print("LLVM ERROR: Cannot select", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
"""


@pytest.fixture
def no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other device is looked for, which would take as long as checking it."""
    monkeypatch.setattr(remedy, "passing", lambda *_: None)


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that abort at one kind of data."""
    child = tmp_path / "dying.py"
    child.write_text(textwrap.dedent(DYING))

    def made(_module: str, start: dict[str, Any], **options: Any) -> ChildProcess:
        return ChildProcess("", start, command=(sys.executable, str(child)), **options)

    monkeypatch.setattr(check_run, "ChildProcess", made)


@pytest.mark.usefixtures("dying")
def test_an_abort_is_a_red_row_and_the_others_are_run(info: DeviceInfo) -> None:
    checked = check_run.run(info, quick=True)
    assert {outcome.fault for outcome in checked.faults} == {
        "the driver aborted (signal 6, SIGABRT): LLVM ERROR: Cannot select"
    }
    assert all(isinstance(o.check, NumberCheck) and o.check.data == "one NaN" for o in checked.faults)
    assert len(checked.faults) == check_run.MOST_DEATHS
    assert len(checked.outcomes) > len(checked.faults)
    assert not checked.good


def test_the_smallest_failure_makes_the_script(info: DeviceInfo, tmp_path: Path) -> None:
    checked = asked_of(info)
    shapes = [((401, 71), 1), ((3, 40, 5), 0), ((2, 3, 9001), 1)]
    tried = [NumberCheck("backward", shape, axis, checklist.ORDINARY) for shape, axis in shapes]
    checked.outcomes = [check_run.Outcome(check, {}, "dx is wrong") for check in (SpeedCheck((1, 1)), *tried)]
    check_command._write_repro(tmp_path / "repro.py", [checked])
    assert "backward of 3x40x5 @0" in (tmp_path / "repro.py").read_text()


@pytest.mark.parametrize("width", [60, 80])
def test_no_fact_is_broken_and_faults_are_in_words_of_the_field(info: DeviceInfo, width: int) -> None:
    checked = asked_of(info)
    check = NumberCheck("constant", (3, 7, 3, 5), 1, checklist.ORDINARY, variant="split")
    checked.outcomes = [check_run.Outcome(check, {}, "dx is wrong")]
    screen = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    check_report.print_checked(screen, checked)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    memory = as_size(info.limits.local_bytes)
    assert any(f"local {memory}" in line for line in lines)
    assert [line for line in lines if len(line) > width and line != info.title] == []
    assert "failed: backward, eval mode of 3x7x3x5, N(0,1), two-kernel: dx is wrong" in " ".join(
        " ".join(lines).split()
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_devices_side_by_side_are_never_cut(info: DeviceInfo, width: int) -> None:
    """A name that is cut selects nothing; where there is no room for it, its index stands alone."""
    named = dataclasses.replace(info, platform_index=7, name="a processor with a long name, of many cores")
    checked = check_run.Checked(named, check_run.choices_in_force(info), 5)
    for operation in OPERATIONS:
        checked.outcomes.append(check_run.Outcome(NumberCheck(operation, (2, 2), 1, checklist.ORDINARY), {}, ""))
    screen = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    check_report.print_matrix(screen, [checked])
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\u2026" not in shown
    assert (f"7:0 {named.name}" in shown) == (width == 120)
    assert re.search(r"^7:0 +(?:a processor.*)?ok +ok +ok +ok +ok *$", shown, re.MULTILINE)


def test_devices_side_by_side_show_what_fails_of_double_backward(info: DeviceInfo) -> None:
    """In the columns of backward and of backward in eval mode."""
    checked = check_run.Checked(info, check_run.choices_in_force(info), 7)
    for operation in OPERATIONS:
        fault = "gx is wrong" * operation.startswith("double")
        checked.outcomes.append(check_run.Outcome(NumberCheck(operation, (2, 2), 1, checklist.ORDINARY), {}, fault))
    screen = Console(width=100, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    check_report.print_matrix(screen, [checked])
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"ok +ok +ok +1 failed +1 failed *$", shown, re.MULTILINE)


@pytest.mark.usefixtures("dying", "no_other")
def test_the_command_is_red_and_writes_a_script(info: DeviceInfo, tmp_path: Path) -> None:
    script = tmp_path / "repro.py"
    result = run("--device", info.spec, "--quick", "--repro", str(script))
    assert result.exit_code == 1
    assert "the driver aborted" in result.stdout
    assert "checks failed" in result.stdout
    assert "signal 6, SIGABRT" in script.read_text()


@pytest.fixture
def three_devices(info: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """The device of the test, a GPU, another processor and a simulator; the dictionary says which pass."""
    others = [
        dataclasses.replace(info, platform_index=7, name="a GPU", kind="gpu", simulator=False),
        dataclasses.replace(info, platform_index=8, name="a processor", kind="cpu", simulator=False),
        dataclasses.replace(info, platform_index=9, name="a simulator", kind="gpu", simulator=True),
    ]
    good = {info.spec: False, "7:0": False, "8:0": True, "9:0": True}
    monkeypatch.setattr(remedy.device, "devices", lambda: (info, *others))

    def checked(one: DeviceInfo, **_: Any) -> check_run.Checked:
        done = check_run.Checked(one, check_run.choices_in_force(info), 1)
        fault = "" if good[one.spec] else "y is wrong"
        done.outcomes = [check_run.Outcome(NumberCheck("train", (2, 2), 1, checklist.ORDINARY), {}, fault)]
        return done

    monkeypatch.setattr(check_run, "run", checked)
    return good


def test_a_failure_names_the_best_other_device_that_passes(info: DeviceInfo, three_devices: dict[str, bool]) -> None:
    result = run("--device", info.spec, "--quick")
    assert result.exit_code == 1
    told = " ".join(result.stdout.split())
    assert "What to do: Another device passes `oclbn check --quick`: 8:0 a processor" in told
    assert "--device 8:0, or OCLBN_DEVICE=8:0 for a whole program." in told
    assert f"`oclbn check --device {info.spec} --repro report.py` writes a script." in told
    three_devices["7:0"] = True
    assert remedy.passing(info).spec == "7:0"
    three_devices |= {"7:0": False, "8:0": False}
    told = " ".join(run("--device", info.spec, "--quick").stdout.split())
    assert "What to do: No other device here passes" in told


@pytest.mark.usefixtures("three_devices")
def test_what_is_known_of_others_is_not_checked_again(info: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [check_run.run(other) for other in remedy.device.devices()]
    monkeypatch.setattr(check_run, "run", None)
    assert remedy.passing(info, known).spec == "8:0"


def test_a_device_that_fails_is_given_up_at_once_where_another_is_looked_for(dying: None, info: DeviceInfo) -> None:
    assert len(check_run.run(info, quick=True, most_faults=1).faults) == 1


def test_a_child_that_hangs_is_ended(tmp_path: Path) -> None:
    child = tmp_path / "hanging.py"
    child.write_text("import time; time.sleep(600)")
    with ChildProcess("", {}, command=(sys.executable, str(child)), timeout=0.2) as asked:
        with pytest.raises(Rejected, match="hung"):
            asked.ask("anything")
        assert asked.deaths == asked.hangs == 1


# --- the script


def asked_of(info: DeviceInfo) -> check_run.Checked:
    return check_run.Checked(info, check_run.choices_in_force(info), 1)


def run_script(file: Path) -> subprocess.CompletedProcess[str]:
    found = os.environ | {"PYTHONPATH": str(Path(pocl.__file__).parents[1])}
    command = [sys.executable, str(file)]
    return subprocess.run(command, env=found, cwd=file.parent, capture_output=True, text=True, check=False)


ASIDE = [case for case in (*checklist._HARD, *checklist._OTHERS) if case[1] != 1]  # channels on another axis


@pytest.mark.parametrize(
    ("operation", "shape", "axis", "variant"),
    [
        *(pytest.param(name, (3, 7, 3, 5), 1, "", id=f"{name} as planned") for name in OPERATIONS),
        *(pytest.param(name, (3, 7, 3, 5), 1, "split", id=f"{name} split") for name in OPERATIONS),
        *(pytest.param("backward", shape, axis, "", id=f"channels on axis {axis}") for shape, axis in ASIDE),
    ],
)
def test_a_script_runs_by_itself(
    queue: cl.CommandQueue,
    info: DeviceInfo,
    tmp_path: Path,
    operation: str,
    shape: tuple[int, ...],
    axis: int,
    variant: str,
) -> None:
    """On a device that is right it says so; nothing of oclbn is imported, save what mends POCL."""
    if info.simulator:
        pytest.skip("a simulator would have to be started anew")
    check = NumberCheck(operation, shape, axis, checklist.FAR_MEAN, variant=variant)
    assert checks.numbers(queue, check)["units"] <= 1.0
    file = tmp_path / "repro.py"
    file.write_text(check_repro.script(asked_of(info), check, 'y errs by 7 times\nits "bound"'))
    imports = [line.strip() for line in file.read_text().splitlines() if re.match(r"\s*(import|from) .*oclbn", line)]
    assert imports == ["from oclbn.device.pocl import mend_target"] * (pocl.mend_target(info.device) is not None)
    done = run_script(file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"device: {info.device.name.strip()}" in done.stdout
    assert "wrong" not in done.stdout
    assert done.stdout.count(": right") >= 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_small_check_makes_a_script(info: DeviceInfo, operation: str) -> None:
    cases = [case for case in (*checklist._HARD, *checklist._OTHERS) if math.prod(case[0]) < 100_000]
    assert {axis for _, axis in cases} == {0, 1, 3}
    for shape, axis in cases:
        check = NumberCheck(operation, shape, axis, checklist.ORDINARY)
        compile(check_repro.script(asked_of(info), check, "wrong"), "repro.py", "exec")


def altered(operation: str, **numbers: float) -> Callable[..., Any]:
    """A `dissect` by which the kernels of a script get other numbers than they should."""
    right = dissect

    def dissected(*given: Any) -> Any:
        planned, told = right(*given)
        assert given[0] == operation
        assert set(numbers) <= set(told)
        return planned, told | numbers

    return dissected


@pytest.mark.parametrize(
    ("operation", "number", "result", "shape", "axis"),
    [
        ("train", "epsilon", "y", (3, 7, 3, 5), 1),
        ("infer", "epsilon", "y", (3, 7, 3, 5), 1),
        ("constant", "epsilon", "dx", (3, 7, 3, 5), 1),
        *(("backward", "count", "dx", *case) for case in ASIDE),
    ],
)
def test_a_script_sees_a_wrong_result(
    info: DeviceInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    number: str,
    result: str,
    shape: tuple[int, ...],
    axis: int,
) -> None:
    """What goes wrong is a number that the check's own call uses: constants come as a variance, as there."""
    monkeypatch.setattr(check_repro, "dissect", altered(operation, **{number: 3}))
    file = tmp_path / "repro.py"
    file.write_text(
        check_repro.script(asked_of(info), NumberCheck(operation, shape, axis, checklist.ORDINARY), "wrong")
    )
    done = run_script(file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{result}: \d+ of {math.prod(shape)} wrong", done.stdout)


def test_a_script_sees_what_is_written_beside_a_result(info: DeviceInfo, tmp_path: Path) -> None:
    """Arrays start at an odd element, as in the check, with room around them."""
    file = tmp_path / "repro.py"
    text = check_repro.script(asked_of(info), NumberCheck("infer", (3, 7, 3, 5), 1, checklist.ORDINARY), "spilt")
    assert "('y_start', 'int64', 3)" in text
    file.write_text(text.replace("('y_start', 'int64', 3)", "('y_start', 'int64', 4)"))
    done = run_script(file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "y: written where nothing may be, element 318" in done.stdout


def test_a_build_that_fails_makes_a_script_too(info: DeviceInfo, tmp_path: Path) -> None:
    build = next(c for c in checklist.checks(info.limits, Tuning()) if isinstance(c, BuildCheck))
    file = tmp_path / "repro.py"
    file.write_text(check_repro.script(asked_of(info), build, "refused"))
    done = run_script(file)
    assert done.returncode == 0, done.stderr
    assert "built 1" in done.stdout
    for kernel in build.kernels:
        assert re.search(rf"groups of {kernel} may have [1-9]\d* work-items", done.stdout)


def test_another_platform_that_fails_does_not_stop_a_script(info: DeviceInfo, tmp_path: Path) -> None:
    file = tmp_path / "repro.py"
    text = check_repro.script(asked_of(info), NumberCheck("infer", (3, 7, 3, 5), 1, checklist.ORDINARY), "wrong")
    broken = """
class Broken:
    name = "a broken platform"
    def get_devices(self):
        raise cl.LogicError(cl._cl._ErrorRecord("clGetDeviceIDs", cl.status_code.INVALID_VALUE, ""))
real = cl.get_platforms
cl.get_platforms = lambda: [Broken(), *real()]
"""
    file.write_text(text.replace("\nPLATFORM, ", broken + "\nPLATFORM, "))
    done = run_script(file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"device: {info.device.name.strip()}" in done.stdout


def test_speeds_are_told(queue: cl.CommandQueue) -> None:
    told = checks.speed(queue, SpeedCheck((4, 8, 16, 16)))
    assert set(told) == {"forward", "backward", "inference"}
    assert all(row["seconds"] > 0 and row["bandwidth"] > 0 and row["ratio"] > 0 for row in told.values())


@pytest.mark.once("words, not a device's")
def test_progress_speaks_of_operations_and_shapes() -> None:
    limits = DeviceLimits("cpu", 2, 64, 1 << 15, 0, 1 << 30, 1 << 28, True, False)
    every = checklist.checks(limits, Tuning())
    assert {type(check) for check in every} == {BuildCheck, NumberCheck, SpeedCheck}
    for check in every:
        told = check_report.in_progress(check)
        words = told.replace("leaky_relu", "").replace("gelu_tanh", "")  # as callers know them
        assert not re.search(r"^constant|_|resident|serial|forward\.cl", words), told
        if isinstance(check, BuildCheck):
            assert told.startswith("kernels of "), told
        else:
            assert "x".join(map(str, check.shape)) in told
    assert any(check_report.in_progress(check).startswith("backward, eval mode of 401x71") for check in every)
