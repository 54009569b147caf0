"""What every command does with its output: full disks, readers that leave, versions, help, narrow screens."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyopencl as cl
import pytest
from click.testing import CliRunner

import oclbn as package
from oclbn.cli import group, output
from oclbn.cli.grid import Column, Grid

pytestmark = pytest.mark.once(reason="what is printed is the host's")

COMMANDS = [["--help"], ["--version"], ["devices"], ["devices", "--json"], ["tune", "--show"], ["bench", "--help"]]
FULL = Path("/dev/full")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("demos", "did you mean demo?"),
        ("Bench", "did you mean bench?"),
        ("version", "did you mean --version?"),
        ("zzz", "there are devices, demo, check, bench, tune, inspect, convert"),
    ],
)
def test_a_command_that_there_is_not_gets_a_hint(name: str, hint: str) -> None:
    done = CliRunner().invoke(group.oclbn, [name])
    assert done.exit_code == 2
    assert done.stderr.endswith(f"Error: No such command '{name}'; {hint}\n")


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("given", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line(given: list[str]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "oclbn", *given], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == f"Error: the output cannot be written: {os.strerror(28)}\n"
    assert done.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes of other systems close otherwise")
@pytest.mark.parametrize("given", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(given: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "oclbn", *given], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_file_that_cannot_be_written_is_not_taken_for_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("oclbn.device.devices", fail)
    done = CliRunner().invoke(group.oclbn, ["devices"])
    assert isinstance(done.exception, OSError)


def test_ctrl_c_has_the_status_of_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("oclbn.device.devices", interrupt)
    done = CliRunner().invoke(group.oclbn, ["devices"])
    assert (done.exit_code, done.stderr) == (130, "Interrupted\n")


def test_the_version_tells_what_a_report_needs(queue: cl.CommandQueue) -> None:
    printed = CliRunner().invoke(group.oclbn, ["--version"]).stdout
    told = [f"oclbn, version {package.__version__}", f"pyopencl {cl.VERSION_TEXT}", f"NumPy {np.__version__}"]
    told += [sys.version.split()[0], queue.device.name.strip(), " ".join(queue.device.platform.version.split())]
    for text in (*told, f"driver {' '.join(queue.device.driver_version.split())}"):
        assert text in printed


def test_the_version_needs_no_driver(tmp_path: Path) -> None:
    environment = os.environ | {"OCL_ICD_VENDORS": str(tmp_path / "none")}
    command = [sys.executable, "-m", "oclbn", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "OpenCL devices: none" in done.stdout
    assert f"NumPy {np.__version__}" in done.stdout


@pytest.mark.parametrize("name", [None, *group.SUBCOMMANDS])
def test_help_is_in_whole_sentences(name: str | None) -> None:
    command = group.oclbn if name is None else group.oclbn.get_command(click.Context(group.oclbn), name)
    assert command is not None
    assert "..." not in CliRunner().invoke(group.oclbn, ["--help"]).stdout.replace("ARGS]...", "")
    for paragraph in (command.help or "").split("\n\n"):
        assert paragraph.strip().endswith("."), paragraph
    for option in command.params:
        if isinstance(option, click.Option):
            text = (option.help or "").partition("  [default")[0]
            assert text[:1].isupper(), option.name
            assert text.endswith("."), option.name


@pytest.mark.parametrize("width", [60, 80])
def test_what_a_terminal_is_told_breaks_at_words(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is one line in a log."""
    monkeypatch.setenv("COLUMNS", str(width))
    text = "1 device, 12 shapes, a check, 30 s of candidates at most, and then a last timing: about two minutes."
    for terminal in (False, True):
        file = io.StringIO()
        if terminal:
            monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
        output.say(text, file=file)
        lines = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()).splitlines()
        assert " ".join(line.strip() for line in lines) == text
        assert [line for line in lines if len(line) > width] == ([] if terminal else [text])


PRIVATE = r"peers?|reused|bound|past the cache|nasty|heap|gather\w*|resident|split|serial|hostile|yardstick"


@pytest.mark.parametrize("name", [None, *group.SUBCOMMANDS])
def test_help_speaks_the_words_of_the_field(name: str | None) -> None:
    """Names of options and variables aside."""
    printed = CliRunner().invoke(group.oclbn, [*([] if name is None else [name]), "--help"]).stdout
    assert re.findall(rf"\b(?:{PRIVATE})\b", re.sub(r"--[\w-]+|[A-Z]+_[A-Z_]+", "", printed)) == []


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", [None, *group.SUBCOMMANDS])
def test_help_fits_a_narrow_screen(name: str | None, width: int) -> None:
    given = [*([] if name is None else [name]), "--help"]
    printed = CliRunner().invoke(group.oclbn, given, terminal_width=width).stdout
    assert [line for line in printed.splitlines() if len(line) > width] == []


@pytest.mark.skipif(os.name != "posix", reason="no bash")
def test_the_tab_key_completes_in_bash() -> None:
    """As bash asks for it: the words of the line, and which of them it is about."""

    def asked(line: str) -> str:
        environment = {"_OCLBN_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        command = [sys.executable, "-c", "from oclbn.cli import main; main()"]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False).stdout

    assert "plain,bench" in asked("oclbn be")
    assert "plain,--against" in asked("oclbn bench --ag")


def test_a_grid_leaves_out_what_can_be_spared() -> None:
    columns = [Column("shape", width=10, left=True), Column("median", "ms", 6), Column("rate", "GB/s", 6, spare=1)]
    wide, narrow = Grid(columns, 80), Grid(columns, 20)
    assert wide.heading().plain == "shape       median    rate\n                ms    GB/s"
    assert narrow.heading().plain == "shape       median\n                ms"
    assert narrow.missing == ["rate (GB/s)"]
    assert narrow.row({"shape": "4x6", "median": "0.1", "rate": "9"}).plain == "4x6            0.1"


@pytest.mark.skipif(os.name != "posix", reason="other shells close nothing")
@pytest.mark.parametrize("given", COMMANDS, ids=" ".join)
def test_an_output_that_is_closed_is_one_line(given: list[str]) -> None:
    """As in `oclbn devices >&-`: Python has no sys.stdout then."""
    line = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "oclbn", *given]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stderr == f"Error: the output cannot be written: {os.strerror(9)}\n"
    assert (done.returncode, done.stdout) == (1, "")
