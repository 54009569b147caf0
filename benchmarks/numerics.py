"""Errors of oclbn, PyTorch and three formulas in float32 against a longer precision.

    python benchmarks/numerics.py [DEVICE]... [--write PAGE] [--quick]

oclbn on the first device (a specification of oclbn.device; without one, the default) is compared with PyTorch, where
that is installed, and with the formulas of numerics_methods.py; the errors on further devices are summed up in a table
of their own. numerics_errors.py says how errors are measured, and what the reference is. Prints Markdown; --write puts
it between the markers of a page, DATE-errors.md of docs/pages/measurements, and the picture into the folder pictures
beside the page's own, under the page's name. Three minutes, 5 GB.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import click
import numerics_report as report
import numpy as np
from numerics_errors import Errors
from numerics_methods import Case, methods, plain, torch_version
from numerics_running import Averages, study

import oclbn
import oclbn.device
from oclbn.truth import hostile

RATIOS = (1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6)


def shifted(ratio: float, std: float = 1.0) -> hostile.Maker:
    """Channels with means of ratio to ratio + 1 standard deviations, of either sign: no two round alike."""

    def make(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> hostile.Host:
        x = hostile.Offset(ratio)(rng, shape, axis)
        return std * (x + hostile.along(rng.uniform(size=shape[axis]), shape, axis))

    return make


def one_signed(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> hostile.Host:
    """Two values whose squares lose nearly half a unit whenever one is added to a sum between 32 and 64."""
    del axis
    return (1 + 5 * float(np.finfo(np.float32).eps)) * rng.choice([-1.0, 1.0], size=shape)


def scaled(std: float) -> hostile.Maker:
    return shifted(0.0, std)


def cases(quick: bool) -> Iterator[tuple[str, float | None, Case]]:
    """The table that a case belongs to, its mean/std where that is its point, and the case."""
    images = (4, 3, 8, 8) if quick else (32, 64, 28, 28)
    smaller = (4, 3, 8, 8) if quick else (32, 16, 14, 14)
    bits = 14 if quick else 25

    def case(name: str, shape: tuple[int, ...], maker: hostile.Maker, epsilon: float = 1e-5) -> Case:
        return Case(name, hostile.make(shape, 1, maker=maker), 1, epsilon)

    yield "data", None, case("N(0, 1)", images, hostile.gaussian)
    for ratio in RATIOS:
        yield "data", ratio, case(f"mean/std {plain(ratio)}", images, shifted(ratio))
    yield "data", None, case("constant channels", images, hostile.constant)
    yield "data", None, case("squares near the largest number", images, hostile.large)
    yield "data", None, case("denormal numbers", images, hostile.Denormal())
    yield "data", None, case("roundings of one sign", (4, 8, 1 << (8 if quick else 16)), one_signed)
    for shape, name in (((1, 1, 1 << bits), f"one slice of 2^{bits}"), ((1 << bits - 2, 4), f"(2^{bits - 2}, 4)")):
        for ratio in (1.0, 1e4):
            yield "data", ratio, case(f"{name}, mean/std {plain(ratio)}", shape, shifted(ratio))
    for std in (1e15, 1e17, 1e18, 1e19, 1e30, 1e37):
        yield "range", None, case(f"std {plain(std)}", smaller, scaled(std))
    for std in (1e-15, 1e-18, 1e-19, 1e-20, 1e-30, 1e-39):
        yield "range", None, case(f"std {plain(std)}, epsilon 2^-126", smaller, scaled(std), 2.0**-126)


@click.command()
@click.argument("devices", nargs=-1)
@click.option(
    "--write", metavar="PAGE", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A page with markers."
)
@click.option("--quick", is_flag=True, help="Small tensors and few batches, to see that it runs.")
def main(devices: tuple[str, ...], write: Path | None, quick: bool) -> None:
    """Print the tables, or write them into the document."""
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        click.echo("np.longdouble is no longer than float64 here: the reference has no more digits.", err=True)
    if torch_version() is None:
        click.echo("PyTorch is not installed: its column is left out (pip install torch==2.13.0).", err=True)
    queues = [oclbn.device.queue_for(spec) for spec in devices or (None,)]
    tables: dict[str, list[Errors]] = {"data": [], "range": []}
    curve: list[tuple[float, Errors]] = []
    for table, ratio, case in cases(quick):
        with np.errstate(all="ignore"):
            found = Errors(case, {name: method(case) for name, method in methods(queues).items()})
        tables[table].append(found)
        if ratio is not None and case.name.startswith("mean/std"):
            curve.append((ratio, found))
        click.echo(f"{case.name}: done", err=True)
    batches = 20 if quick else 10_000
    running: list[Averages] = [study(queues[0], ratio, least, batches) for ratio in (1.0, 1e4) for least in (0.1, 0.0)]
    versions = f"oclbn {oclbn.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    versions += f", PyTorch {torch_version()}" if torch_version() else ""
    text = report.markdown(
        tables["data"],
        tables["range"],
        running,
        batches,
        [f"{q.device.name.strip()}, {' '.join(q.device.platform.version.split(',')[0].split())}" for q in queues],
        versions,
    )
    if write is None:
        click.echo(text)
        return
    picture = write.resolve().parent.parent / "pictures" / f"{write.stem}.png"
    picture.parent.mkdir(exist_ok=True)
    report.draw(curve, picture)
    report.insert(text, write)


if __name__ == "__main__":
    main()
