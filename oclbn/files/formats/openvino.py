"""OpenVINO's IR: NAME.xml, which describes a network, and NAME.bin beside it, which holds its constants.

    <net version="11"><layers><layer id name type version><data .../>...</layer>...</layers><edges><edge from-layer
    from-port to-layer to-port/>...</edges></net>, and the same within a layer that has networks of its own

A layer is a BatchNormInference: epsilon, and the inputs 1 to 4 gamma, beta, mean, variance; in opset1 gamma and beta
come first, and data third. They are Const layers (element_type, shape, offset and size in NAME.bin), mostly float16 in
files of save_model, with a Convert behind each. Equal constants share a place in NAME.bin. Read is IR 10 and later;
whatever converted a network has most often folded its batch normalizations into other layers, so that there is none.

The XML is not trusted: a DOCTYPE, which alone can define entities, is refused, and so is nesting without end.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from oclbn.elements import bfloat16, kind
from oclbn.errors import WeightsError
from oclbn.files.formats import cursor
from oclbn.files.layers import ARRAYS, Content, Host, Layer, Note, Written, fitted_array, matched

_TYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
_CODES = {name: code for code, name in _TYPES.items()}
_PORTS = {"opset1": (0, 1, 3, 4)}  # of gamma, beta, mean, variance
_PORTS_SINCE = (1, 2, 3, 4)
_BATCH_NORM, _CONST, _CONVERT = "BatchNormInference", "Const", "Convert"
_DEEPEST, _CONVERTS = 200, 16
_ATTRIBUTE = re.compile(rb"""([^\s=<>/"']+)\s*=\s*("[^"]*"|'[^']*')""")
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LARGEST_HALF = 65504
_EPSILON = 1e-5  # where a layer says none
_ALIGN = 64  # bytes, of constants that are added


@dataclass
class _Node:
    """A layer of the network, of a type that matters here."""

    called: str
    type: str
    version: str
    begin: int  # where its element starts
    data: dict[str, str] = field(default_factory=dict)
    data_begin: int = -1


@dataclass
class _Scope:
    """A network, or one within a layer of it."""

    nodes: dict[str, _Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], tuple[str, str, int]] = field(default_factory=dict)  # by target; where it stands
    ids: set[str] = field(default_factory=set)
    uses: dict[str, int] = field(default_factory=dict)  # how many inputs the results of each layer go to


@dataclass(frozen=True)
class _Constant:
    """Where a constant lies: which Const it is, and what changes its value for this one layer alone."""

    scope: _Scope
    target: tuple[str, str]  # the layer's input
    node: _Node
    through: tuple[str, ...]  # ids of the Const and of every Convert between
    code: str  # of what is stored
    wanted: str  # of the layer's input
    begin: int
    size: int


@dataclass(frozen=True)
class _Found:
    """A batch normalization: its element and its constants by role."""

    name: str
    node: _Node
    constants: dict[str, _Constant]


class _Network:
    """What the XML says; everything else in it is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scopes: list[_Scope] = []
        self.depth = 0
        self._open: dict[int, _Scope] = {}  # by the depth of its <layers>
        self._layers: list[tuple[int, str, _Node | None]] = []  # those that we are within
        self._parser = expat.ParserCreate("utf-8")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype
        self.text = cursor.text_of(path).encode()
        try:
            self._parser.Parse(self.text, True)
        except expat.ExpatError as error:
            raise WeightsError(f"{path} is no sound XML: {error}") from error
        if not self.scopes:
            raise WeightsError(f"{path} is no network of OpenVINO: it has no layers")

    def _doctype(self, *_: Any) -> None:
        raise WeightsError(f"{self.path} has a DOCTYPE, which no network has, and which is not followed")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise WeightsError(f"{self.path} is damaged: it is nested more than {_DEEPEST} deep")
        if self.depth == 1:
            self._check_root(tag, attributes)
        elif tag == "layers":
            self._open[self.depth] = _Scope()
            self.scopes.append(self._open[self.depth])
        elif tag == "layer" and self.depth - 1 in self._open:
            self._layer(self._open[self.depth - 1], attributes)
        elif tag == "data" and self._layers and self._layers[-1][0] == self.depth - 1:
            node = self._layers[-1][2]
            if node is not None:
                node.data, node.data_begin = attributes, self._parser.CurrentByteIndex
        elif tag == "edge" and self.depth - 1 in self._open:
            self._edge(self._open[self.depth - 1], attributes)

    def _end(self, tag: str) -> None:
        if self._layers and self._layers[-1][0] == self.depth:
            self._layers.pop()
        self.depth -= 1

    def _check_root(self, tag: str, attributes: dict[str, str]) -> None:
        version = attributes.get("version", "")
        if tag != "net" or not version.isascii() or not version.isdigit():
            raise WeightsError(f"{self.path} is no network of OpenVINO: it begins with <{tag}>, version {version!r}")
        if len(version) < 2:
            raise WeightsError(f"{self.path} is of IR version {version}; those from 10 on are read")

    def _layer(self, scope: _Scope, attributes: dict[str, str]) -> None:
        called, kind_, number = (attributes.get(key, "") for key in ("name", "type", "id"))
        if number in scope.ids:
            raise WeightsError(f"{self.path} has two layers of id {number!r} in one network")
        scope.ids.add(number)
        node = None
        if kind_ in (_BATCH_NORM, _CONST, _CONVERT):
            above = "".join(f"{name}/" for _, name, _ in self._layers)
            node = _Node(above + called, kind_, attributes.get("version", ""), self._parser.CurrentByteIndex)
            scope.nodes[number] = node
        self._layers.append((self.depth, called, node))

    def _edge(self, scope: _Scope, attributes: dict[str, str]) -> None:
        keys = ("from-layer", "from-port", "to-layer", "to-port")
        source, port, target, its = (attributes.get(key, "") for key in keys)
        scope.uses[source] = scope.uses.get(source, 0) + 1
        if target in scope.nodes:
            scope.edges[target, its] = (source, port, self._parser.CurrentByteIndex)

    def number(self, node: _Node, key: str) -> int:
        """A size or a place that a layer's data states."""
        said = node.data.get(key, "")
        if not (said.isascii() and said.isdigit() and len(said) < 19):
            raise WeightsError(f"{self.path}: {key} of {node.called!r} is {said[:40]!r}; a number is wanted")
        return int(said)


def claims(path: Path, head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith((b"<?xml", b"<net")) and b"<net" in start


def read(path: Path) -> Content:
    found, notes = _found(_Network(path))
    binary = _binary(path)
    layers = [_layer(path, binary, one) for one in found]
    for one, layer in zip(found, layers, strict=True):
        notes += _clamped(one, layer)
    if not layers and not notes:
        text = (
            "it has no BatchNormInference: convert_model folds those of a network into other layers, while "
            "openvino.serialize of Core().read_model(ORIGINAL) keeps them"
        )
        notes = [Note("", text)]
    return Content("openvino", str(path), tuple(layers), tuple(notes))


def _clamped(one: _Found, layer: Layer) -> Iterator[Note]:
    """Notes of halves that save_model has made of what no half can hold, as it looks."""
    for role, array in layer.arrays.items():
        if one.constants[role].code == "f16" and one.constants[role].wanted != "f16":
            largest, zeros = int((np.abs(array) == _LARGEST_HALF).sum()), int((array == 0).sum())
            if largest:
                text = (
                    f"{role} has {largest} of {_LARGEST_HALF:,}, the largest half, which save_model makes of all above"
                )
                yield Note(layer.name, text)
            if role == "var" and zeros:
                yield Note(layer.name, f"var has {zeros} of 0, which save_model makes of all below 3e-8")


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    beside = Path(name).with_suffix(".bin").name
    if beside == name:
        raise WeightsError(f"{name}: the description's name is wanted, which ends in .xml; {beside} comes beside it")
    if into is not None:
        return _replaced(layers, name, beside, into)
    notes = [note for layer in layers for note in (*_untold(layer), *_assumed(layer))]
    binary = bytearray()
    described = _Description(binary)
    for layer in layers:
        described.add(layer.complete("OpenVINO's IR"))
    return Written({name: described.text().encode(), beside: bytes(binary)}, tuple(notes))


def _assumed(layer: Layer) -> Iterator[Note]:
    if layer.epsilon is None:
        yield Note(layer.name, f"its epsilon is not known: {_EPSILON:g} is written")


def _untold(layer: Layer) -> Iterator[Note]:
    if layer.cumulative or layer.factor is not None:
        weighs = "all batches weigh alike" if layer.cumulative else f"a new batch weighs {layer.factor:g}"
        yield Note(layer.name, f"{weighs}, and OpenVINO does not train", lost=True)


class _Description:
    """The XML of networks of one batch normalization each, side by side."""

    def __init__(self, binary: bytearray) -> None:
        self.binary = binary
        self.count = itertools.count()
        self.layers: list[str] = []
        self.edges: list[str] = []

    def text(self) -> str:
        inner = "".join(("\t<layers>\n", *self.layers, "\t</layers>\n\t<edges>\n", *self.edges, "\t</edges>\n"))
        return f'<?xml version="1.0"?>\n<net name="oclbn" version="11">\n{inner}\t<rt_info />\n</net>\n'

    def add(self, layer: Layer) -> None:
        if _NO_XML.search(layer.name):
            raise WeightsError(f"{layer}: its name has characters that XML cannot hold")
        types = {array.dtype.name for array in layer.arrays.values()}
        code = _CODES[types.pop()] if len(types) == 1 else "f64" if "float64" in types else "f32"
        sizes = (-1, layer.channels, -1, -1)
        data = f'shape="?,{layer.channels},?,?" element_type="{code}"'
        sources = [self._layer("x", "Parameter", data, [], sizes, code)]
        for role in ARRAYS:
            array = getattr(layer, role)
            its = _CODES[array.dtype.name]
            offset = _appended(self.binary, _little(array))
            data = f'element_type="{its}" shape="{array.size}" offset="{offset}" size="{array.nbytes}"'
            source = self._layer(f"{layer.name}/{role}", _CONST, data, [], (array.size,), its)
            if its != code:
                data = f'destination_type="{code}"'
                source = self._layer(f"{layer.name}/{role}/as {code}", _CONVERT, data, [source], (array.size,), code)
            sources.append(source)
        epsilon = _EPSILON if layer.epsilon is None else float(layer.epsilon)
        # The role's place in ARRAYS is that of its port: gamma, beta, mean, variance.
        normalized = self._layer(layer.name, _BATCH_NORM, f'epsilon="{epsilon!r}"', sources, sizes, code, "opset5")
        self._layer(f"{layer.name}/y", "Result", "", [normalized], None, code)

    def _layer(
        self,
        called: str,
        kind_: str,
        data: str,
        sources: Sequence[tuple[int, int, str]],
        sizes: Sequence[int] | None,
        code: str,
        version: str = "opset1",
    ) -> tuple[int, int, str]:
        """Add a layer; its id, the port of its result and the result as XML. sizes: of that, None where it has none."""
        number = next(self.count)
        lines = [f'\t\t<layer id="{number}" name={_quoted(called)} type="{kind_}" version="{version}">\n']
        if data:
            lines.append(f"\t\t\t<data {data} />\n")
        if sources:
            ports = (f'\t\t\t\t<port id="{port}"{shape}' for port, (_, _, shape) in enumerate(sources))
            lines += ["\t\t\t<input>\n", *ports, "\t\t\t</input>\n"]
        shape = ""
        if sizes is not None:
            dims = "".join(f"<dim>{size}</dim>" for size in sizes)
            shape = f' precision="{_precision(code)}">{dims}</port>\n'
            lines.append(f'\t\t\t<output>\n\t\t\t\t<port id="{len(sources)}"{shape}\t\t\t</output>\n')
        self.layers.append("".join((*lines, "\t\t</layer>\n")))
        self.edges += [
            f'\t\t<edge from-layer="{source}" from-port="{its}" to-layer="{number}" to-port="{port}" />\n'
            for port, (source, its, _) in enumerate(sources)
        ]
        return number, len(sources), shape


def _precision(code: str) -> str:
    """A type as ports call it."""
    return code.upper() if code == "bf16" else code.replace("f", "FP")


def _dtype(code: str) -> np.dtype[Any]:
    return bfloat16() if code == "bf16" else np.dtype(_TYPES[code])


def _quoted(text: str) -> str:
    return quoteattr(text, {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _little(array: Host) -> bytes:
    return array.tobytes() if kind(array.dtype) == 2 else array.astype(array.dtype.newbyteorder("<")).tobytes()


def _appended(binary: bytearray, content: bytes) -> int:
    """Put bytes behind the others; where."""
    binary += bytes(-len(binary) % _ALIGN)
    offset = len(binary)
    binary += content
    return offset


def _binary(path: Path) -> Path:
    return path.with_suffix(".bin")


def _found(network: _Network) -> tuple[list[_Found], list[Note]]:
    """Every batch normalization whose inputs are constants; a note of each other one."""
    found: list[_Found] = []
    notes: list[Note] = []
    used: dict[str, int] = {}
    for scope in network.scopes:
        for number, node in scope.nodes.items():
            if node.type != _BATCH_NORM:
                continue
            used[node.called] = used.get(node.called, 0) + 1
            name = node.called if used[node.called] == 1 else f"{node.called}#{used[node.called]}"
            constants = {}
            for role, port in zip(ARRAYS, _PORTS.get(node.version, _PORTS_SINCE), strict=True):
                constant = _constant(network, scope, (number, str(port)))
                if constant is None:
                    notes.append(Note(name, f"it is not read: {role} is no constant, but computed by the network"))
                    break
                constants[role] = constant
            else:
                found.append(_Found(name, node, constants))
    return found, notes


def _constant(network: _Network, scope: _Scope, target: tuple[str, str]) -> _Constant | None:
    """What an input is, behind its conversions; None: something is computed."""
    through: list[str] = []
    wanted = ""
    at = target
    for _ in range(_CONVERTS):
        source = scope.edges.get(at, ("", "", 0))[0]
        node = scope.nodes.get(source)
        if node is None:
            return None
        through.append(source)
        if node.type == _CONST:
            code = node.data.get("element_type", "")
            begin, size = network.number(node, "offset"), network.number(node, "size")
            return _Constant(scope, target, node, tuple(through), code, wanted or code, begin, size)
        if node.type != _CONVERT:
            return None
        wanted = wanted or node.data.get("destination_type", "")
        at = (source, "0")
    return None


def _layer(path: Path, binary: Path, one: _Found) -> Layer:
    said = one.node.data.get("epsilon", one.node.data.get("eps", ""))
    try:
        epsilon = float(said)
    except ValueError:
        epsilon = math.nan
    if not 0 <= epsilon < math.inf:
        raise WeightsError(f"{path}: epsilon of {one.name!r} is {said[:40]!r}; a number from 0 on is wanted")
    arrays: dict[str, Any] = {
        role: _values(path, binary, one.name, role, constant) for role, constant in one.constants.items()
    }
    return Layer(one.name, **arrays, epsilon=epsilon, convention="openvino")


def _values(path: Path, binary: Path, name: str, role: str, constant: _Constant) -> Host:
    for code in (constant.code, constant.wanted):
        if code not in _TYPES:
            raise WeightsError(
                f"{path}: {role} of {name!r} is of type {code[:20]!r}; one of {', '.join(_TYPES)} is wanted"
            )
    dtype = _dtype(constant.code)
    sizes = constant.node.data.get("shape", "").split(",")
    if len(sizes) != 1 or sizes[0].strip() != str(constant.size // dtype.itemsize) or constant.size % dtype.itemsize:
        told = f"shape {constant.node.data.get('shape', '')[:40]!r} and {constant.size:,} bytes of {constant.code}"
        raise WeightsError(f"{path}: {role} of {name!r} has {told}; one number per channel is wanted")
    if not binary.is_file():
        raise WeightsError(f"{path}: its constants are in {binary.name}, and there is no such file beside it")
    with binary.open("rb") as file:
        if constant.begin + constant.size > binary.stat().st_size:
            raise WeightsError(f"{path}: {role} of {name!r} is to lie beyond the end of {binary.name}")
        file.seek(constant.begin)
        content = file.read(constant.size)
    if len(content) < constant.size:
        raise WeightsError(f"{path}: {binary.name} has become shorter while it was read")
    return np.frombuffer(content, dtype if kind(dtype) == 2 else dtype.newbyteorder("<")).astype(dtype)


def _replaced(layers: Sequence[Layer], name: str, beside: str, into: Path) -> Written:
    """A copy with other values. What a constant shares with others stays theirs: it gets a place, or a Const, anew."""
    network = _Network(into)
    found = {one.name: one for one in _found(network)[0]}
    source = _binary(into)
    there = [_layer(into, source, one) for one in found.values()]
    binary = bytearray(source.read_bytes() if source.is_file() else b"")
    notes: list[Note] = []
    edits: list[tuple[int, int, bytes]] = []
    places = _Places(network)
    for layer, target in matched(layers, there, into):
        one = found[target.name]
        for role, array in layer.complete(into.name).arrays.items():
            constant = one.constants[role]
            anew = any(constant.scope.uses.get(number, 0) > 1 for number in constant.through)
            allowed = [_dtype(constant.wanted if anew else constant.code)]
            why = f"the type of that constant of {into.name}"
            fit, more = fitted_array(layer.name, role, array, allowed, why)
            notes += more
            content = _little(fit)
            if content == bytes(binary[constant.begin : constant.begin + constant.size]):
                continue
            if anew:
                edits += _const_anew(network, constant, content, binary)
            elif not places.shared(constant.begin, constant.size):
                binary[constant.begin : constant.begin + constant.size] = content
            else:
                edits.append(_edit(network, constant.node.data_begin, {"offset": _appended(binary, content)}))
        if layer.epsilon is not None and layer.epsilon != target.epsilon:
            edits.append(_edit(network, one.node.data_begin, {"epsilon": repr(float(layer.epsilon))}))
        notes += _untold(layer)
    text = network.text
    for begin, end, instead in sorted(edits, reverse=True):
        text = text[:begin] + instead + text[end:]
    return Written({name: text, beside: bytes(binary)}, tuple(notes))


class _Places:
    """The bytes of all constants of a network."""

    def __init__(self, network: _Network) -> None:
        consts = [node for scope in network.scopes for node in scope.nodes.values() if node.type == _CONST]
        places = [(network.number(node, "offset"), network.number(node, "size")) for node in consts]
        self._begins = sorted(begin for begin, _ in places)
        self._ends = sorted(begin + size for begin, size in places)

    def shared(self, begin: int, size: int) -> bool:
        """Whether more than one constant has bytes of these."""
        return bisect.bisect_left(self._begins, begin + size) - bisect.bisect_right(self._ends, begin) > 1


def _const_anew(
    network: _Network, constant: _Constant, content: bytes, binary: bytearray
) -> Iterator[tuple[int, int, bytes]]:
    """A Const of its own for one input of a layer, as others take the one that it has."""
    scope, (number, _) = constant.scope, constant.target
    count = len(content) // _dtype(constant.wanted).itemsize
    own = next(str(one) for one in itertools.count(len(scope.ids)) if str(one) not in scope.ids)
    scope.ids.add(own)
    data = f'element_type="{constant.wanted}" shape="{count}" offset="{_appended(binary, content)}"'
    port = f'<port id="0" precision="{_precision(constant.wanted)}"><dim>{count}</dim></port>'
    node = scope.nodes[number]
    called = _quoted(f"{constant.node.called}/{own}")
    text = f'<layer id="{own}" name={called} type="{_CONST}" version="opset1"><data {data} size="{len(content)}" />'
    yield node.begin, node.begin, f"{text}<output>{port}</output></layer>\n\t\t".encode()
    place = scope.edges[constant.target][2]
    yield _edit(network, place, {"from-layer": own, "from-port": "0"})


def _edit(network: _Network, begin: int, values: dict[str, Any]) -> tuple[int, int, bytes]:
    """Other values of attributes of the tag that begins there."""
    text = network.text
    place = begin + 1
    while text[place : place + 1] not in (b"", b" ", b"\t", b"\r", b"\n", b"/", b">"):
        place += 1
    pieces = [text[begin:place]]
    while (found := _ATTRIBUTE.match(text, place + len(_spaces(text, place)))) is not None:
        key = found[1].decode()
        its = f'{key}="{values[key]}"'.encode() if key in values else found[0]
        pieces += [_spaces(text, place), its]
        place = found.end()
    return begin, place, b"".join(pieces)


def _spaces(text: bytes, place: int) -> bytes:
    end = place
    while text[end : end + 1].isspace():
        end += 1
    return text[place:end]
