"""Group and layer normalization as modules, with as much of the batch normalizations' contract as applies.

Neither has running statistics: evaluation does what training does, but that `backward` accumulates no gradients of
scale and bias. The formulas and their sources are in oclbn.group_norm.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import DTypeLike, NDArray

from oclbn import gpuarray, group_norm
from oclbn.call import values
from oclbn.device import driver_errors
from oclbn.errors import ModuleParameterError, ModuleShapeError
from oclbn.gpuarray import Array
from oclbn.modules.module import Module
from oclbn.modules.options import Fixed, Number, flag
from oclbn.modules.parameters import Shapes, whole
from oclbn.modules.variable import Tensor, Variable

__all__ = ["GroupNorm", "LayerNorm"]


class Affine(Module):
    """What GroupNorm and LayerNorm share: scale and bias, and statistics that are those of the last call alone."""

    _passing = (*Module._passing, "savemean", "saveinvvar", "scalegrad", "biasgrad")
    scale, bias = Tensor(), Tensor()
    epsilon = Number(0.0)
    affine = Fixed[bool]("make another module, or leave gradients out with backward(grad, updParamGrads=False)")

    def __init__(
        self,
        shape: tuple[int, ...],
        epsilon: float,
        affine: bool,
        name: str | None,
        empty: bool,
        queue: cl.CommandQueue | None,
        dtype: DTypeLike,
    ) -> None:
        super().__init__(name, queue=queue, dtype=dtype)
        self.epsilon = epsilon
        self.affine = flag(self, "affine", affine)
        self._shape = shape
        self.blueprint |= {"epsilon": self.epsilon, "affine": self.affine, "empty": bool(empty)}
        self.savemean: Array | None = None
        self.saveinvvar: Array | None = None
        self.scalegrad: Array | None = None
        self.biasgrad: Array | None = None
        if not empty:
            options: Any = {"dtype": self._numbers, "queue": self.queue}
            self.setVar("scale", Variable(gpuarray.ones(shape, **options), "scale"))
            self.setVar("bias", Variable(gpuarray.zeros(shape, **options), "bias"))

    @driver_errors("updateParams")
    @whole
    def updateParams(self, learnRate: float) -> None:
        """One step: data += learnRate * grad, in place (to descend, learnRate is negative); nothing without affine."""
        rate = self._real_number("learnRate", learnRate)
        if self.affine:
            super().updateParams(rate)

    @abstractmethod
    def _normalise(self, data: Array, scale: Array | None, bias: Array | None) -> tuple[Array, Array, Array]:
        """The output and the statistics."""

    @abstractmethod
    def _gradients(self, data: Array, grad: Array, scale: Array | None, options: Mapping[str, Any]) -> Any:
        """Those with respect to the data, scale and bias."""

    def _forward(self, data: Array) -> Array:
        if self.scale is None or self.bias is None:
            raise self._incomplete()
        parameters = (self.scale, self.bias) if self.affine else (None, None)
        y, self.savemean, self.saveinvvar = self._normalise(data, *parameters)
        return y

    def _backward(self, data: Array, grad: Array, into: Mapping[str, Array], scale: float, momentum: float) -> Array:
        options: dict[str, Any] = {"affine": self.affine}
        if self.affine and into:
            options |= {"scale_grad": into["scale"], "bias_grad": into["bias"]}
            options |= {"grad_scale": scale, "grad_momentum": momentum}
        dx: Array
        dx, self.scalegrad, self.biasgrad = self._gradients(data, grad, self.scale if self.affine else None, options)
        return dx

    def _shapes(self) -> tuple[Shapes, Shapes]:
        return {"scale": self._shape, "bias": self._shape}, {}

    def _counters(self) -> dict[str, int | NDArray[Any]]:
        return {}

    def _counter_shapes(self) -> Shapes:
        return {}

    def _counters_from(self, counters: Mapping[str, Any], source: str) -> Callable[[], None]:
        del counters, source
        return lambda: None

    def _fault(self, name: str, values: NDArray[Any]) -> str | None:
        fixed = {"scale": 1.0, "bias": 0.0}
        if not self.affine and not np.all(values == fixed[name]):
            return f"a {name} other than {fixed[name]:g}, at which affine=False keeps it"
        return None

    def _wants_two(self, shape: tuple[int, ...], count: int) -> None:
        if count == 1 and 0 not in shape:
            raise ModuleShapeError(f"{self}: data has shape {shape}: of one value there is no variance; two are wanted")


class GroupNorm(Affine):
    """Group normalization, of data (batch, maps, ...) of any rank from 2 on, or with axis=-1 channels last.

    groups: a divisor of maps; neighbouring maps make up a group, which is normalised sample by sample. Other options
    are those of BatchNorm2D; the first scale is 1. Parameters have shape (1, maps, 1, 1); `savemean` and `saveinvvar`
    have shape (batch, groups).

    >>> from oclbn import GroupNorm, gpuarray
    >>> norm = GroupNorm(4, 32)
    >>> norm(gpuarray.zeros((2, 32, 5, 5))).shape, norm.savemean.shape
    ((2, 32, 5, 5), (2, 4))
    """

    groups, maps, axis = Fixed[int](), Fixed[int](), Fixed[int]()

    @driver_errors("making a module")
    def __init__(
        self,
        groups: int,
        maps: int,
        epsilon: float = 1e-5,
        affine: bool = True,
        name: str | None = None,
        empty: bool = False,
        *,
        queue: cl.CommandQueue | None = None,
        dtype: DTypeLike = np.float32,
        axis: int = 1,
    ) -> None:
        """ModuleParameterError, ModuleDtypeError: an argument that is not wanted."""
        label = type(self).__name__
        maps = values.whole(f"{label}: maps", maps, 1, error=ModuleParameterError)
        groups = values.whole(f"{label}: groups", groups, 1, error=ModuleParameterError)
        if maps % groups:
            raise ModuleParameterError(f"{label}: groups is {groups}; a divisor of {maps}, of maps, is wanted")
        place = values.integer(axis)
        if place in (None, 0):
            raise ModuleParameterError(
                f"{label}: axis is {axis!r}; that of the maps is wanted, 1 or -1, samples being on axis 0"
            )
        super().__init__((1, maps, 1, 1), epsilon, affine, name, empty, queue, dtype)
        self.groups, self.maps, self.axis = groups, maps, int(axis)
        self.blueprint |= {"groups": groups, "maps": maps}

    def __repr__(self) -> str:
        named = [] if self.name is None else [f"name={self.name!r}"]
        named += [f"axis={self.axis}"] if self.axis != 1 else []
        own = [f"epsilon={self.epsilon!r}", f"affine={self.affine!r}", *named, f"dtype={np.dtype(self.calctype)}"]
        return f"GroupNorm({self.groups}, {self.maps}, {', '.join(own)}, device={self.queue.device.name.strip()!r})"

    def _normalise(self, data: Array, scale: Array | None, bias: Array | None) -> tuple[Array, Array, Array]:
        return group_norm.group_norm(data, self.groups, scale, bias, epsilon=self.epsilon, axis=self.axis)

    def _gradients(self, data: Array, grad: Array, scale: Array | None, options: Mapping[str, Any]) -> Any:
        given = (data, grad, self.groups, scale, self.savemean, self.saveinvvar)
        return group_norm.group_norm_backward(*given, axis=self.axis, **options)

    def _check_shape(self, shape: tuple[int, ...], argument: str) -> None:
        axis = self.axis + len(shape) if self.axis < 0 else self.axis
        if len(shape) < 2 or not 0 < axis < len(shape) or shape[axis] != self.maps:
            raise ModuleShapeError(
                f"{self}: {argument} has shape {shape}; 2 axes or more are wanted, with {self.maps} maps on axis "
                f"{self.axis}"
            )
        self._wants_two(shape, math.prod(shape) // max(1, shape[0] * self.groups))


class LayerNorm(Affine):
    """Layer normalization over the last axes of the data, whose shape is given.

    shape: those axes', a number for one. Other options are those of BatchNorm2D; the first scale is 1. Parameters have
    this shape; `savemean` and `saveinvvar` have shape (1, M), M being the product of the leading axes.

    >>> from oclbn import LayerNorm, gpuarray
    >>> norm = LayerNorm(64)
    >>> norm(gpuarray.zeros((2, 10, 64))).shape, norm.scale.shape, norm.savemean.shape
    ((2, 10, 64), (64,), (1, 20))
    """

    shape = Fixed[tuple[int, ...]]()

    @driver_errors("making a module")
    def __init__(
        self,
        shape: int | Sequence[int],
        epsilon: float = 1e-5,
        affine: bool = True,
        name: str | None = None,
        empty: bool = False,
        *,
        queue: cl.CommandQueue | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        """ModuleParameterError, ModuleDtypeError: an argument that is not wanted."""
        try:
            lengths = [values.integer(one) for one in (shape if isinstance(shape, Sequence) else (shape,))]
        except TypeError:
            lengths = []
        found = tuple(length for length in lengths if length is not None and length > 0)
        if not found or len(found) != len(lengths):
            raise ModuleParameterError(
                f"{type(self).__name__}: shape is {values.shown(shape)}; that of the last axes is wanted, as 64 or "
                "(28, 28)"
            )
        super().__init__(found, epsilon, affine, name, empty, queue, dtype)
        self.shape = found
        self.blueprint |= {"shape": found}

    def __repr__(self) -> str:
        named = [] if self.name is None else [f"name={self.name!r}"]
        own = [f"epsilon={self.epsilon!r}", f"affine={self.affine!r}", *named, f"dtype={np.dtype(self.calctype)}"]
        shape = self.shape[0] if len(self.shape) == 1 else self.shape
        return f"LayerNorm({shape}, {', '.join(own)}, device={self.queue.device.name.strip()!r})"

    def _normalise(self, data: Array, scale: Array | None, bias: Array | None) -> tuple[Array, Array, Array]:
        return group_norm.layer_norm(data, len(self.shape), scale, bias, epsilon=self.epsilon)

    def _gradients(self, data: Array, grad: Array, scale: Array | None, options: Mapping[str, Any]) -> Any:
        given = (data, grad, len(self.shape), scale, self.savemean, self.saveinvvar)
        return group_norm.layer_norm_backward(*given, **options)

    def _check_shape(self, shape: tuple[int, ...], argument: str) -> None:
        if len(shape) < max(2, len(self.shape)) or shape[len(shape) - len(self.shape) :] != self.shape:
            raise ModuleShapeError(
                f"{self}: {argument} has shape {shape}; 2 axes or more are wanted, the last ones of shape {self.shape}"
            )
        self._wants_two(shape, math.prod(self.shape))
