"""What is installed and offers no device: it is named, with what it says and with advice that helps."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyopencl as cl
import pytest
from click.testing import CliRunner

import oclbn.device
from oclbn.cli.group import oclbn as command
from oclbn.device import advice, listing
from oclbn.errors import BuildError, DeviceNotFoundError

PORTABLE, POCL = "Portable Computing Language", "OpenCL 3.0 PoCL 3.1"


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, without this one's selection."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OCLBN_DEVICE", "PYOPENCL_CTX")}
    return subprocess.run(
        [sys.executable, "-c", script], env=kept | environment, capture_output=True, text=True, timeout=120, check=False
    )


# ---- the advice


def test_a_driver_of_pocl_that_does_not_exist(tmp_path: Path) -> None:
    told = advice.for_platform(PORTABLE, POCL, {"POCL_CACHE_DIR": str(tmp_path), "POCL_DEVICES": "ptread"})
    assert told.startswith("POCL_DEVICES is 'ptread'")
    assert "pthread" in told
    assert "POCL_DEVICES is ''" in advice.for_platform(
        PORTABLE, POCL, {"POCL_CACHE_DIR": str(tmp_path), "POCL_DEVICES": ""}
    )


@pytest.mark.parametrize(
    ("variable", "below"),
    [("POCL_CACHE_DIR", ""), ("XDG_CACHE_HOME", "pocl/kcache"), ("HOME", ".cache/pocl/kcache")],
)
def test_a_folder_that_cannot_be_made(tmp_path: Path, variable: str, below: str) -> None:
    file = tmp_path / "a file"
    file.touch()
    told = advice.of_kernel_cache({variable: str(file / "folder")})
    assert str(file / "folder" / below) in told
    assert "Not a directory" in told
    assert "set POCL_CACHE_DIR" in told
    assert advice.of_kernel_cache({variable: str(tmp_path / "folder")}) == ""
    assert told in advice.for_platform(PORTABLE, POCL, {variable: str(file / "folder")})


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "Permission denied" in advice.of_kernel_cache({"POCL_CACHE_DIR": str(tmp_path)})


def test_pocl_without_a_known_cause(tmp_path: Path) -> None:
    assert "POCL_DEBUG" in advice.for_platform(PORTABLE, POCL, {"POCL_CACHE_DIR": str(tmp_path)})


def test_rusticl_is_to_be_told_its_drivers() -> None:
    assert advice.for_platform("rusticl", "OpenCL 3.0", {}).startswith("RUSTICL_ENABLE is not set")
    assert advice.for_platform("rusticl", "OpenCL 3.0", {"RUSTICL_ENABLE": ""}).startswith("RUSTICL_ENABLE is not set")
    assert "RUSTICL_ENABLE=llvmpipe offers the processor" in advice.for_platform("rusticl", "OpenCL 3.0", {})
    assert "'lvmpipe'" in advice.for_platform("rusticl", "OpenCL 3.0", {"RUSTICL_ENABLE": "lvmpipe"})


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_gpus_that_nobody_sees_or_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no GPU is to be seen" in advice._gpu_nodes(tmp_path)
    (tmp_path / "dri").mkdir()
    node = tmp_path / "dri" / "renderD128"
    node.touch()
    assert advice._gpu_nodes(tmp_path) == ""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"may not open {node}" in advice._gpu_nodes(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs vendors' files")
def test_a_driver_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.icd").write_text(f"{tmp_path}/libdriver.so\n")
    (tmp_path / "good.icd").write_text(cl._cl.__file__)
    (line,) = advice.of_unloadable({}, tmp_path)
    assert line.startswith(f"{tmp_path}/broken.icd names a driver that cannot be loaded: ")
    assert f"{tmp_path}/libdriver.so" in line
    assert advice.of_unloadable({"OCL_ICD_VENDORS": str(tmp_path)}, tmp_path / "elsewhere") == [line]
    assert advice.of_unloadable({"OCL_ICD_VENDORS": str(tmp_path / "broken.icd")}) == [line]


# ---- platforms that raise or are empty


class Platform:
    """One whose listing fails, or is empty."""

    def __init__(self, name: str, fails: bool) -> None:
        self.name, self.version, self._fails = name, "OpenCL 3.0 of mine", fails

    def get_devices(self) -> list[Any]:
        if self._fails:
            raise cl.RuntimeError(cl._cl._ErrorRecord("clGetDeviceIDs", cl.status_code.OUT_OF_HOST_MEMORY, ""))
        return []


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A broken platform and an empty one; more may be put behind them."""
    platforms: list[Any] = [Platform("Broken", True), Platform("rusticl", False)]
    monkeypatch.setattr(cl, "get_platforms", lambda: platforms)
    monkeypatch.setattr(advice, "of_unloadable", lambda *_: [])
    for name in ("RUSTICL_ENABLE", "OCLBN_DEVICE", "PYOPENCL_CTX"):
        monkeypatch.delenv(name, raising=False)
    return platforms


WORDS = (
    "Broken (OpenCL 3.0 of mine) cannot list its devices: clGetDeviceIDs failed: OUT_OF_HOST_MEMORY",
    "rusticl (OpenCL 3.0 of mine) lists no device: RUSTICL_ENABLE is not set",
)


@pytest.mark.usefixtures("poor")
def test_installed_drivers_are_not_to_be_installed_again() -> None:
    with pytest.raises(DeviceNotFoundError) as caught:
        oclbn.device.select()
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("no OpenCL device found. Likely causes:")
    assert all(line.startswith(words) for line, words in zip(lines, (*WORDS, "For the processor: pip"), strict=True))
    assert "install the OpenCL driver" not in str(caught.value)


def test_pocl_is_not_to_be_installed_where_it_is(poor: list[Any], tmp_path: Path) -> None:
    poor[0].name, poor[0].version = PORTABLE, POCL
    with pytest.raises(DeviceNotFoundError) as caught:
        oclbn.device.select()
    assert "pip install" not in str(caught.value)


def test_the_others_devices_are_there(poor: list[Any], queue: cl.CommandQueue) -> None:
    poor.append(queue.device.platform)
    found = oclbn.device.select(queue.device)
    assert found.platform_index == 2
    for spec in ("broken", "0", "rusticl"):
        if spec in f"{found.name} {found.platform}".lower():
            continue  # rusticl's own device, here
        with pytest.raises(DeviceNotFoundError) as caught:
            oclbn.device.select(spec)
        message = str(caught.value)
        assert found.name in message
        assert all(words in message for words in WORDS)


def test_the_other_devices_of_a_platform_are_there(
    poor: list[Any], queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor.append(queue.device.platform)
    right = listing._info

    def failing(platform: int, index: int, device: cl.Device) -> Any:
        if device != queue.device:
            return right(platform, index, device)
        raise cl.RuntimeError(cl._cl._ErrorRecord("clGetDeviceInfo", cl.status_code.OUT_OF_HOST_MEMORY, ""))

    monkeypatch.setattr(listing, "_info", failing)
    assert len(oclbn.device.devices()) == len(queue.device.platform.get_devices()) - 1
    assert any("cannot be described: clGetDeviceInfo failed" in line for line in oclbn.device.without_devices())


def test_a_loader_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[Any]:
        raise cl.RuntimeError(cl._cl._ErrorRecord("clGetPlatformIDs", cl.status_code.OUT_OF_HOST_MEMORY, ""))

    monkeypatch.setattr(cl, "get_platforms", fails)
    assert oclbn.device.devices() == ()
    with pytest.raises(DeviceNotFoundError, match="clGetPlatformIDs failed: OUT_OF_HOST_MEMORY"):
        oclbn.device.select()


def test_the_listing_shows_them(poor: list[Any], queue: cl.CommandQueue) -> None:
    poor.append(queue.device.platform)
    result = CliRunner().invoke(command, ["devices"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    words = " ".join(result.stdout.split())
    assert "Installed, but without a device:" in words
    assert all(" ".join(told.split()) in words for told in WORDS)


@pytest.mark.usefixtures("poor")
@pytest.mark.parametrize("arguments", [["devices"], ["check"], ["check", "--all"], ["tune", "--all"], ["demo"]])
def test_every_command_says_so_where_there_is_no_device(arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 1
    assert "no OpenCL device found. Likely causes:" in result.stderr
    assert all(words in result.stderr for words in WORDS)


# ---- real drivers


@pytest.fixture
def pocl(queue: cl.CommandQueue) -> str:
    """The version of the POCL under test."""
    version = queue.device.platform.version
    if "pocl" not in version.lower():
        pytest.skip("needs POCL")
    return " ".join(version.partition("  ")[0].split())


LISTED = "from oclbn import device\nprint(*(info.platform_version for info in device.devices()), sep='\\n')\n"
TOLD = "print('---', *device.without_devices(), sep='\\n')"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("POCL_DEVICES", "ptread", "POCL_DEVICES is 'ptread'"),
        ("POCL_CACHE_DIR", "/proc/oclbn/kcache", "to /proc/oclbn/kcache (POCL_CACHE_DIR): No such file"),
    ],
)
def test_pocl_that_lists_no_device(pocl: str, variable: str, value: str, says: str) -> None:
    done = python(LISTED + TOLD, **{variable: value})
    assert done.returncode == 0, done.stderr
    listed, _, told = done.stdout.partition("---")
    assert pocl not in listed
    assert any(pocl in line and says in line for line in told.splitlines()), told


def test_a_build_where_pocl_cannot_write(queue: cl.CommandQueue, pocl: str, tmp_path: Path, spec: str) -> None:
    """It is not the kernel's fault, so that the kernel is not shown."""
    del pocl
    file = tmp_path / "a file"
    file.touch()
    script = f"""
from oclbn import device, functional, gpuarray
functional.moments(gpuarray.zeros((2, 3), queue=device.queue_for({spec!r})))
"""
    done = python(script, POCL_CACHE_DIR=str(file))
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if line.startswith(f"oclbn.errors.{BuildError.__name__}")]
    assert f"POCL cannot write what it compiles to {file} (POCL_CACHE_DIR)" in message
    assert "#define" not in done.stderr


def test_a_search_that_was_sent_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> list[Any]:
        raise cl.LogicError(cl._cl._ErrorRecord("clGetPlatformIDs", cl.status_code.PLATFORM_NOT_FOUND_KHR, ""))

    monkeypatch.setattr(cl, "get_platforms", none)
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))
    with pytest.raises(DeviceNotFoundError, match=f"Likely causes:\n.*OCL_ICD_VENDORS='{tmp_path}'") as caught:
        oclbn.device.select()
    assert str(caught.value).endswith("; unset it, or name a folder that has drivers")
    assert "pip" not in str(caught.value), "what would come in is looked for elsewhere"
