"""Darknet: a network as text (.cfg) and its weights (.weights) beside it, float32 and nothing that tells them apart.

After a header (three numbers of 32 bits, the version, and of 64 bits, 32 in files of old, the examples seen) come the
vectors of each layer: of a convolution with batch_normalize=1 biases, scales, rolling_mean, rolling_variance, and its
weights; of a connected layer these follow the biases. `oclbn.files.formats.darknet_cfg` says of which sizes. Layers are
named by the number that Darknet prints and the kind, as "12.convolutional".

What is added to a variance is not in the file: 0.00001 in Darknet (to the standard deviation 0.000001 in pjreddie's
code for CPUs), 0.000001 in OpenCV.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files import whole
from oclbn.files.formats import darknet_cfg
from oclbn.files.formats.darknet_cfg import Section, Unit, Unknown
from oclbn.files.layers import Content, Layer, Note, Written, fitted, matched

_FLOAT = np.dtype(np.float32)
_ROLES = ("bias", "scale", "mean", "var")
_VERSION = struct.pack("<3iQ", 0, 2, 5, 0)  # what Darknet writes: 0.2.5 and the number of examples
_TRANSPOSED = 1000  # versions from here on: weights of connected layers lie the other way round


@dataclass(frozen=True)
class _Found:
    """A batch normalization: its name, how many channels it has, and where each vector begins in the file."""

    name: str
    channels: int
    places: Mapping[str, int]


@dataclass(frozen=True)
class _Laid:
    """What lies where: layers, where the last vector ends, and where layers end within the file."""

    layers: list[_Found]
    end: int
    ends: list[int]
    missing: str = ""  # what is not known, and stands behind all batch normalizations


def claims(path: Path, head: bytes) -> bool:
    """Nothing in a file tells it: its ending, and a version that there may be."""
    if not path.name.lower().endswith(".weights") or len(head) < 16:
        return False
    major, minor, revision = struct.unpack("<3I", head[:12])
    # Those there have been are 0.1.0 to 0.2.5, and with 1000 added to a number.
    return all(number % _TRANSPOSED < 10 and number < 2 * _TRANSPOSED for number in (major, minor)) and revision < 1000


def read(path: Path) -> Content:
    laid, notes = _laid(path)
    layers = []
    with path.open("rb") as file:
        for found in laid:
            arrays: dict[str, Any] = {}
            for role, place in found.places.items():
                file.seek(place)
                arrays[role] = np.frombuffer(file.read(4 * found.channels), "<f4").astype(_FLOAT)
            layers.append(Layer(found.name, **arrays, convention="darknet"))
    return Content("darknet", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    companion = _companion(Path(name)).name
    if companion == name:
        raise WeightsError(f"{name}: a network of Darknet is described in that file: name the .weights file beside it")
    given: list[Layer] = []
    notes: list[Note] = []
    for layer in layers:
        if not layer.channels:
            raise WeightsError(f"{layer}: it has no channels; 1 or more are wanted in Darknet")
        fit, more = fitted(layer.complete("Darknet"), [_FLOAT], "Darknet")
        given.append(fit)
        notes += [*more, *_untold(layer)]
    if into is not None:
        image, more = _replaced(given, into)
        return Written({name: image, companion: _companion(into).read_bytes()}, (*more, *notes))
    text, weights = darknet_cfg.chain([layer.channels for layer in given])
    content = [_VERSION]
    for layer, (inputs, outputs) in zip(given, weights, strict=True):
        content += [layer.arrays[role].tobytes() for role in _ROLES]
        taken = np.zeros((outputs, inputs), np.float32)
        taken[:, 0] = 1
        content.append(taken.tobytes())
    if any(layer.name != f"{number}.convolutional" for number, layer in enumerate(given)):
        notes.append(Note("", "Darknet's layers have no names: they are numbered in the order in which they are given"))
    return Written({name: b"".join(content), companion: text.encode()}, tuple(notes))


def _companion(path: Path) -> Path:
    return path.with_suffix(".cfg")


def _untold(layer: Layer) -> Iterator[Note]:
    if layer.epsilon is not None and layer.epsilon != 1e-5:
        yield Note(layer.name, f"epsilon is {layer.epsilon:g}, where Darknet always adds 1e-05", lost=True)
    if layer.cumulative:
        yield Note(layer.name, "all batches weigh alike, of which Darknet knows nothing", lost=True)
    elif layer.factor is not None:
        yield Note(layer.name, f"a new batch weighs {layer.factor:g}, which Darknet has in its code", lost=True)


def _replaced(layers: Sequence[Layer], into: Path) -> tuple[bytes, list[Note]]:
    """The weights of a model with other values in the place of its own."""
    found, notes = _laid(into)
    places = {one.name: one.places for one in found}
    image = bytearray(into.read_bytes())
    for layer, there in matched(layers, read(into).layers, into):
        for role, array in layer.arrays.items():
            place = places[there.name].get(role)
            if place is not None:
                image[place : place + array.nbytes] = array.tobytes()
            else:
                notes.append(Note(layer.name, f"{role} has no place in {into.name}", lost=True))
    return bytes(image), notes


def _laid(path: Path) -> tuple[list[_Found], list[Note]]:
    """The batch normalizations of a file, and what there is to tell of it."""
    companion = _companion(path)
    whole.check_source(companion)
    if not companion.exists():
        raise WeightsError(f"{path} is described by {companion.name}, which is not beside it")
    sections = darknet_cfg.sections(companion)
    with path.open("rb") as file:
        head = file.read(12)
    if len(head) < 12:
        raise WeightsError(f"{path} is cut off: it has {len(head)} bytes")
    major, minor, _ = struct.unpack("<3i", head)
    header = 20 if major * 10 + minor >= 2 else 16
    size = path.stat().st_size
    # Forks differ in some layers, and in the header where the version is that of transposed weights.
    headers = (header, 36 - header) if max(major, minor) >= _TRANSPOSED else (header,)
    forks = (False, True) if any(one.kind in darknet_cfg.FORKED for one in sections) else (False,)
    tried = [_lay(companion, sections, begin, original) for begin in headers for original in forks]
    found = next((one for one in tried if one.end == size and not one.missing), tried[0])
    if found.missing:
        if found.end > size:
            raise WeightsError(f"{path} is cut off: it has {size:,} bytes, and {companion.name} asks for {found.end:,}")
        return found.layers, [Note("", f"what is behind the last batch normalization is not known: {found.missing}")]
    if found.end == size:
        return found.layers, []
    if size < found.end and size in found.ends:
        kept = [one for one in found.layers if all(place + 4 * one.channels <= size for place in one.places.values())]
        text = f"it ends with layer {found.ends.index(size)} of {companion.name}: {len(found.layers) - len(kept)} batch"
        return kept, [Note("", f"{text} normalizations behind that have no values in it")]
    raise WeightsError(
        f"{path} has {size:,} bytes, and {companion} says that there are {found.end:,}: they do not fit together"
    )


def _lay(path: Path, sections: list[Section], begin: int, original: bool) -> _Laid:
    """Where everything lies in weights whose header ends there."""
    layers: list[_Found] = []
    ends: list[int] = []
    place = begin
    known = darknet_cfg.units(sections, original)
    while len(ends) < len(sections) - 1:
        try:
            section, units = next(known)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except Unknown as error:
            at = sections[len(ends) + 1]
            if any(_normalizes(one) for one in sections[len(ends) + 1 :]):
                raise WeightsError(
                    f"{path}: what {at} has in the weights is not known ({error}), so that the place of the batch "
                    "normalizations from there on is not known either"
                ) from None
            return _Laid(layers, place, ends, f"{at}: {error}")
        for unit in units:
            place = _put(layers, section, unit, place)
        ends.append(place)
    return _Laid(layers, place, ends)


def _normalizes(section: Section) -> bool:
    return section.kind == "batchnorm" or bool(section.whole("batch_normalize") or section.whole("cbn"))


def _put(layers: list[_Found], section: Section, unit: Unit, place: int) -> int:
    """Note where the vectors of a unit lie that begins there; where it ends."""
    places = {}
    for role, count in unit.parts:
        if role:
            places[role] = place
        place += 4 * count
    if unit.normalizes:
        name = f"{section.number}.{section.kind}" + (f".{unit.suffix}" if unit.suffix else "")
        channels = next(count for role, count in unit.parts if role == "mean")
        layers.append(_Found(name, channels, places))
    return place
