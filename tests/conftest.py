"""The frame of the suite: which devices the tests run on.

Three tiers. A test that asks for no queue needs no device. A test that asks for `queue` (or `other_queue`) runs on
one device: the POCL wheel's where that is installed, else the one that oclbn itself would choose; OCLBN_DEVICE,
PYOPENCL_CTX or ``--device SPEC`` (repeatable, the syntax of oclbn.device) name others. ``--device all`` runs on every
device that is not a simulator; a simulator runs when it is named. ``--device pocl-wheel`` and ``pocl-system`` tell
two POCLs apart, whatever their versions. ``--only-device`` leaves out what needs no device; ``-m "not once"`` what
needs one, but is the same on all (its reason stands in the mark);
``--launches FILE`` tells which test launched which kernels (tests/matrix.py reads that).
"""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Parallel processes can break POCL's kernel cache, and POCL reads this once, when its platform is first looked at.
if "PYTEST_XDIST_WORKER" in os.environ:
    _cache = Path(os.environ.get("POCL_CACHE_DIR", Path.home() / ".cache" / "pocl" / "kcache"))
    _cache = _cache / os.environ["PYTEST_XDIST_WORKER"]
    _cache.mkdir(parents=True, exist_ok=True)
    os.environ["POCL_CACHE_DIR"] = str(_cache)

import numpy as np
import pyopencl as cl
import pytest

import oclbn.device
import oclbn.device.pocl
from oclbn.call import order
from oclbn.device import DeviceInfo
from oclbn.elements import dtype_of
from oclbn.errors import DeviceNotFoundError

HOW_TO_GET_A_DEVICE = (
    "this test needs an OpenCL device and there is none: `python -m pip install 'oclbn[pocl]'` brings one that runs "
    "on the processor; `oclbn devices` lists what is found"
)
SHORT_NAMES = {
    "portable computing language": "pocl",
    "nvidia cuda": "nvidia",
    "amd accelerated parallel processing": "amd",
}
DEVICES = pytest.StashKey[list[DeviceInfo]]()
TALLY = pytest.StashKey[collections.Counter[str]]()
LONG = os.environ.get("OCLBN_LONG") == "1"  # minutes, and gigabytes: tests with many more inputs, and large arrays


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        default=[],
        metavar="SPEC",
        help="run on this device: P:D, part of a name, a type, `pocl-wheel`, `pocl-system` (the POCL that is not the "
        "wheel's), or `all` (every device but simulators); repeatable",
    )
    parser.addoption("--only-device", action="store_true", help="leave out tests that need no device")
    parser.addoption("--launches", metavar="FILE", help="write a JSON line when a test begins and one when it ends")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[DEVICES] = chosen(config.getoption("--device"))
    config.stash[TALLY] = collections.Counter()
    os.environ["OCLBN_TUNING"] = ""  # what is shipped is tested, not what its user has tuned
    os.environ.setdefault("OCLGRIND_DATA_RACES", "1")  # read when it makes a context; no other platform knows it
    if config.getoption("--launches"):
        config.pluginmanager.register(Launches(Path(config.getoption("--launches"))))


def pytest_report_header(config: pytest.Config) -> list[str]:
    infos = config.stash[DEVICES]
    return [f"device: {device_id(info)}: {info.title}" for info in infos] or ["device: none"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What tests counted: faults injected, bad inputs tried, and how they ended."""
    if config.stash[TALLY]:
        terminalreporter.section("faults and bad inputs")
        terminalreporter.write_line("How often tests made something fail or gave bad input, and what came of it:")
    for what, count in sorted(config.stash[TALLY].items()):
        terminalreporter.write_line(f"{count:10,}  {what}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "queue" in metafunc.fixturenames:
        infos = metafunc.config.stash[DEVICES]
        devices = [pytest.param(info, id=device_id(info)) for info in infos]
        metafunc.parametrize("queue", devices or [pytest.param(None, id="no device")], indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--only-device"):
        needy = {item for item in items if "queue" in getattr(item, "fixturenames", ())}
        config.hook.pytest_deselected(items=[item for item in items if item not in needy])
        items[:] = [item for item in items if item in needy]


def pytest_collection_finish() -> None:
    """What was collected stays to the end: tests that look for what nobody keeps need not look through it."""
    gc.collect()
    gc.freeze()


class Launches:
    """Writes which kernels each test launched, by how many work-items to a group; at once, as a driver may abort."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._seen: set[tuple[str, int]] = set()
        self._outcome = ""
        self._enqueue = order.enqueue

    def _spy(self, name: str, queue: cl.CommandQueue, kernel: cl.Kernel, size: Any, group: Any, *more: Any) -> Any:
        self._seen.add((name, group[0]))
        return self._enqueue(name, queue, kernel, size, group, *more)

    def pytest_sessionstart(self) -> None:
        order.enqueue = self._spy

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._seen.clear()
        self._outcome = "passed"
        self._write(nodeid, "begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._outcome = report.outcome

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(nodeid, self._outcome)

    def _write(self, test: str, outcome: str) -> None:
        with self._report.open("a") as file:
            print(json.dumps({"test": test, "outcome": outcome, "launches": sorted(self._seen)}), file=file)


def chosen(specs: list[str]) -> list[DeviceInfo]:
    """The devices of this run; a specification that fits no device, or several, ends the run."""
    try:
        if specs:
            infos: list[DeviceInfo] = []
            for spec in specs:
                infos += named(spec)
            return list(dict.fromkeys(infos))
        if "OCLBN_DEVICE" in os.environ or "PYOPENCL_CTX" in os.environ:
            return [oclbn.device.select()]
    except DeviceNotFoundError as error:
        raise pytest.UsageError(str(error)) from error
    if wheel := pocl_wheel():
        return [wheel]
    return [oclbn.device.select()] if oclbn.device.devices() else []


def named(spec: str) -> list[DeviceInfo]:
    """The devices that one specification means; DeviceNotFoundError where there is none."""
    listed = oclbn.device.devices()
    if spec == "all":
        return [info for info in listed if not info.simulator]
    if spec == "pocl-wheel":
        found = pocl_wheel()
    elif spec == "pocl-system":
        wheel = pocl_wheel()
        found = next((info for info in listed if short_name(info) == "pocl" and info != wheel), None)
    else:
        return [oclbn.device.select(spec)]
    if found is None:
        raise DeviceNotFoundError(f"there is no {spec} among {', '.join(i.platform_version for i in listed) or 'none'}")
    return [found]


def pocl_wheel() -> DeviceInfo | None:
    """The device of the package pocl-binary-distribution; a POCL of the system has another version, or a suffix."""
    try:
        version = importlib.metadata.version("pocl-binary-distribution")
    except importlib.metadata.PackageNotFoundError:
        return None
    pattern = re.compile(rf"pocl {re.escape(version)}\b(?!\+)", re.IGNORECASE)
    return next((info for info in oclbn.device.devices() if pattern.search(info.platform_version)), None)


def device_id(info: DeviceInfo) -> str:
    """A readable name: platform, its version where several share the name, index of the device."""
    alike = {
        other.platform_index: other.platform_version
        for other in oclbn.device.devices()
        if short_name(other) == short_name(info)
    }
    version = ""
    if len(alike) > 1:
        version = platform_number(info.platform_version)
        if [platform_number(other) for other in alike.values()].count(version) > 1:
            version += f"@{info.platform_index}"
    return f"{short_name(info)}{version}-{info.device_index}"


def short_name(info: DeviceInfo) -> str:
    name = info.platform.lower()
    return SHORT_NAMES.get(name) or re.sub(r"\W.*", "", name)


def platform_number(version: str) -> str:
    """The implementation's own version, which stands behind that of OpenCL."""
    own = re.sub(r"^OpenCL [\d.]+", "", version)
    number = re.search(r"\d+(\.\d+)*", own)
    return number.group() if number else ""


def hasten_the_kernel_cache() -> None:
    """Mesa's threads that write its cache of kernels run at nice 19; here they get everybody's, where they may.

    llvmpipe compiles a kernel at each launch until the cache has it, for seconds: on a busy machine twice and more.
    """
    for thread in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it only takes longer
            if "disk$" in thread.read_text(errors="replace"):
                os.setpriority(os.PRIO_PROCESS, int(thread.parent.name), 0)


@pytest.fixture(scope="session")
def queue(request: pytest.FixtureRequest) -> Iterator[cl.CommandQueue]:
    """An in-order queue on the device that the test runs on."""
    if request.param is None:
        pytest.fail(HOW_TO_GET_A_DEVICE, pytrace=False)
    oclbn.device.pocl.mend_target(request.param.device)  # as oclbn.device does: tests use pyopencl's kernels as well
    context = cl.Context([request.param.device])  # held for the session: Intel's queues do not keep theirs alive
    hasten_the_kernel_cache()
    yield cl.CommandQueue(context)
    del context


@pytest.fixture(autouse=True)
def _no_complaint_of_a_simulator(request: pytest.FixtureRequest) -> Iterator[None]:
    """Oclgrind only prints that a kernel raced or left its buffers: here that is a failure."""
    if "queue" not in request.fixturenames or "Oclgrind" not in request.getfixturevalue("queue").device.name:
        yield
        return
    capture = request.getfixturevalue("capfd")
    yield
    request.getfixturevalue("queue").finish()
    printed = capture.readouterr().err
    assert "Kernel: " not in printed, printed


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> collections.Counter[str]:
    """Counters by name, which the end of the run prints."""
    return request.config.stash[TALLY]


@pytest.fixture(scope="session")
def spec(queue: cl.CommandQueue) -> str:
    """What selects the queue's device, here and in other processes."""
    return next(info.spec for info in oclbn.device.devices() if info.device == queue.device)


@pytest.fixture(scope="session")
def bears_threads(queue: cl.CommandQueue) -> None:
    """Skips where several threads may not use the runtime at once."""
    if oclbn.device.select(queue.device).simulator:
        pytest.skip("needs a runtime that bears several threads; Oclgrind crashes")


@pytest.fixture
def ask_apart() -> Callable[..., Any]:
    """Runs an action of tests/apart.py in a process of its own; its answer."""

    def ask(action: str, spec: str, *more: object, environment: dict[str, str] | None = None) -> Any:
        command = [sys.executable, str(Path(__file__).with_name("apart.py")), action, spec, *map(str, more)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | (environment or {})
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return ask


@pytest.fixture(scope="session")
def other_queue(queue: cl.CommandQueue) -> Iterator[cl.CommandQueue]:
    """A queue of another context on the same device."""
    context = cl.Context([queue.device])
    yield cl.CommandQueue(context)
    del context


@pytest.fixture(scope="session")
def free_queue(queue: cl.CommandQueue) -> cl.CommandQueue:
    """An out-of-order queue in the context of `queue`."""
    out_of_order = cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE
    if not queue.device.get_info(cl.device_info.QUEUE_PROPERTIES) & out_of_order:
        pytest.skip(f"needs out-of-order queues; {queue.device.name} has none")
    return cl.CommandQueue(queue.context, properties=out_of_order)


@pytest.fixture(scope="session")
def needs_fp64(queue: cl.CommandQueue) -> None:
    """Skips where the device computes no float64."""
    if not oclbn.device.limits(queue.device).fp64:
        pytest.skip(f"needs fp64; {queue.device.name} has none")


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    """Each element type; float64 only where the device computes it."""
    if request.param is np.float64:
        request.getfixturevalue("needs_fp64")
    return np.dtype(request.param)


_ONCE = pytest.mark.once(reason="tests/operations/test_types.py compares these types on each runtime")


@pytest.fixture(
    params=["float32", "float64", pytest.param("float16", marks=_ONCE), pytest.param("bfloat16", marks=_ONCE)]
)
def element(request: pytest.FixtureRequest) -> np.dtype:
    """Each type that tensors have; float64 only where the device computes it."""
    if request.param == "float64":
        request.getfixturevalue("needs_fp64")
    found = dtype_of(request.param)
    assert found is not None
    return found


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home directory, as a container's may be: neither the environment nor the system knows one."""
    pwd = pytest.importorskip("pwd")

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "OCLBN_TUNING"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
