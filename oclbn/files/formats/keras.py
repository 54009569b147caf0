"""Keras 3: .weights.h5, its shards with an index .weights.json, and .keras, an archive of one and the configuration.

Each layer has a group vars with datasets 0, 1, ...: gamma and beta, where it has them, moving_mean and moving_variance,
and with renorm moving_stddev, renorm_mean and renorm_stddev; all of (C,). The layer's own name is the attribute `name`
of vars, which tf_keras and early versions of Keras 3 do not write. The path is made of classes and numbers, as
layers/functional/layers/batch_normalization_1, or of the attributes by which a model of one's own holds its layers.
bfloat16 is two opaque bytes, with the attribute dtype="bfloat16".

Only the configuration of a .keras file says what is a batch normalization, whether the first of three arrays is gamma
or beta, and what epsilon and momentum are. Elsewhere a group of that name is one, and so is any other whose four arrays
are of one shape; what was guessed is told in notes.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oclbn.elements import bfloat16
from oclbn.errors import WeightsError
from oclbn.files.formats import hdf, kerasconfig
from oclbn.files.formats.cursor import MOST_TEXT, text_of
from oclbn.files.formats.hdf import Stored
from oclbn.files.formats.kerasconfig import Config, Said
from oclbn.files.hdf5 import Dataset, File, Group
from oclbn.files.layers import Content, Host, Layer, Note, Written, fitted, matched, untold

if TYPE_CHECKING:
    import h5py

INDEX, ARCHIVE = ".weights.json", ".keras"
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
_CLASS = re.compile(r"(sync_)?batch_normalization(_v[12])?(_\d+)?")
_RENORM = ("stddev", "renorm_mean", "renorm_stddev")
_NOT_LAYERS = ("optimizer", "metrics", "_optimizer", "_metrics", "loss_tracker")
_MOST_SHARDS = 4096
_ZIP = b"PK\x03\x04"
_UNPACKED_TIMES, _UNPACKED_LEAST = 64, 1 << 26  # bytes that weights in an archive may unpack to
_CONFIG_TIMES, _CONFIG_LEAST = 4, 1 << 22  # the same of the configuration


@dataclass(frozen=True, eq=False)
class _Vars:
    """The arrays of one layer: its path, own name and those of the models around it, and its datasets by number."""

    path: str
    name: str | None
    around: tuple[str, ...]
    arrays: Mapping[int, Dataset]


def claims(path: Path, head: bytes) -> bool:
    if head.startswith(_ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
            return False
        return WEIGHTS in names and CONFIG in names
    if path.name.lower().endswith(INDEX):
        return head.lstrip().startswith(b"{")
    return hdf.claimed(path, head, _is_ours)


def _is_ours(file: File) -> bool:
    """Whether it has groups as these files have, near its top."""
    if "model_weights" in file or "layer_names" in file.attributes or "layer_names0" in file.attributes:
        return False
    return "vars" in file or any(name in file for name in ("layers", "_layer_checkpoint_dependencies", "optimizer"))


def read(path: Path) -> Content:
    with _opened(path) as (files, config):
        there, notes = _stored(str(path), files, config)
        return Content("keras", str(path), tuple(one.layer for one in there), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    if into is not None:
        return _replaced(layers, name, into)
    if name.lower().endswith((ARCHIVE, INDEX)):
        raise WeightsError(
            f"{name}: this is written with the model alone whose values are replaced (into); a name that ends in "
            f".weights.h5 makes a file of weights"
        )
    allowed = [np.dtype(np.float16), bfloat16(), np.dtype(np.float32), np.dtype(np.float64)]
    notes: list[Note] = []
    ready: list[Layer] = []
    for layer in layers:
        hdf.check_name(layer.name, path=False)
        layer.check_running("a layer of Keras'")
        if (layer.scale is None) != (layer.bias is None):
            layer = layer.complete("a layer of Keras'")  # three arrays do not say which one is missing
        fit, more = fitted(layer, allowed, "Keras' files")
        notes += (*more, *untold(layer, "Keras' layer", epsilon=1e-3, factor=0.01))
        ready.append(fit)

    def fill(file: h5py.File) -> None:
        for number, layer in enumerate(ready):
            group = file.create_group(f"layers/batch_normalization{f'_{number}' if number else ''}/vars")
            group.attrs["name"] = layer.name
            for index, array in enumerate(layer.arrays.values()):
                dataset = group.create_dataset(str(index), data=array)
                if array.dtype == bfloat16():
                    dataset.attrs["dtype"] = "bfloat16"
        file.create_group("vars").attrs["name"] = "sequential"

    return Written({name: hdf.made(fill)}, tuple(notes))


# --- what is in a file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[File], Config | None]]:
    """The files of HDF5 that a model lies in, and its configuration, where they have one."""
    with contextlib.ExitStack() as stack:
        if path.name.lower().endswith(INDEX):
            shards = [path.with_name(shard) for shard in _shards(path)]
            yield [stack.enter_context(hdf.opened(shard)) for shard in shards], None
        elif _is_archive(path):
            with _told(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                config = _config(path, archive)
                file = _member(path, archive)
            yield [stack.enter_context(file)], config
        else:
            yield [stack.enter_context(hdf.opened(path))], None


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what zipfile says of an archive into an error that names it."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path} is damaged, or no .keras file: {error}") from error


def _config(path: Path, archive: zipfile.ZipFile) -> Config:
    most = min(_CONFIG_TIMES * path.stat().st_size + _CONFIG_LEAST, MOST_TEXT)  # Keras does not pack it
    with archive.open(CONFIG) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise WeightsError(f"{path}: its {CONFIG} unpacks to more than {most:,} bytes")
    version = None
    if METADATA in archive.namelist():
        with archive.open(METADATA) as file:
            version = _version(file.read(_CONFIG_LEAST))
    return kerasconfig.read(content.decode(), str(path), version)


def _version(metadata: bytes) -> str | None:
    """Of Keras, where it is said."""
    told = json.loads(metadata.decode())
    version = told.get("keras_version") if isinstance(told, dict) else None
    return version if isinstance(version, str) else None


def _member(path: Path, archive: zipfile.ZipFile) -> File:
    """The weights in an archive, unpacked to no more than a bound: its checksum lies over all of them."""
    return File(io.BytesIO(_unpacked(path, archive, WEIGHTS)), f"{path}: {WEIGHTS}")


def _unpacked(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    most = _UNPACKED_TIMES * path.stat().st_size + _UNPACKED_LEAST
    with archive.open(name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise WeightsError(f"{path}: {name} unpacks to far more than the file's size")
    return content


def _shards(path: Path) -> list[str]:
    """The names of the files of weights that an index tells of."""
    try:
        index = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is damaged, or no index: {type(error).__name__}: {error}") from None
    told = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(told, dict):
        raise WeightsError(f"{path} has no weight_map, which says what is in what file")
    names: dict[str, None] = {}
    for value in told.values():
        for shard in value if isinstance(value, list) else [value]:
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.lower().endswith(".weights.h5"):
                raise WeightsError(f"{path} names {shard!r}; the name of a .weights.h5 file beside it is wanted")
            names[shard] = None
    if len(names) > _MOST_SHARDS:
        raise WeightsError(f"{path} names {len(names):,} files; up to {_MOST_SHARDS:,} are read")
    for shard in names:
        if not _is_regular(path, shard):
            raise WeightsError(f"{path} names {shard!r}, and there is no such file beside it")
    return list(names)


def _is_regular(path: Path, name: str) -> bool:
    try:
        return path.with_name(name).is_file()
    except (OSError, ValueError):
        return False


def _stored(source: str, files: Sequence[File], config: Config | None) -> tuple[list[Stored], list[Note]]:
    """The batch normalizations, by names of which none is there twice; and what was guessed."""
    there = sorted((one for one in _vars(files) if _is_one(one, config)), key=lambda one: _place(one, config))
    names = _names(there, config)
    found: list[Stored] = []
    notes: list[Note] = []
    for one in there:
        name, said = names[one.path], _said(one, config)
        taken, others, more = _roles(name, one, said)
        notes += more
        if not taken:
            continue
        arrays = hdf.vectors(taken, others)
        if isinstance(arrays, str):
            notes.append(Note(name, arrays, lost=True))
            continue
        if said is None and _CLASS.fullmatch(one.path.rpartition("/")[2]) is None:
            if (arrays["var"].astype(np.float64) < 0).any():
                continue  # four arrays of something else
            text = "it is taken for a batch normalization, as it has four arrays of one shape; nothing says what it is"
            notes.append(Note(name, text))
        given: dict[str, Any] = {} if said is None else {"epsilon": said.epsilon, "factor": said.factor}
        version = None if config is None else config.version
        older = one.name is None if version is None else version.startswith("2.")
        convention = "tf_keras" if older else "keras"
        found.append(Stored(Layer(name, **arrays, **given, convention=convention), taken, others))
    if config is None and any(one.name is None for one in there):
        text = (
            "layers without names are called after their paths, and taken for tf_keras' own; Keras 3.0 and some after "
            "it write such files, too"
        )
        notes.append(Note("", text))
    return found, notes


def _vars(files: Sequence[File]) -> list[_Vars]:
    """Every group of arrays of a layer, in the files' order; arrays that lie in several files are brought together."""
    found: dict[str, _Vars] = {}
    for file in files:
        names: dict[str, str] = {}  # of models, by their path
        for group in file.walk():
            within, _, last = group.name.rpartition("/")
            path = within.strip("/")
            if path.partition("/")[0] in _NOT_LAYERS:
                continue
            if last != "vars":
                own = group.group("vars") if "vars" in group else None
                if own is not None and (name := _name(own)) is not None:
                    names[group.name.strip("/")] = name
                continue
            arrays = {int(key): dataset for key, dataset in _numbered(group)}
            if not arrays:
                continue
            around = [names[above] for above in _above(path) if above in names]
            known = found.get(path)
            if known is not None:
                arrays = {**known.arrays, **arrays}
            found[path] = _Vars(path, _name(group), tuple(around), arrays)
    return list(found.values())


def _above(path: str) -> Iterator[str]:
    """The paths of what a path lies within, from the outside on, without the file's own."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])


def _name(group: Group) -> str | None:
    attribute = group.attributes.get("name")
    return None if attribute is None else attribute.text()


def _numbered(group: Group) -> Iterator[tuple[str, Dataset]]:
    for key in group:
        if key.isascii() and key.isdigit() and len(key) < 4:
            found = group.get(key)
            if isinstance(found, Dataset):
                yield key, found


def _is_one(one: _Vars, config: Config | None) -> bool:
    """Whether arrays may be a batch normalization's."""
    if config is not None:
        if _said(one, config) is not None:
            return True
        if one.name in config.others:
            return False
    if _CLASS.fullmatch(one.path.rpartition("/")[2]):
        return True
    same = len({(dataset.shape, dataset.kind.told) for dataset in one.arrays.values()}) == 1
    return sorted(one.arrays) == [0, 1, 2, 3] and same and hdf.is_vector(one.arrays[0])


def _said(one: _Vars, config: Config | None) -> Said | None:
    """What the configuration says of it: by its path, or by its name where that is there once."""
    if config is None:
        return None
    said = config.by_path.get(one.path + "/")
    if said is not None and one.name in (None, said.name):
        return said
    named = config.by_name.get(one.name, []) if one.name is not None else []
    return named[0] if len(named) == 1 else None


def _place(one: _Vars, config: Config | None) -> tuple[int, list[tuple[str, int]]]:
    """Where it comes among all: as in the configuration; else by the numbers in its path, as names are in HDF5's order.

    Layers of one class are numbered as the model has them; how those of several stand to each other is not in the file.
    """
    if config is not None and one.path + "/" in config.by_path:
        return config.by_path[one.path + "/"].place, []
    numbered = []
    for part in one.path.split("/"):
        before, _, last = part.rpartition("_")
        has_number = last.isascii() and last.isdigit() and len(last) < 10
        numbered.append((before, int(last)) if has_number else (part, 0))
    return 2**62, numbered


def _names(there: Sequence[_Vars], config: Config | None) -> dict[str, str]:
    """What each is called, by its path: its own name; with those of the models around it, or the path, where needed."""

    def called(one: _Vars) -> str:
        said = _said(one, config)
        if one.name is not None:
            return one.name
        return (
            said.name if said is not None and said.name else one.path.removeprefix("layers/").replace("/layers/", "/")
        )

    short = Counter(map(called, there))
    longer = {
        one.path: called(one) if short[called(one)] == 1 else "/".join((*one.around, called(one))) for one in there
    }
    counts = Counter(longer.values())
    names = {path: name if counts[name] == 1 else path for path, name in longer.items()}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}


def _roles(name: str, one: _Vars, said: Said | None) -> tuple[dict[str, Dataset], dict[str, Dataset], list[Note]]:
    """Which array is what, those of renorm beside the four, and notes."""
    count, notes = len(one.arrays), list[Note]()
    if sorted(one.arrays) != list(range(count)):
        return {}, {}, [Note(name, f"it is left out: its arrays are {sorted(one.arrays)}", lost=True)]
    if said is not None:
        roles = [role for role, there in (("scale", said.scale), ("bias", said.center)) if there]
        roles += ["mean", "var", *(_RENORM if said.renorm else ())]
        if len(roles) != count:
            text = f"it is left out: the configuration tells of {len(roles)} arrays, and {count} are there"
            return {}, {}, [Note(name, text, lost=True)]
    else:
        known = {2: 0, 3: 1, 4: 2, 5: 0, 6: 1, 7: 2}.get(count)
        if known is None:
            return {}, {}, [Note(name, f"it is left out: it has {count} arrays", lost=True)]
        roles = [*(("scale", "bias") if known == 2 else ("bias",) if known else ()), "mean", "var"]
        roles += _RENORM if count > 4 else ()
        if known == 1:
            text = (
                "one array stands before the statistics: it is taken for beta, as scale=False leaves it; with "
                "center=False it is gamma, which only a .keras file tells"
            )
            notes.append(Note(name, text))
    arrays = {role: one.arrays[index] for index, role in enumerate(roles)}
    others = {role: arrays.pop(role) for role in _RENORM if role in arrays}
    if others:
        notes.append(Note(name, hdf.RENORM))
    return arrays, others, notes


# --- other values in a copy of a model


def renorm_pairs(layers: Sequence[Layer], there: Sequence[Stored], into: Path) -> hdf.Pairs:
    """What the averages of renorm become, so that the variance outlasts the next step of training."""
    stored = {one.layer.name: one for one in there}
    pairs: hdf.Pairs = []
    for layer, target in matched(layers, [one.layer for one in there], into):
        others = stored[target.name].others
        if others:
            assert layer.mean is not None
            assert layer.var is not None
            epsilon = next((value for value in (target.epsilon, layer.epsilon) if value is not None), 1e-3)
            with np.errstate(invalid="ignore"):
                deviation = np.sqrt(layer.var.astype(np.float64) + epsilon)
            values: dict[str, Host] = {"stddev": deviation, "renorm_stddev": deviation, "renorm_mean": layer.mean}
            pairs += [(dataset, hdf.fit_to(dataset, values[role])) for role, dataset in others.items()]
    return pairs


def kept_notes(notes: Sequence[Note]) -> Iterator[Note]:
    """What reading a model has told that concerns its copy."""
    for note in notes:
        if not note.lost:
            yield Note(note.layer, hdf.RENORM_SET) if note.text == hdf.RENORM else note


def number_notes(layers: Sequence[Layer], there: Sequence[Stored], into: Path) -> Iterator[Note]:
    """Where a layer's numbers are not those that the model has, or may have."""
    for layer, target in matched(layers, [one.layer for one in there], into):
        epsilon = 1e-3 if target.epsilon is None else target.epsilon
        factor = 0.01 if target.factor is None else target.factor
        yield from untold(layer, f"the layer of {into.name}", epsilon=epsilon, factor=factor)


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> Written:
    for ending in (INDEX, ARCHIVE):
        if into.name.lower().endswith(ending) != name.lower().endswith(ending):
            raise WeightsError(f"{name}: {into.name} and what is written of it both end in {ending}, or neither does")
    with _opened(into) as (files, config):
        there, notes = _stored(str(into), files, config)
        pairs, more = hdf.paired(layers, there, into)
        pairs += renorm_pairs(layers, there, into)
        notes = [*kept_notes(notes), *more, *number_notes(layers, there, into)]
        notes += [] if config is not None else _order_notes(layers, there, into)
        made = {}
        for file in files:
            content = _whole(file)
            mine = [(dataset, array) for dataset, array in pairs if dataset.source is file.source]
            made[file.source.label] = hdf.replaced(content, mine) if mine else content
    if name.lower().endswith(INDEX):
        shards = {shard: made[str(into.with_name(shard))] for shard in _shards(into)}
        return Written({name: into.read_bytes(), **shards}, tuple(notes))
    (weights,) = made.values()
    if name.lower().endswith(ARCHIVE):
        weights = _archived(into, weights)
    return Written({name: weights}, tuple(notes))


def _order_notes(layers: Sequence[Layer], there: Sequence[Stored], into: Path) -> Iterator[Note]:
    """Where layers went in order, though the file does not say how those of several models stand to each other."""
    around = {one.arrays["mean"].name.rsplit("/", 3)[0] for one in there}
    if len(around) > 1 and not {layer.name for layer in layers} <= {one.layer.name for one in there}:
        text = (
            f"layers went in the order of their paths: {into.name} has them in {len(around)} groups, and does not "
            f"say in which order the network does; a .keras file does, and names do without"
        )
        yield Note("", text)


def _whole(file: File) -> bytes:
    file.source.file.seek(0)
    return file.source.file.read()


def _archived(into: Path, weights: bytes) -> bytes:
    """An archive with other weights, everything else as it was."""
    made = io.BytesIO()
    with _told(into), zipfile.ZipFile(into) as old, zipfile.ZipFile(made, "w") as new:
        new.comment = old.comment
        for info in old.infolist():
            content = weights if info.filename == WEIGHTS else _unpacked(into, old, info.filename)
            new.writestr(info, content, compress_type=info.compress_type)
    return made.getvalue()
