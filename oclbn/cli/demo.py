"""`oclbn demo`: batch normalization on real data, each result held against float64 NumPy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np
import pyopencl as cl
from rich.progress import MofNCompleteColumn, TextColumn
from rich.text import Text

from oclbn import device
from oclbn.cli import builds, demo_report, plot, remedy, types
from oclbn.cli import output as screen
from oclbn.cli.failures import FAILED, Failure
from oclbn.cli.progress import Elapsed, expect_compiling, progress
from oclbn.cli.types import SELECTIONS, DeviceType, Once, check_ending, check_free, overwriting
from oclbn.device import DeviceInfo
from oclbn.errors import BuildError, DeviceError, OclbnError
from oclbn.files import whole
from oclbn.proof import proving
from oclbn.tools.demo import data as demo_data
from oclbn.tools.demo.data import Case
from oclbn.tools.demo.run import Outcome, Schedule, run

_FIRST = 4.0  # seconds for a data set on a processor with two cores, most of them for its kernels
DIGITS = "scikit-learn's handwritten digits"


@click.command(cls=Once)
@click.option("--device", "spec", type=DeviceType(), help=f"The device: {SELECTIONS}")
@click.option(
    "--input",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A .npy file to use in place of the digits. float32 and float64 are taken as they are; float16, "
    "bfloat16, integers and bool are converted to float32.",
)
@click.option("--axis", type=int, help="Channel axis of --input.  [default: 1]")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the normalised data (scale 1, bias 0) as .npy; of the digits: their activations.",
)
@click.option(
    "--plot",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the channels before and after (.png, .svg, .pdf); of the digits: their activations.",
)
@overwriting
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Samples in a batch.")
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Times through the data.")
@click.option("--quiet", is_flag=True, help="Print the verdict alone, and what to do where it is not PASS.")
@types.as_json
@click.option("--batches", type=click.IntRange(1), help="Stop training after so many batches.")
def command(
    spec: str | None,
    source: Path | None,
    axis: int | None,
    output: Path | None,
    picture: Path | None,
    overwrite: bool,
    batch_size: int,
    epochs: int,
    batches: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Normalise real data on a device and check every number.

    Trains on mini-batches, evaluates, goes backward, compares each result with float64 NumPy, and times the calls.
    The data are 1,797 handwritten digits (as features, as images and as activations of 16 filters) or your own array.
    The exit status is 1 when a result is out of its tolerance, and 3 when the data cannot be normalised as they are:
    too large for their type, or without one finite value in a channel.
    """
    if quiet and as_json:
        raise click.UsageError("--quiet and --json exclude each other: --json prints nothing else anyway")
    if axis is not None and source is None:
        raise click.BadParameter("it needs --input: the digits have their channels on axis 1", param_hint="--axis")
    _check_targets(source, output, picture, overwrite=overwrite)
    info = device.select(spec)
    console, told = screen.console(quiet=as_json), screen.console(quiet=quiet or as_json)

    def note(line: Text) -> None:
        """Beside JSON it goes to standard error."""
        screen.say(line.plain) if as_json else console.print(line)

    cases = demo_data.digits() if source is None else (_own(source, 1 if axis is None else axis, info),)
    schedule = Schedule(batch_size, epochs, batches)
    _check_schedule(schedule, cases)
    demo_report.print_device(told, info)
    if not quiet and not as_json:
        expect_compiling(_counted(len(cases)), _FIRST * len(cases))
    with builds.counted() as built:
        try:
            outcomes = _run_all(cases, device.queue_for(info), schedule, silent=quiet)
        except (BuildError, DeviceError) as error:
            raise Failure("\n".join([str(error), remedy.HEADING, *_remedy(info)])) from error
    demo_report.print_outcomes(told, outcomes)
    told.print()
    if built.programs:
        told.print(Text(str(built), style="dim"))
    shown = outcomes[-1]
    if output is not None:
        _write(output, lambda file: np.save(file, shown.y))
        wrote = f"Wrote {output}: {shown.case.name}, normalised, {shown.y.shape} {shown.y.dtype}"
        if lost := shown.y.size - np.count_nonzero(np.isfinite(shown.y)):
            wrote += f"; {lost:,} of {shown.y.size:,} values are not finite"
        if lost and (quiet or as_json):
            screen.say(wrote)
        told.print(Text(wrote))
    if picture is not None:
        title = f"{DIGITS}, {shown.case.name}" if source is None else shown.case.name
        title += f" {shown.y.shape}\nnormalised on {info.title}"
        drawn = plot.histograms(shown.case.x, shown.y, shown.case.axis, title, file_format=_format(picture))
        _write(picture, lambda file: file.write(drawn))
        told.print(Text(f"Wrote {picture}"))
    if source is not None and axis is None and demo_data.looks_channels_last(shown.case.x.shape):
        shape = ", ".join(map(str, shown.case.x.shape))
        note(Text(f"Hint: of ({shape}), axis 1 was taken for the channels; pictures have them last: --axis -1"))
    status, lines = demo_report.verdict(outcomes, info)
    if status == 0:
        for line in demo_report.cures(outcomes) if as_json or not quiet else ():
            note(line)
    for line in lines if status or not as_json else ():
        note(line)
    if as_json:
        screen.print_json(demo_report.as_json(info, outcomes, status))
    if status == FAILED and not as_json:
        remedy.print_lines(console, _remedy(info))
    if status:
        raise click.exceptions.Exit(status)


def _counted(number: int) -> str:
    return "1 data set" if number == 1 else f"{number} data sets"


def _remedy(info: DeviceInfo) -> list[str]:
    return remedy.lines(info, remedy.passing(info), proven=proving.switched_on())


def _check_targets(source: Path | None, output: Path | None, picture: Path | None, *, overwrite: bool) -> None:
    """Whatever would keep the results from being written has to show before the work is done."""
    for option, target, endings in (("--output", output, ("npy",)), ("--plot", picture, plot.FORMATS)):
        if target is None:
            continue
        check_ending(target, endings, option)
        if not target.absolute().parent.is_dir():
            raise click.BadParameter(f"{target.parent} is not a folder", param_hint=option)
        try:
            whole.check_target(target)
        except OSError as error:
            raise click.BadParameter(f"{target}: {error.strerror}", param_hint=option) from error
        if source is not None and target.exists() and target.samefile(source):
            raise click.BadParameter(f"{target} is the file that --input names", param_hint=option)
        check_free(target, option, overwrite=overwrite)
    if picture is not None:
        plot.require_matplotlib()


def _own(source: Path, axis: int, info: DeviceInfo) -> Case:
    with _blamed_on("--input"):
        given = demo_data.read(source)
    with _blamed_on("--axis"):
        demo_data.check_axis(given, source, axis)
    with _blamed_on("--input"):
        return demo_data.taken(given, source, axis, fp64=info.limits.fp64)


def _check_schedule(schedule: Schedule, cases: Sequence[Case]) -> None:
    for case in cases:
        with _blamed_on("--batch-size" if schedule.size(case) < case.samples else "--input"):
            schedule.check(case)


@contextlib.contextmanager
def _blamed_on(option: str) -> Iterator[None]:
    """What oclbn does not accept is told as what is wrong with that option."""
    try:
        yield
    except OclbnError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _run_all(cases: Sequence[Case], queue: cl.CommandQueue, schedule: Schedule, *, silent: bool) -> list[Outcome]:
    outcomes = []
    batches = functools.partial(TextColumn, "batches")
    with progress(screen.errors(), MofNCompleteColumn, batches, Elapsed, silent=silent) as bar:
        for case in cases:
            task = bar.add_task(case.name, total=schedule.total(case))
            outcomes.append(run(case, queue, schedule, lambda task=task: bar.advance(task)))  # type: ignore[misc]
    return outcomes


def _write(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    try:
        with whole.replacing(target) as file:
            fill(file)
    except OSError as error:
        raise click.FileError(str(target), hint=error.strerror) from error


def _format(picture: Path) -> str:
    return picture.suffix.lower().lstrip(".")
