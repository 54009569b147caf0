"""From a Build and a context to kernels that are ready to be enqueued.

Programs are kept per context (oclbn.program.kept) and Build, kernels per thread as well, as setting an argument changes
one. A build that fails raises BuildError with the compiler's words and the lines that they speak of. Each build is a
record at level INFO of the logger oclbn.program, whose attribute `seconds` says how long it took.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pyopencl as cl

from oclbn.device import advice, pocl
from oclbn.errors import BuildError
from oclbn.program import sources
from oclbn.program.kept import kept

if TYPE_CHECKING:
    from oclbn.plan.words import Build

OPTIONS = ("-cl-std=CL1.2",)
_PLACE = re.compile(r"([^\s:]+):(\d+)(?::\d+)?:")  # "forward.cl:14:3:", wherever it stands in a line about an error
_CONTEXT_LINES = 2

_log = logging.getLogger("oclbn.program")


def kernel(context: cl.Context, build: Build, name: str) -> cl.Kernel:
    """Kernel `name` of `build` in `context`, its argument types set; this thread's own.

    Compiles on first use. Raises BuildError where the driver refuses the program.
    """
    mine = kept(context).thread
    kernels: dict[tuple[Build, str], cl.Kernel] | None = getattr(mine, "kernels", None)
    if kernels is None:
        kernels = mine.kernels = {}
    found = kernels.get((build, name))
    if found is None:
        found = kernels[build, name] = new_kernel(context, build, name)
    return found


def new_kernel(context: cl.Context, build: Build, name: str) -> cl.Kernel:
    """Kernel `name` of `build` in `context`, its argument types set, its arguments the caller's own, by one thread.

    Compiles on first use. Raises BuildError where the driver refuses the program.
    """
    built = program(context, build)
    try:
        made = cl.Kernel(built, name)
    except OSError as error:  # of pyopencl's first kernel in a process
        raise BuildError(
            f"pyopencl cannot write its cache: {error}. Set PYOPENCL_NO_CACHE=1, or XDG_CACHE_HOME to a folder that "
            "can be written, in the environment"
        ) from error
    made.set_arg_types([kind for _, kind in arguments(build, name)])
    return made


def most_lanes(kernel: cl.Kernel, device: cl.Device) -> int:
    """Work-items that a group of this kernel may have on the device, which may be fewer than the device's own limit."""
    most: int = kernel.get_work_group_info(cl.kernel_work_group_info.WORK_GROUP_SIZE, device)
    return most


@functools.cache
def arguments(build: Build, name: str) -> tuple[tuple[str, Any], ...]:
    """Name and NumPy type of each argument of kernel `name`, in order; the type of a buffer is None."""
    return tuple((p.name, _argument_type(p.type, build)) for p in sources.parameters(build.source, name))


def program(context: cl.Context, build: Build) -> cl.Program:
    """The compiled program of `build` in `context`; compiled once per process and context."""
    shared = kept(context)
    shared.note(context)
    with shared.lock:
        found = shared.programs.get(build)
        if found is None:
            found = shared.programs[build] = _compile(context, build)
        return found


def text_of(build: Build) -> str:
    """The complete source that the compiler is given for `build`."""
    return _header(build) + _source(build).text


def _source(build: Build) -> sources.Source:
    whole = sources.load(build.source)
    return sources.with_one(whole, build.kernel) if build.kernel else whole


def _header(build: Build) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in build.defines)


def _compile(context: cl.Context, build: Build) -> cl.Program:
    # POCL keeps what it compiled under the source, without comments, and the name that LLVM gave the processor, not the
    # one put in.
    names = (pocl.mend_target(device) for device in context.devices)
    mended = "".join(f"typedef int for_{re.sub(r'[^0-9A-Za-z]', '_', name)};\n" for name in names if name)
    # Another object for the context: pyopencl's programs hold theirs, and oclbn.program.kept waits for its users'.
    own = cl.Context.from_int_ptr(context.int_ptr)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)  # remarks of a build that succeeded
            built = _built(own, text_of(build) + mended)
    except cl.Error as error:
        raise BuildError(_explain(build, context, str(error))) from error
    seconds = time.perf_counter() - start
    _log.info("built %s in %.3f s", build, seconds, extra={"seconds": seconds})
    return built


def _built(context: cl.Context, text: str) -> cl.Program:
    """The program, by way of pyopencl's cache on disk where the driver has none, if that can be written."""
    made = cl.Program(context, text)
    try:
        made.build(list(OPTIONS))
    except KeyError as error:
        if "PYOPENCL_CACHE_FAILURE_FATAL" not in error.args:  # for which pyopencl asks there, set or not
            raise
        made = cl.Program(context, text)
        made.build(list(OPTIONS), cache_dir=False)  # type: ignore[arg-type]  # False: none
    return made


def _explain(build: Build, context: cl.Context, log: str) -> str:
    """The compiler's log, then each line it complains of with its neighbours, numbered as in the file."""
    defines = " ".join(f"{name}={value}" for name, value in build.defines)
    devices = ", ".join(f"{device.name.strip()} ({device.platform.name.strip()})" for device in context.devices)
    if any("pocl" in device.version.lower() for device in context.devices):
        cause = advice.of_kernel_cache(os.environ)
        if cause:
            return f"{build.title} does not build on {devices}: {cause}\n\n{log.strip()}"
    lines = text_of(build).split("\n")
    origins = [("", 0)] * len(build.defines) + list(_source(build).origins)
    shown: list[str] = []
    for index in _complaints(log, origins):
        shown.append(f"{origins[index][0]}:")
        around = range(max(0, index - _CONTEXT_LINES), min(len(origins), index + _CONTEXT_LINES + 1))
        shown += [
            f"{'>' if near == index else ' '} {origins[near][1]:4d} | {lines[near]}"
            for near in around
            if origins[near][0] == origins[index][0] and origins[near][1]
        ]
    if not shown:  # the driver names no line that we know: show what it was given
        shown = [f"  {number:4d} | {line}" for number, line in enumerate(lines, start=1)]
    return f"{build.title} does not build on {devices} with {defines}\n\n{log.strip()}\n\n" + "\n".join(shown)


def _complaints(log: str, origins: list[tuple[str, int]]) -> list[int]:
    """Indices of the lines that the log calls wrong, by file and line, or by line of the whole text (Oclgrind)."""
    files = {file for file, _ in origins}
    found: dict[int, None] = {}
    for line in log.splitlines():
        place = _PLACE.search(line) if "error" in line.lower() else None
        if place is None:
            continue
        number = int(place[2])
        if place[1] in files and (place[1], number) in origins:
            found[origins.index((place[1], number))] = None
        elif place[1] not in files and 0 < number <= len(origins):
            found[number - 1] = None
    return list(found)


def _argument_type(name: str, build: Build) -> Any:
    if name == "buffer":
        return None
    accumulator = np.float64 if dict(build.defines).get("DOUBLE") else np.float32
    return {"long": np.int64, "int": np.int32, "ACC": accumulator}[name]
