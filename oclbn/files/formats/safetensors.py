"""safetensors: what PyTorch's state_dict is kept in without pickling; also an index of several such files.

A layer is the tensors of one prefix: weight, bias, running_mean, running_var of (C,), and num_batches_tracked, one
int64. Other tensors of a model stay where they are, whatever their types. The header is a number of 64 bits, the length
of a JSON object {name: {dtype, shape, data_offsets}}; the library checks it, and this module reads its offsets again to
write values into a copy of a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.elements import bfloat16, kind
from oclbn.errors import OclbnError, WeightsError
from oclbn.files.formats import cursor, parts
from oclbn.files.layers import Content, Host, Layer, Note, Written, fitted, matched, placed, untold

INDEX = ".safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes, the library's own bound
_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2"}


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies: its file, and its bytes within that."""

    path: Path
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype[Any] | None:
        return bfloat16() if self.code == "BF16" else np.dtype(_TYPES[self.code]) if self.code in _TYPES else None


def claims(path: Path, head: bytes) -> bool:
    if path.name.lower().endswith(INDEX):
        return head.lstrip().startswith(b"{")
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= _MOST_HEADER and head[8:9] == b"{"


def read(path: Path) -> Content:
    tensors = _tensors(path)
    layers, notes = [], []
    for group in parts.grouped(tensors):
        arrays: dict[str, Any] = {}
        batches = None
        for role, name in group.arrays.items():
            if role == "batches":
                batches = _count(tensors[name], name)
            else:
                arrays[role] = _array(tensors[name], name)
        if group.arrays.keys().isdisjoint(("scale", "bias")):
            notes.append(Note(group.name, "it has neither weight nor bias: they are fixed at 1 and 0"))
        layers.append(Layer(group.name, **arrays, batches=batches, convention=group.names.convention))
    return Content("safetensors", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    allowed = [np.dtype(np.float16), bfloat16(), np.dtype(np.float32), np.dtype(np.float64)]
    notes = [note for layer in layers for note in _untold(layer)]
    if into is not None:
        files, more = _replaced(layers, name, into)
        return Written(files, (*more, *notes))
    if name.lower().endswith(INDEX):
        raise WeightsError(f"{name}: an index is written with the model alone whose values are replaced (into)")
    tensors: dict[str, Host] = {}
    for layer in layers:
        layer.check_running("safetensors, where nothing else tells it from other layers")
        fit, more = fitted(layer, allowed, "safetensors")
        notes += more
        prefix = f"{layer.name}." if layer.name else ""
        for role, called in parts.KNOWN[0].roles().items():
            if role in fit.arrays:
                tensors[prefix + called] = np.ascontiguousarray(fit.arrays[role])
        if layer.batches is not None:
            tensors[prefix + parts.KNOWN[0].batches] = np.array(layer.batches, np.int64)
    return Written({name: _serialized(tensors)}, tuple(notes))


def _untold(layer: Layer) -> Iterator[Note]:
    """What a state_dict has no place for."""
    return untold(
        layer, "PyTorch's layer", epsilon=1e-5, factor=0.1, called="eps", momentum_of="new", alike="momentum=None"
    )


def _serialized(tensors: Mapping[str, Host]) -> bytes:
    """A file's bytes. The library's own function for NumPy does not know bfloat16 and writes the memory of a view."""
    from safetensors import TensorSpec, serialize

    kept = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=array.dtype.name, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for name, array in kept.items()
    }
    return bytes(serialize(specs, metadata={"format": "pt"}))


def _tensors(path: Path) -> dict[str, _Tensor]:
    if not path.name.lower().endswith(INDEX):
        return _header(path)
    found: dict[str, _Tensor] = {}
    shards: dict[str, dict[str, _Tensor]] = {}
    for name, shard in _map(path).items():
        if shard not in shards:
            shards[shard] = _header(path.with_name(shard))
        if name not in shards[shard]:
            raise WeightsError(f"{path} says that {name!r} is in {shard}, and it is not")
        found[name] = shards[shard][name]
    return found


def _map(path: Path) -> dict[str, str]:
    """Which file beside the index has each tensor."""
    with _told(path):
        index = json.loads(cursor.text_of(path))
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise WeightsError(f"{path} has no weight_map, which says what tensor is in what file")
    for shard in set(shards.values()):
        if Path(shard).name != shard or not shard.lower().endswith(".safetensors"):
            raise WeightsError(f"{path} names {shard!r}; the name of a .safetensors file beside it is wanted")
        if not path.with_name(shard).is_file():
            raise WeightsError(f"{path} names {shard!r}, and there is no such file beside it")
    return shards


def _header(path: Path) -> dict[str, _Tensor]:
    """Where each tensor of a file lies, after the library has found nothing wrong with it."""
    from safetensors import safe_open

    with _told(path):
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            told = json.loads(file.read(length))
        start = 8 + length
        return {
            name: _Tensor(
                path,
                tensor["dtype"],
                tuple(tensor["shape"]),
                start + tensor["data_offsets"][0],
                start + tensor["data_offsets"][1],
            )
            for name, tensor in told.items()
            if name != "__metadata__"
        }


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the library or json say of a file into an error that names it."""
    try:
        yield
    except (OclbnError, OSError):
        raise
    except RecursionError:
        raise WeightsError(f"{path} is damaged: its description is nested too deeply") from None
    except Exception as error:
        raise WeightsError(f"{path} is damaged, or no safetensors file: {error}") from error


def _array(tensor: _Tensor, name: str) -> Host:
    dtype = tensor.dtype
    if dtype is None:
        raise WeightsError(f"{tensor.path}: {name} holds {tensor.code}; F32, F64, F16 or BF16 is wanted")
    if len(tensor.shape) != 1:
        raise WeightsError(f"{tensor.path}: {name} has shape {tensor.shape}; one number per channel is wanted")
    return np.frombuffer(_bytes(tensor), dtype.newbyteorder("<") if kind(dtype) != 2 else dtype).astype(dtype)


def _count(tensor: _Tensor, name: str) -> int:
    if tensor.code != "I64" or math.prod(tensor.shape) != 1:
        raise WeightsError(f"{tensor.path}: {name} is {tensor.code} of shape {tensor.shape}; one I64 is wanted")
    count = int.from_bytes(_bytes(tensor), "little", signed=True)
    if count < 0:
        raise WeightsError(f"{tensor.path}: {name} is {count}; a number of batches is wanted")
    return count


def _bytes(tensor: _Tensor) -> bytes:
    with tensor.path.open("rb") as file:
        file.seek(tensor.begin)
        return file.read(tensor.end - tensor.begin)


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> tuple[dict[str, bytes], list[Note]]:
    """The files of a model with other values in the place of its own, of the types that it has."""
    tensors = _tensors(into)
    groups = {group.name: group for group in parts.grouped(tensors)}
    notes: list[Note] = []
    images: dict[Path, bytearray] = {}

    def put(tensor: _Tensor, value: bytes) -> None:
        if tensor.path not in images:
            images[tensor.path] = bytearray(tensor.path.read_bytes())
        images[tensor.path][tensor.begin : tensor.end] = value

    for layer, there in matched(layers, read(into).layers, into):
        group = groups[there.name]
        arrays, more = placed(layer, there, into)
        notes += more
        for role, array in arrays.items():
            put(tensors[group.arrays[role]], array.tobytes())
        if layer.batches is not None and "batches" in group.arrays:
            put(tensors[group.arrays["batches"]], layer.batches.to_bytes(8, "little", signed=True))
    if not into.name.lower().endswith(INDEX):
        return {name: bytes(images[into] if into in images else into.read_bytes())}, notes
    if not name.lower().endswith(INDEX):
        raise WeightsError(f"{name}: {into.name} is an index of several files, and so is what is written: {INDEX}")
    shards = {shard: into.with_name(shard) for shard in sorted(set(_map(into).values()))}
    files = {name: into.read_bytes()}
    files |= {shard: bytes(images[path] if path in images else path.read_bytes()) for shard, path in shards.items()}
    return files, notes
