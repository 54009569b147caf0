"""Layers that take the place of torch.nn's, and what swaps those of a model."""

from __future__ import annotations

from typing import Any

import torch

from oclbn.call import fusing
from oclbn.errors import ArrayTypeError, ParameterError
from oclbn.torch.function import Device, batch_norm, check_device, check_tensor


class _Choice:
    """The device that a layer computes on. Copies of the layer share it; where a layer is unpickled it is the default.

    Devices and queues belong to a process, and names of devices to a machine.
    """

    def __init__(self, opencl: Device = None) -> None:
        self.opencl = opencl

    def __deepcopy__(self, memo: Any) -> _Choice:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Choice, ()


class _Layer:
    """What these layers have beside those of torch.nn that they are made from."""

    _opencl = _Choice()  # those of a layer that was made as another one's class
    _activation: Any = None

    def __init__(self, *given: Any, activation: Any = None, opencl: Device = None, **options: Any) -> None:
        check_device(opencl)
        fused = fusing.activation_of(activation)
        super().__init__(*given, **options)
        self._opencl, self._activation = _Choice(opencl), fused.option

    def forward(self: Any, input: Any) -> Any:
        """y of a tensor on the CPU; in training the running statistics and their counter move."""
        check_tensor("input", input)
        self._check_input_dim(input)
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        kept = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if kept else None,
            self.running_var if kept else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            factor,
            self.eps,
            activation=self._activation,
            opencl=self._opencl.opencl,
        )

    def extra_repr(self: Any) -> str:
        more = f", activation={self._activation!r}" if self._activation is not None else ""
        return f"{super().extra_repr()}{more}"  # type: ignore[misc]


class BatchNorm1d(_Layer, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, computed by OpenCL: input (N, C) or (N, C, L).

    Arguments, attributes, state_dict and behaviour are torch.nn's, `device` and `dtype`, those of the parameters,
    among them: isinstance(layer, torch.nn.BatchNorm1d) holds. Two arguments by keyword are our own, activation and
    opencl, the device that computes, both as in :func:`batch_norm`. opencl is not pickled: a layer that is loaded
    computes on the default device of its process. Errors are those of :func:`batch_norm`, and torch.nn's ValueError
    for an input of another rank.
    """


class BatchNorm2d(_Layer, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, computed by OpenCL: input (N, C, H, W). All else as :class:`BatchNorm1d` has it."""


class BatchNorm3d(_Layer, torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, computed by OpenCL: input (N, C, D, H, W). All else as :class:`BatchNorm1d` has it."""


_OURS = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(module: Any, *, opencl: Device = None) -> Any:
    """Let OpenCL compute every torch.nn.BatchNorm1d, 2d and 3d of a module, in place; returns the module.

    Each layer stays the object that it is and becomes one of a class of oclbn's: parameters, which an optimizer may
    hold, buffers, hooks, modes and names stay, and whoever else holds the layer has the new one. A module that is
    itself such a layer is converted. opencl: as in :class:`BatchNorm1d`; layers that are oclbn's already keep theirs.

    Left as they are: layers of other classes, those that are derived from these among them, such as
    torch.nn.SyncBatchNorm, and lazy ones before their first call.

    ArrayTypeError: no torch.nn.Module. ParameterError: opencl is no choice of a device.
    """
    check_device(opencl)
    choice = _Choice(opencl)
    for layer in _layers(module):
        if (ours := _OURS.get(type(layer))) is not None:
            layer.__class__ = ours
            layer._opencl = choice
    return module


def revert(module: Any) -> Any:
    """Make every layer of oclbn's in a module the one of torch.nn's that it stands for, in place; returns the module.

    ArrayTypeError: no torch.nn.Module. ParameterError, and nothing changes: a layer has an activation, which torch.nn's
    would lose.
    """
    found = [(name, layer) for name, layer in _named(module) if type(layer) in _THEIRS]
    for name, layer in found:
        if layer._activation is not None:
            raise ParameterError(
                f"module has a layer {name or 'itself'!r} with activation={layer._activation!r}, which torch.nn's has "
                "not; a layer without one is wanted"
            )
    for _, layer in found:
        layer.__class__ = _THEIRS[type(layer)]
        for name in ("_opencl", "_activation"):
            layer.__dict__.pop(name, None)
    return module


def _layers(module: Any) -> list[Any]:
    return [layer for _, layer in _named(module)]


def _named(module: Any) -> list[tuple[str, Any]]:
    if not isinstance(module, torch.nn.Module):
        raise ArrayTypeError(f"module is of type {type(module).__name__}; a torch.nn.Module is wanted")
    return list(module.named_modules())
