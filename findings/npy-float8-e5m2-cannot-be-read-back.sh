#!/usr/bin/env bash
# NumPy 2.4.6 with ml_dtypes 0.6.0.
#
# Seen: `np.save` and `np.savez` write float8_e5m2 without a word, and `np.load` cannot read the file: "descr is not a
# valid dtype descriptor". The other float8 types and bfloat16 can be read, as raw bytes (V1, V2).
#
# Why it surprises: a file format refuses what it cannot hold when it is written, not when the only copy is in the
# file. Whoever tried bfloat16 and other float8 types first has seen that a view brings the numbers back. float8_e5m2
# alone says kind "f" and one byte, "<f1", which NumPy's reader then does not know.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q numpy==2.4.6 ml_dtypes==0.6.0

cat >seen.py <<'PY'
import io

import ml_dtypes
import numpy as np

for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3", "float8_e5m2fnuz", "float8_e5m2"):
    dtype = np.dtype(getattr(ml_dtypes, name))
    file = io.BytesIO()
    np.save(file, np.ones(2, dtype))
    file.seek(0)
    try:
        back = np.load(file)
        print(name, dtype.str, "written, read as", back.dtype, "a view of it:", back.view(dtype).astype(float).tolist())
    except ValueError as error:
        print(name, dtype.str, "written, not read:", error)
PY

cat >expected <<'TEXT'
bfloat16 <V2 written, read as |V2 a view of it: [1.0, 1.0]
float8_e4m3fn <V1 written, read as |V1 a view of it: [1.0, 1.0]
float8_e4m3 <V1 written, read as |V1 a view of it: [1.0, 1.0]
float8_e5m2fnuz <V1 written, read as |V1 a view of it: [1.0, 1.0]
float8_e5m2 <f1 written, not read: descr is not a valid dtype descriptor: '<f1'
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
