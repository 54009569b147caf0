"""Saving on a full disk, on a read-only one, and by processes that are killed: the old file, or the new one, whole."""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import saves_apart
from conftest import LONG
from saves_apart import save_parameters, save_table

from oclbn.files import whole

Tally = collections.Counter[str]
KILLS = 2_000 if LONG else 60
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the limits, mounts and signals of POSIX")


WRITERS = [
    pytest.param(save_parameters, id="parameters"),
    pytest.param(save_table, id="tuning table"),
]
Save = Callable[[Path, int], None]


def apart(*arguments: object) -> Any:
    """What saves_apart.py prints."""
    paths = os.pathsep.join(filter(None, sys.path))  # the oclbn that is tested
    done = subprocess.run(
        [sys.executable, Path(saves_apart.__file__), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["parameters", "table"])
def test_a_file_that_may_not_grow(tmp_path: Path, tally: Tally, what: str) -> None:
    """The system stops the writer at each of many lengths: the error names the file, which is as it was."""
    stops = apart("limit", tmp_path, what)
    assert stops > 70
    tally["faults: a disk that is full"] += stops


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if not made or made.returncode:
        pytest.skip("needs the right to mount a disk")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("save", WRITERS)
def test_a_full_disk(disk: Path, tally: Tally, save: Save) -> None:
    target = disk / "file"
    save(target, 1)
    old = target.read_bytes()
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "others").write_bytes(bytes(free))
    for room in (0, 1, 4):  # pages
        if room:
            os.truncate(disk / "others", free - room * 4096)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save(target, 2)
        assert caught.value.filename == str(target)
        assert target.read_bytes() == old
        assert sorted(path.name for path in disk.iterdir()) == ["file", "others"]
        tally["faults: a disk that is full"] += 1
    (disk / "others").unlink()
    save(target, 2)
    assert target.read_bytes() != old


@pytest.mark.parametrize("save", WRITERS)
def test_a_disk_without_the_right_to_write(disk: Path, tally: Tally, save: Save) -> None:
    target = disk / "file"
    save(target, 1)
    old = target.read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for path in (target, disk / "new", disk / "folder" / "new"):
        with pytest.raises(OSError, match="Read-only file system") as caught:
            save(path, 2)
        assert str(caught.value.filename) in (str(path), str(path.parent))
        tally["faults: a disk that may not be written"] += 1
    assert target.read_bytes() == old
    assert [path.name for path in disk.iterdir()] == ["file"]


def test_killed_processes(tmp_path: Path, tally: Tally) -> None:
    """Whenever they are killed, the files are whole; what they leave beside them a later save removes."""
    found = apart("kill", tmp_path, KILLS)
    assert found["kills"] >= KILLS
    assert found["saves"] > KILLS / 20
    assert found["parts"] > 0, "no kill hit a save"
    tally["faults: kills during saves"] += found["kills"]
    tally["of these, in the middle of a file"] += found["parts"]


def test_what_killed_processes_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".oclbn-1.part", ".oclbn-2.part", "mine.part"))
    for path in (old, young, other):
        path.write_bytes(b"part")
    for path in (old, other):
        os.utime(path, (0, 0))
    with whole.replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "file", "mine.part"]
