"""Batch normalization for every OpenCL device, on pyopencl.array.Array.

Modules with state: BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND; InstanceNorm1D, InstanceNorm2D,
InstanceNorm3D; GroupNorm, LayerNorm. The same maths without state: oclbn.functional, oclbn.renorm, oclbn.group_norm.
Arrays on the default device: oclbn.gpuarray. Devices and queues: oclbn.device. What can go wrong: oclbn.errors.
Compiling ahead: prepare. Nothing here touches a device before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oclbn import functional, gpuarray, names
from oclbn.functional import prepare
from oclbn.modules.batchnorm import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D
from oclbn.modules.batchnormnd import BatchNormND
from oclbn.modules.groupnorm import GroupNorm, LayerNorm
from oclbn.modules.instancenorm import InstanceNorm1D, InstanceNorm2D, InstanceNorm3D
from oclbn.version import version

__all__ = [
    "BatchNorm",
    "BatchNorm1D",
    "BatchNorm2D",
    "BatchNorm3D",
    "BatchNormND",
    "GroupNorm",
    "InstanceNorm1D",
    "InstanceNorm2D",
    "InstanceNorm3D",
    "LayerNorm",
    "functional",
    "gpuarray",
    "prepare",
]

__version__ = version()

if not TYPE_CHECKING:  # checkers would take every name for one that is there
    __getattr__ = names.lacking(__name__)
