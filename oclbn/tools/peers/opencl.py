"""The OpenCL peers' device: the very one that oclbn is timed on, found again in another process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from oclbn.tools.peers.contract import Case, Declined


def find(case: Case, platforms: list[Any]) -> Any:
    """That device among pyopencl's platforms; Declined if this interpreter does not see it."""
    for platform in platforms:
        if " ".join(platform.version.split()) != case.device["version"]:
            continue
        for device in platform.get_devices():
            if " ".join(device.name.split()) == case.device["device"]:
                mend(device)
                return device
    raise Declined(f"this interpreter's pyopencl does not see {case.device['device']}, {case.device['version']}")


def mend(device: Any) -> None:
    """What oclbn.device.pocl does for a POCL that is older than the processor; by path, as oclbn may not be here."""
    path = Path(__file__).resolve().parents[2] / "device" / "pocl.py"
    spec: Any = importlib.util.spec_from_file_location("oclbn_pocl", path)
    pocl = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pocl)
    pocl.mend_target(device)
