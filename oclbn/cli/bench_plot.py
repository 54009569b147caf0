"""Pictures of `oclbn bench`: ratios to the copy, peers side by side, and bandwidths under the copy's."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable
from typing import Any

from oclbn import __version__
from oclbn.cli.bench_report import BARS, OUTPUTS_ARE, Report, label
from oclbn.cli.plot import AFTER, BEFORE, require_matplotlib
from oclbn.tools.bench.turns import BASELINE, UNFUSED

OPERATION_COLOURS = {"forward": BEFORE, "backward": AFTER, "inference": "#3c8d5a", "both": "#7a5195"}
MARKERS = {"forward": "o", "backward": "s", "inference": "D", "both": "^"}
PEER_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
PEER_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
RATIOS_SAY = (
    "A row is a shape; 1 is the time of the fastest copy of the same tensor, further left is faster, "
    "and a dashed line is oclbn's aim for its operation on large tensors (development guide, Kernels)."
)
PEERS_SAY = "Other libraries: right of 1, oclbn is faster."
_COMPANIONS: dict[str, Callable[[Report], str]] = {  # what oclbn itself is called that is timed beside oclbn
    BASELINE: lambda report: (
        f"{BASELINE}: oclbn on elements of that type, in the same run; right of 1, {report.dtype} is faster."
    ),
    UNFUSED: lambda report: f"{UNFUSED}: oclbn without {report.fused}, in the same run; left of 1 by what that costs.",
}
BANDWIDTHS_SAY = "Bandwidth counts every tensor that has to be read or written once; the copy's is what memory allows."
_ROW = 0.235  # inches for a shape
_LETTERS = 12.5  # of what stands below, to an inch
_TICKS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 7, 10, 20, 50, 100, 200, 500),
    *(1000, 5000, 10_000, 100_000, 1_000_000),
)


def draw(report: Report, file_format: str) -> bytes:
    """A picture: for each kind of outputs the shapes, one a line, and below them the bandwidths.

    MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [outputs for outputs in report.outputs if any(row.outputs == outputs for row in report.rows)]
    compared = [
        operation
        for operation in report.operations
        if any(row.who in report.peers and row.operation == operation for row in report.rows)
    ]
    panels = 1 + len(compared)
    sizes = {math.prod(row.shape) for row in report.rows}
    heights = [1.8 + _ROW * len(report.cases) for _ in kinds] + [4.2] * (len(sizes) > 1)
    wide = max(11.0, 3.4 + 2.7 * panels)
    figure = Figure(figsize=(wide, sum(heights) + 1.7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report), fontsize=11)
    reading = [RATIOS_SAY, *(_COMPANIONS[peer](report) for peer in report.peers if compared and peer in _COMPANIONS)]
    reading += [PEERS_SAY] * bool(compared and {*report.peers} - {*_COMPANIONS}) + [BANDWIDTHS_SAY] * (len(sizes) > 1)
    lines = [textwrap.fill(line, round(_LETTERS * wide)) for line in reading] if kinds else ["Nothing was timed."]
    figure.supxlabel("\n".join(lines), fontsize=9, color="0.35")
    parts = figure.subfigures(max(1, len(heights)), 1, height_ratios=heights or [1], squeeze=False)[:, 0]
    for part, outputs in zip(parts, kinds, strict=False):
        known = {row.operation for row in report.rows if row.outputs == outputs and row.who in report.peers}
        _shapes(part, report, outputs, [operation for operation in compared if operation in known])
    if len(sizes) > 1:
        _bandwidths(parts[-1], report, kinds)
    picture = io.BytesIO()
    figure.savefig(picture, format=file_format)
    return picture.getvalue()


def _title(report: Report) -> str:
    info = report.info
    peers = "".join(f", {name} {version}" for name, version in report.versions.items())
    own = [] if report.dtype == BASELINE else [f"elements of {report.dtype}"]
    own += [f"with {report.fused}"] if report.fused else []
    return "\n".join(filter(None, (info.title, f"oclbn {__version__}{peers}", ", ".join(own))))


def _shapes(part: Any, report: Report, outputs: str, compared: list[str]) -> None:
    """Ratios to the copy, and beside them a panel of peers for each operation; the shapes are common to all."""
    panels = 1 + len(compared)
    axes = part.subplots(1, panels, sharey=True, squeeze=False, width_ratios=[1.5] + [1.0] * (panels - 1))[0]
    shown = [case for case in report.cases if report.best_copy(case, outputs)]
    lines = range(len(shown))
    axes[0].set_yticks(lines, [label(*case) for case in shown], fontsize=8)
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    for panel in axes:
        panel.hlines(lines, 0, 1, transform=panel.get_yaxis_transform(), color="0.92", linewidth=0.8, zorder=0)
        panel.set_xscale("log")
        panel.spines[["left", "right", "top"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.tick_params(axis="x", labelsize=8)
    _ratios(axes[0], report, outputs, shown)
    for panel, operation in zip(axes[1:], compared, strict=True):
        _peers(panel, report, outputs, operation, shown)
    known: dict[str, Any] = {}
    for panel in axes:
        known |= {name: handle for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    handles = [known[name] for name in (*report.operations, *report.peers) if name in known]
    part.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8, frameon=False)


def _ratios(panel: Any, report: Report, outputs: str, shown: list[Any]) -> None:
    values: list[float] = [1.0]
    for operation in report.operations:
        rows = [report.row(case, outputs, "oclbn", operation) for case in shown]
        found = [(row.ratio, line) for line, row in enumerate(rows) if row is not None]
        values += [ratio for ratio, _ in found]
        style = {"color": OPERATION_COLOURS[operation], "marker": MARKERS[operation]}
        panel.plot(*zip(*found, strict=True), linestyle="none", markersize=5.5, alpha=0.9, label=operation, **style)
        if bar := BARS.get(operation):
            panel.axvline(bar, color=OPERATION_COLOURS[operation], linewidth=1.0, linestyle="--", zorder=0)
            values.append(bar)
    panel.axvline(1.0, color="0.4", linewidth=1.0, zorder=0)
    panel.set_title(f"outputs {outputs}: {OUTPUTS_ARE[outputs]}", fontsize=9)
    panel.set_xlabel("time / time of the fastest copy", fontsize=9)
    _log_ticks(panel, values, (0.5, 0.7, 1, 1.25, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 300, 1000))


def _peers(panel: Any, report: Report, outputs: str, operation: str, shown: list[Any]) -> None:
    values: list[float] = [1.0]
    for number, peer in enumerate(report.peers):
        found = []
        for line, case in enumerate(shown):
            own, row = (report.row(case, outputs, who, operation) for who in ("oclbn", peer))
            if own is not None and row is not None:
                found.append((row.median / own.median, line))
        if found:
            values += [factor for factor, _ in found]
            style = {
                "color": PEER_COLOURS[number % len(PEER_COLOURS)],
                "marker": PEER_MARKERS[number % len(PEER_MARKERS)],
            }
            panel.plot(*zip(*found, strict=True), linestyle="none", markersize=5, alpha=0.85, label=peer, **style)
    panel.axvline(1.0, color="0.4", linewidth=1.0, zorder=0)
    panel.set_title(operation, fontsize=9)
    panel.set_xlabel(_compares(report), fontsize=9)
    _log_ticks(panel, values, _TICKS)


def _compares(report: Report) -> str:
    """What is divided by what beside the copies."""
    alone = {*report.peers} <= {*_COMPANIONS}
    if report.fused:
        return f"time without {report.fused} / time with it" if alone else f"time / oclbn's time with {report.fused}"
    if report.dtype != BASELINE:
        return f"time on {BASELINE} / time on {report.dtype}" if alone else f"time / oclbn's time on {report.dtype}"
    return "library's time / oclbn's time"


def _log_ticks(panel: Any, values: list[float], ticks: tuple[float, ...]) -> None:
    """As many of the ticks as have room, between a little less and a little more than the values; two, at least."""
    from matplotlib.ticker import NullLocator

    low, high = min(values) / 1.15, max(values) * 1.15
    if sum(low <= tick <= high for tick in ticks) < 2:
        high = 1.05 * min(tick for tick in ticks if tick > high)
    inside = [tick for tick in ticks if low <= tick <= high]
    kept: list[float] = []
    for tick in sorted(inside, key=lambda tick: tick != 1):  # 1 in any case
        apart = (high / low) ** 0.13
        if all(max(tick / other, other / tick) >= apart for other in kept):
            kept.append(tick)
    panel.set_xlim(low, high)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(sorted(kept), [f"{tick:g}" for tick in sorted(kept)])


def _bandwidths(part: Any, report: Report, kinds: list[str]) -> None:
    """Bandwidths of what memory has to see, against the tensor's size; the copy's is the ceiling."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes = part.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, outputs in zip(axes, kinds, strict=True):
        copies = [report.best_copy(case, outputs) for case in report.cases]
        ceiling: dict[float, float] = {}
        for row in filter(None, copies):
            ceiling[row.nbytes / 2] = max(row.bandwidth / 1e9, ceiling.get(row.nbytes / 2, 0.0))
        panel.plot(
            *zip(*sorted(ceiling.items()), strict=True), color="0.35", linewidth=1.2, marker=".", label="fastest copy"
        )
        for operation in report.operations:
            rows = [report.row(case, outputs, "oclbn", operation) for case in report.cases]
            points = [(c.nbytes / 2, row.bandwidth / 1e9) for c, row in zip(copies, rows, strict=True) if c and row]
            style = {"color": OPERATION_COLOURS[operation], "marker": MARKERS[operation]}
            panel.plot(
                *zip(*points, strict=True), linestyle="none", markersize=5.5, alpha=0.85, label=operation, **style
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _size(size)))
        panel.grid(color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["right", "top"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.set_title(f"outputs {outputs}", fontsize=9)
        panel.set_xlabel("size of the tensor, in bytes", fontsize=9)
    axes[0].set_ylim(bottom=0)  # common to all, and only now: it ends the scaling to what is drawn
    axes[0].set_ylabel("bandwidth, GB/s", fontsize=9)
    handles = axes[0].get_legend_handles_labels()[0]
    part.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


def _size(nbytes: float) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << power:
            return f"{nbytes / (1 << power):g} {unit}"
    return f"{nbytes:g} B"
