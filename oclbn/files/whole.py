"""Writing a file: whole or not at all, and only where a regular file is or may be."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_NAME = ".oclbn-{}.part"
_PATIENCE, _PAUSE = 2.0, 0.005  # seconds: for somebody else's turn, which takes some milliseconds
_ABANDONED = 3600.0  # seconds in which nothing was written: whoever wrote a part was killed


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, parents: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all of it is written, and leaves nothing behind otherwise.

    Symbolic links stay links: what they point to is replaced. An existing file's permissions are kept, while other
    names of it (hard links) keep the old content. What a killed writer left in that folder is removed once it is an
    hour old. parents: missing folders are made. OSError: `path` is a folder, a pipe, a device or the like, which
    nothing is done to; or the system's own, which names `path`.
    """
    temporary: Path | None = None
    try:
        target, mode = _resolved(path)
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target.parent)
        temporary = target.with_name(_NAME.format(uuid.uuid4().hex))
        with temporary.open("xb") as file:
            if mode is not None:
                temporary.chmod(mode)  # before anything is in it: what is private stays so
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise


def replace_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together, each as `replacing` does: none takes its place before all are on the disk.

    The first one is the last to do so: where it is new, what it needs is there.
    """
    with contextlib.ExitStack() as stack:  # which ends with what it has entered first
        for path, content in contents.items():
            file = stack.enter_context(replacing(path))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """One process at a time, of those that read a file of a folder and replace it by what they make of it.

    The folder is made. Whoever waits too long goes on, and so does everybody where the system or the disk knows no
    locks: what another one has written in between is lost then.
    """
    lock: int | None = None
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
            until = time.monotonic() + _PATIENCE
            while time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(_PAUSE)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def user_folder(ask: Callable[..., Path], **options: Any) -> Path:
    """oclbn's folder of a kind, by a function of platformdirs; OSError for a user without a home, as in containers.

    Older versions of platformdirs give a relative path then, which would be made wherever the process stands.
    """
    try:
        found = ask("oclbn", **options)
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from None
    if found.parts[:1] == ("~",):
        raise FileNotFoundError(errno.ENOENT, "this user has no home directory", str(found))
    return found


def _tidy(folder: Path) -> None:
    """Remove the parts of files that nobody writes any more."""
    with contextlib.suppress(OSError):  # another one removes them too, or they are not ours to remove
        for part in folder.glob(_NAME.format("*")):
            if part.stat().st_mtime < time.time() - _ABANDONED:
                part.unlink(missing_ok=True)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise OSError, as `replacing` does, where `path` is something else than a regular file or nothing yet."""
    _resolved(path)


def check_source(path: str | os.PathLike[str]) -> None:
    """Raise OSError where `path` is there and is no regular file: a pipe would be waited for, a device has no end."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file, so it is not read", os.fspath(path))


def _resolved(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Where a path leads through all its links, and the permissions of the file that is there, if any."""
    given = os.fspath(path)
    try:
        target = Path(path).resolve()
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    except RuntimeError:  # how pathlib says it before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), given) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, given) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), given)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file, so it is not written over", given)
    return target, stat.S_IMODE(mode)
