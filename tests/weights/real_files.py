"""Files that frameworks have written, and what these compute from them: real/NAME.json.

Each holds {"made by": packages and versions, "files": {NAME: base64 of zlib}, "layers": {NAME: {"epsilon": number,
"x": (N, C), "y": the framework's own evaluation of x}}}; the first of files is the one to read. Where nothing evaluates
them there are "arrays": {NAME: {ROLE: numbers}} instead of layers.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.files.layers import Content, Layer

FOLDER = Path(__file__).parent / "real"


def described(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return told


def contents(name: str) -> dict[str, bytes]:
    """The files by name."""
    return {key: zlib.decompress(base64.b64decode(value)) for key, value in described(name)["files"].items()}


def unpacked(name: str, folder: Path) -> Path:
    """The files in a folder; which one is to be read."""
    found = contents(name)
    for key, value in found.items():
        (folder / key).write_bytes(value)
    return folder / next(iter(found))


def real(name: str, folder: Path) -> dict[str, Any]:
    """What is kept under a name, after its files were laid into a folder."""
    unpacked(name, folder)
    return described(name)


def content(name: str) -> bytes:
    """A file that is kept whole, as real/NAME.gz."""
    return gzip.decompress((FOLDER / f"{name}.gz").read_bytes())


def copied(name: str, folder: Path) -> Path:
    """The same in a folder of the test's."""
    path = folder / name
    path.write_bytes(content(name))
    return path


def outputs(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Beside it, real/NAME.npz: by the layer's name (2, N, C), x and the framework's own evaluation of it."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def evaluated(layer: Layer, x: Any, epsilon: float = 1e-5) -> np.ndarray[Any, Any]:
    """What a layer makes of x, of shape (N, C, ...), in float64. epsilon: where its file does not say."""
    x = np.asarray(x, np.float64)
    shape = (1, -1, *[1] * (x.ndim - 2))
    wide = {role: array.astype(np.float64).reshape(shape) for role, array in layer.arrays.items()}
    centred = (x - wide["mean"]) / np.sqrt(wide["var"] + (epsilon if layer.epsilon is None else layer.epsilon))
    result: np.ndarray[Any, Any] = centred * wide.get("scale", 1.0) + wide.get("bias", 0.0)
    return result


def check(name: str, content: Content, tolerance: float = 2e-5) -> None:
    """The layers are those that the framework had, in its order, and compute what it did."""
    told = described(name)["layers"]
    assert list(content) == list(told)
    for key, one in told.items():
        found = content[key]
        if found.epsilon is not None:
            assert abs(found.epsilon - one["epsilon"]) <= 1e-7 * one["epsilon"], key
        y = evaluated(found, one["x"], one["epsilon"])
        assert np.abs(y - np.asarray(one["y"])).max() <= tolerance * max(1.0, np.abs(y).max()), key
