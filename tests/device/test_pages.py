"""Large pages: requested under what is large and new on a processor, asked of nobody else, and waited for by nobody."""

from __future__ import annotations

import math
import mmap
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

from oclbn import device, gpuarray
from oclbn.device import pages
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind

ROWS, CHANNELS = 2048, 4099  # 32 MiB and a little more
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    pages._least.cache_clear()
    yield
    pages._least.cache_clear()


@pytest.fixture
def granting(queue: cl.CommandQueue) -> None:
    """A device and a Linux that large pages are requested of."""
    if pages._least(queue.device, False) == math.inf:
        pytest.skip("no large pages are requested here: another driver, or another setting of Linux")


@pytest.fixture
def requests(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First byte and number of bytes of what large pages are requested for, whatever this Linux gives."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda begin, size, advice: found.append((begin, size)))
    monkeypatch.setattr(pages, "size_on_request", lambda: 2 * MEGABYTE)
    if sys.platform != "linux" or queue.device.platform.name.strip() not in pages._ANEW:
        pytest.skip("of this driver no large pages are requested")
    return found


def address(array: cla.Array) -> int:
    memory: Any = array.base_data
    mapped, _ = cl.enqueue_map_buffer(array.queue, memory, cl.map_flags.READ, 0, (array.nbytes,), np.dtype(np.uint8))
    at: int = mapped.ctypes.data
    mapped.base.release(array.queue)
    return at


def flags_at(address: int) -> list[str]:
    """What Linux says of the memory around an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"{address:#x} is no memory of this process")


@pytest.mark.usefixtures("granting")
def test_linux_hears_of_it(queue: cl.CommandQueue) -> None:
    x = gpuarray.empty((ROWS, CHANNELS), queue=queue)
    x.set(np.tile(np.float32([[1], [3]]), (ROWS // 2, CHANNELS)))
    y, mean, invstd = batch_norm_train(x, None, None, None, None, epsilon=0.0)
    dx = batch_norm_backward(x, x, None, mean, invstd)[0]
    for array in (x, y, dx):
        assert "hg" in flags_at(address(array) + array.nbytes // 2)
    np.testing.assert_array_equal(y.get(), x.get() - 2)
    np.testing.assert_allclose(dx.get(), 0, atol=1e-6)


def test_what_is_requested(queue: cl.CommandQueue, requests: list[tuple[int, int]]) -> None:
    """Whole pages, all that lie in an array alone."""
    x = gpuarray.to_gpu(np.ones((ROWS, CHANNELS), np.float32), queue=queue)
    y, *_ = batch_norm_train(x, None, None, None, None)
    bound, *_ = bind(batch_norm_train, x, None, None, None, None)()
    assert len(requests) == 3
    for (begin, size), array in zip(requests, (x, y, bound), strict=True):
        start = address(array)
        assert begin % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
        assert start <= begin < start + mmap.PAGESIZE
        assert start + array.nbytes - mmap.PAGESIZE < begin + size <= start + array.nbytes


def test_small_arrays_and_others_memory_stay_as_they_are(
    queue: cl.CommandQueue, requests: list[tuple[int, int]]
) -> None:
    x = gpuarray.to_gpu(np.ones((ROWS, CHANNELS), np.float32), queue=queue)
    requests.clear()
    batch_norm_train(x, None, None, None, None, out=gpuarray.zeros_like(x))
    tools: Any = cl.tools
    pooled = cla.to_device(queue, x.get(), allocator=tools.MemoryPool(tools.ImmediateAllocator(queue)))
    batch_norm_train(pooled, None, None, None, None)
    small = gpuarray.ones((2, 3), queue=queue)
    batch_norm_train(small, None, None, None, None)
    gpuarray.empty((0, 3), queue=queue)
    assert not requests


def test_from_which_size(queue: cl.CommandQueue, requests: list[tuple[int, int]]) -> None:
    """Arrays that are made once from 4 MiB on, results from where the driver's are taken anew."""
    anew = {"Portable Computing Language": 32, "Intel(R) OpenCL": 4}[queue.device.platform.name.strip()] * MEGABYTE
    for size, wanted in ((4 * MEGABYTE - 4, 0), (4 * MEGABYTE, 1)):
        gpuarray.empty(size // 4, queue=queue)
        assert len(requests) == wanted
    zeros = np.zeros(2, np.float32)
    mean, var = (cla.to_device(queue, values) for values in (zeros, zeros + 1))
    for size, wanted in ((anew - 8, 0), (anew, 1)):
        x = cla.zeros(queue, (size // 8, 2), np.float32)
        requests.clear()
        batch_norm_infer(x, None, None, mean, var)
        assert len(requests) == wanted


def test_larger_pages_want_larger_arrays(
    queue: cl.CommandQueue, requests: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "size_on_request", lambda: 32 * MEGABYTE)  # twice that hold one page at least
    for size, wanted in ((60 * MEGABYTE, 0), (64 * MEGABYTE, 1)):
        gpuarray.empty(size // 4, queue=queue)
        assert len(requests) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("OCLBN_LARGE_PAGES", "0", id="switched off"),
        pytest.param("POCL_DEVICES", "cpu remote", id="memory that may be elsewhere"),
        pytest.param("POCL_DISCOVERY", "1", id="memory that may be found elsewhere"),
    ],
)
def test_nothing_is_requested(
    queue: cl.CommandQueue,
    requests: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    gpuarray.to_gpu(np.ones((ROWS, CHANNELS), np.float32), queue=queue)
    assert not requests


def test_of_a_card_nothing_is_requested(
    queue: cl.CommandQueue, requests: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(device.limits(queue.device), kind="gpu")
    monkeypatch.setattr(pages, "limits", lambda device: card)
    gpuarray.empty((ROWS, CHANNELS), queue=queue)
    assert not requests


def test_a_driver_that_does_not_map(
    queue: cl.CommandQueue, requests: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **options: Any) -> None:
        raise cl.RuntimeError("clEnqueueMapBuffer failed: MAP_FAILURE")

    x = gpuarray.to_gpu(np.tile(np.float32([[1], [3]]), (ROWS // 2, CHANNELS)), queue=queue)
    requests.clear()
    monkeypatch.setattr(cl, "enqueue_map_buffer", fails)
    y, *_ = batch_norm_train(x, None, None, None, None, epsilon=0.0)
    np.testing.assert_array_equal(y.get(), x.get() - 2)
    assert not requests


@pytest.mark.usefixtures("requests")
@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "out of order"])
def test_nobody_waits(queue: cl.CommandQueue, free_queue: cl.CommandQueue, ordered: bool) -> None:
    """A call returns while what it waits for is still to come, and takes its turn all the same."""
    chosen = queue if ordered else free_queue
    host = np.tile(np.float32([[1], [3]]), (ROWS // 2, CHANNELS))
    x, new = (cla.to_device(chosen, values) for values in (host, host * 2))
    mean, var = (cla.to_device(chosen, np.full(CHANNELS, value, np.float32)) for value in (4, 4))
    gate = cl.UserEvent(chosen.context)
    opened = threading.Event()

    def opening() -> None:
        opened.set()
        gate.set_status(cl.command_execution_status.COMPLETE)

    rescue = threading.Timer(5.0, opening)  # should somebody wait
    rescue.start()
    source: Any = new.base_data
    target: Any = x.base_data
    x.add_event(cl.enqueue_copy(chosen, target, source, byte_count=x.nbytes, wait_for=[gate]))
    y = batch_norm_infer(x, None, None, mean, var, epsilon=0.0)
    rescue.cancel()
    assert not opened.is_set()
    opening()
    np.testing.assert_array_equal(y.get(), host - 2)


@pytest.mark.usefixtures("requests")
def test_nothing_is_written_before_the_mapping_has_ended(
    free_queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a queue that is out of order, neither by a kernel nor by a copy from the host."""
    ended: list[cl.Event] = []
    waited_for: list[tuple[str, list[cl.Event]]] = []
    note, copy, launch = pages.Array.add_event, cl.enqueue_copy, cl.enqueue_nd_range_kernel

    def noting(array: cla.Array, event: cl.Event) -> None:
        if event.command_type == cl.command_type.UNMAP_MEM_OBJECT:
            ended.append(event)
        note(array, event)

    def copying(*given: Any, **options: Any) -> Any:
        waited_for.append(("copy", list(options.get("wait_for") or ())))
        return copy(*given, **options)

    def launching(*given: Any, **options: Any) -> Any:
        waited_for.append(("launch", list(options.get("wait_for") or ())))
        return launch(*given, **options)

    monkeypatch.setattr(pages.Array, "add_event", noting)
    monkeypatch.setattr(cl, "enqueue_copy", copying)
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", launching)
    x = gpuarray.to_gpu(np.ones((ROWS, CHANNELS), np.float32), queue=free_queue)
    batch_norm_train(x, None, None, None, None)
    (first, before_copy), (second, before_launch), *_ = waited_for
    assert (first, second, len(ended)) == ("copy", "launch", 2)
    assert ended[0] in before_copy
    assert ended[1] in before_launch


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        pytest.param({"enabled": "always [madvise] never\n"}, True, id="on request"),
        pytest.param({"enabled": "[always] madvise never\n"}, False, id="to all"),
        pytest.param({"enabled": "always madvise [never]\n"}, False, id="to nobody"),
        pytest.param(
            {"enabled": "always [madvise] never\n", "hugepages-2048kB": "always [inherit] madvise never\n"},
            True,
            id="this size as all",
        ),
        pytest.param(
            {"enabled": "always madvise [never]\n", "hugepages-2048kB": "always inherit [madvise] never\n"},
            True,
            id="this size alone",
        ),
        pytest.param(
            {"enabled": "always [madvise] never\n", "hugepages-2048kB": "always inherit madvise [never]\n"},
            False,
            id="this size not",
        ),
        pytest.param({"enabled": ""}, False, id="nothing chosen"),
        pytest.param({"enabled": "always [madvise] never\n", "hpage_pmd_size": "?"}, False, id="no size"),
        pytest.param({}, False, id="no Linux"),
    ],
)
def test_what_linux_gives(tmp_path: Path, files: dict[str, str], wanted: bool) -> None:
    if files:
        (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    for name, text in files.items():
        path = tmp_path / name / "enabled" if name.startswith("hugepages") else tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert pages.size_on_request(tmp_path) == (2 * MEGABYTE if wanted else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own words")
def test_this_linux_is_understood() -> None:
    setting = pages._SETTINGS / "enabled"
    if not setting.exists():
        pytest.skip("a Linux without large pages")
    assert pages._chosen(setting) in setting.read_text().replace("[", "").replace("]", "").split()
