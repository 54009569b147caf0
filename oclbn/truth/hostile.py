"""Data that breaks batch normalizations, the same on every run: for `oclbn check` and the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from oclbn.activations import NONE, Activation
from oclbn.elements import numbers_of, range_of

Host = NDArray[Any]
_ROOM = 0.9  # of a type's largest number, for data that would go beyond it
Maker = Callable[[np.random.Generator, tuple[int, ...], int], Host]  # generator, shape, axis of the channels


def per_channel(shape: tuple[int, ...], axis: int) -> int:
    """Elements of one channel."""
    return math.prod(shape) // shape[axis]


def along(values: ArrayLike, shape: tuple[int, ...], axis: int) -> Host:
    """C values in the shape that broadcasts along the channel axis."""
    places = [1] * len(shape)
    places[axis] = -1
    return np.asarray(values).reshape(places)


def others(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The axes that a channel's elements run over."""
    return tuple(i for i in range(len(shape)) if i != axis % len(shape))


@dataclass(frozen=True)
class Data:
    """Arguments of a call on the host, in the element types that the device gets."""

    x: Host
    dy: Host
    scale: Host
    bias: Host
    running_mean: Host
    running_var: Host
    bad: tuple[int, ...] = ()  # channels whose statistics are not finite
    saved: tuple[Host, Host] | None = None  # mean and 1 / deviation for the gradients; None: as the operation has them
    result: np.dtype[Any] | None = None  # the element type of y and dx; None: x's
    activation: Activation = NONE
    residual: Host | None = None  # added before the activation
    output: Host | None = None  # what the derivative is made from; None: from x
    second: bool = False  # the residual's gradient is wanted as well
    weights: Host | None = None  # of x's shape: what z is multiplied by, and
    offsets: Host | None = None  # what is added then
    loose: float = 1.0  # how many times its bound an activation's argument may be off: of others' results
    ddx: Host | None = None  # for the second derivative: gradients with respect to dx, dscale and dbias
    ddscale: Host | None = None
    ddbias: Host | None = None
    groups: int = 1  # of samples, on axis 0: each is a batch of its own, and saved statistics have numbers for each

    @property
    def written(self) -> np.dtype[Any]:
        """The element type of results that have x's shape."""
        return self.x.dtype if self.result is None else self.result

    def widened(self) -> Data:
        """The same, whose results are not rounded to 16 bits."""
        return replace(self, result=self.scale.dtype)

    @property
    def good(self) -> list[int]:
        return [c for c in range(self.scale.size) if c not in self.bad]

    def batches(self, axis: int) -> list[Data]:
        """Each group by itself; they have one state, which is none of theirs alone."""
        tensors = ("x", "dy", "residual", "output", "weights", "offsets")
        parts = {name: np.array_split(one, self.groups) for name in tensors if (one := getattr(self, name)) is not None}
        saved = [np.reshape(one, (self.groups, -1)) for one in self.saved or ()]
        found = []
        for number in range(self.groups):
            own: dict[str, Any] = {name: part[number] for name, part in parts.items()}
            finite = np.isfinite(own["x"].astype(np.float64)).all(axis=others(own["x"].shape, axis))
            bad = tuple(channel for channel in self.bad if not finite[channel])
            mean = tuple(one[number] for one in saved) if saved else None
            found.append(replace(self, **own, groups=1, bad=bad, saved=mean))
        return found

    def pushed(self, axis: int) -> Data:
        """The same with what the second derivative takes; ddx goes with x and dy, so that all its terms count."""
        rng = np.random.default_rng([1, *self.x.shape])
        numbers, channels = self.scale.dtype, self.scale.size
        with np.errstate(all="ignore"):
            x = self.x.astype(np.float64)
            mean, std = (found(x, axis=others(x.shape, axis), keepdims=True) for found in (np.mean, np.std))
            beside = np.clip(np.nan_to_num((x - mean) / np.where(std > 0, std, 1.0)), -9.0, 9.0)
        ddx = rng.standard_normal(x.shape) + 0.5 * beside + 0.25 * np.clip(self.dy.astype(np.float64), -9.0, 9.0) - 0.2
        return replace(
            self,
            ddx=ddx.astype(self.dy.dtype),
            ddscale=rng.uniform(-2.0, 2.0, channels).astype(numbers),
            ddbias=rng.standard_normal(channels).astype(numbers),
        )

    def without(self, names: Collection[str]) -> Data:
        """The same where a scale or a bias is left out: 1 and 0."""
        scale = np.ones_like(self.scale) if "scale" in names else self.scale
        return replace(self, scale=scale, bias=np.zeros_like(self.bias) if "bias" in names else self.bias)


def gaussian(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    del axis
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class Offset:
    """Channels with mean/std of +ratio and -ratio in turn."""

    ratio: float
    std: float = 1.0

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
        signs = np.where(np.arange(shape[axis]) % 2, -1.0, 1.0)
        return self.std * (rng.standard_normal(shape) + self.ratio * along(signs, shape, axis))


def constant(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    del rng
    values = np.resize([0.0, 1.0 / 3.0, -7.1, 1e4 / 3.0, 1e-3], shape[axis])
    return np.broadcast_to(along(values, shape, axis), shape).copy()


def wide(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    return rng.standard_normal(shape) * along(np.logspace(-3, 3, shape[axis]), shape, axis)


def large(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    del axis
    return rng.standard_normal(shape) * 1e15  # a sum of squares of 1e6 of them is still a float32


def outlier(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    """The first row lies far off: wrong for whoever takes it as the shift of all."""
    x = rng.standard_normal(shape)
    np.moveaxis(x, axis, 0)[:, 0] += 1e4
    return x


def trend(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    """The mean wanders along the batch: what is merged differs."""
    first = others(shape, axis)[0]
    return rng.standard_normal(shape) + along(np.linspace(0.0, 1e3, shape[first]), shape, first)


def balanced(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    """Large numbers of either sign that cancel in the mean."""
    del axis
    return rng.standard_normal(shape) + 1e4 * rng.choice([-1.0, 1.0], size=shape)


def two_values(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    """What rounding takes from a sum of alike numbers has one sign and piles up."""
    del axis
    return rng.choice([0.1, 0.7], size=shape)


def rare(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
    """Nearly all values alike, as in a sparse feature: roundings have one sign once a rare one is in the sum."""
    del axis
    return 0.3 + 1.1 * (rng.uniform(size=shape) < 0.01)


@dataclass(frozen=True)
class Spoiled:
    """Good channels with one among them that holds a single bad value."""

    value: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
        x = rng.standard_normal(shape)
        np.moveaxis(x, axis, 0)[shape[axis] // 2].flat[-1] = self.value
        return x


@dataclass(frozen=True)
class Denormal:
    """Numbers below the least normal one of the element type."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Host:
        del axis
        return rng.standard_normal(shape)


# By name: what `oclbn check` calls them.
MAKERS: dict[str, Maker] = {
    "N(0,1)": gaussian,
    "mean is 1e2 std": Offset(1e2),
    "mean is 1e4 std": Offset(1e4),
    "mean is 1e6 std": Offset(1e6),
    "mean is 1e6 std and odd": Offset(1_000_003.0),  # partial sums round to multiples of 8 and more
    "mean is 1e6 std of 1e-3": Offset(1e6, std=1e-3),
    "constant channels": constant,
    "channels from 1e-3 to 1e3": wide,
    "squares near the largest number": large,
    "denormal numbers": Denormal(),
    "first row is an outlier": outlier,
    "trend along the batch": trend,
    "large numbers that cancel": balanced,
    "two values only": two_values,
    "one NaN": Spoiled(np.nan),
    "one inf": Spoiled(np.inf),
}


def make(
    shape: tuple[int, ...], axis: int, dtype: DTypeLike = np.float32, maker: Maker = gaussian, *, seed: int = 0
) -> Data:
    """Arguments for a tensor of this shape, the same on every run.

    What the element type cannot hold is brought nearer to zero, all alike.
    """
    rng = np.random.default_rng([seed, *shape, axis % len(shape)])
    dtype = np.dtype(dtype)
    channels = shape[axis]
    x, numbers = _fitting(maker(rng, shape, axis), range_of(dtype).max), numbers_of(dtype)
    if isinstance(maker, Denormal):
        x *= 0.1 * range_of(dtype).tiny
    return Data(
        x=x.astype(dtype),
        dy=(rng.standard_normal(shape) + 0.1).astype(dtype),
        scale=rng.uniform(-2.0, 2.0, channels).astype(numbers),
        bias=rng.standard_normal(channels).astype(numbers),
        running_mean=rng.standard_normal(channels).astype(numbers),
        running_var=rng.uniform(0.5, 2.0, channels).astype(numbers),
        bad=(channels // 2,) if isinstance(maker, Spoiled) else (),
    )


def _fitting(x: Host, most: float) -> Host:
    """The same where a type holds numbers up to `most`, with some room; infinities and NaN stay."""
    largest = float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0))
    return x if largest < most else x * (_ROOM * most / largest)
