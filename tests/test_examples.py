"""The programs in examples/: each prints what examples/README.md shows, and fails where results are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyopencl as cl
import pytest
from pages import blocks, prints

import oclbn.device

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "examples" / "README.md"
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
# Runs a program that gets every float from the device with a hundredth added.
_SPOILT = """
import runpy, sys
import pyopencl.array
get = pyopencl.array.Array.get
def spoilt(self, *given, **options):
    host = get(self, *given, **options)
    return host + host.dtype.type(0.01) if host.dtype.kind == "f" else host
pyopencl.array.Array.get = spoilt
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def shown() -> dict[str, str]:
    """What the README shows behind each command that runs a program of this folder."""
    found, command = {}, ""
    for block in blocks(README):
        if block.language == "text" and block.follows:
            found[command] = block.text
        command = block.text.strip().removeprefix("$ python examples/") if block.language == "console" else ""
    return found


def run(spec: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Non-empty compiler output", *command],
        cwd=folder,
        env={**os.environ, "OCLBN_DEVICE": spec, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def quick(queue: cl.CommandQueue, bears_threads: None, spec: str) -> str:
    """A device on which a program takes seconds, which no simulator is; what selects it."""
    return spec


def test_the_readme_shows_all_programs() -> None:
    assert [*sorted(shown())] == [path.name for path in PROGRAMS]


@pytest.mark.once("what the programs call is compared on each runtime")
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_prints_what_the_readme_shows(path: Path, quick: str, tmp_path: Path) -> None:
    done = run(quick, tmp_path, str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.strip() in oclbn.device.select(quick).name
    wanted = shown()[path.name]
    assert prints(wanted, done.stdout), f"the README shows\n{wanted}\nbut it prints\n{done.stdout}"


@pytest.mark.once("the programs' own checks are the same on all runtimes")
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_fails_where_results_are_wrong(path: Path, quick: str, tmp_path: Path) -> None:
    done = run(quick, tmp_path, "-c", _SPOILT, str(path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no, off by" in done.stdout


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
