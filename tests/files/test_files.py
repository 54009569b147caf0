"""Writing files: whole or not at all, and only over regular files."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from oclbn.files.whole import check_target, replacing

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs the pipes, links and permissions of POSIX")


def write(path: str | Path, content: bytes = b"new", *, parents: bool = False) -> None:
    with replacing(path, parents=parents) as file:
        file.write(content)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_a_file_is_made_and_replaced(tmp_path: Path, as_text: bool) -> None:
    target = tmp_path / "y.npy"
    for content in (b"first, and longer", b"second"):
        write(str(target) if as_text else target, content)
        assert target.read_bytes() == content
        assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("existing", [True, False], ids=["over an old file", "as a new file"])
def test_an_interruption_leaves_what_was_there(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "y.npy"
    if existing:
        target.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(target) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"old"] if existing else [])


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
def test_errors_name_the_path_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    target = tmp_path / "y.npy"
    target.write_bytes(b"old")

    def fail(first: Any, *_: Any) -> None:
        raise OSError(28, "No space left on device", None if isinstance(first, int) else str(first))

    with monkeypatch.context() as patch:
        patch.setattr(os if broken == "fsync" else Path, broken, fail)
        with pytest.raises(OSError, match="No space left") as caught:
            write(target)
    assert caught.value.filename == str(target)
    assert caught.value.__cause__ is None
    assert ".part" not in str(caught.value)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_of_the_one_who_writes_stay_their_own(tmp_path: Path) -> None:
    def fail(error: OSError) -> None:
        with replacing(tmp_path / "y.npy"):
            raise error

    for error in (OSError("no number"), FileNotFoundError(2, "No such file or directory", "elsewhere")):
        with pytest.raises(OSError, match=r"no number|elsewhere") as caught:
            fail(error)
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_where_that_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "y.npy"
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(target)))):
        write(target)
    assert list(tmp_path.iterdir()) == []
    write(target, parents=True)
    assert target.read_bytes() == b"new"
    with pytest.raises(OSError, match=r"y\.npy"):
        write(target / "z.npy", parents=True)
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    for use in (write, check_target):
        with pytest.raises(IsADirectoryError, match=re.escape(repr(str(tmp_path)))):
            use(tmp_path)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("through_link", [False, True], ids=["itself", "through a link"])
def test_a_pipe_is_refused_and_stays(tmp_path: Path, through_link: bool) -> None:
    pipe = given = tmp_path / "pipe"
    os.mkfifo(pipe)
    if through_link:
        given = tmp_path / "link"
        given.symlink_to(pipe)
    before = sorted(tmp_path.iterdir())
    for use in (write, check_target):
        with pytest.raises(OSError, match="Not a regular file, so it is not written over") as caught:
            use(given)
        assert caught.value.filename == str(given)
    assert pipe.is_fifo()
    assert given.is_symlink() == through_link
    assert sorted(tmp_path.iterdir()) == before


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444], ids=oct)
def test_permissions_are_kept_also_while_it_is_written(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "y.npy"
    target.touch()
    target.chmod(mode)
    with replacing(target) as file:
        (temporary,) = (path for path in tmp_path.iterdir() if path != target)
        assert mode_of(temporary) == mode
        file.write(b"new")
    assert mode_of(target) == mode
    assert target.read_bytes() == b"new"


@posix
def test_a_new_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "y.npy")
    assert mode_of(tmp_path / "y.npy") == mode_of(tmp_path / "plain")


@posix
@pytest.mark.parametrize("existing", [True, False], ids=["to a file", "to nothing yet"])
def test_links_stay_links(tmp_path: Path, existing: bool) -> None:
    (tmp_path / "there").mkdir()
    real, link, second = tmp_path / "there" / "y.npy", tmp_path / "link", tmp_path / "second"
    link.symlink_to(Path("there") / "y.npy")
    second.symlink_to(link)
    if existing:
        real.touch(mode=0o600)
    check_target(second)
    write(second)
    assert link.is_symlink()
    assert second.is_symlink()
    assert real.read_bytes() == b"new"
    if existing:
        assert mode_of(real) == 0o600
    assert list(real.parent.iterdir()) == [real]


@posix
def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match=re.escape(repr(str(link)))):
        write(link)
    assert link.is_symlink()


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / ("y" * 251 + ".npy")
    write(target)
    assert list(tmp_path.iterdir()) == [target]
