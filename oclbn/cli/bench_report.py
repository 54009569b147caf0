"""What `oclbn bench` has found: as JSON and as tables."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyopencl as cl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oclbn import __version__
from oclbn.device import DeviceInfo
from oclbn.tools.bench.benchmark import Absence, Comparison, Row, geometric_mean
from oclbn.tools.bench.profiling import Profile
from oclbn.tools.bench.suites import Case, Shape
from oclbn.tools.bench.workload import COPIES, PLAIN_COPIES

SCHEMA = 1  # of the JSON: goes up when a key goes away or changes its meaning
BARS = {"inference": 1.10, "forward": 1.25, "backward": 1.90}  # ratios to the copy that large tensors should reach


def label(shape: Shape, axis: int) -> str:
    """A shape in a table; the channels' axis is named unless it is 1."""
    return "x".join(map(str, shape)) + ("" if axis == 1 else f" @{axis}")


@dataclass
class Report:
    """All comparisons of one run on one device."""

    info: DeviceInfo
    cases: list[Case]
    operations: Sequence[str]
    outputs: Sequence[str]
    peers: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    _found: dict[tuple[Any, ...], Row] = field(default_factory=dict, repr=False)
    absences: list[Absence] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # of the peers
    skipped: dict[tuple[Shape, int, str], str] = field(default_factory=dict)  # shape, axis, outputs -> reason

    def add(self, comparison: Comparison) -> None:
        """Take in what was found for a shape."""
        self.rows += comparison.rows
        for row in comparison.rows:
            self._found[(row.shape, row.axis), row.outputs, row.who, row.operation] = row
        self.absences += comparison.absences
        self.versions |= comparison.versions

    def row(self, case: Case, outputs: str, who: str, operation: str) -> Row | None:
        """One time; None if it was not taken."""
        return self._found.get((case, outputs, who, operation))

    def best_copy(self, case: Case, outputs: str, ways: Sequence[str] = COPIES) -> Row | None:
        """The fastest copy of a tensor, of these ways to copy it; None if it was not timed."""
        copies = [self.row(case, outputs, "copy", name) for name in ways]
        return min((row for row in copies if row), key=lambda row: row.median, default=None)

    def as_json(self) -> dict[str, Any]:
        """Everything; times in seconds, sizes in bytes, bandwidths in bytes per second."""
        skipped = [
            {"shape": shape, "axis": axis, "outputs": outputs, "reason": reason}
            for (shape, axis, outputs), reason in self.skipped.items()
        ]
        return {
            **_about(self.info),
            "peers": self.versions,
            "rows": [{**asdict(row), "bandwidth": row.bandwidth} for row in self.rows],
            "absences": [asdict(absence) for absence in self.absences],
            "skipped": skipped,
        }

    def show(self, console: Console, details: bool) -> None:
        """Print the tables."""
        _heading(console, self.info)
        if self.versions:
            console.print(", ".join(f"{name} {version}" for name, version in self.versions.items()), style="dim")
        for outputs in self.outputs:
            if any(row.outputs == outputs for row in self.rows):
                console.print(f"\n[bold]outputs {outputs}[/bold]")
                console.print(_details(self, outputs) if details else _ratios(self, outputs))
                if self.peers:
                    console.print()
                    console.print(_peers(self, outputs))
        console.print(
            "\nms; in brackets: over the fastest copy of the same tensor; @: channels' axis\n"
            "plain copies: the device's command and a plain kernel, without the kernel that writes past the cache",
            style="dim",
        )
        if self.peers:
            console.print("x: how many times as long as oclbn", style="dim")
        for line in [*_absences(self.absences), *_skipped(self.skipped)]:
            console.print(Text(line))


def _about(info: DeviceInfo) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "device": {
            "index": info.spec,
            "name": info.name,
            "platform": info.platform,
            "version": info.platform_version,
            "driver": info.driver,
            "compute_units": info.limits.compute_units,
        },
        "versions": {
            "oclbn": __version__,
            "python": platform.python_version(),
            "pyopencl": cl.VERSION_TEXT,
            "numpy": np.__version__,
        },
    }


def _heading(console: Console, info: DeviceInfo) -> None:
    console.print(Text(f"{info.spec}  {info.name}, {info.platform}, driver {info.driver}"))


def _table(*names: str, left: int = 1) -> Table:
    """The first `left` columns are texts, the others numbers."""
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def _ratios(report: Report, outputs: str) -> Table:
    table = _table("shape", "copy", "GB/s", *report.operations)
    found: dict[str, list[float]] = {operation: [] for operation in report.operations}
    over_plain: dict[str, list[float]] = {operation: [] for operation in report.operations}
    for case in report.cases:
        best, plain = report.best_copy(case, outputs), report.best_copy(case, outputs, PLAIN_COPIES)
        if best is None or plain is None:
            table.add_row(label(*case), "-")
            continue
        cells = [Text(_ms(best.median)), Text(f"{best.bandwidth / 1e9:.1f}")]
        for operation in report.operations:
            row = report.row(case, outputs, "oclbn", operation)
            assert row is not None
            found[operation].append(row.ratio)
            over_plain[operation].append(row.median / plain.median)
            cells.append(Text(f"{_ms(row.median)} ({row.ratio:.2f})", style=_style(operation, row.ratio)))
        table.add_row(label(*case), *cells)
    lines = (
        ("geometric mean", geometric_mean, found),
        ("over plain copies", geometric_mean, over_plain),
        ("    at most", max, over_plain),
    )
    for name, summary, ratios in lines:
        numbers = {operation: summary(values) for operation, values in ratios.items() if values}
        cells = [Text(f"({number:.2f})", style=_style(operation, number)) for operation, number in numbers.items()]
        table.add_row(name, "", "", *cells, style="bold" if summary is geometric_mean else "")
    return table


def _style(operation: str, ratio: float) -> str:
    bar = BARS.get(operation)
    return "" if bar is None else "green" if ratio <= bar else "yellow" if ratio <= 1.5 * bar else "red"


def _details(report: Report, outputs: str) -> Table:
    table = _table("shape", "who", "operation", "median", "10 %", "90 %", "MB", "GB/s", "ratio", "times", left=3)
    for case in report.cases:
        first = label(*case)
        for row in report.rows:
            if (row.shape, row.axis, row.outputs) == (*case, outputs):
                times = (_ms(row.median), _ms(row.low), _ms(row.high))
                rate = (f"{row.nbytes / 1e6:.4g}", f"{row.bandwidth / 1e9:.1f}", f"{row.ratio:.2f}", str(row.samples))
                name = row.operation.removeprefix("copy ") if row.who == "copy" else row.operation
                table.add_row(first, row.who, name.replace(", past the cache", ", streaming"), *times, *rate)
                first = ""
    return table


def _peers(report: Report, outputs: str) -> Table:
    table = _table("shape", "operation", "oclbn", *report.peers, left=2)
    factors: dict[tuple[str, str], list[float]] = {}
    for case in report.cases:
        first = label(*case)
        for operation in report.operations:
            own = report.row(case, outputs, "oclbn", operation)
            if own is None:
                continue
            cells = []
            for peer in report.peers:
                row = report.row(case, outputs, peer, operation)
                if row is not None:
                    factors.setdefault((operation, peer), []).append(row.median / own.median)
                cells.append("-" if row is None else f"{_ms(row.median)} {_times(row.median / own.median)}")
            table.add_row(first, operation, _ms(own.median), *cells)
            first = ""
    first = "geometric mean"
    for operation in report.operations:
        means = [factors.get((operation, peer)) for peer in report.peers]
        table.add_row(first, operation, "", *(_times(geometric_mean(m)) if m else "-" for m in means), style="bold")
        first = ""
    return table


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or so."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _times(factor: float) -> str:
    return f"{factor:.2f}x" if factor < 10 else f"{factor:.0f}x"


def _absences(absences: Sequence[Absence]) -> list[str]:
    """One line for each peer and reason, with what it concerns where that is not everything."""
    found: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for absence in absences:
        concerns = found.setdefault((absence.who, absence.reason), {"operations": {}, "shapes": {}, "outputs": {}})
        concerns["operations"][absence.operation] = None
        concerns["shapes"][label(absence.shape, absence.axis)] = None
        concerns["outputs"][absence.outputs] = None
    lines = []
    for (who, reason), concerns in found.items():
        operations, shapes = (list(filter(None, concerns[name])) for name in ("operations", "shapes"))
        some = f" ({len(shapes)} shapes)" if len(shapes) > 1 else f" ({shapes[0]})"
        what = f", {', '.join(operations)}" if operations else ""
        lines.append(f"- {who}{what}, outputs {' and '.join(concerns['outputs'])}{some}: {reason}")
    return lines


def _skipped(skipped: dict[tuple[Shape, int, str], str]) -> list[str]:
    return [
        f"- {label(shape, axis)}, outputs {outputs}, is left out: {why}"
        for (shape, axis, outputs), why in skipped.items()
    ]


def profile_as_json(info: DeviceInfo, found: Sequence[Profile], skipped: dict[Case, str]) -> dict[str, Any]:
    """Times in seconds; null where the driver's events keep no time."""
    left_out = [{"shape": shape, "axis": axis, "reason": reason} for (shape, axis), reason in skipped.items()]
    return {**_about(info), "profile": [asdict(one) for one in found], "skipped": left_out}


def show_profile(console: Console, info: DeviceInfo, found: Sequence[Profile], skipped: dict[Case, str]) -> None:
    """Print the device's times beside the host's."""
    _heading(console, info)
    table = _table("shape", "operation", "host", "device", "other", "kernel", "its time", left=2)
    table.columns[-2].justify = "left"
    shown = None
    for one in found:
        device = (_ms(one.device), _ms(one.wall - one.device)) if one.device is not None else ("-", "-")
        first = "" if (one.shape, one.axis) == shown else label(one.shape, one.axis)
        shown = (one.shape, one.axis)
        whole = [first, one.operation, _ms(one.wall), *device]
        for launched in one.launches:
            table.add_row(*whole, launched.kernel, "-" if launched.seconds is None else _ms(launched.seconds))
            whole = [""] * len(whole)
    console.print(table)
    console.print(
        "ms, medians; device: kernels and what is between them; other: the host, enqueueing, waking up; outputs reused",
        style="dim",
    )
    if any(one.device is None for one in found):
        console.print("-: the events of this driver keep no time")
    for line in _skipped({(shape, axis, "reused"): why for (shape, axis), why in skipped.items()}):
        console.print(Text(line))
