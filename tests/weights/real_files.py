"""Files that other frameworks have written, kept beside the tests with what they compute from them.

real/NAME.json: {"made": the framework, its version and how, "files": {name: base64 of zlib}, and inputs and outputs}.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.files.layers import Layer


def real(name: str, folder: Path) -> dict[str, Any]:
    """What is kept of one framework, after its files were laid into a folder."""
    kept: dict[str, Any] = json.loads((Path(__file__).parent / "real" / f"{name}.json").read_text())
    for called, content in kept["files"].items():
        (folder / called).write_bytes(zlib.decompress(base64.b64decode(content)))
    return kept


def evaluated(layer: Layer, x: Any, epsilon: float = 1e-5) -> np.ndarray[Any, Any]:
    """What a layer makes of x, of shape (N, C, ...), in float64."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    given = {name: array.astype(np.float64).reshape(shape) for name, array in layer.arrays.items()}
    centred = (x - given["mean"]) / np.sqrt(given["var"] + (epsilon if layer.epsilon is None else layer.epsilon))
    result: np.ndarray[Any, Any] = centred * given.get("scale", 1.0) + given.get("bias", 0.0)
    return result
