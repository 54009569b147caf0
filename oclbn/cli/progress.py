"""The bar of a command that takes its time: one line, in which a narrow terminal cuts the text and not the numbers."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column

_BAR = 20  # characters


def progress(console: Console, *numbers: Callable[..., ProgressColumn]) -> Progress:
    """A text, a bar, and columns of `numbers` (rich's classes); nothing where the console is no terminal.

    A pipe gets no bar: it would be redrawn as line after line.
    """
    cut = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = [TextColumn("{task.description}", markup=False, table_column=cut), BarColumn(bar_width=_BAR)]
    columns += [make(table_column=Column(no_wrap=True)) for make in numbers]
    return Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal)
