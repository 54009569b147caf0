"""Sound .npz files, for damaging."""

from __future__ import annotations

import io

import numpy as np
from layer_samples import layer

from oclbn.files.formats import npz


def samples() -> list[dict[str, bytes]]:
    layers = [layer(batches=7, epsilon=1e-3, factor=0.1), layer("other", 3, "bfloat16", cumulative=True)]
    plain = io.BytesIO()
    np.savez(plain, **{"bn/gamma": np.ones(3, "f4"), "bn/avg_mean": np.ones(3, "f4"), "bn/avg_var": np.ones(3, "f4")})
    return [dict(npz.write(layers, "one.npz", None).files), {"plain.npz": plain.getvalue()}]
