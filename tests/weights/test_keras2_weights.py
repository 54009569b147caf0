"""Weights of Keras 2 and tf_keras in .h5: files that tf_keras has written, and what is no such file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from layer_samples import layer
from real_files import copied, evaluated, outputs

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")
MODEL = "tf_keras-2.21.0"


@pytest.mark.parametrize("name", [f"{MODEL}.h5", f"{MODEL}-weights.h5"], ids=["a whole model", "weights alone"])
def test_it_evaluates_as_in_tf_keras(name: str, tmp_path: Path) -> None:
    read = weights.read(copied(name, tmp_path))
    expected = outputs(MODEL)
    assert read.format == "keras2"
    assert read.keys() == expected.keys()
    for layer_name, (x, y) in expected.items():
        one = read[layer_name]
        epsilon = 1e-4 if layer_name == "bn_a" else 1e-3
        assert one.epsilon == (epsilon if name == f"{MODEL}.h5" else None)
        assert one.convention == "tf_keras"
        np.testing.assert_allclose(evaluated(one, x, epsilon), y, rtol=2e-5, atol=2e-6)
    assert read["bn_noscale"].scale is None
    assert read["bn_nocenter"].bias is None
    if name == f"{MODEL}.h5":
        assert list(read)[:4] == ["bn_a", "bn_noscale", "bn_nocenter", "bn_in"], "in the order of the model"
        assert read["bn_a"].factor == 0.1
        assert read["sync"].factor == 0.01


def test_renorm_and_the_way_back(tmp_path: Path) -> None:
    """What renorm averages beside the statistics follows them, so that training does not lose the variance."""
    source, target = copied(f"{MODEL}-renorm.h5", tmp_path), tmp_path / "new.h5"
    read = weights.read(source)
    assert ["renorm=True" in note.text for note in read.notes] == [True]
    new = layer("bn_re", 3)
    weights.write(target, [new], into=source)
    assert new.mean is not None
    assert new.var is not None
    with h5py.File(target) as file:
        stored = {name.partition(":")[0]: array[...] for name, array in file["model_weights/bn_re/bn_re"].items()}
    np.testing.assert_allclose(stored["moving_stddev"], np.sqrt(new.var + np.float32(1e-3)), rtol=1e-6)
    assert (stored["renorm_stddev"] == stored["moving_stddev"]).all()
    assert (stored["renorm_mean"] == new.mean).all()
    assert (stored["moving_variance"] == new.var).all()


def test_a_copy_of_a_model_changes_nothing_else(tmp_path: Path) -> None:
    source, target = copied(f"{MODEL}.h5", tmp_path), tmp_path / "new.h5"
    old = weights.read(source)["in_seq"]
    weights.write(target, [layer("in_seq", 4)], into=source)
    before, after = (np.frombuffer(path.read_bytes(), np.uint8) for path in (source, target))
    assert 0 < (before != after).sum() <= 4 * 4 * 4
    weights.write(target, [old], into=target, overwrite=True)
    assert target.read_bytes() == source.read_bytes()


def test_lists_too_long_for_one_attribute(tmp_path: Path) -> None:
    path = tmp_path / "long.h5"
    given = [layer(f"{'long' * 20} {number}", 1, seed=number) for number in range(900)]
    weights.write(path, given)
    with h5py.File(path) as file:
        assert "layer_names" not in file.attrs
        assert "layer_names1" in file.attrs
    read = weights.read(path)
    assert list(read) == [one.name for one in given]
    assert all(same_bits(read[one.name].arrays["mean"], one.arrays["mean"]) for one in given)


def test_names_with_slashes(tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    weights.write(path, [layer("block/a", 3), layer("block/b", 3), layer("a", 2)])
    assert list(weights.read(path)) == ["block/a", "block/b", "a"]
    for name in ("a//b", "", ".", "a/./b", "a\0b", "\ud800"):
        with pytest.raises(WeightsError, match="name"):
            weights.write(path, [layer(name, 3)], overwrite=True)


def lacking(file: h5py.File) -> None:
    del file["a/a/moving_mean:0"]


def no_group(file: h5py.File) -> None:
    del file["a"]


def no_list(file: h5py.File) -> None:
    del file["a"].attrs["weight_names"]


def numbers_for_names(file: h5py.File) -> None:
    file["a"].attrs["weight_names"] = np.arange(4)


def twice(file: h5py.File) -> None:
    file.attrs["layer_names"] = np.array([b"a", b"a"])


def linked(file: h5py.File) -> None:
    file.move("a/a/gamma:0", "elsewhere")
    file["a/a/gamma:0"] = h5py.SoftLink("/elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, "lists 'a/moving_mean:0' of layer 'a', and has no such array"),
        (no_group, "lists a layer 'a', and has no group"),
        (no_list, "has no weight_names"),
        (numbers_for_names, "strings are wanted"),
        (twice, "lists arrays of one layer twice"),
        (linked, "wanted no link"),
    ],
)
def test_what_is_refused(change: Callable[[h5py.File], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    weights.write(path, [layer("a", 3)])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(WeightsError, match=message) as told:
        weights.read(path, format="keras2")
    assert str(path) in str(told.value)
