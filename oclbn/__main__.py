"""`python -m oclbn` is the command `oclbn`."""

from __future__ import annotations

from oclbn.cli import main

main()
