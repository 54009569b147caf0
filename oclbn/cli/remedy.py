"""What to do when a device gives wrong results: another one that passes, and a report for the driver's maker."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from oclbn import device
from oclbn.cli import check_run
from oclbn.device import DeviceInfo
from oclbn.device.selection import rank
from oclbn.proof import proving
from oclbn.tools.check.outcomes import Checked

HEADING = "What to do:"
QUICK = "`oclbn check --quick`"


def passing(info: DeviceInfo, known: Sequence[Checked] = ()) -> DeviceInfo | None:
    """The best ranked of the other devices that passes a quick check, simulators aside; None where there is none.

    known: what is known of some already. Others are checked here, each up to its first failure: seconds.
    """
    good = {checked.info.spec: checked.good for checked in known}
    for other in rank(device.devices()):
        if other.spec == info.spec or other.simulator:
            continue
        if good.get(other.spec) or (other.spec not in good and check_run.run(other, quick=True, most_faults=1).good):
            return other
    return None


def lines(info: DeviceInfo, other: DeviceInfo | None, *, script: bool = True, proven: bool = True) -> list[str]:
    """What the user can do about wrong results of `info`, a sentence each.

    other: a device that passes. script: whether to tell how a report is made. proven: whether kernels were, in this
    process, as OCLBN_PROVE has it; where they were not, that is what to change first.
    """
    told = []
    if not proven:
        told.append(f"{proving.VARIABLE} is 0: without it kernels prove themselves first, and wrong ones are replaced.")
    if other is not None:
        told.append(f"Another device passes {QUICK}: {other.title}. To use it: --device {other.spec}")
        told[-1] += f", or OCLBN_DEVICE={other.spec} for a whole program."
    else:
        pocl = any("pocl" in one.runtime.lower() for one in device.devices())
        or_pocl = "" if pocl else ", or use the processor with: pip install 'oclbn[pocl]'"
        told.append(f"No other device here passes {QUICK}: try another version of the driver{or_pocl}.")
    if script:
        told.append(f"For the driver's maker: `oclbn check --device {info.spec} --repro report.py` writes a script.")
    return told


def print_lines(console: Console, told: Sequence[str]) -> None:
    """Below a verdict, under a heading."""
    console.print(Text(HEADING, style="bold"))
    for line in told:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
