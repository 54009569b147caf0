"""Compiling ahead: the kernels of calls that are to come, built and proven in several processes at a time.

Drivers that compile on processors do so one program after the other in a process, whatever its threads and contexts
do: POCL and Intel's runtime, tried with both. What they have compiled lies in a cache on disk, and so do the verdicts
of proofs (oclbn.proof.verdicts). So other processes compile a share of the kernels, and this one finds them there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import IO, Any, Self

import numpy as np
import pyopencl as cl

from oclbn import names
from oclbn.activations import Activation
from oclbn.call import arguments, fusing, prepared, values
from oclbn.call.request import Request
from oclbn.device import default_queue, driver_errors, limits, queue_for, select, tuning_names
from oclbn.elements import WANTED, dtype_of
from oclbn.errors import DtypeError, ParameterError, ShapeError
from oclbn.plan.operations import BATCHES, MERGES, OPERATIONS, operation_of
from oclbn.plan.variants import plan
from oclbn.plan.words import ALONE, Build, Fusion
from oclbn.proof import proving
from oclbn.tuning import tuning_for, using

_LIGHT = {"infer", "train_apply", "backward_apply", "double_apply", "batches_apply", "gradients_apply", *MERGES}
_START = 2.0  # kernels that a process compiles in the time that another one takes to begin
_CHILD = (
    "import json, sys; asked = json.load(sys.stdin); sys.path[:] = asked['path']; "
    "from oclbn.call import ahead; ahead.answer(asked)"
)
_log = logging.getLogger(__name__)


@driver_errors("prepare")
def prepare(
    shapes: Iterable[Sequence[int]],
    /,
    *,
    operations: str | Collection[str] = ("train", "backward", "infer"),
    dtype: Any = np.float32,
    axis: int = 1,
    queue: cl.CommandQueue | None = None,
    processes: int | None = None,
    activation: Any = None,
    residual: bool = False,
    groups: int = 1,
) -> None:
    """Compile and prove the kernels of calls that are to come, so that the first ones take no longer than others.

    shapes: of x, (N, C, *spatial) each, channels on `axis`; arrays in C's order without gaps are meant. operations: of
    "train", "backward", "infer", "moments", "constant" (backward with constants), "double_backward" and
    "double_constant" (batch_norm_double_backward, with ddx), one or several. dtype: of x (and dy, ddx and results).
    queue: of the device and the context that the calls will use; None: oclbn.device.default_queue().

    processes: how many compile at the same time, this one included; None: as many as there are cores and as are worth
    their start on a processor's driver, and this one alone on other devices. Others are of use where compiled kernels
    are kept on disk, as POCL and pyopencl do; what they leave undone is done here. All that was compiled before is
    taken from there, so that a second process is through in a fraction of a second.

    activation, residual: of calls with an activation, as batch_norm_train takes it, and with a residual (True);
    backward is then prepared with y, where the activation's derivative follows from it, and for the residual's
    gradient. groups: of "train" and "backward", as batch_norm_train takes them.

    Nothing is returned and no array is touched. ShapeError, ParameterError, DtypeError: which argument, before anything
    is compiled. BuildError, DeviceError: as the calls would raise them.

    >>> prepare([(64, 32, 28, 28), (64, 64, 14, 14)], operations="infer", processes=1)
    """
    named = _named(operations)
    wanted = _dtype(dtype)
    whole = [_shape(index, shape) for index, shape in enumerate(_listed(shapes))]
    index = values.integer(axis)
    if index is None:
        raise ParameterError(f"axis is {axis!r}; an integer is wanted")
    for place, shape in enumerate(whole):
        if not -len(shape) <= index < len(shape):
            raise ParameterError(
                f"axis is {index}; shapes[{place}] is {shape}, so {-len(shape)} to {len(shape) - 1} are wanted"
            )
    groups = values.whole("groups", groups, 1)
    for place, shape in enumerate(whole):
        if groups > max(shape[0], 1):
            raise ParameterError(
                f"groups is {groups}; shapes[{place}] is {shape}, so 1 to {shape[0]} are wanted, its samples"
            )
        if groups > 1 and index % len(shape) == 0:
            raise ParameterError(f"groups is {groups} and axis is {index}; samples are on axis 0, so another is wanted")
    if processes is not None:
        processes = values.whole("processes", processes, 1)
    queue = arguments.queue("queue", queue) or default_queue()
    prepared.check_type("dtype", wanted, queue)
    if not isinstance(residual, bool):
        raise ParameterError(f"residual is {values.shown(residual)}; True or False is wanted")
    fused = fusing.activation_of(activation)
    requests = [
        _request(operation, shape, index % len(shape), wanted, _fusion(operation, fused, residual), groups)
        for shape in whole
        if 0 not in shape
        for operation in named
    ]
    mine, *others = _shares(requests, queue, processes)
    with _Children() as children:
        for share in others:
            children.begin(share, queue)
        for request in mine:
            prepared.prepared_for(request, queue)
        children.wait()
    if others:
        proving.look_again(queue.device)
    for request in requests:
        prepared.prepared_for(request, queue)


def answer(asked: dict[str, Any]) -> None:
    """In another process: prepare what it was asked for, on the device that it was told."""
    queue = queue_for(asked["device"])
    if queue.device.name != asked["name"]:
        raise SystemExit(f"device {asked['device']} is {queue.device.name}, and not {asked['name']}")
    with using(**asked["tuning"]):
        for operation, shape, axis, dtype, fusion, groups in asked["requests"]:
            request = _request(operation, tuple(shape), axis, _dtype(dtype), Fusion(**fusion), groups)
            prepared.prepared_for(request, queue)


def _named(operations: Any) -> tuple[str, ...]:
    wanted = f"of {', '.join(OPERATIONS)} one or several are wanted"
    try:
        named = (operations,) if isinstance(operations, str) else tuple(operations)
    except TypeError:
        raise ParameterError(f"operations is {operations!r}; {wanted}") from None
    for name in named:
        if name not in OPERATIONS:
            raise ParameterError(f"operations has {name!r}; {wanted}{names.hints(names.OPERATIONS, name, OPERATIONS)}")
    return named


def _listed(shapes: Any) -> list[Any]:
    try:
        return list(shapes)
    except TypeError:
        raise ShapeError(f"shapes is {shapes!r}; several shapes are wanted, [(32, 64, 56, 56)]") from None


def _shape(index: int, shape: Any) -> tuple[int, ...]:
    try:
        sizes = [] if hasattr(shape, "shape") else [values.integer(size) for size in shape]
    except TypeError:
        sizes = []
    if len(sizes) < 2 or any(size is None or size < 0 for size in sizes):
        came = values.kind_of(shape) if hasattr(shape, "shape") else f"{shape!r}"
        raise ShapeError(f"shapes[{index}] is {came}; a shape is wanted: (N, C) or (N, C, *spatial), as x.shape is")
    return tuple(size for size in sizes if size is not None)


def _dtype(dtype: Any) -> np.dtype[Any]:
    found = dtype_of(dtype)
    if found is None:
        raise DtypeError(f"dtype is {dtype!r}; {WANTED} is wanted")
    return found


def _fusion(operation: str, activation: Activation, residual: bool) -> Fusion:
    """What a network's calls do besides."""
    if not OPERATIONS[operation].fusable:
        return ALONE
    if "y" not in OPERATIONS[operation].fusable:
        return Fusion(activation.code, int(residual))
    if not (residual and activation.code):
        return Fusion(activation.code)
    return Fusion(activation.code, 2 if activation.by_output else 1, second=True)


def _request(
    operation: str, shape: tuple[int, ...], axis: int, dtype: np.dtype[Any], fusion: Fusion = ALONE, groups: int = 1
) -> Request:
    """What a call on arrays without gaps asks for."""
    if groups > 1 and f"{operation}_batches" in BATCHES:
        operation = f"{operation}_batches"
    groups = groups if operation in BATCHES else 1
    sizes = [*shape[1:], 1]
    strides = tuple(int(dtype.itemsize * np.prod(sizes[place:], dtype=np.int64)) for place in range(len(shape)))
    model = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, strides, writeable=False)  # never read
    return Request.of(
        operation,
        model,
        axis,
        dict.fromkeys(operation_of(operation, fusion).tensors, model),
        fusion=fusion,
        groups=groups,
    )


def _shares(requests: Sequence[Request], queue: cl.CommandQueue, processes: int | None) -> list[list[Request]]:
    """What each process compiles, this one's share first; of requests with the same kernels one is enough."""
    device = queue.device
    facts, tuning = limits(device), tuning_for(*tuning_names(device))
    new: dict[tuple[Build, ...], Request] = {}
    for request in requests:
        problem = request.problem(request.layout())
        planned = plan(request.operation, problem, facts, tuning)
        if not proving.is_proven(request.operation, problem, planned, device):
            new.setdefault(tuple(launch.build for launch in planned.launches), request)
    if processes is None:
        processes = _cores() if facts.kind == "cpu" else 1
    if not _is_kept(device):
        processes = 1
    shares: list[list[Request]] = [[] for _ in range(max(1, min(processes, len(new))))]
    # The heavy ones first, each to whoever is through first.
    until = [0.0, *(_START for _ in shares[1:])]
    for builds, request in sorted(new.items(), key=lambda item: -_weight(item[0])):
        first = until.index(min(until))
        shares[first].append(request)
        until[first] += _weight(builds)
    return [shares[0], *filter(None, shares[1:])]


def _weight(builds: Sequence[Build]) -> float:
    """About how long kernels compile: those that only write take half as long as those that sum, at least."""
    return sum(1.0 if build.kernel in _LIGHT else 2.0 for build in builds)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_kept(device: cl.Device) -> bool:
    """Whether another process can compile for this one: it can be started, and what it compiles is kept on disk."""
    if not sys.executable or getattr(sys, "frozen", False) or device.parent_device is not None:
        return False
    if "pocl" in device.platform.version.lower():
        return os.environ.get("POCL_KERNEL_CACHE", "1") != "0"
    return "PYOPENCL_NO_CACHE" not in os.environ


class _Children:
    """The processes that compile meanwhile; none is left behind."""

    def __init__(self) -> None:
        self._begun: list[tuple[subprocess.Popen[str], IO[str]]] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child, _words in self._begun:
            child.kill()
            child.wait()
        self._open.close()

    def begin(self, share: Sequence[Request], queue: cl.CommandQueue) -> None:
        """Have another process compile for these."""
        device = queue.device
        asked = {
            "path": sys.path,
            "device": select(device).spec,
            "name": device.name,
            "tuning": asdict(tuning_for(*tuning_names(device))),
            "requests": [
                (one.operation, one.shape, one.axis, one.dtype.name, one.fusion._asdict(), one.groups) for one in share
            ],
        }
        words = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._open.enter_context(words)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
            json.dump(asked, told)
            told.seek(0)
            child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=told, stderr=words, text=True)
        self._begun.append((child, words))

    def wait(self) -> None:
        """Until all are through. One that failed has left its share undone, and says why in the log."""
        for child, words in self._begun:
            if child.wait():
                words.seek(0)
                _log.warning("a process that was to compile ended with %s: %s", child.returncode, words.read().strip())
