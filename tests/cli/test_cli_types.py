"""What several commands take: times, places, shapes. What cannot work is told before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from oclbn import device
from oclbn.cli import check_run, tune_run
from oclbn.cli.group import oclbn as command


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(check_run, "run", begun)
    monkeypatch.setattr(tune_run, "TrialProcess", begun)
    monkeypatch.setattr("oclbn.tools.bench.benchmark.compare", begun)


def refused(spec: str, *arguments: str, status: int = 2) -> str:
    """What a command says that ends before it has begun."""
    result = CliRunner().invoke(command, [arguments[0], "--device", spec, *arguments[1:]])
    assert result.exit_code == status, (result.output, result.exception)
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["check", "--timeout", "nan"], "'nan' is no time", id="a timeout that never ends"),
        pytest.param(["check", "--timeout", "inf"], "inf is not in the range", id="longer than clocks can wait"),
        pytest.param(["check", "--timeout", "0.5"], "not in the range", id="too short"),
        pytest.param(["tune", "--seconds", "NaN"], "'NaN' is no time", id="a search that never ends"),
        pytest.param(["tune", "--dry-run", "--shape", "1,5"], "1,5 has one value per channel on axis 1", id="tune"),
        pytest.param(
            ["tune", "--dry-run", "--shape", "3,1,1", "--axis", "0"], "one value per channel on axis 0", id="its axis"
        ),
        pytest.param(
            ["tune", "--dry-run", "--shape", "3,4", "--axis", "-3"], "-3 is no axis of shape 3,4", id="no axis"
        ),
        pytest.param(["bench", "--shape", "1,5"], "1,5 has one value per channel on axis 1", id="bench"),
        pytest.param(["bench", "--shape", "8,3", "--axis", "9"], "9 is no axis of shape 8,3", id="bench, no axis"),
        pytest.param(["bench", "--profile", "--against", "numpy"], "leave out --against", id="nothing to compare"),
        pytest.param(["bench", "--profile", "--plot", "x.png"], "leave out --against and --plot", id="nothing to draw"),
    ],
)
def test_what_cannot_work(spec: str, arguments: list[str], says: str) -> None:
    assert says in " ".join(refused(spec, *arguments).split())


@pytest.mark.parametrize("arguments", [["check", "--repro"], ["bench", "--plot"]])
@pytest.mark.parametrize("name", ["missing/x.png", "file/x.png"])
def test_a_place_where_nothing_can_be_written(spec: str, tmp_path: Path, arguments: list[str], name: str) -> None:
    (tmp_path / "file").touch()
    said = " ".join(refused(spec, *arguments, str(tmp_path / name)).split())
    assert f"{(tmp_path / name).parent} is not a folder" in said


@pytest.mark.parametrize("arguments", [["check", "--repro"], ["bench", "--plot"]])
def test_a_device_is_not_written_over(spec: str, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "link.png").symlink_to("/dev/null")
    assert "Not a regular file" in refused(spec, *arguments, str(tmp_path / "link.png"))


def test_a_shape_that_the_device_cannot_hold(spec: str) -> None:
    info = device.select(spec)
    said = refused(spec, "tune", "--dry-run", "--shape", f"{info.limits.max_alloc_bytes},2", status=1)
    assert f"{info.limits.max_alloc_bytes}x2 needs" in said
    assert f"{info.name} allocates at most {info.limits.max_alloc_bytes:,} at once" in said


@pytest.mark.parametrize(
    ("begun", "ends"),
    [
        pytest.param("f", ["fresh"], id="a name"),
        pytest.param("fresh,p", ["fresh,preallocated", "fresh,prepared", "fresh,pool"], id="the next one"),
        pytest.param("fresh,f", [], id="none twice"),
    ],
)
def test_names_are_completed(begun: str, ends: list[str]) -> None:
    bench = command.get_command(click.Context(command), "bench")
    assert bench is not None
    outputs = next(param for param in bench.params if param.name == "outputs")
    assert [item.value for item in outputs.shell_complete(click.Context(bench), begun)] == ends
