"""Darknet's .cfg: sections of options, and what each layer has in the .weights file, in its order.

A file of weights has no names and no sizes; they follow from the options and from the shape of what goes into a layer,
which is followed from [net] through every section. Facts: Darknet's sources (pjreddie's and AlexeyAB's), read_cfg,
load_weights_upto and the parse function of each layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from oclbn.errors import WeightsError
from oclbn.files.formats import cursor

_MOST_TEXT = 1 << 22  # bytes; the largest networks have some ten thousand
_LONGEST_LINE = 1 << 16  # letters
_MOST_SECTIONS = 100_000
_MOST_DIGITS = 9
_LARGEST = 1 << 40  # channels, width or height

# Names that mean the same.
_ALIASES = {
    "conv": "convolutional",
    "deconv": "deconvolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
}
_ALIASES |= {"soft": "softmax", "lrn": "normalization", "network": "net", "local_avg": "local_avgpool"}
_ALIASES |= {"silence": "empty", "reorg3d": "reorg"}


class Unknown(Exception):
    """What a layer has in the weights, or what comes out of it, does not follow from what is known."""


@dataclass(frozen=True)
class Section:
    """A section: its kind, its options, the number of its layer as others name it, and its line."""

    kind: str
    options: dict[str, str] = field(repr=False)
    number: int
    line: int

    def __str__(self) -> str:
        return f"layer {self.number}, [{self.kind}] of line {self.line}"

    def whole(self, key: str, default: int = 0) -> int:
        """A whole number among the options: what follows its digits is no more of it, as for C's atoi."""
        text = self.options.get(key, str(default))
        found = re.match(r"[+-]?\d+", text)
        if not found or len(found[0]) > _MOST_DIGITS:
            raise WeightsError(f"{key} of {self} is {text[:40]!r}; a whole number is wanted")
        return int(found[0])

    def positive(self, key: str, default: int = 1) -> int:
        number = self.whole(key, default)
        if number <= 0:
            raise WeightsError(f"{key} of {self} is {number}; 1 or more is wanted")
        return number

    def numbers(self, key: str) -> list[int]:
        """Layers that are named by their numbers, or by how far back they are; as numbers."""
        found = [int(text) for text in re.findall(r"[+-]?\d{1,9}", self.options.get(key, ""))]
        found = [number + self.number if number < 0 else number for number in found]
        if not found or not all(0 <= number < self.number for number in found):
            raise WeightsError(f"{key} of {self} is {self.options.get(key, '')[:40]!r}; layers before it are wanted")
        return found


@dataclass(frozen=True)
class Shape:
    """What comes out of a layer: channels, and width and height where they are known."""

    channels: int
    width: int | None = 1
    height: int | None = 1

    def flat(self, section: Section) -> int:
        """How many numbers of an example go into a layer that looks at all of them."""
        if self.width is None or self.height is None:
            raise Unknown("[net] does not state width and height, or a layer between makes of them what is not known")
        return self.channels * self.width * self.height

    def sized(self, channels: int, size: Callable[[int, bool], int]) -> Shape:
        """Of other channels, and another width (True) and height (False) where they are known."""
        width = None if self.width is None else max(0, size(self.width, True))
        return Shape(channels, width, None if self.height is None else max(0, size(self.height, False)))


@dataclass(frozen=True)
class Unit:
    """A part of a layer with vectors in the weights, one after the other: roles, "" for what is no batch norm's.

    suffix: what part it is, where a layer has several.
    """

    parts: tuple[tuple[str, int], ...]
    suffix: str = ""

    @property
    def normalizes(self) -> bool:
        return any(role == "mean" for role, _ in self.parts)


def sections(path: Path) -> list[Section]:
    """All sections but the first one, [net], which is number -1 and comes first."""
    found: list[Section] = []
    for number, line in enumerate(cursor.text_of(path, _MOST_TEXT).split("\n"), 1):
        if len(line) > _LONGEST_LINE:
            raise WeightsError(f"{path}: line {number} has {len(line):,} letters")
        text = re.sub(r"[ \t\r]", "", line)
        if text.startswith("["):
            kind = text.strip("[]").lower()
            if len(found) >= _MOST_SECTIONS:
                raise WeightsError(f"{path} has more than {_MOST_SECTIONS:,} sections")
            found.append(Section(_ALIASES.get(kind, kind), {}, len(found) - 1, number))
        elif text and text[0] not in "#;" and found:
            key, equals, value = text.partition("=")
            if equals:
                found[-1].options.setdefault(key, value)  # the first one counts
    if not found or found[0].kind != "net":
        raise WeightsError(f"{path} is no network of Darknet: its first section is to be [net]")
    return found


def units(found: list[Section], original: bool = False) -> Iterator[tuple[Section, list[Unit]]]:
    """Each layer and what it has in the weights. original: in pjreddie's code, else in AlexeyAB's fork of it.

    Unknown: at a layer whose vectors, or whose shape, do not follow.
    """
    net = found[0]
    sides = [net.whole(key) or None for key in ("width", "height")]
    channels = net.whole("channels")
    if channels < 0:
        raise WeightsError(f"channels of {net} are {channels}")
    shape = Shape(channels, *sides) if channels or any(sides) else Shape(net.whole("inputs"))
    shapes: list[Shape] = []
    layers = _LAYERS | _ORIGINAL if original else _LAYERS
    for section in found[1:]:
        if section.kind == "batchnorm":
            roles = ("scale", "mean", "var") if original else ("bias", "scale", "mean", "var")
            made = [Unit(tuple((role, shape.channels) for role in roles))]
        elif section.kind in layers:
            made, shape = layers[section.kind](section, shape, shapes)
        elif section.kind not in _PASSING:
            raise Unknown("a layer of no kind that Darknet has")
        else:
            made = []
        if section.whole("dontload"):
            made = []
        if section.whole("dontloadscales"):
            made = [replace(one, parts=tuple(part for part in one.parts if part[0] in ("", "bias"))) for one in made]
        if not 0 <= max(shape.channels, shape.width or 0, shape.height or 0) <= _LARGEST or shape.channels < 0:
            raise WeightsError(f"{section} gives {shape.channels} x {shape.width} x {shape.height} numbers")
        yield section, made
        # Those that name a smoothed layer are told of its shape before that, and get its numbers from after it.
        unsure = section.kind == "convolutional" and section.whole("antialiasing")
        shapes.append(replace(shape, width=None, height=None) if unsure else shape)


Made = tuple[list[Unit], Shape]


def _convolved(section: Section, inputs: int, outputs: int, suffix: str = "", groups: int = 1, size: int = 1) -> Unit:
    """A convolution: biases, batch normalization, weights."""
    normal = section.whole("batch_normalize") or section.whole("cbn")
    roles = ("bias", "scale", "mean", "var") if normal else ("bias",)
    return Unit((*((role, outputs) for role in roles), ("", inputs // groups * outputs * size * size)), suffix)


def _joined(section: Section, inputs: int, outputs: int, suffix: str = "") -> Unit:
    """All outputs of all inputs: biases, weights, and behind them the batch normalization."""
    rest = tuple((role, outputs) for role in ("scale", "mean", "var")) if section.whole("batch_normalize") else ()
    return Unit((("bias", outputs), ("", inputs * outputs), *rest), suffix)


def _padding(section: Section, size: int, default: int = 0) -> int:
    return size // 2 if section.whole("pad") else section.whole("padding", default)


def _strides(section: Section) -> tuple[int, int]:
    both = section.positive("stride")
    return tuple(one if (one := section.whole(key, both)) > 0 else both for key in ("stride_x", "stride_y"))  # type: ignore[return-value]


def _convolutional(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs, size, groups = section.positive("filters"), section.positive("size"), section.positive("groups")
    across, down = _strides(section)
    padding = _padding(section, size)
    smooth = section.whole("antialiasing")  # the convolution makes no strides then; the blur after it does

    def out(length: int, wide: bool) -> int:
        stride = across if wide else down
        if not smooth:
            return (length + 2 * padding - size) // stride + 1
        blur, around = (2, 0) if smooth == 2 else (3, 2)
        return (length + 2 * padding - size + 1 + around - blur) // stride + 1

    shared = "share_index" in section.options
    made = [] if shared else [_convolved(section, shape.channels, outputs, groups=groups, size=size)]
    return made, shape.sized(outputs, out)


def _deconvolutional(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs, size, stride = section.positive("filters"), section.positive("size"), section.positive("stride")
    padding = _padding(section, size)
    made = [_convolved(section, shape.channels, outputs, size=size)]
    return made, shape.sized(outputs, lambda length, _: (length - 1) * stride + size - 2 * padding)


def _connected(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs = section.positive("output")
    return [_joined(section, shape.flat(section), outputs)], Shape(outputs)


def _local(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs, size, stride = section.positive("filters"), section.positive("size"), section.positive("stride")
    less = 1 if section.whole("pad") else size
    made = shape.sized(outputs, lambda length, _: (length - less) // stride + 1)
    all_of_it = made.flat(section)
    return [Unit((("", all_of_it), ("", size * size * shape.channels * all_of_it)))], made


def _crnn(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    hidden, outputs = section.positive("hidden"), section.positive("output")
    size, groups = section.positive("size", 3), section.positive("groups")
    sizes = {"input": (shape.channels, hidden), "self": (hidden, hidden), "output": (hidden, outputs)}
    made = [_convolved(section, *both, suffix, groups, size) for suffix, both in sizes.items()]
    return made, replace(shape, channels=outputs)


def _original_crnn(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    options = section.options | {"hidden": section.options.get("hidden_filters", "1"), "size": "3", "groups": "1"}
    options |= {"output": section.options.get("output_filters", "1")}
    return _crnn(replace(section, options=options), shape, shapes)


def _original_rnn(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    """With as many hidden units as outputs, whatever is stated."""
    options = section.options | {"hidden": section.options.get("output", "1")}
    return _rnn(replace(section, options=options), shape, shapes)


def _conv_lstm(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs, size, groups = section.positive("output"), section.positive("size", 3), section.positive("groups")
    short = section.whole("bottleneck")
    sizes = dict.fromkeys(("vf", "vi", "vo"), outputs) if section.whole("peephole") else {}
    sizes |= {"wf": outputs * 2} if short else dict.fromkeys(("wf", "wi", "wg", "wo"), outputs)
    sizes |= dict.fromkeys(("uf", "ui", "ug", "uo"), shape.channels)
    made = [_convolved(section, inputs, outputs, suffix, groups, size) for suffix, inputs in sizes.items()]
    return made, replace(shape, channels=outputs)


def _rnn(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    hidden, outputs = section.positive("hidden"), section.positive("output")
    sizes = {"input": (shape.flat(section), hidden), "self": (hidden, hidden), "output": (hidden, outputs)}
    return [_joined(section, *both, suffix) for suffix, both in sizes.items()], Shape(outputs)


def _lstm(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    """Gates by number: the forks write them in other orders, but those of the state first."""
    outputs, inputs = section.positive("output"), shape.flat(section)
    return [_joined(section, outputs if i < 4 else inputs, outputs, str(i)) for i in range(8)], Shape(outputs)


def _gru(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs, inputs = section.positive("output"), shape.flat(section)
    if inputs != outputs and section.whole("batch_normalize"):
        raise Unknown("one fork of Darknet writes the gates of its input first, the other those of its state")
    return [_joined(section, inputs if i < 3 else outputs, outputs, str(i)) for i in range(6)], Shape(outputs)


def _pool(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    across, down = _strides(section)
    size = section.positive("size", section.positive("stride"))
    if section.whole("maxpool_depth"):
        return [], replace(shape, channels=section.positive("out_channels"))
    padding = section.whole("padding", size - 1)
    return [], shape.sized(
        shape.channels, lambda length, wide: (length + padding - size) // (across if wide else down) + 1
    )


def _reorg(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    stride = section.positive("stride")
    if section.whole("reverse"):
        return [], shape.sized(shape.channels // stride**2, lambda length, _: length * stride)
    return [], shape.sized(shape.channels * stride**2, lambda length, _: length // stride)


def _route(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    taken = [shapes[number] for number in section.numbers("layers")]
    if any((one.width, one.height) != (taken[0].width, taken[0].height) for one in taken):
        return [], Shape(sum(one.channels for one in taken), None, None)
    return [], replace(taken[0], channels=sum(one.channels for one in taken) // section.positive("groups"))


def _shortcut(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    kind = section.options.get("weights_type", "none")
    count = len(section.numbers("from")) + 1
    counts = {"per_feature": count, "per_layer": count, "per_channel": count * shape.channels}
    return ([Unit((("", counts[kind]),))] if kind in counts else []), shape


def _implicit(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    outputs, atoms = section.positive("filters", 128), section.positive("atoms")
    return [Unit((("", outputs * atoms),))], Shape(outputs, 1, atoms)


def _upsample(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    stride = section.whole("stride", 2)
    if stride == 0:
        raise WeightsError(f"stride of {section} is 0")
    return [], shape.sized(shape.channels, lambda length, _: length * stride if stride > 0 else length // -stride)


def _crop(section: Section, shape: Shape, shapes: list[Shape]) -> Made:
    return [], Shape(shape.channels, section.positive("crop_width"), section.positive("crop_height"))


_LAYERS: dict[str, Callable[[Section, Shape, list[Shape]], Made]] = {
    "convolutional": _convolutional,
    "deconvolutional": _deconvolutional,
    "connected": _connected,
    "local": _local,
    "crnn": _crnn,
    "conv_lstm": _conv_lstm,
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
    "maxpool": _pool,
    "local_avgpool": _pool,
    "avgpool": lambda section, shape, shapes: ([], Shape(shape.channels)),
    "reorg": _reorg,
    "route": _route,
    "shortcut": _shortcut,
    "implicit": _implicit,
    "upsample": _upsample,
    "crop": _crop,
    "scale_channels": lambda section, shape, shapes: ([], shapes[section.numbers("from")[0]]),
    "history": lambda section, shape, shapes: (
        [],
        replace(shape, channels=shape.channels * section.positive("history_size", 4)),
    ),
}
_ORIGINAL = {"crnn": _original_crnn, "rnn": _original_rnn}
FORKED = frozenset({"batchnorm", *_ORIGINAL})  # kinds that the forks have other vectors for
_PASSING = frozenset(  # what comes out has the shape of what goes in, and there are no weights
    {
        *("activation", "contrastive", "cost", "detection", "dropout", "empty", "gaussian_yolo", "iseg", "l2norm"),
        *("logistic", "normalization", "region", "sam", "softmax", "yolo"),
    }
)


def chain(channels: list[int]) -> tuple[str, list[list[int]]]:
    """The text of a network of 1x1 convolutions with these channels each, all normalized; and of each the weights.

    As many groups as go: of equal channels a convolution is the identity, else each output takes one channel over.
    """
    lines = ["[net]", "batch=1", "width=2", "height=2", f"channels={channels[0]}"]  # of one pixel a fork divides by 0
    weights = []
    before = channels[0]
    for count in channels:
        groups = math.gcd(before, count)
        lines += ["", "[convolutional]", "batch_normalize=1", f"filters={count}", "size=1", "stride=1", "pad=0"]
        lines += [f"groups={groups}", "activation=linear"]
        weights.append([before // groups, count])
        before = count
    return "\n".join([*lines, ""]), weights
