"""A module's tensors: whatever name one goes by, it is one array; what is put there fits or is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl as cl
import pytest
from layers import C, host_of, put, state_of

import oclbn
from oclbn import BatchNorm2D, gpuarray
from oclbn.errors import (
    ContextError,
    ModuleDtypeError,
    ModuleError,
    ModuleFileError,
    ModuleNameError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
)
from oclbn.modules.variable import Variable
from oclbn.truth.hostile import make

SHAPE = (1, C, 1, 1)
TENSORS = ("scale", "bias", "mean", "var")
VALUES = np.arange(1, C + 1, dtype=np.float32) / 4


_held: list[cl.Context] = []


def in_another_context(queue: cl.CommandQueue) -> cl.CommandQueue:
    _held.append(cl.Context([queue.device]))  # Intel's queues do not keep theirs alive
    return cl.CommandQueue(_held[-1])


def module(queue: cl.CommandQueue, **options: Any) -> BatchNorm2D:
    """After a step, so that gradients are there."""
    bn = BatchNorm2D(C, queue=queue, seed=3, **options)
    host = make((4, C, 3, 3), 1)
    bn(put(queue, host.x))
    bn.backward(put(queue, host.dy))
    return bn


def names_of(bn: BatchNorm2D, name: str) -> list[Any]:
    """What is kept under each name that the tensor goes by."""
    kept = bn.vars[name].data if name in bn.vars else bn.attrs[name]
    other = BatchNorm2D(C, queue=bn.queue)
    other.load(bn.save() or b"")
    return [
        host_of(getattr(bn, name)).ravel().tolist(),
        kept.get().ravel().tolist(),
        host_of(getattr(other, name)).ravel().tolist(),
    ]


GIVEN = [
    pytest.param(lambda q: VALUES, id="NumPy array"),
    pytest.param(lambda q: VALUES.reshape(SHAPE), id="in the shape of the module"),
    pytest.param(lambda q: VALUES.reshape(C, 1), id="in another shape"),
    pytest.param(lambda q: VALUES.astype(np.float64), id="float64"),
    pytest.param(lambda q: VALUES.astype(">f2"), id="half, bytes swapped"),
    pytest.param(lambda q: VALUES.astype(np.float16), id="half"),
    pytest.param(lambda q: VALUES.astype(ml_dtypes.bfloat16), id="bfloat16"),
    pytest.param(lambda q: list(VALUES.astype(ml_dtypes.bfloat16)), id="list of bfloat16"),
    pytest.param(lambda q: put(q, VALUES.astype(np.float16)), id="device array of half"),
    pytest.param(lambda q: put(q, VALUES.astype(ml_dtypes.bfloat16)).with_queue(None), id="device array of bfloat16"),
    pytest.param(lambda q: VALUES.tolist(), id="list"),
    pytest.param(lambda q: np.repeat(VALUES, 2)[::2], id="NumPy view"),
    pytest.param(lambda q: put(q, VALUES), id="device array"),
    pytest.param(lambda q: put(q, VALUES).reshape(1, C).with_queue(None), id="device array without a queue"),
    pytest.param(lambda q: put(q, np.tile(VALUES, 2))[C:], id="part of a device array"),
    pytest.param(lambda q: put(in_another_context(q), VALUES), id="of another context"),
]


@pytest.mark.parametrize("give", GIVEN)
@pytest.mark.parametrize("name", TENSORS)
def test_assigning_copies_values_in(queue: cl.CommandQueue, name: str, give: Callable[[cl.CommandQueue], Any]) -> None:
    bn = module(queue)
    array, given = getattr(bn, name), give(queue)
    setattr(bn, name, given)
    assert getattr(bn, name) is array is not given, "others hold on to the array"
    assert names_of(bn, name) == [VALUES.tolist()] * 3
    bn.evalMode()
    x = make((4, C, 3, 3), 1).x
    scale, bias, mean, var = (host_of(getattr(bn, each)) for each in TENSORS)
    wanted = (x - mean) / np.sqrt(var + np.float32(1e-5)) * scale + bias
    np.testing.assert_allclose(bn(put(queue, x)).get(), wanted, rtol=1e-4, atol=1e-5)


def test_steps_go_on_from_what_was_assigned(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    for name in ("scale", "bias"):
        setattr(bn, name, VALUES)
    bn.updateParams(-0.5)
    for name in ("scale", "bias"):
        wanted = VALUES - np.float32(0.5) * bn.vars[name].grad.get().ravel()
        np.testing.assert_allclose(names_of(bn, name), [wanted] * 3, rtol=1e-6)


def test_operators_that_work_in_place(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    bn.scale, bn.mean = VALUES, VALUES
    bn.scale *= put(queue, np.full(SHAPE, 2, np.float32))  # type: ignore[operator]
    bn.mean += put(queue, np.full(SHAPE, 1, np.float32))  # type: ignore[operator]
    assert names_of(bn, "scale") == [(VALUES * 2).tolist()] * 3
    assert names_of(bn, "mean") == [(VALUES + 1).tolist()] * 3


def test_numpy_and_device_arrays_together_are_told(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    assert bn.scale is not None
    before = bn.scale.get()
    with pytest.raises(ModuleDtypeError, match=r"device arrays; real numbers are wanted, as bn\.scale\.get\(\) has$"):
        bn.scale = bn.scale + np.ones(SHAPE, np.float32)
    bn.scale = bn.scale.get() + np.ones(SHAPE, np.float32)
    np.testing.assert_array_equal(host_of(bn.scale), before + 1)


def test_numbers_that_the_type_cannot_hold_are_refused(queue: cl.CommandQueue) -> None:
    """They would become infinite without a word; what is infinite already is what was asked for."""
    bn = module(queue)
    for given in (np.full(C, 1e300), [*VALUES[1:].tolist(), -1e39]):
        with pytest.raises(
            ModuleParameterError, match=r"scale is given -?1e\+\d+; numbers up to 3\.40282e\+38 are wanted"
        ):
            bn.scale = given
    bn.scale = np.full(C, np.inf)
    assert np.isinf(host_of(bn.scale)).all()


def test_a_tensor_cannot_be_deleted(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    with pytest.raises(ModuleStateError, match=r"^scale cannot be taken out of a module"):
        del bn.scale
    assert bn.scale is bn.vars["scale"].data


def test_an_array_may_be_put_in_the_place_of_another(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    arrays = {name: put(queue, VALUES.reshape(SHAPE)) for name in TENSORS}
    bn.vars["scale"].data = arrays["scale"]
    bn.vars["bias"] = Variable(arrays["bias"])
    bn.attrs["mean"] = arrays["mean"]
    bn.attrs.update(var=arrays["var"])
    for name, array in arrays.items():
        assert getattr(bn, name) is array
        assert names_of(bn, name) == [VALUES.tolist()] * 3
    bn.updateParams(0.5)
    assert host_of(bn.bias).ravel().tolist() == VALUES.tolist(), "the new variable has no gradient yet"
    assert arrays["scale"].get().ravel().tolist() != VALUES.tolist()


def test_an_empty_module_may_be_filled_by_hand(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(C, empty=True, queue=queue)
    x = put(queue, make((4, C, 3, 3), 1).x)
    for index, name in enumerate(TENSORS):
        with pytest.raises(ModuleStateError, match=f"it lacks {', '.join(TENSORS[index:])}; load"):
            bn(x)
        setattr(bn, name, VALUES)
    bn(x)
    assert bn.numOfParams() == 2 * C
    assert not bn.vars["scale"].grad.get().any()


def test_values_of_device_arrays_that_lie_anyhow(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    host = np.arange(1.0, 2 * C + 1, dtype=np.float32).reshape(C, 2)
    for name in TENSORS:
        setattr(bn, name, put(queue, host)[:, 1])
        np.testing.assert_array_equal(getattr(bn, name).get().ravel(), host[:, 1])
        setattr(bn, name, put(queue, host)[::-1, 0].with_queue(None))
        np.testing.assert_array_equal(getattr(bn, name).get().ravel(), host[::-1, 0])


BAD = [
    pytest.param(lambda q: np.ones(C + 1), ModuleShapeError, "6 elements (shape (6,)); 5 are wanted", id="too many"),
    pytest.param(lambda q: 1.0, ModuleShapeError, "1 elements (shape ()); 5 are wanted", id="a number"),
    pytest.param(lambda q: gpuarray.zeros(3, queue=q), ModuleShapeError, "5 are wanted, in any", id="device array"),
    pytest.param(lambda q: [[1, 2], [3]], ModuleShapeError, "is given what is no array", id="ragged"),
    pytest.param(lambda q: None, ModuleDtypeError, "real numbers are wanted", id="None"),
    pytest.param(lambda q: "1.5", ModuleDtypeError, "real numbers are wanted", id="text"),
    pytest.param(lambda q: np.ones(C, bool), ModuleDtypeError, "type bool; real numbers are wanted", id="bool"),
    pytest.param(
        lambda q: np.ones(C, complex), ModuleDtypeError, "type complex128; real numbers are wanted", id="complex"
    ),
    pytest.param(
        lambda q: VALUES.astype(ml_dtypes.float8_e4m3fn), ModuleDtypeError, "type float8_e4m3fn; real", id="eight bits"
    ),
    pytest.param(
        lambda q: VALUES.astype(ml_dtypes.bfloat16).view("V2"),
        ModuleDtypeError,
        "of type |V2; real numbers are wanted; if they are bfloat16, give values.view(ml_dtypes.bfloat16)",
        id="bfloat16 as np.load gives it",
    ),
]


@pytest.mark.parametrize(("give", "error", "message"), BAD)
@pytest.mark.parametrize("name", TENSORS)
def test_what_does_not_fit_is_refused(
    queue: cl.CommandQueue, name: str, give: Callable[[cl.CommandQueue], Any], error: type[Exception], message: str
) -> None:
    bn = module(queue, name="layer")
    before = state_of(bn)
    with pytest.raises(error) as caught:
        setattr(bn, name, give(queue))
    assert str(caught.value).startswith(f"BatchNorm2D 'layer': {name} is given ")
    assert message in str(caught.value)
    assert state_of(bn) == before


def test_values_that_a_module_cannot_have(queue: cl.CommandQueue) -> None:
    bn, plain = module(queue), module(queue, affine=False)
    with pytest.raises(ModuleParameterError, match=r"var is given a variance below 0: -1"):
        bn.var = -np.ones(C)
    for name in ("scale", "bias"):
        with pytest.raises(ModuleParameterError, match=f"{name} is given a {name} other than"):
            setattr(plain, name, VALUES)
    plain.scale, plain.bias = np.ones(C), np.zeros(C)


def unfit(queue: cl.CommandQueue) -> list[tuple[Any, type[Exception], str]]:
    """An array in the place of another."""
    elsewhere = in_another_context(queue)
    return [
        (np.ones(SHAPE, np.float32), ModuleDtypeError, "is a numpy.ndarray; a pyopencl"),
        (None, ModuleDtypeError, "is None; a pyopencl"),
        (gpuarray.ones((1, C), queue=queue), ModuleShapeError, r"has shape \(1, 5\); \(1, 5, 1, 1\) is wanted"),
        (gpuarray.ones(SHAPE, np.int32, queue=queue), ModuleDtypeError, "has dtype int32; float32 is wanted"),
        (gpuarray.ones(SHAPE, queue=elsewhere), ContextError, "is in another OpenCL context"),
    ]


def test_arrays_that_do_not_fit(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    before = state_of(bn)
    for array, error, message in unfit(queue):
        with pytest.raises(error, match=message):
            bn.attrs["mean"] = array
        with pytest.raises(error, match=message):
            bn.setAttr("var", array)
        with pytest.raises(error, match=message):
            bn.vars["scale"].data = array
        if array is not None and not isinstance(array, np.ndarray):
            with pytest.raises(error, match=message):
                bn.setVar("bias", Variable(array))
        with pytest.raises(
            ModuleDtypeError, match=r"variable scale is .*; an oclbn.modules.variable.Variable is wanted"
        ):
            bn.setVar("scale", array)
    assert state_of(bn) == before


def test_names_that_a_module_does_not_have(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    before = state_of(bn)
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: bn.setVar("mean", bn.vars["scale"]),
            ModuleParameterError,
            "variable is 'mean'; one of scale, bias is wanted",
        ),
        (
            lambda: bn.setAttr("scale", bn.mean),
            ModuleParameterError,
            "attribute is 'scale'; one of mean, var is wanted",
        ),  # type: ignore[arg-type]
        (lambda: bn.vars.pop("scale"), ModuleStateError, "scale cannot be taken out"),
        (lambda: bn.attrs.clear(), ModuleStateError, "cannot be taken out"),
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message) as caught:
            call()
        assert isinstance(caught.value, ModuleError)
    for name in ("vars", "attrs"):
        with pytest.raises(AttributeError):
            setattr(bn, name, {})
    assert state_of(bn) == before


# --- PuzzleLib's names for looking


def test_looking_up_by_name(queue: cl.CommandQueue) -> None:
    bn, empty = module(queue, name="layer"), BatchNorm2D(C, empty=True, queue=queue)
    assert bn.getVar("scale") is bn.vars["scale"]
    assert bn.getAttr("mean") is bn.mean
    assert [bn.hasVar(name) for name in (*TENSORS, "gamma")] == [True, True, False, False, False]
    assert [bn.hasAttr(name) for name in (*TENSORS, "gamma")] == [False, False, True, True, False]
    assert not empty.hasVar("scale")
    assert not empty.hasAttr("mean")
    for call, message in (
        (lambda: bn.getVar("mean"), "BatchNorm2D 'layer': no variable is called 'mean'; there is scale, bias"),
        (lambda: bn.getAttr("scale"), "BatchNorm2D 'layer': no attribute is called 'scale'; there is mean, var"),
        (lambda: empty.getVar("scale"), "BatchNorm2D: no variable is called 'scale'; there is none"),
    ):
        with pytest.raises(ModuleNameError) as caught:
            call()
        assert str(caught.value) == message
        assert isinstance(caught.value, KeyError)


def test_the_table_of_variables(queue: cl.CommandQueue) -> None:
    one, two, nameless = module(queue, name="one"), module(queue, name="two"), module(queue)
    two.setVar("scale", one.vars["scale"])
    assert one.getVarTable() == {one.vars["scale"]: ["onescale"], one.vars["bias"]: ["onebias"]}
    assert nameless.getVarTable(root=False) == nameless.getVarTable()
    assert list(nameless.getVarTable().values()) == [["scale"], ["bias"]]
    assert list(one.getVarTable(root=False).values()) == [["scale"], ["bias"]]
    table = one.getVarTable(name="net.one.")
    assert two.getVarTable(table, name="net.two.", root=False) is table
    assert table == {
        one.vars["scale"]: ["net.one.scale", "net.two.scale"],
        one.vars["bias"]: ["net.one.bias"],
        two.vars["bias"]: ["net.two.bias"],
    }


def test_variables_say_what_they_are(queue: cl.CommandQueue) -> None:
    bn = module(queue)
    one = f"<Variable 'scale': float32 of shape {SHAPE}>"
    assert repr(bn.vars["scale"]) == one
    assert repr(bn.vars).startswith(f"{{'scale': {one}, 'bias': <Variable 'bias': ")
    assert repr(Variable(put(queue, np.zeros(3)))) == "<Variable None: float64 of shape (3,)>"


def test_nan_that_is_assigned_is_meant(queue: cl.CommandQueue) -> None:
    """As of an array that is put in; what a file has is not known to be meant, and is asked for."""
    bn = module(queue)
    bn.mean = np.full(SHAPE, np.nan)
    assert np.isnan(host_of(bn.mean)).all()
    with pytest.raises(ModuleFileError, match=r"NaN|not finite"):
        bn.load(bn.save())  # type: ignore[arg-type]
    bn.load(bn.save(), check_finite=False)  # type: ignore[arg-type]


def test_gradients_that_do_not_fit(queue: cl.CommandQueue) -> None:
    """Refused where they are assigned, by the name they are assigned to, and not by the step that would read them."""
    bn = module(queue)
    before = state_of(bn)
    for array, error, message in unfit(queue):
        with pytest.raises(error, match=f"^grad of variable 'scale' {message}"):
            bn.vars["scale"].grad = array
    with pytest.raises(ModuleDtypeError, match=r"; zeroGradParams\(\) fills gradients with 0$"):
        bn.vars["scale"].grad = None  # type: ignore[assignment]
    with pytest.raises(
        ModuleDtypeError, match=r"is a numpy\.ndarray; .*: oclbn\.gpuarray\.to_gpu\(np\.asarray\("
    ) as no:
        bn.vars["scale"].grad = VALUES.reshape(SHAPE)
    assert state_of(bn) == before
    advised = re.search(r"oclbn\.gpuarray\.to_gpu\(.*\)(?= makes one)", str(no.value))
    assert advised is not None
    known = {"oclbn": oclbn, "np": np, "grad": VALUES.reshape(SHAPE), "bn": bn}
    bn.vars["scale"].grad = eval(advised[0], known)
    assert bn.vars["scale"].grad.get().ravel().tolist() == VALUES.tolist()


def test_a_gradient_may_be_put_in_the_place_of_another(queue: cl.CommandQueue) -> None:
    """A step, a copy and another type go by it; operators in place keep the array."""
    bn = module(queue)
    grad = put(queue, VALUES.reshape(SHAPE))
    bn.vars["scale"].grad = grad
    bn.vars["scale"].grad += grad
    assert bn.vars["scale"].grad is grad
    wanted = host_of(bn.scale).ravel() + 2 * VALUES
    bn.updateParams(1.0)
    np.testing.assert_allclose(host_of(bn.scale).ravel(), wanted, rtol=1e-6)
    other = copy.deepcopy(bn).vars["scale"].grad
    assert other is not grad
    assert other.get().tobytes() == grad.get().tobytes()
    with pytest.raises(ModuleShapeError, match=r"^grad of a variable has shape"):
        Variable(put(queue, VALUES)).grad = grad


def test_values_other_than_affine_false_keeps_are_told_as_such(queue: cl.CommandQueue) -> None:
    plain = module(queue, affine=False)
    for name, kept in (("scale", 1), ("bias", 0)):
        message = f"{name} is given a {name} other than {kept}, at which affine=False keeps it"
        with pytest.raises(ModuleParameterError, match=f"^BatchNorm2D: {message}$"):
            setattr(plain, name, VALUES)
    with pytest.raises(ModuleFileError, match=r"has a scale other than 1, at which affine=False keeps it$"):
        plain.load(module(queue).save() or b"")
