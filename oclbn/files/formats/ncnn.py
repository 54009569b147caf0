"""ncnn: a network as text (.param), and its weights (.bin) beside it, one blob after the other and nothing between.

Where the blobs of a BatchNorm begin is known only from the sizes of those before it, so that every layer that has any
must be known here: `_BLOBS`. A BatchNorm has four of C float32 each, slope, mean, variance and bias; its parameters
are 0, the channels, and 1, epsilon, which is 0 where it is not stated. ncnn takes a root of exactly 0 for 0.0001, which
is read as the variance of that root. Facts: ncnn's sources, ModelBin and the load_model of each layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files import whole
from oclbn.files.formats import cursor
from oclbn.files.layers import Content, Host, Layer, Note, Written, fitted, matched

_MAGIC, _BINARY = b"7767517", (7767517).to_bytes(4, "little")
_ROLES = ("scale", "mean", "var", "bias")  # the order of the blobs
_FLOAT = np.dtype(np.float32)
_LEAST = np.float32(1e-4) ** 2  # the variance that ncnn computes with where variance and epsilon are 0
_EPSILON = 1e-5
_MOST_TEXT = 1 << 22  # bytes; the largest networks have some hundred thousand
_LONGEST_LINE = 1 << 18  # letters
_LONGEST_NAME = 255  # bytes
_HALF, _BYTE, _SCALED = 0x01306B47, 0x000D4B38, 0x0002C056  # what a flag says of the elements after it

Parameters = dict[int, str]


@dataclass(frozen=True)
class _Node:
    """A layer of the text: its line, and the parameters of that."""

    line: int
    kind: str
    name: str
    parameters: Parameters

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of line {self.line + 1}"

    def number(self, key: int, default: int = 0) -> int:
        """A whole number among the parameters."""
        text = self.parameters.get(key, str(default))
        try:
            return int(text[:15])
        except ValueError:
            raise WeightsError(f"parameter {key} of {self} is {text!r}; a whole number is wanted") from None


@dataclass(frozen=True)
class _Blob:
    """So many numbers; flagged: four bytes before them tell of their type, else they are float32."""

    count: int
    flagged: bool = False


class _Unknown(Exception):
    """What a layer has in the .bin is not known."""


def claims(path: Path, head: bytes) -> bool:
    return bool(re.match(rb"\s*7767517\s", head)) or head.startswith(_BINARY)


def read(path: Path) -> Content:
    layers, notes = [], []
    for node, begin, values in _found(path):
        layer, more = _layer(path, node, begin, values)
        layers.append(layer)
        notes += more
    return Content("ncnn", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    companion = _companion(Path(name)).name
    if companion == name:
        raise WeightsError(f"{name}: the weights of an ncnn network are beside it in that file: name the .param file")
    if into is not None:
        text, image, notes = _replaced(layers, into)
        return Written({name: text, companion: image}, tuple(notes))
    notes, lines, blobs, taken = [], [], [], set[str]()
    for layer in layers:
        fit, more = _fitted(layer, "ncnn")
        called = _called(layer.name)
        if called != layer.name:
            more.append(Note(layer.name, f"it is called {called!r}: ncnn's names have 1 to 255 letters and no spaces"))
        if called in taken:
            raise WeightsError(f"{name}: two layers are called {called!r}")
        taken.add(called)
        epsilon = layer.epsilon
        if epsilon is None:
            epsilon = _EPSILON
            more.append(Note(layer.name, f"its epsilon is not known: {epsilon:g} is written"))
        notes += more
        lines.append(f"Input {called}_in 0 1 {called}_in 0=1 1=1 2={fit.channels}")
        lines.append(f"BatchNorm {called} 1 1 {called}_in {called}_out 0={fit.channels} 1={_number(epsilon, layer)}")
        blobs += [fit.arrays[role].tobytes() for role in _ROLES]
    lines = [_MAGIC.decode(), f"{len(lines)} {len(lines)}", *lines, ""]
    return Written({name: "\n".join(lines).encode(), companion: b"".join(blobs)}, tuple(notes))


def _companion(path: Path) -> Path:
    return path.with_suffix(".bin")


def _called(name: str) -> str:
    """A name as ncnn's text can have it, with room for what is added to it for the values beside the layer."""
    kept = re.sub(r"\s", "_", name.replace("\0", "_")) or "bn"
    return kept.encode()[: _LONGEST_NAME - len("_out")].decode(errors="ignore")


def _number(epsilon: float, layer: Layer) -> str:
    """A number as ncnn reads it: 15 letters, with a point."""
    if not 0 <= epsilon < 1e38:
        raise WeightsError(f"{layer}: epsilon is {epsilon:g}; 0 or more is wanted in ncnn")
    short = f"{epsilon:e}"
    return short if np.float32(short) == np.float32(epsilon) else f"{epsilon:.8e}"


def _fitted(layer: Layer, title: str, epsilon: float | None = None) -> tuple[Layer, list[Note]]:
    """With all four arrays in float32; and what is lost by that, or has no place. epsilon: instead of the layer's."""
    fit, notes = fitted(layer.complete("ncnn"), [_FLOAT], title)
    if layer.cumulative:
        notes.append(Note(layer.name, "all batches weigh alike, of which ncnn knows nothing", lost=True))
    elif layer.factor is not None:
        notes.append(Note(layer.name, f"a new batch weighs {layer.factor:g}, of which ncnn knows nothing", lost=True))
    used = layer.epsilon if layer.epsilon is not None else epsilon
    if used == 0 and (zeros := int((fit.arrays["var"] == 0).sum())):
        text = f"var is 0 in {zeros} channels, where ncnn computes with {_LEAST:g}, as epsilon is 0 as well"
        notes.append(Note(layer.name, text, lost=True))
    return fit, notes


def _replaced(layers: Sequence[Layer], into: Path) -> tuple[bytes, bytes, list[Note]]:
    """The text and the weights of a model with other values in the place of its own."""
    nodes = {node.name: (node, begin) for node, begin, _ in _found(into)}
    lines = cursor.text_of(into, _MOST_TEXT).split("\n")
    image = bytearray(_companion(into).read_bytes())
    notes: list[Note] = []
    for layer, there in matched(layers, read(into).layers, into):
        node, begin = nodes[there.name]
        fit, more = _fitted(layer, "ncnn", there.epsilon)
        notes += more
        values = b"".join(fit.arrays[role].tobytes() for role in _ROLES)
        image[begin : begin + len(values)] = values
        if layer.epsilon is not None and layer.epsilon != there.epsilon:
            stated, line = f"1={_number(layer.epsilon, layer)}", lines[node.line]
            new, found = re.subn(r"(?<=\s)1=\S+", stated, line)
            lines[node.line] = new if found else f"{line.rstrip()} {stated}"
    return "\n".join(lines).encode(), bytes(image), notes


def _layer(path: Path, node: _Node, begin: int, values: Host) -> tuple[Layer, list[Note]]:
    text = node.parameters.get(1, "0")
    try:
        epsilon = float(text[:15])
    except ValueError:
        epsilon = math.nan
    if not math.isfinite(epsilon):
        raise WeightsError(f"{path}: epsilon of {node} is {text!r}; a number is wanted")
    arrays: dict[str, Any] = dict(zip(_ROLES, values.reshape(4, -1).copy(), strict=True))
    notes = []
    zeros = arrays["var"] == 0
    if epsilon == 0 and zeros.any():
        arrays["var"][zeros] = _LEAST
        text = f"its variance is 0 in {int(zeros.sum())} channels: {_LEAST:g} is read, with which ncnn computes there"
        notes.append(Note(node.name, text))
    return Layer(node.name, **arrays, epsilon=epsilon, convention="ncnn"), notes


def _found(path: Path) -> Iterator[tuple[_Node, int, Host]]:
    """Each BatchNorm, where its blobs begin in the .bin, and the numbers of all four."""
    nodes = list(_nodes(path))
    last = max((place for place, node in enumerate(nodes) if node.kind == "BatchNorm"), default=-1)
    if last < 0:
        return
    companion = _companion(path)
    whole.check_source(companion)
    if not companion.exists():
        raise WeightsError(f"{path} has its weights in {companion.name}, which is not beside it")
    size = companion.stat().st_size
    with companion.open("rb") as file:
        place = 0
        for number, node in enumerate(nodes):
            try:
                blobs = _blobs(node)
            except _Unknown as error:
                if number > last:
                    return
                raise WeightsError(
                    f"{path}: what {node} has in {companion.name} is not known here ({error}), so that the place of "
                    f"{nodes[last]} after it is not known either"
                ) from None
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}") from None
            begin = place
            for blob in blobs:
                place = _end(file, place, blob, node, companion, size)
            if node.kind == "BatchNorm":
                file.seek(begin)
                yield node, begin, np.frombuffer(file.read(place - begin), "<f4").astype(_FLOAT)
    if place != size:
        raise WeightsError(
            f"{companion} has {size:,} bytes, and {path} says that the weights are {place:,}: they do not fit"
        )


def _end(file: BinaryIO, place: int, blob: _Blob, node: _Node, source: Path, size: int) -> int:
    """Where a blob ends that begins there."""
    if blob.count <= 0:
        raise WeightsError(f"{source}: {node} has a blob of {blob.count} numbers")
    length = 4 * blob.count
    if blob.flagged:
        file.seek(place)
        flag = int.from_bytes(file.read(4), "little")
        length = {_HALF: 2 * blob.count, _BYTE: blob.count, _SCALED: length}.get(
            flag, 256 * 4 + blob.count if flag else length
        )
        length = 4 + -length // 4 * -4
    if place + length > size:
        raise WeightsError(f"{source} is cut off: {node} reaches to byte {place + length:,}, and it has {size:,}")
    return place + length


def _nodes(path: Path) -> Iterator[_Node]:
    """The layers of the text, in their order."""
    with path.open("rb") as file:
        if file.read(4) == _BINARY:
            raise WeightsError(f"{path} is ncnn's binary form of a network, which is not read: name its .param of text")
    lines = cursor.text_of(path, _MOST_TEXT).split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    first, counts = [*(lines[number].split() for number in filled[:2]), [], []][:2]
    if first != [_MAGIC.decode()] or len(counts) != 2 or not counts[0].isdecimal():
        raise WeightsError(f"{path}: 7767517 is wanted in its first line, and the numbers of layers and blobs after it")
    if int(counts[0][:10]) != len(filled) - 2:
        raise WeightsError(f"{path} is damaged: it states {counts[0]} layers, and {len(filled) - 2} follow")
    for number in filled[2:]:
        words = lines[number][:_LONGEST_LINE].split()
        if (
            len(lines[number]) > _LONGEST_LINE
            or len(words) < 4
            or not all(word.isdecimal() and len(word) < 10 for word in words[2:4])
        ):
            raise WeightsError(f"{path} is damaged: line {number + 1} is no layer: {lines[number][:80]!r}")
        named = 4 + int(words[2]) + int(words[3])
        if named > len(words):
            raise WeightsError(f"{path} is damaged: line {number + 1} lacks the names of its blobs")
        pairs = (word.partition("=") for word in words[named:])
        # Negative keys are arrays of old; what is no pair is the rest of a string with spaces in it.
        told = {int(key): value for key, equals, value in pairs if equals and re.fullmatch("[0-9]{1,3}", key)}
        yield _Node(number, words[0], words[1], told)


def _blobs(node: _Node) -> list[_Blob]:
    """What a layer has in the .bin. _Unknown: nobody knows here."""
    if node.kind in _BLOBS:
        return _BLOBS[node.kind](node)
    if node.kind not in _WITHOUT:
        raise _Unknown("a layer of no kind that ncnn itself has")
    return []


def _convolution(node: _Node, dynamic: int = 19, scales: int = 0) -> list[_Blob]:
    """Weights, bias, and of int8 ones a scale per output, one of the input, and from 101 on one of the output."""
    if node.number(dynamic):
        return []
    outputs = node.number(0)
    blobs = [_Blob(node.number(6), flagged=True)] + [_Blob(outputs)] * bool(node.number(5))
    if term := node.number(8) if scales >= 0 else 0:
        blobs += [_Blob(scales or outputs), _Blob(1)] + [_Blob(1)] * (term > 100)
    return blobs


def _depthwise(node: _Node) -> list[_Blob]:
    return _convolution(node, scales=node.number(7, 1) if node.number(8) in (1, 101) else 1)


def _inner_product(node: _Node) -> list[_Blob]:
    outputs = node.number(0)
    blobs = [_Blob(node.number(2), flagged=True)] + [_Blob(outputs)] * bool(node.number(1))
    return blobs + ([_Blob(outputs), _Blob(1)] if node.number(8) else [])


def _embed(node: _Node) -> list[_Blob]:
    blobs = [_Blob(node.number(3), flagged=True)] + [_Blob(node.number(0))] * bool(node.number(2))
    return blobs + [_Blob(1)] * bool(node.number(18))


def _recurrent(gates: int, biases: int) -> Callable[[_Node], list[_Blob]]:
    """An RNN, GRU or LSTM of so many gates; hidden units are another number than outputs in an LSTM alone."""

    def blobs(node: _Node) -> list[_Blob]:
        outputs, ways = node.number(0), 2 if node.number(2) == 2 else 1
        hidden = node.number(3, outputs) if gates == 4 else outputs
        if outputs <= 0 or hidden <= 0:
            raise WeightsError(f"{node} has {outputs} outputs and {hidden} hidden units")
        wide = hidden * gates
        counts = [node.number(1) // ways // wide * wide * ways, hidden * biases * ways, outputs * wide * ways]
        counts += [hidden * outputs * ways] * (outputs != hidden)
        scales = [_Blob(wide * ways)] * 2 if node.number(8) else []
        return [_Blob(count, flagged=True) for count in counts] + scales

    return blobs


def _attention(node: _Node) -> list[_Blob]:
    wide, term = node.number(0), node.number(18)
    if term >= 400:
        raise _Unknown(f"its weights are quantized in blocks, as {term} says")
    if wide <= 0:
        raise WeightsError(f"{node} is {wide} wide")
    query = node.number(2) // wide
    sizes = ((query, wide), (node.number(3, wide), wide), (node.number(4, wide), wide), (wide, query))
    blobs = [one for rows, outputs in sizes for one in (_Blob(rows * outputs, flagged=True), _Blob(outputs))]
    return blobs + ([_Blob(wide)] * 3 + [_Blob(1)] if term else [])


def _gemm(node: _Node) -> list[_Blob]:
    rows, columns, inner, term = node.number(7), node.number(8), node.number(9), node.number(18)
    if term >= 400:
        raise _Unknown(f"its weights are quantized in blocks, as {term} says")
    first, second = node.number(4) == 1, node.number(5) == 1
    blobs = [_Blob(rows * inner, flagged=True)] * first + [_Blob(inner * columns, flagged=True)] * second
    added = {0: 1, 1: rows, 2: rows, 3: rows * columns, 4: columns}
    if node.number(6) == 1 and node.number(10) in added:
        blobs.append(_Blob(added[node.number(10)], flagged=True))
    return blobs + ([_Blob(rows)] * first + [_Blob(1)] * second if term else [])


def _memory(node: _Node) -> list[_Blob]:
    sides = [node.number(key) for key in (0, 1, 11, 2)]
    return [_Blob(math.prod(filter(None, sides)), flagged=node.number(21, 1) == 0)] if any(sides) else []


def _vectors(*keys: int, times: int = 1, default: int = 0, affine: int | None = None) -> Callable[[_Node], list[_Blob]]:
    """Vectors whose sizes are parameters of these keys, where the parameter `affine` is not 0."""

    def blobs(node: _Node) -> list[_Blob]:
        if affine is not None and node.number(affine, 1) == 0:
            return []
        return [_Blob(node.number(key, default)) for key in keys] * times

    return blobs


def _scale(node: _Node) -> list[_Blob]:
    count = node.number(0)
    return [] if count == -233 else [_Blob(count)] * (2 if node.number(1) else 1)


def _scaled(scales: int, bias: int) -> Callable[[_Node], list[_Blob]]:
    """Quantization: so many vectors of scales, and a bias where the parameter says so."""

    def blobs(node: _Node) -> list[_Blob]:
        rest = [_Blob(node.number(bias))] if bias and node.number(bias) else []
        return [_Blob(node.number(key, 1)) for key in range(scales)] + rest

    return blobs


def _deconvolution(node: _Node) -> list[_Blob]:
    return _convolution(node, dynamic=28, scales=-1)


_BLOBS: dict[str, Callable[[_Node], list[_Blob]]] = {
    "BatchNorm": _vectors(0, times=4),
    "Bias": _vectors(0),
    "Convolution": _convolution,
    "ConvolutionDepthWise": _depthwise,
    "DeformableConv2D": lambda node: _convolution(node, dynamic=-1, scales=-1),
    **{f"{kind}1D": lambda node: _convolution(node, scales=-1) for kind in ("Convolution", "ConvolutionDepthWise")},
    **{
        f"{kind}3D": lambda node: _convolution(node, dynamic=-1, scales=-1)
        for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
    },
    **{f"Deconvolution{kind}": _deconvolution for kind in ("", "1D", "DepthWise", "DepthWise1D")},
    "Dequantize": _scaled(1, 1),
    "Quantize": _scaled(1, 0),
    "Requantize": _scaled(2, 2),
    "Embed": _embed,
    "Gemm": _gemm,
    "GroupNorm": _vectors(1, times=2, affine=3),
    "InstanceNorm": _vectors(0, times=2, affine=2),
    "LayerNorm": _vectors(0, times=2, affine=2),
    "RMSNorm": _vectors(0, affine=2),
    "InnerProduct": _inner_product,
    "RNN": _recurrent(1, 1),
    "GRU": _recurrent(3, 4),
    "LSTM": _recurrent(4, 4),
    "MemoryData": _memory,
    "MultiHeadAttention": _attention,
    "Normalize": _vectors(3),
    "PReLU": _vectors(0),
    "Padding": lambda node: _vectors(6)(node) if node.number(6) else [],
    "Scale": _scale,
}
_WITHOUT = frozenset(
    "AbsVal ArgMax BNLL BinaryOp CELU Cast Clip Concat CopyTo Crop CumulativeSum DeepCopy DetectionOutput Diag "  # noqa: SIM905
    "Dropout "
    "ELU Einsum Eltwise Erf Exp ExpandDims Flatten Flip Fold GELU GLU GridSample HardSigmoid HardSwish Input Interp "
    "InverseSpectrogram LRN Log MVN MatMul Mish Noop PSROIPooling Packing Permute PixelShuffle Pooling Pooling1D "
    "Pooling3D Power PriorBox Proposal ROIAlign ROIPooling ReLU Reduction Reorg Reshape RotaryEmbed SDPA SELU SPP "
    "Shrink ShuffleChannel Sigmoid Slice Softmax Softplus Spectrogram Split Squeeze StatisticsPooling Swish TanH "
    "Threshold Tile UnaryOp Unfold YoloDetectionOutput Yolov3DetectionOutput".split()
)
