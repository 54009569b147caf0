"""What a module keeps: variables, attributes and counters; converted, updated, counted, saved and loaded.

The camelCase names are PuzzleLib's, so that code written for its modules runs on these.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import pyopencl as cl
from numpy.typing import ArrayLike, DTypeLike, NDArray

from oclbn import device, functional, gpuarray
from oclbn.call import arguments, values
from oclbn.call.copying import copy_strided
from oclbn.device import driver_errors
from oclbn.elements import WANTED, dtype_of, kind, numbers_of
from oclbn.errors import (
    ModuleDtypeError,
    ModuleFileError,
    ModuleNameError,
    ModuleParameterError,
    ModuleShapeError,
    ModuleStateError,
    OclbnError,
)
from oclbn.gpuarray import Array
from oclbn.modules.foreign import Contract, refuse_foreign, refuse_slip, shown
from oclbn.modules.options import Fixed, Name
from oclbn.modules.variable import Named, Variable, duplicate, fitting, host_of, to_device, to_host
from oclbn.names import ATTRIBUTES, hints

if TYPE_CHECKING:
    import h5py


__all__ = ["Parameters", "Variable"]

Shapes = dict[str, tuple[int, ...]]
Calctype = type[Any]  # np.float32, np.float64, np.float16 or ml_dtypes.bfloat16
_Own = TypeVar("_Own", bound="Parameters")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_UNITS = {"kb": 1024, "mb": 1024**2}


def whole(method: Callable[Concatenate[_Own, _P], _R]) -> Callable[Concatenate[_Own, _P], _R]:
    """Makes a method one step: while it runs, no other thread's begins."""

    @functools.wraps(method)
    def held(self: _Own, /, *given: _P.args, **options: _P.kwargs) -> _R:
        with self.lock:
            return method(self, *given, **options)

    return held


class Parameters(metaclass=Contract):
    """Base of Module: `vars` (name -> Variable), `attrs` (name -> Array), `calctype`, `queue`, `name`, `blueprint`.

    Variables are trained, attributes are not; each is also an attribute of the module under its own name, always the
    same array. Assigning there copies values in (a NumPy array, a device array, a list; as many elements, any shape).

    Threads may share a module: each method is one step, and what `save` writes is what whole steps left. `lock`, a
    reentrant lock, makes several of them one: `with bn.lock: bn(x); bn.backward(grad)`. Where modules share a Variable
    it guards each alone.

    Errors are raised before anything changes: ModuleErrors, but for the system's own (OSError) and MissingExtraError in
    `save` and `load`, and those of oclbn.functional where a variable's own arrays do not go together.
    """

    _passing: ClassVar[tuple[str, ...]] = ()  # attributes that the last call leaves
    _bound: ClassVar[tuple[str, ...]] = ("queue", "lock")  # those that are no copy's
    name = Name()
    queue = Fixed[cl.CommandQueue]("make another module with queue=..., and save and load the values")
    calctype = Fixed[Calctype]("calcMode(dtype) changes it")
    lock = Fixed[Any]("hold it in a with statement")

    def __init__(self, name: str | None, queue: cl.CommandQueue | None, dtype: DTypeLike) -> None:
        self.name = name
        queue = arguments.queue(f"{self}: queue", queue, error=ModuleParameterError)
        self.queue = device.default_queue() if queue is None else queue
        self.calctype = self._calculation_type("dtype", dtype)
        self.blueprint: dict[str, Any] = {"name": name}
        self.lock = threading.RLock()
        self._vars: dict[str, Variable] = {}
        self._attrs: dict[str, Array] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A module of its own in the same state, on the same queue; without what the last call left.

        So is what copy.copy makes. A pickled module is in host memory, and loads on the default queue: hold `lock`
        while it is pickled where other threads use it.
        """
        return self._copy(memo)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    @driver_errors("pickling a module")
    @whole
    def __getstate__(self) -> dict[str, Any]:
        return {name: to_host(value) for name, value in self._kept()}

    @driver_errors("unpickling a module")
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.queue, self.lock = state["name"], device.default_queue(), threading.RLock()
        self._calculation_type("dtype", state["calctype"])
        self.__dict__ |= {name: to_device(value, self.queue) for name, value in state.items()}
        self.reset()

    @driver_errors("copying a module")
    @whole
    def _copy(self, memo: dict[int, Any], queue: cl.CommandQueue | None = None) -> Self:
        """As __deepcopy__ makes it; on a queue, of any device."""
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__ |= {"queue": queue or self.queue, "lock": threading.RLock(), "name": self.name}
        made._calculation_type("dtype", self.calctype)  # which a device may not have
        made.__dict__ |= {name: duplicate(value, memo, queue) for name, value in self._kept()}
        made.reset()
        return made

    def _kept(self) -> list[tuple[str, Any]]:
        """All that a copy has, by name."""
        own = (*self._bound, *self._passing)
        return [(name, value) for name, value in self.__dict__.items() if name not in own]

    def __dir__(self) -> list[str]:
        return shown(type(self), super().__dir__())

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__ and name[0] != "_":
            refuse_slip(type(self), name)
        object.__setattr__(self, name, value)  # every call sets several: super() would cost half as much again

    def __format__(self, spec: str) -> str:
        """Class and name, with which messages begin (`f"{bn}: ..."`); str and repr tell all."""
        return format(type(self).__name__ if self.name is None else f"{type(self).__name__} {self.name!r}", spec)

    def getBlueprint(self) -> dict[str, Any]:
        """The class's name and PuzzleLib's constructor arguments, as JSON can hold them; our own options stay out."""
        return {"classname": type(self).__name__, "scheme": dict(self.blueprint)}

    @property
    def vars(self) -> MutableMapping[str, Variable]:
        """The variables by name. `vars[name] = var` is `setVar`."""
        return Named(self._vars, self._fitting_variable)

    @property
    def attrs(self) -> MutableMapping[str, Array]:
        """The attributes by name. `attrs[name] = array` is `setAttr`."""
        return Named(self._attrs, self._fitting_attribute)

    @whole
    def setVar(self, name: str, var: Variable) -> None:
        """Make `var` the variable `name`, which modules may share; its data is the attribute of that name.

        Its data has the shape and dtype of what it replaces. ModuleParameterError: the module has no such variable.
        ModuleDtypeError, ModuleShapeError, ContextError: `var` is no Variable, or its data does not fit.
        """
        self.vars[name] = var

    @whole
    def setAttr(self, name: str, attr: Array) -> None:
        """Make the device array `attr` the untrained tensor `name`, also as an attribute of that name.

        It has the shape and dtype of what it replaces; the errors are those of `setVar`.
        """
        self.attrs[name] = attr

    def getVar(self, name: str) -> Variable:
        """The variable `name`. ModuleNameError, which is a KeyError: the module has none."""
        return self._named("variable", self._vars, name)

    def getAttr(self, name: str) -> Array:
        """The attribute `name`. ModuleNameError, which is a KeyError: the module has none."""
        return self._named("attribute", self._attrs, name)

    def hasVar(self, name: str) -> bool:
        """Whether the module has a variable `name`."""
        return name in self._vars

    def hasAttr(self, name: str) -> bool:
        """Whether the module has an attribute `name`."""
        return name in self._attrs

    def getVarTable(
        self, vartable: dict[Variable, list[str]] | None = None, name: str | None = None, root: bool = True
    ) -> dict[Variable, list[str]]:
        """For each variable the names that it goes by, a list: modules that share one add to the same list.

        vartable: what other modules' calls gave, which is added to and returned. name: what stands before each
        variable's own name, as it is ("block."); None: with `root` the module's name, else nothing.
        """
        prefix = (self.name or "" if root else "") if name is None else name
        table = {} if vartable is None else vartable
        for own, var in self._vars.items():
            table.setdefault(var, []).append(f"{prefix}{own}")
        return table

    def _named(self, kind: str, kept: Mapping[str, _R], name: str) -> _R:
        if name not in kept:
            there = ", ".join(kept) or "none"
            hint = hints(ATTRIBUTES, name, kept)
            raise ModuleNameError(f"{self}: no {kind} is called {name!r}; there is {there}{hint}")
        return kept[name]

    def _fitting_variable(self, name: str, var: Any) -> Variable:
        shape = self._shape_of("variable", name, self._shapes()[0])
        if not isinstance(var, Variable):
            raise ModuleDtypeError(
                f"{self}: variable {name} is {values.kind_of(var)}; an oclbn.modules.variable.Variable is wanted "
                f"(values are assigned to the module's attribute {name})"
            )
        fitting(f"{self}: data of variable {name}", var.data, shape, self._numbers, self.queue.context)
        return var

    def _fitting_attribute(self, name: str, attr: Any) -> Array:
        shape = self._shape_of("attribute", name, self._shapes()[1])
        return fitting(f"{self}: attribute {name}", attr, shape, self._numbers, self.queue.context)

    def _shape_of(self, kind: str, name: str, shapes: Shapes) -> tuple[int, ...]:
        if name not in shapes:
            raise ModuleParameterError(f"{self}: {kind} is {name!r}; {_one_of(shapes)} is wanted")
        return shapes[name]

    def _tensor(self, name: str) -> Array | None:
        """The array of the variable or attribute `name`, None where there is none yet."""
        return self._vars[name].data if name in self._vars else self._attrs.get(name)

    @driver_errors("assigning")
    @whole
    def _assign(self, name: str, values: ArrayLike | Array) -> None:
        """Copy values into a variable or an attribute, which is made where there is none yet."""
        array, (var_shapes, attr_shapes) = self._tensor(name), self._shapes()
        if name not in var_shapes | attr_shapes:
            raise ModuleStateError(f"{self}: there is no {name} to assign to; the module was made without")
        if values is array is not None:
            return  # bn.scale *= 2 has changed it already
        host = self._host_of(name, values, (var_shapes | attr_shapes)[name])
        fault = self._fault(name, host)
        if fault:
            raise ModuleParameterError(f"{self}: {name} is given {fault}")
        if array is not None:
            self._finish()
            overwrite([(array, host)])
        elif name in var_shapes:
            self.setVar(name, Variable(gpuarray.to_gpu(host, queue=self.queue), name))
        else:
            self.setAttr(name, gpuarray.to_gpu(host, queue=self.queue))

    def _host_of(self, name: str, values: ArrayLike | Array, shape: tuple[int, ...]) -> NDArray[Any]:
        if isinstance(values, Array):
            values = host_of(values if values.queue is not None else values.with_queue(self.queue))
        try:
            host = np.asarray(values)
        except ValueError as error:  # lists of unequal lengths
            raise ModuleShapeError(f"{self}: {name} is given what is no array: {error}") from None
        if host.dtype.kind not in "iuf" and kind(host.dtype) is None:
            mixed = host.dtype == object and any(isinstance(one, Array) for one in host.flat)
            reason = ", which NumPy makes of its own arrays together with device arrays" if mixed else ""
            advice = f", as bn.{name}.get() has" if mixed else _lost_name(host.dtype)
            raise ModuleDtypeError(
                f"{self}: {name} is given elements of type {host.dtype}{reason}; real numbers are wanted{advice}"
            )
        if host.size != math.prod(shape):
            came = f"{host.size} elements (shape {host.shape})"
            raise ModuleShapeError(f"{self}: {name} is given {came}; {math.prod(shape)} are wanted, in any shape")
        with np.errstate(over="ignore"):
            made = host.astype(self._numbers)
        lost = np.isinf(made) & np.isfinite(host)
        if lost.any():
            most = f"{np.finfo(self._numbers).max:g}"
            raise ModuleParameterError(
                f"{self}: {name} is given {host[lost][0]:g}; numbers up to {most} are wanted, as the module "
                f"computes with {self._numbers}"
            )
        return np.ascontiguousarray(made.reshape(shape))

    @whole
    def reset(self) -> None:
        """Drop the arrays that the last call and its gradient left."""
        for name in self._passing:
            setattr(self, name, None)

    @driver_errors("calcMode")
    @whole
    def calcMode(self, T: DTypeLike) -> None:
        """Take data of another type from now on; what the last call left is dropped.

        T: numpy.float32, numpy.float16, ml_dtypes.bfloat16 (or the name of one), or numpy.float64 where the device has
        it; all else is a ModuleDtypeError. Variables, gradients and attributes are converted between float64 and
        float32, which they are for the three others: between those they stay as they are, the same arrays.
        """
        calctype = self._calculation_type("T", T)
        if calctype is self.calctype:
            return
        numbers = numbers_of(np.dtype(calctype))
        variables, attributes = {}, {}
        if numbers != self._numbers:
            variables = {
                name: (self._converted(var.data, numbers), self._converted(var.grad, numbers))
                for name, var in self._vars.items()
            }
            attributes = {name: self._converted(attr, numbers) for name, attr in self._attrs.items()}
        self.reset()
        vars(self)["calctype"] = calctype
        for name, (data, grad) in variables.items():
            self._vars[name].replace(data, grad)
        self._attrs |= attributes

    @driver_errors("zeroGradParams")
    @whole
    def zeroGradParams(self) -> None:
        """Fill the gradients of all variables with 0."""
        for grad in (var.grad for var in self._vars.values()):
            if grad.base_data is None:
                continue
            if not grad.flags.forc:
                copy_strided(gpuarray.zeros_like(grad, queue=self.queue), grad)
            else:
                zero = grad.dtype.type(0)
                queue = grad.queue or self.queue
                grad.add_event(
                    cl.enqueue_fill(queue, grad.base_data, zero, grad.nbytes, offset=grad.offset, wait_for=grad.events)
                )

    @driver_errors("updateParams")
    @whole
    def updateParams(self, learnRate: float) -> None:
        """One step: data += learnRate * grad for every variable, in place (to descend, learnRate is negative)."""
        rate = self._real_number("learnRate", learnRate)
        steps = {  # all are checked before the first is taken
            name: functional.accumulation(var.data, var.grad, scale=rate, momentum=1.0)
            for name, var in self._vars.items()
        }
        taken: list[str] = []
        for name, step in steps.items():
            try:
                step()
            except OclbnError as error:
                error.add_note(
                    f"{self}: updateParams stopped at {name}; updated before it: {', '.join(taken) or 'none'}"
                )
                raise
            taken.append(name)

    def numOfParams(self) -> int:
        """Number of elements of all variables."""
        return sum(int(var.data.size) for var in self._vars.values())

    def paramSize(self, unit: str | None = None) -> float:
        """Size of all variables in bytes, or divided by 1024 ("kb") or 1024**2 ("mb")."""
        if unit is not None and unit not in _UNITS:
            raise ModuleParameterError(f"{self}: unit is {unit!r}; None, 'kb' or 'mb' is wanted")
        size = sum(int(var.data.nbytes) for var in self._vars.values())
        return size if unit is None else size / _UNITS[unit]

    @driver_errors("save")
    def save(
        self,
        hdf: str | os.PathLike[str] | h5py.Group | None = None,
        varlinks: dict[Variable, int] | None = None,
        name: str | None = None,
        compress: str | int | None = "gzip",
        assumeUniqueNames: bool = False,
        withBlueprint: bool = False,
        isRoot: bool = True,
    ) -> bytes | None:
        """Write variables, attributes and counters as HDF5, in PuzzleLib's layout; returns bytes when `hdf` is None.

        hdf: a path (the file appears at once or not at all; folders are made), an open h5py.File or Group (added to,
        left open, and flushed when `isRoot`), or None. varlinks: Variable -> number of its dataset, for modules that
        share variables in one file. name: instead of the module's own. compress: None, "gzip", "lzf", a gzip level.
        assumeUniqueNames: "a.b.c" is written as "a.c". withBlueprint: adds the JSON of `getBlueprint`.
        MissingExtraError: no h5py. ModuleStateError: nothing to save yet. ModuleFileError: the names are taken, or the
        path is a file, not empty, that is not HDF5, or has the ending of another format of weights.
        OSError: the system's own, or the path is a folder, a pipe, a device or the like.
        """
        from oclbn.files import puzzlelib

        var_shapes, attr_shapes = self._shapes()
        if var_shapes.keys() - self._vars.keys() or attr_shapes.keys() - self._attrs.keys():
            raise self._incomplete()
        with self.lock:  # until everything is on the host, not while it is written
            content = puzzlelib.Content(
                variables={key: (var, host_of(var.data)) for key, var in self._vars.items()},
                attributes={key: host_of(attr) for key, attr in self._attrs.items()},
                counters=self._counters(),
                blueprint=json.dumps(self.getBlueprint(), indent=4, sort_keys=True) if withBlueprint else None,
            )
        return puzzlelib.save(
            hdf,
            self._prefix(name, assumeUniqueNames),
            content,
            varlinks={} if varlinks is None else varlinks,
            compress=compress,
            flush=isRoot,
        )

    @driver_errors("load")
    @whole
    def load(
        self,
        hdf: str | os.PathLike[str] | bytes | h5py.Group,
        initvars: dict[Variable, bool] | None = None,
        name: str | None = None,
        assumeUniqueNames: bool = False,
        isRoot: bool = True,
        *,
        check_finite: bool = True,
    ) -> None:
        """Take variables, attributes and counters from a file of oclbn or PuzzleLib: all of them, or none and an error.

        hdf: a path, the bytes that `save` returned, or an open h5py.File or Group (left open; isRoot has no effect).
        initvars: Variables that are loaded already; they are passed over, and the ones loaded here added. What the
        last call left is dropped. FileNotFoundError: no such path. ModuleFileError: the file is damaged, foreign or
        does not fit. float32, float16 and bfloat16 in files fit all modules, float64 only those of float64.
        check_finite: a file with NaN or infinity among the values does not fit. MissingExtraError: no h5py.
        """
        from oclbn.files import puzzlelib

        initvars = {} if initvars is None else initvars
        var_shapes, attr_shapes = self._shapes()
        stored = puzzlelib.load(
            hdf,
            self._prefix(name, assumeUniqueNames),
            {key: shape for key, shape in var_shapes.items() if self._vars.get(key) not in initvars},
            attr_shapes,
            self._counter_shapes(),
            self._numbers,
            check_finite=check_finite,
        )
        for key, host in (stored.variables | stored.attributes).items():
            fault = self._fault(key, host)
            if fault:
                raise ModuleFileError(f"{self}: {stored.source} has {fault}")
        set_counters = self._counters_from(stored.counters, stored.source)
        self._take_hosts(stored.variables | stored.attributes)
        initvars.update((self._vars[key], True) for key in stored.variables)
        set_counters()

    @driver_errors("taking values")
    @whole
    def _take_values(self, given: Mapping[str, ArrayLike]) -> None:
        """Copy values into several variables and attributes, checked as where they are assigned: all, or none."""
        variables, attributes = self._shapes()
        hosts = {name: self._host_of(name, one, (variables | attributes)[name]) for name, one in given.items()}
        for name, host in hosts.items():
            if fault := self._fault(name, host):
                raise ModuleParameterError(f"{self}: {name} is given {fault}")
        self._take_hosts(hosts)

    def _take_hosts(self, hosts: Mapping[str, NDArray[Any]]) -> None:
        """What fits and is right becomes the module's; what the last call left is dropped."""
        known = {key: var.data for key, var in self._vars.items()} | self._attrs
        new = {key: gpuarray.to_gpu(host, queue=self.queue) for key, host in hosts.items() if key not in known}
        variables = {key: Variable(array, key) for key, array in new.items() if key in self._shapes()[0]}
        self._finish()
        overwrite([(known[key], host) for key, host in hosts.items() if key in known])
        self.reset()
        for key, array in new.items():
            if key in variables:
                self.setVar(key, variables[key])
            else:
                self.setAttr(key, array)

    @abstractmethod
    def _finish(self) -> None:
        """Wait until the last call, on whichever queue it runs, no longer reads variables and attributes."""

    @abstractmethod
    def _shapes(self) -> tuple[Shapes, Shapes]:
        """Shapes of all variables and of all attributes, those included that are not created yet."""

    @abstractmethod
    def _counters(self) -> dict[str, int | NDArray[Any]]:
        """Whole numbers that go into files beside the attributes, single ones or arrays."""

    @abstractmethod
    def _counter_shapes(self) -> Shapes:
        """The counters that a file may have; () is a single one's."""

    @abstractmethod
    def _counters_from(self, counters: Mapping[str, Any], source: str) -> Callable[[], None]:
        """All that can fail in taking the counters of the file `source`; what comes back takes them."""

    @abstractmethod
    def _fault(self, name: str, values: NDArray[Any]) -> str | None:
        """What is wrong with such values of a variable or attribute, as "a negative number", or None."""

    def _incomplete(self) -> ModuleStateError:
        return ModuleStateError(f"{self}: made with empty=True, it lacks {self._lacking()}; load() brings them")

    def _lacking(self) -> str:
        variables, attributes = self._shapes()
        return ", ".join(name for name in variables | attributes if self._tensor(name) is None)

    @property
    def _numbers(self) -> np.dtype[Any]:
        """What variables and attributes are of, and all that is computed, where data have the type `calctype`."""
        return numbers_of(np.dtype(self.calctype))

    def _calculation_type(self, argument: str, value: DTypeLike) -> Calctype:
        found, fp64 = dtype_of(value), device.limits(self.queue.device).fp64
        if found is not None and (fp64 or found != np.float64):
            return found.type
        wanted = WANTED if fp64 else WANTED.replace(" float64,", "")
        lacking = "" if fp64 else f" ({self.queue.device.name.strip()} has no float64)"
        raise ModuleDtypeError(f"{self}: {argument} is {value!r}; {wanted} is wanted{lacking}")

    def _converted(self, array: Array, numbers: np.dtype[Any]) -> Array:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, as on the device
            return gpuarray.to_gpu(host_of(array).astype(numbers), queue=self.queue)

    def _whole_number(self, argument: str, value: object, low: int, most: int | None = None) -> int:
        return values.whole(f"{self}: {argument}", value, low, most, error=ModuleParameterError)

    def _real_number(self, argument: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
        if type(value) is float and low <= value <= high and math.isfinite(value):  # sooner than making the words
            return value
        return values.number(f"{self}: {argument}", value, low, high, error=ModuleParameterError)

    def _prefix(self, name: str | None, shorten: bool) -> str:
        prefix = self.name or "" if name is None else name
        tokens = prefix.split(".")
        return f"{tokens[0]}.{tokens[-1]}" if shorten and prefix else prefix


refuse_foreign(Parameters)


def _one_of(names: Mapping[str, Any]) -> str:
    return f"one of {', '.join(names)}" if names else "none, as the module was made without any,"


def _lost_name(dtype: np.dtype[Any]) -> str:
    """Advice, where elements may be bfloat16 that NumPy's own files gave back without their type's name."""
    return "; if they are bfloat16, give values.view(ml_dtypes.bfloat16)" if dtype == np.dtype("V2") else ""


def overwrite(pairs: list[tuple[Array, NDArray[Any]]]) -> None:
    """Write into all arrays; where one cannot be written, the others get back what they had."""
    old = [host_of(array) for array, _ in pairs]
    try:
        for array, host in pairs:
            _set(array, host.astype(array.dtype, copy=False).reshape(array.shape))
    except BaseException:
        with contextlib.suppress(cl.Error):  # of a device that is gone nothing can be put right
            for (array, _), was in zip(pairs, old, strict=True):
                _set(array, was)
        raise


def _set(array: Array, host: NDArray[Any]) -> None:
    array.finish()  # Array.set does not wait for the array's events
    if array.flags.c_contiguous:
        array.set(host)
    else:
        copy_strided(gpuarray.to_gpu(host, queue=array.queue), array)
