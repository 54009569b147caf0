"""ncnn's .param and .bin: every layer that has weights, what its converter writes, and files that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import real_files
from layer_samples import layer

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are read by the host")
REAL = pytest.mark.parametrize("name", ["ncnn_pnnx", "ncnn_kinds"])
BN = "BatchNorm bn 1 1 x y 0=2 1=1e-5"


def net(folder: Path, *lines: str, content: bytes | None = None) -> Path:
    """A network of these layers, with weights of 32 bytes unless others are given."""
    path = folder / "net.param"
    path.write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""]))
    path.with_suffix(".bin").write_bytes(np.arange(1, 9, dtype="f4").tobytes() if content is None else content)
    return path


@REAL
def test_what_ncnn_computes_is_what_is_read(name: str, tmp_path: Path) -> None:
    """Behind 57 kinds and options of layers with weights, each of which ncnn itself has taken; and from pnnx."""
    path = real_files.unpacked(name, tmp_path)
    assert formats.of_file(path).name == "ncnn"
    content = weights.read(path)
    real_files.check(name, content)
    assert {one.convention for one in content.layers} == {"ncnn"}


@REAL
def test_a_copy_of_a_network_differs_in_the_values_alone(name: str, tmp_path: Path) -> None:
    path, target = real_files.unpacked(name, tmp_path), tmp_path / "new.param"
    content = weights.read(path)
    weights.write(target, content, into=path)
    assert target.read_bytes() == path.read_bytes()
    assert target.with_suffix(".bin").read_bytes() == path.with_suffix(".bin").read_bytes()
    given = [layer(one.name, one.channels, seed=4, epsilon=0.25) for one in content.layers]
    weights.write(target, given, into=path, overwrite=True)
    for one, back in zip(given, weights.read(target).layers, strict=True):
        assert back.epsilon == 0.25
        assert all(same_bits(back.arrays[role], array) for role, array in one.arrays.items())
    before, after = path.with_suffix(".bin").read_bytes(), target.with_suffix(".bin").read_bytes()
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= sum(16 * one.channels for one in given)
    lines = [
        [
            re.sub(r"\s1=\S+|\s+$", "", line) if line.startswith("BatchNorm") else line
            for line in one.read_text().split("\n")
        ]
        for one in (path, target)
    ]
    assert lines[0] == lines[1]


def test_epsilon_is_zero_unless_it_is_stated(tmp_path: Path) -> None:
    assert weights.read(net(tmp_path, "BatchNorm bn 1 1 x y 0=2"))["bn"].epsilon == 0
    (one,) = weights.read(net(tmp_path, BN)).layers
    assert one.epsilon == 1e-5
    assert [one.arrays[role].tolist() for role in ("scale", "mean", "var", "bias")] == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_a_variance_of_zero_is_what_ncnn_computes_with(tmp_path: Path) -> None:
    """A standard deviation of 0.0001, where epsilon is 0 too; and nothing else of the variance changes."""
    values = np.array([1, 1, 0, 0, 0, 4, 0, 0], "f4")
    content = weights.read(net(tmp_path, "BatchNorm bn 1 1 x y 0=2", content=values.tobytes()))
    assert np.sqrt(content["bn"].arrays["var"]).tolist() == pytest.approx([1e-4, 2])
    assert "variance is 0 in 1 channels" in str(content.notes[0])
    content = weights.read(net(tmp_path, BN, content=values.tobytes()))
    assert content["bn"].arrays["var"].tolist() == [0, 4]
    assert not content.notes
    zero = layer("bn", 2, epsilon=0.0, var=np.zeros(2, "f4"))
    report = weights.write(tmp_path / "zero.param", [zero])
    assert any(note.lost and note.text.startswith("var is 0") for note in report.notes)


def test_what_has_no_place_is_told(tmp_path: Path) -> None:
    given = [layer("a b", factor=0.1, epsilon=1e-5), layer("", cumulative=True), layer("n" * 400)]
    report = weights.write(tmp_path / "net.param", given)
    assert list(weights.read(tmp_path / "net.param")) == ["a_b", "bn", "n" * 251]
    told = [str(note) for note in report.notes]
    assert sum("is called" in text for text in told) == 3
    assert sum("knows nothing" in text for text in told) == 2
    assert sum("epsilon is not known" in text for text in told) == 2
    assert [path.name for path in report.files] == ["net.param", "net.bin"]
    with pytest.raises(WeightsError, match="two layers"):
        weights.write(tmp_path / "twice.param", [layer("a b"), layer("a_b")])
    with pytest.raises(WeightsError, match=r"name the \.param"):
        weights.write(tmp_path / "net2.bin", [layer()], format="ncnn")
    for epsilon in (-1.0, float("nan"), float("inf")):
        with pytest.raises(WeightsError, match="epsilon"):
            weights.write(tmp_path / "odd.param", [layer(epsilon=epsilon)])


def test_a_layer_that_nobody_knows(tmp_path: Path) -> None:
    """Before a batch normalization it is an error that names it; behind the last it does not matter."""
    with pytest.raises(WeightsError, match="MyOwn 'own' of line 3") as caught:
        weights.read(net(tmp_path, "MyOwn own 1 1 x y 0=3", BN))
    assert str(tmp_path / "net.param") in str(caught.value)
    assert list(weights.read(net(tmp_path, BN, "MyOwn own 1 1 x y 0=3", content=bytes(1000)))) == ["bn"]
    with pytest.raises(WeightsError, match="quantized in blocks"):
        weights.read(net(tmp_path, "Gemm g 1 1 x y 5=1 8=4 9=4 18=400", BN))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        pytest.param(["Scale s 1 1 x y 0=99", BN], "cut off", id="more than there is"),
        pytest.param(["PReLU s 1 1 x y 0=1", BN], "cut off", id="the batch norm is cut"),
        pytest.param(["BatchNorm bn 1 1 x y 0=1"], "do not fit", id="more bytes than layers"),
        pytest.param(["BatchNorm bn 1 1 x y 0=-2"], "-8 numbers|-2 numbers", id="a negative size"),
        pytest.param(["BatchNorm bn 1 1 x y 0=abc"], "'abc'", id="no number"),
        pytest.param(["BatchNorm bn 1 1 x y 0=2 1=nan"], "'nan'", id="an epsilon that is none"),
        pytest.param(["BatchNorm bn 1 1 x y 0=999999999999999"], "cut off", id="a huge size"),
        pytest.param(["BatchNorm bn 9 1 x y 0=2"], "lacks the names", id="blobs that are not there"),
        pytest.param(["BatchNorm bn one 1 x y 0=2"], "no layer", id="no counts"),
        pytest.param(["BatchNorm"], "no layer", id="half a line"),
        pytest.param([f"Concat c 140000 1{' x' * 140_001}"], "no layer", id="a long line"),
        pytest.param(["LSTM l 1 1 x y 0=0 1=9", BN], "0 outputs", id="a division by 0"),
        pytest.param(["MultiHeadAttention l 1 1 x y 0=0 2=9", BN], "0 wide", id="another one"),
    ],
)
def test_networks_that_are_wrong(lines: list[str], told: str, tmp_path: Path) -> None:
    path = net(tmp_path, *lines)
    with pytest.raises(WeightsError, match=told) as caught:
        weights.read(path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    path = net(tmp_path, BN)
    path.with_suffix(".bin").unlink()
    with pytest.raises(WeightsError, match="not beside it"):
        weights.read(path)
    path.write_text("7767517\n3 3\n" + BN)
    with pytest.raises(WeightsError, match="states 3 layers, and 1 follow"):
        weights.read(path)
    path.write_bytes((7767517).to_bytes(4, "little") + bytes(20))
    with pytest.raises(WeightsError, match="binary form"):
        weights.read(path)
    path.write_text("7767517\n")
    with pytest.raises(WeightsError, match="first line"):
        weights.read(path, format="ncnn")
    path.write_text(" ")
    with pytest.raises(WeightsError, match="first line"):
        weights.read(path, format="ncnn")
