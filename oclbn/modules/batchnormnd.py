"""Batch normalization as a module: state, options and checks.

The computing, and the source of its formulas, is in oclbn.functional; what every module has, in oclbn.modules.module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pyopencl as cl
from numpy.typing import DTypeLike, NDArray

from oclbn import functional, gpuarray, renorm
from oclbn.call import fusing
from oclbn.call.masks import said, selection_of
from oclbn.device import driver_errors
from oclbn.errors import (
    ArrayTypeError,
    DtypeError,
    ModuleDtypeError,
    ModuleFileError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    OclbnError,
    ParameterError,
    ParameterWarning,
    ShapeError,
    SkippedBatchesWarning,
    warn_caller,
)
from oclbn.gpuarray import Array
from oclbn.modules.accumulating import Accumulation
from oclbn.modules.averaging import settled_count
from oclbn.modules.folding import coefficients, fold_into
from oclbn.modules.module import Module
from oclbn.modules.options import Activated, Fixed, Flag, Groups, Number, flag
from oclbn.modules.parameters import Shapes, whole
from oclbn.modules.recalibrating import Recalibration
from oclbn.modules.running import RunningStatistics
from oclbn.modules.variable import Tensor, Variable, host_of

__all__ = ["BatchNormND"]

_LARGE = {"float32": "1e19", "float64": "1e154"}  # values whose squares are infinite
_OWN: dict[type[OclbnError], type[OclbnError]] = {  # what functions raise of an argument, and what modules do
    ArrayTypeError: ModuleDtypeError,
    DtypeError: ModuleDtypeError,
    ParameterError: ModuleParameterError,
    ShapeError: ModuleShapeError,
}
_MOST_COUNTED = 2**31  # batches of a file that counters of 32 bits begin with; beyond that no factor shows one more


class BatchNormND(RunningStatistics):
    """Batch normalization of (batch, maps, *spatial) with `nd` spatial axes, or of channels on another `axis`.

    `scale`, `bias`, `mean`, `var` have shape (1, maps) + (1,) * nd, and so have `savemean`, `saveinvvar`, `scalegrad`
    and `biasgrad`, which the last call and its gradient leave. `numOfProps` counts the batches that moved the running
    statistics, all training batches by default; setting it says how many the statistics of every channel stand for, and
    `skipped` is 0 again.
    ModuleShapeError: data of another rank or number of channels, or in training of one value per channel. Module tells
    of the other errors.

    >>> from oclbn import BatchNormND, gpuarray
    >>> bn = BatchNormND(4, 3)
    >>> bn(gpuarray.ones((2, 3, 1, 2, 1, 2))).shape, bn.numOfProps, bn.mean.shape
    ((2, 3, 1, 2, 1, 2), 1, (1, 3, 1, 1, 1, 1))
    >>> bn.mean.get().ravel()
    array([1., 1., 1.], dtype=float32)
    """

    _passing = (*Module._passing, "savemean", "saveinvvar", "scalegrad", "biasgrad", "residualgrad", "corrections")
    _passing = (*_passing, "_behind", "_used")
    scale, bias, mean, var = Tensor(), Tensor(), Tensor(), Tensor()
    epsilon, guard, activation, groups = Number(0.0), Flag(), Activated(), Groups()
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
        use_running: bool | None = None,
        update_running: bool | None = None,
        running: bool = True,
        cumulative: bool = False,
        estimator: str = "sample",
        groups: int = 1,
        renorm: tuple[float, float] | None = None,
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

        use_running: whether a call normalises with the running statistics, which are constants then, or with the
        batch's own. update_running: whether it moves the running statistics by those of the batch. None leaves a switch
        to the mode: training uses the batch's own and moves the running ones, evaluation uses those and leaves them
        alone; True and False hold in both modes. With both True a batch is normalised with the running statistics as
        they were before it. frozen_statistics: True stands for use_running=True and update_running=False, as for
        fine-tuning; gradients of scale and bias are accumulated. (Evaluation uses the running statistics as well, but
        `backward` accumulates no parameter gradients there, whatever the switches.)

        running: False makes a module without running statistics: evaluation, too, uses the batch's own, `mean` and
        `var` are None, files have neither, and numOfProps stays 0. cumulative: running statistics are the plain average
        over the batches, as with initFactor=1, minFactor=0, for which it stands. estimator: of the running variance:
        "sample", the batch's sum of squares is divided by m - 1, or "population", by m.

        activation: what is done to the output, by the same kernels: None, or one of those that
        functional.batch_norm_train takes, as "relu" and ("leaky_relu", 0.2); `backward` then takes the gradient with
        respect to what it gives.

        groups: where a call normalises with the batch's own statistics, so many batches are made of its samples, as
        functional.batch_norm_train has it; the running statistics are moved by one after the other, and each counts in
        numOfProps. A call has as many samples at least.

        renorm: (r_max, d_max): in training a batch is normalised as renorm.batch_renorm_train has it, with its own
        statistics corrected towards the running ones, so far at most; None: batch normalization. Set it from step to
        step, from (1.0, 0.0), which is batch normalization, to (3.0, 5.0), as the paper does.

        Attributes of the options' names may be set later, and are checked as here; affine, axis, maps, running and
        queue stay (ModuleStateError), and calcMode changes the type.

        ModuleParameterError, ModuleDtypeError: an argument that is not wanted.
        """
        super().__init__(name, queue=queue, dtype=dtype)
        nd = self._whole_number("nd", nd, 0)
        self.maps = self._whole_number(self._maps_argument, maps, 1)
        self.epsilon, self.initFactor, self.minFactor = epsilon, initFactor, minFactor
        sscale = self._real_number("sscale", sscale, 0.0)
        self.affine = flag(self, "affine", affine)
        self.inplace, self.guard = inplace, guard
        self._set_running(running, use_running, update_running, frozen_statistics, cumulative, estimator)
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
        self.groups, self.renorm = groups, renorm
        self.corrections: tuple[Array, Array] | None = None  # r and d of the last call
        self._used: tuple[Array, Array] | None = None  # the running statistics of the last call, where it moved them
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
        named += [] if self.guard else ["guard=False"]
        named += [f"groups={self.groups}"] if self.groups > 1 else []
        named += [f"renorm={self.renorm}"] if self.renorm is not None else []
        named += [f"{name}={value!r}" for name, value in self._running_options().items()]
        own = [f"dtype={np.dtype(self.calctype)}", f"device={self.queue.device.name.strip()!r}"]
        return f"{type(self).__name__}({', '.join([*map(str, sizes), *told, *named, *own])})"

    @driver_errors("calling a module")
    @whole
    def __call__(
        self,
        data: Array,
        residual: Array | None = None,
        *,
        mask: Any = None,
        lengths: Any = None,
        outside: str = "zero",
    ) -> Array:
        """The output for `data`, f(bn(data) + residual): returned and kept as `self.data`, the input as `self.inData`.

        residual: an array like the data that is added before the activation, or None. After `backward` its gradient is
        `self.residualgrad`. What the activation's derivative is made from is kept until then, by reference: the output,
        or for silu, gelu, gelu_tanh and hardswish the residual.

        mask, lengths: the positions that count, and outside: what the output is elsewhere, as batch_norm_train takes
        them, in both modes. `backward` is of the same positions, whatever becomes of the mask: gradients are 0
        elsewhere. A batch with nothing inside moves nothing.
        """
        besides: dict[str, Any] = {} if residual is None else {"residual": residual}
        if said(mask, lengths, outside):
            besides["chosen"] = mask, lengths, outside
        return self._call(data, **besides)

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
        """How many batches there were that moved the running statistics: all training batches, unless switched off."""
        return self._batches

    @numOfProps.setter
    @whole
    def numOfProps(self, count: int) -> None:
        count = self._whole_number("numOfProps", count, 0)
        self._take(count, None, 0)

    def accumulate(self, updParamGrads: bool = True, scale: float = 1.0, momentum: float = 0.0) -> Accumulation:
        """A batch that is trained in parts, of which the device holds one at a time, by the statistics of all of it.

        In `with bn.accumulate() as step:` each part goes through `step.statistics`, then each through `step.normalize`,
        and backwards each through `step.gradient_sums`, then each through `step.gradient`: see Accumulation. Results
        are those of one call on the whole batch, within the same tolerances. The arguments are those of `backward`. The
        module changes when the block ends, by one batch, and not at all where something is missing (ModuleStateError)
        or an exception leaves the block. Until then other threads wait for its lock.
        """
        return Accumulation(self, updParamGrads, scale, momentum)

    def recalibrate(self) -> Recalibration:
        """New running statistics from a pass over data, exact ones: those of all values, not an average over batches.

        In `with bn.recalibrate() as pass_:` calls of the module are collected and move nothing; `pass_.commit()` then
        makes theirs the running statistics. See Recalibration.
        """
        return Recalibration(self)

    @driver_errors("fold")
    @whole
    def fold(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(a, b), of C values each: by the running statistics y = a x + b per channel.

        a = scale / sqrt(var + epsilon), b = bias - mean a, in float64 on the host, rounded once, to the parameters'
        dtype. An activation is no part of it. ModuleStateError: no running statistics. Waits for the device.
        """
        a, b = self._coefficients()
        return a.astype(self._numbers), b.astype(self._numbers)

    @driver_errors("fold_into")
    @whole
    def fold_into(
        self, weight: NDArray[Any], bias: NDArray[Any] | None = None, *, axis: int = 0
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Weight and bias of the convolution or dense layer before this module, with the module folded into them.

        weight: a NumPy array of float32, float64, float16 or bfloat16, with the layer's output channels on `axis`: 0
        for (out, in, ...), 1 for the transposed (in, out, ...), -1 for (..., in, out). bias: C values, or None for 0.
        Returns new arrays of weight's dtype, for a layer that gives what both gave in evaluation before the activation:
        a weight and a bias + b, by `fold`'s a and b before they are rounded.
        ModuleShapeError, ModuleDtypeError: which argument; ModuleParameterError: no such axis; ModuleStateError: no
        running statistics.
        """
        return fold_into(f"{self}", self._coefficients(), weight, bias, axis)

    def _coefficients(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not self.running:
            raise ModuleStateError(f"{self}: without running statistics (running=False) nothing can be folded")
        scale, bias, mean, var = (host_of(array).ravel() for array in self._tensors() if array is not None)
        return coefficients(scale, bias, mean, var, self.epsilon)

    def _state(self) -> dict[str, NDArray[Any]]:
        """All that changes, on the host: what another module of the same kind takes by `_take_state`."""
        named = zip(("scale", "bias", "mean", "var"), self._tensors(), strict=True)
        arrays = {name: array for name, array in named if array is not None}
        arrays |= {f"{name}.grad": one.grad for name, one in self._vars.items()}
        entered = np.full(self._shape, self._counted(), np.uint32) if self._entered is None else self._entered.get()
        return {name: host_of(array) for name, array in arrays.items()} | {
            "entered": entered,
            "batches": np.array([self._batches], np.int64),
        }

    def _take_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become as the module was that gave this state."""
        self.reset()
        for name in ("scale", "bias", "mean", "var") if self.running else ("scale", "bias"):
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
        if self.running:
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

    def _tensors(self) -> tuple[Array, Array, Array | None, Array | None]:
        """Scale, bias and the running statistics, None without those."""
        own = self._tensor
        scale, bias, mean, var = own("scale"), own("bias"), own("mean"), own("var")
        if scale is None or bias is None or ((mean is None or var is None) and self.running):
            raise self._incomplete()
        return scale, bias, mean, var

    def _forward(self, data: Array, residual: Array | None = None, chosen: tuple[Any, Any, Any] | None = None) -> Array:
        fused, session = self._fused(data.shape, residual, self.activation), self._session
        if chosen is not None:
            fused |= self._selected(data, *chosen)
        collected = None if session is None else session.of_call(data, fused.get("mask"))
        y = self._normalised(data, fused)
        vars(self)["_behind"] = fused or None
        if session is not None:
            session.keep(collected)
        return y

    def _fused(self, shape: tuple[int, ...], residual: Array | None, activation: Any) -> dict[str, Any]:
        """What is done to data of this shape besides, as functions take it."""
        fused: dict[str, Any] = {} if activation is None else {"activation": activation}
        if residual is not None:
            self._check_like_data(residual, "residual", shape)
            fused["residual"] = residual
        return fused

    def _selected(self, data: Array, mask: Any, lengths: Any, outside: Any) -> dict[str, Any]:
        """What functions are told of the positions that a call is of."""
        try:
            selection = selection_of(data, self.axis, mask, lengths, outside, called="data")
        except (ArrayTypeError, DtypeError, ParameterError, ShapeError) as error:
            raise _OWN[type(error)](f"{self}: {error}") from None
        return {"mask": selection, "outside": outside}

    def _behind_options(self) -> dict[str, Any]:
        """What batch_norm_backward is told of what the last call has fused: nothing that is not needed."""
        if not self._behind:
            return {}
        options = self._behind | {"bias": self.bias, "dresidual": "residual" in self._behind}
        if "residual" in self._behind and fusing.activation_of(self._behind.get("activation")).by_output:
            options |= {"y": self.data, "residual": None}
        return options

    def _normalised(self, data: Array, fused: dict[str, Any]) -> Array:
        by_running, moves = self._by_running(), self._moves_running()
        options = self._training() if moves or not by_running else None
        inside = fused.get("mask")
        count = data.size // self.maps if inside is None else inside.count
        if count == 1 and options is not None:
            needs = "training needs two" if self.train else "the batch's own statistics need two"
            told = "" if inside is None else ", and one position is inside the mask or the lengths"
            raise ModuleShapeError(
                f"{self}: data has shape {data.shape}{told}: one value per channel has no variance; {needs}"
            )
        groups = 1 if options is None else self._groups_of(data.shape, by_running)
        renormed = not by_running and self.renorm is not None and self.train
        if inside is not None and (groups > 1 or renormed):
            one = "groups=1" if self.groups > 1 else "one sample"
            wanted = f"renorm=None, not {self.renorm}" if renormed else f"{one}, not {groups}"
            raise ModuleParameterError(
                f"{self}: a mask or lengths are given, which are of one batch and its statistics; wanted is {wanted}"
            )
        if by_running:
            y, self._used = self._infer(data, options if count else None, fused)
            self.savemean = self.saveinvvar = self.corrections = None
        elif renormed:
            y = self._renormed(data, options or {}, fused, groups)
        else:
            if groups > 1:
                fused = {**fused, "groups": groups}
            y, mean, invvar = functional.batch_norm_train(data, **(options or {}), **fused)
            vars(self).update(savemean=mean, saveinvvar=invvar, corrections=None)  # as Module's _call has it
        if count and moves:
            vars(self)["_batches"] += groups
        return y

    def _renormed(self, data: Array, options: Mapping[str, Any], fused: Mapping[str, Any], groups: int) -> Array:
        """The output by the batch's own statistics, corrected towards the running ones."""
        if groups > 1:
            raise ModuleStateError(f"{self}: groups and renorm are both set; groups=1 or renorm=None is wanted")
        assert self.renorm is not None
        limits: dict[str, Any] = dict(zip(("r_max", "d_max"), self.renorm, strict=True))
        if not self._moves_running():  # they count all the same
            _, _, mean, var = self._tensors()
            options = {**options, "running_mean": mean, "running_var": var, "factor": 0.0, "init_factor": 0.0}
        y, self.savemean, self.saveinvvar, *corrections = renorm.batch_renorm_train(data, **options, **fused, **limits)
        self.corrections = (corrections[0], corrections[1])
        return y

    def _batches_of(self, shape: tuple[int, ...]) -> int:
        """How many batches data of this shape are to be."""
        del shape
        return self.groups

    def _groups_of(self, shape: tuple[int, ...], by_running: bool) -> int:
        """The batches that a call on data of this shape makes of it; refused where one would have too little."""
        groups, samples = self._batches_of(shape), shape[0]
        if groups == 1:
            return 1
        if by_running:
            raise ModuleStateError(
                f"{self}: a call that normalises with the running statistics, and moves them, does so by whole "
                "batches; groups=1 is wanted"
            )
        values = math.prod(shape) // self.maps
        if values and (samples < groups or samples // groups * (values // samples) == 1):
            raise ModuleShapeError(
                f"{self}: data has shape {shape}: {groups} groups of samples are wanted, with two values per channel "
                "in each of them"
            )
        return groups

    def _infer(
        self, data: Array, moving: Mapping[str, Any] | None, fused: Mapping[str, Any]
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """The output by the running statistics; which are moved afterwards, and come back as they were before."""
        scale, bias, mean, var = self._tensors()
        assert mean is not None
        assert var is not None
        options: dict[str, Any] = {"epsilon": self.epsilon, "axis": self.axis, **fused}
        options["out"] = data if self.inplace else None
        if moving is None:
            return functional.batch_norm_infer(data, scale, bias, mean, var, **options), None
        own = functional.statistics(data, axis=self.axis, mask=fused.get("mask"))
        used = gpuarray.pack(mean, queue=data.queue), gpuarray.pack(var, queue=data.queue)
        y = functional.batch_norm_infer(data, scale, bias, *used, **options)
        names = ("factor", "init_factor", "entered", "guard", "estimator")
        functional.move_running(own, mean, var, **{name: moving[name] for name in names})
        return y, used

    def _training(self) -> dict[str, Any]:
        """What batch_norm_train takes beside the data."""
        (scale, bias, mean, var), moves = self._tensors(), self._moves_running()
        if self._entered is None and moves:
            self._entered = gpuarray.full(self._shape, self._counted(), np.uint32, queue=self.queue)
        return {
            "scale": scale,
            "bias": bias,
            "running_mean": mean if moves else None,
            "running_var": var if moves else None,
            "epsilon": self.epsilon,
            "factor": self.minFactor,
            "init_factor": self.initFactor,
            "entered": self._entered if moves else None,
            "guard": self.guard,
            "axis": self.axis,
            "estimator": self.estimator,
        }

    def _backward(self, data: Array, grad: Array, into: Mapping[str, Array], scale: float, momentum: float) -> Array:
        if self._session is not None:
            self._session.of_backward()
        weights, _, mean, var = self._tensors()
        options: dict[str, Any] = {"axis": self.axis, **self._behind_options()}
        if self.savemean is not None and self.saveinvvar is not None:
            statistics = self.savemean, self.saveinvvar
            if (groups := self.savemean.size // self.maps) > 1:
                options["groups"] = groups
        elif self.inplace:
            raise ModuleStateError(f"{self}: backward after an evaluation in place, which wrote over its input")
        else:
            statistics = self._used or (mean, var)  # type: ignore[assignment]
            options |= {"training": False, "epsilon": self.epsilon}
        if self.affine and into:
            options |= {"scale_grad": into["scale"], "bias_grad": into["bias"]}
            options |= {"grad_scale": scale, "grad_momentum": momentum}
        if self.corrections is None:
            made = functional.batch_norm_backward(data, grad, weights, *statistics, **options)
        else:
            made = renorm.batch_renorm_backward(data, grad, weights, *statistics, *self.corrections, **options)
        dx, scalegrad, biasgrad, *others = made
        kept = (scalegrad, biasgrad) if self.affine else (None, None)
        left = (*kept, others[0] if others else None)
        vars(self).update(zip(("scalegrad", "biasgrad", "residualgrad"), left, strict=True))
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
            if argument == "data" and axis and len(shape) == rank - 1 and shape[axis - 1] == self.maps:
                advice += f"; for one sample give data.reshape({(1, *shape)})"
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
        attributes = dict.fromkeys(("mean", "var"), self._shape) if self.running else {}
        return {"scale": self._shape, "bias": self._shape}, attributes

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
                f"in {self._batches} {'batch' if self._batches == 1 else 'batches'}: values that are not finite, or so "
                f"large (from about {_LARGE[self._numbers.name]} on in {self._numbers}) that their variance overflows. "
                "Look at the data, at what comes before this layer, or at the driver (`oclbn check`)",
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
        unknown = settled_count(self.initFactor, self.minFactor) if self.running else 0
        batches = counters.get("numOfProps", unknown) if self.running else 0
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
            return f"a {name} other than {fixed[name]:g}, at which affine=False keeps it"
        return None
