"""A batch normalization whose batches are spread over a group: one module on every device, in one state."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from oclbn.call import values
from oclbn.device import driver_errors
from oclbn.errors import GroupError, ModuleParameterError, ModuleShapeError, ModuleStateError
from oclbn.gpuarray import Array
from oclbn.modules.batchnormnd import BatchNormND
from oclbn.modules.variable import host_of
from oclbn.sync import rows, whole
from oclbn.sync.collective import Collective, Pending
from oclbn.sync.group import Group, GroupStatistics

if TYPE_CHECKING:
    import h5py

__all__ = ["SyncBatchNorm"]


class SyncBatchNorm:
    """A batch normalization over the devices and ranks of a group, made from a module.

    module: BatchNorm2D or another of oclbn's, with the values that rank 0's has: copies of it, on every device of the
    group, are `modules`. Making one is collective. group: a DeviceGroup, MPIGroup or TorchGroup. parameters: whose
    gradients those of scale and bias are: "whole", the batch's; "own", those of this process's shards, for programs
    that sum the gradients of all parameters over the ranks themselves.

    A call takes a shard for each device of this process, in a list, and gives a list; where there is one device, an
    array and an array. Scale, bias, their gradients and the running statistics have the same bits on all devices: they
    are computed on the host, so that `updateParams` waits for the devices.

    To go on with other devices or ranks: `SyncBatchNorm(old.module, group)`. Errors are the modules' and the
    group's; ModuleParameterError: `module` or `group` is none.

    >>> from oclbn import BatchNorm, gpuarray
    >>> from oclbn.sync import DeviceGroup
    >>> bn = SyncBatchNorm(BatchNorm(3), DeviceGroup())
    >>> bn(gpuarray.ones((2, 3))).shape, bn.numOfProps
    ((2, 3), 1)
    """

    def __init__(self, module: BatchNormND, group: Group, *, parameters: str = "whole") -> None:
        if not isinstance(group, Group):
            raise ModuleParameterError(f"group is {values.kind_of(group)}; a group of oclbn.sync is wanted")
        with group.working(), group.telling():
            if not isinstance(module, BatchNormND):
                raise ModuleParameterError(
                    f"module is {values.kind_of(module)}; one of oclbn's batch normalizations is wanted"
                )
            if parameters not in ("whole", "own"):
                raise ModuleParameterError(f"parameters is {parameters!r}; 'whole' or 'own' is wanted")
            self._refuse(module)
        self.group, self.parameters = group, parameters
        self._layer = group.next_layer() if module.name is None else module.name
        state = self._from_rank_0(module)
        if module.name is None:
            group.made_layer()
        self.modules = tuple(module._copy({}, queue) for queue in group.queues)
        for one in self.modules:
            one._take_state(state)
        self._shards: list[Array] | None = None
        self._statistics: GroupStatistics | None = None

    def __repr__(self) -> str:
        return f"SyncBatchNorm({self.module!r}, {self.group!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a SyncBatchNorm is neither pickled nor copied, as its group stands for devices and ranks; its .module is"
        )

    @property
    def module(self) -> BatchNormND:
        """That of the first device; its values are those of all."""
        return self.modules[0]

    @property
    def numOfProps(self) -> int:
        """How many training batches there were."""
        return self.module.numOfProps

    @property
    def skipped(self) -> int:
        """How many updates of a channel's running statistics the guard left out; reading it waits for the device."""
        return self.module.skipped

    @driver_errors("calling a module")
    def __call__(self, shards: Any, residuals: Any = None) -> Any:
        """Normalise a batch, by the statistics of all of it in training, by the running ones in evaluation.

        residuals: for each shard, as a module's `residual`. There are no masks over a group.
        """
        return self.start(shards, residuals).result()

    @driver_errors("calling a module")
    def start(self, shards: Any, residuals: Any = None) -> Pending[Any]:
        """As a call, but for the exchange: see Group.batched."""
        group = self.group
        if not self.module.train and self.module._uses_running():  # nobody waits for this rank
            return self._by_running(shards, residuals)
        with group.working(), group.telling():
            if self.module._by_running():
                return self._by_running(shards, residuals)
            self._refuse(self.module)
            listed, alone = self._listed("data", shards)
            behind = self._fused(listed, residuals)
            options = [one._training() for one in self.modules]
            each: dict[str, Any] = {
                name: [own[name] for own in options]
                for name in ("scale", "bias", "running_mean", "running_var", "entered")
            }
            names = ("epsilon", "factor", "init_factor", "guard", "axis", "estimator")
            numbers = {name: options[0][name] for name in names}
            moves = self.module._moves_running()
            fused = {"activation": self.module.activation, "residual": [one.get("residual") for one in behind]}
            pending = group.start_train(listed, **each, **numbers, **fused, layer=self._layer)

        def finish(result: tuple[list[Array], GroupStatistics]) -> Any:
            ys, statistics = result
            for index, (one, x, y) in enumerate(zip(self.modules, listed, ys, strict=True)):
                one.inData, one.data, one._behind = x, y, behind[index] or None
                shape = one._shape
                one.savemean = rows.shaped(statistics.parts[index].mean, shape)
                one.saveinvvar = rows.shaped(statistics.invstd[index], shape)
                one._batches += moves and bool(statistics.count)
            self._shards, self._statistics = listed, statistics
            return ys[0] if alone else ys

        return pending.then(finish)

    @staticmethod
    def _refuse(module: BatchNormND) -> None:
        if module._batches_of((2,) + (1,) * (module._data_rank() - 1)) > 1:
            raise ModuleParameterError(
                f"{module}: its samples are batches of their own, which need no exchange: call the module itself on "
                "each device"
            )
        if module.renorm is not None:
            raise ModuleParameterError(f"{module}: renorm is for one device; None is wanted over a group")

    def _fused(self, shards: Sequence[Array], residuals: Any) -> list[dict[str, Any]]:
        """Of each module, what is done besides: see BatchNormND."""
        listed = [None] * len(shards) if residuals is None else self._listed("residual", residuals)[0]
        each = zip(self.modules, shards, listed, strict=True)
        activation = self.module.activation
        return [one._fused(x.shape, residual, activation) for one, x, residual in each]

    def _by_running(self, shards: Any, residuals: Any) -> Pending[Any]:
        if self.module._moves_running():
            raise ModuleStateError(
                f"{self.module}: use_running and update_running are both True; over a group one of them is wanted"
            )
        listed, alone = self._listed("data", shards)
        behind = self._fused(listed, residuals)
        ys = [one(x, own.get("residual")) for one, x, own in zip(self.modules, listed, behind, strict=True)]
        self._shards, self._statistics = listed, None
        return _Done(self.group, ys[0] if alone else ys)

    def backward(
        self, grads: Any, updParamGrads: bool = True, updGrad: bool = True, scale: float = 1.0, momentum: float = 0.0
    ) -> Any:
        """Gradients of the last call, as a module's `backward`; for each shard."""
        return self.start_backward(grads, updParamGrads, updGrad, scale, momentum).result()

    @driver_errors("backward")
    def start_backward(
        self, grads: Any, updParamGrads: bool = True, updGrad: bool = True, scale: float = 1.0, momentum: float = 0.0
    ) -> Pending[Any]:
        """As `backward`, but for the exchange: see Group.batched."""
        group, statistics = self.group, self._statistics
        with group.working(), group.telling():
            scale = self.module._real_number("scale", scale)
            momentum = self.module._real_number("momentum", momentum)
            if self._shards is None:
                raise ModuleStateError(f"{self.module}: backward needs a call of the module before it")
            listed, alone = self._listed("grad", grads)
            for one, x, grad in zip(self.modules, self._shards, listed, strict=True):
                if grad.shape != x.shape:
                    raise ModuleShapeError(f"{one}: grad has shape {grad.shape}; the data had {x.shape}")
            if statistics is None:
                return self._constant_backward(listed, alone, updParamGrads, updGrad, scale, momentum)
            options: dict[str, Any] = {"scale": [one.scale for one in self.modules], "axis": self.module.axis}
            behind = [one._behind_options() for one in self.modules]
            if behind[0]:
                each = {name: [own.get(name) for own in behind] for name in ("bias", "y", "residual")}
                options |= {name: None if arrays[0] is None else arrays for name, arrays in each.items()}
                options |= {name: behind[0].get(name) for name in ("activation", "dresidual")}
            if self.module.affine and updParamGrads and self.module.train:
                for name in ("scale", "bias"):
                    options[f"{name}_grad"] = [one.vars[name].grad for one in self.modules]
                options |= {"grad_scale": scale, "grad_momentum": momentum}
            pending = group.start_backward(
                self._shards, listed, statistics, **options, parameters=self.parameters, layer=self._layer
            )

        def finish(result: tuple[list[Array], ...]) -> Any:
            for one, dx, dscale, dbias, *others in zip(self.modules, *result, strict=True):
                one.grad = dx if updGrad else None
                one.residualgrad = others[0] if others else None
                one.scalegrad, one.biasgrad = (dscale, dbias) if one.affine else (None, None)
            dxs = result[0]
            return None if not updGrad else dxs[0] if alone else dxs

        return pending.then(finish)

    def _constant_backward(
        self, grads: Sequence[Array], alone: bool, updParamGrads: bool, updGrad: bool, scale: float, momentum: float
    ) -> Pending[Any]:
        """By running statistics, which are constants: each shard's gradient is its own, and parameters' are summed."""
        gathers = self.module.affine and updParamGrads and self.module.train
        dxs, found = [], []
        for one, grad in zip(self.modules, grads, strict=True):
            dxs.append(one.backward(grad, updParamGrads=False, updGrad=True))
            if gathers:
                own = cast("tuple[Array, Array]", (one.scalegrad, one.biasgrad))
                found.append([rows.read(array, one.queue) for array in own])
        if gathers:
            hosts = [np.stack([read.get().ravel() for read in pair]) for pair in found]
            total: NDArray[Any] = whole.summed(hosts)
            if self.parameters == "whole":
                total = self.group.sum([total] + [np.zeros_like(total)] * (len(self.modules) - 1), layer=self._layer)[0]
            self._write_all(
                {
                    name: whole.gathered(new, scale, host_of(self.module.vars[name].grad).ravel(), momentum)
                    for name, new in zip(("scale", "bias"), total, strict=True)
                },
                lambda one, name: one.vars[name].grad,
            )
        return _Done(self.group, None if not updGrad else dxs[0] if alone else dxs)

    def updateParams(self, learnRate: float) -> None:
        """One step: data += learnRate * grad, computed once, on the host, and written to all devices."""
        with self.group.working():
            module = self.module
            rate = module._real_number("learnRate", learnRate)
            if module.affine:
                read = {
                    name: (host_of(var.data).ravel(), host_of(var.grad).ravel()) for name, var in module.vars.items()
                }
                stepped = {name: whole.gathered(grad, rate, data, 1.0) for name, (data, grad) in read.items()}
                self._write_all(stepped, lambda one, name: one.vars[name].data)

    def _write_all(self, hosts: dict[str, NDArray[Any]], where: Callable[[BatchNormND, str], Array]) -> None:
        for one in self.modules:
            for name, host in hosts.items():
                rows.write(where(one, name), host, one.queue)

    def zeroGradParams(self) -> None:
        """Fill the gradients of all variables with 0."""
        for one in self.modules:
            one.zeroGradParams()

    def trainMode(self) -> None:
        """Normalise by the batch's statistics from now on; drops what the last call left."""
        self._drop()
        for one in self.modules:
            one.trainMode()

    def evalMode(self) -> None:
        """Normalise by the running statistics from now on; drops what the last call left."""
        self._drop()
        for one in self.modules:
            one.evalMode()

    def save(self, hdf: str | os.PathLike[str] | h5py.Group | None = None, **options: Any) -> bytes | None:
        """As a module's `save`; one rank's file is as good as another's: `if group.rank == 0: bn.save(path)`."""
        return self.module.save(hdf, **options)

    def load(self, hdf: str | os.PathLike[str] | bytes | h5py.Group, **options: Any) -> None:
        """As a module's `load`, into the modules of all devices; every rank loads the same file.

        GroupError: the ranks have not loaded the same; then each has its own rank's values.
        """
        with self.group.working(), self.group.telling():
            self.module.load(hdf, **options)
            state = self.module._state()
            for one in self.modules[1:]:
                one._take_state(state)
            self._drop()
        told = self.group.agree(f"load of {self._layer!r}", _digest(state))
        other = [rank for rank, one in enumerate(told) if one != told[0]]
        if other:
            raise GroupError(f"{self.module}: ranks {other} have loaded other values than rank 0; one file is wanted")

    def _drop(self) -> None:
        self._shards = self._statistics = None

    def _listed(self, name: str, given: Any) -> tuple[list[Array], bool]:
        if isinstance(given, Array) and len(self.modules) == 1:
            listed, alone = [given], True
        elif isinstance(given, (list, tuple)) and len(given) == len(self.modules):
            listed, alone = list(given), False
        else:
            one = "an array, or " if len(self.modules) == 1 else ""
            came = f"a list of {len(given)}" if isinstance(given, (list, tuple)) else values.kind_of(given)
            raise ModuleShapeError(
                f"{self.module}: {name} is {came}; {one}a list of {len(self.modules)} is wanted, one for each device"
            )
        for module, array in zip(self.modules, listed, strict=True):
            module._check(array, name)
        return listed, alone

    def _from_rank_0(self, module: BatchNormND) -> dict[str, Any]:
        """The state of rank 0's module, on all ranks; GroupError where they are of different kinds."""
        group = self.group
        with group.working(), group.telling():
            state = module._state()
            payload = b"".join(array.tobytes() for array in state.values())
        blueprint = {name: value for name, value in module.blueprint.items() if name != "empty"}
        words = f"{type(module).__name__} {self._layer!r} of {np.dtype(module.calctype)}: {blueprint}"
        words += f", guard {module.guard}, {module._running_options()}, parameters {self.parameters}"
        words += "" if module.activation is None else f", activation {module.activation!r}"
        words += f", with {', '.join(state)}"
        first = group.agree(words, payload)[0]
        made, start = {}, 0
        for name, array in state.items():
            made[name] = np.frombuffer(first[start : start + array.nbytes], array.dtype).reshape(array.shape)
            start += array.nbytes
        return made


class _Done(Pending[Any]):
    """What is there without an exchange."""

    def __init__(self, group: Collective, result: Any) -> None:
        super().__init__(group, "", lambda: b"", lambda payloads: None)
        self._result.append(result)


def _digest(state: dict[str, NDArray[Any]]) -> bytes:
    return hashlib.blake2b(b"".join(array.tobytes() for array in state.values()), digest_size=16).digest()
