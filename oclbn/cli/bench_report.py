"""What `oclbn bench` has found: as JSON and as tables, which grow while it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from oclbn.cli.grid import Column, Grid, Stacked, print_hanging, print_line, side_by_side
from oclbn.device import DeviceInfo
from oclbn.tools.bench.benchmark import Absence, Comparison, Row, geometric_mean
from oclbn.tools.bench.packing import Packed
from oclbn.tools.bench.profiling import Profile
from oclbn.tools.bench.suites import Case, Shape
from oclbn.tools.bench.workload import COPIES, PLAIN_COPIES

SUMMARIES = ("geometric mean", "worst", "over plain copy", "worst over plain")
LEGEND = (
    "Times are medians.",
    "/copy: times as long as the baseline, the fastest copy of the same tensor.",
    "Plain copy: the faster of the device's command and a plain kernel, without non-temporal stores.",
    "worst: the largest ratio.",
    "over plain copy, worst over plain: mean and largest ratio to the plain copy's time.",
)
AXES = "@: the axis of the channels, where it is not 1; @3 of four axes is the NHWC layout."
PROFILE_LEGEND = (
    "Times are medians, with outputs preallocated (out=).",
    "host: from the call to the empty queue.",
    "device: the kernels and what is between them.",
    "other: the host's own work, enqueueing, waking up.",
)
PACKED_LEGEND = (
    "Times are medians of prepared calls, with outputs preallocated.",
    "packed: of tensors whose rows run backwards, which are packed before and unpacked after.",
    "plain: of the same without gaps.",
    "copies: packing and unpacking alone.",
    "/sum: the packed call's time over those of plain and copies together.",
)
OUTPUTS_ARE = {  # what stands beside each of them
    "preallocated": "memory given with out=",
    "prepared": "by calls prepared with functional.bind",
    "fresh": "new memory in each call",
    "pool": "memory from a pyopencl MemoryPool",
}
_COPY_NAMES = [name.removeprefix("copy ") for name in COPIES]
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
    dtype: str = "float32"
    fused: str = ""  # what is done beside normalising, in words
    rows: list[Row] = field(default_factory=list)
    _found: dict[tuple[Any, ...], Row] = field(default_factory=dict, repr=False)
    absences: list[Absence] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # of the peers
    skipped: dict[tuple[Shape, int, str], str] = field(default_factory=dict)  # shape, axis, outputs -> reason
    complete: bool = True  # False: it was interrupted

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
        """Everything, for output.print_json."""
        skipped = [
            {"shape": shape, "axis": axis, "outputs": outputs, "reason": reason}
            for (shape, axis, outputs), reason in self.skipped.items()
        ]
        return {
            "device": self.info,
            "peers": self.versions,
            "dtype": self.dtype,
            "fused": self.fused,
            "rows": [_row_as_dict(row) for row in self.rows],
            "absences": self.absences,
            "skipped": skipped,
            "complete": self.complete,
        }


def _row_as_dict(row: Row) -> dict[str, Any]:
    return {
        "shape": row.shape,
        "axis": row.axis,
        "dtype": row.dtype,
        "outputs": row.outputs,
        "who": row.who,
        "operation": row.operation,
        "median_seconds": row.median,
        "p10_seconds": row.low,
        "p90_seconds": row.high,
        "samples": row.samples,
        "bytes": row.nbytes,
        "bytes_per_second": row.bandwidth,
        "ratio_to_copy": row.ratio,
        "plan": row.plan,
    }


class Shown:
    """The report on a console: each shape as soon as it has been timed, in the end what is common to all."""

    def __init__(self, console: Console, report: Report, *, details: bool) -> None:
        self._console, self._report, self._details = console, report, details
        self._grid: Grid | Stacked | None = None
        self._outputs = ""
        console.print(heading(report.info))
        if report.fused:
            elements = "" if report.dtype == "float32" else f" of elements of {report.dtype}"
            self._print(Text(f"with {report.fused}{elements}, in the same run as without"))
        elif report.dtype != "float32":
            self._print(Text(f"elements of {report.dtype}, in the same run as float32 ones"))

    def case(self, case: Case, outputs: str) -> None:
        """What has been found for a shape; begins a table for outputs of a new kind."""
        if self._grid is None or outputs != self._outputs:
            self.close()
            self._outputs, self._grid = outputs, self._table()
            self._print(Text(f"\noutputs {outputs}: {OUTPUTS_ARE[outputs]}", style="bold"), self._grid.heading())
        lines = _detailed if self._details else _stacked if self._stacks else _side_by_side
        self._print(*(self._grid.row(*row) for row in lines(self._report, case, outputs)))

    def close(self) -> None:
        """End the table, if there is one: the means over its shapes, and the peers beside oclbn."""
        if self._grid is None:
            return
        if not any(row.outputs == self._outputs for row in self._report.rows):
            self._grid = None
            return
        if not self._details:
            means = _stacked_means if self._stacks else _means
            self._print(*(self._grid.row(*row) for row in means(self._report, self._outputs)))
        if missing := ", ".join(self._grid.missing):
            self._console.print(Text(f"Not shown in {self._console.width} columns: {missing}.", style="dim"))
        if self._report.peers:
            self._print(Text(""), *_peers(self._report, self._outputs, self._console.width))
        self._grid = None

    def end(self) -> None:
        """How to read it, and what is missing."""
        self.close()
        report, notes = self._report, []
        if report.rows:
            notes = list(LEGEND)
            if self._details:  # which has no means
                notes = notes[:2]
            if any(axis != 1 for _, axis in report.cases):
                notes.append(AXES)
        if report.fused:
            notes.append("plain: oclbn without activation and residual; x: how many times as long.")
        elif report.dtype != "float32":
            notes.append("float32: oclbn on elements of that type; x: how many times as long.")
        if report.versions:
            known = ", ".join(f"{name} {version}" for name, version in report.versions.items())
            notes.append(f"Beside it {known}; x: how many times as long as oclbn.")
        self._console.print()
        for note in notes:
            print_hanging(self._console, note, style="dim")
        for line in [*_absences(report.absences), *_skipped(report.skipped)]:
            self._console.print(Text(line), soft_wrap=True)  # commands in it can be copied

    @property
    def _stacks(self) -> bool:
        return _wide(self._report, self._console.width).width > self._console.width

    def _table(self) -> Grid | Stacked:
        if self._details:
            return _details(self._report, self._console.width)
        return _narrow(self._report, self._console.width) if self._stacks else _wide(self._report, self._console.width)

    def _print(self, *lines: Text) -> None:
        for line in lines:
            print_line(self._console, line)


def heading(info: DeviceInfo) -> Text:
    """The device, as all commands name it."""
    return Text(info.title)


def _shape_column(report: Report, *others: str) -> Column:
    return Column("shape", width=max(map(len, [*(label(*case) for case in report.cases), *others])), left=True)


def _wide(report: Report, width: int) -> Grid:
    """A shape a row, an operation a column."""
    operations = [Column(name, "ms (/copy)", 12) for name in report.operations]
    columns = [
        _shape_column(report, *SUMMARIES),
        Column("copy", "ms", 6),
        Column("rate", "GB/s", 5, spare=1),
        *operations,
    ]
    return Grid(columns, width)


def _narrow(report: Report, width: int) -> Grid:
    """An operation a row; the rate of the copy stands in the copy's."""
    columns = [
        Column("operation", width=9, left=True),
        Column("time", "ms", 7),
        Column("ratio", "/copy", 6),
        Column("rate", "GB/s", 5, spare=1),
    ]
    return Grid([_shape_column(report, *SUMMARIES), *columns], width)


Rows = Iterator[tuple[dict[str, str | Text], str]]  # cells by column, and the row's style


def _side_by_side(report: Report, case: Case, outputs: str) -> Rows:
    best = report.best_copy(case, outputs)
    if best is None:
        yield {"shape": label(*case), "copy": "-"}, ""
        return
    cells: dict[str, str | Text] = {"shape": label(*case), "copy": _ms(best.median)}
    cells["rate"] = f"{best.bandwidth / 1e9:.1f}"
    for operation in report.operations:
        if row := report.row(case, outputs, "oclbn", operation):
            cells[operation] = Text(f"{_ms(row.median)} ({_ratio(row.ratio)})", style=_style(operation, row.ratio))
    yield cells, ""


def _stacked(report: Report, case: Case, outputs: str) -> Rows:
    best = report.best_copy(case, outputs)
    rate = f"{best.bandwidth / 1e9:.1f}" if best else ""
    yield {"shape": label(*case), "operation": "copy", "time": _ms(best.median) if best else "-", "rate": rate}, ""
    for operation in report.operations:
        if row := report.row(case, outputs, "oclbn", operation):
            ratio = Text(_ratio(row.ratio), style=_style(operation, row.ratio))
            yield {"operation": operation, "time": _ms(row.median), "ratio": ratio}, ""


def _summaries(report: Report, outputs: str) -> Iterator[tuple[str, dict[str, Text]]]:
    """Of each summary its numbers by operation: over the fastest copy, and over the faster plain one."""
    found: dict[str, list[float]] = {operation: [] for operation in report.operations}
    over_plain: dict[str, list[float]] = {operation: [] for operation in report.operations}
    for case in report.cases:
        plain = report.best_copy(case, outputs, PLAIN_COPIES)
        for operation in report.operations:
            row = report.row(case, outputs, "oclbn", operation)
            if row is not None and plain is not None:
                found[operation].append(row.ratio)
                over_plain[operation].append(row.median / plain.median)
    each: tuple[tuple[Callable[[list[float]], float], dict[str, list[float]]], ...] = (
        (geometric_mean, found),
        (max, found),
        (geometric_mean, over_plain),
        (max, over_plain),
    )
    for name, (summary, ratios) in zip(SUMMARIES, each, strict=True):
        numbers = {operation: summary(values) for operation, values in ratios.items() if values}
        yield name, {operation: Text(_ratio(value), _style(operation, value)) for operation, value in numbers.items()}


def _means(report: Report, outputs: str) -> Rows:
    for name, numbers in _summaries(report, outputs):
        cells = {operation: Text.assemble("(", number, ")") for operation, number in numbers.items()}
        yield {"shape": name, **cells}, "bold" if name == SUMMARIES[0] else ""


def _stacked_means(report: Report, outputs: str) -> Rows:
    for name, numbers in _summaries(report, outputs):
        first = name
        for operation, number in numbers.items():
            yield {"shape": first, "operation": operation, "ratio": number}, "bold" if name == SUMMARIES[0] else ""
            first = ""


def _details(report: Report, width: int) -> Grid | Stacked:
    whos = max(map(len, ("oclbn", *report.peers)))
    columns = [
        _shape_column(report),
        Column("who", width=whos, left=True),
        Column("operation", width=max(map(len, _COPY_NAMES)), left=True),
        Column("median", "ms", 6),
        Column("10 %", "ms", 6),
        Column("90 %", "ms", 6),
        Column("bytes", "MB", 8),
        Column("rate", "GB/s", 5),
        Column("ratio", "/copy", 6),
        Column("times", "samples", 5),
    ]
    return side_by_side(columns, 3, width)


def _detailed(report: Report, case: Case, outputs: str) -> Rows:
    first = label(*case)
    for row in report.rows:
        if (row.shape, row.axis, row.outputs) == (*case, outputs):
            cells: dict[str, str | Text] = {"shape": first, "who": row.who}
            cells["operation"] = row.operation.removeprefix("copy ") if row.who == "copy" else row.operation
            cells |= {"median": _ms(row.median), "10 %": _ms(row.low), "90 %": _ms(row.high)}
            cells |= {"bytes": f"{row.nbytes / 1e6:.4g}", "rate": f"{row.bandwidth / 1e9:.1f}"}
            yield cells | {"ratio": _ratio(row.ratio), "times": str(row.samples)}, ""
            first = ""


def _peers(report: Report, outputs: str, width: int) -> Iterator[Text]:
    """Peers beside oclbn; below each other where the screen is too narrow."""
    texts = [_shape_column(report, SUMMARIES[0]), Column("operation", width=9, left=True)]
    grid = Grid([*texts, Column("oclbn", "ms", 6), *(Column(peer, "ms x", 12) for peer in report.peers)], 0)
    stacks = grid.width > width
    if stacks:
        longest = max(map(len, ("oclbn", *report.peers)))
        grid = Grid([*texts, Column("who", width=longest, left=True), Column("time", "ms", 7), Column("x", "", 6)], 0)
    yield grid.heading()
    for row in (_peer_rows_stacked if stacks else _peer_rows)(report, outputs):
        yield grid.row(*row)


def _peer_rows(report: Report, outputs: str) -> Rows:
    for first, operation, own, times in _peer_times(report, outputs):
        cells = {"shape": first, "operation": operation, "oclbn": "" if own is None else _ms(own)}
        for peer, factor in times.items():
            told = "" if own is None or factor is None else f"{_ms(own * factor)} "
            cells[peer] = "-" if factor is None else told + _times(factor)
        yield {**cells}, "bold" if own is None else ""


def _peer_rows_stacked(report: Report, outputs: str) -> Rows:
    for first, operation, own, times in _peer_times(report, outputs):
        name, style = operation, "bold" if own is None else ""
        if own is not None:
            yield {"shape": first, "operation": name, "who": "oclbn", "time": _ms(own)}, ""
            first = name = ""
        for peer, factor in times.items():
            told = {"shape": first, "operation": name, "who": peer}
            if factor is not None:
                told |= {"x": _times(factor)} | ({} if own is None else {"time": _ms(own * factor)})
            yield {**(told if factor is not None else told | {"time": "-"})}, style
            first = name = ""


def _peer_times(report: Report, outputs: str) -> Iterator[tuple[str, str, float | None, dict[str, float | None]]]:
    """Of each shape and operation oclbn's seconds and the peers' times over them; in the end their means."""
    factors: dict[tuple[str, str], list[float]] = {}
    for case in report.cases:
        first = label(*case)
        for operation in report.operations:
            own = report.row(case, outputs, "oclbn", operation)
            if own is None:
                continue
            times: dict[str, float | None] = {}
            for peer in report.peers:
                row = report.row(case, outputs, peer, operation)
                times[peer] = None if row is None else row.median / own.median
                if row is not None:
                    factors.setdefault((operation, peer), []).append(row.median / own.median)
            yield first, operation, own.median, times
            first = ""
    first = SUMMARIES[0]
    for operation in report.operations:
        found = {peer: factors.get((operation, peer)) for peer in report.peers}
        yield first, operation, None, {peer: geometric_mean(f) if f else None for peer, f in found.items()}
        first = ""


def _style(operation: str, ratio: float) -> str:
    bar = BARS.get(operation)
    return "" if bar is None else "green" if ratio <= bar else "yellow" if ratio <= 1.5 * bar else "red"


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or so."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _ratio(value: float) -> str:
    """In four characters at most, so that columns are as wide as they were thought to be."""
    if value >= 999.5:
        return f"{value:.0e}".replace("e+0", "e")
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


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


def listed_as_json(
    info: DeviceInfo,
    what: str,
    found: Sequence[Profile | Packed],
    skipped: dict[Case, str],
    *,
    complete: bool,
) -> dict[str, Any]:
    """What was measured, under the name `what`; null where the driver's events keep no time."""
    rows = [{"shape": one.shape, "axis": one.axis, "operation": one.operation, **_times_of(one)} for one in found]
    left_out = [{"shape": shape, "axis": axis, "reason": reason} for (shape, axis), reason in skipped.items()]
    return {"device": info, what: rows, "skipped": left_out, "complete": complete}


def _times_of(one: Profile | Packed) -> dict[str, Any]:
    if isinstance(one, Profile):
        times = {"host_seconds": one.wall, "device_seconds": one.device, "launches": one.launches}
    else:
        times = {"packed_seconds": one.packed, "plain_seconds": one.plain, "copies_seconds": one.copies}
        times["ratio_to_sum"] = one.ratio
    return {**times, "plan": one.plan}


class _Table:
    """Rows on a console, as they are found; in the end how to read them."""

    def __init__(self, console: Console, info: DeviceInfo, grid: Grid | Stacked) -> None:
        self._console, self._grid = console, grid
        console.print(heading(info))
        print_line(console, self._grid.heading())

    def _explain(self, legend: Sequence[str]) -> None:
        if self._grid.missing:
            missing = ", ".join(self._grid.missing)
            self._console.print(Text(f"Not shown in {self._console.width} columns: {missing}.", style="dim"))
        for note in legend:
            print_hanging(self._console, note, style="dim")


class ShownProfile(_Table):
    """The device's times beside the host's, each shape as soon as it has been timed."""

    def __init__(self, console: Console, info: DeviceInfo, cases: Sequence[Case]) -> None:
        self._timeless = False
        columns = [
            Column("shape", width=max(len(label(*case)) for case in cases), left=True),
            Column("operation", width=9, left=True),
            Column("host", "ms", 6),
            Column("device", "ms", 6),
            Column("other", "ms", 6),
            Column("kernel", width=22, left=True),
            Column("its time", "ms", 6),
        ]
        super().__init__(console, info, side_by_side(columns, 2, console.width))

    def add(self, found: Sequence[Profile]) -> None:
        """Print what was found for one shape."""
        first = label(found[0].shape, found[0].axis) if found else ""
        for one in found:
            cells: dict[str, str | Text] = {"shape": first, "operation": one.operation, "host": _ms(one.wall)}
            known = one.device is not None
            cells["device"] = _ms(one.device) if one.device is not None else "-"
            cells["other"] = _ms(one.wall - one.device) if one.device is not None else "-"
            self._timeless |= not known
            for launched in one.launches:
                cells["kernel"] = launched.kernel
                cells["its time"] = "-" if launched.seconds is None else _ms(launched.seconds)
                print_line(self._console, self._grid.row(cells))
                cells = {}
            first = ""

    def end(self, found: Sequence[Profile], skipped: dict[Case, str]) -> None:
        """How to read it, and what is missing."""
        self._explain(PROFILE_LEGEND)
        if self._timeless:
            self._console.print("-: the events of this driver keep no time.")
        for line in _skipped({(shape, axis, "preallocated"): why for (shape, axis), why in skipped.items()}):
            self._console.print(Text(line))


class ShownPacked(_Table):
    """Packed calls beside what they are made of, each shape as soon as it has been timed."""

    def __init__(self, console: Console, info: DeviceInfo, cases: Sequence[Case]) -> None:
        columns = [
            Column("shape", width=max(len(SUMMARIES[0]), *(len(label(*case)) for case in cases)), left=True),
            Column("operation", width=9, left=True),
            Column("packed", "ms", 6),
            Column("plain", "ms", 6, spare=1),
            Column("copies", "ms", 6, spare=1),
            Column("/sum", width=4),
        ]
        super().__init__(console, info, Grid(columns, console.width))

    def add(self, found: Sequence[Packed]) -> None:
        """Print what was found for one shape."""
        first = label(found[0].shape, found[0].axis) if found else ""
        for one in found:
            times = {"packed": _ms(one.packed), "plain": _ms(one.plain), "copies": _ms(one.copies)}
            cells = {"shape": first, "operation": one.operation, **times, "/sum": _ratio(one.ratio)}
            print_line(self._console, self._grid.row(cells))
            first = ""

    def end(self, found: Sequence[Packed], skipped: dict[Case, str]) -> None:
        """The means, how to read it, and what is missing."""
        ratios: dict[str, list[float]] = {}
        for one in found:
            ratios.setdefault(one.operation, []).append(one.ratio)
        first = SUMMARIES[0]
        for operation, own in ratios.items():
            cells = {"shape": first, "operation": operation, "/sum": _ratio(geometric_mean(own))}
            print_line(self._console, self._grid.row(cells, "bold"))
            first = ""
        self._explain(PACKED_LEGEND)
        for (shape, axis), why in skipped.items():
            self._console.print(Text(f"- {label(shape, axis)} is left out: {why}"))
