"""What a call costs on the host: the time from the call to its return, on a tensor too small to matter.

    python benchmarks/host_cost.py [--device SPEC] [--shape 2,8,4,4] [--calls 3000]

Every call finds an empty queue and a warm process. Beside it stands how much of that the driver's own enqueueing of
the same kernels takes, timed in calls of their own; the rest is Python and pyopencl. Microseconds: median, and the
quantiles below which 10 % and 90 % of the calls lie.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import click
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from pyopencl.tools import ImmediateAllocator, MemoryPool

import oclbn.device
from oclbn import BatchNormND
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train

Calls = dict[str, Callable[[], Any]]


def functional_calls(queue: cl.CommandQueue, shape: tuple[int, ...], kind: str) -> Calls:
    """The calls of oclbn.functional, their results "fresh", from a "pool", or given with "out"."""
    allocator = MemoryPool(ImmediateAllocator(queue)) if kind == "pool" else None
    rng = np.random.default_rng(1)

    def array(size: int | tuple[int, ...]) -> cla.Array:
        return cla.to_device(queue, rng.uniform(0.5, 1.5, size).astype(np.float32), allocator=allocator)

    x, dy = array(shape), array(shape)
    scale, bias, mean, var = (array(shape[1]) for _ in range(4))
    y, dx = (cla.empty_like(x), cla.empty_like(x)) if kind == "out" else (None, None)
    saved = batch_norm_train(x, scale, bias, None, None)[1:]
    return {
        "train": lambda: batch_norm_train(x, scale, bias, mean, var, out=y),
        "train, no scale": lambda: batch_norm_train(x, None, None, None, None, out=y),
        "infer": lambda: batch_norm_infer(x, scale, bias, mean, var, out=y),
        "backward": lambda: batch_norm_backward(x, dy, scale, *saved, out=dx),
    }


def module_calls(queue: cl.CommandQueue, shape: tuple[int, ...]) -> Calls:
    """The calls of a module in training, and its forward call in evaluation."""
    rng = np.random.default_rng(1)
    x, dy = (cla.to_device(queue, rng.standard_normal(shape).astype(np.float32)) for _ in range(2))
    trained, evaluated = (BatchNormND(len(shape) - 2, shape[1], queue=queue) for _ in range(2))
    evaluated.evalMode()
    trained(x)
    return {
        "train": lambda: trained(x),
        "infer": lambda: evaluated(x),
        "backward": lambda: trained.backward(dy),
        "backward, no gradients kept": lambda: trained.backward(dy, updParamGrads=False),
    }


def seconds(queue: cl.CommandQueue, call: Callable[[], Any], calls: int) -> list[float]:
    """Of each call, until it returns."""
    times = []
    for _ in range(calls):
        queue.finish()
        start = time.perf_counter()
        made = call()
        times.append(time.perf_counter() - start)
        del made  # giving back is not timed
    queue.finish()
    return times


def enqueueing(queue: cl.CommandQueue, call: Callable[[], Any], calls: int) -> tuple[float, int]:
    """Median seconds per call inside the driver's enqueueing of kernels, and the number of launches."""
    enqueue = cl.enqueue_nd_range_kernel
    spent: list[float] = []

    def timed(*given: Any, **options: Any) -> cl.Event:
        start = time.perf_counter()
        event = enqueue(*given, **options)
        spent.append(time.perf_counter() - start)
        return event

    with mock.patch.object(cl, "enqueue_nd_range_kernel", timed):
        call()
        launches = len(spent)
        seconds(queue, call, calls)
    per_call = [sum(spent[at : at + launches]) for at in range(0, len(spent), launches)]
    return statistics.median(per_call), launches


@click.command()
@click.option("--device", "spec", help="As for `oclbn bench`.")
@click.option("--shape", default="2,8,4,4", show_default=True)
@click.option("--calls", default=3000, show_default=True, type=click.IntRange(10))
def main(spec: str | None, shape: str, calls: int) -> None:
    """Print one line per form of the call."""
    queue = oclbn.device.queue_for(spec)
    size = tuple(int(part) for part in shape.split(","))
    platform = queue.device.platform
    print(f"{queue.device.name.strip()}, {platform.version.strip()[:40]}, pyopencl {cl.VERSION_TEXT}, {size}")
    print(f"{'':44}{'median':>8}{'10 %':>8}{'90 %':>8}{'enqueue':>9}{'rest':>8}{'launches':>10}")
    forms = {f"functional, {kind}": functional_calls(queue, size, kind) for kind in ("fresh", "pool", "out")}
    forms["module"] = module_calls(queue, size)
    for form, made in forms.items():
        for name, call in made.items():
            seconds(queue, call, calls // 10)  # warms
            times = seconds(queue, call, calls)
            low, *_, high = statistics.quantiles(times, n=10)
            median = statistics.median(times)
            bare, launches = enqueueing(queue, call, calls // 3)
            row = (median, low, high)
            print(
                f"{form + ': ' + name:44}"
                + "".join(f"{1e6 * value:8.1f}" for value in row)
                + f"{1e6 * bare:9.1f}{1e6 * (median - bare):8.1f}{launches:10d}"
            )


if __name__ == "__main__":
    main()
