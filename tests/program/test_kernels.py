"""Every kernel in every form, against the reference: variants by groups of one and of many work-items.

The plans of a device use a few of these; here each is forced. Rows named "small" are few and tiny enough for a
simulator that checks every access (run them with ``--device Oclgrind -k small``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from calls import (
    all_bits,
    check,
    check_in_parts,
    everything,
    put,
)
from forms import CHAINED, FORMS, SHAPES, TYPED, fewer, forced, shrink, suited

from oclbn import device
from oclbn.call.layout import common_layout
from oclbn.device import limits
from oclbn.functional import (
    accumulate,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_train,
    explain,
)
from oclbn.gpuarray import pack
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.variants import plan
from oclbn.plan.words import VARIANTS, DeviceLimits, Tuning
from oclbn.program.kept import kept
from oclbn.proof.miniature import paths_of
from oclbn.tools.yardstick import plain_copy
from oclbn.truth import reference
from oclbn.truth.hostile import Offset, make
from oclbn.tuning import using


@pytest.fixture
def form(queue: cl.CommandQueue, request: pytest.FixtureRequest) -> dict[str, Any]:
    """One of FORMS or CHAINED, as it suits the queue's runtime; llvmpipe has vectors of 4 in the first form only."""
    return suited(queue, request.param, widest=4 if request.param == FORMS[0].values[0] else 2)


def test_a_small_slice_of_less_than_a_strip(queue: cl.CommandQueue) -> None:
    """Three rows of five channels make up a strip; the last slice has one row, and no guess of its mean."""
    host = make((91, 5), 1, maker=Offset(1_000_003.0))
    with using(variant="split", lanes=1, vec=4, most_steps=200):
        assert "6 slices" in explain(put(queue, host.x))
        check("train", queue, host, 1)
        check("moments", queue, host, 1)
        check("backward", queue, host, 1)


def test_the_matrix_leaves_out_no_form_of_a_type() -> None:
    """Each runtime has every form with every type, and every type with every shape, that the README's run has."""

    def pairs(rows: list[Any]) -> set[tuple[str, str]]:
        cases = [
            (str(form), f"{shape} @{axis}", dtype.name) for form, shape, axis, dtype in (row.values for row in rows)
        ]
        return {(what, name) for form, shape, name in cases for what in (form, shape)}

    everywhere = [row for row in TYPED if not row.marks]
    assert pairs(everywhere) == pairs(TYPED)
    assert len(everywhere) < len(TYPED)


@pytest.mark.parametrize(("form", "shape", "axis", "dtype"), TYPED, indirect=["form"])
def test_every_form_agrees_with_the_reference(
    queue: cl.CommandQueue, form: dict[str, Any], shape: tuple[int, ...], axis: int, dtype: np.dtype[Any]
) -> None:
    if dtype == np.float64 and not limits(queue.device).fp64:
        pytest.skip("needs float64")
    choices: dict[str, Any] = {}
    if device.select(queue.device).simulator:
        shape, choices = fewer(shape, form)
    host = make(shape, axis, dtype)
    with using(**{"chunk_bytes": 4096, **choices, **form}):
        check("train", queue, host, axis)
        check("infer", queue, host, axis)
        check("moments", queue, host, axis)
        check("backward", queue, host, axis)
        transposed = tuple(range(host.x.ndim))[::-1]
        np.testing.assert_array_equal(pack(put(queue, host.x).transpose(transposed)).get(), host.x.T)
        check_in_parts(queue, host, axis)
        check("constant", queue, host, axis)
        arrays = [put(queue, a) for a in (host.x, host.dy, host.scale, host.running_mean, host.running_var)]
        for training in (False, True):
            into = {name: cla.zeros(queue, host.scale.size, host.scale.dtype) for name in ("scale_grad", "bias_grad")}
            _, *made = batch_norm_backward(*arrays, axis=axis, training=training, **into)
            assert all_bits(tuple(into.values())) == all_bits(tuple(made))


SIMULATOR = DeviceLimits("gpu", 2, 1024, 1 << 15, 1 << 25, 1 << 33, 1 << 33, fp64=True, fp16=True)


def parts(form: dict[str, Any], shape: tuple[int, ...], axis: int, units: int, **choices: Any) -> list[Any]:
    """What a form does of its kernels on a shape, operation by operation: the way through them, and what is several."""
    strides = np.empty(shape, np.float32).strides
    problem = common_layout(shape, axis, 4, (strides, strides)).problem(4)
    tuning = Tuning(**{"lanes": 16, "vec": 1, "stream": False, "chunk_bytes": 4096, **choices, **form})
    told = []
    ran = [
        name for name in OPERATIONS if not name.startswith("double")
    ]  # tests/operations/test_double_backward.py has those
    for operation in ran:
        planned = plan(operation, problem, replace(SIMULATOR, compute_units=units), tuning)
        g = planned.geometry
        defines = [(name, n) for name, n in planned.launches[0].build.defines if name not in ("BLOCKS", "RUN")]
        told.append(
            (
                planned.variant,
                [(launch.kernel, launch.lanes) for launch in planned.launches],
                defines,
                paths_of(problem, planned),
                g.slices > 1,
                min(g.slice_rows, problem.outer) > g.chunk_rows,
                not problem.columns and g.slice_columns > g.chunk_columns,
                problem.channels > g.share,
            )
        )
    return told


@pytest.mark.parametrize("units", [1, 2])  # Oclgrind has one
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("form", [pytest.param(dict(form.values[0]), id=form.id) for form in FORMS])
def test_a_simulator_misses_nothing_of_larger_shapes(
    form: dict[str, Any], shape: tuple[int, ...], axis: int, units: int
) -> None:
    small, choices = fewer(shape, form)
    assert parts(form, small, axis, units, **choices) == parts(form, shape, axis, units)


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_every_form_gives_the_same_bits_twice(queue: cl.CommandQueue, form: dict[str, Any]) -> None:
    host = make((5, 6, 300), 1)
    with using(**form):
        assert everything(queue, host, 1) == everything(queue, host, 1)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("variant", ["resident", "split", "serial"])
def test_the_variant_asked_for_is_the_one_that_runs(queue: cl.CommandQueue, operation: str, variant: str) -> None:
    x = cla.zeros(queue, (4, 8, 64), np.float32)
    with using(variant=variant):
        told = explain(x, operation=operation)
    has_it = variant != "resident" or OPERATIONS[operation].resident
    single = variant == "split" and len(OPERATIONS[operation].split) == 1
    assert told.startswith("one kernel" if single else VARIANTS[variant if has_it else "serial"]), told


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_streaming_past_the_cache_changes_no_bit(
    queue: cl.CommandQueue, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors larger than the cache are written past it where the compiler can; with this cache all of them are."""
    host = make((7, 5, 333), 1)
    cached = everything(queue, host, 1)
    with forced(queue, **{**form, "variant": "split"}, stream=False):
        plain = everything(queue, host, 1)
    shrink(queue, monkeypatch)
    with forced(queue, **{**form, "variant": "split"}, stream=True):
        streamed = everything(queue, host, 1)
    monkeypatch.setattr(kept(queue.context).thread, "prepared", {}, raising=False)
    assert streamed == plain
    assert len(cached) == len(plain)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 20, 5), id="small rows"),
        pytest.param((9, 700, 7, 7), id="80 channels in a run"),
        pytest.param((3, 1200, 4, 4), id="256 channels in a run"),
    ],
)
def test_inference_past_the_cache_walks_long_runs(
    queue: cl.CommandQueue, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make(shape, 1)
    given = [put(queue, a) for a in (host.x, host.scale, host.bias, host.running_mean, host.running_var)]
    with forced(queue, lanes=1, vec=4, run_bytes=4096, stream=False):
        plain = batch_norm_infer(*given)
    shrink(queue, monkeypatch, compute_units=1)
    for run_bytes in (4096, 16384):
        with forced(queue, lanes=1, vec=4, run_bytes=run_bytes, stream=True):
            assert "runs" in explain(given[0], operation="infer")
            check("infer", queue, host, 1)
            np.testing.assert_array_equal(batch_norm_infer(*given).get(), plain.get())


@pytest.mark.parametrize(("shape", "form"), CHAINED, indirect=["form"])
def test_a_group_that_sums_channels_while_it_writes_others(
    queue: cl.CommandQueue, shape: tuple[int, ...], form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups take several blocks of channels in turn where outputs go past the cache; with this one all do."""
    if queue.device.platform.name == "rusticl" and int(queue.device.driver_version.partition(".")[0]) < 25:
        pytest.skip("this driver ends a work-item's loops early, so that no group takes several blocks")
    shrink(queue, monkeypatch, compute_units=1)
    host = make(shape, 1)
    form = {"variant": "resident", "lanes": 1, "stream": True, "chains": 1, "most_steps": 0, **form}
    with using(**form):
        x = cla.to_device(queue, host.x)
        assert "chains of" in explain(x, operation="train")
        check("train", queue, host, 1)
        check("backward", queue, host, 1)
        chained = everything(queue, host, 1)
        assert everything(queue, host, 1) == chained
        host.x[:, shape[1] // 2] = np.nan  # its neighbours in the chain are none the worse
        y, mean, invstd = batch_norm_train(cla.to_device(queue, host.x), None, None, None, None)
    others = np.arange(shape[1]) != shape[1] // 2
    wanted = reference.train(host.x, axis=1).y
    assert np.isnan(y.get()[:, ~others]).all()
    assert np.isfinite(mean.get()[others]).all()
    assert np.isfinite(invstd.get()[others]).all()
    np.testing.assert_allclose(y.get()[:, others], wanted[:, others], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 3], ids=["whole", "offset"])
@pytest.mark.parametrize("count", [1, 7, 1025], ids=["one", "small", "large"])
def test_accumulate(queue: cl.CommandQueue, count: int, offset: int) -> None:
    rng = np.random.default_rng(count)
    into, new = rng.standard_normal((2, count + offset)).astype(np.float32)
    device_into, device_new = cla.to_device(queue, into), cla.to_device(queue, new)
    accumulate(device_into[offset:], device_new[offset:], scale=0.5, momentum=0.25)
    wanted = into.copy()
    wanted[offset:] = np.float32(0.5) * new[offset:] + np.float32(0.25) * into[offset:]
    np.testing.assert_allclose(device_into.get(), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(device_into.get()[:offset], into[:offset])


def test_accumulate_without_momentum_forgets_nan(queue: cl.CommandQueue) -> None:
    into = cla.to_device(queue, np.full(5, np.nan, np.float32))
    accumulate(into, cla.to_device(queue, np.arange(5, dtype=np.float32)))
    np.testing.assert_array_equal(into.get(), np.arange(5))


@pytest.mark.parametrize("stream", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("count", [1, 37, 100_003], ids=["one", "small", "large"])
def test_the_plain_copy_copies(queue: cl.CommandQueue, count: int, stream: bool) -> None:
    host = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    y = cla.zeros(queue, count + 64, np.float32)
    plain_copy(cla.to_device(queue, host), y[:count], stream=stream)
    np.testing.assert_array_equal(y.get()[:count], host)
    assert not y.get()[count:].any()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        pytest.param("y[0] = get_global_id(0);", "race", id="race"),
        pytest.param("y[get_global_id(0) + 1000] = 1;", "write", id="write out of bounds"),
        pytest.param("y[get_global_id(0)] = y[-1];", "read", id="read out of bounds"),
    ],
)
def test_a_simulator_complains(
    queue: cl.CommandQueue, capfd: pytest.CaptureFixture[str], body: str, complaint: str
) -> None:
    """What the suite takes for a failure is what Oclgrind prints of a wrong kernel: else its silence means nothing."""
    if "Oclgrind" not in queue.device.name:
        pytest.skip("needs Oclgrind, which looks for races and accesses out of bounds")
    wrong = cl.Program(queue.context, f"__kernel void wrong(__global int *y) {{ {body} }}").build()
    y = cla.zeros(queue, 8, np.int32)
    wrong.wrong(queue, (8,), (1,), y.base_data)
    queue.finish()
    printed = capfd.readouterr().err
    assert "Kernel: wrong" in printed
    assert complaint in printed
