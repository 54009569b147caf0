"""How long a new process takes to its first gradient, with empty caches and with those that a process before left.

    python benchmarks/startup.py [--device SPEC]... [--shape 32,64,28,28] [--rounds 5]

Each process imports oclbn, and then, timed: finds the device, makes the arrays, trains, goes backward and reads the
result. The caches of POCL, pyopencl, Mesa and NVIDIA lie in a temporary folder. Milliseconds; warm: medians.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

STAGES = ("device", "arrays", "train", "backward", "all", "building")


def child(spec: str, shape: tuple[int, ...]) -> None:
    """Print the seconds that each stage took, as JSON; "building" is that of all programs within the others."""
    import numpy as np

    import oclbn.device
    from oclbn import functional, gpuarray

    built: list[float] = []
    handler = logging.Handler()
    handler.emit = lambda record: built.append(record.seconds)  # type: ignore[method-assign,attr-defined]
    logging.getLogger("oclbn.program").addHandler(handler)
    logging.getLogger("oclbn.program").setLevel(logging.INFO)
    rng = np.random.default_rng(1)
    hosts = [rng.standard_normal(size).astype(np.float32) for size in (shape, shape, *[shape[1]] * 4)]

    times = [time.perf_counter()]
    queue = oclbn.device.queue_for(spec or None)
    times.append(time.perf_counter())
    x, dy, scale, bias, mean, var = (gpuarray.to_gpu(host, queue=queue) for host in hosts)
    queue.finish()
    times.append(time.perf_counter())
    saved = functional.batch_norm_train(x, scale, bias, mean, var)[1:]
    queue.finish()
    times.append(time.perf_counter())
    functional.batch_norm_backward(x, dy, scale, *saved)[0].get()
    times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    found = dict(zip(STAGES, [*seconds, times[-1] - times[0], sum(built)], strict=True))
    told = {"name": queue.device.name.strip(), "version": queue.device.platform.version.strip(), "programs": len(built)}
    print(json.dumps({**told, "seconds": found}))


def start(spec: str, shape: str, caches: Path) -> dict[str, object]:
    """What a child process says."""
    variables = ("XDG_CACHE_HOME", "POCL_CACHE_DIR", "PYOPENCL_CACHE_DIR", "CUDA_CACHE_PATH", "MESA_SHADER_CACHE_DIR")
    places = {name: str(caches / name.lower()) for name in variables}
    for place in places.values():
        Path(place).mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--child", "--device", spec, "--shape", shape]
    done = subprocess.run(command, env={**os.environ, **places}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@click.command()
@click.option("--device", "specs", multiple=True, default=[""], help="As for `oclbn bench`; repeatable.")
@click.option("--shape", default="32,64,28,28", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--child", "is_child", is_flag=True, hidden=True)
def main(specs: tuple[str, ...], shape: str, rounds: int, is_child: bool) -> None:
    """Print two lines per device: cold and warm."""
    if is_child:
        child(specs[0], tuple(int(part) for part in shape.split(",")))
        return
    print(f"{'':44}" + "".join(f"{stage:>10}" for stage in STAGES) + f"{'programs':>10}")
    for spec in specs:
        with tempfile.TemporaryDirectory() as folder:
            cold, *warm = (start(spec, shape, Path(folder)) for _ in range(1 + rounds))
        name = f"{cold['name']}, {cold['version']}"[:37]
        for temperature, several in (("cold", [cold]), ("warm", warm)):
            seconds = [found["seconds"] for found in several]
            medians = [1e3 * statistics.median(found[stage] for found in seconds) for stage in STAGES]  # type: ignore[index]
            print(f"{name:38} {temperature:5}" + "".join(f"{ms:10.1f}" for ms in medians) + f"{cold['programs']:10}")


if __name__ == "__main__":
    main()
