"""Attributes of a module that are True or False, and nothing else."""

from __future__ import annotations

from typing import overload

import numpy as np

from oclbn.errors import ModuleParameterError

__all__ = ["Flag"]


class Flag:
    """Of a module's class: a bool, kept as a plain attribute is; what is neither True, False, 1 nor 0 is refused.

    Text is what it is there for: `bn.train = "no"` would count as true.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, module: None, owner: type) -> Flag: ...

    @overload
    def __get__(self, module: object, owner: type) -> bool: ...

    def __get__(self, module: object | None, owner: type) -> Flag | bool:
        if module is None:
            return self
        try:
            value: bool = vars(module)[self._name]
        except KeyError:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {self._name!r} yet") from None
        return value

    def __set__(self, module: object, value: bool) -> None:
        if not isinstance(value, (int, np.bool_, np.integer)) or value not in (0, 1):
            raise ModuleParameterError(f"{module}: {self._name} is {value!r}; True or False is wanted")
        vars(module)[self._name] = bool(value)
