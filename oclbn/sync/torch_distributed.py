"""Groups over torch.distributed, by its Gloo or another backend that gathers tensors of the host."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn.errors import MissingExtraError, ParameterError
from oclbn.sync.collective import TIMEOUT
from oclbn.sync.exchange import Bytes
from oclbn.sync.group import Group


class TorchGroup(Group):
    """The ranks of a process group of torch.distributed, each with its OpenCL devices, as one group.

    process_group: of a backend that gathers tensors of the host, as Gloo does; None: the default one, which
    torch.distributed.init_process_group has made. queues: as in MPIGroup. timeout: seconds that an exchange waits for
    the other ranks: GroupTimeoutError, and the group is of no more use.

    MissingExtraError: without torch. ParameterError: there is no process group, or this process is not of it.
    """

    def __init__(
        self,
        process_group: Any = None,
        queues: cl.CommandQueue | Sequence[cl.CommandQueue] | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(queues, _TorchExchange(process_group), timeout)


class _TorchExchange:
    """See oclbn.sync.exchange.Exchange."""

    def __init__(self, process_group: Any) -> None:
        try:
            import torch
            import torch.distributed as dist
        except ImportError as error:
            raise MissingExtraError("groups over torch.distributed need torch: pip install torch") from error
        if not dist.is_available() or not dist.is_initialized():
            raise ParameterError("torch.distributed has no process group: call init_process_group('gloo', ...) before")
        self._torch, self._dist, self._group = torch, dist, process_group
        try:
            self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        except (TypeError, ValueError, AttributeError) as error:
            raise ParameterError(f"process_group is {process_group!r}; one of torch.distributed is wanted") from error
        if self.rank < 0:
            raise ParameterError("this process is not of process_group; a group that it belongs to is wanted")

    def gather(self, message: Bytes) -> _TorchGathering:
        received = np.empty((self.size, message.size), np.uint8)
        rows = list(self._torch.from_numpy(received).unbind(0))
        sent = self._torch.from_numpy(message)
        work = self._dist.all_gather(rows, sent, group=self._group, async_op=True)
        return _TorchGathering(work, sent, received)

    def silent(self, seconds: float) -> Sequence[int]:
        return ()  # its operations come in one order on all ranks: after one that failed none can be begun

    def close(self) -> None:
        """The process group is its maker's."""


class _TorchGathering:
    def __init__(self, work: Any, sent: Any, received: Bytes) -> None:
        self._work, self._sent, self._received = work, sent, received

    def wait(self, seconds: float) -> Bytes:
        try:
            self._work.wait(timedelta(seconds=seconds))
        except RuntimeError as error:
            if "timed out" in str(error).lower() or "timeout" in str(error).lower():
                raise TimeoutError from error
            raise
        return self._received
