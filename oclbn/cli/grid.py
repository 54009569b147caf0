"""Rows that are printed one by one, under headings with units: the widths are known before the numbers are."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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


class Stacked:
    """The same rows with a line for each value, for a screen that is too narrow for them side by side.

    keys: so many of the columns come first, and stand in a line of their own.
    """

    missing: ClassVar[list[str]] = []  # as of a Grid: nothing is left out

    def __init__(self, columns: Sequence[Column], keys: int) -> None:
        self._keys = Grid(columns[:keys], 0)
        self._values = {column.name: ", ".join(filter(None, (column.name, column.unit))) for column in columns[keys:]}
        widths = max(map(len, self._values.values())), max(column.width for column in columns[keys:])
        self._lines = Grid(
            [Column("", left=True), Column("what", width=widths[0], left=True), Column("value", width=widths[1])], 0
        )

    def heading(self) -> Text:
        """The names of the keys; those of the values, with their units, stand beside each."""
        return self._keys.heading()

    def row(self, cells: Mapping[str, str | Text], style: str = "") -> Text:
        """Lines: the keys, where there are some, and the values; what is missing has none."""
        keys = self._keys.row(cells, style)
        lines = [keys] if keys.plain else []
        for name, what in self._values.items():
            if cells.get(name):
                lines.append(self._lines.row({"what": what, "value": cells[name]}, style))
        return Text("\n").join(lines)


def side_by_side(columns: Sequence[Column], keys: int, width: int) -> Grid | Stacked:
    """Rows with all these columns, or where they have no room with a line for each value."""
    grid = Grid(columns, 0)
    return grid if grid.width <= width and not grid.missing else Stacked(columns, keys)


def print_hanging(console: Console, text: str, indent: str = "  ", *, style: str = "") -> None:
    """Broken at words where it is wider than the screen, the rest indented."""
    told = textwrap.fill(text, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    console.print(Text(told, style=style))


def print_line(console: Console, line: Text) -> None:
    """As it is, never broken: a number in two halves is none."""
    console.print(line, no_wrap=True, overflow="ignore", crop=False)
