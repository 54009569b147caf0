"""`oclbn tune`: what it prints, what it writes, and that it writes nothing where nothing was gained."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from click.testing import CliRunner, Result

import oclbn.device
from oclbn import functional, tuning
from oclbn.cli import tune_report, tune_run
from oclbn.cli.group import oclbn as command
from oclbn.plan.words import Tuning
from oclbn.tools.child import Rejected
from oclbn.tools.tune import search
from oclbn.tools.tune.process import TrialProcess
from oclbn.tools.tune.search import Choices, Verdict
from oclbn.truth.cases import Case
from oclbn.tuning import usertable, using


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table for these tests, not there yet."""
    path = tmp_path / "tuning.toml"
    monkeypatch.setenv("OCLBN_TUNING", str(path))
    tuning.forget()
    yield path
    monkeypatch.undo()
    tuning.forget()


@pytest.fixture
def spec(queue: cl.CommandQueue) -> str:
    info = oclbn.device.select(queue.device)
    if info.simulator:
        pytest.skip(f"needs a device with a speed; {info.name} is a simulator")
    return info.spec


def test_a_simulator_has_no_speed(monkeypatch: pytest.MonkeyPatch, queue: cl.CommandQueue) -> None:
    simulator = replace(oclbn.device.select(queue.device), simulator=True)
    monkeypatch.setattr(oclbn.device, "select", lambda spec: simulator)
    result = run("--dry-run")
    assert result.exit_code == 1
    assert "is a simulator" in result.stderr


class Believer(TrialProcess):
    """Takes UNROLL = 2 for twice as fast, rejects chunks of 4096 bytes, and asks no child."""

    confirmed = True

    def __call__(self, incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        if candidate["chunk_bytes"] == 4096:
            return Verdict(rejected="the driver aborted (signal 6, SIGABRT)")
        return Verdict(2.0 if candidate["unroll"] == 2 != incumbent["unroll"] else 1.0)

    def check(self, choices: Choices) -> None:
        pass

    def report(self, before: Choices, after: Choices) -> list[dict[str, Any]]:
        seconds = 1.0 if self.confirmed else 2.0
        row = {"copy": 1.0, "before": 2.0, "after": seconds, "plan": "resident"}
        return [{"case": "8x9", "operation": name, **row} for name in ("train", "backward", "infer")]


class Sceptic(Believer):
    """As Believer, but the last timing shows no gain."""

    confirmed = False


class Interrupted(Believer):
    """As Believer, until the last field is tried."""

    def __call__(self, incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        if candidate["blocks"] != incumbent["blocks"]:
            raise KeyboardInterrupt
        return super().__call__(incumbent, candidate, thorough=thorough)


@pytest.fixture
def believer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_run, "TrialProcess", Believer)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["tune", *arguments], env={"COLUMNS": "120"})


@pytest.mark.once(
    reason="processes that try, and what they tell, are the host's; what they try is compared on each runtime"
)
def test_a_real_run(spec: str, table: Path) -> None:
    result = run("--device", spec, "--shape", "4,8,6,6", "--seconds", "0", "--json")
    assert result.exit_code == 0, result.output
    (told,) = json.loads(result.stdout)["devices"]
    assert {row["operation"] for row in told["rows"]} == {"train", "backward", "infer"}
    assert told["gain"] == 1.0
    assert told["after"] == told["before"]
    assert told["written"] is None
    assert not table.exists()


def test_what_is_gained_is_written_and_holds(queue: cl.CommandQueue, spec: str, table: Path, believer: None) -> None:
    result = run("--device", spec)
    assert result.exit_code == 0, result.output
    assert "100.0 % faster" in result.stdout
    assert "2.00 > 1.00" in result.stdout
    assert "rejected chunk_bytes = 4096: the driver aborted (signal 6, SIGABRT)" in result.stdout
    assert f"Wrote {table}" in result.stdout
    info = oclbn.device.select(spec)
    (entry,) = usertable.read(table)
    assert (entry.device.name, entry.device.driver) == (info.name, info.driver)
    assert dict(entry.choices) == {"unroll": 2}
    assert tuning.tuning_for(*oclbn.device.tuning_names(info.device)).unroll == 2
    assert "UNROLL=2" in functional.explain(cla.zeros(queue, (4, 8, 64), np.float32))


def test_a_second_run_starts_from_the_first(spec: str, table: Path, believer: None) -> None:
    run("--device", spec)
    before = table.read_bytes()
    result = run("--device", spec)
    assert "Nothing gained: the table was left as it was" in result.stdout
    assert table.read_bytes() == before


def test_what_the_last_timing_does_not_confirm_is_not_written(
    spec: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_run, "TrialProcess", Sceptic)
    result = run("--device", spec)
    assert "Nothing gained" in result.stdout
    assert "no faster in the last timing" in result.stdout
    assert not table.exists()


def test_dry_run_writes_nothing(spec: str, table: Path, believer: None) -> None:
    result = run("--device", spec, "--dry-run")
    assert "Not written; the entry would be: unroll = 2" in result.stdout
    assert not table.exists()


def test_output_names_another_table(spec: str, table: Path, tmp_path: Path, believer: None) -> None:
    table.write_text("")
    result = run("--device", spec, "--output", str(tmp_path / "new" / "other.toml"), "--json")
    assert json.loads(result.stdout)["devices"][0]["written"] == str(tmp_path / "new" / "other.toml")
    assert usertable.read(tmp_path / "new" / "other.toml")
    assert table.read_text() == ""


@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_run_keeps_what_it_found_where_asked_to(
    spec: str, table: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(tune_run, "TrialProcess", Interrupted)
    result = run("--device", spec, *(["--keep"] if keep else []))
    assert table.exists() is keep
    assert result.exit_code == 130
    assert ("Wrote" in result.stdout) is keep
    assert ("Interrupted: nothing was written" in result.stderr) is not keep
    assert ("Interrupted: what was found until then is printed" in result.stderr) is keep


def test_choices_that_do_not_work_are_an_error(spec: str, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(self: TrialProcess, action: str, **given: object) -> object:
        raise Rejected("the driver aborted")

    monkeypatch.setattr(TrialProcess, "ask", dead)
    result = run("--device", spec)
    assert result.exit_code == 1
    assert "the choices in force do not work on this device: the driver aborted" in result.stderr


def test_show_says_where_each_choice_comes_from(spec: str, table: Path, believer: None) -> None:
    run("--device", spec)
    result = run("--device", spec, "--show")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "your table" in lines["unroll"]
    assert "your table" not in lines["lanes"]
    assert f"Your table: {table}" in result.stdout.replace("\n", "")
    (told,) = json.loads(run("--device", spec, "--show", "--json").stdout)["devices"]
    assert told["choices"]["unroll"] == {"value": 2, "from": f"your table {table}"}
    assert set(told["choices"]) == set(Tuning.__dataclass_fields__)


def test_show_says_what_the_choices_lead_to(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plan, and why the candidates before it declined."""
    monkeypatch.setenv("OCLBN_TUNING", "")
    with using(variant="split"):
        (told,) = json.loads(run("--device", spec, "--show", "--json").stdout)["devices"]
        shown = run("--device", spec, "--show").stdout
    info = oclbn.device.select(spec)
    shapes = [str(Case(*shape)) for shape in search.shapes_for(info.limits)]
    assert [(one["case"], one["operation"]) for one in told["plans"]] == [
        (shape, operation) for shape in shapes for operation in ("train", "backward")
    ]
    for one in told["plans"]:
        assert one["plan"].startswith("two-kernel (")
        assert one["declined"] == ["fused: two-kernel is asked for"]
        told = f"{one['case']} {one['operation']}: {one['plan']} not fused: two-kernel is asked for"
        assert told in " ".join(shown.split())
    assert all(len(line) <= 120 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(["--all", "--device", "gpu"], 2, "exclude each other", id="two selections"),
        pytest.param(["--device", "no such device"], 1, "fits no device", id="no device"),
        pytest.param(["--shape", "4,5", "--axis", "2"], 2, "2 is no axis of shape 4,5", id="no axis"),
        pytest.param(["--suite", "vgg"], 2, "resnet50", id="no suite"),
        pytest.param(["--output", "."], 2, "is a directory", id="a folder"),
        pytest.param(["--show", "--output", "t2.toml"], 2, "--show tunes nothing: leave out --output", id="show 1"),
        pytest.param(["--show", "--keep", "--quick"], 2, "leave out --quick, --keep", id="show 2"),
        pytest.param(["--show", "--shape", "4,5"], 2, "--show tunes nothing: leave out --shape", id="show 3"),
        pytest.param(["--output", "bn.hdf"], 2, "bn.hdf does not end in .toml", id="no table"),
        pytest.param(["--output", "train.py"], 2, "train.py does not end in .toml", id="a program"),
    ],
)
def test_wrong_options(queue: cl.CommandQueue, arguments: list[str], status: int, says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert says in result.stderr


def test_a_table_that_cannot_be_used_shows_before_the_search(spec: str, table: Path) -> None:
    table.write_text("[[device]")
    result = run("--device", spec)
    assert result.exit_code == 1
    assert "is no TOML" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and devices")
@pytest.mark.parametrize("kind", ["pipe", "/dev/full", "text", "bytes"])
def test_another_table_that_cannot_be_used_shows_before_the_search(spec: str, tmp_path: Path, kind: str) -> None:
    """As an option that makes no sense; nobody is told to delete a file that is no table."""
    output = tmp_path / "other.toml"
    if kind == "pipe":
        os.mkfifo(output)
    elif kind == "/dev/full":
        output.symlink_to(kind)
    else:
        output.write_bytes(b"print(1)" if kind == "text" else b"\x89HDF\xff")
    result = run("--device", spec, "--output", str(output), "--seconds", "1")
    assert result.exit_code == 2
    assert "Invalid value for --output" in result.stderr
    assert ("name another file" if kind in ("text", "bytes") else "Not a regular file") in result.stderr
    assert "delete" not in result.stderr


def test_every_choice_is_explained(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_TUNING", "")
    assert list(tune_report.MEANINGS) == [field.name for field in fields(Tuning)]
    shown = run("--device", spec, "--show").stdout
    for word in (*tune_report.MEANINGS, "slices", "chains of n", "rows", "runs", "columns"):
        assert re.search(rf"^ *{word}: |[.] {word}: ", shown, re.MULTILINE), word


def test_without_a_table_there_is_nothing_to_write_to(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_TUNING", "")
    result = run("--device", spec)
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_show_explains_its_shapes_and_its_numbers(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_TUNING", "")
    shown = run("--device", spec, "--show").stdout
    assert re.search(r" @\d ", shown)
    assert "@: the axis of the channels, where it is not 1" in shown
    (told,) = json.loads(run("--device", spec, "--show", "--json").stdout)["devices"]
    for name, choice in told["choices"].items():
        unit = " bytes" if name.endswith("_bytes") else ""
        assert type(choice["value"]) in (int, str, bool)
        if unit:
            assert re.search(rf"^{name} +{choice['value']} bytes ", shown, re.MULTILINE), name
