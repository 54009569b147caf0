"""Layers that take the place of torch.nn's, and what swaps those of a model."""

from __future__ import annotations

from typing import Any

import pyopencl as cl
import torch

from oclbn.activations import SLOPES
from oclbn.call import fusing
from oclbn.device import DeviceInfo
from oclbn.errors import ArrayTypeError, ParameterError, ParameterWarning, warn_caller
from oclbn.torch.function import Device, batch_norm, check_device, check_tensor

_SETTINGS = ("activation", "opencl")


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

    @property
    def activation(self) -> str | tuple[str, float] | None:
        """What follows in the same kernel; it can be set, and None takes it away."""
        return self._activation  # type: ignore[no-any-return]

    @activation.setter
    def activation(self, value: Any) -> None:
        self._activation = fusing.activation_of(value).option

    @property
    def opencl(self) -> Device:
        """The device that was chosen, None for the default one; it can be set, for this layer alone."""
        return self._opencl.opencl

    @opencl.setter
    def opencl(self, value: Device) -> None:
        check_device(value)
        self._opencl = _Choice(value)

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch.nn's, which would make a module that is set a child, and leave a property of its name as it is."""
        if name in _SETTINGS:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

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
        activation = f", activation={self._activation!r}" if self._activation is not None else ""
        opencl = f", opencl={_shown(self.opencl)}" if self.opencl is not None else ""
        return f"{super().extra_repr()}, oclbn{activation}{opencl}"  # type: ignore[misc]


def _shown(opencl: Device) -> str:
    """A choice of a device in a few words, as text that chooses it where there is one."""
    if isinstance(opencl, cl.CommandQueue):
        return f"a queue on {opencl.device.name.strip()!r}"
    if isinstance(opencl, cl.Device):
        return repr(opencl.name.strip())
    return repr(opencl.title if isinstance(opencl, DeviceInfo) else opencl)


class BatchNorm1d(_Layer, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, computed by OpenCL: input (N, C) or (N, C, L).

    Arguments, attributes, state_dict and behaviour are torch.nn's, `device` and `dtype`, those of the parameters,
    among them: isinstance(layer, torch.nn.BatchNorm1d) holds. Two arguments by keyword are our own, activation and
    opencl, the device that computes, both as in :func:`batch_norm`; as attributes they can be read and set, and are
    checked then. opencl is not pickled: a layer that is loaded computes on the default device of its process. momentum
    and eps are torch.nn's attributes, which each call checks. Errors are those of :func:`batch_norm`, and torch.nn's
    ValueError for an input of another rank.
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
_MODULES = {  # by the names of activations, with what they are made from beside a slope
    "relu": ("ReLU", ""),
    "relu6": ("ReLU6", ""),
    "leaky_relu": ("LeakyReLU", ""),
    "elu": ("ELU", ""),
    "silu": ("SiLU", ""),
    "sigmoid": ("Sigmoid", ""),
    "tanh": ("Tanh", ""),
    "gelu": ("GELU", ""),
    "gelu_tanh": ("GELU", "'tanh'"),
    "hardswish": ("Hardswish", ""),
    "softplus": ("Softplus", ""),
}
_TOLD = 5  # layers that a warning names
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(module: Any, *, opencl: Device = None) -> Any:
    """Let OpenCL compute every torch.nn.BatchNorm1d, 2d and 3d of a module, in place; returns the module.

    Each layer stays the object that it is and becomes one of a class of oclbn's: parameters, which an optimizer may
    hold, buffers, hooks, modes and names stay, and whoever else holds the layer has the new one. A module that is
    itself such a layer is converted. opencl: as in :class:`BatchNorm1d`; layers that are oclbn's already keep theirs.

    Left as they are: layers of other classes, those that are derived from these among them, such as
    torch.nn.SyncBatchNorm, and lazy ones before their first call. Where that leaves nothing to convert, and no layer
    is oclbn's already, a ParameterWarning says so.

    ArrayTypeError: no torch.nn.Module. ParameterError: opencl is no choice of a device.
    """
    check_device(opencl)
    choice = _Choice(opencl)
    named = _named(module)
    for _, layer in named:
        if (ours := _OURS.get(type(layer))) is not None:
            layer.__class__ = ours
            layer._opencl = choice
    if not any(isinstance(layer, _Layer) for _, layer in named):
        _warn_of_nothing(named)
    return module


def _warn_of_nothing(named: list[tuple[str, Any]]) -> None:
    """What convert has to say of a module without layers to convert: which it has left, and what can be done."""
    left = [(name, layer) for name, layer in named if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    told = [f"{name or 'itself'!r} ({type(layer).__name__})" for name, layer in left[:_TOLD]]
    words = "module has no torch.nn.BatchNorm1d, BatchNorm2d or BatchNorm3d: nothing is converted"
    if left:
        more = f" and {len(left) - _TOLD} more" if len(left) > _TOLD else ""
        words += f". Left as they are: {', '.join(told)}{more}"
    lazy = [isinstance(layer, torch.nn.modules.lazy.LazyModuleMixin) for _, layer in left]
    if any(lazy):
        words += ". A lazy layer can be converted after its first call"
    if not all(lazy):
        words += (
            ". In the place of another one that is to compute as torch.nn.BatchNorm2d does (in a single process "
            "SyncBatchNorm does), put oclbn.torch.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, "
            "layer.affine, layer.track_running_stats), 1d or 3d for other inputs, with bias=False where the old one is "
            "made so, and give it the old one's values by load_state_dict(layer.state_dict())"
        )
    warn_caller(words, ParameterWarning)


def revert(module: Any) -> Any:
    """Make every layer of oclbn's in a module the one of torch.nn's that it stands for, in place; returns the module.

    ArrayTypeError: no torch.nn.Module. ParameterError, and nothing changes: a layer has an activation, which torch.nn's
    would lose; the message says which module of torch.nn does the same behind it.
    """
    found = [(name, layer) for name, layer in _named(module) if type(layer) in _THEIRS]
    for name, layer in found:
        if layer._activation is not None:
            raise ParameterError(
                f"module has a layer {name or 'itself'!r} with activation={layer._activation!r}, which torch.nn's has "
                f"not; a layer without one is wanted: set layer.activation = None and put {_behind(layer)} behind it"
            )
    for _, layer in found:
        layer.__class__ = _THEIRS[type(layer)]
        for name in ("_opencl", "_activation"):
            layer.__dict__.pop(name, None)
    return module


def _behind(layer: Any) -> str:
    """The module of torch.nn that does what a layer's activation does, as Python makes it."""
    fused = fusing.activation_of(layer._activation)
    name, given = _MODULES[fused.name]
    return f"torch.nn.{name}({fused.slope if fused.name in SLOPES else given})"


def _named(module: Any) -> list[tuple[str, Any]]:
    if not isinstance(module, torch.nn.Module):
        raise ArrayTypeError(f"module is of type {type(module).__name__}; a torch.nn.Module is wanted")
    return list(module.named_modules())
