"""MXNet's .params: real files and what MXNet computes from them, the symbol beside them, versions of old, damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_samples import layer
from real_files import evaluated, real
from sample_mxnet import first, legacy, listed, none, rows, samples

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    return real("mxnet", tmp_path)


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(files))


def test_an_exported_net_computes_the_same(kept: dict[str, Any], tmp_path: Path) -> None:
    """scale=False is told by the symbol alone: the gamma in the file is another one."""
    x = np.array(kept["x"]).reshape(kept["shape"])
    y = np.array(kept["y"]).reshape(2, -1, 1, 2)
    content = weights.read(tmp_path / "exported-0000.params")
    names = ["net_plain", "net_batchnorm0", "net_batchnormrelu0", "net_syncbatchnorm0", "net_inner0_batchnorm0"]
    assert list(content) == names, "instance norm is none of them"
    for place, one in enumerate(content.values()):
        mine = evaluated(one, x)
        if "relu" in one.name:
            mine = np.maximum(mine, 0)
        assert np.allclose(y[:, 3 * place : 3 * place + 3], mine, rtol=1e-5, atol=1e-6), one.name
    assert content["net_batchnorm0"].scale is None
    assert (content["net_batchnorm0"].epsilon, content["net_batchnorm0"].factor) == (1e-3, 0.2)
    (note,) = content.notes
    assert note.layer == "net_batchnorm0"
    assert "fix_gamma" in note.text


def test_a_module_computes_the_same(kept: dict[str, Any], tmp_path: Path) -> None:
    """The operator's own defaults, and arrays that only the symbol knows to be a layer's."""
    x = np.array(kept["x"]).reshape(kept["shape"])
    content = weights.read(tmp_path / "module-0007.params")
    assert list(content) == ["bn0", "bn1", "odd"]
    for one, y in zip(content.values(), kept["ys"], strict=True):
        assert np.allclose(evaluated(one, x), y, rtol=1e-5, atol=1e-6)
    assert [one.epsilon for one in content.values()] == [1e-3, 2e-5, 1e-3]
    assert [one.factor for one in content.values()] == [0.1, 0.3, 0.1]
    assert content["bn0"].scale is None, "fix_gamma is what operators have by default"


def test_arrays_alone(kept: dict[str, Any], tmp_path: Path) -> None:
    """Without a symbol all arrays are taken as they stand, and a note says what may be otherwise."""
    content = weights.read(tmp_path / "gluon.params")
    assert list(content) == ["plain", "bare", "relu", "sync", "inner.bn"]
    exported = weights.read(tmp_path / "exported-0000.params")
    for one, same in zip(content.values(), exported.values(), strict=True):
        assert one.epsilon is None
        assert one.scale is not None
        for role, array in same.arrays.items():
            assert same_bits(one.arrays[role], array)
    assert "gluon-symbol.json" in content.notes[0].text
    (alone,) = weights.read(tmp_path / "v3.params").values()
    assert (alone.name, alone.channels, alone.convention) == ("", 2, "mxnet")


def test_older_versions_of_arrays(tmp_path: Path) -> None:
    """Arrays of every version in one file, sparse and missing ones between."""
    (one,) = weights.read(laid(tmp_path, samples()[1])).values()
    assert one.name == "bn"
    assert [array.tolist() for array in one.arrays.values()] == [[5, 6], [1, 2], [3, 4], [1, 2]]
    assert (one.epsilon, one.factor) == (2e-5, 0.3)


def test_version_2_writes_npz_by_the_same_name(tmp_path: Path) -> None:
    """Its save_parameters makes .npz archives that are called .params."""
    with (tmp_path / "a.params").open("wb") as file:
        np.savez(
            file, **{f"features.0.{name}": np.ones(3) for name in ("gamma", "beta", "running_mean", "running_var")}
        )
    content = weights.read(tmp_path / "a.params")
    assert (content.format, content["features.0"].convention) == ("npz", "mxnet")


def test_only_the_values_of_a_model_change(kept: dict[str, Any], tmp_path: Path) -> None:
    before = (tmp_path / "exported-0000.params").read_bytes()
    given = [layer(name, 3, seed=seed) for seed, name in enumerate(weights.read(tmp_path / "exported-0000.params"))]
    report = weights.write(tmp_path / "new-0000.params", given, into=tmp_path / "exported-0000.params")
    after = (tmp_path / "new-0000.params").read_bytes()
    assert len(after) == len(before)
    changed = {at // 4 for at, (one, other) in enumerate(zip(before, after, strict=True)) if one != other}
    assert len(changed) <= (5 * 4 - 1) * 3 * 2, "at most both words that an element lies across"
    lost = [str(note) for note in report.notes if note.lost]
    assert lost == ["net_batchnorm0: scale counts as 1: fix_gamma in exported-symbol.json"]
    other = [weights.renamed(layer(channels=3, epsilon=0.5, factor=0.25, scale=None), "net_batchnorm0")]
    report = weights.write(tmp_path / "other.params", other, into=tmp_path / "exported-0000.params")
    assert [str(note)[:47] for note in report.notes] == [
        "net_batchnorm0: epsilon is 0.5, and 0.001 in ex",
        "net_batchnorm0: factor is 0.25, and 0.2 in expo",
    ]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        pytest.param({"bn_running_mean": rows([1]), "bn_running_var": first([1])}, "sparse", id="sparse"),
        pytest.param({"bn_running_mean": first([1]), "bn_running_var": none()}, None, id="never used"),
        pytest.param({"arg:x": first([1]), "x": first([1])}, "two arrays of the name 'x'", id="twice"),
        pytest.param({"x": struct.pack("<Iii", 0xF993FAC9, 9, 0)}, "storage is 9", id="storage"),
        pytest.param({"x": struct.pack("<II", 33, 1)}, "33 axes", id="axes"),
        pytest.param({"x": struct.pack("<Iiq2ii", 0xF993FAC8, 1, 2**62, 1, 0, 0)}, "would take", id="declared"),
        pytest.param({"x": struct.pack("<Iiq2ii", 0xF993FAC8, 1, -1, 1, 0, 0)}, "has shape", id="negative"),
        pytest.param({"x": struct.pack("<Iiq2ii", 0xF993FAC8, 1, 1, 1, 0, 99)}, "type 99", id="type"),
    ],
)
def test_what_is_refused(arrays: dict[str, bytes], told: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.params").write_bytes(listed(arrays))
    if told is None:
        assert not weights.read(tmp_path / "a.params")
        return
    with pytest.raises(WeightsError, match=told):
        weights.read(tmp_path / "a.params")


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"attrs": {"eps": "nan"}}, "eps of 'bn' is nan"),
        ({"attrs": {"momentum": "1.5"}}, "momentum of 'bn'"),
        ({"inputs": [[0, 0, 0]]}, "no symbol"),
        ({"inputs": [[99, 0, 0]] * 5}, "inputs of 'bn'"),
        ({"attrs": [1]}, "no symbol"),
    ],
)
def test_a_damaged_symbol_is_told(node: dict[str, Any], told: str, tmp_path: Path) -> None:
    names = ["data", "bn_gamma", "bn_beta", "bn_moving_mean", "bn_moving_var"]
    (tmp_path / "a.params").write_bytes(listed({name: legacy([1]) for name in names[1:]}))
    nodes: list[dict[str, Any]] = [{"op": "null", "name": name, "inputs": []} for name in names]
    nodes.append({"op": "BatchNorm", "name": "bn", "inputs": [[place, 0, 0] for place in range(5)]} | node)
    (tmp_path / "a-symbol.json").write_text(json.dumps({"nodes": nodes}))
    with pytest.raises(WeightsError, match=told) as refused:
        weights.read(tmp_path / "a.params")
    assert "a-symbol.json" in str(refused.value)
    (tmp_path / "a-symbol.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"a-symbol\.json is damaged"):
        weights.read(tmp_path / "a.params")


def test_other_arrays_are_not_read(tmp_path: Path) -> None:
    """Sparse files are as large as they say: a model of 1 TB is read as fast as its small arrays."""
    size = 1 << 40
    head = struct.pack("<QQQ", 0x112, 0, 3) + struct.pack("<Iiq2ii", 0xF993FAC8, 1, size, 1, 0, 5)
    names = b"".join(struct.pack("<Q", len(name)) + name for name in (b"big", b"bn.running_mean", b"bn.running_var"))
    path = tmp_path / "large.params"
    with path.open("wb") as file:
        file.write(head)
        file.seek(size, 1)
        file.write(first([1, 2]) + first([3, 4]) + struct.pack("<Q", 3) + names)
    (one,) = weights.read(path).values()
    assert one.mean is not None
    assert one.mean.tolist() == [1, 2]
