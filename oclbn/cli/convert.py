"""`oclbn convert`: batch normalizations from one format of weights to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.padding import Padding
from rich.text import Text

from oclbn import weights
from oclbn.cli import output, selecting
from oclbn.cli.types import Once, Target, as_json, check_free, overwriting
from oclbn.errors import WeightsError
from oclbn.files import health
from oclbn.files.formats import by_name, of_name
from oclbn.files.layers import Content, gathered


@click.command(cls=Once)
@click.argument("source", type=selecting.SOURCE)
@click.argument("target", type=Target())
@click.option(
    "--from", "source_format", type=click.Choice(selecting.NAMES), metavar="FORMAT", help="Else told by what it holds."
)
@click.option(
    "--to", "format", type=click.Choice(selecting.NAMES), metavar="FORMAT", help="Else told by TARGET's ending."
)
@click.option(
    "--into",
    type=selecting.SOURCE,
    help="A model in TARGET's format: TARGET becomes a copy with these values, by name, or in order.",
)
@selecting.only
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Write layer OLD by the name NEW.")
@click.option("--strict", is_flag=True, help="Write nothing where anything would be lost.")
@overwriting
@as_json
def command(
    source: Path,
    target: Path,
    source_format: str | None,
    format: str | None,
    into: Path | None,
    patterns: tuple[str, ...],
    rename: tuple[str, ...],
    strict: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the batch normalizations of SOURCE to TARGET, in another format.

    Arrays keep their bits. What TARGET has no place for is told: epsilon and momentum for safetensors, for instance.
    TARGET is read back and compared with SOURCE before it is put in its place.

    Formats: safetensors (PyTorch's), onnx, mxnet, openvino, matconvnet, keras, keras2, nnabla, puzzlelib, npz, flax,
    caffe, darknet, ncnn; `docs/pages/guide/weights.md` tells of each.

    The exit status is 1 where nothing was written; --strict makes a loss such a case.
    """
    check_free(target, "TARGET", overwrite=overwrite)
    if format is None:
        try:
            of_name(target)
        except WeightsError as error:
            message = str(error).replace("name one, as format='onnx'", "name one, as --to onnx")
            raise click.BadParameter(message, param_hint="TARGET") from None
    with selecting.told():
        content = selecting.read(source, source_format)
        layers = renamed(selecting.chosen(content, patterns), rename)
        report = weights.write(target, layers, format=format, into=into, overwrite=overwrite, strict=strict)
    notes = [*layers.notes, *report.notes]
    wrong = [one for layer in layers.values() for one in health.findings(layer) if one.fault]
    if as_json:
        output.print_json(
            {
                "source": source,
                "source_format": content.format,
                "files": list(report.files),
                "format": report.format,
                "layers": list(layers),
                "notes": [{"layer": note.layer, "text": note.text, "lost": note.lost} for note in notes],
                "findings": [{"layer": one.layer, "text": one.text, "fault": one.fault} for one in wrong],
            }
        )
        return
    console = output.console()
    count = "1 batch normalization" if len(layers) == 1 else f"{len(layers)} batch normalizations"
    titles = by_name(content.format).title, by_name(report.format).title
    console.print(Text(f"{count}, from {titles[0]} to {titles[1]}, written and read back: {target}"))
    for path in report.files[1:]:
        console.print(Text(f"  with {path}"))
    for line in gathered([(one.layer, one.text) for one in wrong], len(layers)):
        console.print(Padding(Text(f"wrong there as here: {line}", style="bold red"), (0, 0, 0, 2), expand=False))
    for lost, heading in ((True, "Lost:"), (False, "Noteworthy:")):
        lines = gathered([(note.layer, note.text) for note in notes if note.lost is lost], len(layers))
        if lines:
            console.print(Text(heading, style="bold"))
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def renamed(content: Content, pairs: tuple[str, ...]) -> Content:
    """The layers by other names. click.BadParameter: no such layer, or no name."""
    names = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not OLD=NEW", param_hint="--rename")
        if old not in content:
            shown = ", ".join(content)
            raise click.BadParameter(f"there is no layer {old!r}, but {shown}", param_hint="--rename")
        names[old] = new
    changed = tuple(weights.renamed(layer, names.get(layer.name, layer.name)) for layer in content.layers)
    return replace(content, layers=changed)
