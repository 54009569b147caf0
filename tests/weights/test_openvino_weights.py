"""OpenVINO's IR: real files and what OpenVINO computes from them, constants that are shared, hostile XML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_samples import layer
from real_files import evaluated, real

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files.formats import openvino

pytestmark = pytest.mark.once(reason="files are the host's affair")
NAMES = ["old", "shared", "half", "branch/inner"]


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    return real("openvino", tmp_path)


def through(path: Path, kept: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What all layers of a file make of the input, one after the other."""
    y = np.array(kept["x"]).reshape(kept["shape"])
    for one in weights.read(path).values():
        y = evaluated(one, y)
    return y.ravel()


def test_real_files_compute_the_same(kept: dict[str, Any], tmp_path: Path) -> None:
    """opset1 has its inputs in another order; save_model has made halves of all constants."""
    for name, y in zip(("model.xml", "saved.xml"), kept["ys"], strict=True):
        content = weights.read(tmp_path / name)
        assert sorted(content) == sorted(NAMES)
        assert np.allclose(through(tmp_path / name, kept), y, rtol=1e-5, atol=1e-6)
    content = weights.read(tmp_path / "model.xml")
    assert [content[name].epsilon for name in NAMES] == [1e-3, 1e-2, 2e-5, 1e-3]
    assert content["half"].scale is not None
    assert content["half"].scale.dtype == np.float16
    assert content["half"].convention == "openvino"
    assert {one.dtype.name for one in weights.read(tmp_path / "saved.xml")["old"].arrays.values()} == {"float16"}


def test_what_is_no_layer_is_told(kept: dict[str, Any], tmp_path: Path) -> None:
    folded = weights.read(tmp_path / "folded.xml")
    assert not folded
    assert "convert_model folds" in folded.notes[0].text
    computed = weights.read(tmp_path / "computed.xml")
    assert not computed
    assert str(computed.notes[0]) == "computed: it is not read: scale is no constant, but computed by the network"


def test_layers_that_share_constants_get_their_own(kept: dict[str, Any], tmp_path: Path) -> None:
    """Const layers of two layers, and equal constants at one place of the .bin: other layers keep their values."""
    for one in NAMES:
        given = layer(one, 3, seed=5, epsilon=0.5)
        path = tmp_path / "new.xml"
        report = weights.write(path, [given], into=tmp_path / "model.xml", overwrite=True)
        assert [file.name for file in report.files] == ["new.xml", "new.bin"]
        before, after = weights.read(tmp_path / "model.xml"), weights.read(path)
        for name in NAMES:
            wanted = given if name == one else before[name]
            assert after[name].epsilon == wanted.epsilon
            for role, array in wanted.arrays.items():
                assert np.array_equal(after[name].arrays[role], array.astype(after[name].arrays[role].dtype)), name


def test_only_the_values_change_where_nothing_is_shared(kept: dict[str, Any], tmp_path: Path) -> None:
    given = weights.read(tmp_path / "model.xml")["half"]
    assert given.mean is not None
    given = layer("half", 3, **{**given.arrays, "mean": given.mean + np.float16(1)})
    weights.write(tmp_path / "new.xml", [given], into=tmp_path / "model.xml")
    assert (tmp_path / "new.xml").read_bytes() == (tmp_path / "model.xml").read_bytes()
    one, other = ((tmp_path / name).read_bytes() for name in ("model.bin", "new.bin"))
    assert 0 < sum(a != b for a, b in zip(one, other, strict=True)) <= 6


def test_names_and_types_that_are_written(tmp_path: Path) -> None:
    """What XML has signs for; a layer of several types takes the widest, behind a Convert."""
    names = ["a<b&\"'\t\n\r", "ä/ö", ""]
    mixed = layer("mixed", 3, mean=np.ones(3), scale=np.ones(3, np.float16))
    weights.write(tmp_path / "a.xml", [*(layer(name, 3) for name in names), mixed])
    content = weights.read(tmp_path / "a.xml")
    assert list(content) == [*names, "mixed"]
    assert [array.dtype.name for array in content["mixed"].arrays.values()] == [
        "float16",
        "float32",
        "float64",
        "float32",
    ]
    with pytest.raises(WeightsError, match="characters"):
        weights.write(tmp_path / "b.xml", [layer("a\0b")])
    with pytest.raises(WeightsError, match=r"ends in \.xml"):
        weights.write(tmp_path / "b.bin", [layer()], format="openvino")


def test_training_is_told_to_be_lost(tmp_path: Path) -> None:
    report = weights.write(tmp_path / "a.xml", [layer(factor=0.25)])
    assert "0.25" in report.notes[0].text
    assert report.notes[0].lost


BOMB = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE net SYSTEM "file:///etc/passwd">'


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda text: text.replace("<net", BOMB + "<net", 1), "DOCTYPE", id="entities"),
        pytest.param(lambda text: text.replace("<net", OUTSIDE + "<net", 1), "DOCTYPE", id="external"),
        pytest.param(lambda text: text.replace("<layers>", "<layers>" + "<a>" * 100_000, 1), "nested", id="deep"),
        pytest.param(lambda text: text.replace("</net>", ""), "no sound XML", id="cut off"),
        pytest.param(lambda text: text.replace('version="11"', 'version="7"', 1), "IR version 7", id="old"),
        pytest.param(lambda text: text.replace('id="1"', 'id="0"', 1), "two layers of id", id="ids"),
        pytest.param(lambda text: text.replace('offset="0"', 'offset="9999"'), "beyond the end", id="outside"),
        pytest.param(lambda text: text.replace('offset="0"', 'offset="-1"'), "a number is wanted", id="negative"),
        pytest.param(lambda text: text.replace('size="12"', f'size="{10**17}"'), "per channel", id="size"),
        pytest.param(lambda text: text.replace('shape="3"', 'shape="1,3"'), "per channel", id="shape"),
        pytest.param(lambda text: text.replace('element_type="f32"', 'element_type="i4"'), "type 'i4'", id="type"),
        pytest.param(
            lambda text: text.replace('destination_type="f32"', 'destination_type="i32"'), "of type", id="converted"
        ),
        pytest.param(lambda text: text.replace('epsilon="0.001"', 'epsilon="nan"'), "epsilon", id="epsilon"),
    ],
)
def test_hostile_descriptions(change: Any, told: str, kept: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(WeightsError, match=told) as refused:
        weights.read(path)
    assert str(path) in str(refused.value)


def test_a_circle_of_conversions_ends(kept: dict[str, Any], tmp_path: Path) -> None:
    text = (tmp_path / "model.xml").read_text()
    convert = re.findall(r'<layer id="(\d+)" name="\S+" type="Convert"', text)[0]
    edge = re.search(rf'<edge from-layer="\d+" from-port="0" to-layer="{convert}" to-port="0" />', text)
    assert edge is not None
    circle = re.sub(r'from-layer="\d+"', f'from-layer="{convert}"', edge[0])
    (tmp_path / "model.xml").write_text(text.replace(edge[0], circle))
    content = weights.read(tmp_path / "model.xml")
    assert "half" not in content
    assert content.notes[0].layer == "half"


def test_a_missing_companion_is_named(kept: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.bin").unlink()
    with pytest.raises(WeightsError, match=r"model\.bin, and there is no such file"):
        weights.read(tmp_path / "model.xml")


def test_other_xml_is_not_claimed() -> None:
    assert not openvino.claims(Path("a.xml"), b'<?xml version="1.0"?><html>')
    assert openvino.claims(Path("a.xml"), b'\xef\xbb\xbf<?xml version="1.0"?>\n<net name="a" version="11">')
