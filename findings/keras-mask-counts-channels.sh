#!/usr/bin/env bash
# Keras 3.15.1 with jax 0.10.2 (CPU); on TensorFlow 2.21.0 it is the same.
#
# Seen: BatchNormalization(axis=1), channels first, takes a mask to be one of samples and channels. For x of shape (2,
# 4, 4) (samples, channels, steps) and the mask that a sequence has, (2, 4) (samples, steps), with the last two steps
# padding of 100, it leaves out the last two channels, and takes the padding of the first two as data: means of about
# 50 and 50, and 0 and 0 for the channels that it left out, where all four should be near 0. With three channels the
# same mask is an error.
#
# Why it surprises: the mask is to have one dimension less than the input, and the one that has no place in it is the
# axis of channels, wherever that lies; here it is always the last one. So axis=1 and a mask of steps go together only
# where there are as many steps as channels, and then in silence. With the data turned to channels last the same mask
# is right.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q keras==3.15.1 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import keras
import numpy as np

x = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
x[:, :, 2:] = 100  # Padding.
steps = np.array([[True, True, False, False]] * 2)


def means(x, axis):
    # Momentum 0: the statistics are those of this batch.
    layer = keras.layers.BatchNormalization(axis=axis, momentum=0.0)
    layer(x, training=True, mask=steps)
    return [f"{mean:.1f}" for mean in np.asarray(layer.moving_mean)]


print("without the padding:", [f"{mean:.1f}" for mean in x[:, :, :2].mean(axis=(0, 2))])
print("channels last:", means(x.transpose(0, 2, 1), -1))
print("channels first:", means(x, 1))
try:
    means(x[:, :3], 1)
except Exception as error:
    print("channels first, three of them:", type(error).__name__)
PY

cat >expected <<'TEXT'
without the padding: ['-0.2', '0.3', '-0.2', '-0.7']
channels last: ['-0.2', '0.3', '-0.2', '-0.7']
channels first: ['49.9', '50.1', '0.0', '0.0']
channels first, three of them: ValueError
TEXT

KERAS_BACKEND=jax KERAS_HOME="$folder" JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
