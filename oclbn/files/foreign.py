"""What a file is that should have been a .npy file: told by its first bytes, with the line that makes one of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

_PICTURES = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"II*\x00": "a TIFF picture",
    b"MM\x00*": "a TIFF picture",
    b"RIFF": "a WebP picture, or a sound",
}
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PICKLED = (
    "it holds pickled Python objects, which are never loaded: where you trust the file, np.load(..., "
    "allow_pickle=True) reads it, and np.save of an array of numbers makes one"
)
HDF5 = b"\x89HDF\r\n\x1a\n"
_SEEN = 4096  # bytes


def described(path: Path) -> str:
    """What the file is and what to do, as "an .npz archive (x, y): ..."; "" where that is not known.

    Reads the beginning of the file, and the list of names in a zip archive; loads nothing. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_SEEN)
    if not head:
        return "it is empty"
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    for magic, what in _PICTURES.items():
        if head.startswith(magic):
            made = f"np.asarray(PIL.Image.open({str(path)!r}).convert('RGB'))"
            return f"it is {what}: np.save('x.npy', {made}) makes one (with Pillow), and --axis -1 has the colours"
    for magic, what in _PACKED.items():
        if head.startswith(magic):
            return f"it is packed with {what}: unpack it"
    if head.startswith(HDF5):
        return (
            f"it is an HDF5 file: np.save('x.npy', h5py.File({str(path)!r})[NAME][()]) makes one of what it calls NAME"
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return PICKLED
    return _text(path, head)


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return "it is a zip archive that is cut off or broken"
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if arrays:
        made = f"np.save('x.npy', np.load({str(path)!r})[{arrays[0]!r}])"
        return f"it is an .npz archive of {', '.join(arrays)}: {made} makes one of the first"
    if any(name.endswith("data.pkl") for name in names):
        return f"it is a file of PyTorch's: np.save('x.npy', torch.load({str(path)!r}).numpy()) makes one of a tensor"
    return "it is a zip archive: unpack it"


def _text(path: Path, head: bytes) -> str:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter is cut where we stopped to read
            return ""
        text = head[: error.start].decode()
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    mark = next((mark for mark in ";," if mark in text), None)
    delimiter = f", delimiter={mark!r}" if mark else ""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    numbers = [_are_numbers(line, mark) for line in lines[:2]]
    if not any(numbers):
        return "it is text, and no table of numbers: wanted is what np.save writes"
    heading = "" if numbers[0] else ", skiprows=1"
    return (
        f"it is text: np.save('x.npy', np.loadtxt({str(path)!r}{delimiter}{heading})) makes one of a table of numbers"
    )


def _are_numbers(line: str, between: str | None) -> bool:
    try:
        return bool([float(part) for part in line.split("#")[0].split(between)])
    except ValueError:
        return False
