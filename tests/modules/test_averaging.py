"""How much a batch weighs in the running statistics."""

from __future__ import annotations

import pytest

from oclbn.errors import ModuleParameterError
from oclbn.modules.averaging import averaging_factor, settled_count


@pytest.mark.parametrize(
    ("n", "init", "least", "factor"),
    [
        pytest.param(1, 1.0, 0.1, 1.0, id="the first batch is taken whole"),
        pytest.param(4, 1.0, 0.1, 0.25, id="every batch weighs the same"),
        pytest.param(1000, 1.0, 0.1, 0.1, id="later batches weigh more than that"),
        pytest.param(1000, 1.0, 0.0, 0.001, id="no least factor"),
        pytest.param(1, 0.0, 0.0, 0.0, id="statistics that never move"),
        pytest.param(1, 0.1, 0.5, 0.5, id="least above initial"),
    ],
)
def test_averaging_factor(n: int, init: float, least: float, factor: float) -> None:
    assert averaging_factor(n, init, least) == factor


def test_averaging_starts_at_batch_one() -> None:
    with pytest.raises(ModuleParameterError, match="n is 0; 1 or more is wanted"):
        averaging_factor(0, 1.0, 0.1)


@pytest.mark.parametrize(
    ("init", "least"),
    [(1.0, 0.1), (0.9, 0.3), (0.3, 0.9), (1.0, 1.0), (1.0, 1e-9), (0.0, 0.1), (1.0, 5e-324)],
    ids=lambda value: f"{value:g}",
)
def test_loaded_statistics_of_unknown_age_have_settled(init: float, least: float) -> None:
    assert averaging_factor(settled_count(init, least) + 1, init, least) == pytest.approx(least, rel=1e-9, abs=1e-15)


def test_without_a_least_factor_they_count_for_a_thousand_batches() -> None:
    assert averaging_factor(settled_count(1.0, 0.0) + 1, 1.0, 0.0) == 1 / 1001
