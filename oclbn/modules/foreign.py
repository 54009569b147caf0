"""Names of other libraries at a module: reading and assigning them are AttributeErrors that say what they are here.

Assigning as well, because a `bn.training = False` that nothing reads would pass unseen. A subclass that wants such an
attribute for itself defines it in its class.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterable
from typing import Any, NoReturn

from oclbn.names import ATTRIBUTES, absent

__all__ = ["Contract", "Foreign", "refuse_foreign", "shown"]


class Foreign:
    """Of a module's class, in the place of an attribute that it has not."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, module: object, owner: type) -> NoReturn:
        whole = f"type object {owner.__name__!r}" if module is None else f"{owner.__name__!r} object"
        raise absent(whole, self._name, ATTRIBUTES)

    def __set__(self, module: object, value: Any) -> NoReturn:
        self.__get__(module, type(module))


def shown(cls: type, names: Iterable[str]) -> list[str]:
    """Those of a class's names that are attributes, for dir and help."""
    found = {name: next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None) for name in names}
    return [name for name, one in found.items() if not isinstance(one, Foreign)]


class Contract(ABCMeta):
    """What a module's class is made by: foreign names that are none of its own are refused, in few words."""

    def __dir__(cls) -> list[str]:
        return shown(cls, super().__dir__())


def refuse_foreign(cls: type) -> None:
    """Give a class its Foreign attributes: all names of the table but those that are a module's own as well."""
    own, foreign = (set().union(*(getattr(name, kind) for name in ATTRIBUTES)) for kind in ("own", "foreign"))
    for name in foreign - own:
        setattr(cls, name, Foreign(name))
