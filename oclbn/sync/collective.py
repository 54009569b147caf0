"""What the ranks of a group do together: exchanges, one after the other, each of all that was started before it.

Whatever goes wrong on one rank ahead of an exchange is told the others in its place, as they would wait for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar, cast

from oclbn.call import values
from oclbn.device import driver_errors
from oclbn.errors import GroupError
from oclbn.sync.agreement import BETWEEN, Agreement
from oclbn.sync.exchange import Bytes, Exchange

TIMEOUT = 300.0  # seconds

_R = TypeVar("_R")
_S = TypeVar("_S")


class Pending(Generic[_R]):
    """Something that a group has started; it is exchanged together with all that was started before `result`."""

    def __init__(
        self, group: Collective, words: str, collect: Callable[[], bytes], finish: Callable[[list[Bytes]], _R]
    ) -> None:
        self._group, self.words = group, words
        self.collect, self._finish = collect, finish
        self.received: list[Bytes] | None = None
        self.size = 0  # bytes of what was collected
        self.error: BaseException | None = None
        self._result: list[_R] = []

    def then(self, more: Callable[[_R], _S]) -> Pending[_S]:
        """The same, with something more done to what it gives."""
        return _Then(self._group, self, more)

    def result(self) -> _R:
        """What it gives; waits for the exchange, and raises what the call would have raised."""
        with self._group.working():
            if not self._result:
                self._result.append(driver_errors(self.words.partition(":")[0])(self._make)())
            return self._result[0]

    def _make(self) -> _R:
        if self.received is None and self.error is None:
            self._group.settle(self)
        if self.error is not None:
            raise self.error
        made = self._finish(cast("list[Bytes]", self.received))
        self.received = None
        return made


class _Then(Pending[_S]):
    def __init__(self, group: Collective, first: Pending[Any], more: Callable[[Any], _S]) -> None:
        super().__init__(group, first.words, first.collect, lambda payloads: more(None))
        self._first, self._more = first, more

    def _make(self) -> _S:
        return self._more(self._first.result())


class Collective:
    """`size` processes that exchange what each has started, of which this is number `rank`."""

    def __init__(self, exchange: Exchange, timeout: float) -> None:
        timeout = values.number("timeout", timeout, 0.0)
        self.rank, self.size = exchange.rank, exchange.size
        self._exchange, self._agreement = exchange, Agreement(exchange, timeout)
        self._lock = threading.RLock()
        self._started: list[Pending[Any]] = []
        self._sent: list[Pending[Any]] = []
        self._layers = 0
        self._closed, self._depth = False, 0
        self._told: BaseException | None = None

    def send(self) -> None:
        """Begin the exchange of all that was started, without waiting for the others; waits for this rank's devices."""
        with self.working():
            self._end()
            if not self._started:
                return
            sending, self._started = self._started, []
            try:
                payloads = [one.collect() for one in sending]
                for one, payload in zip(sending, payloads, strict=True):
                    one.size = len(payload)
                self._agreement.begin(BETWEEN.join(one.words for one in sending), b"".join(payloads))
            except BaseException as error:
                for one in sending:
                    one.error = error
                if isinstance(error, Exception) and not isinstance(error, GroupError):
                    self._tell(error)
                raise
            self._sent = sending

    @contextlib.contextmanager
    def batched(self) -> Iterator[None]:
        """All that the block starts goes in one exchange, which begins at its end.

        For layers that do not wait for each other, such as those of parallel branches:

            with group.batched():
                first, second = group.start_train(x1), group.start_train(x2)
            (y1, statistics1), (y2, statistics2) = first.result(), second.result()

        A block that fails tells the other ranks, and what it has started is given up.
        """
        try:
            yield
        except Exception as error:
            with self.working():
                if not self._everybody_has(error):
                    self._tell(error)
            raise
        self.send()

    def settle(self, wanted: Pending[Any]) -> None:
        """End the exchange that one pending thing is part of; for Pending itself."""
        if wanted in self._started:
            self.send()
        self._end()

    def close(self) -> None:
        """Leave the group, together with the other ranks, and free what it holds. Closing it again does nothing."""
        with self.working():
            if self._closed:
                return
            self._closed = True
            try:
                self._end()
                self._agreement.leave()
            finally:
                self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if error is None:
            self.close()
            return
        if self._closed:
            return
        self._closed = True
        try:
            if not self._everybody_has(error):
                self._tell(error, leaving=True)
        finally:
            self._free()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """One thread at a time."""
        if not self._lock.acquire(blocking=False):
            raise GroupError("the group is in use by another thread; one at a time is wanted, or a group for each")
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What goes wrong on this rank ahead of an exchange is told the others, who are about to wait for it."""
        if self._closed:
            raise GroupError("the group was closed; a new one is wanted")
        self._depth += 1
        try:
            yield
        except Exception as error:
            if self._depth == 1 and not isinstance(error, GroupError):
                self._tell(error)
            raise
        finally:
            self._depth -= 1

    def next_layer(self) -> str:
        """A name for a layer that has none: the same on all ranks, as they make their layers in one order."""
        return f"layer {self._layers + 1}"

    def made_layer(self) -> None:
        """All ranks have made the next layer."""
        self._layers += 1

    def _everybody_has(self, error: BaseException) -> bool:
        """Whether the other ranks know of an error, or of one that led to it."""
        chain = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
            chain.append(before)
        return any(one is self._told or isinstance(one, GroupError) for one in chain)

    def _tell(self, error: BaseException, *, leaving: bool = False) -> None:
        """The others' exchange ends with this rank's error, as does all that was started here."""
        self._told = error
        for one in self._started:
            one.error = GroupError(f"was given up, as this rank failed before its exchange: {error}")
        self._started = []
        try:
            self._end()
            self._agreement.fail(f"{type(error).__name__}: {error}", leaving=leaving)
        except GroupError as told:
            error.add_note(f"the other ranks could not be told: {told}")

    def _free(self) -> None:
        """Where a gathering was given up, the network may still write to what it holds."""
        if not self._agreement.lost:
            self._exchange.close()

    def _end(self) -> None:
        """The exchange that is under way, if there is one."""
        if not self._agreement.pending:
            return
        sent, self._sent = self._sent, []
        try:
            payloads = self._agreement.end()
        except GroupError as error:
            for one in sent:
                one.error = error
            return
        start = 0
        for one in sent:
            end = start + one.size
            one.received = [payload[start:end] for payload in payloads]
            start = end

    def _start(self, words: str, collect: Callable[[], bytes], finish: Callable[[list[Bytes]], _R]) -> Pending[_R]:
        pending = Pending(self, words, collect, finish)
        self._started.append(pending)
        return pending
