"""Drivers that fail: at the n-th thing that is asked of them, once or from then on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyopencl as cl
import pytest

Status = cl.status_code


@dataclass(frozen=True)
class Fault:
    """What is raised in place of the driver's work; code None: the error has no status code of OpenCL's."""

    error: type[BaseException]
    code: int | None = None

    def make(self, routine: str) -> BaseException:
        if self.code is None:
            return self.error(routine)
        return self.error(cl._cl._ErrorRecord(routine, self.code, ""))


NO_OBJECT = Fault(cl.MemoryError, Status.MEM_OBJECT_ALLOCATION_FAILURE)
NO_RESOURCES = Fault(cl.RuntimeError, Status.OUT_OF_RESOURCES)
NO_HOST_MEMORY = Fault(cl.RuntimeError, Status.OUT_OF_HOST_MEMORY)
DEVICE_GONE = Fault(cl.RuntimeError, Status.DEVICE_NOT_AVAILABLE)
CONTEXT_GONE = Fault(cl.LogicError, Status.INVALID_CONTEXT)
INTERRUPT = Fault(KeyboardInterrupt)
DRIVERS_FAULTS = [
    pytest.param(NO_OBJECT, id="no memory for an object"),
    pytest.param(NO_RESOURCES, id="out of resources"),
    pytest.param(NO_HOST_MEMORY, id="out of host memory"),
    pytest.param(DEVICE_GONE, id="device gone"),
    pytest.param(CONTEXT_GONE, id="context gone"),
]
INTERRUPTED = pytest.param(INTERRUPT, id="interrupted")

# What oclbn and pyopencl.array ask of a driver in a call, by the names they look it up with.
_COMMANDS = ("enqueue_nd_range_kernel", "enqueue_copy", "enqueue_fill", "enqueue_fill_buffer", "enqueue_marker")
_ARGUMENTS = ("set_arg", "set_args")


class Driver:
    """Counts what is asked of the driver, and fails from number `first` (from 0) on, `times` times."""

    def __init__(self, fault: Fault | None, first: int, times: int) -> None:
        self.fault, self.first, self.times = fault, first, times
        self.asked: list[str] = []

    def ask(self, what: str) -> None:
        number = len(self.asked)
        self.asked.append(what)
        if self.fault is not None and self.first <= number < self.first + self.times:
            raise self.fault.make(what)


@contextlib.contextmanager
def failing(fault: Fault | None = None, first: int = 0, times: int = 1) -> Iterator[Driver]:
    """Within the block the driver fails so; without a fault what is asked of it is only counted."""
    driver = Driver(fault, first, times)
    real_buffer = cl.Buffer

    class Buffer(real_buffer):  # type: ignore[valid-type,misc]  # a class still, as pyopencl asks isinstance
        def __init__(self, *given: Any, **options: Any) -> None:
            driver.ask("clCreateBuffer")
            super().__init__(*given, **options)

    def asking(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*given: Any, **options: Any) -> Any:
            driver.ask(name)
            return real(*given, **options)

        return ask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cl, "Buffer", Buffer)
        for name in _COMMANDS:
            patch.setattr(cl, name, asking(name, getattr(cl, name)))
        for name in _ARGUMENTS:
            patch.setattr(cl.Kernel, name, asking(name, getattr(cl.Kernel, name)))
        yield driver


def counted(call: Callable[[], Any]) -> list[str]:
    """What a call asks of the driver, in order."""
    with failing() as driver:
        call()
    return driver.asked
