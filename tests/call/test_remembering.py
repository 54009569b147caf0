"""Calls that were made before are made at once, and only those: what was accepted once is not accepted for ever."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from invocations import AXIS, CALLS, EVERY, SHAPE, WRITTEN, arrays_of, state, valid
from pyopencl.tools import ImmediateAllocator, MemoryPool

from oclbn import errors
from oclbn.call import remembering
from oclbn.call.calls import Again
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind, moments, recording
from oclbn.program.kept import kept
from oclbn.truth.hostile import make
from oclbn.tuning import using

Arguments = dict[str, Any]


@pytest.fixture
def made_again(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call that was found to be like an earlier one: whether it was made at once. None has been made yet."""
    monkeypatch.setattr(kept(queue.context).thread, "calls", {}, raising=False)
    outcomes: list[bool] = []
    run = Again.run

    def noting(again: Any, given: Any) -> Any:
        made = run(again, given)
        outcomes.append(made is not None)
        return made

    monkeypatch.setattr(Again, "run", noting)
    return outcomes


def invoke(call: str, arguments: Arguments, how: Callable[..., Any] | None = None) -> Any:
    """The call, or how(the operation, its arguments)."""
    operation, positional = CALLS[call]
    options = {name: value for name, value in arguments.items() if name not in positional}
    given = [arguments[name] for name in positional]
    return operation(*given, **options) if how is None else how(operation, *given, **options)


def remembered(call: str, arguments: Arguments, made_again: list[bool]) -> None:
    """Make the call until it is made at once."""
    for _ in range(3):
        invoke(call, arguments)
    assert made_again.pop() is True
    made_again.clear()


def bits(made: Any) -> list[Any]:
    results = made if isinstance(made, tuple) else (made,)
    return [one.get().tobytes() if isinstance(one, cla.Array) else one for one in results]


# --- what is made at once is right

Options = Callable[[cl.CommandQueue], dict[str, Any]]
LIKE_X = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)


def like_x(queue: cl.CommandQueue) -> cla.Array:
    return cla.to_device(queue, LIKE_X)


VARIED: list[Any] = [
    pytest.param("train", lambda q: {}, id="train"),
    pytest.param("train", lambda q: {"out": None}, id="train, fresh results"),
    pytest.param("train", lambda q: {"scale": None, "bias": None, "skipped": None}, id="train, without"),
    pytest.param("train", lambda q: {"running_mean": None, "running_var": None}, id="train, no running"),
    pytest.param("train", lambda q: {"activation": "relu", "residual": like_x(q), "out": None}, id="train, fused"),
    pytest.param("train", lambda q: {"activation": ("leaky_relu", 0.2), "epsilon": 1e-3}, id="train, a pair"),
    pytest.param("train", lambda q: {"groups": 2, "estimator": "population", "skipped": None}, id="train, groups"),
    pytest.param("infer", lambda q: {}, id="infer"),
    pytest.param("infer", lambda q: {"out": None, "order": "C", "activation": "silu"}, id="infer, fresh results"),
    pytest.param("backward", lambda q: {"grad_momentum": 0.5, "grad_scale": np.float32(2)}, id="backward"),
    pytest.param("backward", lambda q: {"out": None, "dresidual": True}, id="backward, dy comes back"),
    pytest.param(
        "backward",
        lambda q: {"activation": "relu", "y": like_x(q), "dresidual": True, "out": None},
        id="backward, residual",
    ),
    pytest.param("backward", lambda q: {"training": False, "epsilon": 1e-4}, id="backward, constants"),
    pytest.param("moments", lambda q: {}, id="moments"),
    pytest.param("double_backward", lambda q: {}, id="double backward"),
    pytest.param("double_backward", lambda q: {"ddx": None, "out": None, "gdy": None}, id="double backward, no ddx"),
]


@pytest.mark.parametrize("variant", ["resident", "split"])
@pytest.mark.parametrize(("call", "options"), VARIED)
def test_bits_are_those_of_a_checked_call(
    queue: cl.CommandQueue, made_again: list[bool], call: str, options: Options, variant: str
) -> None:
    """In turn with calls that are checked each time, on arrays of their own that change as these do."""
    arguments, checked = ({**valid(queue, call), **options(queue)} for _ in range(2))
    with using(variant=variant):
        for turn in range(5):
            if turn == 3:
                for one in (arguments, checked):
                    one["x"].set(make(SHAPE, AXIS, seed=5).x)
            made = invoke(call, arguments)
            assert bits(made) == bits(invoke(call, checked, bind)())
            assert state(arguments) == state(checked)
    assert made_again == [True] * 3


@pytest.mark.parametrize("shape", [(4, 5, 33, 17), (300, 33), (3, 1, 20_011)], ids=["rows", "columns", "split"])
@pytest.mark.parametrize("axis", [1, -1])
def test_shapes_and_layouts_stay_apart(
    queue: cl.CommandQueue, made_again: list[bool], shape: tuple[int, ...], axis: int
) -> None:
    x, _, *vectors = arrays_of(queue, make(shape, axis))
    held = [batch_norm_train(x, *vectors, axis=axis) for _ in range(4)]
    assert made_again == [True] * 2
    assert len({one.base_data.int_ptr for made in held for one in made}) == 12  # results are nobody else's
    for y, _, _ in held:
        assert (y.shape, y.strides, y.dtype, y.offset, y.queue) == (x.shape, x.strides, x.dtype, 0, queue)
        assert y.flags.c_contiguous
    wanted = bits(bind(batch_norm_train, x, *vectors[:2], axis=axis)())
    assert all(bits(made) == wanted for made in held)


def test_narrow_types(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    x = cla.to_device(queue, make(SHAPE, AXIS).x.astype(np.float16))
    wanted = bits(bind(batch_norm_train, x)())
    assert all(bits(batch_norm_train(x)) == wanted for _ in range(4))
    assert made_again == [True] * 2


def test_results_come_from_the_arrays_allocator(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    pool = MemoryPool(ImmediateAllocator(queue))
    x = cla.to_device(queue, make(SHAPE, AXIS).x, allocator=pool)
    made: Any = [batch_norm_train(x) for _ in range(4)][-1]
    assert made_again == [True] * 2
    assert all(one.allocator is pool and isinstance(one.base_data, type(x.base_data)) for one in made)
    other = cla.to_device(queue, make(SHAPE, AXIS).x)
    for _ in range(4):
        assert all(type(one.base_data) is cl.Buffer and one.allocator is None for one in batch_norm_train(other))


def test_the_very_array_comes_back(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Two objects on one memory are two results, and the events are those of the one that was written."""
    arguments = {**valid(queue, "infer"), "out": None}
    x = arguments["out"] = arguments["x"]
    remembered("infer", arguments, made_again)
    assert invoke("infer", arguments) is x
    view = x.with_queue(queue)
    view.events = []
    arguments["out"] = view
    for _ in range(3):
        assert invoke("infer", arguments) is view
    assert view.events
    assert made_again[0] is True


def test_launches_are_recorded(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    arguments = valid(queue, "train")
    remembered("train", arguments, made_again)
    with recording() as launches:
        y, _, _ = invoke("train", arguments)
    assert made_again == [True]
    assert [event for _, event in launches] == y.events == arguments["running_mean"].events


# --- what would be refused is refused, in the same words


def lying(array: cla.Array, **changes: Any) -> cla.Array:
    """The array with attributes changed, as anybody can change them."""
    changed = array.with_queue(array.queue)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def failing(array: cla.Array) -> cla.Array:
    event = cl.UserEvent(array.context)
    event.set_status(cl.status_code.OUT_OF_RESOURCES)
    changed = array.with_queue(array.queue)
    changed.events = [event]
    return changed


def smaller(array: cla.Array) -> cl.Buffer:
    return cl.Buffer(array.context, cl.mem_flags.READ_WRITE, array.nbytes - 1)


def in_another_context(array: cla.Array) -> cla.Array:
    context = cl.Context(array.context.devices)  # which a queue of Intel's runtime does not keep alive
    return cla.to_device(cl.CommandQueue(context), array.get())


def longer(array: cla.Array) -> cla.Array:
    return cla.zeros(array.queue, (*array.shape[:-1], array.shape[-1] + 1), array.dtype)


SPOILED: dict[str, Callable[[cla.Array], Any]] = {
    "another type": lambda a: a.view(np.int32),
    "another shape": longer,
    "on the host": lambda a: a.get(),
    "beyond its buffer": lambda a: lying(a, strides=(2 * a.strides[0], *a.strides[1:])),
    "off in its buffer": lambda a: lying(a, offset=a.offset + a.dtype.itemsize),
    "before its buffer": lambda a: lying(a, strides=(-a.strides[0], *a.strides[1:])),
    "in a smaller buffer": lambda a: lying(a, base_data=smaller(a)),
    "in no buffer": lambda a: lying(a, base_data=None),
    "of another size": lambda a: lying(a, size=a.size + 1),
    "left by a failed command": failing,
    "in another context": in_another_context,
}


ANYTHING_ELSE = ("another shape", "in another context")  # where x is the only array


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize(("call", "name"), EVERY)
def test_an_array_that_is_spoiled(
    queue: cl.CommandQueue, made_again: list[bool], call: str, name: str, how: str
) -> None:
    if call == "moments" and how in ANYTHING_ELSE:
        return
    arguments = valid(queue, call)
    remembered(call, arguments, made_again)
    spoiled = {**arguments, name: SPOILED[how](arguments[name])}
    before = state(arguments)
    with recording() as launches:
        with pytest.raises(errors.OclbnError) as caught:
            invoke(call, spoiled)
        with pytest.raises(type(caught.value)) as checked:
            invoke(call, spoiled, bind)
    assert str(caught.value) == str(checked.value)
    assert not launches
    assert state(arguments) == before
    assert made_again in ([], [False])
    invoke(call, arguments)
    assert made_again[-1] is True


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, names in WRITTEN.items() for name in names])
def test_what_must_not_be_written(queue: cl.CommandQueue, made_again: list[bool], call: str, name: str) -> None:
    """A buffer made with READ_ONLY, elements that are the same memory, and the memory of each other array."""
    arguments = valid(queue, call)
    remembered(call, arguments, made_again)
    written: cla.Array = arguments[name]
    read_only = cl.Buffer(queue.context, cl.mem_flags.READ_ONLY, written.nbytes)
    wrong = [lying(written, base_data=read_only), lying(written, strides=(0, *written.strides[1:]))]
    for other in arguments.values():
        apart = (call, name) == ("infer", "out") or (call, name) == ("backward", "out")
        if other is not written and other.nbytes >= written.nbytes and not (apart and other.shape == written.shape):
            wrong.append(lying(written, base_data=other.base_data))
    assert len(wrong) >= 2
    before = state(arguments)
    for array in wrong:
        with pytest.raises((errors.ReadOnlyError, errors.OverlapError)) as caught:
            invoke(call, {**arguments, name: array})
        with pytest.raises(type(caught.value)) as checked:
            invoke(call, {**arguments, name: array}, bind)
        assert str(caught.value) == str(checked.value)
    assert state(arguments) == before
    assert not made_again


def test_parts_of_one_buffer(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Side by side they are accepted, again and again; where they come to overlap they are not."""
    nbytes = LIKE_X.nbytes
    whole = cla.zeros(queue, 3 * nbytes // 4, np.float32)
    x, out = (whole[start : start + nbytes // 4].reshape(SHAPE) for start in (0, nbytes // 4))
    x.set(LIKE_X)
    for _ in range(4):
        batch_norm_train(x, out=out)
    assert made_again == [True] * 2
    with pytest.raises(errors.OverlapError, match="out overlaps x"):
        batch_norm_train(x, out=lying(out, offset=nbytes - 4))
    moved = lying(out, offset=2 * nbytes)
    assert [bits(batch_norm_train(x, out=moved)) for _ in range(3)] == [bits(bind(batch_norm_train, x)())] * 3
    assert len(made_again) == 3


def test_numbers_that_are_equal_and_of_another_type(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    arguments = {**valid(queue, "train"), "epsilon": 1.0, "axis": 1, "groups": 1, "guard": True}
    remembered("train", arguments, made_again)
    for name, value in (("epsilon", True), ("axis", 1.0), ("axis", True), ("groups", True), ("groups", 1.0)):
        with pytest.raises(errors.ParameterError, match=rf"^{name} is {value}"):
            invoke("train", {**arguments, name: value})
    for activation in (("leaky_relu", 1.0), ("leaky_relu", 1.0), ("leaky_relu", 1.0)):
        invoke("train", {**arguments, "activation": activation})
    with pytest.raises(errors.ParameterError, match="the number of activation 'leaky_relu' is True"):
        invoke("train", {**arguments, "activation": ("leaky_relu", True)})


@pytest.mark.parametrize(
    ("name", "value"), [("epsilon", 2.0), ("factor", 0.75), ("axis", 0), ("estimator", "population"), ("order", "C")]
)
def test_numbers_that_change(queue: cl.CommandQueue, made_again: list[bool], name: str, value: Any) -> None:
    host = np.random.default_rng(0).normal(3, 2, (4, 4, 3)).astype(np.float32)
    x = cla.to_device(queue, host.transpose(2, 1, 0).copy()).transpose((2, 1, 0))
    vectors = [cla.to_device(queue, np.ones(4, np.float32)) for _ in range(4)]

    def outcome(how: Callable[..., Any], **options: Any) -> list[Any]:
        for array in vectors[2:]:
            array.set(np.ones(4, np.float32))
        made = how(batch_norm_train, x, *vectors, **options)
        return [*bits((*made, *vectors)), made[0].strides]

    def checked(operation: Any, *given: Any, **options: Any) -> Any:
        return bind(operation, *given, **options)()

    def plain(operation: Any, *given: Any, **options: Any) -> Any:
        return operation(*given, **options)

    usual = [outcome(plain) for _ in range(4)][-1]
    other = [outcome(plain, **{name: value}) for _ in range(4)][-1]
    assert made_again == [True] * (2 if name == "order" else 4)  # C order is unpacked from x's own
    assert usual == outcome(checked) != other == outcome(checked, **{name: value}) != outcome(plain)


def test_zeros_of_either_sign_are_one_number(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    arguments = {**valid(queue, "backward"), "grad_scale": 0.0}
    remembered("backward", arguments, made_again)
    gathered = ("scale_grad", "bias_grad")
    invoke("backward", {**arguments, "grad_scale": -0.0})
    once = [arguments[name].get().tobytes() for name in gathered]
    invoke("backward", {**arguments, "grad_scale": -0.0}, bind)()
    assert [arguments[name].get().tobytes() for name in gathered] == once
    assert made_again == [True]


def test_a_shape_that_is_set_leaves_the_size(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Results would have the memory of the size, and kernels write the shape; and counts be of the size."""
    memory = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, 4 * LIKE_X.nbytes)
    x = cla.Array(queue, SHAPE, np.float32, data=memory)
    for _ in range(3):
        batch_norm_train(x)
    assert made_again == [True]
    x.shape = (4 * SHAPE[0], *SHAPE[1:])
    for how in (batch_norm_train, moments):
        with pytest.raises(errors.ShapeError, match="has the size of its shape is wanted"):
            how(x)
    y, _, _ = batch_norm_train(cla.Array(x.queue, x.shape, x.dtype, data=x.base_data, offset=x.offset))
    assert y.nbytes == y.base_data.size == memory.size


def test_a_mask_is_read_each_time(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    x = like_x(queue)
    mask = np.ones((SHAPE[0], SHAPE[2]), np.uint8)
    for given in (cla.to_device(queue, mask), mask):
        for _ in range(3):
            first = bits(batch_norm_train(x, mask=given))
        inside = mask.copy()
        inside[0] = 0
        if given is mask:
            mask[...] = inside
        else:
            given.set(inside)
        assert bits(batch_norm_train(x, mask=given)) != first
    assert not made_again


def test_tunings_that_change(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    arguments = valid(queue, "train")

    def kernels() -> list[str]:
        with recording() as launches:
            invoke("train", arguments)
        return [name for name, _ in launches]

    for _ in range(2):
        assert [kernels() for _ in range(3)] == [["train_resident"]] * 3
        with using(variant="split"):
            assert [kernels() for _ in range(3)] == [["moments_partial", "train_apply"]] * 3
    assert made_again.count(True) == 8


def test_arrays_that_nobody_can_take_for_others(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Shapes that are lists, arrays of a class of the user's."""

    class Own(cla.Array):
        pass

    x = like_x(queue)
    wanted = [bits(moments(x)) for _ in range(3)]
    assert made_again == [True]
    listed = lying(x, shape=list(SHAPE))
    with pytest.raises(TypeError, match="unhashable"):
        moments(listed)
    own = Own(queue, SHAPE, np.float32, data=x.base_data)
    made = [batch_norm_train(own) for _ in range(3)]
    assert all(type(y) is Own and bits((mean,)) == wanted[0][1:2] for y, mean, _ in made)
    assert made_again == [True]


# --- order, threads, contexts, memory


def test_another_queue(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Work is enqueued on that of x, whose results are on it, and waits for arrays of others."""
    arguments = valid(queue, "train")
    remembered("train", arguments, made_again)
    other = cl.CommandQueue(queue.context)
    moved = {**arguments, "x": arguments["x"].with_queue(other), "out": None}
    for _ in range(4):
        y, mean, _ = invoke("train", moved)
        assert y.queue is mean.queue is other
        assert all(event.command_queue == other for event in (*y.events, *arguments["running_mean"].events))
        invoke("train", arguments)
    assert made_again.count(True) == 6
    queue.finish()
    gate = cl.UserEvent(queue.context)
    arguments["scale"].events = [cl.enqueue_marker(queue, wait_for=[gate])]
    try:
        y, _, _ = invoke("train", moved)
        other.flush()
        assert y.events[0].command_execution_status > cl.command_execution_status.COMPLETE
    finally:
        gate.set_status(cl.command_execution_status.COMPLETE)
    with pytest.raises(errors.ContextError, match="x has no queue"):
        invoke("train", {**arguments, "x": arguments["x"].with_queue(None)})


def test_a_queue_of_another_context(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Refused each time, in the same words, and what was remembered before is so behind it."""
    x, context = like_x(queue), cl.Context([queue.device])  # which a queue of Intel's runtime does not keep alive
    other = cl.CommandQueue(context)
    remembered("moments", {"x": x}, made_again)
    x.queue = other
    for _ in range(4):
        with pytest.raises(errors.ContextError, match=r"^x belongs to .*, its queue to another"):
            moments(x)
    assert not made_again
    for own in (queue, cl.CommandQueue(x.context)):
        assert bits(moments(x.with_queue(own))) == bits(bind(moments, like_x(queue))())
    assert made_again == [True] * 2


def test_queues_out_of_order(queue: cl.CommandQueue, free_queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Each call reads what the one before it wrote, and overwrites what it has read."""

    def chain(where: cl.CommandQueue) -> list[Any]:
        x, _, _, _, *moving = arrays_of(where, make((8, 8, 64, 64), 1))
        other = cla.empty_like(x)
        for _ in range(6):
            _, *saved = batch_norm_train(x, None, None, *moving, out=other)
            batch_norm_infer(other, None, None, *saved, out=x)
        return bits((x, other, *moving))

    assert chain(free_queue) == chain(queue)
    assert made_again.count(True) == 20


def test_threads_have_calls_of_their_own(bears_threads: None, queue: cl.CommandQueue, made_again: list[bool]) -> None:
    inputs = [arrays_of(queue, make((4, 5, 33), 1, seed=seed)) for seed in range(4)]
    wanted = [bits(bind(batch_norm_train, x, scale, bias)()) for x, _, scale, bias, *_ in inputs]
    found: dict[int, list[Any]] = {}

    def work(index: int) -> None:
        x, _, scale, bias, *_ = inputs[index]
        found[index] = [bits(batch_norm_train(x, scale, bias)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == [[one] * 20 for one in wanted]
    assert made_again == [True] * 4 * 18


def test_nothing_of_a_call_is_kept(queue: cl.CommandQueue, made_again: list[bool]) -> None:
    """Beside what checked calls leave: kernels of some drivers hold on to the arguments that were set last."""
    x, dy, *vectors = arrays_of(queue, make((8, 8, 64, 64), 1))
    made: Any = None
    counts = []
    for _ in range(4):
        made = batch_norm_train(x, *vectors)
        made = (*made, *batch_norm_backward(x, dy, vectors[0], *made[1:]))
        queue.finish()
        counts.append([array.base_data.reference_count for array in (x, dy)])
    assert made_again == [True] * 4
    assert counts == [counts[0]] * 4
    results = [weakref.ref(array) for array in made]
    arrays = [weakref.ref(array) for array in (x, dy, *vectors)]
    del made, x, dy, vectors
    gc.collect()
    assert not any(one() for one in (*results, *arrays))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(remembering, "_MOST", 8)
    return 8


def test_a_number_that_is_never_the_same(queue: cl.CommandQueue, made_again: list[bool], few: int) -> None:
    x = like_x(queue)
    for step in range(5 * few):
        batch_norm_train(x, epsilon=1.0 / (step + 1))
        assert len(kept(queue.context).thread.calls) <= few
    assert not made_again
    assert [bits(moments(x)) for _ in range(4)] == [bits(bind(moments, x)())] * 4
    assert made_again == [True] * 2
