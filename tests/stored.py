"""Modules in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

from oclbn import BatchNorm2D, BatchNormND
from oclbn.errors import ModuleFileError
from oclbn.truth.hostile import make

C = 5
SHAPE = (1, C, 1, 1)
TENSORS = ("scale", "bias", "mean", "var")


def contents(bn: BatchNormND) -> dict[str, Any]:
    """What a file keeps of a module, and the identity of its arrays."""
    arrays = {name: getattr(bn, name) for name in TENSORS}
    return {name: (id(array), None if array is None else array.get().tobytes()) for name, array in arrays.items()} | {
        "numOfProps": bn.numOfProps,
        "vars": dict(bn.vars),
        "data": id(bn.data),
    }


def values(bn: BatchNormND) -> list[list[float]]:
    return [getattr(bn, name).get().ravel().tolist() for name in TENSORS]


def trained(queue: cl.CommandQueue, name: str | None = None, *, batches: int = 3, **options: Any) -> BatchNorm2D:
    bn = BatchNorm2D(C, name=name, queue=queue, seed=1, **options)
    for seed in range(batches):
        host = make((4, C, 3, 3), 1, bn.calctype, seed=seed)
        bn(cla.to_device(queue, host.x))
        bn.backward(cla.to_device(queue, host.dy))
        bn.updateParams(-0.1)
    return bn


def fresh(queue: cl.CommandQueue, name: str | None = None, **options: Any) -> BatchNorm2D:
    return BatchNorm2D(C, name=name, queue=queue, seed=2, **options)


def as_puzzlelib(path: Path, name: str = "", *, drop: tuple[str, ...] = (), **replaced: Any) -> dict[str, Any]:
    """A file with the names and types that PuzzleLib's own save gives it; no counter."""
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {key: rng.uniform(0.5, 2.0, SHAPE).astype(np.float32) for key in TENSORS} | replaced
    with h5py.File(path, "w", libver="earliest") as file:
        params, links, attrs = (file.require_group(group) for group in ("params", "links", "attrs"))
        for index, key in enumerate(("scale", "bias")):
            if key not in drop:
                params.create_dataset(str(index), data=arrays[key], compression="gzip")
            links[f"{name}.{key}"] = index
        for key in ("mean", "var"):
            if key not in drop:
                attrs.create_dataset(f"{name}.{key}", data=arrays[key], compression="gzip")
    return arrays


def refused(bn: BatchNormND, hdf: Any, message: str) -> None:
    """Loading is a ModuleFileError that names the file, and nothing has changed."""
    before = contents(bn)
    with pytest.raises(ModuleFileError, match=message) as caught:
        bn.load(hdf)
    assert isinstance(caught.value, ValueError)
    if isinstance(hdf, Path):
        assert str(hdf) in str(caught.value)
    assert contents(bn) == before
