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
    for folder, below, files in os.walk(shared):
        if Path(folder) == shared:
            below[:] = [name for name in below if not name.startswith("rank ")]  # others' links, a cache for each
        into = own / Path(folder).relative_to(shared)
        into.mkdir(parents=True, exist_ok=True)
        for name in {*files} - {file.name for file in into.iterdir()}:
            with contextlib.suppress(OSError):  # this file system has no links: then it is compiled
                (into / name).hardlink_to(Path(folder, name))
    return own
