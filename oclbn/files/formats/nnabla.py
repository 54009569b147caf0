"""NNabla's parameters: .h5, one dataset per parameter, by the names of its scopes, as "block/bn/gamma".

A layer is a group with mean and var, and most often beta and gamma, each of shape (1, C) or (1, C, 1, 1), or with C on
another axis. Each dataset has the attributes index and need_grad. epsilon and decay_rate are nowhere in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files.formats import hdf
from oclbn.files.formats.hdf import Stored
from oclbn.files.hdf5 import Dataset, File
from oclbn.files.layers import Content, Layer, Note, Written, fitted, untold

if TYPE_CHECKING:
    import h5py

_ROLES = {"beta": "bias", "gamma": "scale", "mean": "mean", "var": "var"}
_MARK = "need_grad"
_OWNER = "NNabla's batch_normalization"


def claims(path: Path, head: bytes) -> bool:
    return hdf.claimed(path, head, _is_ours)


def _is_ours(file: File) -> bool:
    """Whether the first array of all has NNabla's attributes."""
    for group in file.walk():
        for name in group:
            if isinstance(found := group.get(name), Dataset):
                return _MARK in found.attributes
    return False


def read(path: Path) -> Content:
    with hdf.opened(path) as file:
        there, notes = _stored(file)
        return Content("nnabla", str(path), tuple(one.layer for one in there), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    notes: list[Note] = []
    for layer in layers:
        notes += untold(layer, _OWNER, epsilon=1e-5, factor=0.1)
    if into is not None:
        with hdf.opened(into) as file:
            there, _ = _stored(file)
            pairs, more = hdf.paired(layers, there, into)
        return Written({name: hdf.replaced(into.read_bytes(), pairs)}, (*more, *notes))
    allowed: list[np.dtype[Any]] = [np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]
    ready: list[Layer] = []
    for layer in layers:
        hdf.check_name(layer.name, path=True)
        if not layer.name:
            raise WeightsError(f"{layer}: parameters of NNabla's lie in scopes, and this one has no name")
        layer.check_running(_OWNER)
        fit, more = fitted(layer, allowed, "NNabla's parameters")
        notes += more
        ready.append(fit)

    def fill(file: h5py.File) -> None:
        number = 0
        for layer in ready:
            for key, role in _ROLES.items():
                if role in layer.arrays:
                    dataset = file.create_dataset(f"{layer.name}/{key}", data=layer.arrays[role].reshape(1, -1, 1, 1))
                    dataset.attrs["index"], dataset.attrs[_MARK] = number, key in ("beta", "gamma")
                    number += 1

    return Written({name: hdf.made(fill)}, tuple(notes))


def _stored(file: File) -> tuple[list[Stored], list[Note]]:
    """Every group with a mean and a variance, in the order of `index`, as a network uses them."""
    found: list[tuple[int, Stored]] = []
    notes: list[Note] = []
    for group in file.walk():
        if not {"mean", "var"} <= group.links.keys():
            continue
        there = {key: one for key in _ROLES if key in group and isinstance(one := group.get(key), Dataset)}
        if not {"mean", "var"} <= there.keys():
            continue
        name = group.name.strip("/")
        taken = {_ROLES[key]: dataset for key, dataset in there.items()}
        arrays = hdf.vectors(taken)
        if isinstance(arrays, str):
            notes.append(Note(name, arrays, lost=True))
            continue
        number = min(_index(dataset) for dataset in there.values())
        found.append((number, Stored(Layer(name, **arrays, convention="nnabla"), taken)))
    found.sort(key=lambda one: one[0])
    return [stored for _, stored in found], notes


def _index(dataset: Dataset) -> int:
    """Where a parameter comes among all; 0 where the file does not say."""
    told = dataset.attributes.get("index")
    if told is None or told.shape != () or told.kind.code[1:] not in ("i4", "i8", "u4", "u8"):
        return 0
    return int(np.frombuffer(told.content, told.kind.code, 1)[0]) if len(told.content) >= told.kind.size else 0
