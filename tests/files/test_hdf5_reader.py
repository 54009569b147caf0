"""The reader of HDF5 that does without HDF5: it gives what HDF5 gives, and refuses bombs and what leads elsewhere."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from oclbn.errors import WeightsError
from oclbn.files.hdf5 import Dataset, File
from oclbn.files.hdf5.checksums import fletcher32, lookup3
from oclbn.files.hdf5.types import kind_of

pytestmark = pytest.mark.once(reason="files are the host's affair")
LABEL = "the file"
FORMATS = pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
PACKINGS: list[dict[str, Any]] = [
    {"chunks": (3, 4), "compression": "gzip"},
    {"chunks": (3, 4), "compression": "lzf", "shuffle": True, "fletcher32": True},
    {"chunks": (3, 4)},
    {"chunks": (7, 9), "compression": "gzip", "shuffle": True, "fletcher32": True},
    {"chunks": (7, 9)},
    {},
]


def image(fill: Callable[[h5py.File], None], libver: str = "earliest") -> bytes:
    made = io.BytesIO()
    with h5py.File(made, "w", libver=libver if libver == "latest" else (libver, "latest")) as file:
        fill(file)
    return made.getvalue()


def opened(content: bytes) -> File:
    return File(io.BytesIO(content), LABEL)


def arrays(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of numbers, by its path."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    with opened(content) as file:
        for group in file.walk():
            for name in group:
                if isinstance(one := group.get(name), Dataset) and one.dtype is not None:
                    found[one.name] = one.array()
    return found


@FORMATS
@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: ", ".join(packing) or "whole")
def test_elements_are_those_of_hdf5(libver: str, packing: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    values = {
        dtype: (rng.normal(size=(7, 9)) * 9).astype(dtype)
        for dtype in ("<f2", ">f2", "<f4", ">f4", "<f8", "i1", "u2", ">i8")
    }
    values["bfloat16"] = rng.normal(size=(7, 9)).astype(ml_dtypes.bfloat16)

    def fill(file: h5py.File) -> None:
        for name, array in values.items():
            file.create_dataset(name, data=array, **packing)

    found = arrays(image(fill, libver))
    assert found.keys() == {f"/{name}" for name in values}
    for name, array in values.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert found[f"/{name}"].dtype == native.dtype
        assert found[f"/{name}"].tobytes() == native.tobytes()


@FORMATS
@pytest.mark.parametrize("ordered", [False, True], ids=["by name", "in order"])
@pytest.mark.parametrize("count", [3, 12, 300, 1500])
def test_names_and_attributes_are_those_of_hdf5(libver: str, ordered: bool, count: int) -> None:
    """From a few messages to trees of several storeys."""

    def fill(file: h5py.File) -> None:
        group = file.create_group("a/b", track_order=ordered)
        for number in range(count):
            group.create_group(f"{'layer' * 6}{number}")
        for number in range(min(count, 40)):
            group.attrs[f"about {number}"] = f"text {number} " * 9
        group.attrs["list"] = np.array([b"one", b"three"])
        group.attrs["word"] = "ä string of any length"

    with opened(image(fill, libver)) as file:
        group = file.group("a/b")
        assert group is not None
        assert sorted(group) == sorted(f"{'layer' * 6}{number}" for number in range(count))
        told = group.attributes
        assert len(told) == min(count, 40) + 2
        assert all(told[f"about {number}"].text() == f"text {number} " * 9 for number in range(min(count, 40)))
        assert told["list"].texts() == ["one", "three"]
        assert told["word"].text() == "ä string of any length"
        assert len(list(file.walk())) == count + 3


@FORMATS
def test_many_pieces_and_none(libver: str) -> None:
    rng = np.random.default_rng(1)
    large = rng.normal(size=(300, 700)).round(1)

    def fill(file: h5py.File) -> None:
        file.create_dataset("large", data=large, chunks=(50, 70), compression="gzip", fletcher32=True)
        file.create_dataset("same", data=np.zeros(20_000), compression="lzf")
        file.create_dataset("never", shape=(5,), dtype="f4")
        file.create_dataset("filled", shape=(5,), dtype="f4", fillvalue=7.0)
        file.create_dataset("in pieces", shape=(5,), dtype="f4", fillvalue=7.0, chunks=(2,))
        file.create_dataset("odd", data=np.arange(7, dtype="u1"), compression="lzf", fletcher32=True)

    found = arrays(image(fill, libver))
    assert found["/large"].tobytes() == large.tobytes()
    assert not found["/same"].any()
    assert found["/never"].tolist() == [0] * 5
    assert found["/filled"].tolist() == found["/in pieces"].tolist() == [7] * 5
    assert found["/odd"].tolist() == list(range(7))


def test_checksums() -> None:
    """Of known words; every bit of an array is under Fletcher's, every bit of a newer header under Jenkins'."""
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    assert fletcher32(b"abcdef") == 0x50562A2D  # 0x56502D2A, as it is known, with the bytes of each word swapped
    content = image(lambda file: file.create_dataset("x", data=np.arange(5.0), fletcher32=True) and None, "v110")
    place = content.index(np.arange(5.0).tobytes())
    for at in (place, place + 39, content.index(b"OHDR") + 8):
        broken = bytearray(content)
        broken[at] ^= 1
        with pytest.raises(WeightsError, match=r"damaged: the checksum of (/x|an object's header) is wrong"):
            arrays(bytes(broken))


def test_a_file_that_begins_later() -> None:
    """Behind a block of a user's own."""
    made = io.BytesIO()
    with h5py.File(made, "w", userblock_size=1024) as file:
        file["x"] = np.arange(3)
    assert arrays(made.getvalue())["/x"].tolist() == [0, 1, 2]


@FORMATS
def test_every_length_is_cut_short(libver: str) -> None:
    content = image(lambda file: file.create_dataset("a/x", data=np.arange(3.0)) and None, libver)
    for length in range(len(content)):
        with pytest.raises(WeightsError, match=LABEL):
            arrays(content[:length])


# --- what is refused


def taken(file: File, *names: str) -> None:
    """The elements of these datasets are read."""
    for name in names:
        found = file.dataset(name)
        assert found is not None
        found.array()


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(5,), dtype="f4")
    layout[...] = h5py.VirtualSource("other.hdf", "x", shape=(5,))
    file.create_virtual_dataset("x", layout)


def bomb(file: h5py.File) -> None:
    """A piece of twenty bytes, by its description; what is stored unpacks to 64 MB."""
    dataset = file.create_dataset("x", shape=(5,), chunks=(5,), compression="gzip", dtype="f4")
    packer = zlib.compressobj(1)
    dataset.id.write_direct_chunk((0,), b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush())


def small_bomb(file: h5py.File) -> None:
    """The same, in no more bytes than a sound piece might have."""
    dataset = file.create_dataset("x", shape=(5,), chunks=(5,), compression="gzip", dtype="f4")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(40_000)))


def wide_piece(file: h5py.File) -> None:
    """Five elements in one piece of 256 MB, of which some bytes are there."""
    options: Any = {"maxshape": (2**26,), "chunks": (2**26,), "compression": "gzip", "dtype": "f4"}
    file.create_dataset("x", shape=(5,), **options).id.write_direct_chunk((0,), zlib.compress(bytes(100)))


def wide_pieces(file: h5py.File) -> None:
    """A thousand elements, in a thousand pieces of 16 MB each."""
    options: Any = {"maxshape": (1000, None), "chunks": (1, 1 << 22), "compression": "gzip", "dtype": "f4"}
    dataset = file.create_dataset("x", shape=(1000, 1), **options)
    packed = zlib.compress(bytes(1 << 24), 1)
    for number in range(3):
        dataset.id.write_direct_chunk((number, 0), packed)


def packed_twice(file: h5py.File) -> None:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk((5,))
    for _ in range(2):
        made.set_filter(h5z.FILTER_DEFLATE, h5z.FLAG_MANDATORY, (9,))
    h5d.create(file.id, b"x", h5t.IEEE_F32LE, h5s.create_simple((5,)), made)


def link(to: Any) -> Callable[[h5py.File], None]:
    def fill(file: h5py.File) -> None:
        file["there"] = np.arange(5, dtype="f4")
        file["x"] = to

    return fill


def dataset(**options: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("x", **options) and None


REFUSED = [
    pytest.param(link(h5py.SoftLink("/there")), "'x' in / is a link to '/there'", id="soft link"),
    pytest.param(link(h5py.ExternalLink("other.hdf", "/x")), "'x' in / is a link to", id="external link"),
    pytest.param(dataset(shape=(5,), dtype="f4", external=[("victim", 0, 20)]), "in another file", id="raw data"),
    pytest.param(virtual, "in another file", id="virtual dataset"),
    pytest.param(bomb, "unpacks to more than", id="bomb"),
    pytest.param(small_bomb, "unpacks to more than", id="small bomb"),
    pytest.param(wide_pieces, "unpacks to more than its 4,000 bytes|an index of kind", id="wide pieces"),
    pytest.param(packed_twice, "is packed twice", id="packed twice"),
    pytest.param(wide_piece, "unpacks to more than its 20 bytes", id="wide piece"),
    pytest.param(dataset(shape=(2**40,), chunks=(2**20,), dtype="f4"), "unpacks to", id="large"),
    pytest.param(dataset(shape=(2**31, 2**31, 2), chunks=(64, 64, 2), dtype="f8"), "unpacks to", id="beyond 64 bits"),
    pytest.param(dataset(shape=(5,), dtype=h5py.string_dtype()), "holds lists", id="strings"),
    pytest.param(dataset(data=np.zeros(5, "f4,f4")), "holds compounds of 8 bytes; numbers are wanted", id="compounds"),
    pytest.param(dataset(data=h5py.Empty("f4")), "holds nothing", id="no space at all"),
]


@FORMATS
@pytest.mark.parametrize(("fill", "message"), REFUSED)
def test_what_is_refused(libver: str, fill: Callable[[h5py.File], None], message: str, tmp_path: Path) -> None:
    """Nothing else is opened, nothing large is made."""
    content = image(fill, libver)
    with opened(content) as file, pytest.raises(WeightsError, match=message) as told:
        taken(file, "x")
    assert LABEL in str(told.value)


@FORMATS
def test_groups_that_hold_themselves(libver: str) -> None:
    """They are walked through once."""

    def fill(file: h5py.File) -> None:
        file["a/x"] = np.arange(3.0)
        file["a/again"] = file["a"]
        file["a/root"] = file["/"]
        file["b"] = file["a"]

    assert len(arrays(image(fill, libver))) >= 1
    with opened(image(fill, libver)) as file:
        assert len(list(file.walk())) <= 4
        found = file.dataset("a/again/again/root/b/x")
        assert found is not None
        assert found.array().tolist() == [0, 1, 2]


def test_names_that_are_the_ends_of_each_other() -> None:
    """Thousands of names of thousands of letters, in a heap that has those once."""
    count, long = 3000, "n" * 60_000

    def fill(file: h5py.File) -> None:
        file.create_group(long)
        for number in range(count):
            file.create_group(f"g{number}")

    content = bytearray(image(fill))
    place, offset = content.find(b"SNOD"), 8
    while place >= 0:
        for entry in range(int.from_bytes(content[place + 6 : place + 8], "little")):
            content[place + 8 + 40 * entry : place + 16 + 40 * entry] = offset.to_bytes(8, "little")
            offset += 1
        place = content.find(b"SNOD", place + 1)
    assert offset >= count
    with opened(bytes(content)) as file, pytest.raises(WeightsError, match="descriptions are far longer than the file"):
        list(file)


def test_a_type_that_is_made_of_itself() -> None:
    """Names of numbers, which are of names of numbers, ..."""
    with opened(image(lambda file: None)) as file:
        one = bytes([0x38, 0, 0, 0, 1, 0, 0, 0])
        with pytest.raises(WeightsError, match="made of itself"):
            kind_of(file.source, one * 5000)


def test_groups_far_too_deep() -> None:
    def fill(file: h5py.File) -> None:
        file.create_group("/".join(["g"] * 200))

    with opened(image(fill)) as file, pytest.raises(WeightsError, match="deep in each other"):
        list(file.walk())


def test_one_array_by_many_names_is_no_bomb() -> None:
    """A small file whose arrays unpack to a thousand times its size, together."""

    def fill(file: h5py.File) -> None:
        file.create_dataset("0", data=np.zeros(2_000_000), chunks=(2_000_000,), compression="gzip")
        for number in range(1, 100):
            file[str(number)] = file["0"]

    with opened(image(fill)) as file, pytest.raises(WeightsError, match="unpacks to far more than"):
        taken(file, *file)
