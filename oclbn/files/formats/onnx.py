"""ONNX: the BatchNormalization nodes of a model, of every version of the operator, with the constants that they read.

A layer is called as the module of PyTorch that it was, where the model says so; else by what the names of its four
constants have in common, as layer1.0.bn1 where they are layer1.0.bn1.weight, ...; else as its node, or as the node's
output. Nodes that read the same four names and agree in all else are one layer, called several times.

momentum weighs the old average: a new batch weighs 1 - momentum. It and epsilon are float32 in the file; they are read
as the shortest decimal that means the same float32, 1e-05 and not 9.999999747378752e-06. Where a node says neither, the
standard's defaults are 1e-05 and 0.9.

Scale and bias of one type, mean and variance of one type: opset 15, which is written, keeps them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.elements import bfloat16
from oclbn.errors import WeightsError
from oclbn.files.formats import parts
from oclbn.files.formats.onnxgraph import DOMAINS, Constant, Model, Scope, attribute, fields
from oclbn.files.layers import ARRAYS, Content, Host, Layer, Note, Written, fitted, matched, placed

_OPSET, _IR = 15, 8
_EPSILON, _MOMENTUM = 1e-5, 0.9  # the standard's defaults
_INPUTS = {"scale": 1, "bias": 2, "mean": 3, "var": 4}
_CALLED = parts.KNOWN[0].roles()  # what PyTorch calls them, and what is written
_MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_NAMES, _GRAPH = (2, 3, 4), 7  # producer_name, producer_version and domain; the graph
_SCOPES = "pkg.torch.onnx.name_scopes"
_NUMBERED = re.compile(r"_\d+$")  # of a constant that was given to one of several layers
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


@dataclass(eq=False)
class _Place:
    """A layer of a model, the nodes that are this layer, and where each input of theirs has its constant."""

    layer: Layer
    names: list[str]  # what it may be called, best first
    nodes: list[tuple[Scope, Any]]
    constants: dict[str, Constant]


def claims(path: Path, head: bytes) -> bool:
    """A ModelProto: ir_version, then names in plain text, then the graph; other files of protobuf begin alike."""
    if head[:1] != b"\x08":
        return False
    try:
        for number, part in fields(head, cut=True):
            if number == _GRAPH:
                return True
            if number not in _MODEL_FIELDS or (number in _NAMES and any(byte < 32 for byte in part)):
                return False
    except ValueError:
        return False
    return path.name.lower().endswith(".onnx")


def read(path: Path) -> Content:
    model = Model(path)
    with model.told():
        places, notes = _places(model)
    return Content("onnx", str(path), tuple(place.layer for place in places), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    for layer in layers:
        try:
            layer.name.encode()
        except UnicodeEncodeError:
            raise WeightsError(f"{layer}: its name is no Unicode text, which ONNX has for names") from None
    if into is not None:
        return _replaced(layers, name, into)
    twice = [one for one, count in Counter(layer.name for layer in layers).items() if count > 1]
    if twice:
        raise WeightsError(f"{name}: two layers have the name {twice[0]!r}; each is to have its own in an ONNX model")
    return _new(layers, name)


# Reading


def _places(model: Model) -> tuple[list[_Place], list[Note]]:
    """The layers of a model, in its nodes' order, and what has to be told of them and of nodes that are none."""
    called: dict[tuple[Any, ...], list[tuple[Scope, Any]]] = {}
    for scope, node in model.nodes():
        if node.op_type != "BatchNormalization" or node.domain not in DOMAINS or len(node.input) < 5:
            continue
        one_layer = (id(scope), tuple(node.input)[1:5], *_numbers(scope, node), _module(node), _trains(scope, node))
        called.setdefault(one_layer, []).append((scope, node))
    places: list[_Place] = []
    told: list[tuple[_Place | None, Note]] = []
    for nodes in called.values():
        scope, node = nodes[0]
        constants = {role: model.constant(scope, [(one, index) for _, one in nodes]) for role, index in _INPUTS.items()}
        title = node.name or node.output[0]
        lacking = [role for role in ARRAYS if constants[role].tensor is None]
        if {"scale", "bias"} & {*lacking}:
            told.append((None, Note(title, f"no layer: its {lacking[0]} {constants[lacking[0]].origin}")))
            continue
        if _whole(scope, node, "spatial", 1) == 0 and len(constants["scale"].tensor.dims) != 1:
            told.append((None, Note(title, "no layer: spatial is 0, one mean and variance for each place of an image")))
            continue
        arrays: dict[str, Any] = (
            {} if lacking else {role: model.array(constants[role].tensor) for role in ("mean", "var")}
        )
        arrays |= {role: model.array(constants[role].tensor) for role in ("scale", "bias")}
        epsilon, factor = _numbers(scope, node)
        layer = Layer(title, **arrays, epsilon=epsilon, factor=factor, convention="onnx")
        place = _Place(layer, _names(nodes, constants), nodes, constants)
        places.append(place)
        if lacking:
            text = f"it has no running statistics: {lacking[0]} {constants[lacking[0]].origin}"
            told.append((place, Note("", text)))
        if factor == 0:
            text = "momentum is 1: the running statistics never move; PyTorch's exporter says so of momentum=None"
            told.append((place, Note("", text)))
        if _trains(scope, node):
            told.append((place, Note("", "its node is one for training, which normalises by the batch")))
    _name(places)
    return places, [replace(note, layer=place.layer.name) if place else note for place, note in told]


def _numbers(scope: Scope, node: Any) -> tuple[float, float]:
    """epsilon and factor of a node."""
    found = {"epsilon": _EPSILON, "momentum": _MOMENTUM}
    for said in node.attribute:
        one = attribute(scope, said)
        if one is not None and said.name in found:
            found[said.name] = _decimal(one.f)
    return found["epsilon"], _factor(found["momentum"])


def _decimal(number: float) -> float:
    """The shortest decimal that is this number in float32."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(number)))


def _factor(momentum: float) -> float:
    """1 - momentum, and the other way round, of the decimals that are meant: 0.1 for 0.9."""
    return float(1 - Decimal(str(momentum)))


def _whole(scope: Scope, node: Any, name: str, default: int) -> int:
    for said in node.attribute:
        one = attribute(scope, said)
        if one is not None and said.name == name:
            return int(one.i)
    return default


def _trains(scope: Scope, node: Any) -> bool:
    """Whether a node normalises by the batch: by an attribute up to opset 6 and from 14 on, else by its outputs."""
    if scope.opset >= 14:
        return _whole(scope, node, "training_mode", 0) != 0
    if scope.opset < 7:
        return _whole(scope, node, "is_test", 0) == 0
    return sum(bool(name) for name in node.output) > 1


def _module(node: Any) -> str:
    """The module that PyTorch's exporter says a node comes from, or ""."""
    for prop in node.metadata_props:
        if prop.key == _SCOPES:  # as ['', 'layer1', 'layer1.0', 'layer1.0.bn1', 'name of the operation']
            scopes = [one or other for one, other in _QUOTED.findall(prop.value)]
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _names(nodes: Sequence[tuple[Scope, Any]], constants: dict[str, Constant]) -> list[str]:
    """What a layer may be called, best first."""
    scope, node = nodes[0]
    inputs = [node.input[index] for index in _INPUTS.values()]
    origins = [steps[-1].name if (steps := constants[role].steps) else "" for role in _INPUTS]
    found = [_module(node), _common(inputs), _common(origins), node.name, next(filter(None, node.output), "")]
    return list(dict.fromkeys(scope.label + name for name in found if name)) or [scope.label + "layer"]


def _common(names: Sequence[str]) -> str:
    """What the names of four constants have in common, up to a point, a slash or an underscore."""
    scale, bias, mean, var = (_NUMBERED.sub("", name) for name in names)
    for known in parts.KNOWN:  # where a module has no scale and bias, or no statistics, these are made up
        for one, its, other, others in ((mean, known.mean, var, known.var), (scale, known.scale, bias, known.bias)):
            prefix = one.removesuffix(its)
            if one != prefix and prefix + others == other and prefix[-1:] in (".", "/"):
                return prefix[:-1]
    prefix = "".join(letters[0] for letters in takewhile(_same, zip(*names, strict=False)))
    cut = max(prefix.rfind(letter) for letter in "./_")
    rests = [name[cut + 1 :] for name in names]
    return "" if cut < 1 or all(rest.isdigit() for rest in rests) else prefix[:cut].rstrip("./_")


def _same(letters: tuple[str, ...]) -> bool:
    return len(set(letters)) == 1


def _name(places: Sequence[_Place]) -> None:
    """Give each layer the best of its names that no other one has."""
    rank = [0] * len(places)
    while True:
        chosen = [place.names[index] for place, index in zip(places, rank, strict=True)]
        count = Counter(chosen)
        clash = [i for i, place in enumerate(places) if count[chosen[i]] > 1 and rank[i] + 1 < len(place.names)]
        if not clash:
            break
        for i in clash:
            rank[i] += 1
    number: Counter[str] = Counter()
    taken = {name for name, several in count.items() if several == 1}
    for place, name in zip(places, chosen, strict=True):
        one = name
        while count[name] > 1 and one in taken:
            number[name] += 1
            one = f"{name}#{number[name] + 1}"
        taken.add(one)
        place.layer = replace(place.layer, name=one)


# Writing


def _new(layers: Sequence[Layer], name: str) -> Written:
    """A model of one node per layer, each with an input of its own: images, (N, C, H, W)."""
    from onnx import helper

    notes: list[Note] = []
    nodes, tensors = list[Any](), list[Any]()
    inputs, outputs = list[Any](), list[Any]()
    for given in layers:
        layer = given.complete("ONNX's BatchNormalization")
        allowed = [np.dtype(np.float16), bfloat16(), np.dtype(np.float32), np.dtype(np.float64)]
        layer, more = fitted(layer, allowed, "ONNX")
        layer = replace(layer, **_paired(layer.arrays))
        prefix = f"{layer.name}." if layer.name else ""
        constants = [_tensor(prefix + _CALLED[role], layer.arrays[role]) for role in _INPUTS]
        said, untold = _said(given)
        if layer.epsilon is None:
            untold.append(Note(layer.name, f"epsilon is not known; {_EPSILON:g} stands there, as is usual"))
        node = helper.make_node(
            "BatchNormalization",
            [f"{prefix}input", *(tensor.name for tensor in constants)],
            [f"{prefix}output"],
            layer.name,
        )
        for key, value in ({"epsilon": _EPSILON, "momentum": _MOMENTUM} | said).items():
            node.attribute.append(helper.make_attribute(key, value))
        shape: list[str | int | None] = ["N", layer.channels, "H", "W"]
        for infos, end in ((inputs, node.input[0]), (outputs, node.output[0])):
            infos.append(helper.make_tensor_value_info(end, constants[0].data_type, shape))
        nodes.append(node)
        tensors += constants
        notes += [*more, *untold]
    graph = helper.make_graph(nodes, Path(name).stem or "oclbn", inputs, outputs, tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR, producer_name="oclbn"
    )
    return Written({name: model.SerializeToString(deterministic=True)}, tuple(notes))


def _paired(arrays: dict[str, Host]) -> dict[str, Any]:
    """A layer's arrays with scale and bias of one type, mean and variance of one, as the operator wants them.

    Where these two are float16 and float32 they may differ. ONNX Runtime runs no other mixture: all get one type then.
    """
    pairs = [_alike({role: arrays[role] for role in pair}) for pair in (ARRAYS[:2], ARRAYS[2:])]
    both = pairs[0] | pairs[1]
    return both if {array.dtype.name for array in both.values()} <= {"float16", "float32"} else _alike(both)


def _alike(arrays: dict[str, Host]) -> dict[str, Host]:
    """Arrays as one type that holds all of them."""
    types = {array.dtype.name for array in arrays.values()}
    if len(types) == 1:
        return arrays
    return {role: array.astype("float64" if "float64" in types else "float32") for role, array in arrays.items()}


def _tensor(name: str, array: Host) -> Any:
    from onnx import TensorProto

    codes = {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
        "bfloat16": TensorProto.BFLOAT16,
    }
    little = array.view(f"u{array.dtype.itemsize}").astype(f"<u{array.dtype.itemsize}")
    return TensorProto(name=name, data_type=codes[array.dtype.name], dims=array.shape, raw_data=little.tobytes())


def _said(layer: Layer) -> tuple[dict[str, float], list[Note]]:
    """The attributes of a layer's node, as far as it says them, and what they cannot hold."""
    said: dict[str, float] = {}
    notes = []
    if layer.epsilon is not None:
        said["epsilon"] = _decimal(layer.epsilon)
        if said["epsilon"] != layer.epsilon:
            text = f"epsilon is rounded from {layer.epsilon!r} to {said['epsilon']!r}, which float32 holds"
            notes.append(Note(layer.name, text, lost=True))
    if layer.cumulative:
        notes.append(Note(layer.name, "all batches weigh alike, which ONNX has no place for", lost=True))
    elif layer.factor is not None:
        said["momentum"] = _decimal(_factor(layer.factor))
        if (kept := _factor(said["momentum"])) != layer.factor:
            text = f"a new batch weighs {layer.factor!r}; {kept!r} is what a momentum of float32 leaves it"
            notes.append(Note(layer.name, text, lost=True))
    return said, notes


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> Written:
    """A copy of a model with other values in the place of its own, of the types that it has."""
    model = Model(into)
    notes: list[Note] = []
    with model.told():
        places, _ = _places(model)
        by_name = {place.layer.name: place for place in places}
        for layer, there in matched(layers, [place.layer for place in places], into):
            place = by_name[there.name]
            arrays, more = placed(layer, there, into)
            notes += more
            for role, array in arrays.items():
                _put(model, place, role, array)
            notes += _set_numbers(layer, place)
        files = _files(model, name)
    return Written(files, tuple(notes))


def _set_numbers(layer: Layer, place: _Place) -> list[Note]:
    """Set epsilon and momentum of a layer's nodes where it says others."""
    from onnx import helper

    said, notes = _said(layer)
    for scope, node in place.nodes:
        epsilon, factor = _numbers(scope, node)
        there = {"epsilon": epsilon, "momentum": _decimal(_factor(factor))}
        for key, value in said.items():
            if there[key] == value:
                continue
            if scope.calls > 1:
                text = f"{key} stays {there[key]:g}, not {value:g}: it is said in a function that is called repeatedly"
                notes.append(Note(layer.name, text, lost=True))
                continue
            kept = [one for one in node.attribute if one.name != key]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(key, value)])
    return notes


def _put(model: Model, place: _Place, role: str, array: Host) -> None:
    """Give a layer's constant other values; where others read it too, the layer gets one of its own."""
    constant = place.constants[role]
    shared = next(filter(model.is_shared, constant.steps), None)
    where = constant.steps[-1] if shared is None else shared
    if where.scope.calls > 1 or (shared is not None and not where.scope.is_graph):
        raise WeightsError(
            f"{model.path}: {role} of {place.layer} lies in a function of the model, where others read it too"
        )
    if shared is not None:
        model.add(shared, f"{place.layer.name}.{_CALLED[role]}", _tensor("", array))
    elif constant.node is not None:
        from onnx import helper

        del constant.node.attribute[:]
        constant.node.attribute.append(helper.make_attribute("value", _tensor(where.name, array)))
    else:
        made = _tensor(constant.tensor.name, array)
        made.doc_string = constant.tensor.doc_string
        constant.tensor.CopyFrom(made)


def _files(model: Model, name: str) -> dict[str, bytes]:
    """The model's file, and those that hold other weights of it, called after it."""
    companions = model.companions()
    called = {old: f"{name}.data" if not index else f"{name}.{index}.data" for index, old in enumerate(companions)}
    for tensor in model.tensors():
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = called[entry.value]
    content = model.proto.SerializeToString(deterministic=True)
    return {name: content} | {called[old]: path.read_bytes() for old, path in companions.items()}
