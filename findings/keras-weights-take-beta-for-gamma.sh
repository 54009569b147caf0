#!/usr/bin/env bash
# Keras 3.15.1 with jax 0.10.2 (CPU).
#
# Seen: the weights of BatchNormalization(scale=False), which has beta and no gamma, load into
# BatchNormalization(center=False), which has gamma and no beta: what was added, 5, is what is multiplied by from then
# on, without a word. And two layers called "early" and "late" load into a model that has them the other way round, each
# the other's values, though the file holds both names.
#
# Why it surprises: the file has the layer's own name, and the layer knows the names of its variables, so that either
# would be noticed. In .weights.h5 variables are numbers, 0, 1, 2, and layers are their class and a number; the names
# that are written are not looked at by load_weights. One who reads such a file cannot tell gamma from beta where there
# is one of them: that is in the configuration only.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q keras==3.15.1 jax==0.10.2 numpy==2.4.6 h5py==3.16.0

cat >seen.py <<'PY'
import h5py
import keras
import numpy as np
from keras.layers import BatchNormalization


def model(*layers):
    made = keras.Sequential(layers)
    made.build((None, 1))
    return made


source = model(BatchNormalization(scale=False))
source.layers[0].beta.assign([5.0])
source.save_weights("one.weights.h5")
target = model(BatchNormalization(center=False))
target.load_weights("one.weights.h5")
for name, made in (("scale=False", source), ("center=False, loaded", target)):
    print(name, [round(float(y), 2) for y in np.ravel(made.predict(np.array([[0.0], [1.0]]), verbose=0))])

source = model(BatchNormalization(name="early"), BatchNormalization(name="late"))
source.get_layer("early").beta.assign([1.0])
source.get_layer("late").beta.assign([2.0])
source.save_weights("two.weights.h5")
target = model(BatchNormalization(name="late"), BatchNormalization(name="early"))
target.load_weights("two.weights.h5")
with h5py.File("two.weights.h5") as file:
    print("in the file:", {str(one["vars"].attrs["name"]): float(one["vars/1"][0]) for one in file["layers"].values()})
print("loaded:", {name: float(target.get_layer(name).beta[0]) for name in ("early", "late")})
PY

cat >expected <<'TEXT'
scale=False [5.0, 6.0]
center=False, loaded [0.0, 5.0]
in the file: {'early': 1.0, 'late': 2.0}
loaded: {'early': 2.0, 'late': 1.0}
TEXT

KERAS_BACKEND=jax KERAS_HOME="$folder" JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
