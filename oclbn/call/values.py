"""What one number is, and the words of errors on what is none, for options of functions and of modules.

True and False are none: as an epsilon, a factor or a count they are a slip. Nor is text.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from oclbn.elements import as_code, is_narrow
from oclbn.errors import ParameterError

_LONGEST = 200  # characters of a value that a message repeats


def kind_of(value: Any) -> str:
    """What came instead of an array, as errors tell it: "None", or "a numpy.ndarray"."""
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def shown(value: Any) -> str:
    """What came instead of a number, a flag or a name: as Python writes it, or what it is where that is an array."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        return f"{kind_of(value)} of shape {shape}"
    text = repr(value)
    return text if len(text) <= _LONGEST else kind_of(value)


def made_of(name: str, value: Any, dtype: Any = None, queue: str = "", size: int = 1) -> str:
    """How a device array of this type (None: float32) is made of what came instead, or nothing where it is no numbers.

    queue: an expression for the queue that it has to be on. size: the elements that are made of a single number.
    """
    if not isinstance(value, (np.ndarray, np.generic, list, tuple, float, int)) and not hasattr(value, "__array__"):
        return ""
    where = f", queue={queue}" if queue else ""
    kind = as_code(np.dtype(dtype or np.float32))
    host = f"np.asarray({name}, {kind})" if size == 1 or real(value) is None else f"np.full({size}, {name}, {kind})"
    return f": oclbn.gpuarray.to_gpu({host}{where}) makes one"


def context_of(array_or_queue: Any) -> str:
    """The context of an array or a queue, told by its devices."""
    names = ", ".join(device.name.strip() for device in array_or_queue.context.devices)
    return f"a context of {names}"


def real(value: Any) -> float | None:
    """`value` as a float if it is one real number, of any type: NumPy's, a fraction, an array of no axes; else None."""
    array_like = isinstance(value, (np.generic, np.ndarray))
    if isinstance(value, (bool, str, bytes, bytearray)) or (
        array_like and (value.ndim or not (value.dtype.kind in "iuf" or is_narrow(value.dtype)))
    ):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer, or a fraction
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def integer(value: Any) -> int | None:
    """`value` as an int if it is one integer of any type; else None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    error: type[ParameterError] = ParameterError,
) -> float:
    """`value` as a float from low to high, both included; infinities and NaN are refused, by `error`."""
    converted = real(value)
    if converted is None or not low <= converted <= high or math.isinf(converted):
        wanted = "a finite number" if low == -math.inf else f"a finite number from {low:g} on"
        wanted = wanted if high == math.inf else f"a number from {low:g} to {high:g}"
        raise error(f"{name} is {shown(value)}; {wanted} is wanted")
    return converted + 0.0  # never -0.0: calls are known again by their numbers, and the two zeros are equal


def whole(
    name: str, value: Any, low: int = 0, most: int | None = None, *, error: type[ParameterError] = ParameterError
) -> int:
    """`value` as an int from low to most, both included; anything else is refused, by `error`."""
    converted = integer(value)
    if converted is None or converted < low or (most is not None and converted > most):
        wanted = f"a whole number from {low} " + ("on" if most is None else f"to {most}")
        raise error(f"{name} is {shown(value)}; {wanted} is wanted")
    return converted
