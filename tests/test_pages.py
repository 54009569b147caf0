"""Large pages: requested under what is large and new on a processor, asked of nobody else, and waited for by nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

from oclbn import gpuarray, pages
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind

ROWS, CHANNELS = 2048, 4099  # 32 MiB and a little more


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    pages._least.cache_clear()
    yield
    pages._least.cache_clear()


@pytest.fixture
def granting(queue: cl.CommandQueue) -> None:
    """A device and a Linux that large pages are requested of."""
    if pages._least(queue.device, False) == float("inf"):
        pytest.skip("no large pages are requested here: another driver, or another setting of Linux")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First byte and number of bytes of what large pages are requested for, by any device that has these drivers."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda begin, size, advice: found.append((begin, size)))
    monkeypatch.setattr(pages, "given_on_request", lambda: True)
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
    """What lies in an array alone, in whole pages; of other drivers and under small arrays nothing."""
    x = gpuarray.to_gpu(np.ones((ROWS, CHANNELS), np.float32), queue=queue)
    results = [x]
    if pages._least(queue.device, True) <= x.nbytes:
        y, *_ = batch_norm_train(x, None, None, None, None)
        bound, *_ = bind(batch_norm_train, x, None, None, None, None)()
        results += [y, bound]
        assert len(requests) == 3
        for (begin, size), array in zip(requests, results, strict=True):
            start = address(array)
            assert start <= begin < start + 4096
            assert start + array.nbytes - 4096 < begin + size <= start + array.nbytes
    else:
        assert not requests
    requests.clear()
    small = gpuarray.ones((2, 3), queue=queue)
    gpuarray.empty((0, 3), queue=queue)
    batch_norm_train(small, None, None, None, None)
    batch_norm_train(x, None, None, None, None, out=gpuarray.zeros_like(x))
    tools: Any = cl.tools
    pooled = cla.to_device(queue, x.get(), allocator=tools.MemoryPool(tools.ImmediateAllocator(queue)))
    batch_norm_train(pooled, None, None, None, None)
    assert not requests


@pytest.mark.usefixtures("granting")
def test_it_can_be_switched_off(
    queue: cl.CommandQueue, requests: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCLBN_LARGE_PAGES", "0")
    pages._least.cache_clear()
    gpuarray.to_gpu(np.ones((ROWS, CHANNELS), np.float32), queue=queue)
    assert not requests


@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "out of order"])
def test_nobody_waits(queue: cl.CommandQueue, free_queue: cl.CommandQueue, ordered: bool) -> None:
    """A call returns while what it waits for is still to come, and takes its turn all the same."""
    chosen = queue if ordered else free_queue
    host = np.tile(np.float32([[1], [3]]), (ROWS // 2, CHANNELS))
    x, new = (cla.to_device(chosen, values) for values in (host, host * 2))
    mean, var = (cla.to_device(chosen, np.full(CHANNELS, value, np.float32)) for value in (4, 4))
    gate = cl.UserEvent(chosen.context)
    source: Any = new.base_data
    target: Any = x.base_data
    x.add_event(cl.enqueue_copy(chosen, target, source, byte_count=x.nbytes, wait_for=[gate]))
    try:
        y = batch_norm_infer(x, None, None, mean, var, epsilon=0.0)
        assert gate.command_execution_status != cl.command_execution_status.COMPLETE
    finally:
        gate.set_status(cl.command_execution_status.COMPLETE)
    np.testing.assert_array_equal(y.get(), host - 2)


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
    assert pages.given_on_request(tmp_path) is wanted


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own words")
def test_this_linux_is_understood() -> None:
    setting = pages._SETTINGS / "enabled"
    if not setting.exists():
        pytest.skip("a Linux without large pages")
    assert pages._chosen(setting) in setting.read_text().replace("[", "").replace("]", "").split()
