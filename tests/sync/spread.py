"""Batches that are cut up over a group, its results put together again, and what those are to be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from oclbn.functional import batch_norm_backward, batch_norm_train
from oclbn.sync import Group, GroupStatistics
from oclbn.truth.cases import GRADIENTS, judge
from oclbn.truth.expectation import EPSILON, FACTOR, expected
from oclbn.truth.hostile import Data, others

PER_CHANNEL = ("scale", "bias", "running_mean", "running_var")
SAME = ("mean", "mean_rest", "m2", "m2_rest", "invstd", "running_mean", "running_var", "dscale", "dbias")


_contexts: list[cl.Context] = []  # Intel's queues do not keep theirs alive


def queues_on(*devices: cl.Device, together: bool = False) -> list[cl.CommandQueue]:
    """A queue on each device, each in a context of its own, or all in one."""
    contexts = [cl.Context([*devices])] * len(devices) if together else [cl.Context([device]) for device in devices]
    _contexts.extend(contexts)
    return [cl.CommandQueue(context, device) for context, device in zip(contexts, devices, strict=True)]


def along(axis: int) -> int:
    """The axis that a batch with channels on `axis` is cut along."""
    return 1 if axis == 0 else 0


def cut(host: np.ndarray, lengths: Sequence[int], axis: int = 1) -> list[np.ndarray]:
    parts = np.split(host, np.cumsum(lengths), axis=along(axis))
    assert not parts.pop().size
    return [np.ascontiguousarray(part) for part in parts]


def lengths_of(total: int, places: int, how: str) -> list[int]:
    """How many samples each of the places gets."""
    if how == "even":
        return [len(part) for part in np.array_split(np.arange(total), places)]
    if how == "one each, and the rest":
        return [1] * (places - 1) + [total - places + 1]
    if how == "all on the last":
        return [0] * (places - 1) + [total]
    assert how == "empty between"
    return [total - total // 3, *[0] * (places - 2), total // 3] if places > 1 else [total]


CUTS = ("even", "one each, and the rest", "all on the last", "empty between")


def put(queues: Sequence[cl.CommandQueue], hosts: Sequence[np.ndarray]) -> list[cla.Array]:
    return [cla.to_device(queue, host) for queue, host in zip(queues, hosts, strict=True)]


def everywhere(queues: Sequence[cl.CommandQueue], host: np.ndarray) -> list[cla.Array]:
    return put(queues, [host] * len(queues))


def hosts_of(arrays: Sequence[cla.Array]) -> list[np.ndarray]:
    return [array.get() for array in arrays]


def trained(
    group: Group,
    host: Data,
    lengths: Sequence[int],
    axis: int = 1,
    *,
    absent: Collection[str] = (),
    forward: dict[str, Any] | None = None,
    backward: dict[str, Any] | None = None,
) -> dict[str, list[np.ndarray]]:
    """A step on this process's parts: every result, for each of its queues."""
    queues = group.queues
    xs, dys = (put(queues, cut(one, lengths, axis)) for one in (host.x, host.dy))
    given = {name: everywhere(queues, getattr(host, name)) for name in PER_CHANNEL if name not in absent}
    options = {"axis": axis, "epsilon": EPSILON, "factor": FACTOR}
    ys, statistics = group.train(xs, **options | given | (forward or {}))
    slope = {"scale": given["scale"]} if "scale" in given else {}
    gradients = group.backward(xs, dys, statistics, axis=axis, **slope | (backward or {}))
    found = {"y": hosts_of(ys), **{name: hosts_of(one) for name, one in zip(GRADIENTS, gradients, strict=True)}}
    found |= {name: hosts_of(one) for name, one in given.items() if name.startswith("running")}
    found |= told_of(statistics)
    assert [one.shape for one in found["y"]] == [x.shape for x in xs]
    whole = {"y", "dx"}
    assert {one.dtype for name, each in found.items() if name in whole for one in each} == {host.x.dtype}
    assert {one.dtype for name, each in found.items() if name not in whole for one in each} == {host.scale.dtype}
    return found


def told_of(statistics: GroupStatistics) -> dict[str, list[np.ndarray]]:
    found = {name: [getattr(part, name).get() for part in statistics.parts] for name in SAME[:4]}
    assert {part.count for part in statistics.parts} == {statistics.count}
    for row, name in enumerate(SAME[:4]):
        assert {one.tobytes() for one in found[name]} == {statistics.moments[row].tobytes()}
    return found | {"invstd": hosts_of(statistics.invstd)}


def alone(
    queue: cl.CommandQueue,
    host: Data,
    axis: int = 1,
    *,
    absent: Collection[str] = (),
    forward: dict[str, Any] | None = None,
    backward: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """The same step on the whole batch, on one device, by oclbn.functional."""
    given = {name: cla.to_device(queue, getattr(host, name)) for name in PER_CHANNEL if name not in absent}
    x, dy = (cla.to_device(queue, one) for one in (host.x, host.dy))
    options = {"axis": axis, "epsilon": EPSILON, "factor": FACTOR}
    y, mean, invstd = batch_norm_train(x, **options | given | (forward or {}))
    slope = {"scale": given["scale"]} if "scale" in given else {}
    made = batch_norm_backward(x, dy, save_mean=mean, save_invstd=invstd, axis=axis, **slope | (backward or {}))
    found = {"y": y.get(), **{name: one.get() for name, one in zip(GRADIENTS, made, strict=True)}}
    found |= {name: one.get() for name, one in given.items() if name.startswith("running")}
    return found | {"mean": mean.get(), "invstd": invstd.get()}


def together(found: dict[str, list[np.ndarray]], axis: int = 1) -> dict[str, np.ndarray]:
    """One array of each: parts joined, and of what is to be the same everywhere any, as it has the same bits."""
    for name in SAME:
        assert len({one.tobytes() for one in found.get(name, [])}) <= 1, f"{name} differs between devices"
    joined = {name: np.concatenate(found[name], axis=along(axis)) for name in ("y", "dx")}
    return joined | {name: found[name][0] for name in SAME if name in found}


def check(made: dict[str, np.ndarray], host: Data, axis: int = 1, **options: float) -> None:
    """Each result within the bounds of a call on the whole batch."""
    forward = {name: made[name] for name in ("y", "running_mean", "running_var") if name in made}
    forward |= {"save_mean": made["mean"], "save_invstd": made["invstd"]}
    for operation, found in (("train", forward), ("backward", {name: made[name] for name in GRADIENTS})):
        worst = judge(found, expected(operation, host, axis, **options))
        assert worst.good, str(worst)
    for channel in host.bad:
        assert not np.isfinite(made["mean"][channel] * made["invstd"][channel])


def check_beside(made: dict[str, np.ndarray], whole: dict[str, np.ndarray], host: Data, axis: int = 1) -> None:
    """As the whole batch on one device: what that stores, to one rounding; the rest is held against the reference."""
    eps, good = np.finfo(host.scale.dtype).eps, host.good
    with np.errstate(invalid="ignore"):
        deviation = np.std(host.x.astype(np.float64), axis=others(host.x.shape, axis))[good]
    for name, off in (("mean", 4 * deviation), ("running_mean", 1 + deviation), ("invstd", 0.0), ("running_var", 0.0)):
        if name in made:
            found, wanted = (one[name][good].astype(np.float64) for one in (made, whole))
            assert (np.abs(found - wanted) <= eps * (2 * np.abs(wanted) + off)).all(), name
    for name in ("y", "dx", "dscale", "dbias"):
        assert (np.isnan(made[name]) == np.isnan(whole[name])).all(), name
