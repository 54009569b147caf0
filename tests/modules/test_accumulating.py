"""A batch in parts with one set of statistics: the results of one call on all of it, and one change of the module."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from faults import NO_RESOURCES, failing
from layers import C, put, state_of
from tolerances import assert_within

from oclbn import BatchNorm2D, BatchNormND, functional
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import (
    DeviceError,
    ModuleDtypeError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    SizeError,
)
from oclbn.modules.accumulating import Accumulation
from oclbn.truth import reference
from oclbn.truth.bounds import Bound, stored
from oclbn.truth.hostile import Offset, Spoiled, constant, gaussian, make

pytestmark = [
    pytest.mark.filterwarnings("ignore::oclbn.errors.SkippedBatchesWarning"),  # of a module of one channel
    pytest.mark.once(reason="the steps that the parts take are tested on each runtime"),
]


def parts_of(queue: cl.CommandQueue, host: np.ndarray, cuts: tuple[int, ...]) -> list[Any]:
    return [put(queue, part) for part in np.split(host, cuts)]


def accumulated(bn: BatchNormND, xs: list[Any], dys: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
    with bn.accumulate(**options) as step:
        for x in xs:
            step.statistics(x)
        ys = [step.normalize(x) for x in xs]
        for x, dy in zip(xs, dys, strict=True):
            step.gradient_sums(x, dy)
        dxs = [step.gradient(x, dy) for x, dy in zip(xs, dys, strict=True)]
    return [y.get() for y in ys], [dx.get() for dx in dxs]


NO_PART = pytest.param((7, C, 3, 3), 1, (1, 1, 4), id="one part of none")
CHANNELS_LAST = pytest.param((6, 2, 2, C), 3, (2,), id="channels last")
ONE_VALUE = pytest.param((3, 1, 1, 1), 1, (1, 2), id="one value in each part, one channel")
# What each type does in each walk is compared by the kernels' tests; here each type comes in parts once.
TYPED = {
    "float32": (NO_PART, CHANNELS_LAST, ONE_VALUE),
    "float64": (CHANNELS_LAST,),
    "float16": (NO_PART,),
    "bfloat16": (CHANNELS_LAST,),
}


@pytest.mark.parametrize(
    "maker", [gaussian, Offset(1e4), constant, Spoiled(np.nan)], ids=["N(0,1)", "1e4", "con", "NaN"]
)
@pytest.mark.parametrize(
    ("dtype", "shape", "axis", "cuts"),
    [
        pytest.param(dtype, *shape.values, id=f"{dtype}-{shape.id}")
        for dtype, shapes in TYPED.items()
        for shape in shapes
    ],
)
def test_parts_are_as_exact_as_one_call(
    queue: cl.CommandQueue, dtype: str, shape: tuple[int, ...], axis: int, cuts: tuple[int, ...], maker: Any
) -> None:
    element = named(dtype)
    if element == np.float64 and not limits(queue.device).fp64:
        pytest.skip("needs float64")
    host = make(shape, axis, element, maker)
    channels = shape[axis]
    bn = BatchNorm2D(channels, queue=queue, dtype=element, seed=1, sscale=0.5, axis=axis, initFactor=0, minFactor=0.25)
    bn.bias, bn.mean, bn.var = host.bias, host.running_mean, host.running_var
    for var in bn.vars.values():
        var.grad.fill(3)
    ys, dxs = accumulated(bn, parts_of(queue, host.x, cuts), parts_of(queue, host.dy, cuts), scale=0.5, momentum=2.0)
    scale = bn.scale.get().ravel()  # type: ignore[union-attr]
    wanted = reference.train(host.x, scale, host.bias, host.running_mean, host.running_var, axis=axis, factor=0.25)
    bound = Bound(host.x, wanted.mean, wanted.invstd, scale, host.bias, axis=axis, dtype=element)
    strict = [np.nan_to_num(one, nan=0.0) for one in (bound.y(), *bound.gradients(host.dy, training=True))]
    assert_within(np.concatenate(ys), *stored(wanted.y, strict[0], element), "y")
    dx, dscale, dbias = reference.backward(host.x, host.dy, scale, wanted.mean, wanted.invstd, axis=axis)
    assert_within(np.concatenate(dxs), *stored(dx, strict[1], element), "dx")
    eps = np.finfo(scale.dtype).eps
    for name, new, room in (("scale", dscale, strict[2]), ("bias", dbias, strict[3])):
        grad = bn.vars[name].grad.get().ravel()
        good = host.good
        assert_within(grad[good], (0.5 * new + 6)[good], (room + 8 * eps * (np.abs(new) + 6))[good], f"grad of {name}")
    count = host.x.size // channels
    sample = wanted.var * count / (count - 1)
    for name, old, new, room in (
        ("mean", host.running_mean, wanted.running_mean, bound.running_mean(host.running_mean, 0.25)),
        ("var", host.running_var, wanted.running_var, bound.running_var(host.running_var, sample, 0.25)),
    ):
        got = getattr(bn, name).get().ravel()
        assert_within(got[host.good], new[host.good], room[host.good], name)  # type: ignore[index]
        assert (got[list(host.bad)] == old[list(host.bad)]).all()
    assert (bn.numOfProps, bn.skipped) == (1, len(host.bad))
    assert bn.inData is bn.data is bn.grad is None
    assert bn.scalegrad is not None
    assert_within(bn.scalegrad.get().ravel()[host.good], dscale[host.good], strict[2][host.good], "scalegrad")


def test_steps_in_a_row_are_those_of_whole_batches(queue: cl.CommandQueue) -> None:
    """Averaging factors, counters and updates too; statistics that stay; a module without any; without affine."""
    for options in ({}, {"update_running": False}, {"running": False}, {"affine": False}, {"cumulative": True}):
        bn, whole = (BatchNorm2D(C, queue=queue, seed=1, **options) for _ in range(2))  # type: ignore[arg-type]
        for seed in range(3):
            host = make((6, C, 2, 3), 1, maker=Offset(10.0), seed=seed)
            accumulated(bn, parts_of(queue, host.x, (1, 3)), parts_of(queue, host.dy, (1, 3)))
            whole(put(queue, host.x))
            whole.backward(put(queue, host.dy))
            for one in (bn, whole):
                one.updateParams(-0.1)
        assert (bn.numOfProps, bn.skipped) == (whole.numOfProps, whole.skipped)
        for name in ("scale", "bias", "mean", "var"):
            got, wanted = getattr(bn, name), getattr(whole, name)
            assert (got is None) is (wanted is None)
            if got is not None:
                np.testing.assert_allclose(got.get(), wanted.get(), rtol=1e-4, atol=1e-4)


def test_y_may_be_computed_anew(queue: cl.CommandQueue) -> None:
    """For whoever keeps no activations: normalize again in the phases of the gradients. out= is written."""
    host = make((5, C, 2, 2), 1)
    xs, dys = parts_of(queue, host.x, (2,)), parts_of(queue, host.dy, (2,))
    bn, other = (BatchNorm2D(C, queue=queue, seed=1) for _ in range(2))
    ys, _ = accumulated(other, xs, dys)
    with bn.accumulate() as step:
        assert step.count == 0
        for x in xs:
            step.statistics(x)
        assert step.count == 20
        outs = [functional.moments(x) and x.copy() for x in xs]
        for x, out in zip(xs, outs, strict=True):
            assert step.normalize(x, out=out) is out
        for phase in (step.gradient_sums, step.gradient):
            for x, dy, y in zip(xs, dys, ys, strict=True):
                assert step.normalize(x).get().tobytes() == y.tobytes()
                phase(x, dy)
        assert repr(step) == "<Accumulation of BatchNorm2D: statistics 2, normalize 6, gradient_sums 2, gradient 2>"
    assert state_of(bn)[11][1] == state_of(other)[11][1]


def test_the_data_s_gradient_may_be_left_out(queue: cl.CommandQueue) -> None:
    host = make((5, C, 2, 2), 1)
    xs, dys = parts_of(queue, host.x, (2,)), parts_of(queue, host.dy, (2,))
    bn, other, third = (BatchNorm2D(C, queue=queue, seed=1) for _ in range(3))
    accumulated(other, xs, dys)
    accumulated(third, xs, dys, updParamGrads=False)
    with bn.accumulate() as step:
        for x in xs:
            step.statistics(x)
        for x in xs:
            step.normalize(x)
        for x, dy in zip(xs, dys, strict=True):
            step.gradient_sums(x, dy)
    for name in ("scale", "bias"):
        assert bn.vars[name].grad.get().tobytes() == other.vars[name].grad.get().tobytes()
        assert not third.vars[name].grad.get().any()
    assert third.numOfProps == 1


def test_an_empty_batch_changes_nothing(queue: cl.CommandQueue) -> None:
    none = put(queue, np.zeros((0, C, 2, 2), np.float32))
    bn = BatchNorm2D(C, queue=queue, seed=1)
    bn.vars["bias"].grad.fill(2)
    mean = bn.mean.get().tobytes()  # type: ignore[union-attr]
    ys, dxs = accumulated(bn, [none, none], [none, none], momentum=3.0)
    assert [one.shape for one in (*ys, *dxs)] == [none.shape] * 4
    assert (bn.numOfProps, bn.mean.get().tobytes()) == (0, mean)  # type: ignore[union-attr]
    assert bn.vars["bias"].grad.get().ravel().tolist() == [6.0] * C


@pytest.mark.parametrize(
    ("activation", "with_residual"),
    [(None, True), ("relu", True), ("gelu", True), ("gelu", False), (("leaky_relu", 0.2), False)],
    ids=["residual", "relu, residual", "gelu, residual", "gelu", "leaky_relu"],
)
def test_activations_and_residuals(queue: cl.CommandQueue, activation: Any, with_residual: bool) -> None:
    """As of one call on the whole batch; of residuals the gradients as well.

    Derivatives follow from y, from x and from x with a residual: what modules hand on is all that differs.
    """
    host = make((7, C, 2, 3), 1, maker=Offset(3.0))
    added = np.random.default_rng(9).standard_normal(host.x.shape).astype(np.float32)
    bn, whole = (BatchNorm2D(C, queue=queue, seed=1, sscale=0.5, activation=activation) for _ in range(2))
    rs: list[Any] = parts_of(queue, added, (3,)) if with_residual else [None, None]
    xs, dys = parts_of(queue, host.x, (3,)), parts_of(queue, host.dy, (3,))
    y = whole(put(queue, host.x), put(queue, added) if with_residual else None)
    dx = whole.backward(put(queue, host.dy))
    with bn.accumulate() as step:
        for x in xs:
            step.statistics(x)
        ys = [step.normalize(x, r).get() for x, r in zip(xs, rs, strict=True)]
        for x, dy, r in zip(xs, dys, rs, strict=True):
            step.gradient_sums(x, dy, r)
        found = [step.gradient(x, dy, r) for x, dy, r in zip(xs, dys, rs, strict=True)]
    np.testing.assert_allclose(np.concatenate(ys), y.get(), atol=1e-5)
    pairs = found if with_residual else [(one, None) for one in found]
    np.testing.assert_allclose(np.concatenate([one.get() for one, _ in pairs]), dx.get(), atol=1e-4)  # type: ignore
    if with_residual:
        assert whole.residualgrad is not None
        made = np.concatenate([one.get() for _, one in pairs])  # type: ignore
        np.testing.assert_allclose(made, whole.residualgrad.get(), atol=1e-5)
    for name in ("scale", "bias"):
        grads = [one.vars[name].grad.get() for one in (bn, whole)]
        np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-4)


def test_a_residual_comes_in_all_phases(queue: cl.CommandQueue) -> None:
    bn, parts = BatchNorm2D(C, queue=queue, seed=1, activation="relu"), Parts(queue)
    before, (x, other), (dy, _) = state_of(bn), parts.xs, parts.dys
    with pytest.raises(ZeroDivisionError), bn.accumulate() as step:  # noqa: PT012
        parts.go(step, "ss")
        with pytest.raises(ModuleShapeError, match=r"residual has shape \(3, 5, 2, 2\); the data had \(2, 5, 2, 2\)$"):
            step.normalize(x, other)
        step.normalize(x, x)
        step.normalize(other)
        with pytest.raises(ModuleParameterError, match=r"residual is None; in normalize part 0 had one$"):
            step.gradient_sums(x, dy)
        step.gradient_sums(x, dy, x)
        with pytest.raises(ModuleParameterError, match=r"residual is given; in normalize part 1 had none$"):
            step.gradient_sums(other, parts.dys[1], other)
        step.gradient_sums(other, parts.dys[1])
        assert len(step.gradient(x, dy, x)) == 2
        raise ZeroDivisionError
    assert state_of(bn) == before


# --- what is wrong, and leaves no trace


class Parts:
    """Two parts of a batch, and steps over them by their first letters: s, n, g (gradient_sums), d (gradient)."""

    def __init__(self, queue: cl.CommandQueue) -> None:
        host = make((5, C, 2, 2), 1)
        self.xs, self.dys = parts_of(queue, host.x, (2,)), parts_of(queue, host.dy, (2,))

    def go(self, step: Accumulation, phases: str) -> None:
        seen = dict.fromkeys("sngd", 0)
        for phase in phases:
            index = seen[phase] % 2
            seen[phase] += 1
            x, dy = self.xs[index], self.dys[index]
            if phase in "sn":
                (step.statistics if phase == "s" else step.normalize)(x)
            else:
                (step.gradient_sums if phase == "g" else step.gradient)(x, dy)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("", r"accumulate\(\) has ended without a part; nothing has changed$"),
        ("ss", r"accumulate\(\) has ended when normalize had had 0 of 2 parts; nothing has changed$"),
        ("ssn", r"accumulate\(\) has ended when normalize had had 1 of 2 parts; nothing has changed$"),
        ("ssnn", r"accumulate\(\) has ended without backward, gradient_sums of 2 parts; nothing has changed$"),
        ("ssnnn", r"accumulate\(\) has ended when normalize had had 1 of 2 parts; nothing"),
        ("ssnng", r"accumulate\(\) has ended when gradient_sums had had 1 of 2 parts; nothing"),
        ("ssnnggd", r"accumulate\(\) has ended when gradient had had 1 of 2 parts; nothing"),
        ("n", r"normalize is out of turn: statistics comes first$"),
        ("g", r"gradient_sums is out of turn: statistics comes first$"),
        ("ssg", r"gradient_sums is out of turn: normalize has had 0 of 2 parts$"),
        ("ssng", r"gradient_sums is out of turn: normalize has had 1 of 2 parts$"),
        ("ssnnd", r"gradient is out of turn: gradient_sums has had 0 of 2 parts$"),
        ("ssnngd", r"gradient is out of turn: gradient_sums has had 1 of 2 parts$"),
        ("ssns", r"statistics is out of turn: normalize has begun, so that the batch is complete$"),
        ("ssnnggg", r"gradient_sums is out of turn: statistics had 2 parts, and this is one more$"),
        ("ssnnggddd", r"gradient is out of turn: statistics had 2 parts, and this is one more$"),
    ],
)
def test_phases_that_are_missing_or_out_of_turn(queue: cl.CommandQueue, phases: str, message: str) -> None:
    bn, parts = BatchNorm2D(C, queue=queue, seed=1, name="layer"), Parts(queue)
    bn(parts.xs[0])
    before = state_of(bn)
    with pytest.raises(ModuleStateError, match=rf"^BatchNorm2D 'layer': {message}"), bn.accumulate() as step:
        parts.go(step, phases)
    assert state_of(bn) == before
    with bn.accumulate() as step:  # and the module goes on
        parts.go(step, "ssnnggdd")
    assert bn.numOfProps == 2


def test_an_exception_within(queue: cl.CommandQueue) -> None:
    bn, parts = BatchNorm2D(C, queue=queue, seed=1), Parts(queue)
    bn(parts.xs[0])
    before = state_of(bn)
    with pytest.raises(ZeroDivisionError), bn.accumulate() as step:  # noqa: PT012
        parts.go(step, "ssnnggdd")
        raise ZeroDivisionError
    assert state_of(bn) == before
    with pytest.raises(ModuleStateError, match=r"this accumulate\(\) has ended; statistics is for its block$"):
        step.statistics(parts.xs[0])
    with pytest.raises(ModuleStateError, match=r"this accumulate\(\) has ended; begin with another one$"), step:
        pass
    with pytest.raises(ModuleStateError, match=r"this accumulate\(\) has not begun; statistics is for its block$"):
        bn.accumulate().statistics(parts.xs[0])
    free = threading.Thread(target=lambda: bn.lock.acquire() and bn.lock.release())
    free.start()
    free.join(10)
    assert not free.is_alive(), "the lock is free again"


def test_a_driver_that_fails_at_the_end(queue: cl.CommandQueue) -> None:
    """At whichever of its requests: gradients, running statistics and counters are changed all, or none of them."""
    parts = Parts(queue)
    for number in itertools.count():
        bn = BatchNorm2D(C, queue=queue, seed=1)
        for var in bn.vars.values():
            var.grad.fill(5)
        bn(parts.xs[0])
        before, step = state_of(bn), bn.accumulate()
        step.__enter__()
        parts.go(step, "ssnnggdd")
        try:
            with failing(NO_RESOURCES, number) as driver:
                step.__exit__(None, None, None)
        except (DeviceError, SizeError):
            assert state_of(bn) == before, f"at request {number}, {driver.asked[-1]}"
        else:
            break
    assert number == len(driver.asked) > 20
    assert (bn.numOfProps, state_of(bn) != before) == (2, True)


def test_the_module_is_not_called_meanwhile(queue: cl.CommandQueue) -> None:
    bn, parts = BatchNorm2D(C, queue=queue, seed=1), Parts(queue)
    bn(parts.xs[0])
    before = state_of(bn)
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: bn(parts.xs[0]), r"accumulate\(\) is open; parts go through its step: `with bn\.accumulate\(\) as"),
        (lambda: bn.backward(parts.dys[0]), r"accumulate\(\) is open; gradients are its step's: step\.gradient_sums"),
        (lambda: bn.accumulate().__enter__(), r"accumulate\(\) is open already; its block has to end first$"),
        (lambda: bn.recalibrate().__enter__(), r"accumulate\(\) is open already; its block has to end first$"),
        (lambda: step.__enter__(), r"this accumulate\(\) is open; begin with another one$"),
    ]
    with bn.accumulate() as step:
        for call, message in wrong:
            with pytest.raises(ModuleStateError, match=message):
                call()
        assert state_of(bn) == before
        other = copy.deepcopy(bn)
        other(parts.xs[0])  # a copy is in no block
        parts.go(step, "ssnngg")
    assert bn.numOfProps == 2


def test_another_mode_at_the_end(queue: cl.CommandQueue) -> None:
    bn, parts = BatchNorm2D(C, queue=queue, seed=1), Parts(queue)
    mean = bn.mean.get().tobytes()  # type: ignore[union-attr]
    for change in (bn.evalMode, lambda: setattr(bn, "activation", "relu"), lambda: bn.calcMode(np.float16)):
        bn.trainMode()
        bn.update_running = None
        step = bn.accumulate()
        step.__enter__()
        parts.go(step, "ssnnggdd")
        change()
        with pytest.raises(ModuleStateError, match=r"mode, switches, type, groups or activation were changed"):
            step.__exit__(None, None, None)
        assert (bn.numOfProps, bn.mean.get().tobytes()) == (0, mean)  # type: ignore[union-attr]
        assert not any(var.grad.get().any() for var in bn.vars.values())


def test_modules_that_take_no_parts(queue: cl.CommandQueue) -> None:
    for options in ({"frozen_statistics": True}, {"use_running": True}):
        bn = BatchNorm2D(C, queue=queue, **options)  # type: ignore[arg-type]
        with pytest.raises(ModuleStateError, match=r"accumulate\(\) is for training with the batch's own"):
            bn.accumulate().__enter__()
    bn = BatchNorm2D(C, queue=queue)
    bn.evalMode()
    with pytest.raises(ModuleStateError, match=r"for training with the batch's own statistics; call trainMode\(\)"):
        bn.accumulate().__enter__()
    with pytest.raises(ModuleStateError, match=r"made with empty=True, it lacks scale"):
        BatchNorm2D(C, queue=queue, empty=True).accumulate().__enter__()
    with pytest.raises(ModuleParameterError, match=r"momentum is nan; "):
        bn.accumulate(momentum=float("nan"))


def test_parts_that_are_none(queue: cl.CommandQueue) -> None:
    bn, parts = BatchNorm2D(C, queue=queue, seed=1), Parts(queue)
    before = state_of(bn)
    x, dy = parts.xs[0], parts.dys[0]
    with pytest.raises(ZeroDivisionError), bn.accumulate() as step:  # noqa: PT012
        for wrong, error, message in (
            (x.get(), ModuleDtypeError, r"data is a numpy\.ndarray; a pyopencl\.array\.Array is wanted"),
            (
                x[:, :2],
                ModuleShapeError,
                r"data has shape \(2, 2, 2, 2\); 4 axes are wanted, with 5 channels on axis 1",
            ),
            (x.astype(np.int32), ModuleDtypeError, r"data has dtype int32"),
        ):
            with pytest.raises(error, match=message):
                step.statistics(wrong)
        parts.go(step, "ss")
        with pytest.raises(
            ModuleShapeError, match=r"data has shape \(3, .*\); \(2, .*\) is wanted, as part 0 had it in s"
        ):
            step.normalize(parts.xs[1])
        parts.go(step, "nn")
        with pytest.raises(ModuleShapeError, match=r"grad has shape \(3, 5, 2, 2\); the data had \(2, 5, 2, 2\)$"):
            step.gradient_sums(x, parts.dys[1])
        with pytest.raises(ModuleDtypeError, match=r"grad has dtype int32"):
            step.gradient_sums(x, dy.astype(np.int32))
        assert repr(step).endswith("statistics 2, normalize 2, gradient_sums 0, gradient 0>")
        raise ZeroDivisionError
    one = put(queue, np.ones((1, C, 1, 1), np.float32))
    with pytest.raises(ModuleShapeError, match=r"the parts have one value per channel in all; training needs two"):
        accumulated(bn, [one], [one])
    assert state_of(bn) == before
