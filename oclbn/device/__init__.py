"""OpenCL devices: list them, select one (oclbn.device.selection has the rules), its limits and its queues."""

from __future__ import annotations

from oclbn.device.facts import check_size, limits, tuning_names
from oclbn.device.guard import driver_errors, lacks_memory
from oclbn.device.listing import default_queue, devices, queue_for, select, select_with_reason, without_devices
from oclbn.device.selection import DeviceInfo

__all__ = [
    "DeviceInfo",
    "check_size",
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
