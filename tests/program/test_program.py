"""Programs: built once, kernels per thread, and a build that fails tells where."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

from oclbn.call.prepared import prepared_for
from oclbn.call.request import Request
from oclbn.errors import BuildError
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.words import Build
from oclbn.program import building, sources
from oclbn.tuning.choices import using

ACCUMULATE = Build("accumulate.cl", (("DOUBLE", 0), ("LANES", 1), ("VEC", 1)))


def test_a_program_is_built_once_per_context(queue: cl.CommandQueue) -> None:
    assert building.program(queue.context, ACCUMULATE) is building.program(queue.context, ACCUMULATE)


def test_a_program_has_the_kernel_that_is_wanted_and_no_other(queue: cl.CommandQueue) -> None:
    """What compilers make of the others costs as much as this one: on Intel's runtime two thirds of a first call."""
    x = cla.zeros(queue, (4, 5, 6), np.float32)
    for operation in OPERATIONS:
        for variant in ("", "split"):
            with using(variant=variant):
                launches = prepared_for(Request.of(operation, x, 1, {"dy": x, "ddx": x}), queue).plan.launches
            for launch in launches:
                built = building.program(queue.context, launch.build)
                assert built.get_info(cl.program_info.NUM_KERNELS) == 1
                assert [kernel.function_name for kernel in built.all_kernels()] == [launch.kernel]


def test_a_build_is_a_record_of_the_log(queue: cl.CommandQueue, caplog: pytest.LogCaptureFixture) -> None:
    new = Build("accumulate.cl", (*ACCUMULATE.defines, ("LOGGED", 1)))
    with caplog.at_level(logging.INFO, logger="oclbn"):
        building.program(queue.context, new)
        building.program(queue.context, new)
    (record,) = [one for one in caplog.records if "LOGGED=1" in one.getMessage()]
    assert record.name == "oclbn.program"
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("built accumulate.cl with DOUBLE=0 LANES=1 VEC=1 LOGGED=1 in ")
    assert record.seconds > 0


def test_a_failed_build_is_none(queue: cl.CommandQueue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="oclbn"), pytest.raises(BuildError):
        building.program(queue.context, Build("accumulate.cl", (("DOUBLE", 0), ("LANES", 1), ("VEC", 3000))))
    assert not caplog.records


def test_a_cache_that_cannot_be_written_costs_time_only(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pyopencl keeps programs on disk where the driver does not (Intel's, rusticl, Oclgrind)."""
    building.new_kernel(queue.context, ACCUMULATE, "accumulate")  # pyopencl's first kernel opens another of its caches
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("PYOPENCL_CACHE_FAILURE_FATAL", raising=False)
    new = Build("accumulate.cl", (*ACCUMULATE.defines, ("UNCACHED", 1)))
    assert building.new_kernel(queue.context, new, "accumulate").function_name == "accumulate"


_FIRST = """
import sys
import numpy as np
import oclbn.device
from oclbn import functional, gpuarray

x = gpuarray.to_gpu(np.ones((4, 3), np.float32), queue=oclbn.device.queue_for(sys.argv[1]))
try:
    functional.batch_norm_train(x, None, None, None, None)[0].get()
    print("right")
except Exception as error:
    print(type(error).__name__, str(error).partition("\\n")[0])
"""


@pytest.mark.once(reason="the cache that cannot be written is pyopencl's")
def test_the_first_kernel_where_no_cache_can_be_written(queue: cl.CommandQueue, spec: str, tmp_path: Path) -> None:
    """Some versions of pyopencl cannot do without: then the message says what helps, and it does."""
    (tmp_path / "file").write_text("")
    given = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "file"), "POCL_CACHE_DIR": str(tmp_path)}
    for more in ({}, {"PYOPENCL_NO_CACHE": "1"}):
        command = [sys.executable, "-W", "ignore", "-c", _FIRST, spec]
        done = subprocess.run(command, env=given | more, capture_output=True, text=True, timeout=300, check=True)
        told = done.stdout.strip()
        if told == "right":
            return
        assert not more, told
        assert told.startswith("BuildError pyopencl cannot write its cache")
        assert "PYOPENCL_NO_CACHE=1" in told


def test_a_kernel_is_the_threads_own(queue: cl.CommandQueue) -> None:
    mine = building.kernel(queue.context, ACCUMULATE, "accumulate")
    assert building.kernel(queue.context, ACCUMULATE, "accumulate") is mine
    theirs: list[cl.Kernel] = []
    thread = threading.Thread(
        target=lambda: theirs.append(building.kernel(queue.context, ACCUMULATE, "accumulate")),
    )
    thread.start()
    thread.join()
    assert theirs[0] is not mine


def test_a_failing_build_shows_the_numbered_lines(
    queue: cl.CommandQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources.kernel_directory(), tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "accumulate.cl"
    lines = broken.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if "GATHERED(" in line)
    lines[at] = lines[at].replace("scale,", "scale_that_is_not_there,")
    broken.write_text("\n".join(lines))
    monkeypatch.setattr(sources, "kernel_directory", lambda: tmp_path)
    sources.load.cache_clear()
    try:
        with pytest.raises(BuildError) as caught:
            building.program(queue.context, Build("accumulate.cl", (*ACCUMULATE.defines, ("BROKEN", 1))))
    finally:
        sources.load.cache_clear()
    message = str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert message.startswith("accumulate.cl does not build on ")
    assert "LANES=1" in message
    assert "scale_that_is_not_there" in message
    assert f"{at + 1:4d} | {lines[at]}" in message


def test_a_mistake_in_a_pattern_is_shown_where_it_stands(
    queue: cl.CommandQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By file and line, whichever of the times that the file is included the compiler speaks of."""
    shutil.copytree(sources.kernel_directory(), tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "numbers" / "moments.inc"
    text = broken.read_text()
    broken.write_text(text.replace("a->n = n;", "a->n = n_that_is_not_there;"))
    at = text[: text.index("a->n = n;")].count("\n")
    monkeypatch.setattr(sources, "kernel_directory", lambda: tmp_path)
    sources.load.cache_clear()
    try:
        with pytest.raises(BuildError) as caught:
            building.program(queue.context, Build("merge.cl", (("DOUBLE", 0), ("LANES", 1), ("VEC", 4))))
    finally:
        sources.load.cache_clear()
    assert "numbers/moments.inc:\n" in str(caught.value)
    assert f"> {at + 1:4d} | {broken.read_text().splitlines()[at]}\n" in f"{caught.value}\n"


@pytest.mark.parametrize("path", sorted(sources.kernel_directory().glob("*.cl")), ids=lambda path: path.name)
def test_kernel_files_compile_by_themselves(queue: cl.CommandQueue, path: Path) -> None:
    """With nothing defined and the folder of the kernels as the include path."""
    built = cl.Program(queue.context, path.read_text())
    built.build([*building.OPTIONS, f"-I{sources.kernel_directory()}"], cache_dir=False)  # type: ignore[arg-type]  # False: none
    written = re.findall(r"__kernel.*\bvoid (\w+)\(", path.read_text())
    assert sorted(built.kernel_names.split(";")) == sorted(written)  # rusticl 25 tells them in no order


OPAQUE = """
typedef ACCV LOOSE __attribute__((aligned(sizeof(ACC))));
static ACCV LOAD_NUMBERS(const __global ACC *p) { return *(const __global ACCV *)p; }
static void SAVE_NUMBERS(__global ACC *p, const ACCV value) { *(__global ACCV *)p = value; }
#define CLEAN(numbers) (numbers)
#define STORE(name) Element_##name
#define LOAD(name, p) load_##name(p, VEC)
#define SAVE(name, p, value) save_##name(p, value, VEC)
#define LOAD_ONE(name, p) load_one_##name(p)
#define SAVE_ONE(name, p, value) save_one_##name(p, value)
#define LOAD_PART(name, p, left) load_##name(p, left)
#define SAVE_PART(name, p, value, left) save_##name(p, value, left)
#define OPAQUE(name) \\
    typedef struct { ACC number; } Element_##name; \\
    static ACC load_one_##name(const __global Element_##name *p) { return p->number; } \\
    static void save_one_##name(__global Element_##name *p, const ACC value) { p->number = value; } \\
    static ACCV load_##name(const __global Element_##name *p, const int left) \\
    { \\
        ACC part[VEC]; \\
        for (int i = 0; i < left; ++i) part[i] = p[i].number; \\
        return FROM_ARRAY(part); \\
    } \\
    static void save_##name(__global Element_##name *p, const ACCV value, const int left) \\
    { \\
        ACC part[VEC]; \\
        TO_ARRAY(value, part); \\
        for (int i = 0; i < left; ++i) p[i].number = part[i]; \\
    }
OPAQUE(x)
OPAQUE(dy)
OPAQUE(aux)
OPAQUE(to)
"""


@pytest.mark.once("what the kernels' text may do with elements")
@pytest.mark.parametrize("walk", ["RUN=0", "RUN=64", "COLUMNS=1", "COLUMNS=1 LANES=16", "LANES=16"])
@pytest.mark.parametrize(
    "source", ["forward.cl", "backward.cl", "double_backward.cl", "double_constant.cl", "moments.cl", "copy.cl"]
)
def test_elements_are_touched_by_their_names_only(
    queue: cl.CommandQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, walk: str
) -> None:
    """All kernels build where elements are nothing to compute with, of a type for each tensor; io.clh alone knows."""
    shutil.copytree(sources.kernel_directory(), tmp_path, dirs_exist_ok=True)
    header = tmp_path / "numbers" / "io.clh"
    text = header.read_text()
    first, last = text.index("// The kinds"), text.index("// SAVE_FAR")
    header.write_text(text[:first] + OPAQUE + text[last:])
    monkeypatch.setattr(sources, "kernel_directory", lambda: tmp_path)
    sources.load.cache_clear()
    try:
        fused = [("ACT", 3), ("AUX", 1), ("SECOND", 1)]
        defines = [(name, int(value)) for name, value in (word.split("=") for word in walk.split())]
        building.program(
            queue.context,
            Build(source, (*defines, *fused, ("VEC", 4), ("BLOCKS", 4), ("UNROLL", 1), ("OPAQUE", 1))),
        )
    finally:
        sources.load.cache_clear()


def test_a_failed_build_can_be_mended(queue: cl.CommandQueue) -> None:
    with pytest.raises(BuildError):
        building.program(queue.context, Build("accumulate.cl", (("DOUBLE", 0), ("LANES", 1), ("VEC", 3000))))
    assert building.program(queue.context, ACCUMULATE)


def test_the_text_opens_with_the_defines() -> None:
    assert building.text_of(ACCUMULATE).startswith("#define DOUBLE 0\n#define LANES 1\n#define VEC 1\n#line 1")
