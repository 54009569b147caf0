"""PyTorch's CPU kernels as torch.compile joins them: training through a compiled module's autograd.

The first call compiles, with a C++ compiler that the system has.
"""

from __future__ import annotations

import importlib
from typing import Any

from oclbn.tools.peers import torch_peer
from oclbn.tools.peers.contract import Case


class Peer(torch_peer.Peer):
    """As the other one, compiled."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        config: Any = importlib.import_module("torch._functorch.config")
        config.donated_buffer = False  # backward runs again and again
        self._compiled: Any = self.torch.compile(super()._batch_norm, fullgraph=True)

    def _batch_norm(self, *given: Any) -> Any:
        return self._compiled(*given)
