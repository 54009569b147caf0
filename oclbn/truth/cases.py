"""One case: data are made for a tensor, an operation runs on them, its results are judged.

Whoever holds oclbn against the reference (`oclbn check` and its scripts, `tune`, `demo`, `bench`, proofs, tests) comes
by its data and its device in its own way; what runs there, and what counts as right, is told here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oclbn.activations import NONE, Activation
from oclbn.elements import named
from oclbn.truth import expectation
from oclbn.truth.bounds import excess
from oclbn.truth.expectation import EPSILON, FACTOR, Expected
from oclbn.truth.hostile import MAKERS, Data, Host, make

ORDINARY = "N(0,1)"
GRADIENTS = ("dx", "dscale", "dbias")
DOUBLE_GRADIENTS = ("gx", "gdy", "gscale")
_PUSHES = ("ddx", "ddscale", "ddbias")
_FORWARD = ("x", "scale", "bias", "running_mean", "running_var")
TAKES = {  # of Data
    "train": _FORWARD,
    "infer": _FORWARD,
    "moments": ("x",),
    "backward": ("x", "dy", "scale"),
    "constant": ("x", "dy", "scale", "running_mean", "running_var"),
    "double_backward": ("x", "dy", "scale", *_PUSHES),
    "double_constant": ("x", "dy", "scale", "running_mean", "running_var", *_PUSHES),
}


@dataclass(frozen=True)
class Case:
    """A tensor: shape, axis of the channels, element type, and which of oclbn.truth.hostile's data it holds."""

    shape: tuple[int, ...]
    axis: int = 1
    dtype: str = "float32"
    data: str = ORDINARY
    seed: int = 0

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return shape + (f" @{self.axis}" if self.axis != 1 else "") + (f" {self.dtype}" * (self.dtype != "float32"))

    def make(self, operation: str = "") -> Data:
        """The arguments of operations on it, the same on every run; what the second derivative takes if it is one."""
        host = make(self.shape, self.axis, named(self.dtype), MAKERS[self.data], seed=self.seed)
        return host.pushed(self.axis) if "ddx" in TAKES.get(operation, ()) else host


@dataclass(frozen=True)
class Judged:
    """The result that is farthest off, and by how many times its tolerance; 1 is the most that is allowed."""

    units: float
    of: str
    text: str = ""

    @property
    def good(self) -> bool:
        """Whether every result is within its bound."""
        return self.units <= 1.0

    def __str__(self) -> str:
        return self.text


def fused(host: Data, operation: str, axis: int, activation: Activation, *, residual: bool) -> Data:
    """The data with an activation, and with a residual, behind which derivatives come from the output if that tells."""
    behind = operation in ("backward", "constant")
    host = replace(host, activation=activation, second=residual and behind)
    by_output = behind and bool(activation.code) and activation.by_output
    return with_residual(host, operation, axis, host.x.dtype, by_output=by_output) if residual else host


def with_residual(host: Data, operation: str, axis: int, dtype: np.dtype[Any], *, by_output: bool) -> Data:
    """The data with a residual of this dtype, and where derivatives come from the output with that."""
    host = replace(host, residual=make(host.x.shape, axis, host.scale.dtype, seed=1).x.astype(dtype))
    if not by_output:
        return host
    forward = "infer" if operation == "constant" else "train"
    with np.errstate(over="ignore"):
        return replace(host, output=expectation.expected(forward, host, axis)["y"][0].astype(dtype))


def with_weights(host: Data, axis: int, dtype: np.dtype[Any]) -> Data:
    """The data with weights and offsets of this dtype, element by element."""
    one, other = (make(host.x.shape, axis, host.scale.dtype, seed=seed).x.astype(dtype) for seed in (2, 3))
    return replace(host, weights=one, offsets=other)


def run(
    functional: Any,
    operation: str,
    arrays: Mapping[str, Any],
    *,
    axis: int,
    epsilon: float = EPSILON,
    factor: float = FACTOR,
    out: Any = None,
    activation: Activation = NONE,
    second: bool = False,
    groups: int = 1,
) -> dict[str, Any]:
    """Call an operation of oclbn.functional; its results by the names of oclbn.truth.expectation.

    arrays: on the device, by the names of Data, `save_mean` and `save_invstd` for its `saved`; what is missing is left
    out, but for the statistics that "backward" needs: a training step saves them. Behind an activation, backward gets
    `output` as y, or else `residual`; second: the residual's gradient is wanted as well.
    """
    given = arrays.get
    x, scale, running = given("x"), given("scale"), (given("running_mean"), given("running_var"))
    if operation == "moments":
        return dict(zip(("mean", "m2"), functional.moments(x, axis=axis)[1:], strict=True))
    into: dict[str, Any] = {"axis": axis, "out": out}
    if groups > 1:
        into["groups"] = groups
    fused: dict[str, Any] = {}
    if activation.code or given("residual") is not None:
        fused = {"activation": activation.option, "residual": given("residual")}
    if operation == "infer":
        return {"y": functional.batch_norm_infer(x, scale, given("bias"), *running, epsilon=epsilon, **into, **fused)}
    if operation == "train":
        made = functional.batch_norm_train(
            x, scale, given("bias"), *running, epsilon=epsilon, factor=factor, **into, **fused
        )
        moved = {name: arrays[name] for name in ("running_mean", "running_var") if given(name) is not None}
        return dict(zip(("y", "save_mean", "save_invstd"), made, strict=True)) | moved
    training = operation in ("backward", "double_backward")
    if "save_mean" in arrays:
        statistics = arrays["save_mean"], arrays["save_invstd"]
    elif training:
        own = {**into, "out": None}
        statistics = functional.batch_norm_train(x, scale, None, None, None, epsilon=epsilon, **own)[1:]
    else:
        statistics, into = running, {**into, "epsilon": epsilon}
    if operation.startswith("double"):
        pushes = {name: given(name) for name in _PUSHES}
        made = functional.batch_norm_double_backward(
            x, given("dy"), scale, *statistics, **pushes, training=training, **into
        )
        return dict(zip(DOUBLE_GRADIENTS, made, strict=True))
    if fused or second:
        fused |= {"bias": given("bias"), "y": given("output"), "dresidual": second}
    made = functional.batch_norm_backward(x, given("dy"), scale, *statistics, training=training, **into, **fused)
    return dict(zip((*GRADIENTS, "dresidual"), made, strict=False))


def buffers(operation: str, host: Data, axis: int) -> dict[str, Host]:
    """What lies in memory before the operation's kernels run, by the names of their arguments; results are NaN.

    Without what may be left out, but with scale and bias.
    """
    tensor, per_channel = np.full(host.x.shape, np.nan, host.written), np.full_like(host.scale, np.nan)
    each = per_channel if host.groups == 1 else np.stack([per_channel] * host.groups)
    if operation == "moments":
        return {"x": host.x, "mean": per_channel, "m2": per_channel}
    found = {"x": host.x, "scale": host.scale}
    if operation in ("train", "infer"):
        found |= {"y": tensor, "bias": host.bias}
        if host.residual is not None:
            found["aux"] = host.residual
        if host.weights is not None and host.offsets is not None:
            found |= {"aux": host.weights, "offsets": host.offsets}
    if operation == "infer":
        return found | {"mean": host.running_mean, "var": host.running_var}
    if operation == "train":
        found |= {"running_mean": host.running_mean, "running_var": host.running_var}
        return found | dict.fromkeys(("save_mean", "save_invstd"), each)
    if operation == "given":
        mean, deviation = expectation.saved(host, axis)
        return {"x": host.x, "y": tensor, "save_mean": mean, "save_invstd": deviation}
    if operation == "sums":
        sums = ("sum_dy", "sum_dy_rest", "sum_dy_xmu", "sum_dy_xmu_rest", "sum_xmu", "sum_xmu_rest")
        mean, deviation = expectation.saved(host, axis)
        found = {"x": host.x, "dy": host.dy, "save_mean": mean, **dict.fromkeys(sums, per_channel)}
        return found | ({"scale": host.scale, "save_invstd": deviation} | _behind(host) if host.activation.code else {})
    if operation.startswith("double"):
        found |= {"dy": host.dy, "gx": tensor, "gdy": tensor, "gscale": per_channel}
        pushes = {"aux": host.ddx, "ddscale": host.ddscale, "ddbias": host.ddbias}
        found |= {name: array for name, array in pushes.items() if array is not None}
    else:
        found |= {"dy": host.dy, "dx": tensor, "dscale": per_channel, "dbias": per_channel}
    found |= _behind(host)
    if host.second:
        found["dresidual"] = tensor
    if operation in ("constant", "double_constant"):
        return found | {"save_mean": host.running_mean, "var": host.running_var}
    return found | dict(zip(("save_mean", "save_invstd"), expectation.saved(host, axis), strict=True))


def _behind(host: Data) -> dict[str, Host]:
    """What backward takes behind an activation, beside scale and statistics."""
    aux = host.residual if host.output is None else host.output
    if host.weights is not None:
        return {"aux": host.weights}
    if not host.activation.code:
        return {}
    return {"bias": host.bias} if aux is None else {"bias": host.bias, "aux": aux}


def judge(found: Mapping[str, Any], wanted: Expected) -> Judged:
    """Hold the results that are there, on the host, against what is wanted; the worst of them counts."""
    each = [_judge(name, np.asarray(result), *wanted[name]) for name, result in found.items()]
    return max(each, key=lambda one: one.units, default=Judged(math.inf, "nothing", "there are no results"))


def _judge(name: str, got: Host, wanted: Host, bound: Host) -> Judged:
    if got.size != wanted.size:
        return Judged(math.inf, name, f"{name} has shape {got.shape} instead of {wanted.shape}")
    units = excess(got, wanted, bound)
    if not units.size:
        return Judged(0.0, name, f"{name} is empty")
    at = np.unravel_index(int(np.argmax(units)), wanted.shape)
    off, most = int((units > 1.0).sum()), float(units[at])
    told = f"errs by {most:.3g} times its tolerance" if most < math.inf else "is wrong beyond measure"
    digits = {2: 6, 4: 9}.get(got.dtype.itemsize, 17)  # that tell one number of the type from the next
    where = f"{got.reshape(wanted.shape)[at]!s} instead of {wanted[at]:.{digits}g} at {tuple(map(int, at))}"
    return Judged(most, name, f"{name} {told}: {where}, and {off} of {units.size} are off")
