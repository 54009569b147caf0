"""Batch normalization for every OpenCL device, on pyopencl.array.Array.

Modules with state: BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND. The same maths without state:
oclbn.functional. Arrays on the default device: oclbn.gpuarray. Devices and queues: oclbn.device. What can go wrong:
oclbn.errors. Nothing here touches a device before it is used.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from oclbn import functional, gpuarray
from oclbn.batchnorm import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND

__all__ = ["BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "BatchNormND", "functional", "gpuarray"]


def _version() -> str:
    try:
        return metadata.version("oclbn")
    except metadata.PackageNotFoundError:  # a checkout that is not installed, or a copy of this folder alone
        project = Path(__file__).parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.is_file() else "unknown"


__version__ = _version()
