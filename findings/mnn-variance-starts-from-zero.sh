#!/usr/bin/env bash
# MNN 3.6.1, CPU.
#
# Seen: a new batch_norm layer evaluates 1 to 316: its running variance is 0, not 1, so that it divides by the root of
# epsilon. Trained on one batch, 4 and 6, which training maps to -1 and 1, it evaluates this batch to 39.5 and 59.5;
# after ten such batches to 11.4 and 17.9, and after a hundred to 1.0 and 3.6.
#
# Why it surprises: other layers start from a variance of 1, or take the first batch whole. Mean and variance start from
# 0 here and move by a hundredth per batch, so that evaluation is far off in the first epochs and comes right by itself
# some hundreds of batches later: a validation that is run early looks like a network that does not learn.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q MNN==3.6.1 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
from MNN import expr, nn


def run(layer, training, *values):
    layer.train(training)
    x = expr.const(np.array(values, np.float32), [len(values), 1, 1, 1], expr.NCHW)
    y = expr.convert(layer.forward(x), expr.NCHW).read()
    return [round(float(one), 1) for one in np.ravel(y)]


layer = nn.batch_norm(1)
print("new, evaluation of 1:", run(layer, False, 1.0))
for batches in (1, 10, 100, 1000):
    layer = nn.batch_norm(1)
    for _ in range(batches):
        y = run(layer, True, 4.0, 6.0)
    print(batches, "times the batch 4, 6; training:", y, "evaluation:", run(layer, False, 4.0, 6.0))
PY

cat >expected <<'TEXT'
new, evaluation of 1: [316.2]
1 times the batch 4, 6; training: [-1.0, 1.0] evaluation: [39.5, 59.5]
10 times the batch 4, 6; training: [-1.0, 1.0] evaluation: [11.4, 17.9]
100 times the batch 4, 6; training: [-1.0, 1.0] evaluation: [1.0, 3.6]
1000 times the batch 4, 6; training: [-1.0, 1.0] evaluation: [-1.0, 1.0]
TEXT

venv/bin/python -I seen.py | grep -v "^The device supports" | tee seen
diff expected seen
