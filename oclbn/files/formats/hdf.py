"""What the formats in HDF5 share: opening, telling them apart, arrays of layers, and other values in a copy of a file.

Files are read by `oclbn.files.hdf5`, never by HDF5's own library, which is given new files to make, and a copy of a
model, once that was read here, where an array of its is packed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oclbn.elements import kind
from oclbn.errors import WeightsError
from oclbn.files.foreign import HDF5
from oclbn.files.hdf5 import Dataset, File
from oclbn.files.layers import Host, Layer, Note, fitted_array, matched

if TYPE_CHECKING:
    import h5py


@dataclass(frozen=True, eq=False)
class Stored:
    """A layer of a file, and where it lies: a dataset for each of its arrays, and for others of its framework's."""

    layer: Layer
    arrays: Mapping[str, Dataset]
    others: Mapping[str, Dataset] = field(default_factory=dict)


Pairs = list[tuple[Dataset, Host]]
RENORM = "it renormalizes (renorm=True), of which its mean and variance alone are read"
RENORM_SET = "it renormalizes (renorm=True): moving_stddev, renorm_stddev and renorm_mean are set with the others"


def opened(path: Path) -> File:
    """An HDF5 file, to be used in a with statement. WeightsError; OSError."""
    file = path.open("rb")
    try:
        return File(file, str(path))
    except BaseException:
        file.close()
        raise


def claimed(path: Path, head: bytes, test: Callable[[File], bool]) -> bool:
    """Whether it is an HDF5 file for which the test holds; never an error."""
    if not head.startswith(HDF5):
        return False
    try:
        with opened(path) as file:
            return test(file)
    except (WeightsError, OSError):
        return False


def is_vector(dataset: Dataset) -> bool:
    """Whether it has numbers of a type that layers have, and no second axis that is longer than 1."""
    shape, dtype = dataset.shape, None if dataset.kind.is_bfloat16 else dataset.dtype
    flat = shape is not None and len(shape) > 0 and dataset.size > 0 and sum(extent != 1 for extent in shape) <= 1
    return flat and (dataset.kind.is_bfloat16 or (dtype is not None and kind(dtype.newbyteorder("=")) is not None))


def vectors(datasets: Mapping[str, Dataset], others: Mapping[str, Dataset] | None = None) -> dict[str, Any] | str:
    """The arrays as vectors of one length, which the others have, too; or why these are no batch normalization's."""
    together = {**datasets, **(others or {})}
    if all(map(is_vector, together.values())) and len({dataset.size for dataset in together.values()}) == 1:
        return {role: dataset.array().ravel() for role, dataset in datasets.items()}
    told = ", ".join(f"{role} {dataset.kind.told} {dataset.shape}" for role, dataset in together.items())
    return f"it is left out: its arrays are {told}; one number per channel is wanted in each"


def paired(layers: Sequence[Layer], there: Sequence[Stored], into: Path) -> tuple[Pairs, list[Note]]:
    """Which dataset of a model takes what, of its own type; and what it has no place for."""
    pairs: Pairs = []
    notes: list[Note] = []
    stored = {one.layer.name: one for one in there}
    for layer, target in matched(layers, [one.layer for one in there], into):
        layer.check_running(into.name)
        place = stored[target.name]
        for role, array in layer.arrays.items():
            dataset = place.arrays.get(role)
            if dataset is None:
                notes.append(Note(layer.name, f"{role} is left out: {into.name} has no place for it", lost=True))
                continue
            fit, more = _fitted(layer.name, role, array, dataset, into.name)
            pairs.append((dataset, fit))
            notes += more
    return pairs, notes


def _fitted(name: str, role: str, array: Host, dataset: Dataset, file: str) -> tuple[Host, list[Note]]:
    assert dataset.dtype is not None
    return fitted_array(name, role, array, [dataset.dtype.newbyteorder("=")], f"the type of that array of {file}")


def fit_to(dataset: Dataset, array: Host) -> Host:
    """An array rounded to a dataset's type, for those of which nothing is told."""
    assert dataset.dtype is not None
    return array.astype(dataset.dtype.newbyteorder("="))


def replaced(content: bytes, pairs: Pairs) -> bytes:
    """A file's bytes with other elements in the place of those of its datasets; nothing else of it changes.

    Where a dataset is packed HDF5 itself writes it, and whatever else comes of that.
    """
    image = bytearray(content)
    packed: list[tuple[str, bytes]] = []
    for dataset, array in pairs:
        value = _bytes(dataset, array)
        try:
            begin, size = dataset.place()
        except WeightsError:
            packed.append((dataset.name, value))
            continue
        assert size == len(value)
        image[begin : begin + size] = value
    return _repacked(bytes(image), packed, pairs[0][0].source.label) if packed else bytes(image)


def _bytes(dataset: Dataset, array: Host) -> bytes:
    """Elements in the byte order of the file."""
    if dataset.kind.is_bfloat16:
        return array.view(np.uint16).astype(dataset.kind.code[0] + "u2").tobytes()
    assert dataset.dtype is not None
    return array.astype(dataset.dtype, casting="equiv").tobytes()


def _repacked(content: bytes, values: Sequence[tuple[str, bytes]], label: str) -> bytes:
    import h5py
    from h5py import h5s

    image = io.BytesIO(content)
    try:
        with h5py.File(image, "r+") as file:
            for name, value in values:
                dataset = file[name].id
                dataset.write(h5s.ALL, h5s.ALL, np.frombuffer(value, np.uint8), mtype=dataset.get_type())
    except Exception as error:
        raise WeightsError(f"{label}: HDF5 cannot write other values into a copy of it: {error}") from error
    return image.getvalue()


def made(fill: Callable[[h5py.File], None]) -> bytes:
    """The bytes of a new file, which is filled by a function."""
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        fill(file)
    return image.getvalue()


def check_name(name: str, *, path: bool) -> None:
    """WeightsError: HDF5 cannot store a name. path: it is to be one of groups, with slashes between them."""
    strange = "\0" in name or not _is_text(name)
    if strange or (path and name and any(part in ("", ".") for part in name.split("/"))):
        raise WeightsError(f"layer {name!r}: this is no name in HDF5, which wants text, and single slashes within it")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def number(value: Any) -> float | None:
    """A number of a configuration, from 0 on; None where it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**1000:
        return float(value)
    return None
