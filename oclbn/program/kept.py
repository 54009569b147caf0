"""What is kept for an OpenCL context (programs, kernels, prepared calls), and for how long.

A compiled program keeps its context alive, so what is kept cannot wait for the context to end. It waits for the
context's users instead: the objects of pyopencl that stand for it, in queues and arrays, of those who made calls. A
context without any is dormant. It may still come back, by a queue that is made anew, so the last few are kept;
older ones are let go of when another context is first used.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING

import pyopencl as cl

if TYPE_CHECKING:
    from oclbn.plan.words import Build

MOST_DORMANT = 4  # contexts, of some megabytes each


class Kept:
    """What is kept for one context."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of programs
        self.programs: dict[Build, cl.Program] = {}
        self.thread = threading.local()  # what belongs to one thread; all of it goes with this object
        self.used = 0
        self._users: dict[int, weakref.ref[cl.Context]] = {}

    def note(self, context: cl.Context) -> None:
        """Remember an object that stands for the context; only weakly."""
        self.used = next(_clock)
        name = id(context)
        if name not in self._users:
            users = self._users
            users[name] = weakref.ref(context, lambda _: users.pop(name, None))

    @property
    def is_dormant(self) -> bool:
        """Whether no such object is left."""
        return not self._users


_lock = threading.Lock()
_clock = itertools.count()
_all: dict[int, Kept] = {}  # by address: a program keeps its context alive, so that addresses stay unique


def kept(context: cl.Context) -> Kept:
    """What is kept for this context, empty at first."""
    found = _all.get(context.int_ptr)
    return _begin(context) if found is None else found


def _begin(context: cl.Context) -> Kept:
    let_go: list[Kept] = []  # outside of the lock: releasing a program may run anything
    with _lock:
        found = _all.get(context.int_ptr)
        if found is None:
            dormant = sorted((one.used, pointer) for pointer, one in _all.items() if one.is_dormant)
            let_go = [_all.pop(pointer) for _, pointer in dormant[: max(0, len(dormant) - MOST_DORMANT)]]
            found = _all[context.int_ptr] = Kept()
            found.note(context)
    let_go.clear()
    return found
