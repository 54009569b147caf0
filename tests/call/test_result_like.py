"""Memory for `out=`: what oclbn.functional.result_like makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from pyopencl.tools import ImmediateAllocator, MemoryPool

from oclbn import gpuarray
from oclbn.errors import ArrayTypeError, ContextError, ParameterError, ShapeError
from oclbn.functional import batch_norm_train, bind, result_like


@pytest.fixture
def x(queue: cl.CommandQueue) -> cla.Array:
    values = np.random.default_rng(0).standard_normal((4, 3, 5, 7)).astype(np.float32)
    return cla.to_device(queue, values)


def test_it_is_what_a_call_makes(x: cla.Array) -> None:
    y, wanted = result_like(x), batch_norm_train(x)[0]
    assert (y.shape, y.strides, y.dtype, y.queue) == (wanted.shape, wanted.strides, wanted.dtype, wanted.queue)
    step = bind(batch_norm_train, x, out=y)
    assert step()[0] is y
    np.testing.assert_array_equal(y.get(), wanted.get())


@pytest.mark.parametrize(("order", "strides"), [("K", (4, 16, 48, 240)), ("C", (420, 140, 28, 4))])
def test_the_order_is_the_calls(x: cla.Array, order: str, strides: tuple[int, ...]) -> None:
    backwards = gpuarray.pack(x, order="F")
    assert result_like(backwards, order=order).strides == strides


def test_memory_comes_from_the_allocator(queue: cl.CommandQueue) -> None:
    pool = MemoryPool(ImmediateAllocator(queue))
    x = cla.zeros(queue, (2, 3, 4), np.float32, allocator=pool)
    before = pool.active_blocks
    y = result_like(x)
    assert pool.active_blocks == before + 1
    assert y.allocator is pool


def test_a_large_one_can_be_used_at_once(queue: cl.CommandQueue) -> None:
    """Where its pages are requested it has an event, that of a mapping."""
    x = cla.zeros(queue, (9, 16, 100, 100), np.float32)  # 5.8 MB
    y = result_like(x)
    y.fill(3)
    assert (y.get() == 3).all()


@pytest.mark.parametrize(
    ("value", "options", "error", "named"),
    [
        pytest.param(np.zeros((2, 3)), {}, ArrayTypeError, "x is a numpy.ndarray", id="on the host"),
        pytest.param((2, 3), {}, ArrayTypeError, "x is a builtins.tuple", id="a shape"),
        pytest.param("flat", {}, ShapeError, "x has shape", id="one dimension"),
        pytest.param("unqueued", {}, ContextError, "x has no queue", id="no queue"),
        pytest.param("right", {"order": "F"}, ParameterError, "order is 'F'", id="order"),
    ],
)
def test_what_is_no_x_is_refused(
    x: cla.Array, value: Any, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    given = {"flat": x.reshape(-1), "unqueued": x.with_queue(None), "right": x}
    with pytest.raises(error, match=named):
        result_like(given.get(value, value) if isinstance(value, str) else value, **options)
