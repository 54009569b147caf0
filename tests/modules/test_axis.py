"""Channels on another axis of a module's data: the same numbers, parameters and files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

import oclbn
from oclbn import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND, functional
from oclbn.errors import ModuleParameterError, ModuleShapeError

C = 5
CASES = [
    pytest.param(BatchNorm, (7, C), -1, id="features"),
    pytest.param(BatchNorm1D, (7, 9, C), -1, id="1-D"),
    pytest.param(BatchNorm2D, (4, 6, 3, C), -1, id="2-D"),
    pytest.param(BatchNorm2D, (4, 6, 3, C), 3, id="2-D from the front"),
    pytest.param(BatchNorm2D, (4, 6, C, 3), 2, id="between"),
    pytest.param(BatchNorm3D, (2, 3, 4, 5, C), -1, id="3-D"),
    pytest.param(lambda *a, **k: BatchNormND(0, *a, **k), (7, C), -1, id="no spatial axes"),
]


def put(queue: cl.CommandQueue, host: Any) -> cla.Array:
    return cla.to_device(queue, np.ascontiguousarray(host))


def get(array: cla.Array | None) -> Any:
    assert array is not None
    return array.get()


@pytest.mark.parametrize(("maker", "shape", "axis"), CASES)
def test_channels_on_another_axis(queue: cl.CommandQueue, maker: Any, shape: tuple[int, ...], axis: int) -> None:
    """The functions' bits; with the channels on axis 1 the same up to rounding."""
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    bn, plain = maker(C, axis=axis, queue=queue, seed=2), maker(C, queue=queue, seed=2)
    assert bn.axis == axis % len(shape)
    assert bn.blueprint == plain.blueprint
    scale, mean, var = get(bn.scale), put(queue, np.zeros(C, np.float32)), put(queue, np.ones(C, np.float32))
    data, grad, bias = put(queue, x), put(queue, dy), put(queue, np.zeros(C, np.float32))
    y = bn(data)
    want, save_mean, invstd = functional.batch_norm_train(
        data, put(queue, scale.ravel()), bias, mean, var, axis=axis, factor=1.0
    )
    np.testing.assert_array_equal(y.get(), want.get())
    np.testing.assert_array_equal(get(bn.mean).ravel(), mean.get())
    np.testing.assert_array_equal(get(bn.var).ravel(), var.get())
    assert get(bn.mean).shape == get(bn.savemean).shape == get(plain.mean).shape
    dx = bn.backward(grad)
    want_dx, dscale, dbias = functional.batch_norm_backward(
        data, grad, put(queue, scale.ravel()), save_mean, invstd, axis=axis
    )
    np.testing.assert_array_equal(get(dx), want_dx.get())
    np.testing.assert_array_equal(bn.vars["scale"].grad.get().ravel(), dscale.get())
    np.testing.assert_array_equal(bn.vars["bias"].grad.get().ravel(), dbias.get())
    moved = plain(put(queue, np.moveaxis(x, axis, 1))).get()
    np.testing.assert_allclose(np.moveaxis(y.get(), axis, 1), moved, atol=1e-5)
    moved_dx = get(plain.backward(put(queue, np.moveaxis(dy, axis, 1))))
    np.testing.assert_allclose(np.moveaxis(get(dx), axis, 1), moved_dx, atol=1e-5)
    for one in (bn, plain):
        one.evalMode()
    y = bn(data)
    np.testing.assert_allclose(
        np.moveaxis(y.get(), axis, 1), plain(put(queue, np.moveaxis(x, axis, 1))).get(), atol=1e-5
    )
    dx = get(bn.backward(grad))
    moved_dx = get(plain.backward(put(queue, np.moveaxis(dy, axis, 1))))
    np.testing.assert_allclose(np.moveaxis(dx, axis, 1), moved_dx, atol=1e-5)


def test_files_are_the_same(queue: cl.CommandQueue) -> None:
    bn, plain = BatchNorm2D(C, axis=-1, queue=queue, seed=2), BatchNorm2D(C, queue=queue, seed=2)
    assert bn.save() == plain.save()
    bn.scale = np.arange(C)  # type: ignore[assignment]
    plain.load(bn.save(withBlueprint=True) or b"")
    np.testing.assert_array_equal(get(plain.scale), get(bn.scale))
    assert ", axis=3, " in repr(bn)
    assert "axis" not in repr(plain)


def test_in_place_and_views(queue: cl.CommandQueue) -> None:
    """Channels last in place; a transposed view goes into a module without axis, and is written in place as well."""
    host = np.random.default_rng(1).standard_normal((4, 6, 3, C)).astype(np.float32)
    bn = BatchNorm2D(C, axis=-1, inplace=True, queue=queue, seed=2)
    bn.mean = np.arange(C)  # type: ignore[assignment]
    bn.evalMode()
    data = put(queue, host)
    assert bn(data) is data
    plain = BatchNorm2D(C, inplace=True, queue=queue, seed=2)
    plain.mean = np.arange(C)  # type: ignore[assignment]
    plain.evalMode()
    other = put(queue, host)
    plain(other.transpose((0, 3, 1, 2)))
    np.testing.assert_array_equal(other.get(), data.get())
    assert not np.array_equal(data.get(), host)


@pytest.mark.parametrize("axis", [4, -5, 1.0, None, "last", True])
def test_what_is_no_axis(queue: cl.CommandQueue, axis: Any) -> None:
    with pytest.raises(ModuleParameterError, match=r"^BatchNorm2D: axis is .*; a whole number from -4 to 3 is wanted"):
        BatchNorm2D(C, axis=axis, queue=queue)


def test_what_helps_against_channels_elsewhere(queue: cl.CommandQueue) -> None:
    """Both pieces of advice are tried; where neither helps none is given."""
    last, first = (cla.zeros(queue, shape, np.float32) for shape in ((2, 3, 4, C), (2, C, 3, 4)))
    with pytest.raises(ModuleShapeError, match=r"on axis 1; for channels last make the module with axis=-1$"):
        BatchNorm2D(C, queue=queue)(last)
    bn = BatchNorm2D(C, queue=queue, axis=-1)
    assert bn(last).shape == last.shape
    with pytest.raises(ModuleShapeError, match=r"on axis 3; for channels on axis 1 make the module without axis$"):
        bn(first)
    assert BatchNorm2D(C, queue=queue)(first).shape == first.shape
    for shape in ((2, 3, 3, 4), (2, C + 1), (C, 3, 4, 2), (C,), (3, C + 1, 4)):
        with pytest.raises(ModuleShapeError, match=rf"4 axes are wanted, with {C} channels on axis 1$"):
            BatchNorm2D(C, queue=queue)(cla.zeros(queue, shape, np.float32))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("rank", range(2, 8))
@pytest.mark.parametrize("cls", [BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D])
def test_data_of_another_rank_is_told_its_class(queue: cl.CommandQueue, cls: Any, rank: int, axis: int) -> None:
    """And that class takes them, channels last or not."""
    first, last = (2, C, *[3] * (rank - 2)), (2, *[3] * (rank - 2), C)
    bn = cls(C, queue=queue, axis=axis)
    for shape in (first, last):
        if rank == bn._data_rank():
            continue
        data = cla.zeros(queue, shape, np.float32)
        with pytest.raises(
            ModuleShapeError, match=rf"; for {rank} axes there is (BatchNorm.*\))(; for one .*)?$"
        ) as caught:
            bn(data)
        made = str(caught.value).partition("there is ")[2].partition(";")[0]
        right = eval(made.replace(")", ", queue=queue)"), {**vars(oclbn), "queue": queue})
        assert right(data).shape == shape
        assert (right.axis == rank - 1) is (shape == last)
