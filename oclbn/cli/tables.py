"""Tables that leave columns out where a terminal is narrow, so that what is left can be read and copied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 10_000


def fitting(console: Console, make: Callable[[Collection[str]], Table], optional: Sequence[str]) -> Table:
    """`make(shown)`'s table with as many of the optional columns as fit side by side; the first are left out first."""
    for first in range(len(optional) + 1):
        table = make(optional[first:])
        if console.measure(table, options=console.options.update(width=_UNBOUNDED)).maximum <= console.width:
            break
    return table


def print_left_out(console: Console, table: Table, headings: Sequence[str]) -> None:
    """Say which of these columns were left out of a table, where any was."""
    shown = [column.header for column in table.columns]
    missing = [heading for heading in headings if heading not in shown]
    if missing:
        console.print(Text(f"Not shown in {console.width} columns: {', '.join(missing)}; --json has all.", style="dim"))
