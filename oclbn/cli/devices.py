"""`oclbn devices`: what there is, and which one would be used."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from oclbn import device
from oclbn.cli import output, records, tables, types
from oclbn.cli.types import SELECTIONS, DeviceType, Once, as_option
from oclbn.device import DeviceInfo
from oclbn.device.selection import WITHOUT_DEVICES
from oclbn.errors import DeviceNotFoundError
from oclbn.proof import proving

FACTS = ("Kind", "CU", "fp16", "fp64", "Local", "Alloc")
_UNWRAPPED = "a runtime on one line"
_SHOWN = 8  # kernels that a driver gets wrong
_LEFT_OUT_FIRST = (_UNWRAPPED, "fp16", "Alloc", "Local", "CU", "fp64", "Kind")
_RUNTIME = 35  # characters, in which AMD's platform has its name; a longer runtime is wrapped at a blank
RANKING = "first in the ranking GPU, accelerator, processor, software rasteriser, simulator"


@click.command(cls=Once)
@click.option("--device", "spec", type=DeviceType(), help=f"Only this one: {SELECTIONS}")
@types.as_json
def command(spec: str | None, as_json: bool) -> None:
    """List the OpenCL devices and mark the default one.

    Each has its index P:D, its name and, below that, its runtime (or driver) with its version. --device and
    OCLBN_DEVICE take any of the three as it stands here, or a part of a name or runtime that no other device has.
    CU counts compute units; Local is the local memory of a work-group, Alloc the largest allocation.

    The exit status is 0 when there is a default device, and 1 when there is none: no device was found, or OCLBN_DEVICE
    or PYOPENCL_CTX does not name exactly one; what there is is listed all the same. With --device it is 0 when that
    names exactly one, and 1 otherwise.
    """
    if spec is not None:
        _print_one(spec, as_json)
        return
    listed = device.devices()
    default, reason, fault = None, "", ""
    try:
        default, reason = device.select_with_reason()
    except DeviceNotFoundError as error:
        fault = str(error).partition("\n")[0] if listed else str(error)  # its other lines list the devices, as we do
    if as_json:
        found = [as_dict(info, reason if info == default else None) for info in listed]
        output.print_json({"devices": found, "without_devices": device.without_devices()})
        if fault:
            raise DeviceNotFoundError(fault)
        return
    console = output.console()
    if listed:
        _print_table(console, listed, default)
        console.print()
        _print_failures(console, listed)
        _print_lacking(console)
    if fault:
        raise DeviceNotFoundError(fault)
    console.print(Text(f"* the default: {reason if reason != 'ranking' else RANKING}"))
    console.print(Text("To use another one: --device or OCLBN_DEVICE with its index, name or runtime.", style="dim"))


def _print_one(spec: str, as_json: bool) -> None:
    """The device that `spec` names; DeviceNotFoundError, which lists all, where it does not name exactly one."""
    info, reason = device.select_with_reason(spec)
    if as_json:
        output.print_json({"devices": [as_dict(info, None)], "without_devices": device.without_devices()})
        return
    console = output.console()
    _print_table(console, [info], None)
    console.print()
    _print_failures(console, [info])
    console.print(Text(f"selected by {as_option(reason)}; for a whole program: OCLBN_DEVICE={info.spec}"))


def _print_table(console: Console, listed: Sequence[DeviceInfo], default: DeviceInfo | None) -> None:
    table = tables.fitting(console, functools.partial(as_table, listed, default), _LEFT_OUT_FIRST)
    console.print(table)
    tables.print_left_out(console, table, FACTS)


def _print_failures(console: Console, listed: Sequence[DeviceInfo]) -> None:
    """Kernels that a driver gets wrong, and that oclbn goes round (oclbn.proof)."""
    for info in listed:
        told = proving.failures(info.device)
        if not told:
            continue
        what = "kernel is" if len(told) == 1 else "kernels are"
        console.print(Text(f"{info.title}: {len(told)} {what} wrong with this driver, and not used:"))
        for one in told[:_SHOWN]:
            console.print(Padding(Text(one, style="dim"), (0, 0, 0, 2), expand=False))
        if len(told) > _SHOWN:
            console.print(Text(f"  ... and {len(told) - _SHOWN} more; --json has all", style="dim"))
        console.print(Text(f"`oclbn check --device {info.spec} --repro report.py` shows it to the driver's maker."))
        console.print()


def _print_lacking(console: Console) -> None:
    """What is installed and offers no device: nothing to worry about, unless one was looked for there."""
    lacking = device.without_devices()
    if lacking:
        console.print(Text(f"{WITHOUT_DEVICES}:", style="dim"))
    for line in lacking:
        console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2), expand=False))
    if lacking:
        console.print()


def as_dict(info: DeviceInfo, reason: str | None) -> dict[str, Any]:
    """One device as JSON shows it; `reason` says why it is the default one, None that it is not."""
    return {
        **records.of_device(info),
        "not_used": list(proving.failures(info.device)),
        "default": reason is not None,
        "reason": reason,
    }


def as_table(listed: Sequence[DeviceInfo], default: DeviceInfo | None, shown: Collection[str]) -> Table:
    """All devices, one a row, with these of their facts; the runtime stands below the name, to be narrow.

    Names and runtimes are never cut where facts can be left out instead: they are there to be copied.
    """
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("")
    table.add_column("P:D", no_wrap=True)
    widest = max((len(info.name) for info in listed), default=0)
    table.add_column("Device", overflow="fold", max_width=None if _UNWRAPPED in shown else max(widest, _RUNTIME))
    facts = [heading for heading in FACTS if heading in shown]
    for heading in facts:
        table.add_column(heading, no_wrap=True, justify="right" if heading != "Kind" else "left")
    for info in listed:
        told = _facts(info)
        table.add_row(
            "*" if info == default else "",
            info.spec,
            Text.assemble((info.name, "bold"), "\n", (info.runtime, "dim")),
            *(told[heading] for heading in facts),
            style="green" if info == default else "",
        )
    return table


def _facts(info: DeviceInfo) -> dict[str, str]:
    limits = info.limits
    return {
        "Kind": "simulator" if info.simulator else info.kind,
        "CU": str(limits.compute_units),
        "fp16": "yes" if limits.fp16 else "no",
        "fp64": "yes" if limits.fp64 else "no",
        "Local": as_size(limits.local_bytes),
        "Alloc": as_size(limits.max_alloc_bytes),
    }


def as_size(count: int) -> str:
    """Bytes in the largest binary unit that leaves one or more of it."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}" if size == round(size) else f"{size:.1f} {unit}"
