"""For the pages of the API: docstrings, which are plain text, as Markdown.

Examples become blocks of code, arguments and errors lists, and what Markdown would take for emphasis stays as it is.
Fields have the comments that stand beside them. Operations show the result that callers get; in the source they return
what prepares the call.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

from griffe import Alias, Attribute, Class, Docstring, Extension, Function, Module, Object

_PREPARED = re.compile(r"^_?Call\[(.*)\]$")
_ROLE = re.compile(r":\w+:`([^`]+)`")
_COLUMNS = re.compile(r"\S {2,}\S")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")


def markdown(text: str, parameters: Iterable[str] = ()) -> str:
    """The docstring, of something with these parameters, as Markdown."""
    names = "|".join([*map(re.escape, parameters), r"[A-Z]\w*(?:Error|Warning)"])
    entry = re.compile(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*)((?: [^:.;]{{1,16}})?): |(?<=\. )(?=Returns )")
    return "\n\n".join(_paragraph(part, entry) for part in re.split(r"\n\s*\n", text))


def _paragraph(text: str, entry: re.Pattern[str]) -> str:
    """Examples, and what is set in columns, as code; all else as text."""
    lines = textwrap.dedent(text).splitlines()
    at = next((number for number, line in enumerate(lines) if line.lstrip().startswith(">>>")), len(lines))
    if at < len(lines):
        before = _prose(" ".join(lines[:at]), entry)
        return "\n".join([before, "", "```pycon", textwrap.dedent("\n".join(lines[at:])), "```"])
    if any(_COLUMNS.search(line) for line in lines):
        return "\n".join(["```text", *lines, "```"])
    return _prose(" ".join(map(str.strip, lines)), entry)


def _prose(text: str, entry: re.Pattern[str]) -> str:
    """A paragraph, in which each "argument: what it is" becomes an item of a list."""
    found = [*entry.finditer(text)]
    if not any(match[1] for match in found):
        return _escaped(text)
    ends = [match.start() for match in found[1:]] + [len(text)]
    shown = [_escaped(text[: found[0].start()].strip()), ""]
    for match, end in zip(found, ends, strict=True):
        words = _escaped(text[match.end() : end].strip().removesuffix(";"))
        if match[1]:
            shown.append(f"- {', '.join(f'`{name}`' for name in match[1].split(', '))}{_escaped(match[2])}: {words}")
        else:
            shown += ["", words]
    return "\n".join(shown)


def _escaped(text: str) -> str:
    """With what Markdown would take for its own as it is."""
    parts = _CODE.split(_ROLE.sub(r"`\1`", text))
    parts[::2] = [re.sub(r"([*_<\[])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _beside(attribute: Attribute) -> str:
    """The comment behind the line of a class's field."""
    if not isinstance(attribute.parent, Class) or attribute.lineno is None:
        return ""
    line = attribute.lines_collection[attribute.filepath][attribute.lineno - 1]
    said = re.match(r"    \w+: .*  # (.+)", line)
    return f"{said[1][0].upper()}{said[1][1:]}." if said else ""


class Docstrings(Extension):
    """What griffe calls when it has read an object."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None and isinstance(obj, Class | Function | Module):
            named = obj.parameters if isinstance(obj, Class | Function) else ()
            obj.docstring.value = markdown(obj.docstring.value, [one.name for one in named])
        if isinstance(obj, Attribute) and obj.docstring is None and (said := _beside(obj)):
            obj.docstring = Docstring(_escaped(said), parent=obj)
        if isinstance(obj, Function) and (found := _PREPARED.match(str(obj.returns))):
            obj.returns = found[1]

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Classes have the words of the constructor that they take over, as Python's help shows them."""
        for one in _classes(pkg):
            own = one.members.get("__init__")
            if one.docstring is not None and (own is None or own.docstring is None):
                above = (base.members.get("__init__") for base in one.mro())
                words = [init.docstring.value for init in above if init is not None and init.docstring is not None]
                one.docstring.value = "\n\n".join([one.docstring.value, *words[:1]])


def _classes(module: Module) -> Iterable[Class]:
    for one in module.members.values():
        if isinstance(one, Module):
            yield from _classes(one)
        elif isinstance(one, Class) and not isinstance(one, Alias):
            yield one
