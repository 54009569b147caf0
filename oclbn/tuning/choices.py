"""The choices that belong to a device, from the general to the particular, key by key.

default of its kind -> shipped families that it belongs to -> shipped entry of its name -> the user's table -> `using`

What is shipped is tuning.toml; the user's table is oclbn.tuning.usertable's, which `oclbn tune` writes. Both are read
when a device is first planned for, once per process. ``using(variant="split", vec=4)`` replaces choices for a block of
code: for tests, benchmarks and whoever looks for better ones.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from oclbn.errors import ParameterError
from oclbn.plan.variants import CANDIDATES
from oclbn.plan.words import Tuning
from oclbn.tuning import usertable
from oclbn.tuning.usertable import DeviceNames

_overrides: contextvars.ContextVar[tuple[tuple[str, Any], ...]] = contextvars.ContextVar("oclbn_tuning", default=())
_LONGEST_RUN = 16384  # bytes: tables of that length and of four times it have to fit a work-item's private memory
_TYPES: dict[str, type] = {field.name: type(field.default) for field in fields(Tuning)}


@dataclass(frozen=True)
class Level:
    """The choices of one step from the general to the particular, and what a user calls it."""

    origin: str
    choices: Mapping[str, Any]


def tuning_for(platform: str, version: str, device: str, kind: str, driver: str = "") -> Tuning:
    """The choices for a device, by its names and kind ("cpu", "gpu", "accelerator"), with what `using` overrides.

    `device` is its name, or "name / version / ..." where more is known; driver: its version, "" where it is not known.
    Raises ParameterError, which names file and key, where the user's table cannot be used.
    """
    stored, overrides = _stored(platform, version, device, kind, driver), _overrides.get()
    return _overridden(stored, overrides) if overrides else stored


def shipped_for(platform: str, version: str, device: str, kind: str) -> Tuning:
    """What `tuning_for` is without the user's table and `using`."""
    return _merged(_shipped(platform, version, device, kind))


def levels(platform: str, version: str, device: str, kind: str, driver: str = "") -> list[Level]:
    """What `tuning_for` is made of, from the general to the particular; every choice is in the first one."""
    found = [*_shipped(platform, version, device, kind), *_users(platform, version, device, driver)]
    return [*found, Level("using", dict(_overrides.get()))] if _overrides.get() else found


@contextlib.contextmanager
def using(**choices: int | bool | str) -> Iterator[None]:
    """Within the block, plans are made with these choices (fields of plan.words.Tuning) instead of the stored ones.

    Holds for the current thread or task. Raises ParameterError for a name or value that does not exist.
    """
    _check(choices)
    token = _overrides.set((*_overrides.get(), *choices.items()))
    try:
        yield
    finally:
        _overrides.reset(token)


def forget() -> None:
    """Read the tables anew at the next call, as after a table has been written."""
    _stored.cache_clear()
    _table.cache_clear()


@functools.lru_cache(maxsize=1024)
def _overridden(tuning: Tuning, overrides: tuple[tuple[str, Any], ...]) -> Tuning:
    return replace(tuning, **dict(overrides))


@functools.cache
def _stored(platform: str, version: str, device: str, kind: str, driver: str) -> Tuning:
    return _merged([*_shipped(platform, version, device, kind), *_users(platform, version, device, driver)])


def _merged(found: list[Level]) -> Tuning:
    choices: dict[str, Any] = {}
    for level in found:
        choices |= level.choices
    return Tuning(**choices)


def _shipped(platform: str, version: str, device: str, kind: str) -> list[Level]:
    table = _table()
    named = f"{platform} / {version} / {device}".lower()
    known = kind if kind in table["default"] else "gpu"
    found = [Level(f"default of {known}", asdict(Tuning()) | table["default"][known])]
    for family in table.get("family", []):
        if all(word in named for word in family["words"]) and family.get("kind", kind) == kind:
            choices = {key: value for key, value in family.items() if key not in ("words", "kind")}
            found.append(Level(f"family {' + '.join(family['words'])}", choices))
    own = table.get("device", {}).get(_name(device), {})
    found += [Level(f"device {_name(device)}", own)] if own else []
    for level in found:
        _check(level.choices)
    return found


def _users(platform: str, version: str, device: str, driver: str) -> list[Level]:
    file = usertable.path()
    if file is None:
        return []
    if usertable.VARIABLE in os.environ and not file.exists():
        raise ParameterError(
            f"{usertable.VARIABLE} names {file}, which does not exist; `oclbn tune` makes it, and with "
            f"{usertable.VARIABLE} empty there is none"
        )
    names = DeviceNames(platform, version, _name(device), driver)
    fitting = [entry for entry in usertable.read(file) if entry.device.fits(names)]
    return [Level(f"your table {file}", _known(file, entry)) for entry in fitting]


def _known(file: Path, entry: usertable.Entry) -> dict[str, Any]:
    """The choices of a user's entry that this version has: another version may have had others."""
    known = {name: value for name, value in entry.choices.items() if name in _TYPES}
    unknown = [name for name in entry.choices if name not in _TYPES]
    if unknown:
        writer = f", written by oclbn {entry.oclbn}" if entry.oclbn else ""
        warnings.warn(
            f"{usertable.called(file)}: the entry of {entry.device.name or entry.device.platform}{writer} has "
            f"{', '.join(unknown)}, which this version does not know and leaves out; `oclbn tune` writes it anew",
            stacklevel=2,
        )
    try:
        _check(known)
    except ParameterError as error:
        raise ParameterError(f"{usertable.called(file)}, entry of {entry.device}: {error}") from error
    return known


def _name(device: str) -> str:
    return device.partition(" / ")[0].strip()


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("oclbn.tuning").joinpath("tuning.toml").read_text(encoding="utf-8"))


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
        if name == "run_bytes" and value > _LONGEST_RUN:
            raise ParameterError(f"tuning choice run_bytes is {value}; it wants {_LONGEST_RUN} at most")
        least = 0 if name in ("most_steps", "run_bytes", "chains") else 1
        if _TYPES[name] is int and value < least:
            wanted = "a positive number" if least else "a positive number or 0"
            raise ParameterError(f"tuning choice {name} is {value}; it wants {wanted}")
        if name == "variant" and value not in ("", *CANDIDATES):
            raise ParameterError(f"tuning choice variant is {value!r}; there are {', '.join(CANDIDATES)}")
