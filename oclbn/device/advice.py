"""Why an installed driver offers no device or builds nothing: what its settings, its folders and user's rights say.

Asks no driver: names, versions and the environment in, a sentence for the reader out ("" where nothing is known).
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_SEARCHED = ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH")  # folders where loaders look for drivers, instead of
ELSEWHERE = "drivers were looked for only where the environment says"  # and none would be found that is installed
_VENDORS = Path("/etc/OpenCL/vendors")
_NODES = ("dri/renderD*", "kfd", "nvidia[0-9]*")  # what drivers of GPUs open


def for_platform(name: str, version: str, environment: Mapping[str, str]) -> str:
    """Why a platform of this name and version may list no device."""
    named = f"{name} {version}".lower()
    if "pocl" in named or "portable computing language" in named:
        return _pocl(environment)
    if "rusticl" in named:
        return _rusticl(environment)
    return _gpu_nodes()


def for_no_platform(environment: Mapping[str, str]) -> str:
    """Where the loader was told to look for drivers, if it found none at all."""
    told = [f"{name}={environment[name]!r}" for name in _SEARCHED if name in environment]
    return f"{ELSEWHERE}: {', '.join(told)}; unset it, or name a folder that has drivers" if told else ""


def of_unloadable(environment: Mapping[str, str], vendors: Path = _VENDORS) -> list[str]:
    """Installed drivers whose libraries cannot be loaded, so that they are no platforms; why is the system's word."""
    if os.name != "posix":
        return []
    places = [Path(environment[name]) for name in _SEARCHED if environment.get(name)] or [vendors]
    found = []
    for file in sorted(file for place in places for file in ([place] if place.is_file() else place.glob("*.icd"))):
        try:
            library = file.read_text(errors="replace").strip()
            ctypes.CDLL(library, mode=os.RTLD_LAZY)  # the loader has done the same
        except OSError as error:
            found.append(f"{file} names a driver that cannot be loaded: {error}")
    return found


def of_kernel_cache(environment: Mapping[str, str]) -> str:
    """What keeps POCL from writing what it compiles: without that it lists no device, or builds nothing."""
    folder, origin = _kernel_cache(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return (
            f"POCL cannot write what it compiles to {folder} ({origin}): {error.strerror}; "
            "set POCL_CACHE_DIR to a folder that can be written to"
        )


def _kernel_cache(environment: Mapping[str, str]) -> tuple[Path, str]:
    if folder := environment.get("POCL_CACHE_DIR"):
        return Path(folder), "POCL_CACHE_DIR"
    if folder := environment.get("XDG_CACHE_HOME"):
        return Path(folder, "pocl", "kcache"), "XDG_CACHE_HOME"
    if folder := environment.get("HOME"):
        return Path(folder, ".cache", "pocl", "kcache"), "its default"
    return Path(tempfile.gettempdir(), "pocl", "kcache"), "its default without HOME"


def _pocl(environment: Mapping[str, str]) -> str:
    found = [of_kernel_cache(environment)] if sys.platform != "win32" else []
    if "POCL_DEVICES" in environment:
        found.append(
            f"POCL_DEVICES is {environment['POCL_DEVICES']!r}, and it offers only devices named there; unset it, "
            "or name the processor: pthread (from POCL 5 on: cpu)"
        )
    return "; ".join(filter(None, found)) or "POCL_DEBUG=all makes it say why"


def _rusticl(environment: Mapping[str, str]) -> str:
    enabled = environment.get("RUSTICL_ENABLE", "")
    told = f"RUSTICL_ENABLE is {enabled!r}, and no driver named there finds a device" if enabled else ""
    return (
        told or "RUSTICL_ENABLE is not set, which leaves it switched off"
    ) + "; RUSTICL_ENABLE=llvmpipe offers the processor; for GPUs of Intel it is iris, for those of AMD radeonsi"


def _gpu_nodes(devices: Path = Path("/dev")) -> str:
    if sys.platform != "linux":
        return ""
    nodes = sorted(node for pattern in _NODES for node in devices.glob(pattern))
    shut = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if not nodes:
        return f"no GPU is to be seen: {devices} has no dri/renderD*, kfd or nvidia0; a container has to be given them"
    if shut:
        return f"this user may not open {', '.join(shut)}; its group (often render or video) may"
    return ""
