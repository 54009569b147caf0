"""Object headers of HDF5: the messages that describe a group or a dataset, of both formats; and the first block."""

from __future__ import annotations

from dataclasses import dataclass

from oclbn.errors import WeightsError
from oclbn.files.foreign import HDF5
from oclbn.files.hdf5.checksums import lookup3
from oclbn.files.hdf5.source import Body, Source

SPACE, LINKS, TYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT = 1, 2, 3, 4, 5, 6, 7, 8
FILTERS, ATTRIBUTE, CONTINUED, TABLE, ATTRIBUTES = 11, 12, 16, 17, 21
_SHARED = 2  # flag of a message that only says where the true one lies
_MOST_BYTES = 1 << 24  # of one header


@dataclass(frozen=True)
class Message:
    """One message: its kind, its bytes, and their address; summed: whether a checksum lies over them."""

    kind: int
    body: bytes
    address: int
    shared: bool
    summed: bool


def root_of(source: Source) -> int:
    """The address of the root group's header; sets the source's base."""
    place, last = 0, source.size - len(HDF5)
    while place <= last and source.take(place, len(HDF5), "HDF5's mark") != HDF5:
        place = 2 * place or 512
    if place > last:
        raise WeightsError(f"{source.label} is no HDF5 file: it has no mark of one")
    source.base = place
    version = source.take(8, 1, "the first block")[0]
    if version in (0, 1):
        body = Body(source, source.take(0, 96 + 4 * version, "the first block"), "the first block")
        body.skip(13)
        widths = body.numbers("BB")
        body.skip(9 + 4 * version)
        base, _, end, _, _, root = body.numbers("QQQQQQ")
    elif version in (2, 3):
        content = source.take(0, 48, "the first block")
        check_sum(source, content, "the first block")
        body = Body(source, content, "the first block")
        body.skip(9)
        *widths_, _ = body.numbers("BBB")
        widths = tuple(widths_)
        base, _, end, root = body.numbers("QQQQ")
    else:
        raise WeightsError(f"{source.label} is an HDF5 file of version {version}; 0 to 3 are read here")
    if widths != (8, 8):
        raise WeightsError(f"{source.label} has addresses of {widths[0]} bytes; 8 are read here")
    if base not in (0, place):
        raise source.wrong(f"it says that it begins at {base:,}, and its mark is at {place:,}")
    if end - base > source.size - place:
        raise WeightsError(f"{source.label} is cut short: it has {source.size - place:,} of {end - base:,} bytes")
    return int(root)


def check_sum(source: Source, content: bytes, what: str) -> None:
    """WeightsError unless the last four bytes are the checksum of the others."""
    if lookup3(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise source.wrong(f"the checksum of {what} is wrong")


def messages(source: Source, address: int) -> list[Message]:
    """All messages of the object header at an address."""
    start = source.take(address, 4, "an object's header")
    if start == b"OHDR":
        return _newer(source, address)
    if start[0] == 1:
        return _older(source, address)
    raise source.wrong(f"at {address:,} an object's header is said to be, and there is none")


def _older(source: Source, address: int) -> list[Message]:
    what = "an object's header"
    body = Body(source, source.take(address, 16, what), what)
    _, _, count, _, size, _ = body.numbers("BBHIII")
    blocks, found, total = [(address + 16, size)], list[Message](), 0
    while blocks and len(found) < count:
        at, size = blocks.pop(0)
        total += size
        if total > _MOST_BYTES:
            raise source.wrong(f"{what} at {address:,} has more than {_MOST_BYTES:,} bytes")
        body = Body(source, source.take(at, size, what), what)
        while len(body) >= 8 and len(found) < count:
            kind, length, flags, _, _ = body.numbers("HHBHB")
            inside = at + body.at
            found.append(Message(kind, body.take(length), inside, bool(flags & _SHARED), False))
            if kind == CONTINUED:
                following = Body(source, found[-1].body, what)
                blocks.append((following.number(), following.number()))
    return found


def _newer(source: Source, address: int) -> list[Message]:
    what = "an object's header"
    flags = source.take(address, 6, what)[5]
    start = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(source.take(address + start, width, what), "little")
    blocks, found, seen = [(address, start + width, start + width + size + 4)], list[Message](), set[int]()
    while blocks:
        at, begin, size = blocks.pop(0)
        if at in seen or not begin + 4 <= size <= _MOST_BYTES:
            raise source.wrong(f"{what} at {address:,} goes on at {at:,}, where it cannot")
        seen.add(at)
        content = source.take(at, size, what)
        check_sum(source, content, what)
        body = Body(source, content[:-4], what)
        if at == address:
            body.expect(b"OHDR", 2)
        elif body.take(4) != b"OCHK":
            raise source.wrong(f"{what} goes on at {at:,}, where none is")
        body.at = begin
        while len(body) >= 4 + (2 if flags & 4 else 0):
            kind, length, bits = body.numbers("BHB")
            body.skip(2 if flags & 4 else 0)
            inside = at + body.at
            found.append(Message(kind, body.take(length), inside, bool(bits & _SHARED), True))
            if kind == CONTINUED:
                following = Body(source, found[-1].body, what)
                blocks.append((following.number(), 4, following.number()))
    return found
