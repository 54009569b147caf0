"""Groups of HDF5: which names they have, and where what those names mean lies.

In the older format names are in a heap, and a tree leads to tables of them. In the newer one they are messages of the
group's header, or, where they are many, objects of a fractal heap, which a tree of the second version leads to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oclbn.errors import WeightsError
from oclbn.files.hdf5 import headers
from oclbn.files.hdf5.fractal import objects
from oclbn.files.hdf5.headers import Message
from oclbn.files.hdf5.source import UNDEFINED, Body, Source

_ELSEWHERE = "another place"
_SOFT = 2  # kind of an entry of the older tables
Links = dict[str, int | str]  # the address of an object, or what a link points to that leads elsewhere


def links_of(source: Source, found: Sequence[Message]) -> Links:
    """The names of a group, in its order."""
    made: Links = {}
    for name, target in _entries(source, found):
        if name in made:
            raise source.wrong(f"a group has the name {name!r} twice")
        made[name] = target
    return made


def _entries(source: Source, found: Sequence[Message]) -> Iterator[tuple[str, int | str]]:
    for message in found:
        if message.shared and message.kind in (headers.TABLE, headers.LINKS, headers.LINK):
            raise WeightsError(f"{source.label}: a group's names are shared with another object")
        if message.kind == headers.TABLE:
            yield from _older(source, Body(source, message.body, "a group"))
        elif message.kind == headers.LINK:
            yield _link(source, message.body)
        elif message.kind == headers.LINKS:
            body = Body(source, message.body, "a group")
            _, flags = body.numbers("BB")
            body.skip(8 if flags & 1 else 0)
            heap, tree = body.numbers("QQ")
            if heap != UNDEFINED and tree != UNDEFINED:
                for content in objects(source, heap, tree, 5):
                    yield _link(source, content)


def _link(source: Source, content: bytes) -> tuple[str, int | str]:
    body = Body(source, content, "a name in a group")
    version, flags = body.numbers("BB")
    if version != 1:
        raise source.wrong(f"a name in a group is of version {version}")
    kind = body.number(1) if flags & 8 else 0
    body.skip((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    name = text(source, body.take(body.number(1 << (flags & 3))))
    if kind == 0:
        return name, body.number()
    where = body.take(body.number(2)).decode(errors="replace").strip("\0") if kind in (1, 64) else _ELSEWHERE
    return name, where.replace("\0", " ")


def _older(source: Source, table: Body) -> Iterator[tuple[str, int | str]]:
    tree, at = table.numbers("QQ")
    body = Body(source, source.take(at, 32, "a heap of names"), "a heap of names")
    body.expect(b"HEAP", 0)
    body.skip(3)
    size, _, data = body.numbers("QQQ")
    names = source.take(data, size, "a heap of names")

    def name_at(offset: int) -> str:
        end = names.find(b"\0", offset)
        if not 0 <= offset < len(names) or end < 0:
            raise source.wrong("a name lies outside of its heap")
        return text(source, names[offset:end])

    for leaf in leaves(source, tree, 0, 8):
        entries = Body(source, source.take(leaf[1], 8, "a table of names"), "a table of names")
        entries.expect(b"SNOD", 1)
        entries.skip(1)
        count = entries.number(2)
        entries = Body(source, source.take(leaf[1] + 8, 40 * count, "a table of names"), "a table of names")
        for _ in range(count):
            offset, address, kind, _ = entries.numbers("QQII")
            scratch = Body(source, entries.take(16), "a table of names")
            yield name_at(offset), (name_at(scratch.number(4)) if kind == _SOFT else address)


def leaves(source: Source, address: int, kind: int, width: int) -> Iterator[tuple[bytes, int]]:
    """What a tree of the first version leads to, in order: the key before it, of so many bytes, and its address."""
    if address == UNDEFINED:
        return
    what, seen = "a tree", set[int]()

    def node(address: int, below: int | None) -> Iterator[tuple[bytes, int]]:
        body = Body(source, source.take(address, 24, what), what)
        mark = body.take(4)
        found, level, count, _, _ = body.numbers("BBHQQ")
        if mark != b"TREE" or found != kind or address in seen or (below is not None and level != below):
            raise source.wrong(f"at {address:,} a part of a tree is said to be, and it is none")
        seen.add(address)
        body = Body(source, source.take(address + 24, count * (width + 8), what), what)
        for _ in range(count):
            key, child = body.take(width), body.number()
            if level:
                yield from node(child, level - 1)
            else:
                yield key, child

    yield from node(address, None)


def text(source: Source, content: bytes) -> str:
    source.describe(len(content))  # in a heap one name may be the end of another
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise source.wrong(f"a name is no text: {content[:40]!r}") from None
