"""A batch in groups, each normalised with statistics of its own: ghost batches, and with a sample each instances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import all_bits, put
from covering import crossed
from forms import CHAINED, WALKS, forced, shrink

from oclbn import functional, gpuarray
from oclbn.activations import Activation
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import ParameterError, ShapeError
from oclbn.functional import batch_norm_backward, batch_norm_train, bind, explain, prepare, recording
from oclbn.truth.cases import ORDINARY, TAKES, judge, run, with_residual
from oclbn.truth.expectation import expected
from oclbn.truth.hostile import MAKERS, Data, Offset, Spoiled, make

PARTS = [pytest.param(2, id="two"), pytest.param(0, id="one sample each")]
SMALL = [walk for walk in WALKS if str(walk.id).startswith("small")]
LARGER = [walk for walk in WALKS if walk not in SMALL]
LEAKY = Activation("leaky_relu", 0.25)


def arrays_of(queue: cl.CommandQueue, host: Data, operation: str) -> dict[str, Any]:
    given = {name: put(queue, getattr(host, name)) for name in TAKES[operation]}
    given["bias"] = put(queue, host.bias)
    given["output"] = put(queue, host.output)
    given["residual"] = None if host.output is not None and operation == "backward" else put(queue, host.residual)
    return {name: array for name, array in given.items() if array is not None}


def check(queue: cl.CommandQueue, operation: str, host: Data, axis: int = 1) -> None:
    options = {"axis": axis, "activation": host.activation, "second": host.second, "groups": host.groups}
    found = run(functional, operation, arrays_of(queue, host, operation), **options)
    worst = judge({name: array.get() for name, array in found.items()}, expected(operation, host, axis))
    assert worst.good, str(worst)


@pytest.mark.parametrize(("walk", "shape", "groups"), crossed(SMALL, PARTS, reason="each walk is met on each runtime"))
def test_every_small_walk(
    queue: cl.CommandQueue, walk: dict[str, Any], shape: tuple[int, ...], groups: int, request: pytest.FixtureRequest
) -> None:
    go_each_way(queue, walk, shape, groups, doubles="small r" in request.node.name)


@pytest.mark.parametrize(("walk", "shape", "groups"), crossed(LARGER, PARTS, reason="each walk is met on each runtime"))
def test_every_other_walk(
    queue: cl.CommandQueue,
    monkeypatch: pytest.MonkeyPatch,
    walk: dict[str, Any],
    shape: tuple[int, ...],
    groups: int,
    request: pytest.FixtureRequest,
) -> None:
    if "past the cache" in request.node.name:
        shrink(queue, monkeypatch)
    go_each_way(queue, walk, shape, groups, doubles=False)


def go_each_way(
    queue: cl.CommandQueue, walk: dict[str, Any], shape: tuple[int, ...], groups: int, *, doubles: bool
) -> None:
    """Two groups of float32 with a mean far off; or instances of 16 bits, or of float64, behind an activation.

    Where a sample has but one value per channel, instances are pairs of samples.
    """
    dtype, alone = "float32", 1 if len(shape) > 2 else 2
    if not groups:
        dtype = "float64" if limits(queue.device).fp64 and doubles else "float16"
    host = make(shape, 1, named(dtype), Offset(30.0) if groups else MAKERS[ORDINARY])
    host = replace(host, groups=groups or shape[0] // alone)
    with forced(queue, **walk):
        for operation in ("train", "backward"):
            data = host
            if not groups:
                data = replace(host, activation=LEAKY, second=operation == "backward")
                data = with_residual(data, operation, 1, data.x.dtype, by_output=True)
            check(queue, operation, data)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        pytest.param((7, 5, 4, 3), 1, id="rows"),
        pytest.param((7, 6, 5, 12), -1, id="channels last"),
        pytest.param((5, 3, 7, 11), 2, id="channels in the middle"),
        pytest.param((9, 1, 5, 5), 1, id="one channel"),
        pytest.param((7, 4097), 1, id="many channels"),
        pytest.param((4, 33, 1), 1, id="pairs"),
        pytest.param((5, 2, 3000), 1, id="long rows"),
    ],
)
def test_any_shape(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    host = replace(make(shape, axis % len(shape)), groups=2)
    for operation in ("train", "backward"):
        check(queue, operation, host, axis % len(shape))


def test_slices_that_a_shorter_group_does_not_reach(queue: cl.CommandQueue) -> None:
    """A group of two samples and one of one, each sample of some rows, in more slices than the latter has."""
    host = replace(make((3, 50, 4, 9), 3), groups=2)
    for lanes in (1, 16):
        with forced(queue, variant="split", lanes=lanes, vec=4, groups_per_unit=16):
            assert "slices" in explain(put(queue, host.x), axis=3)
            for operation in ("train", "backward"):
                check(queue, operation, host, 3)


@pytest.mark.parametrize("data", ["mean is 1e6 std", "constant channels", "one NaN"])
def test_nasty_data(queue: cl.CommandQueue, data: str) -> None:
    host = replace(make((6, 5, 40), 1, np.float32, MAKERS[data]), groups=3)
    for operation in ("train", "backward"):
        check(queue, operation, host)


def test_a_channel_that_one_group_spoils_is_moved_by_the_others(queue: cl.CommandQueue) -> None:
    host = replace(make((4, 3, 8), 1, np.float32, Spoiled(np.nan)), groups=4)
    names = ("x", "scale", "bias", "running_mean", "running_var")
    given = [put(queue, getattr(host, name)) for name in names]
    counters = {name: put(queue, np.arange(3, dtype=np.uint32)) for name in ("skipped", "entered")}
    batch_norm_train(*given, groups=4, init_factor=1.0, **counters)
    wanted = expected("train", host, 1, entered=np.arange(3))
    found = dict(zip(names[3:], given[3:], strict=True)) | {"entered": counters["entered"]}
    worst = judge({name: array.get() for name, array in found.items()}, wanted)
    assert worst.good, str(worst)
    assert counters["entered"].get().tolist() == [4, 4, 6]
    assert counters["skipped"].get().tolist() == [0, 2, 2]


def test_groups_of_equal_size_give_the_bits_of_calls_one_after_the_other(queue: cl.CommandQueue) -> None:
    host = make((6, 4, 5, 3), 1)
    state = [put(queue, array) for array in (host.running_mean, host.running_var)]
    turn = [array.copy() for array in state]
    x, dy, scale, bias = (put(queue, array) for array in (host.x, host.dy, host.scale, host.bias))
    with forced(queue, variant="serial"):
        y, mean, invstd = batch_norm_train(x, scale, bias, *state, groups=3)
        dx, _, _ = batch_norm_backward(x, dy, scale, mean, invstd, groups=3)
        assert mean.shape == invstd.shape == (3, 4)
        for number in range(3):
            part = slice(2 * number, 2 * number + 2)
            own = batch_norm_train(x[part], scale, bias, *turn)
            gradients = batch_norm_backward(x[part], dy[part], scale, *own[1:])
            for whole, one in ((y[part], own[0]), (mean[number], own[1]), (dx[part], gradients[0])):
                assert all_bits(whole) == all_bits(one)
    for whole, one in zip(state, turn, strict=True):
        assert all_bits(whole) == all_bits(one)


def test_samples_that_lie_in_no_rows_of_their_own_are_packed(queue: cl.CommandQueue) -> None:
    host = replace(make((5, 3, 4, 6), 1), groups=2)
    x = put(queue, np.ascontiguousarray(host.x.transpose(3, 0, 2, 1))).transpose((1, 3, 2, 0))
    dy = put(queue, np.ascontiguousarray(host.dy[:, :, ::-1]))[:, :, ::-1]
    wanted = expected("train", host, 1)
    y, mean, invstd = batch_norm_train(x, *(put(queue, array) for array in (host.scale, host.bias)), groups=2)
    worst = judge({"y": gpuarray.pack(y).get(), "save_mean": mean.get(), "save_invstd": invstd.get()}, wanted)
    assert worst.good, str(worst)
    made = batch_norm_backward(x, dy, put(queue, host.scale), mean, invstd, groups=2)
    found = dict(zip(("dx", "dscale", "dbias"), (gpuarray.pack(array).get() for array in made), strict=True))
    worst = judge(found, expected("backward", host, 1))
    assert worst.good, str(worst)


def test_results_go_where_they_are_wanted(queue: cl.CommandQueue) -> None:
    """Bound, over the residual and over dy, and gathered in gradients that are there."""
    host = make((4, 3, 5), 1)
    x, dy, scale = (put(queue, array) for array in (host.x, host.dy, host.scale))
    plain = batch_norm_train(x, scale, residual=dy, groups=2)
    over = dy.copy()
    y, mean, invstd = bind(batch_norm_train, x, scale, residual=over, out=over, groups=2)()
    assert y is over
    assert all_bits(y) == all_bits(plain[0])
    wanted = batch_norm_backward(x, dy, scale, mean, invstd, groups=2)
    gathered = [scale.copy(), scale.copy()]
    into = {"scale_grad": gathered[0], "bias_grad": gathered[1], "grad_scale": 2.0, "grad_momentum": 0.5}
    over = dy.copy()
    dx, dscale, dbias = batch_norm_backward(x, over, scale, mean, invstd, groups=2, out=over, **into)
    assert all_bits(dx) == all_bits(wanted[0])
    for found, new in zip(gathered, (dscale, dbias), strict=True):
        np.testing.assert_allclose(found.get(), 2.0 * new.get() + 0.5 * host.scale, rtol=1e-5)


def test_nothing_is_moved_where_there_is_nothing_to_move(queue: cl.CommandQueue) -> None:
    x, state = put(queue, make((4, 3, 5), 1).x), put(queue, np.ones(3, np.float32))
    for given, moved in (((None, None), False), ((state, None), True)):
        with recording() as launches:
            batch_norm_train(x, None, None, *given, groups=2)
        assert ("batches_moved" in [name for name, _ in launches]) == moved


def test_an_empty_batch_in_groups(queue: cl.CommandQueue) -> None:
    x, state = put(queue, np.zeros((0, 3, 5), np.float32)), put(queue, np.ones(3, np.float32))
    y, mean, invstd = batch_norm_train(x, None, None, state, state.copy(), groups=4)
    assert (y.shape, mean.shape) == ((0, 3, 5), (4, 3))
    assert np.isnan(mean.get()).all()
    assert state.get().tolist() == [1.0, 1.0, 1.0]
    dx, dscale, dbias = batch_norm_backward(x, x, None, mean, invstd, groups=4)
    assert (dx.shape, dscale.get().tolist(), dbias.get().tolist()) == ((0, 3, 5), [0.0] * 3, [0.0] * 3)


@pytest.mark.parametrize(
    ("shape", "groups", "options", "told"),
    [
        ((4, 3, 5), 5, {}, "groups is 5; x has 4 samples, so 1 to 4 are wanted"),
        ((4, 3, 5), 0, {}, "groups is 0; a whole number from 1 on is wanted"),
        ((4, 3, 5), 1.5, {}, "groups is 1.5; a whole number from 1 on is wanted"),
        ((4, 3, 5), True, {}, "groups is True; a whole number from 1 on is wanted"),
        ((4, 3, 5), np.ones(2), {}, "groups is a numpy.ndarray of shape (2,); a whole number from 1 on is wanted"),
        ((4, 3, 5), 2, {"axis": 0}, "groups is 2 and axis is 0; samples are on axis 0, so another one is wanted"),
        ((3, 3), 2, {}, "x has shape (3, 3) and groups is 2: one value per channel in a group has no variance"),
    ],
)
def test_bad_groups_change_nothing(
    queue: cl.CommandQueue, shape: tuple[int, ...], groups: Any, options: dict[str, Any], told: str
) -> None:
    x = put(queue, np.ones(shape, np.float32))
    state = put(queue, np.full(shape[options.get("axis", 1)], 7.0, np.float32))
    with pytest.raises((ParameterError, ShapeError)) as caught:
        batch_norm_train(x, None, None, state, state.copy(), groups=groups, **options)
    assert told in str(caught.value)
    assert (state.get() == 7.0).all()
    with pytest.raises((ParameterError, ShapeError)):
        batch_norm_backward(x, x, None, state, state, groups=groups, **options)


def test_more_groups_than_a_driver_takes_turns_are_refused(queue: cl.CommandQueue) -> None:
    x, state = put(queue, np.ones((70, 3, 5), np.float32)), put(queue, np.full(3, 7.0, np.float32))
    saved = put(queue, np.ones((70, 3), np.float32))
    told = "groups is 70; .* ends the loops of a work-item after 60 turns without a word, so 1 to .* are wanted"
    with forced(queue, lanes=16, most_steps=60):
        with pytest.raises(ParameterError, match=told):
            batch_norm_train(x, None, None, state, state.copy(), groups=70)
        with pytest.raises(ParameterError, match=told):
            batch_norm_backward(x, x, None, saved, saved, groups=70)
    assert (state.get() == 7.0).all()


def test_backward_wants_the_statistics_of_all_groups(queue: cl.CommandQueue) -> None:
    x, one = put(queue, np.ones((4, 3, 5), np.float32)), put(queue, np.ones(3, np.float32))
    with pytest.raises(ShapeError) as caught:
        batch_norm_backward(x, x, None, one, one, groups=2)
    assert "save_mean has 3 elements (shape (3,)); x has 3 channels on axis 1 and groups is 2: 2 times 3" in str(
        caught.value
    )
    with pytest.raises(ParameterError) as refused:
        batch_norm_backward(x, x, None, one, one, groups=2, training=False)
    assert "groups is 2 and training is False; statistics that are constants have no groups" in str(refused.value)


def test_explain_and_prepare_know_groups(queue: cl.CommandQueue) -> None:
    x = put(queue, np.ones((4, 3, 5), np.float32))
    assert "batches_" in explain(x, groups=2)
    assert "gradients_" in explain(x, groups=2, operation="backward")
    with pytest.raises(ParameterError, match="groups is 2; 'infer' has none, so 1 is wanted"):
        explain(x, groups=2, operation="infer")
    prepare([(4, 3, 5)], groups=2, queue=queue, processes=1)
    with pytest.raises(ParameterError, match=r"groups is 5; shapes\[0\] is \(4, 3, 5\), so 1 to 4 are wanted"):
        prepare([(4, 3, 5)], groups=5, queue=queue)
    with pytest.raises(ParameterError, match="groups is 2 and axis is 0; samples are on axis 0"):
        prepare([(4, 3, 5)], groups=2, axis=0, queue=queue)


@pytest.mark.parametrize(("shape", "form"), CHAINED)
def test_groups_in_chains(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], form: dict[str, Any]
) -> None:
    """A group's rows are written beside the sums of the next one's, where both have as many."""
    shrink(queue, monkeypatch)
    for groups in (min(4, shape[0] - 1), shape[0]):
        host = replace(make(shape, 1, np.float32, Offset(30.0)), groups=groups)
        with forced(queue, variant="resident", lanes=1, chains=1, **form):
            for operation in ("train", "backward"):
                check(queue, operation, host)
