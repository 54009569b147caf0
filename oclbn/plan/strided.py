"""How a tensor is copied from one order in memory into another: as rows, and dimensions above them. Pure."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

MOST_DIMENSIONS = 8  # above rows, that one launch of kernels/pack.cl knows
_ITEMS = (16, 8, 4, 2, 1)  # bytes that the kernel moves at once
_PIECE = 8192  # items that a work-item moves: enough to begin for, and below what drivers allow loops
_SHORT = 16  # items of a row that had better be longer


@dataclass(frozen=True)
class Cut:
    """Dimensions from the fastest to the slowest, the first being that of rows; strides in items."""

    item: int  # bytes
    sizes: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]

    def starts(self, source: int, target: int) -> Iterator[tuple[int, int]]:
        """Where the two begin, in items, for each place in the dimensions that one launch does not reach."""
        beyond = list(zip(self.sizes, self.source, self.target, strict=True))[MOST_DIMENSIONS + 1 :]
        for place in itertools.product(*(range(size) for size, _, _ in beyond)):
            steps = list(zip(place, beyond, strict=True))
            yield source + sum(at * a for at, (_, a, _) in steps), target + sum(at * b for at, (_, _, b) in steps)


@functools.lru_cache(maxsize=4096)
def cut(shape: tuple[int, ...], itemsize: int, source: tuple[int, ...], target: tuple[int, ...], grain: int) -> Cut:
    """The fewest dimensions that tell how two arrays of this shape lie, by their strides in bytes.

    grain: a number of bytes that both offsets are multiples of.
    """
    common = math.gcd(itemsize, grain, *source, *target)
    item = next(size for size in _ITEMS if common % size == 0)
    dims = [(int(s), int(a) // item, int(b) // item) for s, a, b in zip(shape, source, target, strict=True) if s != 1]
    if itemsize > item:
        dims.append((itemsize // item, 1, 1))
    dims.sort(key=lambda dim: (abs(dim[2]), abs(dim[1])))  # along the target's memory
    merged: list[tuple[int, int, int]] = []
    for size, a, b in dims:
        if merged and (a, b) == (merged[-1][0] * merged[-1][1], merged[-1][0] * merged[-1][2]):
            merged[-1] = (merged[-1][0] * size, *merged[-1][1:])
        else:
            merged.append((size, a, b))
    merged = merged or [(1, 1, 1)]
    if merged[0][0] < _SHORT and len(merged) > 1 and merged[1][0] > merged[0][0]:
        merged[:2] = reversed(merged[:2])  # short rows cost more than items that lie apart
    sizes, sources, targets = zip(*merged, strict=True)
    return Cut(item, sizes, sources, targets)


def numbers(found: Cut, lanes: int) -> tuple[int, dict[str, int]]:
    """Groups of `lanes` work-items, and the kernel's arguments but for its buffers and starts."""
    inner, *above = found.sizes[: MOST_DIMENSIONS + 1]
    rows = math.prod(above)
    width = min(lanes, 1 << (inner - 1).bit_length())
    columns = min(inner, _PIECE * width)
    piece_rows = min(rows, max(1, _PIECE // -(-columns // width)) * (lanes // width))
    pieces = -(-inner // columns)
    made = {"rows": rows, "inner": inner, "source_step": found.source[0], "target_step": found.target[0]}
    made |= {"pieces": pieces, "piece_rows": piece_rows, "columns": columns, "width": width}
    for d in range(MOST_DIMENSIONS):
        there = d < len(above)
        made[f"size{d}"] = above[d] if there else 1
        made[f"source{d}"] = found.source[d + 1] if there else 0
        made[f"target{d}"] = found.target[d + 1] if there else 0
    return -(-rows // piece_rows) * pieces, made
