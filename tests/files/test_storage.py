"""Parameter files: PuzzleLib's layout, both ways; whole or not at all."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from h5py import h5d, h5s, h5t
from stored import SHAPE, TENSORS, C, as_puzzlelib, contents, fresh, refused, trained, values

import oclbn.weights
from oclbn import BatchNorm, BatchNorm2D, BatchNorm3D, BatchNormND, weights
from oclbn.elements import numbers_of
from oclbn.errors import MissingExtraError, ModuleFileError, ModuleParameterError, ModuleStateError
from oclbn.files import puzzlelib
from oclbn.files.formats import FORMATS
from oclbn.truth.hostile import make

pytestmark = pytest.mark.once(reason="files are read and written by the host")


# --- there and back


@pytest.mark.parametrize("name", [None, "layer", "net.block.bn", "a/b", "Schicht ü"])
def test_what_is_saved_is_loaded(queue: cl.CommandQueue, tmp_path: Path, name: str | None) -> None:
    bn = trained(queue, name)
    assert bn.save(tmp_path / "bn.hdf") is None
    for hdf in (tmp_path / "bn.hdf", str(tmp_path / "bn.hdf"), bn.save(), bytearray(bn.save() or b"")):
        other = fresh(queue, name)
        kept = [getattr(other, key) for key in TENSORS]
        assert values(other) != values(bn)
        other.load(hdf)  # type: ignore[arg-type]
        assert values(other) == values(bn)
        assert other.numOfProps == bn.numOfProps == 3
        assert [getattr(other, key) for key in TENSORS] == kept, "loaded in place: others hold on to these arrays"


@pytest.mark.parametrize("maker", [BatchNorm, BatchNorm3D, lambda c, **k: BatchNormND(5, c, **k)], ids=["0", "3", "5"])
def test_every_module_keeps_its_shapes(queue: cl.CommandQueue, maker: Callable[..., BatchNormND]) -> None:
    bn, other = maker(C, queue=queue, seed=1), maker(C, queue=queue, empty=True)
    other.load(bn.save())
    assert values(other) == values(bn)
    for key in TENSORS:
        assert getattr(other, key).shape == getattr(bn, key).shape


def test_training_goes_on_as_if_nothing_had_happened(queue: cl.CommandQueue) -> None:
    bn, other = trained(queue), fresh(queue)
    other.load(bn.save())
    x = cla.to_device(queue, make((4, C, 3, 3), 1, seed=9).x)
    assert bn(x).get().tobytes() == other(x).get().tobytes()
    assert values(bn) == values(other)
    assert bn.numOfProps == other.numOfProps == 4


def test_training_goes_on_where_batches_were_left_out(queue: cl.CommandQueue) -> None:
    bn, other, again = fresh(queue), fresh(queue), fresh(queue)
    host = make((4, C, 3, 3), 1)
    host.x[1, 2, 1, 1] = np.nan
    bn(cla.to_device(queue, host.x))
    image = bn.save() or b""
    assert "skipped" not in str(trained(queue).save()), "a file without any is as PuzzleLib writes it"
    other.load(image)
    assert (other.numOfProps, other.skipped) == (1, 1)
    assert other.save(name="other") == bn.save(name="other")
    for seed in (7, 8):
        for each in (bn, other):
            each(cla.to_device(queue, make((4, C, 3, 3), 1, seed=seed).x))
    other.scale.set(bn.scale.get())  # type: ignore[union-attr]
    assert values(other) == values(bn)
    again.load(image)
    again.load(trained(queue).save() or b"")
    assert (again.numOfProps, again.skipped) == (3, 0), "counters are those of the file"


def test_more_left_out_than_there_were_is_refused(queue: cl.CommandQueue, tmp_path: Path) -> None:
    path = tmp_path / "bn.hdf"
    trained(queue).save(path)
    with h5py.File(path, "r+") as file:
        file["attrs/.skipped"] = np.array([0, 4, 0, 0, 0], np.uint32)
    refused(fresh(queue), path, "has 4 updates left out, more than batches")
    with h5py.File(path, "r+") as file:
        del file["attrs/.skipped"]
        file["attrs/.skipped"] = np.array([0, -4, 0, 0, 0], np.int32)
    refused(fresh(queue), path, "holds int32, which does not fit into uint32")


def test_float64_keeps_all_its_digits(queue: cl.CommandQueue, needs_fp64: None) -> None:
    bn = trained(queue, dtype=np.float64)
    other = fresh(queue, dtype=np.float64)
    other.load(bn.save())
    assert values(other) == values(bn)
    narrow = fresh(queue)
    before = contents(narrow)
    with pytest.raises(ModuleFileError, match="holds float64, which does not fit into float32"):
        narrow.load(bn.save())
    assert contents(narrow) == before
    bn.load(narrow.save())
    assert values(bn) == values(narrow)
    assert bn.scale is not None
    assert bn.scale.dtype == np.float64


def test_an_empty_module_gets_its_tensors_from_the_file(queue: cl.CommandQueue) -> None:
    bn = trained(queue, "layer")
    other = fresh(queue, "layer", empty=True)
    with pytest.raises(ModuleStateError, match=r"BatchNorm2D 'layer': made with empty=True"):
        other.save()
    other.load(bn.save())
    assert values(other) == values(bn)
    assert other.scale is other.vars["scale"].data
    assert not other.vars["scale"].grad.get().any()
    x = cla.to_device(queue, make((4, C, 3, 3), 1).x)
    assert other(x).get().tobytes() == bn(x).get().tobytes()


def test_loading_drops_what_the_last_call_left(queue: cl.CommandQueue) -> None:
    bn = trained(queue)
    bn.load(trained(queue, batches=1).save())
    assert bn.inData is bn.data is bn.grad is bn.savemean is None
    with pytest.raises(ModuleStateError, match="backward needs a call"):
        bn.backward(cla.zeros(queue, (4, C, 3, 3), np.float32))


# --- the layout


@pytest.mark.parametrize(("name", "prefix"), [(None, ""), ("layer", "layer")], ids=["without a name", "with a name"])
def test_the_layout_is_puzzlelibs(queue: cl.CommandQueue, tmp_path: Path, name: str | None, prefix: str) -> None:
    bn = trained(queue, name)
    bn.save(tmp_path / "bn.hdf", withBlueprint=True)
    with h5py.File(tmp_path / "bn.hdf", "r") as file:
        assert set(file) == {"params", "links", "attrs", "blueprint"}
        assert set(file["params"]) == {"0", "1"}
        assert set(file["links"]) == {f"{prefix}.scale", f"{prefix}.bias"}
        assert set(file["attrs"]) == {f"{prefix}.mean", f"{prefix}.var", f"{prefix}.numOfProps"}
        for key in ("scale", "bias"):
            link = file["links"][f"{prefix}.{key}"]
            assert link.shape == ()
            assert link.dtype.kind == "i"
            stored = file["params"][str(link[()])]
            assert stored.fletcher32
            assert (stored.shape, stored.dtype, stored.compression) == (SHAPE, np.float32, "gzip")
            np.testing.assert_array_equal(stored[...], getattr(bn, key).get())
        for key in ("mean", "var"):
            stored = file["attrs"][f"{prefix}.{key}"]
            assert stored.fletcher32
            assert (stored.shape, stored.dtype, stored.compression) == (SHAPE, np.float32, "gzip")
            np.testing.assert_array_equal(stored[...], getattr(bn, key).get())
        counter = file["attrs"][f"{prefix}.numOfProps"]
        assert (counter.shape, counter.dtype, int(counter[()])) == ((), np.int64, 3)
        blueprint = file["blueprint"]
        assert blueprint.shape == ()
        assert h5py.check_string_dtype(blueprint.dtype).length is None
        text = blueprint.asstr()[()]
        assert json.loads(text) == bn.getBlueprint()
        assert text == json.dumps(bn.getBlueprint(), indent=4, sort_keys=True)


def test_the_format_is_hdf5_1_10s(queue: cl.CommandQueue) -> None:
    """Newer than that would lock readers out; older has no checksums over names and scalars."""
    image = trained(queue).save()
    assert image is not None
    assert image[:8] == b"\x89HDF\r\n\x1a\n"
    assert image[8] in (2, 3), "the version of the superblock: 3 came with HDF5 1.10"
    assert len(image) < 10_000


def test_saving_twice_gives_the_same_bytes(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn = trained(queue)
    bn.save(tmp_path / "bn.hdf")
    assert bn.save() == bn.save() == (tmp_path / "bn.hdf").read_bytes()


@pytest.mark.parametrize("compress", [None, "gzip", "lzf", 9], ids=str)
def test_compression_can_be_chosen(queue: cl.CommandQueue, compress: Any) -> None:
    bn, other = trained(queue), fresh(queue)
    other.load(bn.save(compress=compress))
    assert values(other) == values(bn)


@pytest.mark.parametrize("compress", ["zip", 10, -1, True, 1.5], ids=str)
def test_unknown_compression_is_refused(queue: cl.CommandQueue, tmp_path: Path, compress: Any) -> None:
    with pytest.raises(ModuleParameterError, match=r"compress is .*; wanted None, 'gzip', 'lzf' or a gzip level"):
        trained(queue).save(tmp_path / "bn.hdf", compress=compress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "prefix"), [("net.block.bn", "net.bn"), ("bn", "bn.bn"), ("", "")], ids=["three", "one", "none"]
)
def test_names_can_be_shortened(queue: cl.CommandQueue, tmp_path: Path, name: str, prefix: str) -> None:
    bn, other = trained(queue, name), fresh(queue, name)
    bn.save(tmp_path / "bn.hdf", assumeUniqueNames=True)
    with h5py.File(tmp_path / "bn.hdf", "r") as file:
        assert set(file["links"]) == {f"{prefix}.scale", f"{prefix}.bias"}
    other.load(tmp_path / "bn.hdf", assumeUniqueNames=True)
    assert values(other) == values(bn)


def test_a_name_can_be_given(queue: cl.CommandQueue) -> None:
    bn, other = trained(queue, "inner"), fresh(queue)
    other.load(bn.save(name="outer.inner"), name="outer.inner")
    assert values(other) == values(bn)


# --- PuzzleLib's own files


@pytest.mark.parametrize("name", ["", "layer"])
def test_a_file_of_puzzlelib(queue: cl.CommandQueue, tmp_path: Path, name: str) -> None:
    arrays = as_puzzlelib(tmp_path / "p.hdf", name)
    bn = fresh(queue, name or None)
    bn.load(tmp_path / "p.hdf")
    for key in TENSORS:
        np.testing.assert_array_equal(getattr(bn, key).get(), arrays[key])


@pytest.mark.parametrize(
    ("init", "least", "factor"),
    [
        pytest.param(1.0, 0.1, 0.1, id="the default"),
        pytest.param(0.5, 0.25, 0.25, id="other factors"),
        pytest.param(1.0, 0.0, 1 / 1001, id="every batch weighs the same"),
    ],
)
def test_statistics_without_a_counter_are_not_wiped(
    queue: cl.CommandQueue, tmp_path: Path, init: float, least: float, factor: float
) -> None:
    arrays = as_puzzlelib(tmp_path / "p.hdf")
    bn = fresh(queue, initFactor=init, minFactor=least)
    bn.load(tmp_path / "p.hdf")
    host = make((4, C, 3, 3), 1)
    bn(cla.to_device(queue, host.x))
    batch = host.x.astype(np.float64).mean(axis=(0, 2, 3))
    expected = (1 - factor) * arrays["mean"].ravel() + factor * batch
    assert bn.mean is not None
    np.testing.assert_allclose(bn.mean.get().ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(C,), (C, 1), (1, C), (1, C, 1, 1, 1)], ids=str)
def test_the_shape_may_have_other_ones(queue: cl.CommandQueue, tmp_path: Path, shape: tuple[int, ...]) -> None:
    mean = np.arange(C, dtype=np.float32).reshape(shape)
    as_puzzlelib(tmp_path / "p.hdf", mean=mean)
    bn = fresh(queue)
    bn.load(tmp_path / "p.hdf")
    assert bn.mean is not None
    assert bn.mean.shape == SHAPE
    np.testing.assert_array_equal(bn.mean.get().ravel(), np.arange(C))


@pytest.mark.parametrize("stored", ["float16", ">f2", ml_dtypes.bfloat16, ">f4", "int16"])
def test_types_that_fit_are_turned_into_what_parameters_are(
    queue: cl.CommandQueue, tmp_path: Path, element: np.dtype[Any], stored: Any
) -> None:
    arrays = {name: np.arange(1, C + 1).astype(stored).reshape(SHAPE) for name in TENSORS}
    as_puzzlelib(tmp_path / "p.hdf", **arrays)
    bn = fresh(queue, dtype=element)
    bn.load(tmp_path / "p.hdf")
    for name in TENSORS:
        array = getattr(bn, name).get()
        assert array.dtype == numbers_of(element)
        np.testing.assert_array_equal(array.ravel(), np.arange(1, C + 1))


def bfloat16_of_hdf5(order: int) -> h5t.TypeFloatID:
    """The type that HDF5 2.0 calls H5T_FLOAT_BFLOAT16LE, or BE."""
    kind = h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_precision(16)
    kind.set_offset(0)
    kind.set_size(2)
    kind.set_ebias(127)
    kind.set_order(order)
    return kind


PATTERNS = np.arange(1 << 16, dtype=np.uint16)
WIDENED = (PATTERNS.astype(np.uint32) << 16).view(np.float32)
STORED_HALVES = {  # how it is put under a name in a file, and what that holds
    "half": (lambda file: file.create_dataset("x", data=PATTERNS.view("<f2")), PATTERNS.view("<f2")),
    "half, bytes swapped": (lambda file: file.create_dataset("x", data=PATTERNS.view(">f2")), PATTERNS.view(">f2")),
    "half in pieces": (
        lambda file: file.create_dataset("x", data=PATTERNS.view("<f2"), compression=1, fletcher32=True, shuffle=True),
        PATTERNS.view("<f2"),
    ),
    "bfloat16 of h5py": (lambda file: file.create_dataset("x", data=PATTERNS.view(ml_dtypes.bfloat16)), WIDENED),
    "bfloat16 of h5py in pieces": (
        lambda file: file.create_dataset("x", data=PATTERNS.view(ml_dtypes.bfloat16), compression=1, fletcher32=True),
        WIDENED,
    ),
    "bfloat16 with a tag": (lambda file: put_raw(file, h5t.create(h5t.OPAQUE, 2), PATTERNS, b"NUMPY:<V2"), WIDENED),
    "bfloat16 of HDF5": (lambda file: put_raw(file, bfloat16_of_hdf5(h5t.ORDER_LE), PATTERNS), WIDENED),
    "bfloat16 of HDF5, bytes swapped": (
        lambda file: put_raw(file, bfloat16_of_hdf5(h5t.ORDER_BE), PATTERNS.byteswap()),
        WIDENED,
    ),
}


def put_raw(file: h5py.File, kind: Any, bits: np.ndarray, tag: bytes | None = None) -> None:
    if tag is not None:
        kind.set_tag(tag)
    dataset = h5d.create(file.id, b"x", kind, h5s.create_simple(bits.shape))
    dataset.write(h5s.ALL, h5s.ALL, bits, mtype=kind)


@pytest.mark.parametrize("how", STORED_HALVES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_half_in_a_file_is_the_number_that_it_is(how: str, dtype: str) -> None:
    """Of all 65,536, by the bits; NaN stays NaN, of float32 the same one."""
    write, wanted = STORED_HALVES[how]
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        write(file)
        found = puzzlelib._array(file["x"], (1, 1 << 16), np.dtype(dtype), "file")
    with np.errstate(invalid="ignore"):
        assert found.tobytes() == wanted.astype(dtype).tobytes()


def test_two_bytes_that_are_named_otherwise_are_refused(queue: cl.CommandQueue, tmp_path: Path) -> None:
    raw = np.zeros(SHAPE, "V2").astype(h5py.opaque_dtype("V2"))  # tagged as bytes without a meaning
    as_puzzlelib(tmp_path / "p.hdf", mean=raw)
    refused(fresh(queue), tmp_path / "p.hdf", r"holds \|V2, which does not fit into float32")


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_halves_that_are_not_finite(queue: cl.CommandQueue, tmp_path: Path, bad: float) -> None:
    for stored in (np.float16, ml_dtypes.bfloat16):
        as_puzzlelib(tmp_path / "p.hdf", mean=np.full(SHAPE, bad, stored))
        refused(fresh(queue), tmp_path / "p.hdf", "5 of 5 values that are not finite")


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_a_module_of_half_keeps_what_float32_holds(queue: cl.CommandQueue, narrow: Any) -> None:
    """Its file is PuzzleLib's, of float32; it is loaded by modules of every type without loss."""
    bn = trained(queue, dtype=narrow)
    image = bn.save() or b""
    with h5py.File(io.BytesIO(image), "r") as file:
        assert {file[name].dtype for name in ("params/0", "params/1", "attrs/.mean", "attrs/.var")} == {
            np.dtype(np.float32)
        }
    for dtype in (narrow, np.float32):
        other = fresh(queue, dtype=dtype)
        other.load(image)
        assert values(other) == values(bn)
        assert other.numOfProps == bn.numOfProps
        assert other.save() == image
    empty = fresh(queue, dtype=narrow, empty=True)
    empty.load(image)
    x = cla.to_device(queue, make((4, C, 3, 3), 1, narrow).x)
    assert empty(x).get().tobytes() == bn(x).get().tobytes()


# --- several modules in one file


def test_modules_share_a_file(queue: cl.CommandQueue, tmp_path: Path) -> None:
    first, second = trained(queue, "a"), trained(queue, "b", batches=1)
    links: dict[Any, int] = {}
    with h5py.File(tmp_path / "net.hdf", "w") as file:
        first.save(file, varlinks=links, isRoot=False)
        second.save(file, varlinks=links, isRoot=False)
        assert file, "it is still open"
    assert sorted(links.values()) == [0, 1, 2, 3]
    with h5py.File(tmp_path / "net.hdf", "r") as file:
        for bn in (first, second):
            other = fresh(queue, bn.name)
            other.load(file)
            assert values(other) == values(bn)
        assert file, "it is still open"
    lone = fresh(queue, "b")
    lone.load(tmp_path / "net.hdf")
    assert values(lone) == values(second)


def test_modules_share_a_file_without_varlinks(queue: cl.CommandQueue, tmp_path: Path) -> None:
    modules = [trained(queue, "a"), trained(queue, "b", batches=1)]
    with h5py.File(tmp_path / "net.hdf", "w") as file:
        for bn in modules:
            bn.save(file)
    for bn in modules:
        other = fresh(queue, bn.name)
        other.load(tmp_path / "net.hdf")
        assert values(other) == values(bn)


def test_a_group_of_a_file(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn, other = trained(queue), fresh(queue)
    with h5py.File(tmp_path / "net.hdf", "w") as file:
        bn.save(file.create_group("epoch 3"))
        other.load(file["epoch 3"])
        with pytest.raises(ModuleFileError, match=r"net\.hdf has no group 'links'"):
            other.load(file)
    assert values(other) == values(bn)


def test_shared_variables_are_written_once(queue: cl.CommandQueue, tmp_path: Path) -> None:
    first, second = trained(queue, "a"), trained(queue, "b")
    second.setVar("scale", first.vars["scale"])
    assert second.scale is first.scale
    links: dict[Any, int] = {}
    with h5py.File(tmp_path / "net.hdf", "w") as file:
        first.save(file, varlinks=links)
        second.save(file, varlinks=links)
        assert set(file["params"]) == {"0", "1", "2"}
        assert file["links"]["a.scale"][()] == file["links"]["b.scale"][()]
    one, two = fresh(queue, "a"), fresh(queue, "b")
    two.setVar("scale", one.vars["scale"])
    loaded: dict[Any, bool] = {}
    one.load(tmp_path / "net.hdf", initvars=loaded)
    one.vars["scale"].data.set(np.full(SHAPE, 7, np.float32))
    two.load(tmp_path / "net.hdf", initvars=loaded)
    np.testing.assert_array_equal(two.vars["scale"].data.get(), 7)  # not loaded again
    assert two.vars["bias"].data.get().tobytes() == second.vars["bias"].data.get().tobytes()
    assert set(loaded) == {one.vars["scale"], one.vars["bias"], two.vars["bias"]}


def test_one_name_cannot_be_written_twice(queue: cl.CommandQueue, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.hdf", "w") as file:
        trained(queue, "a").save(file, withBlueprint=True)
        names: list[str] = []
        file.visit(names.append)
        links: dict[Any, int] = {}
        with pytest.raises(ModuleFileError, match=r"net\.hdf already holds 'links/a\.scale'"):
            trained(queue, "a").save(file, varlinks=links)
        with pytest.raises(ModuleFileError, match="already holds 'blueprint'"):
            trained(queue, "b").save(file, varlinks=links, withBlueprint=True)
        after: list[str] = []
        file.visit(after.append)
        assert after == names
        assert links == {}


def test_varlinks_of_another_file_are_refused(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn = trained(queue)
    with pytest.raises(ModuleParameterError, match="varlinks has number 4 for bias; the new file lacks it"):
        bn.save(tmp_path / "bn.hdf", varlinks={bn.vars["bias"]: 4})
    assert list(tmp_path.iterdir()) == []


def test_open_files_that_cannot_be_used(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn = trained(queue)
    bn.save(tmp_path / "bn.hdf")
    with h5py.File(tmp_path / "bn.hdf", "r") as file, pytest.raises(ModuleFileError, match="cannot be written"):
        bn.save(file, name="other")
    for use in (bn.save, bn.load):
        with pytest.raises(ModuleFileError, match=r"hdf is a closed h5py\.File or Group"):
            use(file)


@pytest.mark.parametrize("bad", [3, ["a.hdf"], np.zeros(3)], ids=["number", "list", "array"])
def test_what_is_no_file_at_all(queue: cl.CommandQueue, bad: Any) -> None:
    bn = trained(queue)
    for use in (bn.save, bn.load):
        with pytest.raises(ModuleParameterError, match=r"hdf is a .*; wanted a path"):
            use(bad)


# --- writing: whole or not at all


def test_folders_are_made(queue: cl.CommandQueue, tmp_path: Path) -> None:
    trained(queue).save(tmp_path / "runs" / "7" / "bn.hdf")
    assert [path.name for path in (tmp_path / "runs" / "7").iterdir()] == ["bn.hdf"]


@pytest.mark.parametrize(
    "content", [b"print('a program')\n", b"\x93NUMPY" + bytes(5000), b"\x89HDF"], ids=["py", "npy", "cut"]
)
def test_a_file_that_is_no_hdf5_is_not_written_over(queue: cl.CommandQueue, tmp_path: Path, content: bytes) -> None:
    """A slip in a name would cost a program."""
    path = tmp_path / "train.py"
    path.write_bytes(content)
    with pytest.raises(
        ModuleFileError, match=r"train\.py is there and is no HDF5 file, so it is not written over; give"
    ):
        trained(queue).save(path)
    assert path.read_bytes() == content
    assert [*tmp_path.iterdir()] == [path]


OF_OTHERS = [ending for form in FORMATS for ending in form.endings if not ending.endswith((".hdf", ".h5", ".hdf5"))]


@pytest.mark.parametrize("ending", [*OF_OTHERS, ".ONNX"])
def test_hdf5_is_not_written_under_the_ending_of_another_format(
    queue: cl.CommandQueue, tmp_path: Path, ending: str
) -> None:
    bn = trained(queue)
    path = tmp_path / f"bn{ending}"
    with pytest.raises(ModuleFileError, match=r"ending of another format, .*: take \.hdf, or write that") as refusal:
        bn.save(path)
    assert not [*tmp_path.iterdir()]
    if path.suffix not in (".keras", ".json"):  # which are written into a model alone, as the error says
        advised = re.search(r"oclbn\.weights\.write\(.*\)", str(refusal.value))
        assert advised is not None
        exec(advised[0], {"oclbn": oclbn, "path": path, "bn": bn})
        np.testing.assert_array_equal(
            next(iter(weights.read(path).values())).bias.astype(np.float32), bn.bias.get().ravel()
        )


@pytest.mark.parametrize("name", ["bn.h5", "bn.hdf5", "bn.HDF", "bn.weights.h5", "bn", "onnx", "bn.7"])
def test_names_that_hdf5_may_have(queue: cl.CommandQueue, tmp_path: Path, name: str) -> None:
    bn, other = trained(queue), fresh(queue)
    bn.save(tmp_path / name)
    other.load(tmp_path / name)
    assert values(other) == values(bn)


@pytest.mark.parametrize("block", [None, 512, 4096])
def test_an_older_save_and_an_empty_file_are_written_over(
    queue: cl.CommandQueue, tmp_path: Path, block: int | None
) -> None:
    """Those with a block of somebody's own before HDF5's as well, and those that are open elsewhere."""
    path, bn, other = tmp_path / "bn.hdf", trained(queue), fresh(queue)
    with h5py.File(path, "w", userblock_size=block) as file:
        file["mine"] = np.arange(3)
        file.flush()
        bn.save(path)
    other.load(path)
    assert values(other) == values(bn)
    (tmp_path / "empty.hdf").touch()
    bn.save(tmp_path / "empty.hdf")
    fresh(queue).load(tmp_path / "empty.hdf")


def test_a_name_alone_goes_to_the_current_folder(
    queue: cl.CommandQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bn, other = trained(queue), fresh(queue)
    bn.save("bn.hdf")
    other.load("bn.hdf")
    assert values(other) == values(bn)
    assert [path.name for path in tmp_path.iterdir()] == ["bn.hdf"]


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
@pytest.mark.parametrize("existing", [True, False], ids=["over an old file", "as a new file"])
def test_a_failure_leaves_the_old_file(
    queue: cl.CommandQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, existing: bool
) -> None:
    target = tmp_path / "bn.hdf"
    if existing:
        fresh(queue).save(target)
    old = target.read_bytes() if existing else None
    bn = trained(queue)
    links: dict[Any, int] = {}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    class Full:
        def __init__(self, path: Path, mode: str) -> None:
            self.file = path.open(mode)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, count: int) -> bytes:
            return self.file.read(count)

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def write(self, content: bytes) -> None:
            self.file.write(content[:100])
            fail()

    with monkeypatch.context() as patch:
        if broken == "fsync":
            patch.setattr(os, "fsync", fail)
        elif broken == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            real = Path.open
            patch.setattr(Path, "open", lambda path, mode="r": Full(_Opened(path, real), mode))
        with pytest.raises(OSError, match="No space left"):
            bn.save(target, varlinks=links)
    assert links == {}
    assert [path.name for path in tmp_path.iterdir()] == (["bn.hdf"] if existing else [])
    if existing:
        assert target.read_bytes() == old


class _Opened:
    """A path whose `open` is the real one while Path.open is replaced."""

    def __init__(self, path: Path, real: Callable[..., Any]) -> None:
        self.path, self.real = path, real

    def open(self, mode: str) -> Any:
        return self.real(self.path, mode)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the pipes of POSIX")
def test_what_is_no_regular_file_is_left_alone(queue: cl.CommandQueue, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.hdf"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"Not a regular file, so it is not written over: .*pipe\.hdf"):
        trained(queue).save(pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(sys.platform == "win32", reason="needs the permissions and links of POSIX")
def test_permissions_and_links_survive(queue: cl.CommandQueue, tmp_path: Path) -> None:
    target, link = tmp_path / "real.hdf", tmp_path / "link.hdf"
    fresh(queue).save(target)
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    target.chmod(0o640)
    link.symlink_to(target)
    bn, other = trained(queue), fresh(queue)
    bn.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    other.load(target)
    assert values(other) == values(bn)


def test_a_folder_is_no_place_to_write_to(queue: cl.CommandQueue, tmp_path: Path) -> None:
    (tmp_path / "bn.hdf").mkdir()
    with pytest.raises(OSError, match=r"bn\.hdf"):
        trained(queue).save(tmp_path / "bn.hdf")
    assert [path.name for path in tmp_path.iterdir()] == ["bn.hdf"]


def test_files_in_memory_are_not_taken_for_each_other(queue: cl.CommandQueue) -> None:
    """HDF5 does so if their names are equal: then one thread would load what another one has open."""
    from oclbn.files import puzzlelib

    bn, other = trained(queue), trained(queue, batches=1)
    with puzzlelib._open_image(bn.save() or b"") as file:
        assert values(fresh_from(other.save(), queue)) == values(other)
        assert file["attrs"][".numOfProps"][()] == bn.numOfProps


def fresh_from(image: bytes | None, queue: cl.CommandQueue) -> BatchNorm2D:
    bn = fresh(queue)
    bn.load(image or b"")
    return bn


# --- reading: whole or not at all


@pytest.mark.parametrize("empty", [False, True], ids=["module with tensors", "empty module"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 0.9999])
def test_a_file_cut_short(queue: cl.CommandQueue, tmp_path: Path, part: float, empty: bool) -> None:
    image = trained(queue).save()
    assert image is not None
    cut = image[: int(part * len(image))]
    (tmp_path / "bn.hdf").write_bytes(cut)
    for hdf in (tmp_path / "bn.hdf", cut):
        refused(fresh(queue, empty=empty), hdf, "no HDF5 file, or is cut short")


FOREIGN = [
    pytest.param(b"PK\x03\x04 a zip file", id="another format"),
    pytest.param(bytes(20_000), id="zeros"),
    pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(20_000), id="signature and nothing behind it"),
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_another_kind(queue: cl.CommandQueue, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bn.hdf").write_bytes(content)
    for hdf in (tmp_path / "bn.hdf", content):
        refused(fresh(queue), hdf, "no HDF5 file, or is cut short")


def test_a_file_of_another_framework_is_told_who_reads_it(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn = trained(queue)
    weights.write(tmp_path / "model.npz", [weights.layer(bn, "bn")])
    refused(fresh(queue), tmp_path / "model.npz", "no HDF5 file, .*; oclbn.weights.read reads files of other")
    np.testing.assert_array_equal(weights.read(tmp_path / "model.npz")["bn"].mean, bn.mean.get().ravel())
    image = bn.save()
    assert image is not None
    (tmp_path / "bn.hdf").write_bytes(image[: len(image) // 2])
    refused(fresh(queue), tmp_path / "bn.hdf", "no HDF5 file, or is cut short: [^;]*$")


def test_hdf5_of_another_program(queue: cl.CommandQueue, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file["model_weights/layer/gamma:0"] = np.ones(C, np.float32)
    refused(fresh(queue), path, "'links': it was not written by oclbn or PuzzleLib; oclbn.weights.read reads")


def test_compressed_data_that_is_damaged(queue: cl.CommandQueue, tmp_path: Path) -> None:
    path = tmp_path / "bn.hdf"
    bn = trained(queue)
    bn.save(path)
    with h5py.File(path, "r") as file:
        chunk = file["attrs"][".var"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    refused(fresh(queue), path, "is damaged")


def sample() -> Any:
    """A module's content as storage has it, and how to load that."""
    from oclbn.files import puzzlelib

    rng = np.random.default_rng(5)
    arrays = {key: rng.uniform(0.5, 2.0, SHAPE).astype(np.float32) for key in TENSORS}
    content = puzzlelib.Content(
        {key: (key, arrays[key]) for key in ("scale", "bias")},
        {key: arrays[key] for key in ("mean", "var")},
        {"numOfProps": 3},
    )
    shapes = {"scale": SHAPE, "bias": SHAPE}, {"mean": SHAPE, "var": SHAPE}

    def load(hdf: Any) -> tuple[Any, ...]:
        stored = puzzlelib.load(hdf, "bn", *shapes, {"numOfProps": ()}, np.dtype(np.float32))
        return {key: a.tobytes() for key, a in (stored.variables | stored.attributes).items()}, stored.counters

    return content, load


@pytest.mark.parametrize("flip", [0xFF, 0x01], ids=["all bits", "the lowest bit"])
@pytest.mark.parametrize("compress", [None, "gzip"], ids=str)
def test_a_damaged_byte_is_refused_or_of_no_effect(compress: str | None, flip: int) -> None:
    """Wherever in the file it is: in elements, names, links, the counter, or where nothing is."""
    from oclbn.files import puzzlelib

    content, load = sample()
    image = puzzlelib.save(None, "bn", content, varlinks={}, compress=compress)
    assert image is not None
    wanted = load(image)
    refusals = 0
    for position in range(0, len(image), 7):
        damaged = bytearray(image)
        damaged[position] ^= flip
        try:
            assert load(damaged) == wanted, f"byte {position}"
        except ModuleFileError:
            refusals += 1
    assert refusals > len(image) // 7 / 4


@pytest.mark.parametrize("compress", [None, "gzip"], ids=str)
def test_damaged_elements_are_refused_in_a_file_of_the_older_format(tmp_path: Path, compress: str | None) -> None:
    from oclbn.files import puzzlelib

    content, load = sample()
    path = tmp_path / "net.hdf"
    with h5py.File(path, "w", libver="earliest") as file:
        puzzlelib.save(file, "bn", content, varlinks={}, compress=compress)
    load(path)
    image = path.read_bytes()
    with h5py.File(path, "r") as file:
        chunks = [
            dataset.id.get_chunk_info(0)
            for group in ("params", "attrs")
            for dataset in file[group].values()
            if dataset.chunks
        ]
    assert len(chunks) == len(TENSORS)
    for chunk in chunks:
        for position in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
            damaged = bytearray(image)
            damaged[position] ^= 0x10
            with pytest.raises(ModuleFileError, match="is damaged"):
                load(damaged)


def test_a_variance_below_zero_is_refused(queue: cl.CommandQueue, tmp_path: Path) -> None:
    var = np.ones(SHAPE, np.float32)
    var[0, 3] = -0.25
    as_puzzlelib(tmp_path / "p.hdf", var=var)
    refused(fresh(queue), tmp_path / "p.hdf", r"has a variance below 0: -0\.25")
    refused(fresh(queue, empty=True), tmp_path / "p.hdf", "has a variance below 0")
    as_puzzlelib(tmp_path / "q.hdf", var=np.array([[0.0, -0.0, np.nan, 1.0, np.inf]], np.float32))
    fresh(queue).load(tmp_path / "q.hdf", check_finite=False)


MISSING = [
    pytest.param("links/.scale", r"has no dataset '\.scale' in /links; it has '\.bias'", id="link of scale"),
    pytest.param("params/1", "has no dataset '1' in /params; it has '0'", id="what a link points to"),
    pytest.param("attrs/.var", r"has no dataset '\.var' in /attrs; it has '\.mean'", id="the last that is read"),
    pytest.param("attrs", "has no group 'attrs'", id="all statistics"),
    pytest.param("params", "has no group 'params'", id="all parameters"),
]


@pytest.mark.parametrize(("key", "message"), MISSING)
def test_a_part_that_is_missing(queue: cl.CommandQueue, tmp_path: Path, key: str, message: str) -> None:
    as_puzzlelib(tmp_path / "p.hdf")
    with h5py.File(tmp_path / "p.hdf", "r+") as file:
        del file[key]
    refused(fresh(queue), tmp_path / "p.hdf", message)
    refused(fresh(queue, empty=True), tmp_path / "p.hdf", message)


def test_another_name_is_said_with_the_names_that_there_are(queue: cl.CommandQueue, tmp_path: Path) -> None:
    trained(queue, "conv1.bn").save(tmp_path / "bn.hdf")
    message = r"no dataset 'bn\.scale' in /links; it has 'conv1\.bn\.bias', .*; pass name='conv1\.bn' to load that$"
    refused(fresh(queue, "bn"), tmp_path / "bn.hdf", message)
    with h5py.File(tmp_path / "bn.hdf", "r+") as file:
        trained(queue).save(file)
    refused(fresh(queue, "bn"), tmp_path / "bn.hdf", r"; pass name='' or name='conv1\.bn' to load that$")
    bn = fresh(queue, "bn")
    bn.load(tmp_path / "bn.hdf", name="conv1.bn")
    assert bn.numOfProps == 3


def tensor(size: int, dtype: Any = np.float32) -> Any:
    return np.ones((1, size, 1, 1), dtype)


UNFIT = [
    pytest.param({"scale": tensor(C + 1)}, r"/params/0 has shape \(1, 6, 1, 1\); the module wants", id="channels"),
    pytest.param({"var": tensor(1)}, r"/attrs/\.var has shape \(1, 1, 1, 1\)", id="one channel"),
    pytest.param({"mean": np.ones((C, 2), "f4")}, r"has shape \(5, 2\)", id="too many elements"),
    pytest.param({"mean": np.float32(1)}, r"has shape \(\)", id="a scalar", marks=[]),
    pytest.param({"mean": tensor(C, np.float64)}, "holds float64, which does not fit into float32", id="float64"),
    pytest.param({"mean": tensor(C, np.int32)}, "holds int32, which does not fit into float32", id="integers"),
    pytest.param({"mean": tensor(C, np.complex64)}, "holds complex64", id="complex"),
    pytest.param({"mean": tensor(C, "S3")}, r"holds \|S3", id="text"),
]


@pytest.mark.parametrize(("arrays", "message"), UNFIT)
def test_arrays_that_do_not_fit(queue: cl.CommandQueue, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.hdf"
    as_puzzlelib(path)
    with h5py.File(path, "r+") as file:
        for key, array in arrays.items():
            place = {"scale": "params/0", "mean": "attrs/.mean", "var": "attrs/.var"}[key]
            del file[place]
            file[place] = array
    refused(fresh(queue), path, message)
    refused(fresh(queue, empty=True), path, message)


def test_six_channels_in_two_rows_are_not_six_channels(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn = BatchNorm2D(6, queue=queue)
    as_puzzlelib(tmp_path / "p.hdf", **{key: np.ones((1, 6, 1, 1), "f4") for key in ("scale", "bias", "mean")})
    with h5py.File(tmp_path / "p.hdf", "r+") as file:
        del file["attrs/.var"]
        file["attrs/.var"] = np.ones((2, 3), "f4")
    refused(bn, tmp_path / "p.hdf", r"has shape \(2, 3\); the module wants \(1, 6, 1, 1\)")


COUNTERS = [
    pytest.param(np.int64(-1), id="negative"),
    pytest.param(np.float64(3), id="not whole"),
    pytest.param(np.array([3, 4]), id="two"),
    pytest.param("three", id="text"),
]


@pytest.mark.parametrize("place", ["attrs/.numOfProps", "links/.scale"], ids=["counter", "link"])
@pytest.mark.parametrize("value", COUNTERS)
def test_numbers_that_are_none(queue: cl.CommandQueue, tmp_path: Path, place: str, value: Any) -> None:
    path = tmp_path / "bn.hdf"
    trained(queue).save(path)
    with h5py.File(path, "r+") as file:
        del file[place]
        file[place] = value
    refused(fresh(queue), path, f"/{place} is no single whole number from 0 on")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("key", TENSORS)
def test_values_that_are_not_finite(queue: cl.CommandQueue, tmp_path: Path, key: str, value: float) -> None:
    """Refused, naming the dataset, unless they are asked for."""
    array = np.linspace(1, 2, C, dtype=np.float32).reshape(SHAPE)
    array[0, 3] = value
    path = tmp_path / "p.hdf"
    as_puzzlelib(path, **{key: array})
    dataset = {"scale": "/params/0", "bias": "/params/1"}.get(key, f"/attrs/.{key}")
    message = (
        rf"{dataset} has 1 of 5 values that are not finite \(3: {value}\); load with check_finite=False takes them"
    )
    for empty in (False, True):
        refused(fresh(queue, empty=empty), path, message)
    bn = fresh(queue)
    if key == "var" and value < 0:
        with pytest.raises(ModuleFileError, match="variance below 0"):
            bn.load(path, check_finite=False)
    else:
        bn.load(path, check_finite=False)
        np.testing.assert_array_equal(getattr(bn, key).get(), array)


def test_trained_parameters_do_not_fit_where_they_are_fixed(queue: cl.CommandQueue, tmp_path: Path) -> None:
    trained(queue).save(tmp_path / "bn.hdf")
    refused(fresh(queue, affine=False), tmp_path / "bn.hdf", "a scale other than 1, at which affine=False keeps it")
    plain, other = trained(queue, affine=False), fresh(queue, affine=False)
    other.load(plain.save())
    assert values(other) == values(plain)


def test_a_missing_file_is_the_systems_error(queue: cl.CommandQueue, tmp_path: Path) -> None:
    bn = trained(queue)
    before = contents(bn)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bn.load(tmp_path / "nowhere.hdf")
    assert contents(bn) == before


# --- h5py is an extra


def test_without_h5py_the_message_names_the_extra(
    queue: cl.CommandQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "oclbn.files.puzzlelib", raising=False)
    monkeypatch.delattr("oclbn.files.puzzlelib", raising=False)
    bn = trained(queue)
    before = contents(bn)
    for use in (bn.save, bn.load):
        with pytest.raises(MissingExtraError, match=r"pip install 'oclbn\[io\]'") as caught:
            use(tmp_path / "bn.hdf")
        assert isinstance(caught.value, ImportError)
    assert contents(bn) == before
    assert list(tmp_path.iterdir()) == []
