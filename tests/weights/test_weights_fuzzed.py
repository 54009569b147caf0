"""Damaged files of every format: they read, or an error names the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import LONG

from oclbn.files import formats

sys.path.insert(0, str(Path(__file__).parent))  # the child imports its samples from here
from fuzzed_weights import FORMATS, MOST_MEGABYTES, damaged, fuzz
from sample_safetensors import samples

pytestmark = pytest.mark.once(reason="files are read and refused by the host")
FUZZED = 10_000 if LONG else 200


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource limits of POSIX")
@pytest.mark.parametrize("name", FORMATS)
def test_fuzzed_weights(name: str) -> None:
    """A child of its own reads them, so that a crash of a package would be seen."""
    loads, dead, grown = fuzz(name, 0, FUZZED)
    assert not dead, f"children died of {dead}"
    assert loads < FUZZED * 0.9, "hardly any damage is told"
    assert grown < MOST_MEGABYTES


def test_every_format_has_samples() -> None:
    assert sorted(one.name for one in formats.FORMATS) == FORMATS


def test_fuzzed_weights_are_the_same_on_every_run() -> None:
    whole = samples()
    assert samples() == whole
    assert [damaged(whole, seed) for seed in range(50)] == [damaged(whole, seed) for seed in range(50)]
