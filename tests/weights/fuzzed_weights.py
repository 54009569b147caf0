"""Files of weights with damage of every kind, made from a number; and the child process that reads them.

Each file sample_FORMAT.py beside this one has `samples()`: sound files of the format, each as {name: bytes}, the one to
read first. `python fuzzed_weights.py FORMAT [COUNT]` reads so many damaged ones in children, and tells of what is no
error that names the file.
"""

from __future__ import annotations

import importlib
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]  # where it is run by hand

from fuzzed_files import DAMAGES  # noqa: E402

from oclbn.errors import OclbnError  # noqa: E402
from oclbn.files import formats  # noqa: E402
from oclbn.tools import child  # noqa: E402
from oclbn.tools.child import ChildProcess, Rejected  # noqa: E402

FORMATS = sorted(path.stem.removeprefix("sample_") for path in Path(__file__).parent.glob("sample_*.py"))
BATCH = 200
MOST_MEGABYTES = 600  # that a child may grow by, whatever a file declares


def damaged(samples: list[dict[str, bytes]], seed: int) -> tuple[dict[str, bytes], bool]:
    """Files number `seed`: one to three damages of one of the samples, most in its first file; whether any changed."""
    rng = random.Random(seed)
    files = dict(rng.choice(samples))
    before = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(list(files)) if rng.random() < 0.3 else next(iter(files))
        image = bytearray(files[name])
        if len(image) > 16:
            rng.choice(DAMAGES)(rng, image)
        files[name] = bytes(image)
    return files, files != before


class Reader:
    """A format's reader that is given file after file."""

    def __init__(self, name: str, folder: str) -> None:
        self.format, self.folder = formats.by_name(name), Path(folder)
        self.samples = importlib.import_module(f"sample_{name}").samples()
        assert self.samples
        for files in self.samples:
            assert self.read(files), f"{name}: a sound file has no layer"

    def read(self, files: dict[str, bytes]) -> int:
        for path in self.folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        path = self.folder / next(iter(files))
        self.format.codec().claims(path, path.read_bytes()[:4096])  # never an error
        return len(self.format.codec().read(path))

    def try_one(self, seed: int) -> bool:
        """Whether it reads; AssertionError where it does neither that nor refuse."""
        files, _ = damaged(self.samples, seed)
        try:
            self.read(files)
        except OclbnError as refusal:
            told = str(refusal)
        except Exception as error:
            raise AssertionError(f"{seed}: {type(error).__name__}: {error}") from error
        else:
            return True
        named = any(str(self.folder / name) in told for name in files)
        # What a sound file says may be no layer: that message has the layer's name.
        assert named or "layer " in told, f"{seed}: {told}"
        return False


def fuzz(name: str, start: int, count: int) -> tuple[int, list[int], int]:
    """How many of so many files read; those that a child died of; by how many megabytes a child grew at most."""
    loads, dead, most, least = 0, list[int](), 0, 10**9
    with ChildProcess("fuzzed_weights", {"format": name}, timeout=60) as process:
        for first in range(start, start + count, BATCH):
            seeds = [first, min(first + BATCH, start + count)]
            while seeds[0] < seeds[1]:
                deaths = process.deaths
                try:
                    found, megabytes, done = process.ask("read", seeds=seeds)
                    loads, most, least = loads + found, max(most, megabytes), min(least, megabytes)
                    seeds[0] = done
                except Rejected:
                    if process.deaths == deaths:
                        raise  # it lives, and has found something wrong
                    culprit = _culprit(process, seeds)
                    dead.append(culprit)
                    seeds[0] = culprit + 1
    return loads, dead, most - least


def _culprit(process: ChildProcess, seeds: list[int]) -> int:
    for seed in range(*seeds):
        deaths = process.deaths
        try:
            process.ask("read", seeds=[seed, seed + 1])
        except Rejected:
            if process.deaths == deaths:
                raise
            return seed
    raise AssertionError(f"a child died of the files {seeds[0]} to {seeds[1]}, and of none of them alone")


def main() -> None:
    warnings.simplefilter("error")
    reader: Reader | None = None
    with tempfile.TemporaryDirectory() as folder:
        for request, answer in child.requests():
            try:
                if reader is None:
                    reader = Reader(request["format"], folder)
                    answer({"done": len(reader.samples)})
                    continue
                first, end = request["with"]["seeds"]
                loads = sum(reader.try_one(seed) for seed in range(first, end))
                answer({"done": [loads, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, end]})
            except AssertionError as error:
                answer({"rejected": str(error)})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asked, number = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
        read, crashes, grown = fuzz(asked, 0, number)
        print(f"{asked}: {number} damaged files, {read} read, the others refused; children died of {crashes}, ", end="")
        print(f"and grew by {grown} MB at most")
    else:
        main()
