#!/usr/bin/env bash
# jax 0.10.2, CPU with two devices.
#
# Seen: jax.lax.pmean of 200 and 100 in uint8 is 22, of 100 and 100 in int8 -28, of 40000 and 40000 in float16 infinity.
# It adds in the type that comes, and integers wrap, before it converts to float32 and divides. In shard_map and vmap
# alike; booleans are added in int32. jnp.mean of the same numbers, on one device or on two, is 150, 100 and 40000.
#
# Why it surprises: the result for integers is a float32, as jnp.mean's, so that it looks as if the mean had been taken
# in it; jnp.mean, which is to be replaced by the one over a named axis, takes care of all of these. Pixels are uint8,
# and second moments leave float16 early.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q jax==0.10.2 numpy==2.4.6

cat >seen.py <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()), "d")
over_devices = PartitionSpec("d")


def pmean(x):
    return jax.lax.pmean(x, "d")


in_shard_map = jax.shard_map(pmean, mesh=mesh, in_specs=over_devices, out_specs=PartitionSpec())
in_vmap = jax.vmap(pmean, axis_name="d")
for dtype, values in (("uint8", [200, 100]), ("int8", [100, 100]), ("float16", [4e4, 4e4]), ("bool", [True, True])):
    x = jax.device_put(np.array(values, dtype), NamedSharding(mesh, over_devices))
    mean = jnp.mean(x)
    print(f"{dtype} {values}: mean {float(mean)} ({mean.dtype})", end=", ")
    of_shards, of_lanes = in_shard_map(x)[0], in_vmap(x)[0]
    print(f"pmean in shard_map {float(of_shards)} ({of_shards.dtype}), in vmap {float(of_lanes)} ({of_lanes.dtype})")
PY

cat >expected <<'TEXT'
uint8 [200, 100]: mean 150.0 (float32), pmean in shard_map 22.0 (float32), in vmap 22.0 (float32)
int8 [100, 100]: mean 100.0 (float32), pmean in shard_map -28.0 (float32), in vmap -28.0 (float32)
float16 [40000.0, 40000.0]: mean 40000.0 (float16), pmean in shard_map inf (float16), in vmap inf (float16)
bool [True, True]: mean 1.0 (float32), pmean in shard_map 1.0 (float32), in vmap 1.0 (float32)
TEXT

XLA_FLAGS=--xla_force_host_platform_device_count=2 JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
