"""What is shipped: the sdist, the wheel, and the wheel where no checkout is near."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import DEVICES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of this tree, and the wheel that was made from the sdist."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "venv*")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel, installed into a folder of its own."""
    folder = wheel.parent / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def run(installed: Path, code: str) -> str:
    """What Python prints, far from the checkout, with that folder first on its path."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=installed.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sources() -> set[str]:
    folder = ROOT / "kernels"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_sdist_holds_all_that_is_needed(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"kernels/{name}" for name in sources()} <= names
    wanted = {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "oclbn/__init__.py", "oclbn/py.typed"}
    assert wanted | {"CITATION.cff", "tests/conftest.py", "examples/digits/kernels.cl"} <= names
    assert not {name for name in names if "__pycache__" in name or name.endswith(".pyc")}


def test_the_citation_is_of_this_project() -> None:
    """CITATION.cff says what pyproject.toml says, the version above all."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    said = dict(re.findall(r"^(?:  - )?([a-z-]+): (.+)$", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["version"] == project["version"]
    assert (said["title"], said["abstract"]) == (project["name"], project["description"])
    assert (said["license"], said["name"]) == (project["license"], project["authors"][0]["name"])
    assert re.findall(r"^  - ([\w-]+)$", text, re.MULTILINE) == project["keywords"]


def test_the_wheel_holds_the_kernels(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"forward.cl", "numbers/types.clh", "walks/rows.clh"} <= sources()
        for name in sources():
            assert archive.read(f"oclbn/kernels/{name}") == (ROOT / "kernels" / name).read_bytes()
    assert "oclbn/py.typed" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "oclbn").rglob("*.py")}
    assert modules <= names
    assert not {name for name in names if name.startswith(("tests/", "kernels/", "docs/")) or "__pycache__" in name}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        licences = [name for name in archive.namelist() if name.startswith(f"{folder}/licenses/")]
        assert "MIT" in archive.read(licences[0]).decode()
    assert metadata["Name"] == "oclbn"
    assert metadata["License-Expression"] == "MIT"
    assert re.search(r"^oclbn\s*=\s*oclbn\.cli:main$", entry_points, re.MULTILINE)
    core = {re.split(r"[<>=\[; ]", text)[0] for text in metadata.get_all("Requires-Dist") if "extra ==" not in text}
    assert core == {"numpy", "pyopencl", "platformdirs"}
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_installed_wheel_finds_its_kernels(installed: Path) -> None:
    code = """
import oclbn, oclbn.program.sources
print(oclbn.__file__)
print(oclbn.program.sources.kernel_directory())
"""
    module, kernels = map(Path, run(installed, code).splitlines())
    assert module == installed / "oclbn" / "__init__.py"
    assert kernels.resolve() == (installed / "oclbn" / "kernels").resolve()


def test_the_installed_wheel_normalises(
    installed: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import numpy as np
import oclbn.device
from oclbn import functional, gpuarray
if oclbn.device.devices():
    x = gpuarray.to_gpu(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    print(functional.batch_norm_train(x, None, None, None, None, epsilon=1.0)[0].get().tolist())
else:
    print("no device")
"""
    for info in pytestconfig.stash[DEVICES][:1]:  # the one that this run is about
        monkeypatch.setenv("OCLBN_DEVICE", info.spec)
    output = run(installed, code)
    if output == "no device":
        pytest.fail("this test needs an OpenCL device: `python -m pip install 'oclbn[pocl]'` brings one")
    assert output == str([[-(0.5**0.5), 0.0], [0.5**0.5, 0.0]]) or "0.707" in output
