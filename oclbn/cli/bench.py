"""`oclbn bench`: how far from the copy of the same tensor."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
import rich.progress
from rich.console import Console
from rich.table import Table

from oclbn import benchmark, device
from oclbn.benchmark import SUITES, Row

_BASELINES = {
    "copy command": "command",
    "copy kernel": "kernel",
    "copy kernel, past the cache": "kernel, past the cache",
}


class _Shape(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    name = "N,C[,D...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            shape = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers like 32,64,28,28", param, ctx)
        if len(shape) < 2 or min(shape) < 1:
            self.fail(f"{value!r} has to be two positive numbers or more", param, ctx)
        return shape


@click.command(name="bench")
@click.option("--device", "spec", metavar="SPEC", help="Device: P:D, a type, or part of a name.")
@click.option("--suite", "suites", multiple=True, type=click.Choice(sorted(SUITES)), help="Shapes by name; repeatable.")
@click.option("--shape", "shapes", multiple=True, type=_Shape(), help="A shape of your own; repeatable.")
@click.option("--axis", default=1, show_default=True, help="Axis of the channels, for --shape.")
@click.option(
    "--rounds", type=click.IntRange(min=3), help="Times each operation is timed; default: about 0.25 s of it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON, and nothing else.")
def command(
    spec: str | None,
    suites: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    axis: int,
    rounds: int | None,
    as_json: bool,
) -> None:
    """Time training, backward and inference against the fastest copy of the same tensor.

    Everything is timed in the same run, interleaved; times are medians, from the call to the empty queue, and ratios
    are to the fastest of the device's copy command and two copy kernels. Without --suite and --shape: the suite
    resnet50.
    """
    info = device.select(spec)
    queue = device.queue_for(info)
    cases = [(shape, axis) for shape in shapes]
    for suite in suites or (() if shapes else ("resnet50",)):
        cases += SUITES[suite]
    rows: list[Row] = []
    quiet = Console(stderr=True)
    for shape, where in rich.progress.track(
        cases, "Timing", console=quiet, transient=True, disable=not quiet.is_terminal
    ):
        rows += benchmark.measure(queue, shape, where, rounds=rounds)
    if as_json:
        about = {
            "device": info.name,
            "platform": info.platform,
            "version": info.platform_version,
            "driver": info.driver,
        }
        click.echo(json.dumps([{**asdict(row), **about} for row in rows], indent=1))
        return
    console = Console()
    console.print(f"{info.spec}  {info.name}, {info.platform}, driver {info.driver}", highlight=False)
    console.print(_table(cases, rows))
    console.print("ms; in brackets: over the fastest copy of the same tensor; @: channels' axis", style="dim")


def _table(cases: list[tuple[tuple[int, ...], int]], rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("shape", "copy", "GB/s", *benchmark.TENSORS):
        table.add_column(name, justify="left" if name == "shape" else "right", no_wrap=True)
    ratios: dict[str, list[float]] = {name: [] for name in benchmark.TENSORS}
    for shape, axis in cases:
        mine = {row.operation: row for row in rows if (row.shape, row.axis) == (shape, axis)}
        best = min((row for row in mine.values() if row.operation in _BASELINES), key=lambda row: row.median)
        cells = [f"{best.median * 1e3:.3f}", f"{best.bandwidth / 1e9:.1f}"]
        for name, found in ratios.items():
            found.append(mine[name].ratio)
            cells.append(f"{mine[name].median * 1e3:.2f} ({mine[name].ratio:.2f})")
        where = "" if axis == 1 else f" @{axis}"
        table.add_row("x".join(map(str, shape)) + where, *cells)
    means = [f"({benchmark.geometric_mean(found):.2f})" for found in ratios.values()]
    table.add_row("geometric mean", "", "", *means, style="bold")
    return table
