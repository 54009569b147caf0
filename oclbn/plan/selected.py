"""How the kernels that move the positions inside a mask are cut into groups. Pure."""

from __future__ import annotations

import functools

_PIECE = 8192  # items that a work-item moves on its own: enough to begin for, and below what drivers allow loops
_COLUMNS = 1024  # of a row: the places of so many positions stay in the nearest cache, for all rows of a piece
_SHARED_PIECE, _SHARED_COLUMNS = 32, 8  # the same where work-items are many: to be spread over all units


def rounded_up(size: int) -> int:
    """The next power of two: launches are made for these, so that each number of positions does not need its own."""
    return 1 << max(0, size - 1).bit_length()


@functools.lru_cache(maxsize=4096)
def tiles(inner: int, rows: int, lanes: int) -> tuple[int, dict[str, int]]:
    """Groups of `lanes` work-items for up to so many rows of so many items, powers of two, and how they share them."""
    piece, columns = (_PIECE, _COLUMNS) if lanes == 1 else (_SHARED_PIECE, _SHARED_COLUMNS)
    width = min(lanes, inner)
    columns = min(inner, columns * width)
    piece_rows = min(rows, piece // (columns // width) * (lanes // width))
    groups = -(-inner // columns) * -(-rows // piece_rows)
    return groups, {"columns": columns, "piece_rows": piece_rows, "width": width}
