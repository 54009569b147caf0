"""What is told of files that no format claims; nothing of them is loaded or run.

The lines were run on files of PyTorch 2.13.0 (state_dict, checkpoints, whole modules, both kinds of file, TorchScript,
torch.export), PaddlePaddle 3.3.1 and TensorFlow 2.21.0: here it is seen that they are shells' and Python's.
"""

from __future__ import annotations

import argparse
import io
import pickle
import shlex
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files.formats import advice

pytestmark = pytest.mark.once(reason="files are the host's affair")
LEGACY = pickle.dumps(119547037146038801333356, 2) + pickle.dumps(1001, 2) + pickle.dumps({"type_sizes": {}}, 2)


def archive(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def saved(value: Any, protocol: int = 2) -> bytes:
    """As torch.save lays it into its archive."""
    return archive({"archive/data.pkl": pickle.dumps(value, protocol), "archive/data/0": bytes(8)})


def told(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(WeightsError) as refused:
        weights.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    return str(refused.value)


def code_of(text: str) -> str:
    """The Python code of the line, as a shell would hand it on."""
    python, option, code = shlex.split(text[text.index("python -c") :])
    assert (python, option) == ("python", "-c")
    compile(code, "line", "exec")
    return code


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('run')",))


@pytest.mark.parametrize("content", [saved(OrderedDict(a=1)), LEGACY + pickle.dumps(OrderedDict(a=1), 2)])
def test_dictionaries_of_torch(content: bytes, tmp_path: Path) -> None:
    text = told(tmp_path / "a.pth", content)
    assert "weights_only=True" in code_of(text)
    assert str(tmp_path / "a.safetensors") in code_of(text)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("value", [argparse.Namespace(a=1), {"model": Hostile()}], ids=["a class", "code"])
def test_objects_of_torch(value: Any, protocol: int, tmp_path: Path) -> None:
    """What weights_only=True would refuse is told by name, and that loading it runs code; it is not run here."""
    for content in (saved(value, protocol), LEGACY + pickle.dumps(value, protocol)):
        text = told(tmp_path / "a.pt", content)
        assert ("argparse.Namespace" if isinstance(value, argparse.Namespace) else "exec") in text
        assert "trust it to run any code" in text
        assert "weights_only=False" in code_of(text)


def test_names_of_files_are_no_code(tmp_path: Path) -> None:
    for name in ("a $(touch x) b.pt", "it's.pt", 'a"b.pt', "a`b.pt", "new\nline.pt"):
        text = told(tmp_path / name, saved({}))
        code = code_of(text[text.rindex("python -c") :])
        assert repr(str(tmp_path / name)) in code


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.pt", archive({"a/constants.pkl": b"", "a/data.pkl": b""}), "torch.jit.load"),
        ("a.pt2", archive({"a/archive_format": b"pt2"}), "torch.export.load"),
        ("a.pdparams", pickle.dumps({"a": 1}), "paddle.load"),
        ("saved_model.pb", b"\x08\x01\x12\x00", "tf.saved_model.load"),
        ("model.ckpt-1.index", b"\x00\x00\x04", "tf.train.load_checkpoint"),
        ("model.ckpt-1.data-00000-of-00001", bytes(9), "tf.train.load_checkpoint"),
    ],
)
def test_lines_for_other_files(name: str, content: bytes, wanted: str, tmp_path: Path) -> None:
    code = code_of(told(tmp_path / name, content))
    assert wanted in code
    assert str(tmp_path) in code


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.pkl", pickle.dumps([Hostile()]), "never loaded"),
        ("a.pt", b"", "empty"),
        ("a.pt", saved({})[:60], "cut off"),
        ("a.zip", archive({"a.txt": b""}), "a zip archive of a.txt"),
        ("a.tflite", bytes(4) + b"TFL3", "TensorFlow Lite"),
        ("a.gguf", b"GGUF\x03", "language models"),
        ("a.npy", b"\x93NUMPY\x01\x00", "one array"),
        ("a.onnx", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.pth", b"<!DOCTYPE html><html>", "web page"),
        ("a.pth.gz", b"\x1f\x8b\x08", "gzip"),
        ("a.tar", bytes(257) + b"ustar\x00", "tar archive"),
        ("a.pdmodel", b"\x0a\x01", "Paddle's for inference"),
        ("a.xyz", b"\x01\x02\x03", "none of the formats"),
    ],
)
def test_what_is_told(name: str, content: bytes, wanted: str, tmp_path: Path) -> None:
    assert wanted in told(tmp_path / name, content)


def test_what_lies_beside_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(b"")
    assert "belongs to model.xml" in told(tmp_path / "model.bin", b"\x01\x02\x03")
    (tmp_path / "net-0000.params").write_bytes(b"")
    assert "belongs to net-0000.params" in told(tmp_path / "net-symbol.json", b"{}")


def test_a_large_pickle_is_looked_through_to_a_bound(tmp_path: Path) -> None:
    """A zip archive may unpack to anything, and a pickle may have operations without end."""
    content = archive({"a/data.pkl": b""})
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02" + b"N0" * (1 << 25))
    assert len(path.read_bytes()) < 1 << 20
    assert "weights_only=True" in told(path, path.read_bytes())
    assert "weights_only=True" in told(path, content)


def test_lines_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell knows double quotes alone, and names of files there have none."""
    monkeypatch.setattr(advice.os, "name", "nt")
    assert advice.command("print('C:\\\\a')") == "python -c \"print('C:\\\\a')\""
