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
READING = (
    "A row is a channel; the height is the square root of the number of values, relative to the panel's highest. "
    "On the left each channel has {}. On the right all should be centred on 0, most of it between the dotted lines. "
    "Up to a thousandth of the values, the outermost, may lie beyond a panel's ends."
)
_UNLIKE = 4.0  # times as spread out, or as far apart: one range would make a line of a channel
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

    before, after: one shape, channels on `axis`. The panels on the right share their range, those on the left where
    means and deviations are alike; the height is relative to the panel's own.
    MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = evenly(before.shape[axis], MOST_CHANNELS)
    figure = Figure(
        figsize=(10.5, 2.3 + 0.62 * len(shown)), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.1)
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 2, squeeze=False)
    for side, (array, colour) in enumerate(((before, BEFORE), (after, AFTER))):
        rows = [np.take(array, channel, axis=axis).reshape(-1) for channel in shown]
        own = side == 0 and _differ(rows)
        common = _edges(rows)
        if side == 0:
            told = "its own range of values" if own else "the same range of values"
        for number, (panel, row, channel) in enumerate(zip(panels[:, side], rows, shown, strict=True)):
            _draw(panel, row, _edges([row]) if own else common, colour)
            if not own and number < len(shown) - 1:
                panel.tick_params(labelbottom=False)
            if side == 0:
                _label(panel, 0, f"channel {channel}\n{_summary(row)}")
                continue
            _label(panel, 1, _summary(row))
            for deviation, line in ((-1, ":"), (0, "-"), (1, ":")):
                panel.axvline(deviation, color="0.5", linewidth=0.8, linestyle=line, zorder=0)
    panels[0, 0].set_title("before", fontsize=10, color=BEFORE)
    panels[0, 1].set_title("after, scale 1 and bias 0 (lines at 0 and ±1)", fontsize=10, color=AFTER)
    for panel, name in zip(panels[-1], ("value of x", "normalised value, y"), strict=True):
        panel.set_xlabel(name, fontsize=9)
    figure.supxlabel(textwrap.fill(READING.format(told), 120), fontsize=9, color="0.35")
    some = f"\n{len(shown)} of {before.shape[axis]} channels" if len(shown) < before.shape[axis] else ""
    figure.suptitle("\n".join(textwrap.fill(line, 95) for line in title.splitlines()) + some, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format=file_format)
    return picture.getvalue()


def _differ(rows: list[NDArray[Any]]) -> bool:
    """Whether deviations, or means beside them, are too unlike for one range of values."""
    finite = [_finite(row) for row in rows]
    largest = max((float(np.abs(values).max()) for values in finite if values.size), default=0.0) or 1.0
    spreads = np.array([(values / largest).std() for values in finite if values.size])  # no square overflows
    means = np.array([(values / largest).mean() for values in finite if values.size])
    spread = spreads > 0
    if not spread.any():
        return bool(np.ptp(means) > 0) if means.size else False
    return bool(max(spreads[spread].max(), np.ptp(means)) > _UNLIKE * spreads[spread].min())


def _edges(rows: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Bins over all the rows; the outermost thousandth of the values may lie beyond them."""
    finite = np.concatenate([_drawn(row) for row in rows])
    if finite.size == 0:
        return np.linspace(-1.0, 1.0, BINS + 1)
    low, high = np.quantile(finite, [0.0005, 0.9995])
    largest = max(abs(low), abs(high))
    constant = high - low <= 1e-6 * largest  # but for rounding: some room, so that it is a bar and not a line
    margin = (0.1 * largest or 1.5) if constant else 0.03 * (high - low)
    return np.linspace(low - margin, high + margin, BINS + 1)


def _draw(panel: Any, row: NDArray[Any], edges: NDArray[np.float64], colour: str) -> None:
    finite = _drawn(row)
    if not finite.size:
        panel.text(0.5, 0.4, "no finite value", transform=panel.transAxes, ha="center", fontsize=8, color="0.4")
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
    finite = _finite(row)
    lost = f"\n{row.size - finite.size} not finite" if finite.size < row.size else ""
    if not finite.size:
        return f"no finite value{lost}"
    largest = float(np.abs(finite).max()) or 1.0
    parts = finite / largest  # whose squares do not overflow
    return f"mean {_short(parts.mean() * largest)}, std {_short(parts.std() * largest)}{lost}"


def _finite(row: NDArray[Any]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = row[np.isfinite(row)].astype(np.float64)
    return values


def _drawn(row: NDArray[Any]) -> NDArray[np.float64]:
    """The finite values, none so large that matplotlib's steps between ticks overflow."""
    most = np.finfo(np.float64).max / 1e3
    return np.clip(_finite(row), -most, most)


def _short(value: float) -> str:
    return "0" if abs(value) < 5e-7 else f"{value:.3g}"
