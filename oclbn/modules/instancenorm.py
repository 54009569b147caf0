"""Instance normalization as modules: each sample is normalised by itself, channel by channel.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias,    mean and variance over the spatial axes of a sample

D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016
(arXiv:1607.08022). It is batch normalization of as many batches as there are samples, by the same kernels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyopencl as cl
from numpy.typing import DTypeLike

from oclbn.device import driver_errors
from oclbn.errors import ModuleParameterError, ModuleStateError
from oclbn.modules.batchnormnd import BatchNormND
from oclbn.modules.options import Fixed

__all__ = ["InstanceNorm1D", "InstanceNorm2D", "InstanceNorm3D"]


class InstanceNorm(BatchNormND):
    """What InstanceNorm1D, 2D and 3D share: the class says how many spatial axes there are."""

    _nd: ClassVar[int]
    groups = Fixed[int]("each sample is a group")

    @driver_errors("making a module")
    def __init__(
        self,
        maps: int,
        epsilon: float = 1e-5,
        affine: bool = True,
        name: str | None = None,
        empty: bool = False,
        *,
        queue: cl.CommandQueue | None = None,
        dtype: DTypeLike = np.float32,
        axis: int = 1,
        activation: Any = None,
    ) -> None:
        """Options are those of BatchNorm2D; the first scale is 1.

        There are no running statistics: evaluation does what training does, but that `backward` accumulates no
        gradients of scale and bias. A sample has two values per channel at least (ModuleShapeError).
        """
        options: dict[str, Any] = {"queue": queue, "dtype": dtype, "axis": axis, "activation": activation}
        super().__init__(
            self._nd, maps, epsilon, sscale=0.0, affine=affine, name=name, empty=empty, running=False, **options
        )
        if self.axis == 0:
            raise ModuleParameterError(f"{self}: axis is 0, where samples lie; another one is wanted for channels")
        self.blueprint = {
            "maps": self.maps,
            "epsilon": self.epsilon,
            "affine": self.affine,
            "name": self.name,
            "empty": bool(empty),
        }

    def accumulate(self, *given: Any, **options: Any) -> Any:
        """None is needed: samples that come in several calls are normalised as in one."""
        raise ModuleStateError(f"{self}: each sample is a batch of its own; call the module with some at a time")

    def _batches_of(self, shape: tuple[int, ...]) -> int:
        return max(1, shape[0])


class InstanceNorm1D(InstanceNorm):
    """Instance normalization of sequences, (batch, maps, length), or with axis=-1 channels last.

    Parameters have shape (1, maps, 1, 1).

    >>> from oclbn import InstanceNorm1D, gpuarray
    >>> norm = InstanceNorm1D(8)
    >>> norm(gpuarray.zeros((4, 8, 100))).shape, norm.savemean.shape
    ((4, 8, 100), (4, 8))
    """

    _nd = 2

    def _data_rank(self) -> int:
        return 3


class InstanceNorm2D(InstanceNorm):
    """Instance normalization of feature maps, (batch, maps, height, width), or with axis=-1 channels last.

    >>> import numpy as np
    >>> from oclbn import InstanceNorm2D, gpuarray
    >>> norm = InstanceNorm2D(1, epsilon=0.0)
    >>> y = norm(gpuarray.to_gpu(np.float32([1.0, 3.0, 10.0, 30.0]).reshape(2, 1, 1, 2)))
    >>> y.get().ravel()  # each sample has mean 0 and variance 1
    array([-1.,  1., -1.,  1.], dtype=float32)
    """

    _nd = 2


class InstanceNorm3D(InstanceNorm):
    """Instance normalization of volumes, (batch, maps, depth, height, width), or with axis=-1 channels last.

    >>> from oclbn import InstanceNorm3D, gpuarray
    >>> norm = InstanceNorm3D(8)
    >>> norm(gpuarray.zeros((4, 8, 3, 5, 5))).shape, norm.scale.shape
    ((4, 8, 3, 5, 5), (1, 8, 1, 1, 1))
    """

    _nd = 3
