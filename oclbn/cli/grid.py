"""Rows that are printed one by one, under headings with units: the widths are known before the numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """name, unit: two lines of the heading. width: of the cells, or more. spare: the highest go first on a narrow
    screen; 0 stays.
    """

    name: str
    unit: str = ""
    width: int = 0
    left: bool = False
    spare: int = 0

    @property
    def cells(self) -> int:
        return max(self.width, len(self.name), len(self.unit))


class Grid:
    """Columns that fit into `width`, those left out that can be spared; a wider cell shifts its own row alone."""

    def __init__(self, columns: Sequence[Column], width: int) -> None:
        self.columns = list(columns)
        self.missing: list[str] = []  # those left out, with their units
        while self.width > width and (spare := max(self.columns, key=lambda column: column.spare)).spare:
            self.columns.remove(spare)
            self.missing.append(f"{spare.name} ({spare.unit})" if spare.unit else spare.name)

    @property
    def width(self) -> int:
        """Columns of the screen that a row takes."""
        return sum(column.cells for column in self.columns) + len(_GAP) * (len(self.columns) - 1)

    def heading(self) -> Text:
        """The names, and below them the units."""
        names = self.row({column.name: column.name for column in self.columns}, "bold")
        units = self.row({column.name: column.unit for column in self.columns}, "dim")
        return Text("\n").join([names, units]) if units.plain.strip() else names

    def row(self, cells: Mapping[str, str | Text], style: str = "") -> Text:
        """A line of cells by their columns' names; what is missing stays blank."""
        line = Text(style=style)
        for number, column in enumerate(self.columns):
            cell = cells.get(column.name, "")
            blank = " " * (column.cells - len(cell))
            line.append(_GAP if number else "")
            line.append_text(Text.assemble(cell, blank) if column.left else Text.assemble(blank, cell))
        line.rstrip()
        return line


def print_line(console: Console, line: Text) -> None:
    """As it is, never broken: a number in two halves is none."""
    console.print(line, no_wrap=True, overflow="ignore", crop=False)
