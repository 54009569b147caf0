"""Parameters of NNabla: a file that it has written, and what stays of one in a copy."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from layer_samples import layer
from real_files import copied, evaluated

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")
MODEL = "nnabla-1.39.0"


def test_it_evaluates_as_in_nnabla(tmp_path: Path) -> None:
    """Fully connected and convolutional, without gamma and without beta, with channels last, among other norms."""
    read = weights.read(copied(f"{MODEL}.h5", tmp_path))
    assert read.format == "nnabla"
    assert list(read) == ["a/bn", "blk/b/bn", "blk/c/bn", "e/bn", "im/bn", "ax3/bn", "fu/bn"]
    assert read["blk/b/bn"].scale is None
    assert read["blk/c/bn"].bias is None
    assert {one.convention for one in read.values()} == {"nnabla"}
    with np.load(Path(__file__).parent / "real" / f"{MODEL}.npz") as arrays:
        for name in ("a", "im"):
            x, y = arrays[f"{name}_x"], arrays[f"{name}_y"]
            rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
            expected = np.moveaxis(y, 1, -1).reshape(-1, x.shape[1])
            np.testing.assert_allclose(evaluated(read[f"{name}/bn"], rows, 1e-5), expected, rtol=2e-5, atol=2e-6)


def test_shapes_stay_in_a_copy(tmp_path: Path) -> None:
    source, target = copied(f"{MODEL}.h5", tmp_path), tmp_path / "new.h5"
    given = [layer("im/bn", 5, "float64"), layer("a/bn", 3, "float64", 1), layer("ax3/bn", 2, "float64", 2)]
    weights.write(target, given, into=source, format="nnabla")
    read = weights.read(target)
    for one in given:
        assert all(same_bits(read[one.name].arrays[role], array) for role, array in one.arrays.items())
    with h5py.File(source) as old, h5py.File(target) as new:
        for name, shape in (("im/bn/var", (1, 5, 1, 1)), ("a/bn/var", (1, 3)), ("ax3/bn/var", (1, 1, 1, 2))):
            assert old[name].shape == new[name].shape == shape
            assert dict(old[name].attrs) == dict(new[name].attrs)
    assert len(source.read_bytes()) == len(target.read_bytes())


def test_new_parameters_say_what_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "new.h5"
    weights.write(path, [layer("net/bn", 3), layer("bn", 2, scale=None)], format="nnabla")
    with h5py.File(path) as file:
        told = {name: (int(file[name].attrs["index"]), bool(file[name].attrs["need_grad"])) for name in _names(file)}
        assert file["net/bn/var"].shape == (1, 3, 1, 1)
    assert told["net/bn/gamma"][1]
    assert not told["net/bn/var"][1]
    assert sorted(index for index, _ in told.values()) == list(range(7))
    assert list(weights.read(path)) == ["net/bn", "bn"], "in the order of their numbers"


def _names(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, one: found.append(name) if isinstance(one, h5py.Dataset) else None)
    return found


def test_what_is_left_out_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    weights.write(path, [layer("a", 3), layer("b", 3)], format="nnabla")
    with h5py.File(path, "r+") as file:
        del file["a/var"]
        file["a/var"] = np.ones((3, 3), np.float32)
    read = weights.read(path)
    assert list(read) == ["b"]
    assert [(note.layer, note.lost) for note in read.notes] == [("a", True)]
    with h5py.File(path, "r+") as file:
        del file["b/var"]
        file["b/var"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(WeightsError, match="wanted no link"):
        weights.read(path, format="nnabla")
    with pytest.raises(WeightsError, match="has no name"):
        weights.write(tmp_path / "two.h5", [layer("", 3)], format="nnabla")
