"""What `oclbn check` prints: one table per device, the faults below it, and devices side by side."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oclbn.cli import records, tables
from oclbn.cli.devices import as_size
from oclbn.device import DeviceInfo
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.words import in_words
from oclbn.tools.check.checklist import BuildCheck, Check, NumberCheck, SpeedCheck
from oclbn.tools.check.outcomes import Checked, Outcome

_GONE_ROUND = (
    "oclbn proves each kernel before its first result and uses others where one fails, so that results are right all "
    "the same, unless OCLBN_PROVE is 0; `oclbn devices` lists what it found and does not use."
)
_WORDS = {  # of operations that the field calls otherwise
    "constant": "backward, eval mode",
    "double_backward": "double backward",
    "double_constant": "double backward, eval mode",
}
_BESIDE = {
    "backward": "double_backward",
    "constant": "double_constant",
}  # which devices side by side show in one column
_SHOWN = 8  # faults of one device that are printed; --json has all


def selection(info: DeviceInfo) -> tuple[str, str]:
    """The settings that select exactly this device: for oclbn, and for every program that uses pyopencl."""
    return f"OCLBN_DEVICE={info.spec}", f"PYOPENCL_CTX={info.spec}"


def print_checked(console: Console, checked: Checked) -> None:
    """Facts, a row per operation, the faults, and the verdict."""
    info, limits = checked.info, checked.info.limits
    console.print(Text(info.title, style="bold"), soft_wrap=True)
    facts = [
        "simulator" if info.simulator else info.kind,
        f"{limits.compute_units} compute units",
        f"work-groups to {limits.max_group}",
        f"fp64 {'yes' if limits.fp64 else 'no'}",
        f"local {as_size(limits.local_bytes)}",
        f"cache {as_size(limits.cache_bytes)}",
        f"allocations to {as_size(limits.max_alloc_bytes)}",
    ]
    for line in _lines(facts, console.width):
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print(Text(" ".join(("to use it:", selection(info)[0], "or", selection(info)[1])), style="dim"))
    console.print(_table(checked))
    for outcome in checked.faults[:_SHOWN]:
        failed = Text(f"failed: {named(outcome.check)}: {outcome.fault}", style="red")
        console.print(failed, soft_wrap=not console.is_terminal)
    if len(checked.faults) > _SHOWN:
        console.print(Text(f"... and {len(checked.faults) - _SHOWN} more", style="red"))
    console.print(_verdict(checked))
    if any(isinstance(outcome.check, NumberCheck) for outcome in checked.faults):
        console.print(Text(_GONE_ROUND, style="dim"))
    console.print()


def print_matrix(console: Console, all_checked: Sequence[Checked]) -> None:
    """Devices side by side, an operation a column; those that narrow screens have no room for share another one."""

    def made(shown: Collection[str]) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        table.add_column("device", no_wrap=True)
        columns = [operation for operation in OPERATIONS if operation not in _BESIDE.values()]
        for operation in columns:
            table.add_column(_WORDS.get(operation, operation))
        for checked in all_checked:
            info = checked.info
            name = Text(info.spec)
            if shown:
                name = Text.assemble(f"{info.spec} {info.name}", "\n", (info.runtime, "dim"))
            states = ([*checked.of(one), *checked.of(_BESIDE.get(one, ""))] for one in columns)
            table.add_row(name, *map(_state, states))
        return table

    # A name that is cut selects nothing; what the index alone stands for is told above each table.
    console.print(tables.fitting(console, made, ("name",)))


def as_json(found: Sequence[Checked]) -> dict[str, Any]:
    """The document of all devices, and whether all is well."""
    verdict = "pass" if all(checked.good for checked in found) else "fail"
    return {"verdict": verdict, "devices": [_as_dict(checked) for checked in found]}


def _as_dict(checked: Checked) -> dict[str, Any]:
    return {
        **records.of_device(checked.info),
        "select": selection(checked.info),
        "choices": checked.choices,
        "good": checked.good,
        "planned": checked.planned,
        "operations": {operation: _operation_as_dict(checked, operation) for operation in OPERATIONS},
        "faults": [{"check": named(outcome.check), "fault": outcome.fault} for outcome in checked.faults],
    }


def _operation_as_dict(checked: Checked, operation: str) -> dict[str, Any]:
    worst = checked.worst(operation)
    outcomes = checked.of(operation)
    speeds = {
        shape: {"seconds": told["seconds"], "bytes_per_second": told["bandwidth"], "ratio_to_copy": told["ratio"]}
        for shape, told in checked.speeds(operation).items()
    }
    return {
        "built": _count(outcomes, BuildCheck),
        "compared": _count(outcomes, NumberCheck),
        "failed": sum(bool(outcome.fault) for outcome in outcomes),
        "worst_in_tolerances": worst.told["units"] if worst else None,
        "worst_at": f"{worst.told['of']} of {named(worst.check)}" if worst else None,
        "speeds": speeds,
    }


def _lines(facts: Sequence[str], width: int) -> list[str]:
    """Facts one after the other, no line wider than that if it can be; none is broken, as "1 MiB" would be."""
    lines = [facts[0]]
    for fact in facts[1:]:
        lines[-1] += ","
        if len(lines[-1]) + len(fact) + 2 > width:  # a blank before it, a comma behind
            lines.append(fact)
        else:
            lines[-1] += f" {fact}"
    return lines


def _table(checked: Checked) -> Table:
    """A row for each operation; what a quick check does not do has no column."""
    kinds = {type(outcome.check) for outcome in checked.outcomes}
    built, timed = BuildCheck in kinds, SpeedCheck in kinds
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("operation")
    for heading in (*(["built"] if built else []), "compared", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("at", overflow="fold")
    for heading in ("GB/s", "copies") if timed else ():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for operation in OPERATIONS:
        outcomes, worst, speeds = checked.of(operation), checked.worst(operation), checked.speeds(operation)
        rate = ratio = ""
        if speeds:
            rate = f"{statistics.geometric_mean(s['bandwidth'] for s in speeds.values()) / 1e9:.3g}"
            ratio = f"{statistics.geometric_mean(s['ratio'] for s in speeds.values()):.2f}"
        table.add_row(
            _WORDS.get(operation, operation),
            *([str(_count(outcomes, BuildCheck))] if built else []),
            str(_count(outcomes, NumberCheck)),
            f"{worst.told['units']:.2f}" if worst else "",
            Text(_place(worst), style="dim") if worst else "",
            *([rate, ratio] if timed else []),
            _state(outcomes),
        )
    return table


def _place(worst: Outcome) -> str:
    return f"{worst.told['of']}, {str(worst.check).partition(' of ')[2]}"


def named(check: Check) -> str:
    """A check in words that the glossary has."""
    first, space, rest = str(check).partition(" ")
    return f"{_WORDS.get(first, first)}{space}{in_words(rest)}"


def in_progress(check: Check) -> str:
    """What is being checked, without the names of kernels: operation, shape and data."""
    if isinstance(check, BuildCheck):
        return f"kernels of {', '.join(_WORDS.get(name, name) for name in check.operations)}"
    return named(check)


def _count(outcomes: Sequence[Outcome], kind: type) -> int:
    return sum(isinstance(outcome.check, kind) and not outcome.fault for outcome in outcomes)


def _state(outcomes: Sequence[Outcome]) -> Text:
    failed = sum(bool(outcome.fault) for outcome in outcomes)
    if failed:
        return Text(f"{failed} failed", style="bold red")
    return Text("ok", style="green") if outcomes else Text("not reached", style="yellow")


def _verdict(checked: Checked) -> Text:
    made = len(checked.outcomes)
    if checked.good:
        slow = any(isinstance(outcome.check, SpeedCheck) for outcome in checked.outcomes)
        told = "error: the largest, in units of its tolerance" + ("; copies: times of the fastest copy" if slow else "")
        return Text.assemble((f"all {made} checks passed", "bold green"), (f" ({told})", "dim"))
    left = f", {checked.planned - made} not made" if made < checked.planned else ""
    return Text(f"{len(checked.faults)} of {made} checks failed{left}", style="bold red")
