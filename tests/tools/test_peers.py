"""What oclbn is timed against: their processes, what is asked of them, and telling right results from wrong ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyopencl as cl
import pytest
from click.testing import CliRunner

from oclbn.cli import bench_report
from oclbn.cli.group import oclbn
from oclbn.tools.bench import benchmark
from oclbn.tools.child import Rejected
from oclbn.tools.peers import checking, contract, process, registry
from oclbn.tools.peers.process import PeerProcess, platform_library
from oclbn.tools.peers.registry import PEERS, Kind

pytestmark = pytest.mark.once(reason="other libraries compute, none of them through this runtime")

PYTHON = os.environ.get("OCLBN_PEER_PYTHON", sys.executable)
SHAPES = [
    pytest.param((6, 5, 3, 4), 1, id="rows"),
    pytest.param((40, 7), 1, id="batch by features"),
    pytest.param((4, 3, 5, 18), 3, id="channels last"),
]
FAKE = """
import os, signal, sys, time
from .contract import Declined
from . import numpy_peer

class Peer(numpy_peer.Peer):
    version = "fake 1"

    def __init__(self, case):
        print("to standard output, which is not for this")
        super().__init__(case)
        if case.x.shape[0] == 13:
            raise ValueError("thirteen\\nand more")
        if case.x.shape[0] == 14:
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def call(self, operation):
        if operation == "inference":
            raise Declined("it does not infer")
        if operation == "backward":
            return lambda: (self.case.dy, self.case.scale, self.case.bias)  # wrong
        return super().call(operation)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[PeerProcess]:
    file = tmp_path / "fake_peer.py"
    file.write_text(FAKE)
    peer = PeerProcess(Kind("fake", file, "fake"), "fresh")
    yield peer
    peer.close()


def reasons(found: benchmark.Comparison) -> dict[tuple[str, str], str]:
    return {(absence.who, absence.operation): absence.reason for absence in found.absences}


def test_a_peer_is_timed_where_it_is_right(queue: cl.CommandQueue, fake: PeerProcess) -> None:
    found = benchmark.compare(queue, (6, 5, 4), rounds=3, outputs="fresh", peers=[fake])
    assert [row.operation for row in found.rows if row.who == "fake"] == ["forward", "both"]
    assert found.versions == {"fake": "fake 1"}
    missing = reasons(found)
    assert missing["fake", "inference"] == "it does not infer"
    assert missing["fake", "backward"].startswith("its results are wrong: d")


def test_a_peer_that_fails_is_there_for_the_next_shape(queue: cl.CommandQueue, fake: PeerProcess) -> None:
    for batch, says in ((13, "ValueError: thirteen"), (14, "its process aborted (signal 9, SIGKILL): last words")):
        found = benchmark.compare(queue, (batch, 4), rounds=3, outputs="fresh", peers=[fake])
        assert reasons(found)["fake", ""].endswith(says)
        assert not [row for row in found.rows if row.who == "fake"]
    found = benchmark.compare(queue, (6, 4), rounds=3, outputs="fresh", peers=[fake])
    assert [row.operation for row in found.rows if row.who == "fake"] == ["forward", "both"]


def test_peers_without_room_are_named(
    queue: cl.CommandQueue, fake: PeerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "room_for", lambda queue, shape, dtype: 0)
    found = benchmark.compare(queue, (6, 4), rounds=3, outputs="fresh", peers=[fake])
    assert "no memory" in reasons(found)["fake", ""]


def test_pools_are_not_the_peers(queue: cl.CommandQueue, fake: PeerProcess) -> None:
    found = benchmark.compare(queue, (6, 4), rounds=3, outputs="pool", peers=[fake])
    assert "for oclbn alone" in reasons(found)["fake", ""]
    assert {row.who for row in found.rows} == {"oclbn", "copy"}


def test_a_python_that_is_none_is_a_reason() -> None:
    peer = PeerProcess(PEERS["numpy"], "fresh", python="/no/such/python")
    with pytest.raises(Rejected, match=r"/no/such/python does not start: No such file"):
        peer.load(block="none.npy", threads=1)


def test_a_missing_package_names_what_to_install(tmp_path: Path) -> None:
    file = tmp_path / "lost_peer.py"
    file.write_text("class Peer:\n    def __init__(self, case):\n        import a_package_that_nobody_has\n")
    np.save(tmp_path / "block.npy", contract.block(8))
    peer = PeerProcess(Kind("lost", file, "lost-and-found"), "fresh")
    case = {
        "shape": (4, 2),
        "axis": 1,
        "epsilon": 1e-5,
        "factor": 0.1,
        "outputs": "fresh",
        "dtype": "float32",
        "device": {},
    }
    try:
        for _ in range(2):  # the second time without asking
            with pytest.raises(
                Rejected, match=r"a_package_that_nobody_has is not installed .*: pip install lost-and-found"
            ):
                peer.load(block=str(tmp_path / "block.npy"), threads=1, **case)
    finally:
        peer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and signals that stop")
def test_a_peer_stands_still_until_it_is_asked(fake: PeerProcess, tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        fake.ask("load", block=str(tmp_path / "none.npy"), shape=(4, 2), axis=1)
    assert fake._child is not None
    pid = fake._child.pid
    deadline = time.monotonic() + 10
    while state(pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(pid) == "T"
    fake.close()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a parent's death as a signal")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_no_peer_outlives_the_benchmark(tmp_path: Path, how: signal.Signals) -> None:
    code = """
import sys, time
from oclbn.tools.child import Rejected
from oclbn.tools.peers.process import PeerProcess
from oclbn.tools.peers.registry import PEERS
peer = PeerProcess(PEERS["numpy"], "fresh")
try:
    peer.ask("load", block="none.npy", shape=(4, 2), axis=1)
except Rejected:
    print(peer._child.pid, flush=True)
time.sleep(60)
"""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.send_signal(how)
        parent.wait(30)
    deadline = time.monotonic() + 10
    while state(pid) not in ("", "Z") and time.monotonic() < deadline:  # Z: where nobody collects orphans
        time.sleep(0.02)
    assert state(pid) in ("", "Z")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the peer's process")
def test_ctrl_c_ends_the_command_and_its_peers(queue: cl.CommandQueue) -> None:
    """The whole command, on a shape that is never done, until its peer is there."""
    root = Path(__file__).resolve().parents[2]
    device = (
        f"{cl.get_platforms().index(queue.device.platform)}:{queue.device.platform.get_devices().index(queue.device)}"
    )
    given = ["--device", device, "--shape", "64,64", "--rounds", "100000000", "--against", "numpy"]
    command = [sys.executable, "-m", "oclbn", "bench", *given]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=root, stdout=quiet, stderr=subprocess.PIPE, text=True) as parent:
        try:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            deadline = time.monotonic() + 60
            while not (found := children.read_text().split()) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert found, "no peer was started"
            parent.send_signal(signal.SIGINT)
            assert parent.stderr is not None
            assert parent.stderr.read().endswith("Interrupted: nothing had been timed yet\n")
            assert parent.wait(30) == 130
        finally:
            parent.kill()
    assert {state(int(pid)) for pid in found} <= {"", "Z"}  # ended, if perhaps not yet fetched by the init process


def state(pid: int) -> str:
    """A process's state, one letter; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


ABSENT: dict[str, str] = {}  # what a first process of a library has told: another one need not be started for it


@pytest.mark.parametrize("outputs", ["preallocated", "fresh"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_batch_normalization(
    queue: cl.CommandQueue, name: str, shape: tuple[int, ...], axis: int, outputs: str
) -> None:
    if name in ABSENT:
        pytest.skip(f"needs {name}: {ABSENT[name]}")
    library = platform_library(queue.device.platform.int_ptr)
    peer = PeerProcess(PEERS[name], outputs, python=PYTHON, library=library)
    try:
        found = benchmark.compare(queue, shape, axis, rounds=3, outputs=outputs, peers=[peer])
    finally:
        peer.close()
    missing = reasons(found)
    if "is not installed" in missing.get((name, ""), ""):
        ABSENT[name] = missing[name, ""]
        pytest.skip(f"needs {name}: {ABSENT[name]}")
    rows = {row.operation for row in found.rows if row.who == name}
    declines = {
        "tinygrad": set(benchmark.TENSORS) if outputs == "fresh" else set(),
        "onnxruntime": set(benchmark.TENSORS) - ({"inference"} if axis == 1 else set()),
        "onednn-blocked": set(benchmark.TENSORS) if len(shape) == 2 else set(),
    }
    if name == "tinygrad" and "tinygrad takes" in missing.get((name, ""), ""):
        pytest.skip(f"needs a loader that shows one platform: {missing[name, '']}")
    assert rows == set(benchmark.TENSORS) - declines.get(name, set()), missing


def test_the_command_compares(queue: cl.CommandQueue, tmp_path: Path) -> None:
    given = ["bench", "--shape", "8,4,5,5", "--rounds", "3", "--against", "numpy,onnxruntime", "--against", "numpy"]
    result = CliRunner().invoke(oclbn, [*given, "--outputs", "fresh"])
    assert result.exit_code == 0, result.output
    head = next(line for line in result.stdout.splitlines() if line.startswith("shape") and "operation" in line)
    assert head.split() == ["shape", "operation", "oclbn", "numpy", "onnxruntime"]
    forward = next(line for line in result.stdout.splitlines() if " forward " in line and "8x4x5x5" in line)
    assert forward.split()[-1] == "-", "not timed, whether it is installed or not"
    assert "- onnxruntime" in result.stdout
    printed = json.loads(CliRunner().invoke(oclbn, [*given, "--outputs", "preallocated", "--json"]).stdout)
    assert printed["peers"]["numpy"]
    assert {row["operation"] for row in printed["rows"] if row["who"] == "numpy"} == set(benchmark.TENSORS)
    assert any(absence["who"] == "onnxruntime" for absence in printed["absences"])


def test_reasons_are_told_once() -> None:
    shapes = [((2, 3), 1), ((4, 3), 1)]
    absences = [
        benchmark.Absence(*case, "preallocated", "ort", operation, "inference only")
        for case in shapes
        for operation in ("forward", "both")
    ]
    (line,) = bench_report._absences(absences)
    assert line == "- ort, forward, both, outputs preallocated (2 shapes): inference only"


# --- right or wrong


def test_every_channel_of_small_tensors_is_checked() -> None:
    assert checking.some_channels((4, 6, 3), 1) == list(range(6))


def test_large_tensors_are_checked_in_part() -> None:
    channels = checking.some_channels((32, 1024, 56, 56), 1)
    assert (channels[0], channels[-1]) == (0, 1023)
    assert 1 < len(channels) < 50
    assert checking.some_channels((1, 1, 1 << 25), 1) == [0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda y: y, None, id="right"),
        pytest.param(lambda y: y * np.float32(1.00001), None, id="less exact than oclbn"),
        pytest.param(lambda y: y + np.float32(0.1), "y errs by", id="off"),
        pytest.param(lambda y: y * np.float32("nan"), "y is wrong beyond measure: nan instead of", id="not a number"),
        pytest.param(lambda y: y[:1], "y has shape", id="another shape"),
    ],
)
def test_wrong_results_are_found(change, says) -> None:  # type: ignore[no-untyped-def]
    wanted = checking.wanted(contract.block(5 * 3 * 7), (5, 3, 7), 1)
    y = wanted.results["forward"]["y"][0].astype(np.float32)
    fault = wanted.fault("forward", {"y": change(y)}, most=checking.LOOSE)
    assert (fault is None) if says is None else fault is not None and says in fault
    assert wanted.fault("forward", {"y": y}) is None
    assert "y errs by" in str(wanted.fault("forward", {"y": y * np.float32(1.00001)}))


def test_tensors_are_reproducible_and_differ() -> None:
    values = contract.block(1 << 21)
    x, dy = (contract.tensor(values, (2, 1 << 20), name) for name in ("x", "dy"))
    assert x.dtype == dy.dtype == np.float32
    assert np.array_equal(x, contract.tensor(contract.block(1 << 21), (2, 1 << 20), "x"))
    assert abs(np.corrcoef(x.ravel(), dy.ravel())[0, 1]) < 0.01
    assert not np.array_equal(x[0], x[1])
    assert contract.parameters(values, 7)["var"].min() >= 1


# --- what is shipped


@pytest.mark.parametrize("kind", PEERS.values(), ids=PEERS)
def test_every_peer_has_its_file(kind: registry.Kind) -> None:
    assert kind.file.is_file()
    assert kind.about
    assert kind.install


def test_peers_need_no_oclbn(tmp_path: Path) -> None:
    """The child's modules import nothing of oclbn: they run where it is not installed."""
    for file in Path(process.__file__).parent.glob("*.py"):
        if file.stem not in ("process", "checking"):
            text = file.read_text()
            assert "import oclbn" not in text
            assert "from .." not in text


def test_a_platforms_library_is_found(queue: cl.CommandQueue) -> None:
    library = platform_library(queue.device.platform.int_ptr)
    if sys.platform == "linux":
        assert library is not None
        assert Path(library).is_file()
