#!/usr/bin/env bash
# onnx 1.23.2, onnxruntime 1.32.0, CPU.
#
# Seen: onnx.version_converter takes a GroupNormalization of opset 18, whose scale has one value per group, to opset
# 21, where it has one per channel, and leaves the scale as it is. The checker finds nothing in the result, with shape
# inference neither, and onnxruntime, which ran the model before, stops: two values do not fit four channels. The model
# of opset 18 is the one that the checker refuses, as "deprecated in domain_version of 18", the version that introduced
# it.
#
# Why it surprises: the meaning of the input is the one thing that changed between the two versions, so that the
# conversion has nothing else to do; repeating each value would be all. The checker passes what cannot run and refuses
# what does.
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
from onnx import helper, numpy_helper, version_converter

shape, FLOAT = (1, 4, 2), onnx.TensorProto.FLOAT
x = np.array([-1, 1, -1, 1, -1, 1, -1, 1], np.float32).reshape(shape)


def model(opset, scale):
    scale = np.array(scale, np.float32)
    graph = helper.make_graph(
        [helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(scale * 0, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def seen(name, model):
    try:
        onnx.checker.check_model(model, full_check=True)
        check = "passes"
    except onnx.checker.ValidationError:
        check = "refuses"
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        y = session.run(None, {"x": x})[0][0, :, 1].round(2).tolist()
    except Exception as error:
        y = "Incompatible dimensions" if "Incompatible dimensions" in str(error) else str(error)
    scale = numpy_helper.to_array(model.graph.initializer[0]).tolist()
    print(f"{name}: scale {scale} checker {check} onnxruntime {y}")


seen("opset 18", model(18, [1, 10]))
seen("opset 21", model(21, [1, 1, 10, 10]))
seen("18 converted to 21", version_converter.convert_version(model(18, [1, 10]), 21))
PY

cat >expected <<'TEXT'
opset 18: scale [1.0, 10.0] checker refuses onnxruntime [1.0, 1.0, 10.0, 10.0]
opset 21: scale [1.0, 1.0, 10.0, 10.0] checker passes onnxruntime [1.0, 1.0, 10.0, 10.0]
18 converted to 21: scale [1.0, 10.0] checker passes onnxruntime Incompatible dimensions
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
