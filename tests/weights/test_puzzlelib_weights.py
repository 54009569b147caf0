"""PuzzleLib's parameter files among the formats: modules' files are read by name, and modules load what is written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyopencl as cl
import pytest
from layer_samples import layer

from oclbn import BatchNorm2D, weights
from oclbn.errors import WeightsError
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")


def test_what_a_module_saves_is_read(queue: cl.CommandQueue, tmp_path: Path) -> None:
    path = tmp_path / "net.hdf"
    modules = {name: BatchNorm2D(3, queue=queue, name=name, seed=1) for name in ("net.b", "net/a")}
    for number, bn in enumerate(modules.values()):
        bn.mean, bn.numOfProps = np.arange(3, dtype=np.float32) + number, 7 + number
    links: dict[object, int] = {}
    with h5py.File(path, "w") as file:
        for bn in modules.values():
            bn.save(file, varlinks=links)
    read = weights.read(path)
    assert list(read) == ["net.b", "net/a"]
    for name, bn in modules.items():
        assert read[name].batches == bn.numOfProps
        for role, array in read[name].arrays.items():
            assert same_bits(array, getattr(bn, role).get().ravel())


def test_a_module_loads_what_is_written(queue: cl.CommandQueue, tmp_path: Path) -> None:
    path = tmp_path / "net.hdf"
    given = [layer(f"net.bn{number}", 3, seed=number, batches=number) for number in range(12)]
    weights.write(path, given)
    assert list(weights.read(path)) == [one.name for one in given], "as they were given, not as names are sorted"
    for one in given:
        bn = BatchNorm2D(3, queue=queue, name=one.name)
        bn.load(path)
        assert bn.numOfProps == one.batches
        for role, array in one.arrays.items():
            assert same_bits(getattr(bn, role).get().ravel(), array)


def test_a_copy_keeps_what_is_packed(queue: cl.CommandQueue, tmp_path: Path) -> None:
    """Arrays are packed and under checksums, so that HDF5 writes them; other modules' stay."""
    source, target = tmp_path / "old.hdf", tmp_path / "new.hdf"
    weights.write(source, [layer("a", 3000, batches=3), layer("b", 3, batches=4)])
    with h5py.File(source, "r+") as file:
        file["params/conv"] = np.arange(5.0)
    new = layer("a", 3000, seed=5, batches=9)
    weights.write(target, [new], into=source)
    read = weights.read(target)
    assert read["a"].batches == 9
    assert read["b"].batches == 4
    assert all(same_bits(read["a"].arrays[role], array) for role, array in new.arrays.items())
    assert all(same_bits(array, weights.read(source)["b"].arrays[role]) for role, array in read["b"].arrays.items())
    with h5py.File(target) as file:
        assert file["params/conv"][...].tolist() == list(range(5))
        assert file["attrs/a.mean"].compression == "gzip"
        assert file["attrs/a.mean"].fletcher32


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.hdf"
    for key, value, message in (
        ("links/a.scale", 77, "params has no such array"),
        ("links/a.scale", -1, "no single whole number"),
        ("links/a.scale", "0", "no single whole number"),
        ("attrs/a.numOfProps", 2**53 + 1, "no single whole number"),
        ("attrs/a.mean", h5py.SoftLink("/attrs/a.var"), "wanted no link"),
    ):
        weights.write(path, [layer("a", 3, batches=1)], overwrite=True)
        with h5py.File(path, "r+") as file:
            del file[key]
            file[key] = value
        with pytest.raises(WeightsError, match=message):
            weights.read(path, format="puzzlelib")
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(WeightsError, match="has no group 'links'"):
        weights.read(path, format="puzzlelib")
