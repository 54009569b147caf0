"""What the demo works on: scikit-learn's handwritten digits in three shapes, or the user's own array."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.elements import bfloat16, kind
from oclbn.errors import DtypeError, MissingExtraError, ParameterError, ShapeError
from oclbn.files import foreign, whole

FILTERS = 16
_TWO_BYTES = np.dtype("V2")
_BFLOAT16 = re.compile(rb"'descr': *'<V2'")  # how NumPy saves it, and nothing else; two bytes of no type are '|V2'
_HEAD = 128  # bytes of a .npy file, in which its element type stands


@dataclass(frozen=True)
class Case:
    """One data set: samples on one axis, channels on another."""

    name: str
    x: NDArray[Any]  # float32 or float64, C order
    axis: int = 1  # of the channels, not negative
    note: str = ""

    @property
    def batch_axis(self) -> int:
        return 0 if self.axis else 1

    @property
    def channels(self) -> int:
        return int(self.x.shape[self.axis])

    @property
    def samples(self) -> int:
        return int(self.x.shape[self.batch_axis])

    def batch(self, samples: NDArray[np.intp]) -> NDArray[Any]:
        """The named samples, as an array of its own."""
        return np.ascontiguousarray(np.take(self.x, samples, axis=self.batch_axis))


def digits() -> tuple[Case, ...]:
    """1,797 handwritten digits of 8x8 pixels (0 to 16): as features, as images, and through 16 filters.

    MissingExtraError: scikit-learn, which ships them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the digits come with scikit-learn, which is not installed: pip install 'oclbn[demo]', "
            "or give an array of your own with --input"
        ) from error
    images = np.ascontiguousarray(load_digits().images, dtype=np.float32)
    return (
        Case("features", images.reshape(len(images), 64)),
        Case("images", images[:, None]),
        Case("activations", activations(images)),
    )


def activations(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Feature maps (N, 16, H, W) of images (N, H, W): 3x3 convolutions with bias, borders padded with zeros.

    Weights and biases are drawn once from U(-1/3, 1/3), the way PyTorch starts a Conv2d(1, 16, 3).
    """
    rng = np.random.default_rng(0)
    weights = rng.uniform(-1 / 3, 1 / 3, (FILTERS, 3, 3))
    biases = rng.uniform(-1 / 3, 1 / 3, FILTERS)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    maps = np.einsum("nhwij,kij->nkhw", patches, weights, optimize=True) + biases[:, None, None]
    return np.ascontiguousarray(maps, dtype=np.float32)


def from_file(path: Path, axis: int, *, fp64: bool) -> Case:
    """The array in a .npy file, with its channels on `axis`; converted to float32 where it must be, with a note.

    Errors as in `read` and `taken`.
    """
    return taken(read(path), path, axis, fp64=fp64)


def read(path: Path) -> NDArray[Any]:
    """The array in a .npy file. Pickled objects are never loaded. What ml_dtypes.bfloat16 was, is that again.

    ParameterError: not a readable .npy file (what it is instead is told, where that is known, with what to do);
    ShapeError: fewer than two axes, or nothing in it. MissingExtraError: bfloat16, without ml_dtypes.
    """
    try:
        whole.check_source(path)
        with path.open("rb") as file:
            head = file.peek(_HEAD)[:_HEAD]  # read_array does not tell how the file calls its type
            given = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # NumPy lets whatever its parsers raise on foreign bytes come through
        pickled = foreign.PICKLED if "allow_pickle" in str(error) else ""
        reason = pickled or _foreign(path) or str(error)
        raise ParameterError(f"{path} is not a .npy file of numbers: {reason}") from error
    if given.dtype == _TWO_BYTES and _BFLOAT16.search(head):
        given = given.view(bfloat16())
    if given.ndim < 2:
        raise ShapeError(
            f"{path} has shape {given.shape}; batch normalization needs at least 2 axes, samples and channels: "
            "x.reshape(-1, 1) makes one channel of all"
        )
    if given.size == 0:
        raise ShapeError(f"{path} has shape {given.shape}: there is nothing in it")
    return given


def check_axis(given: NDArray[Any], path: Path, axis: int) -> None:
    """ParameterError: the array that was read from that file has no such axis."""
    if not -given.ndim <= axis < given.ndim:
        raise ParameterError(f"axis {axis} is not one of the {given.ndim} axes of {path}, shape {given.shape}")


def taken(given: NDArray[Any], path: Path, axis: int, *, fp64: bool) -> Case:
    """What was read from that file, to be normalised; converted to float32 where it must be, with a note.

    ParameterError: no such axis; DtypeError: neither floating point nor integers.
    """
    check_axis(given, path, axis)
    x, note = _as_computed(given, path, fp64)
    return Case(path.name, x, axis % given.ndim, note)


def _foreign(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            return ""  # it is one, and NumPy has said what is wrong with it
    return foreign.described(path)


def _all_numbers(words: NDArray[Any]) -> bool:
    try:
        words.astype(np.float32)
    except ValueError:
        return False
    return True


def looks_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether axis 1 is likely not that of the channels: three or four colours stand last, and more values there."""
    return len(shape) > 2 and shape[-1] in (3, 4) and shape[1] > 4


def _as_computed(given: NDArray[Any], path: Path, fp64: bool) -> tuple[NDArray[Any], str]:
    """The array in the type that the device computes with, and what had to be done to it."""
    kept = given.dtype.newbyteorder("=")
    if kept == np.float32 or (kept == np.float64 and fp64):
        return np.ascontiguousarray(given, dtype=kept), ""
    if kind(kept) is None and given.dtype.kind not in "iub":
        advice = {"c": "np.abs(x), or x.real and x.imag", "U": "x.astype(np.float32)", "S": "x.astype(np.float32)"}
        cure = advice.get(given.dtype.kind, "")
        if given.dtype.kind in "US" and not _all_numbers(given):
            cure = ""
        told = f"; {cure} makes some" if cure else ""
        if kept == _TWO_BYTES:
            made = f"np.save('x.npy', np.load({str(path)!r}).view(ml_dtypes.bfloat16))"
            told = f"; if they are bfloat16, {made} makes a file that says so"
        raise DtypeError(
            f"{path} holds {given.dtype}; wanted numbers: float16, bfloat16, float32, float64, integers or bool{told}"
        )
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(given, dtype=np.float32)
    note = f"{kept} converted to float32"
    if kept == np.float64:
        note += " (the device has no double precision)"
    elif not np.array_equal(x, given, equal_nan=kind(kept) is not None):
        note += ", rounded: not every value fits"
    if infinite := np.count_nonzero(np.isfinite(given) & ~np.isfinite(x)):
        note += f"; {infinite} of {x.size} values are too large for it and became infinite"
    return x, note
