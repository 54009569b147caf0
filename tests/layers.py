"""Modules to be tested, and all that there is to see of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

from oclbn import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND

C = 5
MODULES = [  # how to make it, shape of its data, shape of its parameters
    pytest.param(BatchNorm, (7, C), (1, C, 1, 1), id="features"),
    pytest.param(BatchNorm1D, (7, C, 9), (1, C, 1, 1), id="1-D is kept as 2-D"),
    pytest.param(BatchNorm2D, (4, C, 6, 3), (1, C, 1, 1), id="2-D"),
    pytest.param(BatchNorm3D, (2, C, 3, 4, 5), (1, C, 1, 1, 1), id="3-D"),
    pytest.param(lambda *a, **k: BatchNormND(4, *a, **k), (2, C, 3, 2, 2, 3), (1, C, 1, 1, 1, 1), id="4-D"),
    pytest.param(lambda *a, **k: BatchNormND(0, *a, **k), (7, C), (1, C), id="no spatial axes"),
]
Maker = Callable[..., BatchNormND]


def put(queue: cl.CommandQueue, host: Any) -> cla.Array:
    return cla.to_device(queue, np.ascontiguousarray(host))


def host_of(array: cla.Array | None) -> Any:
    assert array is not None
    return array.get()


def state_of(bn: BatchNormND) -> list[Any]:
    """All that a refused call must leave alone: arrays by identity and content, the rest by value."""
    names = [
        "scale",
        "bias",
        "mean",
        "var",
        "inData",
        "data",
        "grad",
        "savemean",
        "saveinvvar",
        "scalegrad",
        "biasgrad",
    ]
    arrays = [getattr(bn, name) for name in names] + [var.grad for var in bn.vars.values()]
    kept = [(id(array), None if array is None else array.get().tobytes()) for array in arrays]
    return [
        *kept,
        bn.numOfProps,
        bn.train,
        bn.calctype,
        bn.skipped,
        sorted(bn.vars),
        sorted(bn.attrs),
        bn.getBlueprint(),
    ]
