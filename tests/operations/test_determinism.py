"""The same bits: from run to run, process to process, queue to queue, beside other work, at any offset."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import FOUR, all_bits, everything, put
from covering import crossed
from data import COLUMNS, FEW_SHAPES

from oclbn import BatchNormND, device
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, moments, recording
from oclbn.modules.averaging import averaging_factor
from oclbn.truth.hostile import Data, make
from oclbn.tuning import using

SHAPES = [*FEW_SHAPES, *COLUMNS[-4:]]
FORMS: list[Any] = [
    pytest.param({}, id="as planned"),
    pytest.param({"variant": "resident", "lanes": 1}, id="resident, one work-item"),
    pytest.param({"variant": "resident", "lanes": 16, "vec": 1, "blocks": 1}, id="resident, 16 work-items"),
    pytest.param({"variant": "split", "lanes": 1}, id="split, one work-item"),
    pytest.param({"variant": "split", "lanes": 32, "vec": 1, "blocks": 1}, id="split, 32 work-items"),
    pytest.param({"variant": "serial"}, id="serial"),
]


def shifted(queue: cl.CommandQueue, host: np.ndarray, offset: int) -> cla.Array:
    """A view with this many elements before it."""
    whole = cla.to_device(queue, np.concatenate([np.full(offset, np.nan, host.dtype), host.reshape(-1)]))
    return whole[offset:].reshape(host.shape)


def everything_at(queue: cl.CommandQueue, host: Data, axis: int, offset: int, **out: Any) -> list[bytes]:
    """As `everything`, of views with an offset, results too where `out` says so."""
    x, dy = shifted(queue, host.x, offset), shifted(queue, host.dy, offset)
    four = [shifted(queue, getattr(host, name), offset) for name in FOUR]
    made = {"out": shifted(queue, np.full_like(host.x, np.nan), offset)} if out.get("out") else {}
    y, *saved = batch_norm_train(x, *four, axis=axis, **made)
    results = [*all_bits((y, *saved))]
    made = {"out": shifted(queue, np.full_like(host.x, np.nan), offset)} if out.get("out") else {}
    results += all_bits(batch_norm_backward(x, dy, four[0], *saved, axis=axis, **made))
    inferred = batch_norm_infer(x, *four, axis=axis, **({"out": x} if out.get("out") else {}))
    results += all_bits((*four, inferred))
    x = shifted(queue, host.x, offset)
    return results + all_bits(moments(x, axis=axis)[1:])


@pytest.mark.parametrize(
    ("shape", "axis", "form"),
    crossed(SHAPES, FORMS, reason="on each runtime each shape and each form is shifted, one with the other"),
)
def test_at_any_offset_with_and_without_out(
    queue: cl.CommandQueue, shape: tuple[int, ...], axis: int, form: dict[str, Any]
) -> None:
    host = make(shape, axis)
    with using(**form):
        expected = everything(queue, host, axis)
        for offset in (0, 1, 3, 16):
            for out in (False, True):
                assert everything_at(queue, host, axis, offset, out=out) == expected, (offset, out)


def test_from_process_to_process(queue: cl.CommandQueue, spec: str, ask_apart: Any, tmp_path: Path) -> None:
    """Two processes of which the second compiles everything anew, of each walk once."""
    expected = apart.digests(queue)
    assert ask_apart("digests", spec) == expected
    fresh = {name: str(tmp_path) for name in ("POCL_CACHE_DIR", "XDG_CACHE_HOME")}
    assert ask_apart("anew", spec, environment=fresh) == expected[apart.EACH_WALK]


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_beside_other_work(bears_threads: None, queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    """Another queue keeps the device busy, so that groups start in another order."""
    host = make(shape, axis)
    expected = everything(queue, host, axis)
    stop = threading.Event()
    rounds = 0

    def disturb() -> None:
        nonlocal rounds
        own = cl.CommandQueue(queue.context)
        x = cla.zeros(own, (8, 16, 4096), np.float32)
        y = cla.empty_like(x)
        while not stop.is_set():
            batch_norm_train(x, None, None, None, None, out=y)
            own.finish()
            rounds += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        results = [everything(queue, host, axis) for _ in range(5)]
        while rounds < 2 and thread.is_alive():
            results.append(everything(queue, host, axis))
    finally:
        stop.set()
        thread.join()
    assert rounds >= 2
    assert all(result == expected for result in results)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_from_an_out_of_order_queue(
    queue: cl.CommandQueue, free_queue: cl.CommandQueue, shape: tuple[int, ...], axis: int
) -> None:
    host = make(shape, axis)
    expected = everything(queue, host, axis)
    for _ in range(3):
        assert everything(free_queue, host, axis) == expected


@pytest.mark.parametrize(("shape", "axis"), FEW_SHAPES)
def test_recorded_or_not(queue: cl.CommandQueue, shape: tuple[int, ...], axis: int) -> None:
    if device.select(queue.device).simulator and math.prod(shape) > 50_000:
        pytest.skip("a simulator takes long; test_kernels.py leads it through what long rows and columns have, on less")
    host = make(shape, axis)
    expected = everything(queue, host, axis)
    with recording() as launches:
        assert everything(queue, host, axis) == expected
    assert launches


def test_modules_and_functions_agree(queue: cl.CommandQueue) -> None:
    """A module is the functions with a memory: not a bit apart over several batches."""
    bn = BatchNormND(2, 5, queue=queue, initFactor=0.5, minFactor=0.2)
    scale, mean, var = (put(queue, array.get()) for array in (bn.scale, bn.mean, bn.var))
    bias = put(queue, bn.bias.get())
    for number in range(1, 5):
        host = make((6, 5, 7, 3), 1, seed=number)
        x, dy = put(queue, host.x), put(queue, host.dy)
        y, *saved = batch_norm_train(x, scale, bias, mean, var, factor=averaging_factor(number, 0.5, 0.2))
        dx, dscale, dbias = batch_norm_backward(x, dy, scale, *saved)
        bn.zeroGradParams()
        bn(x)
        bn.backward(dy)
        own = (bn.data, bn.savemean, bn.saveinvvar, bn.mean, bn.var, bn.grad, bn.scalegrad, bn.biasgrad)
        assert all_bits(own) == all_bits((y, *saved, mean, var, dx, dscale, dbias))
