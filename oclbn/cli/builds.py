"""What compiling cost: the records of oclbn.program, counted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LONG = 1.0  # seconds; from here on it is worth saying that the next run is likely to be quicker


class Builds(logging.Handler):
    """How many programs were built, and in how many seconds in all."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.programs = 0
        self.seconds = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.programs += 1
        self.seconds += getattr(record, "seconds", 0.0)

    def __str__(self) -> str:
        programs = "1 program" if self.programs == 1 else f"{self.programs} programs"
        later = "; where the driver caches them, only once" if self.seconds >= _LONG else ""
        return f"Compiled {programs} in {self.seconds:.1f} s{later}"


@contextlib.contextmanager
def counted() -> Iterator[Builds]:
    """What is built within the block."""
    logger, builds = logging.getLogger("oclbn.program"), Builds()
    level = logger.level
    logger.addHandler(builds)
    logger.setLevel(logging.INFO)
    try:
        yield builds
    finally:
        logger.setLevel(level)
        logger.removeHandler(builds)
