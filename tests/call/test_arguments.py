"""Bad arguments: the class of the error, what its message says, and that nothing was changed."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from data import ONE_PER_CHANNEL
from invocations import CALLS, EVERY, PER_CHANNEL, SHAPE, TENSORS, WRITTEN, state, valid
from pyopencl.tools import SVMAllocator, SVMPool

from oclbn import BatchNorm, functional
from oclbn.call import order
from oclbn.errors import (
    ArrayTypeError,
    ContextError,
    DtypeError,
    ModuleParameterError,
    OclbnError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    ShapeError,
)
from oclbn.functional import accumulate, batch_norm_infer, batch_norm_train

pytestmark = pytest.mark.once(reason="errors are raised before the runtime is asked for anything")

OUTS = [call for call in TENSORS if call[1] == "out"]
WITH_X = [(call, "x") for call in CALLS]


def invoke(call: str, arguments: dict[str, Any]) -> Any:
    function, positional = CALLS[call]
    options = {name: value for name, value in arguments.items() if name not in positional}
    return function(*(arguments[name] for name in positional), **options)


def rejects(call: str, arguments: dict[str, Any], error: type, builtin: type, *says: str) -> None:
    """The call raises this error, also as the builtin, its message says all that, and no buffer has changed."""
    before = state(arguments)
    with pytest.raises(error) as caught:
        invoke(call, arguments)
    assert isinstance(caught.value, OclbnError)
    assert isinstance(caught.value, builtin)
    message = str(caught.value)
    for word in says:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), f"{word!r} is not in: {message}"
    assert state(arguments) == before


@pytest.mark.parametrize("call", CALLS)
def test_the_arguments_that_the_others_spoil_are_accepted(queue: cl.CommandQueue, call: str) -> None:
    assert invoke(call, valid(queue, call)) is not None


# --- shapes


@pytest.mark.parametrize(("call", "name"), WITH_X)
@pytest.mark.parametrize("shape", [(24,), ()], ids=["one axis", "no axis"])
def test_rank(queue: cl.CommandQueue, call: str, name: str, shape: tuple[int, ...]) -> None:
    arguments = valid(queue, call) | {name: cla.zeros(queue, shape, np.float32)}
    rejects(call, arguments, ShapeError, ValueError, name, str(shape), "2")


@pytest.mark.parametrize("elements", [3, 5, 1, 8])
@pytest.mark.parametrize(("call", "name"), PER_CHANNEL)
def test_channel_count(queue: cl.CommandQueue, call: str, name: str, elements: int) -> None:
    dtype = np.uint32 if name == "skipped" else np.float32
    arguments = valid(queue, call) | {name: cla.zeros(queue, elements, dtype)}
    rejects(call, arguments, ShapeError, ValueError, name, str(elements), "4", "axis")


@pytest.mark.parametrize(("call", "name"), PER_CHANNEL)
def test_channel_count_follows_the_axis(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call, SHAPE, -1)
    invoke(call, arguments | {"axis": -1})
    dtype = np.uint32 if name == "skipped" else np.float32
    arguments |= {"axis": -1, name: cla.zeros(queue, 4, dtype)}
    rejects(call, arguments, ShapeError, ValueError, name, "4", "5")


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4, 5, 1), (6, 20), (4, 6, 5)], ids=str)
@pytest.mark.parametrize(("call", "name"), [*OUTS, ("backward", "dy")])
def test_shape_of_a_companion(queue: cl.CommandQueue, call: str, name: str, shape: tuple[int, ...]) -> None:
    arguments = valid(queue, call) | {name: cla.zeros(queue, shape, np.float32)}
    rejects(call, arguments, ShapeError, ValueError, name, str(shape), str(SHAPE))


@pytest.mark.parametrize(("shape", "axis"), ONE_PER_CHANNEL)
def test_one_value_per_channel_in_training(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    arguments = valid(queue, "train", shape, axis) | {"axis": axis}
    rejects("train", arguments, ShapeError, ValueError, "x", str(shape), "channel")


# --- element types


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.complex64, np.bool_], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("call", "name"), WITH_X)
def test_dtype_of_x(queue: cl.CommandQueue, call: str, name: str, dtype: Any) -> None:
    arguments = valid(queue, call) | {name: cla.empty(queue, SHAPE, dtype)}
    rejects(call, arguments, DtypeError, TypeError, name, np.dtype(dtype).name, "float32")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("call", "name"), [row for row in EVERY if row[1] != "x"])
def test_dtype_of_the_others(queue: cl.CommandQueue, call: str, name: str, dtype: Any) -> None:
    arguments = valid(queue, call)
    arguments[name] = cla.empty(queue, arguments[name].shape, dtype)
    wanted = "uint32" if name == "skipped" else "float32"
    rejects(call, arguments, DtypeError, TypeError, name, np.dtype(dtype).name, wanted)


@pytest.mark.usefixtures("needs_fp64")
@pytest.mark.parametrize(("call", "name"), [row for row in EVERY if row[1] not in ("x", "skipped")])
def test_float64_x_wants_float64_throughout(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = {
        key: array if key == "skipped" else cla.to_device(queue, array.get().astype(np.float64))
        for key, array in valid(queue, call).items()
    }
    invoke(call, arguments)
    arguments[name] = cla.empty(queue, arguments[name].shape, np.float32)
    rejects(call, arguments, DtypeError, TypeError, name, "float32", "float64")


def test_float64_on_a_device_without(queue: cl.CommandQueue) -> None:
    if queue.device.double_fp_config:
        pytest.skip("needs a device without fp64")
    with pytest.raises(OclbnError, match=r"\bx\b.*float64"):
        functional.moments(cla.empty(queue, SHAPE, np.float64))


# --- not an array of this context


@pytest.mark.parametrize(("call", "name"), EVERY)
def test_numpy_arrays(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call)
    arguments[name] = arguments[name].get()
    rejects(call, arguments, ArrayTypeError, TypeError, name, "ndarray", "pyopencl")


@pytest.mark.parametrize("value", [1.0, [1.0, 2.0, 3.0, 4.0], "ones"], ids=["float", "list", "str"])
@pytest.mark.parametrize(("call", "name"), EVERY)
def test_other_objects(queue: cl.CommandQueue, call: str, name: str, value: Any) -> None:
    arguments = valid(queue, call) | {name: value}
    rejects(call, arguments, ArrayTypeError, TypeError, name, type(value).__name__, "pyopencl")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *WITH_X,
        ("infer", "mean"),
        ("infer", "var"),
        ("backward", "dy"),
        ("backward", "save_mean"),
        ("backward", "save_invstd"),
    ],
)
def test_what_must_not_be_absent(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call) | {name: None}
    rejects(call, arguments, ArrayTypeError, TypeError, name, "None", "pyopencl")


@pytest.mark.parametrize(("call", "name"), [row for row in EVERY if row[1] != "x"])
def test_another_context(queue: cl.CommandQueue, other_queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call)
    arguments[name] = cla.to_device(other_queue, arguments[name].get())
    rejects(call, arguments, ContextError, ValueError, name, "context", "x")


@pytest.mark.parametrize(("call", "name"), WITH_X)
def test_x_without_a_queue(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call)
    queue.finish()  # whoever reads an array without a queue reads it from another one
    arguments[name] = arguments[name].with_queue(None)
    rejects(call, arguments, OclbnError, ValueError, name, "queue")


# --- outputs


@pytest.mark.parametrize("call", ["train", "backward"])
def test_out_is_x(queue: cl.CommandQueue, call: str) -> None:
    arguments = valid(queue, call)
    arguments["out"] = arguments["x"]
    rejects(call, arguments, OverlapError, ValueError, "out", "x")


def test_out_is_dy_with_other_strides(queue: cl.CommandQueue) -> None:
    """dx may take dy's place, element by element; not so that elements change places."""
    arguments = valid(queue, "backward")
    arguments["out"] = arguments["dy"][::-1]
    rejects("backward", arguments, OverlapError, ValueError, "out", "dy")


@pytest.mark.parametrize(("call", "name"), [("train", "x"), ("infer", "x"), ("backward", "x"), ("backward", "dy")])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0), (0, 5)], ids=["behind", "before", "by one row"])
def test_out_overlaps_in_part(queue: cl.CommandQueue, call: str, name: str, first: int, second: int) -> None:
    parent = cla.to_device(queue, np.random.default_rng(0).standard_normal((11, 4, 5)).astype(np.float32))
    arguments = valid(queue, call)
    arguments |= {name: parent[first : first + 6], "out": parent[second : second + 6]}
    rejects(call, arguments, OverlapError, ValueError, "out", name)


@pytest.mark.parametrize("call", ["train", "infer", "backward"])
def test_neighbours_in_one_buffer_do_not_overlap(queue: cl.CommandQueue, call: str) -> None:
    arguments = valid(queue, call)
    parent = cla.zeros(queue, (12, 4, 5), np.float32)
    parent[:6] = arguments["x"]
    expected = invoke(call, arguments)
    results = invoke(call, valid(queue, call) | {"x": parent[:6], "out": parent[6:]})
    pick = (lambda result: result) if call == "infer" else (lambda result: result[0])
    assert np.array_equal(pick(results).get(), pick(expected).get())
    assert np.array_equal(parent[:6].get(), arguments["x"].get())


@pytest.mark.parametrize(
    ("call", "name", "other"),
    [
        ("train", "running_mean", "running_var"),
        ("train", "running_mean", "scale"),
        ("train", "running_var", "bias"),
        ("train", "running_var", "x"),
        ("train", "out", "scale"),
        ("train", "out", "running_mean"),
        ("infer", "out", "scale"),
        ("infer", "out", "var"),
        ("backward", "out", "scale"),
        ("backward", "out", "save_mean"),
        ("backward", "out", "scale_grad"),
        ("backward", "scale_grad", "bias_grad"),
        ("backward", "scale_grad", "scale"),
        ("backward", "bias_grad", "save_mean"),
        ("backward", "bias_grad", "dy"),
    ],
)
def test_what_is_written_is_nothing_else(queue: cl.CommandQueue, call: str, name: str, other: str) -> None:
    """Both lie in one buffer, the shorter within the longer."""
    arguments = valid(queue, call)
    longer, shorter = sorted((name, other), key=lambda key: -arguments[key].size)
    parent = arguments[longer]
    arguments[shorter] = parent.reshape(-1)[: arguments[shorter].size]
    rejects(call, arguments, OverlapError, ValueError, name, other)


def test_inputs_may_share_memory(queue: cl.CommandQueue) -> None:
    arguments = valid(queue, "train")
    arguments["bias"] = arguments["scale"]
    expected = invoke("train", valid(queue, "train") | {"bias": arguments["scale"].copy()})
    assert invoke("train", arguments)[0].get().tobytes() == expected[0].get().tobytes()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *OUTS,
        ("train", "running_mean"),
        ("train", "running_var"),
        ("train", "skipped"),
        ("backward", "scale_grad"),
        ("backward", "bias_grad"),
    ],
)
def test_read_only_outputs(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call)
    host = arguments[name].get()
    flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
    buffer = cl.Buffer(queue.context, flags, hostbuf=host)
    arguments[name] = cla.Array(queue, host.shape, host.dtype, data=buffer)
    rejects(call, arguments, OclbnError, ValueError, name, "READ_ONLY")


@pytest.mark.parametrize(("call", "name"), [("train", "x"), ("infer", "x"), ("backward", "x"), ("backward", "dy")])
def test_read_only_inputs_are_fine(queue: cl.CommandQueue, call: str, name: str) -> None:
    arguments = valid(queue, call)
    host = arguments[name].get()
    flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
    arguments[name] = cla.Array(queue, host.shape, host.dtype, data=cl.Buffer(queue.context, flags, hostbuf=host))
    assert invoke(call, arguments) is not None


# --- memory that is not the array's


def lying(array: cla.Array, offset: int, strides: tuple[int, ...], elements: int) -> cla.Array:
    """The same shape, claimed of a buffer that has so many elements."""
    memory = cl.Buffer(array.context, cl.mem_flags.READ_WRITE, 4 * elements)
    cl.enqueue_fill_buffer(array.queue, memory, np.uint32(7), 0, 4 * elements)
    return cla.Array(array.queue, array.shape, array.dtype, data=memory, offset=4 * offset, strides=strides)


@pytest.fixture
def _not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies outside of its buffer must not come near a kernel: where nobody refuses it, this does."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a kernel was to be launched")

    monkeypatch.setattr(order, "enqueue", refuse)


@pytest.mark.usefixtures("_not_launched")
@pytest.mark.parametrize("fault", ["too small", "offset", "before the beginning", "sub-buffer"])
@pytest.mark.parametrize(("call", "name"), EVERY)
def test_arrays_beyond_their_buffers(queue: cl.CommandQueue, call: str, name: str, fault: str) -> None:
    arguments = valid(queue, call)
    good = arguments[name]
    if fault == "too small":
        bad = lying(good, 0, good.strides, good.size - 1)
    elif fault == "offset":
        bad = lying(good, 1, good.strides, good.size)
    elif fault == "before the beginning":
        if good.ndim == 1:
            pytest.skip("needs an array that may run backwards")
        bad = lying(good, good.size - 21, (-good.strides[0], *good.strides[1:]), good.size)
    else:
        parent = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, 1 << 16)
        part = parent.get_sub_region(0, 4 * good.size - 4)
        bad = cla.Array(queue, good.shape, good.dtype, data=part)
    arguments[name] = bad
    rejects(call, arguments, ShapeError, ValueError, name, str(bad.shape), str(bad.base_data.size), "buffer")


@pytest.mark.usefixtures("_not_launched")
@pytest.mark.parametrize("kind", ["image", "local memory", "NumPy array", "bytes", "address"])
@pytest.mark.parametrize(("call", "name"), EVERY)
def test_arrays_in_what_is_no_buffer(queue: cl.CommandQueue, call: str, name: str, kind: str) -> None:
    arguments = valid(queue, call)
    good = arguments[name]
    makers = {
        "image": lambda: cl.image_from_array(queue.context, np.zeros((16, 16), np.float32), 1),
        "local memory": lambda: cl.LocalMemory(4 * good.size),
        "NumPy array": lambda: np.zeros(good.nbytes, np.uint8),
        "bytes": lambda: bytes(good.nbytes),
        "address": lambda: 4096,
    }
    try:
        data = makers[kind]()
    except cl.Error as error:
        pytest.skip(f"needs a device with images: {error}")
    arguments[name] = cla.Array(queue, good.shape, good.dtype, data=data)
    with pytest.raises(ArrayTypeError, match=rf"^{name} lies in a .*; a pyopencl.Buffer or SVM is wanted"):
        invoke(call, arguments)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint16], ids=lambda integer: integer.__name__)
@pytest.mark.parametrize("call", CALLS)
def test_sizes_that_are_numpys(queue: cl.CommandQueue, call: str, integer: Any) -> None:
    """pyopencl keeps them as they come. No other test has these shapes: plans for equal numbers would serve."""
    shape = (6, 4, {np.int64: 3, np.int32: 9, np.uint16: 11}[integer])
    arguments = valid(queue, call, shape)

    def numpys(a: cla.Array) -> cla.Array:
        sizes, strides = (tuple(integer(number) for number in numbers) for numbers in (a.shape, a.strides))
        return cla.Array(queue, sizes, a.dtype, data=a.base_data, strides=strides, offset=integer(0))

    got = invoke(call, {name: numpys(array) for name, array in arguments.items()} | {"axis": integer(1)})
    wanted = invoke(call, valid(queue, call, shape))
    for one, two in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True):
        np.testing.assert_array_equal(*(r.get() if isinstance(r, cla.Array) else r for r in (one, two)))
    if call == "moments":
        assert type(got[0]) is int


@pytest.mark.parametrize("kind", ["allocated", "pooled", "of the host"])
@pytest.mark.parametrize("call", CALLS)
def test_shared_virtual_memory(queue: cl.CommandQueue, call: str, kind: str) -> None:
    if not queue.device.svm_capabilities & cl.device_svm_capabilities.COARSE_GRAIN_BUFFER:
        pytest.skip(f"needs shared virtual memory; {queue.device.name} has none")
    if kind == "pooled" and "PoCL 3.0" in queue.device.platform.version:
        pytest.skip(
            "POCL 3.0 crashes when pyopencl's pool of shared virtual memory is let go of, without oclbn as well"
        )
    allocator = SVMAllocator(queue.context, queue=queue)
    pool = SVMPool(allocator)

    def shared(a: cla.Array) -> cla.Array:
        if kind == "of the host":
            memory = cl.SVM(cl.csvm_empty(queue.context, a.shape, a.dtype))
            with memory.map_rw(queue) as host:
                host[...] = a.get()
            return cla.Array(queue, a.shape, a.dtype, data=memory)
        return cla.to_device(queue, a.get(), allocator=allocator if kind == "allocated" else pool)

    arguments = {name: shared(array) for name, array in valid(queue, call).items()}
    got, wanted = invoke(call, arguments), invoke(call, valid(queue, call))
    queue.finish()
    for one, two in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True):
        if isinstance(one, cla.Array) and kind != "of the host":
            np.testing.assert_array_equal(one.get(), two.get())
    short = arguments["x"]
    arguments["x"] = cla.Array(queue, (7, *short.shape[1:]), short.dtype, data=short.base_data)
    with pytest.raises(ShapeError, match=r"^x with shape .* a buffer that has 480;"):
        invoke(call, arguments)


@pytest.mark.usefixtures("_not_launched")
@pytest.mark.parametrize("name", ["into", "new"])
def test_accumulate_beyond_a_buffer(queue: cl.CommandQueue, name: str) -> None:
    arrays = {key: cla.zeros(queue, 9, np.float32) for key in ("into", "new")}
    arrays[name] = lying(arrays[name], 0, (4,), 8)
    with pytest.raises(ShapeError, match=rf"^{name} with shape \(9,\).* bytes 0 to 36 of a buffer that has 32;"):
        accumulate(*arrays.values())


@pytest.mark.parametrize("call", CALLS)
def test_arrays_that_just_fit_their_buffers(queue: cl.CommandQueue, call: str) -> None:
    """The last element ends with the buffer; the first one begins it, running backwards."""
    plain = valid(queue, call)
    for name in (*CALLS[call][1], *WRITTEN[call]):
        arguments = valid(queue, call)
        array = arguments[name]
        offset, strides = 3, array.strides
        if array.ndim > 1:
            offset, strides = array.size - 20, (-strides[0], *strides[1:])
        fitting = lying(array, offset, strides, array.size + (3 if array.ndim == 1 else 0))
        cl.enqueue_copy(queue, fitting.base_data, np.resize(array.get(), fitting.base_data.size // 4))
        if array.ndim == 1 or name == "x":
            arguments = plain | {name: fitting}
            if "out" in arguments and array.ndim > 1:
                del arguments["out"]
                arguments |= {"dy": fitting} if "dy" in arguments else {}
            assert invoke(call, arguments) is not None


# --- numbers


@pytest.mark.parametrize("epsilon", [-1e-5, -1e-300, np.nan], ids=str)
@pytest.mark.parametrize("call", ["train", "infer"])
def test_epsilon(queue: cl.CommandQueue, call: str, epsilon: float) -> None:
    arguments = valid(queue, call) | {"epsilon": epsilon}
    rejects(call, arguments, ParameterError, ValueError, "epsilon", str(epsilon).lstrip("-"), "0")


@pytest.mark.parametrize("epsilon", [-1e-5, np.nan, 1e39, "1e-5"], ids=str)
def test_epsilon_of_constant_statistics(queue: cl.CommandQueue, epsilon: Any) -> None:
    arguments = valid(queue, "backward") | {"epsilon": epsilon, "training": False}
    rejects("backward", arguments, ParameterError, ValueError, "epsilon", str(epsilon).lstrip("-"))


def test_epsilon_in_training(queue: cl.CommandQueue) -> None:
    arguments = valid(queue, "backward") | {"epsilon": 1e-5}
    rejects("backward", arguments, ParameterError, ValueError, "epsilon", "1e-05", "None", "save_invstd")


def test_a_variance_is_called_as_it_is_given(queue: cl.CommandQueue) -> None:
    arguments = valid(queue, "backward") | {"epsilon": 1e-5, "training": False}
    arguments["save_invstd"] = cla.zeros(queue, 3, np.float32)
    rejects("backward", arguments, ShapeError, ValueError, "save_invstd", "3", "4")


@pytest.mark.parametrize("name", ["grad_scale", "grad_momentum"])
@pytest.mark.parametrize("value", ["a", np.nan, np.inf, 1e300, None])
def test_gradients_are_gathered_by_numbers(queue: cl.CommandQueue, name: str, value: Any) -> None:
    rejects("backward", valid(queue, "backward") | {name: value}, ParameterError, ValueError, name)


@pytest.mark.parametrize("factor", [-0.1, 1.0000001, np.nan, np.inf], ids=str)
def test_factor(queue: cl.CommandQueue, factor: float) -> None:
    arguments = valid(queue, "train") | {"factor": factor}
    rejects("train", arguments, ParameterError, ValueError, "factor", str(factor).lstrip("-"), "0", "1")


@pytest.mark.parametrize("axis", [3, -4, 100])
@pytest.mark.parametrize("call", CALLS)
def test_axis_out_of_range(queue: cl.CommandQueue, call: str, axis: int) -> None:
    arguments = valid(queue, call) | {"axis": axis}
    rejects(call, arguments, ParameterError, ValueError, "axis", str(abs(axis)), "3")


@pytest.mark.parametrize("axis", [1.0, "1", None, (1,)], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_axis_of_another_type(queue: cl.CommandQueue, call: str, axis: Any) -> None:
    arguments = valid(queue, call) | {"axis": axis}
    rejects(call, arguments, ParameterError, ValueError, "axis", repr(axis), "integer")


def test_numpy_numbers_are_numbers(queue: cl.CommandQueue) -> None:
    options = {"epsilon": np.float32(1e-3), "factor": np.float64(0.5), "axis": np.int64(1)}
    plain = {"epsilon": float(np.float32(1e-3)), "factor": 0.5, "axis": 1}
    y, *_ = invoke("train", valid(queue, "train") | options)
    assert y.get().tobytes() == invoke("train", valid(queue, "train") | plain)[0].get().tobytes()


NUMBERS = [
    pytest.param(1, id="int"),
    pytest.param(0.5, id="float"),
    pytest.param(np.float32(0.5), id="NumPy's float"),
    pytest.param(np.uint8(1), id="NumPy's int"),
    pytest.param(np.array(0.5), id="array of no axes"),
    pytest.param(Fraction(1, 3), id="fraction"),
    pytest.param(Decimal("0.1"), id="decimal"),
]
NO_NUMBERS = [
    pytest.param(True, id="True"),
    pytest.param(np.False_, id="NumPy's False"),
    pytest.param(np.array(True), id="array of no axes that is True"),
    pytest.param(None, id="None"),
    pytest.param("0.1", id="text"),
    pytest.param(b"1", id="bytes"),
    pytest.param([0.1], id="list"),
    pytest.param(np.array([0.1]), id="array with an axis"),
    pytest.param(0.1j, id="complex"),
    pytest.param(np.complex64(0.1), id="NumPy's complex"),
    pytest.param(10**400, id="too long"),
    pytest.param(-(10**400), id="too long, below zero"),
    pytest.param(Fraction(10**400, 3), id="too large a fraction"),
    pytest.param(Decimal("NaN"), id="decimal NaN"),
]


@pytest.mark.parametrize("value", NUMBERS)
def test_functions_and_modules_take_the_same_numbers(queue: cl.CommandQueue, value: Any) -> None:
    y, *_ = invoke("train", valid(queue, "train") | {"epsilon": value, "factor": value})
    assert np.isfinite(y.get()).all()
    bn = BatchNorm(5, epsilon=value, initFactor=value, minFactor=value, queue=queue)
    assert bn.epsilon == bn.initFactor == bn.minFactor == float(value)
    bn.updateParams(value)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_functions_and_modules_refuse_the_same(queue: cl.CommandQueue, value: Any) -> None:
    for name in ("epsilon", "factor", "init_factor"):
        rejects("train", valid(queue, "train") | {name: value}, ParameterError, ValueError, name)
    for name in ("grad_scale", "grad_momentum"):
        rejects("backward", valid(queue, "backward") | {name: value}, ParameterError, ValueError, name)
    for name in ("epsilon", "initFactor", "minFactor", "sscale"):
        with pytest.raises(ModuleParameterError, match=rf"{name} is .*; .* is wanted"):
            BatchNorm(5, queue=queue, **{name: value})
    with pytest.raises(ModuleParameterError, match=r"learnRate is .*; .* is wanted"):
        BatchNorm(5, queue=queue).updateParams(value)


@pytest.mark.parametrize("axis", [True, np.True_, 1.0, "1", None], ids=repr)
def test_an_axis_is_an_integer(queue: cl.CommandQueue, axis: Any) -> None:
    rejects("train", valid(queue, "train") | {"axis": axis}, ParameterError, ValueError, "axis", "an integer is wanted")


# --- order


@pytest.mark.parametrize("call", CALLS)
def test_positional_and_keyword_arguments_stay_apart(queue: cl.CommandQueue, call: str) -> None:
    function, positional = CALLS[call]
    arguments = valid(queue, call)
    with pytest.raises(TypeError):
        function(**{name: arguments[name] for name in positional})
    with pytest.raises(TypeError):
        function(*(arguments[name] for name in positional), 1e-5)


def test_nothing_is_allocated_before_a_complaint(queue: cl.CommandQueue) -> None:
    arguments = valid(queue, "train")
    del arguments["out"]
    arguments["running_var"] = cla.zeros(queue, 9, np.float32)

    def refuse(size: int) -> None:
        raise AssertionError(f"allocated {size} bytes")

    x = arguments["x"]
    arguments["x"] = cla.Array(queue, x.shape, x.dtype, allocator=refuse, data=x.base_data)
    rejects("train", arguments, ShapeError, ValueError, "running_var", "9")


# --- what a review found


@pytest.mark.parametrize("epsilon", [1e39, "1e-5"], ids=["beyond float32", "text"])
def test_an_epsilon_that_float32_cannot_hold(queue: cl.CommandQueue, epsilon: Any) -> None:
    rejects("train", valid(queue, "train") | {"epsilon": epsilon}, ParameterError, ValueError, "epsilon")


def test_an_out_that_meets_itself(queue: cl.CommandQueue) -> None:
    """Rows that begin inside one another: several groups would write the same elements."""
    arguments = valid(queue, "infer")
    memory = cla.zeros(queue, 400, np.float32)
    shape, step = arguments["x"].shape, np.dtype(np.float32).itemsize
    strides = (step * shape[2], step * shape[2], step)
    out = cla.Array(queue, shape, np.float32, strides=strides, data=memory.base_data)
    rejects("infer", arguments | {"out": out}, ReadOnlyError, ValueError, "out", "strides")


def test_an_empty_tensor_with_one_sample_is_empty(queue: cl.CommandQueue) -> None:
    y, mean, invstd = batch_norm_train(cla.empty(queue, (1, 0), np.float32), None, None, None, None)
    assert y.shape == (1, 0)
    assert mean.shape == invstd.shape == (0,)


def test_inference_in_place_whatever_the_strides_of_single_elements(queue: cl.CommandQueue) -> None:
    host = np.random.default_rng(0).standard_normal((1, 5, 6)).astype(np.float32)
    x = cla.to_device(queue, host)
    odd = cla.Array(queue, x.shape, x.dtype, strides=(4, *x.strides[1:]), data=x.base_data)
    mean, var = cla.zeros(queue, 5, np.float32), cla.to_device(queue, np.full(5, 4, np.float32))
    batch_norm_infer(x, None, None, mean, var, epsilon=0.0, out=odd)
    np.testing.assert_allclose(x.get(), host / 2, rtol=1e-6)


def test_accumulate_refuses_what_overlaps(queue: cl.CommandQueue) -> None:
    array = cla.to_device(queue, np.ones(100, np.float32))
    with pytest.raises(OverlapError, match="into overlaps new"):
        accumulate(array[1:], array[:-1])
    accumulate(array, array, scale=2.0, momentum=1.0)
    np.testing.assert_array_equal(array.get(), np.full(100, 3, np.float32))


@pytest.mark.parametrize("name", ["scale", "momentum"])
@pytest.mark.parametrize("value", ["a", np.nan, np.inf, 1e300, None])
def test_accumulate_wants_numbers(queue: cl.CommandQueue, name: str, value: Any) -> None:
    array = cla.to_device(queue, np.ones(3, np.float32))
    with pytest.raises(ParameterError, match=name):
        accumulate(array, array, **{name: value})
    np.testing.assert_array_equal(array.get(), np.ones(3))
