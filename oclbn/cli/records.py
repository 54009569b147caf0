"""What the JSON documents of the commands have in common: versions, devices, and how values are written."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn import __version__
from oclbn.device import DeviceInfo

SCHEMA = 4  # of all documents: goes up when a key goes away or changes its meaning


def versions() -> dict[str, str]:
    """Of what each command runs on, under the names that package indices have for it; drivers stand with devices."""
    return {
        "oclbn": __version__,
        "python": platform.python_version(),
        "pyopencl": str(cl.VERSION_TEXT),
        "numpy": np.__version__,
    }


def of_device(info: DeviceInfo) -> dict[str, Any]:
    """What a device is called, what drives it, and its limits: sizes in bytes, counts."""
    return {
        "index": info.spec,
        "name": info.name,
        "runtime": info.runtime,
        "platform": info.platform,
        "platform_version": info.platform_version,
        "driver": info.driver,
        "simulator": info.simulator,
        **dataclasses.asdict(info.limits),
    }


def plain(value: Any) -> Any:
    """The value as JSON has it: null for NaN and infinities, lists for arrays and tuples, texts for paths."""
    if isinstance(value, DeviceInfo):
        return plain(of_device(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value
