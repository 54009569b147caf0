"""Batch normalization as modules, with the constructor, attributes and methods of PuzzleLib's.

    >>> import numpy as np
    >>> from oclbn import BatchNorm, gpuarray
    >>> data = gpuarray.to_gpu(np.arange(18).reshape(3, 6).astype(np.float32))
    >>> bn = BatchNorm(6)
    >>> bn(data).shape
    (3, 6)
    >>> bn.mean.get().ravel()  # of the first batch: its averaging factor is initFactor, 1
    array([ 6.,  7.,  8.,  9., 10., 11.], dtype=float32)

PuzzleLib's page prints the two weights of the running average the other way round; what its example shows, and what is
done here, is ``running = (1 - factor) * running + factor * batch`` with the unbiased variance of the batch.
The formulas and their source are in oclbn.functional.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyopencl as cl
from numpy.typing import DTypeLike

from oclbn.device import driver_errors
from oclbn.modules.batchnormnd import BatchNormND
from oclbn.modules.options import Fixed

__all__ = ["BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "BatchNormND"]


class BatchNormMaps(BatchNormND):
    """What BatchNorm1D, 2D and 3D share: the class says how many spatial axes there are."""

    _nd: ClassVar[int]

    @driver_errors("making a module")
    def __init__(
        self,
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
        super().__init__(
            self._nd,
            maps,
            epsilon,
            initFactor,
            minFactor,
            sscale,
            affine,
            name,
            empty,
            inplace,
            queue=queue,
            dtype=dtype,
            seed=seed,
            guard=guard,
            frozen_statistics=frozen_statistics,
            axis=axis,
            activation=activation,
            use_running=use_running,
            update_running=update_running,
            running=running,
            cumulative=cumulative,
            estimator=estimator,
            groups=groups,
            renorm=renorm,
        )
        del self.blueprint["nd"]


class BatchNorm1D(BatchNormMaps):
    """Batch normalization of sequences, (batch, maps, length), or with axis=-1 channels last.

    Parameters have shape (1, maps, 1, 1), as PuzzleLib has them: it computes 1-D as 2-D.

    >>> from oclbn import BatchNorm1D, gpuarray
    >>> bn = BatchNorm1D(8)
    >>> bn(gpuarray.zeros((4, 8, 100))).shape, bn.scale.shape
    ((4, 8, 100), (1, 8, 1, 1))
    """

    _nd = 2

    def _data_rank(self) -> int:
        return 3


class BatchNorm2D(BatchNormMaps):
    """Batch normalization of feature maps, (batch, maps, height, width), or with axis=-1 channels last.

    >>> from oclbn import BatchNorm2D, gpuarray
    >>> bn = BatchNorm2D(8)
    >>> y = bn(gpuarray.zeros((4, 8, 5, 5)))
    >>> dx = bn.backward(gpuarray.ones((4, 8, 5, 5)))
    >>> float(bn.vars["bias"].grad.get()[0, 0, 0, 0])
    100.0
    """

    _nd = 2


class BatchNorm3D(BatchNormMaps):
    """Batch normalization of volumes, (batch, maps, depth, height, width), or with axis=-1 channels last.

    >>> from oclbn import BatchNorm3D, gpuarray
    >>> bn = BatchNorm3D(8)
    >>> bn(gpuarray.zeros((4, 8, 3, 5, 5))).shape, bn.scale.shape
    ((4, 8, 3, 5, 5), (1, 8, 1, 1, 1))
    """

    _nd = 3


class BatchNorm(BatchNormND):
    """Batch normalization of features, (batch, size).

    Parameters have shape (1, size, 1, 1). The example is at the top of this file's documentation.
    """

    _maps_argument = "size"
    size = Fixed[int]()

    @driver_errors("making a module")
    def __init__(
        self,
        size: int,
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
        super().__init__(
            2,
            size,
            epsilon,
            initFactor,
            minFactor,
            sscale,
            affine,
            name,
            empty,
            inplace,
            queue=queue,
            dtype=dtype,
            seed=seed,
            guard=guard,
            frozen_statistics=frozen_statistics,
            axis=axis,
            activation=activation,
            use_running=use_running,
            update_running=update_running,
            running=running,
            cumulative=cumulative,
            estimator=estimator,
            groups=groups,
            renorm=renorm,
        )
        self.size = self.maps
        del self.blueprint["nd"], self.blueprint["maps"]
        self.blueprint["size"] = self.size

    def _data_rank(self) -> int:
        return 2
