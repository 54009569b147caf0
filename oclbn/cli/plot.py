"""Histograms of channels before and after normalization, as small multiples."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.errors import MissingExtraError

FORMATS = ("png", "svg", "pdf")
MOST_CHANNELS = 16
BINS = 90
BEFORE, AFTER = "#3b6ea5", "#c8641b"


def evenly(channels: int, most: int) -> list[int]:
    """The numbers of at most so many channels, spread over all of them."""
    return [round(channel) for channel in np.linspace(0, channels - 1, min(channels, most))]


def require_matplotlib() -> None:
    """MissingExtraError: matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib, which is not installed: pip install 'oclbn[demo]'") from error


def histograms(before: NDArray[Any], after: NDArray[Any], axis: int, title: str, *, file_format: str = "png") -> bytes:
    """A picture with a row for each channel, at most 16 of them: values before on the left, after on the right.

    before, after: one shape, channels on `axis`. The panels of a side share their range, so that differing means and
    spreads show; the height is relative to the panel's own. MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = evenly(before.shape[axis], MOST_CHANNELS)
    figure = Figure(
        figsize=(10.5, 1.7 + 0.5 * len(shown)), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.1)
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 2, sharex="col", squeeze=False)
    for side, (array, colour) in enumerate(((before, BEFORE), (after, AFTER))):
        rows = [np.take(array, channel, axis=axis).reshape(-1) for channel in shown]
        edges = _edges(rows)
        for panel, row, channel in zip(panels[:, side], rows, shown, strict=True):
            _draw(panel, row, edges, colour)
            if side == 0:
                _label(panel, 0, f"channel {channel}\n{_summary(row)}")
                continue
            _label(panel, 1, _summary(row))
            for deviation, line in ((-1, ":"), (0, "-"), (1, ":")):
                panel.axvline(deviation, color="0.5", linewidth=0.8, linestyle=line, zorder=0)
    panels[0, 0].set_title("before", fontsize=10, color=BEFORE)
    panels[0, 1].set_title("after, scale 1 and bias 0 (lines at 0 and ±1)", fontsize=10, color=AFTER)
    for panel, name in zip(panels[-1], ("value", "normalised value"), strict=True):
        panel.set_xlabel(f"{name} (height: root of the count)", fontsize=9)
    some = f"\n{len(shown)} of {before.shape[axis]} channels" if len(shown) < before.shape[axis] else ""
    figure.suptitle("\n".join(textwrap.fill(line, 95) for line in title.splitlines()) + some, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format=file_format)
    return picture.getvalue()


def _edges(rows: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Bins over all the rows; the outermost thousandth of the values may lie beyond them."""
    finite = np.concatenate([row[np.isfinite(row)] for row in rows]).astype(np.float64)
    if finite.size == 0:
        return np.linspace(-1.0, 1.0, BINS + 1)
    low, high = np.quantile(finite, [0.0005, 0.9995])
    margin = max(0.03 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-30)
    return np.linspace(low - margin, high + margin, BINS + 1)


def _draw(panel: Any, row: NDArray[Any], edges: NDArray[np.float64], colour: str) -> None:
    finite = row[np.isfinite(row)].astype(np.float64)
    counts, _ = np.histogram(finite, edges)
    # Roots, so that a spike (the black background of an image) leaves the rest visible.
    panel.stairs(np.sqrt(counts), edges, fill=True, color=colour, alpha=0.85)
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(0.0, 1.08 * np.sqrt(max(int(np.max(counts)), 1)))
    panel.set_yticks([])
    panel.tick_params(labelsize=8)
    panel.spines[["left", "right", "top"]].set_visible(False)


def _label(panel: Any, side: int, text: str) -> None:
    """Beside the panel, where no bar can hide it: on the left (0) or on the right (1)."""
    where = {"x": 1.02 if side else -0.02, "y": 0.45, "ha": "left" if side else "right", "va": "center"}
    panel.text(**where, s=text, transform=panel.transAxes, fontsize=8, color="0.2")


def _summary(row: NDArray[Any]) -> str:
    finite = row[np.isfinite(row)].astype(np.float64)
    lost = f"\n{row.size - finite.size} not finite" if finite.size < row.size else ""
    return (f"mean {_short(finite.mean())}, std {_short(finite.std())}" if finite.size else "no finite value") + lost


def _short(value: float) -> str:
    return "0" if abs(value) < 5e-7 else f"{value:.3g}"
