"""Batch normalization of PyTorch's tensors in OpenCL: layers that take the place of torch.nn's, with autograd.

    model = oclbn.torch.convert(model)  # all BatchNorm1d, 2d and 3d of it; oclbn.torch.revert goes back

Tensors lie in the host's memory. Devices that share it, as processors do, compute on it where it lies; to and from
others it is copied. Each call returns when its result is there, as PyTorch's own do on a CPU.

Importing this imports torch; MissingExtraError where that is not installed.
"""

from __future__ import annotations

from oclbn.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("oclbn.torch needs torch: pip install 'oclbn[torch]', or torch itself") from error

from oclbn.torch.function import batch_norm
from oclbn.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, convert, revert
from oclbn.torch.pool import release_memory

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "release_memory", "revert"]
