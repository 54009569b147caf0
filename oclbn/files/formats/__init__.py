"""The formats of weights: one module each, with what it is called here, and how a file's format is told.

A module has

    claims(path, head)           whether a file that begins with these bytes is of the format; cheap, never an error
    read(path)                   Content: every batch normalization of the file
    write(layers, name, into)    Written: a file of this name with these layers, or what the file `into` holds, with
                                 the values of these in the place of its own; the companions of a file beside it

and imports its package, which belongs to an extra, inside of these. Files are not trusted: whatever is wrong with one
is a WeightsError, nothing in it is run, no other file is opened but its companions, and what is kept of it is no more
than a few times its size. `oclbn.files.formats.cursor` helps with that.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from oclbn.errors import MissingExtraError, WeightsError
from oclbn.files import whole
from oclbn.files.formats import advice
from oclbn.files.layers import Content, Layer, Written

_HEAD = 4096  # bytes that formats are told by


class Codec(Protocol):
    """What the module of a format has."""

    def claims(self, path: Path, head: bytes) -> bool: ...
    def read(self, path: Path) -> Content: ...
    def write(self, layers: Sequence[Layer], name: str, into: Path | None) -> Written: ...


@dataclass(frozen=True)
class Format:
    """One format.

    name: how it is asked for, and its module's name. title: for people. endings: of its files, the one to write first.
    package: what it needs, as "h5py"; "" for none. extra: of oclbn that brings that. dtypes: names of the element
    types that it stores. companions: endings that take the place of the file's own, of files that belong to it.
    keeps: of epsilon, factor, cumulative and batches those that it has a place for. convention: of the framework that
    reads it, by its name in oclbn.conventions; "" where that is open.
    """

    name: str
    title: str
    endings: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    package: str = ""
    extra: str = "weights"
    companions: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    convention: str = ""
    names: bool = True  # whether it keeps the names of layers
    ordered: bool = True  # whether layers stand in the file as in the network: else they are paired by name alone
    derived: bool = False  # whether it holds other numbers, from which ours are computed: arrays may come back wider

    def codec(self) -> Codec:
        """The module. MissingExtraError: its package is not there."""
        if self.package:
            try:
                importlib.import_module(self.package)
            except ImportError as error:
                raise MissingExtraError(
                    f"{self.title} needs {self.package}: pip install 'oclbn[{self.extra}]'"
                ) from error
        return cast(Codec, importlib.import_module(f"{__name__}.{self.name}"))


DOUBLES = ("float32", "float64")
PLAIN = ("float16", "float32", "float64")
FLOATS = ("float16", "bfloat16", "float32", "float64")

FORMATS = (
    Format(
        name="safetensors",
        title="safetensors (PyTorch)",
        endings=(".safetensors", ".safetensors.index.json"),
        dtypes=FLOATS,
        package="safetensors",
        keeps=("batches",),
        convention="pytorch",
        ordered=False,
    ),
    Format(
        name="onnx",
        title="ONNX",
        endings=(".onnx",),
        dtypes=FLOATS,
        package="onnx",
        companions=(".onnx.data",),
        keeps=("epsilon", "factor"),
        convention="onnx",
    ),
    Format("mxnet", "MXNet's .params", (".params",), FLOATS, convention="mxnet"),
    Format(
        name="openvino",
        title="OpenVINO's IR",
        endings=(".xml",),
        dtypes=FLOATS,
        companions=(".bin",),
        keeps=("epsilon",),
        convention="openvino",
        ordered=False,
    ),
    Format(
        name="matconvnet",
        title="MatConvNet's .mat",
        endings=(".mat",),
        dtypes=DOUBLES,
        keeps=("epsilon", "factor"),
        convention="matconvnet",
        derived=True,
    ),
    Format("keras", "Keras 3", (".weights.h5", ".keras", ".weights.json"), FLOATS, "h5py", convention="keras"),
    Format("keras2", "Keras 2, tf_keras", (".h5", ".hdf5"), PLAIN, "h5py", convention="tf_keras"),
    Format("nnabla", "NNabla's parameters", (".h5",), PLAIN, "h5py", convention="nnabla"),
    Format("puzzlelib", "PuzzleLib, modules of oclbn", (".hdf",), FLOATS, "h5py", keeps=("batches",)),
    Format("npz", "NumPy's .npz", (".npz",), FLOATS, keeps=("epsilon", "factor", "cumulative", "batches")),
    Format("flax", "Flax", (".msgpack",), FLOATS, convention="flax", ordered=False),
    Format(
        "caffe",
        "Caffe",
        (".caffemodel",),
        DOUBLES,
        companions=(".prototxt",),
        keeps=("epsilon", "factor", "cumulative"),
        convention="caffe",
        derived=True,
    ),
    Format("darknet", "Darknet", (".weights",), companions=(".cfg",), convention="darknet", names=False),
    Format("ncnn", "ncnn", (".param",), companions=(".bin",), keeps=("epsilon",), convention="ncnn"),
)


def by_name(name: str) -> Format:
    """The format of this name. WeightsError: there is none."""
    for found in FORMATS:
        if found.name == name:
            return found
    raise WeightsError(f"format is {name!r}; one of {', '.join(one.name for one in FORMATS)} is wanted")


def of_name(path: Path) -> Format:
    """The format that a file of this name is to have: the first with its ending. WeightsError: none has it."""
    lower = path.name.lower()
    for found in FORMATS:
        if lower.endswith(found.endings):
            return found
    if path.suffix.lower() in (".pth", ".pt", ".ckpt", ".pkl", ".bin"):
        raise WeightsError(
            f"{path}: pickled objects are not written; PyTorch loads .safetensors, with safetensors.torch"
        )
    endings = ", ".join(dict.fromkeys(ending for one in FORMATS for ending in one.endings))
    raise WeightsError(f"{path}: its ending says no format: {endings} are known; or name one, as format='onnx'")


def of_file(path: Path) -> Format:
    """The format of a file that is there: told by its beginning.

    WeightsError: nobody knows it, or its package is not there. OSError: it cannot be read.
    """
    whole.check_source(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    lower = path.name.lower()
    # Those with the file's ending are asked first: several formats lie in HDF5.
    for found in sorted(FORMATS, key=lambda one: not lower.endswith(one.endings)):
        if _module(found).claims(path, head):
            return found
    raise WeightsError(f"{path}: {advice.of(path, head, [one.name for one in FORMATS])}")


def other_than(found: Format, path: Path) -> Format | None:
    """The format that a file looks like, where it is not this one and this one does not claim it."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if _module(found).claims(path, head):
        return None
    return next((one for one in FORMATS if one != found and _module(one).claims(path, head)), None)


def _module(found: Format) -> Any:
    return importlib.import_module(f"{__name__}.{found.name}")
