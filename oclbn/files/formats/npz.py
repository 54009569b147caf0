"""NumPy's .npz: arrays by name in a zip archive. All that a layer has is kept.

Written are NAME/scale, NAME/bias, NAME/mean, NAME/var of (C,), and as scalars NAME/epsilon, NAME/factor,
NAME/cumulative and NAME/batches; without the slash where the layer has no name. Read are these, and names of PyTorch,
Keras, MXNet, PaddlePaddle and Chainer (whose serializer writes such files). bfloat16, which NumPy does not know, is two
bytes of no type; as such it is read, too. Nothing is unpickled.
Arrays that we have not written may lie in any order.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from oclbn.elements import bfloat16, kind
from oclbn.errors import WeightsError
from oclbn.files.formats import parts
from oclbn.files.layers import Content, Host, Layer, Note, Written, matched, placed

_OURS = parts.Names("oclbn", "scale", "bias", "mean", "var", "batches")
_ROOM, _TIMES = 1 << 26, 64  # bytes that all arrays may unpack to, whatever the file's size; or times its size
_VOID = np.dtype("V2")


def claims(path: Path, head: bytes) -> bool:
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return False


def read(path: Path) -> Content:
    layers, groups, arrays = _read(path)
    read_ = {layer.name for layer in layers}
    notes = [_left_out(group, arrays) for group in groups.values() if group.name not in read_]
    used = [groups[layer.name] for layer in layers]
    if any(one.names.convention == "pytorch" for one in used) and not any("batches" in one.arrays for one in used):
        text = "names are PyTorch's, without a counter, as MLX has them, which before 0.32 averaged variances of n"
        notes.append(Note("", text))
    ordered = all(one.names is _OURS for one in used)
    return Content("npz", str(path), tuple(layers), tuple(notes), ordered=ordered)


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    notes: list[Note] = []
    arrays: dict[str, Host] = {}
    if into is not None:
        there, groups, arrays = _read(into)
        for layer, target in matched(layers, there, into):
            group = groups[target.name]
            fit, more = placed(layer, target, into)
            notes += more
            for role, array in fit.items():
                arrays[group.arrays[role]] = array.reshape(arrays[group.arrays[role]].shape)
            if layer.batches is not None and "batches" in group.arrays:
                old = arrays[group.arrays["batches"]]
                arrays[group.arrays["batches"]] = np.array(layer.batches, old.dtype).reshape(old.shape)
    else:
        for layer in layers:
            layer.check_running("an .npz archive, where nothing else tells it from other layers")
            prefix = f"{layer.name}/" if layer.name else ""
            arrays |= {prefix + role: array for role, array in layer.arrays.items()}
            numbers = {"epsilon": layer.epsilon, "factor": layer.factor, "batches": layer.batches}
            arrays |= {prefix + key: np.array(value) for key, value in numbers.items() if value is not None}
            arrays[prefix + "convention"] = np.array(layer.convention)
            if layer.cumulative:
                arrays[prefix + "cumulative"] = np.array(True)
    target_file = io.BytesIO()
    np.savez_compressed(target_file, allow_pickle=False, **arrays)
    return Written({name: target_file.getvalue()}, tuple(notes))


def _read(path: Path) -> tuple[list[Layer], dict[str, parts.Group], dict[str, Host]]:
    """The layers, which arrays each has by its name, and all arrays."""
    arrays = _arrays(path)
    groups = {group.name: group for group in parts.grouped(arrays, (_OURS, *parts.KNOWN))}
    layers = [_layer(path, group, arrays) for group in groups.values() if _per_channel(group, arrays)]
    return layers, groups, arrays


def _per_channel(group: parts.Group, arrays: dict[str, Host]) -> bool:
    """Whether its arrays have one axis of more than one element at most."""
    return all(max(arrays[name].shape, default=1) == arrays[name].size for name in group.arrays.values())


def _left_out(group: parts.Group, arrays: dict[str, Host]) -> Note:
    """Of a layer that other axes than the channels' have statistics for, as Chainer's with axis=0 of (N, C, L)."""
    shapes = ", ".join(f"{role} {arrays[name].shape}" for role, name in group.arrays.items() if arrays[name].ndim)
    return Note(group.name, f"it is not read: shapes are {shapes}; one number per channel is wanted in each")


def _layer(path: Path, group: parts.Group, arrays: dict[str, Host]) -> Layer:
    values: dict[str, Any] = {}
    for role, name in group.arrays.items():
        array = arrays[name]
        if role == "batches":
            values[role] = _number(path, name, array, "iu")
        else:
            values[role] = _kept(array).ravel() if array.ndim and max(array.shape) == array.size else _kept(array)
    prefix = group.arrays["mean"][: -len(group.names.mean)]
    told = {name: arrays[prefix + name] for name in ("epsilon", "factor", "cumulative") if prefix + name in arrays}
    for name, array in told.items():
        values[name] = _number(path, prefix + name, array, "b" if name == "cumulative" else "fiu")
    convention = arrays.get(prefix + "convention")
    named = group.names.convention if group.names is not _OURS else "pytorch"
    if convention is not None and convention.dtype.kind == "U" and convention.ndim == 0:
        named = str(convention)
    return replace(Layer(group.name, **values), convention=named)


def _kept(array: Host) -> Host:
    """An array of the file as its elements are meant."""
    if array.dtype == _VOID:
        return array.view(bfloat16())
    native = array.dtype.newbyteorder("=")
    return array.astype(native) if kind(native) is not None else array


def _number(path: Path, name: str, array: Host, kinds: str) -> Any:
    if array.size != 1 or array.dtype.kind not in kinds or (kinds == "iu" and array.item() < 0):
        raise WeightsError(f"{path}: {name} is {array.dtype} of shape {array.shape}; one number is wanted")
    return array.item()


def _arrays(path: Path) -> dict[str, Host]:
    """Every array of the archive, unpacked to no more than a bound."""
    room = max(_ROOM, _TIMES * path.stat().st_size)
    found: dict[str, Host] = {}
    with path.open("rb"):
        pass  # what cannot be opened is the system's own error; zipfile has such of damaged files, too
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            for name in dict.fromkeys(names):
                content = _unpacked(archive, name, room)
                room -= len(content)
                if room < 0:
                    break
                found[name.removesuffix(".npy")] = npy.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        raise WeightsError(f"{path} is damaged, or no .npz file: {error}") from error
    if room < 0:
        raise WeightsError(f"{path}: its arrays unpack to far more than the file's size")
    if len(found) < len(names):
        raise WeightsError(f"{path} has two arrays of one name")
    return found


def _unpacked(archive: zipfile.ZipFile, name: str, room: int) -> bytes:
    with archive.open(name) as file:
        return file.read(room + 1)
