"""oclbn.weights: files in, files out, and nothing lost on the way."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from layer_samples import layer, strange

from oclbn import weights
from oclbn.errors import MissingExtraError, MissingLayerError, ParameterError, WeightsError
from oclbn.files import formats, health
from oclbn.files.formats import parts
from oclbn.files.layers import Content, Layer, Note, fitted, gathered, same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")


def test_a_layer_is_vectors_of_one_length() -> None:
    ones = np.ones(3, np.float32)
    for wrong, told in (
        ({"mean": ones, "var": ones, "batches": 2.5}, "batches is 2.5; a whole number from 0"),
        ({"mean": ones, "var": ones, "batches": 10**400}, "a whole number from 0 to 2"),
        ({"scale": ones, "mean": ones[:2], "var": ones}, r"scale \(3,\), mean \(2,\)"),
        ({"scale": ones[None], "mean": ones[None], "var": ones[None]}, "one number per channel"),
        ({"scale": ones, "mean": ones}, "no var"),
        ({"scale": ones.astype(np.int32)}, "int32"),
        ({}, "no scale, no bias"),
        ({"scale": ones, "epsilon": -1e-5}, "epsilon is -1e-05; a finite number from 0 on"),
        ({"scale": ones, "epsilon": float("nan")}, "epsilon is nan"),
        ({"scale": ones, "factor": 1.5}, "factor is 1.5; a finite number from 0 to 1"),
        ({"scale": ones, "batches": -1}, "batches is -1"),
    ):
        with pytest.raises(WeightsError, match=told):
            Layer("x", **wrong)  # type: ignore[arg-type]


def test_a_missing_layer_is_told_with_the_nearest_name() -> None:
    content = Content("npz", "file", (layer("layer1.bn1"), layer("layer1.bn2")))
    with pytest.raises(MissingLayerError, match=r"did you mean 'layer1\.bn[12]'"):
        content["layer1.bn"]
    assert "layer1.bn1" in content
    assert list(content) == ["layer1.bn1", "layer1.bn2"]
    with pytest.raises(WeightsError, match="two layers of the name"):
        Content("npz", "file", (layer("a"), layer("a")))


def test_types_are_widened_without_loss_and_rounded_with_a_note() -> None:
    single = [np.dtype(np.float32)]
    wide, notes = fitted(layer(dtype="float16"), single, "X")
    assert not notes
    assert {array.dtype for array in wide.arrays.values()} == set(single)
    large = np.array([1e300, 1.0, 2.0, 3.0, 4.0])
    _, notes = fitted(layer(dtype="float64", var=large), single, "X")
    assert {note.text.split()[0] for note in notes} == {"scale", "bias", "mean", "var"}
    assert "1 are beyond 3.4e+38" in notes[-1].text
    assert all(note.lost for note in notes)
    _, notes = fitted(layer(dtype="float64", scale=np.full(5, 0.5), bias=np.zeros(5), mean=np.zeros(5)), single, "X")
    assert [note.text.split()[0] for note in notes] == ["var"], "what a float32 holds is not lost"


@pytest.mark.parametrize(
    ("given", "told", "fault"),
    [
        ({}, [], False),
        ({"mean": np.array([0, 1, np.nan, 2, np.inf], "f4")}, ["mean is not finite in 2 of 5 channels (2, 4)"], True),
        ({"var": np.array([1, -1, 2, 3, 4], "f4")}, ["var is below 0 in 1 of 5 channels (1), least -1"], True),
        ({"var": np.array([1, 0, 2, 3, 4], "f4")}, ["var is 0 in 1 of 5 channels (1): the input"], False),
        ({"var": np.zeros(5, "f4"), "epsilon": 0.0}, ["var and epsilon are 0 in 5 of 5 channels"], True),
        ({"mean": np.zeros(5, "f4"), "var": np.ones(5, "f4")}, ["never trained"], False),
        ({"batches": 0}, ["its counter says 0 batches"], False),
        ({"batches": 10}, ["after 10 batches what the statistics began with still weighs 35%"], False),
        ({"batches": 10, "factor": 0.5}, [], False),
        ({"batches": 1, "cumulative": True}, [], False),
        ({"scale": np.array([1, 0, 1, 1, 1], "f4")}, ["scale is 0 in 1 of 5 channels (1)"], False),
        ({"mean": None, "var": None}, ["no running statistics"], False),
        ({"mean": np.ones(5, "f4"), "var": np.ones(5, "f4")}, ["all channels have the same statistics"], False),
    ],
)
def test_health(given: dict[str, Any], told: list[str], fault: bool) -> None:
    found = health.findings(layer(**given))
    assert len(found) == len(told)
    for finding, text in zip(found, told, strict=True):
        assert text in finding.text
    assert any(one.fault for one in found) is fault


def test_what_is_written_twice_or_wrong_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    weights.write(path, [layer()])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        weights.write(path, [layer(seed=1)])
    with pytest.raises(WeightsError, match="no layer to write"):
        weights.write(tmp_path / "two.npz", [])
    with pytest.raises(WeightsError, match=r"\.npz.* are known"):
        weights.write(tmp_path / "two.txt", [layer()])
    with pytest.raises(WeightsError, match="format is 'zip'"):
        weights.write(tmp_path / "two.npz", [layer()], format="zip")
    with pytest.raises(WeightsError, match="running statistics"):
        weights.write(path, [layer(mean=None, var=None)], overwrite=True)
    with pytest.raises(FileNotFoundError):
        weights.write(tmp_path / "two.npz", [layer()], into=tmp_path / "nothing.npz")
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["one.npz"]


def test_an_epsilon_that_no_file_states_is_the_frameworks(tmp_path: Path) -> None:
    """Keras' 0.001 is not PyTorch's 1e-5: where a file does not say it, the default goes along, and is told."""
    keras = layer(convention="keras")
    report = weights.write(tmp_path / "one.onnx", [keras])
    assert weights.read(tmp_path / "one.onnx")["net.bn1"].epsilon == 1e-3
    assert str(report.notes[0]) == "net.bn1: epsilon is not known: Keras's default is taken, 0.001"
    report = weights.write(tmp_path / "one.safetensors", [keras])
    assert "net.bn1: epsilon is 0.001: give eps=0.001 to PyTorch's layer" in map(str, report.notes)
    assert not weights.write(tmp_path / "two.safetensors", [layer()]).notes


def test_numbers_of_a_model_give_way(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    weights.write(onnx, [layer(epsilon=0.25, factor=0.5)])
    report = weights.write(tmp_path / "new.onnx", [layer(epsilon=0.5, factor=0.125)], into=onnx)
    assert not [note for note in report.notes if note.lost], "ONNX has a place for both"


def test_what_is_no_layer_is_told_with_what_makes_one(tmp_path: Path) -> None:
    one = layer()
    weights.write(tmp_path / "one.npz", [one])
    content = weights.read(tmp_path / "one.npz")
    path = tmp_path / "two.npz"
    for call, told in (
        (lambda: weights.module(content), r"content\['net.bn1'\]"),
        (lambda: weights.module("net.bn1"), "a Layer is wanted"),
        (lambda: weights.write(path, one), r"wanted: \[layer\]"),
        (lambda: weights.write(path, ["net.bn1"]), r"layers has a builtins\.str; a Layer"),
        (lambda: weights.layer(one), "a BatchNorm module"),
        (lambda: weights.load_into(one, one), "a BatchNorm module"),
    ):
        with pytest.raises(ParameterError, match=told):
            call()


def test_a_format_that_a_file_is_not_of_is_told_with_the_one_that_it_looks_like(tmp_path: Path) -> None:
    weights.write(tmp_path / "one.npz", [layer()])
    with pytest.raises(WeightsError, match=r"it looks like NumPy's \.npz, format='npz'"):
        weights.read(tmp_path / "one.npz", format="safetensors")
    with pytest.raises(WeightsError, match="it looks like NumPy's"):
        weights.write(tmp_path / "two.safetensors", [layer()], into=tmp_path / "one.npz")
    weights.write(tmp_path / "one.safetensors", [layer()])
    with pytest.raises(WeightsError, match="is of the source"):
        weights.convert(tmp_path / "one.safetensors", tmp_path / "one.safetensors", overwrite=True)


@pytest.mark.parametrize(
    ("name", "beside"), [("net.param", ".bin"), ("net.xml", ".bin"), ("net.caffemodel", ".prototxt")]
)
def test_a_pair_of_files_stays_a_pair_where_the_disk_is_full(
    name: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    weights.write(path, [layer(epsilon=1e-5)])
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert set(before) == {name, path.with_suffix(beside).name}
    synced = iter([None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])

    def fsync(_: int) -> None:
        if error := next(synced):
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        weights.write(path, [layer(seed=1, epsilon=1e-5, channels=7)], overwrite=True)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_link_does_not_part_a_pair_of_files(tmp_path: Path) -> None:
    real, link = tmp_path / "real.xml", tmp_path / "link.xml"
    weights.write(real, [layer(epsilon=1e-5)])
    link.symlink_to(real.name)
    with pytest.raises(WeightsError, match=r"link\.xml is a link to .*real\.xml, and link\.bin"):
        weights.write(link, [layer(seed=1, epsilon=1e-5)], overwrite=True)
    assert same_bits(weights.read(real)["net.bn1"].mean, layer().mean)
    link.with_suffix(".bin").symlink_to("real.bin")
    weights.write(link, [layer(seed=1, epsilon=1e-5)], overwrite=True)
    assert same_bits(weights.read(real)["net.bn1"].mean, layer(seed=1).mean)
    assert link.is_symlink()


@pytest.mark.filterwarnings("error")
def test_what_reads_wider_is_compared_without_a_warning(tmp_path: Path) -> None:
    signals = strange("bfloat16")
    given = layer(channels=signals.size, dtype="bfloat16", mean=signals, epsilon=1e-5)
    weights.write(tmp_path / "net.param", [given])


def test_order_does_not_overrule_names(tmp_path: Path) -> None:
    model, path = tmp_path / "model.onnx", tmp_path / "one.onnx"
    weights.write(model, [layer(name, seed=seed) for seed, name in enumerate(("a", "b", "c"))])
    with pytest.raises(WeightsError, match="in order 'b', which it has, would go to 'a'"):
        weights.write(path, [layer(name) for name in ("b", "a", "x")], into=model)
    assert not path.exists()
    weights.write(path, [layer("x", seed=7), layer("b", seed=8), layer("y", seed=9)], into=model)
    assert same_bits(weights.read(path)["c"].mean, layer(seed=9).mean)


def test_numbers_that_frameworks_give_are_no_names(tmp_path: Path) -> None:
    """batch_normalization_1 is the second layer of a process' first model, and the first one of its second."""
    model, path = tmp_path / "model.onnx", tmp_path / "one.onnx"
    weights.write(model, [layer("bn_1"), layer("bn_2")])
    weights.write(path, [layer("bn", seed=3), layer("bn_1", seed=4)], into=model)
    assert same_bits(weights.read(path)["bn_1"].mean, layer(seed=3).mean)


@pytest.mark.parametrize("name", ["one.npz", "one.safetensors", "one.params", "one.xml"])
def test_two_layers_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="two layers have the name 'a'"):
        weights.write(tmp_path / name, [layer("a"), layer("b"), layer("a")])


def test_a_name_that_reads_differently_is_told(tmp_path: Path) -> None:
    for name, given, read in (("one.npz", "a/", "a"), ("one.params", "bn_", "bn"), ("one.mat", "", "layer1")):
        notes = weights.write(tmp_path / name, [layer(given, epsilon=1e-5)]).notes
        assert any(note.layer == given and f"called {read!r} in {name}" in note.text for note in notes)
        assert list(weights.read(tmp_path / name)) == [read]


@pytest.mark.parametrize("name", ["one.xml", "one.mat", "one.onnx", "one.param", "one.caffemodel"])
def test_an_epsilon_that_is_made_up_is_told(name: str, tmp_path: Path) -> None:
    notes = weights.write(tmp_path / name, [layer(epsilon=None)]).notes
    assert any("epsilon is not known" in note.text for note in notes)


def test_a_model_is_read_a_few_times_whatever_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model.safetensors"
    weights.write(model, [layer(f"bn{number}") for number in range(20)])
    content = weights.read(model)
    read, opened = Path.read_bytes, []

    def read_bytes(path: Path) -> bytes:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    weights.write(tmp_path / "one.safetensors", content, into=model)
    assert opened == [model]


def test_strict_writes_nothing_that_would_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(WeightsError, match=r"it would lose:\nnet\.bn1: epsilon is 0\.002"):
        weights.write(path, [layer(epsilon=0.002)], strict=True)
    assert not path.exists()
    assert not weights.write(path, [layer(epsilon=1e-5)], strict=True).notes


def test_what_is_said_of_many_layers_is_said_once(tmp_path: Path) -> None:
    told = [(name, "text") for name in "abcde"]
    assert gathered(told[:2], 5) == ["a, b: text"]
    assert gathered(told[:4], 5) == ["a, b, c and 1 more: text"]
    assert gathered(told, 5) == ["all 5 layers: text"]
    assert gathered([("", "of the file"), *told[:1]], 5) == ["of the file", "a: text"]
    with pytest.raises(WeightsError, match=r"all 5 layers: epsilon is 0\.5: give eps=0\.5 to PyTorch's layer$"):
        weights.write(tmp_path / "x.safetensors", [layer(name, epsilon=0.5) for name in "abcde"], strict=True)


def test_a_writer_that_writes_something_else_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oclbn.files.formats import npz

    sound: Callable[..., Any] = npz.write
    monkeypatch.setattr(npz, "write", lambda layers, *rest: sound([replace(layers[0], var=layers[0].mean)], *rest))
    with pytest.raises(WeightsError, match=r"var of layer 'net\.bn1' reads differently"):
        weights.write(tmp_path / "one.npz", [layer()])
    assert not list(tmp_path.iterdir())


def test_convert_keeps_bits_and_tells_both_sides_notes(tmp_path: Path) -> None:
    given = [layer("a", dtype="bfloat16", batches=3, epsilon=1e-3), layer("b", dtype="float64")]
    weights.write(tmp_path / "one.npz", given)
    report = weights.convert(tmp_path / "one.npz", tmp_path / "two.safetensors")
    assert (report.format, report.layers, report.files) == ("safetensors", 2, (tmp_path / "two.safetensors",))
    assert [str(note) for note in report.notes] == ["a: epsilon is 0.001: give eps=0.001 to PyTorch's layer"]
    back = weights.read(tmp_path / "two.safetensors")
    for one in given:
        assert all(same_bits(back[one.name].arrays[role], array) for role, array in one.arrays.items())
    assert back["a"].batches == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"hello, world\n" * 9, "none of the formats"),
        (b"\x80\x04\x95" + b"x" * 50, "pickled Python objects"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"x" * 50, "torch.load"),
    ],
)
def test_foreign_files_are_told(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=told) as caught:
        weights.read(path)
    assert str(path) in str(caught.value)


def test_a_checkpoint_of_pytorch_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match=r"weights_only=True.*model\.safetensors"):
        weights.read(path)


def test_what_is_no_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        weights.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        weights.read(tmp_path / "nothing.npz")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        with pytest.raises(OSError, match="regular file"):
            weights.read(tmp_path / "pipe.npz")


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights.write(tmp_path / "one.safetensors", [layer()])
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oclbn\[weights\]'"):
        weights.read(tmp_path / "one.safetensors")


# --- safetensors


def test_layers_of_a_whole_model_are_found_among_other_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)).astype("f4"),
        "ln.weight": np.ones(4, "f4"),
        "ln.bias": np.ones(4, "f4"),
        "mask": np.ones((2, 2), bool),
        **{f"bn.{key}": rng.uniform(1, 2, 4).astype("f4") for key in ("weight", "bias", "running_mean", "running_var")},
        "bn.num_batches_tracked": np.array(12),
        **{f"plain.{key}": rng.uniform(1, 2, 3).astype("f4") for key in ("running_mean", "running_var")},
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    content = weights.read(path)
    assert set(content) == {"bn", "plain"}
    assert content["bn"].batches == 12
    assert content["plain"].scale is None
    assert content.notes == (Note("plain", "it has neither weight nor bias: they are fixed at 1 and 0"),)
    new = layer("bn", 4, seed=5, batches=99)
    weights.write(tmp_path / "new.safetensors", [new], into=path)
    back = safetensors.numpy.load_file(tmp_path / "new.safetensors")
    for name, array in tensors.items():
        if not name.startswith("bn."):
            assert same_bits(back[name], array), name
    assert np.array_equal(back["bn.running_var"], new.arrays["var"])
    assert back["bn.num_batches_tracked"] == 99
    report = weights.write(tmp_path / "more.safetensors", [layer("plain", 3)], into=path)
    assert {note.text for note in report.notes if note.lost} == {
        "scale has no place in model.safetensors",
        "bias has no place in model.safetensors",
    }


def sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    first, second = layer("a", 4, seed=1), layer("b", 4, seed=2)
    weights.write(folder / "model-1.safetensors", [first])
    weights.write(folder / "model-2.safetensors", [second])
    keys = ("weight", "bias", "running_mean", "running_var")
    found = {f"{name}.{key}": f"model-{part}.safetensors" for name, part in (("a", 1), ("b", 2)) for key in keys}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map or found}))
    return path


def test_an_index_of_shards_is_one_model(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    assert list(weights.read(path)) == ["a", "b"]
    target = tmp_path / "new"
    target.mkdir()
    new = layer("b", 4, seed=7)
    report = weights.write(target / path.name, [new], into=path)
    assert [one.name for one in report.files] == [path.name, "model-1.safetensors", "model-2.safetensors"]
    back = weights.read(target / path.name)
    assert same_bits(back["b"].arrays["var"], new.arrays["var"])
    assert same_bits(back["a"].arrays["var"], weights.read(path)["a"].arrays["var"])
    with pytest.raises(WeightsError, match="index of several files"):
        weights.write(target / "one.safetensors", [new], into=path)
    with pytest.raises(WeightsError, match="an index is written with the model alone"):
        weights.write(target / "x.safetensors.index.json", [new], format="safetensors")


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "model-3.safetensors", "model-1.npz"])
def test_an_index_leads_to_no_other_folder(shard: str, tmp_path: Path) -> None:
    path = sharded(tmp_path, {"a.weight": shard})
    with pytest.raises(WeightsError, match=r"names '.*model-|passwd"):
        weights.read(path)


def test_wrong_tensors_of_a_layer_are_told(tmp_path: Path) -> None:
    sound = {f"bn.{key}": np.ones(4, "f4") for key in ("weight", "bias", "running_mean", "running_var")}
    for wrong, told in (
        ({"bn.running_var": np.ones(4, np.int8)}, "running_var holds I8"),
        ({"bn.weight": np.ones((2, 2), "f4")}, r"weight has shape \(2, 2\)"),
        ({"bn.weight": np.ones(3, "f4")}, r"scale \(3,\)"),
        ({"bn.num_batches_tracked": np.array(-1)}, "num_batches_tracked is -1"),
        ({"bn.num_batches_tracked": np.ones(2, np.int64)}, "one I64 is wanted"),
    ):
        path = tmp_path / "wrong.safetensors"
        safetensors.numpy.save_file({**sound, **wrong}, path)
        with pytest.raises(WeightsError, match=told) as caught:
            weights.read(path)
        assert str(path) in str(caught.value)


# --- .npz


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    array = io.BytesIO()
    np.save(array, np.zeros(1 << 20, np.float32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(40):
            archive.writestr(f"bn/{index}.npy", array.getvalue())
    with pytest.raises(WeightsError, match="unpack to far more"):
        weights.read(path)


def test_only_archives_of_ours_are_paired_in_order(tmp_path: Path) -> None:
    """Those that a line of advice makes of a checkpoint are sorted by name."""
    names = [f"block{index}/bn" for index in (1, 10, 2)]
    arrays = {
        f"{name}/{key}": np.ones(4, "f4") for name in names for key in ("gamma", "moving_mean", "moving_variance")
    }
    np.savez(tmp_path / "foreign.npz", **arrays)  # type: ignore[arg-type]
    weights.write(tmp_path / "model.npz", [layer(name, 4) for name in "abc"])
    with pytest.raises(WeightsError, match="cannot be paired in order"):
        weights.write(tmp_path / "new.npz", weights.read(tmp_path / "foreign.npz"), into=tmp_path / "model.npz")
    weights.write(tmp_path / "ours.npz", [layer(name, 4) for name in "xyz"])
    weights.write(tmp_path / "new.npz", weights.read(tmp_path / "ours.npz"), into=tmp_path / "model.npz")


def test_what_lies_beside_the_source_is_not_replaced(tmp_path: Path) -> None:
    """OpenVINO and ncnn both keep numbers in NAME.bin."""
    weights.write(tmp_path / "net.xml", [layer()])
    before = (tmp_path / "net.bin").read_bytes()
    with pytest.raises(WeightsError, match=r"net\.bin is of the source"):
        weights.convert(tmp_path / "net.xml", tmp_path / "net.param", overwrite=True)
    assert (tmp_path / "net.bin").read_bytes() == before
    assert not (tmp_path / "net.param").exists()


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pickled.npz"
    np.savez(path, **{"bn/mean": np.ones(3, object), "bn/var": np.ones(3)})  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="allow_pickle"):
        weights.read(path)


def test_names_of_other_frameworks_are_known_in_an_archive(tmp_path: Path) -> None:
    values = [np.full(3, number, np.float32) for number in (1, 2, 3, 4)]
    for names in parts.KNOWN:
        path = tmp_path / "one.npz"
        called = (names.scale, names.bias, names.mean, names.var)
        np.savez(path, **{f"block.bn.{name}": array for name, array in zip(called, values, strict=True)})
        (found,) = weights.read(path).values()
        assert (found.name, found.convention) == ("block.bn", names.convention)
        for array, role in zip(values, ("scale", "bias", "mean", "var"), strict=True):
            assert same_bits(found.arrays[role], array)


def test_formats_are_told_by_what_they_hold(tmp_path: Path) -> None:
    for form in formats.FORMATS:
        path = tmp_path / f"{form.name}{form.endings[0]}"
        weights.write(path, [layer()], format=form.name)
        if not form.companions:
            moved = path.rename(tmp_path / f"{form.name}.weights")
            assert weights.read(moved).format == form.name
