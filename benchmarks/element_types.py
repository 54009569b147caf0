"""Errors of tensors of 16 bits on hostile data, in units in the last place of their type.

    python benchmarks/element_types.py --device "PoCL 3.0"

Of y (training and inference) and dx (both forms of backward) the largest distance from the exact result, which is that
of float64 NumPy on the same stored values, in units in the last place at the exact result. Half a unit is what rounding
the exact result costs. What is not finite, and what a subtraction of nearly equal terms leaves far below them (less
than a thousandth of the largest result of its channel), is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from oclbn import device, functional, gpuarray
from oclbn.elements import named, narrow, range_of
from oclbn.truth import cases
from oclbn.truth.bounds import units
from oclbn.truth.expectation import expected
from oclbn.truth.hostile import MAKERS, along, make, others

SHAPES = (((7, 5, 13), 1), ((4, 6, 28, 28), 1), ((70, 37, 3, 3), 1), ((300, 33), 1), ((3, 5, 7, 20), 3))
OPERATIONS = {"train": "y", "infer": "y", "backward": "dx", "constant": "dx"}
_SMALL = 1e-3  # of the largest result of a channel: below, what is left of terms that cancel


def error(got: NDArray[Any], wanted: NDArray[np.float64], dtype: np.dtype[Any], axis: int) -> float:
    """The largest error, in units in the last place of the type at the exact result."""
    exact = np.abs(wanted)
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(np.float64) - wanted) / units(exact, dtype)
        largest = np.max(np.where(np.isfinite(exact), exact, 0.0), axis=others(wanted.shape, axis))
        counts = (
            np.isfinite(off) & (exact > _SMALL * along(largest, wanted.shape, axis)) & (exact < range_of(dtype).max)
        )
    return float(np.max(off, where=counts, initial=0.0))


def rows(queue: Any, name: str) -> Iterator[tuple[str, str, float]]:
    """Data, operation, units: of the worst shape."""
    dtype = named(name)
    for data, maker in MAKERS.items():
        worst = dict.fromkeys(OPERATIONS, 0.0)
        for shape, axis in SHAPES:
            host = make(shape, axis, dtype, maker)
            for operation, result in OPERATIONS.items():
                given = {key: gpuarray.to_gpu(getattr(host, key), queue=queue) for key in cases.TAKES[operation]}
                found = cases.run(functional, operation, given, axis=axis)
                wide = expected(operation, host.widened(), axis)[result][0]
                worst[operation] = max(worst[operation], error(found[result].get(), wide, dtype, axis))
        for operation, most in worst.items():
            yield data, operation, most


@click.command(help=__doc__.partition("\n")[0])
@click.option("--device", "spec", metavar="SPEC", help="The device, as oclbn takes it.")
def main(spec: str | None) -> None:
    queue = device.queue_for(spec)
    names = narrow()
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name in names:
        for data, operation, most in rows(queue, name):
            found.setdefault((data, operation), {})[name] = most
    print(f"{queue.device.name.strip()}: largest error, in units in the last place of each type")
    print(f"{'data':34}{'operation':11}" + "".join(f"{name:>10}" for name in names))
    for (data, operation), most in found.items():
        print(f"{data:34}{operation:11}" + "".join(f"{most[name]:10.3f}" for name in names))
    print(f"{'largest':45}" + "".join(f"{max(most[name] for most in found.values()):10.3f}" for name in names))


if __name__ == "__main__":
    main()
