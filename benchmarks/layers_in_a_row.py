"""Many small layers in a row: what the host takes for each, and how long the device waits between two kernels.

    python benchmarks/layers_in_a_row.py [--device SPEC] [--layers 50] [--rounds 30]

Each layer trains on the output of the one before, on a queue in order with profiling: by calls of batch_norm_train, by
calls that are bound, and by the same kernels that pyopencl enqueues alone, without and with events that are held, a
flush after each, or each waiting for the one before. Microseconds per layer, medians over the rounds, in which all take
turns: until the last call has returned, until all is done, of a kernel, and from the end of one to the start of the
next.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import click
import numpy as np
import pyopencl as cl
import pyopencl.array as cla

import oclbn.device
from oclbn.functional import batch_norm_train, bind

SHAPES = ((2, 8, 4, 4), (1, 256, 14, 14), (8, 256, 14, 14))
Sweep = Callable[[list[cl.Event]], None]  # one call of each layer; their events go into the list


def sweeps(queue: cl.CommandQueue, shape: tuple[int, ...], layers: int) -> dict[str, Sweep]:
    """The layers, called in each way."""
    rng = np.random.default_rng(1)
    first = x = cla.to_device(queue, rng.standard_normal(shape).astype(np.float32))
    vectors = [
        [cla.to_device(queue, rng.uniform(0.5, 1.5, shape[1]).astype(np.float32)) for _ in range(4)]
        for _ in range(layers)
    ]
    steps: list[Callable[[], Any]] = []
    for four in vectors:
        steps.append(bind(batch_norm_train, x, *four))
        x = steps[-1]()[0]
    enqueue, launches = cl.enqueue_nd_range_kernel, []

    def seen(queue: cl.CommandQueue, kernel: cl.Kernel, size: Any, group: Any, **options: Any) -> cl.Event:
        launches.append((kernel, size, group))
        return enqueue(queue, kernel, size, group, **options)

    with mock.patch.object(cl, "enqueue_nd_range_kernel", seen):
        for step in steps:
            step()

    def called(events: list[cl.Event]) -> None:
        y = first
        for four in vectors:
            y = batch_norm_train(y, *four)[0]
            events += y.events

    def bound(events: list[cl.Event]) -> None:
        for step in steps:
            events += step()[0].events

    def alone(*, flush: bool = False, chained: bool = False) -> Sweep:
        def sweep(events: list[cl.Event]) -> None:
            for launch in launches:
                events.append(enqueue(queue, *launch, wait_for=events[-1:] if chained else None))
                if flush:
                    queue.flush()

        return sweep

    kinds = {"called": called, "bound": bound, "pyopencl alone": alone()}
    return kinds | {"with a flush after each": alone(flush=True), "each waiting for one": alone(chained=True)}


@click.command()
@click.option("--device", "spec", help="As for `oclbn bench`.")
@click.option("--layers", default=50, show_default=True, type=click.IntRange(2))
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(3))
def main(spec: str | None, layers: int, rounds: int) -> None:
    """Print one line per shape and way of calling."""
    model = oclbn.device.queue_for(spec)
    queue = cl.CommandQueue(model.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
    print(f"{queue.device.name.strip()}, pyopencl {cl.VERSION_TEXT}, {layers} layers")
    print(f"{'':44}{'host':>8}{'done':>8}{'kernel':>8}{'gap':>8}")
    for shape in SHAPES:
        kinds = sweeps(queue, shape, layers)
        rows: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
        for _ in range(rounds + 2):
            for kind, sweep in kinds.items():
                queue.finish()
                events: list[cl.Event] = []
                start = time.perf_counter()
                sweep(events)
                returned = time.perf_counter()
                queue.finish()
                done = time.perf_counter()
                times = [(event.profile.start, event.profile.end) for event in events]
                kernel = statistics.median(end - begin for begin, end in times)
                gap = statistics.median(two[0] - one[1] for one, two in itertools.pairwise(times))
                host = 1e6 * (returned - start) / layers, 1e6 * (done - start) / layers
                rows[kind].append((*host, 1e-3 * kernel, 1e-3 * gap))
        for kind, found in rows.items():
            medians = [statistics.median(values) for values in zip(*found[2:], strict=True)]
            print(f"{str(shape) + ': ' + kind:44}" + "".join(f"{value:8.1f}" for value in medians))


if __name__ == "__main__":
    main()
