"""OpenCL devices: list them, select one (oclbn.device.selection has the rules), its limits and its queues."""

from __future__ import annotations

import contextlib
import os
import threading

import pyopencl as cl

from oclbn.device import advice, forks
from oclbn.device.facts import limits
from oclbn.device.pocl import mend_target, pinned_threads
from oclbn.device.selection import DeviceInfo, classify, resolve
from oclbn.errors import DeviceNotFoundError, ParameterError


def devices() -> tuple[DeviceInfo, ...]:
    """Every device of every platform, in pyopencl's order; what raises or has no device is left out.

    Empty when there is no platform at all. A POCL that has not been asked for before starts with pinned threads
    (oclbn.device.pocl). `without_devices` tells of what is left out.
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
    with pinned_threads():  # the loader starts a runtime when it lists platforms, or lets devices do that
        try:
            platforms = cl.get_platforms()
        except cl.Error as error:
            if error.code != cl.status_code.PLATFORM_NOT_FOUND_KHR:
                return (), [f"OpenCL's loader fails: {error}"]
            return (), [line for line in (advice.for_no_platform(os.environ),) if line]
        handles = [_handles(platform) for platform in platforms]
    found: list[DeviceInfo] = []
    lacking: list[str] = []
    for platform_index, (platform, (listed, said)) in enumerate(zip(platforms, handles, strict=True)):
        name = version = ""
        with contextlib.suppress(cl.Error):  # of one that cannot be described, which must not keep others from use
            name, version = _one_line(platform.name), _one_line(platform.version)
        named = f"{name or f'platform {platform_index}'} ({version.partition(',')[0] or 'of no version'})"
        if not listed:
            lacking.append(": ".join(filter(None, (f"{named} {said}", advice.for_platform(name, version, os.environ)))))
        for index, handle in enumerate(listed):
            try:
                found.append(_info(platform_index, index, handle))
            except cl.Error as error:
                lacking.append(f"device {platform_index}:{index} of {named} cannot be described: {error}")
    return tuple(found), lacking


def _handles(platform: cl.Platform) -> tuple[list[cl.Device], str]:
    """A platform's devices, and what to say where there are none."""
    try:
        return platform.get_devices(), "lists no device"
    except cl.Error as error:  # must not keep the other platforms from being used
        return [], f"cannot list its devices: {error}"


def select(spec: str | cl.Device | DeviceInfo | None = None) -> DeviceInfo:
    """The device that `spec` names, or without it the environment, or else the best ranked one.

    `spec` is an index "P:D", a platform's index "P", a type, a part of a name (oclbn.device.selection has the rules),
    or a pyopencl Device or a DeviceInfo, which is taken as it is. Raises DeviceNotFoundError, whose message lists what
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
        if isinstance(spec, int) and not isinstance(spec, bool):
            raise ParameterError(
                f"device is the number {spec}; an index is wanted as text, '{spec}:0' for the first device of platform "
                f"{spec}"
            )
        raise ParameterError(
            f"device is of type {type(spec).__name__}; a text, a pyopencl.Device or a DeviceInfo is wanted"
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
    makes its own; in one that is forked later it is a ContextError, as drivers hang there (oclbn.device.forks): start
    processes with the method "spawn".
    """
    forks.begin()
    queue: cl.CommandQueue | None = getattr(_made.thread, "queue", None)
    if queue is None:
        queue = _made.thread.queue = queue_for()
    return queue
