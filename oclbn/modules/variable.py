"""A module's tensors under all their names: `bn.scale`, `bn.vars["scale"].data` and what files keep are one array.

Each is kept in one place, and the others look there. What is put there is checked first, so that a module never keeps
what it cannot compute with, or save.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import pyopencl as cl
from numpy.typing import ArrayLike, NDArray

from oclbn import device, gpuarray
from oclbn.call import values
from oclbn.device import driver_errors
from oclbn.errors import ContextError, ModuleDtypeError, ModuleNameError, ModuleShapeError, ModuleStateError
from oclbn.gpuarray import Array
from oclbn.names import ATTRIBUTES, hints

__all__ = ["Named", "Tensor", "Variable"]

T = TypeVar("T")


class Variable:
    """A trained tensor: `data`, its gradient `grad` (same shape, zeros at first) and a `name`.

    Another array may take the place of `data` or `grad` if it has the same shape, dtype and context: ModuleShapeError,
    ModuleDtypeError or ContextError otherwise. To change the values alone, assign to the module: `bn.scale = values`.
    """

    def __init__(self, data: Array, name: str | None = None) -> None:
        self._data = data
        self._grad = gpuarray.zeros_like(data)
        self.name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self._data.dtype} of shape {self._data.shape}>"

    @property
    def data(self) -> Array:
        """The tensor itself."""
        return self._data

    @data.setter
    def data(self, data: Array) -> None:
        self._data = fitting(self._called("data"), data, self._data.shape, self._data.dtype, self._data.context)

    @property
    def grad(self) -> Array:
        """Its gradient."""
        return self._grad

    @grad.setter
    def grad(self, grad: Array) -> None:
        like = self._data
        advice = "; zeroGradParams() fills gradients with 0"
        if grad is not None:
            advice = values.made_of("grad", grad, like.dtype, "bn.queue")
        self._grad = fitting(self._called("grad"), grad, like.shape, like.dtype, like.context, advice)

    def _called(self, what: str) -> str:
        return f"{what} of a variable" if self.name is None else f"{what} of variable {self.name!r}"

    @driver_errors("copying a variable")
    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        """One with arrays of its own, on the same queues."""
        made: Variable = duplicate(self, memo)
        return made

    def __copy__(self) -> Variable:
        return copy.deepcopy(self)

    @driver_errors("pickling a variable")
    def __getstate__(self) -> dict[str, Any]:
        return {name: to_host(value) for name, value in self.__dict__.items()}

    @driver_errors("unpickling a variable")
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {name: to_device(value, device.default_queue()) for name, value in state.items()}

    def replace(self, data: Array, grad: Array) -> None:
        """Another tensor and its gradient, of whatever type."""
        self._data, self._grad = data, grad


_TO_THE_MODULE = " (values alone are assigned to the module, as in bn.scale = values)"


def fitting(
    label: str,
    array: Any,
    shape: tuple[int, ...],
    dtype: Any,
    context: cl.Context | None,
    advice: str = _TO_THE_MODULE,
) -> Array:
    """`array`, if it is a device array of this shape, dtype and context; `label` is what errors call it.

    advice: what ends the error of what is no device array.
    """
    if not isinstance(array, Array):
        raise ModuleDtypeError(
            f"{label} is {values.kind_of(array)}; a pyopencl.array.Array of shape {shape} is wanted{advice}"
        )
    if array.shape != shape:
        raise ModuleShapeError(f"{label} has shape {array.shape}; {shape} is wanted")
    if array.dtype != dtype:
        raise ModuleDtypeError(f"{label} has dtype {array.dtype}; {np.dtype(dtype)} is wanted")
    if array.context != context:
        raise ContextError(f"{label} is in another OpenCL context; that of the array whose place it takes is wanted")
    return array


def kept_for_good(name: str) -> ModuleStateError:
    """The error of taking a tensor out of a module."""
    return ModuleStateError(f"{name} cannot be taken out of a module, which needs it; put another one in its place")


class Host:
    """A device array while it is pickled."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values


def duplicate(value: Any, memo: dict[int, Any], queue: cl.CommandQueue | None = None) -> Any:
    """A deep copy, whose device arrays are on `queue`; None: each on its own."""
    if isinstance(value, Array):
        return gpuarray.to_gpu(host_of(value), queue=queue or value.queue)
    if isinstance(value, dict):
        return {key: duplicate(each, memo, queue) for key, each in value.items()}
    if isinstance(value, Variable) and id(value) not in memo:
        made = memo[id(value)] = Variable.__new__(type(value))
        made.__dict__ |= {name: duplicate(each, memo, queue) for name, each in value.__dict__.items()}
        return made
    return copy.deepcopy(value, memo)


def host_of(array: Array) -> NDArray[Any]:
    """What a device array holds, whatever its strides."""
    host: NDArray[Any] = (array if array.flags.forc else gpuarray.pack(array)).get()
    return host


def to_host(value: Any) -> Any:
    """What can be pickled in the place of `value`."""
    if isinstance(value, dict):
        return {key: to_host(each) for key, each in value.items()}
    return Host(host_of(value)) if isinstance(value, Array) else value


def to_device(value: Any, queue: cl.CommandQueue) -> Any:
    """What `to_host` was given, its arrays on `queue`."""
    if isinstance(value, dict):
        return {key: to_device(each, queue) for key, each in value.items()}
    return gpuarray.to_gpu(value.values, queue=queue) if isinstance(value, Host) else value


class Named(MutableMapping[str, T], Generic[T]):
    """Variables or attributes by name: what is put in is checked by `check(name, value)`, and none is taken out."""

    def __init__(self, kept: dict[str, T], check: Callable[[str, Any], T]) -> None:
        self._kept, self._check = kept, check

    def __getitem__(self, name: str) -> T:
        if name not in self._kept:
            there = ", ".join(self._kept) or "none"
            raise ModuleNameError(
                f"no tensor is called {name!r}; there is {there}{hints(ATTRIBUTES, name, self._kept)}"
            )
        return self._kept[name]

    def __setitem__(self, name: str, value: T) -> None:
        self._kept[name] = self._check(name, value)

    def __delitem__(self, name: str) -> None:
        raise kept_for_good(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return repr(self._kept)


class _Keeper(Protocol):
    def _tensor(self, name: str) -> Array | None: ...

    def _assign(self, name: str, values: ArrayLike | Array) -> None: ...


class Tensor:
    """Of a module's class: the array of the variable or attribute of that name, or None; assigning copies values in."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, module: None, owner: type) -> Tensor: ...

    @overload
    def __get__(self, module: _Keeper, owner: type) -> Array | None: ...

    def __get__(self, module: _Keeper | None, owner: type) -> Tensor | Array | None:
        return self if module is None else module._tensor(self._name)

    def __set__(self, module: _Keeper, values: ArrayLike | Array) -> None:
        module._assign(self._name, values)

    def __delete__(self, module: _Keeper) -> None:
        raise kept_for_good(self._name)
