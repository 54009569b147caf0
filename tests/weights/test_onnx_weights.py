"""ONNX: every version of the operator, the ways in which its inputs come, what is written, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import real_onnx
from layer_samples import layer
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from sample_onnx import (
    NAMES,
    VALUES,
    constants,
    external,
    in_branches,
    in_functions,
    info,
    model,
    node,
    samples,
    tensor,
    through_nodes,
    typed,
)

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.formats import onnxgraph
from oclbn.files.layers import Layer, same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")
ROLES = dict(zip(("scale", "bias", "mean", "var"), NAMES, strict=True))


def saved(folder: Path, made: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path


def agrees(one: Layer, values: dict[str, Any] = VALUES) -> bool:
    return all(np.array_equal(one.arrays[role], values[name]) for role, name in ROLES.items())


def evaluated(one: Layer, x: Any) -> Any:
    """What the layer makes of x (N, C, H, W) by its running statistics, in float64."""
    scale, bias, mean, var = (one.arrays[role].astype(np.float64)[:, None, None] for role in ROLES)
    return (x - mean) / np.sqrt(var + one.epsilon) * scale + bias


@pytest.mark.parametrize(
    ("opset", "given", "trains"),
    [
        pytest.param(1, {"consumed_inputs": [0, 0, 0, 1, 1], "is_test": 1}, False, id="1"),
        pytest.param(1, {"consumed_inputs": [0, 0, 0, 1, 1]}, True, id="1 without is_test"),
        pytest.param(6, {"is_test": 1, "spatial": 1}, False, id="6"),
        pytest.param(6, {}, True, id="6 without is_test"),
        pytest.param(7, {"spatial": 1}, False, id="7"),
        pytest.param(7, {"outputs": 5}, True, id="7 with five outputs"),
        pytest.param(9, {}, False, id="9"),
        pytest.param(9, {"outputs": 5}, True, id="9 with five outputs"),
        pytest.param(14, {"training_mode": 0}, False, id="14"),
        pytest.param(14, {"training_mode": 1, "outputs": 3}, True, id="14 in training"),
        pytest.param(15, {}, False, id="15"),
        pytest.param(15, {"training_mode": 1, "outputs": 3}, True, id="15 in training"),
        pytest.param(22, {}, False, id="22"),
    ],
)
def test_every_version_of_the_operator(opset: int, given: dict[str, Any], trains: bool, tmp_path: Path) -> None:
    attributes = {key: value for key, value in given.items() if key != "outputs"}
    made = node(epsilon=2e-4, momentum=0.98, **attributes)
    made.output.extend(f"o{index}" for index in range(1, given.get("outputs", 1)))
    content = weights.read(saved(tmp_path, model([made], constants(), opset)))
    one = content["net.bn1"]
    assert agrees(one)
    assert (one.epsilon, one.factor, one.convention) == (2e-4, 0.02, "onnx"), "as decimals, not as float32 has them"
    assert [note.layer for note in content.notes] == ["net.bn1"] * trains


def test_defaults_are_those_of_the_standard(tmp_path: Path) -> None:
    one = weights.read(saved(tmp_path, model([node()], constants())))["net.bn1"]
    assert (one.epsilon, one.factor, one.cumulative, one.batches) == (1e-5, 0.1, False, None)


def test_each_place_of_an_image_by_itself_is_no_batch_normalization(tmp_path: Path) -> None:
    """spatial=0 has a mean for each element of (C, H, W); for (N, C) it means nothing else than spatial=1."""
    wide = {name: np.ones((3, 4, 4), "f4") for name in NAMES}
    flat = node(prefix="flat.", y="z", spatial=0)
    tensors = [*constants(values=wide), *constants("flat.")]
    made = model([node(spatial=0), flat], tensors, 7, outputs=[info("y"), info("z")])
    content = weights.read(saved(tmp_path, made))
    assert [*content] == ["flat"]
    assert "spatial is 0" in str(content.notes[0])


def test_inputs_come_through_constants_and_identities(tmp_path: Path) -> None:
    one = weights.read(saved(tmp_path, through_nodes()))["net.bn1"]
    assert agrees(one)
    assert (one.epsilon, one.factor) == (1e-3, 0.25)


def test_nodes_in_branches_and_functions(tmp_path: Path) -> None:
    content = weights.read(saved(tmp_path, in_branches()))
    assert {*content} == {"net.bn1", "own"}
    assert agrees(content["net.bn1"])
    assert agrees(content["own"], {name: array + 1 for name, array in VALUES.items()})
    content = weights.read(saved(tmp_path, in_functions()))
    assert [(one.name, one.epsilon) for one in content.values()] == [("first/one", 0.5), ("second/two", 0.25)]
    assert agrees(content["first/one"])
    assert agrees(content["second/two"], {name: array * 2 for name, array in VALUES.items()})


def test_elements_as_numbers(tmp_path: Path) -> None:
    """float16 and bfloat16 are the bits of int32_data; NaN of float_data keep theirs."""
    content = weights.read(saved(tmp_path, typed()))
    assert [one.arrays["mean"].dtype.name for one in content.values()] == ["float16", "bfloat16", "float32", "float64"]
    assert all(agrees(one) for one in content.values()), "the values fit into all of these"
    signalling = b"\x22\x0c" + np.array([0x7F800001, 0xFFC12345, 0], "<u4").tobytes()  # float_data, as it lies there
    odd = TensorProto.FromString(
        TensorProto(name="net.bn1.weight", data_type=1, dims=[3]).SerializeToString() + signalling
    )
    one = weights.read(saved(tmp_path, model([node()], [odd, *constants()[1:]])))["net.bn1"]
    assert one.arrays["scale"].view("u4").tolist() == [0x7F800001, 0xFFC12345, 0]


def test_initializers_that_are_inputs_as_well(tmp_path: Path) -> None:
    """Up to IR version 3 all are: what a caller may give instead is not in the file."""
    inputs = [info("x"), *(info(f"net.bn1.{name}", (3,)) for name in NAMES)]
    made = model([node()], constants(), 7, 3, inputs)
    path = saved(tmp_path, made)
    assert agrees(weights.read(path)["net.bn1"])
    del made.graph.initializer[3]
    content = weights.read(saved(tmp_path, made, "open.onnx"))
    assert content["net.bn1"].mean is None
    assert "var is an input of the model" in str(content.notes[0])
    del made.graph.initializer[0]
    content = weights.read(saved(tmp_path, made, "open.onnx"))
    assert not content
    assert "no layer: its scale is an input of the model" in str(content.notes[0])


def test_layers_of_an_old_model_part(tmp_path: Path) -> None:
    """Up to IR version 3 a new initializer has to be an input, too."""
    inputs = [info("x"), *(info(f"net.bn1.{name}", (3,)) for name in NAMES)]
    nodes = [node("x", "h", name="one"), node("h", "y", name="two", epsilon=0.5)]
    path, target = saved(tmp_path, model(nodes, constants(), 7, 3, inputs)), tmp_path / "new.onnx"
    assert [*weights.read(path)] == ["one", "two"], "of which neither alone has what the constants are called after"
    given = layer("one", 3, epsilon=1e-5, factor=0.1)
    weights.write(target, [given], into=path)
    onnx.checker.check_model(onnx.load(target), full_check=True)
    after = weights.read(target)
    assert same_bits(next(iter(after.values())).arrays["mean"], given.arrays["mean"])
    assert agrees([*after.values()][1])


@pytest.mark.parametrize("content", [real_onnx.TORCH_DYNAMO, real_onnx.TORCH_SCRIPT], ids=["dynamo", "script"])
def test_networks_of_pytorch(content: bytes, tmp_path: Path) -> None:
    """Modules' names, though equal parameters are one constant there; a module that is called twice is one layer."""
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    found = weights.read(path)
    assert [*found] == ["first", "block.1", "twice", "cum", "free"]
    first = {"scale": [1, 2, 3, 4], "bias": [5, 6, 7, 8], "mean": [-1, 0, 1, 2], "var": [0.5, 1, 1.5, 2]}
    assert {role: array.tolist() for role, array in found["first"].arrays.items()} == first
    assert [found[name].epsilon for name in found] == [1e-5, 1e-3, 1e-5, 1e-5, 1e-5]
    assert [found[name].factor for name in found] == [0.1, 0.1, 0.1, 0.0, 0.1]
    assert any("never move" in str(note) for note in found.notes if note.layer == "cum")
    assert found["free"].mean is None


def test_networks_of_tensorflow(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(real_onnx.TF)
    found = weights.read(path)
    assert [(one.name, one.epsilon) for one in found.values()] == [("model/bn_a", 1e-3), ("model/bn_b", 1e-4)]
    assert found["model/bn_b"].arrays["scale"].tolist() == [1, 1, 1], "which scale=False is in the file"
    assert found["model/bn_a"].arrays["var"].tolist() == [np.float32(one) for one in (0.54133868, 1.6302697, 1.307215)]


@pytest.mark.parametrize("content", [real_onnx.TORCH_DYNAMO, real_onnx.TORCH_SCRIPT], ids=["dynamo", "script"])
def test_layers_that_share_constants_part_when_they_get_others(content: bytes, tmp_path: Path) -> None:
    path, target = tmp_path / "net.onnx", tmp_path / "new.onnx"
    path.write_bytes(content)
    rng = np.random.default_rng(0)
    found = weights.read(path)
    given = [
        replace(one, epsilon=0.01, factor=0.5, **{role: rng.uniform(1, 2, 4).astype("f4") for role in one.arrays})
        for one in found.values()
    ]
    assert not weights.write(target, given, into=path).notes
    made = onnx.load(target)
    onnx.checker.check_model(made, full_check=True)
    back = weights.read(target)
    assert [*back] == [*found]
    for one in given:
        assert (back[one.name].epsilon, back[one.name].factor) == (0.01, 0.5)
        assert all(same_bits(array, back[one.name].arrays[role]) for role, array in one.arrays.items())
    x = rng.normal(size=(2, 4, 3, 3)).astype("f4")
    h = evaluated(given[1], np.maximum(evaluated(given[0], x), 0))
    h = np.maximum(evaluated(given[2], np.maximum(evaluated(given[2], h), 0)), 0)
    h = np.maximum(evaluated(given[3], h), 0)
    batch = replace(given[4], mean=h.mean((0, 2, 3)), var=h.var((0, 2, 3)))
    (y,) = ReferenceEvaluator(made).run(["y"], {"x": x})
    assert np.abs(y - evaluated(batch, h)).max() < 1e-4


def test_one_layer_of_several_is_replaced(tmp_path: Path) -> None:
    """The others keep their values, though they share all four constants with it."""
    path, target = tmp_path / "net.onnx", tmp_path / "new.onnx"
    path.write_bytes(real_onnx.TORCH_DYNAMO)
    before = weights.read(path)
    weights.write(target, [layer("twice", 4)], into=path)
    after = weights.read(target)
    for name in ("first", "block.1", "cum"):
        assert all(same_bits(array, after[name].arrays[role]) for role, array in before[name].arrays.items())
    assert same_bits(after["twice"].arrays["scale"], layer("twice", 4).arrays["scale"])


def test_other_values_take_the_type_and_the_place_of_the_models(tmp_path: Path) -> None:
    """Constants of nodes and initializers of a graph around; what has no place, or another type, is told."""
    path, target = saved(tmp_path, through_nodes()), tmp_path / "new.onnx"
    before = onnx.load(path)
    given = layer("net.bn1", 3, epsilon=0.5, factor=0.125)
    assert not weights.write(target, [given], into=path).notes
    made = onnx.load(target)
    onnx.checker.check_model(made, full_check=True)
    assert [one.op_type for one in made.graph.node] == [one.op_type for one in before.graph.node]
    x = np.ones((1, 3, 1, 1), "f4")
    assert np.allclose(ReferenceEvaluator(made).run(None, {"x": x})[0], evaluated(given, x), atol=1e-5)
    path = saved(tmp_path, in_branches())
    weights.write(target, [given], into=path, overwrite=True)
    after = weights.read(target)
    assert same_bits(after["net.bn1"].arrays["var"], given.arrays["var"])
    assert agrees(after["own"], {name: array + 1 for name, array in VALUES.items()})
    report = weights.write(target, [layer("half", 3, "float64")], into=saved(tmp_path, typed()), overwrite=True)
    assert [note.text.split(" from")[0] for note in report.notes] == [f"{role} is rounded" for role in ROLES]
    shared = {f"{prefix}{role}" for prefix in ("half.", "brain.") for role in NAMES}
    kept = {one.name: one.SerializeToString() for one in onnx.load(target).graph.initializer if one.name not in shared}
    assert all(one.SerializeToString() == kept[one.name] for one in typed().graph.initializer if one.name in kept)


def test_a_function_that_is_called_twice(tmp_path: Path) -> None:
    """Constants that its calls give it are replaced; what lies in it belongs to both calls."""
    path, target = saved(tmp_path, in_functions()), tmp_path / "new.onnx"
    report = weights.write(target, [layer("second/two", 3, epsilon=0.125)], into=path)
    assert "epsilon stays 0.25" in str(report.notes[0])
    after = weights.read(target)
    assert agrees(after["first/one"])
    assert same_bits(after["second/two"].arrays["mean"], layer("second/two", 3).arrays["mean"])
    made = in_functions()
    (body,) = made.functions
    body.node.insert(0, helper.make_node("Constant", [], ["inside"], value=tensor("", VALUES["bias"])))
    body.node[1].input[2] = "inside"
    path = saved(tmp_path, made)
    assert agrees(weights.read(path)["first/one"])
    with pytest.raises(WeightsError, match="lies in a function of the model"):
        weights.write(target, [layer("first/one", 3)], into=path, overwrite=True)


def test_names(tmp_path: Path) -> None:
    """What four constants have in common, then the node's name, then its output's; never one name twice."""
    prefixes = ["a.b.", "model/bn/", "conv1_bn_", "onnx::BatchNormalization_"]
    nodes = [node(f"x{i}", f"y{i}", prefix, f"node{i}") for i, prefix in enumerate(prefixes)]
    tensors = [one for prefix in prefixes for one in constants(prefix)]
    for index, name in enumerate(NAMES):  # numbered by an exporter: no name
        nodes[3].input[1 + index] = f"c_{index}"
        tensors.append(tensor(f"c_{index}", VALUES[name]))
    nodes += [node("x4", "out", "c_", ""), node("x5", "y5", "a.b.", "again", epsilon=0.5)]
    for index, name in enumerate(NAMES):
        nodes[4].input[1 + index] = f"d{name}"
        tensors.append(tensor(f"d{name}", VALUES[name]))
    ends = [[info(one.input[0]) for one in nodes], [info(one.output[0]) for one in nodes]]
    made = model(nodes, tensors, inputs=ends[0], outputs=ends[1])
    assert [*weights.read(saved(tmp_path, made))] == ["node0", "model/bn", "conv1_bn", "node3", "out", "again"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_what_is_written_is_a_model(dtype: str, tmp_path: Path) -> None:
    """The checker finds nothing, and the reference evaluator gives what the layers are."""
    path = tmp_path / "new.onnx"
    given = [layer("a.bn", 3, dtype, epsilon=1e-3, factor=0.1), layer("b.bn", 2, dtype, 1, epsilon=0.5, factor=0.1)]
    assert not weights.write(path, given).notes
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    assert path.read_bytes() == dict(formats.by_name("onnx").codec().write(given, "new.onnx", None).files)["new.onnx"]
    kind = given[0].arrays["scale"].dtype
    feeds = {f"{one.name}.input": np.ones((1, one.channels, 2, 2), kind) for one in given}
    if dtype != "bfloat16":  # which the evaluator computes in itself, step by step
        for one, y in zip(given, ReferenceEvaluator(made).run(None, feeds), strict=True):
            assert y.dtype == kind
            assert np.allclose(y.astype("f8"), evaluated(one, 1.0), atol={"float16": 2e-2}.get(dtype, 1e-5))


def test_numbers_that_float32_does_not_hold_are_told(tmp_path: Path) -> None:
    path = tmp_path / "new.onnx"
    told = weights.write(path, [layer(epsilon=1 / 3, factor=1e-9)]).notes
    assert [note.text.split(" ")[0] for note in told] == ["epsilon", "a"]
    assert "0.3333333333333333 to 0.33333334" in told[0].text
    assert "0.0 is what a momentum" in told[1].text
    (note,) = weights.write(path, [layer(epsilon=1e-5, cumulative=True)], overwrite=True).notes
    assert "all batches weigh alike" in note.text
    (note,) = weights.write(path, [layer()], overwrite=True).notes
    assert not note.lost
    assert "epsilon is not known" in note.text
    with pytest.raises(WeightsError, match="two layers have the name"):
        weights.write(path, [layer(), layer()], overwrite=True)
    with pytest.raises(WeightsError, match="no Unicode text"):
        weights.write(path, [layer("\ud800")], overwrite=True)


@pytest.mark.parametrize(
    ("scale", "others", "stored"),
    [
        ("float32", "float16", ["float32", "float32", "float16", "float16"]),
        ("float64", "float32", ["float64"] * 4),
        ("bfloat16", "float16", ["float32", "float32", "float16", "float16"]),
        ("bfloat16", "float32", ["float32"] * 4),
        ("float16", "bfloat16", ["float32"] * 4),
    ],
)
def test_layers_of_mixed_types(scale: str, others: str, stored: list[str], tmp_path: Path) -> None:
    """Scale and bias are of one type, mean and variance of one; other mixtures than float16 and float32 are of one."""
    path = tmp_path / "new.onnx"
    given = replace(layer(dtype=others, epsilon=1e-5, factor=0.1), scale=layer(dtype=scale).scale)
    assert not weights.write(path, [given]).notes
    onnx.checker.check_model(onnx.load(path), full_check=True)
    back = weights.read(path)["net.bn1"]
    assert [array.dtype.name for array in back.arrays.values()] == stored
    assert all(same_bits(back.arrays[role].astype(array.dtype), array) for role, array in given.arrays.items())


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    """They are read, and the file goes with a copy of the model."""
    files = external()
    made = onnx.ModelProto.FromString(files["external.onnx"])
    made.graph.initializer.add().CopyFrom(made.graph.initializer[0])  # of a layer of another kind
    made.graph.initializer[-1].name = "other"
    for name, content in {**files, "external.onnx": made.SerializeToString()}.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "external.onnx"
    assert agrees(weights.read(path)["net.bn1"])
    new = tmp_path / "new"
    new.mkdir()
    given = layer("net.bn1", 3, bias=None, epsilon=1e-5, factor=0.1)
    report = weights.write(new / "copy.onnx", [given], into=path)
    assert [one.name for one in report.files] == ["copy.onnx", "copy.onnx.data"]
    assert (new / "copy.onnx.data").read_bytes() == files["beside.bin"]
    back = weights.read(new / "copy.onnx")["net.bn1"]
    assert same_bits(back.arrays["var"], given.arrays["var"])
    assert (back.arrays["bias"] == 0).all(), "which a missing one stands for"
    onnx.checker.check_model(str(new / "copy.onnx"), full_check=True)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("location", "../beside.bin", "the name of a file beside it"),
        ("location", "/etc/hostname", "the name of a file beside it"),
        ("location", "", "the name of a file beside it"),
        ("location", "..", "the name of a file beside it"),
        ("location", "other.bin", "no such file"),
        ("location", "link.bin", "a link that leads elsewhere"),
        ("offset", "-4", "are said to be at byte -4"),
        ("offset", "45", "are said to be at byte 45"),
        ("offset", "9" * 30, "are said to be"),
        ("length", "13", "13 are said to be"),
        ("length", "x", "x are said to be"),
    ],
)
def test_weights_elsewhere_are_refused(key: str, value: str, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    files = external()
    (folder / "beside.bin").write_bytes(files["beside.bin"])
    (tmp_path / "beside.bin").write_bytes(files["beside.bin"])
    (folder / "link.bin").symlink_to(tmp_path / "beside.bin")
    made = onnx.ModelProto.FromString(files["external.onnx"])
    for entry in made.graph.initializer[2].external_data:
        if entry.key == key:
            entry.value = value
    with pytest.raises(WeightsError, match=told):
        weights.read(saved(folder, made))


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    """The model and its weights are both links into one folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, (name, content) in enumerate(external().items()):
        (blobs / str(number)).write_bytes(content)
        (snapshot / name).symlink_to(blobs / str(number))
    assert agrees(weights.read(snapshot / "external.onnx")["net.bn1"])


def test_models_that_do_harm_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(made: onnx.ModelProto | bytes, told: str) -> None:
        path = tmp_path / "bad.onnx"
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        with pytest.raises(WeightsError, match=told) as caught:
            weights.read(path, format="onnx")
        assert str(path) in str(caught.value)

    circle = [helper.make_node("Identity", [a], [b]) for a, b in (("p", "q"), ("q", "p"))]
    names = {one.name: one for one in constants()}
    looped = node()
    looped.input[1] = "p"
    refused(model([*circle, looped], constants()[1:]), "'[pq]' is made from itself, or leads")
    huge = TensorProto(name="net.bn1.weight", data_type=1, dims=[1 << 40, 1 << 40], raw_data=b"1234")
    refused(model([node()], [huge, *constants()[1:]]), "4 bytes; ")
    below = TensorProto(name="net.bn1.weight", data_type=1, dims=[-1, -3], raw_data=b"123456789012")
    refused(model([node()], [below, *constants()[1:]]), "has shape")
    text = TensorProto(name="net.bn1.weight", data_type=TensorProto.STRING, dims=[3], string_data=[b"a", b"b", b"c"])
    refused(model([node()], [text, *constants()[1:]]), "holds STRING; FLOAT")
    names["net.bn1.bias"].dims[:] = [1, 3]
    refused(model([node()], [*names.values()]), r"bias \(1, 3\)")
    # Functions that each call the next one twice: 2 ** 30 nodes.
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("f", 1)]
    bodies = []
    for level in range(30):
        nodes = [helper.make_node(f"f{level + 1}", ["a"], [f"b{index}"], domain="f") for index in range(2)]
        bodies.append(helper.make_function("f", f"f{level}", ["a"], ["b0"], nodes, opsets))
    bodies.append(
        helper.make_function("f", "f30", ["a"], ["b0"], [helper.make_node("Identity", ["a"], ["b0"])], opsets)
    )
    monkeypatch.setattr(onnxgraph, "_MOST_NODES", 10_000)
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="f")], "g", [], [])
    refused(helper.make_model(graph, functions=bodies), "more than 10,000 nodes")
    itself = helper.make_function("f", "f0", ["a"], ["b"], [helper.make_node("f0", ["a"], ["b"], domain="f")], opsets)
    refused(helper.make_model(graph, functions=[itself]), "nested too deeply")
    # Empty nodes of two bytes each, which take a hundred in memory; and graphs in attributes in nodes in graphs.
    monkeypatch.setattr(onnxgraph, "_MOST_FIELDS", 10_000)
    refused(b"\x08\x08\x3a" + _varint(40_000) + b"\x0a\x00" * 20_000, "more than 10,000 parts")
    deep = b""
    for _ in range(200):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            deep = tag + _varint(len(deep)) + deep
    refused(b"\x08\x08\x3a" + _varint(len(deep)) + deep, "nested too deeply")
    with (tmp_path / "large.onnx").open("wb") as file:
        file.write(b"\x08\x08\x3a")
        file.truncate(1 << 31)
    with pytest.raises(WeightsError, match="2,147,483,648 bytes"):
        weights.read(tmp_path / "large.onnx")


def _varint(number: int) -> bytes:
    content = b""
    while number > 127:
        content += bytes([number & 127 | 128])
        number >>= 7
    return content + bytes([number])


def test_constants_that_many_read_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer takes a hundred bytes of a file, and a constant of any size, by name or by its place in another file."""
    monkeypatch.setattr(onnxgraph, "_LEAST_ROOM", 0)
    large = {name: np.ones(1000, "f4") for name in NAMES}
    nodes = [node(f"x{index}", f"y{index}", epsilon=0.25 + index) for index in range(100)]
    path = saved(tmp_path, model(nodes[:5], constants(values=large)))
    first, second, *_ = weights.read(path).values()
    assert first.mean is not None
    first.mean[:] = 2
    assert agrees(second, large), "layers do not share memory"
    with pytest.raises(WeightsError, match="far more than its size"):
        weights.read(saved(tmp_path, model(nodes, constants(values=large))))
    (tmp_path / "beside.bin").write_bytes(np.ones(1000, "f4").tobytes())
    made = onnx.ModelProto.FromString(external()["external.onnx"])
    for index, one in enumerate([*made.graph.initializer]):
        one.dims[:] = [1000]
        one.external_data[1].value, one.external_data[2].value = "0", "4000"
        for number in range(2, 40):
            again = made.graph.initializer.add()
            again.CopyFrom(one)
            again.name = f"net.bn{number}.{NAMES[index]}"
    made.graph.node.extend(node(f"x{number}", f"y{number}", f"net.bn{number}.") for number in range(2, 40))
    with pytest.raises(WeightsError, match="far more than its size"):
        weights.read(saved(tmp_path, made))


def test_names_that_all_layers_have_are_numbered(tmp_path: Path) -> None:
    nodes = [node("x", "y", name="y", epsilon=0.25 + index) for index in range(300)]
    found = weights.read(saved(tmp_path, model(nodes, constants())))
    assert [*found][:3] == ["y", "y#2", "y#3"]
    assert len(found) == 300


def test_other_files_of_protobuf_are_not_claimed() -> None:
    """A model of Core ML and a SavedModel begin with a version and a message as well."""
    claims = formats.by_name("onnx").codec().claims
    for files in samples():
        name, content = next(iter(files.items()))
        assert claims(Path(name), content[:4096])
        assert claims(Path("unnamed"), content[:4096])
    assert not claims(Path("x.mlmodel"), b"\x08\x04\x12\x08\x0a\x06\x0a\x01x\x12\x01y" + b"\xa2\x1f\x00")
    assert not claims(Path("saved_model.pb"), b"\x08\x01\x12\x04\x0a\x02\x0a\x00")
    assert not claims(Path("x.onnx"), b"")
