"""Reading bytes that are not trusted: never beyond the end, never more than there is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from oclbn.errors import WeightsError

MOST_TEXT = 1 << 28  # bytes of a file that is read as text or taken whole as a description


class Cursor:
    """The content of a file, read from front to back; what is wrong with it is a WeightsError that names the file."""

    def __init__(self, content: bytes | memoryview, source: str) -> None:
        self.content, self.source, self.place = memoryview(content), source, 0

    def __len__(self) -> int:
        """How many bytes are left."""
        return len(self.content) - self.place

    def wrong(self, text: str) -> WeightsError:
        return WeightsError(f"{self.source} is damaged: {text}, at byte {self.place:,}")

    def skip(self, count: int, what: str) -> None:
        """Go past the next bytes."""
        if not 0 <= count <= len(self):
            raise self.wrong(f"{what} would take {count:,} bytes, and {len(self):,} are left")
        self.place += count

    def take(self, count: int, what: str) -> memoryview:
        """The next bytes."""
        self.skip(count, what)
        return self.content[self.place - count : self.place]

    def numbers(self, layout: str, what: str) -> tuple[Any, ...]:
        """The next numbers, as struct's layout says, as "<IQ"."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def array(self, count: int, dtype: str, what: str) -> NDArray[Any]:
        """The next elements, copied."""
        kind = np.dtype(dtype)
        taken = self.take(count * kind.itemsize, what)
        return np.frombuffer(taken, kind).astype(kind.newbyteorder("="))


class FileCursor(Cursor):
    """The same of a file that stays on disk: what is skipped is never read."""

    def __init__(self, file: BinaryIO, size: int, source: str) -> None:
        super().__init__(b"", source)
        self.file, self.size = file, size

    def __len__(self) -> int:
        return self.size - self.place

    def take(self, count: int, what: str) -> memoryview:
        self.skip(count, what)
        self.file.seek(self.place - count)
        if len(taken := self.file.read(count)) < count:
            raise self.wrong(f"{what} is cut off: somebody has made the file shorter")
        return memoryview(taken)


def text_of(path: Path, most: int = MOST_TEXT) -> str:
    """A file as UTF-8 text. WeightsError: it is none, or is far too long for a description of a network."""
    if (size := path.stat().st_size) > most:
        raise WeightsError(f"{path} has {size:,} bytes; a description of a network has less than {most:,}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is no text: {error}") from error
