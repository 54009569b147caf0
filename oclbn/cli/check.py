"""`oclbn check`: does everything work on this device, and is it right?"""

from __future__ import annotations

import math
from pathlib import Path

import click
from rich.console import Console

from oclbn import device
from oclbn.cli import check_report, check_run, output, remedy, types
from oclbn.cli.devices import as_size
from oclbn.cli.failures import FAILED
from oclbn.cli.progress import expect, expect_compiling
from oclbn.cli.types import SELECTIONS, DeviceType, Once, Seconds, Target, check_ending, check_free, overwriting
from oclbn.device import DeviceInfo
from oclbn.files import whole
from oclbn.tools.check import repro as check_repro
from oclbn.tools.check.checklist import BuildCheck, NumberCheck, SpeedCheck
from oclbn.tools.check.outcomes import Checked

_QUICK, _ALL = 25.0, 75.0  # seconds for a device, on a processor with two cores, kernels compiled
_LONGEST = 1e6  # seconds that the system's clocks can wait


@click.command(cls=Once)
@click.option("--device", "spec", type=DeviceType(), help=f"The device: {SELECTIONS}")
@click.option("--all", "every", is_flag=True, help="Every device, simulators too, one after the other.")
@click.option(
    "--quick",
    is_flag=True,
    help="A few small tensors only: seconds; half a minute where kernels have to be compiled first.",
)
@types.as_json
@click.option(
    "--repro",
    "script",
    type=Target(),
    help="Write the smallest failure as a script of pyopencl and NumPy alone, for a report to the driver's maker.",
)
@overwriting
@click.option(
    "--timeout",
    default=check_run.TIMEOUT,
    show_default=True,
    type=Seconds(min=1, max=_LONGEST),
    help="Seconds for one check, after which the driver counts as hung.",
)
def command(
    spec: str | None, every: bool, quick: bool, as_json: bool, script: Path | None, overwrite: bool, timeout: float
) -> None:
    """Build every kernel that could be chosen on a device, and hold its results against float64 NumPy.

    Training, inference, backward (with the batch's statistics and in eval mode) and moments, on ordinary and on
    ill-conditioned data. Errors are in units of the tolerance that oclbn states for them: 1 is the most that passes.
    Each check runs in a child process, so that a driver that aborts or hangs is a failed check and the others still
    run.

    The choices in force are checked, the user's tuning table included. Simulators are always checked quickly. The exit
    status is 0 when everything passed, and 1 when anything failed; what to do then stands below, another device that
    passes included.
    """
    if every and spec is not None:
        raise click.UsageError("--all and --device exclude each other")
    if script is not None:
        check_ending(script, ("py",), "--repro")
        check_free(script, "--repro", overwrite=overwrite)
    infos = (list(device.devices()) if every else []) or [device.select(spec)]  # where there is none, it says why
    console = output.console()
    found: list[Checked] = []
    _expect(infos, quick=quick)
    for info in infos:
        found.append(check_run.run(info, quick=quick, timeout=timeout))
        if not as_json:
            check_report.print_checked(console, found[-1])
    if as_json:
        output.print_json(check_report.as_json(found))
    elif every:
        check_report.print_matrix(console, found)
    if script is not None:
        _write_repro(script, found)
    if not all(checked.good for checked in found):
        if not as_json:
            _print_remedy(console, found, script=script is None)
        raise click.exceptions.Exit(FAILED)


def _expect(infos: list[DeviceInfo], *, quick: bool) -> None:
    seconds = sum(_QUICK if quick or info.simulator else _ALL for info in infos)
    what = "1 device" if len(infos) == 1 else f"{len(infos)} devices"
    if quick:
        expect_compiling(what, seconds)
    else:
        expect(what, seconds)


def _print_remedy(console: Console, found: list[Checked], *, script: bool) -> None:
    """For the first device that failed; where several did, the others are like it."""
    first = next(checked for checked in found if not checked.good)
    remedy.print_lines(console, remedy.lines(first.info, remedy.passing(first.info, found), script=script))


def _write_repro(script: Path, found: list[Checked]) -> None:
    """Of the first device with a failure the one that makes the smallest script: that is easiest to look into."""
    for checked in found:
        # What fails in a SpeedCheck fails in small as well, or takes too much memory for a script.
        shown = [(o.check, o.fault) for o in checked.faults if not isinstance(o.check, SpeedCheck)]
        if not shown:
            continue
        check, fault = min(shown, key=lambda pair: _elements(pair[0]))
        text = check_repro.script(checked, check, fault)
        try:
            with whole.replacing(script) as file:
                file.write(text.encode())
        except OSError as error:
            raise click.FileError(str(script), hint=error.strerror) from error
        output.say(f"Wrote {script} ({as_size(len(text.encode()))}): {check_report.named(check)}")
        return
    output.say("Nothing failed that a script could show: none was written")


def _elements(check: BuildCheck | NumberCheck) -> int:
    return math.prod(check.shape) if isinstance(check, NumberCheck) else 0
