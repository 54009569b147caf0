"""functional.bind: a call that is checked and allocated once, and made again and again on the same arrays."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from invocations import arrays_of

from oclbn import errors, functional
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind, moments
from oclbn.truth.hostile import make
from oclbn.tuning import using

SHAPES = [  # resident, in runs, split, and down columns; nothing at all
    pytest.param((4, 5, 33, 17), id="rows"),
    pytest.param((6, 40, 3, 3), id="runs"),
    pytest.param((3, 1, 20_011), id="split"),
    pytest.param((300, 33), id="columns"),
    pytest.param((0, 5, 3), id="empty"),
]


def results_of(made: Any) -> list[Any]:
    return [made] if isinstance(made, cla.Array) else list(made)


def bits(made: Any) -> list[Any]:
    return [value.get().tobytes() if isinstance(value, cla.Array) else value for value in results_of(made)]


Step = Callable[[], Any]


def steps(queue: cl.CommandQueue, shape: tuple[int, ...], call: Callable[..., Step]) -> tuple[list[Step], list[Any]]:
    """Every operation, made by `call`, on arrays of its own; and what it changes in place."""
    x, dy, scale, bias, mean, var = arrays_of(queue, make(shape, 1))
    grads = [cla.zeros_like(scale), cla.zeros_like(bias)]
    _, *saved = batch_norm_train(x, scale, bias, None, None)
    gathering = {"scale_grad": grads[0], "bias_grad": grads[1], "grad_momentum": 0.5}
    return [
        call(batch_norm_train, x, scale, bias, mean, var, factor=0.25),
        call(batch_norm_backward, x, dy, scale, *saved, **gathering),
        call(batch_norm_backward, x, dy, scale, mean, var, training=False, epsilon=1e-3),
        call(batch_norm_infer, x, scale, bias, mean, var, out=cla.empty_like(x)),
        call(moments, x),
    ], [x, mean, var, *grads]


def plain(operation: Callable[..., Any], *given: Any, **options: Any) -> Step:
    return lambda: operation(*given, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_are_those_of_the_operation(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    """Three times in turn, the last on other data; each operation between the others' calls."""
    (bound, changed), (usual, changing) = steps(queue, shape, bind), steps(queue, shape, plain)
    for turn in range(3):
        for one, other in zip(bound, usual, strict=True):
            assert bits(one()) == bits(other())
        assert bits(changed) == bits(changing)
        if turn == 1:
            for x in (changed[0], changing[0]):
                x.set(make(shape, 1, seed=9).x)


def test_results_are_the_same_arrays(queue: cl.CommandQueue) -> None:
    for step in steps(queue, (4, 5, 6), bind)[0]:
        first, second = results_of(step()), results_of(step())
        assert all(one is other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(8, 8, 64, 64), (1, 2, 200_000)], ids=["resident", "split"])
def test_in_order_where_the_queue_is_not(
    queue: cl.CommandQueue, free_queue: cl.CommandQueue, shape: tuple[int, ...]
) -> None:
    """Each call reads what the one before it wrote, and overwrites what it has read."""

    def chain(where: cl.CommandQueue) -> list[Any]:
        x, other = cla.to_device(where, make(shape, 1).x), cla.empty(where, shape, np.float32)
        there = bind(batch_norm_train, x, None, None, None, None, out=other)
        back = bind(batch_norm_infer, other, None, None, *there()[1:], out=x)
        for _ in range(5):
            there()
            back()
        return bits(there()) + bits(x)

    assert chain(free_queue) == chain(queue)


def test_it_keeps_what_it_works_on(queue: cl.CommandQueue) -> None:
    """Kernels do not keep their buffers: those of dropped arrays must not be handed out again."""
    with using(groups_per_unit=4):
        made, _ = steps(queue, (3, 1, 20_011), bind)
        wanted = [bits(step()) for step in steps(queue, (3, 1, 20_011), plain)[0]]
    gc.collect()
    others = [cla.zeros(queue, 4096, np.float32) + 7 for _ in range(50)]
    assert [bits(step()) for step in made] == wanted
    assert all((other.get() == 7).all() for other in others)


def test_calls_of_the_same_shape_have_arguments_of_their_own(queue: cl.CommandQueue) -> None:
    host = make((4, 5, 6), 1)
    x, _, scale, bias, *_ = arrays_of(queue, host)
    one = bind(batch_norm_train, x, scale, None, None, None, epsilon=1e-3)
    other = bind(batch_norm_train, x, None, bias, None, None, epsilon=1.0)
    for _ in range(2):
        assert bits(one()) == bits(batch_norm_train(x, scale, None, None, None, epsilon=1e-3))
        assert bits(other()) == bits(batch_norm_train(x, None, bias, None, None, epsilon=1.0))


def test_launches_are_recorded(queue: cl.CommandQueue) -> None:
    x = cla.to_device(queue, make((4, 5, 6), 1).x)
    with functional.recording() as launches:
        step = bind(batch_norm_train, x, None, None, None, None)
        assert launches == []
        step()
        step()
    assert [name for name, _ in launches] == ["train_resident"] * 2


def test_errors_come_at_once_and_change_nothing(queue: cl.CommandQueue) -> None:
    x, _, scale, bias, mean, var = arrays_of(queue, make((4, 5, 6), 1))
    before = bits([x, mean, var])
    with pytest.raises(errors.ShapeError, match="bias has 6 elements"):
        bind(batch_norm_train, x, scale, cla.zeros(queue, 6, np.float32), mean, var)
    with pytest.raises(errors.OverlapError, match="out overlaps x"):
        bind(batch_norm_train, x, scale, bias, mean, var, out=x)
    with pytest.raises(errors.ParameterError, match=r"operation is .*; one of batch_norm_backward, .* is wanted"):
        bind(functional.explain, x)
    with pytest.raises(errors.ParameterError, match=r"operation is a builtins\.list; one of"):
        bind([1], x)  # type: ignore[arg-type]
    assert bits([x, mean, var]) == before


def test_a_first_launch_is_not_forgotten_when_the_second_fails(free_queue: cl.CommandQueue) -> None:
    """Its scratch is that of the next call, which has to wait for it."""
    x = cla.to_device(free_queue, make((1, 2, 200_000), 1).x)
    with using(variant="split"):
        step = bind(batch_norm_train, x, None, None, None, None)
        wanted = bits(batch_norm_train(x, None, None, None, None))
    enqueue, launched = cl.enqueue_nd_range_kernel, []

    def second_fails(*given: Any, **options: Any) -> cl.Event:
        if launched:
            raise cl.RuntimeError("gone")
        launched.append(enqueue(*given, **options))
        return launched[0]

    with mock.patch.object(cl, "enqueue_nd_range_kernel", second_fails), pytest.raises(errors.DeviceError):
        step()
    assert launched[0] in x.events
    assert bits(step()) == wanted


def test_an_empty_batch_is_filled_after_what_was_there(free_queue: cl.CommandQueue) -> None:
    x = cla.empty(free_queue, (0, 3, 4), np.float32)
    step = bind(batch_norm_train, x, None, None, None, None)
    _, mean, _ = step()
    gate = cl.UserEvent(free_queue.context)
    write = cl.enqueue_fill_buffer(free_queue, mean.base_data, np.float32(7), 0, mean.nbytes, wait_for=[gate])
    mean.add_event(write)
    try:
        step()
    finally:
        gate.set_status(cl.command_execution_status.COMPLETE)
    assert np.isnan(mean.get()).all()


def test_a_driver_that_fails_is_named(queue: cl.CommandQueue) -> None:
    x, _, scale, bias, mean, var = arrays_of(queue, make((4, 5, 6), 1))
    step = bind(batch_norm_train, x, scale, bias, mean, var)
    before = bits([mean, var])
    with (
        mock.patch.object(cl, "enqueue_nd_range_kernel", side_effect=cl.RuntimeError("gone")),
        pytest.raises(errors.DeviceError, match="batch_norm_train: the driver fails: gone"),
    ):
        step()
    assert bits([mean, var]) == before
    step()
    assert bits([mean, var]) != before
