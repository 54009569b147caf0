"""How frameworks' batch normalization differs, as data: whose momentum, which variance, where epsilon stands.

A module that goes on as another framework's layer would is made with that framework's options:

>>> from oclbn import BatchNorm2D, conventions
>>> bn = BatchNorm2D(64, **conventions.KERAS.options(momentum=0.9))
>>> bn.epsilon, bn.minFactor, bn.estimator
(0.001, 0.1, 'population')
>>> conventions.named("pytorch").factor(1)
0.1

What is said of a framework was measured by running it, in the version that `measured` names:
`benchmarks/conventions.py` does that, and the tests hold modules to its results, running statistics over 100 batches
and an evaluation. Where `measured` begins with "source", it was read in the code of that state. `ALL` has all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from oclbn import names
from oclbn.conventions.convention import Convention, Names
from oclbn.conventions.inference import CAFFE, COREML, DARKNET, DARKNET_CPU, MATCONVNET, NCNN, OPENCV_DARKNET, OPENVINO
from oclbn.conventions.training import (
    CHAINER,
    EQUINOX,
    EQUINOX_EMA,
    FLAX,
    HAIKU,
    JITTOR,
    KERAS,
    MLX,
    MLX_031,
    MNN,
    MXNET,
    NNABLA,
    OCLBN,
    ONNX,
    PADDLE,
    PUZZLELIB,
    PYTORCH,
    TENSORFLOW_FUSED,
    TF_KERAS,
    TINYGRAD,
)
from oclbn.errors import ParameterError

__all__ = [
    "ALL",
    "CAFFE",
    "CHAINER",
    "COREML",
    "DARKNET",
    "DARKNET_CPU",
    "EQUINOX",
    "EQUINOX_EMA",
    "FLAX",
    "HAIKU",
    "JITTOR",
    "KERAS",
    "MATCONVNET",
    "MLX",
    "MLX_031",
    "MNN",
    "MXNET",
    "NCNN",
    "NNABLA",
    "OCLBN",
    "ONNX",
    "OPENCV_DARKNET",
    "OPENVINO",
    "PADDLE",
    "PUZZLELIB",
    "PYTORCH",
    "TENSORFLOW_FUSED",
    "TF_KERAS",
    "TINYGRAD",
    "Convention",
    "Names",
    "named",
]

ALL: Mapping[str, Convention] = MappingProxyType(
    {
        one.key: one
        for one in (
            PYTORCH,
            KERAS,
            TF_KERAS,
            TENSORFLOW_FUSED,
            ONNX,
            PADDLE,
            MXNET,
            FLAX,
            HAIKU,
            EQUINOX,
            EQUINOX_EMA,
            MLX,
            MLX_031,
            TINYGRAD,
            CHAINER,
            NNABLA,
            JITTOR,
            MNN,
            PUZZLELIB,
            OCLBN,
            CAFFE,
            DARKNET,
            DARKNET_CPU,
            OPENCV_DARKNET,
            NCNN,
            OPENVINO,
            COREML,
            MATCONVNET,
        )
    }
)

_ALSO = {  # what else people call them
    "torch": "pytorch",
    "jax": "flax",
    "linen": "flax",
    "nnx": "flax",
    "gluon": "mxnet",
    "paddlepaddle": "paddle",
    "onnxruntime": "onnx",
    "dm-haiku": "haiku",
    "tf": "tensorflow_fused",
    "tensorflow": "tensorflow_fused",
    "coremltools": "coreml",
    "yolo": "darknet",
}


def named(name: str) -> Convention:
    """The convention of this name, in any case of letters: "pytorch" is PYTORCH. ParameterError: there is none."""
    key = name.lower().replace("-", "_").replace(" ", "_") if isinstance(name, str) else ""
    if key in ALL:
        return ALL[key]
    near = _nearest(name) if key else None
    meant = f"; did you mean {near!r}?" if near else ";"
    raise ParameterError(f"the convention is {name!r}{meant} there are {', '.join(ALL)}")


def _nearest(name: str) -> str | None:
    """The key of the convention that was most likely meant; None: none is near."""
    lower = name.lower()
    if lower in _ALSO:
        return _ALSO[lower]
    near = next(iter(difflib.get_close_matches(lower.replace("-", "_").replace(" ", "_"), [*ALL, *_ALSO], 1)), None)
    return _ALSO.get(near, near) if near else None


def _meant(name: str) -> str | None:
    """The name in this module that was most likely meant by one that is not in it."""
    found = names.nearest(name, [one for one in __all__ if one.lower() not in ALL])
    if found is None and not name.startswith("_") and (key := _nearest(name)):
        found = key.upper()
    return found


if not TYPE_CHECKING:  # checkers would take every name for one that is there
    __getattr__ = names.lacking(__name__, _meant)
