#!/usr/bin/env bash
# onnx 1.23.2 (version_converter, checker) and its reference evaluator, CPU.
#
# Seen: a BatchNormalization node of opset 6 is for training unless is_test is 1. The converter refuses such a node
# where is_test=0 is written out, and converts it where it is left out, which says the same by the standard's default:
# from opset 9 on it is a node for inference then, with one output and without training_mode. The checker passes both.
#
# Why it surprises: an attribute that has its default value decides between an error and another network, of the same
# node. Nothing tells that statistics of the batch have become those of the file, [-1, 1] has become [4, 6].
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q onnx==1.23.2 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

FLOAT = onnx.TensorProto.FLOAT
x = np.array([4, 6], np.float32).reshape(2, 1)
schema = onnx.defs.get_schema("BatchNormalization", 6)
print("default of is_test in opset 6:", schema.attributes["is_test"].default_value.i)


def model(**attributes):
    constants = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    shapes = {"x": [2, 1], **dict.fromkeys(constants, [1])}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *constants], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", FLOAT, [2, 1])],
        [numpy_helper.from_array(np.array([value], np.float32), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3)
    onnx.checker.check_model(made, full_check=True)
    return made


for attributes in ({"is_test": 1}, {"is_test": 0}, {}):
    try:
        made = version_converter.convert_version(model(**attributes), 15)
        onnx.checker.check_model(made, full_check=True)
        (node,) = made.graph.node
        said = {one.name: one.i for one in node.attribute}
        y = ReferenceEvaluator(made).run(None, {"x": x})[0].ravel().round(2).tolist()
        print(attributes, "becomes", node.op_type, said, "y", y)
    except Exception as error:
        print(attributes, "is refused:", str(error).split("Assertion ")[-1])
PY

cat >expected <<'TEXT'
default of is_test in opset 6: 0
{'is_test': 1} becomes BatchNormalization {} y [4.0, 6.0]
{'is_test': 0} is refused: `node->i(attr) != value` failed: Attribute is_test must not have value 0
{} becomes BatchNormalization {} y [4.0, 6.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
