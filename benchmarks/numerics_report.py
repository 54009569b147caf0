"""The tables and the picture of the error study."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import click
from numerics_errors import EPS, NAMES, Errors
from numerics_methods import OURS, plain
from numerics_running import Averages

BEGIN, END = "<!-- begin: benchmarks/numerics.py -->", "<!-- end: benchmarks/numerics.py -->"
_THEIRS = "PyTorch"
_LARGE = 1e4  # mean/std from which on oclbn is to be 100 times closer than PyTorch
_CLOSER = 100.0
_MARKERS = {OURS: "o", _THEIRS: "s", "E[x²]-E[x]²": "^", "Welford": "v", "two-pass": "D"}


def markdown(
    data: list[Errors], ends: list[Errors], running: list[Averages], batches: int, devices: list[str], versions: str
) -> str:
    parts = [f"oclbn on {devices[0]}; {versions}. Errors in units of eps times the result's scale.", ""]
    for name in NAMES:
        parts += [f"### {name}", "", *_errors(data, name), ""]
    parts += ["### Channels whose variance comes out below 0, and whose y is NaN", "", *_wrecks(data), ""]
    if _has_torch(data):
        parts += ["### Beside PyTorch", "", *_beside(data), ""]
    parts += ["### y at the ends of the range", "", *_errors(ends, "y"), ""]
    parts += [f"### Running statistics after {batches:,} batches", "", *_running(running), ""]
    parts += ["### oclbn on other devices", "", *_devices(data, devices)]
    return "\n".join(parts)


def insert(text: str, path: Path) -> None:
    """Put the text between the markers of the document."""
    document = path.read_text()
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise click.ClickException(f"{path} lacks the lines {BEGIN} and {END}, once each")
    head, rest = document.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def draw(curve: list[tuple[float, Errors]], path: Path) -> None:
    """Errors of y, dx and var against mean/std, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    titles = {"y": "output y", "dx": "gradient dx", "var": "variance"}
    panels = figure.subplots(1, len(titles), sharey=True)
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for method, marker in _MARKERS.items():
            points = [(ratio, errors.error.get((method, name), math.inf)) for ratio, errors in curve]
            finite = [(ratio, error) for ratio, error in points if math.isfinite(error)]
            style = {"marker": marker, "label": method, "linewidth": 2.2 if method == OURS else 1.2, "markersize": 5}
            panel.loglog(*zip(*finite, strict=True) if finite else ([], []), **style)
            if finite and len(finite) < len(points):
                panel.annotate("then NaN", finite[-1], (6, 4), textcoords="offset points", fontsize=8, color="0.3")
        for level, text in ((0.5, "one rounding"), (1 / EPS, "as large as the result")):
            panel.axhline(level, color="0.5", linewidth=0.8, linestyle=":")
            panel.text(1.0, 0.8 * level, text, color="0.4", fontsize=8, va="top")
        panel.set_title(title)
        panel.set_xlabel("mean / standard deviation")
        panel.grid(visible=True, which="major", color="0.9")
    panels[0].set_ylabel("largest error, in eps of the result's scale")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)


def _errors(cases: list[Errors], name: str) -> list[str]:
    methods = [method for method, result in cases[0].error if result == name and not method.startswith(f"{OURS} ")]
    rows = []
    for errors in cases:
        row = [errors.case.name, *(_number(errors.error[method, name]) for method in methods)]
        rows.append([*row, _number(errors.of_bound[OURS, name])])
        if _has_torch(cases):
            rows[-1].append(_quotient(errors.error[_THEIRS, name], errors.error[OURS, name]))
    return _table(["data", *methods, "oclbn / its bound", *(["PyTorch / oclbn"] if _has_torch(cases) else [])], rows)


def _wrecks(cases: list[Errors]) -> list[str]:
    methods = [method for method in cases[0].lost if not method.startswith(f"{OURS} ")]
    rows = []
    for errors in cases:
        if any(errors.negative[m] or errors.lost[m] for m in methods):
            counts = [f"{errors.negative[method]}, {errors.lost[method]}" for method in methods]
            rows.append([f"{errors.case.name}, {errors.channels} channels", *counts])
    return _table(["data", *methods], rows)


def _beside(cases: list[Errors]) -> list[str]:
    """Where oclbn is farther off than PyTorch, and where it is closer but by less than it should be."""
    worse, less = [], []
    for name in NAMES:
        behind = []
        for errors in cases:
            theirs, own = errors.error[_THEIRS, name], errors.error[OURS, name]
            row = [errors.case.name, _number(own), _number(theirs)]
            if own > theirs:
                behind.append((own - theirs, row))
            elif _ratio(errors) >= _LARGE and theirs < _CLOSER * own:
                less.append([name, *row, _quotient(theirs, own)])
        if behind:
            most, row = max(behind)
            worse.append([name, f"{len(behind)} of {len(cases)}", _number(most), *row])
    return [
        "oclbn farther off:",
        "",
        *_table(["result", "data sets", "by at most", "there", "oclbn", "PyTorch"], worse),
        "",
        f"Less than {_CLOSER:g} times closer, at mean/std of {plain(_LARGE)} and more:",
        "",
        *_table(["result", "data", "oclbn", "PyTorch", "times closer"], less),
    ]


def _running(running: list[Averages]) -> list[str]:
    methods = dict.fromkeys(method for method, _ in running[0].error)
    rows = []
    for found in running:
        for name, share in found.of_bound.items():
            errors = [_number(found.error[method, name]) for method in methods]
            rows.append([found.name, name, *errors, _number(share)])
    return _table(["data", "statistic", *methods, "oclbn / its bound"], rows)


def _devices(cases: list[Errors], devices: list[str]) -> list[str]:
    rows = []
    for i, device in enumerate(devices):
        method = f"{OURS} {i}" if i else OURS
        rows.append([device, *(_number(max(errors.of_bound[method, name] for errors in cases)) for name in NAMES)])
    return ["Largest error over all data above, in units of the bound:", "", *_table(["device", *NAMES], rows)]


def _ratio(errors: Errors) -> float:
    """The mean/std that a case names; 0 where it names none."""
    _, named, ratio = errors.case.name.partition("mean/std ")
    return float(ratio) if named else 0.0


def _has_torch(cases: list[Errors]) -> bool:
    return _THEIRS in cases[0].lost


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "lost"
    if value == 0.0:
        return "0"
    if 9.95 <= value < 99_999.5:
        return f"{value:.0f}"
    return (
        f"{value:.2f}"
        if 0.005 <= value < 9.95
        else f"{value:.1e}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")
    )


def _quotient(theirs: float, own: float) -> str:
    if own == theirs and math.isfinite(own):
        return "1"
    if not math.isfinite(own):
        return "-"
    return "exact" if own == 0.0 else _number(theirs / own)


def _table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
