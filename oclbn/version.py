"""The version of oclbn that is installed."""

from __future__ import annotations

import functools
import tomllib
from importlib import metadata
from pathlib import Path


@functools.cache
def version() -> str:
    """As pip knows it, or as the checkout says; "unknown" where neither does."""
    try:
        return metadata.version("oclbn")
    except metadata.PackageNotFoundError:  # a checkout that is not installed, or a copy of this folder alone
        project = Path(__file__).parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.is_file() else "unknown"
