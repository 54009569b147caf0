"""The planner's words: what it is asked (a problem, a device, choices) and what it answers (a plan of launches)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from oclbn.activations import NAMES


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
    stores16: bool = True  # elements of 16 bits can be stored one by one


@dataclass(frozen=True)
class Tuning:
    """What is chosen per device rather than per shape; oclbn.tuning reads it from tuning.toml."""

    lanes: int = 1  # work-items per work-group, a power of two
    vec: int = 8  # 4-byte elements per vector, a power of two up to 16
    unroll: int = 4  # independent sums per work-item
    blocks: int = 1  # with lanes > 1: vectors of neighbouring channels per work-item, where channels lie side by side
    chunk_bytes: int = 16384  # what is summed in one go, but for run_bytes; may be read twice, from the innermost cache
    run_bytes: int = 4096  # rows (H*W) up to this are read with those of neighbouring channels, this much at a time
    together_bytes: int = 12288  # the same where the channels' rows are not adjacent, and are read one by one
    once_bytes: int = 65536  # rows that are read but once are read in such pieces, in the order of memory
    near_bytes: int = 524288  # of a compute unit's own cache: what a work-group reads twice should fit
    groups_per_unit: int = 16  # work-groups that a split (two kernels) aims at, per compute unit
    stream: bool = True  # non-temporal stores where a call moves more than it may count on in the cache
    fetch: bool = False  # rows are prefetched, a chunk ahead; only where global memory is the processor's own
    chains: int = 4  # work-groups per compute unit that sum some channels while they write those before; 0: none do
    most_steps: int = 0  # turns of loops that the driver lets a work-item make in all; 0: any number
    variant: str = ""  # "": the first candidate that accepts; else only this one


class Fusion(NamedTuple):
    """What kernels do beside normalising; the names are those of their defines (kernels/numbers/element.clh)."""

    act: int = 0  # the activation's code
    aux: int = 0  # the tensor that is read besides, of Operation.fusable; counted from 1 on
    second: bool = False  # backward writes the residual's gradient, too
    shared: bool = False  # what is written lies where a tensor does that is read, and is not x
    without: bool = False  # the tensor that may be left out is (Operation.optional)
    apart: bool = False  # numbers that several batches leave are not brought together: Operation.after is not run

    @property
    def defines(self) -> dict[str, int]:
        """Those that are not 0."""
        all_of_them = {"ACT": self.act, "AUX": self.aux, "SECOND": int(self.second), "SHARED": int(self.shared)}
        all_of_them["WITHOUT"] = int(self.without)
        return {name: value for name, value in all_of_them.items() if value}


ALONE = Fusion()
_FUSED = {
    "ACT": NAMES,
    "AUX": ("", "with a residual", "by its output", "weighted"),
    "SECOND": ("", "residual's gradient"),
    "SHARED": ("", "in place"),
    "WITHOUT": ("", "without ddx"),
}


@dataclass(frozen=True)
class Problem:
    """A tensor as the kernels see it."""

    outer: int
    channels: int
    inner: int
    itemsize: int  # bytes per element of x: 2, 4 or 8
    columns: bool  # channels lie side by side: inner is 1
    adjacent: bool = False  # in every array rows follow each other without a gap: the next channel's; columns: the next
    kinds: tuple[int, ...] = (0, 0, 0, 0)  # how elements of TENSORS lie in memory (numbers/io.clh)
    fusion: Fusion = ALONE
    batches: int = 1  # the tensor is so many, one after the other; outer, count and slice_bytes are those of one
    longer: int = 0  # so many of them, the first ones, have a sample more
    sample_rows: int = 0  # rows of one

    @property
    def number(self) -> int:
        """Bytes of what is computed with, and of what there is one of per channel."""
        return max(4, self.itemsize)

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
        return self.slice_bytes * self.channels * self.batches

    def in_batches(self, batches: int, samples: int) -> Problem:
        """The same tensor, of so many samples, as several batches that differ by one sample at most."""
        rows = self.outer // samples
        return replace(
            self,
            outer=samples // batches * rows,
            batches=batches,
            longer=samples % batches,
            sample_rows=rows,
        )

    @property
    def batch_numbers(self) -> dict[str, int]:
        """The arguments of kernels that batches decide."""
        batches = {"batches": self.batches, "sample_rows": self.sample_rows, "larger": self.longer}
        return {"outer": self.outer, **batches}

    @property
    def most_rows(self) -> int:
        """Of a batch."""
        return self.outer + (self.sample_rows if self.longer else 0)

    @property
    def most_values(self) -> int:
        """Of a channel, in a batch."""
        return self.most_rows * self.inner


@dataclass(frozen=True)
class Build:
    """What the compiler sees; sizes never appear here."""

    source: str  # "forward.cl"
    defines: tuple[tuple[str, int], ...]
    kernel: str = ""  # the one of the file's that is wanted; "": all

    @property
    def title(self) -> str:
        """What is compiled: the file, and which kernel of it."""
        return f"{self.kernel} of {self.source}" if self.kernel else self.source

    def __str__(self) -> str:
        return f"{self.title} with " + " ".join(f"{name}={value}" for name, value in self.defines)


@dataclass(frozen=True)
class Launch:
    """One kernel to be enqueued: `groups` work-groups of `lanes` work-items."""

    kernel: str
    build: Build
    groups: int
    lanes: int
    numbers: tuple[tuple[str, int], ...] = ()  # arguments of its own, instead of the plan's


@dataclass(frozen=True)
class Geometry:
    """How the tensor is cut up; the names are those of the kernels' arguments (see kernels/walks/walk.clh)."""

    slices: int
    slice_rows: int
    slice_columns: int
    column_slices: int
    chunk_rows: int
    chunk_columns: int
    width: int
    share: int  # channels that one group handles
    beyond: int = 0  # 1: the call moves more than the cache of global memory holds
    chain: int = 1  # blocks of so many channels that one group takes in turn


@dataclass(frozen=True)
class Memory:
    """What launches hand on to each other, under the name that kernels give it."""

    name: str
    size: int  # numbers
    itemsize: int  # bytes of each
    rows: tuple[str, ...] = ()  # what kernels call its first rows
    row: int = 0  # numbers of one

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.size * self.itemsize

    @property
    def starts(self) -> dict[str, int]:
        """Where it begins, and where each of its rows does, by name."""
        return {self.name: 0, **{row: index * self.row for index, row in enumerate(self.rows)}}


@dataclass(frozen=True)
class Declined:
    """What a candidate gives instead of a plan."""

    reason: str


@dataclass(frozen=True)
class Plan:
    """Launches in order, as many as it takes, the cut that they share, and the memory between them."""

    variant: str
    geometry: Geometry
    launches: tuple[Launch, ...]
    memory: tuple[Memory, ...] = ()
    declined: tuple[str, ...] = field(default=(), compare=False)  # the candidates before it, each with its reason

    @property
    def numbers(self) -> dict[str, int]:
        """The kernels' arguments that the plan decides."""
        return {**asdict(self.geometry), "sets": self.geometry.slices}

    def part(self, kernels: Collection[str]) -> Plan:
        """Those launches that run these kernels, on partial results of one set that are given to them."""
        launches = tuple(replace(one, numbers=(("sets", 1),)) for one in self.launches if one.kernel in kernels)
        return replace(self, launches=launches, memory=())

    def __str__(self) -> str:
        first = self.launches[0]
        defines = dict(first.build.defines)
        shown = ", ".join(f"{name}={defines[name]}" for name in ("LANES", "VEC", "UNROLL", "BLOCKS") if name in defines)
        walk = "columns" if defines["COLUMNS"] else "runs" if defines.get("RUN") else "rows"
        shown += "".join(f", {name}={defines[name]}" for name in sorted(defines) if name.startswith("KIND_"))
        shown += "".join(
            f", {told}" for name, value in defines.items() for told in _FUSED.get(name, ())[value : value + 1]
        )
        cut = f", {self.geometry.slices} slices" if self.geometry.slices > 1 else ""
        cut += f", chains of {self.geometry.chain}" if self.geometry.chain > 1 else ""
        return f"{self.variant} ({' + '.join(launch.kernel for launch in self.launches)}; {walk}, {shown}{cut})"


BRIEF = re.compile(r"(?P<variant>\S+|one kernel) \((?P<kernels>[^;]+); (?P<walk>\w+),")
VARIANTS = {"resident": "fused", "split": "two-kernel", "serial": "reference"}  # what the field calls them


def in_words(text: str) -> str:
    """A plan, or a reason why there is none, with the field's words for the variants: as users read it.

    Where the second of two kernels is all there is to do, as in inference, that is one kernel.
    """
    told = re.sub(r"\b(resident|split|serial)\b", lambda found: VARIANTS[found[1]], text)
    return re.sub(r"\btwo-kernel (?=\(\w+;)", "one kernel ", told)


def in_brief(told: str) -> str:
    """Of a plan in words its variant and its walk: "fused, rows"."""
    found = BRIEF.match(told)
    if found is None:
        return told
    return f"{found['variant']}, {found['walk']}"
