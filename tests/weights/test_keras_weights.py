"""Weights of Keras 3, and of tf_keras in the same layout: files that these have written, and what is no such file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from layer_samples import layer
from real_files import content, copied, evaluated, outputs

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.formats import kerasconfig
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")
MODEL = "keras-3.15.1"
EPSILON = 1e-3  # of Keras, where a file does not say


def test_a_whole_model_evaluates_as_in_keras(tmp_path: Path) -> None:
    """Layers without gamma, without beta and without both, in a model and in models within it, and one with renorm."""
    read = weights.read(copied(f"{MODEL}.keras", tmp_path))
    assert read.format == "keras"
    assert list(read) == ["bn_a", "bn_noscale", "bn_nocenter", "inner/bn_a", "bn_bare", "in_seq", "bn_re"]
    expected = outputs(MODEL)
    assert expected.keys() == read.keys()
    for name, (x, y) in expected.items():
        one = read[name]
        assert one.epsilon is not None
        np.testing.assert_allclose(evaluated(one, x, one.epsilon), y, rtol=2e-5, atol=2e-6)
    assert (read["bn_a"].epsilon, read["bn_a"].factor) == (1e-4, 0.1)
    assert (read["inner/bn_a"].epsilon, read["inner/bn_a"].factor) == (1e-3, 0.01)
    assert read["bn_noscale"].scale is None
    assert read["bn_nocenter"].bias is None
    assert read["bn_bare"].scale is read["bn_bare"].bias is None
    assert [note.layer for note in read.notes] == ["bn_re"]


def test_weights_alone_leave_open_what_is_gamma(tmp_path: Path) -> None:
    """The same arrays; of three it is not said whether the first is gamma or beta."""
    read = weights.read(copied(f"{MODEL}.weights.h5", tmp_path))
    whole = weights.read(copied(f"{MODEL}.keras", tmp_path))
    assert read.keys() == whole.keys()
    for name, one in read.items():
        assert one.epsilon is one.factor is None
        for role, array in one.arrays.items():
            there = whole[name].arrays["scale" if name == "bn_nocenter" and role == "bias" else role]
            assert same_bits(array, there)
    guessed = [note.layer for note in read.notes if "is taken for beta" in note.text]
    assert sorted(guessed) == ["bn_nocenter", "bn_noscale"]


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """Its layers lie under the names of attributes, which say nothing of what they are."""
    read = weights.read(copied(f"{MODEL}-own.weights.h5", tmp_path))
    assert sorted(read) == ["x1", "x2"]
    assert [note.layer for note in read.notes if "taken for a batch normalization" in note.text] == ["x1"]


def test_bfloat16(tmp_path: Path) -> None:
    (one,) = weights.read(copied(f"{MODEL}-bfloat16.weights.h5", tmp_path)).values()
    assert {array.dtype.name for array in one.arrays.values()} == {"bfloat16"}
    with h5py.File(tmp_path / f"{MODEL}-bfloat16.weights.h5") as file:
        stored = file["layers/batch_normalization/vars/3"]
        assert stored.attrs["dtype"] == "bfloat16"
        assert one.var is not None
        assert stored[...].tobytes() == one.var.tobytes()


def test_tf_keras_has_names_in_the_configuration_alone(tmp_path: Path) -> None:
    expected = outputs("tf_keras-2.21.0")
    whole = weights.read(copied("tf_keras-2.21.0.keras", tmp_path))
    assert whole.keys() == expected.keys()
    for name, (x, y) in expected.items():
        one = whole[name]
        assert one.convention == "tf_keras"
        assert one.epsilon is not None
        np.testing.assert_allclose(evaluated(one, x, one.epsilon), y, rtol=2e-5, atol=2e-6)
    alone = weights.read(copied("tf_keras-2.21.0.weights.h5", tmp_path))
    assert "functional/batch_normalization" in alone
    assert any("called after their paths" in note.text and not note.layer for note in alone.notes)
    assert len(alone) == len(whole)


def test_layers_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    """HDF5 sorts names, so that the tenth comes before the second."""
    given = [layer(f"layer {number}", 2, seed=number) for number in range(12)]
    path = tmp_path / "many.weights.h5"
    weights.write(path, given)
    assert list(weights.read(path)) == [one.name for one in given]
    into = tmp_path / "into.weights.h5"
    others = [layer(f"other {number}", 2, seed=100 + number) for number in range(12)]
    weights.write(into, others, into=path)
    for one, there in zip(others, weights.read(into).values(), strict=True):
        assert same_bits(one.arrays["mean"], there.arrays["mean"])


def changed_bytes(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return int((np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)).sum())


def test_a_copy_of_a_model_changes_nothing_else(tmp_path: Path) -> None:
    source, target = copied(f"{MODEL}.weights.h5", tmp_path), tmp_path / "new.weights.h5"
    old = weights.read(source)["bn_a"]
    new = layer("bn_a", 3, epsilon=1e-3)
    report = weights.write(target, [new], into=source)
    assert all(same_bits(weights.read(target)["bn_a"].arrays[role], array) for role, array in new.arrays.items())
    assert changed_bytes(source.read_bytes(), target.read_bytes()) <= 4 * 3 * 4
    assert not [note for note in report.notes if note.lost]
    weights.write(target, [old], into=target, overwrite=True)
    assert target.read_bytes() == source.read_bytes()


def test_an_order_that_is_not_in_the_file(tmp_path: Path) -> None:
    """Of models within models; the configuration has it."""
    for ending, told in ((".weights.h5", True), (".keras", False)):
        source, target = copied(f"{MODEL}{ending}", tmp_path), tmp_path / f"new{ending}"
        named = list(weights.read(source).values())
        others = [layer(f"x{number}", one.channels, seed=number) for number, one in enumerate(named)]
        for given, wanted in ((others, told), (named, False)):
            report = weights.write(target, given, into=source, overwrite=True)
            assert any("in the order of their paths" in note.text for note in report.notes) == wanted


def test_a_copy_of_an_archive(tmp_path: Path) -> None:
    """The configuration stays, byte by byte; averages of renorm follow the statistics."""
    source, target = copied(f"{MODEL}.keras", tmp_path), tmp_path / "new.keras"
    new = layer("bn_re", 4, epsilon=2e-3)
    report = weights.write(target, [new], into=source)
    told = [note.text for note in report.notes if note.layer == "bn_re"]
    assert any("moving_stddev, renorm_stddev and renorm_mean are set" in text for text in told)
    assert any("epsilon is 0.002" in text for text in told), "the model's configuration says 1e-3"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as copy:
        assert old.namelist() == copy.namelist()
        assert copy.testzip() is None
        for name in ("config.json", "metadata.json"):
            assert old.read(name) == copy.read(name)
        stored = io.BytesIO(copy.read("model.weights.h5"))
    assert new.mean is not None
    assert new.var is not None
    with h5py.File(stored) as file:
        group = next(one for one in file["layers"].values() if one["vars"].attrs["name"] == "bn_re")["vars"]
        stddev, mean, renorm_stddev = (group[str(index)][...] for index in (4, 5, 6))
    np.testing.assert_allclose(stddev, np.sqrt(new.var + np.float32(1e-3)), rtol=1e-6)
    assert (renorm_stddev == stddev).all()
    assert (mean == new.mean).all()


def test_shards(tmp_path: Path) -> None:
    """An index beside its files; arrays of one layer may lie in two of them."""
    given = [layer("first", 3), layer("second", 4, seed=1)]
    weights.write(tmp_path / "whole.weights.h5", given)
    with h5py.File(tmp_path / "whole.weights.h5") as whole:
        for shard, names in enumerate((("0", "1"), ("2", "3"))):
            with h5py.File(tmp_path / f"model_{shard:05}.weights.h5", "w") as file:
                for path in ("layers/batch_normalization", "layers/batch_normalization_1"):
                    group = file.create_group(f"{path}/vars")
                    group.attrs["name"] = whole[f"{path}/vars"].attrs["name"]
                    for name in names:
                        whole.copy(f"{path}/vars/{name}", group)
    shards = [f"model_{shard:05}.weights.h5" for shard in range(2)]
    index = tmp_path / "model.weights.json"
    index.write_text(json.dumps({"weight_map": {"/layers/batch_normalization/vars": shards, "/x": shards[0]}}))
    read = weights.read(index)
    for one, same in zip(given, read.values(), strict=True):
        assert one.name == same.name
        assert all(same_bits(same.arrays[role], array) for role, array in one.arrays.items())
    (tmp_path / "copy").mkdir()
    others = [layer("first", 3, seed=7), layer("second", 4, seed=8)]
    report = weights.write(tmp_path / "copy/model.weights.json", others, into=index)
    assert [path.name for path in report.files] == ["model.weights.json", *shards]
    assert same_bits(weights.read(report.files[0])["second"].arrays["var"], others[1].arrays["var"])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is damaged, or no index"),
        ("[" * 100_000, "is damaged, or no index"),
        ('{"weight_map": 3}', "has no weight_map"),
        ('{"weight_map": {"a": "../other.weights.h5"}}', "beside it is wanted"),
        ('{"weight_map": {"a": ["there.weights.h5", 3]}}', "beside it is wanted"),
        ('{"weight_map": {"a": "missing.weights.h5"}}', "there is no such file beside it"),
        ('{"weight_map": {"a": "nul\\u0000.weights.h5"}}', "there is no such file beside it"),
    ],
)
def test_an_index_that_is_none(index: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.weights.json"
    path.write_text(index)
    with pytest.raises(WeightsError, match=message):
        weights.read(path, format="keras")


# --- what is refused


def archived(members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return made.getvalue()


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content(f"{MODEL}.keras"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("name", "member", "message"),
    [
        ("config.json", b"[" * 100_000, "configuration is damaged"),
        ("config.json", b"{", "configuration is damaged"),
        ("config.json", b"\xff\xfe", "is damaged, or no .keras file"),
        ("config.json", b"[" + b"[]," * 10_000_000, "config.json unpacks to more than"),
        ("metadata.json", b"{", "is damaged, or no .keras file"),
        ("model.weights.h5", b"", "is no HDF5 file"),
        ("model.weights.h5", bytes(200_000_000), "unpacks to far more than the file's size"),
    ],
    ids=["deep", "cut", "no text", "a bomb of lists", "metadata", "empty", "bomb"],
)
def test_an_archive_that_is_none(name: str, member: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(archived(members() | {name: member}, zipfile.ZIP_DEFLATED))
    with pytest.raises(WeightsError, match=message) as told:
        weights.read(path, format="keras")
    assert str(path) in str(told.value)


def file_with(path: Path, fill: Callable[[h5py.File], None]) -> Path:
    weights.write(path, [layer("a", 3), layer("b", 4)])
    with h5py.File(path, "r+") as file:
        fill(file)
    return path


def set_array(index: str, value: Any) -> Callable[[h5py.File], None]:
    def fill(file: h5py.File) -> None:
        group = file["layers/batch_normalization/vars"]
        if index in group:
            del group[index]
        group[index] = value

    return fill


@pytest.mark.parametrize(
    "fill",
    [
        set_array("2", np.zeros((3, 3), np.float32)),
        set_array("2", np.zeros(2, np.float32)),
        set_array("2", np.zeros(3, np.int32)),
        set_array("2", "three"),
        set_array("9", np.zeros(3, np.float32)),
        set_array("4", np.zeros((), np.float32)),
    ],
    ids=["matrix", "shorter", "integers", "text", "a gap", "a scalar"],
)
def test_what_is_no_batch_normalization_is_left_out(fill: Callable[[h5py.File], None], tmp_path: Path) -> None:
    read = weights.read(file_with(tmp_path / "one.weights.h5", fill))
    assert list(read) == ["b"]
    assert [note.layer for note in read.notes if note.lost and "left out" in note.text] == ["a"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    for to in (h5py.SoftLink("/layers/batch_normalization_1/vars/2"), h5py.ExternalLink("other.h5", "/x")):
        with pytest.raises(WeightsError, match="wanted no link"):
            weights.read(file_with(tmp_path / "one.weights.h5", set_array("2", to)))
        (tmp_path / "one.weights.h5").unlink()


def test_four_arrays_of_something_else(tmp_path: Path) -> None:
    """A layer of one's own whose last array is below zero somewhere has no variance."""
    path = tmp_path / "one.weights.h5"

    def fill(file: h5py.File) -> None:
        for name, value in (("wave", -1.0), ("wide", 1.0)):
            for index in range(4):
                file[f"{name}/vars/{index}"] = np.full(3, value, np.float32)
        for index in range(4):
            file[f"optimizer/vars/{index}"] = np.ones(3, np.float32)

    read = weights.read(file_with(path, fill))
    assert list(read) == ["a", "b", "wide"]


def test_names_that_are_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "one.weights.h5"
    with pytest.raises(WeightsError, match="two layers have the name 'same'"):
        weights.write(path, [layer("same", 3), layer("same", 4)])
    weights.write(path, [layer("same", 3), layer("", 2), layer("other/same", 2)])
    assert list(weights.read(path)) == ["same", "", "other/same"]
    with h5py.File(path, "w") as file:
        for number, suffix in enumerate(("", "_1")):
            group = file.create_group(f"layers/batch_normalization{suffix}/vars")
            group.attrs["name"] = "same"
            for index in range(4):
                group[str(index)] = np.full(2 + number, 1.0, np.float32)
    assert list(weights.read(path)) == ["layers/batch_normalization", "layers/batch_normalization_1"]


def test_a_new_archive_wants_a_model(tmp_path: Path) -> None:
    for name in ("new.keras", "new.weights.json"):
        with pytest.raises(WeightsError, match=r"makes a file of weights"):
            weights.write(tmp_path / name, [layer()])


def test_classes_are_named_as_keras_names_them() -> None:
    named = {"BatchNormalization": "batch_normalization", "PReLU": "p_re_lu", "Conv2D": "conv2d", "GRUCell": "gru_cell"}
    assert {name: kerasconfig.snake(name) for name in named} == named


def test_damage_is_told(tmp_path: Path) -> None:
    path = copied(f"{MODEL}.weights.h5", tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="an HDF5 file that is damaged, or of none of the layouts keras, keras2, "):
        weights.read(path)
    with pytest.raises(WeightsError, match=r"is cut short: it has 49,415 of 49,416 bytes"):
        weights.read(path, format="keras")


def test_it_is_told_by_what_it_holds(tmp_path: Path) -> None:
    for name, found in (
        (f"{MODEL}.keras", "keras"),
        (f"{MODEL}.weights.h5", "keras"),
        ("tf_keras-2.21.0.h5", "keras2"),
    ):
        path = copied(name, tmp_path)
        path = path.rename(tmp_path / f"{found}.bin")
        assert formats.of_file(path).name == found
