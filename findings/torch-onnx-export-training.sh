#!/usr/bin/env bash
# PyTorch 2.13.0 with onnx 1.23.2, onnxruntime 1.32.0, onnxscript 0.7.2, CPU.
#
# Seen: `torch.onnx.export(..., training=TrainingMode.TRAINING)` of a BatchNorm2d in training mode gives, by the
# exporter that is the default, a network for inference: one BatchNormalization without training_mode, and onnxruntime
# normalises by the stored statistics (mean 0, variance 1) where PyTorch uses those of the batch. The older exporter
# (dynamo=False) keeps training mode, and takes a training step itself: it moves the statistics of the module by the
# example input.
#
# Why it surprises: the one exporter drops what it was asked for by name, with only a general warning that the module
# is in training mode; the other leaves traces in the module that it only had to read.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 numpy==2.4.6

cat >seen.py <<'PY'
import logging
import warnings

import onnx
import onnxruntime
import torch

warnings.simplefilter("ignore")
logging.disable()
x = torch.tensor([4.0, 6.0]).reshape(2, 1, 1, 1)
for dynamo in (True, False):
    bn = torch.nn.BatchNorm2d(1).train()
    torch.onnx.export(
        bn, (x,), "bn.onnx", dynamo=dynamo, verbose=False, training=torch.onnx.TrainingMode.TRAINING, input_names=["x"]
    )
    node = next(node for node in onnx.load("bn.onnx").graph.node if node.op_type == "BatchNormalization")
    asked = {attribute.name: attribute.i for attribute in node.attribute}.get("training_mode", 0)
    (y, *_) = onnxruntime.InferenceSession("bn.onnx").run(None, {"x": x.numpy()})
    print("dynamo:", dynamo, "training_mode:", asked, "y:", y.flatten().round(3).tolist(), end=" ")
    print("statistics of the module:", round(bn.running_mean.item(), 3), round(bn.running_var.item(), 3), end=" ")
    print("PyTorch:", [round(v, 3) for v in bn(x).flatten().tolist()])
PY

cat >expected <<'TEXT'
dynamo: True training_mode: 0 y: [4.0, 6.0] statistics of the module: 0.0 1.0 PyTorch: [-1.0, 1.0]
dynamo: False training_mode: 1 y: [-1.0, 1.0] statistics of the module: 0.5 1.1 PyTorch: [-1.0, 1.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
