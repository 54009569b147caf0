"""Layers for tests of files of weights: every type, numbers that are not finite, names and options."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from oclbn.files.layers import Layer

DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}
SIGNALLING = {"float32": 0x7F800001, "float64": 0x7FF0000000000001, "float16": 0x7C01, "bfloat16": 0x7F81}


def layer(name: str = "net.bn1", channels: int = 5, dtype: str = "float32", seed: int = 0, **given: Any) -> Layer:
    """A layer as training leaves it. given: fields instead of these; None leaves an array out."""
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    made: dict[str, Any] = {
        "scale": rng.uniform(0.5, 2, channels).astype(kind),
        "bias": rng.normal(size=channels).astype(kind),
        "mean": rng.normal(size=channels).astype(kind),
        "var": rng.uniform(0.5, 2, channels).astype(kind),
    }
    return Layer(name, **made | given)


def strange(dtype: str) -> np.ndarray[Any, Any]:
    """NaN with a payload, infinities, both zeros, the least number and the largest: six elements."""
    kind = DTYPES[dtype]
    bits = np.dtype(f"u{kind.itemsize}")
    top = np.array([np.inf, -np.inf, 0.0, -0.0], kind).view(bits)
    return np.concatenate([[SIGNALLING[dtype]], top, [1]]).astype(bits).view(kind)
