"""Flax: what flax.serialization writes of variables, train states and nnx' pure dictionaries, as one MessagePack map.

Maps lie in maps, and at their ends arrays: an extension of type 1, itself a MessagePack array of the shape, the dtype's
name and the elements (little-endian: the order is not told). One above a gigabyte is a map of its shape and its chunks.
A layer of linen is two maps, params/NAME with scale and bias and batch_stats/NAME with mean and var; one of nnx is one
map of all four. Here a layer is named by its path without the collection, as "encoder/BatchNorm_0".

The file is walked, not loaded: the package msgpack gives values without their places, which are needed to put other
values into a copy of a model, and unpacks every kernel to find a mean.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from oclbn.elements import bfloat16
from oclbn.errors import WeightsError
from oclbn.files.layers import ARRAYS, Content, Host, Layer, Note, Written, fitted, matched, placed, untold

_STATISTICS, _PARAMETERS = "batch_stats", "params"
_CHUNKED = "__msgpack_chunked_array__"
_CHUNKS_OF = {(role,) for role in ARRAYS}
_ARRAY = 1  # the extension's type; 2 is a complex number, 3 a scalar
_TYPES = ("float16", "float32", "float64", "bfloat16")
_DEEPEST = 64  # maps within maps; a network has some twenty
_MOST_OBJECTS = 1 << 20  # in a file, seven per array; the largest models have some thousand arrays
_LONGEST_KEY = 1 << 12  # bytes
_MOST_AXES = 32

# What stands behind the first byte of an object: how many bytes are its length; the length for those without.
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_SIZES = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {0xCC + i: 1 << i % 4 for i in range(8)}
_FIXED_EXT = {0xD4 + i: 1 << i for i in range(5)}
_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class _Array:
    """An array of the file: its type and shape, and from where to where its elements lie, in one piece or several."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]


def claims(path: Path, head: bytes) -> bool:
    """A map that begins with a name, as of a collection of variables."""
    first = head[:1]
    start = 1 if b"\x81" <= first <= b"\x8f" else {b"\xde": 3, b"\xdf": 5}.get(first, len(head))
    mark, rest = head[start : start + 1], head[start + 1 :]
    if mark == b"\xd9" and rest:
        length, rest = rest[0], rest[1:]
    elif b"\xa1" <= mark <= b"\xbf":
        length = mark[0] & 0x1F
    else:
        return False
    try:
        return len(rest) > length and rest[:length].decode().isprintable()
    except UnicodeDecodeError:
        return False


def read(path: Path) -> Content:
    layers, notes, _ = _read(path)
    return Content("flax", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    notes = [note for layer in layers for note in untold(layer, "Flax's layer", epsilon=1e-5, factor=1 - 0.99)]
    if into is not None:
        image, more = _replaced(layers, into)
        return Written({name: image}, (*more, *notes))
    tree: dict[str, Any] = {}
    for layer in layers:
        layer.check_running("a file of Flax, where nothing else tells it from other layers")
        fit, more = fitted(layer, [np.dtype("f2"), bfloat16(), np.dtype("f4"), np.dtype("f8")], "Flax")
        notes += more
        within = tuple(layer.name.split("/")) if layer.name else ()
        for role in [role for role in ("bias", "scale", "mean", "var") if role in fit.arrays]:
            _put(tree, (_STATISTICS if role in ("mean", "var") else _PARAMETERS, *within), role, fit.arrays[role])
    return Written({name: _packed(tree)}, tuple(notes))


def _read(path: Path) -> tuple[list[Layer], list[Note], dict[str, dict[str, _Array]]]:
    """The layers, what there is to tell of them, and where the arrays of each lie, by its name."""
    with path.open("rb") as file:
        walk = _Walk(file, path)
        found = _grouped(walk.whole())
        layers, notes, places = [], [], {}
        for within, arrays in found.items():
            name = "/".join(within)
            odd = {role: one for role, one in arrays.items() if len(one.shape) != 1 or one.dtype not in _TYPES}
            if odd:
                told = ", ".join(f"{role} {one.dtype} {one.shape}" for role, one in odd.items())
                notes.append(Note(name, f"it is left out: one float per channel is wanted, and it has {told}"))
                continue
            if name in places:
                raise WeightsError(f"{path} has two layers of the name {name!r}")
            values: dict[str, Any] = {role: walk.elements(one) for role, one in arrays.items()}
            layers.append(Layer(name, **values, convention="flax"))
            places[name] = arrays
    return layers, notes, places


def _grouped(tree: Mapping[Path_, _Array]) -> dict[Path_, dict[str, _Array]]:
    """The arrays of each batch normalization: those of the maps that have a mean and a variance."""
    found: dict[Path_, dict[str, _Array]] = {}
    for where in tree:
        parent = where[:-1]
        if where[-1] != "mean" or (*parent, "var") not in tree:
            continue
        last = len(parent) - 1 - parent[::-1].index(_STATISTICS) if _STATISTICS in parent else None
        name = parent if last is None else (*parent[:last], *parent[last + 1 :])
        if name in found:
            continue
        other = parent if last is None else (*parent[:last], _PARAMETERS, *parent[last + 1 :])
        wanted = {"scale": other, "bias": other, "mean": parent, "var": parent}
        found[name] = {role: tree[(*at, role)] for role, at in wanted.items() if (*at, role) in tree}
    return found


class _Walk:
    """A file of MessagePack, object by object; elements of arrays are passed over."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.left = file, path, _MOST_OBJECTS
        self.end = path.stat().st_size
        self.place = 0
        self.arrays: dict[Path_, _Array] = {}

    def wrong(self, text: str) -> WeightsError:
        return WeightsError(f"{self.path} is damaged, or no file of Flax: {text}, at byte {self.place:,}")

    def whole(self) -> dict[Path_, _Array]:
        """Every array by its path of keys."""
        self.value((), self.end, 0)
        if self.place != self.end:
            raise self.wrong(f"{self.end - self.place:,} bytes follow")
        return self.arrays

    def elements(self, array: _Array) -> Host:
        """The elements of an array, copied."""
        parts = []
        for begin, end in array.pieces:
            self.file.seek(begin)
            parts.append(self.file.read(end - begin))
        return np.frombuffer(b"".join(parts), _dtype(array.dtype)).copy()

    def take(self, count: int, end: int) -> bytes:
        if count > end - self.place:
            raise self.wrong(f"{count:,} bytes are wanted, and {end - self.place:,} are left")
        taken = self.file.read(count)
        self.place += count
        return taken

    def skip(self, count: int, end: int) -> None:
        if count > end - self.place:
            raise self.wrong(f"an object has {count:,} bytes, and {end - self.place:,} are left")
        self.place += count
        self.file.seek(self.place)

    def size(self, mark: int, end: int) -> int:
        """The length of an object that has one: bytes, letters, entries or elements."""
        if mark in _LENGTHS:
            return int.from_bytes(self.take(_LENGTHS[mark], end), "big")
        if mark >= 0xDC:
            return int.from_bytes(self.take(4 if mark in (0xDD, 0xDF) else 2, end), "big")
        return mark & (0x1F if mark >= 0xA0 else 0x0F)

    def mark(self, end: int) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.wrong(f"it has more than {_MOST_OBJECTS:,} objects")
        return self.take(1, end)[0]

    def value(self, where: Path_, end: int, depth: int) -> None:
        """One object with all in it; arrays are noted with where they are."""
        if depth > _DEEPEST:
            raise self.wrong(f"maps are nested more than {_DEEPEST} deep")
        mark = self.mark(end)
        if _is_map(mark):
            count = self.size(mark, end)
            before = set[str]()
            for _ in range(count):
                key = self.key(end, depth)
                if key is None:  # of no kind that a path can have: all of it is passed over
                    self.value((), end, depth + 1)
                    continue
                if key in before:
                    raise self.wrong(f"a map has two entries {key!r}")
                before.add(key)
                self.value((*where, key) if where or depth == 0 else (), end, depth + 1)
            if _CHUNKED in before and where:
                self.join(where)
        elif 0x90 <= mark <= 0x9F or mark in (0xDC, 0xDD):
            for _ in range(self.size(mark, end)):
                self.value((), end, depth + 1)
        elif mark in (0xC7, 0xC8, 0xC9) or mark in _FIXED_EXT:
            length = _FIXED_EXT[mark] if mark in _FIXED_EXT else self.size(mark, end)
            code = self.take(1, end)[0]
            if code == _ARRAY and _is_wanted(where):
                if length > end - self.place:
                    raise self.wrong(f"an array has {length:,} bytes, and {end - self.place:,} are left")
                self.arrays[where] = self.array(self.place + length)
            else:
                self.skip(length, end)
        elif mark in _SIZES:
            self.skip(_SIZES[mark], end)
        elif mark in _LENGTHS or 0xA0 <= mark <= 0xBF:
            self.skip(self.size(mark, end), end)
        elif 0x80 <= mark <= 0xDF:
            raise self.wrong(f"no object begins with {mark:#x}")

    def key(self, end: int, depth: int) -> str | None:
        """The next key as text, numbers among them; None: it is something else, and was passed over."""
        mark = self.mark(end)
        if 0xA0 <= mark <= 0xBF or mark in (0xD9, 0xDA, 0xDB):
            length = self.size(mark, end)
            if length > _LONGEST_KEY:
                raise self.wrong(f"a key has {length:,} bytes")
            try:
                return self.take(length, end).decode()
            except UnicodeDecodeError as error:
                raise self.wrong(f"a key is no text: {error}") from error
        if mark < 0x80 or mark >= 0xE0 or mark in _NUMBERS:
            return str(self.number(mark, end))
        self.place -= 1
        self.file.seek(self.place)
        self.value((), end, depth + 1)
        return None

    def number(self, mark: int, end: int) -> int:
        if mark in _NUMBERS:
            return int(struct.unpack(_NUMBERS[mark], self.take(_SIZES[mark], end))[0])
        if 0x80 <= mark < 0xE0:
            raise self.wrong("a whole number is wanted")
        return mark if mark < 0x80 else mark - 0x100

    def array(self, end: int) -> _Array:
        """What an extension of type 1 holds, which ends there: shape, name of the dtype, elements."""
        if self.mark(end) != 0x93:
            raise self.wrong("an array is wanted: shape, type, elements")
        mark = self.mark(end)
        if not 0x90 <= mark <= 0x9F and mark != 0xDC:
            raise self.wrong("the shape of an array is wanted")
        axes = self.size(mark, end)
        if axes > _MOST_AXES:
            raise self.wrong(f"an array has {axes} axes")
        shape = tuple(self.number(self.mark(end), end) for _ in range(axes))
        mark = self.mark(end)
        if not 0xA0 <= mark <= 0xBF and mark not in (0xC4, 0xD9):
            raise self.wrong("the name of a dtype is wanted")
        name = self.take(self.size(mark, end), end).decode("ascii", "replace")
        mark = self.mark(end)
        if mark not in _LENGTHS and not 0xA0 <= mark <= 0xBF:
            raise self.wrong("the elements of an array are wanted")
        length = self.size(mark, end)
        if self.place + length != end:
            raise self.wrong(f"an array has {length:,} bytes, and {end - self.place:,} are its own")
        whole = math.prod(shape)
        if min(shape, default=0) < 0 or (name in _TYPES and whole * _dtype(name).itemsize != length):
            raise self.wrong(f"an array {shape} of {name} has {length:,} bytes")
        begin = self.place
        self.skip(length, end)
        return _Array(name, shape, ((begin, end),))

    def join(self, where: Path_) -> None:
        """Of the chunks of an array, which were found within the map that is there, one array."""
        found = {}
        while self.arrays and (last := next(reversed(self.arrays)))[: len(where)] == where:
            found[last[len(where) :]] = self.arrays.pop(last)
        chunks: list[_Array] = []
        while (one := found.get(("chunks", str(len(chunks))))) is not None:
            chunks.append(one)
        if not chunks and where[-1] not in ARRAYS:
            return
        if not chunks or any(len(one.shape) != 1 or one.dtype != chunks[0].dtype for one in chunks):
            raise self.wrong(f"{'/'.join(where)} has no chunks of one type")
        whole = (
            sum(one.shape[0] for one in chunks),
        )  # a flat array's shape; that of others asks for the map's numbers
        self.arrays[where] = _Array(chunks[0].dtype, whole, tuple(one.pieces[0] for one in chunks))


def _is_wanted(where: Path_) -> bool:
    """Whether an array there is one of a batch normalization, or a chunk of one."""
    return bool(where) and (where[-1] in ARRAYS or (where[-2:-1] == ("chunks",) and where[-3:-2] in _CHUNKS_OF))


def _is_map(mark: int) -> bool:
    return 0x80 <= mark <= 0x8F or mark in (0xDE, 0xDF)


def _dtype(name: str) -> np.dtype[Any]:
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def _replaced(layers: Sequence[Layer], into: Path) -> tuple[bytes, list[Note]]:
    """A model with other values in the place of its own, of the types that it has."""
    there, notes, places = _read(into)
    image = bytearray(into.read_bytes())
    for layer, target in matched(layers, there, into):
        arrays, more = placed(layer, target, into)
        notes += more
        for role, array in arrays.items():
            content = memoryview(array.tobytes())
            for begin, end in places[target.name][role].pieces:
                image[begin:end], content = content[: end - begin], content[end - begin :]
    return bytes(image), notes


def _put(tree: dict[str, Any], within: Path_, role: str, array: Host) -> None:
    """An array at its place in nested dictionaries."""
    here = tree
    for key in within:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise WeightsError(f"{'/'.join(within)!r} goes through {key!r}, which is an array of another layer")
    if role in here:
        raise WeightsError(f"{'/'.join((*within, role))!r} is the place of two layers' values")
    here[role] = array


def _packed(value: Any) -> bytes:
    """MessagePack as Flax writes it: each object in its shortest form."""
    if isinstance(value, dict):
        entries = b"".join(_packed(key) + _packed(one) for key, one in value.items())
        return _head(len(value), 0x80, 0x0F, (None, 0xDE, 0xDF)) + entries
    if isinstance(value, np.ndarray):
        content = value.tobytes()
        shape = _head(value.ndim, 0x90, 0x0F, (None, 0xDC, 0xDD)) + b"".join(map(_packed, value.shape))
        held = b"\x93" + shape + _packed(value.dtype.name) + _head(len(content), None, 0, (0xC4, 0xC5, 0xC6)) + content
        fixed = [mark for mark, size in _FIXED_EXT.items() if size == len(held)]
        return (bytes(fixed) if fixed else _head(len(held), None, 0, (0xC7, 0xC8, 0xC9))) + bytes([_ARRAY]) + held
    if isinstance(value, int):
        return _head(value, 0, 0x7F, (0xCC, 0xCD, 0xCE))
    text = str(value).encode()
    return _head(len(text), 0xA0, 0x1F, (0xD9, 0xDA, 0xDB)) + text


def _head(count: int, short: int | None, most: int, marks: tuple[int | None, int, int]) -> bytes:
    """The beginning of an object of so many: in its first byte, or in one, two or four bytes after it."""
    if short is not None and count <= most:
        return bytes([short | count])
    for mark, size in zip(marks, (1, 2, 4), strict=True):
        if mark is not None and count < 1 << 8 * size:
            return bytes([mark]) + count.to_bytes(size, "big")
    raise WeightsError(f"{count:,} bytes are more than an object of MessagePack can have")
