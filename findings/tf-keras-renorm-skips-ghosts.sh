#!/usr/bin/env bash
# tf_keras 2.21.0 with TensorFlow 2.21.0 (CPU).
#
# Seen: BatchNormalization with renorm=True and virtual_batch_size=2 takes both, and renormalises nothing. Two virtual
# batches, 0 and 2, and 100 and 104, come out as -1, 1 and -1, 1 once the averages have settled, as without renorm.
# With renorm and one of them at a time, the averages of both at hand, they are -32.6 and -31.3, and 30.7 and 33.2.
#
# Why it surprises: renormalization is for small batches, which virtual batches are, and its corrections r and d are
# there to undo the difference between a batch and the average. Here they are computed once, from the mean of the
# virtual batches' statistics, which is the average: r is 1 and d is 0, for every virtual batch, however far it lies.
# No error, and the unclipped corrections promise the opposite, that training and evaluation agree.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q tf_keras==2.21.0 tensorflow-cpu==2.21.0 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import tf_keras

ghosts = np.array([[0, 2], [100, 104]], np.float32)


def layer(**more):
    # Momenta of 0: the averages are those of the last batch.
    return tf_keras.layers.BatchNormalization(momentum=0.0, epsilon=1e-6, **more)


def seen(name, y):
    print(f"{name}:", [f"{y:.1f}" for y in y.numpy().reshape(2, 2).T.ravel()])


both = layer(renorm=True, renorm_momentum=0.0, virtual_batch_size=2)
x = ghosts.T.reshape(4, 1)  # Virtual batches are every second sample.
both(x, training=True)
seen("renorm and virtual batches", both(x, training=True))
mean, deviation = float(both.renorm_mean.numpy().ravel()[0]), float(both.renorm_stddev.numpy().ravel()[0])
print(f"average mean {mean:.4g} deviation {deviation:.4g}")
seen("virtual batches", layer(virtual_batch_size=2)(x, training=True))

ys = []
for ghost in ghosts:
    alone = layer(renorm=True)
    alone.build((None, 1))
    alone.renorm_mean.assign([mean])
    alone.renorm_stddev.assign([deviation])
    ys += [f"{y:.1f}" for y in alone(ghost.reshape(2, 1), training=True).numpy().ravel()]
print("renorm, one at a time:", ys)
PY

cat >expected <<'TEXT'
renorm and virtual batches: ['-1.0', '1.0', '-1.0', '1.0']
average mean 51.5 deviation 1.581
virtual batches: ['-1.0', '1.0', '-1.0', '1.0']
renorm, one at a time: ['-32.6', '-31.3', '30.7', '33.2']
TEXT

TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python -I seen.py | tee seen
diff expected seen
