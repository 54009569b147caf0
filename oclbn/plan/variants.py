"""Planning: numbers in, a frozen plan out. Nothing here touches a device.

A tensor is [outer][channels][inner] (arguments.py brings every accepted layout to that). For each direction there is an
ordered tuple of candidates, fastest first; each says why it declines, and the last accepts everything:

    resident  one group owns a channel: it reduces the slice, then reads it again from a cache. One launch.
    split     several groups share a channel: partial results, merged by every group of the second launch.
    serial    one work-item per channel or few, element by element: runs anywhere, and is the oracle on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

from oclbn.errors import BuildError
from oclbn.plan.cut import assemble
from oclbn.plan.groups import SMALL_ALONE, floor_power, group_shape, is_even, slices_for_steps
from oclbn.plan.operations import Operation, operation_of
from oclbn.plan.words import Declined, DeviceLimits, Launch, Plan, Problem, Tuning

_MOST_SLICE_ELEMENTS = 1 << 28  # a region is walked with 32-bit numbers
_LEAST_SLICE_BYTES = 1 << 15  # smaller slices cost more in launching and merging than they balance
_SMALL = 1 << 17  # bytes of a tensor that is done sooner by one launch than shared out by two
_LEAST_ROWS_PER_SLICE = 128  # and per slice that is merged: merging a row of results takes as long as some rows
_MOST_SLICES = 256  # every group of the second launch reads all partial results of its channel
_LEAST_RUN = 1024  # bytes of a row that columns should read at once


Candidate = Callable[[Operation, Problem, DeviceLimits, Tuning], Plan | Declined]


@functools.lru_cache(maxsize=4096)
def plan(operation: str, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan:
    """The plan for `operation` (a key of OPERATIONS): the first candidate that accepts the problem.

    It has the reasons of those before it.
    """
    wanted = operation_of(operation, problem.fusion)
    declined: list[str] = []
    for name, candidate in CANDIDATES.items():
        if tuning.variant in ("", name) or candidate is serial:
            found = candidate(wanted, problem, device, tuning)
            if isinstance(found, Plan):
                return replace(found, declined=tuple(declined))
        else:
            found = Declined(f"{tuning.variant} is asked for")
        declined.append(f"{name}: {found.reason}")
    raise AssertionError("serial declines nothing")


def fitting_plan(
    operation: str, problem: Problem, device: DeviceLimits, tuning: Tuning, most: Callable[[Launch], int]
) -> Plan:
    """The plan whose groups its kernels can have: `most` tells how many work-items, once it has built a kernel.

    Registers and local memory decide that, so only the built kernel knows; it may be less than the device's max_group.
    BuildError where a kernel cannot run in groups of one.
    """
    while True:
        found = plan(operation, problem, device, tuning)
        crowded = {launch: room for launch in found.launches if (room := most(launch)) < launch.lanes}
        if not crowded:
            return found
        launch, room = min(crowded.items(), key=lambda item: item[1])
        if room < 1:
            raise BuildError(
                f"{launch.kernel} can have {room} work-items in a group on this device; one at least is wanted"
            )
        tuning = replace(tuning, lanes=floor_power(room))


def resident(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan | Declined:
    """One group per channel, or per block of neighbouring channels."""
    row_bytes = problem.channels * problem.itemsize
    if not operation.resident:
        return Declined("no kernel reads a channel twice for this operation")
    if problem.most_values > _MOST_SLICE_ELEMENTS:
        most = f"a work-group reads {_MOST_SLICE_ELEMENTS:,} at most"
        return Declined(f"a channel has {problem.most_values:,} elements, {most}")
    shape = group_shape(operation, problem, device, tuning, near=True)
    if slices_for_steps(problem, tuning, shape) > 1:
        return Declined(f"a work-item would take more than {tuning.most_steps:,} steps (most_steps)")
    if not tuning.variant:
        least_run = 0 if shape.lanes > 1 or shape.even else min(_LEAST_RUN, row_bytes)
        run = shape.channels * problem.itemsize
        if problem.columns and run < least_run:  # such narrow columns fit a near cache
            return Declined(f"memory would be read in pieces of {run:,} bytes, {least_run:,} are wanted at least")
        small = SMALL_ALONE if shape.lanes == 1 else _SMALL
        if problem.tensor_bytes > small and not is_even(shape.blocks, device.compute_units):
            units = f"{device.compute_units} compute units"
            groups = "1 work-group does" if shape.blocks == 1 else f"{shape.blocks} work-groups do"
            return Declined(f"{groups} not share out evenly among {units}")
        again = problem.slice_bytes * operation.arrays_read * shape.channels
        again *= device.compute_units
        if device.cache_bytes and again > device.cache_bytes:  # in either form; split balances better
            return Declined(f"of {again:,} bytes that are read again, the cache holds {device.cache_bytes:,}")
    return assemble("resident", operation, (operation.resident,), problem, device, tuning, shape, slices=1)


def split(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan:
    """Several groups per channel; the second launch merges what the first one found."""
    shape = group_shape(operation, problem, device, tuning)
    wanted = -(-device.compute_units * tuning.groups_per_unit // shape.blocks)
    useful = max(1, problem.slice_bytes * shape.channels // _LEAST_SLICE_BYTES)
    if problem.columns and shape.lanes == 1:
        few = -(-device.compute_units // shape.blocks)
        useful = min(useful, max(few, math.isqrt(problem.outer // _LEAST_ROWS_PER_SLICE) // few * few))
    needed = max(-(-problem.most_values // _MOST_SLICE_ELEMENTS), slices_for_steps(problem, tuning, shape))
    slices = max(min(wanted, useful, _MOST_SLICES), needed)
    if tuning.variant == "split":
        slices = max(slices, 2)
    return assemble("split", operation, operation.split, problem, device, tuning, shape, slices)


def serial(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan:
    """One work-item per channel or few, one element at a time; more slices only where 32-bit numbers end."""
    alone = replace(tuning, lanes=1, vec=1, unroll=1, blocks=1, run_bytes=0, stream=False, fetch=False, chains=0)
    shape = group_shape(operation, problem, device, alone)
    slices = max(-(-problem.most_values // _MOST_SLICE_ELEMENTS), slices_for_steps(problem, alone, shape))
    kernels = (operation.resident,) if operation.resident and slices == 1 else operation.split
    return assemble("serial", operation, kernels, problem, device, alone, shape, slices)


CANDIDATES: dict[str, Candidate] = {"resident": resident, "split": split, "serial": serial}
