"""`oclbn devices`: what there is, and which one would be used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from oclbn import device
from oclbn.device import DeviceInfo
from oclbn.device.selection import WITHOUT_DEVICES
from oclbn.errors import DeviceNotFoundError
from oclbn.proof import proving

RANKING = "first in the ranking GPU, accelerator, CPU, simulator"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; sizes in bytes.")
def command(as_json: bool) -> None:
    """List the OpenCL devices and mark the default one.

    P:D is the index that selects a device. CU counts its compute units; Local is the local memory of a work-group,
    Alloc the largest allocation.

    The exit status is 0 when there is a default device, and 1 when there is none: no device was found, or OCLBN_DEVICE
    or PYOPENCL_CTX does not name exactly one. With --json it is 0 in these cases, too, and nothing is marked.
    """
    listed = device.devices()
    default, reason, fault = None, "", ""
    try:
        default, reason = device.select_with_reason()
    except DeviceNotFoundError as error:
        fault = str(error).partition("\n")[0] if listed else str(error)  # its other lines list the devices, as we do
    if as_json:
        click.echo(json.dumps([as_dict(info, reason if info == default else None) for info in listed], indent=2))
        if fault:
            click.echo(f"Note: {fault}", err=True)
        return
    console = Console(highlight=False)
    if listed:
        console.print(as_table(listed, default))
        console.print()
        _print_failures(console, listed)
        _print_lacking(console)
    if fault:
        raise DeviceNotFoundError(fault)
    console.print(Text(f"* the default: {reason if reason != 'ranking' else RANKING}"))
    console.print(Text("To use another one, set OCLBN_DEVICE to its P:D or to a part of its name.", style="dim"))


def _print_failures(console: Console, listed: Sequence[DeviceInfo]) -> None:
    """Kernels that a driver gets wrong, and that oclbn goes round (oclbn.proof)."""
    for info in listed:
        told = proving.failures(info.device)
        if not told:
            continue
        what = "kernel is" if len(told) == 1 else "kernels are"
        console.print(Text(f"{info.spec} {info.name}: {len(told)} {what} wrong with this driver, and not used:"))
        for one in told:
            console.print(Padding(Text(one, style="dim"), (0, 0, 0, 2)))
        console.print(Text("`oclbn check --repro report.py` shows it to the driver's maker."))
        console.print()


def _print_lacking(console: Console) -> None:
    """What is installed and offers no device: nothing to worry about, unless one was looked for there."""
    lacking = device.without_devices()
    if lacking:
        console.print(Text(f"{WITHOUT_DEVICES}:", style="dim"))
    for line in lacking:
        console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2)))
    if lacking:
        console.print()


def as_dict(info: DeviceInfo, reason: str | None) -> dict[str, Any]:
    """One device as JSON shows it; `reason` says why it is the default one, None that it is not."""
    return {
        "index": info.spec,
        "name": info.name,
        "platform": info.platform,
        "platform_version": info.platform_version,
        "driver": info.driver,
        "simulator": info.simulator,
        **dataclasses.asdict(info.limits),
        "not_used": list(proving.failures(info.device)),
        "default": reason is not None,
        "reason": reason,
    }


def as_table(listed: Sequence[DeviceInfo], default: DeviceInfo | None) -> Table:
    """All devices, one a row; platform and driver stand below the name, which lets it fit into 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("")
    table.add_column("P:D", no_wrap=True)
    table.add_column("Device")
    table.add_column("Kind", no_wrap=True)
    for heading in ("CU", "fp16", "fp64", "Local", "Alloc"):
        table.add_column(heading, no_wrap=True, justify="right")
    for info in listed:
        limits = info.limits
        table.add_row(
            "*" if info == default else "",
            info.spec,
            Text.assemble((info.name, "bold"), "\n", (f"{info.platform}, driver {info.driver}", "dim")),
            "simulator" if info.simulator else info.kind,
            str(limits.compute_units),
            "yes" if limits.fp16 else "no",
            "yes" if limits.fp64 else "no",
            as_size(limits.local_bytes),
            as_size(limits.max_alloc_bytes),
            style="green" if info == default else "",
        )
    return table


def as_size(count: int) -> str:
    """Bytes in the largest binary unit that leaves one or more of it."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}" if size == round(size) else f"{size:.1f} {unit}"
