"""Parameter files: HDF5 in the layout of PuzzleLib's modules, so that each library reads the other's.

    params/0, params/1, ...   one dataset per variable, compressed, in the variable's shape
    links/<name>.<variable>   scalar integer: which dataset of params holds it
    attrs/<name>.<attribute>  the running statistics, and what PuzzleLib does not have and skips: counters,
                              scalar, or one per channel
    blueprint                 scalar string, only when asked for: JSON that says how the module was made

A module without a name writes ".scale" and so on. Damage shows: arrays carry HDF5's Fletcher-32 checksum, and files
made here are of HDF5 1.10's format, which has checksums over all that describes them; the scalars lie in there, too.
In a file that the caller opened, the format is the caller's: HDF5's older one has none over names and scalars.

Elements are read in the file's own type and converted by NumPy: HDF5 rounds and clamps halves in ways of its own.
bfloat16, which h5py does not know, is told by its description, as HDF5 2.0 names it, or is two bytes of HDF5's opaque
type, as h5py writes arrays of ml_dtypes.bfloat16 (Keras's files among others).

Files are not trusted. What leads out of the file (soft and external links, raw data elsewhere, virtual datasets) is
refused, as it could be any file of the machine or a pipe that never ends; so is what would unpack to far more than the
array that is wanted.

This file needs h5py; it knows nothing of modules and devices.
"""

from __future__ import annotations

import math
import os
import stat
import uuid
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.errors import MissingExtraError, ModuleError, ModuleFileError, ModuleParameterError
from oclbn.files import formats, whole
from oclbn.files.foreign import HDF5

try:
    import h5py
    from h5py import h5d, h5f, h5p, h5s, h5t, h5z
except ImportError as error:
    raise MissingExtraError("parameter files need h5py: pip install 'oclbn[io]'") from error

Host = NDArray[Any]
_NAMES_SHOWN = 8
_NUMBERS_SHOWN = 3
_MOST_COUNT = 2**53  # batches, and datasets of a file
_ROOM = 1 << 24  # bytes that a piece of a stored array may have, however small the array
_OVERHEAD = 64  # bytes that a stored piece may take beyond twice what it unpacks to
_SLACK = 1 << 16  # the same of all pieces together
_HARMLESS_FILTERS = (h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)  # those that do not unpack
_BFLOAT16 = ((15, 7, 8, 0, 7), 127, h5t.NORM_IMPLIED)  # fields, bias, normalization of HDF5's type
_BFLOAT16_TAGS = (b"", b"NUMPY:<V2", b"bfloat16")  # of opaque elements: h5py's without a word, h5py.opaque_dtype's
_ENDINGS = (".hdf", ".h5", ".hdf5")  # of HDF5; the other formats' own would mislead whoever reads them
_ELSEWHERE = "oclbn.weights.read reads files of other frameworks, or says what to do"
_FORMAT = "v110"  # the first one with checksums over everything but the elements; those have their own


@dataclass(frozen=True)
class Content:
    """What one module puts into a file."""

    variables: Mapping[str, tuple[Hashable, Host]]  # name -> (key, array): the key tells shared variables
    attributes: Mapping[str, Host]
    counters: Mapping[str, int | Host]
    blueprint: str | None = None


@dataclass(frozen=True)
class Stored:
    """What a file holds for one module, checked, in the shapes and element type that were asked for."""

    variables: dict[str, Host]
    attributes: dict[str, Host]
    counters: dict[str, Any]  # int or array; only those that the file has
    source: str  # what to call the file in messages


def save(
    hdf: str | os.PathLike[str] | h5py.Group | None,
    prefix: str,
    content: Content,
    *,
    varlinks: MutableMapping[Any, int],
    compress: str | int | None = "gzip",
    flush: bool = True,
) -> bytes | None:
    """Write what one module has; returns the file's bytes when `hdf` is None, else None.

    hdf: a path (written atomically; missing folders are made), an open file or group (added to, left open), or None.
    varlinks: key -> number of the variables that the file already holds; they are only linked to, and those written now
    are added. ModuleFileError: the names are taken, HDF5 cannot write, or the path is a file that is not HDF5, or has
    the ending of another format. OSError: the disk's own, or the path is a folder, a pipe, a device or the like.
    """
    if not (compress in (None, "gzip", "lzf") or (type(compress) is int and 0 <= compress <= 9)):
        raise ModuleParameterError(f"compress is {compress!r}; wanted None, 'gzip', 'lzf' or a gzip level from 0 to 9")
    image = None
    if isinstance(hdf, h5py.Group):
        links = _fill(hdf, _label(hdf), prefix, content, varlinks, compress)
        if flush:
            hdf.file.flush()
    elif hdf is None or isinstance(hdf, (str, os.PathLike)):
        if hdf is not None:
            _check_ending(Path(hdf))
            _check_replaceable(Path(hdf))
        # HDF5 works in memory, so that a full disk or a lost connection meets plain file operations only.
        with h5py.File(_unique_name(), "w", driver="core", backing_store=False, libver=_FORMAT) as file:
            links = _fill(file, "the new file", prefix, content, varlinks, compress)
            file.flush()
            image = file.id.get_file_image()
        if hdf is not None:
            with whole.replacing(hdf, parents=True) as target:
                target.write(image)
            image = None
    else:
        raise ModuleParameterError(f"hdf is a {type(hdf).__name__}; wanted a path, an open h5py.File or Group, or None")
    varlinks.update(links)
    return image


def _check_ending(path: Path) -> None:
    """ModuleFileError where the path's ending is that of another format of weights."""
    for form in formats.FORMATS:
        ending = next((one for one in form.endings if path.name.lower().endswith(one)), None)
        if ending is not None and not ending.endswith(_ENDINGS):
            raise ModuleFileError(
                f"{path}: save() writes HDF5, and {ending} is the ending of another format, {form.title}: take "
                f"{_ENDINGS[0]}, or write that format with oclbn.weights.write(path, [oclbn.weights.layer(bn)])"
            )


def _check_replaceable(path: Path) -> None:
    """ModuleFileError where the path holds something else than HDF5: a slip in a name would cost a program, or data."""
    with suppress(OSError):  # nothing there, or what writing it tells of
        if path.is_file() and path.stat().st_size and not _is_marked(path):
            raise ModuleFileError(
                f"{path} is there and is no HDF5 file, so it is not written over; give another name, or remove it"
            )


def _is_marked(path: Path) -> bool:
    """Whether HDF5's mark stands where a file of its may begin: at 0, or at 512 times a power of two.

    Without HDF5 itself, which says no of a file that another process has open.
    """
    with path.open("rb") as file:
        size, place = path.stat().st_size, 0
        while place < size:
            file.seek(place)
            if file.read(len(HDF5)) == HDF5:
                return True
            place = 2 * place or 512
    return False


def load(
    hdf: str | os.PathLike[str] | bytes | h5py.Group,
    prefix: str,
    variables: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, tuple[int, ...]],
    counters: Mapping[str, tuple[int, ...]],
    dtype: np.dtype[Any],
    *,
    check_finite: bool = True,
) -> Stored:
    """Read the arrays of one module: all that is asked for, or an error.

    hdf: a path, the bytes of a file, or an open file or group (left open). variables, attributes: name -> shape wanted;
    a stored array fits if it has as many elements and no second axis longer than 1, and if its type turns into
    `dtype`, float32 or float64, without loss. counters: name -> shape, () of a single number, else of uint32; files may
    lack them.
    check_finite: an array that holds NaN or infinity does not fit. FileNotFoundError: no such path. ModuleFileError:
    all else that is wrong with the file.
    """
    with _opened(hdf) as (root, label):
        try:
            links, params = _group(root, "links", label), _group(root, "params", label)
            attrs = _group(root, "attrs", label) if attributes else None
            found_variables = {}
            for name, shape in variables.items():
                index = _integer(_dataset(links, f"{prefix}.{name}", label, _other_names(links, name)), label)
                found_variables[name] = _array(_dataset(params, str(index), label), shape, dtype, label, check_finite)
            found_attributes = {
                name: _array(_dataset(attrs, f"{prefix}.{name}", label), shape, dtype, label, check_finite)
                for name, shape in attributes.items()
            }
            found_counters = {
                name: _counter(_dataset(attrs, f"{prefix}.{name}", label), shape, label)
                for name, shape in counters.items()
                if attrs is not None and _found(attrs, f"{prefix}.{name}", label) is not None
            }
        except ModuleError:
            raise
        except Exception as error:
            raise ModuleFileError(f"{label} is damaged: {error}") from error
    return Stored(found_variables, found_attributes, found_counters, label)


def _fill(
    root: h5py.Group,
    label: str,
    prefix: str,
    content: Content,
    varlinks: Mapping[Any, int],
    compress: str | int | None,
) -> dict[Any, int]:
    """Write everything; returns all links, old and new."""
    try:
        _check_room(root, label, prefix, content, varlinks)
        return _write(root, prefix, content, varlinks, compress)
    except ModuleError:
        raise
    except Exception as error:
        raise ModuleFileError(f"{label} cannot be written: {error}") from error


def _check_room(root: h5py.Group, label: str, prefix: str, content: Content, varlinks: Mapping[Any, int]) -> None:
    keys = [f"links/{prefix}.{name}" for name in content.variables]
    keys += [f"attrs/{prefix}.{name}" for name in (*content.attributes, *content.counters)]
    for key in keys if content.blueprint is None else [*keys, "blueprint"]:
        if key in root:
            raise ModuleFileError(f"{label} already holds {key!r}; modules in one file need names of their own")
    for name, (variable, _) in content.variables.items():
        if variable in varlinks and f"params/{varlinks[variable]}" not in root:
            raise ModuleParameterError(f"varlinks has number {varlinks[variable]} for {name}; {label} lacks it")


def _write(
    root: h5py.Group, prefix: str, content: Content, varlinks: Mapping[Any, int], compress: str | int | None
) -> dict[Any, int]:
    params, links, attrs = (root.require_group(name) for name in ("params", "links", "attrs"))
    known = dict(varlinks)
    for name, (variable, array) in content.variables.items():
        if variable not in known:
            index = len(known)
            while str(index) in params:  # a module was saved before this one without the same varlinks
                index += 1
            params.create_dataset(str(index), data=array, compression=compress, fletcher32=True)
            known[variable] = index
        _write_integer(links, f"{prefix}.{name}", known[variable])
    for name, array in content.attributes.items():
        attrs.create_dataset(f"{prefix}.{name}", data=array, compression=compress, fletcher32=True)
    for name, count in content.counters.items():
        if isinstance(count, int):
            _write_integer(attrs, f"{prefix}.{name}", count)
        else:
            attrs.create_dataset(f"{prefix}.{name}", data=count, compression=compress, fletcher32=True)
    if content.blueprint is not None:
        root.create_dataset("blueprint", (), dtype=h5py.string_dtype(), data=content.blueprint)
    return known


def _write_integer(group: h5py.Group, key: str, value: int) -> None:
    """A scalar dataset whose value lies within its description, and so under the checksum of that."""
    scalar = np.array(value, np.int64)
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_layout(h5d.COMPACT)  # h5py's create_dataset cannot ask for it
    properties.set_obj_track_times(False)
    dataset = h5d.create(group.id, None, h5t.py_create(scalar.dtype), h5s.create(h5s.SCALAR), properties)
    dataset.write(h5s.ALL, h5s.ALL, scalar)
    group[key] = h5py.Dataset(dataset)


@contextmanager
def _opened(hdf: object) -> Iterator[tuple[h5py.Group, str]]:
    """An open group and what to call it in messages; closes what it opened."""
    if isinstance(hdf, h5py.Group):
        yield hdf, _label(hdf)
        return
    if isinstance(hdf, (bytes, bytearray)):
        label = f"the file given as {len(hdf)} bytes"
    elif isinstance(hdf, (str, os.PathLike)):
        label = str(Path(hdf))
        mode = Path(hdf).stat().st_mode  # a pipe would be waited for, so nothing is opened before
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModuleFileError(f"{label} is no regular file")
        with Path(hdf).open("rb"):
            pass  # a missing or forbidden file is the system's own error, in the system's own words
    else:
        raise ModuleParameterError(f"hdf is a {type(hdf).__name__}; wanted a path, bytes, an open h5py.File or Group")
    try:
        file = _open_image(bytes(hdf)) if isinstance(hdf, (bytes, bytearray)) else h5py.File(hdf, "r")
    except Exception as error:
        foreign = isinstance(hdf, (str, os.PathLike)) and Path(hdf).is_file() and not _is_marked(Path(hdf))
        advice = f"; {_ELSEWHERE}" if foreign else ""
        raise ModuleFileError(f"{label} is no HDF5 file, or is cut short: {error}{advice}") from error
    with file:
        yield file, label


def _open_image(content: bytes) -> h5py.File:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(content)
    return h5py.File(h5f.open(_unique_name().encode(), h5f.ACC_RDONLY, fapl=access))


def _unique_name() -> str:
    # HDF5 takes two files in memory for one and the same if their names are equal.
    return f"oclbn-{uuid.uuid4().hex}"


def _label(group: h5py.Group) -> str:
    if not group:
        raise ModuleFileError("hdf is a closed h5py.File or Group; wanted an open one")
    return str(group.file.filename) if group.name == "/" else f"{group.file.filename}:{group.name}"


def _found(group: h5py.Group, key: str, label: str) -> Any:
    """What lies under `key`, a path of names, or None; ModuleFileError where a name on the way points elsewhere."""
    found: Any = group.file["/"] if key.startswith("/") else group
    for name in key.split("/"):
        if name in ("", "."):
            continue
        if not isinstance(found, h5py.Group) or (link := found.get(name, getlink=True)) is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ModuleFileError(f"{label}: {name!r} in {found.name} is a link to {link.path!r}; wanted no link")
        found = found[name]
    return found


def _group(root: h5py.Group, key: str, label: str) -> h5py.Group:
    found = _found(root, key, label)
    if not isinstance(found, h5py.Group):
        advice = f"; {_ELSEWHERE}" if key == "links" else ""  # other groups lack in damaged files of ours
        raise ModuleFileError(f"{label} has no group {key!r}: it was not written by oclbn or PuzzleLib{advice}")
    return found


def _other_names(links: h5py.Group, variable: str) -> str:
    """What to say of the module names under which a file has this variable."""
    found = sorted(key.removesuffix(f".{variable}") for key in links if key.endswith(f".{variable}"))
    shown = " or ".join(f"name={name!r}" for name in found[:_NAMES_SHOWN])
    return f"; pass {shown} to load that" if found else ""


def _dataset(group: h5py.Group, key: str, label: str, hint: str = "") -> h5py.Dataset:
    found = _found(group, key, label)
    if not isinstance(found, h5py.Dataset):
        names = sorted(group)
        shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN]) + (", ..." if names[_NAMES_SHOWN:] else "")
        raise ModuleFileError(f"{label} has no dataset {key!r} in {group.name}; it has {shown or 'none at all'}{hint}")
    return found


def _array(
    dataset: h5py.Dataset, shape: tuple[int, ...], dtype: np.dtype[Any], label: str, check_finite: bool = False
) -> Host:
    stored = dataset.shape  # None for HDF5's null dataspace
    flat = stored is not None and math.prod(stored) == math.prod(shape) and sum(extent != 1 for extent in stored) <= 1
    if not (flat or stored == shape):
        raise ModuleFileError(f"{label}: {dataset.name} has shape {stored}; the module wants {shape}")
    bfloat16 = _holds_bfloat16(dataset) and dtype.kind == "f"
    if not (bfloat16 or np.can_cast(dataset.dtype, dtype, "safe")):
        raise ModuleFileError(f"{label}: {dataset.name} holds {dataset.dtype}, which does not fit into {dtype}")
    _check_pieces(dataset, label)
    values: Host = _bfloat16s(dataset) if bfloat16 else dataset[...]
    bad = np.flatnonzero(~np.isfinite(values)) if check_finite else ()
    if len(bad):
        shown = ", ".join(f"{index}: {values.flat[index]}" for index in bad[:_NUMBERS_SHOWN])
        raise ModuleFileError(
            f"{label}: {dataset.name} has {len(bad)} of {values.size} values that are not finite ({shown}"
            f"{', ...' if len(bad) > _NUMBERS_SHOWN else ''}); load with check_finite=False takes them"
        )
    with np.errstate(invalid="ignore"):  # NaN may be one that signals
        return np.ascontiguousarray(values.astype(dtype, casting="safe").reshape(shape))


def _holds_bfloat16(dataset: h5py.Dataset) -> bool:
    kind = dataset.id.get_type()
    if kind.get_size() != 2:
        return False
    if isinstance(kind, h5t.TypeFloatID):
        return bool((kind.get_fields(), kind.get_ebias(), kind.get_norm()) == _BFLOAT16)
    return isinstance(kind, h5t.TypeOpaqueID) and kind.get_tag() in _BFLOAT16_TAGS


def _bfloat16s(dataset: h5py.Dataset) -> NDArray[np.float32]:
    """As float32, whose upper half a bfloat16 is: no bit is lost, not even of NaN."""
    kind = dataset.id.get_type()
    bits = np.empty(dataset.shape, np.uint16)
    dataset.id.read(h5s.ALL, h5s.ALL, bits, mtype=kind)
    swapped = isinstance(kind, h5t.TypeFloatID) and kind.get_order() == h5t.ORDER_BE
    words: NDArray[np.uint32] = bits.view(">u2" if swapped else "<u2").astype(np.uint32) << np.uint32(16)
    return words.view(np.float32)


def _counter(dataset: h5py.Dataset, shape: tuple[int, ...], label: str) -> int | Host:
    return _array(dataset, shape, np.dtype(np.uint32), label) if shape else _integer(dataset, label)


def _integer(dataset: h5py.Dataset, label: str) -> int:
    value = -1
    if dataset.shape == () and dataset.dtype.kind in "iu":
        _check_pieces(dataset, label)
        value = int(dataset[()])
    if not 0 <= value <= _MOST_COUNT:
        raise ModuleFileError(f"{label}: {dataset.name} is no single whole number from 0 on, or is above 2**53")
    return value


def _check_pieces(dataset: h5py.Dataset, label: str) -> None:
    """ModuleFileError unless the elements lie in this file, in pieces that unpack to about the array's size."""
    made = dataset.id.get_create_plist()
    if made.get_layout() == h5d.VIRTUAL or made.get_external_count():
        raise ModuleFileError(f"{label}: {dataset.name} has its elements in another file")
    if made.get_layout() != h5d.CHUNKED:
        return
    filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
    piece = math.prod(made.get_chunk()) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    pieces = math.prod(-(-extent // size) for extent, size in zip(dataset.shape, made.get_chunk(), strict=True))
    if (
        piece > max(dataset.nbytes, _ROOM)
        or stored > pieces * (2 * piece + _OVERHEAD) + _SLACK
        or len(set(filters)) < len(filters)
        or len(set(filters) - set(_HARMLESS_FILTERS)) > 1
    ):
        raise ModuleFileError(
            f"{label}: {dataset.name} unpacks to more than its {dataset.nbytes:,} bytes: "
            f"{stored:,} bytes stored in pieces of {piece:,}, {len(filters)} filters"
        )
