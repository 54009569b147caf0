#!/usr/bin/env bash
# safetensors 0.8.0 (safetensors.numpy) with NumPy 2.4.6.
#
# Seen: an array that is not in C order is written as its memory lies, with the shape that it has: a transpose, an
# array in Fortran order and `x[:, :1]` come back with other elements in their places, without an error. The array in
# Fortran order comes from nothing more exotic than `np.asfortranarray` or a kernel transposed for another framework.
#
# Why it surprises: np.save, h5py and flax's msgpack write the elements of a view in their order, and
# safetensors.torch refuses it. Here the file is valid, shapes and dtypes match, and square weights load anywhere.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q safetensors==0.8.0 numpy==2.4.6

cat >seen.py <<'PY'
import io

import numpy as np
from safetensors.numpy import load, save

x = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, view in (("C order", x), ("transposed", x.T), ("Fortran order", np.asfortranarray(x)), ("x[:, :1]", x[:, :1])):
    back = load(save({"x": view}))["x"]
    file = io.BytesIO()
    np.save(file, view)
    file.seek(0)
    right = np.array_equal(np.load(file), view)
    print(name, view.tolist(), "comes back as", back.tolist(), "np.save is right:", right)
PY

cat >expected <<'TEXT'
C order [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] comes back as [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] np.save is right: True
transposed [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] comes back as [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] np.save is right: True
Fortran order [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] comes back as [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]] np.save is right: True
x[:, :1] [[0.0], [3.0]] comes back as [[0.0], [1.0]] np.save is right: True
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
