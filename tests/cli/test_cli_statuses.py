"""Exit statuses: each is one of those that the help and the guide tell of, and each of these can be had."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from oclbn import device
from oclbn.cli import check_run, failures, group, remedy
from oclbn.cli.failures import STATUSES
from oclbn.tools.check.checklist import NumberCheck
from oclbn.tools.check.outcomes import Checked, Outcome

pytestmark = pytest.mark.once(reason="exit statuses are the host's")

GUIDE = Path(__file__).parents[2] / "docs" / "pages" / "guide" / "commands.md"
OCLBN = (sys.executable, "-m", "oclbn")


def test_the_guide_and_the_help_have_every_status() -> None:
    rows = re.findall(r"^\| (\d+) \| .+ \|$", GUIDE.read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == list(STATUSES)
    told = CliRunner().invoke(group.oclbn, ["--help"], terminal_width=120).stdout
    section = told.partition("Exit status:\n")[2]
    assert [int(number) for number in re.findall(r"^  (\d+) ", section, re.MULTILINE)] == list(STATUSES)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        pytest.param(["devices"], failures.OK, id="all is well"),
        pytest.param(["devices", "--device", "no such device"], failures.FAILED, id="no such device"),
        pytest.param(["devices", "--device", "no such device", "--json"], failures.FAILED, id="the same for programs"),
        pytest.param(["bench", "--shape", "1048576,1048576"], failures.FAILED, id="nothing could be timed"),
        pytest.param(["bench", "--rounds", "1"], failures.USAGE, id="a value out of its range"),
        pytest.param(["demo", "--input", "no such file.npy"], failures.USAGE, id="no such file"),
        pytest.param(["--json", "devices"], failures.USAGE, id="an option in the wrong place"),
        pytest.param(["nonsense"], failures.USAGE, id="no such command"),
    ],
)
def test_a_status_that_can_be_asked_for(given: list[str], status: int, spec: str) -> None:
    done = CliRunner().invoke(group.oclbn, given, env={"OCLBN_DEVICE": spec})
    assert done.exit_code == status, done.output
    assert (done.stderr == "") == (status == 0)


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["a table", "JSON"])
def test_data_that_cannot_be_normalised(spec: str, tmp_path: Path, more: list[str]) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 2), np.nan, np.float32))
    done = CliRunner().invoke(group.oclbn, ["demo", "--device", spec, "--input", str(tmp_path / "x.npy"), *more])
    assert done.exit_code == failures.UNFIT, done.output


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["a table", "JSON"])
def test_wrong_results(spec: str, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    def wrong(info: device.DeviceInfo, **_: Any) -> Checked:
        check = NumberCheck("train", (4, 3), 1, "ordinary")
        return Checked(info, {}, 1, [Outcome(check, {}, "y is off by 1e9 tolerances")])

    monkeypatch.setattr(check_run, "run", wrong)
    monkeypatch.setattr(remedy, "passing", lambda *_: None)
    done = CliRunner().invoke(group.oclbn, ["check", "--device", spec, *more])
    assert done.exit_code == failures.FAILED, done.output
    assert "y is off by 1e9 tolerances" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="other systems interrupt otherwise")
def test_ctrl_c_in_the_midst_of_the_work(spec: str) -> None:
    given = [*OCLBN, "bench", "--device", spec, "--suite", "sweep"]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as begun:
        assert begun.stdout is not None
        assert begun.stdout.readline().startswith(spec), "the device's name comes first"
        begun.send_signal(signal.SIGINT)
        _, said = begun.communicate(timeout=120)
    assert begun.returncode == failures.INTERRUPTED, said
    assert said.splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in said


def test_ctrl_c_while_packages_are_imported() -> None:
    code = """
import sys
barred, sys.argv[1:] = sys.argv[1], ["bench", "--help"]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == barred:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from oclbn.cli import main
main()
"""
    for name in ("click", "oclbn.cli.group", "oclbn.cli.bench"):
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.splitlines()[-1:]) == (failures.INTERRUPTED, ["Interrupted"]), name


@pytest.mark.skipif(os.name != "posix", reason="pipes of other systems close otherwise")
def test_a_reader_that_leaves() -> None:
    line = f"{sys.executable} -m oclbn tune --show | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (failures.LEFT, "")
