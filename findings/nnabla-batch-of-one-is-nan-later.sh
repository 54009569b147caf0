#!/usr/bin/env bash
# NNabla 1.39.0, CPU, Python 3.10.
#
# Seen: one batch with one value per channel, among batches of two, leaves 0 as the output, like any other framework
# that takes such a batch; and it makes the running variance NaN for good, as the sum of squares, 0, is divided by no
# value less than one. Batches after it train as if nothing were; evaluation gives NaN only.
#
# Why it surprises: nothing in training shows it, neither output nor loss nor gradient. PyTorch and MLX refuse the
# batch, Chainer and tf_keras, which divide by one less as well, take a variance of 0. The last batch of an epoch is
# enough, or pooling to one pixel with one picture.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3.10}" -m venv venv
venv/bin/python -m pip install -q nnabla==1.39.0 numpy==1.26.4

cat >seen.py <<'PY'
import logging

import numpy as np

logging.disable(logging.INFO)
import nnabla
from nnabla import parametric_functions


def run(training, *values):
    x = nnabla.Variable.from_numpy_array(np.array(values, np.float32).reshape(-1, 1, 1, 1))
    x.need_grad = True
    y = parametric_functions.batch_normalization(x, batch_stat=training)
    y.forward()
    y.backward(1.0)
    found = [[round(float(one), 3) + 0.0 for one in array.ravel()] for array in (y.d, x.g)]
    return found[0], "gradient", found[1]


for name, values in (("two values", (4.0, 6.0)), ("one value", (5.0,)), ("two values", (4.0, 6.0))):
    print(f"training, {name}:", *run(True, *values), end=" ")
    print("running variance", [round(float(one), 3) for one in nnabla.get_parameters(grad_only=False)["bn/var"].d.ravel()])
print("evaluation:", run(False, 4.0, 6.0)[0])
PY

cat >expected <<'TEXT'
training, two values: [-1.0, 1.0] gradient [0.0, 0.0] running variance [1.1]
training, one value: [0.0] gradient [0.0] running variance [nan]
training, two values: [-1.0, 1.0] gradient [0.0, 0.0] running variance [nan]
evaluation: [nan, nan]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
