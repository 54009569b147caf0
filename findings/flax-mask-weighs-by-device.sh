#!/usr/bin/env bash
# flax 0.12.8 with jax 0.10.2 (CPU).
#
# Seen: BatchNorm with axis_name and a mask takes the mean over devices of the means on each of them, whatever number
# of samples the mask lets through on a device. Of four samples 1, 2, 3, 6 on the one and a single 100 (three are
# padding) on the other, the mean is 51.5 and the variance 2354, not 22.4 and 1508.24; a device whose samples are all
# padding makes the statistics of every device NaN. Without axis_name, as one batch, both are right. nnx does the same.
#
# Why it surprises: the mask is there to leave out samples, the axis to compute as if the batch were one; each does so
# alone, and the last batch of an epoch, filled up and spread over devices, is what one would use both for. The
# average of averages goes into the running statistics in silence.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q flax==0.12.8 jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import jax
import jax.numpy as jnp
from flax import linen, nnx

x = jnp.array([[[1.0], [2.0], [3.0], [6.0]], [[100.0], [0.0], [0.0], [0.0]]])
some = jnp.array([[[True]] * 4, [[True], [False], [False], [False]]])


def in_linen(x, mask, axis_name):
    # Momentum 0: the statistics are those of this batch.
    layer = linen.BatchNorm(use_running_average=False, momentum=0.0, axis_name=axis_name)
    state = linen.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    state = layer.apply(state, x, mask=mask, mutable="batch_stats")[1]["batch_stats"]
    return state["mean"], state["var"]


def in_nnx(x, mask, axis_name):
    layer = nnx.BatchNorm(1, momentum=0.0, axis_name=axis_name, rngs=nnx.Rngs(0))
    layer(x, mask=mask, use_running_average=False)
    return layer.mean[...], layer.var[...]


def seen(name, mean, var):
    print(f"{name}: mean {mean.ravel()[0]:.6g} variance {var.ravel()[0]:.6g}")


for run in (in_linen, in_nnx):
    seen(f"{run.__name__}, one batch", *run(x.reshape(8, 1), some.reshape(8, 1), None))
    for name, mask in (("1 of 4", some), ("none", some.at[1].set(False))):
        over = jax.vmap(lambda x, mask, run=run: run(x, mask, "devices"), axis_name="devices")
        seen(f"{run.__name__}, two devices, {name} on the second", *over(x, mask))
PY

cat >expected <<'TEXT'
in_linen, one batch: mean 22.4 variance 1508.24
in_linen, two devices, 1 of 4 on the second: mean 51.5 variance 2354
in_linen, two devices, none on the second: mean nan variance nan
in_nnx, one batch: mean 22.4 variance 1508.24
in_nnx, two devices, 1 of 4 on the second: mean 51.5 variance 2354
in_nnx, two devices, none on the second: mean nan variance nan
TEXT

JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
