"""What the benchmark runs on the device: oclbn's operations and the copies, on one tensor."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from oclbn import functional, gpuarray
from oclbn.activations import NONE, Activation
from oclbn.call.copying import copying
from oclbn.call.results import result_like
from oclbn.elements import NUMBERS, numbers_of
from oclbn.errors import DeviceError
from oclbn.tools.bench.suites import Shape
from oclbn.tools.bench.turns import Entry
from oclbn.tools.peers import checking, contract
from oclbn.tools.yardstick import plain_copy
from oclbn.truth.expectation import EPSILON, FACTOR

KINDS = {  # of each operation: what functional.explain calls its parts
    "forward": ("train",),
    "backward": ("backward",),
    "inference": ("infer",),
    "both": ("train", "backward"),
}
SINGLE = NUMBERS[0]
PLAIN_COPIES = ("copy command", "copy kernel")
COPIES = (*PLAIN_COPIES, "copy kernel, non-temporal stores")
_CHECKED = {  # the results, in the order in which the calls below return them
    "forward": ("y",),
    "backward": ("dx", "dscale", "dbias", "dresidual"),
    "inference": ("y",),
    "both": ("y", "dx", "dscale", "dbias", "dresidual"),
}
_TENSORS = ("y", "dx", "dresidual")


@dataclass(frozen=True)
class Fused:
    """What operations do beside normalising."""

    activation: Activation = NONE
    residual: bool = False

    def __str__(self) -> str:
        name = self.activation.name if self.activation.code else ""
        return " of ".join(filter(None, (name, "the sum with a residual" if self.residual else "")))

    def tensors(self, operation: str) -> int:
        """Those that memory has to see beside x, dy, y and dx."""
        back = 2 if self.residual and self.activation.code else 0  # y, and the residual's gradient
        return {"backward": back, "both": back + self.residual}.get(operation, int(self.residual))


PLAIN = Fused()


class Work:
    """One tensor on queue's device, channels on `axis`, with all that normalising it takes.

    dtype: of its elements. outputs: one of oclbn.tools.bench.benchmark.OUTPUTS. values: the block that the tensor is
    tiled with.
    """

    def __init__(
        self,
        queue: cl.CommandQueue,
        shape: Shape,
        axis: int,
        outputs: str,
        values: contract.Floats,
        dtype: np.dtype[Any] = SINGLE,
        fused: Fused = PLAIN,
    ) -> None:
        self.fused = fused
        self.queue, self.axis, self._values, self._bound = queue, axis, values, outputs == "prepared"
        put = functools.partial(gpuarray.to_gpu, queue=queue)
        if outputs == "pool":
            tools: Any = cl.tools
            pool = tools.MemoryPool(tools.ImmediateAllocator(queue))
            put = functools.partial(cla.to_device, queue, allocator=pool)
        self.x, self.dy = (put(contract.tensor(values, shape, name).astype(dtype)) for name in ("x", "dy"))
        kept = outputs in ("preallocated", "prepared")
        self._out: cla.Array | None = gpuarray.empty_like(self.x) if kept else None
        self._other_out: cla.Array | None = gpuarray.empty_like(self.x) if kept else None
        given = contract.parameters(values, shape[axis])
        arrays = {name: cla.to_device(queue, np.array(value, numbers_of(dtype))) for name, value in given.items()}
        self._scale, self._bias, self._mean, self._var = (arrays[name] for name in ("scale", "bias", "mean", "var"))
        self._running = (self._mean.copy(), self._var.copy())
        parameters = (self._scale, self._bias, None, None)
        self._added: dict[str, Any] = {"activation": fused.activation}
        self._behind: dict[str, Any] = {}
        if fused.residual:
            self._added["residual"] = put(contract.tensor(values, shape, "residual").astype(dtype))
        made = functional.batch_norm_train(self.x, *parameters, epsilon=EPSILON, axis=axis, **self._added)
        if fused.activation.code:
            self._behind = {"activation": fused.activation, "bias": self._bias}
        if fused.residual:
            by_output = fused.activation.by_output
            own = {"y": made[0]} if by_output else {"residual": self._added["residual"]}
            second = gpuarray.empty_like(self.x) if kept and fused.activation.code else True
            self._behind |= {**own, "dresidual": second}
        self._saved = made[1:]
        queue.finish()

    def calls(self) -> dict[str, Callable[[], Any]]:
        """oclbn's operations by name; each enqueues its work and returns its results, the tensors first."""
        x, dy, scale, axis, out = self.x, self.dy, self._scale, self.axis, self._out
        given: dict[str, Any] = {"axis": axis, "out": out}
        parameters = (x, scale, self._bias)
        train = self._call(
            functional.batch_norm_train,
            *parameters,
            *self._running,
            epsilon=EPSILON,
            factor=FACTOR,
            **given,
            **self._added,
        )
        backward = self._call(functional.batch_norm_backward, x, dy, scale, *self._saved, **given, **self._behind)
        infer = self._call(
            functional.batch_norm_infer, *parameters, self._mean, self._var, epsilon=EPSILON, **given, **self._added
        )
        return {"forward": train, "backward": backward, "inference": lambda: (infer(),), "both": self._both(train)}

    def _call(self, operation: Callable[..., Any], *given: Any, **options: Any) -> Callable[[], Any]:
        if self._bound:
            return functional.bind(operation, *given, **options)
        return lambda: operation(*given, **options)

    def _both(self, train: Callable[[], Any]) -> Callable[[], Any]:
        """Forward, then backward from its statistics."""
        options: dict[str, Any] = {"axis": self.axis, "out": self._other_out, **self._behind}
        bound: Callable[[], Any] | None = None
        if self._bound:
            y, *saved = train()
            own = {"y": y} if "y" in options else {}
            given = (self.x, self.dy, self._scale, *saved)
            bound = functional.bind(functional.batch_norm_backward, *given, **{**options, **own})

        def both() -> Any:
            y, *saved = train()
            if bound:
                return (y, *bound())
            own = {"y": y} if "y" in options else {}
            given = (self.x, self.dy, self._scale, *saved)
            return (y, *functional.batch_norm_backward(*given, **{**options, **own}))

        return both

    def check(self, operations: Sequence[str]) -> checking.Wanted:
        """The reference's results for some channels. DeviceError: oclbn's are others."""
        given = (self._values, self.x.shape, self.axis, self.x.dtype, self.fused.activation)
        wanted = checking.wanted(*given, residual=self.fused.residual)
        calls = self.calls()
        for operation in operations:
            made = calls[operation]()
            found = {}
            for name, array in zip(_CHECKED[operation], made, strict=False):  # forward returns the statistics as well
                found[name] = np.take(array.get(), wanted.channels, axis=self.axis if name in _TENSORS else 0)
            if fault := wanted.fault(operation, found):
                raise DeviceError(f"oclbn's {operation} of {self.x.shape} fails the benchmark's check: {fault}")
        return wanted

    def operations(self, names: Sequence[str], who: str = "oclbn") -> list[Entry]:
        """oclbn's operations, ready to be timed, under this name."""
        calls = self.calls()
        return [self.entry(who, name, calls[name], self.plan(name)) for name in names]

    def plan(self, operation: str) -> str:
        """How oclbn runs an operation."""
        told = []
        for kind in KINDS[operation]:
            own = {name: array for name, array in self._added.items() if kind != "backward"}
            if kind == "backward":
                own = {name: value for name, value in self._behind.items() if name != "bias"} | {"dy": self.dy}
            told.append(functional.explain(self.x, axis=self.axis, operation=kind, out=self._out, **own))
        return "; ".join(told)

    def mirrored(self) -> Work:
        """The same on tensors whose rows run backwards, in the same memory."""
        made = copy.copy(self)
        for name in ("x", "dy", "_out", "_other_out"):
            setattr(made, name, self.mirror(getattr(self, name)))
        return made

    def mirror(self, tensor: Any) -> Any:
        """A tensor with its last axis, or where channels lie there the one before, from the end to the beginning."""
        behind = (slice(None),) if self.axis == len(self.x.shape) - 1 else ()
        return tensor[(..., slice(None, None, -1), *behind)]

    def packing(self, operation: str) -> Callable[[], Any]:
        """Copies of what an operation has to pack and to unpack where outputs are preallocated, prepared."""
        x, out = self.x, self._out
        assert out is not None
        read = [x, self.dy] if operation == "backward" else [x]
        own = [cla.empty(self.queue, x.shape, x.dtype) for _ in read]
        pairs = [*zip(read, own, strict=True), (own[0], out)]
        steps = [copying(x, source, target).bound() for source, target in pairs]

        def run() -> None:
            for step in steps:
                step()

        return run

    def copies(self) -> list[Entry]:
        """The device's copy command and two kernels, ready to be timed."""
        source = _memory(self.x)

        def command() -> Any:
            y = self._target()
            cl.enqueue_copy(self.queue, _memory(y), source)
            return y

        def kernel(stream: bool) -> Any:
            y = self._target()
            plain_copy(_as_floats(self.x), _as_floats(y), stream=stream)
            return y

        calls = (command, lambda: kernel(False), lambda: kernel(True))
        return [self.entry("copy", name, call) for name, call in zip(COPIES, calls, strict=True)]

    def _target(self) -> cla.Array:
        return result_like(self.x) if self._out is None else self._out

    def entry(self, who: str, operation: str, call: Callable[[], Any], plan: str = "") -> Entry:
        """A call, ready to be timed."""

        def turn(count: int, warm: bool) -> list[float]:
            seconds, held = [], call() if warm else None
            self.queue.finish()
            for _ in range(count):
                start = time.perf_counter()
                held = None  # giving back what was allocated costs the user as well
                held = call()
                self.queue.finish()
                seconds.append(time.perf_counter() - start)
            del held
            return seconds

        turn(1, False)  # compiles, and touches the memory
        return Entry(who, operation, turn, min(turn(2, False)), plan)


def _as_floats(array: cla.Array) -> cla.Array:
    """The same memory, with what does not fill a float32 left out."""
    if array.dtype == SINGLE:
        return array
    count = array.nbytes // SINGLE.itemsize
    return cla.Array(array.queue, (count,), SINGLE, data=array.base_data)


def _memory(array: cla.Array) -> Any:
    return array.base_data
