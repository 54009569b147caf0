"""NumPy, as one writes it. Preallocated outputs: every step writes into memory that was there before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.tools.peers.contract import Case


class Peer:
    """Runs on one thread, whatever the device has."""

    version = np.__version__

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scale, self.bias, self.mean, self.var = map(case.column, (case.scale, case.bias, case.mean, case.var))
        self.running = [self.mean.copy(), self.var.copy()]
        self.saved = self._statistics()
        self.reuse = case.outputs == "preallocated"
        self.out: Any = np.empty_like(case.x) if self.reuse else None
        self.spare: Any = np.empty_like(case.x) if self.reuse else None

    def call(self, operation: str) -> Callable[[], Any]:
        forward, backward = self.forward, self.backward
        if operation == "both":
            return lambda: (forward(), *backward())
        return {"forward": forward, "backward": backward, "inference": self.inference}[operation]

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        if operation == "inference":
            return {"y": returned}
        if operation == "forward":
            return {"y": returned, "running_mean": self.running[0].ravel(), "running_var": self.running[1].ravel()}
        names = ("dx", "dscale", "dbias")
        return dict(zip(names, returned[-3:], strict=True))

    def forward(self) -> NDArray[Any]:
        mean, var, invstd = self.saved = self._statistics()
        weight, count = np.float32(self.case.factor), self.case.count
        for running, batch in zip(self.running, (mean, var * np.float32(count / (count - 1))), strict=True):
            running += weight * (batch - running)
        return self._normalise(mean, invstd)

    def inference(self) -> NDArray[Any]:
        return self._normalise(self.mean, 1 / np.sqrt(self.var + np.float32(self.case.epsilon)))

    def backward(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        case, out, spare = self.case, self.out, self.spare
        mean, _, invstd = self.saved
        normalised = np.multiply(np.subtract(case.x, mean, out=out), invstd, out=out)
        dscale = np.multiply(case.dy, normalised, out=spare).sum(case.axes, keepdims=True)
        dbias = case.dy.sum(case.axes, keepdims=True)
        count = np.float32(case.count)
        dx = np.multiply(normalised, -dscale / count, out=out)
        dx += case.dy
        dx -= dbias / count
        dx *= self.scale * invstd
        return dx, dscale.ravel(), dbias.ravel()

    def _statistics(self) -> tuple[Any, Any, Any]:
        mean = self.case.x.mean(self.case.axes, keepdims=True)
        var = self.case.x.var(self.case.axes, keepdims=True)
        return mean, var, 1 / np.sqrt(var + np.float32(self.case.epsilon))

    def _normalise(self, mean: Any, invstd: Any) -> NDArray[Any]:
        if not self.reuse:
            fresh: NDArray[Any] = (self.case.x - mean) * (invstd * self.scale) + self.bias
            return fresh
        y: NDArray[Any] = np.subtract(self.case.x, mean, out=self.out)
        y *= invstd * self.scale
        y += self.bias
        return y
