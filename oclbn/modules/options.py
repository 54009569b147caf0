"""Attributes of a module that its constructor's options stand behind: checked whenever they are set, or not to be set.

Reading is none of their business (there is no __get__): every call of a module reads several, at what a plain attribute
costs. What is set shows in the blueprint as well, from which a module is made anew and which `repr` prints.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from oclbn.call import fusing, values
from oclbn.elements import numbers_of, range_of
from oclbn.errors import ModuleParameterError, ModuleStateError

__all__ = ["Activated", "Choice", "Fixed", "Flag", "Groups", "Name", "Number", "Option", "flag"]

_T = TypeVar("_T")


def flag(module: object, name: str, value: Any, wanted: str = "True or False") -> bool:
    """`value` if it is one of two; text, of which "no" would count as true, is refused."""
    if not isinstance(value, (int, np.bool_, np.integer)) or value not in (0, 1):
        raise ModuleParameterError(f"{module}: {name} is {values.shown(value)}; {wanted} is wanted")
    return bool(value)


class Option(Generic[_T]):
    """Of a module's class: a value that is kept as a plain attribute is, and checked by `_checked` where it is set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    if TYPE_CHECKING:  # what reading gives

        def __get__(self, module: object | None, owner: type) -> _T: ...

    def __set__(self, module: object, value: _T) -> None:
        kept = vars(module)
        kept[self._name] = checked = self._checked(module, value)
        blueprint = kept.get("blueprint", {})
        if self._name in blueprint:
            blueprint[self._name] = checked

    def __delete__(self, module: object) -> None:
        raise ModuleStateError(f"{module}: {self._name} cannot be deleted; the module needs it")

    def _checked(self, module: object, value: Any) -> _T:
        raise NotImplementedError


class Flag(Option[bool]):
    """True or False, and nothing else."""

    def _checked(self, module: object, value: Any) -> bool:
        return flag(module, self._name, value)


class Number(Option[float]):
    """A finite number from `low` to `high`, or to the largest that the module computes with."""

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        self._low, self._high = low, high

    def _checked(self, module: object, value: Any) -> float:
        label, largest = f"{module}: {self._name}", range_of(numbers_of(np.dtype(vars(module)["calctype"]))).max
        high = largest if (values.real(value) or 0.0) > largest else self._high
        return values.number(label, value, self._low, min(high, self._high), error=ModuleParameterError)


class Groups(Option[int]):
    """How many batches are made of samples, from 1 on; just 1 where channels lie on the samples' axis."""

    def _checked(self, module: object, value: Any) -> int:
        number = values.whole(f"{module}: {self._name}", value, 1, error=ModuleParameterError)
        if number > 1 and vars(module)["axis"] == 0:
            raise ModuleParameterError(f"{module}: {self._name} is {number}, of samples, and axis is 0, where they lie")
        return number


class Choice(Option[str]):
    """One of several words."""

    def __init__(self, words: Collection[str]) -> None:
        self._words = words

    def _checked(self, module: object, value: Any) -> str:
        if not (isinstance(value, str) and value in self._words):
            wanted = " or ".join(map(repr, self._words))
            raise ModuleParameterError(f"{module}: {self._name} is {values.shown(value)}; {wanted} is wanted")
        return value


class Name(Option[str | None]):
    """Text, or None."""

    def _checked(self, module: object, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            vars(module).setdefault(self._name, None)  # of a module that is being made, which the message shows
            raise ModuleParameterError(f"{module}: {self._name} is {values.shown(value)}; a str or None is wanted")
        return value


class Activated(Option[Any]):
    """An activation: None, a name, or a pair of a name and the number that it takes."""

    def _checked(self, module: object, value: Any) -> Any:
        label = f"{module}: {self._name}"
        return fusing.activation_of(value, error=ModuleParameterError, label=label).option


class Fixed(Option[_T]):
    """What a module is made with, and stays with. advice: what to do instead of setting it."""

    def __init__(self, advice: str = "make another module") -> None:
        self._advice = advice

    def _checked(self, module: object, value: Any) -> _T:
        if self._name in vars(module):
            raise ModuleStateError(f"{module}: {self._name} stays as the module was made; {self._advice}")
        return value  # type: ignore[no-any-return]
