#!/usr/bin/env bash
# Keras 3.15.1 with TensorFlow 2.21.0 (CPU, as two logical devices).
#
# Seen: BatchNormalization(synchronized=True) under a MirroredStrategy synchronises only as long as there is no mask.
# Of 1 and 3 on the one replica and 100 and 104 on the other it makes -1.02, -0.98 and 0.96, 1.04; with a mask that
# lets all of them through it makes -1, 1 on each, the statistics of each replica alone, as with synchronized=False.
#
# Why it surprises: the layer was asked for synchronisation by name, and a mask of nothing but ones changes the result.
# Masks need not be given: an Embedding(mask_zero=True) or Masking in front of the layer sends one along by itself, so
# that the model for padded sequences trains on small, unsynchronised batches, and says nothing.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q keras==3.15.1 tensorflow-cpu==2.21.0 numpy==2.4.6

cat >seen.py <<'PY'
import keras
import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
data = np.array([[1, 3], [100, 104]], np.float32).reshape(2, 2, 1, 1) * np.ones((1, 1, 2, 2), np.float32)
x = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(data[context.replica_id_in_sync_group])
)

for synchronized in (True, False):
    for masked in (False, True):
        with strategy.scope():
            layer = keras.layers.BatchNormalization(synchronized=synchronized)
            layer.build((None, 2, 2))

        @tf.function
        def train(x, layer=layer, masked=masked):
            def step(x):
                return layer(x, training=True, mask=tf.ones(tf.shape(x)[:2], bool) if masked else None)

            return strategy.run(step, args=(x,))

        ys = [f"{y:.2f}" for part in strategy.experimental_local_results(train(x)) for y in part.numpy()[:, 0, 0]]
        print("synchronized:", synchronized, "mask of ones:", masked, ys)
PY

cat >expected <<'TEXT'
synchronized: True mask of ones: False ['-1.02', '-0.98', '0.96', '1.04']
synchronized: True mask of ones: True ['-1.00', '1.00', '-1.00', '1.00']
synchronized: False mask of ones: False ['-1.00', '1.00', '-1.00', '1.00']
synchronized: False mask of ones: True ['-1.00', '1.00', '-1.00', '1.00']
TEXT

KERAS_BACKEND=tensorflow KERAS_HOME="$folder" TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python -I seen.py | tee seen
diff expected seen
