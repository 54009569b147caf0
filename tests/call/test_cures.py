"""What errors advise is done here: each piece of code in a message runs, and leads to a result."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

import oclbn
from oclbn import BatchNorm1D, BatchNorm2D, functional, gpuarray
from oclbn.elements import kind
from oclbn.errors import (
    ArrayTypeError,
    ContextError,
    DtypeError,
    ModuleDtypeError,
    ModuleParameterError,
    OverlapError,
    ParameterError,
)

CODE = r"(?:convert it with |: )(oclbn\..*?|\w+\.astype\(.*?\))(?: makes one| makes a copy there|, or |, make |$)"
RNG = np.random.default_rng(5)
HOST = RNG.standard_normal((4, 3, 5))
PER_CHANNEL = ("scale", "bias", "running_mean", "running_var", "skipped", "entered")


def put(queue: cl.CommandQueue, host: Any) -> cla.Array:
    return cla.to_device(queue, np.ascontiguousarray(host))


def advised(error: Exception, pattern: str = CODE) -> str:
    found = re.search(pattern, str(error))
    assert found is not None, error
    return found[1]


def follow(error: Exception, **known: Any) -> Any:
    return eval(advised(error), {"oclbn": oclbn, "np": np, "ml_dtypes": ml_dtypes, **known})


@pytest.mark.parametrize(
    "value", [HOST, HOST.astype(np.float32), HOST.astype(int), HOST.tolist()], ids=lambda v: type(v).__name__
)
def test_a_host_array_for_x(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.setattr(oclbn.device, "default_queue", lambda: queue)
    for call in (functional.batch_norm_train, functional.moments, functional.statistics, functional.explain):
        with pytest.raises(ArrayTypeError, match=r"^x is a ") as caught:
            call(value)
        call(follow(caught.value, x=value))


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_a_host_array_per_channel(queue: cl.CommandQueue, name: str, dtype: np.dtype[Any]) -> None:
    """Of whatever type, for x of either."""
    x = put(queue, HOST.astype(dtype))
    for value in (np.zeros(3), [0, 0, 0], np.zeros(3, np.float32)):
        with pytest.raises(ArrayTypeError, match=f"^{name} is a ") as caught:
            functional.batch_norm_train(x, **{name: value})
        functional.batch_norm_train(x, **{name: follow(caught.value, x=x, **{name: value})})


def test_host_arrays_for_the_others(queue: cl.CommandQueue) -> None:
    x = put(queue, HOST.astype(np.float32))
    zeros, ones = put(queue, np.zeros(3, np.float32)), put(queue, np.ones(3, np.float32))
    with pytest.raises(ArrayTypeError, match=r"^dy is a ") as caught:
        functional.batch_norm_backward(x, HOST, save_mean=zeros, save_invstd=ones)  # type: ignore[arg-type]
    functional.batch_norm_backward(x, follow(caught.value, x=x, dy=HOST), save_mean=zeros, save_invstd=ones)
    with pytest.raises(ArrayTypeError, match=r"^out is a ") as caught:
        functional.batch_norm_train(x, out=HOST)  # type: ignore[arg-type]
    functional.batch_norm_train(x, out=follow(caught.value, x=x))
    for given in ({"into": [0.0] * 3, "new": ones}, {"into": ones, "new": [0.0] * 3}):
        with pytest.raises(ArrayTypeError) as caught:
            functional.accumulate(*given.values())
        name = str(caught.value).split()[0]
        given[name] = follow(caught.value, **given)
        assert given[name].dtype == np.float32


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_one_number_per_channel(queue: cl.CommandQueue, name: str) -> None:
    """It is repeated for each channel."""
    x = put(queue, HOST.astype(np.float32))
    for value in (2, np.float32(2), np.array(2.0)):
        with pytest.raises(ArrayTypeError, match=f"^{name} is a ") as caught:
            functional.batch_norm_train(x, **{name: value})
        made = follow(caught.value, x=x, **{name: value})
        assert made.get().tolist() == [2, 2, 2]
        functional.batch_norm_train(x, **{name: made})


@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_what_is_written_is_no_copy(queue: cl.CommandQueue, dtype: str) -> None:
    """A converted copy would be written in its place, and the caller's array stay as it is."""
    x, wrong = put(queue, HOST.astype(np.float32)), put(queue, HOST.astype(dtype))
    one = put(queue, np.ones(3, np.float32))
    backward = functools.partial(functional.batch_norm_backward, x, x, save_mean=one, save_invstd=one)
    for call in (functools.partial(functional.batch_norm_train, x), backward):
        with pytest.raises(
            DtypeError, match=r"^out is \w+; float32 is wanted, as x is; oclbn\.\S+ makes one$"
        ) as caught:
            call(out=wrong)
        out = eval(advised(caught.value, r"; (oclbn\..*) makes one$"), {"oclbn": oclbn, "x": x})
        assert call(out=out)[0] is out
    for name in ("running_mean", "running_var"):
        given = {name: put(queue, np.ones(3, dtype))}
        with pytest.raises(DtypeError, match=rf"^{name} is .*; convert it once, as it is written: {name} = ") as caught:
            functional.batch_norm_train(x, **given)
        exec(advised(caught.value, r"as it is written: (.*?)(?:, or x: .*)?$"), {"np": np, "oclbn": oclbn}, given)
        before = given[name].get()
        functional.batch_norm_train(x, **given)
        assert (given[name].get() != before).all()


def test_what_is_merged(queue: cl.CommandQueue) -> None:
    x = put(queue, HOST.astype(np.float32))
    first = functional.moments(x)
    for parts in ((first, first), (functional.statistics(x), first)):
        with pytest.raises(
            ArrayTypeError, match=r"as statistics\(x\) gives; what moments\(x\) gives is rounded, and is not"
        ):
            functional.merge(*parts)  # type: ignore[misc]
    with pytest.raises(
        ArrayTypeError, match=r"^first is a builtins\.int; Statistics are wanted, as statistics\(x\) gives$"
    ):
        functional.merge(*first)  # type: ignore[misc]
    with pytest.raises(ArrayTypeError, match=r"; give them one by one: merge\(\*parts\)$"):
        functional.merge([functional.statistics(x)])  # type: ignore[misc]


def test_training_in_place_is_told_how(queue: cl.CommandQueue) -> None:
    x = put(queue, HOST.astype(np.float32))
    with pytest.raises(
        OverlapError, match=r"an array of its own is wanted; to normalise in place give the batch's mean"
    ):
        functional.batch_norm_train(x, out=x)
    wanted = functional.batch_norm_train(x)[0].get()
    found = functional.statistics(x)
    var = put(queue, found.m2.get() / np.float32(found.count))
    assert functional.batch_norm_infer(x, mean=found.mean, var=var, out=x) is x
    np.testing.assert_allclose(x.get(), wanted, rtol=1e-5, atol=1e-6)


def test_contexts_are_told_by_their_devices(queue: cl.CommandQueue) -> None:
    context = cl.Context([queue.device])  # Intel's queues do not keep theirs
    other = cl.CommandQueue(context)
    x, scale, name = put(queue, HOST.astype(np.float32)), put(other, np.ones(3, np.float32)), queue.device.name.strip()
    with pytest.raises(ContextError) as caught:
        functional.batch_norm_train(x, scale=scale)
    assert str(caught.value).startswith(
        f"scale belongs to a context of {name}, x to another, a context of {name}, and one"
    )
    one = follow(caught.value, x=x, scale=scale)
    functional.batch_norm_train(x, scale=one)
    for call in (lambda: functional.accumulate(scale, one), lambda: gpuarray.pack(x, queue=other)):
        with pytest.raises(ContextError, match=f"a context of {re.escape(name)}") as caught:
            call()
        assert "0x" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "text", {"a": 1}], ids=repr)
def test_what_is_no_array_gets_no_advice(queue: cl.CommandQueue, value: Any) -> None:
    with pytest.raises(ArrayTypeError, match=r"pyopencl\.array\.Array is wanted$"):
        functional.moments(value)
    with pytest.raises(ModuleDtypeError, match=r"pyopencl\.array\.Array is wanted$"):
        BatchNorm2D(3, queue=queue)(value)


# --- types

VIEWS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda a: a,
    "transposed": lambda a: a.transpose((2, 1, 0)),
    "cut": lambda a: a[:, :, 1:4],
    "mirrored": lambda a: a[:, :, ::-1],
}

TYPES = ["f8", "f4", "f2", ml_dtypes.bfloat16, "i4", "i8", "u1", "?"]
PAIRS = [(taken, came) for taken in ("f4", "f2", ml_dtypes.bfloat16) for came in TYPES if came != taken]


@pytest.mark.once(reason="advice is the host's, and what casts is compared on each runtime")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("taken", "dtype"), PAIRS)
def test_x_of_another_type(queue: cl.CommandQueue, dtype: Any, taken: Any, view: str) -> None:
    """pyopencl's astype mixes the elements of arrays in Fortran's order; what is advised gives the right ones."""
    host = (HOST * 10).astype(dtype)
    x, wanted = VIEWS[view](put(queue, host)), VIEWS[view](host).astype(taken)
    bn = BatchNorm1D(3, queue=queue, dtype=taken)
    with pytest.raises(ModuleDtypeError, match=r"; the module (computes with|takes) .*; convert it with ") as caught:
        bn(x)
    converted = follow(caught.value, data=x)
    assert converted.dtype == taken
    np.testing.assert_array_equal(converted.get(), wanted)
    assert bn(converted).shape == wanted.shape
    if kind(host.dtype) is None:
        with pytest.raises(DtypeError, match="float16 or bfloat16 is wanted; convert it with") as other:
            functional.moments(x)
        np.testing.assert_array_equal(follow(other.value, x=x).get(), VIEWS[view](host).astype(np.float32))
    elif host.dtype != np.float64 or oclbn.device.limits(queue.device).fp64:
        with_own, call = re.findall(r"dtype=(.*), or (call.*)$", str(caught.value))[0]
        known = {"np": np, "ml_dtypes": ml_dtypes}
        eval(f"bn.{call.removeprefix('call ')}", {"bn": bn, **known})
        assert BatchNorm1D(3, dtype=eval(with_own, known), queue=queue).calctype is bn.calctype is host.dtype.type


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wrong", ["f8", "i4"])
def test_a_gradient_of_another_type(queue: cl.CommandQueue, narrow: Any, wrong: str) -> None:
    """Those of half and bfloat16 may be float32."""
    bn, x = BatchNorm1D(3, queue=queue, dtype=narrow), put(queue, HOST.astype(narrow))
    bn(x)
    grad = put(queue, HOST.astype(wrong))
    with pytest.raises(ModuleDtypeError, match=f"the module takes {np.dtype(narrow)} or float32; convert it") as caught:
        bn.backward(grad)
    for right in (follow(caught.value, grad=grad), put(queue, HOST.astype(np.float32))):
        result = bn.backward(right)
        assert result is not None
        assert result.dtype == narrow


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_mixed_types(queue: cl.CommandQueue, narrow: Any) -> None:
    """Of functions: what is advised makes them fit."""
    x, odd = put(queue, HOST.astype(narrow)), np.float16 if narrow is not np.float16 else ml_dtypes.bfloat16
    wide = put(queue, np.ones(3))
    with pytest.raises(DtypeError, match=r"^scale is float64; float32 is wanted, as x is ") as caught:
        functional.batch_norm_train(x, scale=wide)
    functional.batch_norm_train(x, scale=follow(caught.value, scale=wide))
    zeros, ones = put(queue, np.zeros(3, np.float32)), put(queue, np.ones(3, np.float32))
    for dy in (put(queue, HOST), put(queue, HOST.astype(odd))):
        with pytest.raises(DtypeError, match=f"^dy is .*; {np.dtype(narrow)} or float32 is wanted") as caught:
            functional.batch_norm_backward(x, dy, save_mean=zeros, save_invstd=ones)
        functional.batch_norm_backward(x, follow(caught.value, dy=dy), save_mean=zeros, save_invstd=ones)


@pytest.mark.usefixtures("needs_fp64")
def test_arrays_of_two_types(queue: cl.CommandQueue) -> None:
    """Either cure makes them alike."""
    x, scale = put(queue, HOST), put(queue, np.ones(3, np.float32))
    with pytest.raises(DtypeError, match=r"^scale is float32; float64 is wanted, as x is float64; ") as caught:
        functional.batch_norm_train(x, scale=scale)
    functional.batch_norm_train(x, scale=follow(caught.value, scale=scale))
    other = advised(caught.value, r", or x: (.*)$")
    functional.batch_norm_train(eval(other, {"np": np, "x": x}), scale=scale)
    with pytest.raises(DtypeError, match=r"^out is float32; float64 is wanted, as x is; "):
        functional.batch_norm_train(x, out=put(queue, HOST.astype(np.float32)))


def test_a_device_without_float64(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is advised neither to compute there with float64 nor to convert there."""
    limits = oclbn.device.limits(queue.device)
    without = lambda _: limits.__class__(**{**vars(limits), "fp64": False})  # noqa: E731
    for module in ("oclbn.call.arguments", "oclbn.modules.module"):
        monkeypatch.setattr(f"{module}.limits", without)
    data = put(queue, HOST[..., None])
    with pytest.raises(ModuleDtypeError) as caught:
        BatchNorm2D(3, queue=queue)(data)
    assert "calcMode" not in str(caught.value)
    assert advised(caught.value) == "oclbn.gpuarray.to_gpu(data.get().astype(np.float32), queue=data.queue)"
    np.testing.assert_array_equal(follow(caught.value, data=data).get(), data.get().astype(np.float32))


# --- modules


@pytest.mark.parametrize("value", [HOST[..., None], HOST[..., None].tolist()], ids=["array", "list"])
def test_host_data_for_a_module(queue: cl.CommandQueue, value: Any, element: np.dtype[Any]) -> None:
    bn = BatchNorm2D(3, queue=queue, dtype=element)
    with pytest.raises(ModuleDtypeError, match=r"^BatchNorm2D: data is a ") as caught:
        bn(value)
    y = bn(follow(caught.value, data=value, bn=bn))
    with pytest.raises(ModuleDtypeError, match=r"^BatchNorm2D: grad is a ") as caught:
        bn.backward(value)
    bn.backward(follow(caught.value, grad=value, bn=bn))
    assert y.dtype == element


def test_values_where_an_array_is_wanted(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, queue=queue)
    for put_in in (
        lambda: bn.setAttr("mean", np.zeros(3)),  # type: ignore[arg-type]
        lambda: setattr(bn.vars["scale"], "data", np.zeros(3)),
    ):
        with pytest.raises(
            ModuleDtypeError, match=r"\(values alone are assigned to the module, as in bn\.scale = values\)"
        ):
            put_in()
    bn.scale = np.zeros(3)  # type: ignore[assignment]
    assert not bn.vars["scale"].data.get().any()


# --- queues and operations


@pytest.mark.parametrize(
    "call",
    [
        lambda x, queue: gpuarray.to_gpu([1.0], queue=queue),
        lambda x, queue: gpuarray.to_gpu(x, queue=queue),
        lambda x, queue: gpuarray.pack(x, queue=queue),
        lambda x, queue: gpuarray.empty(3, queue=queue),
        lambda x, queue: gpuarray.zeros(3, queue=queue),
        lambda x, queue: gpuarray.ones(3, queue=queue),
        lambda x, queue: gpuarray.full(3, 1.0, queue=queue),
        lambda x, queue: gpuarray.empty_like(x, queue=queue),
        lambda x, queue: gpuarray.zeros_like(x, queue=queue),
        lambda x, queue: gpuarray.ones_like(x, queue=queue),
        lambda x, queue: functional.prepare([(2, 3)], queue=queue, processes=1),
        lambda x, queue: BatchNorm2D(3, queue=queue),
    ],
)
def test_what_is_no_queue(queue: cl.CommandQueue, spec: str, call: Callable[[cla.Array, Any], Any]) -> None:
    x = put(queue, np.zeros((2, 3), np.float32))
    with pytest.raises(ParameterError, match=f"queue is {spec!r}; a pyopencl.CommandQueue is wanted, as ") as caught:
        call(x, spec)
    made = eval(advised(caught.value, r"wanted, as (.*) makes it$"), {"oclbn": oclbn})
    assert isinstance(made, cl.CommandQueue)
    call(put(made, np.zeros((2, 3), np.float32)), made)
    with pytest.raises(ParameterError, match=r"queue is a pyopencl\S*Device; a pyopencl.CommandQueue is wanted, as "):
        call(x, queue.device)
    assert issubclass(ModuleParameterError, ParameterError)


def test_bind_wants_an_operation_first(queue: cl.CommandQueue) -> None:
    x = put(queue, HOST.astype(np.float32))
    for wrong, shown in (
        (x, r"a pyopencl\.array\.Array"),
        (functional.accumulate, "accumulate"),
        ("moments", "'moments'"),
    ):
        with pytest.raises(ParameterError, match=rf"^operation is {shown}; one of batch_norm_backward, ") as caught:
            functional.bind(wrong, x)  # type: ignore[arg-type]
        shown = advised(caught.value, r"as in (.*)$")
        assert eval(shown, {**vars(functional), "x": x})()[0].shape == x.shape
