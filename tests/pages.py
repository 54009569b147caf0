"""What a page of Markdown is made of: fenced blocks, and what code behind them has to print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

FENCED = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_DECIMAL = re.compile(r"(?<![\w.])-?\d+\.(\d+)(?![\w.])")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its fence, its text, and whether only blank lines are before it.

    file: of that name, where the fence says title="name"; "" otherwise.
    """

    language: str
    line: int
    text: str
    follows: bool
    file: str


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text(encoding="utf-8"), 0
    for found in FENCED.finditer(text):
        follows = bool(end) and not text[end : found.start()].strip()
        titled = re.search(r'title="([^"]+)"', found[3])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(found[2], line, textwrap.dedent(found[4]), follows, titled[1] if titled else "")
        end = found.end()


def prints(wanted: str, found: str) -> bool:
    """Whether the page tells the truth: decimals may differ by a unit of the last digit that is shown."""
    shown, seen = ([*_DECIMAL.finditer(text)] for text in (wanted, found))
    near = len(shown) == len(seen) and all(
        abs(float(a[0]) - float(b[0])) <= 1.01 * 10.0 ** -len(a[1]) for a, b in zip(shown, seen, strict=True)
    )
    if near:
        wanted, found = (_DECIMAL.sub("#", text) for text in (wanted, found))
    return OutputChecker().check_output(wanted, found, ELLIPSIS | NORMALIZE_WHITESPACE)
