"""Batch normalizations as files of weights hold them, whatever framework has written them. NumPy alone.

A reader gives a `Content`, a writer takes layers and gives a `Written`; both tell what had no place. Arrays keep the
elements of the file, bit by bit.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.elements import WANTED, kind, range_of
from oclbn.errors import MissingLayerError, WeightsError

Host = NDArray[Any]
ARRAYS = ("scale", "bias", "mean", "var")
FIXED = {"scale": 1.0, "bias": 0.0}  # what a missing array stands for
_NAMES_SHOWN = 8
_MOST_NAMED = 3  # layers of which the same is said
_MOST_BATCHES = 2**63 - 1
_COUNTED = re.compile(r"_\d+$")  # of names that frameworks give, counting on from model to model


@dataclass(frozen=True, eq=False)
class Layer:
    """One batch normalization of a file.

    scale, bias, mean, var: C elements each, of float32, float64, float16 or bfloat16; None where the file has none. A
    missing scale or bias is fixed at 1 or 0; without mean and var there are no running statistics. var is what a root
    is taken of after epsilon was added, whatever the file holds. epsilon: None where the file does not say. factor: the
    weight of the new batch in a running average, whatever the file calls momentum; None where it does not say.
    cumulative: all batches weigh alike. batches: how many the running statistics have seen; None where nobody counted.
    convention: of the framework whose layer it is, by its name in oclbn.conventions, as "pytorch".
    """

    name: str
    scale: Host | None = None
    bias: Host | None = None
    mean: Host | None = None
    var: Host | None = None
    epsilon: float | None = None
    factor: float | None = None
    cumulative: bool = False
    batches: int | None = None
    convention: str = "pytorch"

    def __post_init__(self) -> None:
        """WeightsError unless the arrays are vectors of C numbers each, mean and var are both there or neither, and
        numbers are such as a layer may have.
        """
        shapes = {name: array.shape for name, array in self.arrays.items()}
        if not shapes:
            raise WeightsError(f"{self}: it has no scale, no bias and no running statistics")
        if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise WeightsError(f"{self}: shapes are {told}; one number per channel is wanted in each")
        for name, array in self.arrays.items():
            if kind(array.dtype) is None:
                raise WeightsError(f"{self}: {name} holds {array.dtype}; {WANTED} is wanted")
        for name, number, most in (("epsilon", self.epsilon, math.inf), ("factor", self.factor, 1.0)):
            if number is not None and not (0 <= number <= most and math.isfinite(number)):
                wanted = "0 to 1" if name == "factor" else "0 on"
                raise WeightsError(f"{self}: {name} is {number}; a finite number from {wanted} is wanted")
        if self.batches is not None and not (
            isinstance(self.batches, int | np.integer) and 0 <= self.batches <= _MOST_BATCHES
        ):
            raise WeightsError(f"{self}: batches is {self.batches!r}; a whole number from 0 to 2**63 - 1 is wanted")
        if (self.mean is None) != (self.var is None):
            lacking = "mean" if self.mean is None else "var"
            raise WeightsError(f"{self}: it has no {lacking}; running statistics are a mean and a variance")

    def __str__(self) -> str:
        return f"layer {self.name!r}"

    @property
    def arrays(self) -> dict[str, Host]:
        """Those of scale, bias, mean and var that are there."""
        return {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}

    @property
    def channels(self) -> int:
        return int(next(iter(self.arrays.values())).size)

    def check_running(self, where: str) -> None:
        """WeightsError where there are no running statistics, for a format that has no batch normalization without."""
        if self.mean is None:
            raise WeightsError(f"{self}: it has no running statistics, and a mean and a variance are wanted in {where}")

    def complete(self, where: str) -> Layer:
        """With a scale of ones and a bias of zeros where it has none, for a format that wants all; as check_running."""
        self.check_running(where)
        assert self.mean is not None
        return self._with(dict.fromkeys(FIXED, self.mean))

    def _with(self, wanted: Mapping[str, Host]) -> Layer:
        """With the arrays that it has not and that are wanted, of types as these: what a missing one stands for."""
        missing = [role for role in FIXED if role in wanted and getattr(self, role) is None]
        made: dict[str, Any] = {role: np.full_like(wanted[role], FIXED[role]) for role in missing}
        return replace(self, **made) if made else self


@dataclass(frozen=True)
class Note:
    """What a file could not say, or a reader had to make up: of one layer, or with "" of the whole file.

    lost: something was there and is not there any more.
    """

    layer: str
    text: str
    lost: bool = False

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}" if self.layer else self.text


def gathered(told: Sequence[tuple[str, str]], layers: int) -> list[str]:
    """Sentences, each once, behind the names that it is said of: of many the first few, or that it is all `layers`."""
    by_text: dict[str, list[str]] = {}
    for name, text in told:
        by_text.setdefault(text, []).append(name)
    lines = []
    for text, names in by_text.items():
        more = len(names) - _MOST_NAMED
        shown = ", ".join(name or "(no name)" for name in names[:_MOST_NAMED]) + (
            f" and {more} more" if more > 0 else ""
        )
        if more > 0 and len(set(names)) == layers:
            shown = f"all {layers} layers"
        lines.append(text if names == [""] else f"{shown}: {text}")
    return lines


@dataclass(frozen=True, eq=False)
class Content(Mapping[str, Layer]):
    """The batch normalizations of a file by name, in the file's order.

    ordered: whether that may be the network's, as far as this file tells; its format may have none at all.
    """

    format: str
    source: str  # what to call the file in messages
    layers: tuple[Layer, ...]
    notes: tuple[Note, ...] = ()
    ordered: bool = True
    by_name: dict[str, Layer] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = {layer.name: layer for layer in self.layers}
        if len(found) < len(self.layers):
            names = [layer.name for layer in self.layers]
            twice = next(name for name in names if names.count(name) > 1)
            raise WeightsError(f"{self.source} has two layers of the name {twice!r}")
        object.__setattr__(self, "by_name", found)

    def __getitem__(self, name: str) -> Layer:
        if name not in self.by_name:
            near = difflib.get_close_matches(str(name), self.by_name, 1, 0.6)
            shown = ", ".join(map(repr, list(self.by_name)[:_NAMES_SHOWN])) or "none at all"
            more = ", ..." if len(self.by_name) > _NAMES_SHOWN else ""
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise MissingLayerError(f"{self.source} has no layer {name!r}; {meant}it has {shown}{more}")
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


@dataclass(frozen=True)
class Written:
    """What a writer has made: the bytes of each file by its name, the one that was asked for first; and its notes."""

    files: Mapping[str, bytes]
    notes: tuple[Note, ...] = ()


def fitted(layer: Layer, allowed: Sequence[np.dtype[Any]], title: str) -> tuple[Layer, list[Note]]:
    """The layer with arrays of these types, narrowest first: wider where nothing is lost, else rounded to the widest.

    title: what the format is called in the notes that tell of values which have changed.
    """
    made: dict[str, Any] = {}
    notes: list[Note] = []
    for role, array in layer.arrays.items():
        made[role], more = fitted_array(layer.name, role, array, allowed, f"the widest type of {title}")
        notes += more
    return replace(layer, **made), notes


def fitted_array(
    name: str, role: str, array: Host, allowed: Sequence[np.dtype[Any]], why: str
) -> tuple[Host, list[Note]]:
    """The same of one array of the layer `name`. why: stands behind the type in a note, as "the type of X"."""
    if array.dtype in allowed:
        return array, []
    for dtype in allowed:
        with np.errstate(over="ignore", invalid="ignore"):
            turned = array.astype(dtype)
            same = same_bits(turned.astype(array.dtype), array)
        if same:
            return turned, []
    with np.errstate(invalid="ignore"):
        infinite = np.isfinite(array) & ~np.isfinite(turned)
    beyond = f"; {int(infinite.sum())} are beyond {range_of(turned.dtype).max:.3g}" if infinite.any() else ""
    text = f"{role} is rounded from {array.dtype} to {turned.dtype}, {why}{beyond}"
    return turned, [Note(name, text, lost=True)]


def as_float64(array: Host) -> NDArray[np.float64]:
    """The same numbers; NaN may be one that signals, of which NumPy would warn."""
    with np.errstate(invalid="ignore"):
        return array.astype(np.float64)


def same_bits(one: Host, other: Host) -> bool:
    """Whether two arrays have the same type, shape and bits, NaN and zeros' signs among them."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tobytes() == other.tobytes()


def matched(layers: Sequence[Layer], there: Sequence[Layer], into: Path) -> list[tuple[Layer, Layer]]:
    """Each layer with that of the model `into` whose values it is to replace: by name, or else all in order.

    A layer without scale or bias gets what that stands for where the other one has it: nothing of it is left behind.
    WeightsError: neither the names nor the number fit, a layer would go to another place in order than by its name, or
    a channel count differs.
    """
    by_name = {layer.name: layer for layer in there}
    if all(layer.name in by_name for layer in layers):
        pairs = [(layer, by_name[layer.name]) for layer in layers]
    elif len(layers) == len(there):
        pairs = list(zip(layers, there, strict=True))
        _check_crossed(pairs, by_name, into)
    else:
        lacking = next(layer.name for layer in layers if layer.name not in by_name)
        shown = ", ".join(map(repr, list(by_name)[:_NAMES_SHOWN])) or "none"
        raise WeightsError(
            f"{into} has {len(there)} batch normalizations, none of them of the name {lacking!r}, and {len(layers)} "
            f"are to be written: layers go by name, or by order where there are as many; it has {shown}"
        )
    for layer, target in pairs:
        if layer.channels != target.channels:
            raise WeightsError(
                f"{layer} has {layer.channels} channels; {target.name!r} of {into}, whose values it would replace, has "
                f"{target.channels}"
            )
    return [(layer._with(target.arrays), target) for layer, target in pairs]


def placed(layer: Layer, target: Layer, into: Path) -> tuple[dict[str, Host], list[Note]]:
    """Those of a layer's arrays that its `target` in a model has, of the types that these have; notes of the others."""
    made: dict[str, Host] = {}
    notes: list[Note] = []
    for role, array in layer.arrays.items():
        if (there := target.arrays.get(role)) is None:
            notes.append(Note(layer.name, f"{role} has no place in {into.name}", lost=True))
            continue
        why = f"the type of that array of {into.name}"
        made[role], more = fitted_array(layer.name, role, array, [there.dtype], why)
        notes += more
    return made, notes


def untold(
    layer: Layer,
    owner: str,
    *,
    epsilon: float,
    factor: float,
    called: str = "epsilon",
    momentum_of: str = "old",
    alike: str = "",
) -> Iterator[Note]:
    """What a file of weights alone has no place for, where it differs from what layers of its framework have.

    owner: to whom it is to be given, as "Keras' layer". epsilon, factor: of such a layer by default. called: its name
    for epsilon. momentum_of: whether its momentum weighs the "old" average or the "new" batch. alike: what it takes
    where all batches weigh alike; "": nothing.
    """
    if layer.epsilon is not None and layer.epsilon != epsilon:
        text = f"epsilon is {layer.epsilon:g}: give {called}={layer.epsilon:g} to {owner}"
        yield Note(layer.name, text, lost=True)
    if layer.cumulative:
        what = f"give {alike} to {owner}" if alike else f"{owner} knows a fixed momentum alone"
        yield Note(layer.name, f"all batches weigh alike: {what}", lost=True)
    elif layer.factor is not None and layer.factor != factor:
        momentum = layer.factor if momentum_of == "new" else 1 - layer.factor
        text = f"a new batch weighs {layer.factor:g}: give momentum={momentum:.9g} to {owner}"
        yield Note(layer.name, text, lost=True)


def _check_crossed(pairs: Sequence[tuple[Layer, Layer]], by_name: Mapping[str, Layer], into: Path) -> None:
    """WeightsError where order and those names that are in the model contradict each other.

    Names that differ by the number at their end may: batch_normalization_1 is a model's second layer or its first one.
    """
    for layer, target in pairs:
        if (
            layer.name in by_name
            and layer.name != target.name
            and _COUNTED.sub("", layer.name) != _COUNTED.sub("", target.name)
        ):
            lacking = next(other.name for other, _ in pairs if other.name not in by_name)
            raise WeightsError(
                f"{into} has no layer {lacking!r}, and in order {layer.name!r}, which it has, would go to "
                f"{target.name!r}: write all layers by the names that it has"
            )
