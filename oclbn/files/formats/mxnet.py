"""MXNet's .params: a list of arrays and their names, as save_parameters, export and save_checkpoint write it.

    u64 0x112, u64 0, u64 count, arrays, u64 count or 0, names: each u64 length and text        all little-endian
    array: u32 0xF993fac9 (V2) or 0xF993faca (V3: of NumPy's semantics, with scalars), i32 storage,
           [sparse: its values' shape], shape, context (i32, i32), i32 type, [sparse: type, shape of each index], data
    shape: i32 axes, i64 each.  Of old (V1): u32 0xF993fac8, shape, context, type, data; older: u32 axes, u32 each, ...

An array without axes is none at all, and nothing follows, but in V3, where it is a scalar and -1 axes are none.

A layer is gamma, beta, running_mean, running_var (Gluon) or moving_mean, moving_var (symbols), after its name and "."
or "_", and after "arg:" or "aux:" where a symbol belongs to the file. What the arrays do not say is in the symbol,
NAME-symbol.json beside NAME-0000.params or NAME.params: epsilon, the average's momentum (weight of the old), and
fix_gamma, with which gamma counts as 1 whatever the file holds. Variance: of n, and its root is taken after epsilon was
added. Written are Gluon's names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.elements import bfloat16, kind
from oclbn.errors import WeightsError
from oclbn.files.formats import cursor, parts
from oclbn.files.layers import Content, Host, Layer, Note, Written, fitted_array, matched, untold

_LIST = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 7: 1, 8: 2, 9: 2, 10: 4, 11: 8, 12: 2}  # bytes of each type
_FLOATS = {0: "float32", 1: "float64", 2: "float16", 12: "bfloat16"}
_INDICES = {0: 0, 1: 1, 2: 2}  # arrays of indices of each storage: dense, sparse rows, CSR
_MOST_AXES = 32
_MOST_ARRAYS = 1_000_000
_NAMES = tuple(one for one in parts.KNOWN if one.convention == "mxnet")
_OPERATORS = {
    "BatchNorm",
    "BatchNorm_v1",
    "CuDNNBatchNorm",
    "_contrib_SyncBatchNorm",
    "_contrib_BatchNormWithReLU",
    "_npx_batch_norm",
}
_DEFAULT_EPSILON, _DEFAULT_MOMENTUM = 1e-3, 0.9  # of the operators; Gluon's layers state theirs
_EPOCH = re.compile(r"-\d{4,}$")


@dataclass(frozen=True)
class _Array:
    """Where an array's elements lie in the file."""

    code: int
    shape: tuple[int, ...]
    begin: int
    dense: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.code]


@dataclass(frozen=True)
class _Said:
    """What a symbol says of a layer."""

    name: str
    epsilon: float
    factor: float
    fixed: bool
    arrays: Mapping[str, str]  # by role


def claims(path: Path, head: bytes) -> bool:
    return head[:16] == _LIST.to_bytes(8, "little") + bytes(8)


def read(path: Path) -> Content:
    arrays = _arrays(path)
    symbol = _symbol_of(path)
    said = _said(symbol) if symbol is not None else {}
    layers, notes = [], []
    for group in _grouped(arrays, said):
        values: dict[str, Any] = {role: _values(path, name, arrays[name]) for role, name in group.arrays.items()}
        layer = Layer(group.name, **values, convention="mxnet")
        one = said.get(_bare(group.arrays["mean"]))
        if one is not None:
            layer = replace(layer, epsilon=one.epsilon, factor=one.factor)
            if one.fixed and layer.scale is not None:
                if not (layer.scale.astype(np.float64) == 1).all():
                    text = f"its gamma is not 1, and counts as 1 all the same: fix_gamma in {_name(symbol)}"
                    notes.append(Note(group.name, text))
                layer = replace(layer, scale=None)
        layers.append(layer)
    if layers and symbol is None:
        text = (
            f"there is no {_symbol_name(path)} beside it: epsilon and momentum are not known, nor whether gamma counts "
            "as 1 (fix_gamma), which operators have by default and Gluon's layers with scale=False"
        )
        notes.append(Note("", text))
    return Content("mxnet", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    if into is not None:
        return _replaced(layers, name, into)
    notes = [note for layer in layers for note in untold(layer, "Gluon's layer", epsilon=1e-5, factor=0.1)]
    arrays: dict[str, Host] = {}
    for layer in layers:
        layer = layer.complete("MXNet's .params")  # a BatchNorm there has all four
        prefix = f"{layer.name}." if layer.name else ""
        arrays |= {prefix + _NAMES[0].roles()[role]: array for role, array in layer.arrays.items()}
    codes = {name: code for code, name in _FLOATS.items()}
    words = [np.array([_LIST, 0, len(arrays)], "<u8").tobytes()]
    for array in arrays.values():
        words.append(np.array([_V2, 0, 1], "<u4").tobytes() + np.array([array.size], "<i8").tobytes())
        words.append(np.array([1, 0, codes[array.dtype.name]], "<i4").tobytes() + _little(array))
    words.append(np.array([len(arrays)], "<u8").tobytes())
    words += [np.array([len(called)], "<u8").tobytes() + called for called in map(str.encode, arrays)]
    return Written({name: b"".join(words)}, tuple(notes))


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> Written:
    """A model with other values in the place of its own; its symbol is not copied."""
    there = read(into)
    arrays = _arrays(into)
    symbol = _symbol_of(into)
    said = _said(symbol) if symbol is not None else {}
    groups = {group.name: group for group in _grouped(arrays, said)}
    notes: list[Note] = []
    image = bytearray(into.read_bytes())
    for layer, target in matched(layers, there.layers, into):
        group = groups[target.name]
        for role, array in layer.complete(into.name).arrays.items():
            if role not in group.arrays:
                if role in layer.arrays:
                    notes.append(Note(layer.name, f"{role} has no place in {into.name}", lost=True))
                continue
            if role == "scale" and target.scale is None and not (array.astype(np.float64) == 1).all():
                text = f"scale counts as 1: fix_gamma in {_name(symbol)}"
                notes.append(Note(layer.name, text, lost=True))
                continue
            place = arrays[group.arrays[role]]
            allowed = [bfloat16() if place.code == 12 else np.dtype(_FLOATS[place.code])]
            why = f"the type of {group.arrays[role]} in {into.name}"
            fit, more = fitted_array(layer.name, role, array, allowed, why)
            notes += more
            image[place.begin : place.begin + place.bytes] = _little(fit)
        if symbol is None:
            notes += untold(layer, "Gluon's layer", epsilon=1e-5, factor=0.1)
            continue
        for key in ("epsilon", "factor"):
            wanted, has = getattr(layer, key), getattr(target, key)
            if wanted is not None and wanted != has:
                text = f"{key} is {wanted:g}, and {has:g} in {symbol.name}, which is not written"
                notes.append(Note(layer.name, text, lost=True))
    return Written({name: bytes(image)}, tuple(notes))


def _little(array: Host) -> bytes:
    return array.tobytes() if kind(array.dtype) == 2 else array.astype(array.dtype.newbyteorder("<")).tobytes()


def _bare(name: str) -> str:
    return name[4:] if name.startswith(("arg:", "aux:")) else name


def _grouped(arrays: Mapping[str, _Array], said: Mapping[str, _Said]) -> list[parts.Group]:
    """The layers by their arrays' names, and those that the symbol alone tells of."""
    whole = {_bare(name): name for name in arrays}
    found = parts.grouped(whole, _NAMES, joined="_")
    found += [
        parts.Group(one.name, _NAMES[1], {role: name for role, name in one.arrays.items() if name in whole})
        for one in said.values()
        if {one.arrays["mean"], one.arrays["var"]} <= whole.keys()
        and one.arrays["mean"] not in {group.arrays["mean"] for group in found}
    ]
    return [replace(one, arrays={role: whole[name] for role, name in one.arrays.items()}) for one in found]


def _values(path: Path, name: str, array: _Array) -> Host:
    if array.code not in _FLOATS or not array.dense:
        what = "sparse" if not array.dense else f"of MXNet's type {array.code}"
        raise WeightsError(f"{path}: {name} is {what}; dense float32, float64, float16 or bfloat16 is wanted")
    if len(array.shape) != 1:
        raise WeightsError(f"{path}: {name} has shape {array.shape}; one number per channel is wanted")
    with path.open("rb") as file:
        file.seek(array.begin)
        content = file.read(array.bytes)
    if len(content) < array.bytes:
        raise WeightsError(f"{path} is damaged: {name} is cut off")
    if _FLOATS[array.code] == "bfloat16":
        return np.frombuffer(content, bfloat16()).copy()
    dtype = np.dtype(_FLOATS[array.code])
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)


def _arrays(path: Path) -> dict[str, _Array]:
    """Where each array of a file lies; none is read."""
    with path.open("rb") as file:
        at = cursor.FileCursor(file, path.stat().st_size, str(path))
        magic, _, count = at.numbers("<QQQ", "its head")
        if magic != _LIST:
            raise WeightsError(
                f"{path} is no .params file of MXNet: it begins with {magic:#x}, and not with {_LIST:#x}"
            )
        if count > _MOST_ARRAYS:
            raise at.wrong(f"it is to have {count:,} arrays")
        listed = [_array(at) for _ in range(count)]
        (named,) = at.numbers("<Q", "the number of names")
        if named == 0:
            return {}
        if named != count:
            raise at.wrong(f"it has {count} arrays and {named} names")
        found: dict[str, _Array] = {}
        for array in listed:
            (length,) = at.numbers("<Q", "the length of a name")
            try:
                name = str(at.take(length, "a name"), "utf-8")
            except UnicodeDecodeError as error:
                raise at.wrong(f"a name is no text: {error.reason}") from error
            if name in found or any(prefix + _bare(name) in found for prefix in ("", "arg:", "aux:")):
                raise WeightsError(f"{path} has two arrays of the name {_bare(name)!r}")
            if array is not None:
                found[name] = array
    return found


def _array(at: cursor.FileCursor) -> _Array | None:
    """The next array, or None where one is not there yet, as before its first use."""
    (magic,) = at.numbers("<I", "an array")
    values: tuple[int, ...] | None = None
    indices = 0
    if magic in (_V2, _V3):
        (storage,) = at.numbers("<i", "an array's storage")
        if storage not in _INDICES:
            raise at.wrong(f"an array's storage is {storage}")
        indices = _INDICES[storage]
        if indices:
            values = _shape(at)
        shape = _shape(at)
        none = shape is None or (magic == _V2 and not shape)
    else:
        shape = _shape(at) if magic == _V1 else _sizes(at, magic, "I")
        none = not shape
    if none or shape is None:
        return None
    at.skip(8, "an array's context")
    (code,) = at.numbers("<i", "an array's type")
    extra = 0
    for _ in range(indices):
        (its,) = at.numbers("<i", "the type of indices")
        extra += _size_of(at, its) * math.prod(_shape(at) or ())
    found = _Array(code, shape, at.place, indices == 0)
    at.skip(_size_of(at, code) * math.prod(shape if values is None else values) + extra, "an array's elements")
    return found


def _size_of(at: cursor.Cursor, code: int) -> int:
    if code not in _SIZES:
        raise at.wrong(f"an array is of type {code}; those up to {max(_SIZES)} are known")
    return _SIZES[code]


def _shape(at: cursor.Cursor) -> tuple[int, ...] | None:
    """None: not known yet."""
    (axes,) = at.numbers("<i", "a shape")
    return None if axes == -1 else _sizes(at, axes, "q")


def _sizes(at: cursor.Cursor, axes: int, layout: str) -> tuple[int, ...]:
    if not 0 <= axes <= _MOST_AXES:
        raise at.wrong(f"an array has {axes:,} axes")
    sizes = at.numbers(f"<{axes}{layout}", "a shape")
    if min(sizes, default=0) < 0:
        raise at.wrong(f"an array has shape {sizes}")
    return sizes


def _symbol_name(path: Path) -> str:
    return f"{_EPOCH.sub('', path.stem)}-symbol.json"


def _symbol_of(path: Path) -> Path | None:
    found = path.with_name(_symbol_name(path))
    return found if found.is_file() else None


def _name(path: Path | None) -> str:
    return path.name if path is not None else ""


def _said(path: Path) -> dict[str, _Said]:
    """What a symbol says of each batch normalization, by the name of its mean."""
    try:
        nodes = json.loads(cursor.text_of(path))["nodes"]
        names = [node["name"] for node in nodes]
        found = [_node(node, names) for node in nodes if node["op"] in _OPERATORS]
    except RecursionError:
        raise WeightsError(f"{path} is damaged: it is nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no symbol of MXNet: {type(error).__name__}: {error}") from error
    return {one.arrays["mean"]: one for one in found}


def _node(node: Mapping[str, Any], names: Sequence[str]) -> _Said:
    said = node.get("attrs") or node.get("attr") or node.get("param") or {}
    numbers = {
        "eps": float(said.get("eps", _DEFAULT_EPSILON)),
        "momentum": float(said.get("momentum", _DEFAULT_MOMENTUM)),
    }
    for key, value in numbers.items():
        if not (0 <= value < math.inf) or (key == "momentum" and value > 1):
            raise ValueError(f"{key} of {node['name']!r} is {value:g}")
    inputs = [entry[0] for entry in node["inputs"][1:5]]
    if not all(type(index) is int and 0 <= index < len(names) for index in inputs):
        raise ValueError(f"the inputs of {node['name']!r} are {str(inputs)[:80]}")
    arrays = dict(zip(("scale", "bias", "mean", "var"), (names[index] for index in inputs), strict=True))
    if not all(isinstance(name, str) for name in (node["name"], *arrays.values())):
        raise TypeError("a name is no text")
    fixed = str(said.get("fix_gamma", True)) in ("True", "true", "1")
    factor = float(f"{1 - numbers['momentum']:.12g}")  # 0.1 of 0.9, and not 0.09999999999999998
    return _Said(node["name"], numbers["eps"], factor, fixed, arrays)
