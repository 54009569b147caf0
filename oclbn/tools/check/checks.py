"""What `oclbn check` does in a child process, where a driver that aborts or hangs loses only one check.

`serve` answers requests (oclbn.tools.check.checklist.request) one by one.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from oclbn import device, functional
from oclbn.errors import BuildError, OclbnError
from oclbn.program import building
from oclbn.proof import proving
from oclbn.tools.bench import benchmark
from oclbn.tools.check.checklist import BuildCheck, Check, NumberCheck, SpeedCheck, asked
from oclbn.tools.child import requests
from oclbn.truth import cases
from oclbn.truth.expectation import expected
from oclbn.truth.hostile import Data, Host
from oclbn.tuning import using

BEFORE, _BEHIND = 3, 64  # elements around a result: an odd offset, and room for a whole vector too much
_ROUNDS = 5


class Fault(Exception):
    """A check that failed; the message says how."""


def build(queue: cl.CommandQueue, check: BuildCheck) -> dict[str, Any]:
    """Compile, and ask each kernel how many work-items its groups may have: where that is too few, plans take fewer."""
    most = {
        name: building.most_lanes(building.new_kernel(queue.context, check.build, name), queue.device)
        for name in check.kernels
    }
    for name, lanes in most.items():
        if lanes < 1:
            raise Fault(f"groups of {name} may have {lanes} work-items")
    return {"most": most}


def numbers(queue: cl.CommandQueue, check: NumberCheck) -> dict[str, Any]:
    """Run an operation on views with odd offsets and compare: the worst error, over its tolerance, and of what."""
    host = check.make()
    arrays = _Arrays(queue, host)
    fused = [name for name in ("residual", "output") if getattr(host, name) is not None]
    if host.output is not None:
        fused.remove("residual")  # which the output stands for
    given = arrays.put(
        *dict.fromkeys((*cases.TAKES[check.operation], *(("bias",) if host.activation.code else ()), *fused))
    )
    with using(**{"variant": check.variant} if check.variant else {}):
        options: dict[str, Any] = {"activation": host.activation, "second": host.second, "groups": host.groups}
        results = cases.run(functional, check.operation, given, axis=check.axis, out=arrays.out(), **options)
    arrays.see_nothing_spilt()
    found = {name: result.get() for name, result in results.items()}
    worst = cases.judge(found, expected(check.operation, host, check.axis))
    if not worst.good:
        raise Fault(str(worst))
    return {"units": worst.units, "of": worst.of}


def speed(queue: cl.CommandQueue, check: SpeedCheck) -> dict[str, Any]:
    """Seconds, bytes per second, and times the fastest copy, of training, backward and inference."""
    operations = ("forward", "backward", "inference")
    rows = benchmark.compare(queue, check.shape, rounds=_ROUNDS, operations=operations).rows
    told = {}
    for row in rows:
        if row.who == "oclbn":
            told[row.operation] = {"seconds": row.median, "bandwidth": row.bandwidth, "ratio": row.ratio}
    return told


def surrounded(host: Host) -> Host:
    """The elements of `host` in a row, after BEFORE and followed by many NaNs."""
    flat = np.full(BEFORE + host.size + _BEHIND, np.nan, host.dtype)
    flat[BEFORE : BEFORE + host.size] = host.reshape(-1)
    return flat


class _Arrays:
    """A tensor's arguments on the device, each a view with an odd offset; results land among NaNs."""

    def __init__(self, queue: cl.CommandQueue, host: Data) -> None:
        self.queue, self.host = queue, host
        self._parents: list[tuple[str, cla.Array]] = []

    def put(self, *names: str) -> dict[str, cla.Array]:
        """The arguments of these names, on the device."""
        return {name: self._place(name, getattr(self.host, name)) for name in names}

    def out(self) -> cla.Array:
        """Room for a result like x."""
        return self._place("out", np.full_like(self.host.x, np.nan))

    def _place(self, name: str, host: Host) -> cla.Array:
        parent = cla.to_device(self.queue, surrounded(host))
        self._parents.append((name, parent))
        view: cla.Array = parent[BEFORE : BEFORE + host.size].reshape(host.shape)
        return view

    def see_nothing_spilt(self) -> None:
        """Fault where something was written beside a result or an argument."""
        for name, parent in self._parents:
            flat = parent.get()
            if not (np.isnan(flat[:BEFORE]).all() and np.isnan(flat[-_BEHIND:]).all()):
                raise Fault(f"something is written beyond {name}")


def _answer(queue: cl.CommandQueue, check: Check) -> dict[str, Any]:
    if isinstance(check, BuildCheck):
        return build(queue, check)
    return numbers(queue, check) if isinstance(check, NumberCheck) else speed(queue, check)


def _summary(error: Exception) -> str:
    """The first line; of a failed build also the first in which the compiler complains."""
    first, *others = str(error).strip().split("\n")
    complaints = [line.strip() for line in others if "error:" in line.lower()] if isinstance(error, BuildError) else []
    return ": ".join([first, *complaints[:1]])


def serve() -> None:
    """Answer requests until the input ends; the first one names the device and the choices in force."""
    os.environ[proving.VARIABLE] = "0"  # what would be gone round is what is looked for
    queue: cl.CommandQueue | None = None
    choices: dict[str, Any] = {}
    for request, reply in requests():
        answer: dict[str, Any] = {"done": None}
        try:
            if queue is None:
                choices = request["choices"]
                queue = device.queue_for(request["device"])
            else:
                with using(**choices):
                    answer["done"] = _answer(queue, asked(request["with"]))
        except (Fault, OclbnError, cl.Error, MemoryError) as error:
            answer["rejected"] = _summary(error)
        reply(answer)


if __name__ == "__main__":
    serve()
