"""What every module has: variables, attributes, two modes, a call and its gradient, and files.

The camelCase names are PuzzleLib's, so that code written for its modules runs on these. A module computes on
the queue of the data that it is given; its variables were made on its own queue, of the same OpenCL context.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyopencl as cl
from numpy.typing import DTypeLike

from oclbn.call import arguments, values
from oclbn.device import driver_errors, limits
from oclbn.elements import as_code, is_narrow, kind
from oclbn.errors import ContextError, ModuleDtypeError, ModuleShapeError, ModuleStateError
from oclbn.gpuarray import Array
from oclbn.modules.options import Flag
from oclbn.modules.parameters import Parameters, whole

__all__ = ["Module"]


class Module(Parameters):
    """Base of the modules: the contract that does not depend on what is computed.

    name: used in files and messages. queue: where variables are made (None: the default queue). dtype: of data,
    gradients and results: float32, float16, ml_dtypes.bfloat16, or float64 where the device has it; variables and
    attributes, and what is computed with, are float64 for that one and float32 for all others.

    Public state: `vars` (name -> Variable), `attrs` (name -> Array), `train`, `calctype` (the scalar type of `dtype`),
    `queue`, `blueprint`, and of the last call `inData`, `data`, `grad` (None before it).

    Errors are raised before anything changes, and are ModuleErrors but for these of oclbn.errors: ContextError, data or
    gradients of another OpenCL context, or data without a queue; and what oclbn.functional finds in such arrays,
    ReadOnlyError, SizeError and DeviceError.
    """

    _passing: ClassVar[tuple[str, ...]] = ("inData", "data", "grad")
    train = Flag()

    def __init__(
        self, name: str | None = None, *, queue: cl.CommandQueue | None = None, dtype: DTypeLike = np.float32
    ) -> None:
        super().__init__(name, queue, dtype)
        self.train = True
        self.inData: Array | None = None
        self.data: Array | None = None
        self.grad: Array | None = None

    @driver_errors("calling a module")
    @whole
    def __call__(self, data: Array) -> Array:
        """Compute the output for `data`; it is returned and kept as `self.data`, the input as `self.inData`."""
        return self._call(data)

    def _call(self, data: Array, **besides: Any) -> Array:
        """The same; besides: what `_forward` takes beside the data."""
        self._check(data, "data")
        if data.queue is None:
            raise ContextError(f"{self}: data has no queue; give it one with data.with_queue(queue)")
        result = self._forward(data, **besides)
        vars(self).update(inData=data, data=result)  # they are there: assigning would look for slips of the pen
        return result

    @driver_errors("backward")
    @whole
    def backward(
        self, grad: Array, updParamGrads: bool = True, updGrad: bool = True, scale: float = 1.0, momentum: float = 0.0
    ) -> Array | None:
        """Gradients of the last call, for `grad`, the gradient with respect to its output.

        grad: shape and dtype of the data; where that is float16 or bfloat16, float32 as well. The gradient with respect
        to the data, of the data's dtype, is returned and kept as `self.grad` (None when `updGrad` is off). With
        `updParamGrads`, in training mode, the variables' gradients become `scale * new + momentum * old`, in place. In
        evaluation mode they stay as they are: to train parameters on running statistics that stay, leave the module in
        training mode and set `frozen_statistics`, which batch normalizations have. ModuleStateError: nothing was called
        before. An error while they are added to leaves `self.grad` and the kept parameter gradients as they were.
        """
        if self.inData is None:
            raise ModuleStateError(f"{self}: backward needs a call of the module before it")
        self._check_like_data(grad, "grad", self.inData.shape)
        scale, momentum = self._real_number("scale", scale), self._real_number("momentum", momentum)
        if not (updGrad or updParamGrads):
            self.grad = None
            return None
        into = {name: var.grad for name, var in self._vars.items()} if updParamGrads and self.train else {}
        result = self._backward(self.inData, grad, into, scale, momentum)
        self.grad = result if updGrad else None
        return self.grad

    @whole
    def trainMode(self) -> None:
        """Compute with the batch's own statistics from now on; drops what the last call left."""
        self.train = True
        self.reset()

    @whole
    def evalMode(self) -> None:
        """Compute with the running statistics from now on; drops what the last call left.

        `backward` then gives the data's gradient and accumulates none of the variables'; for these, see `backward`.
        """
        self.train = False
        self.reset()

    def dataShapeFrom(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for data of this shape."""
        return shape

    def gradShapeFrom(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the data's gradient for an output gradient of this shape."""
        return shape

    @abstractmethod
    def _forward(self, data: Array) -> Array:
        """Compute the output; on an error, leave the module as it was."""

    @abstractmethod
    def _backward(self, data: Array, grad: Array, into: Mapping[str, Array], scale: float, momentum: float) -> Array:
        """Compute the data's gradient; by name, accumulate those of trained variables in the arrays `into`.

        They become `scale * new + momentum * old`. On an error, leave the module and the arrays as they were.
        """

    @abstractmethod
    def _check_shape(self, shape: tuple[int, ...], argument: str) -> None:
        """Raise ModuleShapeError unless data or gradients may have this shape."""

    def _finish(self) -> None:
        for array in (self.data, self.grad):
            if array is not None:
                array.finish()

    def _cures(self, argument: str, array: Array) -> str:
        """What helps against data of another type."""
        own = arguments.converted(argument, array, self.calctype)
        if kind(array.dtype) is None or (array.dtype == np.float64 and not limits(self.queue.device).fp64):
            return own
        others = f"make the module with dtype={as_code(array.dtype)}, or call calcMode({as_code(array.dtype)})"
        return f"{own}, {others}" if own else f"; {others}"

    def _check_like_data(self, array: Array, argument: str, shape: tuple[int, ...]) -> None:
        """Raise what `_check` does, or ModuleShapeError where an array has not the shape that the data have."""
        self._check(array, argument)
        if array.shape != shape:
            raise ModuleShapeError(f"{self}: {argument} has shape {array.shape}; the data had {shape}")

    def _check(self, array: Array, argument: str) -> None:
        if not isinstance(array, Array):
            advice = values.made_of(argument, array, self.calctype, "bn.queue")
            raise ModuleDtypeError(
                f"{self}: {argument} is {values.kind_of(array)}; a pyopencl.array.Array is wanted{advice}"
            )
        self._check_shape(array.shape, argument)
        if array.dtype != self.calctype and not (argument != "data" and array.dtype == self._numbers):
            own = np.dtype(self.calctype)
            does = "takes" if is_narrow(own) else "computes with"
            wide = f" or {self._numbers}" if argument != "data" and is_narrow(own) else ""
            raise ModuleDtypeError(
                f"{self}: {argument} has dtype {array.dtype}; the module {does} {own}{wide}"
                + self._cures(argument, array)
            )
        if array.queue is not self.queue and array.context != self.queue.context:
            raise ContextError(
                f"{self}: {argument} is in another OpenCL context than the module; "
                f"make the module with queue={argument}.queue, or {argument} on the module's queue"
            )
