"""Batch normalization of a batch that is spread over devices, processes and machines, by the statistics of all of it.

DeviceGroup: several devices of one process. MPIGroup: the ranks of an MPI communicator. TorchGroup: those of
torch.distributed. SyncBatchNorm: a module on every device of a group.
"""

from __future__ import annotations

from oclbn.sync.batchnorm import SyncBatchNorm
from oclbn.sync.collective import Pending
from oclbn.sync.group import DeviceGroup, Group, GroupStatistics
from oclbn.sync.mpi import MPIGroup
from oclbn.sync.torch_distributed import TorchGroup

__all__ = ["DeviceGroup", "Group", "GroupStatistics", "MPIGroup", "Pending", "SyncBatchNorm", "TorchGroup"]
