"""Rules of structure that no formatter knows."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import oclbn

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "oclbn"
KERNELS = sorted((ROOT / "kernels").glob("*.cl"))
TEXTS = sorted(path for path in (ROOT / "kernels").rglob("*") if path.is_file())
MODULES = sorted(PACKAGE.rglob("*.py"))

# What the modules of a folder, and those beside the folders, may import, besides their own folder.
WALLS = {
    "errors": set(),
    "version": set(),
    "names": set(),
    "activations": set(),
    "elements": {"errors"},
    "plan": {"errors", "activations"},
    "truth": {"errors", "activations", "elements"},
    "files": {"errors", "elements"},
    "tuning": {"errors", "files", "plan"},
    "device": {"errors", "names", "plan"},
    "program": {"errors", "device", "plan"},
    "proof": {"errors", "activations", "version", "elements", "device", "files", "plan", "program", "truth"},
    "call": {"errors", "activations", "names", "elements", "device", "plan", "program", "proof", "tuning"},
    "steps": {"errors", "elements", "call", "plan"},
    "functional": {"errors", "activations", "names", "elements", "call", "device", "plan", "steps"},
    "renorm": {"errors", "elements", "call", "functional", "steps"},
    "group_norm": {"errors", "elements", "call", "functional", "plan"},
    "gpuarray": {"errors", "names", "elements", "call", "device"},
    "streaming": {"errors", "elements", "call", "device", "functional", "gpuarray"},
    "modules": {
        "errors",
        "activations",
        "names",
        "elements",
        "call",
        "device",
        "files",
        "functional",
        "gpuarray",
        "group_norm",
        "renorm",
    },
    "sync": {"errors", "activations", "elements", "call", "device", "gpuarray", "modules", "plan", "steps"},
    "conventions": {"errors", "names"},
    "weights": {"errors", "call", "device", "conventions", "files", "modules"},
    "torch": {"errors", "activations", "elements", "call", "device", "functional"},
    "__init__": {"functional", "gpuarray", "modules", "names", "version"},
}
LIBRARY = {*WALLS}
EXTRAS = {"torch"}  # rooms that are imported only where the extra of their name is installed
WALLS["tools"] = {*WALLS}
WALLS["cli"] = {*WALLS}
WALLS["__main__"] = {"cli"}
WITHOUT_OPENCL = {"errors", "version", "names", "activations", "elements", "conventions", "plan", "truth"}
WITHOUT_OPENCL |= {"files", "tuning"}


def room_of(module: str) -> str:
    """oclbn.cli.demo lies in the folder cli; oclbn itself is __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Everything that a module imports, wherever in it, as dotted names."""
    known = {module_of(other) for other in MODULES}
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in names}
    return found


def is_there(path: Path) -> bool:
    """Whether what the module wants at its import is installed: rooms that are named like an extra want that."""
    return room_of(module_of(path)) not in EXTRAS or importlib.util.find_spec(room_of(module_of(path))) is not None


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_keep_to_the_walls(path: Path) -> None:
    own = room_of(module_of(path))
    assert own in WALLS, f"say in WALLS what {own} may import"
    for name in imports_of(path):
        if name.split(".")[0] == "oclbn":
            other = room_of(name)
            assert other in WALLS[own] | {own}, f"{own} imports {other}: {name}"


def test_no_walls_are_left_over() -> None:
    assert {room_of(module_of(path)) for path in MODULES} == {*WALLS}


def test_the_library_stands_without_truth_and_tools() -> None:
    """Of the library only the proof imports truth, and nothing imports tools or the command line."""
    assert not {room for room in LIBRARY if WALLS[room] & {"tools", "cli"}}
    assert {room for room in LIBRARY if "truth" in WALLS[room]} == {"proof"}


def test_no_room_is_entered_from_below() -> None:
    """What a folder imports does not import it, over any number of steps."""
    below = {room: set(WALLS[room]) for room in WALLS}
    for _ in WALLS:
        below = {room: found.union(*(below[other] for other in found)) for room, found in below.items()}
    assert not [room for room, found in below.items() if room in found]


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(module_of(p)) in WITHOUT_OPENCL], ids=module_of)
def test_pure_modules_know_no_opencl(path: Path) -> None:
    assert not {name for name in imports_of(path) if name.split(".")[0] == "pyopencl"}


def test_one_file_and_the_proof_know_plans_and_programs() -> None:
    both = set()
    for path in MODULES:
        rooms = {room_of(name) for name in imports_of(path) if name.split(".")[0] == "oclbn"}
        module = module_of(path)
        if {"plan", "program"} <= rooms | {room_of(module)} and room_of(module) in LIBRARY - {"program"}:
            both.add(module)
    assert both == {"oclbn.call.prepared", "oclbn.proof.proving"}


def test_importing_asks_opencl_nothing() -> None:
    """Neither the package nor any of its modules, with every way to a device barred."""
    present = [path for path in MODULES if path.stem != "__main__" and is_there(path)]
    modules = [module_of(path) for path in present]
    barred = """
import importlib, sys
import pyopencl

def refuse(*args, **kwargs):
    raise RuntimeError("asked OpenCL at import")

for name in ("get_platforms", "create_some_context", "Context", "CommandQueue", "Program", "Buffer"):
    setattr(pyopencl, name, refuse)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(len(sys.argv) - 1)
"""
    command = [sys.executable, "-W", "error", "-c", barred, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(modules)), done.stderr


def test_the_package_imports_no_extra() -> None:
    code = "import sys, oclbn; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    extras = {
        "torch",
        "click",
        "rich",
        "h5py",
        "safetensors",
        "onnx",
        "msgpack",
        "scipy",
        "google",
        "matplotlib",
        "sklearn",
        "pytest",
        "hypothesis",
        "tomlkit",
        "ml_dtypes",
    }
    assert not extras & set(done.stdout.split())


def test_what_is_imported_is_declared() -> None:
    """What any module but the command line needs is a dependency, what it imports as a whole one or of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        "scikit-learn": "sklearn",
        "ml-dtypes": "ml_dtypes",
        "protobuf": "google",
    }  # distributions that are imported by another name

    def packages(requirements: list[str]) -> set[str]:
        names = {re.split(r"[<>=\[; ]", text)[0] for text in requirements}
        return {named.get(name, name) for name in names}

    core = packages(project["dependencies"])
    known = core.union(*map(packages, project["optional-dependencies"].values()))
    for path in MODULES:
        whole = ast.parse(path.read_text())
        always = {node for node in whole.body if isinstance(node, ast.Import | ast.ImportFrom)}
        for node in ast.walk(whole):
            if not isinstance(node, ast.Import | ast.ImportFrom) or getattr(node, "level", 0):
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            foreign = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"oclbn"}
            needs_core = node in always and room_of(module_of(path)) not in {"cli", "peers", *EXTRAS}
            assert foreign <= (core if needs_core else known), f"{path.name}: {foreign}"


def test_dependencies_have_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(">=" in text for text in project["dependencies"])


def test_the_sdist_is_told_of_what_there_is() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert [name for name in targets["sdist"]["include"] if not (ROOT / name.strip("/")).exists()] == []


def test_the_face_of_the_package() -> None:
    assert sorted(oclbn.__all__) == sorted(
        [
            "BatchNorm",
            "BatchNorm1D",
            "BatchNorm2D",
            "BatchNorm3D",
            "BatchNormND",
            "GroupNorm",
            "InstanceNorm1D",
            "InstanceNorm2D",
            "InstanceNorm3D",
            "LayerNorm",
            "functional",
            "gpuarray",
            "prepare",
        ]
    )
    for name in oclbn.__all__:
        assert hasattr(oclbn, name)


def test_the_version_is_that_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert oclbn.__version__ == project["version"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_kernel_files_are_shorter_still(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_kernel_files_open_with_their_story(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = itertools.takewhile(lambda line: line.startswith("//"), lines)
    assert len(" ".join(header)) > 80, "maths, grid and layout belong at the top"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernel_arguments_carry_their_shapes(path: Path) -> None:
    """Each pointer of a __kernel stands on a line with a comment that names its extents."""
    heads = re.findall(r"__kernel\b.*?\{", path.read_text(), re.DOTALL)
    assert heads, "no kernel in it"
    check_shapes("\n".join(heads))


def check_shapes(head: str) -> None:
    for line in head.splitlines():
        if "*" in re.split("//|/[*]", line)[0]:
            assert re.search(r"(//|/\*).*\[.+\]", line), f"no shape: {line.strip()}"


def test_lists_of_arguments_carry_their_shapes() -> None:
    """The macros that stand for arguments of several kernels do as heads of kernels do."""
    text = "".join(path.read_text() for path in TEXTS)
    lists = re.findall(r"#define \w+_ARGUMENTS (?:.*\\\n)+.*", text)
    assert any("*" in found for found in lists)
    for found in lists:
        check_shapes(found)


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_are_plain_opencl(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?<![\w.])\d+\.\d*(?:e[+-]?\d+)?(?![\w.])", text), "a double literal"
    assert "fast-relaxed" not in text


@pytest.mark.parametrize(
    "path",
    [*MODULES, *TEXTS, *sorted((ROOT / "tests").glob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 1000
