#!/usr/bin/env bash
# tf_keras 2.21.0 with TensorFlow 2.21.0 (CPU).
#
# Seen: BatchNormalization(virtual_batch_size=4) on 8 samples does not normalise samples 0 to 3 and samples 4 to 7, but
# the even and the odd ones. 0, 1, 2, 3 and then 100, 101, 102, 103 come out near -1 and near 1: two of each four were
# in each virtual batch. Dealt out in turn, 0, 100, 1, 101 and so on, each four are normalised by themselves, -1.34 to
# 1.34. With three virtual batches it is every third sample.
#
# Why it surprises: virtual batches stand for what small devices would have seen, and shards, and other implementations
# (`chunk`), are consecutive samples. Where the order of a batch has a meaning (positive and negative examples in turn,
# two views of each picture side by side, both halves of a pair) it is the other partition of it: the two views of one
# picture, which consecutive samples keep together, never meet. The averages over virtual batches are those of this
# split.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q tf_keras==2.21.0 tensorflow-cpu==2.21.0 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import tf_keras

rows = np.array([[0, 1, 2, 3], [100, 101, 102, 103]], np.float32)
for name, x in (("one after the other", rows), ("in turn", rows.T)):
    layer = tf_keras.layers.BatchNormalization(virtual_batch_size=4)
    y = layer(x.reshape(8, 1), training=True).numpy().ravel()
    print(f"{name}: x {x.ravel().astype(int).tolist()} y {[f'{y:.2f}' for y in y]}")
PY

cat >expected <<'TEXT'
one after the other: x [0, 1, 2, 3, 100, 101, 102, 103] y ['-1.02', '-1.02', '-0.98', '-0.98', '0.98', '0.98', '1.02', '1.02']
in turn: x [0, 100, 1, 101, 2, 102, 3, 103] y ['-1.34', '-1.34', '-0.45', '-0.45', '0.45', '0.45', '1.34', '1.34']
TEXT

TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python -I seen.py | tee seen
diff expected seen
