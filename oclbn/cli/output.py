"""Standard output of the commands, and standard error: how wide they are, what they take, and where nobody reads."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import IO, Any, NoReturn, cast

import click
from rich.console import Console

from oclbn.cli import records

CLOSED = 141  # the status of a program that its reader has left, as shells report it: 128 + SIGPIPE
_PRINTERS = ("click.utils", "rich.console", __name__)
_BLANKS = re.compile(r" +(?=\n)")
_WIDE = 10_000  # columns of a file or a pipe, where nothing has to fit on a screen


class StandardOutput(Console):
    """Standard output, whose reader may leave: that ends the command without a word."""

    def on_broken_pipe(self) -> NoReturn:
        """What rich calls; older versions of it let BrokenPipeError through, which the group catches."""
        mute()
        raise SystemExit(CLOSED)


class _Trimmed:
    """Standard output without the blanks that end lines: columns of a table are filled up with them."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(_BLANKS.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def is_plain() -> bool:
    """Whether no escape sequence is wanted, on terminals too: NO_COLOR holds something (no-color.org), TERM is dumb."""
    return bool(os.environ.get("NO_COLOR")) or is_dumb()


def is_dumb() -> bool:
    """Whether TERM says that the terminal knows no escape sequences."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def console(*, quiet: bool = False) -> StandardOutput:
    """Standard output for texts and tables. A file or a pipe takes them as they are, without COLUMNS at any width.
    quiet: it takes nothing.
    """
    made = StandardOutput(highlight=False, quiet=quiet, color_system=None if is_plain() else "auto")
    if not sys.stdout.isatty():  # which rich would not say where FORCE_COLOR is set
        made.file = cast("IO[str]", _Trimmed(sys.stdout))
        if not os.environ.get("COLUMNS"):
            made.width = _WIDE
    return made


def errors() -> Console:
    """Standard error, for what is redrawn there while a command works."""
    there = sys.stderr.isatty()  # whatever FORCE_COLOR says, a log gets no bar
    return Console(stderr=True, force_terminal=there, color_system=None if is_plain() else "auto")


def say(text: str, *, file: IO[Any] | None = None, colour: str | None = None) -> None:
    """A line on standard error, broken at words where that is a terminal; a log has it whole."""
    screen = Console(file=file, stderr=file is None)
    if screen.is_terminal:
        indent = text[: len(text) - len(text.lstrip())]
        text = textwrap.fill(
            text, screen.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    click.echo(click.style(text, fg=colour) if colour and not is_plain() else text, file=file, err=True)


def print_json(document: Mapping[str, Any]) -> None:
    """What a command found, as one JSON document: all that it prints on standard output with `types.as_json`.

    Before the document's own keys stand `schema`, `command` and `versions`. Values may be what records.plain takes:
    numbers, texts, lists, mappings, arrays, dataclasses, paths, devices; NaN and infinities become null. Keys have
    their unit in their name: `seconds`, `bytes`, `bytes_per_second`. Print first, then leave with the exit status that
    the command has without it, too.
    """
    command = click.get_current_context().info_name
    head = {"schema": records.SCHEMA, "command": command, "versions": records.versions()}
    click.echo(json.dumps(records.plain({**head, **document}), indent=1, allow_nan=False))


def mute() -> None:
    """Send what is left of standard output nowhere, so that the interpreter's last flush has nothing to complain of."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it, as in tests: no flush that could fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def is_ours(error: OSError) -> bool:
    """Whether it was what a command prints that could not be written, and not one of its files.

    What prints are click and rich: the innermost frame is one of theirs.
    """
    inner = error.__traceback__
    while inner is not None and inner.tb_next is not None:
        inner = inner.tb_next
    return inner is not None and inner.tb_frame.f_globals.get("__name__") in _PRINTERS
