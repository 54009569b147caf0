"""What `oclbn inspect` and `oclbn convert` share: files of weights, formats, and layers by patterns."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from oclbn import weights
from oclbn.cli import output
from oclbn.cli.failures import Failure
from oclbn.errors import WeightsError
from oclbn.files.formats import FORMATS
from oclbn.files.layers import Content

NAMES = tuple(one.name for one in FORMATS)
SOURCE = click.Path(exists=True, dir_okay=False, path_type=Path)
only = click.option(
    "--layer", "patterns", metavar="PATTERN", multiple=True, help="Only layers of this name; * stands for anything."
)


def chosen(content: Content, patterns: Sequence[str]) -> Content:
    """The layers that any of these patterns names, all without patterns. WeightsError: one names none."""
    if not patterns:
        return content
    for pattern in patterns:
        if not fnmatch.filter(content, pattern) and pattern not in content:
            content[pattern]  # which says what there is
    layers = tuple(
        layer
        for name, layer in content.items()
        if any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )
    names = {"", *(layer.name for layer in layers)}
    return replace(content, layers=layers, notes=tuple(note for note in content.notes if note.layer in names))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """The system's own errors with files as the user sees them."""
    try:
        yield
    except OSError as error:
        if output.is_ours(error):
            raise
        name = f"{error.filename}: " if error.filename else ""
        raise Failure(f"{name}{error.strerror or error}") from error


def read(path: Path, format: str | None) -> Content:
    """A file's layers. WeightsError: it has none."""
    content = weights.read(path, format=format)
    if not content:
        told = "".join(f"; {note.text}" for note in content.notes)
        raise WeightsError(f"{path} has no batch normalization with running statistics{told}")
    return content
