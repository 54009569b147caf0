"""The operations that `oclbn tune` tries: on which tensor, with which arguments, and what should come out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from numpy.typing import NDArray

from oclbn import functional
from oclbn.plan.words import Plan
from oclbn.tools.tune.search import Choices
from oclbn.truth import reference
from oclbn.tuning import using

GUARD = 1024  # elements behind a result that nothing may write to
_PER_CHANNEL = ("scale", "bias", "mean", "var", "running_mean", "running_var")

Hosts = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A tensor's shape, the axis of its channels, its element type."""

    shape: tuple[int, ...]
    axis: int
    dtype: str = "float32"

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return shape + (f" @{self.axis}" if self.axis != 1 else "") + (f" {self.dtype}" * (self.dtype != "float32"))


class Calls:
    """The operations on one tensor, each with its result in the same place; several may share their memory."""

    def __init__(self, queue: cl.CommandQueue, case: Case, flat: tuple[cla.Array, cla.Array, cla.Array]) -> None:
        self.queue, self.case = queue, case
        size = math.prod(case.shape)
        self.x, self.dy, self.out = (array[:size].reshape(case.shape) for array in flat)
        self.guard = flat[2][size : size + GUARD]
        rng = np.random.default_rng(1)
        channels = case.shape[case.axis]
        self.hosts: Hosts = {name: rng.uniform(0.5, 1.5, channels).astype(case.dtype) for name in _PER_CHANNEL}
        self.given = {name: cla.to_device(queue, host) for name, host in self.hosts.items()}

    def plan(self, operation: str, choices: Choices) -> Plan:
        """What `run` runs under these choices; its groups are as large as the kernels bear, at most as asked."""
        out = None if operation == "moments" else self.out
        with using(**choices):
            return functional.plan_of(operation, self.x, self.case.axis, self.dy, out)

    def prepare(self) -> None:
        """Before a run that is to be checked: what it does not write shows, and what it must not write as well."""
        for name in ("running_mean", "running_var"):
            self.given[name].set(self.hosts[name])
        memory: Any = self.out.base_data
        nan = self.out.dtype.type(math.nan)
        cl.enqueue_fill_buffer(self.queue, memory, nan, 0, self.out.nbytes + self.guard.nbytes)

    def run(self, operation: str) -> dict[str, cla.Array]:
        """Enqueue the operation; its results by name. Training moves the running statistics."""
        x, g, axis = self.x, self.given, self.case.axis
        if operation == "train":
            moving = (g["running_mean"], g["running_var"])
            y, mean, invstd = functional.batch_norm_train(x, g["scale"], g["bias"], *moving, axis=axis, out=self.out)
            moved = dict(zip(("running_mean", "running_var"), moving, strict=True))
            return {"y": y, "save_mean": mean, "save_invstd": invstd, **moved}
        if operation == "infer":
            fixed = (g["mean"], g["var"])
            y = functional.batch_norm_infer(x, g["scale"], g["bias"], *fixed, axis=axis, out=self.out)
            return {"y": y}
        if operation == "moments":
            _, mean, m2 = functional.moments(x, axis=axis)
            return {"mean": mean, "m2": m2}
        given = (g["scale"], g["mean"], g["var"])  # var as 1 / std: any number is one
        results = functional.batch_norm_backward(
            x, self.dy, *given, axis=axis, training=operation == "backward", out=self.out
        )
        return dict(zip(("dx", "dscale", "dbias"), results, strict=True))

    def expected(self, operation: str, channels: NDArray[np.intp]) -> Hosts:
        """What `run` should give, for some of the channels, in float64."""
        x, dy = (np.take(array.get(), channels, axis=self.case.axis) for array in (self.x, self.dy))
        h = {name: host[channels] for name, host in self.hosts.items()}
        axis = self.case.axis
        if operation == "train":
            found = reference.train(
                x, *(h[name] for name in ("scale", "bias", "running_mean", "running_var")), axis=axis
            )
            wanted = {"y": found.y, "save_mean": found.mean, "save_invstd": found.invstd}
            assert found.running_mean is not None
            assert found.running_var is not None
            return {**wanted, "running_mean": found.running_mean, "running_var": found.running_var}
        if operation == "infer":
            return {"y": reference.infer(x, h["scale"], h["bias"], h["mean"], h["var"], axis=axis)}
        if operation == "moments":
            _, mean, m2 = reference.moments(x, axis=axis)
            return {"mean": mean, "m2": m2}
        training = operation == "backward"
        results = reference.backward(x, dy, h["scale"], h["mean"], h["var"], axis=axis, training=training)
        return dict(zip(("dx", "dscale", "dbias"), results, strict=True))
