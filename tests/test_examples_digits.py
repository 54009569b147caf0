"""examples/digits: its kernels and gradients are those of float64 NumPy, and its network learns."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pages import blocks

import oclbn.device

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "digits"
MODULES = ("kernels", "layers", "model", "train", "curves")
CLBLAST = importlib.util.find_spec("pyclblast") is not None
EPSILON = 1e-5
Host = NDArray[Any]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its modules, found as `python examples/digits` finds them; tests have modules of the same names."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def program(example: SimpleNamespace) -> ModuleType:
    """What `python examples/digits` runs."""
    spec = importlib.util.spec_from_file_location("digits_program", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def kernels(example: SimpleNamespace, queue: cl.CommandQueue) -> Any:
    """With its own matrix products."""
    return example.kernels.Kernels(queue, clblast=False)


def random(*shape: int, seed: int = 0) -> Host:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def slopes(loss: Callable[[], float], values: Host, places: Any = slice(None)) -> Host:
    """The derivatives of a loss by some elements of an array that it reads: differences of float64 numbers."""
    flat, found = values.reshape(-1), []
    for place in np.arange(values.size)[places]:
        kept, around = flat[place], []
        for way in (1e-6, -1e-6):
            flat[place] = kept + way
            around.append(loss())
        flat[place] = kept
        found.append((around[0] - around[1]) / 2e-6)
    return np.array(found)


def near(found: Host, wanted: Host, tolerance: float = 2e-5) -> bool:
    """Within a part of the largest of all elements, as sums of numbers that cancel are no more exact than that."""
    return bool(np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max())


def convolved(x: Host, weights: Host, size: int, stride: int) -> Host:
    margin = (size // 2, size // 2)
    windows = sliding_window_view(np.pad(x, ((0, 0), margin, margin, (0, 0))), (size, size), (1, 2))
    windows = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    return windows.reshape(*windows.shape[:3], -1) @ weights


def entropy(scores: Host, labels: Host) -> Host:
    return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]


# --- kernels


SHAPES = [(8, 12, 5), (1, 1, 1), (7, 3, 130), (33, 9, 2)]  # whole tiles, and parts of them; many factors, and few
ENDS = [(False, False), (True, False), (False, True), (True, True)]


def check_products(kernels: Any, shape: tuple[int, int, int], transposed: tuple[bool, bool]) -> None:
    """Into a new array, into one that has never been written, and added to a part of one."""
    m, n, k = shape
    a, b, c = random(m, k), random(k, n, seed=1), random(m, n, seed=2)
    ends = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    arrays = [kernels.put(one.T if end else one) for one, end in zip((a, b), transposed, strict=True)]
    wanted = a.astype(np.float64) @ b
    assert near(kernels.matmul(*arrays, **ends).get(), wanted)
    into = kernels.put(np.full((m, n), np.nan, np.float32))
    assert near(kernels.matmul(*arrays, into, **ends).get(), wanted)
    assert near(kernels.matmul(*arrays, kernels.put(c), beta=0.5, **ends).get(), wanted + 0.5 * c)


@pytest.mark.parametrize("transposed", ENDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape: tuple[int, int, int], transposed: tuple[bool, bool], kernels: Any) -> None:
    check_products(kernels, shape, transposed)


@pytest.mark.skipif(not CLBLAST, reason="needs pyclblast: pip install pyclblast, where CLBlast is installed")
def test_products_of_clblast(example: SimpleNamespace, queue: cl.CommandQueue) -> None:
    kernels = example.kernels.Kernels(queue, clblast=True)
    for shape in SHAPES:
        for transposed in ENDS:
            check_products(kernels, shape, transposed)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2), (5, 3)])
def test_a_convolution_and_its_gradients(size: int, stride: int, example: SimpleNamespace, kernels: Any) -> None:
    layer = example.layers.Convolution(kernels, np.random.default_rng(0), 3, 5, size, stride)
    x = random(2, 5, 6, 3)
    y = layer.forward(kernels.put(x)).get()
    x64, weights64 = x.astype(np.float64), layer.weights.get().astype(np.float64)
    wanted = convolved(x64, weights64, size, stride)
    assert y.shape == wanted.shape
    assert near(y, wanted)
    dy = random(*y.shape, seed=1)

    def loss() -> float:
        return float((dy * convolved(x64, weights64, size, stride)).sum())

    assert near(layer.backward(kernels.put(dy)).get().ravel(), slopes(loss, x64))
    once = slopes(loss, weights64)
    assert near(layer.grad.get().ravel(), once)
    layer.backward(kernels.put(dy))
    assert near(layer.grad.get().ravel(), (1 + example.layers.MOMENTUM) * once)


def test_the_mean_of_maps_and_its_gradient(example: SimpleNamespace, kernels: Any) -> None:
    layer, x, dy = example.layers.Pool(kernels), random(3, 4, 2, 5), random(3, 5, seed=1)
    assert near(layer.forward(kernels.put(x)).get(), x.astype(np.float64).mean((1, 2)))
    wanted = np.broadcast_to(dy[:, np.newaxis, np.newaxis] / 8, x.shape)
    assert near(layer.backward(kernels.put(dy)).get(), wanted)


def test_cross_entropy_and_its_gradient(example: SimpleNamespace, kernels: Any) -> None:
    scores, labels = random(6, 10), np.arange(6, dtype=np.int32)
    scores[0] *= 300  # whose exponentials overflow
    losses, hits, dscores = example.layers.cross_entropy(kernels, kernels.put(scores), kernels.put(labels))
    scores64 = scores.astype(np.float64)
    assert near(losses.get(), entropy(scores64, labels))
    assert (hits.get() == (scores.argmax(1) == labels)).all()
    wanted = slopes(lambda: float(entropy(scores64, labels).mean()), scores64)
    assert np.abs(dscores.get().ravel() - wanted).max() < 1e-6


def test_a_step_goes_down_and_decays(example: SimpleNamespace, kernels: Any) -> None:
    layer = example.layers.Linear(kernels, np.random.default_rng(0), 7, 3)
    weights, gradient = layer.weights.get(), random(7, 3)
    layer.grad.set(gradient)
    layer.update(0.25)
    assert near(layer.weights.get(), weights - 0.25 * (gradient + example.layers.DECAY * weights))


def test_batches_are_images_moved_by_a_pixel(example: SimpleNamespace, kernels: Any) -> None:
    """Each image once, but for the rest; each moved as one of nine ways does, all of which are there."""
    digits = example.train.Digits(kernels)
    images, seen, ways = digits.images.get()[..., 0], [], set()
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    moved = {(i, j): padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
    for x, labels in digits.batches(np.random.default_rng(0)):
        for image, label in zip(x.get()[..., 0], labels.get(), strict=True):
            found = [(way, at) for way, all_ in moved.items() for at in np.flatnonzero((all_ == image).all((1, 2)))]
            assert found
            assert {digits.labels[at] for _, at in found} == {label}
            ways |= {way for way, _ in found}
            seen.append(found[0][1])
    assert len(ways) == 9
    assert len(seen) == len(images) // 64 * 64
    assert len(set(seen)) > 0.99 * len(seen)  # two images may be alike


def test_the_split_keeps_a_quarter_of_each_class(example: SimpleNamespace, kernels: Any) -> None:
    digits = example.train.Digits(kernels)
    ours, others = (np.bincount(labels, minlength=10) for labels in (digits.labels, digits.test_labels.get()))
    assert (ours + others).sum() == 1797
    assert np.abs(others / (ours + others) - 0.25).max() < 0.01
    assert others.sum() == len(digits.test)


# --- the network


def loss_of(net: Any, values: dict[Any, Any], images: Host, labels: Host, batch_norm: bool) -> float:
    """The network in float64 NumPy. values: weights by layers, scale and bias by normalizations."""

    def conv(layer: Any, x: Host) -> Host:
        return convolved(x, values[layer], layer.size, layer.stride)

    def norm(bn: Any, x: Host, residual: Any = 0.0) -> Host:
        scale, bias = values[bn]
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if batch_norm else (0.0, 1.0)
        return (x - mean) / np.sqrt(var + EPSILON) * scale + bias + residual

    x = np.maximum(norm(net.norm, conv(net.conv, images)), 0)
    for block in net.blocks:
        shortcut = x if block.straight else norm(block.norm3, conv(block.conv3, x))
        y = np.maximum(norm(block.norm1, conv(block.conv1, x)), 0)
        x = np.maximum(norm(block.norm2, conv(block.conv2, y), shortcut), 0)
    return float(entropy(x.mean((1, 2)) @ values[net.linear], labels).mean())


@pytest.mark.once("the kernels that it is made of are compared on each runtime")
@pytest.mark.parametrize("batch_norm", [True, False], ids=["with batch norm", "without"])
def test_gradients_of_the_network(batch_norm: bool, example: SimpleNamespace, kernels: Any) -> None:
    """Of some elements of all its weights, scales and biases, and of images; those of the convolutions add momentum."""
    net = example.model.Network(kernels, batch_norm=batch_norm)
    rng = np.random.default_rng(1)
    for bn in net.norms:
        bn.scale, bn.bias = rng.uniform(0.5, 1, bn.maps), rng.uniform(-0.5, 0.5, bn.maps)
    images, labels = random(4, 8, 8, 1), np.array([3, 1, 4, 1], np.int32)
    values: dict[Any, Any] = {layer: layer.weights.get().astype(np.float64) for layer in net.weighted}
    for bn in net.norms:
        values[bn] = [one.get().ravel().astype(np.float64) for one in (bn.scale, bn.bias)]
    losses, _, dscores = example.layers.cross_entropy(kernels, net.forward(kernels.put(images)), kernels.put(labels))
    dimages = net.backward(dscores).get()

    images64 = images.astype(np.float64)

    def loss() -> float:
        return loss_of(net, values, images64, labels, batch_norm)

    assert abs(losses.get().mean() - loss()) < 1e-5 * loss()
    pairs = [(images64, dimages)] + [(values[layer], layer.grad.get()) for layer in net.weighted]
    for bn in net.norms:
        pairs += [*zip(values[bn], (bn.vars["scale"].grad.get(), bn.vars["bias"].grad.get()), strict=True)]
    for parameter, gradient in pairs:
        places = rng.permutation(parameter.size)[:8]
        wanted = slopes(loss, parameter, places)
        assert np.abs(gradient.ravel()[places] - wanted).max() < 1e-3 * np.abs(gradient).max()

    before = net.conv.weights.get()
    scale = net.norm.scale.get()
    net.update(0.5)
    assert near(net.conv.weights.get(), before - 0.5 * (net.conv.grad.get() + example.layers.DECAY * before))
    assert near(net.norm.scale.get(), scale - 0.5 * net.norm.vars["scale"].grad.get())


# --- the program


def run(folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Non-empty compiler output", str(FOLDER), *given],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.once("the kernels are compared on each runtime")
def test_it_learns_and_draws(queue: cl.CommandQueue, bears_threads: None, spec: str, tmp_path: Path) -> None:
    """In two epochs to 60 %, where guessing makes 10 %; without batch norm, at the same rate, not so far."""
    done = run(tmp_path, "--device", spec, "--epochs", "2", "--least", "0.6", "--compare", "--plot", "made.png")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.split(",")[0] in oclbn.device.select(spec).name
    lines = done.stdout.splitlines()
    assert [line.split(",")[0].split(":")[0] for line in lines] == ["with batch norm"] * 3 + ["without batch norm"] * 3
    told = [float(re.findall(r"accuracy (\S+)", line)[0].rstrip(",")) for line in lines]
    assert told[1] == told[2] >= 0.6
    assert told[4] == told[5] < told[2]
    sizes = [struct.unpack(">II", file.read_bytes()[16:24]) for file in (tmp_path / "made.png", FOLDER / "curves.png")]
    assert sizes[0] == sizes[1], "the picture in the README is another one: run it with --compare --plot"


@pytest.mark.once("the program's own check is the same on all runtimes")
@pytest.mark.parametrize(("accuracy", "status"), [(0.97, 1), (0.98, 0)])
def test_the_status_tells_whether_it_is_right_enough(
    accuracy: float,
    status: int,
    program: ModuleType,
    example: SimpleNamespace,
    spec: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(program, "train", lambda *_: iter([example.train.Epoch(0.5, 0.5, accuracy)]))
    monkeypatch.setattr(sys, "argv", ["digits", "--device", spec, "--epochs", "1"])
    assert program.main() == status
    assert f"accuracy {accuracy:.3f} on 450 images that it has not seen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--epochs", "0"], "--epochs is 0"),
        (["--plot", "curves.txt"], "--plot is curves.txt"),
        (["--plot", "nowhere/curves.png"], "--plot is nowhere/curves.png"),
        (["--compare", "--without-batch-norm"], "not allowed with"),
    ],
)
def test_options_that_are_not_wanted(
    given: list[str], told: str, program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", *given])
    with pytest.raises(SystemExit, match=r"^2$"):
        program.options()
    assert told in capsys.readouterr().err


def test_no_such_device(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", "--device", "no such device"])
    with pytest.raises(SystemExit, match="no such device"):
        program.main()


def test_help_and_readme_name_the_same_options(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        program.options()
    options = set(re.findall(r"(?<=\s)--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert {"--device", "--epochs", "--seed", "--compare", "--plot", "--without-batch-norm"} <= options
    assert set(re.findall(r"--[a-z][a-z-]+", (FOLDER / "README.md").read_text(encoding="utf-8"))) == options


@pytest.mark.parametrize("coloured", [True, False], ids=["in colour", "NO_COLOR"])
def test_a_bar_on_a_terminal(
    coloured: bool, program: ModuleType, example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the last epoch's figures; colours where they are wanted. Nothing of it stays."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    epochs = [example.train.Epoch(1.0, 1.0, 0.5), example.train.Epoch(0.25, 0.5, 0.75)]
    monkeypatch.setattr(program, "train", lambda *_: iter(epochs))
    console = program.Console(file=io.StringIO(), force_terminal=True, width=100)
    given = SimpleNamespace(epochs=2, rate=0.1, seed=0)
    assert program.run("with batch norm", None, given, console)[0] == epochs
    shown = console.file.getvalue()
    assert "epoch 2 of 2: loss 0.25, accuracy 0.750" in shown
    assert bool(re.search(r"\x1b\[[\d;]*3[0-8]", shown)) is coloured
    assert shown.endswith("\x1b[2K")


def test_the_readme_shows_what_it_prints() -> None:
    """In its form: after hundreds of steps the figures are another device's, as far as it rounds otherwise."""
    (shown,) = (block.text for block in blocks(FOLDER / "README.md") if block.language == "text")
    line = r"{}, epoch \d+ of 15: loss \d\.\d\d, accuracy \d\.\d{{3}}"
    last = r"{}: loss \d\.\d\d, accuracy \d\.\d{{3}} on 450 images that it has not seen, \d+ s"
    for name in ("with batch norm", "without batch norm"):
        assert re.search(line.format(name), shown)
        assert re.search(last.format(name), shown)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.*")), ids=lambda path: path.name)
def test_programs_are_short(path: Path) -> None:
    if path.suffix in (".py", ".cl"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= (120 if path.suffix == ".py" else 180)
