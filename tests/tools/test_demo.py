"""`oclbn demo`: on the digits, on one's own array, and what it says when something is wrong."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import ml_dtypes
import numpy as np
import PIL.Image
import pyopencl as cl
import pytest
from click.testing import CliRunner, Result
from faults import DEVICE_GONE, failing

import oclbn.device
from oclbn.cli import plot, remedy
from oclbn.cli.group import oclbn as oclbn_command
from oclbn.device import listing
from oclbn.errors import DtypeError, ParameterError, ShapeError
from oclbn.proof import proving
from oclbn.tools.demo import data as demo_data
from oclbn.tools.demo import run as demo_run
from oclbn.tools.demo.steps import Checks
from oclbn.truth import reference

pytestmark = pytest.mark.once(reason="files, tables and pictures are the host's, around operations that all compare")


def words(result: Result) -> str:
    """The output without its line breaks."""
    return " ".join(result.output.split())


def demo(*arguments: object) -> Result:
    result = CliRunner().invoke(oclbn_command, ["demo", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def spec(queue: cl.CommandQueue) -> str:
    """The index of the device that the test runs on."""
    return oclbn.device.select(queue.device).spec


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def drawn(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, shape).astype(dtype)


# ---- the digits


def test_the_digits_pass_and_are_written_and_drawn(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, picture = tmp_path / "digits.npy", tmp_path / "digits.png"
    monkeypatch.setenv("COLUMNS", "80")
    result = demo("--device", spec, "--output", output, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert "PASS  all 30 checks" in result.output
    assert "and proves them: they have to be right on a small tensor before they give a result" in words(result)
    info = oclbn.device.select(spec)
    for shown in (
        info.title,
        "BatchNorm(64)",
        "BatchNorm2D(1)",
        "BatchNorm2D(16)",
        "42 batches of 128",
    ):
        assert shown in result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if str(tmp_path) not in line)

    y = np.load(output)
    assert y.dtype == np.float32
    assert y.shape == (1797, 16, 8, 8)
    _, mean, m2 = reference.moments(y)
    np.testing.assert_allclose(mean, 0.0, atol=1e-6)
    np.testing.assert_allclose(m2 / (1797 * 64), 1.0, atol=1e-4)
    assert sorted(tmp_path.iterdir()) == [output, picture]
    check_picture(picture.read_bytes(), rows=16)


def check_picture(png: bytes, rows: int) -> None:
    """Big enough to read, and with both colours in it."""
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    assert pixels.shape[0] > 100 + 40 * rows
    assert pixels.shape[1] > 900
    for colour in (plot.BEFORE, plot.AFTER):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        filled = 0.85 * rgb + 0.15  # bars are a little transparent
        assert np.count_nonzero(np.abs(pixels - filled).max(axis=-1) < 0.02) > 400


@pytest.mark.parametrize("width", [60, 80])
def test_no_word_is_broken_on_a_narrow_screen(spec: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = demo("--device", spec, "--batches", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if len(line) > width] == []
    assert "…" not in result.output
    for table in ("Running statistics", "Channels before and after"):
        first = next(number for number, line in enumerate(lines) if line.startswith(table))
        assert lines[first : lines.index("", first)].count("activations") == 1, table
    for word in ("images", "activations", "BatchNorm2D(16)", "normalised", "backward"):
        assert re.search(rf"(^|\s){re.escape(word)}(\s|$)", result.output), word


def test_it_runs_as_a_process_and_leaves_no_animation_in_a_pipe(spec: str) -> None:
    command = [sys.executable, "-m", "oclbn", "demo", "--device", spec, "--batches", "2", "--batch-size", "64"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "PASS  all 30 checks" in process.stdout
    assert "2 batches of 64" in process.stdout
    assert "\x1b" not in process.stdout
    assert "\r" not in process.stdout
    assert "Traceback" not in process.stderr


@pytest.fixture
def no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other device is looked for, which would take as long as checking it."""
    monkeypatch.setattr(remedy, "passing", lambda *_: None)


@pytest.mark.usefixtures("no_other")
def test_a_result_out_of_its_bound_fails_the_run(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = demo_run.expected

    def shifted(operation: str, *given: Any, **options: Any) -> Any:
        found = right(operation, *given, **options)
        return {name: (wanted + 1e-4 * (operation == "infer"), bound) for name, (wanted, bound) in found.items()}

    monkeypatch.setattr(demo_run, "expected", shifted)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", drawn((64, 5))))
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert "eval mode of x.npy" in result.output
    assert "What to do: " in words(result)
    assert "No other device here passes `oclbn check --quick`" in words(result)
    assert f"`oclbn check --device {spec} --repro report.py` writes a script." in words(result)
    assert ("OCLBN_PROVE is 0: without it" in words(result)) == (not proving.switched_on())
    assert re.search(r"x\.npy: eval mode errs by \S+ times its tolerance: \S+ instead of \S+ at", words(result))
    assert "PASS" not in result.output


@pytest.mark.usefixtures("no_other")
def test_a_driver_that_fails_is_told_with_what_to_do(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "x.npy", drawn((64, 5)))
    with failing(DEVICE_GONE, 3, 1000):
        result = demo("--device", spec, "--input", source)
    assert result.exit_code == 1
    error, *told = result.stderr.splitlines()
    assert error == "Error: zeros: the driver fails: enqueue_fill failed: DEVICE_NOT_AVAILABLE"
    assert told[0] == "What to do:"
    assert "No other device here passes" in words(result)
    assert f"oclbn check --device {spec} --repro report.py" in words(result)


def test_far_off_is_no_number(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedy, "passing", lambda *_: oclbn.device.select(spec))
    right = demo_run.expected
    monkeypatch.setattr(
        demo_run, "expected", lambda *g, **o: {n: (w + 2.0**40, b) for n, (w, b) in right(*g, **o).items()}
    )
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", drawn((64, 5))))
    assert result.exit_code == 1
    assert re.search(r"^eval mode +FAIL$", result.output, re.MULTILINE)
    assert f"Another device passes `oclbn check --quick`: {oclbn.device.select(spec).title}." in words(result)
    assert f"--device {spec}, or OCLBN_DEVICE={spec}" in words(result)


def test_activations_are_padded_convolutions_with_differing_channels() -> None:
    images = np.random.default_rng(0).uniform(0.0, 16.0, (3, 8, 8)).astype(np.float32)
    maps = demo_data.activations(images)
    assert maps.shape == (3, 16, 8, 8)
    bias = demo_data.activations(np.zeros_like(images))[0, :, 0, 0]
    impulse = np.zeros((1, 8, 8), np.float32)
    impulse[0, 4, 4] = 1.0
    kernels = demo_data.activations(impulse)[0, :, 3:6, 3:6] - bias[:, None, None]  # mirrored in both directions
    expected = np.einsum("kij,nij->nk", kernels[:, ::-1, ::-1], images[:, 2:5, 3:6]) + bias
    np.testing.assert_allclose(maps[:, :, 3, 4], expected, rtol=1e-4, atol=1e-4)
    corner = np.einsum("kij,nij->nk", kernels[:, ::-1, ::-1][:, 1:, 1:], images[:, :2, :2]) + bias
    np.testing.assert_allclose(maps[:, :, 0, 0], corner, rtol=1e-4, atol=1e-4)


# ---- one's own array

OWN = [
    pytest.param((200, 6), 1, "BatchNorm(6)", id="features"),
    pytest.param((40, 3, 7), 1, "BatchNorm1D(3)", id="sequences"),
    pytest.param((9, 3, 2, 3, 2), 1, "BatchNorm3D(3)", id="volumes, fewer samples than a batch"),
    pytest.param((50, 4, 5), -1, "BatchNorm1D(5, axis=-1)", id="channels last"),
    pytest.param((5, 300), 0, "BatchNorm(5, axis=0)", id="channels first"),
    pytest.param((6, 2, 2, 2, 2, 2), 1, "functional, axis 1", id="more axes than the modules have"),
]


@pytest.mark.parametrize(("shape", "axis", "layer"), OWN)
def test_own_array(spec: str, tmp_path: Path, shape: tuple[int, ...], axis: int, layer: str) -> None:
    x, output = drawn(shape), tmp_path / "y.npy"
    source = saved(tmp_path / "x.npy", x)
    result = demo("--device", spec, "--input", source, "--axis", axis, "--output", output)
    assert result.exit_code == 0, result.output
    assert "PASS  all 10 checks" in result.output
    assert layer in result.output
    y = np.load(output)
    assert y.shape == x.shape
    np.testing.assert_allclose(y, reference.train(x, axis=axis).y, atol=2e-6)
    np.testing.assert_array_equal(np.load(source), x)


def test_double_precision_is_kept_where_the_device_has_it(spec: str, tmp_path: Path) -> None:
    x, output = drawn((100, 4), np.float64), tmp_path / "y.npy"
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x), "--output", output)
    assert result.exit_code == 0, result.output
    fp64 = oclbn.device.select(spec).limits.fp64
    assert np.load(output).dtype == (np.float64 if fp64 else np.float32)
    assert ("no double precision" in result.output) == (not fp64)


def test_integers_are_converted_with_a_note(spec: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (60, 3, 4), dtype=np.uint8)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 0, result.output
    assert "uint8 converted to float32" in result.output


def test_data_that_are_not_finite_are_shown_as_they_are(spec: str, tmp_path: Path) -> None:
    x, output, picture = drawn((60, 3, 4)), tmp_path / "y.npy", tmp_path / "x.png"
    x[7, 1, 2], x[8, 1, 0] = np.nan, np.inf
    result = demo(
        "--device",
        spec,
        "--input",
        saved(tmp_path / "x.npy", x),
        "--output",
        output,
        "--plot",
        picture,
        "--batch-size",
        8,
    )
    assert result.exit_code == 0, result.output
    assert "not finite: 2 values in 1 of 3 channels" in words(result)
    assert "too large" not in result.output
    y = np.load(output)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()
    check_picture(picture.read_bytes(), rows=3)


def test_one_is_one(spec: str, tmp_path: Path) -> None:
    x = drawn((60, 3))
    x[7, 1] = np.nan
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x), "--batches", 1)
    assert result.exit_code == 0, result.output
    assert "not finite: 1 value in 1 of 3 channels; a batch" in words(result)
    assert "1 batch of 60" in words(result)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x[:, 1:2]), "--batches", 1)
    assert "not finite: 1 value in 1 of 1 channel; a batch" in words(result)


TOO_LARGE = [
    pytest.param(1e38, 0.0, 2, id="their sum overflows"),
    pytest.param(0.0, 1e19, 2, id="their variance overflows"),
    pytest.param(0.0, 5e18, 2, id="the sum of their squares overflows"),
    pytest.param(0.0, 1e15, 0, id="large but in range"),
]


@pytest.mark.parametrize(("mean", "std", "channels"), TOO_LARGE)
def test_data_whose_variance_is_out_of_range_are_told(
    spec: str, tmp_path: Path, mean: float, std: float, channels: int
) -> None:
    x = np.random.default_rng(0).normal(0.0, 1.0, (300, 3))
    x[:, :2] = mean + std * x[:, :2]
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x.astype(np.float32)))
    remark = f"x.npy: too large for float32: in {channels} of 3 channels the variance, or a sum that it is made of"
    assert (remark in words(result)) == (channels > 0), result.output
    assert ("too large" in result.output) == (channels > 0)
    assert result.exit_code == (3 if channels else 0), result.output
    assert "FAIL" not in result.output
    told = "IMPOSSIBLE 2 of 3 channels of x.npy cannot be normalised as they are, in float32; in the others all checks"
    assert (told in words(result)) == (channels > 0)


def tamed(result: Result, x: np.ndarray) -> np.ndarray:
    """The data as it is advised to give them, where they are too large."""
    code = re.search(r"Too large: give (x / .*?)(, or x\.astype\(np\.float64\))?\. ", words(result))
    assert code is not None, result.output
    made: np.ndarray = eval(code[1], {"np": np, "x": x})
    return made


def test_what_is_advised_for_data_that_are_too_large_helps(spec: str, tmp_path: Path) -> None:
    x = drawn((60, 3)).astype(np.float32) * np.float32(1e30)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 3
    assert demo("--device", spec, "--input", saved(tmp_path / "y.npy", tamed(result, x))).exit_code == 0
    if "x.astype(np.float64)" in words(result):
        assert demo("--device", spec, "--input", saved(tmp_path / "x.npy", x.astype(np.float64))).exit_code == 0
    if oclbn.device.select(spec).limits.fp64:
        assert "x.astype(np.float64)" in words(result)
        result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x.astype(np.float64) * 1e270))
        assert result.exit_code == 3
        assert "np.float64" not in result.output


@pytest.mark.usefixtures("no_other")
def test_a_wrong_channel_beside_one_that_is_too_large_fails(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = drawn((60, 3))
    x[:, 0] *= 1e30
    right = demo_run.expected

    def shifted(*given: Any, **options: Any) -> Any:
        return {name: (wanted + 1e-2, bound) for name, (wanted, bound) in right(*given, **options).items()}

    monkeypatch.setattr(demo_run, "expected", shifted)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 1
    assert "IMPOSSIBLE" not in result.output


def test_data_without_one_finite_value_are_reported(spec: str, tmp_path: Path) -> None:
    picture = tmp_path / "x.pdf"
    source = saved(tmp_path / "x.npy", np.full((30, 20), np.nan, np.float32))
    result = demo("--device", spec, "--input", source, "--plot", picture)
    assert result.exit_code == 3, result.output
    assert "IMPOSSIBLE 20 of 20 channels" in words(result)
    assert "Without one finite value" in words(result)
    assert "not finite: 600 values in 20 of 20 channels" in words(result)
    assert picture.read_bytes().startswith(b"%PDF")


def test_a_constant_channel_is_named(spec: str, tmp_path: Path) -> None:
    x = drawn((60, 3))
    x[:, 2] = 0.1
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 0, result.output
    assert "constant channels, which come out as 0: 1 of 3" in result.output


# ---- what may be in a file


def test_foreign_byte_order_and_column_order_are_made_ours(tmp_path: Path) -> None:
    x = drawn((4, 3, 2))
    for name, array in (("big", x.astype(">f4")), ("columns", np.asfortranarray(x))):
        case = demo_data.from_file(saved(tmp_path / f"{name}.npy", array), 1, fp64=True)
        assert case.note == ""
        assert case.x.dtype == np.dtype("=f4")
        assert case.x.flags.c_contiguous
        np.testing.assert_array_equal(case.x, x)


def test_conversion_says_when_it_rounds(tmp_path: Path) -> None:
    exact = saved(tmp_path / "exact.npy", np.array([[1, 2**24]]))
    assert demo_data.from_file(exact, 1, fp64=True).note == "int64 converted to float32"
    rounded = saved(tmp_path / "rounded.npy", np.array([[1, 2**24 + 1]]))
    assert "rounded" in demo_data.from_file(rounded, 1, fp64=True).note
    for narrow in (np.float16, ml_dtypes.bfloat16):
        values = np.array([[1.5, np.nan], [-np.inf, 3.0]], narrow)
        for given in (values, np.asfortranarray(values)):
            half = demo_data.from_file(saved(tmp_path / "half.npy", given), 1, fp64=True)
            assert half.note == f"{values.dtype} converted to float32"
            assert half.x.tobytes() == values.astype(np.float32).tobytes()
    double = demo_data.from_file(saved(tmp_path / "double.npy", np.array([[1.0, 1e300]])), 1, fp64=False)
    assert double.x.dtype == np.float32
    assert "no double precision" in double.note
    assert "1 of 2 values are too large for it and became infinite" in double.note


def npz(path: Path) -> Path:
    np.savez(path, x=np.zeros((2, 2)))
    return path.with_name(path.name + ".npz")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BAD_FILES = [
    pytest.param(lambda p: saved(p, np.array([[1, "a"]], dtype=object)), ParameterError, "pickled", id="objects"),
    pytest.param(lambda p: saved(p, np.zeros((2, 2), complex)), DtypeError, "complex128; wanted", id="complex"),
    pytest.param(
        lambda p: saved(p, np.zeros((2, 2), ml_dtypes.bfloat16).view("V2")),
        DtypeError,
        r"V2; wanted .*; if .* bfloat16, np.save\('x.npy', np.load\('.*x.npy'\).view\(ml_dtypes.bfloat16\)\) makes",
        id="two bytes of no type",
    ),
    pytest.param(
        lambda p: saved(p, np.zeros((2, 2), ml_dtypes.float8_e4m3fn)), DtypeError, r"V1; wanted", id="eight bits"
    ),
    pytest.param(lambda p: saved(p, np.array([["a"]])), DtypeError, "wanted numbers: float16, bfloat16", id="text"),
    pytest.param(lambda p: saved(p, np.zeros(5)), ShapeError, r"shape \(5,\).*at least 2 axes", id="one axis"),
    pytest.param(lambda p: saved(p, np.array(1.0)), ShapeError, r"shape \(\).*at least 2 axes", id="a scalar"),
    pytest.param(lambda p: saved(p, np.zeros((0, 3))), ShapeError, "nothing in it", id="empty"),
    pytest.param(lambda p: written(p, b""), ParameterError, "not a .npy file of numbers: it is empty", id="no bytes"),
    pytest.param(
        lambda p: written(p, b"1,2\n3,4\n"),
        ParameterError,
        r"it is text: np.save\('x.npy', np.loadtxt\('.*x.npy', delimiter=','\)\)",
        id="text file",
    ),
    pytest.param(lambda p: written(p, "größe\n".encode() * 999), ParameterError, "it is text", id="a letter is cut"),
    pytest.param(lambda p: written(p, b"not one\nnumber 7\n"), ParameterError, "no table of numbers", id="words"),
    pytest.param(lambda p: written(p, b"\x89PNG\r\n"), ParameterError, "a PNG picture.*--axis -1", id="a picture"),
    pytest.param(lambda p: written(p, b"\x89HDF\r\n\x1a\n"), ParameterError, "an HDF5 file", id="HDF5"),
    pytest.param(lambda p: written(p, b"\x1f\x8b\x08"), ParameterError, "packed with gzip", id="gzip"),
    pytest.param(lambda p: written(p, pickle.dumps([1])), ParameterError, "pickled Python objects", id="a pickle"),
    pytest.param(lambda p: written(p, b"PK\x03\x04cut"), ParameterError, "zip archive that is cut off", id="cut zip"),
    pytest.param(lambda p: written(p, b"\x00\x01\xff" * 50), ParameterError, "not a .npy file", id="any bytes"),
    pytest.param(
        lambda p: written(p, npy_bytes(np.zeros((9, 9)))[:-8]), ParameterError, "not a .npy file", id="truncated"
    ),
    pytest.param(
        lambda p: written(p, npy_bytes(np.zeros((9, 9)))[:40]), ParameterError, "not a .npy file", id="header cut"
    ),
    pytest.param(
        lambda p: written(p, npy_bytes(np.zeros((9, 9))).replace(b"(9, 9)", b"(9, -9")),
        ParameterError,
        "not a .npy file",
        id="broken header",
    ),
    pytest.param(
        npz,
        ParameterError,
        r"an .npz archive of x: np.save\('x.npy', np.load\('.*x.npy.npz'\)\['x'\]\) makes one",
        id="npz",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_FILES)
def test_a_bad_file_is_a_clear_error(make, error: type[Exception], message: str, queue, tmp_path: Path) -> None:
    source = make(tmp_path / "x.npy")
    with pytest.raises(error, match=message):
        demo_data.from_file(source, 1, fp64=True)
    result = demo("--device", oclbn.device.select(queue.device).spec, "--input", source)
    assert result.exit_code == 2
    assert "Invalid value for --input" in result.output
    assert source.name in result.output


def png(path: Path) -> Path:
    matplotlib.image.imsave(path, np.linspace(0.0, 1.0, 105).reshape(5, 7, 3), format="png")
    return path


def png_of(mode: str, path: Path) -> Path:
    """Such a picture has two axes as an array, and no colours on the last one."""
    PIL.Image.open(png(path)).convert("RGB").convert(mode).save(path, format="png")
    return path


def hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["NAME"] = np.arange(6.0).reshape(3, 2)
    return path


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(npz, (2, 2), id="npz"),
        pytest.param(lambda p: written(p, b"1 2\n3 4\n5 6\n"), (3, 2), id="blanks"),
        pytest.param(lambda p: written(p, b"1,2\n3,4\n"), (2, 2), id="commas"),
        pytest.param(lambda p: written(p, b"red,blue\n1,2\n3,4\n5,6\n"), (3, 2), id="a heading"),
        pytest.param(lambda p: written(p, b"# red blue\n1 2\n3 4\n"), (2, 2), id="a comment"),
        pytest.param(lambda p: written(p, b"red;blue\n1;2\n3;4\n5;6\n"), (3, 2), id="semicolons"),
        pytest.param(png, (5, 7, 3), id="a picture"),
        pytest.param(functools.partial(png_of, "L"), (5, 7, 3), id="a grey picture"),
        pytest.param(functools.partial(png_of, "P"), (5, 7, 3), id="a picture with a palette"),
        pytest.param(hdf5, (3, 2), id="HDF5"),
    ],
)
def test_the_line_that_is_told_makes_the_file(
    make: Any, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ParameterError) as caught:
        demo_data.from_file(make(tmp_path / "given.npy"), 1, fp64=True)
    line = re.search(r"np\.save\(.*\)(?= makes one)", str(caught.value))
    assert line
    monkeypatch.chdir(tmp_path)
    exec(line[0], {"np": np, "PIL": PIL, "h5py": h5py, "NAME": "NAME"})
    assert demo_data.from_file(tmp_path / "x.npy", 1, fp64=True).x.shape == shape


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        pytest.param(np.ones((4, 2), np.complex64), "np.abs(x)", id="complex"),
        pytest.param(np.array([["1", "2.5"], ["3", "4"]]), "x.astype(np.float32)", id="numbers as text"),
        pytest.param(np.array([["1", "two"]]), "", id="words"),
    ],
)
def test_what_is_no_number_gets_a_cure_that_helps(given: np.ndarray, cure: str, tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match=r"x\.npy holds .*; wanted numbers: .* or bool") as caught:
        demo_data.from_file(saved(tmp_path / "x.npy", given), 1, fp64=True)
    told = str(caught.value).partition("bool")[2]
    assert told.startswith(f"; {cure}" if cure else "")
    if cure:
        made = eval(cure, {"np": np, "x": given})
        assert demo_data.from_file(saved(tmp_path / "y.npy", made), 1, fp64=True).x.shape == given.shape
    else:
        assert told == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes")
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_what_has_no_end_is_not_read(spec: str, kind: str, tmp_path: Path) -> None:
    """A pipe would be waited for, for good."""
    source = tmp_path / "x.npy"
    os.mkfifo(source) if kind == "pipe" else source.symlink_to(kind)
    result = demo("--device", spec, "--input", source)
    assert result.exit_code == 2
    assert "x.npy cannot be read: Not a regular file, so it is not read" in words(result)


@pytest.mark.parametrize(("axis", "samples"), [(1, "x[np.isfinite(x).all(axis=(1, 2))]"), (0, "x[:, np.isfinite(x)")])
def test_what_is_advised_for_values_that_are_not_finite_helps(
    spec: str, tmp_path: Path, axis: int, samples: str
) -> None:
    """Also beside a channel that is too large, whose cure has to leave them out."""
    x = np.moveaxis(drawn((60, 3, 4)), 1, axis).copy()
    channel = [np.s_[:]] * 3
    for number, value in ((1, np.inf), (2, np.nan)):
        channel[axis] = number  # type: ignore[call-overload]
        x[tuple(channel)][7, 2] = value
    options = ["--device", spec, "--axis", axis, "--input"]
    result = demo(*options, saved(tmp_path / "x.npy", x))
    told = "2 channels of x.npy with values that are NaN or infinite, and so are all results of these channels"
    assert (result.exit_code, told in words(result)) == (0, True), result.output
    code = re.search(r"or give the 59 samples without them: (.*)\.\n", result.output)
    assert code is not None, result.output
    assert code[1].startswith(samples)
    result = demo(*options, saved(tmp_path / "y.npy", eval(code[1], {"np": np, "x": x})))
    assert (result.exit_code, "NaN or infinite" in result.output) == (0, False)

    channel[axis] = 0  # type: ignore[call-overload]
    x[tuple(channel)] *= np.float32(1e30)
    result = demo(*options, saved(tmp_path / "x.npy", x))
    assert (result.exit_code, told in words(result)) == (3, True), result.output
    made = tamed(result, x)
    assert np.isfinite(made).sum() == x.size - 2
    assert made.any()
    assert demo(*options, saved(tmp_path / "y.npy", made)).exit_code == 0


def test_quiet_tells_of_a_file_without_numbers(spec: str, tmp_path: Path) -> None:
    x = drawn((64, 2))
    x[:, 1] = np.nan
    given = ["--quiet", "--input", saved(tmp_path / "x.npy", x), "--output", tmp_path / "y.npy"]
    result = demo("--device", spec, *given)
    assert result.exit_code == 3
    assert result.stdout.startswith("IMPOSSIBLE")
    assert re.search(r"Wrote .*y\.npy: .*; 64 of 128 values are not finite", result.stderr)


def test_sixty_columns_break_no_shape(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = demo("--device", spec, "--batches", 1).stdout.splitlines()
    assert "not shown in 60 columns: type" in lines
    for shape in ("(1797, 64)", "(1797, 1, 8, 8)", "(1797, 16, 8, 8)"):
        assert sum(shape in line for line in lines) == 1, lines


def test_a_pipe_gets_lines_that_are_not_broken(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is the last line, however long, and no line ends with blanks."""
    monkeypatch.delenv("COLUMNS", raising=False)
    x = drawn((64, 5))
    x[3, 2] = np.nan
    source = saved(tmp_path / f"{'a-long-name-' * 8}.npy", x)
    for options in ([], ["--quiet"]):
        lines = demo("--device", spec, "--input", source, *options).stdout.splitlines()
        assert lines[-1].startswith("PASS  all 10 checks; 1 of 5 channels of a-long-name-")
        assert lines[-1].endswith("has values that are NaN or infinite")
        assert [line for line in lines if line != line.rstrip()] == []


def test_bad_options(spec: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npy", drawn((8, 3)))
    (tmp_path / "link.npy").symlink_to(source)
    for arguments, message in (
        (["--input", tmp_path / "absent.npy"], "does not exist"),
        (["--input", tmp_path], "is a directory"),
        (["--input", source, "--axis", 2], "Invalid value for --axis: axis 2 is not one of the 2 axes"),
        (["--input", source, "--axis", -3], "axis -3 is not one of the 2 axes"),
        (["--axis", 0], "needs --input"),
        (["--output", tmp_path / "absent" / "y.npy"], "is not a folder"),
        (["--input", source, "--output", source], "is the file that --input names"),
        (["--input", source, "--output", tmp_path / "link.npy"], "is the file that --input names"),
        (["--output", tmp_path / "y.png"], "y.png does not end in .npy"),
        (["--output", tmp_path / "y"], "y does not end in .npy"),
        (["--plot", tmp_path / "y.gif"], "does not end in .png, .svg, .pdf"),
        (["--batch-size", 0], "--batch-size"),
        (["--epochs", 0], "--epochs"),
        (["--batches", "many"], "--batches"),
    ):
        result = demo("--device", spec, *arguments)
        assert result.exit_code == 2, arguments
        assert message in words(result), arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.npy", "x.npy"]
    np.testing.assert_array_equal(np.load(source), drawn((8, 3)))


def test_files_that_are_there_are_kept(spec: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npy", drawn((8, 3)))
    for option, target in (("--output", tmp_path / "weights.npy"), ("--plot", tmp_path / "photo.png")):
        target.write_bytes(b"a model's weights")
        result = demo("--device", spec, "--input", source, option, target)
        assert result.exit_code == 2
        assert f"{target.name} is there already: give another name, or --overwrite" in words(result)
        assert target.read_bytes() == b"a model's weights"
    result = demo("--device", spec, "--input", source, "--output", tmp_path / "weights.npy", "--overwrite")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "weights.npy").shape == (8, 3)


@pytest.mark.parametrize(
    ("shape", "options", "hinted"),
    [
        pytest.param((6, 9, 8, 3), [], True, id="colours last"),
        pytest.param((6, 9, 8, 3), ["--axis", 1], False, id="the axis was named"),
        pytest.param((6, 9, 8, 3), ["--axis", -1], False, id="taken"),
        pytest.param((6, 3, 8, 3), [], False, id="colours first"),
        pytest.param((9, 7), [], False, id="features"),
    ],
)
def test_pictures_get_a_hint(spec: str, tmp_path: Path, shape: tuple[int, ...], options: list, hinted: bool) -> None:
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", drawn(shape)), *options)
    assert result.exit_code == 0, result.output
    assert ("Hint: of (6, 9, 8, 3), axis 1 was taken for the channels" in words(result)) == hinted
    assert ("--axis -1" in result.output) == hinted


@pytest.mark.skipif(sys.platform == "win32", reason="needs the pipes, links and permissions of POSIX")
def test_only_regular_files_are_written_over(spec: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npy", drawn((8, 3)))
    for option, pipe in (("--output", tmp_path / "pipe.npy"), ("--plot", tmp_path / "pipe.png")):
        os.mkfifo(pipe)
        result = demo("--device", spec, "--input", source, option, pipe)
        assert result.exit_code == 2
        assert "Not a regular file, so it is not written over" in words(result)
        assert f"Invalid value for {option}" in words(result)
        assert pipe.name in result.output
        assert pipe.is_fifo()
    real, link = tmp_path / "real.npy", tmp_path / "link.npy"
    real.touch(mode=0o600)
    link.symlink_to(real)
    result = demo("--device", spec, "--input", source, "--output", link)
    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert np.load(real).shape == (8, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.npy", "pipe.npy", "pipe.png", "real.npy", "x.npy"]


def test_one_value_per_channel_cannot_be_trained_on(spec: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npy", drawn((8, 3)))
    result = demo("--device", spec, "--input", source, "--batch-size", 1)
    assert result.exit_code == 2
    assert "for --batch-size: batches of 1 have one value per channel of x.npy" in words(result)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", drawn((1, 3))))
    assert result.exit_code == 2
    assert "for --input: batches of 1 have one value per channel of x.npy" in words(result)


def test_an_unknown_device_is_an_error_that_lists_what_there_is(spec: str) -> None:
    result = demo("--device", "no such device")
    assert result.exit_code == 1
    assert oclbn.device.select(spec).name in result.output


def test_without_a_device_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (oclbn.device, listing):
        monkeypatch.setattr(module, "devices", tuple)
        monkeypatch.setattr(module, "without_devices", tuple)
    result = demo()
    assert result.exit_code == 1
    assert "pip install 'oclbn[pocl]'" in words(result)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        pytest.param("sklearn.datasets", [], id="scikit-learn, for the digits"),
        pytest.param("matplotlib", ["--plot", "x.png"], id="matplotlib, for --plot"),
    ],
)
def test_a_missing_package_names_the_extra(
    package: str, arguments: list[str], spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = demo("--device", spec, *arguments)
    assert result.exit_code == 1
    assert "pip install 'oclbn[demo]'" in words(result)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_a_clear_error(spec: str, tmp_path: Path) -> None:
    source, folder = saved(tmp_path / "x.npy", drawn((8, 3))), tmp_path / "locked"
    folder.mkdir(mode=0o500)
    result = demo("--device", spec, "--input", source, "--output", folder / "y.npy")
    assert result.exit_code == 1
    assert "Permission denied" in result.output


# ---- the parts


def test_checks_keep_the_worst_and_name_what_failed() -> None:
    checks, one, bound = Checks(), np.ones(1), np.full(1, 0.25)
    for error in (0.125, 0.75, 0.0):
        checks.add({"y": one + error}, {"y": (one, bound), "dx": (one, bound)})
    checks.add({"dx": one}, {"dx": (one, bound)})
    assert {name: judged.units for name, judged in checks.worst.items()} == {"y": 3.0, "dx": 0.0}
    assert checks.failed == ["y"]


def test_at_most_so_many_channels_are_shown_spread_over_all() -> None:
    assert plot.evenly(3, 16) == [0, 1, 2]
    assert plot.evenly(64, 4) == [0, 21, 42, 63]
    assert plot.evenly(1, 4) == [0]
    assert len(set(plot.evenly(1000, 16))) == 16


@pytest.mark.parametrize(
    ("rows", "differ"),
    [
        pytest.param([[0.0, 1.0], [0.0, 2.0]], False, id="alike"),
        pytest.param([[0.0, 1.0], [0.0, 0.01]], True, id="deviations"),
        pytest.param([[0.0, 1.0], [900.0, 901.0]], True, id="means"),
        pytest.param([[0.0, 1.0], [0.0, 0.0]], False, id="a constant one"),
        pytest.param([[3.0, 3.0]], False, id="only a constant one"),
        pytest.param([[np.nan, np.nan]], False, id="no finite value"),
    ],
)
def test_channels_that_are_unlike_have_ranges_of_their_own(rows: list[list[float]], differ: bool) -> None:
    assert plot._differ([np.array(row) for row in rows]) is differ


def test_a_picture_says_how_to_read_it_and_what_is_not_there() -> None:
    x = np.full((10, 2), np.nan, np.float32)
    x[:, 0] = np.arange(10)
    drawn = plot.histograms(x, x, 1, "nothing finite", file_format="svg").decode()
    for text in (
        "no finite value",
        "A row is a channel",
        "value of x",
        "normalised value, y",
    ):
        assert f"<!-- {text}" in drawn
    assert "Up to a thousandth of the values" in drawn


@pytest.mark.parametrize("value", [0.0, 3.0, -1e20])
def test_the_range_of_a_constant_channel_can_be_read(value: float) -> None:
    """Wide enough that its ticks are numbers, which do not run into each other."""
    edges = plot._edges([np.full(10, value, np.float32)])
    assert edges[0] < value < edges[-1]
    assert edges[-1] - edges[0] >= (0.1 * abs(value) or 1.5)


def test_a_plot_of_one_constant_channel_is_drawn() -> None:
    x = np.full((10, 1), 3.0, np.float32)
    check_picture(plot.histograms(x, np.zeros_like(x), 1, "constant"), rows=1)


# ---- for scripts


def test_quiet_is_the_verdict_alone(spec: str, tmp_path: Path) -> None:
    output = tmp_path / "y.npy"
    result = demo("--device", spec, "--quiet", "--input", saved(tmp_path / "x.npy", drawn((64, 5))), "--output", output)
    assert (result.exit_code, result.output) == (0, "PASS  all 10 checks\n")
    assert output.exists()


def test_quiet_tells_of_values_that_are_not_finite(spec: str, tmp_path: Path) -> None:
    x = drawn((64, 5))
    x[3, 2] = np.nan
    result = demo("--device", spec, "--quiet", "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 0
    told = "PASS all 10 checks; 1 of 5 channels of x.npy has values that are NaN or infinite"
    assert words(result).strip() == told


def test_quiet_and_json_exclude_each_other(spec: str) -> None:
    result = demo("--device", spec, "--quiet", "--json")
    assert result.exit_code == 2
    assert "--quiet and --json exclude each other" in words(result)


def test_of_kernels_variant_and_walk_are_shown_and_json_has_all(spec: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "x.npy", drawn((64, 5)))
    shown = demo("--device", spec, "--input", source)
    table = shown.output[shown.output.index("Time per call") :]
    assert "LANES" not in table
    assert re.search(r"train +(fused|two-kernel|reference), (columns|rows|runs) ", table), table
    assert re.search(r"infer +(one kernel|reference), (columns|rows|runs) ", table), table
    times = json.loads(demo("--device", spec, "--json", "--input", source).stdout)["data_sets"][0]["times"]
    assert all("LANES" in timing["kernels"] for timing in times)
    named = {timing["operation"]: timing["kernels"] for timing in times}
    assert named["infer"].startswith(("one kernel (infer; ", "reference (")), "as in the table"


def test_json_has_every_check(spec: str, tmp_path: Path) -> None:
    result = demo("--device", spec, "--json", "--input", saved(tmp_path / "x.npy", drawn((64, 5))))
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    (told,) = found["data_sets"]
    assert (found["verdict"], found["device"]["index"], told["shape"]) == ("pass", spec, [64, 5])
    assert len(told["checks"]) == 10
    assert all(check["good"] and 0 <= check["error_in_tolerances"] <= 1 for check in told["checks"].values())
    assert len(told["channels"]["data"]["mean"]) == 5


def test_json_of_data_without_a_number_is_json(spec: str, tmp_path: Path) -> None:
    x = drawn((64, 2))
    x[:, 1] = np.nan
    result = demo("--device", spec, "--json", "--input", saved(tmp_path / "x.npy", x))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(result.stdout, parse_constant=refuse)
    assert (found["verdict"], result.exit_code) == ("impossible", 3)
    assert "Without one finite value" in result.stderr
    assert found["data_sets"][0]["channels"]["data"]["mean"][1] is None


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("dtype", "huge"), [(np.float32, 1e30), (np.float64, 1e300)])
def test_after_the_advice_for_too_large_channels_every_channel_is_right(
    spec: str, tmp_path: Path, dtype: type, huge: float, axis: int
) -> None:
    """Also one of zeros, one that is narrow, one far from 0 and one that is both far and huge."""
    if dtype is np.float64 and not oclbn.device.select(spec).limits.fp64:
        pytest.skip("needs float64")
    x = np.random.default_rng(0).normal(0.0, 1.0, (64, 6, 5))
    x *= np.array([1.0, huge, 0.0, 1e-2, 1.0, huge / 8])[:, None]
    x += np.array([0.0, 0.0, 0.0, 0.0, 1e3, huge])[:, None]
    given = np.moveaxis(x, 1, axis).astype(dtype)
    options = ["--device", spec, "--axis", axis, "--input"]
    result = demo(*options, saved(tmp_path / "x.npy", given))
    assert (result.exit_code, "IMPOSSIBLE 2 of 6" in words(result)) == (3, True), result.output
    output = tmp_path / "y.npy"
    result = demo(*options, saved(tmp_path / "tamed.npy", tamed(result, given)), "--output", output)
    assert result.exit_code == 0, result.output
    exact = np.moveaxis(given, axis, 1).astype(np.longdouble)
    exact -= exact.mean(axis=(0, 2), keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(axis=(0, 2), keepdims=True) + np.longdouble(1e-5))
    np.testing.assert_allclose(np.moveaxis(np.load(output), axis, 1), exact.astype(np.float64), atol=1e-5)


@pytest.mark.parametrize("scale", [1e300, 0.4 * np.finfo(np.float64).max])
def test_a_picture_of_huge_numbers_has_no_words_of_numpys(scale: float) -> None:
    """Their squares, and their range, are beyond what float64 holds; a warning is an error here."""
    x = scale * np.random.default_rng(0).uniform(-2.0, 2.0, (40, 2))
    picture = plot.histograms(x, np.full_like(x, np.nan), 1, "huge", file_format="svg").decode()
    shown = f"std {np.std(x[:, 0] / scale) * scale:.3g}"
    assert shown in picture


def test_data_that_cannot_be_normalised_at_all_have_no_tables_of_nan(spec: str, tmp_path: Path) -> None:
    """What is left out is said in a line; where some channel can be, the tables stand."""
    x = drawn((60, 3)) * np.float32(1e30)
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 3
    assert not re.search(r"\bnan\b|\binf\b|not judged", result.output)
    assert "No channel can be normalised" in words(result)
    x[:, 0] = drawn((60,))
    result = demo("--device", spec, "--input", saved(tmp_path / "x.npy", x))
    assert result.exit_code == 3
    assert "Largest error against float64 NumPy" in result.output
    assert "No channel can be normalised" not in words(result)
