"""Batch normalization for every OpenCL device, on pyopencl.array.Array.

Modules with state: BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND. The same maths without state:
oclbn.functional. Arrays on the default device: oclbn.gpuarray. Devices and queues: oclbn.device. What can go wrong:
oclbn.errors. Compiling ahead: prepare. Nothing here touches a device before it is used.
"""

from __future__ import annotations

from oclbn import functional, gpuarray
from oclbn.functional import prepare
from oclbn.modules.batchnorm import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D
from oclbn.modules.batchnormnd import BatchNormND
from oclbn.version import version

__all__ = ["BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "BatchNormND", "functional", "gpuarray", "prepare"]

__version__ = version()
