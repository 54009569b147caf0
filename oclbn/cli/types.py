"""What several commands take on their lines."""

from __future__ import annotations

from typing import Any

import click


class ShapeType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """A tensor's shape: two positive numbers or more, separated by commas."""

    name = "N,C[,D...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            shape = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers like 32,64,28,28", param, ctx)
        if len(shape) < 2 or min(shape) < 1:
            self.fail(f"{value!r} has to be two positive numbers or more", param, ctx)
        return shape
