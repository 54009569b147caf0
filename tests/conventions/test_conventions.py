"""Conventions beside what the frameworks themselves gave, which benchmarks/conventions.py has stored in this folder.

How far a stored number may lie from the exact one, in units u = 2^-24, follows from what is rounded. A sum of m
numbers, in any order, errs by m u times the sum of their sizes. So a batch's mean errs by m u E|x|, and its variance,
the mean of squared distances from that, by (m + 6) u times itself and the square of the mean's error; one that is taken
as E(x^2) - E(x)^2 errs by (3 m + 4) u E(x^2) besides. A step, (1 - w) r + w b, hands on (1 - w) of r's error and w of
b's, and adds 4 u (|r| + |b|): two products, a sum, and the weight, of which 1 - 0.99 keeps an error of u. Where an
average is divided by 1 - momentum^n, that has an error of u as well. The bound of an evaluation is what mean and
variance lead to, and a rounding of each operation.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl
import pytest
from numpy.typing import NDArray

import oclbn
from oclbn import BatchNorm, BatchNorm2D, conventions, functional, gpuarray, weights
from oclbn.conventions import ALL, Convention, named
from oclbn.errors import ParameterError

pytestmark = pytest.mark.once(reason="options of modules, whose kernels are compared on each runtime")

ROOT = Path(__file__).resolve().parent.parent.parent
U = 2.0**-24
STORED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("*.json")}
CONVENTIONS = {  # of the files that are not called as their convention is
    "darknet-alexeyab": "darknet",
    "darknet-cpu": "darknet_cpu",
    "equinox-ema": "equinox_ema",
    "keras-jax": "keras",
    "keras-tensorflow": "keras",
    "keras-torch": "keras",
    "mlx-0.31": "mlx_031",
    "onnxruntime": "onnx",
    "tf-keras": "tf_keras",
    "tf-keras-fused": "tensorflow_fused",
    "torch": "pytorch",
    "torch-cumulative": "pytorch",
}
ONE_PASS = {"flax", "haiku", "keras-torch", "nnabla", "jittor"}  # whose variance is E(x^2) - E(x)^2
RUNS = [pytest.param(name, number, id=f"{name}-{number}") for name in sorted(STORED) for number in (0, 1)]
RUNS = [run for run in RUNS if run.values[1] < len(STORED[run.values[0]]["runs"])]
FOLLOWED = [run for run in RUNS if ALL[CONVENTIONS.get(run.values[0], run.values[0])].followed]

Host = NDArray[np.float64]


def loaded() -> ModuleType:
    """benchmarks/conventions.py, which makes the batches."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location("_conventions_benchmark", folder / "conventions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


BENCHMARK = loaded()
DATA: list[NDArray[np.float32]] = BENCHMARK.batches()
SCALE, BIAS = np.float32(BENCHMARK.SCALE), np.float32(BENCHMARK.BIAS)


class Exact(NamedTuple):
    """In float64 by the convention, and how far float32 may be off."""

    mean: Host
    mean_bound: Host
    var: Host
    var_bound: Host


def convention_of(name: str) -> Convention:
    return ALL[CONVENTIONS.get(name, name)]


def momentum_of(name: str, number: int) -> Any:
    """The momentum that a run was made with, as `factor` takes it."""
    given = STORED[name]["runs"][number]["momentum"]
    if name == "torch-cumulative":
        return None
    if name == "darknet-alexeyab":
        return 0.9  # on a processor, where it was run
    if name == "haiku":
        return 0.99 if given is None else given
    return "default" if given is None else given


def stepped(convention: Convention, momentum: Any, one_pass: bool = False) -> Iterator[tuple[int, Exact]]:
    """The statistics behind each batch."""
    mean, var = np.full(5, convention.initial_mean), np.full(5, convention.initial_variance)
    mean_bound, var_bound = np.zeros(5), np.zeros(5)
    taken = 1 if convention.estimator == "sample" else 0
    for number, batch in enumerate(DATA[:-1], 1):
        x = batch.astype(np.float64)
        m, weight = len(x), convention.factor(number, momentum)
        its_mean, its_var = x.mean(0), x.var(0, ddof=taken)
        mean_error = m * U * np.abs(x).mean(0)
        var_error = (m + 6) * U * its_var + mean_error**2
        if one_pass:
            var_error += (3 * m + 4) * U * (x**2).mean(0) * m / (m - taken)
        mean_bound = (1 - weight) * mean_bound + weight * mean_error + 4 * U * (np.abs(mean) + np.abs(its_mean))
        var_bound = (1 - weight) * var_bound + weight * var_error + 4 * U * (var + its_var)
        mean, var = (1 - weight) * mean + weight * its_mean, (1 - weight) * var + weight * its_var
        divided = 0.0
        if convention.first_batch == "debiased":
            divided = U * weight / convention.factor(10**9, momentum)
        yield number, Exact(mean, mean_bound + divided * np.abs(mean), var, var_bound + divided * var)


def evaluated(exact: Exact, convention: Convention, momentum: Any) -> tuple[Host, Host]:
    """The output for the last array, and how far float32 may be off."""
    batches = len(DATA) - 1
    mean, var = convention.in_evaluation(exact.mean, exact.var, batches=batches, momentum=momentum)
    grown = float((var / exact.var).max())  # 1, but where evaluation divides
    mean_bound, var_bound = exact.mean_bound * grown, exact.var_bound * grown
    if grown > 1:  # by a difference whose error is u
        mean_bound, var_bound = mean_bound + 2 * grown * U * np.abs(mean), var_bound + 2 * grown * U * var
    x, scale, spread = (
        DATA[-1].astype(np.float64),
        SCALE.astype(np.float64),
        var + convention.options(evaluation=True)["epsilon"],
    )
    slope = np.abs(scale) / np.sqrt(spread)
    y = (x - mean) / np.sqrt(spread) * scale + BIAS
    bound = slope * (mean_bound + 4 * U * (np.abs(x) + np.abs(mean))) + 4 * U * (np.abs(y) + np.abs(BIAS))
    return y, bound + np.abs(y - BIAS) * (var_bound / (2 * spread) + 4 * U)


def within(found: Any, exact: Host, bound: Host, what: str) -> None:
    error = np.abs(np.asarray(found, np.float64) - exact)
    assert (error <= bound).all(), f"{what}: {(error / bound).max():.3g} of what rounding explains"


# --- what the frameworks gave


def test_there_are_results_of_many_frameworks() -> None:
    packages = {package for stored in STORED.values() for package in stored["versions"]}
    assert len(STORED) >= 20
    assert len(packages) >= 12
    assert {stored["data"] for stored in STORED.values()} == {BENCHMARK.checksum(DATA)}, "other batches than these"
    trained = {key for key, one in ALL.items() if one.trains and not one.measured.startswith("source")}
    assert trained - {convention_of(name).key for name in STORED} == {"puzzlelib", "oclbn"}


@pytest.mark.parametrize(("name", "number"), RUNS)
def test_a_framework_keeps_to_its_convention(name: str, number: int) -> None:
    convention, momentum, run = convention_of(name), momentum_of(name, number), STORED[name]["runs"][number]
    seen = []
    for batch, exact in stepped(convention, momentum, name in ONE_PASS):
        if found := run["statistics"].get(str(batch)):
            within(found["mean"], exact.mean, exact.mean_bound, f"mean behind batch {batch}")
            within(found["var"], exact.var, exact.var_bound, f"variance behind batch {batch}")
            seen.append(batch)
    assert seen == [1, 2, 10, 100]
    within(run["evaluation"], *evaluated(exact, convention, momentum), "evaluation")


@pytest.mark.parametrize("name", sorted(STORED))
def test_no_other_convention_does_as_well(name: str) -> None:
    """The bound tells conventions apart: another estimator, weight or epsilon is outside of it."""
    run, right = STORED[name]["runs"][0], convention_of(name)
    momentum, one_pass = momentum_of(name, 0), name in ONE_PASS
    estimator = "sample" if right.estimator == "population" else "population"
    changed = [
        (replace(right, estimator=estimator), momentum),
        (right, 0.8),
        (replace(right, initial_variance=0.5), momentum),
    ]
    for wrong, other in changed:
        if wrong.initial_variance == 0.5 and (momentum is None or wrong.first_batch != "step"):
            continue  # what the first batch replaces does not show
        steps = dict(stepped(wrong, other, one_pass))
        off = [
            (np.abs(np.array(found["var"]) - steps[int(batch)].var) / steps[int(batch)].var_bound).max()
            for batch, found in run["statistics"].items()
        ]
        assert max(off) > 10
    last = len(STORED[name]["runs"]) - 1  # whose small variances are not those of the beginning any more
    momentum, run = momentum_of(name, last), STORED[name]["runs"][last]
    exact = dict(stepped(right, momentum, one_pass))[100]
    inside = right.epsilon_in == "variance"
    wrong = replace(right, epsilon=2 * right.epsilon) if inside else replace(right, epsilon_in="variance")
    y, bound = evaluated(exact, wrong, momentum)
    assert (np.abs(np.array(run["evaluation"]) - y) / bound).max() > 10


def of_one_value(found: dict[str, Any], convention: Convention) -> str:
    if "refused" in found:
        return "refused"
    if "nan" in found["var"]:
        return "nan"
    if found["y"] == [[5.0, -3.0, 1.0]]:
        return "passes"
    weight = convention.factor(1, 0.99 if convention.momentum is None else "default")
    np.testing.assert_allclose(found["y"], 0.0, atol=1e-4)
    np.testing.assert_allclose(found["mean"], weight * np.array([5.0, -3.0, 1.0]), rtol=1e-5)
    np.testing.assert_allclose(found["var"], (1 - weight) * convention.initial_variance, rtol=1e-5)
    return "step"


@pytest.mark.parametrize("name", sorted(name for name, one in STORED.items() if one["probes"]))
def test_edge_cases_are_as_the_convention_says(name: str) -> None:
    convention, probes = convention_of(name), STORED[name]["probes"]
    assert of_one_value(probes["one value"], convention) == convention.one_value
    if empty := probes.get("empty"):
        assert empty["y"] == []
        kept = empty["mean"] == [0.0] * 3 and empty["var"] == [1.0] * 3
        assert ("kept" if kept else "nan") == convention.empty_batch
        assert kept or empty["mean"] == empty["var"] == ["nan"] * 3
    if zero := probes.get("epsilon 0"):
        assert ("refused" if "refused" in zero else "runs") == convention.zero_epsilon
        assert zero.get("y", [[-1.0], [1.0]]) == [[-1.0], [1.0]]
    if tiny := probes.get("epsilon 1e-12"):  # the variance is 2^-20: an epsilon of 1e-8 would show
        np.testing.assert_allclose(tiny["y"], [[-1.0], [1.0]], rtol=2e-6)
        assert convention.least_epsilon == 0.0


# --- oclbn's modules


def put(queue: cl.CommandQueue, host: NDArray[np.float32]) -> gpuarray.Array:
    return gpuarray.to_gpu(host, queue=queue)


def check_module(bn: BatchNorm, name: str, number: int, before: Any = None) -> None:
    """Train on all batches and compare with what is stored: both may be off, each by as much."""
    convention, momentum, run = convention_of(name), momentum_of(name, number), STORED[name]["runs"][number]
    bn.mean, bn.var = np.full(5, convention.initial_mean), np.full(5, convention.initial_variance)
    bn.scale, bn.bias = SCALE, BIAS
    for batch, exact in stepped(convention, momentum, name in ONE_PASS):
        if before is not None:
            before(bn)
        bn(put(bn.queue, DATA[batch - 1]))
        if found := run["statistics"].get(str(batch)):
            within(bn.mean.get().ravel(), np.array(found["mean"]), 2 * exact.mean_bound, f"mean behind batch {batch}")
            within(bn.var.get().ravel(), np.array(found["var"]), 2 * exact.var_bound, f"variance behind batch {batch}")
    batches = len(DATA) - 1
    bn.mean, bn.var = convention.in_evaluation(
        bn.mean.get().ravel(), bn.var.get().ravel(), batches=batches, momentum=momentum
    )
    bn.evalMode()
    _, bound = evaluated(exact, convention, momentum)
    within(bn(put(bn.queue, DATA[-1])).get(), np.array(run["evaluation"]), 2 * bound, "evaluation")


@pytest.mark.parametrize(("name", "number"), FOLLOWED)
def test_a_module_goes_on_as_the_framework(queue: cl.CommandQueue, name: str, number: int) -> None:
    options = convention_of(name).options(momentum_of(name, number))
    check_module(BatchNorm(5, queue=queue, **options), name, number)


WEIGHED = [run for run in RUNS if convention_of(run.values[0]).first_batch in ("replaces", "debiased")]


@pytest.mark.parametrize(("name", "number"), [run for run in RUNS if run not in [*FOLLOWED, *WEIGHED]])
def test_what_is_nearly_so(queue: cl.CommandQueue, name: str, number: int) -> None:
    """Darknet's running statistics are those of a module; its outputs in training, by another variance, are not."""
    convention, momentum = convention_of(name), momentum_of(name, number)
    with pytest.raises(ParameterError) as told:
        convention.options(momentum)
    weight = convention.factor(1, momentum)
    assert str(told.value).endswith(f"conventions.PYTORCH.options({weight:g}, {convention.epsilon:g})")
    options = conventions.PYTORCH.options(weight) | {"epsilon": convention.options(evaluation=True)["epsilon"]}
    check_module(BatchNorm(5, queue=queue, **options), name, number)


@pytest.mark.parametrize(("name", "number"), WEIGHED)
def test_the_other_way_that_errors_tell(queue: cl.CommandQueue, name: str, number: int) -> None:
    """Haiku's weights, and those of Equinox' other mode, are set before each batch."""
    convention, momentum = convention_of(name), momentum_of(name, number)
    with pytest.raises(ParameterError, match=r"options.evaluation=True.*initFactor=0, update_running=None") as told:
        convention.options(momentum)
    assert f"estimator={convention.estimator!r}" in str(told.value)
    assert f"conventions.{convention.key.upper()}.factor(bn.numOfProps + 1" in str(told.value)
    options = convention.options(momentum, evaluation=True)
    options |= {"initFactor": 0, "update_running": None, "estimator": convention.estimator}

    def before(bn: BatchNorm) -> None:
        bn.minFactor = convention.factor(bn.numOfProps + 1, momentum)

    check_module(BatchNorm(5, queue=queue, **options), name, number, before)


def test_functions_take_the_factor(queue: cl.CommandQueue) -> None:
    mean, var = put(queue, np.zeros(5, np.float32)), put(queue, np.ones(5, np.float32))
    for number, batch in enumerate(DATA[:10], 1):
        factor = conventions.HAIKU.factor(number, 0.99)
        functional.batch_norm_train(
            put(queue, batch), running_mean=mean, running_var=var, factor=factor, estimator="population"
        )
    found, exact = STORED["haiku"]["runs"][0]["statistics"]["10"], dict(stepped(conventions.HAIKU, 0.99, True))[10]
    within(mean.get(), np.array(found["mean"]), 2 * exact.mean_bound, "mean")
    within(var.get(), np.array(found["var"]), 2 * exact.var_bound, "variance")


def test_puzzlelib_is_what_modules_do_by_default(queue: cl.CommandQueue) -> None:
    for key in ("puzzlelib", "oclbn"):
        one, other = BatchNorm(5, queue=queue), BatchNorm(5, queue=queue, **ALL[key].options())
        for batch in DATA[:12]:
            one(put(queue, batch))
            other(put(queue, batch))
        assert one.mean.get().tobytes() == other.mean.get().tobytes()
        assert one.var.get().tobytes() == other.var.get().tobytes()
        assert one.epsilon == other.epsilon


@pytest.mark.parametrize("key", sorted(ALL))
def test_evaluation_takes_every_convention(queue: cl.CommandQueue, key: str) -> None:
    """By the formula of its own, for what it stores, and nothing moves in training."""
    convention = ALL[key]
    stored, mean, epsilon = np.array([4.0, 0.75]), np.array([1.0, -2.0]), 0.25
    given = None if convention.momentum is None and convention.trains else "default"
    momentum: Any = 0.9 if given is None else "default"
    bn = BatchNorm(2, queue=queue, **convention.options(momentum, epsilon, evaluation=True))
    bn.mean, bn.var = convention.in_evaluation(mean, stored, batches=3, momentum=momentum, epsilon=epsilon)
    before = bn.mean.get()
    bn(put(queue, np.float32([[1.0, 2.0], [3.0, 4.0]])))
    assert bn.mean.get().tobytes() == before.tobytes()
    bn.evalMode()
    x = np.float32([[2.0, 3.0]])
    if convention.evaluates == "divided":
        mean, stored = mean / (1 - 0.99**3), stored / (1 - 0.99**3)
    divisor = {
        "variance": np.sqrt(stored + epsilon),
        "deviation": np.sqrt(stored) + epsilon,
        "stored": stored,
    }[convention.epsilon_in]
    np.testing.assert_allclose(bn(put(queue, x)).get(), (x - mean) / divisor, rtol=1e-5)


@pytest.mark.parametrize("key", sorted(key for key, one in ALL.items() if one.epsilon_in == "variance"))
def test_a_layer_of_every_convention_becomes_a_module(queue: cl.CommandQueue, key: str) -> None:
    """Of the file's epsilon, or of the convention's; where modules train otherwise, training moves nothing."""
    mean, var, x = np.float32([1.0, -2.0]), np.float32([4.0, 0.0025]), np.float32([[2.0, 3.0], [4.0, 5.0]])
    for epsilon, factor in ((None, None), (0.25, 0.5 if ALL[key].trains else None)):
        layer = weights.Layer("bn", mean=mean, var=var, epsilon=epsilon, factor=factor, batches=5, convention=key)
        bn = weights.module(layer, 0, queue=queue)
        bn.evalMode()
        added = ALL[key].epsilon if epsilon is None else epsilon
        np.testing.assert_allclose(bn(put(queue, x)).get(), (x - mean) / np.sqrt(var + added), rtol=1e-5)
        bn.trainMode()
        bn(put(queue, x))
        weight = 0.0
        if not ALL[key].trains:
            weight = 1 / 6  # as modules have it: it is batch 6
        elif ALL[key].followed:
            weight = ALL[key].factor(6) if factor is None else factor
        np.testing.assert_allclose(bn.mean.get().ravel(), mean + weight * (x.mean(0) - mean), rtol=1e-6)


# --- without a device


def test_the_names_of_all() -> None:
    for key, convention in ALL.items():
        assert convention.key == key
        assert getattr(conventions, key.upper()) is convention
        assert key.upper() in conventions.__all__
        assert named(key) is named(key.upper()) is convention
        assert named(key.replace("_", "-")) is convention
    assert len({one.name for one in ALL.values()}) == len(ALL)
    with pytest.raises(TypeError):
        ALL["mine"] = conventions.PYTORCH  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        conventions.PYTORCH.epsilon = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("torch", "pytorch"),
        ("pytroch", "pytorch"),
        ("Gluon", "mxnet"),
        ("tensorflow", "tensorflow_fused"),
        ("Haku", "haiku"),
    ],
)
def test_a_name_that_is_nearly_one(name: str, meant: str) -> None:
    with pytest.raises(
        ParameterError, match=f"^the convention is '{name}'; did you mean '{meant}'. there are pytorch, "
    ):
        named(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TORCH", "PYTORCH"),
        ("KERAS3", "KERAS"),
        ("keras", "KERAS"),
        ("JAX", "FLAX"),
        ("TENSORFLOW", "TENSORFLOW_FUSED"),
        ("Named", "named"),
        ("BatchNorm2d", "BatchNorm2D"),
    ],
)
def test_a_name_that_the_module_nearly_has(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; did you mean {meant}?"):
        getattr(conventions, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from .*; did you mean {meant}"):
        exec(f"from oclbn.conventions import {name}", {})


@pytest.mark.parametrize("name", ["QQQQ", "__wrapped__", "_torch"])
def test_a_name_that_the_module_has_not(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'$"):
        getattr(conventions, name)


def test_arguments_by_other_names_are_told() -> None:
    options: Any = conventions.KERAS.options
    with pytest.raises(TypeError, match=r"^Convention.options\(\) takes no 'eps'; did you mean epsilon\?"):
        options(eps=1e-4)
    in_evaluation: Any = conventions.KERAS.in_evaluation
    with pytest.raises(TypeError, match=r"in_evaluation\(\) takes no 'moving_variance'; did you mean variance\?"):
        in_evaluation(1.0, moving_variance=1.0)
    with pytest.raises(TypeError, match="takes by position momentum, epsilon, and was given 3 values; by keyword"):
        options(0.9, 1e-4, True)


@pytest.mark.parametrize("name", ["", "qqqq", None, 3])
def test_a_name_that_is_none(name: Any) -> None:
    with pytest.raises(ParameterError, match=r"^the convention is .*; there are pytorch, keras, .*, matconvnet$"):
        named(name)


@pytest.mark.parametrize(
    ("key", "momentum", "weights"),
    [
        ("pytorch", "default", [0.1, 0.1, 0.1]),
        ("pytorch", None, [1, 1 / 2, 1 / 3]),
        ("keras", "default", [0.01, 0.01, 0.01]),
        ("keras", 0.75, [0.25, 0.25, 0.25]),
        ("haiku", 0.5, [1, 2 / 3, 4 / 7]),
        ("haiku", 1.0, [1, 1 / 2, 1 / 3]),
        ("haiku", 0.0, [1, 1, 1]),
        ("equinox_ema", 0.75, [1, 0.25, 0.25]),
        ("puzzlelib", 0.4, [1, 0.5, 0.4]),
    ],
)
def test_factors(key: str, momentum: Any, weights: list[float]) -> None:
    assert [ALL[key].factor(n, momentum) for n in (1, np.int64(2), 3)] == pytest.approx(weights, rel=1e-15)


@pytest.mark.parametrize("key", sorted(key for key, one in ALL.items() if one.trains))
def test_momentum_and_factor_are_each_others_way_back(key: str) -> None:
    convention = ALL[key]
    for factor in (0.0, 0.25, 0.3, 1.0):
        momentum = convention.momentum_for(factor)
        assert convention.factor(10**6, momentum) == pytest.approx(
            max(factor, 1e-6 if convention.first_batch in ("debiased", "settling") else 0), abs=1e-12
        )
    assert convention.momentum_for(0.25) == (0.25 if convention.momentum_of == "new" else 0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conventions.PYTORCH.factor(0), "n is 0; a whole number from 1 on is wanted, as the first batch is"),
        (lambda: conventions.PYTORCH.factor(1.0), "n is 1.0; a whole number"),
        (lambda: conventions.PYTORCH.factor(True), "n is True; a whole number"),
        (lambda: conventions.PYTORCH.factor(1, 1.5), "momentum is 1.5; a number from 0 to 1 is wanted"),
        (lambda: conventions.PYTORCH.options("0.1"), "momentum is '0.1'; a number from 0 to 1 is wanted"),
        (lambda: conventions.PYTORCH.options(float("nan")), "momentum is nan; a number from 0 to 1 is wanted"),
        (lambda: conventions.PYTORCH.options([0.1]), r"momentum is \[0.1\]; a number from 0 to 1 is wanted"),
        (lambda: conventions.PYTORCH.options(epsilon=-1), "epsilon is -1; a finite number from 0 on is wanted"),
        (lambda: conventions.PYTORCH.options(epsilon=float("inf")), "epsilon is inf; a finite number"),
        (
            lambda: conventions.KERAS.options(None),
            "momentum is None, which Keras does not know; .* the convention PYTORCH",
        ),
        (
            lambda: conventions.HAIKU.factor(1),
            "momentum is not given; a number from 0 to 1 is wanted, as Haiku has no def",
        ),
        (
            lambda: conventions.NCNN.options(0.1),
            "momentum is 0.1; ncnn does not train and has no momentum: leave it out",
        ),
        (lambda: conventions.NCNN.factor(1), "momentum is None; ncnn does not train"),
        (lambda: conventions.NCNN.momentum_for(0.1), "factor is 0.1; ncnn does not train"),
        (lambda: conventions.PYTORCH.momentum_for(2), "factor is 2; a number from 0 to 1 is wanted"),
        (
            lambda: conventions.DARKNET.options(),
            r"do not train as Darknet does, .* by the sample .* conventions.PYTORCH.options\(0.01, 1e-05\)$",
        ),
        (
            lambda: conventions.MATCONVNET.options(),
            "do not train as MatConvNet does, which averages deviations; make one",
        ),
        (
            lambda: conventions.EQUINOX.in_evaluation(0, 1),
            "batches is None; a whole number from 0 on is wanted, as Equi",
        ),
        (lambda: conventions.EQUINOX.in_evaluation(0, 1, batches=-1), "batches is -1; a whole number from 0 on"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        call()


def test_options_are_those_of_modules() -> None:
    assert conventions.PYTORCH.options() == {
        "epsilon": 1e-5,
        "sscale": 0.0,
        "initFactor": 0.0,
        "minFactor": 0.1,
        "estimator": "sample",
    }
    assert conventions.PYTORCH.options(None)["initFactor"] == 1.0
    assert conventions.PYTORCH.options(None)["minFactor"] == 0.0
    assert conventions.KERAS.options(0.75, 0.5)["minFactor"] == 0.25
    assert conventions.KERAS.options(0.75, 0.5)["epsilon"] == 0.5
    assert conventions.NCNN.options() == {"epsilon": 0.0, "sscale": 0.0}
    assert conventions.COREML.options(epsilon=1e-12)["epsilon"] == 2.0**-24


@pytest.mark.parametrize("key", sorted(key for key, one in ALL.items() if one.followed and one.key != "haiku"))
def test_every_class_takes_the_options(queue: cl.CommandQueue, key: str) -> None:
    bn = BatchNorm2D(3, queue=queue, **ALL[key].options())
    assert (bn.scale.get() == 1).all()
    assert bn.epsilon == ALL[key].options()["epsilon"]


def test_equinox_divides_by_nothing_before_the_first_batch() -> None:
    mean, var = conventions.EQUINOX.in_evaluation([0.0], [1.0], batches=0)
    assert (mean.tolist(), var.tolist()) == ([0.0], [1.0])
    _, var = conventions.EQUINOX.in_evaluation([0.0], [1.0], batches=1)
    assert var == pytest.approx(100)


def test_conventions_are_no_import_of_the_package() -> None:
    code = "import sys, oclbn.conventions; print('pyopencl' in sys.modules, len(oclbn.conventions.ALL))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == str(len(ALL))


def test_the_benchmark_gives_what_is_stored() -> None:
    """ONNX's reference is an extra of oclbn: it is run anew, with the versions that there are."""
    pytest.importorskip("onnx", reason="the extra io brings it")
    command = [sys.executable, str(ROOT / "benchmarks" / "conventions.py"), "--framework", "onnx"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["data"] == STORED["onnx"]["data"]
    for new, old in zip(found["runs"], STORED["onnx"]["runs"], strict=True):
        assert new["momentum"] == old["momentum"]
        for batch, statistics in old["statistics"].items():
            for key, values in statistics.items():
                np.testing.assert_allclose(new["statistics"][batch][key], values, rtol=1e-5, atol=1e-6)


def test_the_version_of_our_own() -> None:
    assert conventions.OCLBN.measured == f"oclbn {oclbn.__version__}"


# --- the page


PAGE = ROOT / "docs" / "pages" / "guide" / "conventions.md"
WORDS = {
    "sample": "by m \N{MINUS SIGN} 1",
    "population": "by m",
    "replaces": "taken whole",
    "debiased": "an average so far",
    "settling": "1/n at least",
    "refused": "an error",
    "step": "steps, as of variance 0",
    "nan": "NaN",
    "passes": "y = x; kept",
    "kept": "kept",
    None: "",
}


def plain(number: float) -> str:
    return f"{number:g}".replace("e-0", "e-")


def row(convention: Convention) -> str:
    """A convention in the page's table of those that train, or of those that evaluate alone."""
    names = ", ".join(f"`{name}`" for name in convention.names if name)
    epsilon = plain(convention.epsilon)
    cells = [f"`{convention.key.upper()}`", names]
    if not convention.trains:
        least = f", {plain(convention.least_epsilon)} at least" if convention.least_epsilon else ""
        return f"| {' | '.join([*cells, epsilon + least, ''])}|"
    stands = {"variance": "", "deviation": ", behind the root", "stored": ", stored with it"}[convention.epsilon_in]
    refused = "; 0 an error" if convention.zero_epsilon == "refused" else ""
    momentum = "none" if convention.momentum is None else plain(convention.momentum)
    first = WORDS[convention.first_batch]
    if convention.first_batch == "step":
        first = f"a step from {convention.initial_mean:g} and {convention.initial_variance:g}"
    cells += [epsilon + stands + refused, f"{momentum}, of the {convention.momentum_of}", WORDS[convention.estimator]]
    cells += [first, WORDS[convention.one_value], WORDS[convention.empty_batch]]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def note(convention: Convention) -> str:
    return f"| `{convention.key.upper()}`: {convention.name} | {convention.measured} | {convention.notes} |".replace(
        "  ", " "
    )


def table(title: str) -> list[str]:
    """The rows of the first table below a heading, without the table's own heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_the_page_has_all_of_them() -> None:
    assert table("Training") == [row(one) for one in ALL.values() if one.trains]
    assert table("Evaluation alone") == [row(one) for one in ALL.values() if not one.trains]
    assert table("Versions and notes") == [note(one) for one in ALL.values()]
