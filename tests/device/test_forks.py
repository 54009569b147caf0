"""Forked children: told where the drivers of their parent are of no use to them, and let alone where all is well."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyopencl as cl
import pytest

from oclbn import device
from oclbn.device import forks

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux: elsewhere less is noticed"),
]

# What the parts below are made of. `child` runs a function in a forked child and says how that ended.
PRELUDE = """
import os, select, signal, sys
import pyopencl as cl

def mine():
    platform, device = map(int, sys.argv[1].split(":"))
    return cl.get_platforms()[platform].get_devices()[device]

def foreign_use():
    context = cl.Context([mine()])
    queue = cl.CommandQueue(context)
    cl.enqueue_fill_buffer(queue, cl.Buffer(context, cl.mem_flags.READ_WRITE, 64), b"1", 0, 64)
    queue.finish()
    return context, queue  # Intel's queues do not keep their context

def normalise():
    import numpy as np
    from oclbn import device, functional, gpuarray
    x = gpuarray.to_gpu(np.float32([[1, 5], [3, 5]]), queue=device.queue_for(sys.argv[1]))
    return functional.batch_norm_train(x, None, None, None, None)[1].get().tolist()

def said(call):
    try:
        return str(call())
    except Exception as error:
        return type(error).__name__ + ": " + str(error)

def child(call, seconds=60):
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(writer, said(call).encode())
        os._exit(0)
    os.close(writer)
    told = os.read(reader, 9999).decode() if select.select([reader], [], [], seconds)[0] else "no answer"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return told
"""
RIGHT = "[2.0, 5.0]"


@pytest.fixture
def listed(queue: cl.CommandQueue) -> str:
    """The device's index among those of platforms; what needs a second process needs it by that."""
    info = device.select(queue.device)
    if info.simulator:
        pytest.skip("needs a driver with threads; a simulator has none")
    return info.spec


def run(script: str, spec: str) -> list[str]:
    """The lines that a script prints, in a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), spec]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def is_told(line: str) -> bool:
    return line.startswith("ContextError: this process was forked") and '"spawn"' in line


@pytest.mark.parametrize("imported", ["import oclbn", ""], ids=["imported before the fork", "imported in the child"])
@pytest.mark.parametrize("use", ["cl.get_platforms()", "kept = foreign_use()"], ids=["listed", "used"])
def test_a_child_of_one_that_used_pyopencl_alone_is_told(listed: str, imported: str, use: str) -> None:
    (line,) = run(f"{imported}\n{use}\nprint(child(normalise, 20))", listed)
    assert is_told(line), line


def test_a_child_of_one_that_imported_oclbn_between_two_uses_is_told(listed: str) -> None:
    (line,) = run("kept = foreign_use()\nimport oclbn\nprint(child(normalise, 20))", listed)
    assert is_told(line), line


def test_a_grandchild_is_told(listed: str) -> None:
    (line,) = run("import oclbn\ncl.get_platforms()\nprint(child(lambda: child(normalise, 20)))", listed)
    assert is_told(line), line


def test_a_child_of_one_that_listed_devices_is_told(listed: str) -> None:
    (line,) = run("import oclbn.device\noclbn.device.devices()\nprint(child(normalise, 20))", listed)
    assert is_told(line), line


@pytest.mark.parametrize(
    "before", ["import oclbn, oclbn.device", ""], ids=["imported before the fork", "imported in the child"]
)
def test_a_child_of_one_that_used_nothing_computes(listed: str, before: str) -> None:
    first, second, third = run(
        f"""
        {before}
        print(child(normalise))
        print(child(normalise))
        print(said(normalise))
        """,
        listed,
    )
    assert (first, second, third) == (RIGHT, RIGHT, RIGHT)


def test_a_call_that_fails_before_any_driver_is_asked_is_no_use(listed: str) -> None:
    script = """
        from oclbn import functional, gpuarray
        for call in (lambda: gpuarray.to_gpu(["text"]), lambda: functional.moments(None)):
            print(said(call))
        print(child(normalise))
        """
    *errors, last = run(script, listed)
    assert [line.partition(":")[0] for line in errors] == ["DtypeError", "ArrayTypeError"]
    assert last == RIGHT


def test_a_child_that_used_pyopencl_itself_computes(listed: str) -> None:
    script = """
        def work():
            kept = foreign_use()
            return normalise()
        print(child(work))
        """
    assert run(script, listed) == [RIGHT]


def test_a_child_with_children_of_its_own_computes(listed: str) -> None:
    """Its drivers' memory is that of its child as well, and all the same it may use them: nothing is beyond doubt."""
    script = """
        def work():
            kept = foreign_use()
            reader, writer = os.pipe()
            process = os.fork()
            if process == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            told = normalise()
            os.close(writer)
            os.waitpid(process, 0)
            return told
        print(child(work))
        """
    assert run(script, listed) == [RIGHT]


def test_a_parent_with_children_computes(listed: str) -> None:
    script = """
        kept = foreign_use()
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        print(said(normalise))
        os.close(writer)
        os.waitpid(process, 0)
        """
    assert run(script, listed) == [RIGHT]


def test_a_pool_that_forks_before_the_first_use_works_beside_its_parent(listed: str) -> None:
    script = """
        import multiprocessing
        import oclbn
        def work(number):
            return normalise()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(said(normalise))
            print(pool.map_async(work, range(4)).get(100))
        """
    assert run(script, listed) == [RIGHT, str([[2.0, 5.0]] * 4)]


def test_a_forked_pool_passes_on_what_its_workers_are_told(listed: str) -> None:
    script = """
        import multiprocessing
        import oclbn
        def work(number):
            return normalise()
        cl.get_platforms()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(said(lambda: pool.map_async(work, range(1)).get(20)))
        """
    (line,) = run(script, listed)
    assert is_told(line), line


def test_what_is_a_driver(listed: str) -> None:
    """Those that the loader has loaded, and neither the loader nor what else needs it."""
    script = """
        from pathlib import Path
        from oclbn.device import forks
        print(len(list(forks._drivers())))
        cl.get_platforms()
        print(*(Path(path).name for path in forks._drivers()))
        """
    none, names = run(script, listed)
    assert none == "0"
    assert names
    assert "libOpenCL" not in names
    assert "_cl." not in names


def test_a_process_that_runs_a_program_inherits_nothing(listed: str) -> None:
    """This one has loaded drivers, and was not forked without running Python anew."""
    assert not forks._are_inherited()
