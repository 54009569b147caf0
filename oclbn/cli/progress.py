"""The bar of a command that takes its time, and the words for how long that is expected to be.

One line, in which a narrow terminal cuts the end of the text and not the numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from oclbn.cli import output

_BAR = 20  # characters, at most
_LEAST_BAR = 6
_ECHO = len("^C") + 1
_LONG = 5.0  # seconds; below, nobody wants to be told
_REDRAWN = 0.25  # seconds
_KNOWN = 0.05  # of the work, after which its own pace says more than what was expected before


class _Bar(Progress):
    """A bar that ends before the last columns.

    A terminal echoes Ctrl-C as two letters where the cursor is; in the last column these would begin another line, and
    the bar's own would not be found any more when it is to go away.
    """

    def __init__(self, *columns: ProgressColumn, console: Console, **options: Any) -> None:
        self._screen = console  # Progress asks for a table before it has its own
        super().__init__(*columns, console=console, **options)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        made = super().make_tasks_table(tasks)
        made.width = max(1, self._screen.width - _ECHO)
        return made


class _PlainBar(_Bar):
    """The bar without escape sequences: its line is written over from its beginning, and in the end with blanks."""

    def __init__(self, *columns: ProgressColumn, console: Console, **options: Any) -> None:
        self._writing, self._over, self._thread = threading.Lock(), threading.Event(), threading.Thread()
        self._over.set()
        super().__init__(*columns, console=console, **options)

    def start(self) -> None:
        """Show it, and again in every fraction of a second."""
        if self.disable or not self._over.is_set():
            return
        self._over.clear()
        self.refresh()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take it away."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        self._write(" " * len(self._text()), "\r")

    def refresh(self) -> None:
        """Show it as it is now, if it is shown."""
        if not self._over.is_set():
            self._write(self._text())

    def _redraw(self) -> None:
        while not self._over.wait(_REDRAWN):
            self.refresh()

    def _text(self) -> str:
        room = self._screen.options.update(width=max(1, self._screen.width - _ECHO))
        lines = self._screen.render_lines(self.get_renderable(), room)
        return "".join(segment.text for segment in (lines or [[]])[-1])

    def _write(self, text: str, end: str = "") -> None:
        with self._writing:
            self._screen.file.write(f"\r{text}{end}")
            self._screen.file.flush()


class Elapsed(ProgressColumn):
    """The time since the beginning, and that it is this."""

    def render(self, task: Task) -> Text:
        return Text(f"elapsed {clock(task.elapsed or 0.0)}", style="progress.elapsed")


class Left(ProgressColumn):
    """The time that is left: by the pace so far, and before there is one by the task's field `expected`, in seconds."""

    def render(self, task: Task) -> Text:
        elapsed, done = task.elapsed or 0.0, task.percentage / 100
        expected: Any = task.fields.get("expected")
        if done >= _KNOWN:
            left = elapsed * (1 - done) / done
        elif expected is None:
            return Text("")
        else:
            left = max(expected - elapsed, 0.0)
        return Text(f"about {clock(left)} left", style="progress.remaining")


def progress(console: Console, *numbers: Callable[..., ProgressColumn], silent: bool = False) -> Progress:
    """A text, a bar, and columns of `numbers` (rich's classes); nothing where `silent`, on a dumb terminal or on none.

    A pipe gets no bar: it would be redrawn as line after line. With NO_COLOR it is one without escape sequences. What
    a command prints while the bar stands goes through `above`, or the two would be mixed up on a terminal that shows
    both.
    """
    cut = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    width = max(_LEAST_BAR, min(_BAR, console.width // 8))
    columns = [TextColumn("{task.description}", markup=False, table_column=cut), BarColumn(bar_width=width)]
    columns += [make(table_column=Column(no_wrap=True)) for make in numbers]
    return (_PlainBar if output.is_plain() else _Bar)(
        *columns,
        console=console,
        transient=True,
        expand=True,
        disable=silent or not console.is_terminal or output.is_dumb(),
        redirect_stdout=False,  # which would send to the terminal what belongs into a file
    )


def above(bar: Progress, show: Callable[[], object]) -> None:
    """Print something while the bar stands: it goes away for as long."""
    if bar.disable:
        show()
        return
    bar.stop()
    try:
        show()
    finally:
        bar.start()


def clock(seconds: float) -> str:
    """Minutes and seconds, hours before them where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A time as roughly as an estimate deserves."""
    if seconds < 55:
        return f"about {max(10, 10 * round(seconds / 10))} seconds"
    minutes = round(seconds / 60)
    if minutes <= 1:
        return "about a minute"
    return f"about {minutes} minutes" if minutes < 100 else f"about {seconds / 3600:.1f} hours"


def expect(what: str, seconds: float) -> None:
    """Say on standard error how long what comes will take, unless it is soon over."""
    if seconds >= _LONG:
        output.say(f"{what}: {about(seconds)}.")


def expect_compiling(what: str, seconds: float) -> None:
    """Say it of what takes that long where kernels have to be compiled first; which they are, only the driver knows."""
    if seconds >= _LONG:
        output.say(f"{what}: {about(seconds)} where kernels have to be compiled, less where the driver has kept them.")
