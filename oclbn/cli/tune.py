"""`oclbn tune`: look for better choices on the device at hand, and keep them in the user's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oclbn import __version__, device, tuning
from oclbn.cli import output as screen
from oclbn.cli import tune_report, tune_run, types
from oclbn.cli.failures import Interrupted
from oclbn.cli.progress import expect
from oclbn.cli.tune_run import Shapes, Tuned
from oclbn.cli.types import SELECTIONS, DeviceType, Names, Once, Seconds, ShapeType, check_ending, together, trainable
from oclbn.device import DeviceInfo
from oclbn.errors import DeviceNotFoundError, ParameterError
from oclbn.files import whole
from oclbn.tools.bench.suites import SUITES
from oclbn.tools.tune import search
from oclbn.tools.tune.search import Choices
from oclbn.tuning import usertable
from oclbn.tuning.usertable import DeviceNames

SECONDS, QUICK_SECONDS = 120.0, 30.0
_BESIDE = 15.0  # seconds of the check before the search and the last timing, on a processor with two cores


@click.command(cls=Once)
@click.option("--device", "spec", type=DeviceType(), help=f"The device: {SELECTIONS}")
@click.option("--all", "every", is_flag=True, help="Every device that is no simulator, one after the other.")
@click.option("--seconds", type=Seconds(min=0), help=f"Stop looking after so long.  [default: {SECONDS:g}]")
@click.option("--quick", is_flag=True, help=f"Fewer and smaller shapes, and {QUICK_SECONDS:g} seconds.")
@click.option(
    "--suite", "suites", multiple=True, type=Names(sorted(SUITES), "NAMES"), help="Tune for shapes by name; repeatable."
)
@click.option("--shape", "shapes", multiple=True, type=ShapeType(), help="A shape of your own; repeatable.")
@click.option("--axis", default=1, show_default=True, help="Axis of the channels, for --shape.")
@click.option("--show", is_flag=True, help="Show the choices in force, their origins and their plans; tune nothing.")
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@click.option(
    "--keep", is_flag=True, help="After Ctrl-C keep what has been found; the exit status is 130 all the same."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this table (.toml) instead of the user's own; what it holds of other devices is kept.",
)
@types.as_json
def command(
    spec: str | None,
    every: bool,
    seconds: float | None,
    quick: bool,
    suites: tuple[tuple[str, ...], ...],
    shapes: tuple[tuple[int, ...], ...],
    axis: int,
    show: bool,
    dry_run: bool,
    keep: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Look for better choices on a device: sizes of groups and vectors, how a tensor is cut up.

    Starts from the choices in force and changes one at a time. Each candidate is compiled and held against float64
    NumPy in a process of its own before it is timed, so that a driver that aborts or hangs loses only the candidate.
    What is 2 % faster or more, in two comparisons, as the mean over all shapes, is taken.

    The result goes to the user's tuning table, which beats what oclbn ships; the environment variable OCLBN_TUNING may
    name another one. Without --suite and --shape: a few shapes that stand for all others.
    """
    if axis != 1 and not shapes:
        raise click.BadParameter("it needs --shape: suites say where their channels are", param_hint="--axis")
    if every and spec is not None:
        raise click.UsageError("--all and --device exclude each other")
    if show:
        told = {"--seconds": seconds is not None, "--quick": quick, "--suite": suites, "--shape": shapes}
        told |= {"--dry-run": dry_run, "--keep": keep, "--output": output is not None}
        if given := [option for option, there in told.items() if there]:
            raise click.UsageError(f"--show tunes nothing: leave out {', '.join(given)}")
    infos = _all_devices() if every else [device.select(spec)]
    console = screen.console()
    if show:
        named = [(info, device.tuning_names(info.device)) for info in infos]
        shown = [
            (
                info,
                tune_report.origins(tuning.levels(*names)),
                search.plans_for(info.limits, tuning.tuning_for(*names)),
            )
            for info, names in named
        ]
        if as_json:
            screen.print_json({"devices": [tune_report.origins_as_dict(*one) for one in shown]})
        for one in () if as_json else shown:
            tune_report.print_origins(console, *one, usertable.path())
        return
    target = usertable.path() if output is None else output
    if output is not None:
        check_ending(output, ("toml",), "--output")
    if not dry_run:
        _check_target(target, named=output is not None)
    cases = [trainable(shape, axis) for shape in shapes] + [
        case for suite in together(suites) for case in SUITES[suite]
    ]
    wanted: Shapes = list(dict.fromkeys(cases))
    budget = seconds if seconds is not None else QUICK_SECONDS if quick else SECONDS
    reports: list[dict[str, Any]] = []
    interrupted = False
    each = budget + _BESIDE
    devices = "1 device" if len(infos) == 1 else f"{len(infos)} devices"
    expect(f"A check, {budget:g} s of candidates at most and a last timing on {devices}", len(infos) * each)
    for info in infos:
        todo = wanted or search.shapes_for(info.limits, quick=quick)
        try:
            tuned = tune_run.run(info, _in_force(info, target), todo, budget, keep=keep)
        except KeyboardInterrupt:
            raise Interrupted("nothing was written; --keep keeps what was found") from None
        interrupted = not tuned.rows
        entry = _entry(tuned)
        written = None
        if tuned.worthwhile and not dry_run and target is not None:
            _write(target, info, entry)
            written = target
        if as_json:
            reports.append(tune_report.as_dict(tuned, entry, written))
        else:
            tune_report.print_tuned(console, tuned, entry, written)
        if interrupted:
            break
    if as_json:
        screen.print_json({"devices": reports})
    if interrupted:
        raise Interrupted("what was found until then is printed")


def _all_devices() -> list[DeviceInfo]:
    listed = device.devices() or (device.select(),)  # where there is none, it says why
    infos = [info for info in listed if not info.simulator]
    if not infos:
        raise DeviceNotFoundError("there is no OpenCL device that is no simulator")
    return infos


def _check_target(target: Path | None, *, named: bool) -> None:
    """Whatever would keep the result from being written has to show before the search. named: by --output."""
    if target is None:
        raise click.UsageError(
            f"{usertable.why_none()}, so there is no table to write to: name one with --output, or say --dry-run"
        )
    usertable.require_tomlkit()
    try:
        whole.check_target(target)
        usertable.read(target)
    except OSError as error:
        if named:
            raise click.BadParameter(f"{target}: {error.strerror}", param_hint="--output") from error
        raise click.FileError(str(target), hint=error.strerror) from error
    except ParameterError as error:
        if named:
            raise click.BadParameter(str(error), param_hint="--output") from error
        raise


def _in_force(info: DeviceInfo, target: Path | None) -> Choices:
    """The choices to start from; a table that OCLBN_TUNING names and that is to be made holds none yet."""
    names = device.tuning_names(info.device)
    if target is not None and target == usertable.path() and not target.exists():
        return search.choices_of(tuning.shipped_for(*names[:4]))
    return search.choices_of(tuning.tuning_for(*names))


def _entry(tuned: Tuned) -> Choices:
    """What the user's table has to hold: where it differs from what is shipped."""
    shipped = search.choices_of(tuning.shipped_for(*device.tuning_names(tuned.info.device)[:4]))
    return {name: value for name, value in tuned.found.choices.items() if value != shipped[name]}


def _write(target: Path, info: DeviceInfo, entry: Choices) -> None:
    names = DeviceNames(info.platform, info.platform_version, info.name, info.driver)
    try:
        usertable.write(target, names, entry, __version__)
    except OSError as error:
        raise click.FileError(str(target), hint=error.strerror) from error
    tuning.forget()
