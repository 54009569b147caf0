"""MatConvNet's .mat files: both kinds of networks, deviations for variances, edits that leave all else, hostile files.

MatConvNet itself runs in MATLAB alone: what is expected here follows from its sources (vl_nnbnorm, vl_simplenn_tidy,
dagnn.BatchNorm, cnn_train); SciPy, which knows MAT-files, writes and reads them on the other side.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from layer_samples import layer
from sample_matconvnet import cells, column, dag, samples, saved, simple, structs

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files.formats import mat5, matconvnet
from oclbn.files.layers import Layer, same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")


def laid(folder: Path, content: bytes, name: str = "a.mat") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def one_layer(moments: Any, **given: Any) -> dict[str, Any]:
    count = len(moments)
    fields = {"type": "bnorm", "weights": cells([column(*[1] * count), column(*[0] * count), moments])}
    return {"layers": cells([fields | given])}


def test_a_simple_network(tmp_path: Path) -> None:
    content = weights.read(laid(tmp_path, saved(simple())))
    assert list(content) == ["bn1", "layer4", "layer5"]
    one = content["bn1"]
    assert (one.epsilon, one.factor, one.convention) == (1e-4, 0.05, "matconvnet")
    assert one.mean is not None
    assert one.var is not None
    assert one.mean.tolist() == [0.5, -2, 7]
    assert np.allclose(np.sqrt(one.var + 1e-4), [1.5, 3, 0.25], rtol=1e-15), "a deviation has its epsilon"
    old = content["layer4"]
    assert old.mean is None, "filters and biases, without moments"
    assert (old.scale.tolist(), old.bias.tolist()) == ([1, 2], [3, 4])  # type: ignore[union-attr]
    assert content.notes[0].layer == "layer4"
    assert content["layer5"].epsilon == 1e-5, "what vl_simplenn_tidy fills in"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["in net", "as variables"])
def test_a_dag(compressed: bool, own: bool, tmp_path: Path) -> None:
    net = dag()["net"] if own else dag() | {"state": {"layers": 3.0}, "x": np.ones((5, 5))}
    (one,) = weights.read(laid(tmp_path, saved(net, compressed))).values()
    assert (one.name, one.factor, one.channels) == ("bn", 0.1, 2)
    assert np.allclose(one.var, [4 - 1e-5, 16 - 1e-5])


def test_two_networks_of_a_file_have_their_variables_names(tmp_path: Path) -> None:
    assert list(weights.read(laid(tmp_path, saved({"a": dag()["net"], "b": dag()["net"]})))) == ["a/bn", "b/bn"]


def test_every_deviation_comes_back(tmp_path: Path) -> None:
    """All magnitudes, and those far below epsilon's root, where epsilon must give way; NaN and infinity."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for low, high in ((-2, 6), (-4, -2), (-30, -5), (-44, 37)):
            deviation = (10 ** rng.uniform(low, high, 2000)).astype(dtype)
            moments = np.stack([deviation, deviation], axis=1)
            if high < 0 or dtype == np.float64:
                moments[0, 1] = 0
            (one,) = weights.read(laid(tmp_path, saved(one_layer(moments)))).values()
            assert one.var is not None
            assert one.var.dtype == np.float64
            assert one.epsilon == (1e-5 if low >= (-4 if dtype == np.float32 else -2) else 0)
            assert np.array_equal(np.sqrt(one.var + one.epsilon).astype(dtype), moments[:, 1])
    odd = np.array([[0, np.nan], [np.nan, np.inf]], np.float32)
    (one,) = weights.read(laid(tmp_path, saved(one_layer(odd)))).values()
    assert np.array_equal(one.var, odd[:, 1], equal_nan=True)  # type: ignore[arg-type]


def test_moments_before_training_are_told(tmp_path: Path) -> None:
    content = weights.read(laid(tmp_path, saved(one_layer(np.zeros((3, 2), np.float32)))))
    assert "before training" in content.notes[0].text
    assert content["layer1"].epsilon == 1e-5


def test_scipy_reads_what_is_written(tmp_path: Path) -> None:
    given = layer(factor=0.25, epsilon=1e-3)
    weights.write(tmp_path / "a.mat", [given, layer("ä😀", 3, "float64"), layer("old", mean=None, var=None)])
    found = scipy.io.loadmat(tmp_path / "a.mat", simplify_cells=True)["layers"]
    first = found[0]
    assert (first["type"], first["name"], first["epsilon"]) == ("bnorm", "net.bn1", 1e-3)
    assert first["learningRate"].tolist() == [1, 1, 0.25]
    assert given.var is not None
    moments = first["weights"][2]
    assert moments.dtype == np.float32, "of the type of the data, as vl_nnbnorm wants it"
    assert np.array_equal(moments[:, 0], given.mean)
    assert np.array_equal(moments[:, 1], np.sqrt(given.var.astype(np.float64) + 1e-3).astype(np.float32))
    assert found[1]["weights"][2].dtype == np.float64
    assert len(found[2]["weights"]) == 2
    assert list(weights.read(tmp_path / "a.mat"))[1] == "ä😀"


def test_a_stated_variance_counts_as_long_as_it_fits(tmp_path: Path) -> None:
    """MatConvNet trains on without it: then the deviation says more."""
    given = layer("a", 3, var=np.array([1, 2, 3], np.float32))
    weights.write(tmp_path / "a.mat", [given])
    loaded = scipy.io.loadmat(tmp_path / "a.mat")
    loaded["layers"][0, 0]["weights"][0, 0][0, 2][:, 1] = 2
    (one,) = weights.read(laid(tmp_path, saved({"layers": loaded["layers"]}), "b.mat")).values()
    assert np.allclose(one.var, 4 - 1e-5)


@pytest.mark.parametrize("compressed", [False, True])
def test_only_values_change_in_a_model(compressed: bool, tmp_path: Path) -> None:
    """All else of a network with everything in it: SciPy sees what it saw; what is uncompressed keeps its bytes."""
    variables = simple() | {"other": {"layers": 1.0, "text": "ä"}, "big": np.arange(50)}
    model = laid(tmp_path, saved(variables, compressed), "model.mat")
    given = layer("bn1", 3, epsilon=0.01, factor=0.5)
    report = weights.write(tmp_path / "new.mat", [given], into=model)
    assert [str(note) for note in report.notes] == [
        "bn1: var is kept as a standard deviation of float32 in new.mat, and rounded so".replace("new", "model")
    ]
    back = weights.read(tmp_path / "new.mat")
    one = back["bn1"]
    assert (one.epsilon, one.factor) == (0.01, 0.5)
    for role in ("scale", "bias", "mean"):
        assert same_bits(one.arrays[role], given.arrays[role])
    assert np.allclose(one.arrays["var"], given.arrays["var"], rtol=1e-6)
    before, after = (scipy.io.loadmat(tmp_path / name) for name in ("model.mat", "new.mat"))
    for loaded in (before, after):
        fields = loaded["layers"][0, 1][0, 0]
        for name in ("weights", "epsilon", "learningRate"):
            fields[name] = None
    assert str(before["layers"]) == str(after["layers"])
    assert str(before["other"]) == str(after["other"])
    old, new = model.read_bytes(), (tmp_path / "new.mat").read_bytes()
    if not compressed:
        assert len(old) == len(new)
        assert sum(one != other for one, other in zip(old, new, strict=True)) <= 3 * 4 * 4 + 16
    assert old[-100:] == new[-100:]


def test_a_dag_takes_values(tmp_path: Path) -> None:
    model = laid(tmp_path, saved(dag(), True), "model.mat")
    given = layer("bn", 2, epsilon=0.01, factor=0.5, scale=None)
    weights.write(tmp_path / "new.mat", [given], into=model)
    one = weights.read(tmp_path / "new.mat")["bn"]
    assert (one.epsilon, one.factor) == (0.01, 0.5)
    assert one.scale is not None
    assert one.scale.tolist() == [1, 1]
    assert same_bits(one.arrays["mean"], given.arrays["mean"])


def test_numbers_that_matlab_has_stored_as_bytes(tmp_path: Path) -> None:
    """Ones and zeros lie in files as integers, of fewer bytes: what takes their place makes all around it larger."""
    variables = {"net": dag()["net"], "tail": np.arange(9.0)}
    for compressed in (False, True):
        path = laid(tmp_path, saved(variables, compressed))
        with mat5.opened(path) as file:
            (found,) = matconvnet._found(file)
            small = struct.pack("<HH4B", 2, 2, 7, 9, 0, 0)
            content = file.edited({(found.scale.variable, found.scale.body): (found.scale, small)})
        packed = laid(tmp_path, content, "small.mat")
        (one,) = weights.read(packed).values()
        assert one.scale is not None
        assert (one.scale.tolist(), one.scale.dtype) == ([7, 9], np.dtype(np.float32))
        given = layer("bn", 2)
        weights.write(tmp_path / "new.mat", [given], into=packed, overwrite=True)
        assert same_bits(weights.read(tmp_path / "new.mat")["bn"].arrays["scale"], given.arrays["scale"])
        for name in ("small.mat", "new.mat"):
            loaded = scipy.io.loadmat(tmp_path / name)
            assert loaded["net"][0, 0]["params"].shape == (1, 3)
            assert loaded["tail"].tolist() == [list(range(9))]


def test_big_endian_files(tmp_path: Path) -> None:
    """As machines of old wrote them: turned here by hand."""
    content = bytearray(dict(matconvnet.write([layer("a", 2)], "a.mat", None).files)["a.mat"])
    turned = laid(tmp_path, _turned(bytes(content)))
    (one,) = weights.read(turned).values()
    assert same_bits(one.arrays["scale"], layer("a", 2).arrays["scale"])
    weights.write(tmp_path / "b.mat", [layer("a", 2, seed=1)], into=turned)
    (one,) = weights.read(tmp_path / "b.mat").values()
    assert same_bits(one.arrays["var"], layer("a", 2, seed=1).arrays["var"])
    assert scipy.io.loadmat(tmp_path / "b.mat")["layers"].shape == (1, 1)


def _turned(content: bytes) -> bytes:
    sizes = {1: 1, 2: 1, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8}

    def elements(part: bytes) -> bytes:
        made, place = b"", 0
        while place < len(part):
            word, size = struct.unpack_from("<II", part, place)
            if word >> 16:
                made += struct.pack(">I", word) + struct.pack(">I", size)
                place += 8
                continue
            data = part[place + 8 : place + 8 + size]
            place += 8 + size + -size % 8
            data = elements(data) if word == 14 else np.frombuffer(data, f"<u{sizes[word]}").byteswap().tobytes()
            made += struct.pack(">II", word, size) + data + bytes(-size % 8)
        return made

    return content[:124] + b"\x01\x00MI" + elements(content[128:])


def test_shared_params_must_agree(tmp_path: Path) -> None:
    net = dag()["net"]
    twice = [net["layers"][0, 1][name] for name in ("name", "type", "params", "block")]
    layers = [dict(zip(("name", "type", "params", "block"), twice, strict=True)) | {"name": name} for name in "ab"]
    model = laid(tmp_path, saved({"net": net | {"layers": structs(layers)}}))
    assert list(weights.read(model)) == ["a", "b"]
    weights.write(tmp_path / "b.mat", [layer("a", 2), layer("b", 2)], into=model)
    with pytest.raises(WeightsError, match="of another layer"):
        weights.write(tmp_path / "c.mat", [layer("a", 2), layer("b", 2, seed=1)], into=model)


GOOD = np.array([[0, 1], [0, 1]], np.float32)


def nested(depth: int) -> bytes:
    inner = mat5.matrix([])
    for _ in range(depth):
        inner = mat5._matrix(mat5.CELL, (1, 1), "", inner)
    return inner


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        pytest.param(one_layer(-GOOD), "below 0", id="negative"),
        pytest.param(one_layer(GOOD.T[:, :1]), "moments of layer", id="shape"),
        pytest.param(one_layer(GOOD.astype(np.int32)), "class 12", id="class"),
        pytest.param(one_layer(GOOD * 1j), "complex", id="complex"),
        pytest.param(one_layer(GOOD, epsilon=-1.0), "epsilon of layer", id="epsilon"),
        pytest.param(one_layer(GOOD, learningRate=np.array([[1, 1, 2.0]])), "learningRate", id="rate"),
        pytest.param(one_layer(GOOD, weights=cells([column(1)])), "1 weights", id="weights"),
        pytest.param({"net": {**dag()["net"], "params": structs([{"name": "x"}])}}, "params", id="params"),
    ],
)
def test_what_is_no_layer(variables: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = laid(tmp_path, saved(variables))
    with pytest.raises(WeightsError, match=told) as refused:
        weights.read(path)
    assert str(path) in str(refused.value)


def head() -> bytes:
    return samples()[0]["one.mat"][: mat5.HEAD]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(lambda: head()[:124] + b"\x00\x02IM", r"7\.3.*-v7", id="HDF5"),
        pytest.param(lambda: head() + mat5._matrix(1, (1, 2**31 - 1), "layers", b""), "would take", id="cells"),
        pytest.param(lambda: head() + mat5._matrix(1, (1, 1), "layers", nested(10_000)), None, id="deep"),
        pytest.param(lambda: head() + struct.pack("<II", 14, 2**32 - 8), "would take", id="size"),
        pytest.param(lambda: head() + mat5._matrix(1, (-1, 1), "layers", b""), "matrix is", id="negative"),
        pytest.param(
            lambda: head() + _packed(mat5._matrix(1, (1, 10**6), "layers", bytes(7 * 10**7))),
            "unpack to far",
            id="bomb",
        ),
        pytest.param(
            lambda: head() + mat5._matrix(1, (1, 250_000), "layers", struct.pack("<II", 14, 0) * 250_000),
            "more than 200,000",
            id="many",
        ),
        pytest.param(lambda: head() + 2 * mat5.matrix([], "layers"), "two variables", id="twice"),
        pytest.param(lambda: head() + struct.pack("<II", 15, 8) + bytes(8), "cannot be unpacked", id="zlib"),
    ],
)
def test_hostile_files(content: Any, told: str | None, tmp_path: Path) -> None:
    path = laid(tmp_path, content())
    if told is None:
        assert not weights.read(path)
        return
    with pytest.raises(WeightsError, match=told) as refused:
        weights.read(path)
    assert str(path) in str(refused.value)


def _packed(matrix: bytes) -> bytes:
    packed = zlib.compress(matrix)
    return struct.pack("<II", 15, len(packed)) + packed


def test_deep_structs_end(tmp_path: Path) -> None:
    """Only what may be a layer is looked into, so nothing nests without end."""
    inner: Any = 1.0
    for _ in range(30):
        inner = {"layers": cells([inner])}
    assert not weights.read(laid(tmp_path, saved({"net": inner})))


def test_an_object_is_told(tmp_path: Path) -> None:
    """A DagNN that was saved as it is lies in a place that MATLAB alone knows."""
    flags = mat5._padded(6, struct.pack("<II", mat5.OPAQUE, 0))
    names = b"".join(mat5._padded(1, name) for name in (b"net", b"MCOS", b"dagnn.DagNN"))
    path = laid(tmp_path, head() + mat5._padded(14, flags + names + mat5.matrix(np.zeros((2, 1)))))
    content = weights.read(path)
    assert not content
    assert "saveobj" in content.notes[0].text


def test_a_deviation_of_a_negative_variance_is_nan(tmp_path: Path) -> None:
    given = Layer("a", **layer("a", 2).arrays | {"var": np.array([-1, 2], np.float32)})
    weights.write(tmp_path / "a.mat", [given])
    (one,) = weights.read(tmp_path / "a.mat").values()
    assert same_bits(one.arrays["var"], given.arrays["var"])
    assert np.isnan(scipy.io.loadmat(tmp_path / "a.mat", simplify_cells=True)["layers"]["weights"][2][0, 1])


def test_scipy_and_this_reader_see_the_same(tmp_path: Path) -> None:
    path = laid(tmp_path, saved(simple()))
    loaded = scipy.io.loadmat(io.BytesIO(path.read_bytes()), simplify_cells=True)["layers"][1]
    with mat5.opened(path) as file:
        one = matconvnet._found(file)[0]
        assert one.moments is not None
        read = one.moments.numbers()
        assert read is not None
        assert np.array_equal(read.reshape(one.moments.dims, order="F"), loaded["weights"][2])
