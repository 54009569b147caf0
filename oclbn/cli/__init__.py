"""The command `oclbn`. Importing this package needs neither click nor rich; running the command does."""

from __future__ import annotations

import errno
import os
import sys


def main() -> None:
    """Run the command with the arguments of the process; ends the process with its exit status."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        sys.exit(f"Error: the command oclbn needs the package {missing.name}: pip install 'oclbn[cli]'")
    if sys.stdout is None:  # it was closed before the start, as by `>&-`
        sys.exit(f"Error: the output cannot be written: {os.strerror(errno.EBADF)}")
    from oclbn.cli.group import oclbn

    oclbn(prog_name="oclbn")
