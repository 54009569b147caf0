"""Files that are damaged or made to do harm: they load, or an error names the file and nothing has changed."""

from __future__ import annotations

import collections
import os
import socket
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyopencl as cl
import pytest
from conftest import LONG
from fuzzed_files import IMAGES, OLDER, damaged, images, is_older
from h5py import h5d, h5p, h5s, h5t, h5z
from stored import SHAPE, TENSORS, C, as_puzzlelib, contents, fresh, refused, trained, values

from oclbn import device
from oclbn.errors import ModuleFileError
from oclbn.files import puzzlelib
from oclbn.tools.child import ChildProcess, Rejected

pytestmark = pytest.mark.once(reason="files are read and refused by the host")

Tally = collections.Counter[str]
FUZZED = 20_000 if LONG else 400
BATCH = 200  # files that the child is given at once
MOST_MEGABYTES = 400  # that a child may grow by, whatever a file declares
MEAN, VAR, SCALE = "attrs/.mean", "attrs/.var", "params/0"


# --- damage of every kind


def spec_of(queue: cl.CommandQueue) -> str:
    info = next(info for info in device.devices() if info.device == queue.device)
    return f"{info.platform_index}:{info.device_index}"


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource limits of POSIX")
def test_fuzzed_files(queue: cl.CommandQueue, tally: Tally) -> None:
    """A child of its own loads them, so that a crash inside HDF5 would be seen, and counted."""
    loads, crashes, most, least = 0, set[int](), 0, 10**9
    with ChildProcess("fuzzed_files", {"device": spec_of(queue)}, timeout=60) as child:
        for start in range(0, FUZZED, BATCH):
            deaths = child.deaths
            try:
                found, megabytes = child.ask("load", seeds=[start, start + BATCH])
            except Rejected:
                if child.deaths == deaths:
                    raise  # it lives, and has found something wrong
                found, dead = one_by_one(child, start)
                crashes |= dead
                megabytes = least
            loads += found
            most, least = max(most, megabytes), min(least, megabytes)
    tally["bad inputs: fuzzed files"] += FUZZED
    tally["of these, harmless: they load"] += loads
    tally["of these, of HDF5's older format"] += sum(map(is_older, range(FUZZED)))
    tally["of these, crashes inside HDF5, of its older format"] += len(crashes)
    assert all(is_older(seed) for seed in crashes), f"HDF5 died of {crashes}: checksums should have told"
    assert len(crashes) < max(2, FUZZED / 2000)  # none in oclbn; where HDF5 follows a damaged index it may die
    assert 0 < loads < FUZZED // 2
    assert most - least < MOST_MEGABYTES


def one_by_one(child: ChildProcess, start: int) -> tuple[int, set[int]]:
    """How many files of a batch load, and which are the death of the child."""
    loads, dead = 0, set[int]()
    for seed in range(start, start + BATCH):
        deaths = child.deaths
        try:
            loads += child.ask("load", seeds=[seed, seed + 1])[0]
        except Rejected:
            if child.deaths == deaths:
                raise
            dead.add(seed)
    return loads, dead


def test_fuzzed_files_are_the_same_on_every_run() -> None:
    whole = images()
    assert images() == whole
    assert [damaged(whole, seed) for seed in range(50)] == [damaged(whole, seed) for seed in range(50)]
    assert [image[:9] for image in whole] == [b"\x89HDF\r\n\x1a\n" + bytes([version]) for version in (3, 3, 0, 0, 3)]
    assert [index for index in range(IMAGES) if whole[index][8] == 0] == list(OLDER)
    assert len({damaged(whole, seed) for seed in range(200)}) > 190


def test_every_length_of_a_file(queue: cl.CommandQueue, tally: Tally) -> None:
    """Cut short anywhere, in every format."""
    bn = fresh(queue, "net.bn")
    before = contents(bn)
    for image in images():
        for length in range(0, len(image), 1 if LONG else 211):
            with pytest.raises(ModuleFileError, match=f"the file given as {length} bytes"):
                bn.load(image[:length])
            tally["bad inputs: files cut short"] += 1
    assert contents(bn) == before


# --- content that no writer of ours makes


def replace(place: str, **options: Any) -> Callable[[h5py.File], None]:
    """A dataset gives way to another one."""

    def change(file: h5py.File) -> None:
        del file[place]
        file.create_dataset(place, **options)

    return change


def link(place: str, to: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move(place, "elsewhere")
        file[place] = to

    return change


def group_for_dataset(file: h5py.File) -> None:
    del file[MEAN]
    file.create_group(MEAN)


def dataset_for_group(file: h5py.File) -> None:
    del file["params"]
    file["params"] = np.ones(C, np.float32)


def type_for_group(file: h5py.File) -> None:
    del file["attrs"]
    file["attrs"] = np.dtype("f4")


def attributes_for_datasets(file: h5py.File) -> None:
    """HDF5's own attributes, which share only the name with PuzzleLib's."""
    for key in TENSORS[2:]:
        file["attrs"].attrs[f".{key}"] = file[f"attrs/.{key}"][...]
        del file[f"attrs/.{key}"]


def references(file: h5py.File) -> None:
    del file[MEAN]
    file[MEAN] = np.array([file.ref] * C, dtype=h5py.ref_dtype)


def null_space(file: h5py.File) -> None:
    del file[MEAN]
    file[MEAN] = h5py.Empty("f4")


def elsewhere(file: h5py.File) -> None:
    """Raw elements in another file: it could be anyone's."""
    victim = Path(file.filename).with_name("victim")
    victim.write_bytes(np.arange(C, dtype="f4").tobytes())
    replace(MEAN, shape=SHAPE, dtype="f4", external=[(str(victim), 0, 4 * C)])(file)


def pipe_for_elements(file: h5py.File) -> None:
    """Opening it would wait forever."""
    pipe = Path(file.filename).with_name("pipe")
    os.mkfifo(pipe)
    file.flush()
    del file[MEAN]
    file.create_dataset(MEAN, shape=SHAPE, dtype="f4", external=[(str(pipe), 0, 4 * C)])


def link_to_pipe(file: h5py.File) -> None:
    pipe = Path(file.filename).with_name("pipe")
    os.mkfifo(pipe)
    del file[MEAN]
    file[MEAN] = h5py.ExternalLink(str(pipe), "/mean")


def detour(file: h5py.File) -> None:
    """The way to the statistics leads through another file."""
    other = Path(file.filename).with_name("other.hdf")
    with h5py.File(other, "w") as there:
        there["attrs/.mean"] = there["attrs/.var"] = np.ones(SHAPE, "f4")
    file["far"] = h5py.ExternalLink(str(other), "/")
    del file["attrs"]
    file["attrs"] = h5py.SoftLink("/far/attrs")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="f4")
    layout[...] = h5py.VirtualSource("other.hdf", "x", shape=SHAPE)
    del file[MEAN]
    file.create_virtual_dataset(MEAN, layout)


def wide_piece(file: h5py.File) -> None:
    """Five elements in one piece of a gigabyte, which a few bytes hold."""
    replace(MEAN, shape=SHAPE, maxshape=(1, None, 1, 1), chunks=(1, 2**28, 1, 1), dtype="f4")(file)


def bomb(file: h5py.File) -> None:
    """A piece of twenty bytes, by its description; what is stored unpacks to half a gigabyte."""
    replace(MEAN, shape=SHAPE, chunks=SHAPE, compression="gzip", dtype="f4")(file)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
    assert len(packed) < 3 << 20
    file[MEAN].id.write_direct_chunk((0, 0, 0, 0), packed)


def packed_twice(file: h5py.File) -> None:
    """Each time that a piece is unpacked it may grow by a thousand."""
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk(SHAPE)
    for _ in range(2):
        made.set_filter(h5z.FILTER_DEFLATE, h5z.FLAG_MANDATORY, (9,))
    del file[MEAN]
    h5d.create(file["attrs"].id, b".mean", h5t.IEEE_F32LE, h5s.create_simple(SHAPE), made)


def counter(value: Any, **options: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("attrs/.numOfProps", data=value, **options) and None


REFUSED: list[Any] = [
    pytest.param(link("links", h5py.SoftLink("/elsewhere")), "'links' in / is a link to", id="soft link"),
    pytest.param(link(MEAN, h5py.SoftLink("/attrs/.mean")), "'.mean' in /attrs is a link to", id="link to itself"),
    pytest.param(link("attrs", h5py.SoftLink("/nowhere")), "is a link to '/nowhere'", id="link to nothing"),
    pytest.param(link("params", h5py.ExternalLink("other.hdf", "/")), "is a link to '/'", id="link to another file"),
    pytest.param(link_to_pipe, "'.mean' in /attrs is a link to '/mean'", id="link to a pipe"),
    pytest.param(detour, "'attrs' in / is a link to '/far/attrs'", id="detour through another file"),
    pytest.param(elsewhere, "has its elements in another file", id="elements in another file"),
    pytest.param(pipe_for_elements, "has its elements in another file", id="elements in a pipe"),
    pytest.param(virtual, "has its elements in another file", id="virtual dataset"),
    pytest.param(wide_piece, "unpacks to more than its 20 bytes", id="one huge piece"),
    pytest.param(bomb, "unpacks to more than its 20 bytes", id="packed bomb"),
    pytest.param(packed_twice, "unpacks to more than its 20 bytes", id="packed twice"),
    pytest.param(group_for_dataset, "has no dataset '.mean'", id="group for a dataset"),
    pytest.param(dataset_for_group, "has no group 'params'", id="dataset for a group"),
    pytest.param(type_for_group, "has no group 'attrs'", id="type for a group"),
    pytest.param(attributes_for_datasets, "has no dataset '.mean' in /attrs; it has none at all", id="attributes"),
    pytest.param(references, "holds object", id="object references"),
    pytest.param(null_space, "has shape None", id="no space at all"),
    pytest.param(
        replace(MEAN, shape=(10**15,), chunks=(1024,), dtype="f4"), r"has shape \(1000000000000000,\)", id="10**15"
    ),
    pytest.param(
        replace(MEAN, shape=(2**31, 2**31, 2), chunks=(64, 64, 2), dtype="f8"), "has shape", id="beyond 64 bits"
    ),
    pytest.param(replace(MEAN, shape=(0,), dtype="f4"), r"has shape \(0,\)", id="nothing"),
    pytest.param(replace(MEAN, data=np.zeros(SHAPE, "f4,f4")), r"holds \[", id="compound"),
    pytest.param(replace(MEAN, data=np.zeros(SHAPE, "V7")), r"holds \|V7", id="opaque"),
    pytest.param(replace(MEAN, shape=SHAPE, dtype=h5py.string_dtype()), "holds object", id="strings"),
    pytest.param(replace(MEAN, shape=SHAPE, dtype=h5py.vlen_dtype("f4")), "holds object", id="lists"),
    pytest.param(replace(MEAN, shape=SHAPE, dtype="f8"), "holds float64", id="too wide"),
    pytest.param(replace(SCALE, shape=SHAPE, dtype="u8"), "holds uint64", id="integers that do not fit"),
    pytest.param(
        replace(VAR, data=np.full(SHAPE, -np.inf, "f4")), "5 of 5 values that are not fin", id="minus infinity"
    ),
    pytest.param(replace(MEAN, data=np.full(SHAPE, np.nan, "f2")), "5 of 5 values that are not finite", id="NaN"),
    pytest.param(replace(VAR, data=np.full(SHAPE, -1e-45, "f4")), "variance below 0", id="least below zero"),
    pytest.param(replace("links/.scale", data=10**15), "has no dataset '1000000000000000'", id="far link"),
    pytest.param(replace("links/.scale", data=2**64 - 1, dtype="u8"), "above 2", id="largest link"),
    pytest.param(counter(2**64 - 1, dtype="u8"), "above 2", id="counter of 64 bits"),
    pytest.param(counter(2**53 + 1), "above 2", id="counter that is not exact"),
    pytest.param(counter(-1, dtype="i1"), "no single whole number", id="counter below zero"),
    pytest.param(counter([3]), "no single whole number", id="counter in a list"),
    pytest.param(counter(h5py.Empty("i8")), "no single whole number", id="counter without a value"),
    pytest.param(counter("3"), "no single whole number", id="counter in words"),
]


@pytest.mark.parametrize("libver", ["earliest", "v110"])
@pytest.mark.parametrize(("change", "message"), REFUSED)
@pytest.mark.skipif(sys.platform == "win32", reason="needs the pipes of POSIX")
def test_hostile_content(
    queue: cl.CommandQueue, tmp_path: Path, tally: Tally, change: Callable[[h5py.File], None], message: str, libver: str
) -> None:
    path = tmp_path / "p.hdf"
    as_puzzlelib(path)
    with h5py.File(path, "r+", libver=(libver, "v110")) as file:
        change(file)
    refused(fresh(queue), path, message)
    refused(fresh(queue, empty=True), path, message)
    tally["bad inputs: hostile content"] += 2


def loops(file: h5py.File) -> None:
    """Groups that hold themselves: nobody walks through them."""
    file["params/again"] = file["params"]
    file["again"] = file["/"]


def many_names(file: h5py.File) -> None:
    for number in range(2000):
        file["links"][f"{number}.scale"] = number


ACCEPTED = [
    pytest.param(loops, id="groups that hold themselves"),
    pytest.param(many_names, id="thousands of names"),
    pytest.param(replace(VAR, data=np.array([[0.0, -0.0, 1e-45, 3e38, 1]], "f4")), id="finite to the last"),
    pytest.param(replace(MEAN, shape=SHAPE, dtype="f4", fillvalue=7.0), id="never written"),
    pytest.param(replace(MEAN, data=np.zeros(SHAPE, ">f2")), id="half, bytes swapped"),
    pytest.param(replace(MEAN, data=np.ones(SHAPE, "f4"), maxshape=(None,) * 4), id="extendable"),
    pytest.param(replace(MEAN, data=np.ones(SHAPE, "f4"), chunks=(1, 1, 1, 1), compression=9), id="a piece an element"),
    pytest.param(
        replace(MEAN, data=np.ones(SHAPE, "f4"), compression="lzf", shuffle=True, fletcher32=True), id="all filters"
    ),
    pytest.param(counter(2**53), id="largest counter"),
]


@pytest.mark.parametrize("change", ACCEPTED)
def test_odd_content_that_is_loaded(
    queue: cl.CommandQueue, tmp_path: Path, tally: Tally, change: Callable[[h5py.File], None]
) -> None:
    """What is strange but says all that is needed; it can be saved again."""
    path = tmp_path / "p.hdf"
    as_puzzlelib(path)
    with h5py.File(path, "r+") as file:
        change(file)
        mean = file[MEAN][...].astype("f4")
    bn, other = fresh(queue), fresh(queue)
    bn.load(path)
    assert bn.mean.get().tobytes() == mean.tobytes()
    other.load(bn.save() or b"")
    np.testing.assert_array_equal(values(other), values(bn))
    tally["bad inputs: hostile content"] += 1


def test_a_million_channels_in_small_pieces_are_no_bomb(tmp_path: Path) -> None:
    """What the limits on pieces must let through."""
    path, count = tmp_path / "p.hdf", 100_000
    arrays = {key: np.random.default_rng(1).random((1, count, 1, 1), np.float32) for key in ("mean", "var")}
    with h5py.File(path, "w") as file:
        file.create_group("links"), file.create_group("params")
        for key, chunk in (("mean", 1 << 14), ("var", 16)):
            options: Any = {"chunks": (1, chunk, 1, 1), "compression": "gzip", "fletcher32": True}
            file.create_dataset(f"attrs/bn.{key}", data=arrays[key], **options)
    shapes = dict.fromkeys(arrays, (1, count, 1, 1))
    stored = puzzlelib.load(path, "bn", {}, shapes, {}, np.dtype(np.float32))
    for key, array in arrays.items():
        np.testing.assert_array_equal(stored.attributes[key], array)


# --- what is no file


@pytest.mark.skipif(sys.platform == "win32", reason="needs the pipes and devices of POSIX")
@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero", "/dev/null", "/dev/full", "link to /dev/zero"])
def test_what_is_no_regular_file(queue: cl.CommandQueue, tmp_path: Path, tally: Tally, kind: str) -> None:
    path = Path(kind) if kind.startswith("/dev") else tmp_path / "bn.hdf"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind.startswith("link"):
        path.symlink_to("/dev/zero")
    refused(fresh(queue), path, "is no regular file")
    tally["bad inputs: no regular file"] += 1


def test_a_folder_and_an_empty_file(queue: cl.CommandQueue, tmp_path: Path, tally: Tally) -> None:
    bn = trained(queue)
    before = contents(bn)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        bn.load(tmp_path)
    assert contents(bn) == before
    (tmp_path / "empty.hdf").touch()
    refused(bn, tmp_path / "empty.hdf", "no HDF5 file, or is cut short")
    tally["bad inputs: no regular file"] += 2
