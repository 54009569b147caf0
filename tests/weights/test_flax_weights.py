"""Files of Flax: linen's variables, train states, nnx' dictionaries, arrays in chunks, and what is no such file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import real_files
from layer_samples import layer

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.formats import flax
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are read by the host")
REAL = pytest.mark.parametrize("name", ["flax_linen", "flax_train", "flax_nnx", "flax_chunked"])


def packed(array: np.ndarray[Any, Any], dtype: str = "", shape: Any = None) -> msgpack.ExtType:
    """An array as Flax packs it, or as it would not."""
    told = (array.shape if shape is None else shape, dtype or array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(told))


def file_of(folder: Path, tree: Any) -> Path:
    path = folder / "file.msgpack"
    path.write_bytes(tree if isinstance(tree, bytes) else msgpack.packb(tree))
    return path


ONES = np.ones(3, np.float32)
BN = {"batch_stats": {"bn": {"mean": packed(ONES), "var": packed(ONES)}}}


@REAL
def test_what_flax_has_written_computes_what_flax_computes(name: str, tmp_path: Path) -> None:
    path = real_files.unpacked(name, tmp_path)
    assert formats.of_file(path).name == "flax"
    assert formats.of_file(path.rename(tmp_path / "bare")).name == "flax", "told without its ending"
    content = weights.read(tmp_path / "bare")
    real_files.check(name, content)
    assert {one.convention for one in content.layers} == {"flax"}


@REAL
def test_a_copy_of_a_real_file_differs_in_the_values_alone(name: str, tmp_path: Path) -> None:
    """Every other array, the optimizer's among them, and every byte around them are what they were."""
    path, target = real_files.unpacked(name, tmp_path), tmp_path / "new.msgpack"
    content = weights.read(path)
    weights.write(target, content, into=path)
    assert target.read_bytes() == path.read_bytes()
    changed = [
        layer(one.name, 3, seed=9, **{role: one.arrays[role] + 1 for role in one.arrays}) for one in content.layers
    ]
    given = [
        weights.Layer(one.name, **{role: one.arrays[role] for role in content[one.name].arrays}) for one in changed
    ]
    weights.write(target, given, into=path, overwrite=True)
    for one in given:
        for role, array in one.arrays.items():
            assert same_bits(weights.read(target)[one.name].arrays[role], array)
    before, after = path.read_bytes(), target.read_bytes()
    assert len(before) == len(after)
    total = sum(array.nbytes for one in given for array in one.arrays.values())
    assert 0 < sum(a != b for a, b in zip(before, after, strict=True)) <= total


def test_what_is_written_is_what_msgpack_writes(tmp_path: Path) -> None:
    """Byte for byte, of many names and of many channels: objects of every length."""
    given = [layer(f"block{i}/{'n' * (10 * i)}", 3**i, "bfloat16" if i % 2 else "float32", i) for i in range(11)]
    given += [layer(f"bn{i}", 1, scale=None) for i in range(20)]
    image = flax.write(given, "a.msgpack", None).files["a.msgpack"]
    tree = msgpack.unpackb(image)
    assert msgpack.packb(tree) == image
    assert set(tree) == {"params", "batch_stats"}
    shape, dtype, content = msgpack.unpackb(tree["batch_stats"]["block4"]["n" * 40]["mean"].data)
    assert (shape, dtype) == ([81], "float32")
    assert content == given[4].arrays["mean"].tobytes()


def test_a_layer_alone_has_no_name(tmp_path: Path) -> None:
    """A linen.BatchNorm that is the whole model has its arrays at the collections' top."""
    image = flax.write([layer("")], "a.msgpack", None).files["a.msgpack"]
    assert set(msgpack.unpackb(image)["params"]) == {"scale", "bias"}
    assert list(weights.read(file_of(tmp_path, image))) == [""]


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    for names in (("a", "a/mean"), ("a/mean", "a"), ("a", "a")):
        with pytest.raises(WeightsError, match="a"):
            weights.write(tmp_path / "a.msgpack", [layer(name) for name in names])


def test_arrays_that_are_no_vectors_of_floats_are_told(tmp_path: Path) -> None:
    square = {"mean": packed(np.ones((2, 2), "f4")), "var": packed(np.ones((2, 2), "f4"))}
    whole = {"mean": packed(np.ones(2, "i4")), "var": packed(np.ones(2, "i4"))}
    tree = {
        "batch_stats": {"sq": square, "int": whole, **BN["batch_stats"]},
        "step": 7,
        "other": [1.5, None, {"a": b"x"}],
    }
    content = weights.read(file_of(tmp_path, tree))
    assert list(content) == ["bn"]
    assert {note.layer for note in content.notes} == {"sq", "int"}


def test_a_role_that_the_model_lacks_is_told(tmp_path: Path) -> None:
    path = file_of(tmp_path, BN)
    report = weights.write(tmp_path / "new.msgpack", [layer("bn", 3)], into=path)
    assert {note.text.split()[0] for note in report.notes if note.lost} == {"scale", "bias"}


def test_keys_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    """Numbers are names, as nnx has them of lists; bytes, None and pairs are no way to a layer."""
    arrays = {"mean": packed(ONES), "var": packed(ONES)}
    tree = msgpack.packb({"layers": {0: arrays, 300: arrays, -2: arrays, b"x": arrays, None: arrays, (1, 2): arrays}})
    assert list(weights.read(file_of(tmp_path, tree))) == ["layers/0", "layers/300", "layers/-2"]


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\xc0"


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        pytest.param(nested(100_000), "nested", id="deep maps"),
        pytest.param(b"\x81\xa1a" + b"\x91" * 100_000, "nested", id="deep arrays"),
        pytest.param(b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 3_000_000, "objects", id="an array of many"),
        pytest.param(b"\x81\xa1a\xdf\xff\xff\xff\xff", "wanted", id="a map of billions"),
        pytest.param(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "bytes", id="an extension of gigabytes"),
        pytest.param(msgpack.packb(BN)[:-5], "bytes", id="cut off"),
        pytest.param(msgpack.packb(BN) + b"\0", "follow", id="more behind"),
        pytest.param(b"\x82\xa1a\xc0\xa1a\xc0", "two entries", id="one key twice"),
        pytest.param(b"\x81\xa1a\xc1", "begins with", id="no object"),
        pytest.param(
            {"bn": {"mean": packed(ONES, shape=(1 << 40,)), "var": packed(ONES)}}, "bytes", id="a large shape"
        ),
        pytest.param({"bn": {"mean": packed(ONES, shape=(-3,)), "var": packed(ONES)}}, "array", id="a negative shape"),
        pytest.param({"bn": {"mean": packed(ONES, shape=(1,) * 40), "var": packed(ONES)}}, "axes", id="many axes"),
        pytest.param({"bn": {"mean": packed(ONES, "f" * 200), "var": packed(ONES)}}, "no layer|left out", id="no type"),
        pytest.param({"bn": {"mean": packed(ONES), "var": packed(ONES[:2])}}, "shapes", id="two lengths"),
        pytest.param({"bn": {"mean": msgpack.ExtType(1, b"\x93"), "var": packed(ONES)}}, "bytes", id="half an array"),
        pytest.param(
            {"bn": {"mean": {"__msgpack_chunked_array__": True}, "var": packed(ONES)}}, "chunks", id="no chunk"
        ),
    ],
)
def test_what_is_wrong_is_told_at_once(tree: Any, told: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, tree)
    start = time.perf_counter()
    if told == "no layer|left out":
        content = weights.read(path)
        assert not content
        assert "left out" in str(content.notes[0])
    else:
        with pytest.raises(WeightsError, match=told) as caught:
            weights.read(path, format="flax")
        assert str(path) in str(caught.value)
    assert time.perf_counter() - start < 20


def test_large_arrays_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of 64 MB is not read to find the statistics behind it."""
    path = file_of(tmp_path, {"params": {"kernel": packed(np.ones(1 << 24, np.float32))}, **BN})
    taken = []
    real = flax._Walk.take
    monkeypatch.setattr(flax._Walk, "take", lambda walk, count, end: taken.append(count) or real(walk, count, end))
    assert list(weights.read(path)) == ["bn"]
    assert sum(taken) < 1000
