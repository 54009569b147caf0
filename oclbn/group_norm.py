"""Group and layer normalization without state, by the kernels of batch normalization in groups.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias

mean and the population variance are those of one sample's group of channels (group normalization), or of the trailing
axes (layer normalization). scale and bias have a value for each channel, or for each element of the trailing axes.

Sources: Y. Wu, K. He, "Group Normalization", 2018 (arXiv:1803.08494); J. Ba, J. Kiros, G. Hinton, "Layer
Normalization", 2016 (arXiv:1607.06450). Arrays, order in memory and in time, and errors: as in oclbn.functional, whose
`bind` takes these functions as well. Results of x's shape have x's dtype, statistics and parameters are float32, and
float64 where x is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyopencl.array import Array

from oclbn.call import arguments, overlap, packed, values
from oclbn.call.calls import Call, Empty, Several
from oclbn.call.copying import copying
from oclbn.call.making import all_gathered, gathering_numbers, make
from oclbn.call.operating import operation
from oclbn.call.results import model_of, per_channel_results, queue_of, result_like, temporary
from oclbn.elements import numbers_of
from oclbn.errors import ParameterError, ShapeError
from oclbn.functional import accumulation
from oclbn.plan.words import Fusion

__all__ = ["group_norm", "group_norm_backward", "layer_norm", "layer_norm_backward"]

_FORWARD, _BACKWARD = Fusion(aux=2, apart=True), Fusion(aux=3, apart=True)
_PLAIN = Fusion(apart=True)
_PARAMETERS = ("scale", "bias")


@dataclass(frozen=True)
class _Sight:
    """How a tensor is seen as batches of channels, each of which has statistics of its own.

    shape: (*before, channels, own, *after), own being what of an axis belongs to a channel.
    """

    before: tuple[int, ...]
    channels: int
    own: int
    after: tuple[int, ...]
    axis: int  # of the tensor: the one that is split; -1: the tensor is rows, without gaps
    parameter_shape: tuple[int, ...]  # of scale and bias; those of rows are the same for all

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.before, self.channels, self.own, *self.after)

    @property
    def batches(self) -> int:
        """At least 1, of an empty tensor too."""
        return max(1, self.before[0])

    @property
    def parameters(self) -> int:
        """How many values scale and bias have."""
        return math.prod(self.parameter_shape)

    @property
    def in_rows(self) -> bool:
        return self.axis < 0

    def of(self, array: Array) -> Array:
        """The same memory, and the same events."""
        strides, axis = array.strides, self.axis
        if self.in_rows:
            size = array.dtype.itemsize
            strides = (self.channels * self.own * size, self.own * size, size)
        else:
            strides = (*strides[:axis], self.own * strides[axis], strides[axis], *strides[axis + 1 :])
        return _seen(array, self.shape, strides)

    def spread(self, x: Array, values: Array) -> tuple[Array, list[Call[Any]]]:
        """Parameters, a vector, as a tensor of this shape; where they repeat within rows, after a copy of them."""
        size, every = values.dtype.itemsize, math.prod(self.after)
        if self.in_rows:
            return _seen(values, self.shape, (0, 0, size)), []
        copies: list[Call[Any]] = []
        if every > 1:
            wide = temporary(x, (self.parameters, every), values.dtype)
            copies.append(copying(x, _seen(values, wide.shape, (size, 0)), wide))
            values = wide
        inner, strides = size, []
        for length in reversed(self.after):
            strides.append(inner)
            inner *= length
        along = (self.own * inner, inner, *reversed(strides))
        return _seen(values, self.shape, (*(0,) * len(self.before), *along)), copies


def _seen(array: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    seen: Array = array._new_with_changes(array.base_data, array.offset, shape=shape, strides=strides)
    return seen


@operation
def group_norm(
    x: Array,
    groups: int,
    /,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
    order: str = "K",
) -> Call[tuple[Array, Array, Array]]:
    """Normalise each group of channels of each sample with statistics of its own.

    x: (N, C, *spatial), samples on axis 0, channels on `axis`. groups: a divisor of C; neighbouring channels make up a
    group. scale, bias: C values, or None for 1 and 0. epsilon: at least 0. out: an array of x's shape for y, which must
    not overlap x. order: of y in memory where there is no out, "K" or "C".

    Returns (y, save_mean, save_invstd): y like x; the statistics have shape (N, groups), as group_norm_backward takes
    them. An empty batch gives an empty y. One value per group of a sample is a ShapeError.

    >>> import numpy as np
    >>> from oclbn import gpuarray
    >>> x = gpuarray.to_gpu(np.float32([[1.0, 3.0, 10.0, 30.0]]))
    >>> y, mean, invstd = group_norm(x, 2, epsilon=0.0)
    >>> print(y.get(), mean.get(), invstd.get())
    [[-1.  1. -1.  1.]] [[ 2. 20.]] [[1.  0.1]]
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    return _forward(x, _in_groups(x, axis, groups), {"scale": scale, "bias": bias}, epsilon, out, order)


@operation
def group_norm_backward(
    x: Array,
    dy: Array,
    groups: int,
    /,
    scale: Array | None = None,
    save_mean: Array | None = None,
    save_invstd: Array | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
    order: str = "K",
    affine: bool = True,
    scale_grad: Array | None = None,
    bias_grad: Array | None = None,
    grad_scale: float = 1.0,
    grad_momentum: float = 0.0,
) -> Call[tuple[Array, Array | None, Array | None]]:
    """Gradients with respect to x, scale and bias.

    With x' = (x - save_mean) * save_invstd and means over a sample's group: dx = save_invstd * (dy * scale - mean(dy *
    scale) - x' * mean(dy * scale * x')); dscale = sum(dy * x') and dbias = sum(dy) over all but the channels.

    x, dy, groups, scale, axis: as of group_norm, which returns save_mean and save_invstd. out: for dx; it may be dy
    itself, and must overlap nothing else. affine: False, and dscale and dbias are None, and not computed. scale_grad,
    bias_grad, grad_scale, grad_momentum: as batch_norm_backward takes them.

    Returns (dx, dscale, dbias).
    """
    arguments.tensor("x", x)
    axis = arguments.axis_of(axis, x)
    given = {"scale": scale, "scale_grad": scale_grad, "bias_grad": bias_grad}
    saved = {"save_mean": save_mean, "save_invstd": save_invstd}
    numbers = {"grad_scale": grad_scale, "grad_momentum": grad_momentum}
    return _backward(x, dy, _in_groups(x, axis, groups), given, saved, numbers, out, order, affine)


@operation
def layer_norm(
    x: Array,
    axes: int = 1,
    /,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
    out: Array | None = None,
    order: str = "K",
) -> Call[tuple[Array, Array, Array]]:
    """Normalise over the trailing axes, each row of them with statistics of its own.

    x: of any rank from 2 on. axes: how many of the last axes are normalised over, from 1 to the rank. scale, bias: a
    value for each element of those axes, or None for 1 and 0. The rest is as group_norm takes it.

    Returns (y, save_mean, save_invstd): the statistics have shape (1, M), M being the product of the leading axes.

    >>> import numpy as np
    >>> from oclbn import gpuarray
    >>> x = gpuarray.to_gpu(np.float32([[1.0, 3.0], [10.0, 30.0]]))
    >>> print(layer_norm(x, epsilon=0.0)[0].get())
    [[-1.  1.]
     [-1.  1.]]
    """
    arguments.tensor("x", x)
    sight = _in_rows(x, axes)
    return _forward(x, sight, {"scale": scale, "bias": bias}, epsilon, out, order)


@operation
def layer_norm_backward(
    x: Array,
    dy: Array,
    axes: int = 1,
    /,
    scale: Array | None = None,
    save_mean: Array | None = None,
    save_invstd: Array | None = None,
    *,
    out: Array | None = None,
    order: str = "K",
    affine: bool = True,
    scale_grad: Array | None = None,
    bias_grad: Array | None = None,
    grad_scale: float = 1.0,
    grad_momentum: float = 0.0,
) -> Call[tuple[Array, Array | None, Array | None]]:
    """Gradients of layer_norm, as group_norm_backward has them; sums of dscale and dbias are over the leading axes.

    Returns (dx, dscale, dbias); without scale dscale and dbias have the shape of the trailing axes.
    """
    arguments.tensor("x", x)
    given = {"scale": scale, "scale_grad": scale_grad, "bias_grad": bias_grad}
    saved = {"save_mean": save_mean, "save_invstd": save_invstd}
    numbers = {"grad_scale": grad_scale, "grad_momentum": grad_momentum}
    return _backward(x, dy, _in_rows(x, axes), given, saved, numbers, out, order, affine)


def _in_groups(x: Array, axis: int, groups: Any) -> _Sight:
    """By samples and groups of channels; refused where there are no such groups, or one value in each."""
    groups = values.whole("groups", groups, 1)
    channels = x.shape[axis]
    if axis == 0:
        raise ParameterError("axis is 0; samples are on axis 0, so another one is wanted")
    if channels % groups:
        raise ParameterError(f"groups is {groups}; a divisor of {channels} is wanted, x's channels on axis {axis}")
    sight = _Sight(x.shape[:axis], groups, channels // groups, x.shape[axis + 1 :], axis, (channels,))
    return _wants_two(x, sight, x.size // max(1, x.shape[0] * groups))


def _in_rows(x: Array, axes: Any) -> _Sight:
    rank = len(x.shape)
    axes = values.whole("axes", axes, 1, rank)
    leading, last = x.shape[: rank - axes], x.shape[rank - axes :]
    own = math.prod(map(int, last))
    sight = _Sight((1,), math.prod(map(int, leading)), own, (), -1, last)
    return _wants_two(x, sight, own)


def _wants_two(x: Array, sight: _Sight, count: int) -> _Sight:
    if count == 1 and x.size:
        raise ShapeError(f"x has shape {x.shape}: one value has no variance; two at least are wanted to be normalised")
    return sight


def _checked(x: Array, sight: _Sight, given: Mapping[str, Any], saved: Mapping[str, Any], order: Any) -> None:
    arguments.order_of(order)
    axis = max(sight.axis, 0)
    words = f"x of shape {x.shape} has " + (
        f"{sight.own} in a row" if sight.in_rows else f"{sight.parameters} channels on axis {axis}"
    )
    arguments.per_channel(x, axis, given, given, elements=(sight.parameters, words))
    number = sight.batches * sight.channels
    words = f"x of shape {x.shape} has {number} " + ("rows" if sight.in_rows else "groups in all samples")
    arguments.per_channel(x, axis, saved, saved, saved, elements=(number, words))


def _forward(
    x: Array, sight: _Sight, given: dict[str, Array | None], epsilon: Any, out: Array | None, order: str
) -> Call[tuple[Array, Array, Array]]:
    _checked(x, sight, given, {}, order)
    numbers = {"epsilon": arguments.epsilon_of(epsilon, x)}
    if out is not None:
        reads = {name: one for name, one in {"x": x, **given}.items() if one is not None}
        overlap.exclusive({"out": arguments.like("out", out, x)}, reads)
    y = result_like(x, order) if out is None else out
    if not x.size:
        saved = [temporary(x, (sight.batches, sight.channels), numbers_of(x.dtype)) for _ in range(2)]
        return Empty((y, saved[0], saved[1]), saved, float("nan"))
    parameters, before = _spread(x, sight, given)
    source, result, copies, after = _rows(x, sight, x, y)
    tensors = dict(zip(("weights", "offsets"), parameters, strict=False))
    fusion = _FORWARD if parameters else _PLAIN
    main = make(
        "train_batches",
        sight.of(source),
        len(sight.before),
        {"scale": None, "bias": None, **tensors},
        numbers,
        out=sight.of(result),
        fusion=fusion,
        groups=sight.batches,
    )
    _, mean, invstd = main.results
    return Several((y, mean, invstd), [*before, *copies, main, *after])


def _backward(
    x: Array,
    dy: Array,
    sight: _Sight,
    given: dict[str, Array | None],
    saved: dict[str, Array | None],
    numbers: dict[str, Any],
    out: Array | None,
    order: str,
    affine: bool,
) -> Call[tuple[Array, Array | None, Array | None]]:
    arguments.like("dy", dy, x)
    _checked(x, sight, given, saved, order)
    numbers = gathering_numbers(x, **numbers)
    gathered = {name: given.pop(f"{name}_grad") for name in _PARAMETERS}
    for name, one in gathered.items():
        if one is not None and not affine:
            raise ParameterError(
                f"{name}_grad is given and affine is {affine}, so that there is nothing to gather; None is wanted"
            )
    shared = False
    writes = {f"{name}_grad": one for name, one in gathered.items() if one is not None}
    reads = {name: one for name, one in {"x": x, "dy": dy, **given, **saved}.items() if one is not None}
    if out is not None:
        writes["out"] = arguments.like("out", out, x)
        if shared := out.dtype == dy.dtype and overlap.same_elements(out, dy):
            del reads["dy"]
    overlap.exclusive(writes, reads)
    dx = result_like(x, order) if out is None else out
    like = packed.dense_model(x, given["scale"])
    if like is None:
        like = model_of(queue_of(x).context, sight.parameter_shape, numbers_of(x.dtype))
    made = per_channel_results(x, 0, like) if affine else []
    dscale, dbias = made or (None, None)
    options = {"scale": numbers["grad_scale"], "momentum": numbers["grad_momentum"]}
    into = {f"{name}_grad": one for name, one in gathered.items() if one is not None}
    new = dict(zip(_PARAMETERS, made, strict=False))
    start = {name: accumulation(one, new[name.removesuffix("_grad")], **options) for name, one in into.items()}

    def gathering(calls: list[Call[Any]]) -> Call[Any]:
        main = Several((dx, dscale, dbias), calls)
        return all_gathered(x, main, into, start) if into else main

    if not x.size:
        return gathering([Empty(None, made, 0.0)])
    vectors, calls = packed.vectors(x, {name: one for name, one in saved.items() if one is not None})
    source, slope, copies, after = _rows(x, sight, x, dx)
    wanted, more = _dense(x, sight, dy)
    calls += [*copies, *more]
    if affine:
        calls += _parameter_sums(x, sight, source, wanted, vectors, made)
    parameters, before = _spread(x, sight, {"scale": given["scale"]})
    weights = {"weights": parameters[0]} if parameters else {}
    fusion = _BACKWARD if parameters else _PLAIN
    main = make(
        "backward_batches",
        sight.of(source),
        len(sight.before),
        {"dy": sight.of(wanted), "scale": None, "bias": None, **weights, **vectors},
        {},
        out=sight.of(slope),
        fusion=fusion._replace(shared=True) if shared else fusion,
        groups=sight.batches,
    )
    return gathering([*calls, *before, main, *after])


def _spread(x: Array, sight: _Sight, given: Mapping[str, Array | None]) -> tuple[list[Array], list[Call[Any]]]:
    """Scale and bias as tensors, and what makes those; nothing where none of them is given."""
    if all(one is None for one in given.values()):
        return [], []
    found: list[Array] = []
    calls: list[Call[Any]] = []
    for name, one in given.items():
        if one is None:
            flat = temporary(x, (sight.parameters,), numbers_of(x.dtype))
            calls.append(Empty(None, [flat], 1.0 if name == "scale" else 0.0))
        else:
            own, copies = packed.vectors(x, {name: one})
            flat, calls = own[name], [*calls, *copies]
        tensor, copies = sight.spread(x, _seen(flat, (sight.parameters,), (flat.dtype.itemsize,)))
        found.append(tensor)
        calls += copies
    return found, calls


def _rows(
    x: Array, sight: _Sight, source: Array, result: Array
) -> tuple[Array, Array, list[Call[Any]], list[Call[Any]]]:
    """What is read and what is written as the sight wants them, with copies before and after."""
    read, before = _dense(x, sight, source)
    if not sight.in_rows or result.flags.c_contiguous:
        return read, result, before, []
    written = temporary(x, result.shape, result.dtype)
    return read, written, before, [copying(x, written, result)]


def _dense(x: Array, sight: _Sight, array: Array) -> tuple[Array, list[Call[Any]]]:
    if not sight.in_rows or array.flags.c_contiguous:
        return array, []
    made = temporary(x, array.shape, array.dtype)
    return made, [copying(x, array, made)]


def _parameter_sums(
    x: Array, sight: _Sight, source: Array, dy: Array, saved: Mapping[str, Array], made: list[Array]
) -> list[Call[Any]]:
    """What finds dscale and dbias: the normalised tensor, whose product with dy is summed by parameter."""
    numbers = numbers_of(x.dtype)
    xhat = temporary(x, x.shape, numbers, source.strides)
    options: dict[str, Any] = {"out": sight.of(xhat), "groups": sight.batches}
    calls: list[Call[Any]] = [make("given_batches", sight.of(source), len(sight.before), saved, {}, **options)]
    if dy.dtype != numbers:
        wide = temporary(x, dy.shape, numbers, dy.strides)
        calls.append(copying(x, dy, wide))
        dy = wide
    axis = sight.axis
    if sight.in_rows:
        size, axis = numbers.itemsize, 1
        xhat, dy = (_seen(one, (sight.channels, sight.own), (sight.own * size, size)) for one in (xhat, dy))
    zero = temporary(x, (sight.parameters,), numbers)
    rests = [temporary(x, (sight.parameters,), numbers) for _ in range(4)]
    places = [made[1], rests[0], made[0], *rests[1:]]
    given = {"dy": dy, "scale": None, "bias": None, "save_mean": zero, "save_invstd": None}
    return [*calls, Empty(None, [zero], 0.0), make("sums", xhat, axis, given, {}, places=places)]
