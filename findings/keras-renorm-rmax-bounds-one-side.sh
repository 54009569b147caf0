#!/usr/bin/env bash
# Keras 3.15.1 with jax 0.10.2 (CPU); tf_keras 2.21.0 does the same.
#
# Seen: BatchNormalization(renorm=True, renorm_clipping={"rmax": 1, "dmax": 0}) is no batch normalization where a batch
# varies less than the statistics so far: 0.04 and 0.06 become -0.01 and 0.01 (in a new layer, whose averages are 0 and
# 1), 4000 and 6000 become -1 and 1. Only with "rmin": 1 as well both are batch norm's -1 and 1 (but for epsilon).
#
# Why it surprises: Ioffe's paper has one bound, r_max, and clips r to [1 / r_max, r_max]; r_max = 1 and d_max = 0 is
# how it begins, as plain batch norm, before the bounds are widened. The dictionary has the paper's names, and rmin,
# which the paper does not have, is no bound at all if it is not given: r falls to 0.01 where 1 was the only value
# allowed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q keras==3.15.1 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import keras
import numpy as np

for clipping in ({"rmax": 1.0, "dmax": 0.0}, {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}, None):
    for factor in (0.01, 1000.0):
        layer = keras.layers.BatchNormalization(
            epsilon=1e-6, renorm=clipping is not None, renorm_clipping=clipping
        )
        y = layer(np.array([[4.0], [6.0]], np.float32) * factor, training=True)
        print(clipping, f"{4 * factor:g} and {6 * factor:g}:", [f"{y:.2f}" for y in np.asarray(y).ravel()])
PY

cat >expected <<'TEXT'
{'rmax': 1.0, 'dmax': 0.0} 0.04 and 0.06: ['-0.01', '0.01']
{'rmax': 1.0, 'dmax': 0.0} 4000 and 6000: ['-1.00', '1.00']
{'rmin': 1.0, 'rmax': 1.0, 'dmax': 0.0} 0.04 and 0.06: ['-1.00', '1.00']
{'rmin': 1.0, 'rmax': 1.0, 'dmax': 0.0} 4000 and 6000: ['-1.00', '1.00']
None 0.04 and 0.06: ['-1.00', '1.00']
None 4000 and 6000: ['-1.00', '1.00']
TEXT

KERAS_BACKEND=jax KERAS_HOME="$folder" JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
