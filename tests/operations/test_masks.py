"""Masks and sequence lengths: results are those of a dense tensor of the values inside, and nothing outside matters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import all_bits, put

from oclbn import functional, gpuarray
from oclbn.activations import PLAIN
from oclbn.call import order
from oclbn.device import limits
from oclbn.elements import named
from oclbn.errors import (
    ArrayTypeError,
    ContextError,
    DeviceError,
    DtypeError,
    OclbnError,
    OverlapError,
    ParameterError,
    ShapeError,
)
from oclbn.functional import (
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    bind,
    explain,
    gradient,
    gradient_sums,
    merge,
    normalize,
    recording,
    statistics,
)
from oclbn.plan.selected import rounded_up, tiles
from oclbn.program.kept import kept
from oclbn.truth.cases import GRADIENTS, TAKES, judge, run
from oclbn.truth.expectation import EPSILON, expected
from oclbn.truth.hostile import Data, Offset, make
from oclbn.tuning import using

SHAPE = (4, 3, 5, 7)
CHANNELS = SHAPE[1]
MASK = np.random.default_rng(5).random((4, 5, 7)) < 0.6
COUNT = int(MASK.sum())
LENGTHS = [7, 0, 3, 5]
TENSORS = ("x", "dy", "residual", "output")
OPERATIONS = ("train", "infer", "backward", "constant")
LAYOUTS: dict[str, Callable[[Any], Any]] = {  # of (N, C, H, W), from an array that is dense in C order, and back
    "rows": lambda a: a,
    "channels last": lambda a: a.transpose(0, 2, 3, 1),
    "mirrored": lambda a: a[:, :, ::-1, ::-1],
    "Fortran": lambda a: a.T,
}
BACK: dict[str, Callable[[Any], Any]] = {**LAYOUTS, "channels last": lambda a: a.transpose((0, 3, 1, 2))}
FORMS = [pytest.param({"lanes": 1}, id="one work-item"), pytest.param({"lanes": 16}, id="16 work-items")]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(**request.param):
        yield


def spoiled(host: np.ndarray, mask: np.ndarray = MASK, axis: int = 1) -> np.ndarray:
    """The same with NaN and infinities outside."""
    made = np.moveaxis(host.copy(), axis, -1)
    made[~mask] = np.nan
    made[~mask, 0] = np.inf
    return np.moveaxis(made, -1, axis)


def inside(host: np.ndarray, mask: np.ndarray = MASK, axis: int = 1, *, apart: bool = True) -> np.ndarray:
    """The values inside as a dense tensor."""
    taken = np.moveaxis(host, axis, -1)[mask]
    return np.ascontiguousarray(taken.T[None] if apart else taken)


def outside(host: np.ndarray, mask: np.ndarray = MASK, axis: int = 1) -> np.ndarray:
    return np.moveaxis(host, axis, -1)[~mask]


def lay(queue: cl.CommandQueue, host: np.ndarray, layout: str) -> cla.Array:
    """The array on the device, among NaN where it is mirrored."""
    if layout == "mirrored":
        whole = np.full((*host.shape, 2), np.nan, host.dtype)
        whole[..., 1] = host[:, :, ::-1, ::-1]
        return cla.to_device(queue, whole)[..., 1][:, :, ::-1, ::-1]
    return BACK[layout](cla.to_device(queue, np.ascontiguousarray(LAYOUTS[layout](host))))


def values(array: cla.Array) -> np.ndarray:
    return gpuarray.pack(array).get()


def masked(**selection: Any) -> SimpleNamespace:
    """oclbn.functional, whose calls are all of these positions."""
    names = ("batch_norm_train", "batch_norm_infer", "batch_norm_backward")
    return SimpleNamespace(**{name: functools.partial(getattr(functional, name), **selection) for name in names})


def small(host: Data, *, apart: bool, mask: np.ndarray = MASK) -> Data:
    """Data of the values inside."""
    tensors = {name: a for name in TENSORS if (a := getattr(host, name)) is not None}
    return replace(host, **{name: inside(a, mask, apart=apart) for name, a in tensors.items()})


def check(queue: cl.CommandQueue, operation: str, host: Data, layout: str, *, second: bool = False) -> None:
    """Bits of the call on the values inside, which are within their bounds; 0 outside, where NaN came."""
    apart = layout != "channels last"
    alone = replace(small(host, apart=apart), second=second)
    names = [*TAKES[operation], "bias", *(("residual",) if host.output is None else ("output",))]
    given, wanted = {}, {}
    for name in dict.fromkeys(names):
        a = getattr(host, name)
        if a is not None:
            given[name] = lay(queue, spoiled(a), layout) if name in TENSORS else put(queue, a)
            wanted[name] = put(queue, getattr(alone, name))
    options: dict[str, Any] = {"axis": 1, "activation": host.activation, "second": second}
    with recording() as launches:
        found = run(masked(mask=MASK), operation, given, **options)
    assert {"compress", "expand"} <= {name for name, _ in launches}
    same = run(functional, operation, wanted, **options)
    hosts = {}
    for name, array in found.items():
        tensor = name in ("y", "dx", "dresidual")
        assert array.shape == (SHAPE if tensor else host.scale.shape), name
        held = values(array)
        if tensor:
            assert not outside(held).astype(np.float32).any(), name
            held = inside(held, apart=apart)
        hosts[name] = held
        assert held.tobytes() == same[name].get().tobytes(), name
    worst = judge(hosts, expected(operation, alone, 1))
    assert worst.good, str(worst)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_the_values_inside_alone(queue: cl.CommandQueue, element: np.dtype, layout: str) -> None:
    host = make(SHAPE, 1, element, Offset(3.0))
    for operation in OPERATIONS:
        check(queue, operation, host, layout)


@pytest.mark.parametrize("layout", ["rows", "channels last"])
def test_activation_and_residual(queue: cl.CommandQueue, layout: str) -> None:
    """Derivatives from x, from the residual and from y."""
    host = make(SHAPE, 1, maker=Offset(3.0))
    added = np.random.default_rng(7).standard_normal(SHAPE).astype(np.float32)
    check(queue, "backward", replace(host, activation=PLAIN["silu"]), layout)
    host = replace(host, residual=added, activation=PLAIN["silu"])
    check(queue, "train", host, layout)
    check(queue, "infer", host, layout)
    check(queue, "backward", host, layout, second=True)
    y = np.random.default_rng(8).uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    check(queue, "backward", replace(host, activation=PLAIN["relu"], output=y), layout, second=True)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("size", [2, 4, 8], ids="{} bytes".format)
def test_elements_of_each_size(queue: cl.CommandQueue, size: int) -> None:
    """Through both kernels, in groups of one work-item and of several, of tensors that lie in each way."""
    dtype = named({2: "float16", 4: "float32", 8: "float64"}[size])
    if size == 8 and not limits(queue.device).fp64:
        pytest.skip(f"needs fp64; {queue.device.name} has none")
    for shape, layout in (((70, 3, 5, 7), "rows"), ((2, 3, 5, 7), "mirrored"), ((9, 70, 3, 2), "channels last")):
        mask = np.random.default_rng(1).random((shape[0], *shape[2:])) < 0.5
        host = make(shape, 1, dtype)
        x, mean, var = lay(queue, spoiled(host.x, mask), layout), put(queue, host.bias), put(queue, host.running_var)
        apart = layout != "channels last"
        y = values(batch_norm_infer(x, None, None, mean, var, mask=mask))
        wanted = batch_norm_infer(put(queue, inside(host.x, mask, apart=apart)), None, None, mean, var)
        assert inside(y, mask, apart=apart).tobytes() == wanted.get().tobytes()
        assert not outside(y, mask).astype(np.float32).any()


def test_a_long_tensor(queue: cl.CommandQueue) -> None:
    """Of several groups in both directions, by rows and by channels."""
    rng = np.random.default_rng(2)
    mask = rng.random(60_001) < 0.9
    for shape in ((60_001, 3), (1, 37, 60_001)):
        x = rng.standard_normal(shape).astype(np.float32)
        own = mask if len(shape) == 2 else mask[None]
        y, mean, _ = batch_norm_train(put(queue, spoiled(x, own)), mask=own)
        wanted = batch_norm_train(put(queue, inside(x, own, apart=len(shape) == 3)))
        assert inside(y.get(), own, apart=len(shape) == 3).tobytes() == wanted[0].get().tobytes()
        assert mean.get().tobytes() == wanted[1].get().tobytes()
        assert not outside(y.get(), own).any()


def test_pieces_cover_all() -> None:
    for lanes in (1, 16, 64):
        for inner, rows in ((1, 1), (3, 100_000), (100_000, 3), (4097, 130)):
            groups, cut = tiles(rounded_up(inner), rounded_up(rows), lanes)
            pieces = -(-inner // cut["columns"])
            assert -(-rows // cut["piece_rows"]) * pieces <= groups
            assert lanes % cut["width"] == 0
    assert [rounded_up(size) for size in (0, 1, 2, 3, 4, 5, 1000)] == [1, 1, 2, 4, 4, 8, 1024]


# --- what masks and lengths may be


def test_ways_to_say_it(queue: cl.CommandQueue) -> None:
    """All the same bits: NumPy's and the device's, of bool and of bytes, with and without an axis for channels."""
    host = make((4, 3, 7), 1)
    mask = np.arange(7) < np.array(LENGTHS)[:, None]
    x = put(queue, spoiled(host.x, mask))
    wanted = all_bits(batch_norm_train(x, mask=mask))
    for dtype in (np.bool_, np.uint8):
        truths = (mask * 3).astype(dtype)
        for one in (truths, truths[:, None], np.asfortranarray(truths)):
            assert all_bits(batch_norm_train(x, mask=one)) == wanted
            assert all_bits(batch_norm_train(x, mask=put(queue, np.ascontiguousarray(one)))) == wanted
        view = put(queue, np.repeat(truths[:, ::-1], 2, axis=1))[:, ::2][:, ::-1]
        assert all_bits(batch_norm_train(x, mask=view)) == wanted
    for lengths in (LENGTHS, tuple(LENGTHS), np.array(LENGTHS, np.uint8), put(queue, np.array(LENGTHS, np.int32))):
        assert all_bits(batch_norm_train(x, lengths=lengths)) == wanted
    last = put(queue, np.ascontiguousarray(spoiled(host.x, mask).transpose(0, 2, 1)))
    y, *_ = batch_norm_train(last, axis=-1, lengths=LENGTHS)
    wanted = batch_norm_train(put(queue, inside(host.x, mask, apart=False)))[0].get()
    np.testing.assert_array_equal(y.get()[mask], wanted)


def test_a_mask_of_another_queue_and_context(queue: cl.CommandQueue, other_queue: cl.CommandQueue) -> None:
    host = make((4, 3, 7), 1)
    mask = np.random.default_rng(0).random((4, 7)) < 0.5
    x = put(queue, host.x)
    wanted = all_bits(batch_norm_train(x, mask=mask))
    assert all_bits(batch_norm_train(x, mask=put(other_queue, mask))) == wanted
    assert all_bits(batch_norm_train(x, mask=put(queue, mask).with_queue(None))) == wanted
    with pytest.raises(ContextError, match="mask has no queue and is of another context than x"):
        batch_norm_train(x, mask=put(other_queue, mask).with_queue(None))


def test_outside_as_x(queue: cl.CommandQueue) -> None:
    """Bit for bit, NaN too; rounded where y is of another type; x itself stays where it is written in place."""
    host = make(SHAPE, 1)
    for layout in LAYOUTS:
        x = lay(queue, spoiled(host.x), layout)
        zero, same = (values(batch_norm_train(x, mask=MASK, outside=one)[0]) for one in ("zero", "x"))
        assert inside(zero).tobytes() == inside(same).tobytes()
        assert outside(same).tobytes() == outside(spoiled(host.x)).tobytes()
    narrow = make(SHAPE, 1, named("float16"))
    x, out = put(queue, spoiled(narrow.x)), gpuarray.zeros(SHAPE, queue=queue)
    statistics_ = put(queue, host.running_mean), put(queue, host.running_var)
    batch_norm_infer(x, None, None, *statistics_, mask=MASK, outside="x", out=out)
    assert outside(out.get()).tobytes() == outside(spoiled(narrow.x)).astype(np.float32).tobytes()
    x = put(queue, spoiled(host.x))
    wanted = batch_norm_infer(x, None, None, *statistics_, mask=MASK, outside="x").get()
    with recording() as launches:
        assert batch_norm_infer(x, None, None, *statistics_, mask=MASK, outside="x", out=x) is x
    assert [name for name, _ in launches] == ["compress", "infer", "expand"]
    assert x.get().tobytes() == wanted.tobytes()


def test_in_place(queue: cl.CommandQueue) -> None:
    """Over the input, the residual and dy, as without a mask."""
    host = make(SHAPE, 1)
    added = np.random.default_rng(7).standard_normal(SHAPE).astype(np.float32)
    mean, var = put(queue, host.running_mean), put(queue, host.running_var)
    fused: dict[str, Any] = {"mask": MASK, "activation": "silu"}

    def fresh() -> tuple[cla.Array, ...]:
        return tuple(put(queue, spoiled(a)) for a in (host.x, host.dy, added))

    x, dy, residual = fresh()
    wanted = [
        batch_norm_train(x, residual=residual, **fused)[0].get(),
        batch_norm_infer(x, None, None, mean, var, residual=residual, **fused).get(),
    ]
    backward = batch_norm_backward(x, dy, None, mean, var, residual=residual, dresidual=True, **fused)
    wanted += [one.get() for one in backward]
    found = []
    x, dy, residual = fresh()
    found.append(batch_norm_train(x, residual=residual, out=residual, **fused)[0])
    x, dy, residual = fresh()
    found.append(batch_norm_infer(x, None, None, mean, var, residual=residual, out=x, **fused))
    assert found[-1] is x
    x, dy, residual = fresh()
    options: dict[str, Any] = {"residual": residual, **fused}
    found += batch_norm_backward(x, dy, None, mean, var, out=dy, dresidual=True, **options)
    assert found[-4] is dy
    for one, two in zip(found, wanted, strict=True):
        assert one.get().tobytes() == two.tobytes()
    x, dy, residual = fresh()
    *_, second = batch_norm_backward(x, dy, None, mean, var, dresidual=dy, residual=residual, **fused)
    assert second is dy
    assert dy.get().tobytes() == wanted[-1].tobytes()
    with pytest.raises(OverlapError, match="out overlaps x"):
        batch_norm_train(x, out=x, mask=MASK)


def test_a_residual_alone_has_a_gradient_of_its_own(queue: cl.CommandQueue) -> None:
    """That is dy where it counts, and 0 elsewhere, whatever dy holds there."""
    host = make(SHAPE, 1)
    x, dy, mean, var = (put(queue, a) for a in (host.x, spoiled(host.dy), host.running_mean, host.running_var))
    dx, _, _, second = batch_norm_backward(x, dy, None, mean, var, dresidual=True, mask=MASK)
    assert second is not dy
    assert inside(second.get()).tobytes() == inside(host.dy).tobytes()
    assert not outside(second.get()).any()
    assert not outside(dx.get()).any()
    literal = batch_norm_backward(x, dy, None, mean, var, dresidual=True, mask=MASK, outside="x")
    assert [one.get().tobytes() for one in literal[::3]] == [one.get().tobytes() for one in (dx, second)]


def test_arrays_that_lie_anyhow(queue: cl.CommandQueue) -> None:
    """dy, out and parameters in orders of their own, and elements off their places."""
    host = make(SHAPE, 1)
    small_ = put(queue, inside(host.x)), put(queue, inside(host.dy))
    scale, mean, var = (put(queue, np.repeat(a, 2))[::2] for a in (host.scale, host.running_mean, host.running_var))
    wanted = batch_norm_backward(*small_, scale, mean, var)
    records = np.zeros((*SHAPE, 7), np.uint8)
    records[..., 3:] = spoiled(host.x)[..., None].view(np.uint8)
    strides = tuple(step * 7 // 4 for step in host.x.strides)
    memory = put(queue, records)
    assert memory is not None
    x = cla.Array(queue, SHAPE, np.float32, data=memory.base_data, offset=3, strides=strides)
    dy, out = lay(queue, spoiled(host.dy), "channels last"), lay(queue, host.x * 0, "mirrored")
    made = batch_norm_backward(x, dy, scale, mean, var, out=out, mask=MASK)
    assert made[0] is out
    assert inside(values(out)).tobytes() == wanted[0].get().tobytes()
    assert all_bits(made[1:]) == all_bits(wanted[1:])
    assert np.isnan(
        gpuarray.pack(cla.Array(queue, (2 * host.x.size,), np.float32, data=out.base_data)).get()[::2]
    ).all()
    y = batch_norm_infer(x, scale, None, mean, var, mask=MASK, outside="x", out=x)
    wanted = batch_norm_infer(small_[0], scale, None, mean, var).get()
    assert inside(values(y)).tobytes() == wanted.tobytes()
    assert outside(values(y)).tobytes() == outside(spoiled(host.x)).tobytes()


# --- few positions


def state(queue: cl.CommandQueue, host: Data) -> dict[str, cla.Array]:
    made = {name: put(queue, getattr(host, name)) for name in ("running_mean", "running_var")}
    return made | {name: cla.zeros(queue, CHANNELS, np.uint32) + 5 for name in ("skipped", "entered")}


@pytest.mark.parametrize("bound", [False, True], ids=["called", "bound"])
def test_nothing_inside(queue: cl.CommandQueue, bound: bool) -> None:
    """As an empty batch: nothing moves, statistics are NaN, gradients 0."""
    host, none = make(SHAPE, 1), np.zeros(MASK.shape, bool)
    moved = state(queue, host)
    before = all_bits(tuple(moved.values()))
    x, dy = put(queue, host.x * np.nan), put(queue, host.dy * np.nan)

    def do(operation: Callable[..., Any], *given: Any, **options: Any) -> Any:
        return bind(operation, *given, **options)() if bound else operation(*given, **options)

    y, mean, invstd = do(batch_norm_train, x, mask=none, **moved)
    assert not y.get().any()
    assert np.isnan(mean.get()).all()
    assert np.isnan(invstd.get()).all()
    assert all_bits(tuple(moved.values())) == before
    y, *_ = do(batch_norm_train, x, mask=none, outside="x")
    assert y.get().tobytes() == x.get().tobytes()
    mean, var = moved["running_mean"], moved["running_var"]
    assert not do(batch_norm_infer, x, None, None, mean, var, mask=none).get().any()
    into = {name: gpuarray.ones(CHANNELS, queue=queue) for name in ("scale_grad", "bias_grad")}
    for training in (True, False):
        options: dict[str, Any] = {"training": training, "mask": none, "dresidual": True, "grad_momentum": 0.5, **into}
        assert not any(one.get().any() for one in do(batch_norm_backward, x, dy, None, mean, var, **options))
    np.testing.assert_array_equal(into["scale_grad"].get(), 0.25)
    assert statistics(x, mask=none).count == 0


def test_all_and_two_inside(queue: cl.CommandQueue) -> None:
    host = make(SHAPE, 1)
    two = np.zeros(MASK.shape, bool)
    two[1, 2, 3] = two[3, 0, 0] = True
    for mask in (np.ones(MASK.shape, bool), two):
        found = batch_norm_train(put(queue, spoiled(host.x, mask)), mask=mask)
        wanted = batch_norm_train(put(queue, inside(host.x, mask)))
        assert inside(found[0].get(), mask).tobytes() == wanted[0].get().tobytes()
        assert all_bits(found[1:]) == all_bits(wanted[1:])


def test_empty_tensors(queue: cl.CommandQueue) -> None:
    for shape in ((0, 3, 4), (2, 3, 0), (2, 0, 4)):
        x = cla.empty(queue, shape, np.float32)
        y, mean, _ = batch_norm_train(x, mask=np.ones((shape[0], shape[2]), bool))
        assert y.shape == shape
        assert np.isnan(mean.get()).all()
    y, *_ = batch_norm_train(cla.empty(queue, (0, 3, 4), np.float32), lengths=[])
    assert y.shape == (0, 3, 4)


def test_counters_and_the_guard(queue: cl.CommandQueue) -> None:
    """Of what is inside: a NaN there leaves the channel out, one outside does not."""
    host = make(SHAPE, 1)
    moved = state(queue, host)
    bad = spoiled(host.x)
    bad[np.argwhere(MASK)[0][0], 1, np.argwhere(MASK)[0][1], np.argwhere(MASK)[0][2]] = np.nan
    batch_norm_train(put(queue, bad), mask=MASK, **moved)
    assert moved["skipped"].get().tolist() == [5, 6, 5]
    assert moved["entered"].get().tolist() == [6, 5, 6]
    assert (moved["running_mean"].get() == host.running_mean).tolist() == [False, True, False]


# --- what is refused

BAD: dict[str, tuple[dict[str, Any], type[OclbnError], str]] = {
    "a list": (
        {"mask": [[True]]},
        ArrayTypeError,
        r"mask is a builtins\.list; .*: np\.asarray\(mask, bool\) m",
    ),
    "a word": ({"mask": "left"}, ArrayTypeError, r"mask is a builtins\.str"),
    "floats": (
        {"mask": np.ones((4, 7))},
        DtypeError,
        "mask is float64; bool or uint8 is wanted, where what is not 0 is inside",
    ),
    "integers": ({"mask": np.ones((4, 7), np.int64)}, DtypeError, "mask is int64"),
    "x's shape": (
        {"mask": np.ones((4, 3, 7), bool)},
        ShapeError,
        r"mask has shape \(4, 3, 7\); x has shape \(4, 3, 7\) with channels on axis 1, so \(4, 7\) or \(4, 1, 7\) is w",
    ),
    "a value for each sample": ({"mask": np.ones(4, bool)}, ShapeError, r"mask has shape \(4,\)"),
    "both": ({"mask": np.ones((4, 7), bool), "lengths": LENGTHS}, ParameterError, "mask and lengths are given"),
    "neither": ({"outside": "x"}, ParameterError, "outside is 'x', and there is neither mask nor lengths"),
    "elsewhere": ({"lengths": LENGTHS, "outside": "nan"}, ParameterError, "outside is 'nan'; 'zero' or 'x' is wanted"),
    "a number outside": ({"lengths": LENGTHS, "outside": 0}, ParameterError, "outside is 0; 'zero' or 'x' is wanted"),
    "an array outside": (
        {"outside": np.zeros(3)},
        ParameterError,
        r"outside is a numpy\.ndarray of shape",
    ),
    "one length": ({"lengths": 5}, ArrayTypeError, "lengths is 5; 4 integers are wanted, one for each sample of x"),
    "a text of lengths": ({"lengths": "7035"}, ArrayTypeError, "lengths is '7035'"),
    "lengths of floats": ({"lengths": [7.0, 0, 3, 5]}, DtypeError, "lengths is float64; 4 integers are wanted"),
    "truths for lengths": ({"lengths": [True] * 4}, DtypeError, "lengths is bool"),
    "ragged lengths": ({"lengths": [[1], [2, 3]]}, ShapeError, "lengths is"),
    "few lengths": (
        {"lengths": [7, 7]},
        ShapeError,
        r"lengths has shape \(2,\); x has shape \(4, 3, 7\), and 4 int",
    ),
    "no lengths": ({"lengths": []}, DtypeError, "lengths is float64"),
    "longer than x": (
        {"lengths": [7, 8, 3, 9]},
        ParameterError,
        r"lengths\[1\] is 8; 0 to 7 is wanted, as x has",
    ),
    "below 0": ({"lengths": np.array([7, 7, -1, 0])}, ParameterError, r"lengths\[2\] is -1"),
    "one inside": (
        {"lengths": [0, 1, 0, 0]},
        ShapeError,
        r"x has shape \(4, 3, 7\), and one position is inside lengths: one value per channel has no variance",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_mask(queue: cl.CommandQueue, what: str) -> None:
    """Named by all calls, before anything changes."""
    options, error, words = BAD[what]
    host = make((4, 3, 7), 1)
    moved = state(queue, host)
    x, dy, out = (put(queue, a) for a in (host.x, host.dy, host.x * 0 + 7))
    into = {name: gpuarray.ones(CHANNELS, queue=queue) for name in ("scale_grad", "bias_grad")}
    held = (x, dy, out, *moved.values(), *into.values())
    before = all_bits(held)
    mean, var = moved["running_mean"], moved["running_var"]
    with recording() as launches:
        with pytest.raises(error, match=words):
            batch_norm_train(x, out=out, **moved, **options)
        if what != "one inside":
            with pytest.raises(error, match=words):
                batch_norm_infer(x, None, None, mean, var, out=out, **options)
            with pytest.raises(error, match=words):
                bind(batch_norm_backward, x, dy, None, mean, var, out=out, **into, **options)
    assert not launches
    assert all_bits(held) == before


def test_lengths_are_of_one_axis(queue: cl.CommandQueue) -> None:
    for shape, axis in (((4, 3, 5, 7), 1), ((4, 3), 1), ((3, 4, 7), 0)):
        with pytest.raises(ShapeError, match=r"lengths is given, and x has shape .* so here a mask is wanted, of"):
            batch_norm_train(gpuarray.zeros(shape, queue=queue), axis=axis, lengths=[1])


def test_arrays_of_the_device_are_looked_at(queue: cl.CommandQueue) -> None:
    x = gpuarray.zeros((4, 3, 7), queue=queue)
    with pytest.raises(DtypeError, match="mask is float32; bool or uint8 is wanted"):
        batch_norm_train(x, mask=gpuarray.ones((4, 7), queue=queue))
    with pytest.raises(ShapeError, match=r"mask has shape \(4, 6\)"):
        batch_norm_train(x, mask=put(queue, np.ones((4, 6), np.uint8)))
    mask = put(queue, np.ones((4, 7), np.uint8))
    assert mask is not None
    beyond = cla.Array(queue, (4, 7), np.uint8, data=mask.base_data, strides=(70, 1))
    with pytest.raises(ShapeError, match="mask with shape"):
        batch_norm_train(x, mask=beyond)
    event = cl.UserEvent(queue.context)
    event.set_status(-5)
    mask.add_event(event)
    with pytest.raises(DeviceError, match="mask was to be written by a command that failed"):
        batch_norm_train(x, mask=mask)


def test_what_takes_no_mask_says_so(queue: cl.CommandQueue) -> None:
    x = gpuarray.zeros((4, 3, 7), queue=queue)
    mean, words = gpuarray.zeros(6, queue=queue), "groups is 2 and a mask or lengths are given, which are of one batch"
    for do in (
        lambda: batch_norm_train(x, lengths=LENGTHS, groups=2),
        lambda: batch_norm_backward(x, x, None, mean, mean, lengths=LENGTHS, groups=2),
        lambda: explain(x, lengths=LENGTHS, groups=2),
    ):
        with pytest.raises(ParameterError, match=words):
            do()
    for call in (functional.moments, functional.batch_norm_double_backward, functional.prepare):
        with pytest.raises(TypeError, match=rf"{call.__name__}\(\) takes no 'mask'; there is none here\. Masks"):
            call(x, mask=np.ones((4, 7), bool))


# --- calls


def test_bound(queue: cl.CommandQueue) -> None:
    """The mask is taken as it is when the call is bound; x as it is when it is made."""
    host, mask = make(SHAPE, 1), MASK.copy()
    x, moved = put(queue, spoiled(host.x)), state(queue, host)
    step = bind(batch_norm_train, x, mask=mask, **moved)
    mask[:] = True
    for _ in range(2):
        y, mean, _ = step()
    wanted = batch_norm_train(put(queue, inside(host.x)))
    assert inside(y.get()).tobytes() == wanted[0].get().tobytes()
    assert mean.get().tobytes() == wanted[1].get().tobytes()
    assert moved["entered"].get().tolist() == [7] * CHANNELS
    x[:] = put(queue, host.dy)
    y, *_ = step()
    wanted = batch_norm_train(put(queue, inside(host.dy)))
    assert inside(y.get()).tobytes() == wanted[0].get().tobytes()
    assert not outside(y.get()).any()


def test_out_of_order_and_on_several_queues(queue: cl.CommandQueue, free_queue: cl.CommandQueue) -> None:
    host = make((4, 3, 64, 64), 1)
    mask = np.random.default_rng(0).random((4, 64, 64)) < 0.5
    wanted = batch_norm_train(put(queue, inside(host.x, mask)))[0].get()
    for _ in range(5):
        x = put(free_queue, host.x + 1)
        x += -1
        dy = put(queue, host.x)
        y, mean, invstd = batch_norm_train(x, mask=mask)
        dx, *_ = batch_norm_backward(x, dy, None, mean, invstd, mask=mask)
        x += 1
        np.testing.assert_allclose(inside(y.get(), mask), wanted, atol=1e-5)
        assert not outside(dx.get(), mask).any()


def test_a_launch_that_fails_leaves_all_as_it_was(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running statistics, too, which have moved by the time that y is put back."""
    host = make(SHAPE, 1)
    x, moved, out = put(queue, host.x), state(queue, host), put(queue, host.x * 0)
    before, enqueue = all_bits((out, *moved.values())), order.enqueue

    for fails in ("compress", "train_resident", "expand"):

        def failing(name: str, *given: Any, fails: str = fails) -> cl.Event:
            if name == fails:
                raise cl.RuntimeError("made to fail")
            return enqueue(name, *given)

        with monkeypatch.context() as patch:
            patch.setattr(order, "enqueue", failing)
            with pytest.raises(DeviceError, match="made to fail"), using(variant="resident"):
                batch_norm_train(x, out=out, mask=MASK, **moved)
        assert all_bits((out, *moved.values())) == before


def test_without_a_mask_nothing_is_different(queue: cl.CommandQueue) -> None:
    x = put(queue, make(SHAPE, 1).x)
    with recording() as launches:
        _, mean, invstd = batch_norm_train(x)
        batch_norm_backward(x, x, None, mean, invstd)
    assert not {"compress", "expand"} & {name for name, _ in launches}


def test_each_number_of_positions_finds_the_kernels_that_move_them(queue: cl.CommandQueue) -> None:
    """What is remembered of those is as much for any mask as for one, nearly."""
    x = put(queue, make((4, 3, 64), 1).x)
    mask = np.ones((4, 64), bool)
    batch_norm_train(x, mask=mask)

    def remembered() -> int:
        return sum(key[0] in ("compress", "expand") for key in kept(queue.context).thread.prepared)

    before = remembered()
    for number in range(60):
        mask[number // 64, number % 64] = False
        batch_norm_train(x, mask=mask)
    assert remembered() <= before + 1


# --- a batch in parts


def test_parts_with_masks_of_their_own(queue: cl.CommandQueue) -> None:
    """As one call on all that is inside, within its bounds; one part has nothing inside."""
    host = make((6, 3, 7), 1, maker=Offset(3.0))
    mask = np.random.default_rng(3).random((6, 7)) < 0.5
    mask[2:4] = False
    alone = small(replace(host, result=None), apart=True, mask=mask)
    pieces = [slice(0, 2), slice(2, 4), slice(4, 6)]
    xs, dys = ([put(queue, spoiled(a, mask)[piece]) for piece in pieces] for a in (host.x, host.dy))
    own = [{"mask": mask[piece]} for piece in pieces]
    scale, bias = put(queue, host.scale), put(queue, host.bias)
    whole = merge(*(statistics(x, **one) for x, one in zip(xs, own, strict=True)))
    assert whole.count == mask.sum()
    options: dict[str, Any] = {"epsilon": EPSILON}
    ys = [normalize(x, whole, scale, bias, **options, **one).get() for x, one in zip(xs, own, strict=True)]
    y = np.concatenate(ys)
    assert not outside(y, mask).any()
    worst = judge({"y": inside(y, mask)}, expected("train", alone, 1))
    assert worst.good, str(worst)
    sums = merge(*(gradient_sums(x, dy, whole, **one) for x, dy, one in zip(xs, dys, own, strict=True)))
    into = [gpuarray.zeros(CHANNELS, queue=queue) for _ in range(2)]
    made = []
    for x, dy, one in zip(xs, dys, own, strict=True):
        gathered = dict(zip(("scale_grad", "bias_grad"), into, strict=True)) if one is own[1] else {}
        made.append(gradient(x, dy, whole, sums, scale, dresidual=True, **options, **one, **gathered))
    dx = np.concatenate([one[0].get() for one in made])
    assert not outside(dx, mask).any()
    found = dict(zip(GRADIENTS, (inside(dx, mask), *(one.get() for one in made[1][1:3])), strict=True))
    worst = judge(found, expected("backward", alone, 1))
    assert worst.good, str(worst)
    assert all_bits(tuple(into)) == all_bits(made[0][1:3]) == all_bits(made[1][1:3])
    second = np.concatenate([one[3].get() for one in made])
    assert inside(second, mask).tobytes() == inside(host.dy, mask).tobytes()
    assert not outside(second, mask).any()
    options = {"outside": "x", **options}
    last = normalize(xs[1], whole, **options, **own[1]).get()
    assert last.tobytes() == spoiled(host.x, mask)[2:4].tobytes()
    with pytest.raises(ParameterError, match=r"statistics are of .* and x, a part of the batch, has 42"):
        normalize(put(queue, host.x), whole)


# --- explained


@pytest.mark.once("the words of a plan, which is tested on each runtime")
def test_explained(queue: cl.CommandQueue) -> None:
    """As the call on what is inside is, and what is moved beside it."""
    host = make(SHAPE, 1)
    x, dy = put(queue, host.x), lay(queue, host.dy, "mirrored")
    alone = put(queue, inside(host.x))
    for operation in ("train", "infer", "backward", "constant", "moments"):
        other = {"dy": dy} if operation in ("backward", "constant") else {}
        told = explain(x, operation=operation, mask=MASK, **other)
        back = "" if operation == "moments" else " and back after"
        moved = f"{COUNT} of {MASK.size} positions put side by side before{back}"
        assert told == f"{explain(alone, operation=operation)}; {moved}"
    scale = put(queue, np.repeat(host.scale, 2))[::2]
    assert "after; packed before: scale (its elements do not lie side" in explain(x, scale=scale, mask=MASK)
    told = explain(x, mask=MASK & False, operation="infer")
    assert told == f"nothing to do but to write the result: none of {MASK.size} positions is inside"
    with pytest.raises(ParameterError, match="mask is given; 'double_backward' takes none"):
        explain(x, operation="double_backward", mask=MASK)
    with pytest.raises(ShapeError, match="mask has shape"):
        explain(x, mask=MASK[:1])
