"""What proofs of kernels found (oclbn.proof), kept on disk: one file for each device, driver and version of oclbn.

A file is JSON in `proofs/` of oclbn's folder of the user's cache: who it speaks of, and by key of a form the worst
error in units of its tolerance and of which result that is. A folder that cannot be written, and a file that is damaged
or speaks of another device, cost time and nothing else: forms are proven again.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from oclbn.files.whole import replacing, taking_turns, user_folder

_EVERY = 2.0  # seconds between two writings: a killed process loses what was proven since the last one
_log = logging.getLogger("oclbn.proof")


@dataclass(frozen=True)
class Verdict:
    """The worst error of a form, in units of its tolerance, and of which result; 1 is the most that is allowed."""

    units: float
    of: str

    @property
    def good(self) -> bool:
        """Whether the form may be used."""
        return self.units <= 1.0


@dataclass
class Verdicts:
    """Verdicts on the forms of one device, by key; `identity` tells it, and its driver, from every other."""

    identity: str
    known: dict[str, Verdict] = field(default_factory=dict)
    _written: float = 0.0
    _dirty: bool = False

    @classmethod
    def of(cls, identity: str) -> Verdicts:
        """What is known of a device, from disk."""
        made = cls(identity)
        made.known.update(made._read())
        atexit.register(made._write_at_exit, os.getpid())
        return made

    @property
    def path(self) -> Path:
        """The file, whether it is there or not; OSError where this user has no home for it."""
        name = hashlib.sha256(self.identity.encode()).hexdigest()[:32]
        return user_folder(platformdirs.user_cache_path, appauthor=False) / "proofs" / f"{name}.json"

    def add(self, key: str, verdict: Verdict) -> None:
        """Remember one; it is written at once or, soon after another, with the next or at the end of the process."""
        self.known[key] = verdict
        self._dirty = True
        if time.monotonic() - self._written > _EVERY:
            self.write()

    def look_again(self) -> None:
        """Take over what other processes have written meanwhile."""
        self.known = {**self._read(), **self.known}

    def write(self) -> None:
        """Write all that is known, with what another process has written meanwhile."""
        self._dirty, self._written = False, time.monotonic()
        try:
            with taking_turns(self.path.parent):
                together = {**self._read(), **self.known}
                forms = {key: [v.units if math.isfinite(v.units) else None, v.of] for key, v in together.items()}
                content = {"identity": self.identity, "forms": forms}
                with replacing(self.path, parents=True) as file:
                    file.write(json.dumps(content).encode())
        except OSError as error:
            _log.info("verdicts are not kept: %s", error)

    def settle(self) -> None:
        """Write what is not on disk yet."""
        if self._dirty:
            self.write()

    def _read(self) -> dict[str, Verdict]:
        try:
            content = json.loads(self.path.read_bytes())
            if content["identity"] != self.identity:
                return {}
            return {
                str(key): Verdict(math.inf if units is None else float(units), str(of))
                for key, (units, of) in content["forms"].items()
                if units is None or units >= 0  # anything else, NaN as well, this class has not written
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            _log.info("verdicts on %s are not used: %r", self.identity, error)
            return {}

    def _write_at_exit(self, process: int) -> None:
        if process == os.getpid():
            self.settle()
