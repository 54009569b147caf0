"""Bytes of a file that is not trusted: never beyond its end, and no more work than its size is worth."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from oclbn.errors import WeightsError

UNDEFINED = 2**64 - 1  # an address of nothing
_TIMES, _LEAST = 8, 1 << 24  # bytes of descriptions that are read: times the file's size, and beside that
_VISIT = 32  # bytes that each read counts for, at least
_UNPACKED_TIMES, _UNPACKED_LEAST = 64, 1 << 26  # the same of elements


class Source:
    """Where HDF5 lies in an open file: from `begin` on, `size` bytes. Addresses count from `base`."""

    def __init__(self, file: BinaryIO, begin: int, size: int, label: str) -> None:
        self.file, self.begin, self.size, self.label, self.base = file, begin, size, label, 0
        self._left = _TIMES * size + _LEAST
        self._room = _UNPACKED_TIMES * size + _UNPACKED_LEAST

    def wrong(self, text: str) -> WeightsError:
        return WeightsError(f"{self.label} is damaged: {text}")

    def take(self, address: int, count: int, what: str) -> bytes:
        """So many bytes of a description. WeightsError: they are not there, or it leads in circles."""
        self.describe(count)
        return self.elements(address, count, what)

    def describe(self, count: int) -> None:
        """Count bytes of descriptions that are looked at. WeightsError: they are far more than the file has."""
        self._left -= max(count, _VISIT)
        if self._left < 0:
            raise self.wrong("its descriptions are far longer than the file, and so lead in circles, or overlap")

    def elements(self, address: int, count: int, what: str) -> bytes:
        """So many bytes of elements."""
        place = self.place(address, count, what)
        self.file.seek(place)
        found = self.file.read(count)
        if len(found) < count:
            raise self.wrong(f"{what} is cut short")
        return found

    def place(self, address: int, count: int, what: str) -> int:
        """Where in the open file so many bytes lie; WeightsError unless they do."""
        if not (count >= 0 and 0 <= address <= self.size - self.base - count):
            raise self.wrong(f"{what} would lie at {address:,} with {count:,} bytes, beyond its {self.size:,}")
        return self.begin + self.base + address

    def unpack(self, count: int, what: str) -> None:
        """Count bytes that are kept in memory. WeightsError: they are far more than the file has."""
        self._room -= count
        if self._room < 0:
            raise WeightsError(f"{self.label}: {what} unpacks to far more than the file's {self.size:,} bytes")


class Body:
    """A description that was taken from a file, read from front to back."""

    def __init__(self, source: Source, content: bytes, what: str) -> None:
        self.source, self.content, self.what, self.at = source, content, what, 0

    def __len__(self) -> int:
        """How many bytes are left."""
        return len(self.content) - self.at

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self):
            raise self.source.wrong(f"{self.what} is too short")
        self.at += count
        return self.content[self.at - count : self.at]

    def skip(self, count: int) -> None:
        self.take(count)

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """The next numbers, as struct's layout says without the byte order: "BHQ"."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def number(self, width: int = 8) -> int:
        """The next number, of so many bytes."""
        return int.from_bytes(self.take(width), "little")

    def expect(self, mark: bytes, version: int) -> None:
        """A mark and a version."""
        if self.take(len(mark)) != mark:
            raise self.source.wrong(f"{self.what} does not begin with {mark.decode()}")
        if (found := self.number(1)) != version:
            raise WeightsError(f"{self.source.label}: {self.what} is of version {found}; {version} is read here")


def width_of(most: int) -> int:
    """Bytes that HDF5 writes numbers up to this with."""
    return max(most.bit_length() - 1, 0) // 8 + 1
