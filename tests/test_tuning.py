"""Choices per device: device over family over default, and overrides that end with their block."""

from __future__ import annotations

import threading

import pytest

from oclbn.errors import ParameterError
from oclbn.plan import Tuning
from oclbn.tuning import tuning_for, using

POCL = ("Portable Computing Language", "OpenCL 3.0 PoCL 3.1", "pthread-znver3", "cpu")
RUSTICL = ("rusticl", "OpenCL 3.0 ", "llvmpipe (LLVM 15.0.6, 256 bits)", "cpu")
CARD = ("NVIDIA CUDA", "OpenCL 3.0 CUDA 12.4", "NVIDIA H100", "gpu")


def test_a_processor_walks_whole_rows() -> None:
    tuning = tuning_for(*POCL)
    assert tuning.lanes == 1
    assert tuning.vec > 1


def test_a_card_gets_groups() -> None:
    assert tuning_for(*CARD).lanes > 1


def test_a_family_beats_the_default_key_by_key() -> None:
    tuning, default = tuning_for(*RUSTICL), tuning_for("?", "?", "?", "cpu")
    assert tuning.lanes > 1 == default.lanes
    assert tuning.most_steps > 0 == default.most_steps
    assert tuning.chunk_bytes == default.chunk_bytes


def test_an_unknown_kind_is_treated_as_a_card() -> None:
    assert tuning_for("?", "?", "?", "custom") == tuning_for("?", "?", "?", "gpu")


def test_overrides_nest_and_end() -> None:
    before = tuning_for(*POCL)
    with using(variant="split"):
        with using(vec=2):
            inner = tuning_for(*POCL)
            assert (inner.variant, inner.vec) == ("split", 2)
        assert tuning_for(*POCL).vec == before.vec
    assert tuning_for(*POCL) == before


def test_overrides_end_with_an_exception() -> None:
    with pytest.raises(RuntimeError, match="boom"), using(vec=2):
        raise RuntimeError("boom")
    assert tuning_for(*POCL).vec != 2


def test_overrides_are_the_threads_own() -> None:
    seen: list[Tuning] = []
    with using(vec=2):
        thread = threading.Thread(target=lambda: seen.append(tuning_for(*POCL)))
        thread.start()
        thread.join()
    assert seen[0].vec != 2


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"lane": 1}, "no choice named 'lane'; there are lanes, vec"),
        ({"lanes": 3}, "lanes is 3; it wants a power of two"),
        ({"lanes": 0}, "lanes is 0; it wants a power of two"),
        ({"vec": 32}, "vec is 32"),
        ({"vec": 2.0}, "vec is 2.0; it wants int"),
        ({"stream": 1}, "stream is 1; it wants bool"),
        ({"unroll": True}, "unroll is True; it wants int"),
        ({"groups_per_unit": 0}, "groups_per_unit is 0; it wants a positive number"),
        ({"variant": "fast"}, "variant is 'fast'; there are resident, split, serial"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_choices_that_do_not_exist(choices: dict[str, object], says: str) -> None:
    with pytest.raises(ParameterError, match=says), using(**choices):
        pass
