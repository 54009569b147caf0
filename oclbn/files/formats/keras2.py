"""Keras 2 and tf_keras: .h5, of a whole model or of weights alone.

The root, or the group model_weights of a whole model, says in layer_names which groups it has, and each of them in
weight_names which datasets, as "bn/gamma:0"; where such a list is too long for HDF5 it is in parts, layer_names0 and so
on. A model within a model is one group with the arrays of all its layers. gamma and beta may be missing; renorm adds
moving_stddev, renorm_mean and renorm_stddev. Only a whole model has epsilon and momentum, in model_config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files.formats import hdf, kerasconfig
from oclbn.files.formats.hdf import Stored
from oclbn.files.formats.keras import kept_notes, number_notes, renorm_pairs
from oclbn.files.formats.kerasconfig import Config
from oclbn.files.hdf5 import Dataset, File, Group
from oclbn.files.layers import Content, Layer, Note, Written, fitted, untold

if TYPE_CHECKING:
    import h5py

_ROLES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
_RENORM = {"moving_stddev": "stddev", "renorm_mean": "renorm_mean", "renorm_stddev": "renorm_stddev"}
_MOST_LIST = 64_000  # bytes of an attribute, of which HDF5 takes less than 64 kB


@dataclass(frozen=True, eq=False)
class _Arrays:
    """The arrays of one layer: the group of its file, the scope of its arrays in it, and what each is called."""

    layer: str
    scope: str
    arrays: dict[str, Dataset]

    @property
    def name(self) -> str:
        if not self.scope or self.scope == self.layer or self.scope.endswith(f"/{self.layer}"):
            return self.layer
        return self.scope.rpartition("/")[2]


def claims(path: Path, head: bytes) -> bool:
    return hdf.claimed(path, head, lambda file: _root(file) is not None)


def read(path: Path) -> Content:
    with hdf.opened(path) as file:
        there, notes = _stored(str(path), file)
        return Content("keras2", str(path), tuple(one.layer for one in there), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    if into is not None:
        return _replaced(layers, name, into)
    allowed: list[np.dtype[Any]] = [np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]
    notes: list[Note] = []
    ready: list[Layer] = []
    for layer in layers:
        hdf.check_name(layer.name or "a layer", path=True)
        if not layer.name:
            raise WeightsError(f"{layer}: layers go by name in Keras' .h5 files, and this one has none")
        layer.check_running("a layer of Keras'")
        fit, more = fitted(layer, allowed, "Keras' .h5 files")
        notes += (*more, *untold(layer, "Keras' layer", epsilon=1e-3, factor=0.01))
        ready.append(fit)

    def fill(file: h5py.File) -> None:
        _write_list(file, "layer_names", [layer.name for layer in ready])
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        for layer in ready:
            group = file.create_group(layer.name)
            there = [(name, role) for name, role in _ROLES.items() if role in layer.arrays]
            _write_list(group, "weight_names", [f"{layer.name}/{name}:0" for name, _ in there])
            for name, role in there:
                group.create_dataset(f"{layer.name}/{name}:0", data=layer.arrays[role])

    return Written({name: hdf.made(fill)}, tuple(notes))


def _write_list(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Strings as an attribute, or as several where one of HDF5's would be too long."""
    encoded = np.array([value.encode() for value in values])
    per = max(_MOST_LIST // max(encoded.itemsize, 1), 1)
    if len(encoded) <= per:
        group.attrs[name] = encoded
        return
    for number, start in enumerate(range(0, len(encoded), per)):
        group.attrs[f"{name}{number}"] = encoded[start : start + per]


def _root(file: File) -> Group | None:
    """The group that lists the layers."""
    root: Group | None = file
    if "model_weights" in file and isinstance(file.links["model_weights"], int):
        root = file.group("model_weights")
    if root is None or not {"layer_names", "layer_names0"} & root.attributes.keys():
        return None
    return root


def _list(group: Group, name: str) -> list[str]:
    """Strings of an attribute, or of its parts."""
    if name in group.attributes:
        attribute = group.attributes[name]
        return attribute.texts() if attribute.count else []
    found: list[str] = []
    number = 0
    while f"{name}{number}" in group.attributes:
        found += group.attributes[f"{name}{number}"].texts()
        number += 1
    if not number:
        raise WeightsError(f"{group.source.label}: {group.name} has no {name}")
    return found


def _stored(source: str, file: File) -> tuple[list[Stored], list[Note]]:
    root = _root(file)
    if root is None:
        raise WeightsError(f"{source} is no .h5 file of Keras 2: nothing in it is called layer_names")
    config = _config(source, file)
    there = [one for one in _arrays(root) if {"moving_mean", "moving_variance"} <= one.arrays.keys()]
    names = _names(there)
    found: list[Stored] = []
    notes: list[Note] = []
    for name, one in zip(names, there, strict=True):
        taken = {role: one.arrays[key] for key, role in _ROLES.items() if key in one.arrays}
        others = {role: one.arrays[key] for key, role in _RENORM.items() if key in one.arrays}
        arrays = hdf.vectors(taken, others)
        if isinstance(arrays, str):
            notes.append(Note(name, arrays, lost=True))
            continue
        if others:
            notes.append(Note(name, hdf.RENORM))
        said = config.by_name.get(one.name, []) if config is not None else []
        given: dict[str, Any] = {"epsilon": said[0].epsilon, "factor": said[0].factor} if len(said) == 1 else {}
        found.append(Stored(Layer(name, **arrays, **given, convention="tf_keras"), taken, others))
    if config is not None:  # within a model in a model arrays that are trained come first, whatever layers they are of
        order = {name: place for place, name in enumerate(config.by_name)}
        found.sort(key=lambda one: order.get(one.layer.name, len(order)))
    return found, notes


def _config(source: str, file: File) -> Config | None:
    attribute = file.attributes.get("model_config")
    text = None if attribute is None else attribute.text()
    return None if text is None else kerasconfig.read(text, source)


def _arrays(root: Group) -> Iterator[_Arrays]:
    """The arrays of each layer, in the order of the file's lists."""
    for layer in _list(root, "layer_names"):
        group = root.group(layer)
        if group is None:
            raise WeightsError(f"{root.source.label} lists a layer {layer!r}, and has no group of that name")
        scopes: dict[str, dict[str, Dataset]] = {}
        for weight in _list(group, "weight_names"):
            scope, _, last = weight.rpartition("/")
            name = last.partition(":")[0]
            if name not in _ROLES and name not in _RENORM:
                continue
            dataset = group.dataset(weight)
            if dataset is None:
                raise WeightsError(f"{root.source.label} lists {weight!r} of layer {layer!r}, and has no such array")
            scopes.setdefault(scope, {})[name] = dataset
        for scope, arrays in scopes.items():
            yield _Arrays(layer, scope, arrays)


def _names(there: Sequence[_Arrays]) -> list[str]:
    """Each layer's own name; with the group's and the scope where it is there twice."""
    counts = Counter(one.name for one in there)
    longer = [one.name if counts[one.name] == 1 else f"{one.layer}/{one.scope}" for one in there]
    if len(set(longer)) < len(longer):
        raise WeightsError(f"{there[0].arrays['moving_mean'].source.label} lists arrays of one layer twice")
    return longer


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> Written:
    with hdf.opened(into) as file:
        there, notes = _stored(str(into), file)
        pairs, more = hdf.paired(layers, there, into)
        pairs += renorm_pairs(layers, there, into)
        notes = [*kept_notes(notes), *more, *number_notes(layers, there, into)]
    return Written({name: hdf.replaced(into.read_bytes(), pairs)}, tuple(notes))
