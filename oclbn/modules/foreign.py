"""Names of other libraries at a module: reading and assigning them are AttributeErrors that say what they are here.

Assigning as well, because a `bn.training = False` that nothing reads would pass unseen; and so would a slip in one
of the module's own names, which is refused likewise. A subclass that wants such an attribute defines it in its class.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta
from collections.abc import Iterable
from typing import Any, NoReturn

from oclbn.names import ATTRIBUTES, absent, nearest

__all__ = ["Contract", "Foreign", "refuse_foreign", "refuse_slip", "shown"]

_SLIP = (
    0.76  # as like as that: `mask`, `state` and `shape`, which people hang on modules, are no slips for `maps`, `scale`
)


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


def refuse_slip(cls: type, name: str) -> None:
    """AttributeError where a module that has no such attribute is assigned one that is meant for one of its own."""
    known, own, options = _names_of(cls)
    if name in known:
        return
    if name in options:
        said = "it is an option of the constructor alone"
    elif near := _with_letters_of(name, own) or nearest(name, own, _SLIP):
        said = f"did you mean {near}?"
    else:
        return
    raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}; {said}", name=name, obj=None)


def _with_letters_of(name: str, own: Iterable[str]) -> str | None:
    """The one of these that has the same letters in another order."""
    return next((one for one in own if sorted(one.lower()) == sorted(name.lower())), None)


@functools.cache
def _names_of(cls: Any) -> tuple[frozenset[str], list[str], frozenset[str]]:
    """All names of a class and of the last call's results; those to be assigned to; the options of its constructor."""
    known = frozenset(cls._passing).union(*map(vars, cls.__mro__))
    kinds = {name: inspect.getattr_static(cls, name, None) for name in known if not name.startswith("_")}
    own = [
        name
        for name, kind in kinds.items()
        if hasattr(type(kind), "__set__")
        and not isinstance(kind, Foreign)
        and not (isinstance(kind, property) and kind.fset is None)
    ]
    return known, sorted(own), frozenset(inspect.signature(cls.__init__).parameters)
