"""Caffe's .caffemodel: a NetParameter of Protocol Buffers, whose layers hold their blobs.

A BatchNorm has three: sums of means and of variances over batches, each batch weighing moving_average_fraction times
what the one after it weighs, and the sum of these weights. Caffe multiplies the first two by the reciprocal of the
third (0 where that is 0); these products are what is read here. Scale and bias are the blobs of a Scale behind it,
which takes what the BatchNorm gives; in NVIDIA's fork they may be its own, the fourth and fifth. Facts: caffe.proto and
batch_norm_layer.cpp.

Written are a weight of a power of two, so that nothing is rounded, near the one that averages settle to: with a weight
of 1 the next batch in training would take the place of half of all that was learnt. Beside the file lies the network as
text (.prototxt), which Caffe asks for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files.formats import wire
from oclbn.files.formats.wire import Wire
from oclbn.files.layers import Content, Host, Layer, Note, Written, fitted, fitted_array, matched, same_bits

_NAME, _OLD_LAYERS, _LAYER = 1, 2, 100  # of a NetParameter
_L_NAME, _L_TYPE, _L_BOTTOM, _L_TOP, _L_BLOBS, _L_BATCH_NORM, _L_SCALE, _L_INPUT = 1, 2, 3, 4, 7, 139, 142, 143
_B_DATA, _B_SHAPE, _B_DOUBLES, _B_RAW_TYPE, _B_RAW = 5, 7, 8, 10, 12  # of a BlobProto; the last two are NVIDIA's
_FRACTION, _EPSILON = 2, 3  # of a BatchNormParameter
_USUAL = {_FRACTION: 0.999, _EPSILON: 1e-5}  # Caffe's own, where nothing is stated
_RAW_TYPES = {0: "f8", 1: "f4", 2: "f2"}
_LARGEST_WEIGHT = 1 << 15  # which float16 holds
_MOST_LAYERS = 100_000
_FLOATS: list[np.dtype[Any]] = [np.dtype(np.float32), np.dtype(np.float64)]


@dataclass
class _Node:
    """A layer of the file."""

    start: int
    begin: int
    end: int
    name: str = ""
    kind: str = ""
    bottoms: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    blobs: list[tuple[int, int]] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)  # where its BatchNormParameter lies; parts add up


@dataclass(frozen=True)
class _Blob:
    """The elements of a blob: their type, how many, and where they lie, in one piece or more."""

    dtype: np.dtype[Any]
    count: int
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Norm:
    """A batch normalization: its node, the blobs of each role, the one of the weight, and what is told of it."""

    node: _Node
    roles: dict[str, _Blob]
    weight: _Blob
    options: dict[int, tuple[float, int]]  # value and place of each that is stated

    def option(self, number: int) -> float:
        return self.options[number][0] if number in self.options else _USUAL[number]


def claims(path: Path, head: bytes) -> bool:
    """By its ending; or a name, and a layer behind it."""
    if path.name.lower().endswith(".caffemodel"):
        return head[:1] in (b"\x0a", b"\x12", b"\x1a", b"\xa2")
    return len(head) > 2 and head[:1] == b"\x0a" and head[1] < 0x80 and head[2 + head[1] :][:2] == b"\xa2\x06"


def read(path: Path) -> Content:
    layers, notes, _ = _read(path)
    return Content("caffe", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    if into is not None:
        image, notes = _replaced(layers, into)
        return Written({name: image}, tuple(notes))
    companion = Path(name).with_suffix(".prototxt").name
    if companion == name:
        raise WeightsError(f"{name}: a network of Caffe is described in that file: name the .caffemodel beside it")
    notes = []
    content = [wire.field(_NAME, "batch normalizations")]
    text = ['name: "batch normalizations"']
    taken = set[str]()
    for layer in layers:
        layer.check_running("Caffe's BatchNorm")
        fit, more = fitted(layer, _FLOATS, "Caffe")
        more += _untold(layer)
        for called in (layer.name, f"{layer.name}_scale"):
            if called in taken:
                raise WeightsError(f"{name}: two layers are called {called!r}")
            taken.add(called)
        notes += more
        binary, described, weighed = _written(fit)
        notes += weighed
        content += binary
        text += described
    return Written({name: b"".join(content), companion: "\n".join([*text, ""]).encode()}, tuple(notes))


def _untold(layer: Layer) -> Iterator[Note]:
    if layer.epsilon is not None and not 0 <= layer.epsilon < 1e38:
        raise WeightsError(f"{layer}: epsilon is {layer.epsilon:g}; 0 or more is wanted in Caffe")
    if layer.epsilon is None:
        yield Note(layer.name, f"its epsilon is not known: Caffe takes {_USUAL[_EPSILON]:g}")
    if not layer.cumulative and layer.factor is not None and not 0 < layer.factor <= 1:
        yield Note(layer.name, f"a new batch weighs {layer.factor:g}, which Caffe cannot say", lost=True)


def _fraction(layer: Layer) -> float | None:
    """How much less a batch weighs than the one after it; None: nothing is known."""
    if layer.cumulative:
        return 1.0
    return None if layer.factor is None or not 0 < layer.factor <= 1 else 1 - layer.factor


def _settled(fraction: float, batches: int | None) -> float:
    """The weight, as a power of two, that all batches together have in the long run, or after so many."""
    weight = (batches or 1) if fraction >= 1 else 1 / (1 - fraction)
    if not 1 < weight < math.inf:
        return 1.0
    return 2.0 ** round(math.log2(min(weight, _LARGEST_WEIGHT)))


def _weighed(mean: Host, var: Host, wanted: Sequence[float]) -> tuple[float, Host, Host]:
    """The first of these weights with which nothing is lost, and sums of means and variances; 1 loses nothing."""
    for weight in wanted:
        sums = [_times(array, weight) for array in (mean, var)]
        back = [_averaged(one, np.asarray(weight, one.dtype)) for one in sums]
        if all(same_bits(one, array) for one, array in zip(back, (mean, var), strict=True)):
            return weight, sums[0], sums[1]
    return 1.0, mean, var


def _times(array: Host, weight: float) -> Host:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        made: Host = array * np.asarray(weight, array.dtype)
    return made


def _averaged(sums: Host, weight: Any) -> Host:
    """What Caffe computes with: the product with the reciprocal, in the type of the blob."""
    if weight == 1:
        return sums  # NaN keeps its bits
    with np.errstate(all="ignore"):
        one = np.asarray(1, sums.dtype)
        made: Host = sums * (np.asarray(0, sums.dtype) if weight == 0 else one / np.asarray(weight, sums.dtype))
    return made


def _written(layer: Layer) -> tuple[list[bytes], list[str], list[Note]]:
    """An input and this batch normalization behind it: as messages, as text; and what there is to tell."""
    assert layer.mean is not None
    assert layer.var is not None
    notes = []
    fraction = _fraction(layer)
    wanted = [_settled(_USUAL[_FRACTION] if fraction is None else fraction, layer.batches)]
    if layer.cumulative and layer.batches:
        wanted.insert(0, float(layer.batches))
    weight, means, variances = _weighed(layer.mean, layer.var, wanted)
    if layer.cumulative and layer.batches is not None and weight != layer.batches:
        notes.append(Note(layer.name, f"its {layer.batches} batches count as {weight:g}, as nothing is rounded so"))
    told, lines = b"", []
    for key, number, value in (
        ("moving_average_fraction", _FRACTION, fraction),
        ("eps", _EPSILON, layer.epsilon),
    ):
        if value is not None:
            told += wire.field(number, float(value))
            lines.append(f"{key}: {value:.9g}")
    blobs = [_blob(means), _blob(variances), _blob(np.array([weight], means.dtype))]
    name = layer.name
    shape = [1, layer.channels, 1, 1]
    inner = wire.field(1, wire.field(1, b"".join(map(wire.varint, shape))))
    dims = " ".join(f"dim: {side}" for side in shape)
    binary = [_layer(f"{name}_in", "Input", [], f"{name}_in", [], wire.field(_L_INPUT, inner))]
    text = [_text(f"{name}_in", "Input", "", f"{name}_in", f"input_param {{ shape {{ {dims} }} }}")]
    binary.append(
        _layer(name, "BatchNorm", [f"{name}_in"], name, blobs, wire.field(_L_BATCH_NORM, told) if told else b"")
    )
    text.append(_text(name, "BatchNorm", f"{name}_in", name, f"batch_norm_param {{ {' '.join(lines)} }}"))
    if layer.scale is not None or layer.bias is not None:
        scale = np.ones_like(layer.mean) if layer.scale is None else layer.scale
        biased = layer.bias is not None
        blobs = [_blob(scale)] + ([_blob(layer.bias)] if layer.bias is not None else [])
        option = wire.field(_L_SCALE, wire.field(4, int(biased)))
        binary.append(_layer(f"{name}_scale", "Scale", [name], name, blobs, option))
        text.append(_text(f"{name}_scale", "Scale", name, name, f"scale_param {{ bias_term: {str(biased).lower()} }}"))
    return binary, text, notes


def _blob(array: Host) -> bytes:
    number = _B_DOUBLES if array.dtype == np.float64 else _B_DATA
    return wire.field(number, array.astype(array.dtype.newbyteorder("<")).tobytes()) + wire.field(
        _B_SHAPE, wire.field(1, wire.varint(array.size))
    )


def _layer(name: str, kind: str, bottoms: list[str], top: str, blobs: list[bytes], rest: bytes) -> bytes:
    named = wire.field(_L_NAME, name) + wire.field(_L_TYPE, kind)
    joined = b"".join(wire.field(_L_BOTTOM, bottom) for bottom in bottoms) + wire.field(_L_TOP, top)
    return wire.field(_LAYER, named + joined + b"".join(wire.field(_L_BLOBS, blob) for blob in blobs) + rest)


def _text(name: str, kind: str, bottom: str, top: str, rest: str) -> str:
    joined = f"bottom: {_quoted(bottom)} " if bottom else ""
    return f"layer {{ name: {_quoted(name)} type: {_quoted(kind)} {joined}top: {_quoted(top)} {rest} }}"


def _quoted(text: str) -> str:
    """A text as protobuf's text format has it."""
    plain = {ord('"'), ord("\\")}
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _read(path: Path) -> tuple[list[Layer], list[Note], list[_Norm]]:
    """The layers, what there is to tell of them, and where each lies."""
    layers: list[Layer] = []
    notes: list[Note] = []
    kept: list[_Norm] = []
    with path.open("rb") as file:
        held = Wire(file, path)
        nodes = list(_nodes(held, notes))
        for node, scale in _paired(nodes):
            if not node.blobs:
                notes.append(Note(node.name, "it has no blobs in this file, and is left out"))
                continue
            norm = _norm(held, node, scale)
            layer, more = _computed(held, norm)
            layers.append(layer)
            notes += more
            kept.append(norm)
    return layers, notes, kept


def _nodes(held: Wire, notes: list[Note]) -> Iterator[_Node]:
    """The layers of the file in their order."""
    old = count = 0
    for one in held.fields(0, held.size):
        old += one.number == _OLD_LAYERS
        if one.number != _LAYER or one.kind != wire.BYTES:
            continue
        count += 1
        if count > _MOST_LAYERS:
            raise WeightsError(f"{held.path} has more than {_MOST_LAYERS:,} layers")
        node = _Node(one.start, one.begin, one.end)
        for part in held.fields(one.begin, one.end):
            if part.number == _L_NAME:
                node.name = held.text(part)
            elif part.number == _L_TYPE:
                node.kind = held.text(part)
            elif part.number == _L_BOTTOM:
                node.bottoms.append(held.text(part))
            elif part.number == _L_TOP:
                node.tops.append(held.text(part))
            elif part.number == _L_BLOBS and part.kind == wire.BYTES:
                node.blobs.append((part.begin, part.end))
            elif part.number == _L_BATCH_NORM and part.kind == wire.BYTES:
                node.told.append((part.begin, part.end))
        yield node
    if old:
        notes.append(Note("", f"{old} of its layers are of Caffe's form before 2014, which knows no BatchNorm"))


def _paired(nodes: list[_Node]) -> list[tuple[_Node, _Node | None]]:
    """Each BatchNorm with the Scale that takes what it gives, before any other layer does."""
    after: dict[str, _Node] = {}
    found: list[tuple[_Node, _Node | None]] = []
    for node in reversed(nodes):
        if node.kind == "BatchNorm":
            scale = after.get(node.tops[0]) if node.tops else None
            fits = scale is not None and scale.kind == "Scale" and len(scale.bottoms) == 1 and scale.blobs
            found.append((node, scale if fits else None))
        after |= dict.fromkeys(node.bottoms, node)
    return found[::-1]


def _norm(held: Wire, node: _Node, scale: _Node | None) -> _Norm:
    if len(node.blobs) not in (3, 5):
        raise WeightsError(f"{held.path}: layer {node.name!r} has {len(node.blobs)} blobs; 3 are wanted, or NVIDIA's 5")
    blobs = [_found(held, node, *place) for place in node.blobs]
    roles = dict(zip(("mean", "var"), blobs, strict=False)) | dict(zip(("scale", "bias"), blobs[3:], strict=False))
    if scale is not None and len(blobs) == 3:
        gains = [_found(held, scale, *place) for place in scale.blobs[:2]]
        if all(one.count == roles["mean"].count for one in gains):
            roles |= dict(zip(("scale", "bias"), gains, strict=False))
    if blobs[2].count != 1:
        raise WeightsError(f"{held.path}: layer {node.name!r} has {blobs[2].count} numbers for the weight of its sums")
    options = {}
    for one in (part for place in node.told for part in held.fields(*place)):
        if one.number in _USUAL:
            options[one.number] = (held.real(one), one.begin)
            if not 0 <= options[one.number][0] < math.inf:
                raise WeightsError(f"{held.path}: layer {node.name!r} has {options[one.number][0]} as eps or fraction")
    return _Norm(node, roles, blobs[2], options)


def _found(held: Wire, node: _Node, begin: int, end: int) -> _Blob:
    """A blob: elements in a list of float32 or float64, packed or not, or NVIDIA's bytes of a type that is told."""
    pieces: dict[int, list[tuple[int, int]]] = {_B_DOUBLES: [], _B_DATA: [], _B_RAW: []}
    raw = 1
    for one in held.fields(begin, end):
        if one.number in pieces and one.kind != wire.VARINT:
            pieces[one.number].append((one.begin, one.end))
        elif one.number == _B_RAW_TYPE:
            raw = one.value
    number = next((number for number, there in pieces.items() if there), _B_DATA)
    if number == _B_RAW and raw not in _RAW_TYPES:
        raise WeightsError(f"{held.path}: layer {node.name!r} has a blob of type {raw}; floats are wanted")
    code = {_B_DOUBLES: "f8", _B_DATA: "f4"}.get(number, _RAW_TYPES.get(raw, "f4"))
    dtype = np.dtype(code)
    there = pieces[number][-1:] if number == _B_RAW else pieces[number]
    if any((stop - start) % dtype.itemsize for start, stop in there):
        raise WeightsError(f"{held.path}: layer {node.name!r} has a blob with a part of a number")
    return _Blob(dtype, sum(stop - start for start, stop in there) // dtype.itemsize, tuple(there))


def _elements(held: Wire, blob: _Blob) -> Host:
    content = b"".join(held.content(*piece) for piece in blob.pieces)
    return np.frombuffer(content, blob.dtype.newbyteorder("<")).astype(blob.dtype)


def _computed(held: Wire, norm: _Norm) -> tuple[Layer, list[Note]]:
    arrays = {role: _elements(held, blob) for role, blob in norm.roles.items()}
    weight = _elements(held, norm.weight)[0]
    notes = []
    if weight == 0:
        notes.append(Note(norm.node.name, "no batch was seen: Caffe computes with mean 0 and variance 0, as is read"))
    for role in ("mean", "var"):
        arrays[role] = _averaged(arrays[role], weight)
    fraction = norm.option(_FRACTION)
    values: dict[str, Any] = dict(arrays)
    if fraction == 1:
        values |= {"cumulative": True}
        if 0 <= weight <= 1 << 53 and weight == int(weight):
            values |= {"batches": int(weight)}
    elif fraction < 1:
        values |= {"factor": round(1 - fraction, 9)}
    else:
        notes.append(Note(norm.node.name, f"moving_average_fraction is {fraction:g}, where 1 is the most"))
    return Layer(norm.node.name, **values, epsilon=norm.option(_EPSILON), convention="caffe"), notes


def _replaced(layers: Sequence[Layer], into: Path) -> tuple[bytes, list[Note]]:
    """A model with other values in the place of its own, of the types that its blobs have."""
    there, notes, norms = _read(into)
    places = {norm.node.name: norm for norm in norms}
    image = bytearray(into.read_bytes())
    longer: list[tuple[_Node, bytes]] = []
    for layer, target in matched(layers, there, into):
        norm = places[target.name]
        notes += [note for note in _untold(layer) if layer.epsilon is not None]
        kept: dict[str, Host] = {}
        for role, array in layer.arrays.items():
            blob = norm.roles.get(role)
            if blob is None:
                notes.append(Note(layer.name, f"{role} has no place in {into.name}", lost=True))
                continue
            why = f"the type of that blob of {into.name}"
            kept[role], more = fitted_array(layer.name, role, array, [blob.dtype], why)
            notes += more
            if role in ("scale", "bias"):
                _put(image, blob, kept[role])
        fraction = _fraction(layer)
        if layer.mean is not None:
            own = norm.option(_FRACTION) if fraction is None else fraction
            weight, means, variances = _weighed(kept["mean"], kept["var"], [_settled(own, layer.batches)])
            _put(image, norm.roles["mean"], means)
            _put(image, norm.roles["var"], variances)
            _put(image, norm.weight, np.array([weight], norm.weight.dtype))
        added = b""
        for number, value in ((_FRACTION, fraction), (_EPSILON, layer.epsilon)):
            if value is None or np.float32(value) == np.float32(norm.option(number)):
                continue
            if number in norm.options:
                place = norm.options[number][1]
                image[place : place + 4] = struct.pack("<f", value)
            else:
                added += wire.field(number, float(value))
        if added:
            longer.append((norm.node, added))
    for node, added in sorted(longer, key=lambda one: -one[0].start):
        content = bytes(image[node.begin : node.end])
        # A message that comes twice is one, of all fields of both.
        image[node.start : node.end] = wire.field(_LAYER, content + wire.field(_L_BATCH_NORM, added))
    return bytes(image), notes


def _put(image: bytearray, blob: _Blob, array: Host) -> None:
    content = memoryview(array.astype(blob.dtype.newbyteorder("<")).tobytes())
    for begin, end in blob.pieces:
        image[begin:end], content = content[: end - begin], content[end - begin :]
