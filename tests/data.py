"""Shapes and data that break batch normalizations, with the reason of each row in its id."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, DTypeLike, NDArray

Host = NDArray[Any]


def _row(shape: tuple[int, ...], why: str, axis: int = 1) -> Any:
    return pytest.param(shape, axis, id=f"{why} {'x'.join(map(str, shape))}" + (f" axis {axis}" if axis != 1 else ""))


# (shape, axis): a channel's elements lie in rows of `inner` = product of the extents behind the axis.
ROWS = [
    _row((2, 3, 1, 1), "one pixel"),
    _row((2, 1), "the least that trains"),
    _row((7, 5, 13), "all prime"),
    _row((5, 7, 3, 2), "inner below any vector"),
    _row((6, 1, 5, 5), "one channel"),
    _row((2, 4097, 2), "more channels than a power of two"),
    _row((1, 7, 29), "one sample"),
    _row((1, 1, 100_003), "one long row"),
    _row((3, 2, 100_003), "few long rows"),
    _row((2, 3, 256, 257), "channels to be split"),
    _row((1025, 3, 2), "many short rows"),
    _row((3, 5, 7, 11, 13), "five axes"),
    _row((2, 3, 2, 3, 2, 3, 2), "seven axes"),
    _row((9, 6, 1), "inner 1 behind the channels"),
    _row((4, 9, 2), "inner 2"),
    _row((4, 9, 3), "inner 3"),
    _row((4, 9, 7), "just below a vector of 8"),
    _row((4, 9, 8), "a vector of 8"),
    _row((4, 9, 9), "just above a vector of 8"),
    _row((4, 9, 15), "just below a vector of 16"),
    _row((4, 9, 16), "a vector of 16"),
    _row((4, 9, 17), "just above a vector of 16"),
    _row((4, 9, 31), "just below 32"),
    _row((4, 9, 33), "just above 32"),
    _row((4, 9, 63), "just below a work-group of 64"),
    _row((4, 9, 65), "just above a work-group of 64"),
    _row((16, 10, 7, 7), "ResNet's last, inner 49"),
    _row((8, 12, 14, 14), "ResNet, inner 196"),
    _row((150, 37, 7), "a run, in chunks, nothing even"),
    _row((9, 41, 2, 2), "a run below a vector per channel"),
    _row((8, 300, 49), "runs of whole vectors and a shorter last one"),
    _row((67, 2, 3, 3), "a run that is a vector and a scrap"),
    _row((11, 5, 1000), "the longest rows of a run"),
    _row((4, 6, 56, 56), "ResNet's first, inner 3136"),
    _row((5, 3, 4095), "just below 4096"),
    _row((5, 3, 4097), "just above 4096"),
    _row((3, 40, 5), "rows of the first axis", axis=0),
    _row((3, 2), "rows of the first axis, least", axis=0),
    _row((3, 4, 5, 6), "channels in the middle", axis=2),
    _row((3, 4, 5, 6), "channels in the middle, from the end", axis=-2),
]
COLUMNS = [
    _row((2, 64), "batch of two"),
    _row((3, 1), "one feature"),
    _row((1797, 64), "the digits"),
    _row((17, 7), "columns below a vector of 8"),
    _row((33, 8), "columns of a vector"),
    _row((31, 9), "columns just above a vector"),
    _row((64, 4097), "columns beyond a power of two"),
    _row((100_003, 1), "one long column"),
    _row((20_011, 5), "few long columns"),
    _row((4099, 33), "long columns, a scrap beside a power of two"),
    _row((2, 7, 7, 10), "channels last", axis=-1),
    _row((3, 5, 1), "channels last, one channel", axis=-1),
    _row((4, 14, 14, 65), "channels last, a scrap", axis=3),
    _row((2, 2, 3, 4, 5), "channels last, volumes", axis=4),
    _row((1, 1, 2048, 3), "channels last, few channels", axis=-1),
]
SHAPES = ROWS + COLUMNS
FEW_SHAPES = [
    _row((7, 5, 13), "all prime"),
    _row((4, 6, 28, 28), "images"),
    _row((2, 3, 20_011), "few long rows"),
    _row((70, 37, 3, 3), "runs"),
    _row((300, 33), "columns"),
    _row((20_011, 5), "few long columns"),
    _row((3, 5, 7, 20), "channels last", axis=-1),
    _row((3, 40, 5), "rows of the first axis", axis=0),
]
ONE_PER_CHANNEL = [
    _row((1, 5), "one row"),
    _row((1, 5, 1, 1), "one pixel of one sample"),
    _row((1, 1, 1, 4), "one pixel, channels last", axis=-1),
    _row((4, 1), "one column", axis=0),
]
EMPTY = [
    _row((0, 3, 4, 4), "no samples"),
    _row((0, 3), "no rows"),
    _row((2, 3, 0), "no pixels"),
    _row((0, 4, 4, 3), "no samples, channels last", axis=-1),
]


def channels_of(shape: tuple[int, ...], axis: int) -> int:
    return shape[axis]


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
    """Arguments of a call on the host, in the element type that the device gets."""

    x: Host
    dy: Host
    scale: Host
    bias: Host
    running_mean: Host
    running_var: Host
    bad: tuple[int, ...] = ()  # channels whose statistics are not finite

    @property
    def good(self) -> list[int]:
        return [c for c in range(self.scale.size) if c not in self.bad]


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


NASTY = [
    pytest.param(gaussian, id="N(0,1)"),
    pytest.param(Offset(1e2), id="mean is 1e2 std"),
    pytest.param(Offset(1e4), id="mean is 1e4 std"),
    pytest.param(Offset(1e6), id="mean is 1e6 std"),
    pytest.param(Offset(1_000_003.0), id="mean is 1e6 std and odd"),  # partial sums round to multiples of 8 and more
    pytest.param(Offset(1e6, std=1e-3), id="mean is 1e6 std of 1e-3"),
    pytest.param(constant, id="constant channels"),
    pytest.param(wide, id="channels from 1e-3 to 1e3"),
    pytest.param(large, id="squares near the largest number"),
    pytest.param(Denormal(), id="denormal numbers"),
    pytest.param(outlier, id="first row is an outlier"),
    pytest.param(trend, id="trend along the batch"),
    pytest.param(balanced, id="large numbers that cancel"),
    pytest.param(two_values, id="two values only"),
    pytest.param(Spoiled(np.nan), id="one NaN"),
    pytest.param(Spoiled(np.inf), id="one inf"),
]


def make(
    shape: tuple[int, ...], axis: int, dtype: DTypeLike = np.float32, maker: Any = gaussian, *, seed: int = 0
) -> Data:
    """Arguments for a tensor of this shape, the same on every run."""
    rng = np.random.default_rng([seed, *shape, axis % len(shape)])
    dtype = np.dtype(dtype)
    channels = shape[axis]
    x = maker(rng, shape, axis)
    if isinstance(maker, Denormal):
        x *= 0.1 * float(np.finfo(dtype).tiny)
    return Data(
        x=x.astype(dtype),
        dy=(rng.standard_normal(shape) + 0.1).astype(dtype),
        scale=rng.uniform(-2.0, 2.0, channels).astype(dtype),
        bias=rng.standard_normal(channels).astype(dtype),
        running_mean=rng.standard_normal(channels).astype(dtype),
        running_var=rng.uniform(0.5, 2.0, channels).astype(dtype),
        bad=(channels // 2,) if isinstance(maker, Spoiled) else (),
    )
