"""Darknet's .cfg and .weights: every layer that has weights, forks that differ, and files that do not fit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import real_files
from layer_samples import layer

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are read by the host")
CONV = "[convolutional]\nbatch_normalize=1\nfilters=2\nsize=1\n"
NET = "[net]\nwidth=4\nheight=6\nchannels=3\n"
MARKED = np.arange(1000, 1008, dtype="f4")  # biases, scales, means, variances of CONV, whose weights follow
HEADER = struct.pack("<3iQ", 0, 2, 5, 99)


def files(folder: Path, text: str, *numbers: int | np.ndarray, header: bytes = HEADER) -> Path:
    """A network of this text; its weights are so many numbers each, or these."""
    path = folder / "net.weights"
    path.with_suffix(".cfg").write_text(text)
    parts = [part if isinstance(part, np.ndarray) else np.full(part, 0.5, "f4") for part in numbers]
    path.write_bytes(header + b"".join(part.tobytes() for part in parts))
    return path


def last(path: Path) -> list[list[float]]:
    """Of the last batch normalization: biases, scales, means and variances."""
    found = weights.read(path).layers[-1]
    return [found.arrays[role].tolist() for role in ("bias", "scale", "mean", "var")]


def test_what_opencv_computes_is_what_is_read(tmp_path: Path) -> None:
    """Through routes, groups, shortcuts and upsampling. Not connected layers: OpenCV takes them in another order."""
    path = real_files.unpacked("darknet_opencv", tmp_path)
    assert formats.of_file(path).name == "darknet"
    content = weights.read(path)
    real_files.check("darknet_opencv", content)
    assert {one.convention for one in content.layers} == {"darknet"}
    assert {one.epsilon for one in content.layers} == {None}


@pytest.mark.parametrize("name", ["darknet_pjreddie", "darknet_alexeyab"])
def test_what_darknet_has_saved_is_read(name: str, tmp_path: Path) -> None:
    """Every kind of layer with batch normalization that the two forks have, each with numbers of its own."""
    content = weights.read(real_files.unpacked(name, tmp_path))
    found = {layer: {role: array.tolist() for role, array in one.arrays.items()} for layer, one in content.items()}
    assert found == real_files.described(name)["arrays"]
    assert len(found) > 20


def test_a_copy_of_a_network_differs_in_the_values_alone(tmp_path: Path) -> None:
    path, target = real_files.unpacked("darknet_opencv", tmp_path), tmp_path / "new.weights"
    content = weights.read(path)
    weights.write(target, content, into=path)
    assert target.read_bytes() == path.read_bytes()
    given = [layer(one.name, one.channels, seed=8) for one in content.layers]
    weights.write(target, given, into=path, overwrite=True)
    for one, back in zip(given, weights.read(target).layers, strict=True):
        assert all(same_bits(back.arrays[role], array) for role, array in one.arrays.items())
    assert target.with_suffix(".cfg").read_bytes() == path.with_suffix(".cfg").read_bytes()
    before, after = path.read_bytes(), target.read_bytes()
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= sum(16 * one.channels for one in given)


# What is in front of a convolution of 2 filters, how many numbers that has, and the channels that come out of it.
BEFORE = {
    "convolutional": ("filters=5\nsize=3\nbatch_normalize=1", 5 * 4 + 3 * 5 * 9, 5),
    "conv": ("filters=6\nsize=3\ngroups=3", 6 + 6 * 9, 6),
    "convolutional ": ("filters=4\nsize=3\nantialiasing=1\nstride=2\npad=1", 4 + 4 * 3 * 9, 4),
    "deconvolutional": ("filters=4\nsize=2\nstride=2\nbatch_normalize=1", 4 * 4 + 3 * 4 * 4, 4),
    "connected": ("output=7", 7 + 72 * 7, 7),
    "connected ": ("output=7\nbatch_normalize=1", 7 * 4 + 72 * 7, 7),
    "batchnorm": ("", 3 * 4, 3),
    "local": ("filters=2\nsize=3\nstride=1\npad=0", 2 * 8 + 9 * 3 * 2 * 8, 2),
    "local ": ("filters=2\nsize=3\nstride=1\npad=1", 2 * 24 + 9 * 3 * 2 * 24, 2),
    "crnn": ("hidden=2\noutput=4", 2 + 3 * 2 * 9 + 2 + 2 * 2 * 9 + 4 + 2 * 4 * 9, 4),
    "conv_lstm": ("output=2\nbatch_normalize=1", 8 * 8 + 4 * 4 * 9 + 4 * 6 * 9, 2),
    "conv_lstm ": ("output=2\npeephole=1\nbottleneck=1", 8 * 2 + 3 * 4 * 9 + 8 * 9 + 4 * 6 * 9, 2),
    "rnn": ("hidden=2\noutput=4", 2 + 72 * 2 + 2 + 4 + 4 + 8, 4),
    "lstm": ("output=2\nbatch_normalize=1", 8 * 8 + 4 * 4 + 4 * 144, 2),
    "gru": ("output=2", 6 * 2 + 3 * 4 + 3 * 144, 2),
    "gru ": ("output=72\nbatch_normalize=1", 6 * (4 * 72 + 72 * 72), 72),
    "implicit": ("filters=5\natoms=2", 10, 5),
    "maxpool": ("size=2\nstride=2", 0, 3),
    "maxpool ": ("maxpool_depth=1\nout_channels=2", 0, 2),
    "avgpool": ("", 0, 3),
    "reorg": ("stride=2", 0, 12),
    "history": ("history_size=3", 0, 9),
    "crop": ("crop_width=2\ncrop_height=2", 0, 3),
    "dropout": ("probability=.5", 0, 3),
    "softmax": ("", 0, 3),
    "Gaussian_yolo": ("", 0, 3),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_a_batch_normalization_is_found_behind_every_layer(kind: str, tmp_path: Path) -> None:
    options, count, channels = BEFORE[kind]
    path = files(tmp_path, f"{NET}[{kind.strip()}]\n{options}\n{CONV}", count, MARKED, 2 * channels)
    assert last(path) == MARKED.reshape(4, 2).tolist()


@pytest.mark.parametrize(
    ("between", "count"),
    [
        pytest.param(("[maxpool]\nstride=2",), 2 * 3 * 7, id="maxpool"),
        pytest.param(("[maxpool]\nsize=2\nstride_x=1\nstride_y=2",), 4 * 3 * 7, id="two strides"),
        pytest.param(("[upsample]\nstride=2",), 8 * 12 * 7, id="upsample"),
        pytest.param(("[upsample]\nstride=-2",), 2 * 3 * 7, id="downsample"),
        pytest.param(("[reorg]\nstride=2\n",), 2 * 3 * 28, id="reorg"),
        pytest.param(("[route]\nlayers = -1, 0",), 4 * 6 * 14, id="route"),
        pytest.param(("[upsample]", "[scale_channels]\nfrom=0"), 4 * 6 * 7, id="scale channels"),
        pytest.param(("[shortcut]\nfrom=-1\n",), 4 * 6 * 7, id="shortcut"),
        pytest.param(("[avgpool]\n",), 7, id="avgpool"),
    ],
)
def test_a_connected_layer_has_as_many_weights_as_the_image_has_numbers(
    between: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    """Which its width and height say; and there the weights are before the scales."""
    text = f"{NET}[convolutional]\nfilters=7\nsize=3\npad=1\n" + "\n".join(between)
    text += "\n[connected]\noutput=2\nbatch_normalize=1\n"
    path = files(tmp_path, text, 7 + 7 * 3 * 9, MARKED[:2], 2 * count, MARKED[2:])
    assert last(path) == MARKED.reshape(4, 2).tolist()


def test_weighted_shortcuts(tmp_path: Path) -> None:
    for kind, count in (("per_feature", 2), ("per_channel", 6), ("none", 0)):
        text = f"{NET}[dropout]\n[dropout]\n[shortcut]\nfrom=-2\nweights_type={kind}\n{CONV}"
        assert last(files(tmp_path, text, count, MARKED, 6)) == MARKED.reshape(4, 2).tolist()


def test_the_parts_of_a_recurrent_layer_are_named(tmp_path: Path) -> None:
    path = files(tmp_path, f"{NET}[crnn]\nhidden=2\noutput=4\nbatch_normalize=1\n", 8 + 54 + 8 + 36 + 16 + 72)
    assert {name: one.channels for name, one in weights.read(path).items()} == {
        "0.crnn.input": 2,
        "0.crnn.self": 2,
        "0.crnn.output": 4,
    }


def test_forks_and_versions_are_told_apart_by_the_size(tmp_path: Path) -> None:
    """pjreddie's [batchnorm] has no biases; files of old count examples in 32 bits, transposed ones in either."""
    path = files(tmp_path, NET + "[batchnorm]\n" + CONV, MARKED[:3], MARKED[3:6], MARKED[5:8], MARKED, 6)
    first, second = weights.read(path).layers
    assert first.bias is None
    assert first.arrays["var"].tolist() == MARKED[5:8].tolist()
    assert second.arrays["bias"].tolist() == MARKED[:2].tolist()
    report = weights.write(tmp_path / "new.weights", [layer("a", 3), layer("b", 2)], into=path)
    assert [note.text.split()[0] for note in report.notes if note.lost] == ["bias"]
    for version, seen in (
        ((0, 1, 0), "i"),
        ((0, 2, 0), "Q"),
        ((1000, 2, 0), "Q"),
        ((1000, 2, 0), "i"),
        ((2, 0, 0), "Q"),
    ):
        header = struct.pack(f"<3i{seen}", *version, 7)
        assert last(files(tmp_path, NET + CONV, MARKED, 6, header=header)) == MARKED.reshape(4, 2).tolist()


def test_recurrent_layers_of_pjreddie(tmp_path: Path) -> None:
    """Other names of options, and in [rnn] as many hidden units as outputs: told by the size."""
    text = f"{NET}[crnn]\nhidden_filters=2\noutput_filters=4\nhidden=9\n{CONV}"
    assert last(files(tmp_path, text, 2 + 54 + 2 + 36 + 4 + 72, MARKED, 8)) == MARKED.reshape(4, 2).tolist()
    text = f"{NET}[rnn]\nhidden=9\noutput=4\n{CONV}"
    assert last(files(tmp_path, text, 4 + 72 * 4 + 4 + 16 + 4 + 16, MARKED, 8)) == MARKED.reshape(4, 2).tolist()


def test_weights_of_the_first_layers(tmp_path: Path) -> None:
    """As backbones are handed on: they end with a layer, and what is behind that has no values."""
    content = weights.read(files(tmp_path, NET + CONV + CONV, MARKED, 6))
    assert list(content) == ["0.convolutional"]
    assert "1 batch normalizations behind" in str(content.notes[0])


def test_options_as_darknet_reads_them(tmp_path: Path) -> None:
    """Blanks anywhere, comments, what follows a number, the first of two; layers that are not loaded, or shared."""
    text = "[net]\r\nchan nels = 3x\r\n# filters=9\r\n; no\r\n" + CONV.replace("=", " = ") + "filters=77\nnonsense\n"
    assert last(files(tmp_path, text, MARKED, 6)) == MARKED.reshape(4, 2).tolist()
    skipped = "[convolutional]\nfilters=3\ndontload=1\nbatch_normalize=1\n[convolutional]\nfilters=3\nshare_index=0\n"
    content = weights.read(files(tmp_path, NET + skipped + CONV + CONV + "dontloadscales=1", MARKED, 6, 2, 4))
    assert list(content) == ["2.convolutional"]


def test_what_is_not_known(tmp_path: Path) -> None:
    """Before a batch normalization it is an error that names the layer; behind the last it does not matter."""
    with pytest.raises(WeightsError, match=r"layer 0, \[mine\] of line 5"):
        weights.read(files(tmp_path, f"{NET}[mine]\n{CONV}", MARKED, 6))
    content = weights.read(files(tmp_path, f"{NET}{CONV}[mine]\n", MARKED, 60))
    assert list(content) == ["0.convolutional"]
    assert "not known" in str(content.notes[0])
    smooth = "[convolutional]\nfilters=3\nstride=2\nantialiasing=1\n[route]\nlayers=-1\n"
    with pytest.raises(WeightsError, match="makes of them what is not known"):
        weights.read(files(tmp_path, f"{NET}{smooth}[connected]\n{CONV}", 99))
    dense = "[connected]\noutput=2\nbatch_normalize=1\n"
    with pytest.raises(WeightsError, match="does not state width and height"):
        weights.read(files(tmp_path, f"[net]\nchannels=3\n[dropout]\n{dense}", 99))
    assert len(weights.read(files(tmp_path, f"[net]\ninputs=9\n{dense}", 2 + 18 + 6))) == 1
    with pytest.raises(WeightsError, match="gates of its input first"):
        weights.read(files(tmp_path, f"{NET}[gru]\noutput=2\nbatch_normalize=1\n", 99))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(NET + CONV * 3, "do not fit", id="more than there is, within a layer"),
        pytest.param(NET + "[dropout]", "do not fit", id="less than there is"),
        pytest.param(CONV, "first section", id="no net"),
        pytest.param("", "first section", id="nothing"),
        pytest.param(NET + CONV.replace("filters=2", "filters=-2"), "filters of layer 0", id="a negative number"),
        pytest.param(NET + CONV.replace("filters=2", "filters=many"), "'many'", id="no number"),
        pytest.param(NET + CONV.replace("filters=2", "filters=" + "9" * 5000), "whole number", id="a huge number"),
        pytest.param(NET + "[route]\nlayers=0\n" + CONV, "layers before it", id="a layer of itself"),
        pytest.param(NET + "[route]\nlayers=-2\n" + CONV, "layers before it", id="a layer before the first"),
        pytest.param(NET + "[route]\n" + CONV, "layers before it", id="no layers"),
        pytest.param(NET + "[upsample]\nstride=0\n" + CONV, "stride", id="a stride of 0"),
        pytest.param(NET + "[reorg]\nstride=999999999\n" * 9 + CONV, "numbers", id="numbers that grow"),
        pytest.param(NET + "[a]\n" * 100_001 + CONV, "sections", id="many sections"),
        pytest.param(NET + "[route]\nlayers=" + "-1," * 40_000, "letters", id="a long line"),
        pytest.param("[net]\nchannels=-3\n" + CONV, "channels", id="negative channels"),
    ],
)
def test_networks_that_are_wrong(text: str, told: str, tmp_path: Path) -> None:
    path = files(tmp_path, text, MARKED, 6, MARKED, 1)
    with pytest.raises(WeightsError, match=told) as caught:
        weights.read(path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_not_there_or_cut(tmp_path: Path) -> None:
    path = files(tmp_path, NET + CONV, MARKED, 6)
    path.write_bytes(HEADER[:16])
    with pytest.raises(WeightsError, match="do not fit"):
        weights.read(path)
    path.with_suffix(".cfg").unlink()
    with pytest.raises(WeightsError, match=r"net\.cfg, which is not beside it"):
        weights.read(path)
    with pytest.raises(WeightsError, match=r"name the \.weights"):
        weights.write(tmp_path / "a.cfg", [layer()], format="darknet")
    for text in ("", "x" * 11):
        path.write_text(text)
        with pytest.raises(WeightsError, match="not beside"):
            weights.read(path, format="darknet")


def test_what_has_no_place_is_told(tmp_path: Path) -> None:
    """Channels of every pair fit one behind the other, by as many groups as go."""
    given = [layer("a", 6, epsilon=1e-3), layer("b", 4, factor=0.1), layer("c", 7, scale=None, cumulative=True)]
    report = weights.write(tmp_path / "net.weights", given)
    assert [path.name for path in report.files] == ["net.weights", "net.cfg"]
    assert sum(note.lost for note in report.notes) == 3
    assert list(weights.read(tmp_path / "net.weights")) == [f"{number}.convolutional" for number in range(3)]


def test_a_layer_without_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="it has no channels"):
        weights.write(tmp_path / "net.weights", [layer(channels=0)])
