#!/usr/bin/env bash
# OpenVINO 2026.4.1, NumPy 2.4.6.
#
# Seen: save_model writes constants as halves, and what a half cannot hold is clamped without a word: a batch norm whose
# running mean is 100,000 in one channel gives 34497 for 100,001, and not 1, once the network was saved and read; a
# variance of 1,000,000 makes 1000 into 3.9, one of 1e-9 counts as 0. Where all of a constant is out of range it stays
# float32, and so the same mean in both channels is right.
#
# Why it surprises: the network computes right until it is saved, nothing warns, and whether a channel is kept depends
# on its neighbours. Networks of unscaled features (years, pixels times area, prices) have such statistics. Halves are
# said to be for size, with errors as of rounding; save_model(..., compress_to_fp16=False) and openvino.serialize keep
# all bits.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q openvino==2026.4.1 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import openvino
from openvino import opset13

core = openvino.Core()


def run(network, x):
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [float(f"{value:.4g}") for value in compiled([np.array([x], np.float32)])[0][0]]


def seen(name, mean, var, x, **options):
    data = opset13.parameter([1, 2], np.float32)
    arrays = [opset13.constant(np.array(values, np.float32)) for values in ([1, 1], [0, 0], mean, var)]
    network = openvino.Model([opset13.batch_norm_inference(data, *arrays, epsilon=1e-12)], [data], "network")
    openvino.save_model(network, "network.xml", **options)
    print(f"{name}:", run(network, x), "saved and read:", run(core.read_model("network.xml"), x))


seen("mean 1e5 and 0", [1e5, 0], [1, 1], [100_001, 1])
seen("mean 1e5 and 1e5", [1e5, 1e5], [1, 1], [100_001, 100_001])
seen("variance 1e6 and 1", [0, 0], [1e6, 1], [1000, 1])
seen("variance 1e-9 and 1", [0, 0], [1e-9, 1], [1e-4, 1])
seen("mean 1e5 and 0, without halves", [1e5, 0], [1, 1], [100_001, 1], compress_to_fp16=False)
PY

cat >expected <<'TEXT'
mean 1e5 and 0: [1.0, 1.0] saved and read: [34500.0, 1.0]
mean 1e5 and 1e5: [1.0, 1.0] saved and read: [1.0, 1.0]
variance 1e6 and 1: [1.0, 1.0] saved and read: [3.907, 1.0]
variance 1e-9 and 1: [3.161, 1.0] saved and read: [100.0, 1.0]
mean 1e5 and 0, without halves: [1.0, 1.0] saved and read: [1.0, 1.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
