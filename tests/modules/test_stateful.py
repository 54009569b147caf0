"""Operations on a module in any order, good ones and bad ones, against a model of it in float64 NumPy.

The model never looks at the module. Beside each number it keeps how far the module's may lie from it: each call adds
its own bound (oclbn.truth.bounds), and what was off before goes on as the formulas tell: running statistics forget by
1 - factor, gradients by their momentum, a step adds its rate times the gradient's error. So the tolerance after a
hundred operations is the sum of what those operations may do, and nothing else.
"""

from __future__ import annotations

import collections
import copy
import pickle
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from conftest import LONG
from faults import DEVICE_GONE, NO_OBJECT, NO_RESOURCES, failing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from layers import state_of
from tolerances import assert_within

from oclbn import BatchNorm, BatchNorm2D, device
from oclbn.elements import dtype_of, numbers_of
from oclbn.errors import (
    ModuleError,
    ModuleFileError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    OclbnError,
)
from oclbn.truth import reference
from oclbn.truth.bounds import ELEMENT, Bound, stored
from oclbn.truth.hostile import along

pytestmark = [
    pytest.mark.filterwarnings("ignore::oclbn.errors.SkippedBatchesWarning"),  # of test_skipping.py
    pytest.mark.once(reason="what is searched is the order of calls, which modules keep by themselves"),
]
C = 4
MORE = 1.1  # of the carried errors: what their products add
Tally = collections.Counter[str]
Host = np.ndarray[Any, Any]


@dataclass
class Number:
    """One value per channel, and how far the module's may lie from it."""

    value: Host
    error: Host

    @classmethod
    def of(cls, value: Any) -> Number:
        return cls(np.broadcast_to(np.asarray(value, np.float64), C).copy(), np.zeros(C))


@dataclass
class Call:
    """What the last call leaves for its gradient."""

    x: Host
    own: bool  # normalised with the batch's own statistics
    spoiled: bool
    used: tuple[Number, Number] | None = None  # the running statistics that the call moved afterwards


class Model:
    """BatchNorm in float64."""

    def __init__(self, scale: Host, *, epsilon: float, init: float, least: float, affine: bool) -> None:
        self.epsilon, self.init, self.least, self.affine = epsilon, init, least, affine
        self.scale, self.bias, self.mean, self.var = Number.of(scale), Number.of(0), Number.of(0), Number.of(1)
        self.grads = {"scale": Number.of(0), "bias": Number.of(0)}
        self.train, self.guard, self.batches, self.skips = True, True, 0, np.zeros(C, int)
        self.use: bool | None = None
        self.update: bool | None = None
        self.dtype = np.dtype(np.float32)  # of data
        self.last: Call | None = None

    def file(self) -> dict[str, Any]:
        """What save keeps."""
        names = ("scale", "bias", "mean", "var", "batches", "skips")
        return copy.deepcopy({name: getattr(self, name) for name in names} | {"dtype": self.kept})

    def load(self, file: dict[str, Any]) -> None:
        own = self.dtype
        vars(self).update(copy.deepcopy(file))
        self.dtype, self.last = own, None

    @property
    def kept(self) -> np.dtype[Any]:
        """What parameters are of."""
        return numbers_of(self.dtype)

    @property
    def eps(self) -> float:
        return float(np.finfo(self.kept).eps)

    def numbers(self) -> dict[str, Number]:
        named = {"scale": self.scale, "bias": self.bias, "mean": self.mean, "var": self.var}
        return named | {f"grad of {name}": grad for name, grad in self.grads.items()}

    def convert(self, dtype: np.dtype[Any]) -> None:
        if dtype == self.dtype:
            return
        before, self.dtype, self.last = self.kept, dtype, None
        for number in () if before == self.kept else self.numbers().values():
            number.error += float(np.finfo(np.float32).eps) * np.abs(number.value)

    def forward(self, x: Host) -> tuple[Host, Host]:
        """y and its tolerance."""
        by_running = not self.train if self.use is None else self.use
        moves = self.train if self.update is None else self.update
        made = None
        if by_running:
            made = self._infer(x)
            used = copy.deepcopy((self.mean, self.var)) if moves and x.size else None
            self.last = Call(x, False, bool(np.isnan(x).any()), used)
            if not moves:
                return made
        found = reference.train(
            x,
            self.scale.value,
            self.bias.value,
            self.mean.value,
            self.var.value,
            epsilon=self.epsilon,
            factor=self.least,
            init_factor=self.init,
            entered=self.batches - self.skips,
            guard=self.guard,
        )
        entered = self.batches - self.skips + 1
        factor = np.maximum(self.init / entered, self.least)
        bound = Bound(x, found.mean, found.invstd, self.scale.value, self.bias.value, axis=1, dtype=self.dtype)
        shape = x.shape
        room = bound.y() + MORE * (bound.xhat * along(self.scale.error, shape, 1) + along(self.bias.error, shape, 1))
        count = x.size // C
        if count and moves:
            kept = self.guard & ~(np.isfinite(found.mean) & np.isfinite(found.var))
            self.skips = self.skips + kept
            unbiased = found.var * count / (count - 1)
            news = (
                (self.mean, found.running_mean, bound.running_mean(self.mean.value, factor)),
                (self.var, found.running_var, bound.running_var(self.var.value, unbiased, factor)),
            )
            for number, new, call in news:
                number.error = np.where(kept, number.error, (1 - factor) * number.error + call)
                number.value = new
            self.batches += 1
        if made is not None:
            return made
        self.last = Call(x, True, bool(np.isnan(x).any()))
        return found.y, room

    def only_infers(self) -> bool:
        """Whether a call takes the running statistics and leaves them."""
        return (not self.train if self.use is None else self.use) and not (
            self.train if self.update is None else self.update
        )

    def recalibrate(self, xs: list[Host]) -> None:
        """Statistics of all values, all finite."""
        x = np.concatenate(xs)
        found = reference.train(x)
        bound = Bound(x, found.mean, found.invstd, None, None, axis=1, dtype=self.dtype)
        var = found.var * (x.size // C) / (x.size // C - 1)
        self.mean = Number(found.mean, bound.stored_mean())
        self.var = Number(var, bound.running_var(var, var, 1.0))
        self.batches, self.skips, self.last = sum(one.size > 0 for one in xs), np.zeros(C, int), None

    def _infer(self, x: Host) -> tuple[Host, Host]:
        y = reference.infer(x, self.scale.value, self.bias.value, self.mean.value, self.var.value, epsilon=self.epsilon)
        invstd = self._invstd(self.var)
        bound = Bound(x, self.mean.value, invstd, self.scale.value, self.bias.value, axis=1, dtype=self.dtype)
        carried = self._xhat_error(bound, self.mean, self.var) * along(np.abs(self.scale.value), x.shape, 1)
        carried = carried + bound.xhat * along(self.scale.error, x.shape, 1) + along(self.bias.error, x.shape, 1)
        return y, bound.inferred() + MORE * carried

    def _invstd(self, var: Number) -> Host:
        return 1 / np.sqrt(var.value + self.epsilon)

    def _invstd_error(self, var: Number) -> Host:
        """Relative."""
        return 0.5 * var.error * self._invstd(var) ** 2

    def _xhat_error(self, bound: Bound, mean: Number, var: Number) -> Host:
        """What errors of the running statistics do to (x - mean) * invstd."""
        shape = bound.shape
        by_mean = along(mean.error * self._invstd(var), shape, 1)
        return by_mean + bound.xhat * along(self._invstd_error(var), shape, 1)

    def backward(self, dy: Host, update: bool, scale: float, momentum: float) -> tuple[Host, Host]:
        """dx and its tolerance; the parameters' gradients are gathered in training."""
        assert self.last is not None
        x, train = self.last.x, self.last.own
        running = self.last.used or (self.mean, self.var)
        if train:
            own = reference.train(x, epsilon=self.epsilon)
            mean, invstd = own.mean, own.invstd
        else:
            mean, invstd = running[0].value, self._invstd(running[1])
        arrays = x, dy, self.scale.value, mean, invstd
        dx, dscale, dbias = reference.backward(*arrays, training=train)
        bound = Bound(x, mean, invstd, self.scale.value, None, axis=1, dtype=self.dtype)
        room, dscale_room, dbias_room = bound.gradients(dy, training=train)
        unit = np.abs(reference.backward(x, dy, None, mean, invstd, training=train)[0])
        carried = unit * along(self.scale.error, x.shape, 1)
        if not train:
            carried = carried + unit * along(np.abs(self.scale.value) * self._invstd_error(running[1]), x.shape, 1)
            rows = tuple(axis for axis in range(x.ndim) if axis != 1)
            dscale_room = dscale_room + MORE * np.sum(np.abs(dy) * self._xhat_error(bound, *running), axis=rows)
        if update and self.train and self.affine:
            for name, new, error in (("scale", dscale, dscale_room), ("bias", dbias, dbias_room)):
                old = self.grads[name] if momentum else Number.of(0)
                value = scale * new + momentum * old.value
                terms = np.abs(scale * new) + np.abs(momentum * old.value)
                error = np.abs(scale) * error + np.abs(momentum) * old.error + ELEMENT * self.eps * terms
                self.grads[name] = Number(value, error + bound.tiny)
        return dx, room + MORE * carried

    def step(self, rate: float) -> None:
        if not self.affine:
            return
        for name, grad in self.grads.items():
            number = getattr(self, name)
            change = rate * grad.value
            rounding = ELEMENT * self.eps * (np.abs(number.value) + np.abs(change))
            number.error = number.error + np.abs(rate) * grad.error + rounding
            number.value = number.value + change


@dataclass(frozen=True)
class Batch:
    """Data that a seed makes, in a module's shape."""

    seed: int
    samples: int
    size: int
    ratio: float  # mean / std

    def make(self, flat: bool, dtype: Any) -> tuple[Host, Host]:
        rng = np.random.default_rng(self.seed)
        shape = (self.samples, C) if flat else (self.samples, C, self.size, self.size + 1)
        x = rng.standard_normal(shape) * 2 + self.ratio * along(np.linspace(-1, 1, C), shape, 1)
        return x.astype(dtype), rng.standard_normal(shape).astype(dtype)


batches = st.builds(
    Batch,
    seed=st.integers(0, 2**16),
    samples=st.sampled_from([0, 2, 3, 8, 33]),
    size=st.integers(1, 9),
    ratio=st.sampled_from([0.0, 3.0, 1e3]),
)
quarters = st.integers(-8, 8).map(lambda number: number / 4)
rates = st.integers(-50, 50).map(lambda percent: percent / 100)
momenta = st.sampled_from([0.5, 0.0, 0.9, -0.3])
WRONG = ["rank", "channels", "dtype", "NumPy array", "one value", "rate", "momentum", "unit", "gradient's shape"]
BAD_FILES = ["cut short", "flipped", "another size", "not a file"]
FAULTS = [NO_OBJECT, NO_RESOURCES, DEVICE_GONE]


class Machine(RuleBasedStateMachine):
    """The module beside its model; each rule is an operation."""

    def __init__(self, queue: cl.CommandQueue, flat: bool, tally: Tally) -> None:
        super().__init__()
        self.queue, self.flat, self.tally = queue, flat, tally
        self.fp64 = device.limits(queue.device).fp64
        self.files: list[tuple[bytes, dict[str, Any]]] = []

    def put(self, host: Host) -> cla.Array:
        return cla.to_device(self.queue, host)

    @initialize(
        factors=st.sampled_from([(1.0, 0.1), (0.5, 0.25), (1.0, 0.0)]),
        epsilon=st.sampled_from([1e-5, 1e-2]),
        affine=st.sampled_from([True, True, False]),
    )
    def create(self, factors: tuple[float, float], epsilon: float, affine: bool) -> None:
        options: Any = {"epsilon": epsilon, "initFactor": factors[0], "minFactor": factors[1], "affine": affine}
        self.bn = (BatchNorm if self.flat else BatchNorm2D)(C, queue=self.queue, seed=3, name="bn", **options)
        scale = self.bn.scale.get().ravel()
        self.model = Model(scale, epsilon=epsilon, init=factors[0], least=factors[1], affine=affine)
        self.save()

    @rule(batch=batches)
    def call(self, batch: Batch) -> None:
        x, _ = batch.make(self.flat, self.model.dtype)
        self._call(x)

    def _call(self, x: Host) -> None:
        with np.errstate(all="ignore"):
            y, room = self.model.forward(x)
        found = self.bn(self.put(x))
        assert_within(found, *stored(y, np.nan_to_num(room, nan=0.0), self.model.dtype), "y")
        assert found.dtype == self.model.dtype
        assert found is self.bn.data
        self.tally["operations on modules"] += 1

    @rule(batch=batches, channel=st.integers(0, C - 1))
    def call_with_nan(self, batch: Batch, channel: int) -> None:
        x, _ = batch.make(self.flat, self.model.dtype)
        x[:1, channel] = np.nan
        self._call(x)
        self.tally["bad inputs: batches that are not finite"] += 1

    @precondition(lambda self: self.model.last and not self.model.last.spoiled)
    @rule(
        seed=st.integers(0, 99),
        update=st.booleans(),
        keep=st.booleans(),
        scale=quarters,
        momentum=momenta,
    )
    def backward(self, seed: int, update: bool, keep: bool, scale: float, momentum: float) -> None:
        shape = self.model.last.x.shape
        taken = self.model.kept if seed % 2 else self.model.dtype  # halves may have a gradient of float32
        dy = (np.random.default_rng(seed).standard_normal(shape) + 0.1).astype(taken)
        dx, room = self.model.backward(dy, update, scale, momentum)
        found = self.bn.backward(self.put(dy), update, keep, scale, momentum)
        assert found is self.bn.grad
        assert (found is None) == (not keep)
        if found is not None:
            assert_within(found, *stored(dx, np.nan_to_num(room, nan=0.0), self.model.dtype), "dx")
            assert found.dtype == self.model.dtype
        self.tally["operations on modules"] += 1

    @rule(rate=rates)
    def step(self, rate: float) -> None:
        self.model.step(rate)
        self.bn.updateParams(rate)
        self.tally["operations on modules"] += 1

    @rule()
    def zero(self) -> None:
        self.bn.zeroGradParams()
        self.model.grads = {name: Number.of(0) for name in self.model.grads}
        self.tally["operations on modules"] += 1

    @rule(how=st.sampled_from(["train", "eval", "reset"]))
    def switch(self, how: str) -> None:
        if how == "reset":
            self.bn.reset()
        elif how == "train":
            self.bn.trainMode()
        else:
            self.bn.evalMode()
        self.model.train = {"train": True, "eval": False}.get(how, self.model.train)
        self.model.last = None
        assert self.bn.inData is self.bn.data is self.bn.grad is self.bn.savemean is None
        self.tally["operations on modules"] += 1

    @rule(
        batch=batches, how=st.sampled_from(["train", "eval"]), seed=st.integers(0, 99), scale=quarters, momentum=momenta
    )
    def forward_and_backward(self, batch: Batch, how: str, seed: int, scale: float, momentum: float) -> None:
        """What chance seldom puts in a row."""
        self.switch(how)
        self.call(batch)
        self.backward(seed, True, True, scale, momentum)

    @rule(guard=st.booleans())
    def switch_guard(self, guard: bool) -> None:
        self.bn.guard = self.model.guard = guard

    @rule(use=st.sampled_from([None, True, False]), update=st.sampled_from([None, True, False]))
    def switch_running(self, use: bool | None, update: bool | None) -> None:
        self.bn.use_running, self.bn.update_running = self.model.use, self.model.update = use, update
        assert self.bn.frozen_statistics is ((use, update) == (True, False))

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        if frozen or self.bn.frozen_statistics:
            self.model.use, self.model.update = (True, False) if frozen else (None, None)
        self.bn.frozen_statistics = frozen

    @rule(several=st.lists(batches, min_size=1, max_size=3), commit=st.booleans())
    def recalibrate(self, several: list[Batch], commit: bool) -> None:
        """By calls of whatever mode; taken back, or given up, it leaves no trace."""
        xs = [replace(one, size=several[0].size).make(self.flat, self.model.dtype)[0] for one in several]
        if not sum(x.size for x in xs):
            return
        self.bn.reset()
        before = self._kept()
        with self.bn.recalibrate() as pass_:
            for x in xs:
                self.bn(self.put(x))
        self.bn.reset()
        assert self._kept() == before
        pass_.commit()
        if commit:
            self.model.recalibrate(xs)
        else:
            pass_.rollback()
            assert self._kept() == before
        self.model.last = None
        self.tally["operations on modules"] += 1

    def _kept(self) -> list[Any]:
        state = state_of(self.bn)
        return [one[1] if isinstance(one, tuple) else one for one in state]

    @rule(batch=batches, at=st.integers(0, 33), seed=st.integers(0, 99), scale=quarters, momentum=momenta)
    def accumulate(self, batch: Batch, at: int, seed: int, scale: float, momentum: float) -> None:
        """Two parts, which are one batch to the model; refused where they are not normalised together."""
        x, dy = batch.make(self.flat, self.model.dtype)
        if not self.model.train or self.model.use:
            self._refused(ModuleStateError, self.bn.accumulate().__enter__)
            return
        xs, dys = ([self.put(np.ascontiguousarray(half)) for half in np.split(a, [at])] for a in (x, dy))
        with np.errstate(all="ignore"):
            y, room = self.model.forward(x)
            dx, dx_room = self.model.backward(dy, True, scale, momentum)
        with self.bn.accumulate(scale=scale, momentum=momentum) as step:
            for part in xs:
                step.statistics(part)
            ys = [step.normalize(part).get() for part in xs]
            for part, slope in zip(xs, dys, strict=True):
                step.gradient_sums(part, slope)
            dxs = [step.gradient(part, slope).get() for part, slope in zip(xs, dys, strict=True)]
        for found, wanted, bound, what in ((ys, y, room, "y"), (dxs, dx, dx_room, "dx")):
            assert_within(np.concatenate(found), *stored(wanted, np.nan_to_num(bound, nan=0.0), self.model.dtype), what)
        self.model.last = None
        self.tally["operations on modules"] += 1

    @rule(name=st.sampled_from(["scale", "bias", "mean", "var"]), seed=st.integers(0, 99), how=st.integers(0, 2))
    def assign(self, name: str, seed: int, how: int) -> None:
        values = (np.random.default_rng(seed).standard_normal(C) ** 2).astype(np.float32)
        given: Any = [values.astype(np.float64), self.put(values.reshape(2, 2)), values.tolist()][how]
        if name in ("scale", "bias") and not self.model.affine:
            self._refused(ModuleParameterError, lambda: setattr(self.bn, name, given))
        else:
            setattr(self.bn, name, given)
            setattr(self.model, name, Number.of(values))
        self._refused(ModuleShapeError, lambda: setattr(self.bn, name, np.append(values, 1)))
        self.tally["operations on modules"] += 1

    @rule(how=st.sampled_from(["copy", "deepcopy", "pickle"]))
    def make_another(self, how: str) -> None:
        """Which takes the module's place; from then on nothing may tell them apart."""
        if how == "pickle":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(device, "default_queue", lambda: self.queue)
                self.bn = pickle.loads(pickle.dumps(self.bn))
        else:
            self.bn = getattr(copy, how)(self.bn)
        self.model.last = None
        self.tally["operations on modules"] += 1

    @rule(name=st.sampled_from(["float32", "float64", "float16", "bfloat16"]))
    def convert(self, name: str) -> None:
        dtype = dtype_of(name)
        if dtype is None or (dtype == np.float64 and not self.fp64):
            return
        self.bn.calcMode(dtype)
        self.model.convert(dtype)
        self.tally["operations on modules"] += 1

    @rule()
    def save(self) -> None:
        image = self.bn.save()
        assert image is not None
        assert image == self.bn.save()
        self.files = [*self.files[-4:], (image, self.model.file())]
        self.tally["operations on modules"] += 1

    @rule(which=st.integers(0, 4))
    def load(self, which: int) -> None:
        image, file = self.files[which % len(self.files)]
        finite = all(np.isfinite(file[name].value).all() for name in ("scale", "bias", "mean", "var"))
        if not finite:
            self._refused(ModuleFileError, lambda: self.bn.load(image))
        if np.can_cast(file["dtype"], self.model.kept, "safe"):
            self.bn.load(image, check_finite=finite)
            self.model.load(file)
            assert self.bn.inData is None
        else:
            self._refused(ModuleFileError, lambda: self.bn.load(image))
        self.tally["operations on modules"] += 1

    @rule(which=st.integers(0, 4), kind=st.sampled_from(BAD_FILES), place=st.floats(0, 0.999))
    def load_bad(self, which: int, kind: str, place: float) -> None:
        image, _ = self.files[which % len(self.files)]
        at = int(place * len(image))
        if kind == "cut short":
            bad = image[:at]
        elif kind == "flipped":  # of the first bytes each counts: the others may lie where nothing is
            bad = bytes([*image[: at % 48], image[at % 48] ^ 0x10, *image[at % 48 + 1 :]])
        elif kind == "another size":
            bad = BatchNorm(C + 1, queue=self.queue, name="bn").save() or b""
        else:
            bad = b"\x00" * at
        self._refused(ModuleFileError, lambda: self.bn.load(bad))
        self.tally["bad inputs: files, between operations"] += 1

    @rule(batch=batches, what=st.sampled_from(WRONG))
    def wrong(self, batch: Batch, what: str) -> None:
        bn, (x, _) = self.bn, batch.make(self.flat, self.model.dtype)
        calls: dict[str, Any] = {
            "rank": (ModuleError, lambda: bn(self.put(x[..., None]))),
            "channels": (ModuleError, lambda: bn(self.put(np.concatenate([x, x], axis=1)))),
            "dtype": (ModuleError, lambda: bn(self.put(x.astype(np.int32)))),
            "NumPy array": (ModuleError, lambda: bn(x)),
            "rate": (ModuleError, lambda: bn.updateParams(float("nan"))),
            "unit": (ModuleError, lambda: bn.paramSize("gb")),
        }
        if not self.model.only_infers():
            one = np.ones((1, C) if self.flat else (1, C, 1, 1), self.model.dtype)
            calls["one value"] = ModuleShapeError, lambda: bn(self.put(one))
        if self.model.last:
            last = self.put(self.model.last.x)
            longer = self.put(np.concatenate([self.model.last.x, np.ones_like(x, shape=self._row())]))
            calls["momentum"] = ModuleError, lambda: bn.backward(last, momentum=float("inf"))
            calls["gradient's shape"] = ModuleShapeError, lambda: bn.backward(longer)
        else:
            calls["momentum"] = ModuleStateError, lambda: bn.backward(self.put(x))
        if what in calls:
            self._refused(*calls[what])
            self.tally["bad inputs: arguments, between operations"] += 1

    def _row(self) -> tuple[int, ...]:
        assert self.model.last is not None
        return (1, *self.model.last.x.shape[1:])

    @rule(batch=batches, fault=st.sampled_from(FAULTS), number=st.integers(0, 2), how=st.sampled_from("tbl"))
    def fault(self, batch: Batch, fault: Any, number: int, how: str) -> None:
        """The driver fails at one of the first three things that it is asked: that many each of these calls asks."""
        model, last = self.model, self.model.last
        x, _ = batch.make(self.flat, model.dtype)
        calls: dict[str, Any] = {}
        if x.size:
            given = self.put(x)
            calls["t"] = lambda: self.bn(given)
        if last is not None and last.x.size:
            gradient = self.put(np.ones_like(last.x))
            calls["b"] = lambda: self.bn.backward(gradient)
        if model.kept == self.files[0][1]["dtype"]:
            calls["l"] = lambda: self.bn.load(self.files[0][0])
        if how in calls:

            def call() -> None:
                with failing(fault, number):
                    calls[how]()

            self._refused(OclbnError, call)
            self.tally["faults: between operations"] += 1

    def _refused(self, error: type[Exception], call: Any) -> None:
        before = state_of(self.bn)
        with pytest.raises(error):
            call()
        assert state_of(self.bn) == before

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "bn"):
            return
        bn, model = self.bn, self.model
        found = {name: getattr(bn, name) for name in ("scale", "bias", "mean", "var")}
        found |= {f"grad of {name}": var.grad for name, var in bn.vars.items()}
        for name, number in model.numbers().items():
            assert found[name].dtype == model.kept
            assert_within(found[name].get().ravel(), number.value, np.nan_to_num(number.error, nan=0.0), name)
        assert (bn.numOfProps, bn.train, bn.skipped) == (model.batches, model.train, int(model.skips.sum()))
        assert (bn.inData is None) == (model.last is None)
        assert bn.scale is bn.vars["scale"].data
        self.tally["states compared with the model"] += 1


@pytest.mark.parametrize("flat", [True, False], ids=["(N, C)", "(N, C, H, W)"])
def test_any_order_of_operations(queue: cl.CommandQueue, tally: Tally, flat: bool) -> None:
    run_state_machine_as_test(
        lambda: Machine(queue, flat, tally),
        settings=settings(
            max_examples=1000 if LONG else 30,
            stateful_step_count=60 if LONG else 30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
