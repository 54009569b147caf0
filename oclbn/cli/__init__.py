"""The command `oclbn`. Importing this package needs neither click nor rich; running the command does."""

from __future__ import annotations

import errno
import os
import sys


def main() -> None:
    """Run the command with the arguments of the process; ends the process with its exit status."""
    try:
        _require()
        from oclbn.cli.group import oclbn
    except KeyboardInterrupt:  # all of that takes as long as NumPy takes to be imported
        print("Interrupted", file=sys.stderr)
        sys.exit(130)
    oclbn(prog_name="oclbn")


def _require() -> None:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        sys.exit(f"Error: the command oclbn needs the package {missing.name}: pip install 'oclbn[cli]'")
    if sys.stdout is None:  # it was closed before the start, as by `>&-`
        sys.exit(f"Error: the output cannot be written: {os.strerror(errno.EBADF)}")
