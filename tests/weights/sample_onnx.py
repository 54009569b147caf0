"""Sound ONNX files, for damaging: written here, and made by hand in the ways that other writers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from layer_samples import layer
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from oclbn.files.formats import onnx

F = TensorProto.FLOAT
NAMES = ("weight", "bias", "running_mean", "running_var")
VALUES = {
    "weight": np.array([1.5, 0.75, -2], "f4"),
    "bias": np.array([0.25, -1, 3], "f4"),
    "running_mean": np.array([0.5, 10, -0.125], "f4"),
    "running_var": np.array([2, 0.5, 1.25], "f4"),
}


def tensor(name: str, array: Any, **given: Any) -> TensorProto:
    return TensorProto(
        name=name, data_type=F, dims=np.shape(array), raw_data=np.asarray(array, "<f4").tobytes(), **given
    )


def constants(prefix: str = "net.bn1.", values: dict[str, Any] = VALUES) -> list[TensorProto]:
    return [tensor(prefix + name, values[name]) for name in NAMES]


def node(x: str = "x", y: str = "y", prefix: str = "net.bn1.", name: str = "node", **given: Any) -> NodeProto:
    inputs = [prefix + one for one in NAMES]
    return helper.make_node("BatchNormalization", [x, *inputs], [y], name, **given)


def info(name: str, shape: Sequence[Any] = ("N", 3, "H", "W"), kind: int = F) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[NodeProto],
    tensors: Sequence[TensorProto],
    opset: int = 15,
    ir: int = 8,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    functions: Sequence[Any] = (),
) -> ModelProto:
    graph = helper.make_graph([*nodes], "g", inputs or [info("x")], outputs or [info("y")], [*tensors])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(one.domain, 1) for one in functions)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=[*functions])


def through_nodes() -> ModelProto:
    """Every input comes in another way: an initializer, Constant nodes, and Identity of Identity."""
    nodes = [
        helper.make_node("Constant", [], ["net.bn1.bias"], value=tensor("", VALUES["bias"])),
        helper.make_node("Constant", [], ["c"], value_floats=VALUES["running_mean"].tolist()),
        helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("Identity", ["d"], ["net.bn1.running_mean"]),
        helper.make_node("Identity", ["v"], ["net.bn1.running_var"]),
        node(epsilon=1e-3, momentum=0.75),
    ]
    return model(nodes, [tensor("net.bn1.weight", VALUES["weight"]), tensor("v", VALUES["running_var"])])


def in_branches() -> ModelProto:
    """An If with a node in each branch: one has initializers of its own, one reads those of the graph around it."""
    own = [tensor(f"own.{name}", VALUES[name] + 1) for name in NAMES]
    branches = {
        "then_branch": helper.make_graph([node(y="y1", name="then")], "t", [], [info("y1")]),
        "else_branch": helper.make_graph([node(y="y2", prefix="own.", name="else")], "e", [], [info("y2")], own),
    }
    nodes = [helper.make_node("If", ["cond"], ["y"], "choose", **branches)]
    return model(nodes, constants(), inputs=[info("x"), info("cond", (), TensorProto.BOOL)])


def in_functions() -> ModelProto:
    """A function that is called twice, with constants and an epsilon from its calls."""
    inner = helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["r"], "inner")
    inner.attribute.append(AttributeProto(name="epsilon", ref_attr_name="eps", type=AttributeProto.FLOAT))
    body = helper.make_function(
        "local", "Norm", ["a", "s", "b", "m", "v"], ["r"], [inner], [helper.make_opsetid("", 15)], ["eps"]
    )
    calls = [
        helper.make_node("Norm", ["x", *(f"one.{name}" for name in NAMES)], ["h"], "first", domain="local", eps=0.5),
        helper.make_node("Norm", ["h", *(f"two.{name}" for name in NAMES)], ["y"], "second", domain="local", eps=0.25),
    ]
    moved = {name: array * 2 for name, array in VALUES.items()}
    return model(calls, [*constants("one."), *constants("two.", moved)], functions=[body])


def external() -> dict[str, bytes]:
    """A model whose weights lie in a file beside it, one after the other."""
    made = model([node()], constants())
    content, place = b"", 0
    for one in made.graph.initializer:
        content += one.raw_data
        for key, value in (("location", "beside.bin"), ("offset", place), ("length", len(one.raw_data))):
            one.external_data.add(key=key, value=str(value))
        one.ClearField("raw_data")
        one.data_location = TensorProto.EXTERNAL
        place = len(content)
    return {"external.onnx": made.SerializeToString(), "beside.bin": content}


def typed() -> ModelProto:
    """Constants as numbers instead of bytes: float16 and bfloat16 in int32_data, float_data, double_data."""
    kinds = {"half.": TensorProto.FLOAT16, "brain.": TensorProto.BFLOAT16, "single.": F, "double.": TensorProto.DOUBLE}
    nodes, tensors = [], []
    for prefix, kind in kinds.items():
        nodes.append(node(f"{prefix}x", f"{prefix}y", prefix, prefix))
        tensors += [helper.make_tensor(prefix + name, kind, [3], VALUES[name]) for name in NAMES]
    ends = [[info(one.input[0], kind=kind) for one, kind in zip(nodes, kinds.values(), strict=True)]]
    ends.append([info(one.output[0], kind=kind) for one, kind in zip(nodes, kinds.values(), strict=True)])
    return model(nodes, tensors, inputs=ends[0], outputs=ends[1])


def samples() -> list[dict[str, bytes]]:
    layers = [layer(epsilon=1e-3, factor=0.1), layer("other", 3, "bfloat16")]
    made = [through_nodes(), in_branches(), in_functions(), typed()]
    return [
        dict(onnx.write(layers, "one.onnx", None).files),
        *({f"{number}.onnx": one.SerializeToString()} for number, one in enumerate(made)),
        external(),
    ]
