"""Types and shapes of HDF5: what elements of a dataset or an attribute are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files.hdf5.source import UNDEFINED, Body, Source

_CLASSES = (
    "numbers",
    "floating-point numbers",
    "times",
    "strings",
    "bits",
    "opaque bytes",
    "compounds",
    "references",
    "names of numbers",
    "lists",
    "arrays",
)
_FLOATS = {  # size: first bit of the exponent and how many, bits of the mantissa, bias
    2: {(10, 5, 10, 15): "f2", (7, 8, 7, 127): "bfloat16"},
    4: {(23, 8, 23, 127): "f4"},
    8: {(52, 11, 52, 1023): "f8"},
}
_BFLOAT16_TAGS = (b"", b"NUMPY:<V2", b"bfloat16")  # of opaque elements: h5py's without a word, h5py.opaque_dtype's
_MOST_RANK, _MOST_TEXT = 32, 1 << 28


@dataclass(frozen=True)
class Kind:
    """A type. code: of NumPy, with the byte order, "bfloat16" or "" where none is wanted here; told: for people."""

    code: str
    size: int
    told: str
    is_text: bool = False
    is_list: bool = False  # elements lie in a heap of the file

    @property
    def is_bfloat16(self) -> bool:
        return self.code.endswith("bfloat16")


def kind_of(source: Source, content: bytes, *, within: bool = False) -> Kind:
    """within: it is what names of numbers are made of."""
    body = Body(source, content, "a type")
    first, bits, size = body.number(1), body.number(3), body.number(4)
    found = first & 15
    if first >> 4 not in (1, 2, 3, 4, 5) or found >= len(_CLASSES) or not size:
        raise source.wrong(f"a type is of class {found} and version {first >> 4}, with {size:,} bytes")
    code, told = "", f"{_CLASSES[found]} of {size:,} bytes"
    order = ">" if bits & 1 else "<"
    if found == 0:
        offset, precision = body.numbers("HH")
        if size in (1, 2, 4, 8) and (offset, precision) == (0, 8 * size):
            code = f"{order}{'i' if bits & 8 else 'u'}{size}"
    elif found == 1:
        offset, precision, exponent, exponents, mantissa, mantissas, bias = body.numbers("HHBBBBI")
        plain = (offset, precision, mantissa, bits >> 8 & 255) == (0, 8 * size, 0, 8 * size - 1) and bits & 0x70 == 0x20
        name = _FLOATS.get(size, {}).get((exponent, exponents, mantissas, bias))
        code = order + name if plain and name else ""
    elif found == 3:
        return Kind(f"S{size}", size, told, is_text=True)
    elif found == 5:
        tag = body.take(min(bits & 255, len(body))).rstrip(b"\0")
        code = "<bfloat16" if size == 2 and tag in _BFLOAT16_TAGS else ""
    elif found == 8:
        if within:
            raise source.wrong("a type is made of itself")
        return kind_of(source, body.take(len(body)), within=True)
    elif found == 9:
        return Kind("", size, told, is_text=bits & 15 == 1, is_list=True)
    return Kind(code, size, (code.lstrip("<>") if code.endswith("16") else str(np.dtype(code))) if code else told)


def shape_of(source: Source, content: bytes) -> tuple[int, ...] | None:
    """None: of no elements at all."""
    body = Body(source, content, "a shape")
    version, rank, _ = body.numbers("BBB")
    if version not in (1, 2) or rank > _MOST_RANK:
        raise source.wrong(f"a shape is of version {version} and rank {rank}")
    null = body.number(1) == 2
    if version == 1:
        body.skip(4)
    elif null:
        return None
    return tuple(body.numbers(f"{rank}Q"))


@dataclass(frozen=True)
class Attribute:
    """What is said of an object, by a name."""

    source: Source
    name: str
    kind: Kind
    shape: tuple[int, ...] | None
    content: bytes

    @property
    def count(self) -> int:
        return 0 if self.shape is None else math.prod(self.shape)

    def text(self) -> str | None:
        """A single string, or None where it is none."""
        if self.shape != () or not self.kind.is_text:
            return None
        return self.texts()[0]

    def texts(self) -> list[str]:
        """Its strings. WeightsError: it has none."""
        if not self.kind.is_text:
            raise WeightsError(f"{self.source.label}: {self.name} holds {self.kind.told}; strings are wanted")
        size = self.kind.size
        if self.count * size > len(self.content):
            raise self.source.wrong(f"{self.name} is too short")
        parts = [self.content[at * size : (at + 1) * size] for at in range(self.count)]
        if self.kind.is_list:
            parts = [_from_heap(self.source, part, self.name) for part in parts]
        self.source.unpack(sum(map(len, parts)), self.name)
        try:
            return [part.rstrip(b"\0").decode() for part in parts]
        except UnicodeDecodeError as error:
            raise self.source.wrong(f"{self.name} is no text: {error}") from None


def attribute_of(source: Source, content: bytes) -> Attribute | None:
    """An attribute of its message; None where its type is shared with another object, as none of ours is."""
    body = Body(source, content, "an attribute")
    version, flags = body.numbers("BB")
    if version not in (1, 2, 3):
        raise source.wrong(f"an attribute is of version {version}")
    sizes = body.numbers("HHH")
    body.skip(1 if version == 3 else 0)
    parts = [body.take(min(-(-size // 8) * 8, len(body)) if version == 1 else size)[:size] for size in sizes]
    if version > 1 and flags & 3:
        return None
    name = parts[0].split(b"\0")[0].decode(errors="replace")
    return Attribute(source, name, kind_of(source, parts[1]), shape_of(source, parts[2]), body.take(len(body)))


def _from_heap(source: Source, reference: bytes, name: str) -> bytes:
    """What a string of any length is: an object of a heap of the file."""
    body = Body(source, reference, name)
    length, address, index = body.numbers("IQI")
    if not length or address in (0, UNDEFINED):
        return b""
    head = Body(source, source.take(address, 16, name), name)
    head.expect(b"GCOL", 1)
    head.skip(3)
    end, at = address + head.number(), address + 16
    while at + 16 <= end:
        found, _, _, size = Body(source, source.take(at, 16, name), name).numbers("HHIQ")
        if found == index and index:
            if not length <= size <= _MOST_TEXT:
                break
            return source.take(at + 16, length, name)
        if not found:
            break
        at += 16 + -(-size // 8) * 8
    raise source.wrong(f"{name} is a string that is not in its heap")
