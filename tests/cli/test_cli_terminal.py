"""The command on a terminal: escape sequences where they are wanted and nowhere else, and the Tab key in shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from terminal import Terminal, on_terminal

from oclbn.cli import group, survey, types
from oclbn.device import DeviceInfo, devices

pytestmark = [
    pytest.mark.once(reason="terminals and shells are the host's"),
    pytest.mark.skipif(os.name != "posix", reason="other systems have other terminals"),
]

OCLBN = (sys.executable, "-m", "oclbn")
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32))
    return str(path)


def lines(source: str) -> dict[str, tuple[list[str], int]]:
    """Of each command a line that is soon over, with the exit status."""
    return {
        "devices": (["devices"], 0),
        "show": (["tune", "--show"], 0),
        "demo": (["demo", "--input", source, "--epochs", "1"], 0),
        "bench": (["bench", "--shape", "4,6,5", "--rounds", "3", "--outputs", "prepared"], 0),
        "help": (["--help"], 0),
        "error": (["devices", "--device", "no such device"], 1),
        "usage": (["bench", "--rounds", "1"], 2),
    }


WITH_COLOURS = ("devices", "show", "demo", "bench", "error")


@pytest.mark.parametrize("name", lines(""))
@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_escape_sequence_where_none_is_wanted(spec: str, source: str, name: str, setting: dict[str, str]) -> None:
    """Whatever else the environment says."""
    given, wanted = lines(source)[name]
    environment = {"OCLBN_DEVICE": spec, "FORCE_COLOR": "1"} | setting
    status, written = on_terminal([*OCLBN, *given], environment=environment)
    assert status == wanted, written
    assert ESCAPE not in written
    assert written.strip()


@pytest.mark.parametrize("name", WITH_COLOURS)
def test_an_empty_no_color_leaves_colours(spec: str, source: str, name: str) -> None:
    """So that the test above tells something, too."""
    given, wanted = lines(source)[name]
    status, written = on_terminal([*OCLBN, *given], environment={"OCLBN_DEVICE": spec, "NO_COLOR": ""})
    assert status == wanted, written
    assert ESCAPE in written


def test_without_colours_the_bar_is_still_there_and_goes_away(spec: str, source: str) -> None:
    given = [*OCLBN, "demo", "--input", source, "--device", spec]
    _, written = on_terminal(given, environment={"NO_COLOR": "1"})
    assert re.search(r"\rx\.npy .*/\d+ batches elapsed 0:\d\d", written)
    shown = [line.rpartition("\r")[2] for line in written.replace("\r\n", "\n").split("\n")]  # what is not written over
    assert not [line for line in shown if "elapsed" in line]
    _, dumb = on_terminal(given, environment={"TERM": "dumb"})
    assert "elapsed" not in dumb


def test_a_pipe_gets_no_bar_whatever_force_color_says(spec: str, source: str) -> None:
    """As in continuous integration, where it is often set."""
    environment = os.environ | {"FORCE_COLOR": "1"}
    environment.pop("NO_COLOR", None)
    given = [*OCLBN, "demo", "--input", source, "--device", spec]
    done = subprocess.run(given, capture_output=True, text=True, env=environment, check=True)
    assert f"{ESCAPE}[1mDevice" in done.stdout
    assert "elapsed" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["devices", "show", "demo", "bench"])
@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(spec: str, source: str, name: str, columns: int) -> None:
    given, _ = lines(source)[name]
    _, written = on_terminal([*OCLBN, *given], columns=columns, environment={"OCLBN_DEVICE": spec, "NO_COLOR": "1"})
    shown = [line.rpartition("\r")[2] for line in written.replace("\r\n", "\n").split("\n")]
    assert [line for line in shown if len(line.rstrip()) > columns and os.sep not in line] == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param(["demo", "--axis", "3"], "it needs --input: the digits have their channels on axis 1", id="usage"),
        pytest.param(["--version"], "Optional packages: ", id="version"),
        pytest.param(["devices", "--device", "no such device"], "by its index P:D or by a part of its", id="ours"),
    ],
)
def test_what_is_long_is_broken_at_words(given: list[str], says: str) -> None:
    _, written = on_terminal([*OCLBN, *given], columns=48, environment={})
    shown = re.sub(r"\x1b\[[\d;]*m", "", written).splitlines()
    assert says in " ".join(" ".join(shown).split())
    assert [line for line in shown if len(line) > 48 and " " in line.strip()] == []


# ---- the Tab key

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config"],
}


PROGRAM = f"""#!{sys.executable}
import os, sys
if "_OCLBN_COMPLETE" in os.environ:
    from oclbn.cli import main
    main()
print("GOT[" + ",".join(sys.argv[1:]) + "]END")
"""


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """An interactive shell that completes `oclbn`, with a file and no other in its folder."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    program = tmp_path / "bin" / "oclbn"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "measured.npy").touch()
    start = {
        "bash": "PS1='REA''DY '; ",
        "zsh": "PS1='REA''DY '; autoload -Uz compinit; compinit -u -D; ",
        "fish": "function fish_prompt; echo -n REA''DY' '; end; ",
    }[name]
    source = f"_OCLBN_COMPLETE={name}_source oclbn"
    load = f"{source} | source" if name == "fish" else f'eval "$({source})"'
    with Terminal(
        SHELLS[name], columns=200, PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}", HOME=str(tmp_path)
    ) as terminal:
        terminal.keys(f"cd {tmp_path / 'here'}; {start}{load}\n")
        yield terminal


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_the_tab_key_on_a_terminal(shell: Terminal, spec: str) -> None:
    """What stands on the line after Tab is what the program is given after Enter."""
    begun = spec[:-1] if sum(info.spec.startswith(spec[:-1]) for info in devices()) == 1 else spec
    wanted = {
        "dev\t": ["devices"],
        "devices --dev\t0": ["devices", "--device", "0"],
        f"devices --device {begun}\t": ["devices", "--device", spec],
        f"devices --device={begun}\t": ["devices", f"--device={spec}"],
        "bench --outputs fresh,po\t": ["bench", "--outputs", "fresh,pool"],
        "bench --activation=gel\t": ["bench", "--activation=gelu"],
        "demo --input meas\t": ["demo", "--input", "measured.npy"],
    }
    for keys, given in wanted.items():
        shell.until("READY ")
        shell.keys(f"oclbn {keys}\n")
        assert shell.until("]END").endswith(f"GOT[{','.join(given)}]END")


def completed(line: str, shell: str = "bash", **environment: str) -> list[str]:
    """What a shell is told for a line, as its script asks for it, the cursor at its end."""
    words = line.split()
    last = "" if line.endswith(" ") else words[-1]
    asked = {"_OCLBN_COMPLETE": f"{shell}_complete", "COMP_WORDS": line}
    if shell == "bash":
        asked |= {"COMP_LINE": line, "COMP_WORDBREAKS": " \t\n\"'><=;|&(:"}
    asked["COMP_CWORD"] = last if shell == "fish" else str(len(words) - bool(last))
    done = subprocess.run(
        [sys.executable, "-c", "from oclbn.cli import main; main()"],
        capture_output=True,
        text=True,
        env=os.environ | asked | environment,
        check=True,
    )
    assert done.stderr == ""
    told = done.stdout.splitlines()
    if shell == "zsh":
        return [value.replace("\\:", ":") for value in told[1::3]]
    return [line.partition(",")[2].partition("\t")[0] for line in told]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        pytest.param("oclbn tu", ["tune"], id="a command"),
        pytest.param("oclbn tune --dry", ["--dry-run"], id="an option"),
        pytest.param("oclbn bench --dtype bf", ["bfloat16"], id="a choice"),
        pytest.param("oclbn bench --suite mlp,mob", ["mlp,mobilenet"], id="one more name"),
        pytest.param("oclbn demo --input da", ["da"], id="a file, which the shell looks for"),
        pytest.param("oclbn bench --peer-python da", ["da"], id="a program"),
    ],
)
def test_candidates(line: str, wanted: list[str], shell: str) -> None:
    assert completed(line, shell) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_devices_are_candidates(shell: str, spec: str) -> None:
    info = next(info for info in devices() if info.spec == spec)
    found = completed("oclbn check --device ", shell)
    assert spec in found
    assert (info.kind in found) or info.simulator
    assert "accelerator" not in found or any(one.kind == "accelerator" for one in devices())
    behind = "" if shell == "bash" else spec[:2]  # bash puts in only what is behind the colon
    assert f"{behind}{spec[2:]}" in completed(f"oclbn check --device {spec[:2]}", shell)
    before = "" if shell == "bash" else "--device="
    assert f"{before}{spec}" in completed(f"oclbn check --device={spec[0]}", shell)


def bent(tmp_path: Path, instead: str) -> str:
    """A folder for PYTHONPATH with which asking for platforms does this instead."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time, pyopencl\npyopencl.get_platforms = lambda: {instead}\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize("instead", ["os.abort()", "time.sleep(600)"], ids=["aborts", "hangs"])
def test_a_broken_driver_costs_seconds_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    monkeypatch.syspath_prepend(bent(tmp_path, instead))
    monkeypatch.setattr(types, "_PATIENCE", 3.0)
    check = group.oclbn.get_command(click.Context(group.oclbn), "check")
    assert check is not None
    option = next(param for param in check.params if param.name == "spec")
    begun = time.monotonic()
    assert option.shell_complete(click.Context(check), "") == []
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("instead", "fault"),
    [
        pytest.param("os.abort()", "the driver aborted (signal 6, SIGABRT)", id="aborts"),
        pytest.param("time.sleep(600)", "the driver hung: no answer within 3 s", id="hangs"),
    ],
)
def test_the_version_survives_a_broken_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str, fault: str
) -> None:
    monkeypatch.syspath_prepend(bent(tmp_path, instead))
    asked = survey.asked
    monkeypatch.setattr(survey, "asked", lambda: asked(3.0 if "sleep" in instead else survey.TIMEOUT))
    done = CliRunner().invoke(group.oclbn, ["--version"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith(f"OpenCL devices: unknown, {fault}")


def test_the_survey_is_what_there_is() -> None:
    found = survey.asked()
    listed: tuple[DeviceInfo, ...] = devices()
    assert [one["index"] for one in found.devices] == [info.spec for info in listed]
    assert [one["compute_units"] for one in found.devices] == [info.limits.compute_units for info in listed]
    assert not found.fault
