"""`oclbn inspect` and `oclbn convert`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from layer_samples import layer

from oclbn import weights
from oclbn.cli import group, selecting

pytestmark = pytest.mark.once(reason="files are the host's affair")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(group.oclbn, [str(arg) for arg in args])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    layers = [layer(f"layer{index}.bn", 8, seed=index, batches=1000 * index) for index in (1, 2, 3)]
    layers.append(layer("head.bn", 4, var=np.array([1, np.nan, -2, 0], "f4"), batches=5))
    weights.write(tmp_path / "model.safetensors", layers)
    return tmp_path / "model.safetensors"


def test_inspect_lists_layers_and_what_is_wrong(model: Path) -> None:
    result = run("inspect", model)
    assert result.exit_code == 0, result.output
    assert "4 batch normalizations, 28 channels; safetensors (PyTorch)" in result.output
    assert "head.bn: var is not finite in 1 of 4 channels (1)" in result.output
    assert "after 5 batches what the statistics began with still weighs 59%" in result.output
    assert run("inspect", model, "--check").exit_code == 1
    good = run("inspect", model, "--check", "--layer", "layer*")
    assert good.exit_code == 0
    assert "Nothing wrong with their statistics." in good.output


def test_inspect_names_what_a_narrow_screen_leaves_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wide = run("inspect", model).stdout
    assert "Not shown" not in wide
    assert "\nWeight: of a new batch in the running averages\nLargest factor: of scale / sqrt(variance +" in wide
    monkeypatch.setenv("COLUMNS", "50")
    narrow = run("inspect", model).stdout
    told = " ".join(narrow.partition("Not shown in 50 columns: ")[2].partition("; --json has all.")[0].split())
    left_out = told.split(", ")
    assert "Weight" in left_out
    assert "Weight: " not in narrow
    headings = narrow.splitlines()[0]
    assert not [heading for heading in left_out if heading in headings]
    assert all(heading in headings for heading in {"Type", "Batches", "Variance", "Largest factor"} - {*left_out})


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_help_names_every_format(command: str) -> None:
    told = " ".join(run(command, "--help").output.split())
    assert f"{', '.join(selecting.NAMES[1:])};" in told


def test_inspect_in_json(model: Path) -> None:
    document = json.loads(run("inspect", model, "--json", "--layer", "head.bn").stdout)
    assert document["command"] == "inspect"
    (one,) = document["layers"]
    assert (one["name"], one["channels"], one["batches"]) == ("head.bn", 4, 5)
    assert one["types"]["var"] == "float32"
    assert one["ranges"]["var"] == [-2.0, 1.0]
    assert [finding["fault"] for finding in one["findings"]] == [True, True, False, False]


def test_convert_tells_of_the_systems_errors(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "x.npz")

    monkeypatch.setattr(weights, "write", refused)
    result = run("convert", model, tmp_path / "x.npz")
    assert result.exit_code == 1
    assert result.stderr == "Error: x.npz: Permission denied\n"


def test_convert_tells_what_is_wrong_and_what_training_would_meet(model: Path, tmp_path: Path) -> None:
    result = run("convert", model, tmp_path / "x.onnx")
    assert result.exit_code == 0, result.output
    assert "wrong there as here: head.bn: var is not finite in 1 of 4 channels (1)" in result.output
    assert "head.bn: that it has seen 5 batches has no place" in result.output
    assert "PyTorch's running variance is divided by m - 1, ONNX's by m" in result.output
    strict = run("convert", model, tmp_path / "y.onnx", "--strict", "--json")
    assert strict.exit_code == 0, "neither is a loss"
    assert [one["fault"] for one in json.loads(strict.stdout)["findings"]] == [True, True]


def test_inspect_tells_an_epsilon_that_the_file_does_not_state(model: Path) -> None:
    assert "epsilon is not in the file; PyTorch's default is 1e-05" in run("inspect", model).output


def test_inspect_says_what_it_cannot_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights")
    result = run("inspect", tmp_path / "text")
    assert result.exit_code == 1
    assert "none of the formats" in result.stderr
    assert run("inspect", tmp_path / "nothing").exit_code == 2
    result = run("inspect", model, "--layer", "layer1")
    assert result.exit_code == 1
    assert "did you mean 'layer1.bn'?" in result.stderr
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    assert "has no batch normalization" in run("inspect", tmp_path / "other.npz").stderr


def test_convert_there_and_back(model: Path, tmp_path: Path) -> None:
    first = run("convert", model, tmp_path / "one.npz", "--layer", "layer*", "--rename", "layer1.bn=stem")
    assert first.exit_code == 0, first.output
    assert "3 batch normalizations, from safetensors (PyTorch) to NumPy's .npz" in first.output
    assert list(weights.read(tmp_path / "one.npz")) == ["stem", "layer2.bn", "layer3.bn"]
    document = json.loads(run("convert", tmp_path / "one.npz", tmp_path / "two.safetensors", "--json").stdout)
    assert document["layers"] == ["stem", "layer2.bn", "layer3.bn"]
    assert document["files"] == [str(tmp_path / "two.safetensors")]
    into = run("convert", tmp_path / "one.npz", tmp_path / "new.safetensors", "--into", model, "--layer", "layer3.bn")
    assert into.exit_code == 0, into.output
    assert len(weights.read(tmp_path / "new.safetensors")) == 4


def test_convert_refuses_and_leaves_files_alone(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    assert run("convert", model, model).exit_code == 2
    assert run("convert", model, tmp_path / "x.npz", "--rename", "layer1.bn").exit_code == 2
    assert run("convert", model, tmp_path / "x.npz", "--rename", "layer9.bn=a").exit_code == 2
    unknown = run("convert", model, tmp_path / "x.unknown")
    assert unknown.exit_code == 2
    assert "or name one, as --to onnx" in unknown.stderr
    assert "pickled objects are not written" in run("convert", model, tmp_path / "x.pth").stderr
    itself = run("convert", model, model, "--overwrite")
    assert itself.exit_code == 1
    assert "would keep nothing of it but batch normalizations" in itself.stderr
    linked = tmp_path / "link.safetensors"
    linked.symlink_to(model)
    assert run("convert", model, linked, "--overwrite").exit_code == 1
    assert run("convert", model, model, "--into", model, "--overwrite").exit_code == 0, "that is what into is for"
    assert model.read_bytes() == before
    weights.write(tmp_path / "eps.npz", [layer(epsilon=0.5)])
    lossy = run("convert", tmp_path / "eps.npz", tmp_path / "x.safetensors", "--strict")
    assert lossy.exit_code == 1
    assert "epsilon is 0.5: give eps=0.5 to PyTorch's layer" in lossy.stderr
    assert not list(tmp_path.glob("x.*"))
    told = run("convert", tmp_path / "eps.npz", tmp_path / "x.safetensors")
    assert "Lost:\n  net.bn1: epsilon is 0.5" in told.output
    assert model.read_bytes() == before
