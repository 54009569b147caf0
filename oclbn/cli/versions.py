"""What `oclbn --version` tells: the versions of all that takes part, for a bug report."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import pyopencl as cl

from oclbn import __version__, device
from oclbn.device.selection import WITHOUT_DEVICES


def lines() -> Iterator[str]:
    """The report, line by line; platforms and their drivers last, none of which has to be there."""
    yield f"oclbn, version {__version__}"
    yield f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    yield f"pyopencl {cl.VERSION_TEXT}, NumPy {np.__version__}"
    yield ", ".join(f"{name} {metadata.version(name)}" for name in ("click", "rich"))
    listed = device.devices()
    yield "OpenCL devices:" if listed else "OpenCL devices: none"
    for info in listed:
        yield f"  {info.spec} {info.name}"
        yield f"      {info.platform}, {info.platform_version}, driver {info.driver}"
    lacking = device.without_devices()
    if lacking:
        yield f"{WITHOUT_DEVICES}:"
    for line in lacking:
        yield f"  {line}"
