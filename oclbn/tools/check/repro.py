"""A failed check as a script for whoever makes the driver: pyopencl and NumPy are all that it needs (see _MEND).

It holds the text of the kernels as the compiler is given it, their arguments, the data, what should come out and how
far off that may be. It prints what is wrong and ends with status 1 where something is.
"""

from __future__ import annotations

import base64
import io
import pprint
import zlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from oclbn import __version__
from oclbn.call.prepared import dissect
from oclbn.device import pocl
from oclbn.plan.words import Fusion, Memory
from oclbn.program import building
from oclbn.tools.check.checklist import BuildCheck, NumberCheck
from oclbn.tools.check.checks import BEFORE, surrounded
from oclbn.tools.check.outcomes import Checked
from oclbn.truth import cases
from oclbn.truth.expectation import expected
from oclbn.truth.hostile import Data, Host

_LINE = 110  # characters of packed data in a line

_TEXT = '''"""{title}

Found by oclbn {version} (https://pypi.org/project/oclbn) on
    {device}
    {platform}, {platform_version}, driver {driver}

Needs {needs}. Exit status: 0 where everything is right, 1 where a result is wrong; a driver may also refuse
the kernel, abort or hang. The device of these names is used where it is there, or else the one of PYOPENCL_CTX.
"""

import base64
import io
import sys
import zlib

import numpy as np
import pyopencl as cl

PLATFORM, VERSION, DEVICE = {names}
OPTIONS = {options}

# The text for the compiler, of each program.
PROGRAMS = {programs}

# Launches in order: program, kernel, work-groups, work-items in each, arguments by name (None: a buffer of that name).
LAUNCHES = {launches}

# What the buffers hold, with NaN beside the arrays; by buffer: the element from which on results lie there, what these
# should be, and how far off they may be. NumPy files, compressed, base64.
BUFFERS = {{
{buffers}}}
EXPECTED = {{
{expected}}}

# Of these buffers the elements are bfloat16, as integers of 16 bits.
BFLOAT16 = {bfloat16}

# Kernels that are only asked how many work-items their groups may have: program, kernel.
ASKED = {asked}


def unpack(lines):
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode("".join(lines)))))


def numbers(name, host):
    return (host.astype(np.uint32) << 16).view(np.float32) if name in BFLOAT16 else host


def find_device():
    for platform in cl.get_platforms():
        try:
            devices = platform.get_devices()
        except cl.Error as error:
            print(platform.name, "cannot list its devices:", error)
            continue
        for device in devices:
            if (platform.name.strip(), platform.version.strip(), device.name.strip()) == (PLATFORM, VERSION, DEVICE):
                return cl.Context([device])
    return cl.create_some_context(interactive=False)


def main():
    context = find_device()
    queue = cl.CommandQueue(context)
    print("device:", queue.device.name.strip(), "/", queue.device.platform.version.strip())
{mend}    programs = [cl.Program(context, text).build(OPTIONS) for text in PROGRAMS]
    print("built", len(programs))
    hosts = {{name: unpack(lines) for name, lines in BUFFERS.items()}}
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    buffers = {{name: cl.Buffer(context, flags, hostbuf=host) for name, host in hosts.items()}}
    for number, name, groups, lanes, arguments in LAUNCHES:
        kernel = cl.Kernel(programs[number], name)
        for index, (argument, kind, value) in enumerate(arguments):
            kernel.set_arg(index, buffers.get(argument) if kind is None else np.dtype(kind).type(value))
        cl.enqueue_nd_range_kernel(queue, kernel, (groups * lanes,), (lanes,))
        queue.finish()
        print("ran", name)
    wrong = 0
    for number, name in ASKED:
        kernel = cl.Kernel(programs[number], name)
        most = kernel.get_work_group_info(cl.kernel_work_group_info.WORK_GROUP_SIZE, queue.device)
        print("groups of", name, "may have", most, "work-items")
        wrong += most < 1
    for name, before in hosts.items():
        host = np.empty_like(before)
        cl.enqueue_copy(queue, host, buffers[name])
        host, before = numbers(name, host), numbers(name, before)
        changed = ~((host == before) | (np.isnan(host) & np.isnan(before)))
        start, wanted, bound = EXPECTED.get(name, (0, None, None))
        if wanted is not None:
            wanted, bound = unpack(wanted), unpack(bound)
            changed[start : start + wanted.size] = False
        if changed.any() and name not in ("partial", "counts", "batch_m2", "batch_sums"):
            wrong += int(changed.sum())
            print(name + ": written where nothing may be, element", int(np.argmax(changed)))
        if wanted is None:
            continue
        got = host[start : start + wanted.size].astype(np.float64).reshape(wanted.shape)
        with np.errstate(all="ignore"):
            good = (np.abs(got - wanted) <= bound) | (got == wanted) | np.isposinf(bound)
        good |= np.isnan(got) & np.isnan(wanted)
        wrong += int((~good).sum())
        print(name + ":", "right" if good.all() else "%d of %d wrong" % ((~good).sum(), good.size))
        for at in np.argwhere(~good)[:5]:
            at = tuple(map(int, at))
            print("   at", at, "is", got[at], "instead of", wanted[at], "+-", bound[at])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
'''

# For a device that oclbn.device.pocl had to mend: without it no program can be built there, or other faults show.
_MEND = """\
    # This POCL takes the processor for one that its compiler does not know, or that its built-in library was not
    # compiled for: oclbn puts the name of the library's in.
    from oclbn.device.pocl import mend_target

    print("processor's name put in:", mend_target(queue.device))
"""


def script(checked: Checked, check: BuildCheck | NumberCheck, fault: str) -> str:
    """The script for a check that failed on a device, under the choices that were in force."""
    info = checked.info
    programs: list[Any] = []  # oclbn.plan.words.Build
    launches: list[tuple[int, str, int, int, list[tuple[str, str | None, Any]]]] = []
    buffers: dict[str, Host] = {}
    starts: dict[str, int] = {}
    wanted: dict[str, tuple[Host, Host]] = {}
    kernels: list[tuple[int, str]] = []
    if isinstance(check, BuildCheck):
        programs.append(check.build)
        kernels = [(0, kernel) for kernel in check.kernels]
    else:
        host = check.make()
        asked = checked.choices | ({"variant": check.variant} if check.variant else {})
        aux = 2 if host.output is not None else int(host.residual is not None)
        fusion = Fusion(host.activation.code, aux, host.second and bool(host.activation.code))
        planned, numbers = dissect(
            check.operation, host.x, check.axis, info.limits, asked, checked.room, fusion, host.groups
        )
        numbers["slope"] = host.activation.slope
        wanted = expected(check.operation, host, check.axis)
        starts, buffers = _buffers(check.operation, host, check.axis, planned.memory)
        numbers |= {f"{name}_start": start for name, start in starts.items()}
        rows = {row: one.name for one in planned.memory for row in one.rows}
        numbers |= {f"{row}_start": start for one in planned.memory for row, start in one.starts.items()}
        for launch in planned.launches:
            if launch.build not in programs:
                programs.append(launch.build)
            own = numbers | dict(launch.numbers)
            arguments = [
                (
                    rows.get(name, name),
                    None if kind is None else np.dtype(kind).name,
                    own.get(name, 0) if kind else None,
                )
                for name, kind in building.arguments(launch.build, launch.kernel)
            ]
            launches.append((programs.index(launch.build), launch.kernel, launch.groups, launch.lanes, arguments))
    mended = pocl.mend_target(info.device) is not None
    names = (info.device.platform.name.strip(), info.device.platform.version.strip(), info.device.name.strip())
    return _TEXT.format(
        title=f"{check}: {fault.partition(chr(10))[0]}".replace("\\", "/").replace('"', "'"),
        version=__version__,
        device=info.name,
        platform=info.platform,
        platform_version=info.platform_version,
        driver=info.driver,
        needs="pyopencl, NumPy and oclbn" if mended else "pyopencl and NumPy",
        mend=_MEND if mended else "",
        names=repr(names),
        options=repr(list(building.OPTIONS)),
        programs="[" + ", ".join(f'r"""\n{building.text_of(build)}"""' for build in programs) + "]",
        launches=pprint.pformat(launches, width=120, compact=True),
        buffers="".join(f"    {name!r}: {_packed(_plain(host))},\n" for name, host in buffers.items()),
        bfloat16=repr(sorted(name for name, host in buffers.items() if host.dtype.name == "bfloat16")),
        expected="".join(
            f"    {name!r}: ({starts[name]}, {_packed(value)}, {_packed(np.broadcast_to(bound, value.shape))}),\n"
            for name, (value, bound) in wanted.items()
        ),
        asked=repr(kernels),
    )


def _buffers(operation: str, host: Data, axis: int, memory: Sequence[Memory]) -> tuple[dict[str, int], dict[str, Host]]:
    """Where each array starts in its buffer, and the buffers, by the names of the kernels' arguments.

    All lies as oclbn.tools.check.checks has it: what the check makes starts amid NaN, results of the call's own at 0.
    """
    amid = {"y", "dx", "gx", "aux", *(field.name for field in fields(Data))}
    if operation in ("infer", "constant", "double_constant"):
        amid |= {"mean", "var", "save_mean"}  # the running statistics, by other names
    buffers, starts = cases.buffers(operation, host, axis), {}
    for name, array in buffers.items():
        starts[name] = BEFORE if name in amid else 0
        buffers[name] = surrounded(array) if name in amid else array
    for one in memory:
        buffers[one.name] = np.full(one.size, *((-1, np.int64) if one.name == "counts" else (np.nan, host.scale.dtype)))
    return starts, buffers


def _plain(host: Host) -> Host:
    """As NumPy alone knows it."""
    return host.view(np.uint16) if host.dtype.name == "bfloat16" else host


def _packed(host: Host) -> str:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(host))
    text = base64.b64encode(zlib.compress(file.getvalue(), 9)).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return "[" + ",\n".join(f'"{line}"' for line in lines) + "]"
