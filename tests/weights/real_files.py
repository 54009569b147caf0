"""Files that frameworks have written, of small models: beside each, as .npz, what its layers make of numbers.

Each array of such an .npz is called after a layer: (2, 5, C), x and the y of evaluation.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.files.layers import Layer

FOLDER = Path(__file__).parent / "real"


def content(name: str) -> bytes:
    return gzip.decompress((FOLDER / f"{name}.gz").read_bytes())


def copied(name: str, folder: Path) -> Path:
    """A file of a framework's in a folder of the test's."""
    path = folder / name
    path.write_bytes(content(name))
    return path


def outputs(name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def evaluated(layer: Layer, x: np.ndarray[Any, Any], epsilon: float) -> np.ndarray[Any, Any]:
    """What a layer makes of (N, C), in float64."""
    assert layer.mean is not None
    assert layer.var is not None
    scale, bias, mean, var = (
        default if array is None else array.astype(np.float64)
        for array, default in ((layer.scale, 1.0), (layer.bias, 0.0), (layer.mean, 0.0), (layer.var, 1.0))
    )
    made: np.ndarray[Any, Any] = (x - mean) / np.sqrt(var + epsilon) * scale + bias
    return made
