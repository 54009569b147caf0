"""Writes the pictures of the pages: drawings of how a call runs and how kernels walk, and figures from measurements.

    python docs/draw.py

Each is an SVG that follows the reader's light or dark scheme. Figures are read off the tables of the measurements that
the index leads to. tests/test_docs.py holds the files to what this writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

PAGES = Path(__file__).parent / "pages"
PICTURES = PAGES / "pictures"
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #334155; }
.small { font-size: 11.5px; fill: #64748b; }
.title { font-weight: 600; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.line { stroke: #94a3b8; fill: none; stroke-width: 1.2; }
.grid { stroke: #cbd5e1; fill: none; stroke-width: 0.7; }
.box { fill: #f1f5f9; stroke: #94a3b8; stroke-width: 1.2; }
.main { fill: #ccfbf1; stroke: #0d9488; }
.cell { fill: #f1f5f9; stroke: #94a3b8; stroke-width: 0.7; }
.a { fill: #99f6e4; } .b { fill: #fde68a; } .c { fill: #c7d2fe; } .d { fill: #fecdd3; }
.vector { fill: none; stroke: #0f766e; stroke-width: 2.4; }
.tail { fill: none; stroke: #c2410c; stroke-width: 2.4; stroke-dasharray: 4 3; }
.arrow { stroke: #64748b; fill: none; stroke-width: 1.6; }
.head { fill: #64748b; }
.s0 { stroke: #0d9488; fill: #0d9488; } .s1 { stroke: #ea580c; fill: #ea580c; } .s2 { stroke: #7c3aed; fill: #7c3aed; }
.s3 { stroke: #64748b; fill: #64748b; }
.curve { fill: none; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e2e8f0; } .small { fill: #a3b1c6; }
  .line { stroke: #7c8aa0; } .grid { stroke: #3f4b5e; }
  .box, .cell { fill: #283242; stroke: #7c8aa0; } .main { fill: #134e4a; stroke: #2dd4bf; }
  .a { fill: #115e59; } .b { fill: #78500e; } .c { fill: #3b3f8f; } .d { fill: #7f2a3b; }
  .vector { stroke: #5eead4; } .tail { stroke: #fb923c; }
  .arrow { stroke: #a3b1c6; } .head { fill: #a3b1c6; }
  .s0 { stroke: #2dd4bf; fill: #2dd4bf; } .s1 { stroke: #fb923c; fill: #fb923c; }
  .s2 { stroke: #a78bfa; fill: #a78bfa; } .s3 { stroke: #a3b1c6; fill: #a3b1c6; }
  .curve { fill: none; }
}
"""


class Drawing:
    """Shapes of one picture, in pixels from the upper left."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> None:
        shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self.parts.append(f'<rect {shape} class="{kind}"/>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" class="{kind}"/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{kind}"/>')

    def arrow(self, points: Sequence[tuple[float, float]]) -> None:
        """A line with a head at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        self.line([*points[:-1], (x1 - 6 * dx, y1 - 6 * dy)], "arrow")
        left, right = (x1 - 9 * dx - 4.5 * dy, y1 - 9 * dy + 4.5 * dx), (x1 - 9 * dx + 4.5 * dy, y1 - 9 * dy - 4.5 * dx)
        head = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x1, y1), left, right))
        self.parts.append(f'<polygon points="{head}" class="head"/>')

    def svg(self) -> str:
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
        opening += f'width="{self.width}" height="{self.height}" role="img" aria-label="{escape(self.label)}">'
        return "\n".join([opening, f"<style>{_STYLE}</style>", *self.parts, "</svg>\n"])


# --- how a call runs


def way() -> Drawing:
    drawing = Drawing(760, 330, "The way of a call: check, plan, compile, prove, enqueue")
    steps = [
        ("check", "call/", "types, layout"),
        ("plan", "plan/", "variant, cut, groups"),
        ("compile", "program/", "Build to kernels"),
        ("prove", "proof/", "on a small tensor"),
        ("enqueue", "call/", "one or two launches"),
    ]
    drawing.text(20, 26, "batch_norm_train(x, scale, bias, mean, var)", "title")
    drawing.arrow([(75, 36), (75, 74)])
    for i, (name, folder, what) in enumerate(steps):
        x = 20 + 148 * i
        drawing.box(x, 76, 124, 74, "box main", 8)
        drawing.text(x + 62, 100, name, "title middle")
        drawing.text(x + 62, 119, folder, "middle")
        drawing.text(x + 62, 138, what, "small middle")
        if i:
            drawing.arrow([(x - 24, 113), (x, 113)])
    for x, label in ((144, "Problem"), (292, "Plan"), (440, "kernels"), (588, "form")):
        drawing.text(x + 12, 70, label, "small middle")
    sources = [
        (168, "device/", "DeviceLimits", 208),
        (168, "tuning/", "choices", 208),
        (316, "kernels/", "OpenCL C", 378),
        (464, "truth/", "float64 NumPy", 526),
    ]
    for i, (x, folder, what, _) in enumerate(sources):
        y = 252 if i == 1 else 190
        drawing.box(x, y, 124, 48, "box", 8)
        drawing.text(x + 62, y + 20, folder, "middle")
        drawing.text(x + 62, y + 38, what, "small middle")
    drawing.arrow([(230, 190), (230, 152)])
    drawing.line([(292, 276), (304, 276), (304, 168), (262, 168)], "arrow")
    drawing.arrow([(262, 168), (262, 152)])
    for x in (378, 526):
        drawing.arrow([(x, 190), (x, 152)])
    drawing.arrow([(674, 150), (674, 188)])
    drawing.box(612, 190, 124, 48, "box", 8)
    drawing.text(674, 210, "x.queue", "middle")
    drawing.text(674, 228, "y, and its event", "small middle")
    drawing.text(20, 322, "Prepared once per shape and thread: a repeated call goes from check to enqueue.", "small")
    return drawing


def variants() -> Drawing:
    drawing = Drawing(720, 236, "Resident: one launch, a group per channel; split: two launches, several groups")
    for x, name in ((20, "resident: one launch"), (290, "split: two launches")):
        drawing.text(x, 22, name, "title")
    for i, kind in enumerate("abc"):
        y = 40 + 52 * i
        drawing.text(20, y + 23, f"c = {i}", "small")
        drawing.box(60, y, 160, 36, f"cell {kind}", 4)
        drawing.text(140, y + 16, f"group {i}: sum,", "small middle")
        drawing.text(140, y + 30, "then read again, write", "small middle")
    for i, kind in enumerate("ab"):
        y = 40 + 78 * i
        drawing.text(290, y + 23, f"c = {i}", "small")
        for j in range(2):
            drawing.box(330 + 84 * j, y, 78, 36, f"cell {kind}", 4)
            drawing.text(369 + 84 * j, y + 22, f"sum slice {j}", "small middle")
            drawing.box(548 + 84 * j, y, 78, 36, f"cell {kind}", 4)
            drawing.text(587 + 84 * j, y + 16, "merge,", "small middle")
            drawing.text(587 + 84 * j, y + 30, f"write slice {j}", "small middle")
        drawing.arrow([(494, y + 18), (546, y + 18)])
        drawing.text(520, y + 10, "partial", "small middle")
    drawing.text(20, 222, "A channel's slice has to stay in a cache.", "small")
    drawing.text(290, 222, "Few or large channels still keep all compute units busy.", "small")
    return drawing


def fused() -> Drawing:
    drawing = Drawing(760, 312, "What is fused: three passes over memory become one, forward and backward")
    for y, name in ((26, "forward, one after the other: 4 tensors read, 3 written"), (122, "fused: 2 read, 1 written")):
        drawing.text(20, y, name, "title")
    for i, (name, reads, writes) in enumerate(
        (("normalise", ("x",), "z"), ("add", ("z", "residual"), "s"), ("activate", ("s",), "y"))
    ):
        x = 60 + 230 * i
        drawing.box(x, 44, 96, 42, "box main", 8)
        drawing.text(x + 48, 70, name, "middle")
        drawing.text(x - 34, 60, ", ".join(reads), "small middle")
        drawing.arrow([(x - 34, 66), (x - 2, 66)])
        drawing.arrow([(x + 96, 66), (x + 128, 66)])
        drawing.text(x + 136, 70, writes, "small")
    for y in (140, 234):
        drawing.box(110, y, 330, 42, "box main", 8)
        drawing.arrow([(78, y + 21), (108, y + 21)])
        drawing.arrow([(440, y + 21), (472, y + 21)])
    drawing.text(275, 166, "f((x - mean) gain + shift + residual)", "middle")
    drawing.text(72, 158, "x,", "small end")
    drawing.text(72, 173, "residual", "small end")
    drawing.text(480, 165, "y", "small")
    drawing.text(20, 218, "backward, fused", "title")
    drawing.text(275, 252, "used dy = dy f'(z), in the sums", "middle")
    drawing.text(275, 268, "and in what is written", "middle")
    drawing.text(72, 252, "x, dy,", "small end")
    drawing.text(72, 267, "y *", "small end")
    drawing.text(480, 252, "dx,", "small")
    drawing.text(480, 267, "used dy: the residual's gradient *", "small")
    drawing.text(
        20, 300, "* where there was a residual; without one z is computed from x, and nothing else is read.", "small"
    )
    return drawing


# --- how kernels walk


def _cells(drawing: Drawing, x: float, y: float, kinds: Iterable[str], size: float = 20) -> None:
    for i, kind in enumerate(kinds):
        drawing.box(x + size * i, y, size, size, f"cell {kind}")


def rows() -> Drawing:
    drawing = Drawing(690, 190, "Rows: vectors along the rows of a channel, the last one overlapping")
    for i, (label, kind) in enumerate((("n = 0, c = 0", "a"), ("n = 0, c = 1", "b"), ("n = 1, c = 0", "a"))):
        y = 26 + 44 * i
        drawing.text(98, y + 15, label, "small end")
        _cells(drawing, 110, y, [kind] * 21)
        if kind == "a":
            for j in range(5):
                drawing.box(111.5 + 80 * j, y + 1.5, 77, 17, "vector", 3)
            drawing.box(110 + 20 * 17 + 1.5, y + 3.5, 77, 21, "tail", 3)
    drawing.box(110, 166, 28, 12, "vector", 3)
    drawing.text(146, 177, "a vector of neighbours", "small")
    drawing.box(310, 166, 28, 12, "tail", 3)
    drawing.text(346, 177, "the row's end: overlaps, old elements masked", "small")
    drawing.text(540, 41, "one work-item", "small")
    drawing.text(540, 56, "walks channel 0", "small")
    return drawing


def runs() -> Drawing:
    drawing = Drawing(690, 196, "Runs: neighbouring short rows as one strip, with tables")
    for i in range(2):
        y = 26 + 34 * i
        drawing.text(98, y + 15, f"n = {i}", "small end")
        _cells(drawing, 110, y, [kind for kind in "abcd" for _ in range(5)])
        for j in range(5):
            drawing.box(111.5 + 80 * j, y + 1.5, 77, 17, "vector", 3)
    for j, name in enumerate(("c = 0", "c = 1", "c = 2", "c = 3")):
        drawing.text(110 + 100 * j + 50, 18, name, "small middle")
    drawing.text(98, 129, "means", "small end")
    _cells(drawing, 110, 114, [kind for kind in "abcd" for _ in range(5)])
    drawing.text(98, 161, "sums", "small end")
    _cells(drawing, 110, 146, [""] * 20)
    drawing.text(524, 41, "one strip, whole", "small")
    drawing.text(524, 56, "vectors, four channels", "small")
    drawing.text(524, 129, "in the nearest cache", "small")
    drawing.text(524, 161, "gathered by channel", "small")
    drawing.text(524, 176, "once per chunk", "small")
    return drawing


def sheets() -> Drawing:
    drawing = Drawing(690, 196, "Sheets: rows of all channels, several of them one strip")
    for j in range(6):
        drawing.text(110 + 20 * j + 10, 18, f"c{j}", "small middle")
        drawing.text(230 + 20 * j + 10, 18, f"c{j}", "small middle")
    for i in range(3):
        y = 26 + 30 * i
        drawing.text(98, y + 15, f"n = {2 * i}, {2 * i + 1}", "small end")
        _cells(drawing, 110, y, [*"abcd", "", "a"] * 2)
        for j in range(3):
            drawing.box(111.5 + 80 * j, y + 1.5, 77, 17, "vector", 3)
    drawing.text(98, 141, "sums", "small end")
    _cells(drawing, 110, 126, [""] * 12)
    drawing.arrow([(230, 148), (230, 168)])
    drawing.text(230, 184, "added up across the rows of the strip, once per chunk", "small middle")
    drawing.text(370, 41, "two rows of six channels are one strip", "small")
    drawing.text(370, 141, "in the nearest cache", "small")
    return drawing


def columns() -> Drawing:
    drawing = Drawing(690, 200, "Columns: work-items side by side across channels, others below them")
    for i in range(6):
        y = 30 + 20 * i
        drawing.text(98, y + 15, f"n = {i}", "small end")
        _cells(drawing, 110, y, ["ab"[i % 2]] * 16)
        for j in range(4):
            drawing.box(111.5 + 80 * j, y + 1.5, 77, 17, "vector", 3)
    for j in range(4):
        drawing.text(110 + 80 * j + 40, 22, f"c{4 * j} to c{4 * j + 3}", "small middle")
    drawing.text(446, 45, "rows 0, 2, 4: work-items 0 to 3", "small")
    drawing.text(446, 65, "rows 1, 3, 5: work-items 4 to 7", "small")
    drawing.arrow([(270, 152), (270, 174)])
    drawing.text(270, 192, "partial results of a column meet in a tree in local memory", "small middle")
    return drawing


def chain() -> Drawing:
    drawing = Drawing(710, 176, "A chain: each block is summed while the one before is written")
    drawing.text(98, 49, "reads", "small end")
    drawing.text(98, 95, "writes", "small end")
    for i in range(4):
        x = 110 + 116 * i
        drawing.box(x, 30, 108, 30, f"cell {'abcd'[i]}", 4)
        drawing.text(x + 54, 50, f"sum block {i}", "small middle")
        drawing.box(x + 116, 76, 108, 30, f"cell {'abcd'[i]}", 4)
        drawing.text(x + 170, 96, f"write block {i}", "small middle")
    drawing.arrow([(110, 134), (690, 134)])
    drawing.text(
        110, 154, "time of one group: memory is read and written at once, but for the first and the last step", "small"
    )
    return drawing


# --- figures


def _measurement(kind: str) -> str:
    """The page of measurements that the index leads to for its figures."""
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    (name, *_) = re.findall(rf"\((measurements/[\w-]*{kind}[\w-]*\.md)\)", index)
    return (PAGES / name).read_text(encoding="utf-8")


def _table(text: str, head: str) -> list[list[str]]:
    """The rows of the table whose first line begins with `head`."""
    body = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body if line.startswith("|")]


def _ticks(
    drawing: Drawing, place: Callable[[float], float], values: Iterable[float], at: float, upright: bool
) -> None:
    for value in values:
        label = (
            f"{value:g}"
            if value == 0 or 0.001 < value < 10_000
            else "10" + str(round(math.log10(value))).translate(_POWERS)
        )
        if upright:
            drawing.text(at, place(value) + 4, label, "small end")
        else:
            drawing.text(place(value), at, label, "small middle")


_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def speed() -> Drawing:
    """How many times as long as oclbn the others take, layer by layer."""
    table = _table(_measurement("zen"), "| shape | forward: oclbn |")
    panels = {"forward": 1, "backward": 4, "inference": 7}
    drawing = Drawing(760, 60 + 22 * len(table) + 52, "Times of PyTorch and oneDNN over oclbn's, for each layer")
    low, high, width = math.log(0.5), math.log(20.0), 172
    bottom = 46 + 22 * len(table)
    for i, (name, column) in enumerate(panels.items()):
        left = 144 + 212 * i

        def place(value: float, left: int = left) -> float:
            return left + width * (math.log(value) - low) / (high - low)

        drawing.text(left + width / 2, 22, name, "title middle")
        for value in (0.5, 1, 2, 5, 10, 20):
            drawing.line([(place(value), 34), (place(value), bottom)], "line" if value == 1 else "grid")
        _ticks(drawing, place, (0.5, 1, 2, 5, 10, 20), bottom + 16, upright=False)
        for j, row in enumerate(table):
            y = 50 + 22 * j
            if not i:
                drawing.text(130, y + 4, row[0].replace(" x ", "\N{MULTIPLICATION SIGN}"), "small end")
            own, onednn, torch = map(float, row[column : column + 3])
            drawing.dot(place(torch / own), y, "s1")
            drawing.dot(place(onednn / own), y, "s2")
    y = bottom + 40
    drawing.text(140, y, "time over oclbn's; right of 1 oclbn is faster", "small")
    for x, kind, name in ((480, "s2", "oneDNN, blocked layout"), (650, "s1", "PyTorch")):
        drawing.dot(x, y - 4, kind)
        drawing.text(x + 10, y, name, "small")
    return drawing


def errors() -> Drawing:
    """The largest error of y and dx against mean / standard deviation."""
    text = _measurement("errors")
    drawing = Drawing(760, 350, "Errors of oclbn, PyTorch and E[x²]-E[x]² against mean / standard deviation")
    top, bottom, width = 36, 272, 290
    kinds = {"oclbn": "s0", "PyTorch": "s1", "E[x²]-E[x]²": "s2", "two-pass": "s3"}
    for i, (name, title) in enumerate((("y", "output y"), ("dx", "gradient dx"))):
        section = text[text.index(f"### {name}\n") :]
        names = [cell.strip() for cell in section.splitlines()[2].strip("|").split("|")]
        found = [row for row in _table(section, "| data") if re.fullmatch(r"mean/std [\de]+", row[0])]
        left = 90 + 340 * i

        def across(value: float, left: int = left) -> float:
            return left + width * math.log10(value) / 6

        def up(value: float) -> float:
            return bottom - (bottom - top) * (math.log10(value) + 1) / 8.2

        drawing.text(left + width / 2, 22, title, "title middle")
        for value in (0.1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7):
            drawing.line([(left, up(value)), (left + width, up(value))], "grid")
        drawing.line([(left, up(0.5)), (left + width, up(0.5))], "line")
        drawing.text(left + 4, up(0.5) + 14, "one rounding", "small")
        if not i:
            _ticks(drawing, up, (0.1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7), left - 8, upright=True)
        _ticks(drawing, across, (1, 10, 100, 1e3, 1e4, 1e5, 1e6), bottom + 18, upright=False)
        drawing.text(left + width / 2, bottom + 38, "mean / standard deviation", "small middle")
        for method, kind in kinds.items():
            if method not in names:
                continue
            column = names.index(method)
            points = []
            for row in found:
                if row[column] == "lost":
                    break
                points.append((across(float(row[0].split()[1])), up(max(float(row[column]), 0.1))))
            drawing.line(points, f"curve {kind}")
            for x, y in points:
                drawing.dot(x, y, kind)
            if len(points) < len(found):
                x, y = points[-1]
                drawing.text(x + 9, y + 3, "then NaN", "small")
    for x, (method, kind) in zip((90, 190, 300, 440), kinds.items(), strict=True):
        drawing.dot(x, 332, kind)
        shown = "two passes in float32" if method == "two-pass" else method.replace("-", " \N{MINUS SIGN} ")
        drawing.text(x + 10, 336, shown, "small")
    drawing.text(82, 22, "error in eps", "small end")
    return drawing


def loss() -> Drawing:
    """The loss that the quickstart prints, by epoch."""
    text = (PAGES / "quickstart.md").read_text(encoding="utf-8")
    losses = [float(found) for found in re.findall(r"^epoch \d+: loss ([\d.]+)$", text, re.MULTILINE)]
    drawing = Drawing(560, 230, "Loss by epoch")
    left, right, top, bottom = 60, 530, 16, 180
    highest = math.ceil(2 * max(losses)) / 2

    def up(value: float) -> float:
        return bottom - (bottom - top) * value / highest

    for i in range(round(2 * highest) + 1):
        drawing.line([(left, up(i / 2)), (right, up(i / 2))], "grid")
    _ticks(drawing, up, [i / 2 for i in range(round(2 * highest) + 1)], left - 8, upright=True)
    points = [(left + 20 + (right - left - 40) * i / (len(losses) - 1), up(value)) for i, value in enumerate(losses)]
    drawing.line(points, "curve s0")
    for i, (x, y) in enumerate(points):
        drawing.dot(x, y, "s0")
        drawing.text(x, bottom + 18, str(i), "small middle")
    drawing.text((left + right) / 2, bottom + 40, "epoch", "small middle")
    return drawing


ALL: dict[str, Callable[[], Drawing]] = {
    "way": way,
    "variants": variants,
    "fused": fused,
    "rows": rows,
    "runs": runs,
    "sheets": sheets,
    "columns": columns,
    "chain": chain,
    "speed": speed,
    "errors": errors,
    "loss": loss,
}


def main() -> None:
    """Write all of them."""
    for name, draw in ALL.items():
        (PICTURES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
