"""Parameter files with damage of every kind, made from a number; and the child process that loads them.

`python -m fuzzed_files` answers the questions of oclbn.tools.child: a crash of HDF5 is the child's.
"""

from __future__ import annotations

import random
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from oclbn import BatchNorm2D, device
from oclbn.errors import ModuleFileError
from oclbn.files import puzzlelib
from oclbn.tools import child

C = 5
NAME = "net.bn"
IMAGES, OLDER = 5, (2, 3)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
Image = bytearray
Damage = Callable[[random.Random, Image], None]


def images() -> list[bytes]:
    """Undamaged files: ours, with and without compression, two modules in one, and HDF5's older format."""
    rng = np.random.default_rng(5)

    def content(size: int) -> puzzlelib.Content:
        arrays = {key: rng.uniform(0.5, 2, (1, size, 1, 1)).astype("f4") for key in ("scale", "bias", "mean", "var")}
        variables = {key: (key, arrays[key]) for key in ("scale", "bias")}
        return puzzlelib.Content(variables, {key: arrays[key] for key in ("mean", "var")}, {"numOfProps": 3})

    made = [puzzlelib.save(None, NAME, content(C), varlinks={}, compress=compress) for compress in (None, "gzip")]
    for oldest, compress in (("earliest", None), ("earliest", "gzip"), ("v110", "lzf")):
        with h5py.File("image", "w", driver="core", backing_store=False, libver=(oldest, "v110")) as file:
            puzzlelib.save(file, NAME, content(C), varlinks={}, compress=compress)
            if compress == "gzip":
                puzzlelib.save(file, "other", content(3), varlinks={}, compress=compress)
            made.append(file.id.get_file_image())
    return [image for image in made if image is not None]


def cut(rng: random.Random, image: Image) -> None:
    del image[rng.randrange(len(image)) :]


def flip_bit(rng: random.Random, image: Image) -> None:
    image[rng.randrange(len(image))] ^= 1 << rng.randrange(8)


def write_bytes(rng: random.Random, image: Image) -> None:
    start = rng.randrange(len(image))
    new = rng.randbytes(rng.randint(1, 16))
    image[start : start + len(new)] = new[: len(image) - start]


def write_number(rng: random.Random, image: Image) -> None:
    """A length, an offset or a count becomes an extreme one."""
    width = rng.choice((1, 2, 4, 8))
    start = rng.randrange(len(image) - width)
    image[start : start + width] = (rng.choice(EXTREMES) % (1 << 8 * width)).to_bytes(width, "little")


def write_offset(rng: random.Random, image: Image) -> None:
    """An address points to somewhere else in the file, or an object to itself."""
    start = rng.randrange(len(image) - 8)
    image[start : start + 8] = rng.randrange(len(image)).to_bytes(8, "little")


def blank(rng: random.Random, image: Image) -> None:
    start = rng.randrange(len(image))
    length = min(rng.randint(1, 600), len(image) - start)
    image[start : start + length] = bytes([rng.choice((0, 0xFF))]) * length


def move(rng: random.Random, image: Image) -> None:
    """A piece lies where another one was."""
    length = rng.randint(1, min(600, len(image) // 2))
    source, target = (rng.randrange(len(image) - length) for _ in range(2))
    image[target : target + length] = image[source : source + length]


def insert(rng: random.Random, image: Image) -> None:
    start = rng.randrange(len(image))
    image[start:start] = rng.randbytes(rng.randint(1, 64))


def remove(rng: random.Random, image: Image) -> None:
    start = rng.randrange(len(image) - 1)
    del image[start : start + rng.randint(1, 64)]


DAMAGES: tuple[Damage, ...] = (
    cut,
    flip_bit,
    write_bytes,
    write_number,
    write_offset,
    blank,
    move,
    insert,
    remove,
)


def is_older(seed: int) -> bool:
    """Whether file number `seed` was of HDF5's older format, whose descriptions have no checksums."""
    return random.Random(seed).randrange(IMAGES) in OLDER


def damaged(whole: list[bytes], seed: int) -> bytes:
    """File number `seed`: one to three damages of one of the images."""
    rng = random.Random(seed)
    image = bytearray(whole[rng.randrange(IMAGES)])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(image) > 16:
            rng.choice(DAMAGES)(rng, image)
    return bytes(image)


class Loader:
    """A module that is given file after file."""

    def __init__(self, spec: str, folder: str) -> None:
        self.module = BatchNorm2D(C, queue=device.queue_for(spec), name=NAME, seed=1)
        self.path = Path(folder) / "fuzzed.hdf"
        self.whole = images()
        self.good = self.module.save() or b""
        self.before = self.state()

    def state(self) -> list[Any]:
        bn = self.module
        arrays = [bn.scale, bn.bias, bn.mean, bn.var, *(var.grad for var in bn.vars.values())]
        return [*((id(array), array.get().tobytes()) for array in arrays), bn.numOfProps, bn.data]

    def load(self, seed: int) -> bool:
        """Whether it loads; AssertionError where it does neither that nor leave the module as it was."""
        image = damaged(self.whole, seed)
        hdf: Any = image
        if seed % 4 == 0:
            self.path.write_bytes(image)
            hdf = self.path
        try:
            self.module.load(hdf)
        except ModuleFileError as refusal:
            message = str(refusal)
        except Exception as error:
            raise AssertionError(f"{seed}: {type(error).__name__}: {error}") from error
        else:
            message = ""
        if message:
            named = str(self.path) if hdf is self.path else f"the file given as {len(image)} bytes"
            assert named in message, f"{seed}: {message}"
            assert self.state() == self.before, f"{seed}: the module has changed"
            return False
        self.check()
        self.module.load(self.good)
        assert self.state() == self.before, f"{seed}: not to be put right"
        return True

    def check(self) -> None:
        """What was loaded is a state that a module may have."""
        bn = self.module
        for array in (bn.scale, bn.bias, bn.mean, bn.var):
            assert (array.shape, array.dtype) == ((1, C, 1, 1), np.float32)
        assert not (bn.var.get() < 0).any()
        assert isinstance(bn.numOfProps, int)
        assert 0 <= bn.numOfProps <= 2**53
        assert len(bn.save() or b"") > 0


def main() -> None:
    loader: Loader | None = None
    with tempfile.TemporaryDirectory() as folder:
        for request, answer in child.requests():
            try:
                if loader is None:
                    loader = Loader(request["device"], folder)
                    answer({"done": len(loader.whole)})
                    continue
                seeds = range(*request["with"]["seeds"])
                loads = sum(loader.load(seed) for seed in seeds)
                answer({"done": [loads, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]})
            except AssertionError as error:
                answer({"rejected": str(error)})


if __name__ == "__main__":
    main()
