"""What a device can do, and the names that choices for it are found by."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pyopencl as cl

from oclbn.device.pocl import mend_target, widest_vector
from oclbn.device.selection import classify
from oclbn.errors import SizeError
from oclbn.plan.words import DeviceLimits

# Bytes of a processor's outermost cache. More for each core than the first tells that other cores share it, which are
# not to be seen; a core is then thought to have the second, its part on most processors for servers.
_MOST_CACHE, _SHARED_CACHE = 1 << 24, 1 << 22


@functools.cache
def limits(device: cl.Device) -> DeviceLimits:
    """What the planner needs to know of a device: sizes in bytes, counts; read once per device."""
    extensions = device.extensions.split()
    kind = classify(device.type, device.name, device.platform.name)[0]
    cache_bytes = device.global_mem_cache_size
    if kind == "cpu":
        cache_bytes = _counted_on(cache_bytes, _host_cache_bytes(), device.max_compute_units)
    return DeviceLimits(
        kind=kind,
        compute_units=device.max_compute_units,
        max_group=device.max_work_group_size,
        local_bytes=device.local_mem_size,
        cache_bytes=cache_bytes,
        memory_bytes=device.global_mem_size,
        max_alloc_bytes=device.max_mem_alloc_size,
        fp64="cl_khr_fp64" in extensions or _double_config(device) != 0,
        fp16="cl_khr_fp16" in extensions,
        vector_bytes=widest_vector(device),
        stores16="cl_khr_byte_addressable_store" in extensions or not device.version.startswith("OpenCL 1.0"),
    )


def check_size(what: str, nbytes: int, device: cl.Device) -> None:
    """SizeError where `what` takes more bytes than the device allocates at once."""
    most = limits(device).max_alloc_bytes
    if nbytes > most:
        raise SizeError(f"{what} needs {nbytes:,} bytes; {device.name.strip()} allocates at most {most:,} at once")


@functools.cache
def _host_cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache of the processor that this runs on, where Linux tells; else 0."""
    sizes = [0]
    for path in caches.glob("index*/size"):
        size = re.fullmatch(r"(\d+)([KMG]?)", path.read_text(encoding="ascii").strip())
        if size is not None:
            sizes.append(int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]])
    return max(sizes)


def _counted_on(stated: int, host: int, cores: int) -> int:
    """What a processor's cores may count on, of the cache that its driver states and of the host's largest one.

    Some drivers name a core's own cache. A virtual machine is shown all of the outermost one, 480 MB for two cores, and
    not the dozens of other cores that share it.
    """
    largest = max(stated, host)
    return largest if largest <= cores * _MOST_CACHE else cores * _SHARED_CACHE


@functools.cache
def tuning_names(device: cl.Device) -> tuple[str, str, str, str, str]:
    """What oclbn.tuning tells a device by: platform, its version, "name / version / ...", kind, driver's version.

    Behind the name stand the processor that POCL compiles for, where it is known, and "vectors of 8 floats".
    """
    target = mend_target(device) or ""  # the processor that POCL compiles for, if its own version string is wrong
    named = f"{device.name} / {device.version} / {target} / vectors of {device.native_vector_width_float} floats"
    return device.platform.name, device.platform.version, named, limits(device).kind, device.driver_version


def _double_config(device: cl.Device) -> int:
    try:
        return int(device.double_fp_config)
    except cl.Error:
        return 0  # OpenCL 1.1 does not know the question: there only the extension tells
