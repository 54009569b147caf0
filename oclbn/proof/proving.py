"""Proof of kernels: each form is held against float64 NumPy on a small tensor before its results are handed out.

Compilers of OpenCL drivers do miscompile: they pass vectors in the wrong registers, run a loop's body twice, choose
wrongly by a mask. A network that is trained on such results gets worse, and nothing says why. So before a form, that
is, the kernels of a plan with their builds, gives its first result on a device, it normalises a made-up tensor
(oclbn.proof.miniature), and all that it writes is compared: outputs within the tolerances of oclbn.truth.bounds, what
it does once (running statistics, gathered gradients, counters), and that nothing beside them has changed. Verdicts are
remembered in the process and on disk (oclbn.proof.verdicts).

A form that fails is not used. The planner is asked again: for the usual UNROLL, without chains, with narrower
vectors, for the other variants, and at last for `serial`. One warning per device and process (DriverWarning) says
what failed; `explain` says it as well. Where nothing passes, that is a DeviceError. The environment variable
OCLBN_PROVE=0 switches all of it off.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn.activations import NAMES, SLOPES, Activation
from oclbn.device import limits, pocl
from oclbn.elements import kind, of_kind, range_of
from oclbn.errors import BuildError, DeviceError, DriverWarning, warn_caller
from oclbn.plan import selected, strided
from oclbn.plan.operations import ALL, OPERATIONS, operation_of
from oclbn.plan.variants import fitting_plan
from oclbn.plan.words import ALONE, DeviceLimits, Fusion, Launch, Memory, Plan, Problem, Tuning, in_words
from oclbn.program import building, sources
from oclbn.proof.miniature import Paths, miniature, paths_of
from oclbn.proof.verdicts import Verdict, Verdicts
from oclbn.truth import reference
from oclbn.truth.bounds import ELEMENT, SUM, TWICE, Bound, rounded
from oclbn.truth.cases import buffers, judge, with_residual, with_weights
from oclbn.truth.expectation import EPSILON, FACTOR, Expected, expected, invstd
from oclbn.truth.hostile import Data, Host, Offset, make, others
from oclbn.version import version

VARIABLE = "OCLBN_PROVE"
_GUARD = 64  # elements of NaN around every array: whole lines, so that arrays begin as those of users mostly do
_RATIO = 32.0  # mean to standard deviation of the data: enough to show what is lost, or read from another channel
_WANDERING = 3  # of as many channels one wanders, and one is far off
_FAR_OFF = 1e4  # standard deviations: shows what is lost of bases and of the mean's rest
_SUBNORMAL = 2.0**-20  # makes such numbers of the last channel
_RESOLVED = 0.125  # standard deviations that the next number of a narrow type is away there, at most
_COUNTED = 5  # where the counter of skipped updates stands beforehand
_OPTIONAL = {"scale", "bias", "skipped", "entered", "scale_grad", "bias_grad", "mean_rest", "m2_rest"}
_OPTIONAL |= {"ddscale", "ddbias"}
_GATHER = {"grad_scale": 0.5, "grad_momentum": 0.25}
_NOTHING: dict[str, Any] = {"counts": (-1, np.int64)}  # what memory between launches holds at first, if not NaN
_ONE_BY_ONE = 1030  # numbers for kernels that take them one by one, several each
_FEW_GROUPS = 3
_VARIANTS = ("split", "resident")
_POSITIONS = 1030, 5  # of which some are inside a mask, and their channels
_FORMS_OF_POSITIONS = ((5, 1, 0), (11, 2, 0), (1, 1033, 1), (7, 1, 1))
_SLOPE = 0.25  # of activations that take a number
_BY_OUTPUT = 2  # Fusion.aux
_WEIGHTED = {one.results_of: len(one.fusable) for one in ALL.values() if "weights" in one.fusable}  # Fusion.aux
_BROUGHT = {"running_mean", "running_var", "skipped", "entered", "dscale", "dbias", "scale_grad", "bias_grad"}
_UNDER = {"train": "aux", "backward": "dy", "constant": "dy", "infer": "aux"}  # where results may lie
NOTHING_OVER: Mapping[str, str] = MappingProxyType({})

_log = logging.getLogger("oclbn.proof")
_lock = threading.RLock()
_devices: dict[cl.Device, _OfDevice] = {}


@dataclass(frozen=True)
class Failure:
    """A form that is not used, and why."""

    form: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{in_words(self.form)}: {_fault(self.verdict)}"


class _OfDevice:
    """What is known of one device."""

    def __init__(self, device: cl.Device) -> None:
        self.verdicts = Verdicts.of(_identity(device))
        self.warned = False


def switched_on() -> bool:
    """Whether kernels prove themselves: unless OCLBN_PROVE is 0."""
    return os.environ.get(VARIABLE, "1") != "0"


def proven_plan(
    operation: str,
    problem: Problem,
    facts: DeviceLimits,
    tuning: Tuning,
    most: Callable[[Launch], int],
    context: cl.Context,
    device: cl.Device,
) -> tuple[Plan, tuple[Failure, ...]]:
    """The first plan whose kernels give what they should on this device, and the forms that were not taken.

    most: as plan.fitting_plan takes it. DeviceError where no form is right.
    """
    wanted = ALL[operation]
    if wanted.part_of:
        whole, faults = proven_plan(wanted.part_of, problem, facts, tuning, most, context, device)
        return whole.part(wanted.split), faults
    if not switched_on():
        return fitting_plan(operation, problem, facts, tuning, most), ()
    failures: dict[tuple[Paths, tuple[Launch, ...]], Failure] = {}
    declined: tuple[str, ...] = ()
    for choice in _choices(tuning):
        try:
            planned = fitting_plan(operation, problem, facts, choice, most)
        except BuildError:  # a compiler that errs with one form may refuse the next
            if not failures:
                raise
            continue
        paths = paths_of(problem, planned)
        if failures and _form(planned, paths) in failures:
            continue
        verdict = _verdict(operation, problem, planned, paths, context, device)
        if verdict.good:
            if failures:
                _warn(device, tuple(failures.values()), planned)
                planned = replace(planned, declined=declined)
            return planned, tuple(failures.values())
        if not failures:
            declined = planned.declined  # of what was chosen; the rest is no choice
        failures[_form(planned, paths)] = Failure(str(planned), verdict)
    told = "; ".join(map(str, failures.values()))
    raise DeviceError(f"no kernel for {operation} gives right results on {_named(device)}. Tried: {told}. {_REPORT}")


def is_proven(operation: str, problem: Problem, planned: Plan, device: cl.Device) -> bool:
    """Whether there is a verdict on this form already, good or bad; never where proofs are switched off."""
    if not switched_on():
        return False
    with _lock:
        return _key(operation, planned, paths_of(problem, planned)) in _of(device).verdicts.known


def look_again(device: cl.Device) -> None:
    """Take over what other processes have found meanwhile."""
    with _lock:
        _of(device).verdicts.look_again()


def require(launch: Launch, context: cl.Context, device: cl.Device) -> None:
    """DeviceError unless a kernel is right that has no other form: accumulate, merge, pack, compress."""
    if not switched_on():
        return
    key = f"{_digest('', [launch])} {launch.kernel}"
    with _lock:
        known = _of(device)
        verdict = known.verdicts.known.get(key)
        if verdict is None:
            verdict = _ALONE[launch.kernel](launch, context, device)
            known.verdicts.add(key, verdict)
    if not verdict.good:
        raise DeviceError(f"{launch.kernel} is wrong on {_named(device)}: {_fault(verdict)}")


def _prove_accumulate(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    dtype = _dtype(launch)
    host = make((1, _ONE_BY_ONE), 1, dtype)
    arrays = {"into": host.bias, "added": host.scale}
    numbers = {**_GATHER, "scale": _GATHER["grad_scale"], "momentum": _GATHER["grad_momentum"], "count": _ONE_BY_ONE}
    memory = _ran([replace(launch, groups=_FEW_GROUPS)], arrays, numbers, context, device)
    nothing = np.zeros(_ONE_BY_ONE)
    gathered = _gathered(host.scale.astype(np.float64), nothing, host.bias)
    return _judged({"into": gathered, "added": (host.scale, nothing)}, memory)


def _prove_merge(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    """Of sets whose means differ by as much as their values do, and lie far off zero."""
    dtype = _dtype(launch)
    eps = float(np.finfo(dtype).eps)
    host = make((1, _ONE_BY_ONE), 1, dtype)
    arrays: dict[str, Host] = {}
    sets = []
    for count, name, values, tilt in ((700, "first", host.bias, host.scale), (1001, "second", host.dy[0], -host.scale)):
        mean, m2 = (values + 1e3).astype(dtype), (host.running_var * count).astype(dtype)
        rests = [(0.25 * eps * number * tilt).astype(dtype) for number in (mean, m2)]
        arrays |= {f"{name}_mean": mean, f"{name}_mean_rest": rests[0], f"{name}_m2": m2, f"{name}_m2_rest": rests[1]}
        exact = [number.astype(np.float64) for number in (mean, rests[0], m2, rests[1])]
        sets.append(reference.Statistics(count, exact[0], exact[1], exact[2] + exact[3]))
    arrays |= dict.fromkeys(("mean", "mean_rest", "m2", "m2_rest"), np.full(_ONE_BY_ONE, np.nan, dtype))
    numbers = {"channels": _ONE_BY_ONE, "first_count": sets[0].count, "second_count": sets[1].count}
    memory = _ran([replace(launch, groups=_FEW_GROUPS)], arrays, numbers, context, device)
    wanted = reference.merge(*sets)
    apart = np.abs(sets[0].mean - sets[1].mean)
    mean_room = eps * (ELEMENT * apart + TWICE * eps * np.abs(wanted.mean)) + _summed(wanted.mean)
    return _judged(
        {
            "mean + mean_rest": (wanted.mean + wanted.mean_rest, mean_room),
            "m2 + m2_rest": (wanted.m2, SUM * eps * wanted.m2),
        },
        memory,
    )


def _prove_pack(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    """Of a mirrored and cropped view, row by row; and of one whose rows have their elements apart."""
    if dict(launch.build.defines).get("CAST"):
        return _prove_cast(launch, context, device)
    item = dict(launch.build.defines)["BYTES"]
    whole = np.random.default_rng(item).integers(0, 256, (6, 9, 20, 37 * item), np.uint8)
    items = whole.view(f"V{item}")
    worst = Verdict(0.0, "nothing")
    for view in (items[::-1, 2:, ::3].swapaxes(0, 1), items[1:, :, ::-1, 3:].transpose(0, 3, 1, 2)):
        wanted = np.ascontiguousarray(view)
        found = strided.cut(view.shape, item, view.strides, wanted.strides, item)
        groups, numbers = strided.numbers(found, launch.lanes)
        begin = view.__array_interface__["data"][0] - items.__array_interface__["data"][0]
        ((source, target),) = found.starts((_GUARD + begin) // item, _GUARD // item)
        arrays = {"source": whole, "target": np.zeros(wanted.nbytes, np.uint8)}
        starts = {"source_start": source, "target_start": target}
        memory = _ran([replace(launch, groups=groups)], arrays, numbers, context, device, starts)
        exact = wanted.view(np.uint8).reshape(-1)
        verdict = _judged(
            {"target": (exact, np.zeros(exact.size)), "source": (whole.reshape(-1), np.zeros(whole.size))}, memory
        )
        worst = max(worst, verdict, key=_units)
    return worst


def _prove_cast(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    """Of numbers of all sizes that the source has, infinities, NaN, and what lies half between two of the target's."""
    defines = dict(launch.build.defines)
    source, target = (
        of_kind(defines[f"KIND_{name}"], np.dtype(np.float64 if defines[f"DOUBLE_{name}"] else np.float32))
        for name in ("x", "to")
    )
    rng, most = np.random.default_rng(0), range_of(source).max
    powers = np.exp2(rng.uniform(math.log2(range_of(source).least), math.log2(most), _ONE_BY_ONE - 8))
    signed = powers * rng.choice([-1.0, 1.0], powers.size)
    with np.errstate(all="ignore"):
        edge = 1.0 + 0.5 * range_of(target).eps  # rounds to even
        odd = [np.nan, np.inf, -np.inf, 0.0, -most, edge, -3 * edge, 1.0 + range_of(source).eps]
        host = np.concatenate([signed, odd]).astype(source)
        exact = host.astype(np.float64)
        wanted = exact if target == np.float64 else rounded(exact, target)
        lost = range_of(np.dtype(np.float32)).tiny  # a device need not have float32's denormal numbers
        room = np.where(np.abs(exact) < lost, lost, 0.0)
    found = strided.cut(host.shape, 1, (1,), (1,), 1)
    groups, numbers = strided.numbers(found, launch.lanes)
    arrays = {"source": host, "target": np.zeros(host.size, target)}
    memory = _ran([replace(launch, groups=groups)], arrays, numbers, context, device)
    return _judged({"target": (wanted, room)}, memory)


def _summed(values: Host) -> Host:
    """What adding a result and its rest errs by here, in float64: of float64 it rounds them into one number again."""
    rounded: Host = np.finfo(np.float64).eps * np.abs(values)
    return rounded


def _prove_merge_sums(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    """Of sums that cancel, but for the last digits."""
    dtype = _dtype(launch)
    eps = float(np.finfo(dtype).eps)
    host = make((1, _ONE_BY_ONE), 1, dtype)
    arrays: dict[str, Host] = {}
    results: Expected = {}
    for name, values in (("sum_dy", host.scale), ("sum_dy_xmu", host.bias), ("sum_xmu", host.dy[0])):
        first, second = values, (-values * dtype.type(1 + 64 * eps)).astype(dtype)
        rest = (0.25 * eps * values).astype(dtype)
        arrays |= {f"first_{name}": first, f"first_{name}_rest": rest}
        arrays |= {f"second_{name}": second, f"second_{name}_rest": rest, name: np.full_like(values, np.nan)}
        arrays[f"{name}_rest"] = np.full_like(values, np.nan)
        exact = first.astype(np.float64) + second + 2.0 * rest
        results[f"{name} + {name}_rest"] = exact, ELEMENT * eps * np.abs(exact) + _summed(values)
    numbers = {"channels": _ONE_BY_ONE, "first_count": 3, "second_count": 5}
    return _judged(results, _ran([replace(launch, groups=_FEW_GROUPS)], arrays, numbers, context, device))


def _prove_invstd(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    dtype = _dtype(launch)
    host = make((1, _ONE_BY_ONE), 1, dtype)
    m2 = (host.running_var * _COUNTED).astype(dtype)
    arrays = {"m2": m2, "m2_rest": np.zeros_like(m2), "save_invstd": np.full_like(m2, np.nan)}
    numbers = {"channels": _ONE_BY_ONE, "count": _COUNTED, "epsilon": EPSILON}
    memory = _ran([replace(launch, groups=_FEW_GROUPS)], arrays, numbers, context, device)
    wanted = 1.0 / np.sqrt(m2.astype(np.float64) / _COUNTED + EPSILON)
    return _judged({"save_invstd": (wanted, ELEMENT * float(np.finfo(dtype).eps) * wanted)}, memory)


def _prove_renorm(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    """Of channels within the limits and beyond both ends of each."""
    dtype = _dtype(launch)
    eps = float(np.finfo(dtype).eps)
    host = make((1, _ONE_BY_ONE), 1, dtype)
    m2 = (host.running_var[::-1] * _COUNTED).astype(dtype)
    nothing = np.full_like(m2, np.nan)
    arrays = {"mean": host.bias, "m2": m2, "m2_rest": np.zeros_like(m2), "scale": host.scale, "bias": host.dy[0]}
    arrays |= {"running_mean": host.running_mean, "running_var": host.running_var}
    arrays |= dict.fromkeys(("r", "d", "scale_r", "bias_d"), nothing)
    numbers = {"channels": _ONE_BY_ONE, "count": _COUNTED, "epsilon": EPSILON, "r_max": 1.5, "d_max": 0.75}
    memory = _ran([replace(launch, groups=_FEW_GROUPS)], arrays, numbers, context, device)
    var, running = m2.astype(np.float64) / _COUNTED + EPSILON, host.running_var.astype(np.float64) + EPSILON
    scale, bias, far = (array.astype(np.float64) for array in (host.scale, host.dy[0], host.bias))
    r = np.clip(np.sqrt(var / running), 1.0 / numbers["r_max"], numbers["r_max"])
    shift = (far - host.running_mean) / np.sqrt(running)
    d = np.clip(shift, -numbers["d_max"], numbers["d_max"])
    room = ELEMENT * eps * (np.abs(d) + (np.abs(far) + np.abs(host.running_mean)) / np.sqrt(running))
    return _judged(
        {
            "r": (r, ELEMENT * eps * r),
            "d": (d, room),
            "scale_r": (scale * r, ELEMENT * eps * np.abs(scale * r)),
            "bias_d": (bias + scale * d, np.abs(scale) * room + ELEMENT * eps * (np.abs(scale * d) + np.abs(bias))),
        },
        memory,
    )


def _prove_renorm_gradient(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    dtype = _dtype(launch)
    host = make((1, _ONE_BY_ONE), 1, dtype)
    arrays = {"r": host.running_var, "d": host.running_mean, "dscale": host.scale, "dbias": host.bias}
    arrays |= {"scale_grad": host.dy[0], "bias_grad": host.x[0]}
    numbers = {**_GATHER, "channels": _ONE_BY_ONE}
    memory = _ran([replace(launch, groups=_FEW_GROUPS)], arrays, numbers, context, device)
    r, d, scale, bias = (arrays[name].astype(np.float64) for name in ("r", "d", "dscale", "dbias"))
    wanted, size = r * scale + d * bias, np.abs(r * scale) + np.abs(d * bias)
    room = ELEMENT * float(np.finfo(dtype).eps) * size
    gathered = {"scale_grad": _gathered(wanted, room, host.dy[0])}
    gathered["bias_grad"] = _gathered(bias, np.zeros_like(bias), host.x[0])
    return _judged({"dscale": (wanted, room), **gathered}, memory)


def _prove_positions(launch: Launch, context: cl.Context, device: cl.Device) -> Verdict:
    """Of tensors whose positions lie mirrored, and whose channels lie side by side, with gaps, or apart."""
    return max((_moved(launch, form, context, device) for form in _FORMS_OF_POSITIONS), key=_units)


def _moved(launch: Launch, form: tuple[int, int, int], context: cl.Context, device: cl.Device) -> Verdict:
    """What compress puts side by side, or expand back where it was, of a tensor that lies so, and what lies beside it.

    form: how far positions and channels lie from each other, in items, and whether the tensor of what is inside has
    its channels apart.
    """
    position, channel, apart = form
    item, (positions, channels) = dict(launch.build.defines)["BYTES"], _POSITIONS
    rng = np.random.default_rng(item)
    inside = rng.random(positions) < 0.6
    count = int(inside.sum())
    tensor = rng.integers(0, 256, ((positions - 1) * position + (channels - 1) * channel + 1, item), np.uint8)
    places = np.arange(positions)[::-1] * position
    where = places[:, None] + np.arange(channels) * channel
    taken = tensor[where[inside]]
    small = np.ascontiguousarray(taken.swapaxes(0, 1) if apart else taken).reshape(-1)
    numbers = {"inside": count, "channels": channels, "apart": apart, "source_channel": channel}
    rows = count if launch.kernel == "compress" else positions
    inner, rows = (rows, channels) if apart else (channels, rows)
    groups, cut = selected.tiles(selected.rounded_up(inner), selected.rounded_up(rows), launch.lanes)
    numbers |= {**cut, "positions": positions, "target_channel": channel}
    begin, last = _GUARD // item, (positions - 1) * position  # from which places are counted backwards
    starts = {"source_start": begin + last, "target_start": begin + last}
    if launch.kernel == "compress":
        arrays = {"source": tensor, "places": places[inside] - last, "target": np.zeros_like(small)}
        results = {"target": small, "source": tensor.reshape(-1)}
    else:
        ranks = np.where(inside, np.cumsum(inside) - 1, -1)
        target = np.full_like(tensor, _COUNTED)
        arrays = {"source": small, "ranks": ranks, "places": places - last, "target": target}
        exact = target.copy()
        exact[where] = 0
        exact[where[inside]] = taken
        results = {"target": exact.reshape(-1)}
    memory = _ran([replace(launch, groups=groups)], arrays, numbers, context, device, starts)
    return _judged({name: (one, np.zeros(one.size)) for name, one in results.items()}, memory)


_ALONE = {
    "accumulate": _prove_accumulate,
    "compress": _prove_positions,
    "expand": _prove_positions,
    "invstd": _prove_invstd,
    "merge": _prove_merge,
    "merge_sums": _prove_merge_sums,
    "pack": _prove_pack,
    "renorm": _prove_renorm,
    "renorm_gradient": _prove_renorm_gradient,
}


def _dtype(launch: Launch) -> np.dtype[Any]:
    return np.dtype(np.float64 if dict(launch.build.defines)["DOUBLE"] else np.float32)


def failures(device: cl.Device) -> tuple[str, ...]:
    """The forms that are not used on a device, as far as was found out: in this process or an earlier one."""
    with _lock:
        known = _of(device).verdicts.known
        return tuple(f"{in_words(key.partition(' ')[2])}: {_fault(v)}" for key, v in known.items() if not v.good)


def forget() -> None:
    """Drop what this process knows; it is on disk, or is written now, while the folder is that of its time."""
    with _lock:
        for known in _devices.values():
            known.verdicts.settle()
        _devices.clear()
        _source_digest.cache_clear()


def _choices(tuning: Tuning) -> Iterator[Tuning]:
    """As chosen, then ever more careful."""
    yield tuning
    if tuning.unroll != (usual := Tuning().unroll):
        tuning = replace(tuning, unroll=usual)
        yield tuning
    for variant in (tuning.variant, *_VARIANTS):
        vec = tuning.vec
        while vec >= 1:
            for chains in dict.fromkeys((tuning.chains, 0)):
                yield replace(tuning, variant=variant, vec=vec, chains=chains)
            vec //= 2
    yield replace(tuning, variant="serial")


def _form(planned: Plan, paths: Paths) -> tuple[Paths, tuple[Launch, ...]]:
    return paths, tuple(replace(launch, groups=1) for launch in planned.launches)


def _verdict(
    operation: str, problem: Problem, planned: Plan, paths: Paths, context: cl.Context, device: cl.Device
) -> Verdict:
    described = operation_of(operation, problem.fusion)
    operation = described.results_of or operation
    key = _key(operation, planned, paths)
    with _lock:
        known = _of(device)
        verdict = known.verdicts.known.get(key)
        if verdict is None:
            start = time.perf_counter()
            verdict = _prove(operation, *miniature(described, problem, planned), context, device)
            seconds = time.perf_counter() - start
            _log.info(
                "proved %s %s in %.3f s: %s errs by %.3g times its tolerance",
                operation,
                planned,
                seconds,
                verdict.of,
                verdict.units,
                extra={"seconds": seconds},
            )
            known.verdicts.add(key, verdict)
        return verdict


def _prove(operation: str, small: Problem, planned: Plan, context: cl.Context, device: cl.Device) -> Verdict:
    """Run it with all that it can be given, then with little of that at odd places, and compare all that it writes."""
    rows = small.outer * small.batches + small.longer * small.sample_rows
    shape = (rows, small.channels) if small.columns else (rows, small.channels, small.inner)
    x, dy, aux, result = (of_kind(kind, _dtype(planned.launches[0])) for kind in small.kinds)
    host = replace(_data(shape, x, dy, result), groups=small.batches)
    host = _fused(operation, host, aux, small.fusion)
    if operation in OPERATIONS and OPERATIONS[operation].optional:
        host = host.pushed(1)
        host = replace(host, ddx=None if small.fusion.without or host.ddx is None else host.ddx.astype(aux))
    arrays, numbers = _arrays(operation, host, planned), {**_numbers(small, planned, host.scale.dtype), **_GATHER}
    numbers["slope"] = host.activation.slope
    over = {ALL[operation].result: _UNDER[operation]} if small.fusion.shared else {}
    full = _judged(
        _left(_wanted(operation, host), small.fusion),
        _ran(planned.launches, arrays, numbers, context, device, between=planned.memory, over=over),
    )
    if not full.good:
        return full
    arrays, host = _fewer(operation, host, arrays)
    numbers |= {"grad_scale": 1.0, "grad_momentum": 0.0}
    wanted = _left(_wanted_of_fewer(operation, host), small.fusion)
    memory = _ran(
        planned.launches, arrays, numbers, context, device, guard=_GUARD + 1, between=planned.memory, over=over
    )
    return max(full, _judged(wanted, memory), key=_units)


def _left(wanted: Expected, fusion: Fusion) -> Expected:
    """What there is of that, where numbers of several batches are not brought together."""
    return {name: one for name, one in wanted.items() if not (fusion.apart and name in _BROUGHT)}


def _fused(operation: str, host: Data, aux: np.dtype[Any], fusion: Fusion) -> Data:
    """The data with what an activation and a residual want, of this type."""
    if fusion == ALONE:
        return host
    if fusion.aux == _WEIGHTED.get(operation):
        return with_weights(host, 1, aux)
    name = NAMES[fusion.act]
    activation = Activation(name, _SLOPE if name in SLOPES else 0.0)
    host = replace(host, activation=activation, second=fusion.second)
    return with_residual(host, operation, 1, aux, by_output=fusion.aux == _BY_OUTPUT) if fusion.aux else host


def _fewer(operation: str, host: Data, arrays: dict[str, Host]) -> tuple[dict[str, Host], Data]:
    """What is left without options, and data to which a scale of 1 and a bias of 0 belong.

    A gradient is gathered where NaN was; constants come as the reciprocal of a deviation.
    """
    left = {name: array for name, array in arrays.items() if name not in _OPTIONAL}
    if operation == "backward":
        left["scale_grad"] = np.full_like(host.scale, np.nan)
    if operation in ("constant", "double_constant"):
        left["save_invstd"] = invstd(host).astype(host.scale.dtype)
        del left["var"]
    ones, zeros = np.ones_like(host.scale), np.zeros_like(host.bias)
    return left, replace(host, scale=ones, bias=zeros, ddscale=None, ddbias=None)


def _wanted_of_fewer(operation: str, host: Data) -> Expected:
    wanted = expected(operation, host, 1)
    if operation == "backward":
        wanted["scale_grad"] = wanted["dscale"]
    return wanted


def _units(verdict: Verdict) -> float:
    return verdict.units


def _ran(
    launches: Sequence[Launch],
    arrays: dict[str, Host],
    numbers: Mapping[str, Any],
    context: cl.Context,
    device: cl.Device,
    starts: Mapping[str, int] | None = None,
    guard: int = _GUARD,
    between: Sequence[Memory] = (),
    over: Mapping[str, str] = NOTHING_OVER,
) -> _Memory:
    """The launches' memory after them; arrays and numbers by the names of the kernels' arguments.

    An array that is not given is null. starts: instead of the arrays' own. guard: numbers before each array. between:
    what of them has rows with names of their own. over: of results, the array that each is written over.
    """
    memory, values = _Memory(context, device, guard), dict(numbers)
    kernels = [(launch, building.new_kernel(context, launch.build, launch.kernel)) for launch in launches]
    taken = [[name for name, _ in building.arguments(launch.build, launch.kernel)] for launch, _ in kernels]
    for name, given in arrays.items():
        if any(name in names for names in taken):
            begins = any(f"{name}_start" in names for names in taken)
            values[name], values[f"{name}_start"] = memory.put(name, given, begins=begins)
    for name, under in over.items():
        values[name], values[f"{name}_start"] = memory.let(name, under)
    for one in between:
        buffer, begin = values[one.name], values[f"{one.name}_start"]
        for row, start in one.starts.items():
            values[row], values[f"{row}_start"] = buffer, begin + start
    values |= starts or {}
    for (launch, kernel), names in zip(kernels, taken, strict=True):
        kinds = dict(building.arguments(launch.build, launch.kernel))
        nothing = {
            name: None if kinds[name] is None else 0 for name in names if name.removesuffix("_start") not in values
        }
        own = values | nothing | dict(launch.numbers)
        kernel.set_args(*[own[name] for name in names])
        cl.enqueue_nd_range_kernel(memory.queue, kernel, (launch.groups * launch.lanes,), (launch.lanes,))
    return memory


def _judged(results: Expected, memory: _Memory) -> Verdict:
    found: dict[str, Host] = {}
    for name in results:
        (first, kept), *others = [memory.get(part) for part in name.split(" + ")]
        if not all((kept, *(whole for _, whole in others))):
            return Verdict(math.inf, f"what lies beside {name}")
        found[name] = sum((other for other, _ in others), first.astype(np.float64)) if others else first
    worst = judge(found, results)
    return Verdict(worst.units, worst.of)


def _wanted(operation: str, host: Data) -> Expected:
    """Result, or the sum of several -> what it should be, and the bound on the difference."""
    wanted = expected(operation, host, 1, entered=_entered(host) if operation == "train" else None)
    if operation == "moments":
        bound = Bound(host.x, wanted["mean"][0], np.ones(host.scale.size), None, None, axis=1, dtype=host.x.dtype)
        room = bound.mean_with_rest() + _summed(wanted["mean"][0])
        room[list(host.bad)] = np.inf
        wanted["mean + mean_rest"] = wanted["mean"][0], room
        wanted["m2 + m2_rest"] = wanted["m2"]
    if operation == "train":
        skipped = np.full(host.scale.size, _COUNTED, np.float64)
        skipped[list(host.bad)] += 1
        wanted["skipped"] = skipped, np.zeros_like(skipped)
    for name, old in (("dscale", host.scale), ("dbias", host.bias)):
        if name in wanted:
            wanted[f"{name[1:]}_grad"] = _gathered(*wanted[name], old)
    return wanted


def _gathered(new: Host, bound: Host, old: Host) -> tuple[Host, Host]:
    """What gathering makes of a gradient that may be so far off, and of what was there."""
    terms = _GATHER["grad_scale"] * new, _GATHER["grad_momentum"] * old.astype(np.float64)
    rounding = ELEMENT * float(np.finfo(old.dtype).eps) * (np.abs(terms[0]) + np.abs(terms[1]))
    return terms[0] + terms[1], _GATHER["grad_scale"] * bound + rounding


def _data(shape: tuple[int, ...], dtype: np.dtype[Any], dy: np.dtype[Any], result: np.dtype[Any]) -> Data:
    """Data of these element types: of x, of dy, and of y and dx.

    Channels of means far off zero; where there are several, one has a NaN, and most are farther off.

    Some of these wander from row to row by more than they scatter: sums about what the first rows have are done again.
    dy goes with x, so that x counts in dx.
    """
    host = make(shape, 1, dtype, Offset(_RATIO))
    x = host.x.astype(host.scale.dtype)
    slope = host.dy.astype(host.scale.dtype) + (x - np.mean(x, axis=others(shape, 1), keepdims=True))
    host = replace(host, dy=slope.astype(dy), result=result)
    if shape[1] == 1:
        return host
    far_off = host.scale.dtype.type(min(_FAR_OFF, _RESOLVED / range_of(dtype).eps))
    path = np.linspace(0.0, _RATIO, shape[0]).reshape(-1, *(1 for _ in shape[1:])).astype(x.dtype)
    x[:, : shape[1] - 1 : _WANDERING] += path + far_off
    x[:, 1 : shape[1] - 1 : _WANDERING] += far_off
    if dtype == np.float16:  # whose subnormal numbers are none of float32's: every device has them
        x[:, -1] *= _SUBNORMAL
    host = replace(host, x=x.astype(dtype))
    bad = (shape[1] - 1) // 2  # neither the last one, which ends early, nor all of a vector's
    host.x[(-1, bad, *(-1 for _ in shape[2:]))] = np.nan
    return replace(host, bad=(bad,))


def _arrays(operation: str, host: Data, planned: Plan) -> dict[str, Host]:
    """What lies in each buffer beforehand, by the kernels' names, with all that may be left out."""
    per_channel = np.full_like(host.scale, np.nan)
    return {
        **buffers(operation, host, 1),
        "skipped": np.full(host.scale.shape, _COUNTED, np.uint32),
        "entered": _entered(host),
        "scale_grad": host.scale,
        "bias_grad": host.bias,
        "mean_rest": per_channel,
        "m2_rest": per_channel,
        **{one.name: np.full(one.size, *_NOTHING.get(one.name, (np.nan, host.scale.dtype))) for one in planned.memory},
    }


def _entered(host: Data) -> Host:
    """How many batches have moved each channel: some so few that they weigh alike, some so many that they do not."""
    return (np.arange(host.scale.size) % 3 * 8 + 1).astype(np.uint32)


def _numbers(small: Problem, planned: Plan, dtype: np.dtype[Any]) -> dict[str, Any]:
    """The kernels' numbers: those of the shape, and those of a call."""
    numbers: dict[str, Any] = planned.numbers
    numbers |= {"outer": small.outer, "channels": small.channels, "inner": small.inner}
    numbers |= {**small.batch_numbers, "taken": 1}
    for name in ("x", "y", "dy", "dx", "aux", "offsets", "dresidual", "gx", "gdy"):
        numbers[f"{name}_row"] = small.channels * small.inner
        numbers[f"{name}_channel"] = small.inner
    count = small.count
    numbers |= {"count": count, "unbiased": count - 1, "count_rest": count - int(dtype.type(count))}
    return {**numbers, "epsilon": EPSILON, "factor": FACTOR, "init_factor": 1.0, "guard": 1}


class _Memory:
    """Buffers on a queue of their own, each array among numbers that must not change."""

    def __init__(self, context: cl.Context, device: cl.Device, guard: int) -> None:
        self.context, self._guard = context, guard
        self.queue = cl.CommandQueue(context, device)
        self._put: dict[str, tuple[cl.Buffer, Host, int, int]] = {}

    def put(self, name: str, given: Host, *, begins: bool) -> tuple[cl.Buffer, int]:
        """A buffer with the array in it, and the array's first index there: 0 where kernels know no other."""
        start = self._guard if begins else 0
        flat = np.full(start + given.size + _GUARD, 0xA5 if kind(given.dtype) is None else np.nan, given.dtype)
        flat[start : start + given.size] = given.reshape(-1)
        buffer = cl.Buffer(
            self.context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=flat.view(np.uint8)
        )
        self._put[name] = buffer, flat, start, given.size
        return buffer, start

    def let(self, name: str, under: str) -> tuple[cl.Buffer, int]:
        """The memory of one array for another one."""
        self._put[name] = buffer, _, start, _ = self._put[under]
        return buffer, start

    def get(self, name: str) -> tuple[Host, bool]:
        """What the array holds, and whether all around it is as it was."""
        buffer, before, start, size = self._put[name]
        flat = np.empty_like(before)
        cl.enqueue_copy(self.queue, flat.view(np.uint8), buffer)
        kept = flat[:start].tobytes() == before[:start].tobytes()
        kept &= flat[start + size :].tobytes() == before[start + size :].tobytes()
        return flat[start : start + size], kept


def _of(device: cl.Device) -> _OfDevice:
    found = _devices.get(device)
    if found is None:
        found = _devices[device] = _OfDevice(device)
    return found


def _key(operation: str, planned: Plan, paths: Paths) -> str:
    """Of kernels, their texts, their defines and the paths through them; behind the digest, in words."""
    return f"{_digest(f'{operation} {paths}', planned.launches)} {operation}, {planned}"


def _digest(words: str, launches: Sequence[Launch]) -> str:
    digest = hashlib.sha256(words.encode())
    for launch in launches:
        build = launch.build
        digest.update(f"{launch.kernel} {launch.lanes} {_source_digest(build.source)} {build.defines}".encode())
    return digest.hexdigest()[:24]


@cache
def _source_digest(source: str) -> str:
    return hashlib.sha256(sources.load(source).text.encode()).hexdigest()


def _identity(device: cl.Device) -> str:
    """What a verdict holds for: this device with this driver, on this processor, and this version of oclbn."""
    platform = device.platform
    told = [version(), platform.name, platform.version, device.name, device.vendor, device.version]
    told += [device.driver_version, pocl.mend_target(device) or "", str(device.native_vector_width_float)]
    told += [" ".join(building.OPTIONS), _measure()]
    if limits(device).kind == "cpu":
        told.append(_processor())
    return " | ".join(text.strip() for text in told)


@cache
def _measure() -> str:
    """What a verdict was found with: a digest of the files that make, run and judge the small tensors."""
    here = Path(__file__).parent
    own, truth = ("proving", "miniature"), ("activated", "cases", "expectation", "reference", "bounds", "hostile")
    files = [
        here.parent / "activations.py",
        here.parent / "elements.py",
        *(here / f"{name}.py" for name in own),
        *(here.parent / "truth" / f"{name}.py" for name in truth),
    ]
    try:
        texts = [file.read_bytes() for file in files]
    except OSError:  # an application that was packed without its sources: the version has to tell
        return ""
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


@cache
def _processor() -> str:
    """The first processor's model and flags, where Linux tells: drivers call several by one name."""
    if sys.platform != "linux":
        return ""
    try:
        with Path("/proc/cpuinfo").open("rb", buffering=0) as file:
            lines = file.read(4096).decode("ascii", "replace").splitlines()
    except OSError:
        return ""
    kept = ("cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return hashlib.sha256("\n".join(line for line in lines if line.startswith(kept)).encode()).hexdigest()[:16]


def _warn(device: cl.Device, failed: Sequence[Failure], used: Plan) -> None:
    known = _of(device)
    told = "; ".join(map(str, failed))
    if known.warned:
        _log.warning("%s: %s; %s is used instead", _named(device), told, in_words(str(used)))
        return
    known.warned = True
    warn_caller(
        f"{_named(device)} gives wrong results with kernels that oclbn would choose: {told}. "
        f"{in_words(str(used))} is used instead, which is right. {_REPORT}",
        DriverWarning,
    )


_REPORT = "`oclbn check --repro report.py` writes a program that shows it to the driver's maker"


def _fault(verdict: Verdict) -> str:
    if math.isinf(verdict.units):
        return f"{verdict.of} is wrong beyond measure"
    return f"{verdict.of} errs by {verdict.units:.3g} times its tolerance"


def _named(device: cl.Device) -> str:
    return f"{device.name.strip()} ({device.platform.name.strip()}, driver {device.driver_version.strip()})"
