"""A process of its own for saves under limits and saves that are killed; prints what was found as JSON.

    python saves_apart.py kill FOLDER KILLS
    python saves_apart.py limit FOLDER parameters|table

After each kill a file must be whole: all of one save's numbers. This process uses no device, so that it may fork, and
limits hit no driver that writes files of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from oclbn.files import puzzlelib
from oclbn.tuning import usertable

CHANNELS = 20_000
NAMES = usertable.DeviceNames("platform", "version", "name", "driver")
_SAVES = 4  # that a child makes at most, about, before it is killed
_PATIENCE = 5  # children in a row that saved nothing, before the next ones get twice the time: theirs is a busy machine


def content(number: int) -> puzzlelib.Content:
    """Arrays and a counter that all say the same number."""
    array = np.full(CHANNELS, number, np.float32)
    return puzzlelib.Content({"scale": ("scale", array)}, {"var": array}, {"numOfProps": number})


def save(folder: Path, number: int) -> None:
    """A parameter file and a tuning table."""
    puzzlelib.save(folder / "bn.hdf", "bn", content(number), varlinks={}, compress=None)
    usertable.write(folder / "tuning.toml", NAMES, {"vec": number}, "1")


def saved(folder: Path) -> tuple[int, int]:
    """The numbers of the two files; an error where one is not whole."""
    shape = {"scale": (CHANNELS,)}, {"var": (CHANNELS,)}
    found = puzzlelib.load(folder / "bn.hdf", "bn", *shape, {"numOfProps": ()}, np.dtype(np.float32))
    (number,) = {*found.variables["scale"].tolist(), *found.attributes["var"].tolist(), *found.counters.values()}
    (entry,) = usertable.read(folder / "tuning.toml")
    return int(number), entry.choices["vec"]


def save_parameters(path: Path, number: int) -> None:
    puzzlelib.save(path, "bn", content(number), varlinks={}, compress=None)


def save_table(path: Path, number: int) -> None:
    usertable.write(path, NAMES, {"vec": number, "variant": "x" * 50_000}, "1")


@contextlib.contextmanager
def limited(most: int) -> Iterator[None]:
    """Within the block no file may grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def limit(folder: Path, save: Callable[[Path, int], None]) -> int:
    """How often the system stopped the writer, over an old file and without one; nothing may be lost or left."""
    target, stops = folder / "file", 0
    save(target, 1)
    whole = target.stat().st_size
    for old in (target.read_bytes(), None):
        if old is None:
            target.unlink()
        for most in sorted({0, 1, 7, 511, 512, 4095, 4096, *range(0, whole, whole // 37), whole - 1}):
            error = None
            try:
                with limited(most):
                    save(target, 2)
            except OSError as stopped:
                error = stopped.errno, stopped.filename
            assert error == (errno.EFBIG, str(target)), error
            assert [path.read_bytes() for path in folder.iterdir()] == ([] if old is None else [old])
            stops += 1
    return stops


def kill(folder: Path, least: int) -> dict[str, int]:
    """At least so many kills, and more while none has hit a save that was under way."""
    chance = random.Random(0)
    save(folder, 0)
    start = time.perf_counter()
    for _ in range(_SAVES):
        save(folder, 0)
    delay = time.perf_counter() - start
    kills, number, parts, idle = 0, 0, 0, 0
    while kills < least or (parts == 0 and kills < 10 * least):
        kills += 1
        child = os.fork()
        if child == 0:
            while True:
                number += 1
                save(folder, number)
        time.sleep(chance.uniform(0.0, delay))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = saved(folder)
        assert number <= after[1] <= after[0] <= after[1] + 1, (number, after)
        idle = idle + 1 if number == after[1] else 0
        if idle == _PATIENCE:
            delay, idle = 2 * delay, 0
        number = after[1]
        left = [path for path in folder.iterdir() if path.suffix == ".part"]
        parts += len(left)
        for path in left:
            path.rename(path.with_suffix(".left"))
    return {"kills": kills, "saves": number, "parts": parts}


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        print(json.dumps(kill(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        print(json.dumps(limit(Path(sys.argv[2]), {"parameters": save_parameters, "table": save_table}[sys.argv[3]])))
