#!/usr/bin/env bash
# PaddlePaddle 3.3.1, NumPy 2.4.6, CPU.
#
# Seen: a tensor of bfloat16 turns into its bits as integers: numpy() and even tolist() of 1, 2, -3 give 16256, 16384,
# 49216, whose mean is 27285, while float() of an element and printing give 1.0. The other way round an array of uint16
# is taken for bits: to_tensor of the integers 1, 2, 3 (of pixels, or labels) is a tensor of numbers near 1e-40.
#
# Why it surprises: a list of Python numbers has no type that would tell, and no call warns. Logging, plotting or
# comparing a half network's weights shows numbers that look like a diverged training, and 16-bit images all 0.
# astype("float32") first is right, on either side.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q paddlepaddle==3.3.1 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import paddle

x = paddle.to_tensor([1.0, 2.0, -3.0]).astype("bfloat16")
print("numpy():", x.numpy().tolist(), "tolist():", x.tolist(), "mean:", round(float(np.mean(x.numpy()))))
print("float():", [float(one) for one in x], "float32 first:", x.astype("float32").tolist())
pixels = paddle.to_tensor(np.array([1, 2, 3], np.uint16))
print("uint16 1, 2, 3:", pixels.dtype, [f"{float(one):.2g}" for one in pixels])
PY

cat >expected <<'TEXT'
numpy(): [16256, 16384, 49216] tolist(): [16256, 16384, 49216] mean: 27285
float(): [1.0, 2.0, -3.0] float32 first: [1.0, 2.0, -3.0]
uint16 1, 2, 3: paddle.bfloat16 ['9.2e-41', '1.8e-40', '2.8e-40']
TEXT

venv/bin/python -I -W ignore seen.py 2>errors | tee seen
diff expected seen
