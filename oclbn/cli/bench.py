"""`oclbn bench`: how far from the copy of the same tensor, and from what else there is."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pyopencl as cl
from rich.console import Console
from rich.progress import TaskProgressColumn, TimeRemainingColumn

from oclbn import device
from oclbn.cli import bench_report, builds, plot
from oclbn.cli.bench_report import Report
from oclbn.cli.progress import progress
from oclbn.cli.types import ShapeType, Target, trainable
from oclbn.errors import SizeError
from oclbn.files import whole
from oclbn.tools.bench import benchmark, profiling
from oclbn.tools.bench.benchmark import OUTPUTS, TENSORS
from oclbn.tools.bench.suites import SUITES, Case, Shape
from oclbn.tools.peers.process import PeerProcess, platform_library
from oclbn.tools.peers.registry import PEERS


class _Names(click.ParamType):  # type: ignore[type-arg]
    """Names of a few that are known, separated by commas."""

    def __init__(self, known: Sequence[str], name: str) -> None:
        self.known, self.name = tuple(known), name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


class _Picture(Target):
    """A file whose suffix is a format that plots can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Path = super().convert(value, param, ctx)
        if path.suffix.lower().lstrip(".") not in plot.FORMATS:
            self.fail(f"{str(path)!r} has to end in one of .{', .'.join(plot.FORMATS)}", param, ctx)
        return path


_WIDTH = 140
_LOOK, _BUSY = 0.3, 0.5  # seconds; cores that others may use before it is worth a word
_KINDS = "\n".join(f"  {kind.name:<15}{kind.about}" for kind in PEERS.values())


@click.command(
    name="bench",
    epilog=f"\b\nPeers for --against:\n{_KINDS}\n\n"
    "A peer that is not installed, or does not do something, leaves a dash and a line that says why.",
)
@click.option("--device", "spec", metavar="SPEC", help="Device: P:D, a type, or part of a name.")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=_Names(sorted(SUITES), "NAME"),
    help=f"Shapes by name: {', '.join(SUITES)}.",
)
@click.option("--shape", "shapes", multiple=True, type=ShapeType(), help="A shape of your own; repeatable.")
@click.option("--axis", default=1, show_default=True, help="Axis of the channels, for --shape.")
@click.option(
    "--operations",
    type=_Names(tuple(TENSORS), "NAMES"),
    default=",".join(TENSORS),
    show_default=True,
    help="Some of these; `both` is forward, then backward.",
)
@click.option(
    "--outputs",
    type=_Names(OUTPUTS, "NAMES"),
    default="reused,fresh",
    show_default=True,
    help="Results in memory given with out= (reused), the same by calls that functional.bind has prepared (bound), in "
    "new memory at each call (fresh), or from a pyopencl MemoryPool (pool).",
)
@click.option(
    "--against", multiple=True, type=_Names(tuple(PEERS), "PEERS"), help="Peers to time beside oclbn; see below."
)
@click.option(
    "--peer-python",
    envvar="OCLBN_PEER_PYTHON",
    default=sys.executable,
    metavar="PATH",
    help="The Python that has the peers, if it is another one; also OCLBN_PEER_PYTHON.",
)
@click.option("--rounds", type=click.IntRange(min=3), help="Turns of each operation; default: about 0.25 s of it.")
@click.option("--details", is_flag=True, help="A line for each time: quantiles, bytes, GB/s, samples.")
@click.option("--profile", is_flag=True, help="The device's clock beside the host's, instead of comparing.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, and nothing else.")
@click.option("--plot", "picture", type=_Picture(), metavar="FILE", help="Draw it as well: .png, .svg or .pdf.")
def command(
    spec: str | None,
    suites: tuple[tuple[str, ...], ...],
    shapes: tuple[Shape, ...],
    axis: int,
    operations: tuple[str, ...],
    outputs: tuple[str, ...],
    against: tuple[tuple[str, ...], ...],
    peer_python: str,
    rounds: int | None,
    details: bool,
    profile: bool,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Time batch normalization against the fastest copy of the same tensor, and against peers.

    Everything on a tensor is timed in the same run, in turns; times are medians, from the call to the empty queue, and
    ratios are to the fastest of the device's copy command and two copy kernels. Outputs that are fresh are compared
    with a copy into fresh memory. Peers run in processes of their own, which stand still while others are timed, on as
    many threads as the device has compute units. All results are checked against float64 first. Without --suite and
    --shape: the suite resnet50.
    """
    if profile and (picture or against):
        raise click.UsageError("--profile compares nothing and draws nothing: leave out --against and --plot")
    if picture:
        plot.require_matplotlib()
    info = device.select(spec)
    queue = device.queue_for(info)
    cases = [trainable(shape, axis) for shape in shapes]
    for suite in [name for names in suites for name in names] or ([] if shapes else ["resnet50"]):
        cases += SUITES[suite]
    cases = list(dict.fromkeys(cases))
    if profile:
        _profile(info, queue, cases, operations, as_json)
        return
    names = tuple(dict.fromkeys(name for some in against for name in some))
    _warn_of_others()
    report = Report(info, cases, operations, outputs, names)
    library = platform_library(queue.device.platform.int_ptr)
    with (
        contextlib.ExitStack() as processes,
        builds.counted() as built,
        _progress(len(cases) * len(outputs)) as (say, done),
    ):
        for kind in outputs:
            peers = [PeerProcess(PEERS[name], kind, python=peer_python, library=library) for name in names]
            for peer in peers:
                processes.callback(peer.close)
            for shape, where in cases:
                say(f"{bench_report.label(shape, where)}, {kind}")
                options: dict[str, Any] = {"rounds": rounds, "outputs": kind, "operations": operations}
                try:
                    report.add(benchmark.compare(queue, shape, where, peers=peers, **options))
                except SizeError as error:
                    report.skipped[shape, where, kind] = str(error)
                done()
            for peer in peers:
                peer.close()
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        console = _console()
        report.show(console, details)
        _show_built(console, built)
    if picture:
        from oclbn.cli import bench_plot

        try:
            with whole.replacing(picture) as file:
                file.write(bench_plot.draw(report, picture.suffix.lower().lstrip(".")))
        except OSError as error:
            raise click.FileError(str(picture), hint=error.strerror) from error


def _profile(
    info: device.DeviceInfo, queue: cl.CommandQueue, cases: list[Case], operations: tuple[str, ...], as_json: bool
) -> None:
    found: list[profiling.Profile] = []
    skipped: dict[Case, str] = {}
    with builds.counted() as built, _progress(len(cases)) as (say, done):
        for shape, axis in cases:
            say(f"{bench_report.label(shape, axis)}, profile")
            try:
                found += profiling.profile(queue, shape, axis, operations=operations)
            except SizeError as error:
                skipped[shape, axis] = str(error)
            done()
    if as_json:
        click.echo(json.dumps(bench_report.profile_as_json(info, found, skipped), indent=1))
    else:
        console = _console()
        bench_report.show_profile(console, info, found, skipped)
        _show_built(console, built)


def _show_built(console: Console, built: builds.Builds) -> None:
    if built.programs:
        console.print(str(built), style="dim")


def _warn_of_others() -> None:
    """On standard error, if other programs keep the processor busy: peers with threads of their own suffer first."""
    if (busy := busy_cores(_LOOK)) > _BUSY:
        click.echo(f"Note: other programs use {busy:.1f} cores; times are worth little while they do.", err=True)


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


def _console() -> Console:
    """Standard output, wide enough for every table: a terminal may break lines, but no digit is lost."""
    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    return console


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar on standard error, nothing where that is no terminal: functions to say what begins, and that it is done."""
    with progress(Console(stderr=True), TaskProgressColumn, TimeRemainingColumn) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text), lambda: bar.advance(task)
