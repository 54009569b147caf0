"""examples/pretrained: every layer of a network as in ONNX Runtime, and the network without them as with them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pyopencl as cl
import pytest
from onnx import TensorProto, helper, numpy_helper
from pages import blocks, prints

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "pretrained"
# Runs the program, which gets every float from the device with a hundredth added.
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
_WITHOUT = """
import runpy, sys
sys.modules["onnxruntime"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def quick(queue: cl.CommandQueue, bears_threads: None, spec: str) -> str:
    """A device that is no simulator, beside ONNX Runtime; what selects it."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("needs onnxruntime: pip install onnxruntime==1.32.0")
    return spec


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Non-empty compiler output", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


def network(folder: Path) -> Path:
    """Four layers: after convolutions with a bias and without, after an activation, and on a tensor of two axes."""
    rng = np.random.default_rng(0)
    tensors, nodes = [], []

    def constant(name: str, *shape: int, least: float = -1.0) -> str:
        tensors.append(numpy_helper.from_array(rng.uniform(least, 2, shape).astype(np.float32), name))
        return name

    def norm(name: str, x: str, channels: int) -> str:
        roles = [constant(f"{name}.{role}", channels) for role in ("weight", "bias", "running_mean")]
        inputs = [x, *roles, constant(f"{name}.running_var", channels, least=0.5)]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"{name}.y"], name, epsilon=1e-3))
        return f"{name}.y"

    nodes.append(helper.make_node("Conv", ["x", constant("w1", 4, 3, 3, 3), constant("b1", 4)], ["c1"]))
    nodes.append(helper.make_node("Relu", [norm("first", "c1", 4)], ["r1"]))
    nodes.append(helper.make_node("Conv", [norm("second", "r1", 4), constant("w2", 8, 1, 3, 3)], ["c2"], group=4))
    nodes.append(helper.make_node("GlobalAveragePool", [norm("third", "c2", 8)], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("Identity", [norm("fourth", "f", 8)], ["y"]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", ["N", 3, 9, "W"]), ("y", ["N", 8]))
    ]
    graph = helper.make_graph(nodes, "g", ends[0], ends[1], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.once("layers by running statistics are compared on each runtime")
def test_each_layer_and_the_network_without_them(quick: str, tmp_path: Path) -> None:
    saved = tmp_path / "folded.onnx"
    done = run(tmp_path, str(FOLDER), "--device", quick, "--model", str(network(tmp_path)), "--save", str(saved))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "\n4 layers as in ONNX Runtime: yes\nfolded: 2 into convolutions, 2 into a product and a sum\n" in done.stdout
    )
    folded = onnx.load(saved)
    onnx.checker.check_model(folded, full_check=True)
    kinds = [node.op_type for node in folded.graph.node]
    assert kinds == ["Conv", "Relu", "Mul", "Add", "Conv", "GlobalAveragePool", "Flatten", "Mul", "Add", "Identity"]


@pytest.mark.once("the program's own check is the same on all runtimes")
def test_it_fails_where_results_are_wrong(quick: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", _SPOILT, str(FOLDER), "--device", quick, "--model", str(network(tmp_path)))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 layers as in ONNX Runtime: no, off by" in done.stdout
    assert "the network as before: no, off by" in done.stdout


@pytest.mark.once("the host's affair")
def test_a_model_that_it_cannot_take_is_told(quick: str, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    done = run(tmp_path, str(FOLDER), "--device", quick, "--model", "text.onnx")
    assert done.returncode == 1
    assert "text.onnx is damaged, or no ONNX model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.once("the host's affair")
def test_the_trained_network_prints_what_the_readme_shows(quick: str, tmp_path: Path) -> None:
    """In the version that the README installs."""
    pinned = next(
        line for block in blocks(FOLDER / "README.md") for line in block.text.splitlines() if "no-deps" in line
    )
    package, version = pinned.split()[-1].split("==")
    try:
        there = metadata.version(package)
    except metadata.PackageNotFoundError:
        there = "none"
    if there != version:
        pytest.skip(f"needs {package} {version}, and there is {there}: {pinned.removeprefix('$ ')}")
    done = run(tmp_path, str(FOLDER), "--device", quick)
    assert done.returncode == 0, done.stdout + done.stderr
    (shown,) = (block.text for block in blocks(FOLDER / "README.md") if block.language == "text")
    verdict = shown.index("\n35 layers")
    found = done.stdout.index("\n35 layers")
    assert prints(shown[verdict:], done.stdout[found:]), f"the README shows\n{shown}\nbut it prints\n{done.stdout}"


def test_a_missing_package_is_told_with_its_remedy(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", _WITHOUT, str(FOLDER))
    assert done.returncode == 1
    assert done.stderr.strip().startswith("onnxruntime is missing: python -m pip install")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_programs_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 170
