"""An ONNX model as a graph: parsed within bounds, with what its constants are called where, and what they hold.

An input of a node is a constant if its name leads to an initializer or to a Constant node: through Identity nodes, out
of the bodies of If, Loop and Scan into the graph around them, and from a local function to what a call gives it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.elements import bfloat16
from oclbn.errors import OclbnError, WeightsError
from oclbn.files import whole
from oclbn.files.layers import Host

DOMAINS = ("", "ai.onnx")  # both mean the standard's own operators
_MOST_BYTES = 1 << 31  # of one message, by the protocol itself
_MOST_FIELDS = 2_000_000  # an empty message takes two bytes of a file and a hundred of memory
_MOST_NODES = 1_000_000  # a function that calls another twice, and so on, has no end that is seen from its size
_LEAST_ROOM, _TIMES = 1 << 26, 4  # bytes, and file sizes, of copies of constants that several layers read
_MOST_STEPS = 32  # from a node to a constant
_DEEPEST = 100  # messages within messages, which protobuf itself reads
_DEEPEST_CALL = 50
_FLOAT_DATA = 4  # number of TensorProto's field


@dataclass(eq=False)
class Scope:
    """Where names mean one thing: a graph, or the body of a function as one call has it."""

    owner: Any  # GraphProto or FunctionProto
    opset: int
    label: str  # of the function, for names of what is in it; "" in graphs of the model
    outer: Scope | None = None  # the graph around it, whose names it sees
    given: dict[str, Step] = field(default_factory=dict)  # what a call gives the inputs of a function
    attributes: dict[str, Any] = field(default_factory=dict)  # of that call
    calls: int = 1  # of the function that it is or lies in, in the whole model
    tensors: dict[str, Any] = field(default_factory=dict)  # its initializers
    makers: dict[str, Any] = field(default_factory=dict)  # the nodes that make a name

    @property
    def is_graph(self) -> bool:
        return hasattr(self.owner, "initializer")


@dataclass(eq=False)
class Step:
    """One name on the way to a constant: the scope that it belongs to, and the inputs of nodes that read it here."""

    scope: Scope
    name: str
    readers: list[tuple[Any, int]]


@dataclass(eq=False)
class Constant:
    """Where the way from a node's input ends: at an initializer, or at a node.

    steps: from the node's own input to there; empty where the node has no such input. tensor: None where the values are
    no constants. node: None where it ends at an initializer, or at an input of the model.
    """

    steps: list[Step]
    tensor: Any = None
    node: Any = None

    @property
    def origin(self) -> str:
        """Where values that are no constants come from, for messages."""
        if not self.steps:
            return "is not there"
        return "is an input of the model" if self.node is None else f"is computed, by a node {self.node.op_type}"


class Model:
    """A model that was read from a file. WeightsError, which names the file: it is damaged, or goes beyond bounds."""

    def __init__(self, path: Path) -> None:
        from onnx import ModelProto

        self.path = path
        size = path.stat().st_size
        if size >= _MOST_BYTES:
            raise WeightsError(f"{path} has {size:,} bytes; one of ONNX has less than {_MOST_BYTES:,}, as protobuf has")
        content = path.read_bytes()
        with self.told():
            _check_fields(content, ModelProto.DESCRIPTOR)
            self.proto = ModelProto.FromString(content)
            self.functions = {(one.domain, one.name, one.overload): one for one in self.proto.functions}
            self.opset = _opset(self.proto.opset_import)
        self.calls: Counter[int] = Counter()
        self._uses: dict[int, Counter[str]] = {}
        self._names: set[str] = set()
        self._room = max(_LEAST_ROOM, _TIMES * size)
        # What several nodes or calls lead to is found once: a small file may have very many ways to it.
        self._known: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._arrays: dict[Any, Host] = {}
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # as what is known by its id has to stay

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn what protobuf or Python say of a file into an error that names it."""
        try:
            yield
        except (OclbnError, OSError):
            raise
        except RecursionError:
            raise WeightsError(f"{self.path} is damaged: its parts are nested too deeply") from None
        except Exception as error:
            raise WeightsError(f"{self.path} is damaged, or no ONNX model: {error}") from error

    def _scope(self, owner: Any, opset: int, label: str, **given: Any) -> Scope:
        if id(owner) not in self._known:
            tensors = {tensor.name: tensor for tensor in getattr(owner, "initializer", ())}
            self._kept.append(owner)
            self._known[id(owner)] = tensors, {name: node for node in owner.node for name in node.output if name}
        tensors, makers = self._known[id(owner)]
        return Scope(owner, opset, label, tensors=tensors, makers=makers, **given)

    def nodes(self) -> Iterator[tuple[Scope, Any]]:
        """Every node of the model, with its scope; those of a function once for each call."""
        found = []
        for scope, node in self._nodes(self._scope(self.proto.graph, self.opset, ""), 0):
            found.append((scope, node))
            if len(found) > _MOST_NODES:
                raise WeightsError(
                    f"{self.path} has more than {_MOST_NODES:,} nodes, with those of its functions' calls"
                )
        for scope, _ in found:
            around = scope
            while around.outer is not None:
                around = around.outer
            scope.calls = max(1, self.calls[id(around.owner)])
        return iter(found)

    def _nodes(self, scope: Scope, depth: int) -> Iterator[tuple[Scope, Any]]:
        if depth > _DEEPEST_CALL:
            raise WeightsError(f"{self.path} is damaged: its graphs and functions are nested too deeply")
        for node in scope.owner.node:
            yield scope, node
            for graph in _graphs_of(node):
                inner = self._scope(graph, scope.opset, scope.label, outer=scope, attributes=scope.attributes)
                yield from self._nodes(inner, depth + 1)
            body = self.functions.get((node.domain, node.op_type, node.overload))
            if body is not None:
                self.calls[id(body)] += 1
                given = {
                    formal: Step(scope, name, [(node, index)])
                    for index, (formal, name) in enumerate(zip(body.input, node.input, strict=False))
                }
                attributes = {one.name: one for one in body.attribute_proto}
                attributes |= {one.name: attribute(scope, one) or one for one in node.attribute}
                label = f"{scope.label}{node.name or node.output[0]}/"
                inner = self._scope(body, _opset(body.opset_import), label, given=given, attributes=attributes)
                yield from self._nodes(inner, depth + 1)

    def constant(self, scope: Scope, readers: list[tuple[Any, int]]) -> Constant:
        """Where the way from an input of a node, or of several that read one name, leads."""
        node, index = readers[0]
        name = node.input[index] if index < len(node.input) else ""
        steps: list[Step] = []
        while name:
            here: Scope | None = scope
            while here is not None and not (name in here.tensors or name in here.makers or name in here.given):
                here = here.outer
            if here is None:
                return Constant([*steps, Step(scope, name, readers)])
            if len(steps) >= _MOST_STEPS:
                text = f"{name!r} is made from itself, or leads through more than {_MOST_STEPS} nodes to a constant"
                raise WeightsError(f"{self.path} is damaged: {text}")
            steps.append(Step(here, name, readers))
            if name in here.tensors:
                return Constant(steps, here.tensors[name])
            if name in here.given:
                given = here.given[name]
                scope, name, readers = given.scope, given.name, given.readers
                continue
            maker = here.makers[name]
            if maker.op_type == "Constant" and maker.domain in DOMAINS:
                return Constant(steps, self._value(here, maker), maker)
            if maker.op_type != "Identity" or maker.domain not in DOMAINS:
                return Constant(steps, None, maker)
            scope, name, readers = here, maker.input[0], [(maker, 0)]
        return Constant([])

    def is_shared(self, step: Step) -> bool:
        """Whether somebody else reads this name, here or in a nested graph."""
        return self._count(step.scope.owner)[step.name] > len(step.readers)

    def _count(self, owner: Any) -> Counter[str]:
        """How often each name is read in a graph or function, and in what is nested in it."""
        if id(owner) not in self._uses:
            uses = self._uses[id(owner)] = Counter()
            for graph in _nested(owner):
                for node in graph.node:
                    uses.update(node.input)
                uses.update(one if isinstance(one, str) else one.name for one in graph.output)
        return self._uses[id(owner)]

    def add(self, step: Step, name: str, tensor: Any) -> None:
        """Give the readers of a name this tensor instead, as a new initializer of the graph that the name belongs to.

        An Identity node is not made to read it: the initializer takes its place, and its name.
        """
        from onnx import helper

        graph, reader = step.scope.owner, step.readers[0][0]
        self._count(graph)[step.name] -= len(step.readers)
        if reader.op_type == "Identity" and reader.output[0] in step.scope.makers:
            tensor.name = reader.output[0]
            del step.scope.makers[tensor.name]
            graph.node.remove(reader)
        else:
            tensor.name = self._free(name)
            for node, index in step.readers:
                node.input[index] = tensor.name
        graph.initializer.append(tensor)
        if self.proto.ir_version < 4:  # up to then every initializer is an input, too
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))

    def _free(self, name: str) -> str:
        """This name, or with a number after it the first that nothing in the model has."""
        if not self._names:
            for owner in (self.proto.graph, *self.proto.functions):
                for graph in _nested(owner):
                    self._names.update(one if isinstance(one, str) else one.name for one in graph.input)
                    self._names.update(one.name for one in getattr(graph, "initializer", ()))
                    for node in graph.node:
                        self._names.update(node.output)
        one, number = name, 2
        while one in self._names:
            one, number = f"{name}_{number}", number + 1
        self._names.add(one)
        return one

    def _value(self, scope: Scope, node: Any) -> Any:
        """The tensor of a Constant node, made if it is said in numbers; None where it holds something else."""
        from onnx import TensorProto

        for said in node.attribute:
            one = attribute(scope, said)
            if one is not None and said.name == "value":
                return one.t
            if one is not None and said.name in ("value_float", "value_floats"):
                if id(one) not in self._made:
                    single = said.name == "value_float"
                    numbers = [one.f] if single else list(one.floats)
                    dims = [] if single else [len(numbers)]
                    made = TensorProto(name=node.output[0], data_type=TensorProto.FLOAT, dims=dims, float_data=numbers)
                    self._made[id(one)] = one, made
                return self._made[id(one)][1]
        return None

    def array(self, tensor: Any) -> Host:
        """A tensor's elements, in its shape, of its own type, whose bits are kept."""
        said = tuple(sorted(_said(tensor).items()))
        key = (said, tensor.data_type, *tensor.dims) if said else id(tensor)
        if key not in self._arrays:
            self._kept.append(tensor)
            self._arrays[key] = self._array(tensor)
            return self._arrays[key]
        self._room -= self._arrays[key].nbytes
        if self._room < 0:
            raise WeightsError(
                f"{self.path}: so many nodes read the same constants that they take far more than its size"
            )
        return self._arrays[key].copy()

    def _array(self, tensor: Any) -> Host:
        from onnx import TensorProto

        name = tensor.name or "a constant"
        codes = {
            TensorProto.FLOAT: "f4",
            TensorProto.DOUBLE: "f8",
            TensorProto.FLOAT16: "f2",
            TensorProto.BFLOAT16: "u2",
        }
        shape = tuple(tensor.dims)
        if tensor.data_type not in codes:
            said = (
                TensorProto.DataType.Name(tensor.data_type)
                if tensor.data_type in TensorProto.DataType.values()
                else "?"
            )
            raise WeightsError(f"{self.path}: {name} holds {said}; FLOAT, DOUBLE, FLOAT16 or BFLOAT16 is wanted")
        if any(extent < 0 for extent in shape) or tensor.HasField("segment"):
            raise WeightsError(f"{self.path} is damaged: {name} has shape {shape}, or is cut into segments")
        kind = np.dtype(codes[tensor.data_type]).newbyteorder("<")
        wanted = math.prod(shape) * kind.itemsize
        if tensor.data_location == TensorProto.EXTERNAL:
            content = self._external(tensor, wanted)
        else:
            content = tensor.raw_data if tensor.HasField("raw_data") else self._typed(tensor, kind)
        if len(content) != wanted:
            raise WeightsError(
                f"{self.path} is damaged: {name} of shape {shape} has {len(content):,} bytes; {wanted:,} are wanted"
            )
        array = np.frombuffer(content, kind).astype(kind.newbyteorder("=")).reshape(shape)
        return array.view(bfloat16()) if tensor.data_type == TensorProto.BFLOAT16 else array

    def companions(self) -> dict[str, Path]:
        """The files that hold tensors of the model, by the names that it has for them."""
        names = [_said(tensor).get("location", "") for tensor in self.tensors() if tensor.external_data]
        return {name: self.companion(name) for name in dict.fromkeys(names)}

    def companion(self, name: str) -> Path:
        """A file beside the model's. WeightsError: it is another one, or is not there."""
        if name in ("", "..") or "\0" in name or Path(name).name != name:
            raise WeightsError(f"{self.path} keeps weights in {name!r}; the name of a file beside it is wanted")
        path = self.path.with_name(name)
        if not path.is_file():
            raise WeightsError(f"{self.path} keeps weights in {name!r}, and there is no such file beside it")
        # A download cache may hold links, of the model as of its weights: where these lead, both have to be.
        if path.resolve().parent not in (self.path.parent.resolve(), self.path.resolve().parent):
            raise WeightsError(f"{self.path} keeps weights in {name!r}, which is a link that leads elsewhere")
        whole.check_source(path)
        return path

    def tensors(self) -> Iterator[Any]:
        """Every tensor of the model, wherever it lies."""
        for owner in (self.proto.graph, *self.proto.functions, *_training(self.proto)):
            for graph in _nested(owner):
                yield from getattr(graph, "initializer", ())
                for sparse in getattr(graph, "sparse_initializer", ()):
                    yield from (sparse.values, sparse.indices)
                for node in graph.node:
                    for one in node.attribute:
                        yield from (one.t, *one.tensors) if one.HasField("t") else one.tensors

    def _external(self, tensor: Any, wanted: int) -> bytes:
        said = _said(tensor)
        offset, length = (_whole(said.get(key, default)) for key, default in (("offset", "0"), ("length", str(wanted))))
        path = self.companion(said.get("location", ""))
        if offset is None or length != wanted or offset + wanted > path.stat().st_size:
            raise WeightsError(
                f"{self.path} is damaged: {tensor.name} has {wanted:,} bytes; {said.get('length', 'all')} are said to "
                f"be at byte {said.get('offset', '0')} of {path.name}, which has {path.stat().st_size:,}"
            )
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(wanted)

    def _typed(self, tensor: Any, kind: np.dtype[Any]) -> bytes:
        """The bytes of elements that are kept as numbers."""
        if kind.itemsize == 8:
            return np.array(tensor.double_data, kind).tobytes()
        if kind.itemsize == 4:  # as they lie in the message: Python's floats would make a signalling NaN a quiet one
            parts = fields(tensor.SerializeToString())
            return b"".join(bytes(value) for number, value in parts if number == _FLOAT_DATA)
        halves = np.array(tensor.int32_data, np.int64)
        if halves.size and not (halves.min() >= -(1 << 15) and halves.max() < 1 << 16):
            raise WeightsError(f"{self.path} is damaged: {tensor.name} has numbers that 16 bits do not hold")
        return (halves & 0xFFFF).astype("<u2").tobytes()


def attribute(scope: Scope, one: Any) -> Any:
    """An attribute of a node, or what a call gives where it stands for one of the function's own; None: nothing."""
    return scope.attributes.get(one.ref_attr_name) if one.ref_attr_name else one


def _said(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _opset(imports: Any) -> int:
    return max((one.version for one in imports if one.domain in DOMAINS), default=1)


def _training(proto: Any) -> Iterator[Any]:
    for one in proto.training_info:
        yield from (one.initialization, one.algorithm)


def _graphs_of(node: Any) -> Iterator[Any]:
    """The bodies of If, Loop and Scan."""
    for one in node.attribute:
        if one.HasField("g"):
            yield one.g
        yield from one.graphs


def _nested(owner: Any) -> Iterator[Any]:
    """A graph or function and the graphs within it, all the way down."""
    yield owner
    for node in owner.node:
        for graph in _graphs_of(node):
            yield from _nested(graph)


def fields(content: bytes | memoryview, cut: bool = False) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message of protobuf: number, and bytes; those of a number, or what follows a length.

    cut: the message may end within a field, of which there is what there is. ValueError: it is no such message.
    """
    view, place, end = memoryview(content), 0, len(content)
    while place < end:
        tag, place = _varint(view, place)
        wire = tag & 7
        if wire == 0:
            start = place
            _, place = _varint(view, place)
        elif wire in (1, 5):
            start, place = place, place + (8 if wire == 1 else 4)
        elif wire == 2:
            length, start = _varint(view, place)
            place = start + length
        else:
            raise ValueError(f"a field of wire type {wire}")
        if not tag >> 3 or (place > end and not cut):
            raise ValueError("a field beyond the end")
        yield tag >> 3, view[start:place]


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    if place < len(view) and view[place] < 128:  # nearly all of them
        return view[place], place + 1
    value = shift = 0
    while True:
        if place >= len(view) or shift > 63:
            raise ValueError("a number beyond the end")
        byte = view[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _check_fields(content: bytes, descriptor: Any) -> None:
    """ValueError where a message has so many parts, or so deep ones, that reading them would take far more memory."""
    known: dict[str, dict[int, Any]] = {}
    open_messages = [(fields(content), descriptor)]
    count = 0
    while open_messages:
        parts, kind = open_messages[-1]
        if kind.full_name not in known:
            known[kind.full_name] = {one.number: one.message_type for one in kind.fields if one.message_type}
        inner = known[kind.full_name]
        for number, part in parts:
            count += 1
            if count > _MOST_FIELDS:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} parts")
            if number in inner:
                if len(open_messages) > _DEEPEST:
                    raise ValueError("its parts are nested too deeply")
                open_messages.append((fields(part), inner[number]))
                break
        else:
            open_messages.pop()
