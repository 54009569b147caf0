"""Public operations: functions that prepare a call, made into ones that run it; `bind` finds what only prepares it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from oclbn.call.calls import Call
from oclbn.call.remembering import remember, seen
from oclbn.device import driver_errors

_P = ParamSpec("_P")
_R = TypeVar("_R")

CALLS: dict[Callable[..., Any], Callable[..., Call[Any]]] = {}  # of each operation, what only prepares it


def operation(prepared: Callable[_P, Call[_R]]) -> Callable[_P, _R]:
    """From a function that checks, compiles and allocates, the one that runs the call as well.

    What it decides must follow from what oclbn.call.remembering looks at.
    """

    prepared.__annotations__["return"] = prepared.__annotations__["return"].removeprefix("Call[").removesuffix("]")

    @driver_errors(prepared.__name__)
    @functools.wraps(prepared)  # whose annotations are shown as the call's own
    def run(*given: _P.args, **options: _P.kwargs) -> _R:
        looked_at = seen(prepared, given, options)
        if looked_at is not None:
            arrays, again, known, key = looked_at
            if again is not None:
                made: tuple[_R] | None = again.run(arrays)
                if made is not None:
                    return made[0]
        call = prepared(*given, **options)
        results = call.run()
        if looked_at is not None:
            remember(call, arrays, known, key)
        return results

    CALLS[run] = prepared
    return run
