#!/usr/bin/env bash
# equinox 0.13.8 with jax 0.10.2 (CPU).
#
# Seen: BatchNorm(mode="batch") evaluates the one batch that it was trained on to -0.1 and 0.1 where training gave -1
# and 1. Inference divides both averages by 1 - 0.99^t (t batches) as if both had started from 0, but the variance
# starts from 1: after the first batch (mean 5, variance 1) it holds 1, and is taken for 100. What is stored is not
# what is used.
#
# Why it surprises: a correction of a bias makes averages right early; this one is wrong by 1 / (1 - 0.99^t) - 1, a
# factor of 10 in the standard deviation after one batch and 1.26 after a hundred. It is gone after some hundreds, so
# that only short trainings, and converters that copy the stored variance, see other numbers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q equinox==0.13.8 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import equinox as eqx
import jax
import jax.numpy as jnp


def run(layer, state, x):
    return jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


x = jnp.array([[4.0], [6.0]])
for batches in (1, 100, 1000):
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(1, axis_name="batch", mode="batch")
    train = eqx.filter_jit(run)
    for _ in range(batches):
        y, state = train(layer, state, x)
    z, _ = run(eqx.nn.inference_mode(layer), state, x)
    print(batches, "times the batch 4, 6; training:", [round(float(v), 3) for v in y.ravel()], end=" ")
    print("inference:", [round(float(v), 3) for v in z.ravel()])
PY

cat >expected <<'TEXT'
1 times the batch 4, 6; training: [-1.0, 1.0] inference: [-0.1, 0.1]
100 times the batch 4, 6; training: [-1.0, 1.0] inference: [-0.796, 0.796]
1000 times the batch 4, 6; training: [-1.0, 1.0] inference: [-1.0, 1.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
