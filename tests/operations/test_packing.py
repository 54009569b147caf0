"""gpuarray.pack, and calls whose arrays lie in orders of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, bits, put
from pyopencl.tools import ImmediateAllocator, MemoryPool

from oclbn import BatchNorm2D, functional, gpuarray
from oclbn.errors import ArrayTypeError, ContextError, DeviceError, ParameterError, ShapeError
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind, moments, recording
from oclbn.gpuarray import pack
from oclbn.plan.strided import Cut, cut, numbers
from oclbn.truth.hostile import make
from oclbn.tuning import using

FORMS = [
    pytest.param({"lanes": 1}, id="one work-item"),
    pytest.param({"lanes": 16}, id="16 work-items"),
]
View = Callable[[Any], Any]
VIEWS: list[Any] = [
    pytest.param(lambda a: a, id="whole"),
    pytest.param(lambda a: a[1:], id="offset"),
    pytest.param(lambda a: a[:, :, 1:4], id="cropped"),
    pytest.param(lambda a: a[:, 1], id="a slice of each"),
    pytest.param(lambda a: a[:, :, :, ::2], id="every other element"),
    pytest.param(lambda a: a[:, :, :, ::-1], id="mirrored"),
    pytest.param(lambda a: a[::-1, 1:3, ::-2, ::-1], id="mirrored and cropped"),
    pytest.param(lambda a: a.transpose((3, 1, 0, 2)), id="transposed"),
    pytest.param(lambda a: a.transpose((0, 3, 1, 2)), id="channels last"),
    pytest.param(lambda a: a[2:2], id="empty"),
    pytest.param(lambda a: a[:1, :1, :1, :1], id="one element"),
]
TYPES = [np.int8, np.float16, np.float32, np.complex64, "V16", "V12", "V3"]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[dict[str, int]]:
    with using(**request.param):
        yield request.param


def filled(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Every element of its own, as far as its bytes go."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(0).integers(0, 128, size).astype(np.uint8).view(dtype).reshape(shape)


def held(queue: cl.CommandQueue, host: np.ndarray) -> cla.Array:
    """The host's array on the device, of any element type."""
    made = cla.empty(queue, host.shape, host.dtype)
    cl.enqueue_copy(queue, made.base_data, host)
    return made


def read(array: cla.Array) -> bytes:
    """Bytes of an array without gaps."""
    whole = np.empty(array.nbytes, np.uint8)
    if array.nbytes:
        cl.enqueue_copy(array.queue, whole, array.base_data, wait_for=array.events)
    return whole.tobytes()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_views(queue: cl.CommandQueue, dtype: Any, view: View) -> None:
    host = filled((3, 4, 5, 6), dtype)
    array = held(queue, host)
    for order in ("C", "F"):
        packed = pack(view(array), order)
        assert packed.shape == view(host).shape
        assert packed.dtype == host.dtype
        assert packed.flags.c_contiguous if order == "C" else packed.flags.f_contiguous
        assert packed.base_data is None or packed.base_data.int_ptr != array.base_data.int_ptr
        assert read(packed) == view(host).tobytes(order)
    assert read(array) == host.tobytes()


@pytest.mark.usefixtures("form")
def test_repeated_by_stride_0(queue: cl.CommandQueue) -> None:
    host = filled((7, 9), np.float32)
    view = cla.Array(queue, (4, 7, 3, 9), np.float32, data=held(queue, host).base_data, strides=(0, 36, 0, 4))
    wanted = np.broadcast_to(host[None, :, None], view.shape)
    assert read(pack(view)) == wanted.tobytes()
    assert read(pack(view, "F")) == wanted.tobytes("F")


@pytest.mark.usefixtures("form")
def test_elements_astray_from_their_size(queue: cl.CommandQueue) -> None:
    """Within records, at offsets and strides that are no multiples of an element."""
    host = filled((5, 7, 13), np.uint8)
    view = cla.Array(queue, (5, 7), np.float64, data=held(queue, host).base_data, offset=3, strides=(91, 13))
    assert read(pack(view)) == np.ascontiguousarray(host[:, :, 3:11]).tobytes()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("rank", [0, 1, 8, 9, 12])
def test_any_rank(queue: cl.CommandQueue, rank: int) -> None:
    host = filled((2,) * rank, np.float32)
    assert read(pack(held(queue, host).transpose(tuple(range(rank))[::-1]))) == np.ascontiguousarray(host.T).tobytes()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "shape",
    [(1, 300_001), (300_001, 1), (3, 70_001), (70_001, 3), (20_011, 37)],
    ids="{0[0]} x {0[1]}".format,
)
def test_several_groups(queue: cl.CommandQueue, shape: tuple[int, int]) -> None:
    host = filled((shape[0] + 1, shape[1] + 1), np.float32)
    array = held(queue, host)
    assert read(pack(array[1:, 1:])) == np.ascontiguousarray(host[1:, 1:]).tobytes()
    assert read(pack(array[1:, 1:].T)) == np.ascontiguousarray(host[1:, 1:].T).tobytes()


def test_dimensions_that_follow_each_other_are_one() -> None:
    assert cut((3, 4, 5), 4, (80, 20, 4), (80, 20, 4), 4) == Cut(4, (60,), (1,), (1,))
    assert cut((3, 4, 5), 4, (160, 20, 4), (80, 20, 4), 8) == Cut(4, (20, 3), (1, 40), (1, 20))
    assert cut((3, 4), 8, (-32, -8), (32, 8), 4) == Cut(4, (12, 2), (-2, 1), (2, 1))
    groups, made = numbers(cut((100_003,), 4, (4,), (4,), 4), 1)
    assert (groups, made["columns"], made["rows"]) == (13, 8192, 1)


def test_queues_and_events(queue: cl.CommandQueue) -> None:
    host = np.random.default_rng(0).standard_normal((64, 33, 77)).astype(np.float32)
    other = cl.CommandQueue(queue.context)
    array = cla.to_device(queue, host + 1)
    array -= cla.to_device(queue, np.ones_like(host))
    packed = pack(array.transpose((2, 0, 1)), queue=other)
    assert packed.queue == other
    assert packed.events
    np.testing.assert_allclose(packed.get(), host.transpose((2, 0, 1)), rtol=0, atol=1e-5)
    with recording() as launches:
        pack(array[:, ::2])
    assert [name for name, _ in launches] == ["pack"]


def test_out_of_order(free_queue: cl.CommandQueue) -> None:
    host = filled((64, 8, 64, 64), np.int32)
    for _ in range(5):
        array = cla.to_device(free_queue, host)
        array += 1
        packed = pack(array.transpose((0, 2, 3, 1)))
        array += 1  # not before it is read
        assert bits(packed) == (host.transpose((0, 2, 3, 1)) + 1).tobytes()


def test_what_cannot_be_packed(queue: cl.CommandQueue, other_queue: cl.CommandQueue) -> None:
    array = cla.zeros(queue, (4, 5), np.float32)
    with pytest.raises(ArrayTypeError, match=r"view is a numpy\.ndarray"):
        pack(array.get())
    for order in ("A", None, 1):
        with pytest.raises(ParameterError, match=r"order is .*; 'C' or 'F' is wanted"):
            pack(array, order)
    with pytest.raises(ContextError, match="queue belongs to a context of"):
        pack(array, queue=other_queue)
    with pytest.raises(ParameterError, match="view has no queue"):
        pack(array.with_queue(None))
    beyond = cla.Array(queue, (4, 6), np.float32, data=array.base_data)
    with pytest.raises(ShapeError, match="view with shape"):
        pack(beyond)
    event = cl.UserEvent(queue.context)
    event.set_status(-5)
    array.add_event(event)
    with pytest.raises(DeviceError, match="view was to be written by a command that failed"):
        pack(array)


# --- calls on arrays in orders of their own

SHAPE = (6, 5, 7, 9)
ORDERS = {
    "C": lambda host, put: put(host),
    "Fortran": lambda host, put: put(np.ascontiguousarray(host.T)).T,
    "channels last": lambda host, put: put(np.ascontiguousarray(host.transpose(0, 2, 3, 1))).transpose((0, 3, 1, 2)),
    "mirrored": lambda host, put: put(np.ascontiguousarray(host[:, :, :, ::-1]))[:, :, :, ::-1],
    "every other element": lambda host, put: put(np.stack([host, 0 * host], 4).reshape(6, 5, 7, 18))[:, :, :, ::2],
    "cropped": lambda host, put: put(np.pad(host, ((0, 0), (1, 0), (2, 1), (3, 2))))[:, 1:, 2:-1, 3:-2],
}
WALKED = ["C", "channels last", "Fortran"]


def lay(queue: cl.CommandQueue, host: np.ndarray, order: str, queue_of: cl.CommandQueue | None = None) -> cla.Array:
    return ORDERS[order](host, lambda packed: cla.to_device(queue_of or queue, packed))


def values(array: cla.Array) -> np.ndarray:
    return pack(array).get()


def whole(view: cla.Array) -> np.ndarray:
    made = np.empty(view.base_data.size // 4, np.float32)
    cl.enqueue_copy(view.queue, made, view.base_data, wait_for=view.events)
    return made


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
@pytest.mark.parametrize("other", ORDERS)
@pytest.mark.parametrize("order", WALKED)
def test_out_in_another_order(queue: cl.CommandQueue, order: str, other: str, bound: bool) -> None:
    """The same bits as an out in x's order gets, and nothing beside them."""
    host = make(SHAPE, 1)
    x, dy = lay(queue, host.x, order), lay(queue, host.dy, order)
    scale, bias, mean, var = (put(queue, a) for a in (host.scale, host.bias, host.running_mean, host.running_var))
    for call in (
        lambda do, **more: do(batch_norm_train, x, scale, bias, None, None, **more),
        lambda do, **more: do(batch_norm_infer, x, scale, bias, mean, var, **more),
        lambda do, **more: do(batch_norm_backward, x, dy, scale, mean, var, **more),
        lambda do, **more: do(batch_norm_backward, x, dy, scale, mean, var, training=False, **more),
    ):
        wanted = call(lambda f, *given, **more: f(*given, **more), out=lay(queue, host.x * 0, order))
        out = lay(queue, np.full_like(host.x, 7), other)
        view = pack(cla.Array(queue, out.shape, np.float32, data=out.base_data, strides=out.strides, offset=out.offset))
        assert (view.get() == 7).all()
        before = whole(out)
        got = call(lambda f, *given, **more: bind(f, *given, **more)() if bound else f(*given, **more), out=out)
        for one, two in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True):
            np.testing.assert_array_equal(values(one), values(two))
        first = got[0] if isinstance(got, tuple) else got
        assert first is out
        assert np.array_equal(whole(out) == before, before != 7)


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "constants"])
@pytest.mark.parametrize("other", ORDERS)
@pytest.mark.parametrize("order", WALKED)
def test_dy_in_another_order(queue: cl.CommandQueue, order: str, other: str, training: bool, bound: bool) -> None:
    host = make(SHAPE, 1)
    x, scale, mean, var = (
        lay(queue, host.x, order),
        *(put(queue, a) for a in (host.scale, host.running_mean, host.running_var)),
    )
    grads = [cla.zeros(queue, 5, np.float32) for _ in range(2)]
    into = {"scale_grad": grads[0], "bias_grad": grads[1], "grad_momentum": 1.0, "training": training}
    out = lay(queue, host.x * 0, order)
    wanted = batch_norm_backward(x, lay(queue, host.dy, order), scale, mean, var, training=training, out=out)
    dy = lay(queue, host.dy, other)
    if bound:
        step = bind(batch_norm_backward, x, dy, scale, mean, var, **into)
        step()
        got = step()
    else:
        batch_norm_backward(x, dy, scale, mean, var, **into)
        got = batch_norm_backward(x, dy, scale, mean, var, **into)
    for one, two in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(values(one), values(two))
    for grad, one in zip(grads, got[1:], strict=True):
        np.testing.assert_allclose(grad.get(), 2 * one.get(), rtol=1e-6)
    np.testing.assert_array_equal(values(dy), host.dy)


@pytest.mark.parametrize("order", ORDERS)
def test_results_can_be_read_and_added(queue: cl.CommandQueue, order: str) -> None:
    """In C order, which a strided x has by itself, after the guide's advice for one without gaps."""
    host = make(SHAPE, 1)
    x = lay(queue, host.x, order)
    other = {} if order not in WALKED else {"order": "C"}
    plain = put(queue, host.x)
    wanted = batch_norm_train(plain, None, None, None, None)[0].get()
    y, mean, invstd = batch_norm_train(x, None, None, None, None, **other)
    dx, *_ = batch_norm_backward(x, y, None, mean, invstd, **other)
    for result in (y, dx, batch_norm_infer(x, None, None, mean, invstd, **other)):
        assert result.get().shape == SHAPE
        assert str(result)
        np.testing.assert_array_equal((result + plain).get(), result.get() + host.x)
    np.testing.assert_allclose(y.get(), wanted, rtol=0, atol=1e-5)
    assert moments(x)[0] == host.x.size // 5
    assert functional.explain(x)


def test_a_module_takes_gradients_in_any_order(queue: cl.CommandQueue) -> None:
    host = make(SHAPE, 1)
    results = []
    for order, other in (("C", "C"), ("channels last", "C"), ("C", "channels last"), ("C", "mirrored")):
        bn = BatchNorm2D(5, queue=queue, sscale=0.0)
        y = bn(lay(queue, host.x, order))
        bn.backward(lay(queue, host.dy, other))
        results.append([values(a) for a in (y, bn.grad, bn.scalegrad)])
    for result in results[1:]:
        for one, two in zip(result, results[0], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_temporaries_outlive_a_pool(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    """A pool hands memory out again as soon as nobody holds it; kernels that are still to run may."""
    pool = MemoryPool(ImmediateAllocator(queue))
    hosts = [make((8, 3, 64, 64), 1, seed=seed) for seed in range(2)]
    wanted = [batch_norm_train(put(queue, h.x), None, None, None, None)[0].get() for h in hosts]
    xs = [cla.to_device(free_queue, h.x, allocator=pool) for h in hosts]
    outs = [lay(free_queue, h.x * 0, "channels last") for h in hosts]
    for _ in range(5):
        kept = [batch_norm_train(x, None, None, None, None, out=out) for x, out in zip(xs, outs, strict=True)]
        for (y, *_), want in zip(kept, wanted, strict=True):
            np.testing.assert_array_equal(values(y), want)


def test_where_all_lie_alike_nothing_is_copied(queue: cl.CommandQueue) -> None:
    host = make(SHAPE, 1)
    for order in WALKED:
        x, dy, out = (lay(queue, host.x, order) for _ in range(3))
        with recording() as launches:
            _, mean, invstd = batch_norm_train(x, None, None, None, None, out=out)
            batch_norm_backward(x, dy, None, mean, invstd, out=out)
            batch_norm_infer(x, None, None, mean, invstd, out=x)
        assert "pack" not in [name for name, _ in launches]
    with recording() as launches:
        batch_norm_backward(x, lay(queue, host.dy, "C"), None, mean, invstd, out=lay(queue, host.dy, "C"))
    names = [name for name, _ in launches]
    assert (names[0], names[-1], names.count("pack")) == ("pack", "pack", 2)


def test_device_arrays_are_copied_on_the_device(queue: cl.CommandQueue) -> None:
    host = filled((300, 400), np.float32)
    array = cla.to_device(queue, host)
    with recording() as launches:
        copy, mirrored = gpuarray.to_gpu(array), gpuarray.to_gpu(array[:, ::-1])
    assert [name for name, _ in launches] == ["pack", "pack"]
    assert copy.base_data.int_ptr != array.base_data.int_ptr
    assert all_bits((copy, mirrored)) == [host.tobytes(), np.ascontiguousarray(host[:, ::-1]).tobytes()]
