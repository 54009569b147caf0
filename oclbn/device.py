"""OpenCL devices: list them, select one (oclbn.selection has the rules), its limits and its queues."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyopencl as cl

from oclbn import advice, forks
from oclbn.errors import DeviceError, DeviceNotFoundError, ParameterError, SizeError
from oclbn.plan import DeviceLimits
from oclbn.pocl import mend_target, pinned_threads, widest_vector
from oclbn.selection import DeviceInfo, classify, resolve

__all__ = [
    "DeviceInfo",
    "default_queue",
    "devices",
    "driver_errors",
    "lacks_memory",
    "limits",
    "queue_for",
    "select",
    "select_with_reason",
    "tuning_names",
    "without_devices",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_NO_MEMORY = (
    cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE,
    cl.status_code.OUT_OF_RESOURCES,
    cl.status_code.OUT_OF_HOST_MEMORY,
    cl.status_code.INVALID_BUFFER_SIZE,
)


def driver_errors(doing: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Around work of the driver: what fails there is a DeviceError (SizeError: no memory) that says at what.

    The driver's own error is the cause. In a child that was forked after drivers were loaded: ContextError.
    """

    def around(work: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(work)
        def guarded(*given: _P.args, **options: _P.kwargs) -> _T:
            forks.begin()
            try:
                return work(*given, **options)
            except cl.Error as error:
                wanted = SizeError if isinstance(error, cl.MemoryError) else DeviceError
                raise wanted(f"{doing}: the driver fails: {error}") from error

        return guarded

    return around


def lacks_memory(error: Exception) -> bool:
    """Whether an error of an allocation says that there is no room, rather than that the device is gone."""
    code = getattr(error, "code", None)  # one that no driver raised has none
    return isinstance(error, (cl.MemoryError, MemoryError)) or code in _NO_MEMORY


def devices() -> tuple[DeviceInfo, ...]:
    """Every device of every platform, in pyopencl's order; what raises or has no device is left out.

    Empty when there is no platform at all. A POCL that has not been asked for before starts with pinned threads
    (oclbn.pocl). `without_devices` tells of what is left out.
    """
    return _survey()[0]


def without_devices() -> tuple[str, ...]:
    """A line for each platform that lists no device and each driver that cannot be loaded: what it says, what may help.

    And for each device that cannot be described.
    """
    return (*_survey()[1], *advice.of_unloadable(os.environ))


def _survey() -> tuple[tuple[DeviceInfo, ...], list[str]]:
    """The devices, and a line for each platform or device that is none."""
    forks.note_use()
    try:
        with pinned_threads():
            platforms = cl.get_platforms()
    except cl.Error as error:
        if error.code != cl.status_code.PLATFORM_NOT_FOUND_KHR:
            return (), [f"OpenCL's loader fails: {error}"]
        return (), [line for line in (advice.for_no_platform(os.environ),) if line]
    found: list[DeviceInfo] = []
    lacking: list[str] = []
    for platform_index, platform in enumerate(platforms):
        name = version = ""
        try:
            name, version = _one_line(platform.name), _one_line(platform.version)
            handles, said = platform.get_devices(), "lists no device"
        except cl.Error as error:  # must not keep the others from being used
            handles, said = [], f"cannot list its devices: {error}"
        named = f"{name or f'platform {platform_index}'} ({version.partition(',')[0] or 'of no version'})"
        if not handles:
            lacking.append(": ".join(filter(None, (f"{named} {said}", advice.for_platform(name, version, os.environ)))))
        for index, handle in enumerate(handles):
            try:
                found.append(_info(platform_index, index, handle))
            except cl.Error as error:
                lacking.append(f"device {platform_index}:{index} of {named} cannot be described: {error}")
    return tuple(found), lacking


def select(spec: str | cl.Device | DeviceInfo | None = None) -> DeviceInfo:
    """The device that `spec` names, or without it the environment, or else the best ranked one.

    `spec` is an index "P:D", a platform's index "P", a type, a part of a name (oclbn.selection has the rules), or a
    pyopencl Device or a DeviceInfo, which is taken as it is. Raises DeviceNotFoundError, whose message lists what
    there is, when not exactly one device fits, and ParameterError for an object of any other type.
    """
    return select_with_reason(spec)[0]


def select_with_reason(spec: str | cl.Device | DeviceInfo | None = None) -> tuple[DeviceInfo, str]:
    """`select(spec)`, and what selected it: 'ranking', "environment variable OCLBN_DEVICE='gpu'", ..."""
    if isinstance(spec, DeviceInfo):
        return spec, "argument device"
    if isinstance(spec, cl.Device):
        return _listed(spec), "argument device"
    if spec is not None and not isinstance(spec, str):
        raise ParameterError(
            f"device is of type {type(spec).__name__}; wanted a text, a pyopencl.Device or a DeviceInfo"
        )
    return resolve(devices(), spec, os.environ, without_devices)


def _listed(device: cl.Device) -> DeviceInfo:
    """Describe a device handle; a sub-device stands in the listing where its parent stands."""
    root = device
    while root.parent_device is not None:
        root = root.parent_device
    for info in devices():
        if info.device == root:
            return info if root == device else _info(info.platform_index, info.device_index, device)
    raise DeviceNotFoundError(f"argument device={device!r} is on none of the platforms that pyopencl lists")


def _info(platform_index: int, device_index: int, device: cl.Device) -> DeviceInfo:
    name, platform = _one_line(device.name), _one_line(device.platform.name)
    return DeviceInfo(
        platform_index=platform_index,
        device_index=device_index,
        name=name,
        platform=platform,
        platform_version=_one_line(device.platform.version),
        driver=_one_line(device.driver_version),
        kind=limits(device).kind,
        simulator=classify(device.type, name, platform)[1],
        limits=limits(device),
        device=device,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def limits(device: cl.Device) -> DeviceLimits:
    """What the planner needs to know of a device: sizes in bytes, counts; read once per device."""
    extensions = device.extensions.split()
    kind = classify(device.type, device.name, device.platform.name)[0]
    cache_bytes = device.global_mem_cache_size
    if kind == "cpu":
        cache_bytes = max(cache_bytes, _host_cache_bytes())  # some drivers name a core's own cache
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
    )


@functools.cache
def _host_cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache of the processor that this runs on, where Linux tells; else 0."""
    sizes = [0]
    for path in caches.glob("index*/size"):
        size = re.fullmatch(r"(\d+)([KMG]?)", path.read_text(encoding="ascii").strip())
        if size is not None:
            sizes.append(int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]])
    return max(sizes)


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


class _Made:
    """What this process has made."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.contexts: dict[cl.Device, cl.Context] = {}
        self.thread = threading.local()


_made = _Made()


def queue_for(spec: str | cl.Device | DeviceInfo | None = None) -> cl.CommandQueue:
    """A new in-order queue on the selected device.

    All queues that oclbn makes on one device in one process share one context, so that arrays of one can be used
    on the other. Errors as in `select`.
    """
    forks.begin()
    device = select(spec).device
    with _made.lock:
        if device not in _made.contexts:
            mend_target(device)
            _made.contexts[device] = cl.Context([device])
        context = _made.contexts[device]
    return cl.CommandQueue(context, device)


def default_queue() -> cl.CommandQueue:
    """The queue of this process and thread, on the selected device (environment, else ranking).

    Made at the first call, and the same one from then on. A child that is forked before anything has asked for devices
    makes its own; in one that is forked later it is a ContextError, as drivers hang there (oclbn.forks): start
    processes with the method "spawn".
    """
    forks.begin()
    queue: cl.CommandQueue | None = getattr(_made.thread, "queue", None)
    if queue is None:
        queue = _made.thread.queue = queue_for()
    return queue
