"""HDF5 files that are not trusted, read without HDF5: every fault of one is a WeightsError that names it.

HDF5's own library is busy for more than twenty seconds, or takes gigabytes, with one or two of a thousand damaged files
of its older format, which has no checksums over its descriptions, and which Keras and NNabla write. This reads what
such files are made of: groups, attributes, and datasets of numbers, whole, in pieces, and packed by gzip or lzf.
Nothing outside of the file is opened. What is read and kept of a file is bounded by its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from oclbn.elements import bfloat16
from oclbn.errors import WeightsError
from oclbn.files.hdf5 import headers
from oclbn.files.hdf5.elements import Layout, elements, filters_of, layout_of
from oclbn.files.hdf5.fractal import objects
from oclbn.files.hdf5.headers import Message, messages, root_of
from oclbn.files.hdf5.links import Links, links_of
from oclbn.files.hdf5.source import UNDEFINED, Body, Source
from oclbn.files.hdf5.types import Attribute, Kind, attribute_of, kind_of, shape_of
from oclbn.files.layers import Host

__all__ = ["Attribute", "Dataset", "File", "Group"]

_MOST_DEPTH = 64  # groups within each other


class Node:
    """A group or a dataset. name: its path in the file."""

    def __init__(self, source: Source, name: str, found: list[Message]) -> None:
        self.source, self.name, self._found = source, name, found

    @cached_property
    def attributes(self) -> Mapping[str, Attribute]:
        """All that is said of it by a name."""
        contents: list[bytes] = []
        for message in self._found:
            if message.kind == headers.ATTRIBUTE and not message.shared:
                contents.append(message.body)
            elif message.kind == headers.ATTRIBUTES and not message.shared:
                body = Body(self.source, message.body, "attributes")
                _, flags = body.numbers("BB")
                body.skip(2 if flags & 1 else 0)
                heap, tree = body.numbers("QQ")
                if heap != UNDEFINED and tree != UNDEFINED:
                    contents += objects(self.source, heap, tree, 8)
        made = [attribute for content in contents if (attribute := attribute_of(self.source, content)) is not None]
        return {attribute.name: attribute for attribute in made}

    def _only(self, kind: int) -> Message | None:
        found = next((message for message in self._found if message.kind == kind), None)
        if found is not None and found.shared:
            raise WeightsError(f"{self.source.label}: {self.name} shares its type with others, which is not read here")
        return found


class Group(Node):
    """Names, and what they mean."""

    @cached_property
    def links(self) -> Links:
        """The address of each name's object, or what it points to where that is elsewhere."""
        return links_of(self.source, self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.links)

    def __contains__(self, name: str) -> bool:
        return name in self.links

    def get(self, path: str) -> Node | None:
        """What lies under a path of names; None where nothing does. WeightsError: a name on the way is a link."""
        found: Node | None = self
        for name in filter(None, path.split("/")):
            if not isinstance(found, Group) or (target := found.links.get(name)) is None:
                return None
            if isinstance(target, str):
                raise WeightsError(
                    f"{self.source.label}: {name!r} in {found.name} is a link to {target!r}; wanted no link"
                )
            found = _node(self.source, f"{found.name.rstrip('/')}/{name}", target)
        return found

    def group(self, path: str) -> Group | None:
        found = self.get(path)
        return found if isinstance(found, Group) else None

    def dataset(self, path: str) -> Dataset | None:
        found = self.get(path)
        return found if isinstance(found, Dataset) else None

    def walk(self) -> Iterator[Group]:
        """This group and all within it, each once, in the file's order. WeightsError: a name in one is a link."""
        seen = set[int | str]()
        waiting: list[tuple[Group, int]] = [(self, 0)]
        while waiting:
            group, depth = waiting.pop()
            yield group
            if depth > _MOST_DEPTH:
                raise WeightsError(f"{self.source.label}: its groups lie more than {_MOST_DEPTH} deep in each other")
            below = []
            for name, target in group.links.items():
                if target not in seen and isinstance(found := group.get(name), Group):
                    below.append((found, depth + 1))
                seen.add(target)
            waiting += reversed(below)


class Dataset(Node):
    """An array."""

    @cached_property
    def kind(self) -> Kind:
        return kind_of(self.source, self._wanted(headers.TYPE).body)

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """None: it has no elements and no shape."""
        return shape_of(self.source, self._wanted(headers.SPACE).body)

    @property
    def size(self) -> int:
        return 0 if self.shape is None else math.prod(self.shape)

    @cached_property
    def dtype(self) -> np.dtype[np.generic] | None:
        """Of `array`; None where elements are no numbers."""
        if self.kind.is_bfloat16:
            return bfloat16()
        return np.dtype(self.kind.code) if self.kind.code and not self.kind.is_text else None

    @cached_property
    def layout(self) -> Layout:
        if self._only(headers.EXTERNAL) is not None:
            raise WeightsError(f"{self.source.label}: {self.name} has its elements in another file")
        packed = self._only(headers.FILTERS) is not None
        return layout_of(self.source, self._wanted(headers.LAYOUT).body, packed)

    @property
    def is_packed(self) -> bool:
        """Whether its elements lie otherwise than one after the other in one place."""
        return bool(self.layout.piece) or (self.layout.inside is None and self.layout.address == UNDEFINED)

    def array(self) -> Host:
        """Its elements, bit by bit, in the machine's byte order. WeightsError: they are no numbers, or not there."""
        dtype, shape = self.dtype, self.shape
        if dtype is None or shape is None:
            told = self.kind.told if shape is not None else "nothing"
            raise WeightsError(f"{self.source.label}: {self.name} holds {told}; numbers are wanted")
        content = self._content(shape)
        if self.kind.is_bfloat16:
            words = np.frombuffer(content, self.kind.code[0] + "u2").astype(np.uint16)
            return words.view(dtype).reshape(shape)
        made: Host = np.frombuffer(content, dtype).astype(dtype.newbyteorder("=")).reshape(shape)
        return made

    def _content(self, shape: tuple[int, ...]) -> bytes:
        itemsize, layout = self.kind.size, self.layout
        if layout.inside is not None:
            content = self._wanted(headers.LAYOUT).body[layout.inside :][: layout.size]
            if len(content) != self.size * itemsize:
                raise self.source.wrong(f"{self.name} has {len(content):,} bytes, and its shape is {shape}")
            return content
        packed = self._only(headers.FILTERS)
        filters = [] if packed is None else filters_of(self.source, packed.body)
        return elements(self.source, layout, filters, shape, itemsize, self._fill(), self.name)

    def _fill(self) -> bytes:
        """What elements are that were never written; nothing for zeros."""
        message = self._only(headers.FILL)
        if message is None:
            return b""
        body = Body(self.source, message.body, "a fill value")
        version, flags = body.numbers("BB")
        if version == 3:
            defined = bool(flags & 0x20)
        else:
            body.skip(1)
            defined = bool(body.number(1))
        value = body.take(body.number(4)) if defined and len(body) >= 4 else b""
        return value if len(value) == self.kind.size else b""

    def place(self) -> tuple[int, int]:
        """Where in the open file its elements lie, and how many bytes they are, where nothing packs or sums them."""
        size = self.size * self.kind.size
        message = self._wanted(headers.LAYOUT)
        if self.is_packed or (self.layout.inside is not None and message.summed):
            raise WeightsError(f"{self.source.label}: the elements of {self.name} do not lie there as they are")
        if self.layout.inside is not None:
            return self.source.place(message.address + self.layout.inside, size, self.name), size
        return self.source.place(self.layout.address, size, self.name), size

    def _wanted(self, kind: int) -> Message:
        found = self._only(kind)
        if found is None:
            raise self.source.wrong(f"{self.name} has no type, no shape or no layout")
        return found


class File(Group):
    """The root group of a file that is opened here, and closed."""

    def __init__(self, file: BinaryIO, label: str, begin: int = 0, size: int | None = None) -> None:
        """label: what to call it in messages. begin, size: where it lies in `file`, which is read, and closed by exit.

        WeightsError: it is no HDF5 file, is cut short, or damaged at its root.
        """
        if size is None:
            size = file.seek(0, 2) - begin
        source = Source(file, begin, size, label)
        address = root_of(source)
        found = messages(source, address)
        super().__init__(source, "/", found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.source.file.close()


def _node(source: Source, name: str, address: int) -> Node:
    found = messages(source, address)
    kinds = {message.kind for message in found}
    if headers.LAYOUT in kinds:
        return Dataset(source, name, found)
    if kinds & {headers.TABLE, headers.LINKS, headers.LINK}:
        return Group(source, name, found)
    return Node(source, name, found)
