"""`oclbn bench`: how far from the copy of the same tensor, and from what else there is."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyopencl as cl
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import Progress, TaskID, TaskProgressColumn

from oclbn import device
from oclbn.activations import NAMES
from oclbn.activations import PLAIN as PLAIN_ACTIVATIONS
from oclbn.cli import bench_report, builds, output, plot, types
from oclbn.cli.bench_report import Report, Shown, ShownPacked, ShownProfile
from oclbn.cli.failures import Interrupted
from oclbn.cli.progress import Left, above, expect, progress
from oclbn.cli.types import (
    SELECTIONS,
    DeviceType,
    Names,
    Once,
    ShapeType,
    Target,
    check_free,
    overwriting,
    together,
    trainable,
)
from oclbn.elements import named
from oclbn.errors import ShapeError, SizeError
from oclbn.files import whole
from oclbn.tools.bench import benchmark, packing, profiling
from oclbn.tools.bench.benchmark import OUTPUTS, TENSORS
from oclbn.tools.bench.suites import SUITES, Case, Shape
from oclbn.tools.bench.turns import BASELINE, UNFUSED
from oclbn.tools.bench.workload import PLAIN, SINGLE, Fused
from oclbn.tools.peers.process import PeerProcess, platform_library
from oclbn.tools.peers.registry import PEERS


class _Picture(Target):
    """A file whose suffix is a format that plots can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Path = super().convert(value, param, ctx)
        if path.suffix.lower().lstrip(".") not in plot.FORMATS:
            self.fail(f"{str(path)!r} has to end in one of .{', .'.join(plot.FORMATS)}", param, ctx)
        return path


_LOOK, _BUSY = 0.3, 0.5  # seconds; cores that others may use before it is worth a word
_PROFILE = 0.4  # of the time of a comparison


class _Bench(Once):
    """Its help ends with a list of what --against takes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Libraries for --against"):
            formatter.write_dl([(kind.name, kind.about) for kind in PEERS.values()])
        super().format_epilog(ctx, formatter)


@click.command(
    name="bench",
    cls=_Bench,
    epilog="A library that does not do something leaves a dash and a line that says why; so does one that is not "
    "installed, which is told first. Where none of them is there, nothing is timed (status 2).",
)
@click.option("--device", "spec", type=DeviceType(), help=f"The device: {SELECTIONS}")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=Names(sorted(SUITES), "NAMES"),
    help=f"Time shapes by name: {', '.join(SUITES)}.",
)
@click.option("--shape", "shapes", multiple=True, type=ShapeType(), help="Time a shape of your own.")
@click.option("--axis", default=1, show_default=True, help="The axis of the channels of each --shape; -1 is the last.")
@click.option(
    "--operations",
    multiple=True,
    type=Names(tuple(TENSORS), "NAMES"),
    default=[",".join(TENSORS)],
    show_default=True,
    help="Time these alone; `both` is forward, then backward.",
)
@click.option(
    "--outputs",
    multiple=True,
    type=Names(OUTPUTS, "NAMES", formerly={"reused": "preallocated", "bound": "prepared"}),
    default=["preallocated,fresh"],
    show_default=True,
    help="Where results go: into memory given with out= (preallocated), the same by calls that functional.bind has "
    "prepared (prepared), into new memory in each call (fresh), or into that of a pyopencl MemoryPool (pool).",
)
@click.option(
    "--against", multiple=True, type=Names(tuple(PEERS), "NAMES"), help="Time other libraries beside oclbn; see below."
)
@click.option(
    "--peer-python",
    envvar="OCLBN_PEER_PYTHON",
    default=sys.executable,
    metavar="PATH",
    shell_complete=lambda ctx, param, incomplete: [CompletionItem(incomplete, type="file")],
    help="The Python that has these libraries, if it is another one; also OCLBN_PEER_PYTHON.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(("float32", "float64", "float16", "bfloat16")),
    help="The elements' type; beside another one than float32 that is timed as well, in the same run.",
)
@click.option(
    "--activation",
    default="none",
    show_default=True,
    type=click.Choice(NAMES),
    metavar="NAME",
    help="Time operations with this activation, y = f(bn(x)), and beside them the same without, as `plain`.",
)
@click.option("--residual", is_flag=True, help="The same with a residual that is added before the activation.")
@click.option("--rounds", type=click.IntRange(min=3), help="Give each so many turns, instead of about 0.25 s of them.")
@click.option("--details", is_flag=True, help="Print a line for each time: quantiles, MB, GB/s, samples.")
@click.option("--profile", is_flag=True, help="Show the device's clock beside the host's, and compare nothing.")
@click.option(
    "--packed",
    is_flag=True,
    help="Time calls on tensors whose rows run backwards, which have to be packed, beside plain calls and the copies.",
)
@types.as_json
@click.option("--plot", "picture", type=_Picture(), metavar="FILE", help="Draw it as well: .png, .svg or .pdf.")
@overwriting
def command(
    spec: str | None,
    suites: tuple[tuple[str, ...], ...],
    shapes: tuple[Shape, ...],
    axis: int,
    operations: tuple[tuple[str, ...], ...],
    outputs: tuple[tuple[str, ...], ...],
    against: tuple[tuple[str, ...], ...],
    peer_python: str,
    dtype: str,
    activation: str,
    residual: bool,
    rounds: int | None,
    details: bool,
    profile: bool,
    packed: bool,
    as_json: bool,
    picture: Path | None,
    overwrite: bool,
) -> None:
    """Time batch normalization beside the fastest copy of the same tensor, and beside other
    libraries.

    Everything on a tensor is timed in the same run, in turns. Times are medians, from the call to the empty queue. The
    baseline is the fastest of the device's copy command and two copy kernels; outputs that are fresh are compared with
    a copy into fresh memory. Other libraries run in processes of their own, which stand still while others are timed,
    on as many threads as the device has compute units. All results are checked against float64 first.

    Options with NAMES or a shape may be repeated, and add up. Without --suite and --shape, the suite resnet50 is timed.
    Each shape is shown as soon as it has been timed; after Ctrl-C, what has been found is printed, written and drawn,
    and the exit status is 130. It is 1 where nothing could be timed.
    """
    if axis != 1 and not shapes:
        raise click.BadParameter("it needs --shape: suites say where their channels are", param_hint="--axis")
    if packed and dtype != SINGLE.name:
        raise click.UsageError(f"--packed times float32; leave out --dtype {dtype}")
    fused = Fused(PLAIN_ACTIVATIONS[activation], residual)
    if fused != PLAIN and (profile or packed):
        raise click.UsageError("--activation and --residual are timed without --profile and --packed")
    if profile and packed:
        raise click.UsageError("--profile and --packed show other things: leave out one of them")
    if (profile or packed) and (picture or against):
        asked = "--profile" if profile else "--packed"
        raise click.UsageError(f"{asked} compares nothing and draws nothing: leave out --against and --plot")
    if picture:
        check_free(picture, "--plot", overwrite=overwrite)
        plot.require_matplotlib()
    info = device.select(spec)
    queue = device.queue_for(info)
    cases = [trainable(shape, axis) for shape in shapes]
    for suite in together(suites) or ([] if shapes else ["resnet50"]):
        cases += SUITES[suite]
    cases = list(dict.fromkeys(cases))
    names, kinds, peers = together(operations), together(outputs), together(against)
    element = element_type(dtype, queue)
    if profile:
        _profile(info, queue, cases, names, element, as_json)
        return
    if packed:
        _packed(info, queue, cases, [name for name in names if name in packing.OPERATIONS], rounds, as_json)
        return
    beside = (UNFUSED,) if fused != PLAIN else () if element == SINGLE else (BASELINE,)
    report = Report(info, cases, names, kinds, (*beside, *peers), dtype, str(fused))
    try:
        if peers:
            _tell_missing(queue, peers, peer_python)
        _warn_of_others()
    except KeyboardInterrupt:
        _end(complete=False, anything=False, reasons=())
    console = output.console()
    shown = None if as_json else Shown(console, report, details=details)
    with builds.counted() as built:
        try:
            _compare(report, queue, rounds, peer_python, shown, fused)
        except KeyboardInterrupt:
            report.complete = False
    if shown is None:
        output.print_json(report.as_json())
    else:
        shown.end()
        _show_built(console, built)
    if picture and report.rows:
        _draw(report, picture)
    _end(report.complete, bool(report.rows), report.skipped.values())


def _tell_missing(queue: cl.CommandQueue, names: Sequence[str], python: str) -> None:
    """Say which libraries are not there before anything is timed; a usage error where none of them is."""
    if shutil.which(python) is None:
        raise click.BadParameter(f"{python!r} is no program that can be started", param_hint="--peer-python")
    library, told = platform_library(queue.device.platform.int_ptr), {}
    for name in names:
        with contextlib.closing(PeerProcess(PEERS[name], "preallocated", python=python, library=library)) as peer:
            if reason := benchmark.missing(queue, peer):
                told[name] = reason
    if len(told) == len(names):
        raise click.BadParameter("; ".join(f"{name}: {why}" for name, why in told.items()), param_hint="--against")
    for name, why in told.items():
        output.say(f"Note: {name} is left out: {why}")


def _compare(
    report: Report, queue: cl.CommandQueue, rounds: int | None, python: str, shown: Shown | None, fused: Fused
) -> None:
    """Fill the report, shape by shape."""
    library = platform_library(queue.device.platform.int_ptr)
    dtype = element_type(report.dtype, queue)
    known = [name for name in report.peers if name not in (BASELINE, UNFUSED)]
    weights = [_seconds(queue, shape, report.operations, len(report.peers), rounds) for shape, _ in report.cases]
    expected = (sum(weights) + benchmark.PEER_SECONDS * len(known)) * len(report.outputs)
    what = f"{_counted(len(report.cases), 'shape')}, {_counted(len(report.outputs), 'kind')} of outputs"
    expect(what, expected)
    with contextlib.ExitStack() as processes, _progress(sum(weights) * len(report.outputs), expected) as (bar, task):
        done = 0.0
        for kind in report.outputs:
            peers = [PeerProcess(PEERS[name], kind, python=python, library=library) for name in known]
            for peer in peers:
                processes.callback(peer.close)
            for case, weight in zip(report.cases, weights, strict=True):
                bar.update(task, description=f"{bench_report.label(*case)}, {kind}")

                def advance(part: float, done: float = done, weight: float = weight) -> None:
                    bar.update(task, completed=done + part * weight)

                options: dict[str, Any] = {"rounds": rounds, "outputs": kind, "operations": report.operations}
                options |= {"dtype": dtype, "fused": fused}
                try:
                    report.add(benchmark.compare(queue, *case, peers=peers, advance=advance, **options))
                except SizeError as error:
                    report.skipped[*case, kind] = str(error)
                done += weight
                bar.update(task, completed=done)
                if shown is not None:
                    above(bar, functools.partial(shown.case, case, kind))
            for peer in peers:
                peer.close()


def _profile(
    info: device.DeviceInfo,
    queue: cl.CommandQueue,
    cases: list[Case],
    operations: tuple[str, ...],
    dtype: np.dtype[Any],
    as_json: bool,
) -> None:
    weights = [_PROFILE * _seconds(queue, shape, operations, 0, None) for shape, _ in cases]
    measure = functools.partial(profiling.profile, queue, operations=operations, dtype=dtype)
    _one_by_one("profile", ShownProfile, measure, info, cases, weights, as_json=as_json)


def _packed(
    info: device.DeviceInfo,
    queue: cl.CommandQueue,
    cases: list[Case],
    operations: Sequence[str],
    rounds: int | None,
    as_json: bool,
) -> None:
    if not operations:
        raise click.UsageError(f"--packed times {', '.join(packing.OPERATIONS)}: give one of them")
    weights = [_seconds(queue, shape, operations, 0, rounds) for shape, _ in cases]
    measure = functools.partial(packing.packed, queue, rounds=rounds, operations=operations)
    _one_by_one("packed", ShownPacked, measure, info, cases, weights, as_json=as_json)


def _one_by_one(
    what: str,
    table: type[ShownProfile] | type[ShownPacked],
    measure: Callable[[Shape, int], list[Any]],
    info: device.DeviceInfo,
    cases: list[Case],
    weights: Sequence[float],
    *,
    as_json: bool,
) -> None:
    """Measure shape by shape, and show each as soon as it is there, in a table; or all as JSON, under this name."""
    found: list[Any] = []
    skipped: dict[Case, str] = {}
    expect(_counted(len(cases), "shape"), sum(weights))
    console = output.console()
    shown = None if as_json else table(console, info, cases)
    complete = True
    with builds.counted() as built:
        try:
            with _progress(sum(weights), sum(weights)) as (bar, task):
                for (shape, axis), weight in zip(cases, weights, strict=True):
                    bar.update(task, description=f"{bench_report.label(shape, axis)}, {what}")
                    try:
                        timed = measure(shape, axis)
                    except (SizeError, ShapeError) as error:
                        skipped[shape, axis], timed = str(error), []
                    found += timed
                    bar.advance(task, weight)
                    if shown is not None:
                        above(bar, functools.partial(shown.add, timed))
        except KeyboardInterrupt:
            complete = False
    if shown is None:
        output.print_json(bench_report.listed_as_json(info, what, found, skipped, complete=complete))
    else:
        shown.end(found, skipped)
        _show_built(console, built)
    _end(complete, bool(found), skipped.values())


def element_type(name: str, queue: cl.CommandQueue) -> np.dtype[Any]:
    """The type of this name, if the queue's device can compute with it."""
    try:
        found = named(name)
    except ImportError as error:
        raise click.UsageError(f"--dtype: {error}") from error
    if found == np.float64 and not device.limits(queue.device).fp64:
        raise click.UsageError(f"--dtype is float64; {queue.device.name.strip()} computes in float32 only")
    return found


def _seconds(queue: cl.CommandQueue, shape: Shape, operations: Sequence[str], peers: int, rounds: int | None) -> float:
    """What a shape is expected to take; next to nothing where it has no room."""
    try:
        benchmark.room_for(queue, shape)
    except SizeError:
        return 0.01
    return benchmark.expected_seconds(shape, operations, peers, rounds)


def _end(complete: bool, anything: bool, reasons: Iterable[str]) -> None:
    """The exit status, where it is not 0."""
    if not complete:
        raise Interrupted("what had been timed until then is printed" if anything else "nothing had been timed yet")
    if not anything:
        raise click.ClickException("nothing was timed: " + "; ".join(dict.fromkeys(reasons)))


def _draw(report: Report, picture: Path) -> None:
    from oclbn.cli import bench_plot

    try:
        with whole.replacing(picture) as file:
            file.write(bench_plot.draw(report, picture.suffix.lower().lstrip(".")))
    except OSError as error:
        raise click.FileError(str(picture), hint=error.strerror) from error
    output.say(f"Wrote {picture}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _show_built(console: Console, built: builds.Builds) -> None:
    if built.programs:
        console.print(str(built), style="dim")


def _warn_of_others() -> None:
    """On standard error, if other programs keep the processor busy: peers with threads of their own suffer first."""
    if (busy := busy_cores(_LOOK)) > _BUSY:
        output.say(f"Note: other programs use {busy:.1f} cores; times are worth little while they do.")


def busy_cores(seconds: float) -> float:
    """How many cores others than this process used in the time to come, by Linux's count; 0 on other systems.

    What a hypervisor gives to other machines is counted as used.
    """
    start, own = _ticks(), time.process_time()
    if not start:
        return 0.0
    time.sleep(seconds)
    used = [later - earlier for earlier, later in zip(start, _ticks(), strict=True)]
    user, nice, system, _idle, _iowait, irq, softirq, stolen = used
    busy = (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")
    return max(0.0, (busy - (time.process_time() - own)) / seconds)


def _ticks() -> list[int]:
    """The processor's time so far, all cores together; empty on systems that do not tell."""
    with contextlib.suppress(OSError):
        return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return []


@contextlib.contextmanager
def _progress(total: float, expected: float) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error, none where that is no terminal; parts weigh the seconds that they should take."""
    with progress(output.errors(), TaskProgressColumn, Left) as bar:
        yield bar, bar.add_task("", total=total, expected=expected)
