"""PyTorch's CPU kernels on as many threads as the device has compute units, with autograd, as people run them.

It allocates its results itself. Preallocated outputs: malloc keeps its memory (see registry.py), so that memory comes
back instead of being mapped anew; PyTorch's own out= variants exist for one direction only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from oclbn.tools.peers.contract import Case

_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {"gelu_tanh": ("gelu", {"approximate": "tanh"})}


class Peer:
    """Channels last is PyTorch's channels_last: the same memory, seen with channels on axis 1.

    Of 16-bit types are the tensors alone; its parameters and statistics are float32, as under its autocast.
    """

    types = ("float32", "float64", "bfloat16", "float16")
    fuses = True

    def __init__(self, case: Case) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(case.threads)
        self.version = str(self.torch.__version__)
        self.case = case
        arrays = (case.x, case.dy, case.scale, case.bias, case.mean.copy(), case.var.copy())
        x, self.dy, *numbers = map(self.torch.from_numpy, arrays)
        own = getattr(self.torch, case.dtype)
        x, self.dy = x.to(own), self.dy.to(own)
        wide = self.torch.float64 if case.dtype == "float64" else self.torch.float32
        self.scale, self.bias, self.mean, self.var = (one.to(wide) for one in numbers)
        self.x, self.dy = x.movedim(case.axis, 1), self.dy.movedim(case.axis, 1)
        self.leaves = tuple(tensor.detach().requires_grad_() for tensor in (self.x, self.scale, self.bias))
        self.residual: Any = None
        if case.residual is not None:
            added = self.torch.from_numpy(case.residual).to(own).movedim(case.axis, 1)
            self.residual = added.detach().requires_grad_()
            self.leaves += (self.residual,)
        self.running = (self.mean.clone(), self.var.clone())

    def call(self, operation: str) -> Callable[[], Any]:
        grad = self.torch.autograd.grad
        if operation == "forward":
            return self.forward
        if operation == "inference":
            return self.inference
        if operation == "backward":
            y = self.forward()
            return lambda: grad(y, self.leaves, self.dy, retain_graph=True)
        return lambda: grad(self.forward(), self.leaves, self.dy)

    def forward(self) -> Any:
        x, scale, bias, *_ = self.leaves
        return self._batch_norm(x, *self.running, scale, bias, True)

    def inference(self) -> Any:
        with self.torch.no_grad():
            return self._batch_norm(self.x, self.mean, self.var, self.scale, self.bias, False)

    def _batch_norm(self, *given: Any) -> Any:
        functional = self.torch.nn.functional
        y = functional.batch_norm(*given, momentum=self.case.factor, eps=self.case.epsilon)
        if self.residual is not None:
            y = y + self.residual
        name, options = _ACTIVATIONS.get(self.case.activation, (self.case.activation, {}))
        return y if name == "none" else getattr(functional, name)(y, **options)

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        if operation in ("forward", "inference"):
            return {"y": self._on_host(returned.detach().movedim(1, self.case.axis))}
        dx, dscale, dbias, *others = returned
        found = {"dx": self._on_host(dx.movedim(1, self.case.axis)), "dscale": dscale.numpy(), "dbias": dbias.numpy()}
        if others:
            found["dresidual"] = self._on_host(others[0].movedim(1, self.case.axis))
        return found

    def _on_host(self, tensor: Any) -> NDArray[Any]:
        """NumPy knows no bfloat16."""
        found: NDArray[Any] = (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()
        return found
