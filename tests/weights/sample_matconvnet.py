"""Sound .mat files with networks of MatConvNet, most of them of SciPy's making, for damaging."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import scipy.io
from layer_samples import layer

from oclbn.files.formats import matconvnet


def saved(variables: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def cells(values: list[Any]) -> np.ndarray[Any, Any]:
    """A row of cells."""
    made = np.empty((1, len(values)), object)
    made[0, :] = values
    return made


def structs(values: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """A row of structs."""
    made = np.empty((1, len(values)), [(name, object) for name in values[0]])
    for place, fields in enumerate(values):
        for name, value in fields.items():
            made[0, place][name] = value
    return made


def column(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32).reshape(-1, 1)


def simple() -> dict[str, Any]:
    """A network of SimpleNN as MatConvNet's examples build it, one layer of old among the others."""
    moments = np.array([[0.5, 1.5], [-2.0, 3.0], [7.0, 0.25]], np.float32)
    normalization = {
        "type": "bnorm",
        "name": "bn1",
        "weights": cells([column(1.5, 2, 3), column(-1, 0, 1), moments]),
        "epsilon": 1e-4,
        "learningRate": np.array([[2, 1, 0.05]]),
        "weightDecay": np.array([[0.0, 0.0]]),
    }
    layers = [
        {"type": "conv", "name": "conv1", "weights": cells([np.ones((3, 3, 1, 3), np.float32), column(0, 0, 0)])},
        normalization,
        {"type": "relu", "name": "relu1"},
        {"type": "bnorm", "filters": column(1, 2), "biases": column(3, 4)},
        {"type": "bnorm", "weights": cells([column(4, 5), column(6, 7), np.ones((2, 2))])},
    ]
    return {"layers": cells(layers), "meta": {"classes": {"name": cells(["ä", "b"])}}}


def dag() -> dict[str, Any]:
    """A DagNN as its saveobj has it."""
    params = [
        {"name": "bn_m", "value": column(1, 2), "learningRate": 2.0},
        {"name": "bn_b", "value": column(3, 4), "learningRate": 1.0},
        {"name": "bn_x", "value": np.array([[0.5, 2], [-1, 4]], np.float32), "learningRate": 0.1},
    ]
    empty = cells([])
    block = {"numChannels": 2.0, "epsilon": 1e-5, "opts": cells(["NoCuDNN"])}
    names = cells(["bn_m", "bn_b", "bn_x"])
    layers = [
        {"name": "relu", "type": "dagnn.ReLU", "params": empty, "block": {"leak": 0.0}},
        {"name": "bn", "type": "dagnn.BatchNorm", "params": names, "block": block},
    ]
    return {"net": {"layers": structs(layers), "params": structs(params), "vars": structs([{"name": "input"}])}}


def samples() -> list[dict[str, bytes]]:
    layers = [layer(epsilon=1e-3, factor=0.25), layer("other", 3, "float64"), layer("old", mean=None, var=None)]
    return [
        dict(matconvnet.write(layers, "one.mat", None).files),
        {"simple.mat": saved(simple())},
        {"dag.mat": saved(dag())},
        {"packed.mat": saved(dag(), compressed=True)},
    ]
