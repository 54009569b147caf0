"""Tensors of half and bfloat16: every element that there is, roundings, mixed types, nasty data, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import bits, check, put
from covering import crossed
from data import FEW_SHAPES, NASTY
from forms import suited

import oclbn
from oclbn import gpuarray
from oclbn.call import prepared
from oclbn.device import limits
from oclbn.elements import bfloat16, dtype_of, range_of
from oclbn.errors import DtypeError, OverlapError
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, explain, moments, prepare
from oclbn.truth.cases import judge
from oclbn.truth.expectation import EPSILON, FACTOR, expected
from oclbn.truth.hostile import Maker, make
from oclbn.tuning import using

HALF, BFLOAT16, SINGLE = np.dtype(np.float16), bfloat16(), np.dtype(np.float32)
NARROW = [pytest.param(dtype, id=dtype.name) for dtype in (HALF, BFLOAT16)]
VECTORS = [
    pytest.param({"variant": "serial"}, id="one by one"),
    *(pytest.param({"variant": "split", "lanes": 1, "vec": vec}, id=f"vectors of {vec}") for vec in (2, 4, 8, 16)),
    pytest.param({"variant": "split", "lanes": 16, "vec": 4}, id="16 work-items, vectors of 4"),
]


def every(dtype: np.dtype[Any]) -> np.ndarray:
    """All 65,536 elements, those with one exponent and sign in a row."""
    mantissa = 10 if dtype == HALF else 7
    return np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(1, -1, 1 << mantissa)


def identity(queue: cl.CommandQueue, channels: int) -> dict[str, cla.Array]:
    """Statistics with which y is x + bias."""
    return {"mean": put(queue, np.zeros(channels, np.float32)), "var": put(queue, np.ones(channels, np.float32))}


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("dtype", NARROW)
def test_every_element_is_read(queue: cl.CommandQueue, dtype: np.dtype[Any], form: dict[str, Any]) -> None:
    """Its number comes out where the result is float32: subnormal ones, infinities and NaN too."""
    host = every(dtype)
    with using(**suited(queue, form)):
        out = gpuarray.empty(host.shape, queue=queue)
        y = batch_norm_infer(put(queue, host), **identity(queue, host.shape[1]), epsilon=0.0, out=out)
    np.testing.assert_array_equal(y.get(), host.astype(np.float32))


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("dtype", NARROW)
def test_every_element_and_what_lies_between_two_is_written(
    queue: cl.CommandQueue, dtype: np.dtype[Any], form: dict[str, Any]
) -> None:
    """y is x, and x with a part of a unit in its last place added: less than half of it, half, and more."""
    host = every(dtype)
    wide = host.astype(np.float32)
    with np.errstate(all="ignore"):
        unit = np.nan_to_num(np.abs(wide[0, :, 1] - wide[0, :, 0]))  # of each row; 0 where there is none
    x, given = put(queue, host), identity(queue, host.shape[1])
    with using(**suited(queue, form)):
        for part in (0.0, 0.25, 0.5, 0.75):
            bias = (part * unit).astype(np.float32)
            y = batch_norm_infer(x, bias=put(queue, bias), **given, epsilon=0.0).get()
            with np.errstate(all="ignore"):
                exact = wide + bias[:, None]
                np.testing.assert_array_equal(y.astype(np.float32), exact.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("dtype", NARROW)
def test_zeros_keep_their_sign(queue: cl.CommandQueue, dtype: np.dtype[Any], form: dict[str, Any]) -> None:
    """Where the bias is a negative zero, so that the sum is one."""
    host = np.resize(np.array([0.0, -0.0, 0.0], dtype), every(dtype).shape)  # whose kernels are there
    channels = host.shape[1]
    bias = put(queue, np.full(channels, -0.0, np.float32))
    with using(**suited(queue, form)):
        y = batch_norm_infer(put(queue, host), bias=bias, **identity(queue, channels), epsilon=0.0).get()
    np.testing.assert_array_equal(np.signbit(y.astype(np.float32)), np.signbit(host.astype(np.float32)))


@pytest.mark.parametrize("stream", [False, True], ids=["kept", "past the cache"])
@pytest.mark.parametrize("number", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFFC00000, 0x7FFF8001, 0x7F800001])
@pytest.mark.parametrize("name", ["mean", "bias"])
@pytest.mark.parametrize("dtype", NARROW)
def test_nan_of_any_kind_stays_one(
    queue: cl.CommandQueue, dtype: np.dtype[Any], name: str, number: int, stream: bool
) -> None:
    """Where bfloat16 takes the upper half of one, with what is added to round it, others would become numbers."""
    host = make((3, 5, 37), 1, dtype)
    given: dict[str, Any] = identity(queue, 5) | {"bias": put(queue, np.zeros(5, np.float32))}
    given[name] = put(queue, np.full(5, number, np.uint32).view(np.float32))
    with using(**suited(queue, {"variant": "split", "lanes": 1, "vec": 8}), stream=stream):
        assert np.isnan(batch_norm_infer(put(queue, host.x), **given).get().astype(np.float32)).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_results_beyond_the_largest_number_are_infinite(queue: cl.CommandQueue, dtype: np.dtype[Any]) -> None:
    """That is what the type does; the statistics know nothing of it."""
    host = make((6, 3, 5), 1, dtype)
    most = 0.5 * range_of(dtype).max  # with which scale / deviation is a float32
    scale = np.float32([1.0, most, -most])
    skipped = cla.zeros(queue, 3, np.uint32)
    running = [put(queue, a) for a in (host.running_mean, host.running_var)]
    y, mean, invstd = batch_norm_train(put(queue, host.x), put(queue, scale), None, *running, skipped=skipped)
    worst = judge({"y": y.get()}, expected("train", replace(host, scale=scale, bias=0 * host.bias), 1))
    assert worst.good, str(worst)
    assert np.isinf(y.get().astype(np.float32)[:, 1:]).any()
    assert np.isfinite(mean.get()).all()
    assert np.isfinite(invstd.get()).all()
    assert not skipped.get().any()


def test_statistics_too_large_show_in_bfloat16(queue: cl.CommandQueue) -> None:
    """Squares that float32 cannot hold: every result is NaN, in whichever way the device spells that."""
    host = (np.random.default_rng(0).standard_normal((9, 3, 7)) * 1e25).astype(BFLOAT16)
    y, _, invstd = batch_norm_train(put(queue, host))
    assert np.isnan(y.get().astype(np.float32)).all()
    assert np.isnan(invstd.get()).all()


@pytest.mark.parametrize("maker", NASTY)
@pytest.mark.parametrize(("shape", "axis"), [FEW_SHAPES[0], FEW_SHAPES[3], FEW_SHAPES[6]])
@pytest.mark.parametrize("dtype", NARROW)
def test_nasty_data(
    queue: cl.CommandQueue, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, maker: Maker
) -> None:
    host = make(shape, axis, dtype, maker)
    for operation in ("train", "infer", "moments", "backward", "constant"):
        check(operation, queue, host, axis)


MIXED = [
    pytest.param(*dtype.values, wide_dy, wide_out, id=f"{dtype.id} with {what} of float32")
    for dtype in NARROW
    for wide_dy, wide_out, what in ((False, True, "results"), (True, False, "dy"), (True, True, "dy and results"))
]


@pytest.mark.parametrize(
    ("dtype", "wide_dy", "wide_out", "shape", "axis"),
    crossed(MIXED, [FEW_SHAPES[0], FEW_SHAPES[6]], reason="on each runtime each mixture meets rows or columns"),
)
def test_types_of_x_and_dy_and_of_x_and_results_may_differ(
    queue: cl.CommandQueue, dtype: np.dtype[Any], wide_dy: bool, wide_out: bool, shape: tuple[int, ...], axis: int
) -> None:
    """What is float32 is that of another layer: the loss's, say, which is not rounded to 16 bits."""
    host = make(shape, axis, dtype)
    dy = np.random.default_rng(1).standard_normal(shape).astype(SINGLE if wide_dy else dtype)
    host = replace(host, dy=dy, result=SINGLE if wide_out else None)
    out = [gpuarray.empty(shape, host.written, queue=queue) for _ in range(3)]
    x, scale, bias = put(queue, host.x), put(queue, host.scale), put(queue, host.bias)
    running = [put(queue, a) for a in (host.running_mean, host.running_var)]
    inferred = batch_norm_infer(x, scale, bias, *running, epsilon=EPSILON, axis=axis, out=out[0])
    assert inferred is out[0]
    found: dict[str, dict[str, Any]] = {"infer": {"y": inferred}}
    y, mean, invstd = batch_norm_train(x, scale, bias, *running, epsilon=EPSILON, factor=FACTOR, axis=axis, out=out[1])
    found["train"] = {"y": y, "save_mean": mean, "save_invstd": invstd}
    made = batch_norm_backward(x, put(queue, host.dy), scale, mean, invstd, axis=axis, out=out[2])
    found["backward"] = dict(zip(("dx", "dscale", "dbias"), made, strict=True))
    for operation, results in found.items():
        worst = judge({name: one.get() for name, one in results.items()}, expected(operation, host, axis))
        assert worst.good, f"{operation}: {worst}"


@pytest.mark.parametrize("dtype", NARROW)
def test_results_are_of_the_type_of_x_and_numbers_are_float32(queue: cl.CommandQueue, dtype: np.dtype[Any]) -> None:
    x = put(queue, make((4, 3, 5), 1, dtype).x)
    y, mean, invstd = batch_norm_train(x)
    dx, dscale, dbias = batch_norm_backward(x, y, None, mean, invstd)
    _, centre, m2 = moments(x)
    assert {one.dtype for one in (y, dx)} == {dtype}
    assert {one.dtype for one in (mean, invstd, dscale, dbias, centre, m2)} == {SINGLE}
    empty = gpuarray.zeros((0, 3, 5), dtype, queue=queue)
    y, mean, invstd = batch_norm_train(empty)
    assert (y.dtype, mean.dtype) == (dtype, SINGLE)


@pytest.mark.parametrize("dtype", NARROW)
def test_in_place(queue: cl.CommandQueue, dtype: np.dtype[Any]) -> None:
    host = make((5, 6, 41), 1, dtype)
    x = put(queue, host.x)
    given = [put(queue, a) for a in (host.scale, host.bias, host.running_mean, host.running_var)]
    wanted = bits(batch_norm_infer(x, *given))
    assert batch_norm_infer(x, *given, out=x) is x
    assert bits(x) == wanted


def test_half_and_float32_of_one_memory_are_not_in_place(queue: cl.CommandQueue) -> None:
    """Where x is half and out is float32, results would be written over elements that are yet to be read."""
    whole = gpuarray.zeros((4, 3, 6), queue=queue)
    x = whole.view(np.float16)[:, :, :6]
    given = identity(queue, 3)
    with pytest.raises(OverlapError, match="out overlaps x"):
        batch_norm_infer(x, **given, out=whole)


@pytest.mark.parametrize(
    ("x", "other", "told"),
    [
        ("float32", "float16", "float16; float32 is wanted, as x is"),
        ("float32", "bfloat16", "bfloat16; float32 is wanted, as x is"),
        ("float16", "bfloat16", "bfloat16; float16 or float32 is wanted, as x is float16"),
        ("bfloat16", "float16", "float16; bfloat16 or float32 is wanted, as x is bfloat16"),
        ("float16", "int16", "int16; float16 or float32 is wanted, as x is float16"),
        ("float16", "float64", "float64; float16 or float32 is wanted, as x is float16"),
    ],
)
def test_types_that_do_not_go_together(queue: cl.CommandQueue, x: str, other: str, told: str) -> None:
    given = put(queue, make((4, 3, 5), 1, dtype_of(x)).x)
    wrong = cla.Array(queue, (4, 3, 5), np.dtype(other if other != "bfloat16" else BFLOAT16))
    one = put(queue, np.ones(3, np.float32))
    with pytest.raises(DtypeError, match=f"out is {told}"):
        batch_norm_train(given, out=wrong)
    with pytest.raises(DtypeError, match=f"dy is {told}"):
        batch_norm_backward(given, wrong, None, one, one)


def test_x_of_another_type(queue: cl.CommandQueue) -> None:
    for dtype in (np.int32, np.uint8, np.complex64):
        with pytest.raises(DtypeError, match="float32, float64, float16 or bfloat16 is wanted"):
            batch_norm_train(cla.zeros(queue, (4, 3), dtype))


def test_a_small_epsilon_is_none_of_halves(queue: cl.CommandQueue) -> None:
    """1e-8 is 0 as a half; what is computed with is float32."""
    x = put(queue, np.float16([[1.0], [1.0]]))
    y, _, invstd = batch_norm_train(x, epsilon=1e-8)
    np.testing.assert_allclose(invstd.get(), [1e4], rtol=1e-6)
    assert not y.get().any()


@pytest.mark.parametrize("dtype", NARROW)
def test_kernels_are_prepared_and_explained(queue: cl.CommandQueue, dtype: np.dtype[Any]) -> None:
    prepare([(4, 3, 5)], operations="infer", dtype=dtype.name, queue=queue, processes=1)
    told = explain(put(queue, make((4, 3, 5), 1, dtype).x), operation="infer")
    assert f"KIND_x={2 if dtype == BFLOAT16 else 1}" in told


def test_every_pair_of_types_has_kernels_of_its_own(queue: cl.CommandQueue) -> None:
    """What was prepared for one is not taken for another of the same strides."""
    shape, found = (4, 3, 8), {}
    for x, out in itertools.product((HALF, BFLOAT16), (None, SINGLE)):
        host = np.linspace(-2.0, 2.0, 96).reshape(shape).astype(x)
        into = None if out is None else gpuarray.empty(shape, out, queue=queue)
        y = batch_norm_infer(put(queue, host), **identity(queue, 3), epsilon=0.0, out=into).get()
        np.testing.assert_array_equal(y.astype(np.float64), host.astype(np.float64))
        found[x, out] = y
    assert len(found) == 4


@pytest.mark.parametrize("dtype", NARROW)
def test_parameters_may_have_the_type_of_x(queue: cl.CommandQueue, dtype: np.dtype[Any]) -> None:
    """Of a network that was cast as a whole: computed with as float32; what is moved in place is rounded once."""
    host = make((6, 5, 7), 1, dtype)
    names = ("scale", "bias", "running_mean", "running_var")
    cast = replace(host, **{name: getattr(host, name).astype(dtype).astype(np.float32) for name in names})
    wide = [put(queue, getattr(cast, name)) for name in names]
    own = [put(queue, getattr(cast, name).astype(dtype)) for name in names]
    x = put(queue, host.x)
    assert "running_mean (it is " in explain(x, running_mean=own[2], running_var=own[3])
    assert bits(batch_norm_infer(x, *own)) == bits(batch_norm_infer(x, *wide))
    found, wanted = batch_norm_train(x, *own), batch_norm_train(x, *wide)
    assert [bits(one) for one in found] == [bits(one) for one in wanted]
    for moved, exact in zip(own[2:], wide[2:], strict=True):
        assert moved.dtype == dtype
        np.testing.assert_array_equal(moved.get(), exact.get().astype(dtype))
    made = batch_norm_backward(x, x, own[0], *found[1:])
    assert {one.dtype for one in made[1:]} == {SINGLE}
    assert bits(made[0]) == bits(batch_norm_backward(x, x, wide[0], *found[1:])[0])


def test_parameters_of_another_narrow_type_are_refused(queue: cl.CommandQueue) -> None:
    x, scale = put(queue, make((4, 3, 5), 1, HALF).x), put(queue, np.ones(3, BFLOAT16))
    with pytest.raises(DtypeError, match="scale is bfloat16; float32 is wanted, as x is float16"):
        batch_norm_train(x, scale)
    with pytest.raises(DtypeError, match="save_mean is float16; float32 is wanted, as x is float16"):
        batch_norm_backward(x, x, None, put(queue, np.ones(3, HALF)), put(queue, np.ones(3, HALF)))


@pytest.mark.parametrize("target", [HALF, BFLOAT16, SINGLE, np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("source", [HALF, BFLOAT16, SINGLE, np.dtype(np.float64)], ids=str)
def test_cast(queue: cl.CommandQueue, source: np.dtype[Any], target: np.dtype[Any]) -> None:
    """All elements of 16 bits, and of wider types those, numbers half between two of them, and others of any bits."""
    if np.float64 in (source, target) and not limits(queue.device).fp64:
        pytest.skip("needs float64")
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        some = [np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float64) for dtype in (HALF, BFLOAT16)]
        some += [some[0] * (1 + 2.0**-11), some[1] * (1 + 2.0**-8)]
        some += [one * (1 + step) for one in some[2:] for step in (2.0**-40, -(2.0**-45))]
        some.append(rng.integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32).astype(np.float64))
        host = np.concatenate(some).astype(source)
        middle = host
        if source == np.float64 and target == BFLOAT16:  # which ml_dtypes rounds twice: to float32 first
            middle = host.astype(np.float32)
            back = middle.astype(np.float64)
            odd = (middle.view(np.uint32) - (np.abs(back) > np.abs(host))) | 1
            middle = np.where((back == host) | np.isnan(host), middle, odd.astype(np.uint32).view(np.float32))
        wanted = middle.astype(target).astype(np.float64)
        least = np.abs(host.astype(np.float64)) < np.finfo(np.float32).tiny  # a device may take these for 0
        found = gpuarray.cast(put(queue, host), target)
        assert found.dtype == target
        got = found.get().astype(np.float64)
    np.testing.assert_array_equal(got[~least], wanted[~least])
    assert (np.abs(got[least]) <= np.finfo(np.float32).tiny).all()
    zero = host == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(wanted[zero]))


def test_cast_of_views(queue: cl.CommandQueue) -> None:
    """Mirrored, transposed, off its place; into C's order or Fortran's."""
    host = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32)
    whole = put(queue, host)
    view = whole[::-1, 1:, ::2].transpose((2, 0, 1))
    for order in ("C", "F"):
        found = gpuarray.cast(view, HALF, order)
        np.testing.assert_array_equal(gpuarray.pack(found).get(), host[::-1, 1:, ::2].transpose(2, 0, 1).astype(HALF))
    record = np.zeros(9, [("tag", np.uint8), ("value", np.float32)])
    record["value"] = np.arange(9)
    raw = put(queue, record.view(np.uint8))
    field = cla.Array(queue, (9,), np.float32, strides=(5,), data=raw.base_data, offset=1)
    np.testing.assert_array_equal(gpuarray.cast(field, BFLOAT16).get(), np.arange(9).astype(BFLOAT16))
    assert gpuarray.cast(whole[:0], HALF).shape == (0, 6, 7)


def test_cast_refuses_what_is_no_element(queue: cl.CommandQueue) -> None:
    with pytest.raises(
        DtypeError, match="view, the array to cast, is int32; float32, float64, float16 or bfloat16 is wanted"
    ):
        gpuarray.cast(cla.zeros(queue, 3, np.int32), HALF)
    with pytest.raises(DtypeError, match="dtype is int8; float32"):
        gpuarray.cast(put(queue, np.float32([1])), "int8")


def test_a_device_that_stores_no_16_bits(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCL 1.0 without its extension; 1.1 has it in the core."""
    facts = replace(limits(queue.device), stores16=False)
    monkeypatch.setattr(prepared, "limits", lambda device: facts)
    x = put(queue, make((11, 3, 7), 1, HALF).x)
    with pytest.raises(DtypeError, match=r"x is float16; .* stores nothing smaller than 32 bits"):
        batch_norm_train(x)


@pytest.mark.parametrize("dtype", NARROW)
def test_running_statistics_off_their_place(queue: cl.CommandQueue, dtype: np.dtype[Any]) -> None:
    """Fields of a record of odd size: what lies between them is left alone."""
    record = np.zeros(3, [("tag", np.uint8), ("mean", np.uint16)])
    record["tag"] = 77
    raw = put(queue, record.view(np.uint8))
    mean = cla.Array(queue, (3,), dtype, strides=(3,), data=raw.base_data, offset=1)
    host = make((6, 3, 5), 1, dtype)
    wanted = batch_norm_train(
        put(queue, host.x), running_mean=mean, running_var=gpuarray.ones(3, queue=queue), factor=1.0
    )
    found = np.empty_like(record)
    cl.enqueue_copy(queue, found.view(np.uint8), raw.base_data)
    assert (found["tag"] == 77).all()
    np.testing.assert_array_equal(np.ascontiguousarray(found["mean"]).view(dtype), wanted[1].get().astype(dtype))


def test_numbers_may_be_narrow_scalars(queue: cl.CommandQueue) -> None:
    x = put(queue, make((4, 3, 5), 1).x)
    same = [bits(batch_norm_train(x, epsilon=one)[0]) for one in (0.5, np.float16(0.5), BFLOAT16.type(0.5))]
    assert len(set(same)) == 1


@pytest.mark.parametrize("code", [">f4", ">f2", ">f8"])
def test_foreign_byte_orders_are_turned_on_the_host(queue: cl.CommandQueue, code: str) -> None:
    """pyopencl keeps such arrays, and converts none."""
    x = cla.Array(queue, (2, 2), np.dtype(code))
    x.base_data = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, 64) if x.base_data is None else x.base_data
    host = np.array([[1.0, 10.0], [3.0, 30.0]], code)
    cl.enqueue_copy(queue, x.base_data, host.view(np.uint8))
    with pytest.raises(DtypeError, match="x is >f") as told:
        batch_norm_train(x)
    advice = str(told.value).partition("convert it with ")[2]
    y = batch_norm_train(eval(advice, {"oclbn": oclbn, "np": np, "x": x}), epsilon=0.0)[0]
    np.testing.assert_array_equal(y.get(), [[-1, -1], [1, 1]])


def test_what_cast_does_not_take_gets_a_cure_that_helps(queue: cl.CommandQueue) -> None:
    view = put(queue, np.arange(6, dtype=np.uint8).reshape(2, 3))
    for target in (np.dtype(np.float32), HALF):
        with pytest.raises(
            DtypeError, match=r"^view, the array to cast, is uint8; float32, .* is wanted; conv"
        ) as caught:
            gpuarray.cast(view, target)
        made = str(caught.value).partition("convert it with ")[2]
        found = eval(made, {"view": view, "np": np, "oclbn": oclbn})
        assert found.dtype == target
        assert found.get().tolist() == [[0, 1, 2], [3, 4, 5]]
