"""Caffe's .caffemodel: sums and their weight, a Scale behind or not, forks' blobs; and what is no such message."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_files
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from layer_samples import layer

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.formats import caffe, wire
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are read by the host")

# What is needed of caffe.proto: fields as (name, number, kind, repeated), a kind being a message of these or a letter.
SCHEMA = {
    "Shape": [("dim", 1, "i", True)],
    "Blob": [
        ("shape", 7, "Shape", False),
        ("data", 5, "f", True),
        ("double_data", 8, "d", True),
        ("num", 1, "i", False),
        ("channels", 2, "i", False),
        ("raw_data_type", 10, "i", False),
        ("raw_data", 12, "b", False),
    ],
    "BatchNorm": [
        ("use_global_stats", 1, "t", False),
        ("moving_average_fraction", 2, "f", False),
        ("eps", 3, "f", False),
    ],
    "Scale": [("bias_term", 4, "t", False)],
    "Input": [("shape", 1, "Shape", True)],
    "Layer": [
        ("name", 1, "s", False),
        ("type", 2, "s", False),
        ("bottom", 3, "s", True),
        ("top", 4, "s", True),
        ("blobs", 7, "Blob", True),
        ("batch_norm_param", 139, "BatchNorm", False),
        ("scale_param", 142, "Scale", False),
        ("input_param", 143, "Input", False),
    ],
    "Old": [("name", 4, "s", False)],
    "Net": [("name", 1, "s", False), ("layer", 100, "Layer", True), ("layers", 2, "Old", True)],
}


def schema() -> Any:
    """Messages of the schema, by protobuf itself."""
    file = descriptor_pb2.FileDescriptorProto(name="some.proto", package="c", syntax="proto2")
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {"i": field.TYPE_INT64, "f": field.TYPE_FLOAT, "d": field.TYPE_DOUBLE, "s": field.TYPE_STRING}
    kinds |= {"t": field.TYPE_BOOL, "b": field.TYPE_BYTES}
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for called, number, kind, repeated in fields:
            one = message.field.add(name=called, number=number, type=kinds.get(kind, field.TYPE_MESSAGE))
            one.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind not in kinds:
                one.type_name = f".c.{kind}"
            elif repeated and kind in "ifd":
                one.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("c.Net"))


Net = schema()


def add(net: Any, kind: str, bottom: str, top: str, *blobs: Any, **options: Any) -> Any:
    """A layer, named after what it gives; blobs as arrays."""
    one = net.layer.add(name=f"{kind}.{top}", type=kind, bottom=[bottom], top=[top])
    for blob in blobs:
        array = np.asarray(blob)
        there = one.blobs.add()
        there.shape.dim.extend(array.shape)
        (there.double_data if array.dtype == np.float64 else there.data).extend(array.ravel().tolist())
    for key, value in options.items():
        setattr(one.batch_norm_param, key, value)
    return one


def norm(net: Any, bottom: str = "x", top: str = "y", weight: float = 1, **options: Any) -> Any:
    return add(net, "BatchNorm", bottom, top, *np.float32([[1, 2], [3, 4]]), np.float32([weight]), **options)


def kept(folder: Path, net: Any) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(net if isinstance(net, bytes) else net.SerializeToString())
    return path


def test_what_opencv_computes_is_what_is_read(tmp_path: Path) -> None:
    """In place and not, with a Scale and without, one behind a ReLU that is none of it, and one that saw no batch."""
    path = real_files.unpacked("caffe_opencv", tmp_path)
    assert formats.of_file(path).name == "caffe"
    assert formats.of_file(path.rename(tmp_path / "bare")).name == "caffe", "told without its ending"
    content = weights.read(tmp_path / "bare")
    real_files.check("caffe_opencv", content)
    assert [tuple(one.arrays) for one in content.layers] == [
        ("scale", "bias", "mean", "var"),
        ("mean", "var"),
        ("scale", "mean", "var"),
        ("mean", "var"),
    ]
    assert [one.factor for one in content.layers] == [0.001, 0.01, 0.001, 0.001]
    assert [note.layer for note in content.notes] == ["bn4"]


def test_a_copy_of_a_network_differs_in_the_values_alone(tmp_path: Path) -> None:
    """Whatever else is in it, protobuf reads from the copy what it reads from the model."""
    path, target = real_files.unpacked("caffe_opencv", tmp_path), tmp_path / "new.caffemodel"
    there = weights.read(path)
    given = [layer(one.name, one.channels, seed=6, epsilon=0.5, factor=0.25) for one in there.layers]
    given = [
        weights.Layer(one.name, **{role: one.arrays[role] for role in there[one.name].arrays}, epsilon=0.5, factor=0.25)
        for one in given
    ]
    weights.write(target, given, into=path)
    for one, back in zip(given, weights.read(target).layers, strict=True):
        assert (back.epsilon, back.factor) == (0.5, 0.25)
        assert all(same_bits(back.arrays[role], array) for role, array in one.arrays.items())
    before, after = Net(), Net()
    before.ParseFromString(path.read_bytes())
    after.ParseFromString(target.read_bytes())
    for net in (before, after):
        for one in net.layer:
            if one.type in ("BatchNorm", "Scale") and one.name != "scale2":
                one.ClearField("blobs")
                assert not one.HasField("batch_norm_param") or one.batch_norm_param.use_global_stats
                one.ClearField("batch_norm_param")
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def test_a_copy_with_no_other_values_is_the_same_file(tmp_path: Path) -> None:
    net = Net(name="n")
    norm(net, weight=1024)
    path, target = kept(tmp_path, net), tmp_path / "new.caffemodel"
    weights.write(target, weights.read(path), into=path)
    assert target.read_bytes() == path.read_bytes()


def test_what_is_written_is_a_network(tmp_path: Path) -> None:
    """As a message and as text, by protobuf's own readers, with names of any letters."""
    given = [layer('a "b"\\é', epsilon=1e-3, factor=0.01), layer("plain", 3, "float64", scale=None, bias=None)]
    given.append(layer("c", bias=None))
    weights.write(tmp_path / "net.caffemodel", given)
    held, told = Net(), Net()
    held.ParseFromString((tmp_path / "net.caffemodel").read_bytes())
    text_format.Parse((tmp_path / "net.prototxt").read_text(), told)
    assert [one.type for one in held.layer] == [
        "Input",
        "BatchNorm",
        "Scale",
        "Input",
        "BatchNorm",
        "Input",
        "BatchNorm",
        "Scale",
    ]
    for one in held.layer:
        assert all(len(blob.data) + len(blob.double_data) == blob.shape.dim[0] for blob in one.blobs)
        one.ClearField("blobs")
        if not one.batch_norm_param.ByteSize():
            one.batch_norm_param.SetInParent()
    for one in told.layer:
        one.batch_norm_param.SetInParent()
    assert [str(one) for one in held.layer] == [str(one) for one in told.layer]


def test_averages_go_on_in_caffe(tmp_path: Path) -> None:
    """All batches together weigh about what they do in the long run, and nothing is rounded by that."""

    def weight(**given: Any) -> tuple[float, weights.Report]:
        report = weights.write(tmp_path / "n.caffemodel", [layer("bn", 4, **given)], overwrite=True)
        net = Net()
        net.ParseFromString((tmp_path / "n.caffemodel").read_bytes())
        return net.layer[1].blobs[2].data[0], report

    assert weight()[0] == 1024
    assert weight(factor=0.1)[0] == 8
    assert weight(factor=1.0)[0] == 1
    assert weight(factor=1e-9)[0] == 1 << 15
    assert weight(mean=np.float32([1e38, 0, 0, 0]))[0] == 1, "where it would overflow"
    assert weight(var=np.full(4, np.nan, "f4"))[0] in (1, 1024)
    number, report = weight(cumulative=True, batches=32)
    assert number == 32
    assert not report.notes[1:]
    (back,) = weights.read(tmp_path / "n.caffemodel").layers
    assert (back.cumulative, back.batches, back.factor) == (True, 32, None)
    number, report = weight(cumulative=True, batches=3)
    assert number in (3, 4)
    assert any("3 batches count as" in str(note) for note in report.notes) == (number == 4)
    assert any(note.lost and "cannot say" in note.text for note in weight(factor=0.0)[1].notes)
    for epsilon in (-1.0, float("nan"), 1e39):
        with pytest.raises(WeightsError, match="epsilon"):
            weight(epsilon=epsilon)


def test_the_weight_is_divided_out_as_caffe_does(tmp_path: Path) -> None:
    """By a product with the reciprocal, in float32; by 0 where there is none."""
    rng = np.random.default_rng(1)
    sums = rng.normal(size=(2, 100)).astype("f4")
    weight = np.float32(999.5)
    net = Net()
    add(net, "BatchNorm", "x", "y", *sums, np.array([weight]))
    (one,) = weights.read(kept(tmp_path, net)).layers
    wanted = sums * (np.float32(1) / weight)
    assert same_bits(one.arrays["mean"], wanted[0])
    assert not same_bits(wanted[0], sums[0] / weight), "which is another number"
    net = Net()
    norm(net, weight=0)
    content = weights.read(kept(tmp_path, net))
    assert content.layers[0].arrays["var"].tolist() == [0, 0]
    assert "no batch was seen" in str(content.notes[0])


def test_a_scale_belongs_to_the_batch_norm_that_it_follows(tmp_path: Path) -> None:
    """The first to take what a BatchNorm gives, in place or not; not one with two inputs, or of other channels."""
    gains = np.float32([[5, 6], [7, 8]])
    net = Net()
    norm(net, "a", "a")
    add(net, "Scale", "a", "a", *gains)
    norm(net, "a", "b")
    add(net, "ReLU", "b", "b")
    add(net, "Scale", "b", "b", *gains)
    norm(net, "b", "c")
    add(net, "Scale", "c", "d", np.float32([1, 2, 3]))
    norm(net, "d", "e")
    add(net, "Scale", "e", "f", gains[0]).bottom.append("a")
    norm(net, "f", "g")
    content = weights.read(kept(tmp_path, net))
    assert list(content) == [f"BatchNorm.{top}" for top in "abceg"]
    assert [one.scale is None for one in content.layers] == [False, True, True, True, True]
    assert content["BatchNorm.a"].arrays["bias"].tolist() == [7, 8]


def test_blobs_of_every_form(tmp_path: Path) -> None:
    """NVIDIA's five blobs and raw numbers of 16 bits, numbers that are not packed, float64, shapes of old."""
    net = Net()
    one = norm(net)
    for values in ([5, 6], [7, 8]):
        one.blobs.add(raw_data_type=2, raw_data=np.float16(values).tobytes())
    norm(net, "y", "z").blobs[0].channels = 2
    add(net, "BatchNorm", "z", "w", *np.float64([[1, 2], [3, 4]]), np.float64([2]))
    path = kept(tmp_path, net)
    loose = b"".join(wire.varint(5 << 3 | 5) + struct.pack("<f", value) for value in (1.5, 2.5))
    blobs = [wire.field(7, content) for content in (loose, loose, wire.field(5, struct.pack("<f", 1)))]
    path.write_bytes(path.read_bytes() + wire.field(100, wire.field(2, "BatchNorm") + b"".join(blobs)))
    first, _, third, fourth = weights.read(path).layers
    assert first.arrays["scale"].dtype == np.float16
    assert first.arrays["bias"].tolist() == [7, 8]
    assert third.arrays["mean"].tolist() == [0.5, 1]
    assert third.arrays["mean"].dtype == np.float64
    assert fourth.arrays["var"].tolist() == [1.5, 2.5]
    given = [layer(str(number), 2, seed=number) for number in range(4)]
    report = weights.write(tmp_path / "new.caffemodel", given, into=path)
    assert {note.text.split()[0] for note in report.notes if note.lost and note.layer == "0"} == {"scale", "bias"}
    assert {note.layer for note in report.notes if "has no place" in note.text} == {"1", "2", "3"}
    assert same_bits(weights.read(tmp_path / "new.caffemodel").layers[3].arrays["mean"], given[3].arrays["mean"])


def test_layers_without_blobs_or_of_old(tmp_path: Path) -> None:
    net = Net()
    net.layers.add(name="fc6")
    add(net, "BatchNorm", "x", "y")
    content = weights.read(kept(tmp_path, net))
    assert not content
    assert ["no blobs" in str(note) or "before 2014" in str(note) for note in content.notes] == [True, True]


BLOBS = b"".join(wire.field(7, wire.field(5, bytes(8))) for _ in range(2)) + wire.field(7, wire.field(5, bytes(4)))
KIND = wire.field(1, "bn") + wire.field(2, "BatchNorm")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(wire.field(100, KIND + BLOBS)[:-3], "bytes", id="cut off"),
        pytest.param(b"\xa2\x06\xff\xff\xff\xff\x0f", "bytes", id="gigabytes"),
        pytest.param(b"\xa2\x06" + b"\xff" * 11, "no end", id="a number without end"),
        pytest.param(b"\x0b\x0b\x0b", "kind 3", id="a group"),
        pytest.param(b"\x02\x00", "field 0", id="no number"),
        pytest.param(wire.field(100, b"") * 1_001, "layers", id="many layers"),
        pytest.param(wire.field(100, wire.field(1, "n") * 3_000), "fields", id="many fields"),
        pytest.param(wire.field(100, wire.field(1, "n" * 70_000)), "no name", id="a long name"),
        pytest.param(wire.field(100, wire.field(1, b"\xff\xfe")), "no text", id="a name of other letters"),
        pytest.param(wire.field(100, KIND + wire.field(7, b"")), "1 blobs", id="one blob"),
        pytest.param(wire.field(100, KIND + BLOBS[:-8] + wire.field(7, b"")), "0 numbers", id="no weight"),
        pytest.param(wire.field(100, KIND + wire.field(7, wire.field(5, bytes(7))) * 3), "part of", id="half a number"),
        pytest.param(
            wire.field(100, KIND + BLOBS + wire.field(139, wire.field(3, 7))), "no float", id="a whole epsilon"
        ),
        pytest.param(
            wire.field(100, KIND + BLOBS + wire.field(139, wire.field(3, float("nan")))), "nan as eps", id="epsilon NaN"
        ),
        pytest.param(
            wire.field(100, KIND + wire.field(7, wire.field(10, 9) + wire.field(12, bytes(4))) * 3),
            "type 9",
            id="no type",
        ),
        pytest.param(wire.field(100, KIND + BLOBS) * 2, "two layers", id="one name twice"),
    ],
)
def test_what_is_wrong_is_told(content: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MOST_FIELDS", 2_500)
    monkeypatch.setattr(caffe, "_MOST_LAYERS", 1_000)
    path = kept(tmp_path, content)
    with pytest.raises(WeightsError, match=told) as caught:
        weights.read(path, format="caffe")
    assert str(path) in str(caught.value)


def test_names_that_a_network_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="two layers"):
        weights.write(tmp_path / "a.caffemodel", [layer("a"), layer("a_scale")])
    with pytest.raises(WeightsError, match=r"name the \.caffemodel"):
        weights.write(tmp_path / "a.prototxt", [layer()], format="caffe")


def test_a_float_is_read_as_the_shortest_decimal() -> None:
    for number in (1e-5, 0.001, 0.999, 0.0, 3.4028235e38, 1e-45, 0.1 + 2**-20):
        assert np.float32(wire.shortest(float(np.float32(number)))) == np.float32(number)
    assert wire.shortest(float(np.float32(0.999))) == 0.999
