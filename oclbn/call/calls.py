"""A call with everything checked, compiled and allocated: what is left is to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pyopencl.array import Array

from oclbn.call import arguments
from oclbn.call.prepared import Prepared
from oclbn.call.results import fill, queue_of

_R = TypeVar("_R")


class Call(Generic[_R]):
    """One call with everything checked, compiled and allocated: what is left is to run it, once or again and again."""

    def __init__(
        self,
        results: _R,
        prepared: Prepared,
        x: Array,
        arrays: dict[str, Array | None],
        numbers: Mapping[str, Any],
        written: Sequence[Array | None],
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """arrays: by the kernels' names; names: of those that callers call otherwise, what they do."""
        self.results, self._prepared, self._x, self._names = results, prepared, x, names
        self._arrays, self._numbers, self._written = arrays, numbers, written

    def run(self) -> _R:
        """Enqueue it, by the kernels of all calls with these shapes."""
        memory = self._prepared.set(self._x, self._arrays, self._numbers)
        self._prepared.launch(queue_of(self._x), self._arrays.values(), self._written)
        del memory
        return self.results

    def bound(self) -> Callable[[], _R]:
        """What enqueues it each time, by kernels of its own, whose arguments are set now."""
        self._prepared, queue = self._prepared.anew(queue_of(self._x).context), queue_of(self._x)
        self._memory = self._prepared.set(self._x, self._arrays, self._numbers)  # kernels do not keep their buffers
        arrays = {name: array for name, array in self._arrays.items() if array is not None}
        touched = tuple(arrays.values())
        named = {self._names.get(name, name): array for name, array in arrays.items()}
        written = tuple(array for array in self._written if array is not None)

        def step() -> _R:
            arguments.sound(named)
            self._prepared.launch(queue, touched, written)
            return self.results

        return step


class Empty(Call[_R]):
    """A call on no elements: per-channel results get a value, and what gathers them is started."""

    def __init__(
        self, results: _R, fill: Sequence[Array] = (), value: float = 0, after: Sequence[Callable[[], None]] = ()
    ) -> None:
        self.results, self._fill, self._value, self._after = results, fill, value, after

    def run(self) -> _R:
        for array in self._fill:
            fill(array, self._value)
        for start in self._after:
            start()
        return self.results

    def bound(self) -> Callable[[], _R]:
        return self.run


class Several(Call[_R]):
    """Several calls that make up one, each of which takes what those before it made."""

    def __init__(self, results: _R, calls: Sequence[Call[Any]]) -> None:
        self.results, self._calls = results, calls

    def run(self) -> _R:
        for call in self._calls:
            call.run()
        return self.results

    def bound(self) -> Callable[[], _R]:
        steps = [call.bound() for call in self._calls]

        def step() -> _R:
            for one in steps:
                one()
            return self.results

        return step
