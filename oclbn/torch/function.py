"""The functions behind the layers: torch.nn.functional's batch_norm, with its first and second derivative."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyopencl as cl
import torch
from pyopencl.array import Array

from oclbn import functional
from oclbn.activations import Activation
from oclbn.call import fusing, values
from oclbn.device import DeviceInfo, default_queue, driver_errors, queue_for
from oclbn.elements import WANTED, is_narrow
from oclbn.errors import ArrayTypeError, DerivativeError, DtypeError, ParameterError, ShapeError
from oclbn.torch.loan import Loan, Way, dtype_of
from oclbn.torch.pool import pool

Device: TypeAlias = "str | cl.Device | DeviceInfo | cl.CommandQueue | None"

_F = TypeVar("_F", bound=Callable[..., Any])

_DOUBLE, _SINGLE = torch.float64, torch.float32
_HALVES = (torch.float16, torch.bfloat16)
_GREATEST = {kind: torch.finfo(kind).max for kind in (_DOUBLE, _SINGLE)}
_GATHERED = ("scale_grad", "bias_grad")  # what functional.batch_norm_backward writes sums to that are there
_LAST = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}  # axes of pictures and volumes with channels last, as they lie

# A compiled model calls what is wrapped in this as it is. What torch.compiler has for that takes seconds to import;
# PyTorch marks functions of its own with this, which leaves that to the first call.
_whole: Callable[[_F], _F] = getattr(torch, "_disable_dynamo", lambda function: function)

_queues = threading.local()
forced_way: Way | None = None  # for tests: how memory is lent, whatever the device could do


def queue_of(opencl: Device) -> cl.CommandQueue:
    """The queue for what a user has chosen: a queue itself, or this thread's on the device."""
    if isinstance(opencl, cl.CommandQueue):
        return opencl
    if opencl is None:
        return default_queue()
    known = _queues.__dict__.setdefault("of", {})
    found: cl.CommandQueue | None = known.get(opencl)
    if found is None:
        found = known[opencl] = queue_for(opencl)
    return found


def check_device(opencl: Any) -> None:
    """ParameterError for what can be no choice of a device. Nothing is asked of OpenCL: that is for the first call."""
    if opencl is not None and not isinstance(opencl, str | cl.Device | DeviceInfo | cl.CommandQueue):
        raise ParameterError(
            f"opencl is {values.kind_of(opencl)}; a name or index of a device as text, as `oclbn devices` prints "
            "them, a pyopencl.Device, a pyopencl.CommandQueue, or None is wanted"
        )


class _Call:
    """What all derivatives of one call share, beside tensors."""

    def __init__(
        self, queue: cl.CommandQueue, factor: float, epsilon: float, activation: Activation, *, training: bool
    ) -> None:
        self.queue, self.factor, self.epsilon, self.activation = queue, factor, epsilon, activation
        self.training = training
        self.recorded = False  # whether there is to be a derivative
        self.saved: Any = None  # in training: device arrays of the batch's mean and 1 / deviation
        self.constants: Any = None  # else: tensors of the mean and the variance, in numbers that are computed with

    def loan(self) -> Loan:
        return Loan(self.queue, forced_way)

    def given(self, loan: Loan) -> dict[str, Any]:
        """The statistics, as derivatives take them."""
        if self.training:
            mean, deviation = self.saved
            return {"save_mean": mean, "save_invstd": deviation, "training": True}
        mean, var = self.constants
        return {
            "save_mean": loan.read(mean),
            "save_invstd": loan.read(var),
            "training": False,
            "epsilon": self.epsilon,
        }


def _bound_once(function: _F) -> _F:
    """Keeps a function's signature, which PyTorch would look for in each call to bind arguments by."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


class _Normalise(torch.autograd.Function):
    """y of x, weight and bias."""

    @staticmethod
    @_bound_once
    def forward(x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, call: _Call) -> Any:
        y = _like(x)
        if not x.numel():
            return y
        with call.loan() as loan:
            lent: dict[str, Any] = {"scale": loan.read(weight), "bias": loan.read(bias), "out": loan.write(y)}
            lent |= {"epsilon": call.epsilon, "activation": call.activation.option}
            if call.training:
                state: dict[str, Any] = {
                    "running_mean": loan.change(running_mean),
                    "running_var": loan.change(running_var),
                }
                made = functional.batch_norm_train(loan.read(x), **lent, **state, factor=call.factor, guard=False)
                call.saved = made[1:]
            else:
                state = {"mean": loan.read(running_mean), "var": loan.read(running_var)}
                functional.batch_norm_infer(loan.read(x), **lent, **state)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias, running_mean, running_var, call = inputs
        if not call.recorded:
            return
        if not call.training:  # as they are now: a layer that is trained in between moves them in place
            numbers = _numbers(x.dtype)
            call.constants = tuple(t.detach().to(numbers, copy=True) for t in (running_mean, running_var))
        ctx.save_for_backward(x, weight, bias)
        ctx.call = call

    @staticmethod
    def backward(ctx: Any, dy: Any) -> tuple[Any, ...]:
        dx, dweight, dbias = _Gradient.apply(*ctx.saved_tensors, dy, ctx.call)
        wanted = ctx.needs_input_grad
        return (
            dx if wanted[0] else None,
            dweight if wanted[1] else None,
            dbias if wanted[2] else None,
            None,
            None,
            None,
        )


class _Gradient(torch.autograd.Function):
    """Gradients of x, weight and bias, of x, weight and dy."""

    @staticmethod
    @_bound_once
    def forward(x: Any, weight: Any, bias: Any, dy: Any, call: _Call) -> tuple[Any, ...]:
        dx = _like(x)
        if not x.numel():
            return dx, *(None if one is None else torch.zeros_like(one) for one in (weight, bias))
        with call.loan() as loan:
            lent: dict[str, Any] = {"out": loan.write(dx), **call.given(loan)}
            if call.activation.code:
                lent |= {"activation": call.activation.option, "bias": loan.read(bias)}
            sums = [None if one is None else torch.empty_like(one, dtype=_numbers(x.dtype)) for one in (weight, bias)]
            lent |= {name: loan.write(one) for name, one in zip(_GATHERED, sums, strict=True) if one is not None}
            functional.batch_norm_backward(loan.read(x), loan.read(dy), loan.read(weight), **lent)
        dweight, dbias = (
            None if one is None else one.to(like.dtype) for one, like in zip(sums, (weight, bias), strict=True)
        )
        return dx, dweight, dbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias, dy, call = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, dy)
        ctx.call = call

    @staticmethod
    def backward(ctx: Any, ddx: Any, ddweight: Any, ddbias: Any) -> tuple[Any, ...]:
        x, weight, _, dy = ctx.saved_tensors
        if ddx is None and ddweight is None and ddbias is None:
            return (None,) * 5
        if ctx.call.activation.code:
            raise DerivativeError(
                f"a second derivative is asked for of batch_norm with activation={ctx.call.activation.option!r}, which "
                "has the first one only; a layer without activation, and PyTorch's own activation behind it, has both"
            )
        gx, gdy, gweight = _Second.apply(x, weight, dy, ddx, ddweight, ddbias, ctx.call)
        wanted = ctx.needs_input_grad
        return gx if wanted[0] else None, gweight if wanted[1] else None, None, gdy if wanted[3] else None, None


class _Second(torch.autograd.Function):
    """Gradients with respect to x, dy and weight of a loss of what _Gradient makes."""

    @staticmethod
    @_bound_once
    def forward(x: Any, weight: Any, dy: Any, ddx: Any, ddweight: Any, ddbias: Any, call: _Call) -> tuple[Any, ...]:
        gx, gdy = _like(x), _like(x)
        if not x.numel():
            return gx, gdy, None if weight is None else torch.zeros_like(weight)
        with call.loan() as loan:
            numbers = _numbers(x.dtype)
            ddscale, ddshift = (loan.read(None if one is None else one.to(numbers)) for one in (ddweight, ddbias))
            made = functional.batch_norm_double_backward(
                loan.read(x),
                loan.read(dy),
                loan.read(weight),
                ddx=loan.read(ddx),
                ddscale=ddscale,
                ddbias=ddshift,
                out=loan.write(gx),
                gdy=loan.write(gdy),
                **call.given(loan),
            )
            gweight = _from(made[2], weight)
        return gx, gdy.to(dy.dtype), gweight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: there is no third derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise DerivativeError(
            "a third derivative of batch_norm is asked for; there are the first and the second. PyTorch's own layers, "
            "which oclbn.torch.revert(model) puts back, have more"
        )


@_whole
@driver_errors("batch_norm")
def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Any = None,
    opencl: Device = None,
) -> Any:
    """As torch.nn.functional.batch_norm, computed by OpenCL: y = (input - mean) / sqrt(var + eps) * weight + bias.

    input: a tensor (N, C) or (N, C, *spatial) on the CPU, of float32, float64, bfloat16 or float16, with any strides.
    running_mean, running_var, weight, bias: tensors of C elements, or None; of input's dtype, or of float32 where that
    is narrower. training: the batch's own statistics are used, and the running ones moved in place, by momentum (0 to
    1): running = (1 - momentum) * running + momentum * batch, the variance being the unbiased one. Where none is moved
    momentum is not looked at. eps: at least 0.

    activation: y = f(...), by the same kernel: a name, or a pair of a name and its number, as
    oclbn.functional.batch_norm_train takes it. opencl: the device, as oclbn.device.select takes it, or a queue; None:
    that of OCLBN_DEVICE, or else the best one. Each thread has a queue of its own; a queue that is given belongs to
    one thread at a time.

    Returns y, of input's dtype, in PyTorch's memory format: channels last where input lies so, else contiguous. There
    are a first and a second derivative, the latter without activation (else DerivativeError).

    ArrayTypeError: input is no tensor on the CPU. DtypeError, ShapeError, ParameterError: which argument. SizeError,
    DeviceError: from the driver. One value per channel in training: ShapeError, which is a ValueError as PyTorch's is.
    """
    fused = fusing.activation_of(activation)
    _check(input, running_mean, running_var, weight, bias, training=training)
    moved = training and not (running_mean is None and running_var is None)
    factor = values.number("momentum", momentum, 0.0, 1.0) if moved else 0.0
    epsilon = values.number("eps", eps, 0.0, _GREATEST[_numbers(input.dtype)])
    call = _Call(queue_of(opencl), factor, epsilon, fused, training=training)
    tensors = input, weight, bias
    call.recorded = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    return _Normalise.apply(*tensors, running_mean, running_var, call)


def _check(x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, *, training: bool) -> None:
    """The errors of batch_norm's tensors."""
    check_tensor("input", x)
    _check_place("input", x)
    if dtype_of(x.dtype) is None:
        raise DtypeError(f"input is of {x.dtype}; {WANTED} is wanted: input.float() makes a tensor of float32")
    if x.dim() < 2:
        raise ShapeError(f"input has shape {tuple(x.shape)}; (N, C) or (N, C, *spatial) is wanted")
    if training and x.numel() and x.numel() == x.shape[1]:
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: one value has no "
            "variance; in evaluation, as after layer.eval(), the running statistics are used"
        )
    vectors = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, vector in vectors.items():
        if vector is None:
            if not training and name.startswith("running"):
                raise ArrayTypeError(f"{name} is None; in evaluation a tensor of {x.shape[1]} elements is wanted")
            continue
        check_tensor(name, vector)
        _check_place(name, vector)
        if vector.numel() != x.shape[1]:
            raise ShapeError(f"{name} has {vector.numel()} elements; input has {x.shape[1]} channels on axis 1")
        if name.startswith("running") and vector.requires_grad and torch.is_grad_enabled():
            raise ArrayTypeError(f"{name} requires a gradient, which it has none of: {name}.detach() is wanted")
        if vector.dtype != x.dtype and not (x.dtype in _HALVES and vector.dtype == _SINGLE):
            also = " or torch.float32" if x.dtype in _HALVES else ""
            raise DtypeError(
                f"{name} is of {vector.dtype}; {x.dtype}{also} is wanted, as input is of {x.dtype}: "
                "layer.to(input.dtype) converts a layer, input.to(...) the input"
            )


def check_tensor(name: str, value: Any) -> None:
    """ArrayTypeError for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise ArrayTypeError(f"{name} is {values.kind_of(value)}; a torch.Tensor is wanted{_made_of(name, value)}")


def _made_of(name: str, value: Any) -> str:
    """How a tensor is made of an array that came instead, or nothing where it is none of numbers."""
    host = f"{name}.get()" if isinstance(value, Array) else name
    if not isinstance(value, np.ndarray | Array) or not (value.dtype.kind in "biuf" or is_narrow(value.dtype)):
        return ""
    if not value.dtype.isnative or value.dtype not in (np.float16, np.float32, np.float64):
        host = f"np.array({host}, np.float32)"
    elif isinstance(value, np.ndarray) and not _is_taken(value):
        host = f"np.array({host})"
    return f": torch.from_numpy({host}) makes one"


def _is_taken(array: np.ndarray[Any, Any]) -> bool:
    """Whether PyTorch takes an array's memory as it is, for which it must know its layout and may write to it."""
    return array.flags.writeable and all(step >= 0 and step % array.itemsize == 0 for step in array.strides)


def _check_place(name: str, tensor: Any) -> None:
    if tensor.device.type == "cpu" and tensor.layout == torch.strided:
        return
    place = str(tensor.device) if tensor.layout == torch.strided else f"{tensor.device}, of layout {tensor.layout}"
    parameter = name != "input"
    if tensor.device.type == "meta":
        advice = (
            "layer.to_empty(device='cpu') gives a layer's memory, which layer.load_state_dict(state) then fills, or "
            "layer.reset_parameters()"
            if parameter
            else "PyTorch's layers, which oclbn.torch.revert(model) puts back, find shapes without it"
        )
        raise ArrayTypeError(f"{name} is a tensor on {place}, without data; one on the CPU is wanted: {advice}")
    wanted = "one of the CPU's with strides is wanted, which OpenCL reads where it lies"
    if tensor.device.type == "cpu":
        raise ArrayTypeError(f"{name} is a tensor on {place}; {wanted}: {name}.to_dense() makes one")
    advice = "layer.cpu() moves those of a layer" if parameter else f"{name}.cpu() makes one"
    raise ArrayTypeError(
        f"{name} is a tensor on {place}; {wanted}: {advice}. For another device's tensors PyTorch has layers of its "
        "own, which oclbn.torch.revert(model) puts back"
    )


def _numbers(dtype: Any) -> Any:
    """What is computed with."""
    return _DOUBLE if dtype == _DOUBLE else _SINGLE


def _from(array: Any, like: Any) -> Any:
    """A gradient as a tensor like its parameter; None for None."""
    return None if like is None else torch.from_numpy(array.get()).reshape(like.shape).to(like.dtype)


def _like(x: Any) -> Any:
    """An uninitialised tensor of x's shape and dtype in PyTorch's memory format: channels last, or else contiguous."""
    shape = tuple(x.shape)
    axes = _LAST.get(len(shape)) if _lies_last(x) else None
    strides, step = [0] * len(shape), 1
    for axis in axes or range(len(shape) - 1, -1, -1):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return pool.tensor(shape, tuple(strides), x.dtype)


def _lies_last(x: Any) -> bool:
    """Whether PyTorch takes x for one with channels last: by its strides, and never where they say both."""
    axes = _LAST.get(x.dim())
    if axes is None or x.is_contiguous() or x.stride(1) == 0:
        return False
    reached = 0
    for axis in axes:
        step = x.stride(axis)
        if step < reached or (axis == 0 and reached == x.stride(1)):
            return False
        reached = step * max(x.shape[axis], 1)
    return True
