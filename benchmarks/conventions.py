"""What a framework's batch normalization makes of 100 given batches, as JSON.

    python benchmarks/conventions.py --framework torch [--write FILE]

Runs one framework, which the interpreter has to have installed (conventions_frameworks.py lists them; oclbn is not
needed), and prints its running mean and variance behind batches 1, 2, 10 and 100, with its own defaults and with
another momentum, the output of an evaluation then, and what it does where a batch has one value per channel or none,
and where epsilon is tiny. tests/conventions holds what this wrote, and what oclbn makes of the same batches to it.

The batches: RandomState(0), whose stream NumPy keeps for good. Five channels of normally distributed values, by MEANS
and STDS; 2 to 40 values per channel, so that it shows by what the sum of squares is divided. A mean is 16 standard
deviations at most: some frameworks take E(x^2) - E(x)^2 for the variance, which costs them 256 units in the last place
there, and everything a little further on. `data` is the SHA-256 of all batches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from conventions_frameworks import FRAMEWORKS

BATCHES = 100
SHOWN = (1, 2, 10, 100)
MEANS = (0.0, 1.0, -3.0, 100.0, 0.5)
STDS = (1.0, 0.5, 0.25, 6.25, 0.03125)
SCALE = (1.0, 0.5, -2.0, 1.5, 0.25)
BIAS = (0.0, 1.0, -0.5, 2.0, 0.125)
EVALUATED = 7  # samples


def batches() -> list[np.ndarray]:
    """100 arrays (N, 5) of float32, and behind them the one that is evaluated."""
    rng = np.random.RandomState(0)
    sizes = [*rng.randint(2, 41, BATCHES), EVALUATED]
    return [(np.array(MEANS) + np.array(STDS) * rng.standard_normal((size, 5))).astype(np.float32) for size in sizes]


def checksum(data: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(one.astype("<f4").tobytes() for one in data)).hexdigest()


def plain(values: np.ndarray) -> list:
    """Nested lists; float32 in the fewest digits that tell it, what is not finite as text."""
    values = np.asarray(values)
    if values.ndim:
        return [plain(one) for one in values]
    assert values.dtype == np.float32, values.dtype
    return float(str(values)) if np.isfinite(values) else str(values)


def run(kind: type, momentum: float | None, data: list[np.ndarray]) -> dict:
    layer = kind(5, momentum=momentum)
    layer.set(np.array(SCALE, np.float32), np.array(BIAS, np.float32))
    shown = {}
    for number, batch in enumerate(data[:-1], 1):
        layer.train(batch)
        if number in SHOWN:
            mean, var = layer.statistics()
            shown[str(number)] = {"mean": plain(mean), "var": plain(var)}
    return {"momentum": momentum, "statistics": shown, "evaluation": plain(layer.evaluate(data[-1]))}


def probe(kind: type, name: str) -> dict:
    """An edge case, on a fresh layer: y and the statistics behind it, or the name of the exception."""
    epsilon = {"epsilon 0": 0.0, "epsilon 1e-12": 1e-12}.get(name)
    x = {
        "one value": np.array([[5.0, -3.0, 1.0]], np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }.get(name, np.array([[0.0], [0.001953125]], np.float32))
    try:
        layer = kind(x.shape[1], epsilon=epsilon)
        y = layer.train(x)
    except Exception as error:  # what a framework refuses with is its own
        return {"refused": type(error).__name__}
    mean, var = layer.statistics()
    return {"y": plain(y), "mean": plain(mean), "var": plain(var)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--write", type=Path, help="a file, instead of printing")
    asked = parser.parse_args()
    kind, data = FRAMEWORKS[asked.framework], batches()
    momenta = [None] if kind.momentum is None else [None, kind.momentum]
    runs = [run(kind, momentum, data) for momentum in momenta]
    probes = {name: probe(kind, name) for name in kind.probes}
    versions = {**kind.versions, **{package: version(package) for package in kind.packages}}
    text = json.dumps(
        {
            "framework": asked.framework,
            "versions": versions,
            "python": platform.python_version(),
            "data": checksum(data),
            "runs": runs,
            "probes": probes,
        }
    )
    if asked.write is None:
        print(text)
    else:
        asked.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
