"""What each operation reads, writes and runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """What a direction needs: kernels of its variants, arrays that it reads, numbers per partial result."""

    source: str
    resident: str  # "" where there is no such variant
    split: tuple[str, ...]
    arrays_read: int
    partial: int


OPERATIONS = {
    "train": Operation("forward.cl", "train_resident", ("moments_partial", "train_apply"), 1, 4),
    "infer": Operation("forward.cl", "", ("infer",), 1, 0),
    "moments": Operation("moments.cl", "", ("moments_partial", "moments_merge"), 1, 4),
    "backward": Operation("backward.cl", "backward_resident", ("backward_partial", "backward_apply"), 2, 6),
    "constant": Operation("backward.cl", "", ("constant_partial", "constant_merge"), 2, 6),
}
SOURCES = {"moments_partial": "moments.cl"}  # kernels that are used from another direction's file
MERGES = {"moments_merge", "constant_merge"}  # one group per block: the slices are what it merges
