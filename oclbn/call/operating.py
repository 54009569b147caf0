"""Public operations: functions that prepare a call, made into ones that run it; `bind` finds what only prepares it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from oclbn.call.calls import Call
from oclbn.device import driver_errors

_P = ParamSpec("_P")
_R = TypeVar("_R")

CALLS: dict[Callable[..., Any], Callable[..., Call[Any]]] = {}  # of each operation, what only prepares it


def operation(prepared: Callable[_P, Call[_R]]) -> Callable[_P, _R]:
    """From a function that checks, compiles and allocates, the one that runs the call as well."""

    prepared.__annotations__["return"] = prepared.__annotations__["return"].removeprefix("Call[").removesuffix("]")

    @driver_errors(prepared.__name__)
    @functools.wraps(prepared)  # whose annotations are shown as the call's own
    def run(*given: _P.args, **options: _P.kwargs) -> _R:
        return prepared(*given, **options).run()

    CALLS[run] = prepared
    return run
