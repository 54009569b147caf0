"""MATLAB's MAT-files of version 5 (-v6 and -v7): what is in them, without reading more than is asked for, and edits.

    116 bytes of text, u64 place of a subsystem, u16 version 0x0100, "IM" or "MI" by byte order, then elements
    element: u32 type, u32 bytes, data padded to 8 bytes;  or small: u16 bytes << 16 | type, up to 4 bytes
    15: an element, zlib-compressed, not padded.  14, a matrix: elements flags (u32 class and bits, u32), dims (i32),
    name (i8), and by class: 1 cell: a matrix each; 2 struct: length of names, names, a matrix per element and field;
    4 char: UTF-16 or bytes; 6 double, 7 single, and integers: numbers in Fortran's order, in any type that has them

A file of -v7.3 is HDF5 and begins with the same text.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files.formats.cursor import Cursor, FileCursor
from oclbn.files.layers import Host

HEAD = 128
CELL, STRUCT, CHAR, DOUBLE, SINGLE, OPAQUE = 1, 2, 4, 6, 7, 17
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_NUMBERS = {DOUBLE: "f8", SINGLE: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
_MOST = 200_000  # matrices of a file that are looked at
_DEEPEST = 64
_ROOM, _TIMES = 1 << 26, 64  # bytes that everything may unpack to, whatever the file's size; or times its size
_PEEK = 1024  # unpacked bytes that tell a variable's class and name


def claims(head: bytes) -> bool:
    """Whether a file begins as MAT-files do, from version 5 on."""
    return len(head) >= HEAD and head[124:128] in (b"\x00\x01IM", b"\x01\x00MI", b"\x00\x02IM", b"\x02\x00MI")


@dataclass(frozen=True)
class _Element:
    """One element: its type, its data, and where the next one begins."""

    type: int
    begin: int
    size: int
    after: int
    start: int


class Matrix:
    """A variable, or a matrix within one; what it holds is read when it is asked for."""

    def __init__(self, file: MatFile, at: Cursor, element: _Element, tags: tuple[int, ...], variable: int) -> None:
        file.left -= 1
        if file.left < 0:
            raise at.wrong(f"it has more than {_MOST:,} matrices")
        if len(tags) > _DEEPEST:
            raise at.wrong(f"it is nested more than {_DEEPEST} deep")
        self.file, self.at, self.variable = file, at, variable
        self.tags = (*tags, element.start)
        self.end = element.begin + element.size
        self.type, self.name, self.complex = DOUBLE, "", False
        self.dims: tuple[int, ...] = (0, 0)
        self.body = self.end
        if element.size == 0:
            return  # how [] is written within structs
        at.place = element.begin
        flags = self._next("a matrix' flags")
        at.place = flags.begin
        (word,) = at.numbers(file.order + "I", "a matrix' flags")
        self.type, self.complex = word & 0xFF, bool(word & _COMPLEX)
        at.place = flags.after
        if self.type != OPAQUE:
            self.dims = tuple(int(size) for size in self._numbers(self._next("a matrix' dimensions")))
            if min(self.dims, default=-1) < 0:
                raise at.wrong(f"a matrix is {self.dims}")
        self.name = self._text(self._next("a matrix' name"))
        self.body = at.place

    @property
    def count(self) -> int:
        return math.prod(self.dims)

    def _next(self, what: str) -> _Element:
        return _element(self.file, self.at, self.end, what)

    def _numbers(self, element: _Element) -> Host:
        """The numbers of an element as they are stored; the cursor is then behind it."""
        stored = _STORED.get(element.type)
        if stored is None:
            raise self.at.wrong(f"an element of type {element.type} stands where numbers are wanted")
        dtype = np.dtype(stored)
        self.at.place = element.begin
        array = self.at.array(element.size // dtype.itemsize, self.file.order + stored, "numbers")
        self.at.place = element.after
        return array

    def _text(self, element: _Element) -> str:
        self.at.place = element.begin
        content = bytes(self.at.take(element.size, "a text"))
        self.at.place = element.after
        if element.type in (4, 17) or element.type in _TEXTS:
            code = _TEXTS.get(element.type, "utf-16")
            ending = "" if code == "utf-8" else "-le" if self.file.order == "<" else "-be"
            return content.decode(code + ending, "replace")
        return content.decode("utf-8", "replace")

    def text(self) -> str | None:
        """What a char matrix of one row holds; None: it is something else."""
        if self.type != CHAR:
            return None
        if not self.count:
            return ""
        self.at.place = self.body
        return self._text(self._next("a text"))

    def numbers(self) -> Host | None:
        """All numbers as a vector, in Fortran's order, of the class's type; None: it holds no real numbers."""
        if self.type not in _NUMBERS or self.complex:
            return None
        dtype = np.dtype(_NUMBERS[self.type])
        if not self.count:
            return np.empty(0, dtype)
        self.at.place = self.body
        found = self._numbers(self._next("numbers"))
        if found.size != self.count:
            raise self.at.wrong(f"a matrix of {self.count:,} numbers has {found.size:,}")
        return found.astype(dtype)

    def cells(self) -> Iterator[Matrix]:
        """What each cell holds."""
        if self.type == CELL:
            self.at.place = place = self.body
            for _ in range(self.count):
                self.at.place = place
                element = self._next("a cell")
                place = element.after
                yield self._inner(element)

    def structs(self, wanted: Collection[str]) -> Iterator[dict[str, Matrix]]:
        """Those fields of each struct that are wanted."""
        if self.type != STRUCT:
            return
        self.at.place = self.body
        length = self._numbers(self._next("the length of fields' names"))
        names = self._next("fields' names")
        if length.size != 1 or length[0] < 1 or names.size % int(length[0]) or names.size // int(length[0]) > _MOST:
            raise self.at.wrong("a struct has no sound list of fields")
        self.at.place = names.begin
        text = bytes(self.at.take(names.size, "fields' names"))
        step = int(length[0])
        called = [text[at : at + step].split(b"\0")[0].decode("utf-8", "replace") for at in range(0, len(text), step)]
        place = names.after
        if not called:
            return
        for _ in range(self.count):
            found = {}
            for name in called:
                self.at.place = place
                element = self._next(f"field {name!r}")
                place = element.after
                if name in wanted:
                    found[name] = self._inner(element)
            yield found

    def _inner(self, element: _Element) -> Matrix:
        if element.type != _MATRIX:
            raise self.at.wrong(f"an element of type {element.type} stands where a matrix is wanted")
        return Matrix(self.file, self.at, element, self.tags, self.variable)

    def data(self) -> tuple[int, int]:
        """From where to where the element with the numbers lies."""
        self.at.place = self.body
        element = self._next("numbers")
        return element.start, element.after


def _element(file: MatFile, at: Cursor, end: int, what: str) -> _Element:
    """The element that begins where the cursor stands, which goes behind it."""
    start = at.place
    (word,) = at.numbers(file.order + "I", what)
    if word >> 16:
        type_, size, begin = word & 0xFFFF, word >> 16, at.place
        after = begin + 4
        if size > 4:
            raise at.wrong(f"{what} of {size} bytes is to fit into 4")
    else:
        type_ = word
        (size,) = at.numbers(file.order + "I", what)
        begin = at.place
        after = begin + size + (-size % 8 if type_ != _COMPRESSED else 0)
    if begin + size > end:
        raise at.wrong(f"{what} would take {size:,} bytes, and {max(0, end - begin):,} are left")
    at.place = min(after, end)
    return _Element(type_, begin, size, at.place, start)


class MatFile:
    """A file's variables by name, those of a kind that may hold a network: structs, cells and objects."""

    def __init__(self, file: Any, path: Path) -> None:
        self.path, self.left, self.order = path, _MOST, "<"
        self.size = path.stat().st_size
        self._room = max(_ROOM, _TIMES * self.size)
        self._places: list[tuple[int, int]] = []  # of variables in the file; -1, -1 where they are not compressed
        self.variables: dict[str, Matrix] = {}
        self._at = FileCursor(file, self.size, str(path))
        head = bytes(self._at.take(HEAD, "its head"))
        if not claims(head):
            raise WeightsError(f"{path} is no MAT-file of version 5 or later")
        self.order = "<" if head[126:128] == b"IM" else ">"
        if head[124:128] in (b"\x00\x02IM", b"\x02\x00MI"):
            raise WeightsError(
                f"{path} is a MAT-file of version 7.3, which is HDF5: in MATLAB, load it and save it again with -v7"
            )
        while len(self._at):
            element = _element(self, self._at, self.size, "a variable")
            after = self._at.place
            found = self._variable(element)
            if found is not None and found.type in (CELL, STRUCT, OPAQUE):
                if found.name in self.variables:
                    raise WeightsError(f"{path} has two variables of the name {found.name!r}")
                self.variables[found.name] = found
            self._at.place = after

    def _variable(self, element: _Element) -> Matrix | None:
        if element.type == _MATRIX:
            self._places.append((-1, -1))
            return Matrix(self, self._at, element, (), len(self._places) - 1)
        if element.type != _COMPRESSED:
            return None
        self._at.place = element.begin
        content = self._at.take(element.size, "a variable")
        place = (element.start, element.after)
        if self._peeked(content) not in (CELL, STRUCT, OPAQUE):
            return None
        unpacked = self._unpacked(content, self._room)
        if unpacked is None or len(unpacked) > self._room:
            raise WeightsError(f"{self.path}: its variables unpack to far more than the file's size, or are damaged")
        self._room -= len(unpacked)
        at = Cursor(unpacked, str(self.path))
        inner = _element(self, at, len(unpacked), "a variable")
        if inner.type != _MATRIX:
            return None
        self._places.append(place)
        return Matrix(self, at, inner, (), len(self._places) - 1)

    def _peeked(self, content: memoryview) -> int | None:
        """The class of a compressed variable."""
        try:
            begun = zlib.decompressobj().decompress(content, _PEEK)
        except zlib.error as error:
            raise WeightsError(f"{self.path} is damaged: a variable cannot be unpacked: {error}") from error
        if len(begun) < 24:
            raise WeightsError(f"{self.path} is damaged: a variable is cut off")
        word: int = struct.unpack_from(self.order + "I", begun, 16)[0]
        return word & 0xFF

    def _unpacked(self, content: memoryview, room: int) -> bytes | None:
        unpacking = zlib.decompressobj()
        try:
            unpacked = unpacking.decompress(content, room + 1)
        except zlib.error:
            return None
        return unpacked if unpacking.eof or len(unpacked) > room else None

    def edited(self, edits: Mapping[tuple[int, int], tuple[Matrix, bytes]]) -> bytes:
        """The file with other elements in the place of the numbers of some matrices, which `element` makes.

        edits: by variable and place, as (matrix, element). All else keeps its bytes, but sizes that enclose it.
        """
        file = bytearray(self.path.read_bytes())
        splices: list[tuple[int, int, bytes]] = []
        for variable in sorted({variable for variable, _ in edits}):
            own = [edit for (one, _), edit in edits.items() if one == variable]
            inner = self._splices(own)
            begin, end = self._places[variable]
            if begin < 0:
                splices += inner
            else:
                packed = zlib.compress(_spliced(bytes(own[0][0].at.content), inner))
                splices.append((begin, end, struct.pack(self.order + "II", _COMPRESSED, len(packed)) + packed))
        (subsystem,) = struct.unpack_from(self.order + "Q", file, 116)
        if HEAD <= subsystem < len(file):  # else there is none
            moved = sum(len(new) - (end - begin) for begin, end, new in splices if end <= subsystem)
            struct.pack_into(self.order + "Q", file, 116, subsystem + moved)
        return _spliced(bytes(file), splices)

    def _splices(self, edits: Sequence[tuple[Matrix, bytes]]) -> list[tuple[int, int, bytes]]:
        """The edits of one variable, and those of the sizes of everything around them."""
        splices = []
        grown: dict[int, int] = {}
        for matrix, new in edits:
            begin, end = matrix.data()
            splices.append((begin, end, new))
            for tag in matrix.tags:
                grown[tag] = grown.get(tag, 0) + len(new) - (end - begin)
        at = edits[0][0].at
        for tag, more in grown.items():
            at.place = tag + 4
            (size,) = at.numbers(self.order + "I", "a size")
            splices.append((tag + 4, tag + 8, struct.pack(self.order + "I", size + more)))
        return splices

    def element(self, array: Host) -> bytes:
        """The element that holds numbers."""
        return element(array, self.order)


def _spliced(content: bytes, splices: Sequence[tuple[int, int, bytes]]) -> bytes:
    pieces, place = [], 0
    for begin, end, new in sorted(splices):
        pieces += [content[place:begin], new]
        place = end
    return b"".join((*pieces, content[place:]))


@contextmanager
def opened(path: Path) -> Iterator[MatFile]:
    """A MAT-file whose variables can be looked at as long as it is open."""
    with path.open("rb") as file:
        yield MatFile(file, path)


def element(array: Host, order: str = "<") -> bytes:
    """Numbers as an element."""
    types = {code: number for number, code in _STORED.items()}
    content = array.astype(order + array.dtype.str[1:]).tobytes(order="F")
    return _padded(types[array.dtype.str[1:]], content, order)


def _padded(type_: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "II", type_, len(content)) + content + bytes(-len(content) % 8)


def matrix(value: Any, name: str = "") -> bytes:
    """A value as a matrix: an array of float32 or float64, a text, a dict (a struct), a list (a row of cells)."""
    if isinstance(value, str):
        units = np.frombuffer(value.encode("utf-16-le", "surrogatepass"), "<u2")
        return _matrix(CHAR, (1 if value else 0, units.size), name, element(units.astype(np.uint16)))
    if isinstance(value, dict):
        length = max(map(len, value)) + 1
        names = b"".join(key.encode().ljust(length, b"\0") for key in value)
        head = struct.pack("<HHi", 5, 4, length) + _padded(1, names)
        return _matrix(STRUCT, (1, 1), name, head + b"".join(map(matrix, value.values())))
    if isinstance(value, list):
        return _matrix(CELL, (1, len(value)), name, b"".join(map(matrix, value)))
    kind = SINGLE if value.dtype == np.float32 else DOUBLE
    return _matrix(kind, value.shape, name, element(value))


def _matrix(kind: int, dims: Sequence[int], name: str, body: bytes) -> bytes:
    head = _padded(6, struct.pack("<II", kind, 0)) + _padded(5, struct.pack(f"<{len(dims)}i", *dims))
    return _padded(_MATRIX, head + _padded(1, name.encode()) + body)


def written(variables: Mapping[str, Any]) -> bytes:
    """A file of these variables."""
    head = b"MATLAB 5.0 MAT-file, written by oclbn".ljust(116) + bytes(8) + b"\x00\x01IM"
    return head + b"".join(matrix(value, name) for name, value in variables.items())
