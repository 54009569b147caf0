"""What several commands take on their lines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from oclbn import names
from oclbn.device.selection import KINDS
from oclbn.files import whole

_ARGUMENT = re.compile(r"\bargument device=(['\"].*?['\"])(?= |$)")  # how oclbn.device tells where a selection is from
_PATIENCE = 5.0  # seconds for which the Tab key may wait for drivers
SELECTIONS = "gpu, cpu, accelerator, or an index, name or runtime that `oclbn devices` prints, or a part of one."


def as_option(text: str) -> str:
    """A message, or a reason, of oclbn.device in words of the command line."""
    return _ARGUMENT.sub(r"--device \1", text)


class DeviceType(click.ParamType):  # type: ignore[type-arg]
    """A selection of a device, which oclbn.device understands; the Tab key has the devices that there are."""

    name = "SPEC"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Types and indices; nothing where drivers abort or do not answer soon."""
        from oclbn.cli import survey

        found = survey.asked(_PATIENCE).devices
        kinds = [kind for kind in KINDS if any(one["kind"] == kind and not one["simulator"] for one in found)]
        told = dict.fromkeys(kinds, "the best device of this type")
        told |= {one["index"]: f"{one['name']} ({one['runtime']})" for one in found}
        return [CompletionItem(text, help=help) for text, help in told.items() if text.startswith(incomplete.lower())]


class ShapeType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """A tensor's shape: two positive numbers or more, separated by commas."""

    name = "N,C[,D...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            shape = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers like 32,64,28,28", param, ctx)
        if len(shape) < 2 or min(shape) < 1:
            self.fail(f"{value!r} has to be two positive numbers or more", param, ctx)
        return shape


class Seconds(click.FloatRange):
    """A time; "nan" is a float for click, and would never be over."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is no time", param, ctx)
        return found


class Target(click.Path):
    """A file that is to be written in the end: what would keep it from that shows before the work is done."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.absolute().parent.is_dir():
            self.fail(f"{path.parent} is not a folder", param, ctx)
        try:
            whole.check_target(path)
        except OSError as error:
            self.fail(f"{path}: {error.strerror}", param, ctx)
        return path


def check_ending(path: Path, endings: Sequence[str], option: str) -> None:
    """A usage error unless the file's name ends as one that the command writes: it is to say what is in it."""
    if path.suffix.lower().lstrip(".") not in endings:
        raise click.BadParameter(f"{path} does not end in .{', .'.join(endings)}", param_hint=option)


def check_free(path: Path, option: str, *, overwrite: bool) -> None:
    """A usage error where the file is there and holds something: nobody can tell that it may be lost."""
    if not overwrite and path.exists() and path.stat().st_size:
        raise click.BadParameter(f"{path} is there already: give another name, or --overwrite", param_hint=option)


as_json = click.option(  # its command prints by output.print_json alone; notes and progress go to standard error
    "--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else."
)
overwriting = click.option("--overwrite", is_flag=True, help="Replace files that are there already.")


def trainable(shape: tuple[int, ...], axis: int) -> tuple[tuple[int, ...], int]:
    """The shape with its axis counted from 0; a usage error where there is no such axis, or one value per channel."""
    shown = ",".join(map(str, shape))
    if not -len(shape) <= axis < len(shape):
        raise click.BadParameter(f"{axis} is no axis of shape {shown}", param_hint="--axis")
    if math.prod(shape) == shape[axis]:
        raise click.BadParameter(
            f"{shown} has one value per channel on axis {axis}: training wants at least two", param_hint="--shape"
        )
    return shape, axis % len(shape)


class Names(click.ParamType):  # type: ignore[type-arg]
    """Names of a few that are known, separated by commas.

    formerly: what some of them were called, which goes on being understood.
    """

    def __init__(self, known: Sequence[str], name: str, formerly: Mapping[str, str] | None = None) -> None:
        self.known, self.name, self.formerly = tuple(known), name, formerly or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        given = (part.strip() for part in str(value).split(","))
        found = tuple(self.formerly.get(name, name) for name in given)
        for name in found:
            if name not in self.known:
                hint = names.hints(names.OPERATIONS, name, self.known)
                self.fail(f"{name!r} is not one of {', '.join(self.known)}{hint}", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that the last one may become, behind those that are there already."""
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}")
            for name in self.known
            if name.startswith(last) and name not in given
        ]


def together(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What an option with `Names` got in all its turns, each name once, in the order of the line."""
    return tuple(dict.fromkeys(name for names in given for name in names))


class Once(click.Command):
    """A command that refuses to be given a single value twice; click would forget the first without a word."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of its help, on one line; click would cut it after so many letters."""
        paragraph = " ".join((self.help or "").partition("\n\n")[0].split())
        return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for param in order:
                single = isinstance(param, click.Option) and not (param.multiple or param.is_flag or param.count)
                if single and order.count(param) > 1:
                    raise click.BadParameter("given more than once, and takes one value", ctx=ctx, param=param)
        return super().parse_args(ctx, args)
