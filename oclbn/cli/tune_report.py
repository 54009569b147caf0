"""What `oclbn tune` prints: choices and times before and after, and where choices come from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oclbn.cli import records
from oclbn.cli.bench_report import AXES
from oclbn.cli.grid import print_hanging
from oclbn.cli.tune_run import Tuned
from oclbn.device import DeviceInfo
from oclbn.plan.words import in_words
from oclbn.tools.tune.search import Choices, Planned
from oclbn.tuning import Level, usertable

LEGEND = (
    "fused: one kernel reads a channel, sums and writes it (variant resident).",
    "two-kernel: partial sums, then their results (split). reference: one work-item per channel (serial).",
    "Behind that the names of the kernels, and how they read memory.",
    "rows: one channel's values behind each other.",
    "runs: short rows, together with those of neighbouring channels. columns: channels that lie side by side.",
    "LANES, VEC, UNROLL, BLOCKS: the choices of these names. slices: the parts that a channel is summed in.",
    "chains of n: n blocks of channels that a work-group takes in turn, summing one while it writes another.",
)
MEANINGS = {  # of the choices, to users
    "lanes": "work-items of a work-group",
    "vec": "elements of a vector",
    "unroll": "independent sums of a work-item",
    "blocks": "vectors of neighbouring channels for a work-item, where channels lie side by side and lanes > 1",
    "chunk_bytes": "what is summed in one go, and may be read twice from the innermost cache",
    "run_bytes": "rows up to this are read together with those of neighbouring channels, so much at a time",
    "together_bytes": "the same where the rows are not adjacent",
    "once_bytes": "pieces of rows that are read but once",
    "near_bytes": "a compute unit's own cache, which what a work-group reads twice should fit",
    "groups_per_unit": "work-groups for each compute unit, of two-kernel plans",
    "stream": "non-temporal stores, where a call moves more than the cache may hold",
    "fetch": "rows are prefetched",
    "chains": "work-groups for each compute unit that sum some channels while they write others; 0: none",
    "most_steps": "turns of loops that the driver allows a work-item; 0: any number",
    "variant": "the one kind of plan that is allowed; '': the first that fits",
}
Origins = dict[str, tuple[Any, str]]  # choice -> value, and the level that it comes from


def origins(levels: Sequence[Level]) -> Origins:
    """Of each choice: its value, and the last level that says it."""
    return {name: (value, level.origin) for level in levels for name, value in level.choices.items()}


def print_origins(
    console: Console, info: DeviceInfo, found: Origins, plans: Sequence[Planned], table: Path | None
) -> None:
    """The choices in force, each with where it comes from; the plans that they lead to, and why not the ones before."""
    _print_device(console, info)
    shown = _table("choice", "value", "from")
    for name, (value, origin) in found.items():
        unit = " bytes" if name.endswith("_bytes") else ""
        shown.add_row(
            name, f"{_value(value)}{unit}", Text(origin, style="" if origin.startswith("default") else "green")
        )
    console.print(shown)
    if table is None:
        where = f"Your table: none, as {usertable.why_none()}"
    else:
        where = f"Your table: {table}" + ("" if table.exists() else " (not there yet)")
    console.print(Text(where, style="dim"), soft_wrap=True)
    for one in plans:
        print_hanging(console, f"{one.case} {one.operation}: {in_words(str(one.plan))}", "    ")
        for reason in one.plan.declined:
            print_hanging(console, f"  not {in_words(reason)}", "      ", style="dim")
    axes = [AXES] if any("@" in one.case for one in plans) else []
    for line in [*axes, *LEGEND] if plans else ():
        print_hanging(console, line, style="dim")
    console.print(Text("Choices:", style="dim"))
    for name in found:
        print_hanging(console, f"  {name}: {MEANINGS[name]}", "    ", style="dim")


def origins_as_dict(info: DeviceInfo, found: Origins, plans: Sequence[Planned]) -> dict[str, Any]:
    """The same for JSON."""
    choices = {name: {"value": value, "from": origin} for name, (value, origin) in found.items()}
    planned = [
        {
            "case": one.case,
            "operation": one.operation,
            "plan": in_words(str(one.plan)),
            "declined": [in_words(reason) for reason in one.plan.declined],
        }
        for one in plans
    ]
    return {**records.of_device(info), "choices": choices, "plans": planned}


def print_tuned(console: Console, tuned: Tuned, entry: Choices, written: Path | None) -> None:
    """Choices and times before and after, what was rejected, and the line that says what has been gained."""
    _print_device(console, tuned.info)
    changed = {name: value for name, value in tuned.found.choices.items() if value != tuned.before[name]}
    if changed:
        table = _table("choice", "before", "after")
        for name, value in changed.items():
            table.add_row(name, _value(tuned.before[name]), Text(_value(value), style="bold"))
        console.print(table)
    if tuned.rows and changed:
        console.print(_times(tuned.rows))
        console.print(Text("over the fastest copy of the same tensor, medians, side by side", style="dim"))
    rejected = {f"{tried.name} = {_value(tried.value)}": tried.verdict.rejected for tried in tuned.tried}
    for candidate, reason in rejected.items():
        if reason:
            console.print(Text(f"rejected {candidate}: {reason}", style="yellow"), soft_wrap=True)
    near = ", all the nearest among them" if tuned.found.best_around and not tuned.found.complete else ""
    end = "" if tuned.found.complete else f"{near}, then the time was over" if tuned.rows else ", then interrupted"
    counted = f"{len(tuned.tried)} candidate{'' if len(tuned.tried) == 1 else 's'}{end}"
    if not tuned.worthwhile:
        left = "what was found is no faster in the last timing" if changed else "none of them faster"
        console.print(Text(f"Nothing gained: the table was left as it was ({counted}, {left})"))
        return
    gained = Text(f"{100 * (tuned.gain - 1):.1f} % faster ({counted})", style="bold green")
    console.print(gained)
    if written is None:
        said = ", ".join(f"{name} = {_value(value)}" for name, value in entry.items())
        console.print(Text(f"Not written; the entry would be: {said or 'none, as shipped'}"), soft_wrap=True)
    else:
        console.print(Text(f"Wrote {written}"), soft_wrap=True)


def as_dict(tuned: Tuned, entry: Choices, written: Path | None) -> dict[str, Any]:
    """All of it for JSON."""
    return {
        **records.of_device(tuned.info),
        "before": tuned.before,
        "after": tuned.found.choices if tuned.worthwhile else tuned.before,
        "entry": entry if tuned.worthwhile else None,
        "gain": tuned.gain if tuned.worthwhile else 1.0,
        "complete": tuned.found.complete,
        "tried": tuned.tried,
        "rows": [_row_as_dict(row) for row in tuned.rows],
        "written": written,
    }


def _row_as_dict(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "case": row["case"],
        "operation": row["operation"],
        "copy_seconds": row["copy"],
        "before_seconds": row["before"],
        "after_seconds": row["after"],
        "plan": in_words(row["plan"]),
    }


def _times(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Ratios to the copy before and after; a shape a row, an operation a pair of columns."""
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    table = _table("shape", *operations, "gain", right=True)
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        table.add_row(case, *(_pair([row]) for row in mine), _gain(mine))
    columns = [[row for row in rows if row["operation"] == operation] for operation in operations]
    table.add_row("geometric mean", *map(_pair, columns), _gain(rows), style="bold")
    return table


def _pair(rows: Sequence[Mapping[str, Any]]) -> str:
    before, after = (statistics.geometric_mean(row[key] / row["copy"] for row in rows) for key in ("before", "after"))
    return f"{before:.2f} > {after:.2f}"


def _gain(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{100 * (statistics.geometric_mean(row['before'] / row['after'] for row in rows) - 1):+.1f} %"


def _table(*headings: str, right: bool = False) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, no_wrap=index == 0 or right, justify="right" if right and index else "left")
    return table


def _print_device(console: Console, info: DeviceInfo) -> None:
    console.print(Text(info.title, style="bold"))


def _value(value: Any) -> str:
    """As the table has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value) if value == "" else str(value)
