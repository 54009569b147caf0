"""HDF5's fractal heap, and the trees of the second version that lead to its objects: names and attributes by dozens."""

from __future__ import annotations

from collections.abc import Iterator

from oclbn.errors import WeightsError
from oclbn.files.hdf5.checksums import lookup3
from oclbn.files.hdf5.headers import check_sum
from oclbn.files.hdf5.source import Body, Source, width_of

_MOST_BLOCK = 1 << 26  # bytes of one block
_HEAP = "a heap of names or attributes"


def objects(source: Source, heap: int, tree: int, kind: int) -> Iterator[bytes]:
    """Every object of a heap that a tree of this kind leads to: 5 by name, of links; 8 by name, of attributes."""
    found = _Heap(source, heap)
    for record in _records(source, tree, kind):
        yield found.object(record[4:] if kind == 5 else record[:8])


def _records(source: Source, address: int, kind: int) -> Iterator[bytes]:
    what, seen = "a tree of names", set[int]()
    content = source.take(address, 38, what)
    check_sum(source, content, what)
    body = Body(source, content, what)
    body.expect(b"BTHD", 0)
    found, size, width, depth, _, _, root, count = body.numbers("BIHHBBQH")
    if found != kind or not 0 < width <= size <= _MOST_BLOCK or depth > 32 or width < (11 if kind == 5 else 8):
        raise source.wrong(f"{what} is of no kind that is known")
    # How many records fit into a part of the tree, and with all below it, decides how wide the counts of them are.
    most = (size - 10) // width
    narrow, totals, total = width_of(most), [0], most
    for _ in range(depth):
        pointer = 8 + narrow + totals[-1]
        total = ((size - 10 - pointer) // (width + pointer) + 1) * (total + 1)
        totals.append(width_of(total))

    def node(address: int, count: int, depth: int) -> Iterator[bytes]:
        if address in seen:
            raise source.wrong(f"{what} leads in a circle")
        seen.add(address)
        pointer = 8 + narrow + totals[depth - 1] if depth else 0
        used = 6 + count * width + (count + 1) * pointer + 4
        if used > size:
            raise source.wrong(f"{what} has more in a part than fits")
        content = source.take(address, used, what)
        check_sum(source, content, what)
        body = Body(source, content, what)
        body.expect(b"BTIN" if depth else b"BTLF", 0)
        body.skip(1)
        records = [body.take(width) for _ in range(count)]
        if not depth:
            yield from records
            return
        for index in range(count + 1):
            child, below = body.number(), body.number(narrow)
            body.skip(totals[depth - 1])
            yield from node(child, below, depth - 1)
            yield from records[index : index + 1]

    if count:
        yield from node(root, count, depth)


class _Heap:
    """A fractal heap, of which parts that were read once are kept."""

    def __init__(self, source: Source, address: int) -> None:
        self.source = source
        content = source.take(address, 146, _HEAP)
        body = Body(source, content, _HEAP)
        body.expect(b"FRHP", 0)
        _, filters, flags, managed = body.numbers("HHBI")
        if filters:
            raise WeightsError(f"{source.label}: {_HEAP} is packed, which is not read here")
        check_sum(source, content, _HEAP)
        body.skip(12 * 8)
        self.columns, self.first, self.largest, bits, _, self.root, self.rows = body.numbers("HQQHHQH")
        powers = all(number and number & (number - 1) == 0 for number in (self.columns, self.first, self.largest))
        if not (powers and self.first <= self.largest <= _MOST_BLOCK and bits <= 64 and self.rows <= 64):
            raise source.wrong(f"{_HEAP} has blocks of impossible sizes")
        self.summed = bool(flags & 2)
        self.offset_width = (bits + 7) // 8
        self.length_width = min((self.largest.bit_length() + 6) // 8, width_of(managed))
        self._blocks: dict[int, bytes] = {}

    def object(self, identity: bytes) -> bytes:
        body = Body(self.source, identity, _HEAP)
        kind = body.number(1) >> 4
        if kind == 2:  # so short that it lies in its own identity: no name or attribute of ours does
            raise WeightsError(f"{self.source.label}: {_HEAP} has objects within its index, which is not read here")
        if kind:
            raise WeightsError(f"{self.source.label}: {_HEAP} has objects too large for it, which is not read here")
        offset, length = body.number(self.offset_width), body.number(self.length_width)
        self.source.describe(length)  # objects may lie over each other
        start, block = self._block(offset)
        if offset - start + length > len(block):
            raise self.source.wrong(f"an object of {_HEAP} is cut off")
        return block[offset - start : offset - start + length]

    def _block(self, offset: int) -> tuple[int, bytes]:
        """The block in which something lies, and where in the heap that block begins."""
        address, rows, start = self.root, self.rows, 0
        if not rows:
            return 0, self._direct(address, self.first)
        for _ in range(64):
            row, at, size = 0, start, self.first
            while row < rows and offset >= at + size * self.columns:
                at += size * self.columns
                size *= 2 if row else 1
                row += 1
            if row >= rows:
                break
            column = (offset - at) // size
            address = self._child(address, rows, row * self.columns + column)
            start = at + column * size
            if size <= self.largest:
                return start, self._direct(address, size)
            rows = size.bit_length() - (self.first * self.columns).bit_length() + 1
            if rows < 1:
                break
        raise self.source.wrong(f"{_HEAP} has no place {offset:,}")

    def _child(self, address: int, rows: int, index: int) -> int:
        start = 13 + self.offset_width
        content = self._kept(address, start + 8 * rows * self.columns + 4)
        body = Body(self.source, content, _HEAP)
        body.expect(b"FHIB", 0)
        body.at = start + 8 * index
        return body.number()

    def _direct(self, address: int, size: int) -> bytes:
        content = self._kept(address, size)
        Body(self.source, content, _HEAP).expect(b"FHDB", 0)
        return content

    def _kept(self, address: int, size: int) -> bytes:
        if address not in self._blocks:
            content = self.source.take(address, size, _HEAP)
            if content.startswith(b"FHIB"):
                check_sum(self.source, content, _HEAP)
            elif self.summed:
                at = 13 + self.offset_width
                without = content[:at] + bytes(4) + content[at + 4 :]
                if lookup3(without) != int.from_bytes(content[at : at + 4], "little"):
                    raise self.source.wrong(f"the checksum of {_HEAP} is wrong")
            self._blocks[address] = content
        return self._blocks[address]
