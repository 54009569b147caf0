"""For the pages of the API: docstrings, which are plain text, as Markdown.

Examples become blocks of code, what Markdown would take for emphasis or a list stays as it is, and operations show the
result that callers get (in the source they return what prepares the call).
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Module, Object

_PREPARED = re.compile(r"^_Call\[(.*)\]$")
_ROLE = re.compile(r":\w+:`([^`]+)`")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")


def markdown(text: str) -> str:
    """The docstring as Markdown."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        example = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        if example != inside:
            lines += ["```", ""] if inside else ["", "```pycon"]
            inside = example
        lines.append(line.strip() if example and line.lstrip().startswith((">>>", "...")) else _shown(line, inside))
    return "\n".join([*lines, "```"] if inside else lines)


def _shown(line: str, example: bool) -> str:
    if example or line.startswith("    "):
        return line
    parts = _CODE.split(_ROLE.sub(r"`\1`", line))
    parts[::2] = [re.sub(r"([*_<\[])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


class Docstrings(Extension):
    """What griffe calls when it has read an object."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None and isinstance(obj, Class | Function | Module):
            obj.docstring.value = markdown(obj.docstring.value)
        if isinstance(obj, Function) and (found := _PREPARED.match(str(obj.returns))):
            obj.returns = found[1]
