#!/usr/bin/env bash
# onnx 1.23.2 (reference evaluator), onnxruntime 1.32.0 and openvino 2026.4.1 (CPU).
#
# Seen: GroupNormalization of float32 data of mean 100,000 and standard deviation 1 is NaN in onnxruntime (in some
# groups) and in ONNX's own evaluator; of mean 1000 values are off by more than 0.05. InstanceNormalization and
# LayerNormalization of the same data are right, and so is OpenVINO with the same file.
#
# Why it surprises: the three operators are one computation over other axes, and group norm with as many groups as
# channels is instance norm by definition. Only this one is a function, whose body in the standard takes the variance
# as E[x^2] - E[x]^2 and does not cut off what is negative before the root; a runtime without a kernel of its own for
# it runs that. PyTorch 2.13.0 exports its group norm as this operator from opset 21 on, up to 20 as
# InstanceNormalization between reshapes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx.reference import ReferenceEvaluator

FLOAT = onnx.TensorProto.FLOAT


def in_onnxruntime(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def in_openvino(model, feeds):
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)(feeds)[0]


def in_reference(model, feeds):
    return ReferenceEvaluator(model).run(None, feeds)[0]


for mean in (1000, 100_000):
    x = np.random.default_rng(0).normal(mean, 1, (2, 16, 64)).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis=2, keepdims=True)) / np.sqrt(exact.var(axis=2, keepdims=True) + 1e-5)
    # Groups of one channel each: all three normalise over the last axis.
    for name, size, more in (
        ("GroupNormalization", 16, {"num_groups": 16}),
        ("InstanceNormalization", 16, {}),
        ("LayerNormalization", 64, {}),
    ):
        feeds = {"x": x, "scale": np.ones(size, np.float32), "bias": np.zeros(size, np.float32)}
        inputs = [onnx.helper.make_tensor_value_info(key, FLOAT, value.shape) for key, value in feeds.items()]
        node = onnx.helper.make_node(name, list(feeds), ["y"], **more)
        graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_tensor_value_info("y", FLOAT, x.shape)])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        found = []
        for run in (in_onnxruntime, in_reference, in_openvino):
            with np.errstate(all="ignore"):
                y = run(model, feeds)
            error = np.abs(y - exact).max()
            verdict = "some NaN" if np.isnan(y).any() else "right" if error < 0.05 else "off by more than 0.05"
            found.append(f"{run.__name__}: {verdict}")
        print("mean", mean, name, ", ".join(found))
PY

cat >expected <<'TEXT'
mean 1000 GroupNormalization in_onnxruntime: off by more than 0.05, in_reference: off by more than 0.05, in_openvino: right
mean 1000 InstanceNormalization in_onnxruntime: right, in_reference: right, in_openvino: right
mean 1000 LayerNormalization in_onnxruntime: right, in_reference: right, in_openvino: right
mean 100000 GroupNormalization in_onnxruntime: some NaN, in_reference: some NaN, in_openvino: right
mean 100000 InstanceNormalization in_onnxruntime: right, in_reference: right, in_openvino: right
mean 100000 LayerNormalization in_onnxruntime: right, in_reference: right, in_openvino: right
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
