#!/usr/bin/env bash
# flax 0.12.8 with jax 0.10.2 (CPU).
#
# Seen: linen.BatchNorm (nnx.BatchNorm alike) takes the variance as E[x^2] - E[x]^2 and cuts off what is negative at
# 0. For float32 data of mean 10,000 and standard deviation 1, 256 samples, 6 of 8 features get a variance of exactly
# 0, the others 24 and 32, and the largest normalised value is 1216 instead of 3.8. With use_fast_variance=False all
# is right. `jax.nn.standardize` shows the same.
#
# Why it surprises: nothing is NaN, nothing is large: a timestamp, a temperature in Kelvin or a pixel of 16 bits is
# enough. The clipped variance is divided by as if it were right (1 / sqrt(0 + 1e-5) = 316), and goes into the running
# average as 0.
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

x = np.random.default_rng(0).normal(1e4, 1, (256, 8)).astype(np.float32)
print("variances in float64:", x.astype(np.float64).var(axis=0).round(2).tolist())
for fast in (True, False):
    layer = linen.BatchNorm(use_running_average=False, momentum=0.0, use_fast_variance=fast)
    variables = layer.init(jax.random.key(0), x)
    y, updates = layer.apply(variables, x, mutable=["batch_stats"])
    variances = np.asarray(updates["batch_stats"]["var"]).astype(float)
    print("use_fast_variance:", fast, "any exactly 0:", bool((variances == 0).any()), end=" ")
    print("all within 1 %:", np.allclose(variances, x.astype(float).var(axis=0), rtol=0.01), end=" ")
    print("largest |y| above 100:", bool(jnp.abs(y).max() > 100))
print("jax.nn.standardize above 100:", bool(jnp.abs(jax.nn.standardize(x, axis=0)).max() > 100))
PY

cat >expected <<'TEXT'
variances in float64: [0.89, 0.89, 0.97, 1.07, 1.2, 0.85, 1.12, 1.01]
use_fast_variance: True any exactly 0: True all within 1 %: False largest |y| above 100: True
use_fast_variance: False any exactly 0: False all within 1 %: True largest |y| above 100: False
jax.nn.standardize above 100: True
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
