"""What a fault leaves behind: a clear error, everything as it was, and a next call that is right.

Drivers fail at each thing that a call asks of them, once or for good; compilers refuse; calls are interrupted at each
line. Disks that are full and processes that are killed are in test_saving_faults.py.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from conftest import LONG
from faults import DEVICE_GONE, DRIVERS_FAULTS, INTERRUPTED, NO_OBJECT, NO_RESOURCES, Fault, counted, failing
from layers import state_of

import oclbn
from oclbn import BatchNorm2D, device, gpuarray
from oclbn.errors import BuildError, DeviceError, ModuleShapeError, OclbnError, ShapeError, SizeError
from oclbn.functional import (
    accumulate,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    bind,
    moments,
    recording,
)
from oclbn.group_norm import group_norm_backward
from oclbn.renorm import batch_renorm_backward
from oclbn.truth.hostile import make
from oclbn.tuning import using

pytestmark = pytest.mark.once(reason="the driver's errors are made up, and what follows is Python's")

Tally = collections.Counter[str]
SHAPE = (4, 5, 30, 31)
FUNCTIONS = ["train", "infer", "backward", "constant", "moments", "accumulate", "empty batch", "bound", "masked"]
FUNCTIONS += ["gradient of nothing", "in groups", "backward in groups", "renormed gradient", "gradient of groups"]
FILLED_FIRST = ("constant", *FUNCTIONS[-4:])  # whose `out` is there before the last launch
MASK = np.random.default_rng(0).random((4, 30, 31)) < 0.5
VARIANTS = ["resident", "split", "serial"]


class Call:
    """A call of oclbn.functional, with everything that it writes in place."""

    def __init__(self, queue: cl.CommandQueue, name: str, *, out: bool = True, allocator: Any = None) -> None:
        host = make((0, 5, 4) if name == "empty batch" else SHAPE, 1)

        def put(array: np.ndarray) -> cla.Array:
            return cla.to_device(queue, array, allocator=allocator)

        self.name = name
        self.x, self.dy, self.scale, self.bias, self.mean, self.var = (
            put(array) for array in (host.x, host.dy, host.scale, host.bias, host.running_mean, host.running_var)
        )
        self.skipped = cla.zeros(queue, 5, np.uint32)
        self.into, self.into_bias = put(host.bias), put(host.scale)
        self.invstd = put(1 / np.sqrt(host.running_var + np.float32(1e-5)))
        self.saved = [put(np.tile(array.get(), 2)) for array in (self.mean, self.invstd)]  # of two groups
        self.of_samples = [put(np.tile(array.get(), 4)) for array in (self.mean, self.invstd)]
        self.out = put(np.full_like(host.x, 7)) if out else None
        self.results: tuple[cla.Array, ...] = ()

    def __call__(self) -> None:
        if self.name in ("train", "empty batch", "bound", "masked", "in groups"):
            given = self.x, self.scale, self.bias, self.mean, self.var
            options: Any = {"skipped": self.skipped, "out": self.out}
            options |= {"masked": {"mask": MASK}, "in groups": {"groups": 2}}.get(self.name, {})
            bound = self.name == "bound"
            found: Any = bind(batch_norm_train, *given, **options)() if bound else batch_norm_train(*given, **options)
        elif self.name == "infer":
            found = (batch_norm_infer(self.x, self.scale, self.bias, self.mean, self.var, out=self.out),)
        elif self.name == "moments":
            found = moments(self.x)[1:]
        elif self.name == "accumulate":
            accumulate(self.into, self.bias, scale=0.5, momentum=0.25)
            found = ()
        else:
            into = {"scale_grad": self.into, "bias_grad": self.into_bias, "grad_momentum": 0.5}
            arrays = self.x, self.dy, self.scale, self.mean, self.invstd
            if self.name == "renormed gradient":
                found = batch_renorm_backward(*arrays, self.var, self.bias, out=self.out, **into)
            elif self.name == "gradient of groups":
                found = group_norm_backward(self.x, self.dy, 5, self.scale, *self.of_samples, out=self.out, **into)
            elif self.name == "backward in groups":
                found = batch_norm_backward(*arrays[:3], *self.saved, out=self.out, groups=2, **into)
            elif self.name == "gradient of nothing":
                found = batch_norm_backward(*arrays, out=self.out, mask=np.zeros_like(MASK), **into)
            else:
                found = batch_norm_backward(*arrays, out=self.out, training=self.name == "backward", **into)
        self.results = found

    def state(self) -> list[bytes]:
        """What the call must leave alone where it fails; some results are in `out` before all is done."""
        kept = [self.mean, self.var, self.skipped, self.into, self.into_bias, self.scale, self.bias, self.x, self.dy]
        if self.out is not None and self.name not in FILLED_FIRST:
            kept.append(self.out)
        return [array.get().tobytes() for array in kept]

    def outcome(self) -> list[bytes]:
        return [*self.state(), *(array.get().tobytes() for array in self.results)]


def outcome_of(queue: cl.CommandQueue, name: str, **options: Any) -> list[bytes]:
    call = Call(queue, name, **options)
    call()
    return call.outcome()


def is_clear(error: BaseException, fault: Fault) -> None:
    """oclbn's own, of the right kind, and says what failed in the driver's words."""
    if fault.error is KeyboardInterrupt:
        assert isinstance(error, KeyboardInterrupt)
        return
    assert isinstance(error, OclbnError)
    assert isinstance(error, SizeError if fault.error is cl.MemoryError else (DeviceError, SizeError))
    name = cl.status_code.to_string(fault.code)
    assert name in str(error), str(error)
    assert isinstance(error.__cause__, cl.Error)


# --- functions


@pytest.mark.parametrize("out", [True, False], ids=["into out", "fresh results"])
@pytest.mark.parametrize("variant", VARIANTS if LONG else ["split"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("fault", [*DRIVERS_FAULTS, INTERRUPTED])
def test_a_function_whose_driver_fails_once(
    queue: cl.CommandQueue, tally: Tally, name: str, variant: str, out: bool, fault: Fault
) -> None:
    with using(variant=variant):
        wanted = outcome_of(queue, name, out=out)
        asked = counted(Call(queue, name, out=out))
        assert asked
        for number, what in enumerate(asked):
            call = Call(queue, name, out=out)
            before = call.state()
            with failing(fault, number) as driver, pytest.raises((OclbnError, KeyboardInterrupt)) as caught:
                call()
            assert driver.asked[number] == what
            is_clear(caught.value, fault)
            assert call.state() == before, f"after {what}, number {number}"
            call()
            assert call.outcome() == wanted, f"after {what}, number {number}"
            tally["faults: a function's driver, once"] += 1


def test_both_launches_of_a_split_plan_are_failed(queue: cl.CommandQueue) -> None:
    """What the tests above rest on: there is a second launch, and it is the only one that writes."""
    with using(variant="split"):
        call = Call(queue, "train")
        asked = counted(call)
        with recording() as launches:
            call()
    assert asked.count("enqueue_nd_range_kernel") == len(launches) == 2


def test_memory_that_is_not_there_is_a_size_error(queue: cl.CommandQueue) -> None:
    """It tells how many bytes were wanted, and of which device."""
    call = Call(queue, "train", out=False)
    for fault in (NO_OBJECT, NO_RESOURCES):
        with failing(fault, 0), pytest.raises(SizeError) as caught:
            call()
        wanted = f"{queue.device.name.strip()} has no room for a result of {call.x.nbytes:,} bytes: "
        assert str(caught.value).startswith(wanted)
        assert isinstance(caught.value, MemoryError)
    with failing(DEVICE_GONE, 0), pytest.raises(DeviceError, match=r"^batch_norm_train: the driver fails: .*NOT_AVAIL"):
        call()


class Allocator:
    """One that a user gives with the array: it fails at a given allocation."""

    def __init__(self, queue: cl.CommandQueue, error: BaseException | None = None, first: int = -1) -> None:
        self.queue, self.error, self.first, self.asked = queue, error, first, 0

    def __call__(self, nbytes: int) -> cl.Buffer:
        self.asked += 1
        if self.error is not None and self.asked - 1 == self.first:
            raise self.error
        return cl.Buffer(self.queue.context, cl.mem_flags.READ_WRITE, nbytes)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(cl.MemoryError("full"), id="pyopencl's error"),
        pytest.param(MemoryError("full"), id="Python's error"),
        pytest.param(NO_RESOURCES.make("pool"), id="out of resources"),
    ],
)
@pytest.mark.parametrize("name", ["train", "infer", "backward", "constant", "moments"])
def test_a_users_allocator_that_fails(queue: cl.CommandQueue, tally: Tally, name: str, error: BaseException) -> None:
    allocator = Allocator(queue)
    wanted = outcome_of(queue, name, out=False, allocator=allocator)
    call = Call(queue, name, out=False, allocator=allocator)
    before, allocator.asked = call.state(), 0
    call()
    for number in range(allocator.asked):
        call = Call(queue, name, out=False, allocator=allocator)
        allocator.error, allocator.first, allocator.asked = error, number, 0
        with pytest.raises(SizeError, match="has no room for a result of"):
            call()
        assert call.state() == before
        allocator.error = None
        call()
        assert call.outcome() == wanted
        tally["faults: a user's allocator"] += 1


@pytest.mark.parametrize("name", ["train", "backward", "constant", "moments", "accumulate"])
def test_a_compiler_that_refuses_once(
    queue: cl.CommandQueue, tally: Tally, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The n-th program of a call does not build; the next call builds it."""
    real, built = cl.Program.build, [0]
    words = "forward.cl:14:3: error: the compiler ran out of registers"

    def build(program: cl.Program, *given: Any, **options: Any) -> Any:
        built[0] += 1
        if built[0] == refused:
            record = cl._cl._ErrorRecord("clBuildProgram", cl.status_code.BUILD_PROGRAM_FAILURE, words)
            raise cl.RuntimeError(record)
        return real(program, *given, **options)

    wanted = outcome_of(queue, name)
    monkeypatch.setattr(cl.Program, "build", build)
    refused = 1
    while True:
        context = cl.Context([queue.device])  # nothing has been compiled for it
        own = cl.CommandQueue(context)
        with using(variant="split"):
            call = Call(own, name)
            before, built[0] = call.state(), 0
            try:
                call()
            except BuildError as error:
                message = str(error)
            else:
                break
            assert words in message
            assert "does not build on" in message
            assert call.state() == before
            call()
        again = Call(own, name)
        again()
        assert again.outcome() == wanted
        refused += 1
        tally["faults: a build"] += 1
    assert refused > 1


# --- modules


def trained(queue: cl.CommandQueue) -> tuple[BatchNorm2D, cla.Array, cla.Array]:
    """A module in the middle of its training, with a call and its gradient behind it."""
    bn = BatchNorm2D(5, queue=queue, seed=1, name="layer")
    host = make(SHAPE, 1)
    x, dy = cla.to_device(queue, host.x), cla.to_device(queue, host.dy)
    bn(x)
    bn.backward(dy)
    bn.updateParams(-0.1)
    bn(x)
    bn.backward(dy, momentum=0.5)
    return bn, x, dy


def content_of(bn: BatchNorm2D) -> list[Any]:
    """state_of without the identities of arrays: what two equal modules share."""
    return [item[1] if isinstance(item, tuple) else item for item in state_of(bn)]


IMAGES: dict[int, bytes] = {}


def image_of(queue: cl.CommandQueue) -> bytes:
    """A file of another module of the same size and name."""
    key = queue.int_ptr
    if key not in IMAGES:
        other = BatchNorm2D(5, queue=queue, seed=2, name="layer")
        other(cla.to_device(queue, make(SHAPE, 1, seed=3).x))
        IMAGES[key] = other.save() or b""
    return IMAGES[key]


Action = Callable[[BatchNorm2D, cla.Array, cla.Array], Any]
ACTIONS: dict[str, Action] = {
    "train": lambda bn, x, dy: bn(x),
    "backward": lambda bn, x, dy: bn.backward(dy, scale=2.0, momentum=0.5),
    "save": lambda bn, x, dy: bn.save(),
    "load": lambda bn, x, dy: bn.load(image_of(bn.queue)),
    "skipped": lambda bn, x, dy: bn.skipped,
    "calcMode": lambda bn, x, dy: bn.calcMode(np.float64),
}


def evaluate(bn: BatchNorm2D, x: cla.Array, dy: cla.Array) -> Any:
    """In evaluation mode, without evalMode's dropping of the last call."""
    bn.train = False
    try:
        return bn(x)
    finally:
        bn.train = True


ACTIONS["evaluate"] = evaluate


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fault", [*DRIVERS_FAULTS, INTERRUPTED])
def test_a_module_whose_driver_fails_once(
    queue: cl.CommandQueue, tally: Tally, request: pytest.FixtureRequest, action: str, fault: Fault
) -> None:
    if action == "calcMode":
        request.getfixturevalue("needs_fp64")
    act = ACTIONS[action]
    image_of(queue)
    bn, x, dy = trained(queue)
    act(bn, x, dy)
    wanted = content_of(bn)
    bn, x, dy = trained(queue)
    asked = counted(lambda: act(bn, x, dy))
    for number, what in enumerate(asked):
        bn, x, dy = trained(queue)
        before = state_of(bn)
        with failing(fault, number), pytest.raises((OclbnError, KeyboardInterrupt)) as caught:
            act(bn, x, dy)
        is_clear(caught.value, fault)
        assert state_of(bn) == before, f"after {what}, number {number}"
        act(bn, x, dy)
        assert content_of(bn) == wanted, f"after {what}, number {number}"
        tally["faults: a module's driver, once"] += 1


@pytest.mark.parametrize("fault", [*DRIVERS_FAULTS, INTERRUPTED])
def test_a_step_that_stops_says_how_far_it_came(queue: cl.CommandQueue, tally: Tally, fault: Fault) -> None:
    """One launch a variable: each is updated or is not, and the error names those that are."""
    bn, _, _ = trained(queue)
    asked = counted(lambda: bn.updateParams(-0.1))
    after = [var.data.get().tobytes() for var in bn.vars.values()]
    for number in range(len(asked)):
        bn, _, _ = trained(queue)
        before = [var.data.get().tobytes() for var in bn.vars.values()]
        with failing(fault, number), pytest.raises((OclbnError, KeyboardInterrupt)) as caught:
            bn.updateParams(-0.1)
        is_clear(caught.value, fault)
        taken = asked[: number + 1].count("enqueue_nd_range_kernel") - (asked[number] == "enqueue_nd_range_kernel")
        found = [var.data.get().tobytes() for var in bn.vars.values()]
        assert found == after[:taken] + before[taken:]
        if fault.error is not KeyboardInterrupt:
            (note,) = caught.value.__notes__
            names = ["scale", "bias"]
            assert note == (
                f"BatchNorm2D 'layer': updateParams stopped at {names[taken]}; "
                f"updated before it: {', '.join(names[:taken]) or 'none'}"
            )
        tally["faults: a module's driver, once"] += 1


def test_a_step_with_a_gradient_that_does_not_fit_changes_nothing(queue: cl.CommandQueue) -> None:
    bn, _, _ = trained(queue)
    wrong = cla.zeros(queue, 6, np.float32)
    with pytest.raises(ModuleShapeError, match=r"grad of variable 'bias' has shape \(6,\); \(1, 5, 1, 1\) is wanted"):
        bn.vars["bias"].grad = wrong
    bn.vars["bias"]._grad = wrong  # as nobody can set it
    before = state_of(bn)
    with pytest.raises(ShapeError, match="new has 6 elements and into 5"):
        bn.updateParams(-0.1)
    assert state_of(bn) == before


@pytest.mark.parametrize("fault", [NO_RESOURCES, DEVICE_GONE], ids=["out of resources", "device gone"])
def test_zeroing_can_be_repeated(queue: cl.CommandQueue, tally: Tally, fault: Fault) -> None:
    bn, _, _ = trained(queue)
    for number in range(len(counted(bn.zeroGradParams))):
        bn, _, _ = trained(queue)
        before = [bn.scale.get().tobytes(), bn.bias.get().tobytes(), bn.mean.get().tobytes()]
        with failing(fault, number), pytest.raises(DeviceError, match=r"^zeroGradParams: the driver fails: "):
            bn.zeroGradParams()
        assert [bn.scale.get().tobytes(), bn.bias.get().tobytes(), bn.mean.get().tobytes()] == before
        bn.zeroGradParams()
        assert not any(var.grad.get().any() for var in bn.vars.values())
        tally["faults: a module's driver, once"] += 1


@pytest.mark.parametrize("fault", DRIVERS_FAULTS)
def test_a_module_that_cannot_be_made(queue: cl.CommandQueue, tally: Tally, fault: Fault) -> None:
    def construct() -> BatchNorm2D:
        return BatchNorm2D(5, queue=queue, seed=1)

    for number in range(len(counted(construct))):
        with failing(fault, number), pytest.raises((SizeError, DeviceError)) as caught:
            construct()
        is_clear(caught.value, fault)
        tally["faults: a module's driver, once"] += 1


def test_an_empty_module_stays_empty(queue: cl.CommandQueue, tally: Tally) -> None:
    """load makes its tensors: all of them or none."""
    image = image_of(queue)

    def fresh() -> BatchNorm2D:
        return BatchNorm2D(5, queue=queue, empty=True, name="layer")

    for number in range(len(counted(lambda: fresh().load(image)))):
        bn = fresh()
        before, loaded = state_of(bn), {}
        with failing(NO_OBJECT, number), pytest.raises(SizeError):
            bn.load(image, initvars=loaded)
        assert state_of(bn) == before
        assert loaded == {}
        bn.load(image, initvars=loaded)
        assert bn.save() == image
        tally["faults: a module's driver, once"] += 1


@pytest.mark.parametrize("action", [*ACTIONS, "updateParams", "zeroGradParams"])
def test_a_device_that_disappears(
    queue: cl.CommandQueue, tally: Tally, request: pytest.FixtureRequest, action: str
) -> None:
    """Every call from some point on fails: nothing but clear errors, and what the host keeps is as it was."""
    if action == "calcMode":
        request.getfixturevalue("needs_fp64")
    image = image_of(queue)
    fp64 = device.limits(queue.device).fp64
    calls = [call for name, call in ACTIONS.items() if fp64 or name != "calcMode"]

    def act() -> Any:
        if action in ACTIONS:
            return ACTIONS[action](bn, x, dy)
        return bn.updateParams(0.1) if action == "updateParams" else bn.zeroGradParams()

    bn, x, dy = trained(queue)
    asked = counted(act)
    for number in range(len(asked)):
        bn, x, dy = trained(queue)
        kept = dict(vars(bn))
        with failing(DEVICE_GONE, number, times=10**9):
            for _ in range(2):
                with pytest.raises(DeviceError, match="DEVICE_NOT_AVAILABLE"):
                    act()
            for other in calls:
                with pytest.raises(DeviceError, match="DEVICE_NOT_AVAILABLE"):
                    other(bn, x, dy)
            assert vars(bn) == kept
            assert (bn.numOfProps, bn.numOfParams(), f"{bn}") == (2, 10, "BatchNorm2D 'layer'")
            assert bn.getBlueprint()["scheme"]["maps"] == 5
            with pytest.raises(DeviceError, match="DEVICE_NOT_AVAILABLE"):
                bn.evalMode()  # which reads counters
            assert bn.train
            bn.trainMode()
        bn.load(image)
        assert bn.save() == image, "a device that comes back can be given its state from a file"
        tally["faults: a device that disappears"] += 1


@pytest.mark.parametrize("queues", ["in order", "another queue's array"])
def test_waiting_that_fails(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, queues: str) -> None:
    """A queue that cannot be flushed, which calls with arrays of several queues do before they launch."""
    call = Call(queue, "train")
    if queues == "another queue's array":
        call.mean = call.mean.with_queue(cl.CommandQueue(queue.context))
    before = call.state()

    def fail(_: cl.CommandQueue) -> None:
        raise DEVICE_GONE.make("clFlush")

    with monkeypatch.context() as patch:
        patch.setattr(cl.CommandQueue, "flush", fail)
        if queues == "in order":
            call()
        else:
            with pytest.raises(DeviceError, match=r"^batch_norm_train: the driver fails: clFlush.*NOT_AVAILABLE"):
                call()
            assert call.state() == before


# --- interruptions


INTERRUPTED_ACTIONS: dict[str, Action] = {name: ACTIONS[name] for name in ("train", "backward", "load")} | {
    "updateParams": lambda bn, x, dy: bn.updateParams(-0.1)
}
PACKAGE = str(Path(oclbn.__file__).parent)


class Interruption:
    """Ctrl-C when the given line of oclbn's is about to run (counted from 0); None: the lines are counted only."""

    def __init__(self, number: int | None = None) -> None:
        self.number, self.lines = number, 0

    def __enter__(self) -> Interruption:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines - 1 == self.number:
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.parametrize("action", INTERRUPTED_ACTIONS)
def test_an_interruption_at_each_line(queue: cl.CommandQueue, tally: Tally, action: str) -> None:
    """Every array has its old or its new bits, never others; the module goes on from there."""
    act = INTERRUPTED_ACTIONS[action]
    image_of(queue)
    names = ("scale", "bias", "mean", "var")

    def arrays(bn: BatchNorm2D) -> list[bytes]:
        kept = [getattr(bn, name) for name in names] + [var.grad for var in bn.vars.values()]
        return [array.get().tobytes() for array in kept]

    bn, _, _ = trained(queue)
    old = [*arrays(bn), bn.numOfProps]
    bn, x, dy = trained(queue)  # anew: reading leaves events on the arrays, and looking at those takes lines
    with Interruption() as lines:
        act(bn, x, dy)
    new = [*arrays(bn), bn.numOfProps]
    between = 0
    for number in range(0, lines.lines, 1 if LONG else 7):
        bn, x, dy = trained(queue)
        with pytest.raises(KeyboardInterrupt), Interruption(number):
            act(bn, x, dy)
        found = [*arrays(bn), bn.numOfProps]
        for one, before, after in zip(found, old, new, strict=True):
            assert one in (before, after)
        between += found not in (old, new)
        y = bn(x)
        assert np.isfinite(y.get()).all()
        bn.backward(dy)
        tally["faults: interruptions, line by line"] += 1
    tally[f"of these, left between old and new: {action}"] += between


def test_arrays_that_do_not_fit_the_device_say_so(queue: cl.CommandQueue, tally: Tally) -> None:
    most = queue.device.max_mem_alloc_size
    for make_array in (gpuarray.empty, gpuarray.zeros, gpuarray.ones):
        with pytest.raises(SizeError) as caught:
            make_array((2, most), queue=queue)
        message = f"an array of shape (2, {most}) needs {8 * most:,} bytes; {queue.device.name.strip()} allocates at"
        assert str(caught.value) == f"{message} most {most:,} at once"
        tally["bad inputs: too large for the device"] += 1
