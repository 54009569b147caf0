"""Arrays that lie anyhow, each in an order of its own, in calls of every operation, against float64 NumPy.

A seed is a call: its shape, its axis, how each of its arrays lies, and its options. A test that fails names the seed;
`-k "seeds and 1200"` runs those from 1200 on. OCLBN_LONG=1 makes 10,000 calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from conftest import LONG
from views import READ, WRITTEN, View, any_shape, is_dense, lay

from oclbn import device, functional
from oclbn.call.overlap import _meets_itself
from oclbn.functional import bind
from oclbn.gpuarray import pack
from oclbn.truth.cases import judge
from oclbn.truth.expectation import EPSILON, FACTOR, expected, invstd, saved
from oclbn.truth.hostile import Data, make

CALLS, EACH = (10_000 if LONG else 300), 50
MORE = pytest.mark.once(reason="half of the calls at random are made on each runtime: how views are read is the host's")


class Caller:
    """One call: arrays that lie at random, and what of them has to be looked at in the end."""

    def __init__(self, queue: cl.CommandQueue, seed: int) -> None:
        self.rng, self.queue, self.views = np.random.default_rng(seed), queue, dict[str, View]()
        rng = self.rng
        rank = int(rng.integers(2, 6))
        most = {2: 40, 3: 14, 4: 9, 5: 6}[rank]
        shape = [int(size) for size in rng.integers(1, most, rank)]
        self.axis = int(rng.integers(rank))
        if np.prod(shape) == shape[self.axis]:
            shape[self.axis - 1] += 1
        self.channels = shape[self.axis]
        fp64 = device.limits(queue.device).fp64
        self.dtype = np.dtype(np.float64 if fp64 and rng.random() < 0.15 else np.float32)
        self.host = make(tuple(shape), self.axis, self.dtype, seed=seed)
        self.order = str(rng.choice(["K", "C"]))
        self.usual = rng.random() < 0.4  # that arrays of a number per channel have no gaps

    def read(self, name: str, host: np.ndarray, ways: tuple[str, ...] = READ) -> cla.Array:
        return self._lay(name, host, ways)

    def written(self, name: str, host: np.ndarray) -> cla.Array:
        return self._lay(name, host, WRITTEN)

    def vector(self, name: str, host: np.ndarray, ways: tuple[str, ...] = WRITTEN) -> cla.Array:
        shape = any_shape(self.rng, host.size)
        return self._lay(name, host.reshape(shape), ("C",) if self.usual else ways)

    def _lay(self, name: str, host: np.ndarray, ways: tuple[str, ...]) -> cla.Array:
        view = self.views[name] = lay(self.rng, self.queue, host, str(self.rng.choice(ways)))
        return view.array

    def tensor(self, name: str, ways: tuple[str, ...] = READ) -> cla.Array:
        """x or dy: what it holds once it lies is what is computed with."""
        array = self.read(name, getattr(self.host, name), ways)
        self.host = replace(self.host, **{name: self.views[name].host})
        return array

    def out(self) -> cla.Array | None:
        if self.rng.random() < 0.5:
            return None
        return self.written("out", np.full_like(self.host.x, 7))

    def call(self, operation: Callable[..., Any], *given: Any, **options: Any) -> Any:
        if self.rng.random() < 0.3:
            return bind(operation, *given, **options)()
        return operation(*given, **options)

    def result(self, made: cla.Array, out: cla.Array | None, x: cla.Array) -> np.ndarray:
        if out is not None:
            assert made is out
        elif self.order == "C" or not is_dense(x):
            assert made.flags.c_contiguous
        else:
            assert is_dense(made)
            steps = zip(made.strides, x.strides, x.shape, strict=True)
            assert all(own == other for own, other, size in steps if size > 1)
        return pack(made).get()

    def good(self, operation: str, found: dict[str, np.ndarray], host: Data, **more: Any) -> None:
        worst = judge(found, expected(operation, host, self.axis, **more))
        assert worst.good, f"{operation} of {host.x.shape}, axis {self.axis}: {worst}"

    def kept(self, *changed: str) -> None:
        """All that was only read is as it was, and so is the memory beside everything."""
        for name, view in self.views.items():
            held = view.now()
            if name not in changed:
                np.testing.assert_array_equal(held, view.host, name)


def train(c: Caller) -> None:
    x, h = c.tensor("x"), c.host
    state = {name: c.vector(name, getattr(h, name)) for name in ("running_mean", "running_var")}
    counters = c.rng.integers(0, 9, (2, c.channels)).astype(np.uint32)
    counted = {"skipped": c.vector("skipped", counters[0]), "entered": c.vector("entered", counters[1])}
    scale, bias, out = c.vector("scale", h.scale), c.vector("bias", h.bias), c.out()
    options: Any = {"axis": c.axis, "epsilon": EPSILON, "factor": FACTOR, "out": out, "order": c.order}
    y, mean, deviation = c.call(functional.batch_norm_train, x, scale, bias, **state, **counted, **options)
    assert mean.shape == deviation.shape == scale.shape
    found = {name: c.views[name].now().ravel() for name in (*state, "entered")}
    found |= {"y": c.result(y, out, x), "save_mean": mean.get().ravel(), "save_invstd": deviation.get().ravel()}
    c.good("train", found, h, entered=counters[1].astype(np.float64))
    c.kept("out", "running_mean", "running_var", "entered")


def infer(c: Caller) -> None:
    in_place = c.rng.random() < 0.3
    x = c.tensor("x", WRITTEN if in_place else READ)
    h = c.host
    out = x if in_place else c.out()
    four = [c.vector(name, getattr(h, name)) for name in ("scale", "bias", "running_mean", "running_var")]
    options = {"axis": c.axis, "epsilon": EPSILON, "out": out, "order": c.order}
    with functional.recording() as launches:
        y = c.call(functional.batch_norm_infer, x, *four, **options)
    given = dict(zip(("scale", "bias", "mean", "var"), four, strict=True))
    told = functional.explain(x, operation="infer", axis=c.axis, out=out, order=c.order, **given)
    assert ("packed" in told) == ("pack" in [kernel for kernel, _ in launches]), told
    c.good("infer", {"y": c.result(y, out, x)}, h)
    c.kept("out", *(["x"] if in_place else []))


def backward(c: Caller, *, training: bool = True) -> None:
    x, dy = c.tensor("x"), c.tensor("dy")
    h, out = c.host, c.out()
    variance = not training and c.rng.random() < 0.5
    constants = h.running_mean, invstd(h).astype(c.dtype)
    given = saved(h, c.axis) if training else (h.running_mean, h.running_var) if variance else constants
    h = h if training or variance else replace(h, saved=constants)  # training: what rounding the mean lost is taken off
    statistics = [c.vector(name, array) for name, array in zip(("save_mean", "save_invstd"), given, strict=True)]
    old = c.rng.standard_normal((2, c.channels)).astype(c.dtype)
    into = {name: c.vector(name, row) for name, row in zip(("scale_grad", "bias_grad"), old, strict=True)}
    options: Any = {"axis": c.axis, "out": out, "order": c.order, "training": training, "grad_momentum": 0.5}
    options |= {"epsilon": EPSILON} if variance else {}
    scale = c.vector("scale", h.scale)
    dx, *grads = c.call(functional.batch_norm_backward, x, dy, scale, *statistics, **into, **options)
    rows = [grad.get().ravel() for grad in grads]
    found = {"dx": c.result(dx, out, x), "dscale": rows[0], "dbias": rows[1]}
    c.good("backward" if training else "constant", found, h)
    for name, before, new in zip(into, old, rows, strict=True):
        eps = np.finfo(c.dtype).eps
        np.testing.assert_allclose(c.views[name].now().ravel(), new + 0.5 * before, rtol=4 * eps, atol=4 * eps)
    c.kept("out", *into)


def constant(c: Caller) -> None:
    backward(c, training=False)


def moments(c: Caller) -> None:
    x = c.tensor("x")
    count, mean, m2 = c.call(functional.moments, x, axis=c.axis)
    assert count == x.size // c.channels
    c.good("moments", {"mean": mean.get(), "m2": m2.get()}, c.host)
    c.kept()


def steps(c: Caller) -> None:
    """A batch of one part, through statistics and sums that lie anyhow."""

    def again(name: str, one: Any) -> Any:
        rows = [row for row in fields(one) if row.name not in ("count", "batch")]
        return replace(one, **{row.name: c.vector(f"{name}.{row.name}", getattr(one, row.name).get()) for row in rows})

    x, dy = c.tensor("x"), c.tensor("dy")
    h, axis = c.host, c.axis
    whole = again("statistics", c.call(functional.statistics, x, axis=axis))
    empty = replace(whole, count=0)
    whole = c.call(functional.merge, empty, whole) if c.rng.random() < 0.5 else whole
    state = {name: c.vector(name, getattr(h, name)) for name in ("running_mean", "running_var")}
    scale, bias, out = c.vector("scale", h.scale), c.vector("bias", h.bias), c.out()
    options: Any = {"axis": axis, "epsilon": EPSILON, "out": out, "order": c.order}
    y = c.call(functional.normalize, x, whole, scale, bias, **state, factor=FACTOR, **options)
    found = {"y": c.result(y, out, x), **{name: c.views[name].now().ravel() for name in state}}
    c.good("train", found, h)
    sums = again("sums", c.call(functional.gradient_sums, x, dy, whole, axis=axis))
    sums = c.call(functional.merge, sums, replace(sums, count=0))
    old = c.rng.standard_normal(c.channels).astype(c.dtype)
    grad = c.vector("scale_grad", old)
    dx, dscale, dbias = c.call(functional.gradient, x, dy, whole, sums, scale, scale_grad=grad, **options)
    rows = {"dscale": dscale.get().ravel(), "dbias": dbias.get().ravel()}
    c.good("backward", {"dx": c.result(dx, out, x), **rows}, h)
    np.testing.assert_array_equal(c.views["scale_grad"].now().ravel(), rows["dscale"])
    c.kept("out", "scale_grad", *state)


def accumulate(c: Caller) -> None:
    old, new = c.rng.standard_normal((2, *c.host.x.shape)).astype(c.dtype)
    into = c.written("into", old)
    added = c.read("new", new.reshape(any_shape(c.rng, new.size)))
    functional.accumulate(into, added, scale=0.5, momentum=0.25)
    eps = np.finfo(c.dtype).eps
    wanted = 0.5 * c.views["new"].host.reshape(old.shape) + 0.25 * old
    np.testing.assert_allclose(c.views["into"].now(), wanted, rtol=4 * eps, atol=4 * eps)
    c.kept("into")


KINDS: dict[str, Callable[[Caller], None]] = {
    "train": train,
    "infer": infer,
    "backward": backward,
    "constant": constant,
    "moments": moments,
    "steps": steps,
    "accumulate": accumulate,
}


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, id=f"seeds from {first}", marks=() if first < CALLS // 2 else (MORE,))
        for first in range(0, CALLS, EACH)
    ],
)
def test_random_views(queue: cl.CommandQueue, first: int) -> None:
    for seed in range(first, first + EACH):
        caller = Caller(queue, seed)
        kind = str(caller.rng.choice(list(KINDS)))
        try:
            KINDS[kind](caller)
        except Exception as error:
            lying = {name: (view.way, view.array.shape, view.array.strides) for name, view in caller.views.items()}
            error.add_note(f"seed {seed}: {kind} of {caller.dtype}, axis {caller.axis}, order {caller.order}, {lying}")
            raise


def test_which_arrays_name_an_element_twice() -> None:
    """All of some thousand small ones, against their elements counted one by one."""
    rng, both = np.random.default_rng(0), set()
    for _ in range(4000):
        rank = int(rng.integers(1, 4))
        shape = tuple(int(size) for size in rng.integers(1, 5, rank))
        strides = tuple(int(stride) for stride in rng.integers(-12, 13, rank))
        itemsize = int(rng.choice([1, 2, 4]))
        starts = sum(np.indices(shape)[d] * strides[d] for d in range(rank)).ravel()
        starts.sort()
        wanted = bool((np.diff(starts) < itemsize).any())
        assert _meets_itself(shape, strides, itemsize) == wanted, (shape, strides, itemsize)
        both.add(wanted)
    assert both == {True, False}
