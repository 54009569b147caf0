#!/usr/bin/env bash
# onnx 1.23.2 (reference evaluator) and onnxruntime 1.32.0, CPU.
#
# Seen: in opsets 9 to 13 a BatchNormalization node with one output is inference, by the stored mean and variance. The
# evaluator of ONNX moves them by the batch first, as a training step does, and normalises by that: with mean 0 and
# variance 1 the values 4 and 6 stay 4 and 6 in onnxruntime, and become 3.5 and 5.5 there; 4 beside 4 becomes 3.79. The
# same node of opset 14 or 15 is right.
#
# Why it surprises: the evaluator is what implementations of the standard are compared with, and a network in evaluation
# gives a sample another result there with each batch that it is in. The difference is small enough to be taken for a
# rounding matter where the batch is like the data that the statistics are of.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOAT = onnx.TensorProto.FLOAT


def model(opset):
    constants = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *constants], ["y"], epsilon=0.0)],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.array([value], np.float32), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


for opset in (9, 13, 14, 15):
    made = model(opset)
    for batch in ([4, 6], [4, 4]):
        x = np.array(batch, np.float32).reshape(2, 1)
        for name, run in (
            ("onnxruntime", onnxruntime.InferenceSession(made.SerializeToString()).run),
            ("evaluator", ReferenceEvaluator(made).run),
        ):
            print("opset", opset, "batch", batch, name, [f"{value:.2f}" for value in run(None, {"x": x})[0].ravel()])
PY

cat >expected <<'TEXT'
opset 9 batch [4, 6] onnxruntime ['4.00', '6.00']
opset 9 batch [4, 6] evaluator ['3.50', '5.50']
opset 9 batch [4, 4] onnxruntime ['4.00', '4.00']
opset 9 batch [4, 4] evaluator ['3.79', '3.79']
opset 13 batch [4, 6] onnxruntime ['4.00', '6.00']
opset 13 batch [4, 6] evaluator ['3.50', '5.50']
opset 13 batch [4, 4] onnxruntime ['4.00', '4.00']
opset 13 batch [4, 4] evaluator ['3.79', '3.79']
opset 14 batch [4, 6] onnxruntime ['4.00', '6.00']
opset 14 batch [4, 6] evaluator ['4.00', '6.00']
opset 14 batch [4, 4] onnxruntime ['4.00', '4.00']
opset 14 batch [4, 4] evaluator ['4.00', '4.00']
opset 15 batch [4, 6] onnxruntime ['4.00', '6.00']
opset 15 batch [4, 6] evaluator ['4.00', '6.00']
opset 15 batch [4, 4] onnxruntime ['4.00', '4.00']
opset 15 batch [4, 4] evaluator ['4.00', '4.00']
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
