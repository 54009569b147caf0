#!/usr/bin/env bash
# ml_dtypes 0.6.0 with NumPy 2.4.6.
#
# Seen: the mean of a thousand ones in bfloat16 is 0.255859, their sum 256, and the variance of 0 … 999 is 147456
# instead of 83336. NumPy adds them up in bfloat16, one after the other, and 256 + 1 is 256 there. `np.average`,
# `np.nanmean` and `cumsum` do the same; `a @ a` is 1000. With float8_e4m3fn the mean of a hundred ones is 0.15625.
#
# Why it surprises: for its own float16 NumPy takes means in float32, and adds pairwise, so that the same code is
# right there. The line of float16 below shows where the habit comes from. `mean(dtype=np.float32)` is right for all.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q ml_dtypes==0.6.0 numpy==2.4.6

cat >seen.py <<'PY'
import ml_dtypes
import numpy as np

for dtype, size in ((np.float16, 1000), (ml_dtypes.bfloat16, 1000), (ml_dtypes.float8_e4m3fn, 100)):
    ones = np.ones(size, dtype)
    print(np.dtype(dtype).name, "ones:", size, "sum:", float(ones.sum()), "mean:", float(ones.mean()), end=" ")
    print("mean of columns:", float(np.ones((size, 2), dtype).mean(axis=0)[0]), "a @ a:", float(ones @ ones), end=" ")
    print("mean(dtype=float32):", float(ones.mean(dtype=np.float32)))
steps = np.arange(1000).astype(ml_dtypes.bfloat16)
right = float(steps.astype(np.float64).var())
print("bfloat16 variance of 0 to 999:", float(steps.var()), "in float64:", round(right))
PY

cat >expected <<'TEXT'
float16 ones: 1000 sum: 1000.0 mean: 1.0 mean of columns: 1.0 a @ a: 1000.0 mean(dtype=float32): 1.0
bfloat16 ones: 1000 sum: 256.0 mean: 0.255859375 mean of columns: 0.255859375 a @ a: 1000.0 mean(dtype=float32): 1.0
float8_e4m3fn ones: 100 sum: 16.0 mean: 0.15625 mean of columns: 0.15625 a @ a: 100.0 mean(dtype=float32): 1.0
bfloat16 variance of 0 to 999: 147456.0 in float64: 83336
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
