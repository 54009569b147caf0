"""examples/digits_parallel: batches on several devices and on MPI ranks train as whole ones do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pyopencl as cl
import pytest
from pages import blocks, prints

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "digits_parallel"
# Runs compare.py; what its own process gets from devices is a thousandth larger, which the ranks' is not.
_SPOILT = """
import runpy, sys
import pyopencl.array
get = pyopencl.array.Array.get
def spoilt(self, *given, **options):
    host = get(self, *given, **options)
    return host * host.dtype.type(1.001) if host.dtype.kind == "f" else host
pyopencl.array.Array.get = spoilt
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def quick(queue: cl.CommandQueue, bears_threads: None, spec: str) -> str:
    """A device on which training takes seconds, which no simulator is; what selects it."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("needs mpi4py: pip install 'oclbn[mpi]'")
    return spec


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Non-empty compiler output", *command],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


def shown() -> str:
    """What the README shows behind the command that compares."""
    command = ""
    for block in blocks(FOLDER / "README.md"):
        if block.language == "text" and "compare.py" in command:
            return block.text
        command = block.text
    raise AssertionError("the README shows nothing behind compare.py")


@pytest.mark.once("ranks and groups of devices are compared on all runtimes by the tests in sync, in fewer steps")
def test_it_prints_what_the_readme_shows(quick: str, tmp_path: Path) -> None:
    """On two contexts of the device and on ranks that have it: the losses of whole batches."""
    done = run(
        tmp_path, str(FOLDER / "compare.py"), "--device", quick, "--device", quick, "--plot", str(tmp_path / "made.png")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert prints(shown(), done.stdout), f"the README shows\n{shown()}\nbut it prints\n{done.stdout}"
    sizes = [struct.unpack(">II", file.read_bytes()[16:24]) for file in (tmp_path / "made.png", FOLDER / "losses.png")]
    assert sizes[0] == sizes[1], "the picture in the README is another one: run compare.py --plot"


@pytest.mark.once("the program's own check is the same on all runtimes")
def test_it_fails_where_losses_differ(quick: str, tmp_path: Path) -> None:
    """After one epoch as after three."""
    folder = shutil.copytree(FOLDER, tmp_path / "shorter")
    text = (folder / "train.py").read_text(encoding="utf-8")
    assert "EPOCHS, BATCH, RATE = 3," in text
    (folder / "train.py").write_text(text.replace("RATE = 3,", "RATE = 1,"), encoding="utf-8")
    done = run(tmp_path, "-c", _SPOILT, str(folder), str(folder / "compare.py"), "--device", quick, "--device", quick)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no, off by" in done.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_programs_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
