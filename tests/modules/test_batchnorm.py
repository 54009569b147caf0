"""The modules: what a call computes, what it keeps, what it refuses."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import pickle
import re
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from layers import MODULES, C, Maker, host_of, put, state_of
from numpy.typing import DTypeLike
from tolerances import assert_within

import oclbn
from oclbn import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND, device
from oclbn.elements import numbers_of, range_of
from oclbn.errors import (
    ContextError,
    MissingExtraError,
    ModuleDtypeError,
    ModuleError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    ParameterWarning,
    ShapeError,
)
from oclbn.truth import reference
from oclbn.truth.bounds import Bound, stored
from oclbn.truth.hostile import Data, Offset, Spoiled, gaussian, make

OPTIONS = ["epsilon", "initFactor", "minFactor", "sscale", "affine", "name", "empty", "inplace"]
EPSILON = 1e-5


def forward(host: Data, bn: BatchNormND, mean: Any, var: Any, factor: float) -> reference.TrainReference:
    return reference.train(
        host.x, host_of(bn.scale), host_of(bn.bias), mean, var, epsilon=bn.epsilon, factor=factor, guard=bn.guard
    )


def bound_of(host: Data, expected: reference.TrainReference, bn: BatchNormND) -> Bound:
    scale, bias = host_of(bn.scale), host_of(bn.bias)
    return Bound(host.x, expected.mean, expected.invstd, scale, bias, axis=1, dtype=host.x.dtype)


# --- construction


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
def test_a_new_module(
    queue: cl.CommandQueue, maker: Maker, shape: tuple[int, ...], parameters: tuple[int, ...], element: np.dtype[Any]
) -> None:
    bn = maker(C, queue=queue, dtype=element, seed=1)
    dtype = numbers_of(element)
    for array in (bn.scale, bn.bias, bn.mean, bn.var, bn.vars["scale"].grad, bn.vars["bias"].grad):
        assert array is not None
        assert array.shape == parameters
        assert array.dtype == dtype
        assert array.context == queue.context
    assert bn.scale is bn.vars["scale"].data
    assert bn.bias is bn.vars["bias"].data
    assert bn.mean is bn.attrs["mean"]
    assert bn.var is bn.attrs["var"]
    for array, value in ((bn.bias, 0), (bn.mean, 0), (bn.var, 1), (bn.vars["scale"].grad, 0)):
        np.testing.assert_array_equal(host_of(array), value)
    assert (bn.train, bn.numOfProps, bn.calctype, bn.name, bn.skipped) == (True, 0, element.type, None, 0)
    for name in ("inData", "data", "grad", "savemean", "saveinvvar", "scalegrad", "biasgrad"):
        assert getattr(bn, name) is None, name
    assert bn.numOfParams() == 2 * C
    assert bn.paramSize() == 2 * C * dtype.itemsize
    assert bn.paramSize("kb") == 2 * C * dtype.itemsize / 1024
    assert bn.paramSize("mb") == 2 * C * dtype.itemsize / 1024**2
    assert bn.dataShapeFrom(shape) == bn.gradShapeFrom(shape) == shape


@pytest.mark.parametrize(
    ("cls", "first"),
    [
        pytest.param(BatchNorm, ["size"], id="BatchNorm"),
        pytest.param(BatchNorm1D, ["maps"], id="BatchNorm1D"),
        pytest.param(BatchNorm2D, ["maps"], id="BatchNorm2D"),
        pytest.param(BatchNorm3D, ["maps"], id="BatchNorm3D"),
        pytest.param(BatchNormND, ["nd", "maps"], id="BatchNormND"),
    ],
)
def test_the_constructor_is_puzzlelibs(cls: type[BatchNormND], first: list[str]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == first + OPTIONS
    defaults = [p.default for p in positional[len(first) :]]
    assert defaults == [1e-5, 1.0, 0.1, 0.01, True, None, False, False]


def test_options_may_be_given_by_position(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, 1e-3, 0.9, 0.2, 0.0, True, "layer", False, False, queue=queue)
    assert (bn.epsilon, bn.initFactor, bn.minFactor, bn.affine, bn.name) == (1e-3, 0.9, 0.2, True, "layer")
    np.testing.assert_array_equal(host_of(bn.scale), 1)


def test_the_blueprint_is_what_puzzlelib_builds_from(queue: cl.CommandQueue) -> None:
    own = {
        "epsilon": 1e-5,
        "initFactor": 1.0,
        "minFactor": 0.1,
        "sscale": 0.01,
        "affine": True,
        "name": "layer",
        "empty": False,
        "inplace": False,
    }
    options: Any = {"name": "layer", "queue": queue, "seed": 3}
    assert BatchNorm(4, **options).getBlueprint() == {"classname": "BatchNorm", "scheme": {"size": 4} | own}
    assert BatchNorm1D(4, **options).getBlueprint() == {"classname": "BatchNorm1D", "scheme": {"maps": 4} | own}
    wanted = {"classname": "BatchNormND", "scheme": {"nd": 3, "maps": 4} | own}
    assert BatchNormND(3, np.int64(4), epsilon=np.float64(1e-5), **options).getBlueprint() == wanted


def test_a_seed_fixes_the_scale(queue: cl.CommandQueue) -> None:
    first, again, other = (host_of(BatchNorm(64, queue=queue, seed=seed).scale) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0.005 < first.std() < 0.02
    assert abs(first.mean() - 1) < 0.01


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_without_a_seed_numpys_generator_is_asked_as_puzzlelib_asks_it(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, affine: bool
) -> None:
    used, alike = np.random.RandomState(11), np.random.RandomState(11)
    monkeypatch.setattr(np.random, "normal", used.normal)
    bn = BatchNorm(6, affine=affine, queue=queue)
    drawn = alike.normal(1.0, 0.01 if affine else 0.0, (1, 6, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(host_of(bn.scale), drawn)
    assert used.random_sample() == alike.random_sample(), "a seeded script goes on with the same numbers"


BAD_ARGUMENTS = [
    pytest.param({"size": 0}, "size is 0", id="no channels"),
    pytest.param({"size": -3}, "size is -3", id="fewer than no channels"),
    pytest.param({"size": 2.0}, "size is 2.0", id="channels as a float"),
    pytest.param({"size": True}, "size is True", id="channels as a bool"),
    pytest.param({"size": "6"}, "size is '6'", id="channels as text"),
    pytest.param({"epsilon": -1e-5}, "epsilon is -1e-05", id="negative epsilon"),
    pytest.param({"epsilon": np.nan}, "epsilon is nan", id="epsilon is NaN"),
    pytest.param({"epsilon": np.inf}, "epsilon is inf", id="infinite epsilon"),
    pytest.param({"epsilon": None}, "epsilon is None", id="no epsilon"),
    pytest.param({"initFactor": 1.5}, "initFactor is 1.5", id="initFactor above 1"),
    pytest.param({"initFactor": -0.5}, "initFactor is -0.5", id="initFactor below 0"),
    pytest.param({"minFactor": 1.1}, "minFactor is 1.1", id="minFactor above 1"),
    pytest.param({"minFactor": np.nan}, "minFactor is nan", id="minFactor is NaN"),
    pytest.param({"sscale": -0.01}, "sscale is -0.01", id="negative deviation"),
    pytest.param({"name": 3}, "name is 3", id="name is a number"),
    pytest.param({"queue": "gpu"}, "queue is 'gpu'", id="queue is text"),
    pytest.param({"seed": "x"}, "seed is 'x'", id="seed is text"),
    pytest.param({"seed": -1}, "seed is -1", id="negative seed"),
]


@pytest.mark.parametrize(("options", "message"), BAD_ARGUMENTS)
def test_bad_constructor_arguments(queue: cl.CommandQueue, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModuleParameterError, match=rf"^BatchNorm: {re.escape(message)}; .* is wanted") as caught:
        BatchNorm(**({"size": 6, "queue": queue} | options))
    assert isinstance(caught.value, ValueError)


def test_bad_numbers_of_axes_and_maps(queue: cl.CommandQueue) -> None:
    with pytest.raises(ModuleParameterError, match=r"^BatchNorm3D: maps is 0; a whole number from 1 on is wanted"):
        BatchNorm3D(0, queue=queue)
    with pytest.raises(ModuleParameterError, match="nd is -1; a whole number from 0 on is wanted"):
        BatchNormND(-1, 6, queue=queue)


NARROW = [np.float16, ml_dtypes.bfloat16]
BAD_TYPES = [
    pytest.param(np.longdouble, id="long double"),
    pytest.param(np.complex64, id="complex"),
    pytest.param(ml_dtypes.float8_e4m3fn, id="eight bits"),
    pytest.param("V2", id="two bytes without a name"),
    pytest.param(">f2", id="half in foreign byte order"),
    pytest.param(np.int32, id="int"),
    pytest.param(">f4", id="foreign byte order"),
    pytest.param("single precision", id="no dtype at all"),
    pytest.param(None, id="None, which NumPy takes for float64"),
]


@pytest.mark.parametrize("bad", BAD_TYPES)
def test_types_that_nothing_is_computed_with(queue: cl.CommandQueue, bad: Any) -> None:
    with pytest.raises(ModuleDtypeError, match=r"dtype is .*; float32, .*float16 or bfloat16 is wanted"):
        BatchNorm(6, queue=queue, dtype=bad)
    bn = BatchNorm(6, queue=queue)
    before = state_of(bn)
    with pytest.raises(ModuleDtypeError, match=r"T is .*; float32, .*float16 or bfloat16 is wanted"):
        bn.calcMode(bad)
    assert state_of(bn) == before


def test_float64_on_a_device_without_it(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = device.limits(queue.device)
    monkeypatch.setattr(device, "limits", lambda _: type(limits)(**(vars(limits) | {"fp64": False})))
    with pytest.raises(
        ModuleDtypeError, match=r"float64.*; float32, float16 or bfloat16 is wanted \(.* has no float64\)$"
    ):
        BatchNorm(6, queue=queue, dtype=np.float64)


def test_an_unknown_option_is_refused(queue: cl.CommandQueue) -> None:
    with pytest.raises(TypeError, match="momentum"):
        BatchNorm2D(6, queue=queue, momentum=0.1)  # type: ignore[call-arg]


# --- training


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
@pytest.mark.parametrize("data", [gaussian, Offset(1e4)], ids=["N(0,1)", "mean is 1e4 std"])
def test_training_against_the_reference(
    queue: cl.CommandQueue,
    maker: Maker,
    shape: tuple[int, ...],
    parameters: tuple[int, ...],
    data: Any,
    element: np.dtype[Any],
) -> None:
    bn = maker(C, queue=queue, dtype=element, seed=2, sscale=0.5)
    mean, var = np.zeros(C), np.ones(C)
    for n in range(1, 4):
        host = make(shape, 1, element, data, seed=n)
        factor = max(1 / n, 0.1)
        expected = forward(host, bn, mean, var, factor)
        bound = bound_of(host, expected, bn)
        mean_bound = bound.running_mean(mean, factor)
        var_bound = bound.running_var(var, expected.var * host.x.size / (host.x.size - C), factor)
        x = put(queue, host.x)
        y = bn(x)

        assert bn.data is y
        assert bn.inData is x
        assert y.shape == shape
        assert y.dtype == element
        assert bn.numOfProps == n
        assert_within(y, *stored(expected.y, bound.y(), element), "y")
        for array in (bn.savemean, bn.saveinvvar):
            assert array is not None
            assert (array.shape, array.dtype) == (parameters, numbers_of(element))
        assert_within(host_of(bn.savemean).ravel(), expected.mean, bound.stored_mean(), "savemean")
        assert_within(host_of(bn.saveinvvar).ravel(), expected.invstd, bound.stored_invstd(), "saveinvvar")
        assert_within(host_of(bn.mean).ravel(), expected.running_mean, mean_bound, "mean")
        assert_within(host_of(bn.var).ravel(), expected.running_var, var_bound, "var")
        # What the device has is the start of the next batch: errors are of one step.
        mean, var = host_of(bn.mean).ravel(), host_of(bn.var).ravel()
    assert bn.mean is bn.attrs["mean"]


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
def test_gradients_against_the_reference(
    queue: cl.CommandQueue, maker: Maker, shape: tuple[int, ...], parameters: tuple[int, ...], element: np.dtype[Any]
) -> None:
    bn = maker(C, queue=queue, dtype=element, seed=2, sscale=0.5)
    host = make(shape, 1, element)
    expected = forward(host, bn, None, None, 1.0)
    dx, dscale, dbias = reference.backward(host.x, host.dy, host_of(bn.scale), expected.mean, expected.invstd)
    bounds = bound_of(host, expected, bn).gradients(host.dy, training=True)
    bn(put(queue, host.x))
    result = bn.backward(put(queue, host.dy))

    assert result is bn.grad
    assert host_of(bn.grad).shape == shape
    assert host_of(bn.grad).dtype == element
    assert_within(bn.grad, *stored(dx, bounds[0], element), "grad")
    for name, wanted, bound in (("scale", dscale, bounds[1]), ("bias", dbias, bounds[2])):
        kept = getattr(bn, f"{name}grad")
        assert kept.shape == bn.vars[name].grad.shape == parameters
        assert kept.dtype == numbers_of(element)
        assert_within(kept.get().ravel(), wanted, bound, f"{name}grad")
        np.testing.assert_array_equal(kept.get(), bn.vars[name].grad.get())


def trained(queue: cl.CommandQueue, **options: Any) -> tuple[BatchNorm2D, Data, cla.Array]:
    """A module after a training call, its data, and a gradient for backward."""
    bn = BatchNorm2D(C, queue=queue, seed=4, **options)
    host = make((4, C, 3, 3), 1)
    bn(put(queue, host.x))
    return bn, host, put(queue, host.dy)


def test_gradients_accumulate(queue: cl.CommandQueue) -> None:
    bn, _, dy = trained(queue)
    bn.backward(dy)
    once = {name: var.grad.get() for name, var in bn.vars.items()}
    bn.backward(dy, scale=2.0, momentum=0.5)
    for name, var in bn.vars.items():
        np.testing.assert_allclose(var.grad.get(), 2.5 * once[name], rtol=1e-6)
    bn.backward(dy)  # momentum 0: what was there is gone, even if it is not finite
    bn.vars["scale"].grad.set(np.full(bn.vars["scale"].grad.shape, np.nan, np.float32))
    bn.backward(dy)
    for name, var in bn.vars.items():
        np.testing.assert_array_equal(var.grad.get(), once[name])


def test_parameter_gradients_may_be_left_out(queue: cl.CommandQueue) -> None:
    bn, _, dy = trained(queue)
    result = bn.backward(dy, updParamGrads=False)
    assert result is bn.grad is not None
    for var in bn.vars.values():
        assert not var.grad.get().any()


def test_the_data_gradient_may_be_left_out(queue: cl.CommandQueue) -> None:
    (whole, _, dy), (bn, _, _) = trained(queue), trained(queue)
    whole.backward(dy)
    assert bn.backward(dy, updGrad=False) is None
    assert bn.grad is None
    for name, var in bn.vars.items():
        np.testing.assert_array_equal(var.grad.get(), whole.vars[name].grad.get())
    before = state_of(bn)
    assert bn.backward(dy, updParamGrads=False, updGrad=False) is None
    assert state_of(bn) == before


def test_a_step_adds_the_gradient(queue: cl.CommandQueue) -> None:
    bn, _, dy = trained(queue)
    bn.backward(dy)
    before = {name: (var.data.get(), var.grad.get()) for name, var in bn.vars.items()}
    bn.updateParams(-0.1)
    for name, (data, grad) in before.items():
        np.testing.assert_allclose(bn.vars[name].data.get(), data - 0.1 * grad, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(bn.vars[name].grad.get(), grad)
    assert bn.scale is bn.vars["scale"].data
    bn.zeroGradParams()
    for var in bn.vars.values():
        assert not var.grad.get().any()


def test_training_settles_on_the_data(queue: cl.CommandQueue) -> None:
    """Gradient steps towards a target that scale and bias can reach."""
    bn = BatchNorm(C, queue=queue, seed=0)
    host = make((64, C), 1)
    x = put(queue, host.x)
    unit = (host.x - host.x.mean(axis=0)) / host.x.std(axis=0)
    target = unit * host.scale + host.bias
    for _ in range(60):
        y = bn(x)
        bn.backward(put(queue, (y.get() - target) / 64))
        bn.updateParams(-0.5)
    np.testing.assert_allclose(host_of(bn.scale).ravel(), host.scale, atol=1e-3)
    np.testing.assert_allclose(host_of(bn.bias).ravel(), host.bias, atol=1e-3)


def test_a_call_lets_go_of_the_one_before(queue: cl.CommandQueue) -> None:
    bn, host, dy = trained(queue)
    first = bn.data
    bn.backward(dy)
    bn(put(queue, host.x))
    assert bn.data is not first
    bn.backward(dy, updGrad=False)
    assert bn.grad is None


def test_modes_drop_what_the_last_call_left(queue: cl.CommandQueue) -> None:
    bn, _, dy = trained(queue)
    for switch, train in ((bn.evalMode, False), (bn.trainMode, True)):
        bn(dy)
        bn.backward(dy)
        switch()
        assert bn.train is train
        for name in ("inData", "data", "grad", "savemean", "saveinvvar", "scalegrad", "biasgrad"):
            assert getattr(bn, name) is None, name
    assert bn.vars["bias"].grad.get().any()


def test_data_of_another_queue_of_the_same_context(queue: cl.CommandQueue) -> None:
    other = cl.CommandQueue(queue.context)
    host = make((4, C, 3, 3), 1)
    results = []
    for where in (queue, other):
        bn = BatchNorm2D(C, queue=queue, seed=4)
        for _ in range(3):
            bn(put(where, host.x))
            bn.backward(put(where, host.dy))
            bn.updateParams(-0.1)
        results.append([host_of(array).tobytes() for array in (bn.data, bn.grad, bn.scale, bn.bias, bn.mean, bn.var)])
    assert results[0] == results[1]


def test_runs_repeat_bit_for_bit(queue: cl.CommandQueue) -> None:
    def run() -> list[bytes]:
        bn, _, dy = trained(queue)
        bn.backward(dy)
        return [host_of(array).tobytes() for array in (bn.data, bn.grad, bn.mean, bn.var, bn.scalegrad, bn.biasgrad)]

    assert run() == run()


# --- evaluation


@pytest.mark.parametrize(("maker", "shape", "parameters"), MODULES)
def test_evaluation_against_the_reference(
    queue: cl.CommandQueue, maker: Maker, shape: tuple[int, ...], parameters: tuple[int, ...], element: np.dtype[Any]
) -> None:
    bn = maker(C, queue=queue, dtype=element, seed=2, sscale=0.5)
    host = make(shape, 1, element)
    bn(put(queue, host.x))
    mean, var, scale, bias = (host_of(array) for array in (bn.mean, bn.var, bn.scale, bn.bias))
    bn.evalMode()
    y = bn(put(queue, host.x))
    invstd = 1 / np.sqrt(var.astype(np.float64) + bn.epsilon)
    bound = Bound(host.x, mean, invstd, scale, bias, axis=1, dtype=element)
    wanted = reference.infer(host.x, scale, bias, mean, var, epsilon=bn.epsilon)
    assert_within(y, *stored(wanted, bound.inferred(), element), "y")
    assert bn.savemean is bn.saveinvvar is None
    assert bn.numOfProps == 1
    np.testing.assert_array_equal(host_of(bn.mean), mean)
    np.testing.assert_array_equal(host_of(bn.var), var)

    result = bn.backward(put(queue, host.dy))
    expected = reference.backward(host.x, host.dy, scale, mean, invstd, training=False)
    # One more rounding than where invstd is handed over: it was stored.
    bounds = [2 * b for b in bound.gradients(host.dy, training=False)]
    assert_within(result, *stored(expected[0], bounds[0], element), "grad")
    assert_within(host_of(bn.scalegrad).ravel(), expected[1], bounds[1], "scalegrad")
    assert_within(host_of(bn.biasgrad).ravel(), expected[2], bounds[2], "biasgrad")
    assert host_of(bn.scalegrad).shape == parameters
    for variable in bn.vars.values():
        assert not variable.grad.get().any(), "parameter gradients belong to training"


def test_backward_uses_the_statistics_of_the_call(queue: cl.CommandQueue) -> None:
    """Also where the attribute `train` was switched by hand, between the call and its gradient."""
    bn, _, dy = trained(queue)
    wanted = host_of(bn.backward(dy))
    bn.train = False
    np.testing.assert_array_equal(host_of(bn.backward(dy)), wanted)
    bn(dy)
    constant = host_of(bn.backward(dy))
    assert not np.allclose(constant, wanted)
    np.testing.assert_allclose(
        constant, host_of(dy) * host_of(bn.scale) / np.sqrt(host_of(bn.var) + EPSILON), rtol=1e-5, atol=1e-6
    )


def test_in_place_evaluation_writes_over_its_input(queue: cl.CommandQueue) -> None:
    plain, placed = (BatchNorm2D(C, inplace=inplace, queue=queue, seed=4) for inplace in (False, True))
    host = make((4, C, 3, 3), 1)
    for bn in (plain, placed):
        bn.evalMode()
    x = put(queue, host.x)
    y = placed(x)
    np.testing.assert_array_equal(y.get(), plain(put(queue, host.x)).get())
    np.testing.assert_array_equal(x.get(), y.get())
    with pytest.raises(ModuleStateError, match="backward after an evaluation in place"):
        placed.backward(put(queue, host.dy))


# --- without affine, without data, with bad data


def test_without_affine_nothing_is_trained(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, affine=False, sscale=0.5, queue=queue)
    host = make((4, C, 3, 3), 1)
    y = bn(put(queue, host.x)).get()
    expected = reference.train(host.x)
    assert_within(y, expected.y, bound_of(host, expected, bn).y(), "y")
    bn.backward(put(queue, host.dy))
    assert bn.grad is not None
    assert bn.scalegrad is bn.biasgrad is None
    for var in bn.vars.values():
        assert not var.grad.get().any()
        var.grad.set(np.ones(var.grad.shape, np.float32))
    bn.updateParams(1.0)
    np.testing.assert_array_equal(host_of(bn.scale), 1)
    np.testing.assert_array_equal(host_of(bn.bias), 0)
    assert bn.numOfParams() == 2 * C


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("shape", [(0, C, 3, 3), (2, C, 0, 3)], ids=["no samples", "no pixels"])
def test_an_empty_batch_passes_through(queue: cl.CommandQueue, shape: tuple[int, ...], mode: str) -> None:
    bn, _, _ = trained(queue)
    if mode == "eval":
        bn.evalMode()
    statistics = host_of(bn.mean).tobytes(), host_of(bn.var).tobytes()
    y = bn(cla.zeros(queue, shape, np.float32))
    assert y.shape == shape
    assert bn.numOfProps == 1
    assert (host_of(bn.mean).tobytes(), host_of(bn.var).tobytes()) == statistics
    assert host_of(bn.backward(cla.zeros(queue, shape, np.float32))).shape == shape
    for var in bn.vars.values():
        assert not var.grad.get().any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_the_guard_keeps_statistics_finite(queue: cl.CommandQueue, value: float) -> None:
    bn, host, _ = trained(queue)
    mean, var = host_of(bn.mean).ravel(), host_of(bn.var).ravel()
    bad = make(host.x.shape, 1, np.float32, Spoiled(value), seed=1)
    (channel,) = bad.bad
    for n in (1, 2):
        y = bn(put(queue, bad.x)).get()
        assert bn.skipped == n
    assert bn.numOfProps == 3
    assert np.isnan(y[:, channel]).any()
    assert np.isfinite(y[:, bad.good]).all()
    assert host_of(bn.mean).ravel()[channel] == mean[channel]
    assert host_of(bn.var).ravel()[channel] == var[channel]
    assert not np.isclose(host_of(bn.mean).ravel()[bad.good], mean[bad.good]).any()


@pytest.mark.parametrize("least", [0.1, 0.0, 0.5], ids=lambda value: f"minFactor {value}")
@pytest.mark.parametrize("bad", ["111000", "100110", "011000"])
def test_batches_that_were_left_out_do_not_weigh(queue: cl.CommandQueue, bad: str, least: float) -> None:
    """A channel's running mean is that of the batches that entered it: an average, until minFactor is reached."""
    bn, whole = (BatchNorm2D(C, minFactor=least, queue=queue) for _ in range(2))
    for n, spoiled in enumerate(bad, start=1):
        host = make((4, C, 3, 3), 1, seed=n).x + np.float32(5)
        if spoiled == "0":
            whole(put(queue, host))
        else:
            host[1, 1:3, 0, 2] = np.nan
        bn(put(queue, host))
        entered = bad[:n].count("0")
        assert bn.numOfProps == n
        assert bn.skipped == 2 * (n - entered)
        for mine, wanted in ((bn.mean, whole.mean), (bn.var, whole.var)):  # of another count where some were left out
            np.testing.assert_allclose(host_of(mine)[0, 1:3], host_of(wanted)[0, 1:3], rtol=1e-6)


def test_setting_the_number_of_batches_begins_anew(queue: cl.CommandQueue) -> None:
    bn, host, _ = trained(queue)
    spoiled = make(host.x.shape, 1, np.float32, Spoiled(np.nan), seed=1)
    for _ in range(3):
        bn(put(queue, spoiled.x))
    assert bn.skipped == 3
    bn.numOfProps = 0
    assert bn.skipped == 0
    bn(put(queue, host.x))
    np.testing.assert_allclose(host_of(bn.mean).ravel(), host.x.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    bn.numOfProps = 2**53  # the most that a file may say
    bn(put(queue, spoiled.x))
    assert (bn.numOfProps, bn.skipped) == (2**53 + 1, 1)
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(ModuleParameterError, match=r"numOfProps is .*; a whole number from 0 on is wanted"):
            bn.numOfProps = wrong  # type: ignore[assignment]


def test_the_guard_can_be_switched_off(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, queue=queue, guard=False)
    bad = make((4, C, 3, 3), 1, np.float32, Spoiled(np.nan))
    bn(put(queue, bad.x))
    assert np.isnan(host_of(bn.mean).ravel()[list(bad.bad)]).all()
    assert np.isfinite(host_of(bn.mean).ravel()[bad.good]).all()
    assert bn.skipped == 0


# --- another type


def test_calc_mode_converts_all(queue: cl.CommandQueue, needs_fp64: None) -> None:
    bn, host, dy = trained(queue)
    bn.backward(dy)
    before = [host_of(array) for array in (bn.scale, bn.bias, bn.mean, bn.var, bn.vars["scale"].grad)]
    variables = dict(bn.vars)
    bn.calcMode(np.float64)
    assert bn.calctype is np.float64
    assert bn.vars == variables, "an optimizer holds on to the Variables"
    assert bn.scale is bn.vars["scale"].data
    after = [host_of(array) for array in (bn.scale, bn.bias, bn.mean, bn.var, bn.vars["scale"].grad)]
    for old, new in zip(before, after, strict=True):
        assert new.dtype == np.float64
        np.testing.assert_array_equal(new, old)
    assert bn.inData is bn.data is bn.savemean is None
    with pytest.raises(ModuleDtypeError, match="data has dtype float32; the module computes with float64"):
        bn(put(queue, host.x))
    bn(put(queue, host.x.astype(np.float64)))
    bn.backward(put(queue, host.dy.astype(np.float64)))
    bn.calcMode("float32")
    assert host_of(bn.scale).dtype == np.float32
    assert bn.numOfProps == 2


def test_calc_mode_of_the_same_type_changes_nothing(queue: cl.CommandQueue) -> None:
    bn, _, _ = trained(queue)
    before = state_of(bn)
    bn.calcMode(np.float32)
    assert state_of(bn) == before


@pytest.mark.parametrize("first", NARROW)
@pytest.mark.parametrize("then", NARROW)
def test_calc_mode_keeps_what_is_float32(queue: cl.CommandQueue, first: Any, then: Any) -> None:
    """To a type that is computed with as float32, and to another one: the same arrays, with the same bits."""
    bn, host, dy = trained(queue)
    bn.backward(dy)
    whole, y = state_of(bn)[:4] + state_of(bn)[11:13], host_of(bn.data)
    variables, skipped, batches = dict(bn.vars), bn.skipped, bn.numOfProps
    for T in (first, then):
        bn.calcMode(T)
        assert np.dtype(bn.calctype) == T
        assert bn.inData is bn.data is bn.savemean is None
        assert state_of(bn)[:4] + state_of(bn)[11:13] == whole
        assert (dict(bn.vars), bn.skipped, bn.numOfProps) == (variables, skipped, batches)
    with pytest.raises(ModuleDtypeError, match="data has dtype float32; the module takes "):
        bn(put(queue, host.x))
    assert bn(put(queue, host.x.astype(then))).dtype == then
    bn.calcMode(np.float32)
    assert bn(put(queue, host.x)).get().tobytes() == y.tobytes()


@pytest.mark.parametrize("narrow", NARROW)
def test_results_are_those_of_float32_rounded_once(queue: cl.CommandQueue, narrow: Any) -> None:
    """A module of half beside one of float32 that is given the same values."""

    def assert_near(found: Any, wanted: Any, eps: float) -> None:
        given = host_of(found).astype(np.float64), host_of(wanted).astype(np.float64)
        np.testing.assert_allclose(*given, rtol=eps, atol=1e-5)

    unit = 0.51 * range_of(np.dtype(narrow)).eps
    bn, whole = (BatchNorm2D(C, queue=queue, seed=4, dtype=dtype) for dtype in (narrow, np.float32))
    for seed in range(3):
        host = make((4, C, 3, 3), 1, narrow, seed=seed)
        y, wide = (one(put(queue, host.x.astype(one.calctype))) for one in (bn, whole))
        assert_near(y, wide, unit)
        for dy in (host.dy, host.dy.astype(np.float32)):
            dx = bn.backward(put(queue, dy))
            wide = whole.backward(put(queue, host.dy.astype(np.float32)))
            assert_near(dx, wide, unit)
        for one in (bn, whole):
            one.updateParams(-0.1)
    for name in ("scale", "bias", "mean", "var", "savemean", "saveinvvar", "scalegrad", "biasgrad"):
        assert_near(getattr(bn, name), getattr(whole, name), 2e-6)


@pytest.mark.parametrize("narrow", NARROW)
def test_a_type_in_place(queue: cl.CommandQueue, narrow: Any) -> None:
    host = make((4, C, 3, 3), 1, narrow)
    bn = BatchNorm2D(C, queue=queue, seed=4, dtype=narrow)
    bn(put(queue, host.x))
    bn.evalMode()
    apart = bn(put(queue, host.x)).get()
    bn.inplace = True
    x = put(queue, host.x)
    assert bn(x) is x
    assert x.get().tobytes() == apart.tobytes()


@pytest.mark.parametrize("narrow", NARROW)
def test_what_a_type_cannot_hold_is_infinite_and_counted_nowhere(queue: cl.CommandQueue, narrow: Any) -> None:
    host = make((4, C, 3, 3), 1, narrow)
    bn = BatchNorm2D(C, queue=queue, dtype=narrow)
    bn.scale = np.full(C, range_of(np.dtype(narrow)).max, np.float32)  # type: ignore[assignment]
    y = bn(put(queue, host.x)).get().astype(np.float32)
    assert np.isinf(y).any()
    assert not np.isnan(y).any()
    assert np.isfinite(host_of(bn.mean)).all()
    assert np.isfinite(host_of(bn.var)).all()
    assert (bn.numOfProps, bn.skipped) == (1, 0)


@pytest.mark.parametrize("narrow", NARROW)
def test_an_epsilon_that_the_data_could_not_hold(queue: cl.CommandQueue, narrow: Any) -> None:
    """1e-8 is 0 as a float16, and is no float16: channels of one value are bias, and no NaN."""
    bn = BatchNorm2D(C, epsilon=1e-8, queue=queue, dtype=narrow)
    y = bn(put(queue, np.full((4, C, 3, 3), 7, narrow)))
    assert not y.get().astype(np.float32).any()
    np.testing.assert_allclose(host_of(bn.saveinvvar), 1e4, rtol=1e-6)


# --- what is refused


def zeros(queue: cl.CommandQueue, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> cla.Array:
    return cla.zeros(queue, shape, np.dtype(dtype))


BAD_DATA = [
    pytest.param(lambda q: zeros(q, (4, C)), ModuleShapeError, "shape (4, 5); 4 axes are wanted", id="too few axes"),
    pytest.param(lambda q: zeros(q, (4, C, 3, 3, 1)), ModuleShapeError, "4 axes are wanted", id="too many axes"),
    pytest.param(lambda q: zeros(q, (4, C + 1, 3, 3)), ModuleShapeError, "5 channels on axis 1", id="channels"),
    pytest.param(lambda q: zeros(q, (4, 3, 3, C)), ModuleShapeError, "5 channels on axis 1", id="channels last"),
    pytest.param(lambda q: zeros(q, (4, C, 3, 3), "f8"), ModuleDtypeError, "has dtype float64", id="float64"),
    pytest.param(lambda q: zeros(q, (4, C, 3, 3), "f2"), ModuleDtypeError, "has dtype float16", id="half"),
    pytest.param(lambda q: zeros(q, (4, C, 3, 3), "i4"), ModuleDtypeError, "has dtype int32", id="integers"),
    pytest.param(lambda _: np.zeros((4, C, 3, 3), "f4"), ModuleDtypeError, "oclbn.gpuarray.to_gpu", id="NumPy array"),
    pytest.param(lambda _: [[1.0]], ModuleDtypeError, "is a builtins.list", id="list"),
    pytest.param(lambda _: None, ModuleDtypeError, "is None; a pyopencl", id="None"),
]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("bad", "error", "message"), BAD_DATA)
def test_bad_data_and_gradients(
    queue: cl.CommandQueue, bad: Callable[[cl.CommandQueue], Any], error: type[Exception], message: str, mode: str
) -> None:
    bn, _, dy = trained(queue, name="layer")
    bn.train = mode == "train"
    bn.backward(dy)
    before = state_of(bn)
    for call, argument in ((bn, "data"), (bn.backward, "grad")):
        with pytest.raises(error) as caught:
            call(bad(queue))  # type: ignore[operator]
        assert str(caught.value).startswith(f"BatchNorm2D 'layer': {argument} ")
        assert message in str(caught.value)
        assert isinstance(caught.value, ModuleError)
        assert state_of(bn) == before


@pytest.mark.parametrize(
    ("cls", "shape", "rank"),
    [
        pytest.param(BatchNorm, (4, C, 1, 1), 2, id="BatchNorm"),
        pytest.param(BatchNorm1D, (4, C, 3, 1), 3, id="BatchNorm1D"),
        pytest.param(BatchNorm2D, (4, C, 3), 4, id="BatchNorm2D"),
        pytest.param(BatchNorm3D, (4, C, 3, 1), 5, id="BatchNorm3D"),
    ],
)
def test_every_module_has_one_rank(
    queue: cl.CommandQueue, cls: type[BatchNorm2D], shape: tuple[int, ...], rank: int
) -> None:
    with pytest.raises(ModuleShapeError, match=f"{rank} axes are wanted, with 5 channels on axis 1"):
        cls(C, queue=queue)(zeros(queue, shape))


def test_a_gradient_of_another_shape(queue: cl.CommandQueue) -> None:
    bn, _, _ = trained(queue)
    before = state_of(bn)
    with pytest.raises(ModuleShapeError, match=r"grad has shape \(2, 5, 3, 3\); the data had \(4, 5, 3, 3\)"):
        bn.backward(zeros(queue, (2, C, 3, 3)))
    assert state_of(bn) == before


def test_arrays_of_another_context(queue: cl.CommandQueue, other_queue: cl.CommandQueue) -> None:
    bn, host, _ = trained(queue, name="c1")
    before = state_of(bn)
    for call, argument in ((bn, "data"), (bn.backward, "grad")):
        with pytest.raises(ContextError) as caught:
            call(put(other_queue, host.x))  # type: ignore[operator]
        assert str(caught.value) == (
            f"BatchNorm2D 'c1': {argument} is in another OpenCL context than the module; "
            f"make the module with queue={argument}.queue, or {argument} on the module's queue"
        )
        assert state_of(bn) == before


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_data_without_a_queue(queue: cl.CommandQueue, mode: str) -> None:
    bn, host, _ = trained(queue, name="c1")
    bn.train = mode == "train"
    before = state_of(bn)
    with pytest.raises(ContextError, match=r"^BatchNorm2D 'c1': data has no queue; give it one with data\.with_queue"):
        bn(put(queue, host.x).with_queue(None))
    assert state_of(bn) == before


def test_a_gradient_that_cannot_be_added_leaves_the_last_ones(queue: cl.CommandQueue) -> None:
    bn, host, dy = trained(queue)
    bn.backward(dy)
    bn.vars["scale"].replace(bn.vars["scale"].data, zeros(queue, (1, C + 1, 1, 1)))
    before = state_of(bn)
    for update in (True, False):
        with pytest.raises(ShapeError):
            bn.backward(put(queue, 2 * host.dy), updGrad=update)
        assert state_of(bn) == before


def test_one_value_per_channel_cannot_be_trained(queue: cl.CommandQueue) -> None:
    bn, _, _ = trained(queue, name="c1")
    before = state_of(bn)
    message = r"^BatchNorm2D 'c1': data has shape \(1, 5, 1, 1\): one value per channel has no variance"
    with pytest.raises(ModuleShapeError, match=message) as caught:
        bn(zeros(queue, (1, C, 1, 1)))
    assert isinstance(caught.value, ValueError)
    assert state_of(bn) == before
    bn.evalMode()
    assert bn(zeros(queue, (1, C, 1, 1))).shape == (1, C, 1, 1)


def test_backward_needs_a_call_before_it(queue: cl.CommandQueue) -> None:
    bn = BatchNorm(C, name="layer", queue=queue)
    before = state_of(bn)
    with pytest.raises(ModuleStateError, match=r"^BatchNorm 'layer': backward needs a call"):
        bn.backward(zeros(queue, (4, C)))
    assert state_of(bn) == before
    bn(put(queue, make((4, C), 1).x))
    bn.reset()
    with pytest.raises(ModuleStateError, match="backward needs a call"):
        bn.backward(zeros(queue, (4, C)))


def test_training_in_place_is_refused(queue: cl.CommandQueue) -> None:
    bn = BatchNorm(C, inplace=True, queue=queue)
    x = put(queue, make((4, C), 1).x)
    before, given = state_of(bn), x.get()
    with pytest.raises(ModuleStateError, match="inplace is for evaluation"):
        bn(x)
    assert state_of(bn) == before
    np.testing.assert_array_equal(x.get(), given)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_empty_module_says_what_it_needs(queue: cl.CommandQueue, mode: str) -> None:
    bn = BatchNorm(C, empty=True, queue=queue)
    bn.train = mode == "train"
    assert bn.scale is bn.bias is bn.mean is bn.var is None
    assert (bn.vars, bn.attrs, bn.numOfParams()) == ({}, {}, 0)
    with pytest.raises(ModuleStateError, match=r"empty=True.* load\(\) brings them"):
        bn(zeros(queue, (4, C)))
    assert bn.data is None
    bn.updateParams(0.1)
    bn.zeroGradParams()


@pytest.mark.parametrize("bad", [None, "0.1", np.nan, np.inf, True], ids=str)
def test_factors_that_are_no_numbers(queue: cl.CommandQueue, bad: Any) -> None:
    bn, _, dy = trained(queue)
    bn.backward(dy)
    before = state_of(bn)
    for call, argument in (
        (lambda: bn.backward(dy, scale=bad), "scale"),
        (lambda: bn.backward(dy, momentum=bad), "momentum"),
        (lambda: bn.updateParams(bad), "learnRate"),
    ):
        with pytest.raises(ModuleParameterError, match=f"{argument} is {bad!r}; a finite number is wanted"):
            call()
        assert state_of(bn) == before


def test_an_unknown_unit(queue: cl.CommandQueue) -> None:
    with pytest.raises(ModuleParameterError, match="unit is 'gb'; None, 'kb' or 'mb' is wanted"):
        BatchNorm(C, queue=queue).paramSize("gb")


# --- examples


@pytest.mark.once(reason="what the examples call is compared on each runtime")
@pytest.mark.parametrize(
    "module",
    [
        "modules.batchnorm",
        "modules.batchnormnd",
        "modules.accumulating",
        "modules.recalibrating",
        "functional",
        "steps",
        "streaming",
        "gpuarray",
        "call.order",
    ],
)
def test_the_examples_of_the_documentation(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    names = {"gpuarray": oclbn.gpuarray, "np": np, "batch_norm_train": oclbn.functional.batch_norm_train}
    failed, tried = doctest.testmod(importlib.import_module(f"oclbn.{module}"), extraglobs=names)
    assert tried > 0
    assert failed == 0


# --- what is told


def test_a_module_says_what_it_is(queue: cl.CommandQueue) -> None:
    told = repr(BatchNorm2D(3, epsilon=1e-3, minFactor=0.2, name="first", queue=queue))
    assert told.startswith("BatchNorm2D(3, epsilon=0.001, initFactor=1.0, minFactor=0.2, affine=True, inplace=False, ")
    assert told.endswith(f"name='first', dtype=float32, device={queue.device.name.strip()!r})")
    assert repr(BatchNormND(3, 5, queue=queue)).startswith("BatchNormND(3, 5, epsilon=1e-05, ")
    assert repr(BatchNorm(5, queue=queue)).startswith("BatchNorm(5, epsilon=1e-05, ")


@pytest.mark.parametrize(("name", "narrow"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_a_type_by_its_name(queue: cl.CommandQueue, name: str, narrow: Any) -> None:
    bn = BatchNorm2D(3, queue=queue, dtype=name)
    assert bn.calctype is BatchNorm2D(3, queue=queue, dtype=narrow).calctype is narrow
    assert f"dtype={name}, " in repr(bn)
    bn.calcMode("float32")
    bn.calcMode(name)
    assert bn.calctype is narrow
    assert (bn.numOfParams(), bn.paramSize()) == (6, 24)
    copied, kept = copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))
    assert (copied.calctype, kept.calctype) == (narrow, narrow)
    assert host_of(copied.scale).tobytes() == host_of(kept.scale).tobytes() == host_of(bn.scale).tobytes()


def test_bfloat16_where_its_package_is_missing(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    bn = BatchNorm2D(3, queue=queue)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for ask in (lambda: BatchNorm2D(3, queue=queue, dtype="bfloat16"), lambda: bn.calcMode("bfloat16")):
        with pytest.raises(MissingExtraError, match=r"pip install 'oclbn\[bfloat16\]'"):
            ask()
    assert bn.calctype is np.float32


@pytest.mark.usefixtures("needs_fp64")
def test_data_of_another_type_and_what_helps(queue: cl.CommandQueue) -> None:
    """Each cure in the message is tried."""
    host = np.random.default_rng(1).standard_normal((4, C, 3, 3))
    bn, data = BatchNorm2D(C, queue=queue), cla.to_device(queue, host)
    wanted = (
        r"data has dtype float64; the module computes with float32; convert it with data\.astype\(np\.float32\), make "
        r"the module with dtype=np\.float64, or call calcMode\(np\.float64\)"
    )
    with pytest.raises(ModuleDtypeError, match=wanted):
        bn(data)
    assert bn(data.astype(np.float32)).dtype == np.float32
    assert BatchNorm2D(C, queue=queue, dtype=np.float64)(data).dtype == np.float64
    bn.calcMode(np.float64)
    assert bn(data).dtype == np.float64
    with pytest.raises(ModuleDtypeError, match=r"dtype int32; .*; convert it with data\.astype\(np\.float64\)$"):
        bn(cla.zeros(queue, (4, C, 3, 3), np.int32))


# --- options that are likely meant otherwise


@pytest.mark.parametrize("name", ["train", "inplace", "guard", "frozen_statistics"])
def test_flags_are_true_or_false(queue: cl.CommandQueue, name: str) -> None:
    """A plain bool; text, which would always count as true, is refused, by constructors too."""
    bn = BatchNorm2D(3, queue=queue)
    for value in (True, False, np.True_, np.False_, 1, 0, np.int32(1)):
        setattr(bn, name, value)
        assert getattr(bn, name) is bool(value)
        assert getattr(copy.deepcopy(bn), name) is getattr(pickle.loads(pickle.dumps(bn)), name) is bool(value)
    for wrong in ("yes", "no", "", None, 2, 1.0, [True], np.ones(1, bool)):
        with pytest.raises(ModuleParameterError, match=rf"^BatchNorm2D: {name} is .*; True or False is wanted$"):
            setattr(bn, name, wrong)
        assert getattr(bn, name) is True
        if name != "train":
            with pytest.raises(ModuleParameterError, match=rf"^BatchNorm2D: {name} is "):
                BatchNorm2D(3, queue=queue, **{name: wrong})  # type: ignore[arg-type]


def test_what_is_set_is_what_is_shown(queue: cl.CommandQueue) -> None:
    """By repr and in the blueprint, of which a module is made anew; copies have it too."""
    bn = BatchNorm2D(3, queue=queue)
    bn.epsilon, bn.minFactor, bn.initFactor, bn.inplace, bn.name = 1e-3, 0.25, 0, np.True_, "late"
    for one in (bn, copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert "(3, epsilon=0.001, initFactor=0.0, minFactor=0.25, affine=True, inplace=True, name='late', " in repr(
            one
        )
        again = BatchNorm2D(**one.getBlueprint()["scheme"], queue=queue)
        assert (again.epsilon, again.minFactor, again.inplace, again.name) == (1e-3, 0.25, True, "late")
    other = copy.deepcopy(bn)
    other.epsilon = 1e-5
    assert "epsilon=0.001" in repr(bn)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("epsilon", -5, "is -5; a finite number from 0 on is wanted"),
        ("epsilon", "a", "is 'a'; a finite number from 0 on is wanted"),
        ("epsilon", np.ones((9, 9)), "is a numpy.ndarray of shape (9, 9); a finite number from 0 on is wanted"),
        ("minFactor", 5, "is 5; a number from 0 to 1 is wanted"),
        ("initFactor", None, "is None; a number from 0 to 1 is wanted"),
        ("name", 5, "is 5; a str or None is wanted"),
        ("affine", False, "stays as the module was made; make another module, or leave gradients out with backward("),
        ("queue", 1, "stays as the module was made; make another module with queue=..."),
        ("maps", 5, "stays as the module was made; make another module"),
        ("size", 5, "stays as the module was made; make another module"),
        ("axis", 0, "stays as the module was made; make another module"),
        ("calctype", np.float64, "stays as the module was made; calcMode(dtype) changes it"),
    ],
)
def test_options_are_checked_when_they_are_set(queue: cl.CommandQueue, name: str, wrong: Any, message: str) -> None:
    """As the constructor checks them; nothing is changed. What a module cannot change says what to do."""
    bn = BatchNorm(3, queue=queue)
    before = repr(bn), getattr(bn, name)
    with pytest.raises((ModuleParameterError, ModuleStateError), match=rf"^BatchNorm: {name} {re.escape(message)}"):
        setattr(bn, name, wrong)
    with pytest.raises(ModuleStateError, match=rf"^BatchNorm: {name} cannot be deleted; the module needs it$"):
        delattr(bn, name)
    assert (repr(bn), getattr(bn, name)) == before


def test_a_constructor_tells_an_array_from_a_number(queue: cl.CommandQueue) -> None:
    for values in (np.ones((9, 9), np.float32), cla.zeros(queue, (9, 9), np.float32)):
        with pytest.raises(
            ModuleParameterError, match=r"^BatchNorm2D: maps is a \S+ of shape \(9, 9\); a whole number"
        ):
            BatchNorm2D(values, queue=queue)  # type: ignore[arg-type]


def test_an_initial_factor_without_effect_is_told(queue: cl.CommandQueue) -> None:
    """As of `BatchNorm2D(3, eps, momentum)`, PyTorch's order: every batch has the factor minFactor."""
    with pytest.warns(ParameterWarning, match="^BatchNorm2D: initFactor is 0.01, less than minFactor, 0.1") as caught:
        bn = BatchNorm2D(3, 1e-3, 0.01, queue=queue)
    assert caught[0].filename == __file__
    assert (bn.epsilon, bn.initFactor, bn.minFactor) == (1e-3, 0.01, 0.1)
    other = BatchNorm2D(3, 1e-3, initFactor=0, queue=queue)
    data = cla.to_device(queue, np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32))
    for each in (bn, other):
        each(data)
        each(data)
    np.testing.assert_array_equal(host_of(bn.mean), host_of(other.mean))
    for factors in ((0, 0.1), (0.1, 0.1), (0.5, 0.1), (1, 0), (1, 1), (0, 0), (0.01, 0)):  # no warning, no error
        BatchNorm2D(3, 1e-5, *factors, queue=queue)


def test_printed_a_module_says_what_it_is(queue: cl.CommandQueue) -> None:
    """As repr does; messages begin with its class and its name alone."""
    bn = BatchNorm2D(3, name="first", queue=queue)
    assert str(bn) == repr(bn)
    assert f"{bn}" == "BatchNorm2D 'first'"
    assert f"{BatchNorm(3, queue=queue)}" == "BatchNorm"


def test_the_cure_for_training_in_place_works(queue: cl.CommandQueue) -> None:
    bn = BatchNorm(C, inplace=True, queue=queue)
    x = put(queue, make((4, C), 1).x)
    with pytest.raises(ModuleStateError) as caught:
        bn(x)
    advice = "set bn.inplace = False to train, and bn.inplace = True after bn.evalMode()"
    assert str(caught.value).endswith(f"; {advice}")
    bn.inplace = False
    bn(x)
    bn.evalMode()
    bn.inplace = True
    assert bn(x).base_data == x.base_data


def test_a_sample_without_a_batch_is_told_how_to_get_one(queue: cl.CommandQueue) -> None:
    x = put(queue, make((2, 3, 5, 4), 1).x)
    for axis, sample in ((1, x[0]), (-1, put(queue, np.zeros((5, 4, 3), np.float32)))):
        bn = BatchNorm2D(3, axis=axis, queue=queue)
        with pytest.raises(ModuleShapeError) as caught:
            bn(sample)
        advised = re.search(r"for one sample give data\.reshape\((\(.*\))\)", str(caught.value))
        assert advised is not None, caught.value
        assert bn(sample.reshape(eval(advised[1]))).shape == (1, *sample.shape)
    with pytest.raises(ModuleShapeError) as caught:
        BatchNorm2D(3, queue=queue)(x.reshape((2, 15, 4)))
    assert "one sample" not in str(caught.value)


def test_epsilon_fits_what_is_computed_with(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, queue=queue, dtype=np.float16)
    with pytest.raises(
        ModuleParameterError, match=r"^BatchNorm2D: epsilon is 1e\+40; a number from 0 to 3\.40282e\+38"
    ):
        bn.epsilon = 1e40
    with pytest.raises(
        ModuleParameterError, match=r"^BatchNorm2D: epsilon is 1e\+40; a number from 0 to 3\.40282e\+38"
    ):
        BatchNorm2D(3, 1e40, queue=queue)
    bn.epsilon = 3e38
    assert bn.epsilon == 3e38


def test_a_double_epsilon_where_doubles_are_computed_with(queue: cl.CommandQueue, needs_fp64: None) -> None:
    bn = BatchNorm2D(3, queue=queue, dtype=np.float64)
    bn.epsilon = 1e40
    assert bn.epsilon == 1e40


def test_the_lock_stays(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, queue=queue)
    with pytest.raises(ModuleStateError, match=r"^BatchNorm2D: lock stays as the module was made"):
        bn.lock = None  # type: ignore[assignment]
    with bn.lock:
        bn.zeroGradParams()
    copy.deepcopy(bn).zeroGradParams()
