"""`oclbn inspect`: the batch normalizations of a file of weights, and the health of their statistics."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from oclbn import conventions
from oclbn.cli import output, selecting, tables
from oclbn.cli.types import Once, as_json
from oclbn.files import health
from oclbn.files.formats import by_name
from oclbn.files.layers import ARRAYS, Layer, Note, as_float64, gathered

_FACTS = ("Type", "Epsilon", "Weight", "Batches", "Variance", "Largest factor")
_LEFT_OUT_FIRST = ("Batches", "Weight", "Epsilon", "Type", "Largest factor", "Variance")
_EXPLAINED = {
    "Weight": "of a new batch in the running averages",
    "Largest factor": "of scale / sqrt(variance + epsilon)",
}


@click.command(cls=Once)
@click.argument("file", type=selecting.SOURCE)
@click.option(
    "--format",
    "form",
    type=click.Choice(selecting.NAMES),
    metavar="FORMAT",
    help="Of the file; else told by what it holds.",
)
@selecting.only
@click.option("--check", is_flag=True, help="End with status 1 where a layer has numbers that are no statistics.")
@as_json
def command(file: Path, form: str | None, patterns: tuple[str, ...], check: bool, as_json: bool) -> None:
    """List the batch normalizations of a file of weights, and what is wrong with their statistics.

    Formats: safetensors (PyTorch's), onnx, mxnet, openvino, matconvnet, keras, keras2, nnabla, puzzlelib, npz, flax,
    caffe, darknet, ncnn; `docs/pages/guide/weights.md` tells of each. Nothing in the
    file is run. Weight is that of a new batch in the running averages. The largest factor is that of
    scale / sqrt(variance + epsilon): what evaluation multiplies the channel by.

    The exit status is 0, with --check 1 where NaN, infinities, or variances below 0 were found.
    """
    with selecting.told():
        content = selecting.chosen(selecting.read(file, form), patterns)
    layers = content.layers
    found = {layer.name: health.findings(layer) for layer in layers}
    notes = [*content.notes, *map(_unstated, (layer for layer in layers if layer.epsilon is None))]
    faulty = [name for name, told in found.items() if any(one.fault for one in told)]
    if as_json:
        output.print_json(
            {
                "file": file,
                "format": content.format,
                "layers": [as_dict(layer, found[layer.name]) for layer in layers],
                "notes": [{"layer": note.layer, "text": note.text, "lost": note.lost} for note in notes],
            }
        )
    else:
        _print(content.format, layers, found, notes)
    if check and faulty:
        raise SystemExit(1)


def _unstated(layer: Layer) -> Note:
    convention = conventions.named(layer.convention)
    return Note(layer.name, f"epsilon is not in the file; {convention.name}'s default is {convention.epsilon:g}")


def _print(form: str, layers: Sequence[Layer], found: dict[str, list[health.Finding]], notes: Sequence[Note]) -> None:
    console = output.console()
    table = tables.fitting(console, functools.partial(as_table, layers), _LEFT_OUT_FIRST)
    console.print(table)
    tables.print_left_out(console, table, _FACTS)
    for heading in [column.header for column in table.columns if column.header in _EXPLAINED]:
        console.print(Text(f"{heading}: {_EXPLAINED[str(heading)]}", style="dim"))
    console.print()
    count = "1 batch normalization" if len(layers) == 1 else f"{len(layers)} batch normalizations"
    console.print(Text(f"{count}, {sum(layer.channels for layer in layers):,} channels; {by_name(form).title}"))
    told = [one for findings in found.values() for one in findings]
    for fault, heading, style in ((True, "Wrong:", "bold red"), (False, "Noteworthy:", "bold")):
        lines = gathered([(one.layer, one.text) for one in told if one.fault is fault], len(layers))
        if not fault:
            lines += gathered([(note.layer, note.text) for note in notes], len(layers))
        if lines:
            console.print(Text(heading, style=style))
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
    if not told:
        console.print(Text("Nothing wrong with their statistics.", style="green"))


def as_table(layers: Sequence[Layer], shown: Collection[str]) -> Table:
    """One layer a row."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("Layer", overflow="fold")
    table.add_column("Channels", justify="right", no_wrap=True)
    for heading in _FACTS:
        if heading in shown:
            table.add_column(heading, no_wrap=True, justify="left" if heading == "Type" else "right")
    for layer in layers:
        facts = {
            "Type": ", ".join(dict.fromkeys(str(array.dtype) for array in layer.arrays.values())),
            "Epsilon": _number(layer.epsilon),
            "Weight": "1/n" if layer.cumulative else _number(layer.factor),
            "Batches": "" if layer.batches is None else f"{layer.batches:,}",
            "Variance": _range(layer),
            "Largest factor": _number(_largest(layer)),
        }
        row = [facts[column] for column in facts if column in shown]
        table.add_row(Text(layer.name or "(no name)", style="bold"), str(layer.channels), *row)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _range(layer: Layer) -> str:
    if layer.var is None:
        return "none"
    var = as_float64(layer.var)
    if not np.isfinite(var).any():
        return "not finite"
    finite = var[np.isfinite(var)]
    return f"{finite.min() + 0.0:.3g} to {finite.max() + 0.0:.3g}"  # + 0.0: without a sign of zero


def _largest(layer: Layer) -> float | None:
    """The largest |scale| / sqrt(var + epsilon), by an epsilon of 1e-5 where the file does not say."""
    if layer.var is None:
        return None
    epsilon = 1e-5 if layer.epsilon is None else layer.epsilon
    scale = 1.0 if layer.scale is None else np.abs(as_float64(layer.scale))
    with np.errstate(all="ignore"):
        factors = scale / np.sqrt(as_float64(layer.var) + epsilon)
    return None if np.isnan(factors).all() else float(np.nanmax(factors))


def as_dict(layer: Layer, findings: Sequence[health.Finding]) -> dict[str, Any]:
    """One layer as JSON shows it."""
    return {
        "name": layer.name,
        "channels": layer.channels,
        "types": {name: str(array.dtype) for name, array in layer.arrays.items()},
        "epsilon": layer.epsilon,
        "factor": layer.factor,
        "cumulative": layer.cumulative,
        "batches": layer.batches,
        "largest_factor": _largest(layer),
        "convention": layer.convention,
        "ranges": {name: _extremes(getattr(layer, name)) for name in ARRAYS if getattr(layer, name) is not None},
        "findings": [{"text": one.text, "fault": one.fault} for one in findings],
    }


def _extremes(array: np.ndarray[Any, Any]) -> list[float | None]:
    wide = as_float64(array)
    return [None, None] if np.isnan(wide).all() else [float(np.nanmin(wide)), float(np.nanmax(wide))]
