"""Groups over MPI, by mpi4py."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn.call import values
from oclbn.errors import GroupTimeoutError, MissingExtraError, ParameterError
from oclbn.sync.collective import TIMEOUT
from oclbn.sync.exchange import Bytes
from oclbn.sync.group import Group

_BUSY = 2e-4  # seconds for which a rank that waits asks again at once
_MOST_PAUSE = 1e-3
_ROLL_CALL_TAG = 1
_LAST_WORDS = 2.0  # seconds from this rank's end to the job's


class MPIGroup(Group):
    """The ranks of an MPI communicator, each with its devices, as one group.

    comm: an mpi4py intracommunicator, of which the group takes a duplicate: making a group is collective, and messages
    of other users of comm are out of its way. queues: this rank's, one or several, of different devices; None: the
    default queue. timeout: seconds that an exchange waits for the other ranks; where one does not come,
    GroupTimeoutError on all that wait says which, and the group is of no more use. As MPI's own end would wait for
    that rank, the job is then ended by MPI_Abort, 2 s after the program of the first rank that waited has ended.

    Each exchange is one MPI_Iallgather of bytes: a rank has its own moments or sums and receives all, and every rank
    merges them in rank order, so that all hold the same bits. (MPI_Allreduce would move less; but its order of
    summation is the library's, and may differ between ranks and runs.)

    MissingExtraError: without mpi4py. ParameterError: a communicator that is none, was freed, or whose MPI has ended.
    """

    def __init__(
        self,
        comm: Any,
        queues: cl.CommandQueue | Sequence[cl.CommandQueue] | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(queues, _MPIExchange(comm, timeout), timeout)


class _MPIExchange:
    """See oclbn.sync.exchange.Exchange."""

    def __init__(self, comm: Any, timeout: Any) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise MissingExtraError(
                "groups over MPI need mpi4py and an MPI library: pip install 'oclbn[mpi]' brings both"
            ) from error
        if not isinstance(comm, MPI.Comm):
            raise ParameterError(f"comm is {comm!r}; a communicator of mpi4py is wanted, such as MPI.COMM_WORLD")
        if MPI.Is_finalized() or comm == MPI.COMM_NULL:
            raise ParameterError("comm was freed, or MPI has ended; a communicator that is in use is wanted")
        if comm.Is_inter():
            raise ParameterError("comm is an intercommunicator; an intracommunicator is wanted, as comm.Merge() gives")
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._mpi = MPI
        self._comm, request = comm.Idup()
        seconds = values.real(timeout) or 0.0
        seconds = seconds if 0.0 < seconds < math.inf else TIMEOUT  # what is wrong with it the group tells everybody
        if not _done(request, seconds):
            _abandoned.append((self._comm, request))
            _abort_at_exit(MPI)
            raise GroupTimeoutError(
                f"rank {self.rank}: not all of {self.size} ranks have come to make the group within {seconds:g} s"
            )

    def gather(self, message: Bytes) -> _MPIGathering:
        received = np.empty((self.size, message.size), np.uint8)
        byte = self._mpi.BYTE
        return _MPIGathering(self._comm.Iallgather([message, byte], [received, byte]), message, received)

    def silent(self, seconds: float) -> Sequence[int]:
        """Every rank that is left sends the others a byte, on its way out of the exchange."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        byte, come = np.zeros(1, np.uint8), np.zeros(self.size, np.uint8)
        _abort_at_exit(self._mpi)
        try:
            sent = [self._comm.Isend([byte, self._mpi.BYTE], rank, _ROLL_CALL_TAG) for rank in others]
            asked = {
                rank: self._comm.Irecv([come[rank : rank + 1], self._mpi.BYTE], rank, _ROLL_CALL_TAG) for rank in others
            }
            until = time.monotonic() + seconds
            while asked and time.monotonic() < until:
                asked = {rank: request for rank, request in asked.items() if not request.Test()}
                time.sleep(_MOST_PAUSE)
        except self._mpi.Exception:  # of a library that knows already that ranks are gone, and will not talk to them
            return ()
        _abandoned.append((sent, asked, byte, come))
        return sorted(asked)

    def close(self) -> None:
        if not self._mpi.Is_finalized():
            self._comm.Free()


class _MPIGathering:
    def __init__(self, request: Any, message: Bytes, received: Bytes) -> None:
        self._request, self._message, self._received = request, message, received

    def wait(self, seconds: float) -> Bytes:
        if not _done(self._request, seconds):
            _abandoned.append(self)
            raise TimeoutError
        return self._received


def _done(request: Any, seconds: float) -> bool:
    """Whether a request is done before so many seconds have gone by."""
    begun, pause = time.monotonic(), 0.0
    while not request.Test():
        waited = time.monotonic() - begun
        if waited > seconds:
            return False
        if waited > _BUSY:  # the others may need this core
            pause = min(_MOST_PAUSE, pause + 1e-5)
            time.sleep(pause)
        else:
            _let_others_run()
    return True


def _let_others_run() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


_abandoned: list[Any] = []  # requests that were given up, and the memory that MPI may write to until it ends
_aborting = False


def _abort_at_exit(mpi: Any) -> None:
    """MPI's own end, which comes after Python's, would wait for ranks that are gone."""
    global _aborting
    if not _aborting:
        _aborting = True
        atexit.register(_abort, mpi)


def _abort(mpi: Any) -> None:
    """End the job, once the other ranks have had time to say what they have to: MPI_Abort kills them on the spot.

    They hear of the rank that is missing as this one did, a little later where they were later to ask.
    """
    try:
        for stream in (sys.stdout, sys.stderr):  # Python would flush them after this, in a process that is gone
            with contextlib.suppress(
                OSError, ValueError, AttributeError
            ):  # closed, or None: there is nowhere to say it
                stream.flush()
        time.sleep(_LAST_WORDS)
    finally:  # after Ctrl-C as well
        mpi.COMM_WORLD.Abort(1)
