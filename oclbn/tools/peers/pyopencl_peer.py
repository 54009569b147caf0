"""What one writes today with pyopencl alone: a ReductionKernel per channel for the sums, ElementwiseKernels else.

pyopencl.array reduces whole arrays, not axes, so that each channel takes a launch. Preallocated outputs: given arrays
are written; fresh: an array is allocated for each result.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.tools.peers.contract import Case
from oclbn.tools.peers.opencl import find


class Peer:
    """On the device that oclbn is timed on."""

    def __init__(self, case: Case) -> None:
        importlib.import_module("mako")  # pyopencl's reductions want it, without saying so in a way that is caught
        cl: Any = importlib.import_module("pyopencl")
        self.array: Any = importlib.import_module("pyopencl.array")
        device = find(case, cl.get_platforms())
        self.version, self.case = str(cl.VERSION_TEXT), case
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        hosts = (case.x, case.dy, case.scale, case.bias, case.mean, case.var)
        self.x, self.dy, self.scale, self.bias, self.mean, self.var = (
            self.array.to_device(self.queue, host) for host in hosts
        )
        self.running = (self.mean.copy(), self.var.copy())
        self.channels = case.x.shape[case.axis]
        self.inner = int(np.prod(case.x.shape[case.axis + 1 :], dtype=np.int64))
        pairs = importlib.import_module("pyopencl.cltypes").float2
        self.sums = self.array.zeros(self.queue, self.channels, pairs)
        self.sum_of = [self.sums[channel : channel + 1].reshape(()) for channel in range(self.channels)]
        per_channel = (self.array.empty_like(self.mean) for _ in range(4))
        self.save_mean, self.save_invstd, self.dscale, self.dbias = per_channel
        self.out = self.array.empty_like(self.x) if case.outputs == "preallocated" else None
        self._kernels(pairs)

    def _kernels(self, pairs: Any) -> None:
        reduction: Any = importlib.import_module("pyopencl.reduction").ReductionKernel
        elementwise: Any = importlib.import_module("pyopencl.elementwise").ElementwiseKernel
        place = f"(i / {self.inner}) * {self.inner * self.channels} + c * {self.inner} + i % {self.inner}"
        of = f"int c = (i / {self.inner}) % {self.channels}; "
        count, epsilon, factor = self.case.count, f"{self.case.epsilon:e}f", f"{self.case.factor:e}f"

        def sums(arguments: str, values: str) -> Any:
            return reduction(self.context, pairs, "(float2)(0)", "a + b", values, arguments)

        self.moments = sums("__global const float *x, int c", f"(float2)(x[{place}], x[{place}] * x[{place}])")
        self.products = sums(
            "__global const float *x, __global const float *dy, __global const float *mean, int c",
            f"(float2)(dy[{place}], dy[{place}] * (x[{place}] - mean[c]))",
        )
        self.statistics = elementwise(
            self.context,
            "float *mean, float *invstd, float *running_mean, float *running_var, const float2 *sums",
            f"float m = sums[i].x / {count}; float v = fmax(sums[i].y / {count} - m * m, 0.0f);"
            f"mean[i] = m; invstd[i] = rsqrt(v + {epsilon}); running_mean[i] += {factor} * (m - running_mean[i]);"
            f"running_var[i] += {factor} * (v * ({count}.0f / {max(count - 1, 1)}.0f) - running_var[i])",
        )
        self.root = elementwise(
            self.context, "float *invstd, const float *var", f"invstd[i] = rsqrt(var[i] + {epsilon})"
        )
        self.normalise = elementwise(
            self.context,
            "float *y, const float *x, const float *mean, const float *invstd, const float *scale, const float *bias",
            of + "y[i] = (x[i] - mean[c]) * invstd[c] * scale[c] + bias[c]",
        )
        self.gradients = elementwise(
            self.context,
            "float *dscale, float *dbias, const float2 *sums, const float *invstd",
            "dbias[i] = sums[i].x; dscale[i] = sums[i].y * invstd[i]",
        )
        self.differentiate = elementwise(
            self.context,
            "float *dx, const float *x, const float *dy, const float *mean, const float *invstd, const float *scale, "
            "const float *dscale, const float *dbias",
            of + "float n = (x[i] - mean[c]) * invstd[c];"
            f"dx[i] = scale[c] * invstd[c] * (dy[i] - (dbias[c] + n * dscale[c]) / {count})",
        )

    def call(self, operation: str) -> Callable[[], Any]:
        steps = {
            "forward": (self.forward,),
            "backward": (self.backward,),
            "inference": (self.inference,),
            "both": (self.forward, self.backward),
        }[operation]
        if operation == "backward":
            self.forward()

        def run() -> list[Any]:
            made = [step() for step in steps]
            self.queue.finish()
            return made

        return run

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        if operation in ("forward", "inference"):
            return {"y": returned[0].get()}
        return {"dx": returned[-1].get(), "dscale": self.dscale.get(), "dbias": self.dbias.get()}

    def forward(self) -> Any:
        values = slice(0, self.case.count)
        for channel, total in enumerate(self.sum_of):
            self.moments(self.x, np.int32(channel), range=values, out=total, queue=self.queue)
        self.statistics(self.save_mean, self.save_invstd, *self.running, self.sums)
        return self._normalised(self.save_mean, self.save_invstd)

    def inference(self) -> Any:
        invstd = self.array.empty_like(self.var)
        self.root(invstd, self.var)
        return self._normalised(self.mean, invstd)

    def backward(self) -> Any:
        values = slice(0, self.case.count)
        for channel, total in enumerate(self.sum_of):
            given = (self.x, self.dy, self.save_mean, np.int32(channel))
            self.products(*given, range=values, out=total, queue=self.queue)
        self.gradients(self.dscale, self.dbias, self.sums, self.save_invstd)
        dx, saved = self._result(), (self.save_mean, self.save_invstd)
        self.differentiate(dx, self.x, self.dy, *saved, self.scale, self.dscale, self.dbias)
        return dx

    def _normalised(self, mean: Any, invstd: Any) -> Any:
        y = self._result()
        self.normalise(y, self.x, mean, invstd, self.scale, self.bias)
        return y

    def _result(self) -> Any:
        return self.array.empty_like(self.x) if self.out is None else self.out
