"""tinygrad's OpenCL backend on the same device, compiled by its TinyJit.

tinygrad takes the first platform that the OpenCL loader lists, and there a GPU before anything else; the parent shows
it one platform (OCL_ICD_VENDORS), and what it then opens must be the device that was asked for. TinyJit keeps its
results' memory from call to call, so that there are preallocated outputs only.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from oclbn.tools.peers.contract import Case, Declined
from oclbn.tools.peers.opencl import mend

_DEVICE_VERSION = 0x102F  # CL_DEVICE_VERSION


class Peer:
    """Forward and backward are each one jitted function; backward is the closed form on saved statistics."""

    def __init__(self, case: Case) -> None:
        if case.outputs != "preallocated":
            raise Declined("tinygrad's TinyJit always reuses its outputs")
        tinygrad: Any = importlib.import_module("tinygrad")
        self.version = importlib.import_module("importlib.metadata").version("tinygrad")
        self.case, self.tinygrad = case, tinygrad
        self.device = tinygrad.Device[f"CL:{case.device['index']}" if case.device["index"] else "CL"]
        if " ".join(self.device.device_name.split()) != case.device["device"]:
            raise Declined(f"tinygrad takes {self.device.device_name} instead of {case.device['device']}")
        mend(SimpleNamespace(int_ptr=ctypes.cast(self.device.cl_dev, ctypes.c_void_p).value, version=self._opencl()))
        arrays = (case.x, case.dy, case.scale, case.bias, case.mean, case.var, case.mean, case.var)
        tensors = [tinygrad.Tensor(array, device=self.device.device).contiguous().realize() for array in arrays]
        self.x, self.dy, self.scale, self.bias, self.mean, self.var, *self.running = tensors
        self.saved = [tensor.contiguous().realize() for tensor in self._statistics()]

    def _opencl(self) -> str:
        """The device's version string, which tinygrad does not keep."""
        opencl: Any = importlib.import_module("tinygrad.runtime.autogen.opencl")
        text = ctypes.create_string_buffer(256)
        opencl.clGetDeviceInfo(self.device.cl_dev, _DEVICE_VERSION, 256, text, None)
        return text.value.decode()

    def call(self, operation: str) -> Callable[[], Any]:
        jit = self.tinygrad.TinyJit
        names = ("forward", "backward") if operation == "both" else (operation,)
        steps = [jit(getattr(self, name)) for name in names]

        def run() -> list[Any]:
            made = [result for step in steps for result in step(self.x, self.dy)]
            self.device.synchronize()
            return made

        for _ in range(3):  # the first call runs, the second records, the third replays
            made = run()
            del made
        return run

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        if operation in ("forward", "inference"):
            return {"y": returned[0].numpy()}
        return {name: value.numpy() for name, value in zip(("dx", "dscale", "dbias"), returned[-3:], strict=True)}

    def forward(self, x: Any, dy: Any) -> tuple[Any, ...]:
        mean, var = self._statistics()
        y = x.batchnorm(self.scale, self.bias, mean, (var + self.case.epsilon).rsqrt(), axis=self.case.axis)
        count, factor = self.case.count, self.case.factor
        for running, batch in zip(self.running, (mean, var * (count / (count - 1))), strict=True):
            running.assign(running + factor * (batch - running))
        self.tinygrad.Tensor.realize(y, *self.running)
        return (y,)

    def inference(self, x: Any, dy: Any) -> tuple[Any, ...]:
        root = (self.var + self.case.epsilon).rsqrt()
        return (x.batchnorm(self.scale, self.bias, self.mean, root, axis=self.case.axis).realize(),)

    def backward(self, x: Any, dy: Any) -> tuple[Any, ...]:
        mean, var = self.saved
        invstd, column = (var + self.case.epsilon).rsqrt(), self._column
        normalised = (x - column(mean)) * column(invstd)
        dbias, dscale = dy.sum(self.case.axes), (dy * normalised).sum(self.case.axes)
        inside = dy - column(dbias / self.case.count) - normalised * column(dscale / self.case.count)
        dx = column(self.scale * invstd) * inside
        self.tinygrad.Tensor.realize(dx, dscale, dbias)
        return dx, dscale, dbias

    def _statistics(self) -> tuple[Any, Any]:
        mean = self.x.mean(self.case.axes)
        return mean, (self.x - self._column(mean)).square().mean(self.case.axes)

    def _column(self, values: Any) -> Any:
        return values.reshape([-1 if axis == self.case.axis else 1 for axis in range(self.case.x.ndim)])
