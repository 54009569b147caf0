"""What the demo prints: one table each for the data, the running statistics, the channels, the checks and the times."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from oclbn.cli import tables
from oclbn.cli.failures import FAILED, UNFIT
from oclbn.cli.plot import evenly
from oclbn.device import DeviceInfo
from oclbn.plan.words import in_brief
from oclbn.tools.demo.layers import EPSILON
from oclbn.tools.demo.run import Outcome

LABELS = {
    "y": "y",
    "save_mean": "batch mean",
    "save_invstd": "batch 1/std",
    "running_mean": "running mean",
    "running_var": "running variance",
    "evaluated": "eval mode",
    "normalised": "normalised",
    "dx": "dx",
    "dscale": "dscale",
    "dbias": "dbias",
}
_FIRST = (
    "the first call builds the kernels, or loads them from the driver's cache, and proves them: they have to be right "
    "on a small tensor before they give a result (unless OCLBN_PROVE is 0)"
)
_TOLERANCE = "1 is the most that rounding may take from a result; the guide has how it is counted (Accuracy, Numbers)"
_KERNELS = (
    "fused: one kernel reads a channel, sums and writes it; two-kernel: partial sums first, then results; behind that "
    "how memory is walked. The guide has more (Speed), and so has oclbn.functional.explain"
)
Rows = list[tuple[str, list[str], str]]  # what a row is of, its numbers, its style
# A table, or what makes one with as many of its spare columns as there is room for, and the remarks below it.
Section = tuple[RenderableType | Callable[[Collection[str]], Table], list[str]]
_FAR_OFF = 1000.0  # from here on, how far off a result is says nothing more
_SQUARED_IN_FLOAT64 = 1e150
_SPARED = {
    "float32": "1e15",
    "float64": "1e100",
}  # no sum of channels up to this overflows; epsilon is nothing beside them
_SPARE = ("type",)  # columns of the data's table
_USUAL = 5  # axes of a shape that is not broken
_SHORT = 16  # letters of a name that is not broken
CHANNELS_SHOWN = 16  # of one case; fewer when there are several cases


def print_device(console: Console, info: DeviceInfo) -> None:
    """Which device: title, which selects it, and the platform with its version, for a report."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("Device", style="bold"), Text(info.title))
    grid.add_row(Text("Platform", style="bold"), Text(f"{info.platform}, {info.platform_version}"))
    console.print(grid)


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """All tables, each with its title above and its remarks below; only that of the data where no channel is fit."""
    hopeless = all(outcome.unfit.channels.all() for outcome in outcomes)
    for title, part in PARTS.items():
        if hopeless and part is not data:
            console.print()
            console.print(Text("No channel can be normalised: what came out is not shown.", style="dim"))
            return
        table, remarks = part(outcomes)
        console.print()
        console.print(Text(title, style="bold"))
        if callable(table):
            table = tables.fitting(console, table, _SPARE)
            if missing := [name for name in _SPARE if name not in [column.header for column in table.columns]]:
                remarks = [f"not shown in {console.width} columns: {', '.join(missing)}", *remarks]
        console.print(table, crop=False)
        for remark in remarks:
            console.print(Text(remark, style="dim"))


def verdict(outcomes: Sequence[Outcome], info: DeviceInfo) -> tuple[int, list[Text]]:
    """The exit status, and the line that says whether all checks passed, with what to do about data that are unfit."""
    number = sum(len(outcome.checks.worst) for outcome in outcomes)
    failed = [f"{LABELS[name]} of {outcome.case.name}" for outcome in outcomes for name in outcome.checks.failed]
    if failed:
        text = f"FAIL  {len(failed)} of {number} checks on {info.title}: {', '.join(failed)}"
        return FAILED, [Text(text, style="bold red")]
    unfit = [outcome for outcome in outcomes if outcome.unfit.channels.any()]
    if unfit:
        return UNFIT, [line for outcome in unfit for line in _impossible(outcome, info)]
    return 0, [Text(f"PASS  all {number} checks{_beside(outcomes)}", style="bold green")]


def _beside(outcomes: Sequence[Outcome]) -> str:
    """What a reader of the verdict alone has to know of the data."""
    told = []
    for outcome in outcomes:
        case, bad = outcome.case, np.count_nonzero(outcome.not_finite)
        if bad:
            named = f"{bad} of {_counted(case.channels, 'channel')} of {case.name}"
            told.append(f"; {named} {'has' if bad == 1 else 'have'} values that are NaN or infinite")
    return "".join(told)


def as_json(info: DeviceInfo, outcomes: Sequence[Outcome], status: int) -> dict[str, Any]:
    """The results, for output.print_json."""
    return {
        "device": info,
        "verdict": {0: "pass", FAILED: "fail", UNFIT: "impossible"}[status],
        "data_sets": [_outcome_as_dict(outcome) for outcome in outcomes],
    }


def _outcome_as_dict(outcome: Outcome) -> dict[str, Any]:
    case = outcome.case
    checks = {
        name: {"error_in_tolerances": judged.units, "good": judged.good}
        for name, judged in outcome.checks.worst.items()
    }
    spreads = {
        name: {"mean": spread.mean, "std": spread.std}
        for name, spread in (
            ("data", outcome.before),
            ("normalised", outcome.normalised),
            ("evaluated", outcome.evaluated),
        )
    }
    return {
        "name": case.name,
        "shape": case.x.shape,
        "dtype": str(case.x.dtype),
        "axis": case.axis,
        "layer": outcome.label,
        "batch_shape": outcome.batch_shape,
        "batches": outcome.settling[-1].batch,
        "remarks": _remarks(outcome),
        "checks": checks,
        "channels": spreads,
        "times": [
            {
                "operation": timing.operation,
                "kernels": timing.kernels,
                "first_seconds": timing.first,
                "median_seconds": timing.median,
            }
            for timing in outcome.timings
        ],
    }


def _impossible(outcome: Outcome, info: DeviceInfo) -> list[Text]:
    """What the data themselves do not allow, and what would."""
    case, unfit = outcome.case, outcome.unfit
    some = np.count_nonzero(unfit.channels)
    rest = "" if some == case.channels else "; in the others all checks passed"
    text = f"IMPOSSIBLE  {some} of {_counted(case.channels, 'channel')} of {case.name} cannot be normalised as they are"
    lines = [Text(f"{text}, in {case.x.dtype}{rest}", style="bold yellow")]
    if unfit.too_large.any():
        wider = (
            case.x.dtype == np.float32 and info.limits.fp64 and bool(np.all(outcome.before.std < _SQUARED_IN_FLOAT64))
        )
        other = ", or x.astype(np.float64)" if wider else ""
        spared = _SPARED[case.x.dtype.name]
        tamed = f"x / np.maximum({_largest(outcome)} / {spared}, 1)"
        lines.append(
            Text(
                f"Too large: give {tamed}{other}. Each channel beyond {spared} gets a factor of its own, the others "
                "none: beside epsilon, which is added to variances, what is made small comes out narrower."
            )
        )
    if unfit.without_numbers.any():
        lines.append(Text("Without one finite value: look at what has made these data."))
    return lines + _cure(outcome)


def _largest(outcome: Outcome) -> str:
    """Code for the largest finite value of each channel, in the shape that divides the data."""
    case = outcome.case
    others = tuple(axis for axis in range(case.x.ndim) if axis != case.axis)
    finite = ", where=np.isfinite(x), initial=0" if outcome.not_finite.any() else ""
    return f"np.abs(x).max(axis={others[0] if len(others) == 1 else others}, keepdims=True{finite})"


def cures(outcomes: Sequence[Outcome]) -> list[Text]:
    """What to do about values that are not finite."""
    return [line for outcome in outcomes for line in _cure(outcome)]


def _cure(outcome: Outcome) -> list[Text]:
    """Of channels that have finite values as well."""
    case, some = outcome.case, outcome.not_finite & ~outcome.unfit.without_numbers
    if not some.any():
        return []
    told = "NaN or infinite, and so are all results of these channels: look at what has made these values"
    others = tuple(axis for axis in range(case.x.ndim) if axis != case.batch_axis)
    good = np.count_nonzero(np.isfinite(case.x).all(axis=others))
    if good:
        before = ":, " * case.batch_axis
        kept = f"x[{before}np.isfinite(x).all(axis={others[0] if len(others) == 1 else others})]"
        told += f", or give the {good} samples without them: {kept}"
    return [Text(f"{_counted(int(np.count_nonzero(some)), 'channel')} of {case.name} with values that are {told}.")]


def data(outcomes: Sequence[Outcome]) -> Section:
    whole = {"type", "layer"}
    if all(len(outcome.case.name) <= _SHORT for outcome in outcomes):
        whole.add("data set")  # others may be names of files, of any length
    if all(len(outcome.case.name) <= _SHORT and outcome.case.x.ndim <= _USUAL for outcome in outcomes):
        whole.add("shape")

    def made(shown: Collection[str]) -> Table:
        table = _table()
        spared = set(_SPARE) - set(shown)
        headings = [name for name in ("data set", "shape", "type", "layer", "trained on") if name not in spared]
        for heading in headings:
            table.add_column(heading, overflow="fold", no_wrap=heading in whole)
        for outcome in outcomes:
            case = outcome.case
            batch = outcome.batch_shape[case.batch_axis]
            cells = {
                "data set": case.name,
                "shape": f"({', '.join(map(str, case.x.shape))})",
                "type": str(case.x.dtype),
                "layer": outcome.label,
                "trained on": f"{_counted(outcome.settling[-1].batch, 'batch', 'batches')} of {batch}",
            }
            table.add_row(*(cells[heading] for heading in headings))
        return table

    return made, [remark for outcome in outcomes for remark in _remarks(outcome)]


def _remarks(outcome: Outcome) -> list[str]:
    case, std = outcome.case, outcome.before.std
    broken = np.count_nonzero(~np.isfinite(case.x), axis=tuple(a for a in range(case.x.ndim) if a != case.axis))
    largest, huge = float(np.finfo(case.x.dtype).max), np.count_nonzero(outcome.unfit.too_large)
    constant, narrow = np.count_nonzero(std == 0), np.count_nonzero((std > 0) & (std < 10 * math.sqrt(EPSILON)))
    remarks = {
        case.note: bool(case.note),
        f"not finite: {_counted(broken.sum(), 'value')} in {np.count_nonzero(broken)} of "
        f"{_counted(case.channels, 'channel')}; "
        "a batch leaves the running statistics of channels with such values alone": broken.any(),
        f"too large for {case.x.dtype}: in {huge} of {_counted(case.channels, 'channel')} the variance, or a sum that "
        f"it is made of, exceeds the largest number, {largest:.2g}; they are not compared": huge > 0,
        f"constant channels, which come out as 0: {constant} of {case.channels}": constant > 0,
        f"channels that epsilon, {EPSILON:g}, keeps narrower than 1: {narrow} of {case.channels}": narrow > 0,
    }
    return [f"{case.name}: {remark}" for remark, applies in remarks.items() if applies]


def settling(outcomes: Sequence[Outcome]) -> Section:
    rows: list[Rows] = []
    for outcome in outcomes:
        by_batch = {settled.batch: settled for settled in outcome.settling}
        last = outcome.settling[-1].batch
        points = [by_batch[0], by_batch[1], by_batch[max(last // 2, 1)], by_batch[last]]
        means, variances = [point.mean for point in points], [point.var for point in points]
        rows.append([("mean", [*map(_percent, means)], ""), ("variance", [*map(_percent, variances)], "")])
    table = _grouped(outcomes, "statistic", ("at start", "1 batch", "halfway", "at end"), rows)
    return table, ["root mean square over channels, relative to that of the deviations (variances)"]


def channels(outcomes: Sequence[Outcome]) -> Section:
    rows: list[Rows] = []
    for outcome in outcomes:
        columns = [
            values
            for spread in (outcome.before, outcome.normalised, outcome.evaluated)
            for values in (spread.mean, spread.std)
        ]
        shown = evenly(outcome.case.channels, CHANNELS_SHOWN if len(outcomes) == 1 else 4)
        rows.append([(str(channel), [_number(values[channel]) for values in columns], "") for channel in shown])
        if len(shown) < outcome.case.channels:  # NaN sort last
            rows[-1].append(("lowest", [_number(np.sort(values)[0]) for values in columns], "dim"))
            rows[-1].append(("highest", [_number(-np.sort(-values)[0]) for values in columns], "dim"))
    headings = [heading for name in ("data", "normalised", "eval mode") for heading in (f"{name}\nmean", "\nstd")]
    table = _grouped(outcomes, "\nchannel", headings, rows)
    return table, [
        "normalised: by all the data's own statistics, with scale 1 and bias 0",
        "eval mode: by the running statistics, with the layer's own scale and bias",
    ]


def checks(outcomes: Sequence[Outcome]) -> Section:
    table = _table()
    table.add_column("result")
    for outcome in outcomes:
        table.add_column(outcome.case.name, justify="right", overflow="fold")
    for name, label in LABELS.items():
        table.add_row(label, *(_error(outcome, name) for outcome in outcomes))
    failed = [
        f"{told.case.name}: {LABELS[name]} {told.checks.worst[name].text.removeprefix(name).lstrip()}"
        for told in outcomes
        for name in told.checks.failed
    ]
    return table, [_TOLERANCE, *failed]


def times(outcomes: Sequence[Outcome]) -> Section:
    table = _table()
    table.add_column("operation", overflow="fold")
    table.add_column("kernels")
    table.add_column("first\nms", justify="right", no_wrap=True)
    table.add_column("median\nms", justify="right", no_wrap=True)
    for outcome in outcomes:
        indent = _group(table, outcomes, outcome)
        for timing in outcome.timings:
            table.add_row(
                f"{indent}{timing.operation}", in_brief(timing.kernels), _ms(timing.first), _ms(timing.median)
            )
    return table, [_KERNELS, _FIRST]


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)


def _grouped(
    outcomes: Sequence[Outcome], first: str, headings: Sequence[str], groups: Sequence[Rows]
) -> RenderableType:
    """Rows of each data set below each other, headed by its name where there are several.

    A table for each, as wide as the others: a name in a cell would widen its column, or be broken to fit it.
    """
    several = len(outcomes) > 1
    indent = "  " if several else ""
    labels = [indent + label for rows in groups for label, _, _ in rows]
    columns = [labels, *zip(*(cells for rows in groups for _, cells, _ in rows), strict=True)]

    def table(rows: Rows, *, headed: bool) -> Table:
        made = _table()
        made.show_header = headed
        for heading, column in zip((first, *headings), columns, strict=True):
            width = max(map(len, [*heading.split("\n"), *column]))
            made.add_column(heading, justify="left" if heading == first else "right", min_width=width, no_wrap=True)
        for label, cells, style in rows:
            made.add_row(indent + label, *cells, style=style)
        return made

    if not several:
        return table(groups[0], headed=True)
    parts: list[RenderableType] = [table([], headed=True)]
    for outcome, rows in zip(outcomes, groups, strict=True):
        parts += [Text(outcome.case.name), table(rows, headed=False)]
    return Group(*parts)


def _group(table: Table, outcomes: Sequence[Outcome], outcome: Outcome) -> str:
    """Head the rows of one data set with its name where there are several; returns how far to indent them."""
    if len(outcomes) == 1:
        return ""
    table.add_row(outcome.case.name)
    return "  "


PARTS: dict[str, Callable[[Sequence[Outcome]], Section]] = {
    "Data": data,
    "Running statistics: distance from those of all data, in %": settling,
    "Channels before and after": channels,
    "Largest error against float64 NumPy, as a part of its tolerance": checks,
    "Time per call on one batch, host included": times,
}


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}"


def _number(value: float) -> str:
    return f"{value:.4g}" if 0.1 <= abs(value) < 1e5 else f"{value:.3g}"


def _error(outcome: Outcome, name: str) -> Text:
    judged = outcome.checks.worst[name]
    if judged.good:
        return Text(f"{judged.units:.2f}", style="green")
    return Text(f"FAIL {judged.units:.2f}" if judged.units < _FAR_OFF else "FAIL", style="bold red")


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or so."""
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
