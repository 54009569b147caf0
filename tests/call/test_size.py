"""Sizes at the ends: nothing, one, a million channels, more than 2**31 elements, more than the device can hold.

Arrays of gigabytes are made and checked on the device, element by element, by kernels of this file's own; they need
OCLBN_LONG=1 and the memory.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import check
from conftest import LONG

from oclbn import BatchNorm, BatchNorm2D, device
from oclbn.call.layout import common_layout
from oclbn.errors import SizeError
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, explain, moments
from oclbn.truth import reference
from oclbn.truth.hostile import make
from oclbn.tuning import using

MILLION = 1_000_000
Tally = collections.Counter[str]


# --- many channels, few values; few channels, many values

ALIKE = pytest.mark.once(reason="to the kernels it is another of these shapes")
MANY_CHANNELS = [
    pytest.param((4, MILLION), 1, id="columns"),
    pytest.param((2, MILLION, 2), 1, id="rows"),
    pytest.param((4, MILLION, 1), 1, id="inner 1", marks=ALIKE),
    pytest.param((2, 2, MILLION), 2, id="channels last", marks=ALIKE),
]
ONE_CHANNEL = [
    pytest.param((3 * MILLION + 1, 1), 1, id="one column", marks=ALIKE),
    pytest.param((3 * MILLION + 1, 1, 1), 1, id="inner 1", marks=ALIKE),
    pytest.param((1, 1, 3 * MILLION + 1), 1, id="one row"),
    pytest.param((MILLION + 1, 1, 3), 1, id="rows of 3", marks=ALIKE),
    pytest.param((3, 1, MILLION + 1), 1, id="three rows", marks=ALIKE),
    pytest.param((1000, 1001, 1), 2, id="channels last", marks=ALIKE),
]


def test_the_matrix_leaves_out_no_problem() -> None:
    """What is left to the README's run is walked as another shape of these is, on whatever device."""
    problems: dict[bool, set[Any]] = {True: set(), False: set()}
    for row in MANY_CHANNELS + ONE_CHANNEL:
        shape, axis = row.values
        strides = np.empty(shape, np.float32).strides
        problem = common_layout(shape, axis, 4, (strides, strides)).problem(4)
        problems[bool(row.marks)].add(replace(problem, inner=min(problem.inner, MILLION)))
    assert problems[True] < problems[False]


@pytest.mark.parametrize(("shape", "axis"), MANY_CHANNELS + ONE_CHANNEL)
def test_against_the_reference(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    if shape == (2, MILLION, 2) and queue.device.platform.name == "rusticl":
        shape = (2, MILLION // 8, 2)  # a group each: of a million llvmpipe makes a minute
    host = make(shape, axis)
    check("train", queue, host, axis, epsilon=1e-3)
    check("infer", queue, host, axis)
    check_backward_of_constants(queue, host, axis)
    if host.scale.size < MILLION:  # many values: with two per channel next to nothing is divided by
        check("backward", queue, host, axis)


def check_backward_of_constants(queue: cl.CommandQueue, host: Any, axis: int) -> None:
    """dbias and dx, by exact arithmetic: all gradients are 1."""
    x = cla.to_device(queue, host.x)
    ones = cla.to_device(queue, np.ones_like(host.x))
    mean, var = cla.to_device(queue, host.running_mean), cla.to_device(queue, np.full_like(host.running_var, 4))
    dx, _, dbias = batch_norm_backward(x, ones, None, mean, var, axis=axis, training=False, epsilon=0.0)
    assert (dx.get() == 0.5).all()
    assert (dbias.get() == host.x.size // host.scale.size).all()


@pytest.mark.parametrize("shape", [(1, MILLION), (1, MILLION, 1)], ids=["columns", "rows"])
def test_one_value_of_a_million_channels(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    check("infer", queue, make(shape, 1), 1)


def test_a_module_of_a_million_channels(queue: cl.CommandQueue) -> None:
    bn, x = BatchNorm(MILLION, queue=queue, seed=1), cla.to_device(queue, make((3, MILLION), 1).x)
    y = bn(x).get().reshape(3, -1)
    assert bn.numOfParams() == 2 * MILLION
    expected = reference.train(x.get(), bn.scale.get(), bn.bias.get())
    np.testing.assert_allclose(y, expected.y, atol=2e-5)
    bn.backward(x)
    bn.updateParams(-0.1)
    other = BatchNorm(MILLION, queue=queue, empty=True)
    other.load(bn.save(compress=None) or b"")
    assert other.scale.get().tobytes() == bn.scale.get().tobytes()


# --- nothing


@pytest.mark.parametrize("shape", [(2, 0), (0, 0), (2, 0, 3), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("out", [True, False], ids=["into out", "fresh results"])
def test_no_channels(queue: cl.CommandQueue, shape: tuple[int, ...], out: bool) -> None:
    x = cla.empty(queue, shape, np.float32)
    none = cla.empty(queue, 0, np.float32)
    into = cla.empty(queue, shape, np.float32) if out else None
    y, mean, invstd = batch_norm_train(x, none, none, none, none, out=into)
    dx, dscale, dbias = batch_norm_backward(x, y, none, mean, invstd, out=into)
    assert y.shape == dx.shape == batch_norm_infer(x, none, none, none, none, out=into).shape == shape
    assert [array.shape for array in (mean, invstd, dscale, dbias)] == [(0,)] * 4
    count, mean, m2 = moments(x)
    assert count == int(np.prod([size for axis, size in enumerate(shape) if axis != 1]))
    assert mean.shape == m2.shape == (0,)


# --- more than the device allocates at once


def stretched(queue: cl.CommandQueue, shape: tuple[int, ...], strides: tuple[int, ...]) -> cla.Array:
    """An array that shows a small buffer again and again, so that results are large and nothing else is."""
    memory = cla.to_device(queue, np.linspace(-1, 1, 4096, dtype=np.float32))
    return cla.Array(queue, shape, np.float32, strides=strides, data=memory.base_data)


OVERSIZED = [
    pytest.param("train", id="y"),
    pytest.param("infer", id="y in inference"),
    pytest.param("backward", id="dx"),
]


@pytest.mark.parametrize("call", OVERSIZED)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_result_beyond_the_limit(queue: cl.CommandQueue, tally: Tally, call: str, layout: str) -> None:
    """By one row, and by far: the error has the bytes and the limit, and nothing has changed."""
    most = queue.device.max_mem_alloc_size
    row = 4 * 4 * 1024  # bytes, of 4 channels
    for rows in (most // row + 1, 2**40):
        if layout == "rows":
            x = stretched(queue, (rows, 4, 1024), (0, 4096, 4))
        else:
            x = stretched(queue, (rows * 1024, 4), (0, 4))
        scale, bias, mean, var = (cla.to_device(queue, np.full(4, 2, np.float32)) for _ in range(4))
        arrays = scale, bias, mean, var
        before = [array.get().tobytes() for array in arrays]
        calls = {
            "train": functools.partial(batch_norm_train, x, *arrays),
            "infer": functools.partial(batch_norm_infer, x, *arrays),
            "backward": functools.partial(batch_norm_backward, x, x, scale, mean, var, scale_grad=bias),
        }
        with pytest.raises(SizeError) as caught:
            calls[call]()
        assert str(caught.value) == (
            f"a result needs {rows * row:,} bytes; {queue.device.name.strip()} allocates at most {most:,} at once"
        )
        assert [array.get().tobytes() for array in arrays] == before
        tally["bad inputs: too large for the device"] += 1


def test_more_channels_than_the_device_has_room_for(queue: cl.CommandQueue, tally: Tally) -> None:
    channels = queue.device.max_mem_alloc_size // 4 + 1
    x = stretched(queue, (2, channels), (4, 0))
    with pytest.raises(SizeError, match=rf"a result needs {4 * channels:,} bytes"):
        moments(x)
    tally["bad inputs: too large for the device"] += 1


def test_a_module_keeps_its_state_where_a_result_has_no_room(
    queue: cl.CommandQueue, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose limit is small: between x, which is there, and y, which is not.

    The shape is nobody else's: a call that is like two before it is not asked again whether there is room.
    """
    bn, x = BatchNorm2D(5, queue=queue, seed=1), cla.to_device(queue, make((4, 5, 6, 13), 1).x)
    y = bn(x)
    bn.backward(y)
    before = (bn.save(), bn.numOfProps, bn.data, bn.grad, bn.savemean)
    facts = device.limits(queue.device)
    small = type(facts)(**{**vars(facts), "max_alloc_bytes": x.nbytes - 1})
    with monkeypatch.context() as patch:
        patch.setattr("oclbn.device.facts.limits", lambda _: small)
        for call in (lambda: bn(x), lambda: bn.backward(y)):
            with pytest.raises(SizeError, match=rf"a result needs {x.nbytes:,} bytes; .* at most {x.nbytes - 1:,} at"):
                call()
            assert (bn.save(), bn.numOfProps, bn.data, bn.grad, bn.savemean) == before
            tally["bad inputs: too large for the device"] += 1
        batch_norm_train(x, None, None, None, None, out=cla.empty_like(x))
    assert np.array_equal(bn(x).get(), y.get())


# --- beyond 2**31, for the index of an element and for the number of bytes

PERIOD = 65_536
KERNELS = """
float pattern(ulong i) { return (float)((uint)(i * 40503u) & 0xffffu); }

__kernel void fill(__global float *x, const ulong count) {
    ulong i = get_global_id(1) * get_global_size(0) + get_global_id(0);
    if (i < count) x[i] = pattern(i);
}

// wrong: how many elements differ from (pattern - 1024) * (c + 1) / 2 + c; c being the channel
__kernel void check(__global const float *x, const ulong count, const ulong inner, const ulong channels,
                    volatile __global uint *wrong) {
    ulong i = get_global_id(1) * get_global_size(0) + get_global_id(0);
    if (i >= count) return;
    float c = (float)(i / inner % channels);
    if (x[i] != (pattern(i) - 1024.0f) * (0.5f * (c + 1.0f)) + c) atomic_inc(wrong);
}
"""
LAYOUTS = [
    pytest.param(lambda blocks: (3, 11, blocks * PERIOD), 1, id="rows"),
    pytest.param(lambda blocks: (blocks * PERIOD, 33), 1, id="columns"),
    pytest.param(lambda blocks: (blocks, PERIOD, 1, 33), -1, id="channels last"),
    pytest.param(lambda blocks: (1, 1, 33 * blocks * PERIOD), 1, id="one row"),
    pytest.param(lambda blocks: (33 * blocks * PERIOD, 1), 1, id="one column"),
]
SIZES = [
    pytest.param(33 * 497 * PERIOD, id="beyond 2**32 bytes"),
    pytest.param(33 * 992 * PERIOD, id="just below 2**31 elements"),
    pytest.param(33 * 993 * PERIOD, id="beyond 2**31 elements"),
]


def available_memory() -> int:
    """Bytes that the machine can still give; 0 where it does not say."""
    facts = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", facts.read_text()) if facts.exists() else None
    return int(found[1]) * 1024 if found else 0


class Large:
    """A buffer of a pattern: any 65,536 elements that follow each other hold each of the numbers below that once."""

    def __init__(self, queue: cl.CommandQueue, count: int) -> None:
        self.queue, self.count = queue, count
        self.memory = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, 4 * count)
        program = cl.Program(queue.context, KERNELS).build()
        self._fill, self._check = cl.Kernel(program, "fill"), cl.Kernel(program, "check")
        self._grid = (4096, -(-count // 4096))

    def fill(self) -> None:
        self._fill(self.queue, self._grid, None, self.memory, np.uint64(self.count))

    def wrong(self, inner: int, channels: int) -> int:
        found = cla.zeros(self.queue, 1, np.uint32)
        numbers = [np.uint64(number) for number in (self.count, inner, channels)]
        self._check(self.queue, self._grid, None, self.memory, *numbers, found.base_data)
        return int(found.get()[0])


@pytest.fixture(scope="module")
def large(queue: cl.CommandQueue, request: pytest.FixtureRequest) -> Iterator[Large]:
    if not LONG:
        pytest.skip("needs OCLBN_LONG=1, and up to 9 GB of memory")
    facts = device.limits(queue.device)
    if facts.max_alloc_bytes < 4 * request.param:
        pytest.skip(f"needs {4 * request.param:,} bytes in one buffer; the device allocates {facts.max_alloc_bytes:,}")
    if facts.kind == "cpu" and available_memory() < 4 * request.param + (2 << 30):
        pytest.skip(f"needs {4 * request.param:,} bytes and some; {available_memory():,} are free")
    made = Large(queue, request.param)
    yield made
    made.memory.release()  # before the next one is made


@pytest.mark.parametrize("large", SIZES, indirect=True)
@pytest.mark.parametrize(("shape_of", "axis"), LAYOUTS)
def test_large_arrays(queue: cl.CommandQueue, large: Large, shape_of: Any, axis: int) -> None:
    """Moments, then inference in place: every element is checked."""
    shape = shape_of(large.count // (33 * PERIOD))
    channels = shape[axis]
    inner = 1 if axis == -1 else int(np.prod(shape[2:], dtype=np.int64))
    large.fill()
    x = cla.Array(queue, shape, np.float32, data=large.memory)
    assert x.size == large.count
    print(explain(x, axis=axis, operation="moments"), "|", explain(x, axis=axis, operation="infer"))
    count, mean, m2 = moments(x, axis=axis)
    assert count == large.count // channels
    wanted = count * (PERIOD**2 - 1) / 12
    np.testing.assert_allclose(mean.get(), (PERIOD - 1) / 2, rtol=1e-7)
    np.testing.assert_allclose(m2.get(), wanted, rtol=1e-6)
    c = np.arange(channels, dtype=np.float32)
    scale, bias = cla.to_device(queue, c + 1), cla.to_device(queue, c)
    mean, var = cla.to_device(queue, 0 * c + 1024), cla.to_device(queue, 0 * c + 4)
    assert large.wrong(inner, channels) > large.count // 2, "before"
    y = batch_norm_infer(x, scale, bias, mean, var, epsilon=0.0, axis=axis, out=x)
    assert y is x
    assert large.wrong(inner, channels) == 0


def test_the_large_arrays_check_finds_one_wrong_element(queue: cl.CommandQueue) -> None:
    """The check of the test above, on a small array: one element at the end is seen."""
    small = Large(queue, 33 * PERIOD // 16)
    small.fill()
    x = cla.Array(queue, (small.count // 33, 33), np.float32, data=small.memory)
    c = np.arange(33, dtype=np.float32)
    arrays = [cla.to_device(queue, values) for values in (c + 1, c, 0 * c + 1024, 0 * c + 4)]
    batch_norm_infer(x, *arrays, epsilon=0.0, out=x)
    assert small.wrong(1, 33) == 0
    cla.Array(queue, 1, np.float32, data=small.memory, offset=4 * (small.count - 1)).set(np.zeros(1, np.float32))
    assert small.wrong(1, 33) == 1


@pytest.mark.parametrize("variant", ["split", "serial"])
def test_an_offset_beyond_2_to_the_32_bytes(queue: cl.CommandQueue, variant: str) -> None:
    """A small view at the end of a large buffer, of which the system gives only what is touched."""
    nbytes, host = (1 << 32) + (1 << 20), make((4, 3, 1000), 1)
    if device.limits(queue.device).max_alloc_bytes < nbytes:
        pytest.skip(f"needs {nbytes:,} bytes in one buffer; {queue.device.name} allocates less")
    if device.limits(queue.device).kind == "cpu" and available_memory() < nbytes + (2 << 30):
        pytest.skip(f"needs {nbytes:,} bytes free")
    memory = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, nbytes)
    offset = (1 << 32) + 4
    x = cla.Array(queue, host.x.shape, np.float32, data=memory, offset=offset)
    y = cla.Array(queue, host.x.shape, np.float32, data=memory, offset=offset + 2 * host.x.nbytes)
    x.set(host.x)
    small = cla.to_device(queue, host.x)
    with using(variant=variant):
        wanted = [array.get().tobytes() for array in batch_norm_train(small, None, None, None, None)]
        found = [array.get().tobytes() for array in batch_norm_train(x, None, None, None, None, out=y)]
    assert found == wanted
