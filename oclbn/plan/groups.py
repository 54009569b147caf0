"""The shape of a group: its work-items and vectors, and which channels or rows it takes together."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from oclbn.plan.operations import Operation
from oclbn.plan.words import DeviceLimits, Problem, Tuning

_MOST_WIDTH_DOWN_COLUMNS = 64  # work-items across channels: enough for whole cache lines
SMALL_ALONE = 1 << 18  # the same where groups are one work-item: a processor's cores
_SHARED_OUT = 1 << 19  # bytes per compute unit of a tensor that one launch with even shares does sooner than two
_LEAST_SHARE = 128  # bytes of a row that belong to such a share
_LINE = 64  # bytes of a cache's line: what two units write had better not lie in one
_LEAST_TOGETHER = 16  # where short rows allow: a run of memory is worth more than the nearest cache
_LEAST_ROW_IN_ORDER = 512  # bytes of a row that is worth being walked by itself rather than in a run
_LEAST_FAR_ROW = 512  # elements of a row from which on it is written past the cache (FAR_ROW in rows.clh)
_LEAST_VECTOR_OF_A_RUN = 4  # numbers: narrower ones cost more than the cache gives
_LEAST_RUN_ROWS = 8  # of strips, where channels lie side by side: fewer are not worth the tables
_RUN_ELEMENTS = {1: 90, 2: 24, 3: 24}  # by arrays read: rows this long, for each of them, are worth the tables of a run
_MOST_TOGETHER = 64  # channels that one work-item handles
_LONGER = 4  # times run_bytes, past the cache where long pieces of memory are worth more than tables near at hand
_LONGEST = 8  # times run_bytes, of runs whose channels have loops of their own, which need few numbers from the tables
_LONG = 12  # vectors of such a channel (runs.clh)
_SHORTER = 2  # times run_bytes, of other runs that are only written: three tables, where sums have six
_LEAST_GROUPS = 4  # per compute unit, before channels are put together
_NUMBERS_PER_LANE = 6  # of local memory, at least: Moments (moments.clh); or Sums (sums.clh), the partial results
_PASSES = 6  # over its region that a work-item makes at most, with what loops within loops add
_CACHED = {1: 0.75, 2: 0.5, 3: 0.5}  # by arrays read: the part of the cache of global memory that a call may count on
_COUNT_BYTES = 8  # of the widest number that stands beside an element: counts are long (COUNTV in types.clh)
EVEN = 1.1  # how much longer than the average the busiest compute unit may work


@dataclass(frozen=True)
class GroupShape:
    lanes: int
    vec: int
    blocks_per_item: int  # BLOCKS
    width: int  # work-items side by side
    channels: int  # that one group handles
    blocks: int  # groups that all channels need, of all batches
    run: int = 0  # most elements of a run, where short rows are walked as one
    fold: int = 1  # rows that make up a strip, where channels lie side by side
    even: bool = False  # whether channels that lie side by side are shared out evenly among compute units


def group_shape(
    operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning, near: bool = False
) -> GroupShape:
    """The group of a plan; with `near` one whose channels fit its compute unit's own cache from end to end."""
    widest = _widest(problem, device, tuning)
    numbers = max(_NUMBERS_PER_LANE, len(operation.partial))
    per_lane = numbers * problem.number * (widest if problem.columns else 1)
    lanes = min(tuning.lanes, floor_power(device.max_group))
    run, fold, even = 0, 1, False
    in_order = lanes == 1 and _is_walked_in_order(operation, problem, device, tuning)
    if lanes > 1:
        lanes = min(lanes, floor_power(device.local_bytes // per_lane))
    if problem.columns and lanes > 1:
        vec = min(widest, floor_power(problem.channels))
        width = min(lanes, _MOST_WIDTH_DOWN_COLUMNS, _ceil_power(-(-problem.channels // (vec * tuning.blocks))))
        channels = vec * tuning.blocks * width
        blocks_per_item = tuning.blocks
    elif problem.columns:
        width = 1
        longest = _strip_length(operation, problem, device, tuning, widest)
        if even := near and (channels := _even_share(problem, device, longest, widest)) > 0:
            vec = widest
        else:
            vec, fold, channels = _strip_down(problem, tuning, longest, widest, near)
        blocks_per_item = longest // vec
    elif run_shape := _run_shape(operation, problem, device, tuning, near) if lanes == 1 and not in_order else None:
        vec, channels = run_shape
        width = 1
        longest = _LONGEST if tuning.stream and not operation.partial else 1  # room for the longest: one build
        blocks_per_item = -(-_MOST_TOGETHER * longest // vec)
        run = tuning.run_bytes * longest // problem.number
    else:
        vec = min(widest, floor_power(problem.inner))
        while lanes > 1 and problem.inner % vec:
            vec //= 2  # with several work-items only whole vectors are walked
        channels = 1 if lanes > 1 else _rows_together(problem, device, tuning, near, in_order, vec)
        one = channels == 1 and (vec == 1 or lanes > 1 or operation.partial)  # its sums lie in registers
        blocks_per_item = 1 if one else _MOST_TOGETHER
        width = min(lanes, _ceil_power(problem.inner // vec))
    blocks = -(-problem.channels // channels) * problem.batches
    return GroupShape(lanes, vec, blocks_per_item, width, channels, blocks, run, fold, even)


def _widest(problem: Problem, device: DeviceLimits, tuning: Tuning) -> int:
    """Most elements of a vector."""
    vec = max(1, tuning.vec * 4 // problem.number)
    return min(vec, max(1, device.vector_bytes // _COUNT_BYTES)) if device.vector_bytes else vec


def slices_for_steps(problem: Problem, tuning: Tuning, shape: GroupShape) -> int:
    """How many slices it takes to keep each work-item's loops within what the driver allows."""
    if not tuning.most_steps:
        return 1
    tall = shape.lanes // shape.width
    along = 1 + (
        shape.channels // (shape.vec * shape.width)
        if problem.columns
        else -(-problem.inner // (shape.vec * shape.width)) * shape.channels
    )
    turns = _PASSES * -(-problem.most_rows // tall) * along
    return -(-turns // tuning.most_steps)


def _most_at_once(problem: Problem, tuning: Tuning, turns: int) -> int:
    """How many vectors of channels, or channels along rows, each of so many `turns` a row, a work-item may handle.

    The more there are, the more slices it takes to keep its walk within what the driver allows, and each of them takes
    a turn for every slice when those are merged.
    """
    if not tuning.most_steps:
        return sys.maxsize
    return max(1, tuning.most_steps // (2 * math.isqrt(_PASSES * problem.outer * turns)))


def _strip_length(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning, vec: int) -> int:
    """Most elements of a strip: a whole number of vectors; of long rows, past the cache, several times as many."""
    longest = tuning.run_bytes // problem.number if tuning.run_bytes else _MOST_TOGETHER * vec
    if tuning.run_bytes and problem.channels > longest and is_streamed(operation, problem, device, tuning):
        longest *= _LONGER
    return max(min(longest // vec, _most_at_once(problem, tuning, 1)), 1) * vec


def _even_share(problem: Problem, device: DeviceLimits, longest: int, widest: int) -> int:
    """Neighbouring channels that one work-item of a small tensor gets, so that all units work alike; 0: no such number.

    They are whole lines, and a strip of at most `longest`; the last share holds a vector of `widest` as well.
    """
    units, channels = device.compute_units, problem.channels
    if units == 1 or not SMALL_ALONE < problem.tensor_bytes <= _SHARED_OUT * units:
        return 0
    line = max(_LINE // problem.itemsize, widest)
    shares = units * -(-channels // (units * longest))
    share = -(-channels // (shares * line)) * line
    shares = -(-channels // share)
    alike = shares % units == 0 and shares * share <= channels * EVEN
    last = channels % share or share
    return share if alike and share <= longest and share * problem.itemsize >= _LEAST_SHARE and last >= widest else 0


def _strip_down(problem: Problem, tuning: Tuning, longest: int, widest: int, near: bool) -> tuple[int, int, int]:
    """One work-item down columns (walks/sheets.clh): its vector, rows that make up a strip, channels of a group."""
    fold = min(longest // problem.channels, problem.outer // _LEAST_RUN_ROWS) if problem.adjacent else 0
    if fold > 1:
        return min(widest, floor_power(problem.channels * fold)), fold, problem.channels
    vec = min(widest, floor_power(problem.channels))
    most = longest // vec * vec
    if near:
        most = min(most, max(1, tuning.near_bytes // (problem.slice_bytes * vec)) * vec)
    if most >= problem.channels:
        return vec, 1, problem.channels
    while True:
        for channels in range(most, 0, -vec):
            last = problem.channels % channels
            if last == 0 or last >= vec:  # the last group's strip holds a vector as well
                return vec, 1, channels
        vec //= 2


def _run_shape(
    operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning, near: bool
) -> tuple[int, int] | None:
    """Vector and channels of a run (kernels/walks/runs.clh).

    None where rows are better walked one by one. Reading once, and writing past the cache, is best in long runs.
    With `near` its channels fit a compute unit's own cache or its part of the outer one: long runs of memory are worth
    more than the nearest of the two. A run should be whole vectors: where those of wide ones do not fit, vectors are
    narrower.
    """
    vec = _widest(problem, device, tuning)
    part = int(device.cache_bytes * _CACHED[operation.arrays_read]) // device.compute_units
    room = max(tuning.near_bytes, part) // operation.arrays_read if near else 0
    times = 1
    if not operation.partial and is_streamed(operation, problem, device, tuning):
        times = _LONGEST if problem.inner >= _LONG * vec else _SHORTER
    most = min(tuning.run_bytes * times // (problem.inner * problem.number), _MOST_TOGETHER * times)
    most = min(most, _most_at_once(problem, tuning, -(-problem.inner // vec)))
    if most < 2 * operation.arrays_read and problem.channels > 1 and problem.inner >= _LEAST_FAR_ROW:
        return None  # long rows make up no run
    if problem.outer * _RUN_ELEMENTS[operation.arrays_read] < problem.inner:
        return None
    together = _run_together(problem, device, most, vec, room)
    while room and vec > _LEAST_VECTOR_OF_A_RUN and together * problem.slice_bytes > room:
        fewer = _run_together(problem, device, most, vec // 2, room)
        if not 0 < fewer < together:
            break
        vec, together = vec // 2, fewer
    return (vec, together) if together else None


def _run_together(problem: Problem, device: DeviceLimits, most: int, vec: int, room: int) -> int:
    """How many neighbouring channels, at most `most`, make up a run, of `room` bytes unless that is 0; 0: none."""
    most = min(most, problem.channels)
    if not (problem.adjacent or problem.channels == 1) or not most:
        return 0
    unit = vec // math.gcd(problem.inner, vec)  # so many rows are whole vectors
    fitting = min(most, max(room // problem.slice_bytes, unit)) if room else most
    busy = problem.channels * problem.batches // (device.compute_units * _LEAST_GROUPS)
    fitting = max(1, min(fitting, busy))
    if fitting > unit:
        fitting -= fitting % unit
    if room:  # somewhat shorter runs where all units are busy with those
        shorter = range(fitting, max(fitting // 2, 1) - 1, -unit)
        even = (n for n in shorter if is_even(-(-problem.channels // n) * problem.batches, device.compute_units))
        fitting = next(even, fitting)
    for together in range(fitting, most + 1):
        last = problem.channels % together or together
        if last * problem.inner >= vec:
            return together
    return 0


def _rows_together(problem: Problem, device: DeviceLimits, tuning: Tuning, near: bool, in_order: bool, vec: int) -> int:
    """How many neighbouring channels one work-item walks at once, so that short rows make up a long run of memory."""
    long = tuning.once_bytes if in_order else 1 if problem.inner >= _LEAST_FAR_ROW else tuning.together_bytes
    fitting = min(long // (problem.inner * problem.itemsize), _MOST_TOGETHER, problem.channels)
    fitting = min(fitting, _most_at_once(problem, tuning, -(-problem.inner // vec)))
    if near:
        fitting = min(fitting, max(tuning.near_bytes // problem.slice_bytes, _LEAST_TOGETHER))
    shared = problem.channels * problem.batches
    shared *= problem.outer if in_order else 1  # in order, slices cost nothing
    return max(1, min(fitting, shared // (device.compute_units * _LEAST_GROUPS)))


def _is_walked_in_order(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> bool:
    """Whether rows are read but once and lie one after the other: then long pieces of memory serve best."""
    if operation.partial or problem.columns or not problem.adjacent:
        return False
    if problem.inner < _LEAST_FAR_ROW and is_streamed(operation, problem, device, tuning):
        return False  # runs are written past the cache, such rows are not
    return problem.inner * problem.itemsize >= _LEAST_ROW_IN_ORDER


def is_streamed(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> bool:
    """Whether one work-item writes past the cache."""
    return tuning.stream and is_beyond_cache(operation, problem, device)


def is_beyond_cache(operation: Operation, problem: Problem, device: DeviceLimits) -> bool:
    """Whether a call moves more than the cache of global memory can be thought to hold."""
    moved = problem.tensor_bytes * operation.arrays_moved
    return 0 < device.cache_bytes * _CACHED[operation.arrays_read] < moved


def is_even(groups: int, units: int) -> bool:
    rounds = -(-groups // units)
    return rounds * units <= groups * EVEN


def floor_power(number: int) -> int:
    """The largest power of two that is not larger; 1 at least."""
    return 1 << (max(1, number).bit_length() - 1)


def _ceil_power(number: int) -> int:
    return 1 << (max(1, number) - 1).bit_length()
