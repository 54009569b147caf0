#!/usr/bin/env bash
# jax 0.10.2, CPU with two devices (and one).
#
# Seen: jnp.max of [NaN, 1] is NaN on one device and 1 if the array lies on two. Of an array that is all NaN on two
# devices, max is -inf and min is inf, numbers that are nowhere in it. jax.lax.pmax in shard_map does the same, in vmap
# it keeps NaN. Sum, argmax and isnan find the NaN on two devices as on one.
#
# Why it surprises: where an array lies is said to change how fast a program is, not what it computes, and no collective
# stands in this one. Each device does find its NaN; it is lost when the two maxima meet. A check of gradients by their
# largest element passes when the model moves to several devices.
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
nan = float("nan")
for values in ([nan, 1.0], [1.0, nan], [nan, nan]):
    one = jax.device_put(jnp.array(values), jax.devices()[0])
    two = jax.device_put(one, NamedSharding(mesh, over_devices))
    for name in ("max", "min", "sum", "argmax"):
        print(f"{name} of {values}: one device {getattr(jnp, name)(one)}, two {getattr(jnp, name)(two)}")
    pmax = jax.shard_map(lambda x: jax.lax.pmax(x, "d"), mesh=mesh, in_specs=over_devices, out_specs=PartitionSpec())
    print(f"pmax of {values}: vmap {jax.vmap(lambda x: jax.lax.pmax(x, 'd'), axis_name='d')(one)[0]}", end=", ")
    print(f"shard_map {pmax(two)[0]}")
PY

cat >expected <<'TEXT'
max of [nan, 1.0]: one device nan, two 1.0
min of [nan, 1.0]: one device nan, two 1.0
sum of [nan, 1.0]: one device nan, two nan
argmax of [nan, 1.0]: one device 0, two 0
pmax of [nan, 1.0]: vmap nan, shard_map 1.0
max of [1.0, nan]: one device nan, two 1.0
min of [1.0, nan]: one device nan, two 1.0
sum of [1.0, nan]: one device nan, two nan
argmax of [1.0, nan]: one device 1, two 1
pmax of [1.0, nan]: vmap nan, shard_map 1.0
max of [nan, nan]: one device nan, two -inf
min of [nan, nan]: one device nan, two inf
sum of [nan, nan]: one device nan, two nan
argmax of [nan, nan]: one device 0, two 0
pmax of [nan, nan]: vmap nan, shard_map -inf
TEXT

XLA_FLAGS=--xla_force_host_platform_device_count=2 JAX_PLATFORMS=cpu venv/bin/python -I seen.py | tee seen
diff expected seen
