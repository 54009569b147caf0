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
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from .errors import BuildError

_MOST_SLICE_ELEMENTS = 1 << 28  # a region is walked with 32-bit numbers
_MOST_WIDTH_DOWN_COLUMNS = 64  # work-items across channels: enough for whole cache lines
_LEAST_SLICE_BYTES = 1 << 15  # smaller slices cost more in launching and merging than they balance
_SMALL = 1 << 17  # bytes of a tensor that is done sooner by one launch than shared out by two
_SMALL_ALONE = 1 << 18  # the same where groups are one work-item: a processor's cores
_SHARED_OUT = 1 << 19  # bytes per compute unit of a tensor that one launch with even shares does sooner than two
_LEAST_SHARE = 128  # bytes of a row that belong to such a share
_LINE = 64  # bytes of a cache's line: what two units write had better not lie in one
_LEAST_ROWS_PER_SLICE = 128  # and per slice that is merged: merging a row of results takes as long as some rows
_MOST_SLICES = 256  # every group of the second launch reads all partial results of its channel
_LEAST_TOGETHER = 16  # where short rows allow: a run of memory is worth more than the nearest cache
_SHORT_ROW = 1024  # bytes
_LEAST_ROW_IN_ORDER = 512  # bytes of a row that is worth being walked by itself rather than in a run
_LEAST_FAR_ROW = 512  # elements of a row from which on it is written past the cache (FAR_ROW in rows.clh)
_LEAST_VECTOR_OF_A_RUN = 4  # numbers: narrower ones cost more than the cache gives
_LEAST_RUN_ROWS = 8  # of strips, where channels lie side by side: fewer are not worth the tables
_RUN_ELEMENTS = {1: 90, 2: 24}  # by arrays read: rows this long, for each of them, are worth the tables of a run
_MOST_TOGETHER = 64  # channels that one work-item handles
_LONGER = 4  # times run_bytes, past the cache where long pieces of memory are worth more than tables near at hand
_LEAST_GROUPS = 4  # per compute unit, before channels are put together
_LEAST_RUN = 1024  # bytes of a row that columns should read at once
_MOST_ADDITIONS = 64  # to one accumulator before it is merged: what bounds the drift of sums
_MOST_ADDITIONS_ALONE = 16  # the same where there is but one accumulator, so that no tree over several follows
_MOST_ADDITIONS_TO_A_STRIP = 64  # of sums over the rows that are taken at once, on two levels (FEW in strips.clh)
_MOST_ADDITIONS_DOWN = 64  # the same down columns, where sums have two levels (SHORT in columns.clh)
_LEAST_CHUNK_VECTORS = 48  # of a channel, in a chunk: what a merge costs is spread over these
_NUMBERS_PER_LANE = 6  # of local memory: the larger of Moments (moments.clh) and Sums (sums.clh)
_PASSES = 6  # over its region that a work-item makes at most, with what loops within loops add
_CACHED = {1: 0.75, 2: 0.5}  # by arrays read: the part of the cache of global memory that a call may count on
_LEAST_CHAIN = 4  # blocks: the first one of a chain is summed with nothing to write
_COUNT_BYTES = 8  # of the widest number that stands beside an element: counts are long (COUNTV in types.clh)
_EVEN = 1.1  # how much longer than the average the busiest compute unit may work


@dataclass(frozen=True)
class DeviceLimits:
    """What a device can do, as far as planning cares; oclbn.device.limits reads it off a device."""

    kind: str  # "cpu", "gpu" or "accelerator"
    compute_units: int
    max_group: int  # work-items in a work-group
    local_bytes: int
    cache_bytes: int  # of global memory; 0 where the driver does not say
    memory_bytes: int
    max_alloc_bytes: int
    fp64: bool
    fp16: bool
    vector_bytes: int = 0  # of the widest vector that is safe, of any type; 0: any


@dataclass(frozen=True)
class Tuning:
    """What is chosen per device rather than per shape; oclbn.tuning reads it from tuning.toml."""

    lanes: int = 1  # work-items per group, a power of two
    vec: int = 8  # 4-byte elements per vector, a power of two up to 16
    unroll: int = 4  # independent sums per work-item
    blocks: int = 1  # with lanes > 1: vectors of neighbouring channels per work-item, where channels lie side by side
    chunk_bytes: int = 16384  # what is summed in one go, but for strips; may be read twice, from the innermost cache
    run_bytes: int = 4096  # rows up to this are walked together with their neighbours', in strips of this length
    together_bytes: int = 12288  # the same where the channels' rows are not adjacent, and are walked one by one
    once_bytes: int = 65536  # rows that are read but once are walked in such pieces, in the order of memory
    near_bytes: int = 524288  # of a compute unit's own cache: what a group reads twice should fit
    groups_per_unit: int = 16  # groups that a split aims at, per compute unit
    stream: bool = True  # outputs go past the cache where a call moves more than it may count on there
    fetch: bool = False  # rows are asked for a chunk ahead; only where global memory is the processor's own
    chains: int = 4  # groups per compute unit that sum a block of channels while they write the one before; 0: none do
    most_steps: int = 0  # turns of loops that the driver lets a work-item make in all; 0: any number
    variant: str = ""  # "": the first candidate that accepts; else only this one


@dataclass(frozen=True)
class Problem:
    """A tensor as the kernels see it."""

    outer: int
    channels: int
    inner: int
    itemsize: int  # 4 or 8 bytes per element
    columns: bool  # channels lie side by side: inner is 1
    adjacent: bool = False  # in every array rows follow each other without a gap: the next channel's; columns: the next

    @property
    def count(self) -> int:
        """Elements per channel."""
        return self.outer * self.inner

    @property
    def slice_bytes(self) -> int:
        """Bytes of one channel."""
        return self.count * self.itemsize

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.slice_bytes * self.channels


@dataclass(frozen=True)
class Build:
    """What the compiler sees; sizes never appear here."""

    source: str  # "forward.cl"
    defines: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Launch:
    """One kernel to be enqueued: `groups` work-groups of `lanes` work-items."""

    kernel: str
    build: Build
    groups: int
    lanes: int


@dataclass(frozen=True)
class Geometry:
    """How the tensor is cut up; the names are those of the kernels' arguments (see kernels/walk.clh)."""

    slices: int
    slice_rows: int
    slice_columns: int
    column_slices: int
    chunk_rows: int
    chunk_columns: int
    width: int
    share: int  # channels that one group handles
    chain: int = 1  # blocks of so many channels that one group takes in turn


@dataclass(frozen=True)
class Plan:
    """Launches in order, the cut they share, and the numbers of partial results between them."""

    variant: str
    geometry: Geometry
    launches: tuple[Launch, ...]
    scratch: int  # numbers of the accumulator's type, 0 where nothing is passed on

    def __str__(self) -> str:
        first = self.launches[0]
        defines = dict(first.build.defines)
        shown = ", ".join(f"{name}={defines[name]}" for name in ("LANES", "VEC", "UNROLL", "BLOCKS") if name in defines)
        walk = "columns" if defines["COLUMNS"] else "runs" if defines.get("RUN") else "rows"
        cut = f", {self.geometry.slices} slices" if self.geometry.slices > 1 else ""
        cut += f", chains of {self.geometry.chain}" if self.geometry.chain > 1 else ""
        return f"{self.variant} ({' + '.join(launch.kernel for launch in self.launches)}; {walk}, {shown}{cut})"


@dataclass(frozen=True)
class Operation:
    """What a direction needs: kernels of its variants, arrays that it reads, numbers per partial result."""

    source: str
    resident: str  # "" where there is no such variant
    split: tuple[str, ...]
    arrays_read: int
    partial: int


OPERATIONS = {
    "train": Operation("forward.cl", "train_resident", ("moments_partial", "train_apply"), 1, 4),
    "infer": Operation("forward.cl", "", ("infer",), 1, 0),
    "moments": Operation("moments.cl", "", ("moments_partial", "moments_merge"), 1, 4),
    "backward": Operation("backward.cl", "backward_resident", ("backward_partial", "backward_apply"), 2, 6),
    "constant": Operation("backward.cl", "", ("constant_partial", "constant_merge"), 2, 6),
}
_SOURCES = {"moments_partial": "moments.cl"}  # kernels that are used from another direction's file
MERGES = {"moments_merge", "constant_merge"}  # one group per block: the slices are what it merges

Candidate = Callable[[Operation, Problem, DeviceLimits, Tuning], Plan | None]


@functools.lru_cache(maxsize=4096)
def plan(operation: str, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan:
    """The plan for `operation` (a key of OPERATIONS): the first candidate that accepts the problem."""
    wanted = OPERATIONS[operation]
    for name, candidate in CANDIDATES.items():
        if tuning.variant in ("", name):
            found = candidate(wanted, problem, device, tuning)
            if found is not None:
                return found
    return serial(wanted, problem, device, tuning)


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


def resident(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan | None:
    """One group per channel, or per block of neighbouring channels."""
    row_bytes = problem.channels * problem.itemsize
    if not operation.resident or problem.count > _MOST_SLICE_ELEMENTS:
        return None
    shape = _group_shape(operation, problem, device, tuning, near=True)
    if _slices_for_steps(problem, tuning, shape) > 1:
        return None
    if not tuning.variant:
        least_run = 0 if shape.lanes > 1 or shape.even else min(_LEAST_RUN, row_bytes)
        if problem.columns and shape.channels * problem.itemsize < least_run:
            return None  # such narrow columns fit a near cache, but memory is read in too short pieces
        small = _SMALL_ALONE if shape.lanes == 1 else _SMALL
        if problem.tensor_bytes > small and not _is_even(shape.blocks, device.compute_units):
            return None  # some compute units would idle while others work
        again = problem.slice_bytes * operation.arrays_read * shape.channels
        if device.cache_bytes and again * device.compute_units > device.cache_bytes:
            return None  # the second read would come from memory in either form; split balances better
    return _assemble("resident", operation, (operation.resident,), problem, device, tuning, shape, slices=1)


def split(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan | None:
    """Several groups per channel; the second launch merges what the first one found."""
    shape = _group_shape(operation, problem, device, tuning)
    wanted = -(-device.compute_units * tuning.groups_per_unit // shape.blocks)
    useful = max(1, problem.slice_bytes * shape.channels // _LEAST_SLICE_BYTES)
    if problem.columns and shape.lanes == 1:
        few = -(-device.compute_units // shape.blocks)
        useful = min(useful, max(few, math.isqrt(problem.outer // _LEAST_ROWS_PER_SLICE) // few * few))
    needed = max(-(-problem.count // _MOST_SLICE_ELEMENTS), _slices_for_steps(problem, tuning, shape))
    slices = max(min(wanted, useful, _MOST_SLICES), needed)
    if tuning.variant == "split":
        slices = max(slices, 2)
    return _assemble("split", operation, operation.split, problem, device, tuning, shape, slices)


def serial(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> Plan:
    """One work-item per channel or few, one element at a time; more slices only where 32-bit numbers end."""
    alone = replace(tuning, lanes=1, vec=1, unroll=1, blocks=1, run_bytes=0, stream=False, fetch=False, chains=0)
    shape = _group_shape(operation, problem, device, alone)
    slices = max(-(-problem.count // _MOST_SLICE_ELEMENTS), _slices_for_steps(problem, alone, shape))
    kernels = (operation.resident,) if operation.resident and slices == 1 else operation.split
    return _assemble("serial", operation, kernels, problem, device, alone, shape, slices)


CANDIDATES: dict[str, Candidate] = {"resident": resident, "split": split, "serial": serial}


@dataclass(frozen=True)
class _GroupShape:
    lanes: int
    vec: int
    blocks_per_item: int  # BLOCKS
    width: int  # work-items side by side
    channels: int  # that one group handles
    blocks: int  # groups that all channels need
    run: int = 0  # most elements of a run, where short rows are walked as one
    fold: int = 1  # rows that make up a strip, where channels lie side by side
    even: bool = False  # whether channels that lie side by side are shared out evenly among compute units


def _group_shape(
    operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning, near: bool = False
) -> _GroupShape:
    """The group of a plan; with `near` one whose channels fit its compute unit's own cache from end to end."""
    widest = _widest(problem, device, tuning)
    per_lane = _NUMBERS_PER_LANE * problem.itemsize * (widest if problem.columns else 1)
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
        vec, channels, times = run_shape
        width = 1
        blocks_per_item = -(-_MOST_TOGETHER * times // vec)
        run = tuning.run_bytes * times // problem.itemsize
    else:
        vec = min(widest, floor_power(problem.inner))
        while lanes > 1 and problem.inner % vec:
            vec //= 2  # with several work-items only whole vectors are walked
        channels = 1 if lanes > 1 else _rows_together(problem, device, tuning, near, in_order, vec)
        blocks_per_item = 1 if channels == 1 else _MOST_TOGETHER
        width = min(lanes, _ceil_power(problem.inner // vec))
    blocks = -(-problem.channels // channels)
    return _GroupShape(lanes, vec, blocks_per_item, width, channels, blocks, run, fold, even)


def _widest(problem: Problem, device: DeviceLimits, tuning: Tuning) -> int:
    """Most elements of a vector."""
    vec = max(1, tuning.vec * 4 // problem.itemsize)
    return min(vec, max(1, device.vector_bytes // _COUNT_BYTES)) if device.vector_bytes else vec


def _slices_for_steps(problem: Problem, tuning: Tuning, shape: _GroupShape) -> int:
    """How many slices it takes to keep each work-item's loops within what the driver allows."""
    if not tuning.most_steps:
        return 1
    tall = shape.lanes // shape.width
    along = 1 + (
        shape.channels // (shape.vec * shape.width)
        if problem.columns
        else -(-problem.inner // (shape.vec * shape.width)) * shape.channels
    )
    turns = _PASSES * -(-problem.outer // tall) * along
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
    longest = tuning.run_bytes // problem.itemsize if tuning.run_bytes else _MOST_TOGETHER * vec
    if tuning.run_bytes and problem.channels > longest and _is_streamed(operation, problem, device, tuning):
        longest *= _LONGER
    return max(min(longest // vec, _most_at_once(problem, tuning, 1)), 1) * vec


def _even_share(problem: Problem, device: DeviceLimits, longest: int, widest: int) -> int:
    """Neighbouring channels that one work-item of a small tensor gets, so that all units work alike; 0: no such number.

    They are whole lines, and a strip of at most `longest`; the last share holds a vector of `widest` as well.
    """
    units, channels = device.compute_units, problem.channels
    if units == 1 or not _SMALL_ALONE < problem.tensor_bytes <= _SHARED_OUT * units:
        return 0
    line = max(_LINE // problem.itemsize, widest)
    shares = units * -(-channels // (units * longest))
    share = -(-channels // (shares * line)) * line
    shares = -(-channels // share)
    alike = shares % units == 0 and shares * share <= channels * _EVEN
    last = channels % share or share
    return share if alike and share <= longest and share * problem.itemsize >= _LEAST_SHARE and last >= widest else 0


def _strip_down(problem: Problem, tuning: Tuning, longest: int, widest: int, near: bool) -> tuple[int, int, int]:
    """One work-item down columns (kernels/sheets.clh): its vector, rows that make up a strip, channels of a group."""
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
) -> tuple[int, int, int] | None:
    """Vector and channels of a run (kernels/runs.clh), and how many times run_bytes it may have.

    None where rows are better walked one by one. Reading once, and writing past the cache, is best in long runs.
    With `near` its channels fit a compute unit's own cache or its part of the outer one: long runs of memory are worth
    more than the nearest of the two. A run should be whole vectors: where those of wide ones do not fit, vectors are
    narrower.
    """
    vec = _widest(problem, device, tuning)
    part = int(device.cache_bytes * _CACHED[operation.arrays_read]) // device.compute_units
    room = max(tuning.near_bytes, part) // operation.arrays_read if near else 0
    times = _LONGER if not operation.partial and _is_streamed(operation, problem, device, tuning) else 1
    most = min(tuning.run_bytes * times // (problem.inner * problem.itemsize), _MOST_TOGETHER * times)
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
    return (vec, together, times) if together else None


def _run_together(problem: Problem, device: DeviceLimits, most: int, vec: int, room: int) -> int:
    """How many neighbouring channels, at most `most`, make up a run, of `room` bytes unless that is 0; 0: none."""
    most = min(most, problem.channels)
    if not (problem.adjacent or problem.channels == 1) or not most:
        return 0
    unit = vec // math.gcd(problem.inner, vec)  # so many rows are whole vectors
    fitting = min(most, max(room // problem.slice_bytes, unit)) if room else most
    busy = problem.channels // (device.compute_units * _LEAST_GROUPS)
    fitting = max(1, min(fitting, busy))
    if fitting > unit:
        fitting -= fitting % unit
    if room:  # somewhat shorter runs where all units are busy with those
        shorter = range(fitting, max(fitting // 2, 1) - 1, -unit)
        even = (n for n in shorter if _is_even(-(-problem.channels // n), device.compute_units))
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
    shared = problem.channels * problem.outer if in_order else problem.channels  # in order, slices cost nothing
    return max(1, min(fitting, shared // (device.compute_units * _LEAST_GROUPS)))


def _is_walked_in_order(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> bool:
    """Whether rows are read but once and lie one after the other: then long pieces of memory serve best."""
    if operation.partial or problem.columns or not problem.adjacent:
        return False
    if problem.inner < _LEAST_FAR_ROW and _is_streamed(operation, problem, device, tuning):
        return False  # runs are written past the cache, such rows are not
    return problem.inner * problem.itemsize >= _LEAST_ROW_IN_ORDER


def _is_streamed(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning) -> bool:
    """Whether one work-item writes past the cache."""
    return tuning.stream and _is_beyond_cache(operation, problem, device)


def _is_beyond_cache(operation: Operation, problem: Problem, device: DeviceLimits) -> bool:
    """Whether a call moves more than the cache of global memory can be thought to hold."""
    moved = problem.tensor_bytes * (operation.arrays_read + 1)
    return 0 < device.cache_bytes * _CACHED[operation.arrays_read] < moved


def _assemble(
    variant: str,
    operation: Operation,
    kernels: tuple[str, ...],
    problem: Problem,
    device: DeviceLimits,
    tuning: Tuning,
    shape: _GroupShape,
    slices: int,
) -> Plan:
    if shape.lanes == shape.vec == 1 and not (problem.columns or shape.run):
        tuning = replace(tuning, unroll=1)  # several accumulators of one number: Intel's compiler errs
    # Asking for what is near costs more than it saves.
    fetch = tuning.fetch and _is_beyond_cache(operation, problem, device)
    stream = shape.lanes == 1 and _is_streamed(operation, problem, device, tuning)
    geometry = _cut(problem, tuning, shape, slices, operation.arrays_read)
    if kernels == (operation.resident,) and stream:
        geometry = replace(geometry, chain=_chain(operation, problem, device, tuning, shape))
    defines: dict[str, int] = {
        "COLUMNS": int(problem.columns),
        "DOUBLE": int(problem.itemsize == 8),
        "LANES": shape.lanes,
        "VEC": shape.vec,
        "BLOCKS": shape.blocks_per_item,
        "UNROLL": tuning.unroll,
        "STREAM": int(stream),
        "CHAIN": int(geometry.chain > 1),
        "NEXT": int(geometry.chain > 1 and fetch),
    }
    if shape.run:
        defines["RUN"] = shape.run
    defines["FETCH"] = int(fetch and _is_worth_fetching(problem, shape, operation))
    launches = tuple(
        Launch(
            kernel,
            Build(_SOURCES.get(kernel, operation.source), tuple(defines.items())),
            -(-shape.blocks // geometry.chain) * (1 if kernel in MERGES else geometry.slices),
            shape.lanes,
        )
        for kernel in kernels
    )
    scratch = operation.partial * geometry.slices * problem.channels if len(kernels) > 1 else 0
    return Plan(variant, geometry, launches, scratch)


def _cut(problem: Problem, tuning: Tuning, shape: _GroupShape, slices: int, arrays: int) -> Geometry:
    """Cut a channel into about `slices` slices: by rows where there are enough of them, else within rows too."""
    slice_rows = -(-problem.outer // (slices * shape.fold)) * shape.fold
    row_slices = -(-problem.outer // slice_rows)
    column_slices, slice_columns = 1, problem.inner
    vectors = problem.inner // shape.vec
    beside = 1 if shape.run else min(slices // row_slices, vectors)
    if beside > 1:
        per_slice = -(-vectors // beside)
        column_slices = -(-vectors // per_slice)  # what lies beyond the last whole vector goes to the last slice
        slice_columns = per_slice * shape.vec
    tall = shape.lanes // shape.width
    elements = tuning.chunk_bytes // (problem.itemsize * arrays)
    most_rows = _MOST_ADDITIONS_DOWN * tall
    if not problem.columns:
        accumulators = shape.vec * tuning.unroll * shape.lanes
        additions = _MOST_ADDITIONS if accumulators > 1 else _MOST_ADDITIONS_ALONE
        elements = min(elements, additions * accumulators)
        per_row = -(
            -(slice_columns // (shape.vec * shape.width) + 1) // tuning.unroll
        )  # additions, with the row's tail
        most_rows = max(1, additions // per_row) * tall
    chunk_columns = slice_columns
    if shape.run or (problem.columns and shape.lanes == 1):
        chunk_rows = _MOST_ADDITIONS_TO_A_STRIP * tuning.unroll * shape.fold
        chunk_columns = shape.fold if problem.columns else slice_columns
    elif problem.columns or slice_columns * shape.channels <= elements:
        least = 1 if problem.columns else -(-_LEAST_CHUNK_VECTORS * shape.vec // slice_columns)
        chunk_rows = max(tall, elements // (shape.channels * slice_columns), least)
        chunk_rows = min(chunk_rows, most_rows)
    else:
        chunk_rows = tall
        if slice_columns > elements:
            side = shape.vec * shape.width
            most, mine = max(1, elements // side), -(-slice_columns // side)
            chunk_columns = -(-mine // -(-mine // most)) * side  # all alike
    return Geometry(
        slices=row_slices * column_slices,
        slice_rows=slice_rows,
        slice_columns=slice_columns,
        column_slices=column_slices,
        chunk_rows=chunk_rows,
        chunk_columns=chunk_columns,
        width=shape.width,
        share=shape.channels,
    )


def _chain(operation: Operation, problem: Problem, device: DeviceLimits, tuning: Tuning, shape: _GroupShape) -> int:
    """How many blocks of channels one group takes in turn: as long as all compute units are as busy as without."""
    if not tuning.chains or problem.columns or tuning.most_steps:
        return 1
    if shape.run and operation.arrays_read > 1:
        return 1  # short rows of five arrays at once, and a dozen tables: that is more than the nearest cache takes
    least = -(-shape.blocks // device.compute_units)  # what the busiest unit has in any case
    for chains in range(min(tuning.chains, shape.blocks), 0, -1):
        chain = -(-shape.blocks // (device.compute_units * chains))
        rounds = -(-shape.blocks // (chain * device.compute_units))
        if chain >= _LEAST_CHAIN and rounds * chain <= least * _EVEN:
            return chain
    return least


def _is_worth_fetching(problem: Problem, shape: _GroupShape, operation: Operation) -> bool:
    """Long rows are foreseen by the processor itself, and so are two streams, of several rows or of middling ones."""
    if shape.run or problem.columns:
        return operation.arrays_read == 1
    together = shape.lanes == 1 and shape.channels > 1
    return together and (operation.arrays_read == 1 or problem.inner * problem.itemsize < _SHORT_ROW)


def _is_even(groups: int, units: int) -> bool:
    rounds = -(-groups // units)
    return rounds * units <= groups * _EVEN


def floor_power(number: int) -> int:
    """The largest power of two that is not larger; 1 at least."""
    return 1 << (max(1, number).bit_length() - 1)


def _ceil_power(number: int) -> int:
    return 1 << (max(1, number) - 1).bit_length()
