"""The user's tuning table: where it is, what is in it, and writing one device's entry.

A TOML file, `tuning.toml` in oclbn's folder of the user's settings, or the file that the environment variable
OCLBN_TUNING names (empty: none). `oclbn tune` writes it, and it may be written by hand:

    [[device]]
    platform = "Portable Computing Language"
    version = "OpenCL 3.0 PoCL 3.1"
    name = "pthread-znver3"
    driver = "3.1"
    oclbn = "0.1.0"
    choices = { vec = 16 }

An entry is for the devices that bear all the names it states (a driver's update makes another device of it); a name
that it leaves out is any. Where several entries fit, a later one overrides key by key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from oclbn.errors import MissingExtraError, ParameterError
from oclbn.files.whole import check_source, replacing, user_folder

VARIABLE = "OCLBN_TUNING"
_HEAD = "What stands here beats what oclbn ships; delete a device's entry to undo it. Written by `oclbn tune`."


@dataclass(frozen=True)
class DeviceNames:
    """What tells a device from another, and a driver from its next version; "" where it is not known."""

    platform: str
    version: str  # the platform's
    name: str
    driver: str

    def __str__(self) -> str:
        return ", ".join(
            filter(None, (self.name, self.platform, self.version, self.driver and f"driver {self.driver}"))
        )

    def fits(self, other: DeviceNames) -> bool:
        """Whether no name differs that both know; runs of spaces count as one."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return all(mine.split() == theirs.split() for mine, theirs in pairs if mine and theirs)


@dataclass(frozen=True)
class Entry:
    """One device's choices; `oclbn` is the version that wrote them, "" where it is not said."""

    device: DeviceNames
    oclbn: str
    choices: Mapping[str, Any]


def path() -> Path | None:
    """The file that holds the user's table, whether it is there or not.

    None where OCLBN_TUNING is empty, and where it is not set and this user has no home directory.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    try:
        return user_folder(platformdirs.user_config_path) / "tuning.toml"
    except FileNotFoundError:
        return None


def called(file: Path) -> str:
    """The table, as messages begin with it: with the variable that names it, where one does."""
    return f"tuning table {file}" + (f" (named by {VARIABLE})" if os.environ.get(VARIABLE) == str(file) else "")


def why_none() -> str:
    """Why `path` is None, as a clause."""
    return f"{VARIABLE} is empty" if VARIABLE in os.environ else "this user has no home directory"


def read(file: Path) -> tuple[Entry, ...]:
    """The entries of a table, in order; none where there is no such file.

    Raises ParameterError, which names the file, where it cannot be read, is no TOML or not of this form. What the
    choices are is not looked at.
    """
    return tuple(_entry(file, number, table) for number, table in enumerate(_tables(file), start=1))


def write(file: Path, device: DeviceNames, choices: Mapping[str, Any], oclbn: str) -> None:
    """Put the entry of exactly this device into a table, or take it out where there are no choices.

    The file is written whole or not at all, and made if need be; other entries and comments stay as they are. Raises
    ParameterError as `read` does, OSError where it cannot be written, MissingExtraError without tomlkit.
    """
    tomlkit = require_tomlkit()
    read(file)  # nothing is added to a table that could not be used
    document = tomlkit.parse(_text(file) or f"# {_HEAD}\n\n")
    if not document.get("device"):  # none, or an empty list that holds no tables
        document.pop("device", None)
        document["device"] = tomlkit.aot()
    tables = document["device"]
    same = [index for index, table in enumerate(tables) if _names(table) == device]
    for index in reversed(same[1:] if choices else same):
        del tables[index]
    if choices:
        if not same:
            if tables:
                tables[-1].add(tomlkit.nl())
            tables.append(tomlkit.table())
            tables[-1].update(asdict(device))
        mine = tables[same[0] if same else -1]
        mine["oclbn"] = oclbn
        mine["choices"] = tomlkit.inline_table()
        mine["choices"].update(choices)
    if not tables:
        del document["device"]
    with replacing(file, parents=True) as target:
        target.write(tomlkit.dumps(document).encode())


def require_tomlkit() -> Any:
    """The package that writes TOML and keeps comments; MissingExtraError where it is not installed."""
    try:
        import tomlkit
    except ModuleNotFoundError as missing:
        raise MissingExtraError("writing a tuning table needs tomlkit: pip install 'oclbn[cli]'") from missing
    return tomlkit


def _text(file: Path) -> str:
    try:
        check_source(file)
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ParameterError(f"{called(file)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{called(file)} is no text, and so no tuning table; name another file") from error


def _tables(file: Path) -> list[Any]:
    text = _text(file)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if "[[device]]" in text:
            advice = "mend it, or delete it"
        else:  # somebody's program, or notes
            advice = "a tuning table has entries [[device]]; name another file"
        raise ParameterError(f"{called(file)} is no TOML: {error}; {advice}") from error
    unknown = sorted(set(content) - {"device"})
    if unknown:
        raise ParameterError(f"{called(file)} has {unknown[0]!r}; it wants entries [[device]] only")
    tables: Any = content.get("device", [])
    if not isinstance(tables, list):
        raise ParameterError(f"{called(file)}: device is no list; it wants entries [[device]]")
    return tables


def _entry(file: Path, number: int, table: Any) -> Entry:
    where = f"{called(file)}, entry {number}"
    if not isinstance(table, dict):
        raise ParameterError(f"{where} is {table!r}; it wants a table [[device]]")
    texts = {*(field.name for field in fields(DeviceNames)), "oclbn"}
    for key, value in table.items():
        if key not in {*texts, "choices"}:
            raise ParameterError(f"{where}: {key!r} is none of {', '.join(sorted(texts))}, choices")
        wanted = dict if key == "choices" else str
        if not isinstance(value, wanted):
            raise ParameterError(f"{where}: {key} is {value!r}; it wants a {'table' if wanted is dict else 'text'}")
    if not any(table.get(key) for key in ("platform", "name")):
        raise ParameterError(f"{where} names no device; it wants a name, a platform or both")
    return Entry(_names(table), table.get("oclbn", ""), table.get("choices", {}))


def _names(table: Mapping[str, Any]) -> DeviceNames:
    return DeviceNames(**{field.name: str(table.get(field.name, "")) for field in fields(DeviceNames)})
