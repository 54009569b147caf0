"""A small tensor for the kernels of a plan: numbers in, a plan with the same builds out.

What the compiler has made of a kernel is the same for every tensor: sizes are arguments. So a tensor of some thousand
elements shows whether it is right, if its cut leads through every part of the kernel that the plan's tensor can reach:
several groups, the last one with fewer channels; whole vectors of channels, and parts of one; slices and chunks, the
last ones shorter; sums on more than one level; rows that end in a part of a vector; a chain of blocks that ends early.

Where kernels take another path by what the numbers are (`Paths`), the small tensor takes the path of the large one. All
tensors with the same builds and paths have the same small one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from oclbn.plan.cut import groups_of, handing_on
from oclbn.plan.operations import AFTER, Operation
from oclbn.plan.words import Geometry, Plan, Problem

_FAR_ROW = 512  # elements: such rows are written past the cache (rows.clh)
_LONG = 12  # vectors of a channel that is written in a loop of its own (runs.clh)
_LEVEL = 17  # additions that reach the second level of sums along rows (SHORT in rows.clh)
_DOWN = 8  # additions that reach the second level of sums down columns (SHORT in columns.clh)
_SUMS = 8  # of UNROLL rows of a strip each, that reach the next level (FEW in strip.clh)
_STRIP = 1536  # elements of a strip that is summed on all levels
_VECTORS = 3  # whole ones in a strip
_CHANNELS = 5  # of a group whose rows are walked one by one
_CHAIN = 3  # blocks of channels
_BATCHES = 2  # of a tensor that is several; the first one has a row more


@dataclass(frozen=True)
class Paths:
    """Which ways through its kernels a plan's numbers lead, beyond what its builds decide."""

    slices: bool  # of a channel, several
    beside: bool  # slices within a row
    chunks: bool  # of a row, several
    together: bool  # several channels to a group, where rows are walked one by one
    whole: bool  # rows, or all channels side by side, are whole vectors
    flush: bool  # rows of the whole tensor, or as many as make up a strip's, are whole vectors: they all begin alike
    far: bool  # rows, or slices within one, are long enough to be written past the cache
    rounds: bool  # with several work-items along rows: each has as many vectors there as are summed at once
    long: bool  # channels of a run are long enough for a loop of their own
    tiny: int  # length of a row that is shorter than a vector; else 0
    fold: bool  # several rows of the tensor make up one of a strip
    alone: bool  # one group has all channels
    width: int  # work-items side by side
    chain: bool
    beyond: bool  # outputs go past the cache, and what comes next is asked for, where that is compiled in

    def __str__(self) -> str:
        return ",".join(str(int(value)) for value in vars(self).values())


@dataclass(frozen=True)
class _Cut:
    inner: int
    share: int
    channels: int
    chunk_rows: int
    chunk_columns: int
    fold: int = 1  # rows of the tensor that make up one of a strip
    slice_columns: int = 0  # 0: slices are whole rows


def paths_of(problem: Problem, planned: Plan) -> Paths:
    """What decides on the small tensor, beside the plan's launches."""
    defines, g = dict(planned.launches[0].build.defines), planned.geometry
    vec, side_by_side = defines["VEC"], problem.channels if problem.columns else problem.inner
    run, lanes = bool(defines.get("RUN")), planned.launches[0].lanes
    rows = not problem.columns and not run
    return Paths(
        slices=g.slices > 1 or sum(launch.kernel not in AFTER for launch in planned.launches) > 1,
        beside=g.column_slices > 1,
        chunks=not problem.columns and g.chunk_columns < g.slice_columns,
        together=rows and g.share > 1,
        whole=side_by_side % vec == 0,
        flush=not rows and problem.channels * problem.inner * (g.chunk_columns if problem.columns else 1) % vec == 0,
        far=rows and lanes == 1 and g.slice_columns >= _FAR_ROW,
        rounds=rows and lanes > 1 and min(g.chunk_columns, g.slice_columns) >= defines["UNROLL"] * vec * g.width,
        long=run and problem.inner >= _LONG * vec,
        tiny=problem.inner if run and problem.inner < vec else 0,
        fold=problem.columns and g.chunk_columns > 1,
        alone=problem.columns and lanes == 1 and g.share >= problem.channels,
        width=g.width,
        chain=g.chain > 1,
        beyond=bool(g.beyond),
    )


def miniature(operation: Operation, problem: Problem, planned: Plan) -> tuple[Problem, Plan]:
    """A tensor on which the plan's kernels do all that they do on `problem`, and its cut; its arrays have no gaps.

    operation, problem: what the plan was made for. Every launch has the build and the kernel that it had.
    """
    defines = dict(planned.launches[0].build.defines)
    lanes, paths = planned.launches[0].lanes, paths_of(problem, planned)
    if problem.columns and lanes > 1:
        cut = _down_columns(paths, defines, lanes)
    elif problem.columns:
        cut = _down_sheets(paths, defines, problem, planned.geometry)
    elif defines.get("RUN"):
        cut = _along_runs(paths, defines, problem)
    else:
        cut = _along_rows(paths, defines, lanes)
    beside = -(-cut.inner // cut.slice_columns) if cut.slice_columns else 1
    below = 2 if paths.slices else 1
    whole = 1 if problem.columns or defines.get("RUN") else 2  # along rows the third chunk takes over another base
    rows = whole * cut.chunk_rows + (cut.chunk_rows // cut.fold // 3 + 1) * cut.fold  # chunks and a part of one
    last = rows - (cut.fold - 1)  # of a strip's row, one row of the tensor
    if below > 1 and cut.chunk_rows >= 3 * cut.fold:
        last -= cut.fold  # and the last slice is shorter
    channels, chain = cut.channels, 1
    if paths.chain:
        chain = _CHAIN
        channels += (chain - 1) * cut.share  # the last group has one block only
    batches = _BATCHES if problem.batches > 1 else 1
    blocks = -(-channels // cut.share) * batches
    geometry = Geometry(
        slices=below * beside,
        slice_rows=rows,
        slice_columns=cut.slice_columns or cut.inner,
        column_slices=beside,
        chunk_rows=cut.chunk_rows,
        chunk_columns=cut.chunk_columns,
        width=paths.width,
        share=cut.share,
        beyond=int(paths.beyond),
        chain=chain,
    )
    launches = tuple(
        replace(launch, groups=groups_of(launch.kernel, blocks, geometry, batches)) for launch in planned.launches
    )
    outer = (below - 1) * rows + last - (batches > 1 and not paths.chain)  # the longest batch has that many
    small = Problem(
        outer,
        channels,
        cut.inner,
        problem.itemsize,
        problem.columns,
        adjacent=True,
        kinds=problem.kinds,
        fusion=problem.fusion,
    )
    if batches > 1:
        small = replace(small, batches=batches, longer=int(not paths.chain), sample_rows=1)
    return small, handing_on(replace(planned, geometry=geometry, launches=launches), operation, small)


def _along_rows(paths: Paths, defines: dict[str, int], lanes: int) -> _Cut:
    """rows.clh: with several work-items rows are whole vectors, with one they hold a vector at least.

    A work-item has rounds of UNROLL vectors in a row and a part of one, where it has any on the plan's tensor; slices
    and chunks within a row are followed by shorter ones.
    """
    vec, unroll = defines["VEC"], defines["UNROLL"]
    side, tall, tail = vec * paths.width, lanes // paths.width, _tail(paths, vec)
    part = max(1, unroll // 2)
    if lanes == 1:
        mine = max(_VECTORS, unroll * _LEVEL + part)
        chunk = mine * side
        columns = chunk + chunk // 2 if paths.chunks else chunk
        while paths.far and columns < _FAR_ROW:
            columns += unroll * (_LEVEL - 1) * vec  # what is added before there is a carry: the row ends as before
        if not paths.far:
            columns = min(columns, (_FAR_ROW - 1) // vec * vec - vec)
    else:
        mine = unroll + part if paths.rounds else part
        chunk = mine * side
        columns = chunk - side // vec // 4 * vec  # some work-items have a vector less
        if paths.chunks:
            columns = chunk + max(side, chunk // 2 // side * side)
    columns = columns // vec * vec
    slice_columns = columns if paths.beside else 0
    inner = columns + (max(1, columns // vec // 2) * vec if paths.beside else 0) + tail
    chunk_columns = min(chunk, columns - vec) if paths.chunks else slice_columns or inner
    level = -(-vec * unroll * _LEVEL // columns) if lanes == 1 else 0
    rows = tall if paths.chunks else max(2 * tall, level)
    share = _CHANNELS if paths.together else 1
    return _Cut(inner, share, share + max(2, share // 2), rows, chunk_columns, slice_columns=slice_columns)


def _along_runs(paths: Paths, defines: dict[str, int], problem: Problem) -> _Cut:
    """runs.clh: the last group's strip holds a vector as well. Channels fill a vector, and begin another one."""
    vec, unroll, run = defines["VEC"], defines["UNROLL"], defines["RUN"]
    inner = paths.tiny or (_LONG if paths.long else 2) * vec + _tail(paths, vec)
    least = -(-vec // inner)  # channels that are a vector
    if least * inner > run:
        inner = problem.inner  # a run that is hardly more than a vector
        least = -(-vec // inner)
    share = max(least, min(vec + 1, run // inner, defines["BLOCKS"] * vec))
    rows = _SUMS * unroll + 2 if share * inner <= _STRIP else unroll + 1
    channels, before = share + least, (_CHAIN - 1) * share if paths.chain else 0
    while ((channels + before) * inner % vec == 0) != paths.flush or (channels % share or share) < least:
        channels += 1
    return _Cut(inner, share, channels, rows, inner)


def _down_columns(paths: Paths, defines: dict[str, int], lanes: int) -> _Cut:
    """columns.clh."""
    vec, tall = defines["VEC"], lanes // paths.width
    share = vec * defines["BLOCKS"] * paths.width
    more = max(vec, share // 3 // vec * vec) if paths.whole else share // 3 // vec * vec + _tail(paths, vec)
    return _Cut(1, share, share + more, (_DOWN + 2) * tall, 1)


def _down_sheets(paths: Paths, defines: dict[str, int], problem: Problem, g: Geometry) -> _Cut:
    """sheets.clh: each group's strip holds a vector, or the tensor has none."""
    vec, longest = defines["VEC"], defines["BLOCKS"] * defines["VEC"]
    rows, tail = _SUMS * defines["UNROLL"] + 2, _tail(paths, vec)
    if paths.fold:
        channels = vec + (vec // 2 if paths.flush and not paths.whole else tail)
        fold = 3 if channels * 3 <= longest and not paths.flush else 2
        if channels * fold > longest:
            channels, fold = problem.channels, g.chunk_columns
        return _Cut(1, channels, channels, rows * fold, fold, fold=fold)
    if paths.alone:
        channels = min(_VECTORS * vec + tail, longest)
        return _Cut(1, channels, channels, rows, 1)
    share = min(_VECTORS * vec, longest)
    return _Cut(1, share, share + vec + tail, rows, 1)


def _tail(paths: Paths, vec: int) -> int:
    """What lies beyond the last whole vector: most of one, so that a narrower vector has a part of one as well."""
    return 0 if paths.whole else max(1, vec - 3)
