"""Products of parameters: all of one in the README's run, on the matrix's other runtimes enough that nothing is new."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def crossed(*axes: Sequence[Any], reason: str) -> list[Any]:
    """The product of lists of parameters, for one parametrize; all but a diagonal through it carries the mark `once`.

    On the diagonal each value of each list stands at least once. The matrix runs that part on every runtime.
    """
    steps = max(map(len, axes))
    diagonal = {tuple(step % len(axis) for axis in axes) for step in range(steps)}
    once = pytest.mark.once(reason=reason)
    made = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        rows = [axis[place] for axis, place in zip(axes, places, strict=True)]
        marks = [mark for row in rows for mark in row.marks]
        made.append(
            pytest.param(
                *(value for row in rows for value in row.values),
                id="-".join(str(row.id) for row in rows),
                marks=[*marks, *([] if places in diagonal else [once])],
            )
        )
    return made
