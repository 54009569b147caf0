"""What a file is that no format claims, told by its first bytes, and what to do: a line to run where there is one.

Nothing is loaded here. Lines that load pickled objects are for files that one trusts, and say so.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickletools
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save began with before version 1.6
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_MOST_PICKLE, _MOST_OPERATIONS = 1 << 24, 200_000  # of a pickle that is looked through, not loaded
_PLAIN = {"collections", "torch", "torch._utils", "torch.storage", "torch.nn.parameter", "torch._tensor"}
_TORCH = "import torch, safetensors.torch as s; "
_LARGEST = "max({}, key=lambda m: sum(hasattr(v, 'numel') for v in m.values()) if isinstance(m, dict) else 0)"
_SAVE = "s.save_file({{k: v.detach().clone().contiguous() for k, v in d.items() if hasattr(v, 'numel')}}, {target!r})"
_NOT_LOADED = "it holds pickled Python objects, which are never loaded here"
_BEGINNINGS = (
    (b"GGUF", "it is a GGUF file, of language models, which have no batch normalization"),
    (b"\x93NUMPY", "it is one array of NumPy's: np.savez(FILE, **{NAME: array, ...}) makes an .npz of several by name"),
    (
        b"version https://git-lfs",
        "it is the pointer of Git LFS to a file that is not there yet: git lfs pull fetches it",
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        (
            "it is an HDF5 file that is damaged, or of none of the layouts keras, keras2, nnabla, puzzlelib; with "
            "format= it is told what lacks"
        ),
    ),
    (b"\x1f\x8b", "it is packed with gzip: unpack it"),
    (b"BZh", "it is packed with bzip2: unpack it"),
    (b"\xfd7zXZ", "it is packed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is packed with zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "it is packed with 7-Zip: unpack it"),
)


def of(path: Path, head: bytes, known: Sequence[str]) -> str:
    """What to tell of a file that begins so. known: names of the formats that are read."""
    lower = path.name.lower()
    if not head:
        return "it is empty"
    if head.startswith(b"PK\x03\x04"):
        return _archive(path) or _none(known)
    if head.startswith(_LEGACY):
        return _torch(path, _classes_of_legacy(path))
    if head.startswith(_PICKLES):
        return _pickled(path)
    for start, told in _BEGINNINGS:
        if head.startswith(start):
            return told
    if head[4:8] == b"TFL3":
        return "it is a network of TensorFlow Lite, which has its batch normalizations folded into other layers"
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, and no file of weights: a download that went wrong, most often"
    return _by_name(path, lower) or _none(known)


def _none(known: Sequence[str]) -> str:
    return f"it is of none of the formats that are read here: {', '.join(known)}"


def _by_name(path: Path, lower: str) -> str:
    """What tells itself by the name that it has, and by what lies beside it."""
    if lower == "saved_model.pb":
        code = (
            f"import numpy as np, tensorflow as tf; m = tf.saved_model.load({str(path.parent)!r}); "
            "s = [*getattr(m, 'variables', ()), *(v for f in m.signatures.values() for v in f.variables)]; "
            f"np.savez({str(path.with_suffix('.npz'))!r}, **{{v.name.removesuffix(':0'): v.numpy() for v in s}})"
        )
        return f"it is TensorFlow's SavedModel: {command(code)}"
    if lower.endswith((".index", ".meta")) or ".data-0000" in lower:
        prefix = str(path).rsplit(".", 1)[0]
        code = (
            f"import numpy as np, tensorflow as tf; r = tf.train.load_checkpoint({prefix!r}); "
            "t = r.get_variable_to_dtype_map(); e = '/.ATTRIBUTES/VARIABLE_VALUE'; "
            f"np.savez({prefix + '.npz'!r}, "
            "**{n.removesuffix(e): r.get_tensor(n) for n in t if t[n] != tf.string and '/.OPTIMIZER_SLOT/' not in n})"
        )
        return f"it is a part of a checkpoint of TensorFlow's: {command(code)}"
    for ending, other in ((".bin", ".xml"), ("-symbol.json", "-0000.params"), (".pdmodel", ".pdiparams")):
        beside = path.with_name(path.name[: -len(ending)] + other)
        if lower.endswith(ending) and other != ".pdiparams" and beside.is_file():
            return f"it belongs to {beside.name}: that one is read"
    if lower.endswith((".pdmodel", ".pdiparams")):
        return "it is of a network of Paddle's for inference: paddle.save of its layer's state_dict() keeps names"
    return ""


def command(code: str) -> str:
    """A line for a shell that runs Python code, whatever names of files are in it."""
    if os.name == "nt" or not set(code) & set('"$`!\\'):
        return f'python -c "{code}"'
    return f"python -c {shlex.quote(code)}"


def _archive(path: Path) -> str:
    """What a zip archive is; "" for one that nobody knows."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return _of_names(path, archive, names)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError, EOFError):
        return "it is a zip archive that is cut off or broken"


def _of_names(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> str:
    ends = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        code = f"{_TORCH}d = torch.jit.load({str(path)!r}, map_location='cpu').state_dict(); "
        return f"it is a TorchScript, which is never run here. Where you trust it: {command(code + _saved(path))}"
    if "archive_format" in ends or "models/model.json" in ends:
        line = command(f"{_TORCH}d = torch.export.load({str(path)!r}).state_dict; {_saved(path)}")
        return f"it is a program of torch.export, which is never run here. Where you trust it: {line}"
    for name in names:
        if name.split("/", 1)[-1] == "data.pkl":
            with archive.open(name) as file:
                return _torch(path, sorted(_classes(io.BytesIO(file.read(_MOST_PICKLE)))))
    return f"it is a zip archive of {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else ""


def _saved(path: Path) -> str:
    """Code that writes beside it, by a name that nothing has."""
    names = itertools.chain([path.with_suffix("")], (path.with_name(f"{path.stem}-{k}") for k in itertools.count(1)))
    free = next(target for name in names if not (target := name.with_name(f"{name.name}.safetensors")).exists())
    return _SAVE.format(target=str(free))


def _torch(path: Path, classes: Sequence[str]) -> str:
    """What makes a file of tensors of one of torch.save's: of all that is in it, the dictionary with most of them."""
    code = f"{_TORCH}d = torch.load({str(path)!r}, map_location='cpu', weights_only="
    if not classes:
        code += f"True); d = {_LARGEST.format('[d, *d.values()]')}; {_saved(path)}"
        return f"{_NOT_LOADED}, as torch.save writes them. Where you trust it: {command(code)}"
    code += (
        "False); c = [d, *(d.values() if isinstance(d, dict) else ())]; "
        f"d = {_LARGEST.format('[m.state_dict() if hasattr(m, {!r}) else m for m in c]'.format('state_dict'))}; "
    )
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return (
        f"{_NOT_LOADED}, and not tensors alone, but objects of {shown}, which torch.load(weights_only=True) refuses. "
        f"Where you trust it to run any code, and these can be imported: {command(code + _saved(path))}"
    )


def _pickled(path: Path) -> str:
    if path.name.lower().endswith((".pdparams", ".pdopt")):
        code = f"import paddle, safetensors.paddle as s; d = paddle.load({str(path)!r}); "
        target = str(path.with_suffix(".safetensors"))
        code += f"s.save_file({{k: v for k, v in d.items() if hasattr(v, 'numpy')}}, {target!r})"
        return f"{_NOT_LOADED}, as paddle.save writes them. Where you trust it: {command(code)}"
    return f"{_NOT_LOADED}: what has written it can write another format"


def _classes_of_legacy(path: Path) -> list[str]:
    """The same of files of old: four pickles, the last of which is what was saved."""
    with path.open("rb") as file:
        content = io.BytesIO(file.read(_MOST_PICKLE))
    found: set[str] = set()
    for _ in range(4):
        found |= _classes(content)
    return sorted(found)


def _classes(file: io.BytesIO) -> set[str]:
    """What a pickle would import beside tensors' own, found without running it."""
    found: set[str] = set()
    with contextlib.suppress(ValueError, IndexError, OverflowError, UnicodeError):
        for module, name in _globals(file):
            if module not in _PLAIN and (module, name) not in (("__builtin__", "set"), ("builtins", "set")):
                found.add(f"{module}.{name}")
    return found


def _globals(file: io.BytesIO) -> Iterator[tuple[str, str]]:
    texts = ["", ""]
    for operation, argument, _ in itertools.islice(pickletools.genops(file), _MOST_OPERATIONS):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif operation.name == "STACK_GLOBAL":
            yield texts[0], texts[1]
        elif isinstance(argument, str):
            texts = [texts[1], argument]
