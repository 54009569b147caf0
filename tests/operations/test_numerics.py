"""Error bounds where they are hard to keep: huge slices, many batches, the ends of the range; and who misses them.

docs/pages/measurements has a study of the errors; benchmarks/numerics.py makes it.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from covering import crossed
from forms import forced
from tolerances import assert_within

from oclbn import device
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, moments
from oclbn.modules.averaging import averaging_factor
from oclbn.truth import reference
from oclbn.truth.bounds import Bound, excess
from oclbn.truth.expectation import EPSILON, FACTOR, expected
from oclbn.truth.hostile import Data, Maker, Offset, along, make

ROOT = Path(__file__).resolve().parents[2]
FLOAT32 = np.finfo(np.float32)


def put(queue: cl.CommandQueue, *hosts: np.ndarray) -> list[cla.Array]:
    return [cla.to_device(queue, host) for host in hosts]


def check(queue: cl.CommandQueue, host: Data) -> None:
    """Every result of a training step and its gradient against the reference."""
    x, dy, scale, bias, *running = put(
        queue, host.x, host.dy, host.scale, host.bias, host.running_mean, host.running_var
    )
    found: dict[str, Any] = {}
    found["y"], found["save_mean"], found["save_invstd"] = batch_norm_train(
        x, scale, bias, *running, epsilon=EPSILON, factor=FACTOR
    )
    found["running_mean"], found["running_var"] = running
    compare("train", found, host)
    saved = found["save_mean"], found["save_invstd"]
    compare(
        "backward", dict(zip(("dx", "dscale", "dbias"), batch_norm_backward(x, dy, scale, *saved), strict=True)), host
    )


def compare(operation: str, found: dict[str, Any], host: Data) -> None:
    for name, (wanted, bound) in expected(operation, host, 1).items():
        assert_within(found[name], wanted, bound, f"{operation}'s {name}")


# --- large slices


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 17 * 2**20), id="one slice, longer than 2^24"),
        pytest.param((2**22, 2), id="columns of 2^22"),
    ],
)
def test_slices_of_many_values(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    """Neither sums nor merges drift, with all of them at a mean of 10^4 standard deviations."""
    limits = device.limits(queue.device)
    size = 4 * math.prod(shape)
    if device.select(queue.device).simulator:
        pytest.skip(f"needs a device that is no simulator: {shape} takes hours on {queue.device.name}")
    if limits.max_alloc_bytes < size or limits.memory_bytes < 4 * size:
        pytest.skip(f"needs 4 arrays of {size} bytes; {queue.device.name} has {limits.memory_bytes}")
    check(queue, make(shape, 1, maker=Offset(10_001.7)))


@pytest.mark.parametrize("inner", [65536, 3136, 784, 196], ids=lambda inner: f"rows of {inner}")
def test_roundings_of_one_sign(queue: cl.CommandQueue, inner: int) -> None:
    """Squares that lose nearly half a unit, always downwards, with each addition to a sum between 32 and 64."""
    value = 1 + 5 * float(FLOAT32.eps)

    def one_signed(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> np.ndarray:
        del axis
        return rng.choice([-value, value], shape)

    simulated = device.select(queue.device).simulator
    host = make((2, 1, inner) if simulated else (16, 8, inner), 1, maker=one_signed)
    check(queue, host)
    _, mean, m2 = moments(*put(queue, host.x))
    compare("moments", {"mean": mean, "m2": m2}, host)


ADVERSE = [1.0521644, 1.1041508, 1.1041584, 1.1099377, 1.2360201, 1.2805004]  # to sums of 16 and more on one level
SWEPT = [
    pytest.param((16, 200, 784), id="rows"),
    pytest.param((3, 24, 65536), id="long rows"),
    pytest.param((1031, 96, 49), id="short rows"),
    pytest.param((1500, 1000), id="columns"),
    pytest.param((230, 1000), id="columns that two share"),
    pytest.param((16384, 5), id="columns of few channels"),
    pytest.param((65536, 1), id="one column"),
]


@pytest.mark.parametrize("shape", SWEPT)
def test_no_value_drifts(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    """Each channel adds up one value of its own, from all over a binade: in squares, slopes, and their products."""
    if device.select(queue.device).simulator:
        pytest.skip(f"so many values as there are in {shape} take a simulator minutes")
    rng = np.random.default_rng(11)
    value = np.float32((ADVERSE + rng.uniform(1, 2, 1000).tolist())[: shape[1]])
    signs = rng.choice(np.float32([-1, 1]), shape)
    x = signs * along(value, shape, 1).astype(np.float32)
    for dy in (np.broadcast_to(along(value, shape, 1), shape), x):
        host = replace(make(shape, 1), x=x, dy=np.ascontiguousarray(dy, np.float32))
        check(queue, host)
    _, mean, m2 = moments(*put(queue, x))
    compare("moments", {"mean": mean, "m2": m2}, host)


def test_a_strip_of_many_rows_does_not_drift(queue: cl.CommandQueue) -> None:
    """2048 rows of two channels make up a strip: as many sums for each of them, once all rows are added up."""
    if device.select(queue.device).simulator:
        pytest.skip("so many rows take a simulator minutes")
    for value in np.reshape(np.float32(ADVERSE), (-1, 2)):
        host = make((32768, 2), 1)
        host = replace(host, dy=np.broadcast_to(value, host.x.shape).copy())
        with forced(queue, lanes=1, vec=4, run_bytes=16384):
            check(queue, host)


# --- roundings of an element


def halves(found: cla.Array, wanted: np.ndarray) -> float:
    """The largest error, in halves of a unit in the last place."""
    exact = wanted.reshape(found.shape)
    return float(np.max(np.abs(found.get() - exact) / (0.5 * np.spacing(np.abs(exact).astype(np.float32)))))


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_coefficients_are_rounded_once(queue: cl.CommandQueue, mode: str) -> None:
    """Values at a few bits to either side of 0, so that sums are exact: what is left are the roundings of y itself."""
    rng = np.random.default_rng(5)
    rows, channels, inner = 4 if device.select(queue.device).simulator else 40, 64, 64
    size = rng.integers(16, 32, channels) * 2.0 ** rng.integers(-14, -8, channels)
    signs = np.resize([1.0, -1.0], rows * inner).reshape(rows, 1, inner)
    values = (size[:, None] * signs).astype(np.float32)
    weights = rng.uniform(0.5, 2, channels).astype(np.float32)
    x, scale, bias, mean, var = put(
        queue, values, weights, *(np.zeros(channels, np.float32),) * 2, (size**2).astype(np.float32)
    )
    invstd = 1 / np.sqrt(size.astype(np.longdouble) ** 2 + np.float32(EPSILON))
    if mode == "train":
        y, _, save_invstd = batch_norm_train(x, scale, bias, None, None, epsilon=EPSILON)
        assert halves(save_invstd, invstd) < 1.01
    else:
        y = batch_norm_infer(x, scale, bias, mean, var, epsilon=EPSILON)
    gain = (weights * invstd).astype(np.float32)  # rounded once, and the product with it once more
    assert halves(y, values * gain.astype(np.longdouble)[:, None]) < 1.01


def test_a_small_mean_costs_no_rounding(queue: cl.CommandQueue) -> None:
    """Less than a unit on N(0, 1), where a mean that is subtracted from each element makes it 1.2."""
    rng = np.random.default_rng(6)
    shape = (4, 8, 49) if device.select(queue.device).simulator else (32, 64, 784)
    host = rng.standard_normal(shape).astype(np.float32)
    (x,) = put(queue, host)
    y, mean, _ = batch_norm_train(x, None, None, None, None, epsilon=EPSILON)
    wanted = reference.train(host, epsilon=EPSILON)
    eps = float(FLOAT32.eps)
    assert np.max(np.abs(y.get() - wanted.y) / (np.abs(wanted.y) + 1)) < eps
    # where a chunk's mean is not brought up to its sums, this is twice as much and more
    assert np.max(np.abs(mean.get() - wanted.mean)) < 0.06 * eps


@pytest.mark.parametrize("first", [1, 2048, 5000], ids=["one value", "a chunk", "some chunks"])
def test_a_beginning_unlike_the_rest(queue: cl.CommandQueue, first: int) -> None:
    """What is summed first is merged with what outweighs it by far: the step must be taken from the larger mean."""
    if device.select(queue.device).simulator:
        pytest.skip("a slice as long as takes a simulator minutes")
    rng = np.random.default_rng(5)
    host = (1e-3 * rng.standard_normal((1, 2, 1 << 22))).astype(np.float32)
    host[0, :, :first] += (1 + rng.uniform(size=(2, 1))).astype(np.float32)
    wanted = reference.train(host, epsilon=EPSILON)
    (x,) = put(queue, host)
    y, mean, invstd = batch_norm_train(x, None, None, None, None, epsilon=EPSILON)
    bound = Bound(host, wanted.mean, wanted.invstd, None, None, axis=1, dtype=host.dtype)
    assert excess(mean.get(), wanted.mean, bound.stored_mean()).max() < 0.3
    assert excess(invstd.get(), wanted.invstd, bound.stored_invstd()).max() < 0.5
    assert excess(y.get(), wanted.y, bound.y()).max() < 0.5


def test_the_mean_where_squares_leave_the_range(queue: cl.CommandQueue) -> None:
    host = np.tile(np.float32(1e34) * np.arange(8, dtype=np.float32), (4, 2, 1 << 17))
    (x,) = put(queue, host)
    _, mean, m2 = moments(x)
    np.testing.assert_allclose(mean.get(), reference.moments(host)[1], rtol=1e-5)
    assert not np.isfinite(m2.get()).any()


@pytest.mark.parametrize("ratio", [-0.9, 0.0, 3.0])
def test_an_infinite_scale_gives_signed_infinities(queue: cl.CommandQueue, ratio: float) -> None:
    host = make((4, 8, 49), 1, maker=Offset(ratio)).x
    x, scale, bias = put(queue, host, np.full(8, np.inf, np.float32), np.ones(8, np.float32))
    y = batch_norm_train(x, scale, bias, None, None, epsilon=EPSILON)[0].get()
    distance = host - host.mean(axis=(0, 2), dtype=np.float64)[None, :, None]
    assert np.abs(distance).min() > 0
    np.testing.assert_array_equal(y, np.copysign(np.inf, distance))


def test_what_fits_the_range_stays_in_it(queue: cl.CommandQueue) -> None:
    """bias - mean scale / std would not, while y does."""
    largest = float(FLOAT32.max)
    host = np.float32([-1.8, 0.2] * 98).reshape(4, 1, 49)
    x, scale, bias = put(queue, host, np.float32([0.999 * largest]), np.float32([0.999 * largest]))
    y = batch_norm_train(x, scale, bias, None, None, epsilon=EPSILON)[0].get()
    wanted = reference.train(host, scale.get(), bias.get(), epsilon=EPSILON).y
    low = host < 0
    np.testing.assert_allclose(y[low], wanted[low], atol=1e-6 * largest)


# --- many batches


@pytest.mark.parametrize(
    ("ratio", "least"),
    crossed(
        [pytest.param(1.0, id="mean of a deviation"), pytest.param(1e4, id="mean of 10^4 deviations")],
        [pytest.param(0.1, id="a tenth each"), pytest.param(0.0, id="all alike")],
        reason="weights are the host's; on each runtime each ratio and each way of weighing is tried",
    ),
)
def test_running_statistics_after_ten_thousand_batches(queue: cl.CommandQueue, ratio: float, least: float) -> None:
    """Within the bounds of the single steps, each weighed by what the later batches leave of it."""
    slow = queue.device.platform.name == "rusticl"  # milliseconds a call
    batches = 100 if device.select(queue.device).simulator else 1_000 if slow else 10_000
    hosts = [make((6, 5, 7), 1, maker=Offset(ratio), seed=seed).x for seed in range(20)]
    exact = [reference.train(host) for host in hosts]
    bounds = [
        Bound(x, own.mean, own.invstd, None, None, axis=1, dtype=np.float32)
        for x, own in zip(hosts, exact, strict=True)
    ]
    samples = [own.var * 42 / 41 for own in exact]
    on_device = put(queue, *hosts)
    mean, var = put(queue, np.zeros(5, np.float32), np.ones(5, np.float32))
    wanted = {"mean": np.zeros(5), "var": np.ones(5)}
    room = {"mean": np.zeros(5), "var": np.zeros(5)}
    for n in range(1, batches + 1):
        k, factor = n % len(hosts), averaging_factor(n, 1.0, least)
        batch_norm_train(on_device[k], None, None, mean, var, factor=factor)
        steps = {
            "mean": (exact[k].mean, bounds[k].running_mean(wanted["mean"], factor)),
            "var": (samples[k], bounds[k].running_var(wanted["var"], samples[k], factor)),
        }
        for name, (new, step) in steps.items():
            room[name] = (1 - factor) * room[name] + step
            wanted[name] = (1 - factor) * wanted[name] + factor * new
    assert_within(mean, wanted["mean"], room["mean"], "running mean")
    assert_within(var, wanted["var"], room["var"], "running variance")


# --- the ends of the range


def edge(count: int) -> float:
    """The standard deviation of `count` values whose squares add up to the largest number."""
    return math.sqrt(float(FLOAT32.max) / count)


def spread(std: float, ratio: float = 0.0) -> Maker:
    """Values at one standard deviation to either side of the mean."""

    def values(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> np.ndarray:
        del rng
        signs = np.resize([1.0, -1.0], math.prod(shape) // shape[axis])
        rows = np.broadcast_to(std * (ratio + signs), (shape[axis], signs.size))
        front = rows.reshape(shape[axis], *(extent for i, extent in enumerate(shape) if i != axis))
        return np.ascontiguousarray(np.moveaxis(front, 0, axis))

    return values


EDGES = [
    pytest.param((500, 4), id="columns"),
    pytest.param((50, 4, 9), id="short rows"),
    pytest.param((2, 4, 5000), id="long rows"),
]


@pytest.mark.parametrize("ratio", [0.0, 1e4])
@pytest.mark.parametrize("shape", EDGES)
def test_squares_that_just_fit(queue: cl.CommandQueue, shape: tuple[int, ...], ratio: float) -> None:
    count = math.prod(shape) // shape[1]
    check(queue, make(shape, 1, maker=spread(0.99 * edge(count), ratio)))


@pytest.mark.parametrize("shape", EDGES)
def test_squares_that_just_do_not_fit(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    """The output shows it, and the running statistics are left alone."""
    count = math.prod(shape) // shape[1]
    host = make(shape, 1, maker=spread(1.01 * edge(count)))
    x, *running = put(queue, host.x, host.running_mean, host.running_var)
    y, _, invstd = batch_norm_train(x, None, None, *running)
    assert np.isnan(y.get()).all()
    assert np.isnan(invstd.get()).all()
    assert running[0].get().tobytes() == host.running_mean.tobytes()
    assert running[1].get().tobytes() == host.running_var.tobytes()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", EDGES)
def test_constant_channels_of_the_largest_number(queue: cl.CommandQueue, shape: tuple[int, ...], sign: int) -> None:
    x = np.full(shape, sign * FLOAT32.max, np.float32)
    _, mean, m2 = moments(*put(queue, x))
    assert mean.get().tolist() == [sign * float(FLOAT32.max)] * 4
    assert m2.get().tolist() == [0.0] * 4


@pytest.mark.parametrize("ratio", [0.0, 1e4])
@pytest.mark.parametrize("shape", EDGES)
def test_small_spreads_without_epsilon(queue: cl.CommandQueue, shape: tuple[int, ...], ratio: float) -> None:
    """A variance of 1e-30: eight orders above the least normal number, twenty-five below any usual epsilon."""
    host = make(shape, 1, maker=Offset(ratio, std=1e-15))
    exact = reference.train(host.x, host.scale, host.bias, epsilon=0.0)
    x, scale, bias = put(queue, host.x, host.scale, host.bias)
    y, _, invstd = batch_norm_train(x, scale, bias, None, None, epsilon=0.0)
    bound = Bound(host.x, exact.mean, exact.invstd, host.scale, host.bias, axis=1, dtype=np.float32)
    assert_within(y, exact.y, bound.y(), "y")
    assert_within(invstd, exact.invstd, bound.stored_invstd(), "save_invstd")


@pytest.mark.parametrize("std", [1e-25, 1e-39], ids=["squares underflow", "denormal numbers"])
@pytest.mark.parametrize("shape", EDGES)
def test_a_variance_that_underflows_counts_as_none(queue: cl.CommandQueue, shape: tuple[int, ...], std: float) -> None:
    """Without epsilon: the bias comes out, as for a constant channel."""
    host = make(shape, 1, maker=Offset(0.0, std=std))
    x, bias = put(queue, host.x, host.bias)
    y, _, invstd = batch_norm_train(x, None, bias, None, None, epsilon=0.0)
    assert np.array_equal(y.get(), np.broadcast_to(along(host.bias, shape, 1), shape))
    assert not invstd.get().any()


# --- that the bounds can be missed


def mean_of_squares(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[x^2] - E[x]^2, added pairwise."""
    mean = rows.mean(axis=1)
    return mean, (rows * rows).mean(axis=1) - mean * mean


def welford(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, m2 = np.zeros((2, len(rows)), np.float32)
    for k, value in enumerate(rows.T, start=1):
        delta = value - mean
        mean += delta / np.float32(k)
        m2 += delta * (value - mean)
    return mean, m2 / np.float32(rows.shape[1])


def two_pass(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = rows.mean(axis=1)
    return mean, ((rows - mean[:, None]) ** 2).mean(axis=1)


@pytest.mark.parametrize(
    ("formula", "result", "ratio"),
    [
        pytest.param(mean_of_squares, "var", 10.0, id="E[x^2] - E[x]^2, variance"),
        pytest.param(mean_of_squares, "y", 10.0, id="E[x^2] - E[x]^2, y"),
        pytest.param(welford, "var", 0.0, id="Welford, variance"),
        pytest.param(welford, "y", 100.0, id="Welford, y"),
        pytest.param(two_pass, "y", 100.0, id="two passes, y"),
    ],
)
def test_plain_float32_formulas_exceed_the_bounds(formula: Any, result: str, ratio: float) -> None:
    """With a few thousand values: what the tests of oclbn's kernels assert is not what any formula would pass."""
    host = make((25, 8, 200), 1, maker=Offset(ratio + 0.3))
    exact = reference.train(host.x, host.scale, host.bias, epsilon=EPSILON)
    bound = Bound(host.x, exact.mean, exact.invstd, host.scale, host.bias, axis=1, dtype=np.float32)
    rows = np.ascontiguousarray(np.moveaxis(host.x, 1, 0)).reshape(8, -1)
    mean, var = formula(rows)
    assert mean.dtype == var.dtype == np.float32
    if result == "var":
        units = excess(var, exact.var, bound.m2() / rows.shape[1])
    else:
        gain = host.scale / np.sqrt(np.maximum(var, 0) + np.float32(EPSILON))
        y = (host.x - along(mean, host.x.shape, 1)) * along(gain, host.x.shape, 1) + along(host.bias, host.x.shape, 1)
        assert y.dtype == np.float32
        units = excess(y, exact.y, bound.y())
    assert units.max() > 1.0


# --- the study


@pytest.mark.once(reason="the script, its tables and pictures are the host's, around errors that other tests bound")
def test_the_error_study_runs_without_pytorch(queue: cl.CommandQueue, tmp_path: Path) -> None:
    info = device.select(queue.device)
    if info.simulator:
        pytest.skip(f"needs a device that is no simulator: the study takes minutes on {info.name}")
    (tmp_path / "torch.py").write_text("raise ImportError('not here')\n")
    document = tmp_path / "measurements" / "2000-01-01-errors.md"
    document.parent.mkdir()
    document.write_text(
        "Before.\n<!-- begin: benchmarks/numerics.py -->\nold\n<!-- end: benchmarks/numerics.py -->\nAfter.\n"
    )
    spec = f"{info.platform_index}:{info.device_index}"
    command = [sys.executable, str(ROOT / "benchmarks" / "numerics.py"), spec, "--quick", "--write", str(document)]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PyTorch is not installed" in done.stderr
    before, table, after = document.read_text().partition("oclbn on ")
    assert before.startswith("Before.\n<!-- begin")
    assert (table + after).endswith("<!-- end: benchmarks/numerics.py -->\nAfter.\n")
    assert "old" not in before + after
    assert "| PyTorch" not in after
    assert (tmp_path / "pictures" / "2000-01-01-errors.png").stat().st_size > 10_000
    rows = [line.split(" | ") for line in after.splitlines() if line.startswith("| mean/std 1e4 |")]
    assert len(rows) == 6, "a table for each result"
    assert all(float(row[1]) < 4.0 for row in rows), "oclbn's errors, in units of the result's scale"
