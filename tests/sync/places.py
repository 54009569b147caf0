"""Queues for groups: of what there is, one device, three contexts of it, its halves, and every device that is there."""

from __future__ import annotations

import functools

import pyopencl as cl
import pytest
from spread import queues_on

import oclbn.device

LAYOUTS = ("one device", "three contexts", "halves", "halves in one context", "unlike devices")


def halves(device: cl.Device) -> list[cl.Device]:
    """A device in two parts; skips where its driver cannot divide it."""
    units, how = device.max_compute_units // 2, cl.device_partition_property.EQUALLY
    if how not in device.partition_properties or not units:  # to ask others for it crashes rusticl 22
        pytest.skip(f"needs a device of several units that can be divided; {device.name.strip()} is none")
    return device.create_sub_devices([how, units])[:2]


@functools.cache
def queues_of(layout: str, device: cl.Device) -> list[cl.CommandQueue]:
    """The same ones for all files: programs are loaded anew in each context, which is half of the time otherwise."""
    if layout == "one device":
        return queues_on(device)
    if layout == "three contexts":
        return queues_on(device, device, device)
    if layout == "halves":
        return queues_on(*halves(device))
    if layout == "halves in one context":
        return queues_on(*halves(device), together=True)
    assert layout == "unlike devices"
    others = [
        info.device
        for info in oclbn.device.devices()
        if info.device != device and not info.simulator and oclbn.device.limits(info.device).fp64
    ]
    if not others:
        pytest.skip("needs several devices; there is one")
    if not oclbn.device.limits(device).fp64:
        pytest.skip(f"needs fp64; {device.name.strip()} has none")
    return queues_on(device, *others)
