#!/usr/bin/env bash
# Keras 3.15.1 with jax 0.10.2 (CPU); on TensorFlow 2.21.0 it is the same.
#
# Seen: BatchNormalization with a mask that lets nothing through takes such a batch for one of mean 0 and variance 0,
# and moves its statistics there. A layer that knows data of mean 50 and variance 4 (momentum 0.9) has, after ten
# batches of nothing but padding, a mean of 17.4 and a variance of 1.39, and evaluates 50 to 27.6 instead of 0. Whether
# the padding holds zeros, fifties or NaN makes no difference.
#
# Why it surprises: a mask says what is no data, and here no data counts as much as a full batch. 0 / 0 would be NaN
# and be noticed (Flax); a tiny number in the denominator makes it the number 0. Shards at the end of an epoch, and
# padded branches with nobody in them, are masked as a whole; statistics shrink a little each time, without a message.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q keras==3.15.1 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import keras
import numpy as np

for padding in (0.0, 50.0, np.nan):
    layer = keras.layers.BatchNormalization(momentum=0.9)
    layer.build((None, 3, 2))
    layer.moving_mean.assign([50.0, 50.0])
    layer.moving_variance.assign([4.0, 4.0])
    for _ in range(10):
        layer(np.full((4, 3, 2), padding, np.float32), training=True, mask=np.zeros((4, 3), bool))
    y = np.asarray(layer(np.full((1, 3, 2), 50.0, np.float32), training=False))
    mean, variance = float(layer.moving_mean[0]), float(layer.moving_variance[0])
    print(f"padding {padding}: mean {mean:.1f} variance {variance:.2f} of 50 evaluation makes {y[0, 0, 0]:.1f}")
PY

cat >expected <<'TEXT'
padding 0.0: mean 17.4 variance 1.39 of 50 evaluation makes 27.6
padding 50.0: mean 17.4 variance 1.39 of 50 evaluation makes 27.6
padding nan: mean 17.4 variance 1.39 of 50 evaluation makes 27.6
TEXT

KERAS_BACKEND=jax KERAS_HOME="$folder" JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
