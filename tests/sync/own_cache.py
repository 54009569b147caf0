"""A cache for POCL of each rank's own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def own_cache(rank: str) -> Path:
    """A folder in POCL's cache with what the tests' process has compiled.

    Processes that compile at once can break one cache. Files are linked: POCL adds some and changes none.
    """
    shared = Path(os.environ.get("POCL_CACHE_DIR", Path.home() / ".cache" / "pocl" / "kcache"))
    own = shared / f"rank {rank}"
    own.mkdir(parents=True, exist_ok=True)
    for file in shared.rglob("*"):
        part = file.relative_to(shared)
        if file.is_file() and not part.parts[0].startswith("rank "):
            (own / part).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # it is there, or this file system has no links: then it is compiled
                (own / part).hardlink_to(file)
    return own
