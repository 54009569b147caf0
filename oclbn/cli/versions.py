"""What `oclbn --version` tells: the versions of all that takes part, for a bug report."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from rich.console import Console

from oclbn.cli import records, survey
from oclbn.cli.grid import print_hanging
from oclbn.cli.survey import Survey
from oclbn.device.selection import WITHOUT_DEVICES

COMMAND = ("click", "rich", "tomlkit")
OPTIONAL = (  # of which each is looked up, and none imported; names as package indices have them
    "ml-dtypes",
    "h5py",
    "safetensors",
    "onnx",
    "msgpack",
    "matplotlib",
    "scikit-learn",
    "mpi4py",
    "mpich",
    "pocl-binary-distribution",
    "torch",
    "tinygrad",
    "onnxruntime",
    "onednn-cpu-gomp",
    "mako",
)


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those of these distributions that are there."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def system() -> str:
    """The operating system, its version, and the processor's kind."""
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def lines() -> Iterator[str]:
    """The report, line by line; platforms and their drivers last, which are asked when all else has been told."""
    core = records.versions()
    yield f"oclbn, version {core['oclbn']}"
    yield f"Python {core['python']} on {system()}"
    yield f"pyopencl {core['pyopencl']}, NumPy {core['numpy']}"
    yield _listed(installed(COMMAND))
    yield f"Optional packages: {_listed(installed(OPTIONAL)) or 'none'}"
    yield from _opencl(survey.asked())


def print_lines(console: Console) -> None:
    """The report, a line as soon as it is known: devices take their time."""
    for line in lines():
        print_hanging(console, line, " " * (len(line) - len(line.lstrip()) + 2))


def document() -> dict[str, Any]:
    """The same, for output.print_json, which adds what every document has."""
    found = survey.asked()
    return {
        "system": system(),
        "packages": installed(COMMAND + OPTIONAL),
        "opencl_loader": found.loader or None,
        "devices": found.devices,
        "without_devices": found.without_devices,
        "fault": found.fault or None,
    }


def _opencl(found: Survey) -> Iterator[str]:
    if found.fault:
        yield f"OpenCL devices: unknown, {found.fault}"
        return
    if found.loader:
        yield f"OpenCL loader: {found.loader}"
    yield "OpenCL devices:" if found.devices else "OpenCL devices: none"
    for told in found.devices:
        yield f"  {told['index']} {told['name']}"
        yield f"      {told['platform']}, {told['platform_version']}, driver {told['driver']}"
    if found.without_devices:
        yield f"{WITHOUT_DEVICES}:"
    for line in found.without_devices:
        yield f"  {line}"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
