"""Masks and lengths of modules, which are then as if there were nothing but the values inside."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import bits, put

from oclbn import BatchNorm1D, BatchNorm2D, gpuarray
from oclbn.errors import (
    ModuleDtypeError,
    ModuleError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
)
from oclbn.sync import DeviceGroup, SyncBatchNorm

pytestmark = pytest.mark.once("functions are compared on each runtime")
SHAPE = (5, 3, 8)
LENGTHS = [8, 0, 3, 5, 1]
MASK = np.arange(8) < np.array(LENGTHS)[:, None]


def numbers(seed: int) -> np.ndarray[Any, Any]:
    """With NaN outside."""
    made = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    made.transpose(0, 2, 1)[~MASK] = np.nan
    return made


def inside(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(host.transpose(1, 0, 2)[:, MASK])[None]


def state(bn: BatchNorm1D) -> list[Any]:
    names = ("mean", "var", "scalegrad", "biasgrad")
    arrays = [getattr(bn, name) for name in names] + [var.grad for var in bn.vars.values()]
    return [None if array is None else bits(array) for array in arrays] + [bn.numOfProps, bn.skipped]


def outside_is_zero(array: Any) -> bool:
    return not array.get().transpose(0, 2, 1)[~MASK].any()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="training"),
        pytest.param({"activation": "silu"}, id="activation"),
        pytest.param({"frozen_statistics": True}, id="frozen"),
        pytest.param({"use_running": True, "update_running": True}, id="used and moved"),
        pytest.param({"running": False}, id="no running statistics"),
        pytest.param({"evaluation": True}, id="evaluation"),
    ],
)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_as_the_values_inside_alone(queue: cl.CommandQueue, options: dict[str, Any], residual: bool) -> None:
    """Two batches, forward and backward, bit for bit, whatever becomes of the mask meanwhile."""
    options = dict(options)
    evaluation = options.pop("evaluation", False)
    one, other = (BatchNorm1D(3, queue=queue, seed=0, **options) for _ in range(2))
    for bn in (one, other) if evaluation else ():
        bn.mean, bn.var = [0.3, -0.2, 0.1], [1.5, 0.7, 1.1]
        bn.evalMode()
    for seed in (0, 1):
        x, dy, added = (numbers(3 * seed + index) for index in range(3))
        more = {"residual": put(queue, added)} if residual else {}
        mask = MASK.copy()
        chosen: dict[str, Any] = {"mask": mask} if seed else {"lengths": put(queue, np.array(LENGTHS))}
        y = one(put(queue, x), **more, **chosen)
        mask[:] = True
        dx = one.backward(put(queue, dy), momentum=0.5)
        more = {"residual": put(queue, inside(added))} if residual else {}
        wanted = other(put(queue, inside(x)), **more), other.backward(put(queue, inside(dy)), momentum=0.5)
        found = [y, dx, one.residualgrad] if residual else [y, dx]
        for array, small in zip(found, [*wanted, other.residualgrad], strict=False):
            assert array is not None
            assert small is not None
            assert outside_is_zero(array)
            assert inside(array.get()).tobytes() == small.get().tobytes()
        assert one.data is y
    assert state(one) == state(other)
    assert "mask" not in repr(one)


def test_the_next_call_knows_nothing_of_it(queue: cl.CommandQueue) -> None:
    one, other = (BatchNorm1D(3, queue=queue, seed=0) for _ in range(2))
    x, dy = (put(queue, np.nan_to_num(numbers(seed))) for seed in range(2))
    one(x, lengths=LENGTHS)
    one.evalMode()
    one.trainMode()
    with pytest.raises(ModuleStateError, match="backward needs a call"):
        one.backward(dy)
    one.mean, one.var, one.numOfProps = np.zeros(3), np.ones(3), 0
    found, wanted = ([bits(bn(x)), bits(bn.backward(dy))] for bn in (one, other))  # type: ignore[arg-type]
    assert found == wanted
    assert state(one) == state(other)


def test_outside_as_the_data(queue: cl.CommandQueue) -> None:
    """Gradients are 0 there all the same; in place as well."""
    x, dy = numbers(0), numbers(1)
    bn = BatchNorm1D(3, queue=queue, seed=0)
    y = bn(put(queue, x), lengths=LENGTHS, outside="x").get()
    assert y.transpose(0, 2, 1)[~MASK].tobytes() == x.transpose(0, 2, 1)[~MASK].tobytes()
    assert outside_is_zero(bn.backward(put(queue, dy)))
    bn.evalMode()
    bn.inplace = True
    for outside in ("zero", "x"):
        data = put(queue, x)
        assert bn(data, mask=MASK, outside=outside) is data
        assert outside_is_zero(data) is (outside == "zero")
    assert np.isfinite(inside(data.get())).all()  # type: ignore[union-attr]


def test_nothing_inside_moves_nothing(queue: cl.CommandQueue) -> None:
    bn = BatchNorm1D(3, queue=queue, seed=0)
    before = state(bn)[:2]
    y = bn(put(queue, numbers(0)), lengths=[0] * 5)
    dx = bn.backward(put(queue, numbers(1)))
    assert not y.get().any()
    assert dx is not None
    assert not dx.get().any()
    assert (state(bn)[:2], bn.numOfProps) == (before, 0)
    assert not any(var.grad.get().any() for var in bn.vars.values())


BAD = [
    (
        {"mask": np.ones((5, 7), bool)},
        ModuleShapeError,
        r"BatchNorm1D: mask has shape \(5, 7\); data has shape \(5, 3, 8",
    ),
    ({"mask": np.ones((5, 8))}, ModuleDtypeError, "BatchNorm1D: mask is float64; bool or uint8"),
    ({"mask": [1]}, ModuleDtypeError, r"BatchNorm1D: mask is a builtins\.list"),
    ({"lengths": [9] * 5}, ModuleParameterError, r"BatchNorm1D: lengths\[0\] is 9; 0 to 8 is wanted, as data has"),
    ({"lengths": [8] * 4}, ModuleShapeError, r"BatchNorm1D: lengths has shape \(4,\); data has shape"),
    ({"lengths": LENGTHS, "mask": MASK}, ModuleParameterError, "BatchNorm1D: mask and lengths are given"),
    ({"outside": "x"}, ModuleParameterError, "BatchNorm1D: outside is 'x', and there is neither"),
    (
        {"lengths": [0, 0, 1, 0, 0]},
        ModuleShapeError,
        "one position is inside the mask or the lengths: one value per channel",
    ),
]


@pytest.mark.parametrize("options", [{"groups": 2}, {"renorm": (3.0, 5.0)}], ids=str)
def test_groups_and_renormalization_take_no_mask(queue: cl.CommandQueue, options: dict[str, Any]) -> None:
    """By running statistics, in evaluation, there are neither."""
    bn = BatchNorm1D(3, queue=queue, seed=0, **options)
    with pytest.raises(ModuleParameterError, match=r"a mask or lengths are .* wanted is (groups=1|renorm=None), not"):
        bn(put(queue, numbers(0)), lengths=LENGTHS)
    assert (bn.numOfProps, bn.data) == (0, None)
    bn.evalMode()
    assert outside_is_zero(bn(put(queue, numbers(0)), lengths=LENGTHS))


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_what_is_no_mask_changes_nothing(
    queue: cl.CommandQueue, options: dict[str, Any], error: type[ModuleError], words: str
) -> None:
    bn = BatchNorm1D(3, queue=queue, seed=0)
    bn(put(queue, numbers(0)), lengths=LENGTHS)
    bn.backward(put(queue, numbers(1)))
    before, data = state(bn), bn.data
    with pytest.raises(error, match=words):
        bn(put(queue, numbers(2)), **options)
    assert state(bn) == before
    assert bn.data is data
    assert bn.backward(put(queue, numbers(1))) is not None


def test_copies_take_no_mask_along(queue: cl.CommandQueue) -> None:
    """What the last call left is no part of a copy, and does not hinder one."""
    bn = BatchNorm1D(3, queue=queue, seed=0)
    bn(put(queue, numbers(0)), lengths=LENGTHS)
    for other in (copy.copy(bn), copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert state(other)[:2] == state(bn)[:2]
        with pytest.raises(ModuleStateError, match="backward needs a call"):
            other.backward(put(queue, numbers(1)))


def test_recalibrated_by_what_is_inside(queue: cl.CommandQueue) -> None:
    one, other = (BatchNorm1D(3, queue=queue, seed=0) for _ in range(2))
    x = numbers(0)
    with one.recalibrate() as found:
        one(put(queue, x), mask=MASK)
        found(put(queue, x), lengths=LENGTHS)
    with other.recalibrate() as wanted:
        other(put(queue, inside(x)))
        wanted(put(queue, inside(x)))
    assert found.statistics is not None
    assert found.statistics.count == 2 * MASK.sum()
    found.commit()
    wanted.commit()
    assert state(one) == state(other)
    with one.recalibrate() as found, pytest.raises(ModuleShapeError, match="mask has shape"):
        found(put(queue, x), mask=MASK[:2])


@pytest.mark.parametrize("activation", [None, "silu"])
def test_accumulated_in_parts(queue: cl.CommandQueue, activation: str | None) -> None:
    """As one call with the whole mask: it is given once, and each part keeps its own."""
    x, dy = numbers(0), numbers(1)
    one, other = (BatchNorm1D(3, queue=queue, seed=0, activation=activation) for _ in range(2))
    pieces = [slice(0, 1), slice(1, 2), slice(2, 5)]
    xs, dys = ([put(queue, np.ascontiguousarray(a[piece])) for piece in pieces] for a in (x, dy))
    with one.accumulate() as step:
        for part, piece in zip(xs, pieces, strict=True):
            step.statistics(part, mask=MASK[piece], outside="x")
        ys = [step.normalize(part) for part in xs]
        for part, slope in zip(xs, dys, strict=True):
            step.gradient_sums(part, slope)
        dxs = [step.gradient(part, slope) for part, slope in zip(xs, dys, strict=True)]
    y, dx = other(put(queue, x), lengths=LENGTHS, outside="x"), other.backward(put(queue, dy))
    assert dx is not None
    np.testing.assert_allclose(np.concatenate([part.get() for part in ys]), y.get(), rtol=0, atol=2e-6)
    found = np.concatenate([part.get() for part in dxs])  # type: ignore[union-attr]
    np.testing.assert_allclose(found, dx.get(), rtol=0, atol=2e-6)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(one, name).get(), getattr(other, name).get(), rtol=1e-6)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(one.vars[name].grad.get(), other.vars[name].grad.get(), rtol=1e-5, atol=1e-6)
    assert one.numOfProps == other.numOfProps == 1


def test_images_and_channels_last(queue: cl.CommandQueue) -> None:
    """A mask of images, with an axis for channels or without, where these lie last."""
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((2, 4, 6, 3)).astype(np.float32), rng.random((2, 4, 6, 1)) < 0.5
    small = x[mask[..., 0]]
    for one in (mask, mask[..., 0], put(queue, mask.astype(np.uint8))):
        y = BatchNorm2D(3, queue=queue, seed=0, axis=-1)(put(queue, x), mask=one).get()
        wanted = (small - small.mean(axis=0)) / np.sqrt(small.var(axis=0) + 1e-5)
        scale = BatchNorm2D(3, queue=queue, seed=0).scale.get().ravel()  # type: ignore[union-attr]
        np.testing.assert_allclose(y[mask[..., 0]], wanted * scale, rtol=0, atol=1e-5)
        assert not y[~mask[..., 0]].any()


def test_a_group_takes_no_mask(queue: cl.CommandQueue) -> None:
    bn = SyncBatchNorm(BatchNorm1D(3, queue=queue), DeviceGroup([queue]))
    for call in (bn, bn.start):
        with pytest.raises(TypeError, match=r"takes no 'lengths'; there is none here\. Masks .* nor over devices"):
            call(gpuarray.ones(SHAPE, queue=queue), lengths=LENGTHS)
