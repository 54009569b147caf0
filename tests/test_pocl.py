"""The mended processor name of a POCL that is older than the processor."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pyopencl as cl
import pytest

from oclbn import pocl

AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
AVX2 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "avx", "popcnt", "cx16"}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        pytest.param(AVX512 | AVX2, "skylake-avx512", id="AVX-512"),
        pytest.param(AVX2 | {"avx512f"}, "haswell", id="half of AVX-512 is none"),
        pytest.param(AVX2, "haswell", id="AVX2"),
        pytest.param({"avx", "popcnt", "cx16", "sse2"}, "sandybridge", id="AVX"),
        pytest.param({"sse2"}, "x86-64", id="none of these"),
    ],
)
def test_the_name_promises_no_more_than_the_processor_has(flags: set[str], name: str) -> None:
    assert pocl.target_name(flags) == name


class Memory:
    """A structure like POCL's: two neighbouring pointers to strings somewhere among other words."""

    def __init__(self, *words: bytes | int) -> None:
        self.strings = [ctypes.create_string_buffer(word) for word in words if isinstance(word, bytes)]
        addresses = iter([ctypes.addressof(string) for string in self.strings])
        values = [next(addresses) if isinstance(word, bytes) else word for word in words]
        self.array = (ctypes.c_uint64 * 512)(*values)
        self.address = ctypes.addressof(self.array)


def test_the_field_is_found_behind_the_triple() -> None:
    memory = Memory(1, b"x86_64-unknown-linux-gnu", b"generic", 0xFFFF_FFFF_FFFF_FFFF, 7)
    assert pocl._target_field(memory.address) == memory.address + 2 * 8


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((1, b"generic", 3), id="no triple in front"),
        pytest.param((b"x86_64-linux", b"znver3"), id="a name that LLVM knew"),
        pytest.param((b"x86_64-linux", b"generic", b"x86_64-linux", b"generic"), id="two of them"),
        pytest.param((), id="nothing"),
    ],
)
def test_nothing_is_touched_unless_beyond_doubt(words: tuple[bytes | int, ...]) -> None:
    memory = Memory(*words)
    before = bytes(memory.array)
    device = SimpleNamespace(int_ptr=memory.address, version="OpenCL 3.0 PoCL HSTR: pthread-x86_64-generic")
    assert pocl._mend(device) is None
    assert bytes(memory.array) == before


def test_the_name_is_replaced() -> None:
    memory = Memory(b"x86_64-unknown-linux-gnu", b"generic")
    name = pocl._mend(SimpleNamespace(int_ptr=memory.address))
    assert ctypes.string_at(memory.array[1]).decode() == name
    assert name in ("skylake-avx512", "haswell", "sandybridge", "x86-64")


@pytest.mark.parametrize(
    ("version", "switch", "needs"),
    [
        ("OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-generic", "1", True),
        ("OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-generic", "0", False),
        ("OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-znver3", "1", False),
        ("OpenCL 3.0 some-other-driver-generic", "1", False),
    ],
)
def test_only_poclwithout_a_name_needs_it(
    version: str, switch: str, needs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCLBN_MEND_POCL", switch)
    monkeypatch.setattr(pocl.sys, "platform", "linux")
    monkeypatch.setattr(pocl.platform, "machine", lambda: "x86_64")
    assert pocl._needs_mending(SimpleNamespace(version=version)) is needs


def test_every_device_builds_after_it(queue: cl.CommandQueue) -> None:
    once = pocl.mend_target(queue.device)
    assert pocl.mend_target(queue.device) == once
    cl.Program(queue.context, "__kernel void nothing(__global int *out) { out[0] = 1; }").build()


_STARTED = """
import os, sys
{before}
import oclbn.device
found = [info for info in oclbn.device.devices() if info.platform == "Portable Computing Language"]
tasks = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
pinned = [cores for cores in tasks if len(cores) == 1]
print(len(found), len(set(map(tuple, pinned))), os.environ.get("POCL_AFFINITY"))
"""
_linux = pytest.mark.skipif(sys.platform != "linux", reason="threads show their cores on Linux")


def _started(before: str = "", **environment: str) -> tuple[int, int, str]:
    """In a fresh process: POCL devices, cores that have a thread of their own, the setting afterwards."""
    given = {name: value for name, value in os.environ.items() if name != "POCL_AFFINITY"} | environment
    command = [sys.executable, "-c", _STARTED.format(before=before)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=True)
    devices, cores, setting = done.stdout.split()
    if not int(devices):
        pytest.skip("no POCL here")
    return int(devices), int(cores), setting


@_linux
@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="one core: nothing to tell")
def test_each_thread_of_pocl_keeps_to_a_core() -> None:
    if os.sched_getaffinity(0) != set(range(os.cpu_count() or 1)):
        pytest.skip("this process may not use every core")
    _, cores, setting = _started()
    assert cores == os.cpu_count()
    assert setting == "None"  # the environment is as it was


@_linux
@pytest.mark.parametrize("setting", ["0", "1"])
def test_the_users_setting_stands(setting: str) -> None:
    assert _started(POCL_AFFINITY=setting)[2] == setting


@_linux
@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="one core: nothing to tell")
def test_where_not_every_core_may_be_used_none_is_taken() -> None:
    allowed = min(os.sched_getaffinity(0))
    _, cores, setting = _started(f"os.sched_setaffinity(0, [{allowed}])")
    assert cores == 1  # the one that POCL's threads inherit
    assert setting == "None"
