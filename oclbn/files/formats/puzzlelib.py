"""PuzzleLib's parameter files, which modules of oclbn save: .hdf, as `oclbn.files.puzzlelib` describes them.

Every batch normalization of a file is read, by its module's name. What a file was made with beyond that (a blueprint,
other counters, parameters of other layers) is left aside, and stays as it is in a copy.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.errors import ModuleFileError, WeightsError
from oclbn.files.formats import hdf
from oclbn.files.formats.hdf import Stored
from oclbn.files.hdf5 import Dataset, File, Group
from oclbn.files.layers import Content, Layer, Note, Written, matched, untold

_GROUPS = ("links", "params", "attrs")
_COUNTER = "numOfProps"
_MOST_COUNT = 2**53
_OWNER = "the module"


def claims(path: Path, head: bytes) -> bool:
    return hdf.claimed(path, head, lambda file: all(name in file for name in _GROUPS))


def read(path: Path) -> Content:
    with hdf.opened(path) as file:
        there, notes = _stored(file)
        return Content("puzzlelib", str(path), tuple(one.layer for one in there), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    from oclbn.files import puzzlelib

    notes = [note for layer in layers for note in untold(layer, _OWNER, epsilon=1e-5, factor=0.1)]
    if into is not None:
        files, more = _replaced(layers, name, into)
        return Written(files, (*more, *notes))
    import h5py

    image = io.BytesIO()
    links: dict[Any, int] = {}
    try:
        with h5py.File(image, "w", libver="v110") as file:
            for number, layer in enumerate(layers):
                hdf.check_name(layer.name, path=bool(layer.name))
                layer.check_running("PuzzleLib's files, where nothing else tells it from other layers")
                arrays = {role: array.reshape(1, -1, 1, 1) for role, array in layer.arrays.items()}
                content = puzzlelib.Content(
                    {role: ((number, role), arrays[role]) for role in ("scale", "bias") if role in arrays},
                    {role: arrays[role] for role in ("mean", "var")},
                    {} if layer.batches is None else {_COUNTER: layer.batches},
                )
                puzzlelib.save(file, layer.name, content, varlinks=links)
    except ModuleFileError as error:
        raise WeightsError(f"{name}: {error}") from error
    return Written({name: image.getvalue()}, tuple(notes))


def _stored(file: File) -> tuple[list[Stored], list[Note]]:
    links, params, attrs = (_group(file, name) for name in _GROUPS)
    variables = dict(_datasets(links))
    statistics = dict(_datasets(attrs))
    found: list[tuple[int, Stored]] = []
    notes: list[Note] = []
    for key, mean in statistics.items():
        name, _, last = key.rpartition(".")
        if last != "mean" or not key.endswith(".mean") or f"{name}.var" not in statistics:
            continue
        first = _MOST_COUNT
        taken = {"mean": mean, "var": statistics[f"{name}.var"]}
        for role in ("scale", "bias"):
            if (link := variables.get(f"{name}.{role}")) is not None:
                index = _whole(link)
                first = min(first, index)
                if (dataset := params.dataset(str(index))) is None:
                    raise WeightsError(f"{file.source.label}: {link.name} is {index}, and params has no such array")
                taken[role] = dataset
        arrays = hdf.vectors(taken)
        if isinstance(arrays, str):
            notes.append(Note(name, arrays, lost=True))
            continue
        counter = statistics.get(f"{name}.{_COUNTER}")
        batches = None if counter is None or counter.size != 1 else _whole(counter)
        others = {} if counter is None else {_COUNTER: counter}
        found.append((first, Stored(Layer(name, **arrays, batches=batches), taken, others)))
    found.sort(key=lambda one: one[0])  # as variables are numbered: names lie in HDF5's order
    return [stored for _, stored in found], notes


def _group(file: File, name: str) -> Group:
    found = file.group(name)
    if found is None:
        raise WeightsError(f"{file.source.label} has no group {name!r}: it was not written by oclbn or PuzzleLib")
    return found


def _datasets(group: Group) -> Iterator[tuple[str, Dataset]]:
    """All datasets in a group, by their path in it: a module's name may have slashes."""
    for one in group.walk():
        for name in one:
            if isinstance(found := one.get(name), Dataset):
                yield found.name[len(group.name) + 1 :], found


def _whole(dataset: Dataset) -> int:
    value = -1
    if dataset.shape == () and dataset.dtype is not None and dataset.dtype.kind in "iu":
        value = int(dataset.array()[()])
    if not 0 <= value <= _MOST_COUNT:
        raise WeightsError(
            f"{dataset.source.label}: {dataset.name} is no single whole number from 0 on, or is above 2**53"
        )
    return value


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> tuple[dict[str, bytes], list[Note]]:
    with hdf.opened(into) as file:
        there, _ = _stored(file)
        pairs, notes = hdf.paired(layers, there, into)
        stored = {one.layer.name: one for one in there}
        for layer, target in matched(layers, [one.layer for one in there], into):
            counter = stored[target.name].others.get(_COUNTER)
            if layer.batches is not None and counter is not None and counter.dtype is not None:
                pairs.append((counter, np.array(layer.batches).astype(counter.dtype.newbyteorder("="))))
    return {name: hdf.replaced(into.read_bytes(), pairs)}, notes
