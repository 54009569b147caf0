#!/usr/bin/env bash
# PyTorch 2.13.0 with onnx 1.23.2, onnxruntime 1.32.0, onnxscript 0.7.2, CPU.
#
# Seen: torch.onnx.export keeps one of each set of equal tensors. Of a batch norm as it is made the weight (ones) is the
# running variance as well, and the bias (zeros) the running mean: the node has the inputs weight, bias, bias, weight.
# Another value for "weight" in the file changes the variance with it: 4 makes y twice x, and in PyTorch four times x.
#
# Why it surprises: initializers have the names of the state_dict, so that trained weights are put into an exported
# network by name; that parameters are equal when it is exported, as those of new or frozen layers are, is no reason why
# they should stay so. The older exporter (dynamo=False) does the same, with Identity nodes for names that are left out.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 numpy==2.4.6

cat >seen.py <<'PY'
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

warnings.simplefilter("ignore")
logging.disable()
net = torch.nn.BatchNorm1d(1, eps=1e-12).eval()
x = torch.tensor([[3.0], [5.0]])
print("state_dict:", *(name for name in net.state_dict() if name != "num_batches_tracked"))
for dynamo in (True, False):
    net.weight.data[:] = 1
    torch.onnx.export(net, (x,), "net.onnx", dynamo=dynamo, verbose=False, external_data=False, input_names=["x"])
    model = onnx.load("net.onnx")
    print("dynamo:", dynamo, "initializers:", *(one.name for one in model.graph.initializer))
    for node in model.graph.node:
        print(" ", node.op_type, *(name for name in node.input if name != "x"))
    # A weight of 4, in the file by its name, and in the module.
    for one in model.graph.initializer:
        if one.name in ("weight", "running_var"):
            print("  4 for", one.name, end=": ")
            one.CopyFrom(onnx.numpy_helper.from_array(np.array([4], np.float32), one.name))
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    net.weight.data[:] = 4
    print("PyTorch", net(x).flatten().tolist(), "onnxruntime", y.ravel().round(3).tolist())
PY

cat >expected <<'TEXT'
state_dict: weight bias running_mean running_var
dynamo: True initializers: weight bias
  BatchNormalization weight bias bias weight
  4 for weight: PyTorch [12.0, 20.0] onnxruntime [6.0, 10.0]
dynamo: False initializers: weight bias
  Identity weight
  Identity bias
  BatchNormalization weight bias running_mean running_var
  4 for weight: PyTorch [12.0, 20.0] onnxruntime [6.0, 10.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
