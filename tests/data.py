"""Shapes that break batch normalizations, with the reason of each row in its id; the data is in oclbn.truth.hostile."""

from __future__ import annotations

from typing import Any

import pytest

from oclbn.truth.hostile import MAKERS


def _row(shape: tuple[int, ...], why: str, axis: int = 1) -> Any:
    return pytest.param(shape, axis, id=f"{why} {'x'.join(map(str, shape))}" + (f" axis {axis}" if axis != 1 else ""))


# (shape, axis): a channel's elements lie in rows of `inner` = product of the extents behind the axis.
ROWS = [
    _row((2, 3, 1, 1), "one pixel"),
    _row((2, 1), "the least that trains"),
    _row((7, 5, 13), "all prime"),
    _row((5, 7, 3, 2), "inner below any vector"),
    _row((6, 1, 5, 5), "one channel"),
    _row((2, 4097, 2), "more channels than a power of two"),
    _row((1, 7, 29), "one sample"),
    _row((1, 1, 100_003), "one long row"),
    _row((3, 2, 100_003), "few long rows"),
    _row((2, 3, 256, 257), "channels to be split"),
    _row((1025, 3, 2), "many short rows"),
    _row((3, 5, 7, 11, 13), "five axes"),
    _row((2, 3, 2, 3, 2, 3, 2), "seven axes"),
    _row((9, 6, 1), "inner 1 behind the channels"),
    _row((4, 9, 2), "inner 2"),
    _row((4, 9, 3), "inner 3"),
    _row((4, 9, 7), "just below a vector of 8"),
    _row((4, 9, 8), "a vector of 8"),
    _row((4, 9, 9), "just above a vector of 8"),
    _row((4, 9, 15), "just below a vector of 16"),
    _row((4, 9, 16), "a vector of 16"),
    _row((4, 9, 17), "just above a vector of 16"),
    _row((4, 9, 31), "just below 32"),
    _row((4, 9, 33), "just above 32"),
    _row((4, 9, 63), "just below a work-group of 64"),
    _row((4, 9, 65), "just above a work-group of 64"),
    _row((16, 10, 7, 7), "ResNet's last, inner 49"),
    _row((8, 12, 14, 14), "ResNet, inner 196"),
    _row((150, 37, 7), "a run, sums on several levels, nothing even"),
    _row((9, 41, 2, 2), "a run below a vector per channel"),
    _row((8, 300, 49), "runs of whole vectors and a shorter last one"),
    _row((67, 2, 3, 3), "a run that is a vector and a scrap"),
    _row((11, 5, 1000), "the longest rows of a run"),
    _row((4, 6, 56, 56), "ResNet's first, inner 3136"),
    _row((5, 3, 4095), "just below 4096"),
    _row((5, 3, 4097), "just above 4096"),
    _row((3, 40, 5), "rows of the first axis", axis=0),
    _row((3, 2), "rows of the first axis, least", axis=0),
    _row((3, 4, 5, 6), "channels in the middle", axis=2),
    _row((3, 4, 5, 6), "channels in the middle, from the end", axis=-2),
]
COLUMNS = [
    _row((2, 64), "batch of two"),
    _row((3, 1), "one feature"),
    _row((1797, 64), "the digits"),
    _row((17, 7), "columns below a vector of 8"),
    _row((33, 8), "columns of a vector"),
    _row((31, 9), "columns just above a vector"),
    _row((64, 4097), "columns beyond a power of two"),
    _row((100_003, 1), "one long column"),
    _row((20_011, 5), "few long columns"),
    _row((4099, 33), "long columns, a scrap beside a power of two"),
    _row((257, 300), "columns that two units share, unevenly"),
    _row((1, 14, 14, 480), "channels last that two units share", axis=3),
    _row((2, 7, 7, 10), "channels last", axis=-1),
    _row((3, 5, 1), "channels last, one channel", axis=-1),
    _row((4, 14, 14, 65), "channels last, a scrap", axis=3),
    _row((2, 2, 3, 4, 5), "channels last, volumes", axis=4),
    _row((1, 1, 2048, 3), "channels last, few channels", axis=-1),
]
SHAPES = ROWS + COLUMNS
FEW_SHAPES = [
    _row((7, 5, 13), "all prime"),
    _row((4, 6, 28, 28), "images"),
    _row((2, 3, 20_011), "few long rows"),
    _row((70, 37, 3, 3), "runs"),
    _row((300, 33), "columns"),
    _row((20_011, 5), "few long columns"),
    _row((3, 5, 7, 20), "channels last", axis=-1),
    _row((3, 40, 5), "rows of the first axis", axis=0),
]
ONE_PER_CHANNEL = [
    _row((1, 5), "one row"),
    _row((1, 5, 1, 1), "one pixel of one sample"),
    _row((1, 1, 1, 4), "one pixel, channels last", axis=-1),
    _row((4, 1), "one column", axis=0),
]
EMPTY = [
    _row((0, 3, 4, 4), "no samples"),
    _row((0, 3), "no rows"),
    _row((2, 3, 0), "no pixels"),
    _row((0, 4, 4, 3), "no samples, channels last", axis=-1),
]

NASTY = [pytest.param(maker, id=name) for name, maker in MAKERS.items()]
