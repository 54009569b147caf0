"""What --json prints: one document for each command, whatever the values are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import oclbn as package
from oclbn import device, weights
from oclbn.cli import check_run, group, output, records, types
from oclbn.tools.check.checklist import NumberCheck, SpeedCheck
from oclbn.tools.check.outcomes import Checked, Outcome

GUIDE = Path(__file__).parents[2] / "docs" / "pages" / "guide" / "commands.md"
OF_DATA = {  # whose own keys are names of what was measured, and how many levels of them
    **dict.fromkeys(("versions", "packages", "peers", "choices", "before", "after", "entry"), 1),
    **dict.fromkeys(("types", "ranges"), 1),
    **dict.fromkeys(("checks", "channels", "operations", "speeds"), 1),
}
UNITS = re.compile(
    r"(_seconds|bytes_per_second|_in_tolerances|ratio_to_\w+|gain|mean|std|value|epsilon|factor)$|^seconds$"
)

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


# ---- what the commands print


def document(*given: str, status: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(group.oclbn, given)
    assert done.exit_code == status, done.output
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    return found


def pairs(value: Any, named: int = 0) -> Iterator[tuple[str, Any]]:
    """All keys in it with their values, but those that are names of what was measured."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not named:
                yield key, one
            yield from pairs(one, named - 1 if named else OF_DATA.get(key, 0))
    elif isinstance(value, list):
        for one in value:
            yield from pairs(one, named)


def check_documented(found: dict[str, Any], *more: str) -> None:
    """Each key stands in the guide, and each number that is not a count says its unit."""
    assert list(found)[:3] == ["schema", "command", "versions"]
    section = GUIDE.read_text().partition("## JSON")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    keys = {key for key, _ in pairs(found)}
    assert keys <= documented, keys - documented
    assert keys >= {*more}
    for key, value in pairs(found):
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, float)]
        assert not numbers or UNITS.search(key), key


def test_devices() -> None:
    found = document("devices", "--json")
    check_documented(found, "default", "reason", "not_used")
    (default,) = [one for one in found["devices"] if one["default"]]
    assert default["index"] == device.select().spec


def test_demo(spec: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    found = document("demo", "--device", spec, "--input", str(tmp_path / "x.npy"), "--json")
    check_documented(found, "error_in_tolerances", "first_seconds")
    assert found["device"]["index"] == spec


def test_a_demo_that_only_hints_says_so_on_standard_error(spec: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 9, 9, 3)).astype(np.float32))
    done = CliRunner().invoke(group.oclbn, ["demo", "--device", spec, "--input", str(tmp_path / "x.npy"), "--json"])
    assert json.loads(done.stdout)["verdict"] == "pass"
    assert "--axis -1" in done.stderr


@pytest.mark.parametrize("more", [(), ("--profile",), ("--packed",)], ids=str)
def test_bench(spec: str, more: tuple[str, ...]) -> None:
    outputs = () if more else ("--outputs", "prepared")
    found = document("bench", "--device", spec, "--shape", "4,6,5", "--rounds", "3", *outputs, *more, "--json")
    check_documented(found, "complete", "plan", *(["bytes_per_second", "p90_seconds"] if not more else []))
    assert found["device"]["index"] == spec


def test_what_was_not_timed_stands_in_the_document(spec: str) -> None:
    found = document("bench", "--device", spec, "--shape", "1048576,1048576", "--json", status=1)
    check_documented(found, "reason")
    assert found["rows"] == []


def test_tune(spec: str) -> None:
    check_documented(document("tune", "--device", spec, "--show", "--json"), "declined", "from")
    given = ("--shape", "4,6,5", "--seconds", "0", "--dry-run")
    found = document("tune", "--device", spec, *given, "--json")
    check_documented(found, "before_seconds", "written")
    assert all(" (" in row["plan"] and "resident" not in row["plan"].partition(" ")[0] for row in _rows(found))


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for one in found["devices"] for row in one["rows"]]


def test_check(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed, too, where something failed, and a number is none."""
    small, large = NumberCheck("train", (4, 3), 1, "ordinary"), SpeedCheck((4, 3))
    speeds = {"forward": {"seconds": 1e-3, "bandwidth": 1e9, "ratio": 1.2}}
    told = [Outcome(small, {"units": float("nan"), "of": "y"}, "y is NaN"), Outcome(large, speeds)]
    monkeypatch.setattr(check_run, "run", lambda info, **_: Checked(info, {"lanes": 64}, 2, told))
    found = document("check", "--device", spec, "--json", status=1)
    check_documented(found, "worst_in_tolerances", "ratio_to_copy", "fault")
    (one,) = found["devices"]
    assert (found["verdict"], one["good"], one["choices"]) == ("fail", False, {"lanes": 64})
    assert one["operations"]["train"]["worst_in_tolerances"] is None
    assert one["operations"]["train"]["speeds"]["4x3"] == {
        "seconds": 1e-3,
        "bytes_per_second": 1e9,
        "ratio_to_copy": 1.2,
    }
    assert one["faults"] == [{"check": "train of 4x3, ordinary", "fault": "y is NaN"}]


def test_files_of_weights(tmp_path: Path) -> None:
    one = weights.Layer("bn", *np.ones((3, 4), np.float32), var=np.array([1, 2, np.nan, 0.5], np.float32), epsilon=1e-3)
    weights.write(tmp_path / "model.npz", [replace(one, factor=0.1, batches=5)])
    found = document("inspect", str(tmp_path / "model.npz"), "--check", "--json", status=1)
    check_documented(found, "layers", "findings", "notes", "ranges", "types", "largest_factor", "file", "format")
    assert [layer["name"] for layer in found["layers"]] == ["bn"]
    given = (str(tmp_path / "model.npz"), str(tmp_path / "model.safetensors"))
    found = document("convert", *given, "--json")
    check_documented(found, "source", "source_format", "files", "format", "layers", "notes")
    assert [note["lost"] for note in found["notes"] if note["layer"] == "bn"]
    for command in (("inspect",), ("convert", str(tmp_path / "target.npz"))):
        given = (command[0], str(tmp_path / "none.npz"), *command[1:], "--json")
        assert CliRunner().invoke(group.oclbn, given).exit_code == 2


def test_the_version() -> None:
    for given in (["--version", "--json"], ["--json", "--version"]):
        found = document(*given)
        check_documented(found, "packages", "opencl_loader", "system")
        assert found["packages"]["click"]
        assert [one["index"] for one in found["devices"]] == [info.spec for info in device.devices()]


def test_every_command_with_a_table_has_it() -> None:
    context = click.Context(group.oclbn)
    for name in group.SUBCOMMANDS:
        command = group.oclbn.get_command(context, name)
        assert command is not None
        assert any(param.opts == ["--json"] for param in command.params), name
