"""Ranking and matching of devices: which one is meant. Needs no device."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pyopencl as cl
import pytest

from oclbn.device import DeviceInfo
from oclbn.device.selection import choose, choose_pyopencl, classify, rank, resolve
from oclbn.errors import DeviceNotFoundError, OclbnError
from oclbn.plan.words import DeviceLimits

CPU, GPU, ACCELERATOR = 2, 4, 8


def fake(
    spec: str,
    name: str,
    platform: str,
    *,
    type_bits: int = CPU,
    units: int = 8,
    version: str = "OpenCL 3.0",
    driver: str = "1.0",
) -> DeviceInfo:
    kind, simulator = classify(type_bits, name, platform)
    facts = DeviceLimits(
        kind=kind,
        compute_units=units,
        max_group=256,
        local_bytes=32768,
        cache_bytes=0,
        memory_bytes=1 << 30,
        max_alloc_bytes=1 << 28,
        fp64=True,
        fp16=False,
    )
    platform_index, device_index = map(int, spec.split(":"))
    return DeviceInfo(
        platform_index=platform_index,
        device_index=device_index,
        name=name,
        platform=platform,
        platform_version=version,
        driver=driver,
        kind=kind,
        simulator=simulator,
        limits=facts,
        device=cast(cl.Device, None),
    )


OCLGRIND = fake("0:0", "Oclgrind Simulator", "Oclgrind", type_bits=15, units=1, driver="Oclgrind 21.10")
POCL_31 = fake("1:0", "pthread-AMD EPYC", "Portable Computing Language", version="OpenCL 3.0 PoCL 3.1", driver="3.1")
LLVMPIPE = fake("2:0", "llvmpipe (LLVM 15.0.6)", "rusticl", type_bits=GPU, units=64, driver="22.3.6")
POCL_30 = fake("3:0", "pthread-AMD EPYC", "Portable Computing Language", version="OpenCL 3.0 PoCL 3.0", driver="3.0")
RADEON = fake("5:0", "gfx1030", "AMD Accelerated Parallel Processing", type_bits=GPU, units=40)
RADEON_SMALL = fake("5:1", "gfx1036", "AMD Accelerated Parallel Processing", type_bits=GPU, units=2)
FPGA = fake("6:0", "Stratix board", "FPGA SDK", type_bits=ACCELERATOR, units=1)
EMULATION = fake(
    "7:0", "Intel(R) FPGA Emulation Device", "Intel(R) FPGA Emulation Platform", type_bits=ACCELERATOR, units=16
)
BIG_CPU = fake("8:0", "Xeon", "Intel(R) OpenCL", units=96)
INTEL_CPU = fake("9:0", "AMD EPYC", "Intel(R) OpenCL", version="OpenCL 3.1 LINUX", driver="2026.22.10.0.01_160000")
LISTED = (OCLGRIND, POCL_31, LLVMPIPE, POCL_30, RADEON, RADEON_SMALL, FPGA, EMULATION, BIG_CPU)


@pytest.mark.parametrize(
    ("type_bits", "name", "platform", "expected"),
    [
        pytest.param(CPU, "pthread", "Portable Computing Language", ("cpu", False), id="cpu"),
        pytest.param(GPU, "gfx1030", "AMD", ("gpu", False), id="gpu"),
        pytest.param(ACCELERATOR, "board", "FPGA SDK", ("accelerator", False), id="accelerator"),
        pytest.param(CPU | 1, "pthread", "POCL", ("cpu", False), id="the default bit says nothing about the kind"),
        pytest.param(15, "a device", "a platform", ("gpu", True), id="several types at once"),
        pytest.param(CPU, "a device", "Oclgrind", ("cpu", True), id="simulator by its platform's name"),
        pytest.param(GPU, "Some Simulator", "a platform", ("gpu", True), id="simulator by its own name"),
        pytest.param(ACCELERATOR, "FPGA Emulation Device", "Intel", ("accelerator", True), id="emulation"),
        pytest.param(GPU, "llvmpipe (LLVM 15)", "rusticl", ("cpu", False), id="a rasteriser that says gpu"),
        pytest.param(CPU, "llvmpipe (LLVM 15)", "rusticl", ("cpu", False), id="a rasteriser that says cpu"),
        pytest.param(1, "a device", "a platform", ("accelerator", False), id="no type at all"),
    ],
)
def test_classify(type_bits: int, name: str, platform: str, expected: tuple[str, bool]) -> None:
    assert classify(type_bits, name, platform) == expected


def test_ranking_of_everything() -> None:
    expected = [RADEON, RADEON_SMALL, FPGA, BIG_CPU, POCL_31, POCL_30, LLVMPIPE, OCLGRIND, EMULATION]
    assert list(rank(LISTED)) == expected


@pytest.mark.parametrize("listed", [(POCL_31, POCL_30), (POCL_30, POCL_31)], ids=["3.1 first", "3.0 first"])
def test_equals_keep_the_order_of_the_listing(listed: tuple[DeviceInfo, ...]) -> None:
    assert rank(listed) == listed


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param("5:1", RADEON_SMALL, id="index"),
        pytest.param(" 5:1 ", RADEON_SMALL, id="blanks around an index"),
        pytest.param("1", POCL_31, id="a platform with one device"),
        pytest.param("gpu", RADEON, id="best gpu"),
        pytest.param("CPU", BIG_CPU, id="best cpu, in capitals"),
        pytest.param("accelerator", FPGA, id="best accelerator"),
        pytest.param("GFX1036", RADEON_SMALL, id="part of a device's name, any case"),
        pytest.param("rusticl", LLVMPIPE, id="a platform's name"),
        pytest.param("pocl 3.0", POCL_30, id="part of a platform's version"),
        pytest.param("oclgrind", OCLGRIND, id="a simulator that is asked for by name"),
        pytest.param("0:0", OCLGRIND, id="a simulator that is asked for by index"),
    ],
)
def test_choose(spec: str, expected: DeviceInfo) -> None:
    assert choose(LISTED, spec, "origin") is expected


@pytest.mark.parametrize(
    ("version", "driver", "platform", "runtime"),
    [
        ("OpenCL 3.0 PoCL 3.1+debian Linux, None+Asserts, LLVM 15.0.6", "3.1+debian", "", "PoCL 3.1+debian"),
        ("OpenCL 3.0 PoCL 3.0-rc2 Linux, Release", "3.0-rc2", "", "PoCL 3.0-rc2"),
        ("OpenCL 3.0 PoCL 3.0 Linux, Release", "3.0", "", "PoCL 3.0"),
        ("OpenCL 1.2 (Oclgrind 21.10)", "Oclgrind 21.10", "Oclgrind", "Oclgrind 21.10"),
        ("OpenCL 3.0", "22.3.6", "rusticl", "rusticl 22.3.6"),
        ("OpenCL 3.1 LINUX", "2026.22.10.0.01_160000", "Intel(R) OpenCL", "Intel(R) OpenCL 2026.22.10.0.01_160000"),
        ("OpenCL 3.0 CUDA 12.2.138", "535.104.05", "NVIDIA CUDA", "NVIDIA CUDA 535.104.05"),
        ("OpenCL 2.1 AMD-APP (3558.0)", "3558.0 (HSA1.1,LC)", "AMD-APP", "AMD-APP 3558.0 (HSA1.1,LC)"),
        ("OpenCL 3.0", "", "a platform", "a platform"),
    ],
)
def test_the_runtime_is_a_name_and_a_version(version: str, driver: str, platform: str, runtime: str) -> None:
    assert fake("0:0", "a device", platform, version=version, driver=driver).runtime == runtime


@pytest.mark.parametrize("info", LISTED, ids=lambda info: info.name)
def test_a_title_and_an_index_select_their_device(info: DeviceInfo) -> None:
    assert choose(LISTED, info.spec, "origin") is info
    assert choose(LISTED, info.title, "origin") is info
    assert choose(LISTED, f"  {info.spec}   {info.name} ".upper(), "origin") is info


def test_a_title_of_yesterday_selects_no_other_device() -> None:
    with pytest.raises(DeviceNotFoundError, match="fits no device"):
        choose(LISTED, POCL_31.title.replace(POCL_31.spec, POCL_30.spec), "origin")


def test_a_whole_name_goes_before_a_part_of_others() -> None:
    listed = (INTEL_CPU, POCL_31, POCL_30)
    assert choose(listed, "amd epyc", "origin") is INTEL_CPU
    assert choose(listed, INTEL_CPU.runtime, "origin") is INTEL_CPU
    with pytest.raises(DeviceNotFoundError, match="fits 3 devices"):
        choose(listed, "epyc", "origin")


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        pytest.param("4", "fits no device", id="a platform without devices"),
        pytest.param("9", "fits no device", id="a platform that is not there"),
        pytest.param("1036", "fits no device", id="digits are an index, never a part of a name"),
        pytest.param("1:1", "fits no device", id="a device that is not there"),
        pytest.param("5", "fits 2 devices", id="a platform with two devices"),
        pytest.param("geforce", "fits no device", id="a name that nothing has"),
        pytest.param("portable", "fits 2 devices", id="a name that two have"),
        pytest.param("", "fits no device", id="empty"),
        pytest.param("  ", "fits no device", id="blank"),
        pytest.param("-1", "fits no device", id="a negative index"),
        pytest.param("0:0:0", "fits no device", id="three indices"),
    ],
)
def test_a_choice_that_is_none_lists_all_devices(spec: str, fault: str) -> None:
    with pytest.raises(DeviceNotFoundError) as caught:
        choose(LISTED, spec, f"argument device={spec!r}")
    first, second, *rows = str(caught.value).splitlines()
    assert first == f"argument device={spec!r} {fault}"
    assert second.startswith("Select one of these by its index P:D or by a part of its name")
    assert [row.lstrip("* ").split()[0] for row in rows] == [info.spec for info in LISTED]
    assert all(info.name in row and info.runtime in row for info, row in zip(LISTED, rows, strict=True))


def test_the_error_marks_what_fits() -> None:
    with pytest.raises(DeviceNotFoundError) as caught:
        choose(LISTED, "portable", "origin")
    marked = [row.split()[1] for row in str(caught.value).splitlines() if row.startswith("*")]
    assert marked == [POCL_31.spec, POCL_30.spec]
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, OclbnError)


@pytest.mark.parametrize(
    ("listed", "spec"),
    [
        pytest.param((OCLGRIND,), "gpu", id="a simulator is no gpu"),
        pytest.param((EMULATION, POCL_31), "accelerator", id="an emulation is no accelerator"),
        pytest.param((POCL_31, LLVMPIPE), "gpu", id="a rasteriser is no gpu"),
        pytest.param((RADEON,), "cpu", id="a gpu is no cpu"),
        pytest.param((POCL_31,), "", id="empty, although there is only one device"),
    ],
)
def test_never_another_device_silently(listed: tuple[DeviceInfo, ...], spec: str) -> None:
    with pytest.raises(DeviceNotFoundError, match="fits no device"):
        choose(listed, spec, "origin")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param("1", POCL_31, id="platform index"),
        pytest.param("5:1", RADEON_SMALL, id="both indices"),
        pytest.param("rusticl", LLVMPIPE, id="platform name"),
        pytest.param("pocl 3.1", POCL_31, id="platform version"),
        pytest.param("AMD:gfx1036", RADEON_SMALL, id="names of platform and device"),
        pytest.param("amd acc:1", RADEON_SMALL, id="name and index"),
        pytest.param("5:gfx1030", RADEON, id="index and name"),
        pytest.param("5:", RADEON, id="an empty device is device 0"),
        pytest.param(":0", OCLGRIND, id="an empty platform is platform 0"),
        pytest.param(":", OCLGRIND, id="all empty"),
    ],
)
def test_choose_as_pyopencl_reads_it(spec: str, expected: DeviceInfo) -> None:
    assert choose_pyopencl(LISTED, spec, "origin") is expected


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        pytest.param("gpu", "fits no device", id="types are not pyopencl's"),
        pytest.param("5", "fits 2 devices", id="a platform with two devices"),
        pytest.param("5:0,1", "fits no device", id="several devices"),
        pytest.param("portable:0", "fits 2 devices", id="two platforms of one name"),
        pytest.param("gfx1030:0", "fits no device", id="a device's name in the platform's place"),
        pytest.param("5:9", "fits no device", id="a device that is not there"),
    ],
)
def test_pyopencl_choice_that_is_none(spec: str, fault: str) -> None:
    with pytest.raises(DeviceNotFoundError, match=f"^origin {fault}\n"):
        choose_pyopencl(LISTED, spec, "origin")


@pytest.mark.parametrize(
    ("spec", "environment", "expected", "origin"),
    [
        pytest.param(
            "1:0", {"OCLBN_DEVICE": "2:0", "PYOPENCL_CTX": "3"}, POCL_31, "argument device='1:0'", id="argument first"
        ),
        pytest.param(
            None,
            {"OCLBN_DEVICE": "2:0", "PYOPENCL_CTX": "3"},
            LLVMPIPE,
            "environment variable OCLBN_DEVICE='2:0'",
            id="then OCLBN_DEVICE",
        ),
        pytest.param(
            None, {"PYOPENCL_CTX": "3"}, POCL_30, "environment variable PYOPENCL_CTX='3'", id="then PYOPENCL_CTX"
        ),
        pytest.param(None, {}, RADEON, "ranking", id="then the ranking"),
        pytest.param(None, {"OCLBN_DEVICE": "", "PYOPENCL_CTX": " "}, RADEON, "ranking", id="empty is not given"),
    ],
)
def test_order_of_sources(spec: str | None, environment: dict[str, str], expected: DeviceInfo, origin: str) -> None:
    assert resolve(LISTED, spec, environment) == (expected, origin)


@pytest.mark.parametrize("variable", ["OCLBN_DEVICE", "PYOPENCL_CTX"])
def test_the_error_names_the_variable(variable: str) -> None:
    with pytest.raises(DeviceNotFoundError, match=f"^environment variable {variable}='geforce' fits no device\n"):
        resolve(LISTED, None, {variable: "geforce"})


@pytest.mark.parametrize("spec", [None, "gpu", "0:0"])
def test_no_device_says_how_to_get_one(spec: str | None) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"no OpenCL device found.*pip install 'oclbn\[pocl\]'"):
        resolve((), spec, {"OCLBN_DEVICE": "gpu"})


def test_info_shows_and_compares_without_its_handle() -> None:
    assert replace(RADEON, device=cast(cl.Device, object())) == RADEON
    assert "device=" not in repr(RADEON)
    assert RADEON.spec == "5:0"
