"""Attributes of a module that are True or False, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oclbn.errors import ModuleParameterError

__all__ = ["Flag"]


class Flag:
    """Of a module's class: a bool, kept as a plain attribute is; what is neither True, False, 1 nor 0 is refused.

    Text is what it is there for: `bn.train = "no"` would count as true. Reading is none of its business (there is no
    __get__): every call of a module reads several, at what a plain attribute costs.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    if TYPE_CHECKING:  # what reading gives

        def __get__(self, module: object | None, owner: type) -> bool: ...

    def __set__(self, module: object, value: bool) -> None:
        if not isinstance(value, (int, np.bool_, np.integer)) or value not in (0, 1):
            raise ModuleParameterError(f"{module}: {self._name} is {value!r}; True or False is wanted")
        vars(module)[self._name] = bool(value)
