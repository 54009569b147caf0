"""`oclbn bench` as it is used: options that add up, rows as they come, Ctrl-C, narrow screens; never a time."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyopencl as cl
import pytest
from click.testing import CliRunner, Result

from oclbn import device
from oclbn.cli import bench_report
from oclbn.cli.group import oclbn
from oclbn.tools.bench import benchmark, profiling
from oclbn.tools.peers.registry import PEERS

pytestmark = pytest.mark.once(reason="tables, files and exit statuses are the host's")

SMALL = ("--shape", "4,6,5", "--rounds", "3", "--outputs", "prepared", "--operations", "inference")


def bench(spec: str, *given: str, width: int | None = None) -> Result:
    environment = {} if width is None else {"COLUMNS": str(width)}
    return CliRunner(env=environment).invoke(oclbn, ["bench", "--device", spec, *given])


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are not there show where they would have been timed, as where some of them are there."""
    monkeypatch.setattr("oclbn.cli.bench._tell_missing", lambda *_: None)


@pytest.mark.usefixtures("untold")
def test_repeated_options_add_up(spec: str) -> None:
    given = ["--shape", "4,6,5", "--shape", "8,3", "--shape", "8,3", "--operations", "forward", "--operations"]
    given += [
        "inference,forward",
        "--outputs",
        "fresh",
        "--outputs",
        "prepared",
        "--against",
        "numpy",
        "--against",
        "torch",
    ]
    done = bench(spec, *given, "--peer-python", "/nowhere", "--rounds", "3", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    timed = {(tuple(row["shape"]), row["outputs"], row["operation"]) for row in found["rows"] if row["who"] == "oclbn"}
    assert timed == {
        (shape, outputs, operation)
        for shape in ((4, 6, 5), (8, 3))
        for outputs in ("fresh", "prepared")
        for operation in ("forward", "inference")
    }
    assert {absence["who"] for absence in found["absences"]} == {"numpy", "torch"}
    assert found["complete"] is True


def test_outputs_go_by_their_former_names(spec: str) -> None:
    """Which lines in other people's scripts have; nothing tells of them."""
    given = ["--shape", "4,6,5", "--rounds", "3", "--operations", "inference", "--json"]
    found = json.loads(bench(spec, *given, "--outputs", "reused,bound,prepared").stdout)
    assert list(dict.fromkeys(row["outputs"] for row in found["rows"])) == ["preallocated", "prepared"]
    assert "reused" not in bench(spec, "--outputs", "lent").stderr


@pytest.mark.parametrize(
    "given",
    [
        ["bench", "--rounds", "3", "--rounds", "4"],
        ["bench", "--device", "gpu", "--device", "cpu"],
        ["bench", "--axis", "1", "--axis", "2"],
        ["devices", "--device", "cpu", "--device", "1:0"],
        ["check", "--device", "cpu", "--device", "1:0"],
        ["check", "--timeout", "3", "--timeout", "4"],
        ["tune", "--seconds", "3", "--seconds", "4"],
        ["demo", "--epochs", "3", "--epochs", "4"],
    ],
    ids=" ".join,
)
def test_what_takes_one_value_is_not_given_two(given: list[str]) -> None:
    done = CliRunner().invoke(oclbn, given)
    assert done.exit_code == 2
    assert f"'{given[1]}': given more than once" in done.stderr


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Ctrl-C during the call of that number, counted from 1; returns what had been printed when each call began."""
    right, calls = getattr(module, name), []

    def called(*given: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return right(*given, **options)

    monkeypatch.setattr(module, name, called)
    return calls


def test_ctrl_c_keeps_what_was_timed(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch, benchmark, "compare")
    picture = tmp_path / "part.svg"
    done = bench(spec, *SMALL, "--shape", "8,3,2", "--plot", str(picture))
    assert done.exit_code == 130
    assert "4x6x5 " in done.stdout
    assert "geometric mean" in done.stdout
    assert "/copy: times as long as the baseline" in done.stdout
    assert "8x3x2" not in done.stdout
    assert done.stderr.splitlines()[-1] == "Interrupted: what had been timed until then is printed"
    assert f"Wrote {picture}" in done.stderr
    assert "<!-- 4x6x5 -->" in picture.read_text()


def test_a_picture_that_is_there_is_kept(spec: str, tmp_path: Path) -> None:
    picture = tmp_path / "kept.svg"
    picture.write_text("mine")
    done = bench(spec, *SMALL, "--plot", str(picture))
    assert done.exit_code == 2
    assert "is there already: give another name, or --overwrite" in " ".join(done.stderr.split())
    assert picture.read_text() == "mine"
    done = bench(spec, *SMALL, "--plot", str(picture), "--overwrite")
    assert done.exit_code == 0, done.output
    assert f"Wrote {picture}" in done.stderr
    assert "<!-- 4x6x5 -->" in picture.read_text()


def test_a_legend_tells_of_what_is_shown(spec: str) -> None:
    narrow, wide = (bench(spec, *SMALL, "--details", width=width).stdout for width in (60, 140))
    assert "/copy: " in narrow
    assert "/copy: " in wide
    assert "over plain" not in narrow + wide, "there is no such row"


def test_ctrl_c_prints_json_of_what_was_timed(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch, benchmark, "compare")
    done = bench(spec, *SMALL, "--shape", "8,3,2", "--json")
    assert done.exit_code == 130
    found = json.loads(done.stdout)
    assert {tuple(row["shape"]) for row in found["rows"]} == {(4, 6, 5)}
    assert found["complete"] is False


def test_ctrl_c_at_once_draws_nothing(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(1, monkeypatch, benchmark, "compare")
    done = bench(spec, *SMALL, "--plot", str(tmp_path / "none.png"))
    assert done.exit_code == 130
    assert "Interrupted: nothing had been timed yet" in done.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_profiles(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch, profiling, "profile")
    done = bench(spec, "--shape", "4,6,5", "--shape", "8,3,2", "--profile", "--operations", "forward", "--json")
    assert done.exit_code == 130
    found = json.loads(done.stdout)
    assert [one["shape"] for one in found["profile"]] == [[4, 6, 5]]
    assert found["complete"] is False


def test_a_shape_is_shown_before_the_next_is_timed(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    right, printed = benchmark.compare, bench_report.print_line
    monkeypatch.setattr(
        bench_report, "print_line", lambda console, line: (shown.append(line.plain), printed(console, line))
    )
    begun = []

    def compare(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, **options: Any) -> Any:
        begun.append(any(line.startswith("4x6x5") for line in shown))
        return right(queue, shape, axis, **options)

    monkeypatch.setattr(benchmark, "compare", compare)
    assert bench(spec, *SMALL, "--shape", "8,3,2").exit_code == 0
    assert begun == [False, True]


@pytest.mark.parametrize("more", [(), ("--json",), ("--profile",)], ids=lambda more: more[0] if more else "table")
def test_nothing_timed_is_an_error(spec: str, more: tuple[str, ...]) -> None:
    done = bench(spec, "--shape", "1048576,1048576", *more)
    assert done.exit_code == 1
    assert "Error: nothing was timed: " in done.stderr
    assert "about" not in done.stderr, "it takes no time"


PEERS_THAT_ARE_NOT_THERE = ("--against", "torch,numpy,onednn", "--peer-python", "/nowhere")


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("more", [(), ("--details",), ("--profile",), PEERS_THAT_ARE_NOT_THERE], ids=str)
def test_it_fits_the_screen_with_whole_words(spec: str, width: int, more: tuple[str, ...]) -> None:
    given = ["--shape", "8,16,7,7", "--shape", "4,6,5", "--rounds", "3"][: 4 if "--profile" in more else None]
    done = bench(spec, *given, *more, width=width)
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()  # the first is the device's own name
    assert [line for line in lines if len(line) > width and "/nowhere" not in line] == []
    assert first.startswith(spec)
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
    for operation in benchmark.TENSORS:
        assert operation in done.stdout
    assert re.search(r"\bms\b", done.stdout), "units stand in headings"
    if not more:
        assert ("GB/s" in done.stdout.partition("Not shown")[0]) != ("Not shown in" in done.stdout)


def refused_before_anything_is_timed(spec: str, *given: str) -> str:
    done = bench(spec, "--shape", "4,6,5", *given)
    assert (done.exit_code, done.stdout) == (2, "")
    return " ".join(done.stderr.split())


def test_a_python_that_does_not_start_is_told_first(spec: str) -> None:
    told = refused_before_anything_is_timed(spec, "--against", "torch,numpy", "--peer-python", "/nowhere")
    assert told.endswith("Invalid value for --peer-python: '/nowhere' is no program that can be started")


def test_a_library_that_is_not_there_is_told_first(spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where none of them is there, that is an error; beside others, a note and a dash."""
    lost = tmp_path / "lost_peer.py"
    lost.write_text("class Peer:\n    def __init__(self, case):\n        import a_package_that_nobody_has\n")
    monkeypatch.setitem(PEERS, "torch", replace(PEERS["torch"], file=lost, install="lost-and-found"))
    told = refused_before_anything_is_timed(spec, "--against", "torch")
    why = f"a_package_that_nobody_has is not installed for {sys.executable}: pip install lost-and-found"
    assert told.endswith(f"Invalid value for --against: torch: {why}")
    done = bench(spec, *SMALL, "--against", "torch,numpy", width=60)
    assert done.exit_code == 0
    assert done.stderr.startswith(f"Note: torch is left out: {why}\n")
    assert [line for line in done.stdout.splitlines() if why in line], "on one line, to be copied"


@pytest.mark.parametrize("command", ["bench", "tune"])
def test_an_axis_without_a_shape_is_refused(spec: str, command: str) -> None:
    done = CliRunner().invoke(oclbn, [command, "--device", spec, "--axis", "-1"])
    assert done.exit_code == 2
    assert "Invalid value for --axis: it needs --shape" in done.stderr


def test_what_is_expected_grows_with_what_is_to_be_done() -> None:
    few, all_of_them = ("inference",), tuple(benchmark.TENSORS)
    small, large = (32, 64), (32, 64, 112, 112)
    seconds = benchmark.expected_seconds
    assert seconds(small, all_of_them, 0, None) < seconds(large, few, 0, None) < seconds(large, all_of_them, 0, None)
    assert seconds(large, all_of_them, 0, None) < seconds(large, all_of_them, 1, None)
    assert seconds(large, all_of_them, 0, 7) < seconds(large, all_of_them, 0, 70)


def test_a_long_run_says_so_first(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(1, monkeypatch, benchmark, "compare")
    assert re.search(r"12 shapes, 2 kinds of outputs: about (a|\d+) (seconds|minutes?)\.", bench(spec).stderr)


def test_the_bar_moves_within_a_shape(queue: cl.CommandQueue) -> None:
    parts: list[float] = []
    benchmark.compare(queue, (4, 6, 5), rounds=5, operations=("inference",), advance=parts.append)
    assert parts == sorted(parts)
    assert parts[0] < 0.5
    assert parts[-1] == pytest.approx(1.0)
    assert len({round(part, 6) for part in parts}) > 10


def test_ratios_are_never_wider_than_their_column() -> None:
    for value in (0.004, 0.5, 9.994, 9.996, 10.33, 99.94, 99.96, 1234.5, 1e6):
        assert len(bench_report._ratio(value)) <= 4
    assert [bench_report._ratio(value) for value in (1.0, 10.33, 123.4)] == ["1.00", "10.3", "123"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_column_of_a_profile_or_of_details_is_left_out(spec: str, width: int) -> None:
    """Where they have no room side by side there is a line for each value."""
    shape = ("--shape", "32,256,8,8", "--operations", "forward", "--rounds", "3")
    profile = bench(spec, *shape[:4], "--profile", width=width).stdout
    details = bench(spec, *shape, "--outputs", "prepared", "--details", width=width).stdout
    for done, names in (
        (profile, ("host", "device", "other", "kernel", "its time", "train_")),
        (details, ("median", "10 %", "90 %", "bytes", "rate", "ratio", "times")),
    ):
        assert "Not shown" not in done
        for name in names:
            assert name in done
        for unit in ("ms", "GB/s", "/copy", "samples") if done is details else ("ms",):
            assert unit in done
    if width == 60:
        lines = [line.split() for line in profile.splitlines()]
        assert ["32x256x8x8", "forward"] in lines
        assert ["host,", "ms"] in [line[:2] for line in lines]
        kernel = next(number for number, line in enumerate(lines) if line[:1] == ["kernel"])
        assert lines[kernel][1].startswith("train_")
        assert lines[kernel + 1][:3] == ["its", "time,", "ms"]
        shown = [line.split() for line in details.splitlines()]
        assert ["rate,", "GB/s"] in [line[:2] for line in shown]


@pytest.mark.parametrize("more", [(), ("--profile",), ("--packed",)], ids=str)
def test_notes_go_on_where_they_are_broken(spec: str, more: tuple[str, ...]) -> None:
    """On a narrow screen the rest of a note is indented; no note begins in the middle of a sentence."""
    given = ("--shape", "8,16,7,7", "--operations", "forward")
    wide, narrow = (bench(spec, *given, *more, width=width).stdout for width in (500, 60))
    notes = wide[wide.index("Times are") :].splitlines()
    told = narrow[narrow.index("Times are") :].splitlines()
    for note in notes:
        assert re.match(r"Times are|[\w/, ]+: |Plain copy: |Compiled", note), note
    joined: list[str] = []
    for line in told:
        if line.startswith("  "):
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line)
    assert [one for one in joined if "Compiled" not in one] == [one for one in notes if "Compiled" not in one]


def test_ctrl_c_points_to_no_place_where_nothing_is(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was printed may be in a file."""
    interrupt_at(2, monkeypatch, benchmark, "compare")
    done = bench(spec, *SMALL, "--shape", "8,3,2", "--json")
    assert done.stderr.splitlines()[-1] == "Interrupted: what had been timed until then is printed"


@pytest.mark.parametrize("more", [(), ("--profile",)], ids=str)
def test_on_a_narrow_screen_the_device_is_broken_at_words(spec: str, more: tuple[str, ...]) -> None:
    width = 24
    lines = bench(spec, "--shape", "4,6,5", "--operations", "forward", "--rounds", "3", *more, width=width).stdout
    title = device.select(spec).title
    shown = ""
    for line in lines.splitlines():
        if " ".join(shown.split()) == title:
            break
        assert len(line) <= max(width, max(map(len, title.split())))
        shown += f" {line}"
    assert " ".join(shown.split()) == title
