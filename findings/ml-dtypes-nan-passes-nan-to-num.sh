#!/usr/bin/env bash
# ml_dtypes 0.6.0 with NumPy 2.4.6.
#
# Seen: `np.nan_to_num` gives bfloat16 arrays back as they came, NaN and infinity included; `np.sort` leaves an array
# with a NaN in it unsorted. `np.isnan` and `mean` see the NaN. With float16 all of these are right.
#
# Why it surprises: none of them complains. To NumPy a bfloat16 is no floating-point type (kind "V", issubdtype is
# False), so functions written in Python take the way for integers, and the order of sorting, which for NumPy's own
# types puts NaN last, looks like that of a bare "<".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q ml_dtypes==0.6.0 numpy==2.4.6

cat >seen.py <<'PY'
import warnings

import ml_dtypes
import numpy as np

warnings.simplefilter("ignore")
for dtype in (np.float16, ml_dtypes.bfloat16):
    x = np.array([3, np.nan, 1, 2], dtype)
    print(np.dtype(dtype).name, "kind", np.dtype(dtype).kind, "floating:", np.issubdtype(dtype, np.floating))
    print("  isnan:", np.isnan(x).tolist())
    print("  nan_to_num:", np.nan_to_num(x).astype(float).tolist())
    print("  sort:", np.sort(x).astype(float).tolist())
    print("  mean:", float(np.mean(x)))
PY

cat >expected <<'TEXT'
float16 kind f floating: True
  isnan: [False, True, False, False]
  nan_to_num: [3.0, 0.0, 1.0, 2.0]
  sort: [1.0, 2.0, 3.0, nan]
  mean: nan
bfloat16 kind V floating: False
  isnan: [False, True, False, False]
  nan_to_num: [3.0, nan, 1.0, 2.0]
  sort: [3.0, nan, 1.0, 2.0]
  mean: nan
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
