#!/usr/bin/env bash
# flax 0.12.8 with jax 0.10.2 (CPU).
#
# Seen: flax.serialization.from_bytes(target, data) checks the names of the target and nothing else: batch statistics
# of 4 features, or of 1, are put into a layer of 3, and an array of float64 into one of bfloat16, without a word. Of
# an array in the other byte order (">f4", as read from many files) the bytes are kept and the order is lost.
#
# Why it surprises: the target is an argument to say what is expected, a missing or additional name is a ValueError,
# and PyTorch refuses the wrong shape when it loads. Flax checks parameters when they are used, statistics not even
# then: those of one feature fit every layer by broadcasting, so that the mistake may never show as an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q flax==0.12.8 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from flax.serialization import from_bytes, to_bytes

layer = linen.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)
three, one, four = (layer.init(jax.random.key(0), jnp.ones((2, features))) for features in (3, 1, 4))
for stored in (four, one):
    loaded = from_bytes(three, to_bytes(stored))
    print("layer of 3 features loads", {name: loaded["batch_stats"][name].shape for name in ("mean", "var")})
y = layer.apply(loaded, jnp.ones((2, 3)))
print("and is evaluated to the shape", y.shape)
loaded = from_bytes({"x": jnp.ones(2, jnp.bfloat16)}, to_bytes({"x": np.ones(2)}))
print("bfloat16 loads", loaded["x"].dtype)
loaded = from_bytes({"x": np.ones(2, np.float32)}, to_bytes({"x": np.array([1, 2], ">f4")}))
print("1, 2 in the other byte order load as", loaded["x"].tolist())
try:
    from_bytes({"x": np.ones(2), "y": np.ones(2)}, to_bytes({"x": np.ones(2)}))
except ValueError as error:
    print("a missing name:", type(error).__name__)
PY

cat >expected <<'TEXT'
layer of 3 features loads {'mean': (4,), 'var': (4,)}
layer of 3 features loads {'mean': (1,), 'var': (1,)}
and is evaluated to the shape (2, 3)
bfloat16 loads float64
1, 2 in the other byte order load as [4.600602988224807e-41, 8.96831017167883e-44]
a missing name: ValueError
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
