"""Tables that leave columns out where a terminal is narrow, so that what is left can be read and copied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 10_000


def fitting(console: Console, make: Callable[[Collection[str]], Table], optional: Sequence[str]) -> Table:
    """`make(shown)`'s table with as many of the optional columns as fit side by side; the first are left out first."""
    for first in range(len(optional) + 1):
        table = make(optional[first:])
        if console.measure(table, options=console.options.update(width=_UNBOUNDED)).maximum <= console.width:
            break
    return table
