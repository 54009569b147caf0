"""All batch normalizations of a network in a row, as it calls them: from the first call to the last result.

    python benchmarks/sequences.py [--device SPEC] [--network NAMES] [--batch 1,8] [--peer-python PATH]

A network's calls are many and, at a small batch, small: what counts is that the device never waits for the next one.
Each layer has tensors of its own. `bound` are calls that oclbn.functional.bind has prepared, `calls` those of
oclbn.functional with out=; a round ends with one queue.finish(). Beside inference stand two kernels that copy each
tensor, with ordinary stores and `past the cache`. With --peer-python, PyTorch runs the same layers in a
process of its own (benchmarks/sequences_torch.py), in turns, on as many threads as the device has compute units; it is
compared with `bound`. Milliseconds, medians; `launches` are those of `bound`, and `gap` is what lies between the end of
one of them and the start of the next by the device's clock, the median, in microseconds.
"""

from __future__ import annotations

import functools
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyopencl as cl

import oclbn.device
from oclbn import gpuarray
from oclbn.call.order import recording
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind, result_like
from oclbn.tools.bench.suites import NETWORKS, Layers
from oclbn.tools.yardstick import plain_copy

Step = Callable[[], Any]
OPERATIONS = ("inference", "forward", "both")  # both: each layer forward, then backward
_LEAST_SECONDS = 0.2  # of each operation's turns in a round


def sequences(queue: cl.CommandQueue, layers: Layers, batch: int) -> dict[str, dict[str, list[Step]]]:
    """By operation and form, the steps of a round."""
    made: dict[str, dict[str, list[Step]]] = {name: {"bound": [], "calls": []} for name in OPERATIONS}
    rng = np.random.default_rng(0)
    for channels, side in layers:
        x = gpuarray.to_gpu(rng.standard_normal((batch, channels, side, side), np.float32), queue=queue)
        numbers = [np.full(channels, value, np.float32) for value in (1, 0, 0, 1)]
        scale, bias, mean, var = (gpuarray.to_gpu(number, queue=queue) for number in numbers)
        y, dx = result_like(x), result_like(x)
        _, *saved = batch_norm_train(x, scale, bias, out=y)
        infer = (batch_norm_infer, (x, scale, bias, mean, var), {"out": y})
        train = (batch_norm_train, (x, scale, bias, mean, var), {"out": y})
        backward = (batch_norm_backward, (x, y, scale, *saved), {"out": dx})
        for name, wanted in (("inference", [infer]), ("forward", [train]), ("both", [train, backward])):
            for operation, given, options in wanted:
                made[name]["bound"].append(bind(operation, *given, **options))
                made[name]["calls"].append(lambda call=operation, given=given, options=options: call(*given, **options))
        for stream in (False, True):  # the least that inference has to move
            copy = functools.partial(plain_copy, x, y, stream=stream)
            made["inference"].setdefault("past the cache" if stream else "copy", []).append(copy)
    return made


def seconds(queue: cl.CommandQueue, steps: list[Step], rounds: int) -> list[float]:
    """Of each round, until the queue is empty."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for step in steps:
            step()
        queue.finish()
        found.append(time.perf_counter() - begun)
    return found


def gaps(layers: Layers, batch: int, device: cl.Device, context: cl.Context) -> dict[str, tuple[int, float]]:
    """By operation, how many launches the bound calls are, and the median seconds between two of them."""
    queue = cl.CommandQueue(context, device, cl.command_queue_properties.PROFILING_ENABLE)
    found = {}
    for name, forms in sequences(queue, layers, batch).items():
        seconds(queue, forms["bound"], 2)
        with recording() as launches:
            seconds(queue, forms["bound"], 1)
        times = [(event.profile.start, event.profile.end) for _, event in launches]
        between = [after[0] - before[1] for before, after in itertools.pairwise(times)]
        found[name] = len(times), statistics.median(between) * 1e-9
    return found


class Torch:
    """PyTorch's process, which is stopped while it is not asked."""

    def __init__(self, python: str, layers: Layers, batch: int, threads: int) -> None:
        script = str(Path(__file__).with_name("sequences_torch.py"))
        self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._ask({"layers": layers, "batch": batch, "threads": threads})

    def _ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self._process.send_signal(signal.SIGSTOP)  # its threads go on turning for a while
        return answer

    def seconds(self, operation: str, rounds: int) -> list[float]:
        """Of each round."""
        found: list[float] = self._ask({"operation": operation, "rounds": rounds})
        return found

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()


def time_all(queue: cl.CommandQueue, layers: Layers, batch: int, rounds: int, python: str | None) -> None:
    """Print a line per operation."""
    device = queue.device
    between = gaps(layers, batch, device, queue.context)
    made = sequences(queue, layers, batch)
    torch = Torch(python, layers, batch, device.max_compute_units) if python else None

    def run(name: str, form: str, number: int) -> list[float]:
        return torch.seconds(name, number) if torch and form == "torch" else seconds(queue, made[name][form], number)

    for name, forms in made.items():
        times: dict[str, list[float]] = {form: [] for form in (*forms, *(["torch"] if torch else []))}
        for turn in range(-1, rounds):
            for form in times:
                once = run(name, form, 1)[0]
                found = run(name, form, max(1, min(20, round(_LEAST_SECONDS / once))))
                times[form] += found if turn >= 0 else []
        median = {form: statistics.median(found) for form, found in times.items()}
        launches, gap = between[name]
        row = f"  {name:10}" + "".join(f"  {form} {1e3 * value:8.2f} ms" for form, value in median.items())
        row += f"  launches {launches:4}  gap {1e6 * gap:5.1f} us"
        click.echo(row + (f"  {median['torch'] / median['bound']:5.2f} times as fast as PyTorch" if torch else ""))
    if torch:
        torch.close()


@click.command(help=__doc__)
@click.option("--device", "spec", help="As for `oclbn bench`.")
@click.option("--network", "names", default=",".join(NETWORKS), show_default=True)
@click.option("--batch", "batches", default="1,8", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each form.")
@click.option("--peer-python", envvar="OCLBN_PEER_PYTHON", help="A Python that has PyTorch.")
def main(spec: str | None, names: str, batches: str, rounds: int, peer_python: str | None) -> None:
    queue = oclbn.device.queue_for(spec)
    platform = queue.device.platform
    click.echo(f"{queue.device.name.strip()}, {platform.version.strip()[:40]}")
    for name in names.split(","):
        for batch in map(int, batches.split(",")):
            click.echo(f"{name}, batch {batch}, {len(NETWORKS[name])} layers")
            time_all(queue, NETWORKS[name], batch, rounds, peer_python)


if __name__ == "__main__":
    sys.exit(main())
