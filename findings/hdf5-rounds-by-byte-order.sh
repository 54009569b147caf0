#!/usr/bin/env bash
# h5py 3.16.0 with HDF5 2.0.0 (NumPy 2.4.6).
#
# Seen: HDF5 rounds by two rules, and the byte order of the file's type decides which. Writing float32 into a "<f2"
# dataset rounds ties to even, and all above 65504, the largest float16, becomes infinity. Into ">f2" ties go away
# from zero, and 65520, which should be infinite, becomes 65504. IEEE 754, and NumPy, turn 65519 into 65504 and 65520
# into infinity, so that each is wrong about one of them. float64 into ">f4" rounds ties away as well, into "<f4" to
# even.
#
# Why it surprises: byte order is about storage, and the same values were written. Files for other systems (or
# templates made on them) hold other numbers than NumPy's astype gives, by one unit in the last place in half of the
# ties.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q h5py==3.16.0 numpy==2.4.6

cat >seen.py <<'PY'
import h5py
import numpy as np


def stored(values, dtype):
    with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", values.shape, dtype)
        dataset[...] = values
        return [float(value) for value in dataset[...]]


np.seterr(over="ignore")
singles = np.array([1 + 2**-11, 1 + 2**-10 + 2**-11, 65519, 65520, 2.0**-25], np.float32)
print("HDF5", h5py.version.hdf5_version, "on a little-endian machine")
for dtype in ("<f2", ">f2"):
    there = stored(singles, dtype)
    print("float32 to", dtype, there, "NumPy agrees:", there == singles.astype(dtype).tolist())
doubles = np.array([1 + 2**-24, 16777217.0])
for dtype in ("<f4", ">f4"):
    there = stored(doubles, dtype)
    print("float64 to", dtype, there, "NumPy agrees:", there == doubles.astype(dtype).tolist())
PY

cat >expected <<'TEXT'
HDF5 2.0.0 on a little-endian machine
float32 to <f2 [1.0, 1.001953125, inf, inf, 0.0] NumPy agrees: False
float32 to >f2 [1.0009765625, 1.001953125, 65504.0, 65504.0, 5.960464477539063e-08] NumPy agrees: False
float64 to <f4 [1.0, 16777216.0] NumPy agrees: True
float64 to >f4 [1.0000001192092896, 16777218.0] NumPy agrees: False
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
