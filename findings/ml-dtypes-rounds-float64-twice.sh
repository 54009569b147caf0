#!/usr/bin/env bash
# ml_dtypes 0.6.0 with NumPy 2.4.6.
#
# Seen: float64 (and int64) become bfloat16 by way of float32, and are rounded twice. 1 + 2^-8 + 2^-40 lies above the
# middle of two bfloat16 numbers, so that 1 + 2^-7 is nearest; what comes is 1, as float32 had put the number onto the
# middle, and the tie goes to even. The float8 types do the same. Of numbers just off a middle half go wrong.
#
# Why it surprises: NumPy converts float64 to its own float16 with one rounding, and IEEE 754 asks for one. A
# reference that is computed in float64 and rounded once, "correctly", to compare bfloat16 results with bit by bit, is
# not correct.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q ml_dtypes==0.6.0 numpy==2.4.6

cat >seen.py <<'PY'
import ml_dtypes
import numpy as np

tiny = 2.0**-40
for dtype, digits in ((np.float16, 10), (ml_dtypes.bfloat16, 7), (ml_dtypes.float8_e4m3fn, 3), (ml_dtypes.float8_e5m2, 2)):
    step = 2.0**-digits
    above = np.array([1 + step / 2 + tiny]).astype(dtype)
    below = np.array([1 + 3 * step / 2 - tiny]).astype(dtype)
    print(np.dtype(dtype).name, end=" ")
    print("just above a middle:", float(above[0]), "nearest:", 1 + step, end="; ")
    print("just below one:", float(below[0]), "nearest:", 1 + step)
count = np.array([2**33 + 2**25 + 1])
print("int64", count[0], "becomes", int(count.astype(ml_dtypes.bfloat16)[0]), "nearest:", 2**33 + 2**26)
PY

cat >expected <<'TEXT'
float16 just above a middle: 1.0009765625 nearest: 1.0009765625; just below one: 1.0009765625 nearest: 1.0009765625
bfloat16 just above a middle: 1.0 nearest: 1.0078125; just below one: 1.015625 nearest: 1.0078125
float8_e4m3fn just above a middle: 1.0 nearest: 1.125; just below one: 1.25 nearest: 1.125
float8_e5m2 just above a middle: 1.0 nearest: 1.25; just below one: 1.5 nearest: 1.25
int64 8623489025 becomes 8589934592 nearest: 8657043456
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
