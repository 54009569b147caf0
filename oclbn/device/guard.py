"""Around the driver: what fails there is an error of oclbn's that says at what.

Arguments that do not fit the signature of what stands there are told in words of ours, too: see oclbn.names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pyopencl as cl

from oclbn import names
from oclbn.device import forks
from oclbn.errors import DeviceError, SizeError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_NO_MEMORY = (
    cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE,
    cl.status_code.OUT_OF_RESOURCES,
    cl.status_code.OUT_OF_HOST_MEMORY,
    cl.status_code.INVALID_BUFFER_SIZE,
)


def driver_errors(doing: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Around work of the driver: what fails there is a DeviceError (SizeError: no memory) that says at what.

    The driver's own error is the cause. In a child that was forked after drivers were loaded: ContextError.
    """

    def around(work: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(work)
        def guarded(*given: _P.args, **options: _P.kwargs) -> _T:
            forks.begin()
            try:
                return work(*given, **options)
            except cl.Error as error:
                wanted = SizeError if isinstance(error, cl.MemoryError) else DeviceError
                raise wanted(f"{doing}: the driver fails: {error}") from error
            except TypeError:
                names.refuse(guarded, given, options)
                raise

        return guarded

    return around


def lacks_memory(error: Exception) -> bool:
    """Whether an error of an allocation says that there is no room, rather than that the device is gone."""
    code = getattr(error, "code", None)  # one that no driver raised has none
    return isinstance(error, (cl.MemoryError, MemoryError)) or code in _NO_MEMORY
