#!/usr/bin/env bash
# Keras 3.15.1 with jax 0.10.2 (CPU); tf_keras 2.21.0 does the same.
#
# Seen: BatchNormalization(renorm=True) whose moving_variance was set to 100 evaluates by it, and forgets it at the
# first training step: 3.61 afterwards (momentum 0.9), whatever it was before, though the batch had variance 100 as
# well, so that 40 and 60 evaluate to -5.26 and 5.26 instead of -1 and 1. The mean, set to 50, stays. What is averaged
# is another variable, moving_stddev, which still had its first value of 1; moving_variance is written from it, (0.9 +
# 0.1 * 10)^2. After that it is the square of a mean of deviations, not a mean of variances: batches of variance 1 and
# 10,000 in turn give about 2,600, and 5,000 without renorm.
#
# Why it surprises: evaluation reads moving_variance, so that one who brings the four arrays of a trained batch norm
# (of any framework) sees the right outputs, and the loss of them only when training goes on, which is what renorm is
# for.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q keras==3.15.1 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import keras
import numpy as np

x = np.array([[40.0], [60.0]], np.float32)
for renorm in (False, True):
    layer = keras.layers.BatchNormalization(momentum=0.9, renorm=renorm)
    layer.build((None, 1))
    layer.moving_mean.assign([50.0])
    layer.moving_variance.assign([100.0])

    def state(layer=layer):
        y = [f"{y:.2f}" for y in np.asarray(layer(x, training=False)).ravel()]
        return f"mean {float(layer.moving_mean[0]):.4g} variance {float(layer.moving_variance[0]):.3g} y {y}"

    print("renorm:", renorm, "as set:", state())
    layer(x, training=True)
    print("renorm:", renorm, "after one step:", state())

for renorm in (False, True):
    layer = keras.layers.BatchNormalization(momentum=0.99, renorm=renorm)
    for step in range(1000):
        layer(np.array([[-1.0], [1.0]], np.float32) * (100 if step % 2 else 1), training=True)
    print("renorm:", renorm, "variances 1 and 10000 in turn:", round(float(layer.moving_variance[0]), -2))
PY

cat >expected <<'TEXT'
renorm: False as set: mean 50 variance 100 y ['-1.00', '1.00']
renorm: False after one step: mean 50 variance 100 y ['-1.00', '1.00']
renorm: True as set: mean 50 variance 100 y ['-1.00', '1.00']
renorm: True after one step: mean 50 variance 3.61 y ['-5.26', '5.26']
renorm: False variances 1 and 10000 in turn: 5000.0
renorm: True variances 1 and 10000 in turn: 2600.0
TEXT

KERAS_BACKEND=jax KERAS_HOME="$folder" JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
