"""Elements of HDF5's datasets: where they lie, in one piece or in many, packed or not."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oclbn.errors import WeightsError
from oclbn.files.hdf5.checksums import fletcher32
from oclbn.files.hdf5.headers import check_sum
from oclbn.files.hdf5.links import leaves
from oclbn.files.hdf5.source import UNDEFINED, Body, Source

ROOM = 1 << 24  # bytes that a piece of a stored array may have, however small the array
_MOST_PIECES = 1 << 20
_TIMES = 16  # what all pieces together may have, times the array's bytes: they reach beyond its edges
_DEFLATE, _SHUFFLE, _FLETCHER, _LZF = 1, 2, 3, 32000
_NAMES = {4: "szip", 5: "nbit", 6: "scale-offset", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd"}


@dataclass(frozen=True)
class Layout:
    """Where the bytes of a dataset are: within its description (`inside`), or from an address on, or in pieces."""

    address: int = UNDEFINED
    size: int = 0
    inside: int | None = None
    piece: tuple[int, ...] = ()  # shape of one; () where there are none
    index: int = 0  # how the pieces are found: 0 by the older tree, 1 single, 2 in order, 3 by a table
    stored: int = 0  # bytes of a single packed piece, and which filters were left out
    mask: int = 0


@dataclass(frozen=True)
class Filter:
    code: int
    size: int  # bytes of an element, of shuffle


def layout_of(source: Source, content: bytes, packed: bool) -> Layout:
    """WeightsError: elements are elsewhere, or in a form that is not read here."""
    body = Body(source, content, "a dataset's layout")
    version, kind = body.numbers("BB")
    if version not in (3, 4, 5) or kind not in (0, 1, 2, 3):
        raise WeightsError(
            f"{source.label}: a dataset's layout is of version {version} and kind {kind}; 3 to 5 are read"
        )
    if kind == 0:
        size = body.number(2)
        return Layout(size=size, inside=body.at)
    if kind == 1:
        address, size = body.numbers("QQ")
        return Layout(address, size)
    if kind == 3:
        raise WeightsError(f"{source.label}: a dataset has its elements in another file")
    if version == 3:
        rank, address = body.number(1), body.number()
        return Layout(address, piece=tuple(body.numbers(f"{rank}I"))[:-1])
    flags, rank, width = body.numbers("BBB")
    if not 1 <= width <= 8:
        raise source.wrong(f"a dataset's pieces have extents of {width} bytes")
    piece = tuple(body.number(width) for _ in range(rank))[:-1]
    index = body.number(1)
    if index not in (1, 2, 3):
        raise WeightsError(
            f"{source.label}: a dataset's pieces are found by an index of kind {index}, which is not read here: "
            f"h5repack -f NONE -l CONTI makes a file without pieces"
        )
    stored = mask = 0
    if index == 1 and flags & 2:
        stored, mask = body.numbers("QI")
    body.skip(1 if index == 3 else 0)
    if index == 1 and packed and not flags & 2:
        raise source.wrong("a packed piece has no size")
    return Layout(body.number(), piece=piece, index=index, stored=stored, mask=mask)


def filters_of(source: Source, content: bytes) -> list[Filter]:
    body = Body(source, content, "a dataset's filters")
    version, count = body.numbers("BB")
    if version not in (1, 2):
        raise source.wrong(f"a dataset's filters are of version {version}")
    body.skip(6 if version == 1 else 0)
    found = []
    for _ in range(count):
        code = body.number(2)
        length = body.number(2) if version == 1 or code >= 256 else 0
        _, values = body.numbers("HH")
        body.skip(-(-length // 8) * 8 if version == 1 else length)
        told = body.numbers(f"{values}I")
        body.skip(4 if version == 1 and values % 2 else 0)
        if code not in (_DEFLATE, _SHUFFLE, _FLETCHER, _LZF):
            raise WeightsError(
                f"{source.label}: a dataset is packed by {_NAMES.get(code, f'filter {code}')}, which is not read here; "
                f"gzip and lzf are"
            )
        found.append(Filter(code, told[0] if told else 0))
    if len({one.code for one in found}) < len(found) or sum(one.code in (_DEFLATE, _LZF) for one in found) > 1:
        raise WeightsError(
            f"{source.label}: a dataset is packed twice, so that it may unpack to far more than its size"
        )
    return found


def elements(
    source: Source,
    layout: Layout,
    filters: Sequence[Filter],
    shape: tuple[int, ...],
    itemsize: int,
    fill: bytes,
    what: str,
) -> bytes:
    """The bytes of an array in C order that are not within its description."""
    size = math.prod(shape) * itemsize
    if not layout.piece:
        if layout.address != UNDEFINED and layout.size == size:
            source.unpack(size, what)
            return source.elements(layout.address, size, what)
        if layout.address != UNDEFINED:
            raise source.wrong(f"{what} has {layout.size:,} bytes; its shape {shape} wants {size:,}")
    if size > max(ROOM, 2 * source.size):
        raise WeightsError(f"{source.label}: {what} unpacks to {size:,} bytes, far more than the file has")
    source.unpack(size, what)
    made = bytearray((fill * (size // itemsize)) if any(fill) else size)
    if layout.address != UNDEFINED and size:
        _gather(source, layout, filters, shape, itemsize, made, what)
    return bytes(made)


def _gather(
    source: Source,
    layout: Layout,
    filters: Sequence[Filter],
    shape: tuple[int, ...],
    itemsize: int,
    made: bytearray,
    what: str,
) -> None:
    piece = layout.piece
    if len(piece) != len(shape) or not all(piece):
        raise source.wrong(f"{what} of shape {shape} is in pieces of shape {piece}")
    size = math.prod(piece) * itemsize
    counts = [-(-extent // part) for extent, part in zip(shape, piece, strict=True)]
    total = math.prod(counts) * size
    if size > max(len(made), ROOM) or total > max(_TIMES * len(made), ROOM) or math.prod(counts) > _MOST_PIECES:
        raise WeightsError(f"{source.label}: {what} unpacks to more than its {len(made):,} bytes: pieces have {size:,}")
    seen = set[tuple[int, ...]]()
    for place, address, stored, mask in _pieces(source, layout, bool(filters), counts, size, what):
        if place in seen or any(at % part or at >= end for at, part, end in zip(place, piece, shape, strict=True)):
            raise source.wrong(f"{what} has a piece at {place}, where none belongs")
        seen.add(place)
        if address == UNDEFINED:
            continue
        if stored > 2 * size + 64:
            raise WeightsError(f"{source.label}: {what} unpacks to more than its {len(made):,} bytes")
        source.unpack(size, what)
        content = source.elements(address, stored, what)
        for index, one in reversed(list(enumerate(filters))):
            if not mask >> index & 1:
                content = _undone(source, one, content, size + 4, what)
        if len(content) != size:
            raise source.wrong(f"{what} has a piece that unpacks to {len(content):,} bytes, and not to {size:,}")
        _put(made, content, shape, piece, place, itemsize)


def _pieces(
    source: Source, layout: Layout, packed: bool, counts: Sequence[int], size: int, what: str
) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """Of each piece: where in the array it belongs, its address, its bytes, and which filters were left out."""
    piece = layout.piece
    if layout.index == 0:
        for key, address in leaves(source, layout.address, 1, 8 + 8 * (len(piece) + 1)):
            body = Body(source, key, what)
            stored, mask = body.numbers("II")
            yield tuple(body.numbers(f"{len(piece)}Q")), address, stored, mask
        return
    places = itertools.product(*(range(0, count * part, part) for count, part in zip(counts, piece, strict=True)))
    if layout.index == 1:
        if math.prod(counts) != 1:
            raise source.wrong(f"{what} has one piece, and wants {math.prod(counts):,}")
        yield next(places), layout.address, layout.stored if packed else size, layout.mask
    elif layout.index == 2:
        for number, place in enumerate(places):
            yield place, layout.address + number * size, size, 0
    else:
        yield from _table(source, layout.address, places, math.prod(counts), size, packed, what)


def _table(
    source: Source,
    address: int,
    places: Iterator[tuple[int, ...]],
    count: int,
    size: int,
    packed: bool,
    what: str,
) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """Pieces that a fixed array lists, in order."""
    content = source.take(address, 28, what)
    check_sum(source, content, what)
    body = Body(source, content, what)
    body.expect(b"FAHD", 0)
    kind, width, bits = body.numbers("BBB")
    there, block = body.numbers("QQ")
    if kind != packed or there != count or not (width == 8 or (packed and 13 <= width <= 20)):
        raise source.wrong(f"{what} has a list of {there:,} pieces, and wants {count:,}")
    if block == UNDEFINED:
        return
    if count > 1 << bits:
        raise WeightsError(
            f"{source.label}: {what} is in {count:,} pieces, more than are read here: h5repack -f NONE -l CONTI makes "
            f"a file without pieces"
        )
    content = source.take(block, 14 + count * width + 4, what)
    check_sum(source, content, what)
    body = Body(source, content, what)
    body.expect(b"FADB", 0)
    body.skip(9)
    for place in places:
        at = body.number()
        stored, mask = (body.number(width - 12), body.number(4)) if packed else (size, 0)
        yield place, at, stored, mask


def _put(
    made: bytearray,
    content: bytes,
    shape: tuple[int, ...],
    piece: tuple[int, ...],
    place: tuple[int, ...],
    itemsize: int,
) -> None:
    """A piece into its place, without what reaches beyond the array."""
    if not shape:
        made[:] = content
        return
    import numpy as np

    kind = np.dtype(f"V{itemsize}")
    target = np.frombuffer(made, kind).reshape(shape)
    there = tuple(slice(at, min(at + part, end)) for at, part, end in zip(place, piece, shape, strict=True))
    inside = tuple(slice(0, part.stop - part.start) for part in there)
    target[there] = np.frombuffer(content, kind).reshape(piece)[inside]


def _undone(source: Source, one: Filter, content: bytes, most: int, what: str) -> bytes:
    """What a piece was before a filter; never more than so many bytes."""
    if one.code == _DEFLATE:
        unpacker = zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(content, most + 1)
        except zlib.error as error:
            raise source.wrong(f"{what} cannot be unpacked: {error}") from None
        if len(unpacked) > most or unpacker.unconsumed_tail:
            raise WeightsError(f"{source.label}: {what} unpacks to more than its bytes")
        if not unpacker.eof:
            raise source.wrong(f"{what} cannot be unpacked: it is cut short")
        return unpacked
    if one.code == _FLETCHER:
        if len(content) < 4 or fletcher32(content[:-4]) != int.from_bytes(content[-4:], "little"):
            raise source.wrong(f"the checksum of {what} is wrong")
        return content[:-4]
    if one.code == _SHUFFLE:
        return _unshuffled(content, one.size)
    return _unlzf(source, content, most, what)


def _unshuffled(content: bytes, size: int) -> bytes:
    if size < 2 or len(content) < size:
        return content
    import numpy as np

    count = len(content) // size
    whole = np.frombuffer(content, np.uint8, count * size).reshape(size, count)
    return whole.T.tobytes() + content[count * size :]


def _unlzf(source: Source, content: bytes, most: int, what: str) -> bytes:
    """Marc Lehmann's LZF: runs of bytes, and of what was there before."""
    made, at = bytearray(), 0
    try:
        while at < len(content):
            head = content[at]
            at += 1
            if head < 32:
                if at + head + 1 > len(content):
                    break
                made += content[at : at + head + 1]
                at += head + 1
            else:
                length = head >> 5
                if length == 7:
                    length += content[at]
                    at += 1
                start = len(made) - ((head & 31) << 8) - content[at] - 1
                at += 1
                if start < 0:
                    break
                for index in range(start, start + length + 2):
                    made.append(made[index])
            if len(made) > most:
                raise WeightsError(f"{source.label}: {what} unpacks to more than its bytes")
        else:
            return bytes(made)
    except IndexError:
        pass
    raise source.wrong(f"{what} cannot be unpacked: its lzf is cut short")
