"""The click group that holds the sub-commands, and how their errors are shown."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import click

from oclbn.cli import completing, output
from oclbn.cli.failures import STATUSES, Failure, Interrupted, Left, as_ours
from oclbn.cli.types import as_option
from oclbn.errors import OclbnError

SUBCOMMANDS = (
    "devices",
    "demo",
    "check",
    "bench",
    "tune",
    "inspect",
    "convert",
)  # each the name of a module beside this one, which exports a click command `command`


EPILOG = """`oclbn COMMAND --help` explains a command and its options.

\b
The Tab key completes commands and options
after a line in the shell, or in its start-up file:
  bash  eval "$(_OCLBN_COMPLETE=bash_source oclbn)"
  zsh   eval "$(_OCLBN_COMPLETE=zsh_source oclbn)"
  fish  _OCLBN_COMPLETE=fish_source oclbn | source
"""


class LazyGroup(click.Group):
    """Imports a sub-command when it is asked for, so that none pays for what another needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"oclbn.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in SUBCOMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        options = [option for param in self.get_params(ctx) for option in param.opts if option.startswith("--")]
        known = {option.removeprefix("--"): option for option in options} | {one: one for one in SUBCOMMANDS}
        near = difflib.get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {known[near[0]]}?" if near else f"there are {', '.join(SUBCOMMANDS)}"
        raise click.UsageError(f"No such command {name!r}; {hint}", ctx=ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with the first sentence of each, in the order of SUBCOMMANDS."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str()) for name, command in commands.items() if command])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit statuses, and what else there is to know."""
        with formatter.section("Exit status"):
            formatter.write_dl([(str(status), meaning) for status, meaning in STATUSES.items()])
        super().format_epilog(ctx, formatter)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _ended():  # --help and --version print while the line is being parsed
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _ended():
            return super().invoke(ctx)


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    """Turn what ends a command into what the user sees of it: our errors, Ctrl-C, an output that cannot be written."""
    try:
        yield
    except OclbnError as error:
        raise Failure(as_option(str(error))) from error
    except KeyboardInterrupt:
        raise Interrupted from None
    except click.ClickException as error:
        shown = as_ours(error)
        if shown is error:
            raise
        raise shown from error
    except OSError as error:
        if not output.is_ours(error):
            raise
        output.mute()
        if isinstance(error, BrokenPipeError):
            raise Left from error
        raise Failure(f"the output cannot be written: {error.strerror or os.strerror(error.errno or 0)}") from error


completing.register()
_AS_JSON = f"{__name__}.as_json"


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if ctx.resilient_parsing:
        return
    as_json = ctx.meta.get(_AS_JSON, False)
    if as_json and not asked:
        raise click.UsageError("--json stands behind the command, or beside --version", ctx=ctx)
    if not asked:
        return
    from oclbn.cli import versions

    if as_json:
        output.print_json(versions.document())
    else:
        versions.print_lines(output.console())
    ctx.exit()


def _note_json(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    ctx.meta[_AS_JSON] = asked


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of oclbn, Python, all packages that take part, platforms and drivers, for a bug report.",
)
@click.option(
    "--json",
    is_flag=True,
    is_eager=True,  # before --version, wherever it stands
    expose_value=False,
    callback=_note_json,
    help="With --version: print it as one JSON document.",
)
def oclbn() -> None:
    """Show what batch normalization does on an OpenCL device: whether it works, how exact and how fast it is.

    `oclbn devices` says which device the other commands would use; OCLBN_DEVICE or --device select another one. Begin
    with `oclbn demo`, which needs nothing but a device.
    """
