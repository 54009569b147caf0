"""How long a new process takes to its first gradient, with empty caches and with those that a process before left.

    python benchmarks/startup.py [--device SPEC]... [--shape 32,64,28,28] [--rounds 5]
    python benchmarks/startup.py --network [--device SPEC]... [--rounds 5]
    python benchmarks/startup.py --cold [--against CHECKOUT] [--device SPEC]... [--rounds 5]

Each process imports oclbn, and then, timed: finds the device, makes the arrays, trains, goes backward and reads the
result. The caches of POCL, pyopencl, Mesa and NVIDIA lie in a temporary folder. Milliseconds; warm: medians.

With --network it trains, goes backward and infers with all of ResNet-50's layer shapes at batch 32, with proofs of
kernels (oclbn.proof) and without, each with caches of its own: what proofs cost beside compiling, and, warm, what
finding out costs that a kernel was proven before. "proving" is the time within proofs but for what compiles there in
either case: the difference of the two cold totals has all, and is the figure to trust where it is larger than the
noise.

With --cold it makes the same calls, with proofs, in new processes: "cold" with empty caches, "warm" after that with
what the first process left, "ahead" with empty caches and oclbn.prepare before, which counts. Shown are medians of wall
seconds and of seconds of CPU (which hold where others use the machine as well), from the first call to the end of the
last one. --against makes another checkout of oclbn, the commit before for example, do so in turns with this one, and
shows the ratios.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def network(spec: str) -> None:
    """Print the seconds of every layer's first calls, of proofs, and of finding verdicts, as JSON."""
    import pyopencl as cl

    import oclbn.device
    from oclbn import functional, gpuarray
    from oclbn.proof import proving
    from oclbn.tools.bench.suites import SUITES

    inside = {"deciding": 0.0, "planning": 0.0, "proving": 0.0}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args)
            finally:
                inside[name] += time.perf_counter() - begun

        return run

    proving.proven_plan, proving.fitting_plan = (
        timed("deciding", proving.proven_plan),
        timed("planning", proving.fitting_plan),
    )
    proving._prove = timed("proving", proving._prove)
    queue = oclbn.device.queue_for(spec or None)
    largest = max(math.prod(shape) for shape, _ in SUITES["resnet50"])
    flat = [gpuarray.zeros(largest, queue=queue) for _ in range(3)]
    ones = gpuarray.ones(2048, queue=queue)
    queue.finish()
    begun = time.perf_counter()
    for shape, axis in SUITES["resnet50"]:
        x, dy, out = (array[: math.prod(shape)].reshape(shape) for array in flat)
        one = ones[: shape[axis]]
        _, *saved = functional.batch_norm_train(x, one, one, None, None, out=out)
        functional.batch_norm_backward(x, dy, one, *saved, out=out)
        functional.batch_norm_infer(x, one, one, one, one, out=out)
    queue.finish()
    total = time.perf_counter() - begun
    device: cl.Device = queue.device
    told = {"name": device.name.strip(), "version": device.platform.version.strip(), "programs": 0}
    finding = inside["deciding"] - inside["planning"] - inside["proving"]
    print(json.dumps({**told, "seconds": {"all": total, "proving": inside["proving"], "finding": finding}}))


def first_calls(spec: str, layers: list[tuple[list[int], int]], is_ahead: bool) -> None:
    """Print the seconds of every layer's first calls, and how many programs were built, as JSON.

    By public names only, as the checkout that answers may be an older one.
    """
    import oclbn
    import oclbn.device
    from oclbn import functional, gpuarray

    built: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lambda record: built.append(record) if record.msg.startswith("built") else None  # type: ignore[method-assign]
    logging.getLogger("oclbn").addHandler(handler)
    logging.getLogger("oclbn").setLevel(logging.INFO)
    queue = oclbn.device.queue_for(spec or None)
    largest = max(math.prod(shape) for shape, _ in layers)
    flat = [gpuarray.zeros(largest, queue=queue) for _ in range(3)]
    ones = gpuarray.ones(max(max(shape) for shape, _ in layers), queue=queue)
    queue.finish()
    begun, used = time.perf_counter(), sum(os.times()[:4])
    if is_ahead and hasattr(functional, "prepare"):
        functional.prepare([shape for shape, _ in layers], axis=layers[0][1], queue=queue)
    for shape, axis in layers:
        x, dy, out = (array[: math.prod(shape)].reshape(shape) for array in flat)
        one = ones[: shape[axis]]
        _, *saved = functional.batch_norm_train(x, one, one, None, None, out=out)
        functional.batch_norm_backward(x, dy, one, *saved, out=out)
        functional.batch_norm_infer(x, one, one, one, one, out=out)
    queue.finish()
    seconds = {"wall": time.perf_counter() - begun, "cpu": sum(os.times()[:4]) - used}
    device: Any = queue.device
    told = {"name": device.name.strip(), "version": device.platform.version.strip(), "programs": len(built)}
    print(json.dumps({**told, "seconds": seconds, "oclbn": oclbn.__file__}))


def compare_cold(specs: tuple[str, ...], rounds: int, against: Path | None) -> None:
    """Print a table: cold and warm, of this checkout and of another one."""
    from oclbn.tools.bench.suites import SUITES

    layers = json.dumps([(list(shape), axis) for shape, axis in SUITES["resnet50"]])
    checkouts = [Path(__file__).resolve().parent.parent, *([against.resolve()] if against else [])]
    sides = ["this", *(["against", "ratio"] if against else [])]
    print(f"{'':44}" + "".join(f"{f'{side} wall':>14}{f'{side} CPU':>14}" for side in sides) + f"{'programs':>12}")
    for spec in specs:
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for number in range(rounds):
            for side in range(len(checkouts)) if number % 2 == 0 else reversed(range(len(checkouts))):
                with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                    for temperature, folder in (("cold", one), ("warm", one), ("ahead", other)):
                        asked = ("--cold", "--layers", layers, *(["--ahead"] if temperature == "ahead" else []))
                        told = start(spec, "", Path(folder), *asked, PYTHONPATH=str(checkouts[side]), OCLBN_PROVE="1")
                        if checkouts[side] not in Path(told["oclbn"]).resolve().parents:
                            raise click.ClickException(f"{checkouts[side]} has no oclbn: {told['oclbn']} answered")
                        found.setdefault((temperature, side), []).append(told)
        for temperature in ("cold", "warm", "ahead"):
            sides_found = [found[temperature, side] for side in range(len(checkouts))]
            medians = [
                [statistics.median(told["seconds"][clock] for told in several) for clock in ("wall", "cpu")]
                for several in sides_found
            ]
            if against:
                medians.append([mine / other for mine, other in zip(*medians, strict=True)])
            first = sides_found[0][0]
            name = f"{first['name']}, {first['version']}"[:37]
            programs = "/".join(str(several[0]["programs"]) for several in sides_found)
            print(f"{name:38} {temperature:5}" + "".join(f"{a:14.2f}{b:14.2f}" for a, b in medians) + f"{programs:>12}")


def start(spec: str, shape: str, caches: Path, *more: str, **environment: str) -> dict[str, Any]:
    """What a child process says."""
    variables = ("XDG_CACHE_HOME", "POCL_CACHE_DIR", "PYOPENCL_CACHE_DIR", "CUDA_CACHE_PATH", "MESA_SHADER_CACHE_DIR")
    places = {name: str(caches / name.lower()) for name in variables}
    for place in places.values():
        Path(place).mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--child", "--device", spec, "--shape", shape, *more]
    given = {**os.environ, **places, **environment}
    done = subprocess.run(command, env=given, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare_network(specs: tuple[str, ...], rounds: int) -> None:
    """Print a table: with proofs and without, cold and warm."""
    print(f"{'':44}{'with':>10}{'without':>10}{'proving':>10}{'finding':>10}")
    for spec in specs:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            pairs = []
            for _ in range(1 + rounds):  # in turns
                found = start(spec, "", Path(one), "--network", OCLBN_PROVE="1")
                pairs.append((found, start(spec, "", Path(other), "--network", OCLBN_PROVE="0")))
        name = f"{pairs[0][0]['name']}, {pairs[0][0]['version']}"[:37]
        for temperature, several in (("cold", pairs[:1]), ("warm", pairs[1:])):
            columns = [[a["seconds"]["all"] for a, _ in several], [b["seconds"]["all"] for _, b in several]]
            columns += [[a["seconds"][what] for a, _ in several] for what in ("proving", "finding")]
            print(f"{name:38} {temperature:5}" + "".join(f"{1e3 * statistics.median(c):10.1f}" for c in columns))


@click.command()
@click.option("--device", "specs", multiple=True, default=[""], help="As for `oclbn bench`; repeatable.")
@click.option("--shape", default="32,64,28,28", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--network", "is_network", is_flag=True, help="All of ResNet-50's layers, with proofs and without.")
@click.option("--cold", "is_cold", is_flag=True, help="All of ResNet-50's layers in new processes with empty caches.")
@click.option(
    "--against", type=click.Path(exists=True, file_okay=False, path_type=Path), help="With --cold: another checkout."
)
@click.option("--layers", default="[]", hidden=True)
@click.option("--ahead", "is_ahead", is_flag=True, hidden=True)
@click.option("--child", "is_child", is_flag=True, hidden=True)
def main(
    specs: tuple[str, ...],
    shape: str,
    rounds: int,
    is_network: bool,
    is_cold: bool,
    against: Path | None,
    layers: str,
    is_ahead: bool,
    is_child: bool,
) -> None:
    """Print two lines per device: cold and warm."""
    if against and not is_cold:
        raise click.UsageError("--against is for --cold")
    if is_cold:
        first_calls(specs[0], json.loads(layers), is_ahead) if is_child else compare_cold(specs, rounds, against)
        return
    if is_network:
        network(specs[0]) if is_child else compare_network(specs, rounds)
        return
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
