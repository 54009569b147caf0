"""Errors of activations and of their derivatives, in units in the last place of float32 at the exact result.

    python benchmarks/activations.py --device "PoCL 3.0"

Each function runs in inference with a mean of 0, a variance of 1 and no epsilon, its derivative in backward with the
same constants, on 400,000 numbers from -12 to 12 and as many from N(0, 1); the exact results are those of float64
NumPy. "by y" is the derivative that follows from the output, for functions that have one, on the outputs of the device.
Where a derivative crosses zero, what is left of two terms that cancel is told in units of the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from oclbn import device, functional, gpuarray
from oclbn.activations import NAMES, PLAIN
from oclbn.truth import activated
from oclbn.truth.bounds import units

_COUNT = 400_000
_TERMS = 0.25  # a derivative of two terms is told in units of this where it is smaller


def largest(got: NDArray[Any], exact: NDArray[np.float64], least: float = 0.0) -> float:
    """The largest error, in units in the last place at the exact result, or at `least` where that is larger."""
    unit = units(np.maximum(np.abs(exact), max(least, float(np.finfo(np.float32).tiny))), np.float32)
    return float(np.max(np.abs(got.astype(np.float64) - exact) / unit))


def errors(put: Callable[[Any], Any], name: str) -> tuple[float, float, float]:
    """Of the function, its derivative and that by its output; NaN where there is none."""
    rng, activation = np.random.default_rng(0), PLAIN[name]
    z = np.concatenate([rng.uniform(-12, 12, _COUNT), rng.standard_normal(_COUNT)]).astype(np.float32).reshape(1, 1, -1)
    x, dy, mean, var = (put(a) for a in (z, np.ones_like(z), np.zeros(1, np.float32), np.ones(1, np.float32)))
    y = functional.batch_norm_infer(x, mean=mean, var=var, epsilon=0.0, activation=name)
    options: dict[str, Any] = {"save_mean": mean, "save_invstd": var, "training": False, "activation": name}
    found = [largest(y.get(), activated.activated(z, activation))]
    least = _TERMS if name in ("silu", "gelu", "gelu_tanh", "hardswish") else 0.0
    slope = functional.batch_norm_backward(x, dy, **options)[0].get()
    found.append(largest(slope, activated.derivative(z, activation), least))
    if not activation.by_output:
        return found[0], found[1], float("nan")
    slope = functional.batch_norm_backward(x, dy, y=y, **options)[0].get()
    return found[0], found[1], largest(slope, activated.derivative_by_output(y.get(), activation))


@click.command(help=__doc__.partition("\n")[0])
@click.option("--device", "spec", metavar="SPEC", help="The device, as oclbn takes it.")
def main(spec: str | None) -> None:
    queue = device.queue_for(spec)
    print(f"{queue.device.name.strip()}: largest error, in units in the last place of float32")
    print(f"{'':12}{'function':>10}{'derivative':>12}{'by y':>8}")
    for name in NAMES[1:]:
        function, derivative, by_output = errors(lambda host: gpuarray.to_gpu(host, queue=queue), name)
        told = "" if np.isnan(by_output) else f"{by_output:8.2f}"
        print(f"{name:12}{function:10.2f}{derivative:12.2f}{told}")


if __name__ == "__main__":
    main()
