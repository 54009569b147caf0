"""The click group that holds the sub-commands, and how their errors are shown."""

from __future__ import annotations

import importlib
from typing import IO, Any

import click

from oclbn import __version__
from oclbn.errors import OclbnError

SUBCOMMANDS = (
    "devices",
    "demo",
    "check",
    "bench",
    "tune",
)  # each the name of a module beside this one, which exports a click command `command`


class Failure(click.ClickException):
    """An OclbnError as the user sees it: its first line in red, the rest as it is, exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        first, *rest = self.message.splitlines() or [""]
        click.secho(f"Error: {first}", file=file, err=True, fg="red")
        for line in rest:
            click.echo(line, file=file, err=True)


class LazyGroup(click.Group):
    """Imports a sub-command when it is asked for, so that none pays for what another needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"oclbn.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OclbnError as error:
            raise Failure(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="oclbn")
def oclbn() -> None:
    """Batch normalization for every OpenCL device."""
