"""How members of a group in several processes hear from each other: the one thing that a network has to do.

A network gives an Exchange; MPI (oclbn.sync.mpi) and torch.distributed (oclbn.sync.torch_distributed) are two. Bytes
alone are moved, and all ranks send equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Gathering(Protocol):
    """A gathering that is under way."""

    def wait(self, seconds: float) -> Bytes:
        """What all ranks sent, (size, bytes), in their order; TimeoutError where one has not in that time.

        What else the network finds wrong is an error of its own.
        """


class Exchange(Protocol):
    """`size` processes, of which this is number `rank`, counted from 0."""

    rank: int
    size: int

    def gather(self, message: Bytes) -> Gathering:
        """Begin to send everybody a message, as long as theirs, and to receive theirs; it stays as it is until then."""

    def silent(self, seconds: float) -> Sequence[int]:
        """After a gathering that was given up: the ranks that do not answer in so many seconds, if that can be told."""

    def close(self) -> None:
        """Give back what the network holds; called once."""


class Alone:
    """The exchange of a single process."""

    rank, size = 0, 1

    def gather(self, message: Bytes) -> _Done:
        return _Done(message)

    def silent(self, seconds: float) -> Sequence[int]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


class _Done:
    def __init__(self, message: Bytes) -> None:
        self._message = message

    def wait(self, seconds: float) -> Any:
        return self._message[None]
