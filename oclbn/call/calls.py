"""A call with everything checked, compiled and allocated: what is left is to run it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pyopencl.array import Array

from oclbn.call import arguments
from oclbn.call.order import Order, alone
from oclbn.call.prepared import Prepared, Setting
from oclbn.call.results import Fresh, fill, made_again, queue_of, scratch

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
        own: Sequence[Array] = (),
    ) -> None:
        """arrays: by the kernels' names; names: of those that callers call otherwise, what they do.

        own: the arrays among them that were made for this call, to be results.
        """
        self.results, self._prepared, self._x, self._names = results, prepared, x, names
        self._arrays, self._numbers, self._written, self._own = arrays, numbers, written, own

    def run(self) -> _R:
        """Enqueue it, by the kernels of all calls with these shapes."""
        memory = self._prepared.set(self._x, self._arrays, self._numbers)
        queue = queue_of(self._x)
        self._prepared.launch(queue, Order(queue, self._arrays.values()), self._written)
        del memory
        return self.results

    def again(self, given: Sequence[Array]) -> Again[_R] | None:
        """What makes such calls on other arrays in the place of those that were given, if this is all there is to it.

        given: the arrays among the arguments, the first of which is x.
        """
        if type(self) is not Call or self._x is not given[0]:
            return None  # it has parts, or is of something that was made of the arguments
        every: list[Any] = [*given, *self._own]
        places = {id(array): place for place, array in reversed([*enumerate(every)])}
        used = {name: array for name, array in self._arrays.items() if array is not None}
        if {id(array) for array in used.values()} != places.keys():
            return None
        results = self.results if isinstance(self.results, tuple) else (self.results,)
        if type(self.results) not in (Array, tuple) or not all(type(one) in (Array, int) for one in results):
            return None
        numbers = [one for one in results if type(one) is int]
        places |= {id(one): len(every) + place for place, one in enumerate(numbers)}
        if any(id(one) not in places for one in results):
            return None
        taking: Callable[[Sequence[Any]], Any] = operator.itemgetter(*(places[id(one)] for one in results))
        if type(self.results) is tuple and len(results) == 1:
            return None
        setting = self._prepared.setting(
            self._arrays, self._numbers, {name: places[id(array)] for name, array in used.items()}
        )
        written = [places[id(array)] for array in self._written if array is not None]
        return Again(self._prepared, setting, [Fresh(array) for array in self._own], numbers, taking, written)

    def bound(self) -> Callable[[], _R]:
        """What enqueues it each time, by kernels of its own, whose arguments are set now."""
        self._prepared, queue = self._prepared.anew(queue_of(self._x).context), queue_of(self._x)
        self._memory = self._prepared.set(self._x, self._arrays, self._numbers)  # kernels do not keep their buffers
        arrays = {name: array for name, array in self._arrays.items() if array is not None}
        touched = tuple(arrays.values())
        named = {self._names.get(name, name): array for name, array in arrays.items()}
        written = tuple(array for array in self._written if array is not None)
        settled: list[Any] = [None] * len(touched)

        def step() -> _R:
            waiting: Any = alone(queue, touched, settled)
            if waiting is None:
                arguments.sound(named)
                waiting = Order(queue, touched)
            self._prepared.launch(queue, waiting, written)
            return self.results

        return step


class Again(Generic[_R]):
    """Calls like one that was made, on other arrays of which all is the same that decides anything but their order."""

    def __init__(
        self,
        prepared: Prepared,
        setting: Setting,
        own: Sequence[Fresh],
        numbers: Sequence[int],
        results: Callable[[Sequence[Any]], _R],
        written: Sequence[int],
    ) -> None:
        """results: of the arrays that are given, those that are made, and the numbers among the results.

        written: places of arrays in the same order.
        """
        self._prepared, self._setting, self._own, self._numbers = prepared, setting, own, numbers
        self._results, self._written = results, written

    def run(self, given: list[Array]) -> tuple[_R] | None:
        """The results, in a tuple; None: a command that was to write one of the arrays has failed."""
        x = given[0]
        queue = queue_of(x)
        waiting: Any = alone(queue, given)
        if waiting is None and not arguments.are_sound(given):
            return None
        every: list[Any] = given + made_again(x, self._own)
        buffers = [array.base_data for array in every]
        if self._setting.scratch:
            buffers.append(scratch(x, self._setting.scratch))
        self._prepared.set_again(self._setting, buffers)
        if waiting is None:
            waiting = Order(queue, every)
        self._prepared.launch(queue, waiting, [every[place] for place in self._written])
        every += self._numbers
        return (self._results(every),)


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
