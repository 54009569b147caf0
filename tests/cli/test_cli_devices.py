"""The command line's frame, and `oclbn devices`."""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import click
import pyopencl as cl
import pytest
from click.testing import CliRunner, Result

import oclbn.device
from oclbn.cli import group
from oclbn.cli.devices import as_size
from oclbn.device import DeviceInfo, listing
from oclbn.errors import DeviceError
from oclbn.plan.words import DeviceLimits
from oclbn.proof import proving

FACTS = DeviceLimits(
    kind="gpu",
    compute_units=40,
    max_group=256,
    local_bytes=64 << 10,
    cache_bytes=4 << 20,
    memory_bytes=16 << 30,
    max_alloc_bytes=(27 << 30) // 2,
    fp64=True,
    fp16=False,
)
LISTED = tuple(
    DeviceInfo(
        platform_index=1,
        device_index=index,
        name=name,
        platform="AMD Accelerated Parallel Processing",
        platform_version="OpenCL 2.1",
        driver="3558.0 (HSA1.1,LC)",
        kind="gpu",
        simulator=simulator,
        limits=FACTS,
        device=cast(cl.Device, None),
    )
    for index, name, simulator in [(0, "[red]gfx1030[/red]", False), (1, "a simulator", True)]
)
BYTES = {"local_bytes", "cache_bytes", "memory_bytes", "max_alloc_bytes", "vector_bytes"}
KEYS = {
    *(
        "index",
        "name",
        "runtime",
        "platform",
        "platform_version",
        "driver",
        "kind",
        "simulator",
        "compute_units",
        "max_group",
    ),
    *("fp16", "fp64", "vector_bytes", "stores16", "not_used", "default", "reason"),
    *BYTES,
}


@pytest.fixture(autouse=True)
def no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCLBN_DEVICE", raising=False)
    monkeypatch.delenv("PYOPENCL_CTX", raising=False)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (oclbn.device, listing):
        monkeypatch.setattr(module, "devices", lambda: LISTED)
    monkeypatch.setattr(proving, "failures", lambda device: ())
    monkeypatch.setattr(oclbn.device, "without_devices", tuple)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_platform() -> list[cl.Platform]:
        raise cl.LogicError(cl._cl._ErrorRecord("clGetPlatformIDs", cl.status_code.PLATFORM_NOT_FOUND_KHR, ""))

    monkeypatch.setattr(cl, "get_platforms", no_platform)


def run(*arguments: str, environment: dict[str, str] | None = None, color: bool = False) -> Result:
    return CliRunner().invoke(group.oclbn, list(arguments), env=environment, color=color)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


# ---- the table and the JSON list


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("columns", [80, 120])
def test_table_holds_every_fact_and_fits(columns: int) -> None:
    result = run("devices", environment={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= columns
    words = " ".join(result.stdout.split())
    for heading in ("P:D", "Device", "Kind", "CU", "fp16", "fp64", "Local", "Alloc"):
        assert heading in words
    row = "1:0 [red]gfx1030[/red] gpu 40 no yes 64 KiB 13.5 GiB AMD Accelerated Parallel Processing"
    assert row in words
    assert "3558.0 (HSA1.1,LC)" in words
    assert "1:1 a simulator simulator 40" in words


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("columns", [54, 60])
def test_a_narrow_table_leaves_facts_out_and_cuts_no_name(columns: int) -> None:
    lines = run("devices", environment={"COLUMNS": str(columns)}).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "fp16" not in lines[0]
    assert "Alloc" not in lines[0]
    assert {"AMD Accelerated Parallel Processing", "3558.0 (HSA1.1,LC)"} <= {line.strip() for line in lines}
    assert lines[2].split()[:3] == ["*", "1:0", "[red]gfx1030[/red]"]
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)


@pytest.mark.usefixtures("two_devices")
def test_one_device_is_shown_by_what_selects_it() -> None:
    result = run("devices", "--device", "1:1 a simulator")
    assert result.exit_code == 0
    assert "a simulator" in result.stdout
    assert "gfx1030" not in result.stdout
    assert "OCLBN_DEVICE=1:1" in result.stdout
    (row,) = json.loads(run("devices", "--device", "1:1", "--json").stdout)["devices"]
    assert row["index"] == "1:1"


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["a table", "JSON"])
def test_a_wrong_device_is_an_error_that_lists_all(options: list[str]) -> None:
    result = run("devices", "--device", "geforce", *options)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: --device 'geforce' fits no device\n")
    assert all(info.name in result.stderr and info.runtime in result.stderr for info in LISTED)


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("environment", "marked", "reason"),
    [
        pytest.param({}, "1:0", "first in the ranking", id="ranking"),
        pytest.param({"OCLBN_DEVICE": "simul"}, "1:1", "environment variable OCLBN_DEVICE='simul'", id="OCLBN_DEVICE"),
        pytest.param({"PYOPENCL_CTX": "1:1"}, "1:1", "environment variable PYOPENCL_CTX='1:1'", id="PYOPENCL_CTX"),
    ],
)
def test_the_default_is_marked_with_its_reason(environment: dict[str, str], marked: str, reason: str) -> None:
    lines = run("devices", environment=environment).stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("* 1:")] == [marked]
    assert any(line.startswith(f"* the default: {reason}") for line in lines)


@pytest.mark.usefixtures("two_devices")
def test_json() -> None:
    result = run("devices", "--json", environment={"OCLBN_DEVICE": "1:1"})
    first, second = json.loads(result.stdout)["devices"]
    assert result.exit_code == 0
    assert result.stderr == ""
    assert set(first) == set(second) == KEYS
    assert first["index"] == "1:0"
    assert first["name"] == "[red]gfx1030[/red]"
    assert first["max_alloc_bytes"] == (27 << 30) // 2
    assert (first["simulator"], second["simulator"]) == (False, True)
    assert (first["default"], first["reason"]) == (False, None)
    assert (second["default"], second["reason"]) == (True, "environment variable OCLBN_DEVICE='1:1'")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        pytest.param(0, "0 B", id="nothing"),
        pytest.param(1023, "1023 B", id="below the first unit"),
        pytest.param(1024, "1 KiB", id="exactly one unit"),
        pytest.param(48 << 10, "48 KiB", id="whole"),
        pytest.param((3 << 20) // 2, "1.5 MiB", id="a half"),
        pytest.param(6134386688, "5.7 GiB", id="rounded"),
        pytest.param(5 << 50, "5120 TiB", id="beyond the last unit"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert as_size(count) == text


# ---- what goes wrong


@pytest.mark.usefixtures("no_device")
def test_no_device_says_how_to_get_one() -> None:
    result = run("devices")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: no OpenCL device found")
    assert "pip install 'oclbn[pocl]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("no_device")
def test_no_device_as_json_is_an_empty_list() -> None:
    result = run("devices", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["devices"] == []
    assert "pip install 'oclbn[pocl]'" in result.stderr


@pytest.mark.usefixtures("two_devices")
def test_a_variable_that_fits_nothing_still_lists() -> None:
    result = run("devices", environment={"OCLBN_DEVICE": "geforce"})
    assert result.exit_code == 1
    assert "gfx1030" in result.stdout
    assert "*" not in result.stdout
    assert result.stderr == "Error: environment variable OCLBN_DEVICE='geforce' fits no device\n"


@pytest.mark.usefixtures("two_devices")
def test_a_variable_that_fits_nothing_as_json_has_no_default() -> None:
    result = run("devices", "--json", environment={"OCLBN_DEVICE": "geforce"})
    assert result.exit_code == 1
    assert [row["default"] for row in json.loads(result.stdout)["devices"]] == [False, False]
    assert result.stderr == "Error: environment variable OCLBN_DEVICE='geforce' fits no device\n"


def test_our_errors_are_shown_in_red_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[DeviceInfo, ...]:
        raise DeviceError("the driver is gone\nand its table with it")

    monkeypatch.setattr(oclbn.device, "devices", fail)
    result = run("devices", color=True)
    assert result.exit_code == 1
    assert result.stderr == "\x1b[31mError: the driver is gone\x1b[0m\nand its table with it\n"


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[DeviceInfo, ...]:
        raise ZeroDivisionError

    monkeypatch.setattr(oclbn.device, "devices", fail)
    assert isinstance(run("devices").exception, ZeroDivisionError)


def test_unknown_command() -> None:
    result = run("device")
    assert result.exit_code == 2
    assert "No such command 'device'" in result.stderr


# ---- the frame


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0, result.output
    assert all(f"\n  {name} " in result.stdout for name in group.SUBCOMMANDS)


def test_help_of_devices_says_what_the_exit_status_means() -> None:
    words = " ".join(run("devices", "--help").stdout.split())
    assert "The exit status is 0 when there is a default device, and 1 when there is none" in words


def test_commands_are_where_they_are_looked_for() -> None:
    context = click.Context(group.oclbn)
    assert all(isinstance(group.oclbn.get_command(context, name), click.Command) for name in group.SUBCOMMANDS)


@pytest.mark.parametrize("package", ["click", "rich"])
def test_a_missing_package_names_the_extra(package: str) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from oclbn.cli import main; main()"
    done = python("-c", script)
    assert done.returncode == 1
    assert done.stderr == f"Error: the command oclbn needs the package {package}: pip install 'oclbn[cli]'\n"


def test_a_broken_package_shows_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import something_that_click_needs\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from oclbn.cli import main; main()"
    done = python("-c", script)
    assert done.returncode == 1
    assert "No module named 'something_that_click_needs'" in done.stderr
    assert "Traceback" in done.stderr


def test_version() -> None:
    done = python("-m", "oclbn", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("oclbn, version ")


def test_devices_imports_nothing_of_the_demo() -> None:
    script = """
import sys
sys.argv = ["oclbn", "devices", "--json"]
from oclbn.cli import main
try:
    main()
finally:
    unwanted = [name for name in ("sklearn", "matplotlib", "h5py", "oclbn.cli.demo") if name in sys.modules]
    print("unwanted:", unwanted, file=sys.stderr)
"""
    assert "unwanted: []" in python("-c", script).stderr


# ---- on the devices that are there


def test_the_real_listing(queue: cl.CommandQueue) -> None:
    mine = oclbn.device.select(queue.device)
    done = python("-m", "oclbn", "devices", "--json", OCLBN_DEVICE=mine.spec)
    rows = json.loads(done.stdout)["devices"]
    assert done.returncode == 0
    assert [row["index"] for row in rows] == [info.spec for info in oclbn.device.devices()]
    (default,) = [row for row in rows if row["default"]]
    assert default["index"] == mine.spec
    assert default["name"] == mine.name
    assert default["compute_units"] == queue.device.max_compute_units


def test_the_real_table_on_a_terminal_that_knows_only_ascii(queue: cl.CommandQueue) -> None:
    mine = oclbn.device.select(queue.device)
    done = python("-m", "oclbn", "devices", OCLBN_DEVICE=mine.spec, PYTHONIOENCODING="ascii", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^\*\W{mine.spec}\W", done.stdout, re.MULTILINE)
    assert mine.name in done.stdout


def test_what_is_printed_of_each_device_selects_it(queue: cl.CommandQueue) -> None:
    """Its index, its title, and its name and runtime where no other device has the same: on every runtime that is here.

    The runtimes that are switched off are switched on.
    """
    switched_on = {"RUSTICL_ENABLE": "llvmpipe", "COLUMNS": "120"}
    done = python("-m", "oclbn", "devices", **switched_on)
    heading, _, *rows = itertools.takewhile(str.strip, done.stdout.splitlines())
    index_at, name_at, kind_at = (heading.index(word) for word in ("P:D", "Device", "Kind"))
    found = [(row[index_at:name_at].strip(), row[name_at:kind_at].strip()) for row in rows if row[name_at:].strip()]
    printed = [(index, name, runtime) for (index, name), (_, runtime) in itertools.pairwise(found) if index]
    assert len(printed) >= len(oclbn.device.devices())
    cells = collections.Counter(cell for row in printed for cell in row)
    wanted = {}
    for index, name, runtime in printed:
        titles = (f"{index} {name}", f"{index} {name} ({runtime})")
        wanted |= dict.fromkeys([text for text in (index, name, runtime, *titles) if cells[text] <= 1], index)
    script = (
        "import json, sys, oclbn.device as d; print(json.dumps({text: d.select(text).spec for text in sys.argv[1:]}))"
    )
    done = python("-c", script, *wanted, **switched_on)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted


@pytest.mark.usefixtures("two_devices")
def test_what_a_narrow_screen_leaves_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "Not shown" not in run("devices").stdout
    monkeypatch.setenv("COLUMNS", "50")
    shown = run("devices").stdout
    told = shown.partition("Not shown in 50 columns: ")[2].partition(";")[0].split()
    left_out = [heading.strip(",") for heading in told]
    assert {"fp16", "Alloc"} <= set(left_out)
    headings = shown.splitlines()[0].split()
    assert not set(left_out) & set(headings)


def test_many_kernels_that_a_driver_gets_wrong_are_counted(two_devices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tuple(f"kernel {number}" for number in range(12))
    monkeypatch.setattr(proving, "failures", lambda device: told)
    shown = run("devices").output
    assert "kernel 7" in shown
    assert "kernel 8" not in shown
    assert "... and 4 more; --json has all" in shown
    assert all(info["not_used"] == [*told] for info in json.loads(run("devices", "--json").stdout)["devices"])
