"""Batch normalization as a module: state, options and checks.

The computing, and the source of its formulas, is in oclbn.functional; what every module has, in oclbn.modules.module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pyopencl as cl
from numpy.typing import DTypeLike, NDArray

from oclbn import functional, gpuarray
from oclbn.call import fusing
from oclbn.device import driver_errors
from oclbn.errors import (
    ModuleFileError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    ParameterWarning,
    SkippedBatchesWarning,
    warn_caller,
)
from oclbn.gpuarray import Array
from oclbn.modules.averaging import settled_count
from oclbn.modules.module import Module
from oclbn.modules.options import Activated, Fixed, Flag, Number, flag
from oclbn.modules.parameters import Shapes, whole
from oclbn.modules.variable import Tensor, Variable, host_of

__all__ = ["BatchNormND"]

_MOST_COUNTED = 2**31  # batches of a file that counters of 32 bits begin with; beyond that no factor shows one more


class BatchNormND(Module):
    """Batch normalization of (batch, maps, *spatial) with `nd` spatial axes, or of channels on another `axis`.

    `scale`, `bias`, `mean`, `var` have shape (1, maps) + (1,) * nd, and so have `savemean`, `saveinvvar`, `scalegrad`
    and `biasgrad`, which the last call and its gradient leave. `numOfProps` counts all training batches; setting it
    says how many the statistics of every channel stand for, and `skipped` is 0 again.
    ModuleShapeError: data of another rank or number of channels, or in training of one value per channel. Module tells
    of the other errors.

    >>> from oclbn import BatchNormND, gpuarray
    >>> bn = BatchNormND(4, 3)
    >>> bn(gpuarray.ones((2, 3, 1, 2, 1, 2))).shape, bn.numOfProps, bn.mean.shape
    ((2, 3, 1, 2, 1, 2), 1, (1, 3, 1, 1, 1, 1))
    >>> bn.mean.get().ravel()
    array([1., 1., 1.], dtype=float32)
    """

    _passing = (*Module._passing, "savemean", "saveinvvar", "scalegrad", "biasgrad", "residualgrad", "_behind")
    scale, bias, mean, var = Tensor(), Tensor(), Tensor(), Tensor()
    epsilon, initFactor, minFactor = Number(0.0), Number(0.0, 1.0), Number(0.0, 1.0)
    inplace, guard, frozen_statistics = Flag(), Flag(), Flag()
    activation = Activated()
    maps, axis = Fixed[int](), Fixed[int]()
    affine = Fixed[bool]("make another module, or leave gradients out with backward(grad, updParamGrads=False)")
    _maps_argument: ClassVar[str] = "maps"

    @driver_errors("making a module")
    def __init__(
        self,
        nd: int,
        maps: int,
        epsilon: float = 1e-5,
        initFactor: float = 1.0,
        minFactor: float = 0.1,
        sscale: float = 0.01,
        affine: bool = True,
        name: str | None = None,
        empty: bool = False,
        inplace: bool = False,
        *,
        queue: cl.CommandQueue | None = None,
        dtype: DTypeLike = np.float32,
        seed: Any = None,
        guard: bool = True,
        frozen_statistics: bool = False,
        axis: int = 1,
        activation: Any = None,
    ) -> None:
        """Options up to `inplace` are PuzzleLib's, those behind it ours; how they are called elsewhere: oclbn.names.

        nd: number of spatial axes, of BatchNormND alone. maps: number of channels; size: what BatchNorm calls it.
        epsilon: at least 0, added to the variance. initFactor, minFactor: from 0 to 1; the batch that is number n,
        counted from 1, of those that entered a channel's running statistics has the factor max(initFactor / n,
        minFactor) there; where initFactor is above 0 and below minFactor, it has no effect, and a ParameterWarning says
        so. sscale: the initial scale is drawn from N(1, sscale). affine: scale and bias are trained; off, they stay 1
        and 0. name: in files and messages. empty: tensors are not created until `load`, or until values are assigned.
        inplace: evaluation writes over its input.

        queue: a pyopencl.CommandQueue for the parameters (None: the default queue). dtype: of data, their gradients and
        results: float32, float16, ml_dtypes.bfloat16 (or "bfloat16"), or float64 where the device has it; parameters
        and statistics are float32, and float64 for that. seed: for numpy.random.default_rng, which draws the scale;
        None: NumPy's global generator does. axis: of the channels in the data, counted from 0, or from the end where
        it is negative: -1 is channels last; parameters and files are the same.

        guard: channels whose batch statistics are not finite keep their running statistics: for them it is as if there
        had been no such batch. `skipped` counts the updates that were left out. The output and the gradients of such a
        channel are NaN all the same: leave out `updateParams` for that batch, or scale and bias become NaN. Where every
        channel was left out, which neat statistics hide, there is one SkippedBatchesWarning: not from the call, which
        does not wait for the device, but as soon as the counters are read, by `evalMode`, `save` or `skipped`.

        frozen_statistics: training, too, normalises with the running statistics and leaves them alone, while gradients
        of scale and bias are accumulated, as for fine-tuning; an attribute that may be set at any time. (Eval mode
        uses the running statistics as well, but `backward` accumulates no parameter gradients there.)

        activation: what is done to the output, by the same kernels: None, or one of those that
        functional.batch_norm_train takes, as "relu" and ("leaky_relu", 0.2); `backward` then takes the gradient with
        respect to what it gives.

        Attributes of the options' names may be set later, and are checked as here; affine, axis, maps and queue stay
        (ModuleStateError), and calcMode changes the type.

        ModuleParameterError, ModuleDtypeError: an argument that is not wanted.
        """
        super().__init__(name, queue=queue, dtype=dtype)
        nd = self._whole_number("nd", nd, 0)
        self.maps = self._whole_number(self._maps_argument, maps, 1)
        self.epsilon, self.initFactor, self.minFactor = epsilon, initFactor, minFactor
        sscale = self._real_number("sscale", sscale, 0.0)
        self.affine = flag(self, "affine", affine)
        self.inplace, self.guard, self.frozen_statistics = inplace, guard, frozen_statistics
        self._batches = 0
        self.blueprint = {
            "nd": nd,
            "maps": self.maps,
            "epsilon": self.epsilon,
            "initFactor": self.initFactor,
            "minFactor": self.minFactor,
            "sscale": sscale,
            "affine": self.affine,
            "name": self.name,
            "empty": bool(empty),
            "inplace": self.inplace,
        }
        self._shape = (1, self.maps) + (1,) * nd
        rank = self._data_rank()
        self.axis = self._whole_number("axis", axis, -rank, rank - 1) % rank
        self._entered: Array | None = None  # for each channel: the batches that moved it, but for those not counted
        self._uncounted = 0
        self._may_warn, self._known_skips = True, 0
        self.savemean: Array | None = None
        self.saveinvvar: Array | None = None
        self.scalegrad: Array | None = None
        self.biasgrad: Array | None = None
        self.residualgrad: Array | None = None
        self._behind: dict[str, Any] | None = None  # what backward is told of what the last call has fused
        self.activation = activation
        draw = self._generator(seed)
        if 0.0 < self.initFactor < self.minFactor:
            warn_caller(
                f"{self}: initFactor is {self.initFactor:g}, less than minFactor, {self.minFactor:g}, so that every "
                "batch has the factor minFactor, as with initFactor=0; a momentum of PyTorch's, which stands behind "
                "eps there, is initFactor=0, minFactor=momentum here",
                ParameterWarning,
            )
        if not empty:
            # Drawn in float64 and also without affine, as PuzzleLib does: a seeded script gets the same numbers.
            self._create(draw(1.0, sscale if self.affine else 0.0, self._shape))

    def __repr__(self) -> str:
        left_out = ("nd", "maps", "size", "name", "empty", "sscale")
        told = [f"{name}={value!r}" for name, value in self.blueprint.items() if name not in left_out]
        sizes = [self.blueprint[name] for name in ("nd", "maps", "size") if name in self.blueprint]
        named = [] if self.name is None else [f"name={self.name!r}"]
        named += [f"axis={self.axis}"] if self.axis != 1 else []
        named += [f"activation={self.activation!r}"] if self.activation is not None else []
        own = [f"dtype={np.dtype(self.calctype)}", f"device={self.queue.device.name.strip()!r}"]
        return f"{type(self).__name__}({', '.join([*map(str, sizes), *told, *named, *own])})"

    @driver_errors("calling a module")
    @whole
    def __call__(self, data: Array, residual: Array | None = None) -> Array:
        """The output for `data`, f(bn(data) + residual): returned and kept as `self.data`, the input as `self.inData`.

        residual: an array like the data that is added before the activation, or None. After `backward` its gradient is
        `self.residualgrad`. What the activation's derivative is made from is kept until then, by reference: the output,
        or for silu, gelu, gelu_tanh and hardswish the residual.
        """
        return self._call(data, residual=residual) if residual is not None else self._call(data)

    @driver_errors("evalMode")
    @whole
    def evalMode(self) -> None:
        """Compute with the running statistics from now on; drops what the last call left.

        `backward` then gives the data's gradient and accumulates none of the variables'; `frozen_statistics` does.
        After training it waits for the device, and warns if the guard has left out every channel.
        """
        if self.train:
            self._skips()
        super().evalMode()

    @property
    @driver_errors("skipped")
    @whole
    def skipped(self) -> int:
        """How many updates of a channel's running statistics the guard left out; reading it waits for the device.

        Counted along with `numOfProps`: files keep it, for each channel.
        """
        return int(self._skips().sum(dtype=np.int64))

    @property
    def numOfProps(self) -> int:
        """How many training batches there were."""
        return self._batches

    @numOfProps.setter
    @whole
    def numOfProps(self, count: int) -> None:
        count = self._whole_number("numOfProps", count, 0)
        self._take(count, None, 0)

    def _state(self) -> dict[str, NDArray[Any]]:
        """All that changes, on the host: what another module of the same kind takes by `_take_state`."""
        scale, bias, mean, var = self._tensors()
        arrays = {"scale": scale, "bias": bias, "mean": mean, "var": var}
        arrays |= {f"{name}.grad": one.grad for name, one in self._vars.items()}
        entered = np.full(self._shape, self._counted(), np.uint32) if self._entered is None else self._entered.get()
        return {name: host_of(array) for name, array in arrays.items()} | {
            "entered": entered,
            "batches": np.array([self._batches], np.int64),
        }

    def _take_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become as the module was that gave this state."""
        self.reset()
        for name in ("scale", "bias", "mean", "var"):
            setattr(self, name, state[name])
        for name, one in self._vars.items():
            one.grad.set(state[f"{name}.grad"])
        batches = int(state["batches"][0])
        uncounted = max(0, batches - _MOST_COUNTED)
        skips = (batches - uncounted) - int(state["entered"].max())
        self._take(batches, gpuarray.to_gpu(state["entered"], queue=self.queue), skips)

    def _take(self, batches: int, entered: Array | None, skips: int) -> None:
        """The counters, and the fewest updates that are known to have been left out of a channel."""
        self._batches, self._uncounted, self._entered = batches, max(0, batches - _MOST_COUNTED), entered
        self._may_warn, self._known_skips = True, skips

    @driver_errors("updateParams")
    @whole
    def updateParams(self, learnRate: float) -> None:
        """One step: data += learnRate * grad, in place (to descend, learnRate is negative); nothing without affine."""
        rate = self._real_number("learnRate", learnRate)
        if self.affine:
            super().updateParams(rate)

    def _create(self, scale: NDArray[Any]) -> None:
        options: Any = {"dtype": self._numbers, "queue": self.queue}
        self.setVar("scale", Variable(gpuarray.to_gpu(scale.astype(self._numbers), queue=self.queue), "scale"))
        self.setVar("bias", Variable(gpuarray.zeros(self._shape, **options), "bias"))
        self.setAttr("mean", gpuarray.zeros(self._shape, **options))
        self.setAttr("var", gpuarray.ones(self._shape, **options))

    def _generator(self, seed: Any) -> Any:
        """The function that draws (mean, deviation, shape) from a normal distribution."""
        if seed is None:
            return np.random.normal
        try:
            return np.random.default_rng(seed).normal
        except (TypeError, ValueError) as error:
            raise ModuleParameterError(
                f"{self}: seed is {seed!r}; None or a seed for NumPy is wanted ({error})"
            ) from error

    def _tensors(self) -> tuple[Array, Array, Array, Array]:
        scale, bias, mean, var = self.scale, self.bias, self.mean, self.var
        if scale is None or bias is None or mean is None or var is None:
            raise self._incomplete()
        return scale, bias, mean, var

    def _forward(self, data: Array, residual: Array | None = None) -> Array:
        fused = self._fused(data.shape, residual)
        y = self._normalised(data, fused)
        self._behind = fused or None
        return y

    def _fused(self, shape: tuple[int, ...], residual: Array | None) -> dict[str, Any]:
        """What is done to data of this shape besides, as functions take it."""
        fused: dict[str, Any] = {} if self.activation is None else {"activation": self.activation}
        if residual is not None:
            self._check_like_data(residual, "residual", shape)
            fused["residual"] = residual
        return fused

    def _behind_options(self) -> dict[str, Any]:
        """What batch_norm_backward is told of what the last call has fused: nothing that is not needed."""
        if not self._behind:
            return {}
        options = self._behind | {"bias": self.bias, "dresidual": "residual" in self._behind}
        if "residual" in self._behind and fusing.activation_of(self._behind.get("activation")).by_output:
            options |= {"y": self.data, "residual": None}
        return options

    def _normalised(self, data: Array, fused: dict[str, Any]) -> Array:
        if self._by_running():
            scale, bias, mean, var = self._tensors()
            options: dict[str, Any] = {"epsilon": self.epsilon, "axis": self.axis, **fused}
            y = functional.batch_norm_infer(data, scale, bias, mean, var, out=data if self.inplace else None, **options)
            self.savemean = self.saveinvvar = None
            return y
        options = self._training() | fused
        if data.size == self.maps:
            raise ModuleShapeError(
                f"{self}: data has shape {data.shape}: one value per channel has no variance; training needs two"
            )
        y, self.savemean, self.saveinvvar = functional.batch_norm_train(data, **options)
        if data.size:
            self._batches += 1
        return y

    def _by_running(self) -> bool:
        """Whether a call normalises with the running statistics."""
        if self.inplace and self.train:
            raise ModuleStateError(f"{self}: inplace is for evaluation: training needs the input for its gradient")
        return not self.train or self.frozen_statistics

    def _training(self) -> dict[str, Any]:
        """What batch_norm_train takes beside the data."""
        scale, bias, mean, var = self._tensors()
        if self._entered is None:
            self._entered = gpuarray.full(self._shape, self._counted(), np.uint32, queue=self.queue)
        return {
            "scale": scale,
            "bias": bias,
            "running_mean": mean,
            "running_var": var,
            "epsilon": self.epsilon,
            "factor": self.minFactor,
            "init_factor": self.initFactor,
            "entered": self._entered,
            "guard": self.guard,
            "axis": self.axis,
        }

    def _backward(self, data: Array, grad: Array, into: Mapping[str, Array], scale: float, momentum: float) -> Array:
        weights, _, mean, var = self._tensors()
        options: dict[str, Any] = {"axis": self.axis, **self._behind_options()}
        if self.savemean is not None and self.saveinvvar is not None:
            statistics = self.savemean, self.saveinvvar
        elif self.inplace:
            raise ModuleStateError(f"{self}: backward after an evaluation in place, which wrote over its input")
        else:
            statistics = mean, var
            options |= {"training": False, "epsilon": self.epsilon}
        if self.affine and into:
            options |= {"scale_grad": into["scale"], "bias_grad": into["bias"]}
            options |= {"grad_scale": scale, "grad_momentum": momentum}
        dx, scalegrad, biasgrad, *others = functional.batch_norm_backward(data, grad, weights, *statistics, **options)
        self.residualgrad = others[0] if others else None
        self.scalegrad, self.biasgrad = (scalegrad, biasgrad) if self.affine else (None, None)
        return dx

    def _data_rank(self) -> int:
        return len(self._shape)

    def _check_shape(self, shape: tuple[int, ...], argument: str) -> None:
        rank, axis = self._data_rank(), self.axis
        if len(shape) != rank or shape[axis] != self.maps:
            advice = ""
            if len(shape) == rank and axis != 1 and shape[1] == self.maps:
                advice = "; for channels on axis 1 make the module without axis"
            elif len(shape) == rank and shape[-1] == self.maps:
                advice = "; for channels last make the module with axis=-1"
            elif argument == "data" and len(shape) > 1 and self.maps in (shape[1], shape[-1]):
                advice = f"; for {len(shape)} axes there is {self._other_class(shape)}"
            raise ModuleShapeError(
                f"{self}: {argument} has shape {shape}; {rank} axes are wanted, with {self.maps} channels on axis "
                f"{axis}{advice}"
            )

    def _other_class(self, shape: tuple[int, ...]) -> str:
        """The call that makes a module for data of this shape and rank, whose channels lie on axis 1 or last."""
        rank = len(shape)
        name = {2: "BatchNorm(", 3: "BatchNorm1D(", 4: "BatchNorm2D(", 5: "BatchNorm3D("}.get(rank)
        last = ", axis=-1" if shape[1] != self.maps or (self.axis != 1 and shape[-1] == self.maps) else ""
        return f"{name or f'BatchNormND({rank - 2}, '}{self.maps}{last})"

    def _shapes(self) -> tuple[Shapes, Shapes]:
        return {"scale": self._shape, "bias": self._shape}, {"mean": self._shape, "var": self._shape}

    def _skips(self) -> NDArray[np.uint32]:
        """For each channel, how many updates the guard left out; waits for the device."""
        if self._entered is None:
            return np.zeros(self._shape, np.uint32)
        skips: NDArray[np.uint32] = (self._counted() - self._entered.get().astype(np.int64)).astype(np.uint32)
        if self._may_warn and skips.min() > self._known_skips:
            self._may_warn = False  # first, as a filter may turn the warning into an error
            least, most = int(skips.min()), int(skips.max())
            times = "once" if most == 1 else f"{least} times" if least == most else f"{least} to {most} times"
            warn_caller(
                f"{self}: the guard has left every channel out of its running statistics, each of them {times} "
                f"in {self._batches} batches: the data, the network before or the driver (try "
                "`oclbn check`) gives values that are not finite",
                SkippedBatchesWarning,
            )
        return skips

    def _counted(self) -> int:
        return self._batches - self._uncounted

    def _counters(self) -> dict[str, int | NDArray[Any]]:
        skips = self._skips()
        return {"numOfProps": self._batches} | ({"skipped": skips} if skips.any() else {})

    def _counter_shapes(self) -> Shapes:
        return {"numOfProps": (), "skipped": self._shape}

    def _counters_from(self, counters: Mapping[str, Any], source: str) -> Callable[[], None]:
        batches = counters.get("numOfProps", settled_count(self.initFactor, self.minFactor))
        skips = counters.get("skipped")
        if skips is not None and skips.max() > counters.get("numOfProps", 0):
            raise ModuleFileError(f"{self}: {source} has {skips.max()} updates left out, more than batches")
        if skips is None:
            return lambda: self._take(batches, None, 0)
        counts = np.maximum(min(batches, _MOST_COUNTED) - skips.astype(np.int64), 0).astype(np.uint32)
        entered = gpuarray.to_gpu(counts, queue=self.queue)
        return lambda: self._take(batches, entered, int(skips.min()))

    def _fault(self, name: str, values: NDArray[Any]) -> str | None:
        if name == "var" and np.any(values < 0):
            return f"a variance below 0: {values.min():g}"
        fixed = {"scale": 1.0, "bias": 0.0}
        if not self.affine and name in fixed and not np.all(values == fixed[name]):
            return f"a trained {name}; affine=False fixes it at {fixed[name]:g}"
        return None
