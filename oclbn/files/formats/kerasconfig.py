"""What the configuration of a Keras model says of its batch normalizations, and under which path each has its arrays.

A configuration is {"class_name": ..., "config": {"name": ..., "layers": [...]}}. Files have one group per layer,
called after its class, as "layers/batch_normalization_1", or after the attribute by which another layer holds it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from oclbn.errors import WeightsError
from oclbn.files.formats.hdf import number

CLASSES = ("BatchNormalization", "SyncBatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2")
_LISTS = ("layers",)


@dataclass(frozen=True)
class Said:
    """One batch normalization of a configuration; factor: weight of a new batch; place: how many come before it."""

    name: str
    scale: bool = True
    center: bool = True
    renorm: bool = False
    epsilon: float | None = None
    factor: float | None = None
    place: int = 0


@dataclass(frozen=True)
class Config:
    """The batch normalizations of a model by the path of their groups, and how often each name is there.

    others: names of layers that are none. version: of Keras, where it is known.
    """

    by_path: dict[str, Said]
    by_name: dict[str, list[Said]]
    others: frozenset[str]
    version: str | None = None


def read(text: str, source: str, version: str | None = None) -> Config:
    """WeightsError: it is no JSON."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{source}: its configuration is damaged: {type(error).__name__}: {error}") from None
    by_path: dict[str, Said] = {}
    by_name: dict[str, list[Said]] = {}
    others = set[str]()
    waiting: list[tuple[str, Any]] = [("", told)]
    while waiting:
        path, layer = waiting.pop()
        config = layer.get("config") if isinstance(layer, dict) else None
        if not isinstance(config, dict):
            continue
        if layer.get("class_name") in CLASSES:
            said = _said(config, layer, len(by_path))
            by_path[path] = said
            by_name.setdefault(said.name, []).append(said)
            continue
        if isinstance(config.get("name"), str):
            others.add(config["name"])
        for key, value in config.items():
            if key in _LISTS and isinstance(value, list):
                waiting += reversed(_listed(f"{path}{key}/", value))
            elif isinstance(value, dict) and "class_name" in value and isinstance(value.get("config"), dict):
                waiting.append((f"{path}{key}/", value))
    return Config(by_path, by_name, frozenset(others - by_name.keys()), version)


def _listed(path: str, layers: list[Any]) -> list[tuple[str, Any]]:
    """Layers of a list with the paths of their groups: classes are counted, each for itself."""
    counts, found = Counter[str](), list[tuple[str, Any]]()
    for layer in layers:
        called = layer.get("class_name") if isinstance(layer, dict) else None
        if isinstance(called, str):
            name = snake(called.rpartition(">")[2])
            found.append((f"{path}{name}_{counts[name]}/" if counts[name] else f"{path}{name}/", layer))
            counts[name] += 1
    return found


def snake(name: str) -> str:
    """A class's name as Keras makes a group's of it: batch_normalization of BatchNormalization."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", re.sub(r"\W", "", name)).lower()


def _said(config: dict[str, Any], layer: dict[str, Any], place: int) -> Said:
    name = config.get("name", layer.get("name"))
    momentum = number(config.get("momentum"))
    return Said(
        name if isinstance(name, str) else "",
        scale=config.get("scale") is not False,
        center=config.get("center") is not False,
        renorm=config.get("renorm") is True,
        epsilon=number(config.get("epsilon")),
        factor=None if momentum is None or momentum > 1 else _rest(momentum),
        place=place,
    )


def _rest(momentum: float) -> float:
    """1 - momentum as somebody would write it: 0.01 of 0.99."""
    return float(f"{1 - momentum:.12g}")
