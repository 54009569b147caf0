"""Protocol Buffers as they lie in a file, field by field, with the place of each: for formats that are such a message.

The package protobuf gives values without their places, which are needed to put others into a copy of a model and leave
all else as it is, bit by bit; and it unpacks every weight of a network to find a mean.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from oclbn.errors import WeightsError

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
_MOST_FIELDS = 1 << 20  # that are looked at in one file
_SIZES = {EIGHT: 8, FOUR: 4}
_LONGEST = 1 << 16  # bytes of a text


class Field(NamedTuple):
    """A field: number, kind, where its tag begins, from where to where its content lies; and a varint's value."""

    number: int
    kind: int
    start: int
    begin: int
    end: int
    value: int = 0


class Wire:
    """A file as messages. WeightsError: it holds none."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.left = file, path, _MOST_FIELDS
        self.size = path.stat().st_size

    def wrong(self, text: str, place: int) -> WeightsError:
        return WeightsError(f"{self.path} is damaged: {text}, at byte {place:,}")

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message there; contents are passed over."""
        place = begin
        while place < end:
            self.left -= 1
            if self.left < 0:
                raise self.wrong(f"it has more than {_MOST_FIELDS:,} fields", place)
            start = place
            tag, place = self._varint(place, end)
            number, kind = tag >> 3, tag & 7
            value = 0
            if kind == VARINT:
                first = place
                value, place = self._varint(place, end)
                yield Field(number, kind, start, first, place, value)
                continue
            if kind == BYTES:
                length, place = self._varint(place, end)
            elif kind in _SIZES:
                length = _SIZES[kind]
            else:
                raise self.wrong(f"no field is of kind {kind}", start)
            if number == 0 or length > end - place:
                raise self.wrong(f"field {number} has {length:,} bytes, and {end - place:,} are left", start)
            yield Field(number, kind, start, place, place + length)
            place += length

    def content(self, begin: int, end: int) -> bytes:
        self.file.seek(begin)
        return self.file.read(end - begin)

    def text(self, field: Field) -> str:
        if field.kind != BYTES or field.end - field.begin > _LONGEST:
            raise self.wrong(f"field {field.number} is no name", field.start)
        try:
            return self.content(field.begin, field.end).decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"a name is no text: {error}", field.start) from error

    def real(self, field: Field) -> float:
        """A number of 32 bits, as the shortest decimal that is it: 0.001 and not 0.0010000000474974513."""
        if field.kind != FOUR:
            raise self.wrong(f"field {field.number} is no float", field.start)
        return shortest(struct.unpack("<f", self.content(field.begin, field.end))[0])

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        self.file.seek(place)
        taken = self.file.read(min(10, end - place))
        value = 0
        for count, byte in enumerate(taken):
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value, place + count + 1
        raise self.wrong("a number has no end", place)


def shortest(number: float) -> float:
    """Of the decimals that are this float32, the shortest."""
    if not math.isfinite(number):
        return number
    with np.errstate(over="ignore"):  # of the largest numbers a shorter one is beyond float32
        found = (float(f"{number:.{digits}g}") for digits in range(1, 9))
        return next((short for short in found if np.float32(short) == np.float32(number)), number)


def varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def field(number: int, content: bytes | str | int | float) -> bytes:
    """A field: bytes, a message or packed numbers; a text; a whole number; a float of 32 bits."""
    if isinstance(content, int):
        return varint(number << 3 | VARINT) + varint(content)
    if isinstance(content, float):
        return varint(number << 3 | FOUR) + struct.pack("<f", content)
    held = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | BYTES) + varint(len(held)) + held
