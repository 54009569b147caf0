"""Types of elements: what tensors hold in memory, and what is computed with.

Tensors hold float16, bfloat16, float32 or float64. Numbers per channel and all sums are float32, and float64 where the
tensor is. bfloat16 is the type of the package ml_dtypes (`ml_dtypes.bfloat16`), which is asked for only where somebody
names that type.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from oclbn.errors import MissingExtraError

NUMBERS = (np.dtype(np.float32), np.dtype(np.float64))  # what is computed with
WANTED = "float32, float64, float16 or bfloat16"
_BFLOAT16 = "bfloat16"
_KINDS = {"float32": 0, "float64": 0, "float16": 1, _BFLOAT16: 2}  # KIND_x in kernels/numbers/io.clh


@dataclass(frozen=True)
class Range:
    """What a type can hold, as numpy.finfo says it of NumPy's own: floats."""

    eps: float  # from 1 to the next number
    tiny: float  # the least normal number
    least: float  # the least number above 0
    max: float


@functools.lru_cache(maxsize=256)
def kind(dtype: np.dtype[Any]) -> int | None:
    """How elements of this type lie in memory, as kernels call it; None: no tensor can have it."""
    return _KINDS.get(dtype.name) if dtype.isnative else None


def of_kind(kind: int, numbers: np.dtype[Any]) -> np.dtype[Any]:
    """The type whose elements lie in memory so, where these numbers are computed with."""
    return (numbers, np.dtype(np.float16), bfloat16() if kind == _KINDS[_BFLOAT16] else numbers)[kind]


@functools.lru_cache(maxsize=256)
def numbers_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What is computed with, and what numbers per channel are, where a tensor's elements have this type."""
    return NUMBERS[1] if dtype == NUMBERS[1] else NUMBERS[0]


@functools.lru_cache(maxsize=256)
def range_of(dtype: np.dtype[Any]) -> Range:
    """What a type of `kind` can hold."""
    if dtype.name == _BFLOAT16:  # NumPy's finfo does not know it
        single = np.finfo(np.float32)
        return Range(2.0**-7, float(single.tiny), 2.0**-133, 2.0**128 - 2.0**120)
    info = np.finfo(dtype)
    return Range(float(info.eps), float(info.tiny), float(info.smallest_subnormal), float(info.max))


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether elements of this type are computed with as float32."""
    return bool(kind(dtype))


def dtype_of(value: Any) -> np.dtype[Any] | None:
    """The type that is named by a dtype, a scalar type or a name, if tensors can have it; else None.

    MissingExtraError: "bfloat16" is asked for by name, and ml_dtypes is not there.
    """
    try:
        found = None if value is None else named(value) if isinstance(value, str) else np.dtype(value)
    except TypeError:
        return None
    return found if found is not None and kind(found) is not None else None


def named(name: str) -> np.dtype[Any]:
    """The type of this name. MissingExtraError: it is "bfloat16", and ml_dtypes is not there."""
    return bfloat16() if name == _BFLOAT16 else np.dtype(name)


def narrow() -> tuple[str, ...]:
    """The names of the types of `is_narrow` that can be had here: without ml_dtypes there is no bfloat16."""
    return ("float16", _BFLOAT16) if importlib.util.find_spec("ml_dtypes") else ("float16",)


def as_code(dtype: np.dtype[Any]) -> str:
    """The type as code that makes an array of it says it, for advice."""
    return f"ml_dtypes.{dtype.name}" if dtype.name == _BFLOAT16 else f"np.{dtype}"


def bfloat16() -> np.dtype[Any]:
    """ml_dtypes' bfloat16. MissingExtraError where that is not there."""
    try:
        from ml_dtypes import bfloat16 as scalar
    except ImportError as error:
        raise MissingExtraError("bfloat16 is a type of ml-dtypes: pip install 'oclbn[bfloat16]'") from error
    found: np.dtype[Any] = np.dtype(scalar)
    return found
