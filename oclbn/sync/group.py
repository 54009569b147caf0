"""Batches that lie on several devices, in one process or many, normalised as if they lay on one.

Each member of a group finds the moments of its shard on its device. They meet on the host, where everybody merges
them in the same order, and go back to the devices, which normalise with them. Backward is alike with sums. What must
be the same on all devices (statistics, running averages, gradients of scale and bias) is computed on the host, once, as
devices need not round alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from pyopencl.array import Array

from oclbn import gpuarray
from oclbn.call import arguments, fusing, values
from oclbn.call.fusing import Fused
from oclbn.call.making import check, make, taken_off, training_numbers
from oclbn.call.prepared import count_of
from oclbn.call.results import result_like
from oclbn.device import driver_errors
from oclbn.elements import NUMBERS, numbers_of
from oclbn.errors import ArrayTypeError, DtypeError, ParameterError, ShapeError
from oclbn.steps import GradientSums, Statistics, normalize, part_gradient, part_numbers
from oclbn.sync import rows, whole
from oclbn.sync.collective import TIMEOUT, Collective, Pending
from oclbn.sync.exchange import Alone, Bytes, Exchange
from oclbn.sync.rows import Read, Rows
from oclbn.sync.shards import Places

_MOVED = ("running_mean", "running_var", "skipped", "entered")
_COUNT = 8  # bytes of a number of values, ahead of its rows


@dataclass(frozen=True)
class GroupStatistics:
    """Of a whole batch, as `train` gives them to `backward`.

    count: the number of values per channel. moments: (4, C), mean and m2 with what rounding each has lost, on the host.
    epsilon: what was added to the variance. parts: the same for each device of this process, and invstd: 1 / sqrt(var +
    epsilon) there, arrays of shape (C,).
    """

    count: int
    moments: NDArray[Any]
    epsilon: float
    parts: tuple[Statistics, ...]
    invstd: tuple[Array, ...]


class Group(Collective):
    """What every group does; DeviceGroup, MPIGroup and TorchGroup say who belongs to it.

    queues: this process's, each of another device or context; rank, size: of this process among those of the group.
    A shard is a pyopencl.array.Array on one of the queues' devices. Wherever `shards` are wanted, and arrays that go
    with them, a list has one for each queue, in their order; where there is one queue, the array itself will do, and
    results then are arrays too. All other arguments are the same on all ranks.

    `with group:` around what the ranks do together tells the others when this rank leaves it by an error, instead of
    letting them wait for it, and frees the group at the end, which all ranks reach together.

    One thread at a time uses a group. GroupError: the ranks do not exchange the same thing, or one has failed: told on
    all of them alike, and the group goes on, unless a rank has left it. GroupTimeoutError: a rank does not answer; the
    group is of no more use. Making a group is collective, too: what is wrong on one rank is told on all.
    """

    def __init__(
        self, queues: cl.CommandQueue | Sequence[cl.CommandQueue] | None, exchange: Exchange, timeout: float = TIMEOUT
    ) -> None:
        try:
            seconds, self._places = values.number("timeout", timeout, 0.0), Places(queues)
        except Exception as error:
            super().__init__(exchange, TIMEOUT)
            self.__exit__(type(error), error, None)  # the others are about to hear who is of the group
            raise
        super().__init__(exchange, seconds)
        self.queues = self._places.queues
        try:
            self.agree("a group")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __repr__(self) -> str:
        names = ", ".join(queue.device.name.strip() for queue in self.queues)
        return f"<{type(self).__name__}: rank {self.rank} of {self.size}, on {names}>"

    # --- what is computed together

    def train(self, shards: Any, /, **options: Any) -> tuple[Any, GroupStatistics]:
        """Normalise a batch by the statistics of all its shards, on all ranks.

        shards: (N_i, C, *spatial) each, channels on `axis`, N_i of any size, 0 too; the batch must have two values per
        channel. By keyword, as batch_norm_train takes them: axis, epsilon, factor, init_factor, guard, estimator, and
        for each shard out, scale, bias, running_mean, running_var, skipped and entered. Running statistics and counters
        are moved alike on all devices, from those of this process's first one. layer: a name that errors tell, and
        that all ranks have to give alike.

        Returns y, for each shard, and the statistics that `backward` takes. An empty batch gives empty results and
        moves nothing.
        """
        return self.start_train(shards, **options).result()

    @driver_errors("train")
    def start_train(
        self,
        shards: Any,
        /,
        *,
        scale: Any = None,
        bias: Any = None,
        running_mean: Any = None,
        running_var: Any = None,
        epsilon: float = 1e-5,
        factor: float = 0.1,
        axis: int = 1,
        out: Any = None,
        guard: bool = True,
        skipped: Any = None,
        entered: Any = None,
        init_factor: float = 1.0,
        activation: Any = None,
        residual: Any = None,
        estimator: str = "sample",
        layer: str | None = None,
    ) -> Pending[tuple[Any, GroupStatistics]]:
        """As `train`, but for the exchange: that is begun by `send` or by the first `result()`."""
        with self.working(), self.telling():
            xs, alone = self._places.shards("shards", shards)
            axis = _alike(xs, axis)
            each = self._places.each(
                {"scale": scale, "bias": bias, "running_mean": running_mean, "running_var": running_var, "out": out}
                | {"skipped": skipped, "entered": entered, "residual": residual},
                xs,
            )
            numbers = training_numbers(xs[0], epsilon, factor, init_factor, guard)
            for index, (x, given) in enumerate(zip(xs, each, strict=True)):
                with self._places.of_shard(index):
                    fused = fusing.before(activation, given["residual"])
                    check("normalize", x, axis, given, given["out"], fusion=fused.fusion)
            averaging = whole.Averaging(numbers["factor"], numbers["init_factor"], bool(guard), taken_off(estimator))
            kind = numbers_of(xs[0].dtype)
            counts = [count_of(x, axis) for x in xs]
            found = [self._moments(x, axis) for x in xs]
            moved = [name for name in _MOVED if each[0][name] is not None]
            before = {name: rows.read(each[0][name], xs[0].queue) for name in moved}
            self._flush(xs)
            words = _words("train", layer, xs[0], axis)
            words += f", epsilon {numbers['epsilon']!r}, factor {averaging.factor!r}"
            words += f", init_factor {averaging.init_factor!r}, guard {averaging.guard}"
            words += f", {estimator}" if estimator != "sample" else ""
            words += f", moving {', '.join(moved) or 'nothing'}" + _activated(activation)

            def collect() -> bytes:
                count, moments = whole.merge_moments(counts, [one.get() for one in found])
                return _packed(count, moments)

            def finish(payloads: list[Bytes]) -> tuple[Any, GroupStatistics]:
                shape = 4, xs[0].shape[axis]
                told = [_unpacked(payload, shape, kind) for payload in payloads]
                count, moments = whole.merge_moments([one for one, _ in told], [one for _, one in told])
                if count == 1:
                    raise ShapeError(
                        "shards have one value per channel in all; two at least are wanted, for a variance"
                    )
                made = self._statistics(xs, count, moments, numbers["epsilon"])
                old = {name: one.get().ravel() for name, one in before.items()}
                new = whole.averaged(count, moments, averaging, old) if count and moved else {}
                ys = []
                for index, (x, given) in enumerate(zip(xs, each, strict=True)):
                    if not count:
                        ys.append(result_like(x) if given["out"] is None else given["out"])
                        continue
                    options = {"epsilon": epsilon, "axis": axis, "out": given["out"], "guard": guard}
                    options |= {"activation": activation, "residual": given["residual"]}
                    ys.append(normalize(x, made.parts[index], given["scale"], given["bias"], **options))
                _move(xs, each, new)
                self._flush(xs)
                return ys[0] if alone else ys, made

            return self._start(words, collect, finish)

    def backward(self, shards: Any, dys: Any, statistics: GroupStatistics, /, **options: Any) -> tuple[Any, ...]:
        """Gradients of `train`, by the sums of all shards, on all ranks.

        shards, dys: as train had them, and gradients with respect to its results. statistics: what train gave.
        By keyword, as batch_norm_backward takes them: axis, grad_scale, grad_momentum, and for each shard out, scale,
        scale_grad and bias_grad, and behind an activation that, and for each shard bias, y or residual; dresidual: True
        for the residuals' gradients. parameters: "whole", dscale and dbias are those of the batch, on every device and
        rank; "own", those of this process's shards alone, for programs that sum the gradients of all parameters
        over the ranks themselves. layer: as in train.

        Returns dx, dscale and dbias, and dresidual where it is wanted, each for each shard; dscale and dbias have the
        same bits on all devices.
        """
        return self.start_backward(shards, dys, statistics, **options).result()

    @driver_errors("backward")
    def start_backward(
        self,
        shards: Any,
        dys: Any,
        statistics: GroupStatistics,
        /,
        *,
        scale: Any = None,
        axis: int = 1,
        out: Any = None,
        scale_grad: Any = None,
        bias_grad: Any = None,
        grad_scale: float = 1.0,
        grad_momentum: float = 0.0,
        parameters: str = "whole",
        activation: Any = None,
        bias: Any = None,
        y: Any = None,
        residual: Any = None,
        dresidual: bool = False,
        layer: str | None = None,
    ) -> Pending[tuple[Any, ...]]:
        """As `backward`, but for the exchange: that is begun by `send` or by the first `result()`."""
        with self.working(), self.telling():
            xs, alone = self._places.shards("shards", shards)
            axis = _alike(xs, axis)
            if not isinstance(statistics, GroupStatistics):
                came = values.kind_of(statistics)
                raise ArrayTypeError(f"statistics is {came}; the GroupStatistics are wanted that train gave")
            if len(statistics.parts) != len(xs):
                raise ParameterError(
                    f"statistics are of a group with {len(statistics.parts)} queues; this one has {len(xs)}"
                )
            if parameters not in ("whole", "own"):
                raise ParameterError(f"parameters is {parameters!r}; 'whole' or 'own' is wanted")
            each = self._places.each(
                {"dy": dys, "scale": scale, "out": out, "scale_grad": scale_grad, "bias_grad": bias_grad}
                | {"bias": bias, "y": y, "residual": residual},
                xs,
            )
            fused = [fusing.behind(activation, given["y"], given["residual"], bool(dresidual)) for given in each]
            fusions = []
            for index, (x, given) in enumerate(zip(xs, each, strict=True)):
                with self._places.of_shard(index):
                    own = {"save_mean": statistics.parts[index].mean, "save_invstd": statistics.invstd[index]}
                    fusions.append(check("gradient", x, axis, given | own, given["out"], fusion=fused[index].fusion))
                    if count_of(x, axis) > statistics.count:
                        raise ParameterError(
                            f"statistics are of {statistics.count} values per channel, and x has {count_of(x, axis)}"
                        )
            numbers = part_numbers(xs[0], statistics.count, statistics.epsilon, grad_scale, grad_momentum)
            numbers |= fused[0].numbers
            kind = numbers_of(xs[0].dtype)
            arrays = [
                {"dy": given["dy"], "scale": given["scale"], "bias": given["bias"], **one.tensors}
                | {"save_mean": statistics.parts[index].mean, "save_invstd": statistics.invstd[index]}
                for index, (given, one) in enumerate(zip(each, fused, strict=True))
            ]
            found = [self._sums(x, axis, given, one) for x, given, one in zip(xs, arrays, fused, strict=True)]
            gathering = [name for name in ("scale_grad", "bias_grad") if each[0][name] is not None]
            momentum = numbers["grad_momentum"]
            before = {name: rows.read(each[0][name], xs[0].queue) for name in gathering} if momentum else {}
            self._flush(xs)
            words = _words("backward", layer, xs[0], axis)
            words += f", epsilon {statistics.epsilon!r}, {statistics.count} values, parameters {parameters}"
            words += f", gathering {', '.join(gathering) or 'nothing'} times {numbers['grad_scale']!r} and "
            words += repr(momentum) + _activated(activation)
            mine: list[NDArray[Any]] = []

            def collect() -> bytes:
                mine.append(whole.merge_sums([one.get() for one in found]))
                return _packed(sum(count_of(x, axis) for x in xs), mine[0])

            def finish(payloads: list[Bytes]) -> tuple[Any, ...]:
                count, moments = statistics.count, statistics.moments
                shape = 6, xs[0].shape[axis]
                told = [_unpacked(payload, shape, kind) for payload in payloads]
                if (came := sum(one for one, _ in told)) != count:
                    raise ParameterError(
                        f"statistics are of {count} values per channel, and shards have {came} in all; those "
                        "are wanted that train gave for these shards"
                    )
                sums = whole.merge_sums([one for _, one in told])
                if count:
                    about = sums if parameters == "whole" else mine[0]
                    made = whole.gradients(count, moments, sums, about, statistics.epsilon)
                else:
                    made = whole.Gradients(np.zeros(shape[1], kind), np.zeros(shape[1], kind))
                results: list[tuple[Array, ...]] = []
                sheet = np.concatenate([sums, made.scale[None], made.bias[None]])
                grads = {"scale_grad": made.scale, "bias_grad": made.bias}
                new = {
                    name: whole.gathered(
                        grads[name], numbers["grad_scale"], before[name].get().ravel() if before else None, momentum
                    )
                    for name in gathering
                }
                for index, (x, given) in enumerate(zip(xs, each, strict=True)):
                    sent = Rows(x.queue, 8, shape[1], kind, sheet)
                    like = given["scale"]
                    own = [one if like is None else rows.shaped(one, like.shape) for one in sent.arrays[6:]]
                    if x.size:
                        part = GradientSums(count, count, *sent.arrays[:6])
                        taken = {**arrays[index], "scale_grad": None, "bias_grad": None}
                        options = {"out": given["out"], "fusion": fusions[index], "dresidual": bool(dresidual)}
                        dx, _, _, *others = part_gradient(x, axis, taken, part, numbers, **options).run()
                    else:
                        dx = result_like(x) if given["out"] is None else given["out"]
                        others = [result_like(x)] if dresidual else []
                    results.append((dx, own[0], own[1], *others))
                _move(xs, each, new)
                self._flush(xs)
                return results[0] if alone else tuple(list(column) for column in zip(*results, strict=True))

            return self._start(words, collect, finish)

    @driver_errors("merge")
    def merge(self, parts: Any, /, *, layer: str | None = None) -> Any:
        """The Statistics of all values that parts are of, on all ranks, for each device of this process.

        parts: Statistics for each queue, as oclbn.functional.statistics and merge give them, of any counts, 0 too: so a
        pass over data that is spread over the group gives the statistics of all of it.
        """
        with self.working(), self.telling():
            listed, alone = self._places.listed("parts", parts, Statistics)
            sheets, counts = [], []
            for index, part in enumerate(listed):
                if not isinstance(part, Statistics):
                    raise ArrayTypeError(f"parts[{index}] is {values.kind_of(part)}; Statistics are wanted")
                fields = {name: getattr(part, name) for name in whole.MOMENTS}
                arguments.flat({f"parts[{index}].{name}": array for name, array in fields.items()})
                self._places.on_device(f"parts[{index}].mean", part.mean, index)
                counts.append(arguments.count(f"parts[{index}].count", part.count))
                sheets.append([rows.read(array, self.queues[index]) for array in fields.values()])
            first = listed[0].mean
            for index, part in enumerate(listed):
                if (part.mean.size, part.mean.dtype) != (first.size, first.dtype):
                    raise ShapeError(
                        f"parts[{index}] has {part.mean.size} channels of {part.mean.dtype}; parts[0] has {first.size} "
                        f"of {first.dtype}"
                    )
            for queue in self.queues:
                queue.flush()

            def collect() -> bytes:
                hosts = [np.stack([one.get().ravel() for one in sheet]) for sheet in sheets]
                return _packed(*whole.merge_moments(counts, hosts))

            def finish(payloads: list[Bytes]) -> Any:
                told = [_unpacked(payload, (4, first.size), first.dtype) for payload in payloads]
                count, moments = whole.merge_moments([one for one, _ in told], [one for _, one in told])
                made = []
                for queue in self.queues:
                    sent = Rows(queue, 4, first.size, first.dtype, moments)
                    made.append(Statistics(count, *sent.arrays))
                return made[0] if alone else made

            words = f"merge{_named(layer)}: {first.size} channels, {first.dtype}"
            pending = self._start(words, collect, finish)
        return pending.result()

    @driver_errors("sum")
    def sum(self, parts: Any, /, *, layer: str | None = None) -> Any:
        """The sum of arrays of one shape over all devices and ranks, in a fixed order: the same bits everywhere.

        parts: for each queue a device array or a NumPy array of float32 or float64; for the gradients of other
        parameters. Returns new arrays of the same kind.
        """
        with self.working(), self.telling():
            listed, alone = self._places.listed("parts", parts, (Array, np.ndarray))
            reads: list[Any] = []
            for index, part in enumerate(listed):
                if isinstance(part, Array):
                    arguments.flat({f"parts[{index}]": part})
                    self._places.on_device(f"parts[{index}]", part, index)
                    reads.append(rows.read(part, self.queues[index]))
                elif isinstance(part, np.ndarray):
                    if part.dtype not in NUMBERS:
                        raise DtypeError(f"parts[{index}] is {part.dtype}; float32 or float64 is wanted")
                    reads.append(part)
                else:
                    raise ArrayTypeError(f"parts[{index}] is {values.kind_of(part)}; an array is wanted")
            shape, dtype = listed[0].shape, listed[0].dtype
            for index, part in enumerate(listed):
                if (part.shape, part.dtype) != (shape, dtype):
                    raise ShapeError(
                        f"parts[{index}] has shape {part.shape} of {part.dtype}; parts[0] has {shape} of {dtype}"
                    )

            def collect() -> bytes:
                hosts = [one.get() if isinstance(one, Read) else one for one in reads]
                return np.ascontiguousarray(whole.summed(hosts) if len(hosts) > 1 else hosts[0]).tobytes()

            def finish(payloads: list[Bytes]) -> Any:
                total = whole.summed([payload.view(dtype).reshape(shape) for payload in payloads])
                made = [
                    gpuarray.to_gpu(total, queue=queue) if isinstance(part, Array) else total.copy()
                    for part, queue in zip(listed, self.queues, strict=True)
                ]
                return made[0] if alone else made

            pending = self._start(f"sum{_named(layer)}: shape {shape}, {dtype}", collect, finish)
        return pending.result()

    def agree(self, words: str, payload: bytes = b"") -> list[bytes]:
        """Exchange bytes, equally many on all ranks, and have those of all; GroupError where words or lengths
        differ."""

        def own() -> bytes:
            return payload

        with self.working(), self.telling():
            pending = self._start(words, own, lambda payloads: [one.tobytes() for one in payloads])
        return pending.result()

    def _moments(self, x: Array, axis: int) -> Read:
        made = Rows(cast("cl.CommandQueue", x.queue), 4, x.shape[axis], numbers_of(x.dtype))
        mean, mean_rest, m2, m2_rest = made.arrays
        make("moments", x, axis, {}, {}, extra=True, places=(mean, m2, mean_rest, m2_rest)).run()
        return made.read()

    def _sums(self, x: Array, axis: int, given: Mapping[str, Any], fused: Fused) -> Read:
        made = Rows(cast("cl.CommandQueue", x.queue), 6, x.shape[axis], numbers_of(x.dtype))
        left_out = set() if fused.from_x else {"scale", "bias", "save_invstd"}
        own = {name: None if name in left_out else array for name, array in given.items() if name != "dresidual"}
        fusion = fused.fusion._replace(second=False)
        make("sums", x, axis, own, fused.numbers, places=made.arrays, fusion=fusion).run()
        return made.read()

    def _statistics(self, xs: Sequence[Array], count: int, moments: NDArray[Any], epsilon: float) -> GroupStatistics:
        sheet = np.concatenate([moments, whole.inverse_deviation(max(count, 1), moments, epsilon)[None]])
        sent = [Rows(cast("cl.CommandQueue", x.queue), 5, sheet.shape[1], sheet.dtype, sheet) for x in xs]
        parts = tuple(Statistics(count, *one.arrays[:4]) for one in sent)
        return GroupStatistics(count, moments, epsilon, parts, tuple(one.arrays[4] for one in sent))

    def _flush(self, xs: Sequence[Array]) -> None:
        if len(xs) > 1 or self.size > 1:
            for x in xs:
                cast("cl.CommandQueue", x.queue).flush()


class DeviceGroup(Group):
    """Several devices of this process as one: GPUs and processors of any makers, sub-devices, contexts.

    queues: one of each device; a device that is there twice with one context is a ParameterError.

    >>> import oclbn.device
    >>> group = DeviceGroup([oclbn.device.default_queue()])
    >>> x = gpuarray.to_gpu(np.float32([[1.0, 10.0], [3.0, 30.0]]))
    >>> (y,), statistics = group.train([x], epsilon=0.0)
    >>> print(y.get(), statistics.count)
    [[-1. -1.]
     [ 1.  1.]] 2
    """

    def __init__(self, queues: cl.CommandQueue | Sequence[cl.CommandQueue] | None = None) -> None:
        super().__init__(queues, Alone())


def _move(xs: Sequence[Array], each: Sequence[dict[str, Any]], new: dict[str, NDArray[Any]]) -> None:
    """Give what is held for each shard, by name, the numbers that are the same for all."""
    for x, given in zip(xs, each, strict=True):
        for name, host in new.items():
            rows.write(given[name], host, cast("cl.CommandQueue", x.queue))


def _alike(xs: Sequence[Array], axis: Any) -> int:
    """The axis of the channels, of which all have as many."""
    index = arguments.axis_of(axis, xs[0])
    for place, x in enumerate(xs):
        if x.shape[index] != xs[0].shape[index]:
            raise ShapeError(
                f"shards[{place}] has {x.shape[index]} channels on axis {index}; shards[0] has {xs[0].shape[index]}"
            )
    return index


def _named(layer: Any) -> str:
    if layer is not None and not isinstance(layer, str):
        raise ParameterError(f"layer is {layer!r}; a str or None is wanted")
    return "" if layer is None else f" of {layer!r}"


def _activated(activation: Any) -> str:
    """What all ranks have to give alike of an activation."""
    found = fusing.activation_of(activation).option
    return "" if found is None else f", activation {found!r}"


def _words(operation: str, layer: str | None, x: Array, axis: int) -> str:
    where = f"channels on axis {axis} of {len(x.shape)}"
    return f"{operation}{_named(layer)}: {x.shape[axis]} {where}, {x.dtype}"


def _packed(count: int, numbers: NDArray[Any]) -> bytes:
    return count.to_bytes(_COUNT, "little") + np.ascontiguousarray(numbers).tobytes()


def _unpacked(payload: Bytes, shape: tuple[int, int], dtype: np.dtype[Any]) -> tuple[int, NDArray[Any]]:
    count = int.from_bytes(payload[:_COUNT].tobytes(), "little")
    return count, np.frombuffer(payload[_COUNT:].tobytes(), dtype).reshape(shape)
