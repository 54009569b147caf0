"""The mended processor name of a POCL that is older than the processor."""

from __future__ import annotations

import ctypes
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
