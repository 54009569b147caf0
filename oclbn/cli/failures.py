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


class Misused(Failure):
    """A usage error as click shows it, but broken at words, and its first line in red."""

    exit_code = USAGE

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.format_message())
        self._context = error.ctx

    def show(self, file: IO[Any] | None = None) -> None:
        if self._context is not None:
            hint = f"Try '{self._context.command_path} {self._context.help_option_names[-1]}' for help."
            click.echo(f"{self._context.get_usage()}\n{hint}\n", file=file, err=True)
        super().show(file)


def as_ours(error: click.ClickException) -> click.ClickException:
    """An error of click's that is shown as all others are; as it is where it has its own way, as help has."""
    if type(error).show is click.UsageError.show:
        return Misused(error)  # type: ignore[arg-type]  # only usage errors show themselves like that
    return Failure(error.format_message()) if type(error).show is click.ClickException.show else error


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
