"""Listing devices, passing them through, their limits; queues and contexts of threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

import oclbn.device
from oclbn.device import (
    DeviceInfo,
    default_queue,
    devices,
    facts,
    limits,
    listing,
    queue_for,
    select,
    select_with_reason,
)
from oclbn.device.selection import rank
from oclbn.errors import DeviceNotFoundError, ParameterError

# ---- no device needed


def no_platform() -> list[cl.Platform]:
    raise cl.LogicError(cl._cl._ErrorRecord("clGetPlatformIDs", cl.status_code.PLATFORM_NOT_FOUND_KHR, ""))


def test_no_platform_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cl, "get_platforms", no_platform)
    assert devices() == ()
    with pytest.raises(DeviceNotFoundError, match="no OpenCL device found"):
        select()


def test_platforms_that_raise_or_are_empty_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Platform:
        name = version = "a platform"

        def __init__(self, handles: list[Any] | None) -> None:
            self.handles = handles

        def get_devices(self) -> list[Any]:
            if self.handles is None:
                raise cl.LogicError(cl._cl._ErrorRecord("clGetDeviceIDs", cl.status_code.DEVICE_NOT_FOUND, ""))
            return self.handles

    platforms = [Platform(None), Platform([]), Platform(["a", "b"])]
    monkeypatch.setattr(cl, "get_platforms", lambda: platforms)
    monkeypatch.setattr(listing, "_info", lambda *position: position)
    found: Any = devices()
    assert found == ((2, 0, "a"), (2, 1, "b"))


@pytest.mark.parametrize("spec", [True, 1.0, ("0", "0"), ["0:0"]], ids=["bool", "float", "tuple", "list"])
def test_a_selection_of_a_wrong_type(spec: Any) -> None:
    with pytest.raises(ParameterError, match=rf"^device is of type {type(spec).__name__}; a text, .* is wanted$"):
        select(spec)


def test_an_index_that_is_a_number_is_told_as_text(chosen: DeviceInfo) -> None:
    index = chosen.platform_index
    for call in (select, queue_for):
        with pytest.raises(
            ParameterError, match=f"^device is the number {index}; an index is wanted as text, "
        ) as caught:
            call(index)  # type: ignore[operator]
        advised = str(caught.value).split("'")[1]
        assert select(advised).platform_index == index


def test_import_makes_no_opencl_call() -> None:
    script = """
import pyopencl
def refuse(*args, **options):
    raise AssertionError("OpenCL was called at import")
pyopencl.get_platforms = pyopencl.Context = pyopencl.CommandQueue = refuse
import oclbn.device
"""
    python(script)


# ---- on the devices that are there


def python(script: str, **environment: str) -> str:
    """Run a script in a process of its own, without this one's selection; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OCLBN_DEVICE", "PYOPENCL_CTX")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def chosen(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> DeviceInfo:
    """The device that this run of the tests is about; the environment selects none."""
    monkeypatch.delenv("OCLBN_DEVICE", raising=False)
    monkeypatch.delenv("PYOPENCL_CTX", raising=False)
    return select(queue.device)


def test_the_listing_is_that_of_pyopencl(chosen: DeviceInfo) -> None:
    listed = devices()
    assert chosen in listed
    for info in listed:
        assert cl.get_platforms()[info.platform_index].get_devices()[info.device_index] == info.device
        assert info.name == " ".join(info.device.name.split())


def test_facts(chosen: DeviceInfo) -> None:
    facts, device = limits(chosen.device), chosen.device
    assert facts is limits(device)
    assert facts == chosen.limits
    assert facts.kind == chosen.kind
    assert facts.compute_units == device.max_compute_units > 0
    assert facts.max_group == device.max_work_group_size > 0
    assert facts.local_bytes == device.local_mem_size > 0
    assert facts.memory_bytes == device.global_mem_size >= facts.max_alloc_bytes == device.max_mem_alloc_size > 0
    assert facts.fp64 or "cl_khr_fp64" not in device.extensions.split()
    assert facts.fp16 == ("cl_khr_fp16" in device.extensions.split())


def test_device_and_info_pass_through(chosen: DeviceInfo) -> None:
    assert select(chosen) is chosen
    assert select(chosen.device) == chosen
    assert select(chosen.spec).device == chosen.device
    assert select_with_reason(chosen.device) == (chosen, "argument device")


def test_the_ranking_chooses_where_nothing_is_said(chosen: DeviceInfo) -> None:
    assert select_with_reason() == (rank(devices())[0], "ranking")


def test_a_queue_for_a_device_is_new_and_in_order(chosen: DeviceInfo) -> None:
    first, second = queue_for(chosen.spec), queue_for(chosen)
    assert first != second
    assert first.device == second.device == chosen.device
    assert not first.properties & cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE


def test_arrays_of_two_queues_on_one_device_work_together(chosen: DeviceInfo) -> None:
    first, second = queue_for(chosen), queue_for(chosen)
    assert first.context == second.context
    x = cla.to_device(first, np.arange(5, dtype=np.float32))
    first.finish()
    y = x.with_queue(second).copy()
    assert y.queue == second
    np.testing.assert_array_equal(y.get(), np.arange(5))


def test_one_default_queue_per_thread_in_one_context(chosen: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_DEVICE", chosen.spec)
    monkeypatch.setattr(listing, "_made", listing._Made())
    barrier = threading.Barrier(4)
    found: list[tuple[cl.CommandQueue, cl.CommandQueue]] = []

    def work() -> None:
        barrier.wait()
        found.append((default_queue(), default_queue()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(first is again for first, again in found)
    assert len({queue.int_ptr for queue, _ in found}) == 4
    assert {queue.context.int_ptr for queue, _ in found} == {default_queue().context.int_ptr}
    assert {queue.device.int_ptr for queue, _ in found} == {chosen.device.int_ptr}


def test_the_default_queue_stays_when_the_environment_changes(
    chosen: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCLBN_DEVICE", chosen.spec)
    monkeypatch.setattr(listing, "_made", listing._Made())
    queue = default_queue()
    monkeypatch.setenv("OCLBN_DEVICE", "no such device")
    assert default_queue() is queue
    with pytest.raises(DeviceNotFoundError, match="OCLBN_DEVICE='no such device' fits no device"):
        queue_for(None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told(chosen: DeviceInfo) -> None:
    # A lock that a thread of the parent holds must not stop the child.
    script = """
import os
from oclbn.device.listing import _made, default_queue
from oclbn.errors import ContextError
queue = default_queue()
_made.lock.acquire()
child = os.fork()
if child == 0:
    try:
        default_queue()
    except ContextError as error:
        os._exit(0 if "forked" in str(error) else 3)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), queue is default_queue())
"""
    assert python(script, OCLBN_DEVICE=chosen.spec).split() == ["0", "True"]


def test_a_spawned_child_computes(chosen: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_DEVICE", chosen.spec)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(total_on_the_default_queue) == (chosen.spec, 10.0)


def total_on_the_default_queue() -> tuple[str, float]:
    queue = default_queue()
    x = cla.to_device(queue, np.arange(5, dtype=np.float32))
    return select(queue.device).spec, float(x.copy().get().sum())


@pytest.mark.parametrize("variable", ["OCLBN_DEVICE", "PYOPENCL_CTX"])
def test_the_environment_selects(chosen: DeviceInfo, variable: str) -> None:
    script = "from oclbn.device import default_queue, select; print(select().spec, select(default_queue().device).spec)"
    assert python(script, **{variable: chosen.spec}).split() == [chosen.spec] * 2


def test_oclbn_device_goes_before_pyopencl_ctx(chosen: DeviceInfo) -> None:
    script = "from oclbn.device import select; print(select().spec)"
    assert python(script, OCLBN_DEVICE=chosen.spec, PYOPENCL_CTX="no such device").strip() == chosen.spec


def test_a_sub_device_stands_at_its_parents_place(chosen: DeviceInfo) -> None:
    # In a process of its own: there are drivers that crash when asked for sub-devices.
    if "pocl" not in chosen.platform_version.lower() or chosen.limits.compute_units < 2:
        pytest.skip(f"needs a device that is known to divide itself; {chosen.name} is not")
    if cl.device_partition_property.EQUALLY not in chosen.device.partition_properties:
        pytest.skip(f"needs a device that divides itself; POCL has given that up: {chosen.platform_version}")
    script = """
import os
import pyopencl as cl
from oclbn.device import select
whole = select()
part = whole.device.create_sub_devices([cl.device_partition_property.EQUALLY, 1])[0]
info = select(part)
print(info.spec == whole.spec, info.device == part, info.limits.compute_units)
"""
    assert python(script, OCLBN_DEVICE=chosen.spec).split() == ["True", "True", "1"]


def test_the_largest_cache_is_read_off_the_host(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "32M", "2048K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert facts._host_cache_bytes(tmp_path) == 32 << 20
    (tmp_path / "index1" / "size").write_text("unknown")
    facts._host_cache_bytes.cache_clear()
    assert facts._host_cache_bytes(tmp_path) == 2 << 20
    assert facts._host_cache_bytes(tmp_path / "nowhere") == 0


@pytest.mark.parametrize(
    ("stated", "host", "cores", "counted"),
    [
        pytest.param(1 << 20, 32 << 20, 2, 32 << 20, id="a driver names a core's own"),
        pytest.param(480 << 20, 480 << 20, 2, 8 << 20, id="a virtual machine of a large processor"),
        pytest.param(480 << 20, 480 << 20, 96, 480 << 20, id="all of that processor"),
        pytest.param(0, 0, 8, 0, id="nobody tells"),
    ],
)
def test_cores_count_on_their_part_of_a_cache(stated: int, host: int, cores: int, counted: int) -> None:
    assert facts._counted_on(stated, host, cores) == counted


def test_tuning_knows_the_native_width(queue: cl.CommandQueue) -> None:
    """What families of oclbn.tuning ask for."""
    named = oclbn.device.tuning_names(queue.device)[2]
    assert named.endswith(f"vectors of {queue.device.native_vector_width_float} floats")
