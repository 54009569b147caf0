"""The operations that `oclbn tune` tries: on which tensor, with which arguments, and what should come out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from oclbn import functional
from oclbn.call.prepared import Prepared, prepared_for
from oclbn.call.request import Request
from oclbn.elements import numbers_of
from oclbn.plan.words import Plan
from oclbn.tools.tune.search import Choices
from oclbn.truth import cases
from oclbn.truth.cases import Case
from oclbn.truth.expectation import Expected, expected
from oclbn.truth.hostile import Data
from oclbn.tuning import using

GUARD = 1024  # elements behind a result that nothing may write to
_PER_CHANNEL = ("scale", "bias", "running_mean", "running_var", "save_mean", "save_invstd")


class Calls:
    """The operations on one tensor, each with its result in the same place; several may share their memory."""

    def __init__(self, queue: cl.CommandQueue, case: Case, flat: tuple[cla.Array, cla.Array, cla.Array]) -> None:
        self.queue, self.case = queue, case
        size = math.prod(case.shape)
        self.x, self.dy, self.out = (array[:size].reshape(case.shape) for array in flat)
        self.guard = flat[2][size : size + GUARD]
        rng = np.random.default_rng(1)
        channels = case.shape[case.axis]
        numbers = numbers_of(self.x.dtype)
        self.hosts = {name: rng.uniform(0.5, 1.5, channels).astype(numbers) for name in _PER_CHANNEL}
        self.given = {name: cla.to_device(queue, host) for name, host in self.hosts.items()}
        self.given |= {"x": self.x, "dy": self.dy}

    def prepared(self, operation: str, choices: Choices) -> Prepared:
        """What `run` runs under these choices; its groups are as large as the kernels bear, at most as asked."""
        out = None if operation == "moments" else self.out
        with using(**choices):
            return prepared_for(Request.of(operation, self.x, self.case.axis, {"dy": self.dy}, out), self.queue)

    def plan(self, operation: str, choices: Choices) -> Plan:
        """Its plan."""
        return self.prepared(operation, choices).plan

    def prepare(self) -> None:
        """Before a run that is to be checked: what it does not write shows, and what it must not write as well."""
        for name in ("running_mean", "running_var"):
            self.given[name].set(self.hosts[name])
        memory: Any = self.out.base_data
        nan = np.full(1, math.nan, self.out.dtype).view(f"u{self.out.dtype.itemsize}")[0]
        cl.enqueue_fill_buffer(self.queue, memory, nan, 0, self.out.nbytes + self.guard.nbytes)

    def run(self, operation: str) -> dict[str, cla.Array]:
        """Enqueue the operation; its results by name. Training moves the running statistics."""
        return cases.run(functional, operation, self.given, axis=self.case.axis, out=self.out)

    def expected(self, operation: str, channels: Any) -> Expected:
        """What `run` should give for some of the channels, after `prepare`."""
        x, dy = (np.take(array.get(), channels, axis=self.case.axis) for array in (self.x, self.dy))
        scale, bias, mean, var, *saved = (self.hosts[name][channels] for name in _PER_CHANNEL)
        host = Data(x, dy, scale, bias, mean, var, saved=(saved[0], saved[1]))
        return expected(operation, host, self.case.axis)
