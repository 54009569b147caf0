"""Arrays on the default queue, or on the one that is named."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl as cl
import pytest

from oclbn import device, gpuarray
from oclbn.errors import ArrayTypeError, DtypeError, MissingExtraError, ParameterError


def test_gpuarray(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_queue", lambda: queue)
    host = np.arange(24, dtype=np.float32).reshape(4, 6)
    nothing = (host[:0], host[:, :0], host[:0, ::2], np.zeros(0, np.float32), np.zeros((0, 3), np.float32))
    for given in (host, host[:, ::2], host.T, host.astype(">f4"), host[0, 0], *nothing):
        array = gpuarray.to_gpu(given)
        assert array.queue == queue
        assert array.flags.c_contiguous
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.get(), given)
        assert array.shape == given.shape
    for made, value in (
        (gpuarray.zeros((2, 3)), 0),
        (gpuarray.ones((2, 3)), 1),
        (gpuarray.full((2, 3), 2.5), 2.5),
    ):
        assert (made.shape, made.dtype) == ((2, 3), np.float32)
        np.testing.assert_array_equal(made.get(), value)
    other = cl.CommandQueue(queue.context)
    integers = gpuarray.full(7, 3, np.int32, queue=other)
    for like, wanted in ((gpuarray.zeros_like(integers), 0), (gpuarray.ones_like(integers), 1)):
        assert (like.shape, like.dtype, like.queue) == ((7,), np.int32, other)
        np.testing.assert_array_equal(like.get(), wanted)
    assert gpuarray.empty_like(integers, queue=queue).queue == queue
    for made in (gpuarray.empty((0, 3)), gpuarray.zeros((0, 3)), gpuarray.ones((0, 3)), gpuarray.full((0, 3), 2)):
        assert (made.shape, made.size) == ((0, 3), 0)
    assert isinstance(integers, gpuarray.Array)


NARROW = [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("narrow", NARROW)
def test_types_of_sixteen_bits(queue: cl.CommandQueue, narrow: Any) -> None:
    """What pyopencl and we do with them: move, view, print, make, pack."""
    host = np.array([[1.5, -0.0, 65504, 2.0**-24], [np.nan, -np.inf, 3, 0.1]], np.float32).astype(narrow)
    array = gpuarray.to_gpu(host, queue=queue)
    assert (array.dtype, array.get().dtype) == (narrow, narrow)
    assert array.get().tobytes() == host.tobytes()
    for view in (lambda a: a[1:], lambda a: a[1, 2], lambda a: a.T, lambda a: a.reshape(8), lambda a: a.reshape(4, 2)):
        assert view(array).get().tobytes("A") == np.asarray(view(host)).tobytes("A")
    assert array.view(np.uint16).view(narrow).get().tobytes() == host.tobytes()
    assert array.copy().get().tobytes() == host.tobytes()
    mirrored = gpuarray.pack(array[:, ::-1])
    assert (mirrored.dtype, mirrored.get().tobytes()) == (narrow, host[:, ::-1].tobytes())
    assert gpuarray.to_gpu(array[:, ::2]).get().tobytes() == host[:, ::2].tobytes()
    assert str(array) == str(host)
    assert repr(host.dtype).removeprefix("dtype(").rstrip(")").strip("'") in repr(array)
    other = gpuarray.zeros((2, 4), narrow, queue=queue)
    other.set(host)
    assert other.get().tobytes() == host.tobytes()


@pytest.mark.parametrize("named", [np.float16, "float16", np.dtype("f2"), ml_dtypes.bfloat16, "bfloat16"])
def test_making_arrays_of_sixteen_bits(queue: cl.CommandQueue, named: Any) -> None:
    wanted = np.dtype(ml_dtypes.bfloat16 if named == "bfloat16" else named)
    made = {0: gpuarray.zeros, 1: gpuarray.ones, 2.5: lambda *a, **k: gpuarray.full(a[0], 2.5, *a[1:], **k)}
    for value, make in made.items():
        array = make((2, 3), named, queue=queue)
        assert (array.dtype, array.shape) == (wanted, (2, 3))
        assert array.get().tolist() == [[value] * 3] * 2
    array = gpuarray.empty((2, 3), named, queue=queue)
    for alike, value in (gpuarray.zeros_like, 0), (gpuarray.ones_like, 1):
        assert alike(array).dtype == wanted
        assert alike(array).get().tolist() == [[value] * 3] * 2
    assert array.dtype == gpuarray.empty_like(array).dtype == wanted


def test_half_of_a_foreign_byte_order(queue: cl.CommandQueue) -> None:
    host = np.array([1.5, 2.0**-24, -np.inf], ">f2")
    array = gpuarray.to_gpu(host, queue=queue)
    assert (array.dtype, array.get().tobytes()) == (np.float16, host.astype("<f2").tobytes())


@pytest.mark.parametrize("make", [gpuarray.empty, gpuarray.zeros, gpuarray.ones])
def test_bfloat16_where_its_package_is_missing(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oclbn\[bfloat16\]'"):
        make(3, "bfloat16", queue=queue)


@pytest.mark.parametrize(
    "bad", [np.array([None]), np.array(["a"]), np.array([b"a"]), np.zeros(1, "M8[s]")], ids=lambda bad: str(bad.dtype)
)
def test_what_no_device_can_hold(bad: Any) -> None:
    with pytest.raises(DtypeError, match=r"ary has elements of type .*; wanted numbers"):
        gpuarray.to_gpu(bad)


def test_sizes_that_are_numpys(queue: cl.CommandQueue) -> None:
    for make in (gpuarray.empty, gpuarray.zeros, gpuarray.ones):
        for shape in (np.int64(6), (np.int32(2), 3), [np.uint8(2), np.int64(3)]):
            made = make(shape, queue=queue)
            assert made.size == 6
            assert {type(number) for number in (*made.shape, *made.strides)} == {int}


def test_an_array_without_a_queue(queue: cl.CommandQueue) -> None:
    loose = gpuarray.zeros(2, queue=queue).with_queue(None)
    with pytest.raises(ParameterError, match="ary has no queue of its own; queue= must name one"):
        gpuarray.zeros_like(loose)
    assert gpuarray.zeros_like(loose, queue=queue).queue == queue


@pytest.mark.parametrize("make", [gpuarray.empty_like, gpuarray.zeros_like, gpuarray.ones_like])
def test_like_a_host_array(queue: cl.CommandQueue, make: Any) -> None:
    with pytest.raises(
        ArrayTypeError, match=r"^ary is a numpy\.ndarray; a pyopencl\.array\.Array is wanted: oclbn\.gpu"
    ):
        make(np.zeros(3))
    with pytest.raises(ArrayTypeError, match=r"^ary is None; a pyopencl\.array\.Array is wanted$"):
        make(None, queue=queue)


@pytest.mark.parametrize("make", [gpuarray.empty, gpuarray.zeros, gpuarray.ones])
def test_sizes_that_are_no_tuple(queue: cl.CommandQueue, make: Any) -> None:
    """As NumPy's users know it from np.random.rand and PyTorch's from torch.zeros."""
    for second in (3, np.int64(3)):
        with pytest.raises(DtypeError, match=r"; several sizes are one tuple, as in \(3, 3\)$"):
            make(3, second, queue=queue)
    with pytest.raises(DtypeError, match=r"^dtype is 'words'; an element type is wanted, such as np\.float32$"):
        make(3, "words", queue=queue)
    assert make((3, 3), queue=queue).shape == (3, 3)
