"""What --json prints: one document for each command, whatever the values are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import oclbn as package
from oclbn.cli import output, records, types

pytestmark = pytest.mark.once(reason="what is printed is the host's")


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@dataclass
class Timed:
    seconds: float
    shape: tuple[int, ...]


def printed(document: dict[str, Any]) -> dict[str, Any]:
    @click.command("measure")
    @types.as_json
    def command(as_json: bool) -> None:
        assert as_json
        output.print_json(document)

    done = CliRunner().invoke(command, ["--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    return found


def test_a_document_begins_with_what_all_have() -> None:
    found = printed({"rows": []})
    assert list(found) == ["schema", "command", "versions", "rows"]
    assert (found["schema"], found["command"]) == (records.SCHEMA, "measure")
    assert found["versions"]["oclbn"] == package.__version__
    assert found["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        pytest.param(float("nan"), None, id="nan"),
        pytest.param(np.float32("inf"), None, id="an infinity of numpy"),
        pytest.param(np.array([[1.5, -np.inf], [np.nan, 2]]), [[1.5, None], [None, 2.0]], id="an array"),
        pytest.param(np.bool_(True), True, id="a bool of numpy"),
        pytest.param(np.int64(3), 3, id="an integer of numpy"),
        pytest.param({1: {"x": (float("-inf"), 1)}}, {"1": {"x": [None, 1]}}, id="nested"),
        pytest.param(Timed(float("nan"), (2, 3)), {"seconds": None, "shape": [2, 3]}, id="a dataclass"),
        pytest.param(Path("a") / "b.npy", str(Path("a") / "b.npy"), id="a path"),
        pytest.param("\N{GREEK SMALL LETTER GAMMA}", "\N{GREEK SMALL LETTER GAMMA}", id="any letter"),
        pytest.param(None, None, id="nothing"),
    ],
)
def test_values_are_json(value: Any, wanted: Any) -> None:
    assert printed({"value": value})["value"] == wanted


def test_what_is_no_value_is_an_error_and_not_a_text() -> None:
    with pytest.raises(AssertionError, match="not JSON serializable"):
        printed({"value": object()})
