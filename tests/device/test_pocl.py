"""The mended processor name of a POCL that is older than the processor."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pyopencl as cl
import pytest

from oclbn.device import pocl
from oclbn.plan.words import Build
from oclbn.program import building

AVX = {"sse2", "avx", "popcnt", "cx16"}
AVX2 = AVX | {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("name", "flags", "put_in", "agreed"),  # LLVM 14's name; what is put in; bytes of a safe vector without that
    [
        pytest.param("sandybridge", AVX, None, 0, id="Sandy Bridge"),
        pytest.param("haswell", AVX2, None, 0, id="Haswell"),
        pytest.param("skylake-avx512", AVX512, None, 0, id="Skylake-X"),
        pytest.param("skylake-avx512", AVX2, "haswell", 32, id="Skylake-X, AVX-512 masked"),
        pytest.param("icelake-server", AVX512, None, 0, id="Ice Lake"),
        pytest.param("icelake-server", AVX2, "haswell", 32, id="Ice Lake, AVX-512 masked"),
        pytest.param("alderlake", AVX2, None, 0, id="Alder Lake"),
        pytest.param("sapphirerapids", AVX512, None, 0, id="Sapphire Rapids"),
        pytest.param("sapphirerapids", AVX2, "haswell", 32, id="Sapphire Rapids, AVX-512 masked"),
        pytest.param("sapphirerapids", AVX, "sandybridge", 32, id="Sapphire Rapids, AVX2 masked as well"),
        pytest.param("sapphirerapids", {"sse2"}, "x86-64", 16, id="Sapphire Rapids, AVX masked as well"),
        pytest.param("znver1", AVX2, None, 0, id="Zen 1"),
        pytest.param("znver2", AVX2, None, 0, id="Zen 2"),
        pytest.param("znver3", AVX2, None, 0, id="Zen 3"),
        pytest.param("znver3", AVX512, "skylake-avx512", 32, id="Zen 4"),
        pytest.param("znver3", AVX2, None, 0, id="Zen 4, AVX-512 masked"),
        pytest.param("generic", AVX512, "skylake-avx512", 0, id="Zen 5"),
        pytest.param("generic", AVX2, "haswell", 0, id="Zen 5, AVX-512 masked"),
        pytest.param("generic", AVX, "sandybridge", 0, id="an unknown one with AVX"),
        pytest.param("generic", {"sse2"}, "x86-64", 0, id="an unknown one without AVX"),
        pytest.param("znver3", AVX2 | {"avx512f"}, None, 32, id="half of AVX-512: no name fits the library"),
        pytest.param("knl", AVX2 | {"avx512f", "avx512cd"}, None, 0, id="Knights Landing"),
        pytest.param("haswell", {"sse2"}, "x86-64", 16, id="Haswell, AVX masked"),
        pytest.param("penryn", {"sse2"}, None, 0, id="Penryn"),
        pytest.param("one-of-2040", AVX512, None, 0, id="a name that nobody here knows"),
    ],
)
def test_the_name_fits_the_library(
    name: str, flags: set[str], put_in: str | None, agreed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pocl.better_name(name, flags) == put_in
    monkeypatch.setenv("OCLBN_MEND_POCL", "0")
    monkeypatch.setattr(pocl, "_seen", {})
    assert pocl.widest_vector(a_pocl(name, flags)) == agreed


def a_pocl(name: str, flags: set[str], distribution: str = "DISTRO, ", address: int = 0) -> SimpleNamespace:
    """As much of a POCL device as is looked at."""
    width = 16 if "avx512f" in flags else 8 if "avx" in flags else 4
    return SimpleNamespace(
        version=f"OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-{name}",
        platform=SimpleNamespace(version=f"OpenCL 3.0 PoCL 3.0  Linux, RELOC, LLVM 14.0.6, {distribution}POCL_DEBUG"),
        native_vector_width_float=width,
        int_ptr=address or id(flags),
    )


class Memory:
    """A structure like POCL's: two neighbouring pointers to strings somewhere among other words."""

    def __init__(self, *words: bytes | int) -> None:
        self.strings = [ctypes.create_string_buffer(word) for word in words if isinstance(word, bytes)]
        addresses = iter([ctypes.addressof(string) for string in self.strings])
        values = [next(addresses) if isinstance(word, bytes) else word for word in words]
        self.array = (ctypes.c_uint64 * 512)(*values)
        self.address = ctypes.addressof(self.array)


@pytest.mark.parametrize("name", ["generic", "znver3", "skylake-avx512"])
def test_the_field_is_found_behind_the_triple(name: str) -> None:
    memory = Memory(1, b"x86_64-unknown-linux-gnu", name.encode(), 0xFFFF_FFFF_FFFF_FFFF, 7)
    assert pocl._target_field(memory.address, name) == memory.address + 2 * 8


def as_on_linux(monkeypatch: pytest.MonkeyPatch, flags: set[str]) -> None:
    monkeypatch.setenv("OCLBN_MEND_POCL", "1")
    monkeypatch.setattr(pocl, "_seen", {})
    monkeypatch.setattr(pocl.sys, "platform", "linux")
    monkeypatch.setattr(pocl.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(pocl, "_processor_flags", lambda: flags)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((1, b"znver3", 3), id="no triple in front"),
        pytest.param((b"x86_64-linux", b"znver2"), id="another name than the version says"),
        pytest.param((b"x86_64-linux", b"znver3-like"), id="a longer name"),
        pytest.param((b"x86_64-linux", b"znver3", b"x86_64-linux", b"znver3"), id="two of them"),
        pytest.param((), id="nothing"),
    ],
)
def test_nothing_is_touched_unless_beyond_doubt(
    words: tuple[bytes | int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_linux(monkeypatch, AVX512)
    memory = Memory(*words)
    before = bytes(memory.array)
    device = a_pocl("znver3", AVX512, address=memory.address)
    assert pocl.mend_target(device) is None
    assert pocl.widest_vector(device) == 32  # so plans are careful
    assert bytes(memory.array) == before


def test_the_name_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_linux(monkeypatch, AVX512)
    memory = Memory(b"x86_64-unknown-linux-gnu", b"znver3")
    device = a_pocl("znver3", AVX512, address=memory.address)
    assert pocl.mend_target(device) == "skylake-avx512"
    assert ctypes.string_at(memory.array[1]) == b"skylake-avx512"
    assert pocl.widest_vector(device) == 0


@pytest.mark.parametrize(
    ("change", "value"),
    [
        pytest.param("switch", "0", id="switched off"),
        pytest.param("platform", "darwin", id="not Linux"),
        pytest.param("machine", "aarch64", id="not x86-64"),
        pytest.param("distribution", "", id="a POCL whose library is for one processor"),
        pytest.param("version", "OpenCL 3.0 some-other-driver-znver3", id="not POCL"),
    ],
)
def test_only_a_pocl_that_chooses_its_library_needs_it(
    change: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_linux(monkeypatch, AVX512)
    memory = Memory(b"x86_64-unknown-linux-gnu", b"znver3")
    device = a_pocl("znver3", AVX512, address=memory.address)
    if change == "switch":
        monkeypatch.setenv("OCLBN_MEND_POCL", value)
    elif change == "platform":
        monkeypatch.setattr(pocl.sys, "platform", value)
    elif change == "machine":
        monkeypatch.setattr(pocl.platform, "machine", lambda: value)
    elif change == "distribution":
        device.platform.version = device.platform.version.replace("DISTRO, ", value)
    else:
        device.version = value
    before = bytes(memory.array)
    assert pocl.mend_target(device) is None
    assert bytes(memory.array) == before


def test_what_was_compiled_under_another_name_is_not_taken(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POCL's cache knows the source and LLVM's own name for the processor, not the one that was put in."""
    texts = []
    make = cl.Program

    def spy(context: cl.Context, text: str) -> cl.Program:
        texts.append(text)
        return make(context, text)

    monkeypatch.setattr(building.cl, "Program", spy)
    build = Build("accumulate.cl", (("DOUBLE", 0), ("LANES", 1), ("VEC", 1)))
    for name in (None, "haswell", "skylake-avx512"):
        monkeypatch.setattr(pocl, "mend_target", lambda _, name=name: name)
        building._compile(queue.context, build)
    assert len(set(texts)) == 3


_UNMENDED = """
import numpy as np
import oclbn.device
from oclbn import functional, gpuarray
from oclbn.call.layout import common_layout
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.variants import plan
from oclbn.tuning import tuning_for

found = [info for info in oclbn.device.devices() if "PoCL 3.0" in info.platform_version]
if not found:
    print("no POCL 3.0")
    raise SystemExit
queue = oclbn.device.queue_for(found[0])
limits, widest = found[0].limits, 0
tuning = tuning_for(*oclbn.device.tuning_names(queue.device))
for dtype in (np.float32, np.float64):
    for shape, axis in (((64, 96), 1), ((40, 16, 7, 7), 1), ((8, 12, 30, 31), 1), ((500, 3), 1), ((6, 8, 8, 32), 3)):
        host = np.random.default_rng(1).normal(3, 2, shape).astype(dtype)
        x = gpuarray.to_gpu(host, queue=queue)
        problem = common_layout(shape, axis, x.dtype.itemsize, (x.strides, x.strides)).problem(x.dtype.itemsize)
        for operation in OPERATIONS:
            planned = plan(operation, problem, limits, tuning)
            widest = max(widest, *(dict(launch.build.defines)["VEC"] for launch in planned.launches))
        y, mean, invstd = functional.batch_norm_train(x, None, None, None, None, axis=axis)
        others = tuple(i for i in range(len(shape)) if i != axis)
        exact = host.astype(np.float64)
        centre = exact.mean(others, keepdims=True)
        wanted = (exact - centre) / np.sqrt(exact.var(others, keepdims=True) + 1e-5)
        assert np.abs(y.get() - wanted).max() < 1e-5, (shape, dtype)
        dx, dscale, dbias = functional.batch_norm_backward(x, x, None, mean, invstd, axis=axis)
        assert np.isfinite(dx.get()).all(), (shape, dtype)
        assert np.allclose(dscale.get(), (exact * wanted).sum(others), rtol=1e-4), (shape, dtype)
assert not limits.vector_bytes or widest * 8 <= limits.vector_bytes, (widest, limits)
print(limits.vector_bytes, widest)
"""


def test_the_wheel_as_it_comes_is_right() -> None:
    """Without a name put in, on whatever processor this is: plans keep to the vectors that both sides agree on."""
    given = os.environ | {"OCLBN_MEND_POCL": "0", "OCLBN_PROVE": "0"}  # which would go round what is wrong
    done = subprocess.run(
        [sys.executable, "-c", _UNMENDED], env=given, capture_output=True, text=True, timeout=300, check=False
    )
    if "unknown target CPU 'generic'" in done.stderr:
        pytest.skip("this processor needs a name to be put in: nothing builds without")
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("no POCL"):
        pytest.skip("the POCL wheel is not installed")


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
@pytest.mark.parametrize("variable", ["POCL_MAX_PTHREAD_COUNT", "POCL_CPU_MAX_CU_COUNT"])
def test_part_of_the_threads_go_where_there_is_room(variable: str) -> None:
    """POCL would pin the only thread of each of several processes to the first core."""
    assert _started(**{variable: "1"})[1] == 0


@_linux
@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="one core: nothing to tell")
def test_where_not_every_core_may_be_used_none_is_taken() -> None:
    allowed = min(os.sched_getaffinity(0))
    _, cores, setting = _started(f"os.sched_setaffinity(0, [{allowed}])")
    assert cores == 1  # the one that POCL's threads inherit
    assert setting == "None"
