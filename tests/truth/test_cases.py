"""Cases: run by what has oclbn.functional's functions, judged by the bounds; here NumPy computes, no device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from oclbn.plan.operations import OPERATIONS
from oclbn.truth import cases, reference
from oclbn.truth.cases import Case, judge
from oclbn.truth.expectation import expected, saved
from oclbn.truth.hostile import MAKERS, Data


class Rounded:
    """The reference's results, rounded once; running statistics move in place, as on a device.

    Of statistics that it has saved it knows what rounding lost, as kernels find out.
    """

    def __init__(self) -> None:
        self.saved: list[tuple[Any, Any]] = []

    def batch_norm_train(self, x: Any, *given: Any, out: Any = None, **options: Any) -> Any:
        found = reference.train(x, *given, **options)
        for array, moved in zip(given[2:], (found.running_mean, found.running_var), strict=True):
            if array is not None:
                array[...] = moved
        exact = (found.y, found.mean, found.invstd)
        rounded = tuple(one.astype(x.dtype) for one in exact)
        self.saved = list(zip(rounded, exact, strict=True))
        return rounded

    def batch_norm_infer(self, x: Any, *given: Any, out: Any = None, **options: Any) -> Any:
        return reference.infer(x, *given, **options).astype(x.dtype)

    def moments(self, x: Any, *, axis: int) -> Any:
        count, *found = reference.moments(x, axis=axis)
        return (count, *(one.astype(x.dtype) for one in found))

    def batch_norm_backward(
        self, x: Any, dy: Any, scale: Any, mean: Any, deviation: Any, *, out: Any = None, **options: Any
    ) -> Any:
        if "epsilon" in options:
            deviation = 1 / np.sqrt(deviation.astype(np.float64) + options.pop("epsilon"))
        mean, deviation = (
            next((exact for rounded, exact in self.saved if rounded is one), one) for one in (mean, deviation)
        )
        return tuple(one.astype(x.dtype) for one in reference.backward(x, dy, scale, mean, deviation, **options))

    def batch_norm_double_backward(
        self, x: Any, dy: Any, scale: Any, mean: Any, deviation: Any, *, out: Any = None, **options: Any
    ) -> Any:
        if "epsilon" in options:
            deviation = 1 / np.sqrt(deviation.astype(np.float64) + options.pop("epsilon"))
        mean, deviation = (
            next((exact for rounded, exact in self.saved if rounded is one), one) for one in (mean, deviation)
        )
        made = reference.double_backward(x, dy, scale, mean, deviation, **options)
        return tuple(one.astype(x.dtype) for one in made)


def found(operation: str, host: Data, axis: int, **options: Any) -> dict[str, Any]:
    arrays = {name: getattr(host, name).copy() for name in cases.TAKES[operation]}
    if host.saved:
        arrays |= dict(zip(("save_mean", "save_invstd"), host.saved, strict=True))
    return cases.run(Rounded(), operation, arrays, axis=axis, **options)


@pytest.mark.parametrize("data", MAKERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_rounded_once_is_right(operation: str, data: str) -> None:
    for case in (Case((6, 5, 7), 1, data=data), Case((3, 4, 6), 2, "float64", data)):
        host = case.make(operation)
        worst = judge(found(operation, host, case.axis), expected(operation, host, case.axis))
        assert worst.good, worst


@pytest.mark.parametrize("operation", OPERATIONS)
def test_options_reach_both_sides(operation: str) -> None:
    host = Case((6, 5, 7)).make(operation)
    options = {"epsilon": 0.25} if operation in ("infer", "constant", "train", "double_constant") else {}
    options |= {"factor": 0.75} if operation == "train" else {}
    results = found(operation, host, 1, **options)
    assert judge(results, expected(operation, host, 1, **options)).good
    if options:
        assert not judge(results, expected(operation, host, 1)).good


@pytest.mark.parametrize("operation", ["backward", "constant"])
def test_saved_statistics_are_taken(operation: str) -> None:
    plain = Case((6, 5, 7)).make()
    mean, invstd = saved(plain, 1)
    host = Data(*(getattr(plain, name) for name in ("x", "dy", *cases.TAKES["train"][1:])), saved=(mean + 1, invstd))
    results = found(operation, host, 1)
    assert judge(results, expected(operation, host, 1)).good
    assert not judge(results, expected(operation, plain, 1)).good


def test_the_worst_result_is_told_with_its_place() -> None:
    host = Case((6, 5, 7)).make()
    wanted, results = expected("train", host, 1), found("train", host, 1)
    wanted_y, bound = wanted["y"]
    results["y"][2, 3, 4] = wanted_y[2, 3, 4] + 10 * bound[2, 3, 4]
    results["save_mean"][1] = np.nan
    told = str(judge({"y": results["y"]}, wanted))
    assert told.startswith("y errs by ")
    assert " times its tolerance: " in told
    assert told.endswith(" at (2, 3, 4), and 1 of 210 are off")
    assert judge({"y": results["y"]}, wanted).units == pytest.approx(10, rel=0.2)
    worst = judge(results, wanted)
    assert (worst.of, worst.good) == ("save_mean", False)
    assert str(worst).startswith("save_mean is wrong beyond measure: nan instead of ")
    assert str(judge({}, wanted)) == "there are no results"
    assert not judge({}, wanted).good
    assert "y has shape (1, 5, 7) instead of (6, 5, 7)" in str(judge({"y": results["y"][:1]}, wanted))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_buffers_hold_what_kernels_take(operation: str) -> None:
    """All that an operation needs, and room for all that it makes, under the names of its description."""
    host, wanted = Case((6, 5, 7)).make(operation), OPERATIONS[operation]
    buffers = cases.buffers(operation, host, 1)
    tensors = {wanted.kernel_names.get(name, name) for name in wanted.tensors}
    needed = {*tensors, *wanted.needed, *wanted.made, *wanted.results}
    known = needed | {*wanted.vectors, *wanted.state}
    assert needed <= set(buffers) <= known
    for name in (*wanted.made, *wanted.results):
        assert np.isnan(buffers[name]).all()
    assert set(expected(operation, host, 1)) == {*wanted.made, *wanted.results} | (
        {"running_mean", "running_var"} if operation == "train" else set()
    )


def test_the_reference_sums_in_float64() -> None:
    """In float32, sums of these would be off by far more than the bounds."""
    host = Case((1, 1, 1 << 20), data="mean is 1e4 std").make()
    wanted = expected("train", host, 1)["save_mean"][0]
    assert wanted[0] == pytest.approx(float(np.sum(host.x, dtype=np.longdouble) / host.x.size), rel=1e-15)
    assert {value.dtype for value, _ in expected("backward", host, 1).values()} == {np.dtype(np.float64)}
