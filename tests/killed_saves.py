"""A process of its own: saves that are killed at any moment, again and again; prints what was found as JSON.

    python killed_saves.py FOLDER KILLS

After each kill the file must be whole: all of one save's numbers. It uses no device, so that it may fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from oclbn import storage, usertable

CHANNELS = 20_000
NAMES = usertable.DeviceNames("platform", "version", "name", "driver")
_DELAY = 0.012  # seconds until the kill, at most: a few saves


def content(number: int) -> storage.Content:
    """Arrays and a counter that all say the same number."""
    array = np.full(CHANNELS, number, np.float32)
    return storage.Content({"scale": ("scale", array)}, {"var": array}, {"numOfProps": number})


def save(folder: Path, number: int) -> None:
    """A parameter file and a tuning table."""
    storage.save(folder / "bn.hdf", "bn", content(number), varlinks={}, compress=None)
    usertable.write(folder / "tuning.toml", NAMES, {"vec": number}, "1")


def saved(folder: Path) -> tuple[int, int]:
    """The numbers of the two files; an error where one is not whole."""
    shape = {"scale": (CHANNELS,)}, {"var": (CHANNELS,)}
    found = storage.load(folder / "bn.hdf", "bn", *shape, ("numOfProps",), np.dtype(np.float32))
    (number,) = {*found.variables["scale"].tolist(), *found.attributes["var"].tolist(), *found.counters.values()}
    (entry,) = usertable.read(folder / "tuning.toml")
    return int(number), entry.choices["vec"]


def main(folder: Path, kills: int) -> dict[str, int]:
    chance = random.Random(0)
    save(folder, 0)
    number, parts = 0, 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            while True:
                number += 1
                save(folder, number)
        time.sleep(chance.uniform(0.0, _DELAY))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = saved(folder)
        assert number <= after[1] <= after[0] <= after[1] + 1, (number, after)
        number = after[1]
        left = [path for path in folder.iterdir() if path.suffix == ".part"]
        parts += len(left)
        for path in left:
            path.rename(path.with_suffix(".left"))
    return {"kills": kills, "saves": number, "parts": parts}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
