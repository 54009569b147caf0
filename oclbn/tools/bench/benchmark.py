"""Timing against the device's own copy of the same tensor, and against peers: in the same run, interleaved, medians.

Batch normalization moves bytes, so the copy of the tensor is the limit. In each round everything that is compared has
one turn, in shuffled order: a call that is not timed, so that nobody starts with another's data in the cache, then a
few that are, each until the queue is empty. What is compared are medians over all rounds. The host's work is timed too.

Outputs are "preallocated" (out=), "prepared" (as these, by calls that oclbn.functional.bind has prepared), "fresh"
(allocated in each call and given back before the next, as without out=), or from a "pool" (pyopencl's MemoryPool as
x's allocator); fresh ones are compared with a copy into fresh memory. Every result, oclbn's and the peers', is
checked against the float64 reference before it is timed.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn.device import check_size, limits
from oclbn.errors import ParameterError, SizeError
from oclbn.tools.bench.suites import SUITES, Shape
from oclbn.tools.bench.turns import BASELINE, UNFUSED, Entry, interleave
from oclbn.tools.bench.workload import COPIES, PLAIN, PLAIN_COPIES, SINGLE, Fused, Work
from oclbn.tools.child import Rejected
from oclbn.tools.peers import checking, contract
from oclbn.tools.peers.process import PeerProcess
from oclbn.truth.expectation import EPSILON, FACTOR

__all__ = [
    "COPIES",
    "OUTPUTS",
    "PLAIN_COPIES",
    "SUITES",
    "TENSORS",
    "Absence",
    "Comparison",
    "Row",
    "compare",
    "expected_seconds",
    "geometric_mean",
    "measure",
]

TENSORS = {"forward": 2, "backward": 3, "inference": 2, "both": 5}  # that memory has to see: read or written once each
OUTPUTS = ("preallocated", "prepared", "fresh", "pool")
_READY = 0.4  # of the time is over, about, when everything has been made and checked and the timing begins
PEER_SECONDS = 3.0  # to start a peer, once for each kind of outputs
_SECONDS, _PACE = 0.5, 10e6  # of a comparison: for any shape, and bytes of the tensor in a second beyond them
_OF_A_PEER = 6  # tensors that a peer's process may hold


@dataclass(frozen=True)
class Row:
    """One operation on one shape. Times in seconds, from the call to the empty queue."""

    shape: Shape
    axis: int
    operation: str  # "forward", "backward", "inference", "both" (forward, then backward), or "copy ..." of some kind
    median: float
    low: float  # 10th percentile
    high: float  # 90th percentile
    nbytes: int  # that memory has to see
    ratio: float  # median over the median of the fastest copy
    plan: str
    who: str = "oclbn"  # or "copy", or a peer's name
    outputs: str = "preallocated"
    samples: int = 0
    dtype: str = "float32"

    @property
    def bandwidth(self) -> float:
        """Bytes per second, of those that memory has to see."""
        return self.nbytes / self.median


@dataclass(frozen=True)
class Absence:
    """Why a peer has no row for an operation on a shape; operation "" stands for all of them."""

    shape: Shape
    axis: int
    outputs: str
    who: str
    operation: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What one run has found for one shape."""

    rows: list[Row]
    absences: list[Absence] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # of the peers that were there


def measure(queue: cl.CommandQueue, shape: Shape, axis: int = 1, *, rounds: int | None = None) -> list[Row]:
    """Time forward (training), backward, inference and both of a float32 tensor, and three ways to copy it.

    As `compare` without peers, outputs preallocated. Returns one Row per operation, copies first.
    """
    return compare(queue, shape, axis, rounds=rounds).rows


def compare(
    queue: cl.CommandQueue,
    shape: Shape,
    axis: int = 1,
    *,
    rounds: int | None = None,
    outputs: str = "preallocated",
    operations: Sequence[str] = tuple(TENSORS),
    dtype: np.dtype[Any] = SINGLE,
    fused: Fused = PLAIN,
    peers: Sequence[PeerProcess] = (),
    advance: Callable[[float], None] = lambda part: None,
) -> Comparison:
    """Time operations on a tensor, three ways to copy it, and the same operations by peers.

    shape: of the tensor, channels on `axis`. rounds: turns of each, at least 3; None: as many as fit into about a
    quarter of a second each, fewer for peers that are slow. outputs: one of OUTPUTS. operations: some of TENSORS.
    dtype: of the elements; where it is not float32, the same operations on a float32 tensor are timed as well, as
    BASELINE. fused: an activation and a residual; then the same operations without them are timed instead, as UNFUSED.
    peers: made for the same outputs (for "prepared": preallocated); one that is missing, declines or fails is an
    Absence. advance: called with the part of the work that is done, up to 1, so that a bar moves while a large
    tensor is timed. Allocates four such tensors on queue's device. SizeError: no room for them on the device or the
    machine. DeviceError: oclbn's results are wrong.
    """
    if rounds is not None and rounds < 3:
        raise ParameterError(f"rounds is {rounds}; at least 3 are wanted")
    axis = checked_axis(shape, axis)
    for name, given, known in (("outputs", (outputs,), OUTPUTS), ("operations", operations, tuple(TENSORS))):
        if unknown := set(given) - set(known):
            raise ParameterError(f"{name} has {min(unknown)!r}; some of {', '.join(known)} are wanted")
    room = room_for(queue, shape, dtype)
    values = contract.block(math.prod(shape))
    try:
        work = Work(queue, shape, axis, outputs, values, dtype, fused)
        wanted = work.check(operations)
        beside = None
        if fused != PLAIN or dtype != SINGLE:
            beside = Work(queue, shape, axis, outputs, values, dtype if fused != PLAIN else SINGLE)
    except cl.MemoryError as error:
        raise SizeError(f"{queue.device.name.strip()} has no room for four tensors of {shape}: {error}") from error
    advance(_READY / (1 + len(peers)))
    comparison = Comparison([])
    entries = [*work.copies(), *work.operations(operations)]
    if beside is not None:
        entries += beside.operations(operations, BASELINE if fused == PLAIN else UNFUSED)
    try:
        with tempfile.TemporaryDirectory(prefix="oclbn-bench-") as folder:
            case = _Case(queue, shape, axis, outputs, operations, dtype, fused, Path(folder), wanted, comparison)
            np.save(case.block, values)
            for number, peer in enumerate(peers):
                if outputs == "pool":
                    case.absent(peer.kind.name, "", "pools are timed for oclbn alone; here take fresh or preallocated")
                elif room is not None and number >= room:
                    case.absent(peer.kind.name, "", "no memory for it beside the others: name it first or alone")
                else:
                    entries += case.entries(peer)
                advance(_READY * (2 + number) / (1 + len(peers)))
            timed = interleave(entries, rounds, lambda part: advance(_READY + (1 - _READY) * part))
            for who, reason in timed.items():
                case.absent(who, "", reason)
    finally:
        for peer in peers:
            peer.release()
    comparison.rows.extend(_rows(entries, shape, axis, outputs, dtype, fused))
    return comparison


def expected_seconds(shape: Shape, operations: Sequence[str], peers: int, rounds: int | None) -> float:
    """How long `compare` takes, as found on a processor with two cores; without starting peers."""
    everything = sum(TENSORS.values()) + 2 * len(COPIES)
    timed = (sum(TENSORS[operation] for operation in operations) + 2 * len(COPIES)) / everything
    timed *= (1 - _READY) * (1.0 if rounds is None else rounds / 7)  # 7 are the fewest that large tensors get
    return (_SECONDS + 4 * math.prod(shape) / _PACE * (_READY + timed)) * (1 + peers)


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean of logarithms: how ratios are averaged."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def checked_axis(shape: Shape, axis: int) -> int:
    """`axis`, counted from the front. ParameterError: the shape has no such axis."""
    if not -len(shape) <= axis < len(shape):
        raise ParameterError(f"axis is {axis}; shape {shape} has {len(shape)} dimensions")
    return axis % len(shape)


def missing(queue: cl.CommandQueue, peer: PeerProcess) -> str:
    """Why a peer is not there, "" where it is: asked before anything is timed, with a tensor of six numbers.

    What it declines or fails to do otherwise shows where it is asked to.
    """
    with tempfile.TemporaryDirectory(prefix="oclbn-bench-") as folder:
        block = Path(folder, "block.npy")
        np.save(block, contract.block(6))
        try:
            _load(peer, queue, block, (2, 3), 1, peer.outputs)
        except Rejected as rejected:
            return str(rejected) if rejected.gone or peer.deaths else ""
    return ""


def _load(
    peer: PeerProcess,
    queue: cl.CommandQueue,
    block: Path,
    shape: Shape,
    axis: int,
    outputs: str,
    dtype: str = SINGLE.name,
    fused: Fused = PLAIN,
) -> None:
    facts = limits(queue.device)
    threads = facts.compute_units if facts.kind == "cpu" else os.cpu_count() or 1
    tensor: dict[str, Any] = {"block": str(block), "shape": shape, "axis": axis, "dtype": dtype}
    tensor |= {"activation": fused.activation.name, "residual": fused.residual}
    numbers = {"epsilon": EPSILON, "factor": FACTOR, "outputs": "preallocated" if outputs == "prepared" else outputs}
    peer.load(threads=threads, **tensor, **numbers, device=describe(queue.device))


def describe(device: cl.Device) -> dict[str, Any]:
    """What a peer's process finds the device by: names of platform and device, the platform's version, an index."""
    texts = {"platform": device.platform.name, "version": device.platform.version, "device": device.name}
    index = device.platform.get_devices().index(device)
    return {**{name: " ".join(text.split()) for name, text in texts.items()}, "index": index}


def room_for(queue: cl.CommandQueue, shape: Shape, dtype: np.dtype[Any] = SINGLE) -> int | None:
    """How many peers' processes have room for such a tensor beside ours; None where the system does not tell.

    SizeError: we have none ourselves.
    """
    device, nbytes = queue.device, math.prod(shape) * (dtype.itemsize + (SINGLE.itemsize if dtype != SINGLE else 0))
    facts = limits(device)
    check_size("x", nbytes, device)
    if 4 * nbytes > facts.memory_bytes:
        raise SizeError(f"four tensors need {4 * nbytes:,} bytes; {device.name.strip()} has {facts.memory_bytes:,}")
    free = _free_bytes()
    if free is None:
        return None
    ours = (
        6 if facts.kind == "cpu" else 3
    ) * nbytes  # what is made and checked on the host; a processor's device as well
    if ours > free:
        raise SizeError(f"the tensors and their check need {ours:,} bytes; the machine has {free:,} free")
    return (free - ours) // (_OF_A_PEER * nbytes)


@dataclass(frozen=True)
class _Case:
    """What the peers are asked about one shape."""

    queue: cl.CommandQueue
    shape: Shape
    axis: int
    outputs: str
    operations: Sequence[str]
    dtype: np.dtype[Any]
    fused: Fused
    folder: Path
    wanted: checking.Wanted
    comparison: Comparison

    @property
    def block(self) -> Path:
        return self.folder / "block.npy"

    def absent(self, who: str, operation: str, reason: str) -> None:
        absence = Absence(self.shape, self.axis, self.outputs, who, operation, reason)
        self.comparison.absences.append(absence)

    def entries(self, peer: PeerProcess) -> list[Entry]:
        """Those of a peer's operations whose results are there and right; the others are absences."""
        name = peer.kind.name
        try:
            _load(peer, self.queue, self.block, self.shape, self.axis, self.outputs, self.dtype.name, self.fused)
        except Rejected as rejected:
            self.absent(name, "", str(rejected))
            return []
        self.comparison.versions[name] = peer.version
        found = []
        for operation in self.operations:
            try:
                once = peer.prepare(operation, self.wanted, self.folder)
            except Rejected as rejected:
                self.absent(name, operation, str(rejected))
            else:
                found.append(Entry(name, operation, peer.turn(operation), once))
        return found


def _rows(entries: list[Entry], shape: Shape, axis: int, outputs: str, dtype: np.dtype[Any], fused: Fused) -> list[Row]:
    medians = [statistics.median(entry.samples) for entry in entries]
    best = min(median for entry, median in zip(entries, medians, strict=True) if entry.who == "copy")
    rows = []
    for entry, median in zip(entries, medians, strict=True):
        low, *_, high = statistics.quantiles(entry.samples, n=10, method="inclusive")
        own = SINGLE if entry.who == BASELINE else dtype
        tensors = TENSORS.get(entry.operation, 2)
        if entry.who not in (BASELINE, UNFUSED, "copy"):
            tensors += fused.tensors(entry.operation)
        nbytes = tensors * math.prod(shape) * own.itemsize
        told = (entry.plan, entry.who, outputs, len(entry.samples), own.name)
        rows.append(Row(shape, axis, entry.operation, median, low, high, nbytes, median / best, *told))
    return rows


def _free_bytes() -> int | None:
    """Memory that programs could still get; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
