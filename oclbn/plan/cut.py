"""From a group's shape to a plan: slices and chunks, chains, builds and launches."""

from __future__ import annotations

from dataclasses import replace

from oclbn.plan.groups import EVEN, GroupShape, is_beyond_cache
from oclbn.plan.operations import COUNTING, HEEDLESS, MERGES, SOURCES, TENSORS, Operation
from oclbn.plan.words import Build, DeviceLimits, Geometry, Launch, Memory, Plan, Problem, Tuning

_COUNT_BYTES = 8
_SHORT_ROW = 1024  # bytes
_MOST_ADDITIONS = 64  # to one accumulator before it is merged: what bounds the drift of sums
_MOST_ADDITIONS_ALONE = 16  # the same where there is but one accumulator, so that no tree over several follows
_MOST_ADDITIONS_TO_A_STRIP = 64  # of sums over the rows that are taken at once, on two levels (FEW in strip.clh)
_MOST_ADDITIONS_DOWN = 64  # the same down columns, where sums have two levels (SHORT in columns.clh)
_LEAST_CHUNK_VECTORS = 48  # of a channel, in a chunk: what a merge costs is spread over these
_LEFT_OUT = ("KIND_", "ACT", "AUX", "SECOND", "SHARED", "WITHOUT")  # defines that are not there where they are 0
_LEAST_CHAIN = 4  # blocks: the first one of a chain is summed with nothing to write


def assemble(
    variant: str,
    operation: Operation,
    kernels: tuple[str, ...],
    problem: Problem,
    device: DeviceLimits,
    tuning: Tuning,
    shape: GroupShape,
    slices: int,
) -> Plan:
    if shape.lanes == shape.vec == 1 and not (problem.columns or shape.run):
        tuning = replace(tuning, unroll=1)  # several accumulators of one number: Intel's compiler errs
    # Sizes decide on numbers, not on builds: streaming, fetching and chains are compiled in where they may be wanted.
    beyond = is_beyond_cache(operation, problem, device)
    stream = shape.lanes == 1 and tuning.stream
    geometry = _cut(problem, tuning, shape, slices, operation.arrays_read, beyond)
    chained = kernels == (operation.resident,) and stream and _may_chain(operation, problem, tuning, shape)
    if chained and beyond and not problem.longer:  # what is written beside a sum has as many rows
        geometry = replace(geometry, chain=_chain(device, tuning, shape))
    defines: dict[str, int] = {
        "COLUMNS": int(problem.columns),
        "DOUBLE": int(problem.itemsize == 8),
        "LANES": shape.lanes,
        "VEC": shape.vec,
        "BLOCKS": shape.blocks_per_item,
        "UNROLL": tuning.unroll,
        "STREAM": int(stream),
        "CHAIN": int(chained),
        "NEXT": int(chained and tuning.fetch),
    }
    if shape.run:
        defines["RUN"] = shape.run
    defines |= {f"KIND_{name}": kind for name, kind in zip(TENSORS, problem.kinds, strict=True) if kind}
    defines |= problem.fusion.defines
    defines["FETCH"] = int(tuning.fetch and _is_worth_fetching(problem, shape, operation))
    launches = tuple(
        Launch(
            kernel,
            Build(SOURCES.get(kernel, operation.source), _heeded(defines, kernel), kernel),
            groups_of(kernel, shape.blocks, geometry, problem.batches),
            shape.lanes,
        )
        for kernel in (*kernels, *filter(None, (operation.after,)))
    )
    return handing_on(Plan(variant, geometry, launches), operation, problem)


def groups_of(kernel: str, blocks: int, geometry: Geometry, batches: int) -> int:
    """How many work-groups a kernel has, where the channels of all batches make up so many blocks."""
    if kernel in MERGES:
        return blocks // batches
    return -(-blocks // geometry.chain) * geometry.slices


def _heeded(defines: dict[str, int], kernel: str) -> tuple[tuple[str, int], ...]:
    """The defines, those that change nothing in the kernel being 0: what is alike for the compiler is built once."""
    heeded = {name: 0 if kernel in HEEDLESS.get(name, ()) else value for name, value in defines.items()}
    return tuple((name, value) for name, value in heeded.items() if value or not name.startswith(_LEFT_OUT))


def handing_on(plan: Plan, operation: Operation, problem: Problem) -> Plan:
    """The plan with memory for the numbers per channel that launches hand on: of slices, their counts, of batches."""
    slices, channels, partial = plan.geometry.slices * problem.batches, problem.channels, operation.partial
    kernels = {launch.kernel for launch in plan.launches}
    memory: list[Memory] = []
    if kernels & COUNTING:
        memory.append(Memory("counts", slices, _COUNT_BYTES))
    if partial and len(kernels - {operation.after}) > 1:
        memory.append(Memory("partial", len(partial) * slices * channels, problem.number, partial, channels))
    for name, numbers in operation.each.items():
        memory.append(Memory(name, numbers * problem.batches * channels, problem.number))
    return replace(plan, memory=tuple(memory))


def _cut(problem: Problem, tuning: Tuning, shape: GroupShape, slices: int, arrays: int, beyond: bool) -> Geometry:
    """Cut a channel into about `slices` slices: by rows where there are enough of them, else within rows too."""
    slice_rows = -(-problem.most_rows // (slices * shape.fold)) * shape.fold
    row_slices = -(-problem.most_rows // slice_rows)  # a shorter batch may have nothing in the last ones
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
        beyond=int(beyond),
    )


def _may_chain(operation: Operation, problem: Problem, tuning: Tuning, shape: GroupShape) -> bool:
    """Whether groups that take several blocks in turn are of use, whatever the sizes."""
    if not tuning.chains or problem.columns or tuning.most_steps:
        return False
    # Short rows of five arrays at once, and a dozen tables: that is more than the nearest cache takes.
    return not (shape.run and operation.arrays_read > 1)


def _chain(device: DeviceLimits, tuning: Tuning, shape: GroupShape) -> int:
    """How many blocks of channels one group takes in turn: as long as all compute units are as busy as without."""
    least = -(-shape.blocks // device.compute_units)  # what the busiest unit has in any case
    for chains in range(min(tuning.chains, shape.blocks), 0, -1):
        chain = -(-shape.blocks // (device.compute_units * chains))
        rounds = -(-shape.blocks // (chain * device.compute_units))
        if chain >= _LEAST_CHAIN and rounds * chain <= least * EVEN:
            return chain
    return least


def _is_worth_fetching(problem: Problem, shape: GroupShape, operation: Operation) -> bool:
    """Long rows are foreseen by the processor itself, and so are two streams, of several rows or of middling ones."""
    if shape.run or problem.columns:
        return operation.arrays_read == 1
    together = shape.lanes == 1 and shape.channels > 1
    return together and (operation.arrays_read == 1 or problem.inner * problem.itemsize < _SHORT_ROW)
