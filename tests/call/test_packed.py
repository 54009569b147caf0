"""Calls that pack arrays: what a fault leaves behind, repeated calls, queues and events, what `explain` tells."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import put
from faults import DEVICE_GONE, INTERRUPT, NO_OBJECT, Fault, counted, failing

from oclbn import BatchNorm2D, functional, gpuarray
from oclbn.errors import DeviceError, OclbnError, OverlapError, ParameterError, ReadOnlyError
from oclbn.functional import (
    accumulate,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    bind,
    explain,
    moments,
    recording,
)
from oclbn.gpuarray import pack
from oclbn.truth.hostile import make
from oclbn.tuning import using

SHAPE = (4, 5, 6, 7)
HOST = make(SHAPE, 1)
MIRRORED = "no kernel reads strides of (840, 168, 28, -4) bytes with channels on axis 1"


def mirrored(queue: cl.CommandQueue, host: np.ndarray) -> cla.Array:
    return put(queue, np.ascontiguousarray(host[..., ::-1]))[..., ::-1]


def last(queue: cl.CommandQueue, host: np.ndarray) -> cla.Array:
    """In memory with its channels last."""
    return put(queue, np.ascontiguousarray(host.transpose(0, 2, 3, 1))).transpose((0, 3, 1, 2))


def apart(queue: cl.CommandQueue, host: np.ndarray) -> cla.Array:
    """Every other element of memory."""
    return put(queue, np.repeat(host, 2))[::2]


LIES: dict[str, Callable[[cl.CommandQueue, np.ndarray], cla.Array]] = {
    "C": put,
    "mirrored": mirrored,
    "last": last,
    "apart": apart,
}


class Call:
    """A call, with all that it writes in place. ways: of x, of out (dy lies as out does), of arrays per channel."""

    def __init__(self, queue: cl.CommandQueue, name: str, x: str, out: str, vectors: str) -> None:
        self.name = name
        row = LIES[vectors]
        self.x, self.dy, self.out = (
            LIES[way](queue, host) for way, host in ((x, HOST.x), (out, HOST.dy), (out, np.full_like(HOST.x, 7)))
        )
        self.scale, self.bias, self.mean, self.var, self.into = (
            row(queue, host) for host in (HOST.scale, HOST.bias, HOST.running_mean, HOST.running_var, HOST.bias)
        )
        self.counts = row(queue, np.arange(5, dtype=np.uint32))
        self.results: Any = ()

    def make(self) -> Callable[[], Any]:
        four = (self.scale, self.bias, self.mean, self.var)
        if self.name == "train":
            return lambda: batch_norm_train(self.x, *four, entered=self.counts, out=self.out)
        if self.name == "bound":
            return bind(batch_norm_train, self.x, *four, entered=self.counts, out=self.out)
        if self.name == "infer in place":
            return lambda: batch_norm_infer(self.x, *four, out=self.x)
        if self.name == "accumulate":
            return lambda: accumulate(self.into, self.scale, scale=0.5, momentum=0.25)
        options: Any = {"scale_grad": self.into, "bias_grad": self.bias, "grad_momentum": 0.5, "out": self.out}
        return lambda: batch_norm_backward(self.x, self.dy, self.scale, self.mean, self.var, **options)

    def __call__(self) -> None:
        self.results = self.make()()

    def state(self) -> list[bytes]:
        kept = [self.x, self.dy, self.scale, self.bias, self.mean, self.var, self.into, self.counts, self.out]
        return [pack(array).get().tobytes() for array in kept]


CASES = [
    pytest.param("train", "C", "last", "C", id="train, only out lies otherwise"),
    pytest.param("train", "mirrored", "mirrored", "apart", id="train, all is packed"),
    pytest.param("bound", "mirrored", "mirrored", "apart", id="bound"),
    pytest.param("backward", "C", "last", "C", id="backward, dy and out lie otherwise"),
    pytest.param("backward", "last", "mirrored", "apart", id="backward, all is packed"),
    pytest.param("infer in place", "mirrored", "C", "apart", id="infer in place"),
    pytest.param("accumulate", "C", "C", "apart", id="accumulate"),
]
FAULTS = [  # which of the driver's errors it is, one place knows; interruptions are another kind
    pytest.param("resident", NO_OBJECT, id="resident, no memory"),
    pytest.param("resident", INTERRUPT, id="resident, interrupted"),
    pytest.param("split", DEVICE_GONE, id="split, device gone"),
    pytest.param("split", INTERRUPT, id="split, interrupted"),
]


@pytest.mark.once(reason="the driver's errors are made up, and what follows is Python's")
@pytest.mark.parametrize(("variant", "fault"), FAULTS)
@pytest.mark.parametrize(("name", "x", "out", "vectors"), CASES)
def test_a_driver_that_fails_once(
    queue: cl.CommandQueue, name: str, x: str, out: str, vectors: str, variant: str, fault: Fault
) -> None:
    """Whatever of it fails, copies after the call included: what is written in place is as it was."""
    with using(variant=variant):
        whole = Call(queue, name, x, out, vectors)
        before = whole.state()
        whole()
        wanted = whole.state()
        asked = counted(Call(queue, name, x, out, vectors))
        assert asked.count("enqueue_nd_range_kernel") > 2
        for number, what in enumerate(asked):
            call = Call(queue, name, x, out, vectors)
            with failing(fault, number), pytest.raises((OclbnError, KeyboardInterrupt)):
                call()
            assert call.state() == before, f"after {what}, number {number}"
            call()
            assert call.state() == wanted


@pytest.mark.parametrize(("name", "x", "out", "vectors"), CASES)
def test_bits_are_those_of_arrays_without_gaps(
    queue: cl.CommandQueue, name: str, x: str, out: str, vectors: str
) -> None:
    if "last" in (x, out):
        pytest.skip("needs an x that is walked in C order on both ways")
    packed, plain = Call(queue, name, x, out, vectors), Call(queue, name, "C", "C", "C")
    packed()
    plain()
    assert packed.state() == plain.state()


def test_a_bound_call_takes_what_the_arrays_hold(queue: cl.CommandQueue) -> None:
    call, plain = Call(queue, "bound", "mirrored", "mirrored", "apart"), Call(queue, "train", "C", "C", "C")
    step = call.make()
    for _ in range(3):
        results = step()
        wanted = plain.make()()
        assert results[0] is call.out
        assert results[1].get().tobytes() == wanted[1].get().tobytes()
        accumulate(call.x, call.x, scale=1.25)
        accumulate(plain.x, plain.x, scale=1.25)
    assert call.state() == plain.state()


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
@pytest.mark.parametrize("name", ["x", "scale", "mean", "counts", "out"])
def test_an_array_that_a_failed_command_left(queue: cl.CommandQueue, name: str, bound: bool) -> None:
    """It is named as the caller names it, and nothing is done."""
    call = Call(queue, "bound" if bound else "train", "mirrored", "mirrored", "apart")
    step, before = call.make(), call.state()
    event = cl.UserEvent(queue.context)
    event.set_status(-5)
    kept = getattr(call, name).events[:]
    getattr(call, name).add_event(event)
    shown = {"mean": "running_mean", "counts": "entered"}.get(name, name)
    with pytest.raises(DeviceError, match=f"^{shown} was to be written by a command that failed"):
        step()
    getattr(call, name).events[:] = kept
    assert call.state() == before


def test_out_of_order_and_on_several_queues(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    """Each call takes what the one before wrote, and overwrites what it has read."""
    host = make((16, 8, 32, 32), 1)

    def chain(where: cl.CommandQueue, other: cl.CommandQueue) -> list[bytes]:
        x, y = mirrored(where, host.x), mirrored(other, host.x)
        row = [apart(where, array) for array in (host.scale, host.bias, host.running_mean, host.running_var)]
        for _ in range(6):
            batch_norm_train(x, *row, out=y)
            batch_norm_infer(y, *row, out=x)
        return [pack(array).get().tobytes() for array in (x, y, *row)]

    wanted = chain(queue, queue)
    for _ in range(2):
        assert chain(free_queue, free_queue) == wanted
        assert chain(queue, cl.CommandQueue(queue.context)) == wanted
        assert chain(cl.CommandQueue(queue.context), free_queue) == wanted


def test_a_gradient_that_is_one_number(queue: cl.CommandQueue) -> None:
    """As that of a mean: broadcast, of stride 0."""
    x, one = put(queue, HOST.x), put(queue, np.float32([0.25]))
    dy = cla.Array(queue, SHAPE, np.float32, data=one.base_data, strides=(0, 0, 0, 0))
    rows = [put(queue, array) for array in (HOST.scale, HOST.running_mean, HOST.running_var)]
    wanted = batch_norm_backward(x, gpuarray.full(SHAPE, 0.25, queue=queue), *rows)
    for got, want in zip(batch_norm_backward(x, dy, *rows), wanted, strict=True):
        assert got.get().tobytes() == want.get().tobytes()


# --- what is written


def test_elements_that_are_the_same_memory_are_not_written(queue: cl.CommandQueue) -> None:
    x, memory = put(queue, HOST.x), put(queue, HOST.x.ravel())
    four = [put(queue, a) for a in (HOST.scale, HOST.bias, HOST.running_mean, HOST.running_var)]
    windows = cla.Array(queue, SHAPE, np.float32, data=memory.base_data, strides=(4, 4, 4, 4))
    assert batch_norm_infer(windows, *four).shape == SHAPE
    with pytest.raises(ReadOnlyError, match=r"^out has shape .*: some of its elements are the same memory"):
        batch_norm_infer(x, *four, out=windows)
    with pytest.raises(OverlapError, match="out overlaps x"):
        batch_norm_infer(x, *four, out=x[..., ::-1])
    row = cla.Array(queue, (5,), np.float32, data=memory.base_data, strides=(0,))
    with pytest.raises(ReadOnlyError, match="running_mean has shape"):
        batch_norm_train(x, four[0], four[1], row, None)


def test_accumulating_in_the_same_elements(queue: cl.CommandQueue) -> None:
    """Of one shape or of two: they may be the same, or else share nothing."""
    a = put(queue, HOST.x)
    accumulate(a, a.reshape(-1), scale=1.0, momentum=1.0)
    np.testing.assert_array_equal(a.get(), 2 * HOST.x)
    gaps = apart(queue, HOST.scale)
    accumulate(gaps, gaps, scale=1.0, momentum=1.0)
    np.testing.assert_array_equal(pack(gaps).get(), 2 * HOST.scale)
    with pytest.raises(OverlapError, match="into overlaps new"):
        accumulate(gaps, gaps[::-1])
    with pytest.raises(OverlapError, match="into overlaps new"):
        accumulate(gaps, gaps.reshape((5, 1))[::-1])


# --- orders of results


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 2, 1, 3), (3, 2, 1, 0), (1, 0, 2, 3), (2, 1, 3, 0)], ids=str)
def test_a_dense_x_keeps_its_order(queue: cl.CommandQueue, axes: tuple[int, ...]) -> None:
    """Of any axes, and nothing is copied."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    x, dy = (put(queue, np.ascontiguousarray(h.transpose(axes))).transpose(back) for h in (HOST.x, HOST.dy))
    with recording() as launches:
        y, mean, deviation = batch_norm_train(x)
        results = [y, batch_norm_backward(x, dy, None, mean, deviation)[0], batch_norm_infer(x, None, None, mean, mean)]
        whole = functional.statistics(x)
        results += [functional.normalize(x, whole)]
        results += [functional.gradient(x, dy, whole, functional.gradient_sums(x, dy, whole))[0]]
    assert "pack" not in [name for name, _ in launches]
    for result in results:
        assert result.strides == x.strides
    plain = put(queue, HOST.x)
    np.testing.assert_allclose(pack(y).get(), batch_norm_train(plain)[0].get(), rtol=0, atol=2e-6)
    made = batch_norm_train(x, order="C")
    np.testing.assert_allclose(made[0].get(), pack(y).get(), rtol=0, atol=2e-6)  # where both are walked: other sums
    np.testing.assert_array_equal((made[0] + plain).get(), made[0].get() + HOST.x)


def test_a_strided_x_gives_c_order(queue: cl.CommandQueue) -> None:
    for x in (
        mirrored(queue, HOST.x),
        last(queue, HOST.x)[:, 1:4],
        last(queue, HOST.x)[::2],
        put(queue, HOST.x)[1:, 2:],
    ):
        y, mean, deviation = batch_norm_train(x)
        assert y.flags.c_contiguous
        assert batch_norm_backward(x, y, None, mean, deviation)[0].flags.c_contiguous
        assert batch_norm_train(x, order="K")[0].flags.c_contiguous


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
@pytest.mark.parametrize("order", ["F", "A", "k", None, 0, np.array(["K", "C"])], ids=str)
def test_orders_that_are_none(queue: cl.CommandQueue, order: Any) -> None:
    x = put(queue, HOST.x)
    whole = functional.statistics(x)
    sums = functional.gradient_sums(x, x, whole)
    mean = whole.mean
    for call in (
        lambda **options: batch_norm_train(x, **options),
        lambda **options: batch_norm_infer(x, None, None, mean, mean, **options),
        lambda **options: batch_norm_backward(x, x, None, mean, mean, **options),
        lambda **options: functional.normalize(x, whole, **options),
        lambda **options: functional.gradient(x, x, whole, sums, **options),
        lambda **options: bind(batch_norm_train, x, **options),
        lambda **options: explain(x, **options),
    ):
        with recording() as launches, pytest.raises(ParameterError, match=r"^order is .*; 'K', .*, or 'C' is wanted$"):
            call(order=order)
        assert not launches


# --- what explain tells


@pytest.mark.parametrize(("name", "x", "out", "vectors"), CASES[:2] + CASES[3:5])
def test_explain_tells_what_is_copied(queue: cl.CommandQueue, name: str, x: str, out: str, vectors: str) -> None:
    """As many launches as it says."""
    call = Call(queue, name, x, out, vectors)
    given = {"scale": call.scale, "out": call.out}
    if name == "train":
        given |= {"bias": call.bias, "running_mean": call.mean, "running_var": call.var, "entered": call.counts}
    else:
        given |= {"save_mean": call.mean, "save_invstd": call.var, "dy": call.dy}
        given |= {"scale_grad": call.into, "bias_grad": call.bias}
    told = explain(call.x, operation=name, **given)
    with recording() as launches:
        call()
    kernels = [name for name, _ in launches]

    def listed(what: str) -> list[str]:
        found = re.search(rf"; {what}: ([^;]*)", told)
        return re.sub(r" \(.*?\)(?=,|$)", "", re.sub(r"\(\d[^)]*\)", "", found[1])).split(", ") if found else []

    kept = re.search(r"what (.*) held", told)
    before = len(listed("packed before")) + (len(kept[1].split(", ")) if kept else 0)
    after = len(listed("unpacked after"))
    middle = [kernel for kernel in kernels if kernel != "pack"]
    assert kernels == ["pack"] * before + middle + ["pack"] * after, told
    assert f"({' + '.join(middle)};" in told


def test_explain_says_why(queue: cl.CommandQueue) -> None:
    x, plain = mirrored(queue, HOST.x), put(queue, HOST.x)
    assert explain(x).endswith(f"; packed before: x ({MIRRORED})")
    assert explain(x).partition("; packed")[0] == explain(plain)
    assert explain(plain, out=last(queue, HOST.x)).endswith("; unpacked after: out (it lies otherwise than x)")
    told = explain(plain, operation="backward", dy=x, save_mean=apart(queue, HOST.scale))
    gaps = "its elements do not lie side by side in C order"
    assert told.endswith(f"; packed before: dy (it lies otherwise than x), save_mean ({gaps})")
    told = explain(last(queue, HOST.x), order="C")
    assert told.endswith("; unpacked after: the result (it lies otherwise than x)")
    fields = put(queue, np.zeros(9000, np.uint8))
    odd = cla.Array(queue, SHAPE, np.float32, data=fields.base_data, offset=3, strides=(1680, 336, 56, 8))
    assert explain(odd).endswith("; packed before: x (its elements do not lie at multiples of 4 bytes)")
    told = explain(plain, running_mean=apart(queue, HOST.scale), running_var=put(queue, HOST.scale))
    assert told.endswith(
        f"; packed before: running_mean ({gaps}); unpacked after: running_mean ({gaps}); "
        "kept until all is unpacked: what running_mean, running_var held"
    )
    assert "pack" not in explain(plain, operation="backward", dy=plain, out=plain, scale=put(queue, HOST.scale))


@pytest.mark.once(reason="errors are raised before the runtime is asked for anything")
def test_what_explain_does_not_take(queue: cl.CommandQueue) -> None:
    x = put(queue, HOST.x)
    with pytest.raises(
        ParameterError, match="mean is no array that 'train' takes; x is by position, the others are sc"
    ):
        explain(x, mean=x)
    with pytest.raises(ParameterError, match=r"out is a pyopencl.*; 'moments' writes no tensor, so None is wanted"):
        explain(x, operation="moments", out=x)
    for name in ("out", "dy"):
        with pytest.raises(OclbnError, match=f"^{name} has shape"):
            explain(x, operation="backward", **{name: x[:2]})
    with pytest.raises(OclbnError, match=r"^scale has 4 elements"):
        explain(x, scale=put(queue, HOST.scale)[:4])


# --- modules


def test_a_module_whose_arrays_have_gaps(queue: cl.CommandQueue) -> None:
    """Trained, assigned to, zeroed, copied, saved and loaded as one without gaps; nothing beside moves."""
    pytest.importorskip("h5py")
    plain, gaps = (BatchNorm2D(5, queue=queue, seed=3) for _ in range(2))
    whole = [put(queue, np.zeros((1, 10, 1, 1), np.float32)) for _ in range(6)]
    odd = [array[:, 1::2] for array in whole]
    for array, name in zip(odd, ("scale", "bias", "mean", "var"), strict=False):
        accumulate(array, getattr(gaps, name))
    for name, data, grad in (("scale", odd[0], odd[4]), ("bias", odd[1], odd[5])):
        gaps.vars[name].data, gaps.vars[name].grad = data, grad
    gaps.attrs["mean"], gaps.attrs["var"] = odd[2], odd[3]
    for bn in (plain, gaps):
        for _ in range(2):
            bn(mirrored(queue, HOST.x) if bn is gaps else put(queue, HOST.x))
            bn.backward(last(queue, HOST.dy))
            bn.updateParams(-0.1)
        bn.bias = apart(queue, HOST.bias)
    names = ("scale", "bias", "mean", "var")

    def numbers(bn: BatchNorm2D) -> list[bytes]:
        return [pack(getattr(bn, name)).get().tobytes() for name in names]

    assert numbers(gaps) == numbers(plain)
    assert gaps.save() is not None
    other = BatchNorm2D(5, queue=queue)
    other.load(gaps.save())
    assert numbers(other) == numbers(plain)
    gaps.load(plain.save())
    assert numbers(gaps) == numbers(plain)
    assert numbers(copy.copy(gaps)) == numbers(plain)
    gaps.zeroGradParams()
    for array in whole:
        assert not array.get()[:, ::2].any()
    assert not pack(odd[4]).get().any()
    gaps.evalMode()
    plain.evalMode()
    assert gaps(put(queue, HOST.x)).get().tobytes() == plain(put(queue, HOST.x)).get().tobytes()


def test_moments_of_what_is_walked_and_what_is_not(queue: cl.CommandQueue) -> None:
    x = mirrored(queue, HOST.x)
    with recording() as launches:
        _, mean, _ = moments(x)
    assert launches[0][0] == "pack"
    assert mean.get().tobytes() == moments(put(queue, HOST.x))[1].get().tobytes()
