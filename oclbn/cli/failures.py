"""How a command ends that does not end well: what is printed, and the exit status."""

from __future__ import annotations

from typing import IO, Any

import click

from oclbn.cli import output

OK, FAILED, USAGE, UNFIT, INTERRUPTED, LEFT = 0, 1, 2, 3, 130, output.CLOSED
STATUSES = {  # of all commands, with --json too; the guide has the same table
    OK: "All is well.",
    FAILED: "A result is wrong, nothing could be timed, there is no default device, or an error: no such device, a "
    "driver that fails, a file that cannot be written.",
    USAGE: "Options or files that make no sense; nothing was begun.",
    UNFIT: "demo: the data cannot be normalised as they are.",
    INTERRUPTED: "Ctrl-C, also where what has been found until then is kept.",
    LEFT: "Whoever read the output has gone, as in `oclbn tune --show | head -1`.",
}


class Failure(click.ClickException):
    """An OclbnError as the user sees it: its first line in red, the rest as it is, exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        first, *rest = self.message.splitlines() or [""]
        output.say(f"Error: {first}", file=file, colour="red")
        for line in rest:
            output.say(line, file=file)


class Interrupted(click.ClickException):
    """Ctrl-C: one line on what has become of the work, and the status that shells give to it, 128 + SIGINT."""

    exit_code = INTERRUPTED

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    def show(self, file: IO[Any] | None = None) -> None:
        output.say(f"Interrupted{': ' if self.message else ''}{self.message}", file=file)


class Left(click.ClickException):
    """Whoever read standard output has gone: nothing to say, and nobody to say it to."""

    exit_code = LEFT

    def __init__(self) -> None:
        super().__init__("")

    def show(self, file: IO[Any] | None = None) -> None:
        """Say nothing."""
