"""The choices that belong to a device: read from tuning.toml, device over family over default.

``using(variant="split", vec=4)`` replaces choices for a block of code: for tests, benchmarks and whoever looks for
better ones.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from importlib import resources
from typing import Any

from .errors import ParameterError
from .plan import CANDIDATES, Tuning

_overrides: contextvars.ContextVar[tuple[tuple[str, Any], ...]] = contextvars.ContextVar("oclbn_tuning", default=())
_TYPES: dict[str, type] = {field.name: type(field.default) for field in fields(Tuning)}


def tuning_for(platform: str, version: str, device: str, kind: str) -> Tuning:
    """The choices for a device, by its names and kind ("cpu", "gpu", "accelerator"), with what `using` overrides.

    `device` is its name, or "name / version / ..." where more is known.
    """
    return _overridden(_stored(platform, version, device, kind), _overrides.get())


@contextlib.contextmanager
def using(**choices: int | bool | str) -> Iterator[None]:
    """Within the block, plans are made with these choices (fields of oclbn.plan.Tuning) instead of the stored ones.

    Holds for the current thread or task. Raises ParameterError for a name or value that does not exist.
    """
    _check(choices)
    token = _overrides.set((*_overrides.get(), *choices.items()))
    try:
        yield
    finally:
        _overrides.reset(token)


@functools.lru_cache(maxsize=1024)
def _overridden(tuning: Tuning, overrides: tuple[tuple[str, Any], ...]) -> Tuning:
    return replace(tuning, **dict(overrides)) if overrides else tuning


@functools.cache
def _stored(platform: str, version: str, device: str, kind: str) -> Tuning:
    table = _table()
    named = f"{platform} / {version} / {device}".lower()
    choices: dict[str, Any] = dict(table["default"].get(kind, table["default"]["gpu"]))
    for family in table.get("family", []):
        if all(word in named for word in family["words"]):
            choices |= {key: value for key, value in family.items() if key != "words"}
    choices |= table.get("device", {}).get(device.partition(" / ")[0].strip(), {})
    _check(choices)
    return Tuning(**choices)


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("oclbn").joinpath("tuning.toml").read_text(encoding="utf-8"))


def _check(choices: Mapping[str, Any]) -> None:
    for name, value in choices.items():
        if name not in _TYPES:
            raise ParameterError(f"tuning has no choice named {name!r}; there are {', '.join(_TYPES)}")
        fits = type(value) is _TYPES[name]  # bool is no number here
        if not fits:
            raise ParameterError(f"tuning choice {name} is {value!r}; it wants {_TYPES[name].__name__}")
        if name in ("lanes", "vec") and (value < 1 or value & (value - 1)):
            raise ParameterError(f"tuning choice {name} is {value}; it wants a power of two")
        if name == "vec" and value > 16:
            raise ParameterError(f"tuning choice vec is {value}; OpenCL's vectors end at 16")
        if _TYPES[name] is int and value < (0 if name in ("most_steps", "run_bytes") else 1):
            raise ParameterError(f"tuning choice {name} is {value}; it wants a positive number")
        if name == "variant" and value not in ("", *CANDIDATES):
            raise ParameterError(f"tuning choice variant is {value!r}; there are {', '.join(CANDIDATES)}")
