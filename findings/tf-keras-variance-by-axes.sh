#!/usr/bin/env bash
# tf_keras 2.21.0 with TensorFlow 2.21.0 (CPU).
#
# Seen: two samples, 4 and 6, go through BatchNormalization with momentum 0, so that the moving variance is that of the
# batch. Of shape (2, 1) or (2, 1, 1) it is 1, the sum of squares divided by the number of values; of shape (2, 1, 1, 1)
# or (2, 1, 1, 1, 1) it is 2, divided by one less. In training all give -1 and 1; in evaluation the first two give that
# again, and the others -0.707 and 0.707.
#
# Why it surprises: one class, one set of options, the same numbers; what is stored depends on how many axes there are,
# as from four on another kernel, the fused one, is at work. A layer that is moved from behind the pooling to before it,
# or fed (N, 1, 1, C) instead of (N, C), evaluates otherwise; with few values per channel by much. With fused=False, and
# in Keras 3, it is 1 throughout.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q tf_keras==2.21.0 tensorflow-cpu==2.21.0 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import tf_keras

x = np.float32([4.0, 6.0])
for axes, options in ((2, {}), (3, {}), (4, {}), (5, {}), (4, {"fused": False})):
    layer = tf_keras.layers.BatchNormalization(momentum=0.0, **options)
    data = x.reshape(2, *(1,) * (axes - 1))
    y, z = ([round(float(one), 3) for one in np.ravel(layer(data, training=mode))] for mode in (True, False))
    print(axes, "axes", options or "", "training:", y, f"variance {layer.moving_variance.numpy()[0]:.3g}", end=" ")
    print("evaluation:", z)
PY

cat >expected <<'TEXT'
2 axes  training: [-1.0, 1.0] variance 1 evaluation: [-1.0, 1.0]
3 axes  training: [-1.0, 1.0] variance 1 evaluation: [-1.0, 1.0]
4 axes  training: [-1.0, 1.0] variance 2 evaluation: [-0.707, 0.707]
5 axes  training: [-1.0, 1.0] variance 2 evaluation: [-0.707, 0.707]
4 axes {'fused': False} training: [-1.0, 1.0] variance 1 evaluation: [-1.0, 1.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
