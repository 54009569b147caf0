"""What a call costs on the host: the time from the call to its return, on a tensor too small to matter.

    python benchmarks/host_cost.py [--device SPEC] [--shape 2,8,4,4] [--calls 3000] [--warm]

Every call finds an empty queue and a warm process. Beside it stands how much of that the driver's own enqueueing of
kernels takes, which wakes its threads; the rest of each call, of which the median is told as well, is Python and
pyopencl. Microseconds: median, and the quantiles below which 10 % and 90 % of the calls lie.

With --warm calls follow each other, results are given back within them, and an event that is complete stands in for the
driver's enqueueing: medians of rounds of 100 calls.
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
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train, bind

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


def bound_calls(queue: cl.CommandQueue, shape: tuple[int, ...]) -> Calls:
    """The calls that oclbn.functional.bind has made of those, whose results are the same arrays each time."""
    rng = np.random.default_rng(1)
    x, dy = (cla.to_device(queue, rng.uniform(0.5, 1.5, shape).astype(np.float32)) for _ in range(2))
    vectors = [cla.to_device(queue, rng.uniform(0.5, 1.5, shape[1]).astype(np.float32)) for _ in range(4)]
    train = bind(batch_norm_train, x, *vectors)
    return {
        "train": train,
        "infer": bind(batch_norm_infer, x, *vectors),
        "backward": bind(batch_norm_backward, x, dy, vectors[0], *train()[1:]),
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


def seconds(queue: cl.CommandQueue, call: Callable[[], Any], calls: int) -> tuple[list[float], list[float], int]:
    """Of each call, until it returns; how much of that the driver's enqueueing of kernels took; and the launches."""
    enqueue, spent, times, inside = cl.enqueue_nd_range_kernel, [0.0], [], []
    launches = 0

    def timed(*given: Any, **options: Any) -> cl.Event:
        nonlocal launches
        start = time.perf_counter()
        event = enqueue(*given, **options)
        spent[-1] += time.perf_counter() - start
        launches += 1
        return event

    with mock.patch.object(cl, "enqueue_nd_range_kernel", timed):
        for _ in range(calls):
            queue.finish()
            spent[-1] = 0.0
            start = time.perf_counter()
            made = call()
            times.append(time.perf_counter() - start)
            inside.append(spent[-1])
            del made  # giving back is not timed
    queue.finish()
    return times, inside, launches // calls


class Standing:
    """In the place of the driver's enqueueing; a mock would note each call."""

    def __init__(self, event: cl.Event) -> None:
        self.event = event

    def __call__(self, *given: Any, **options: Any) -> cl.Event:
        return self.event


def warm(queue: cl.CommandQueue, call: Callable[[], Any], calls: int) -> float:
    """Median seconds of a call in a loop, in which nothing is enqueued."""
    done, rounds = cl.enqueue_marker(queue), []
    done.wait()
    with mock.patch.object(cl, "enqueue_nd_range_kernel", Standing(done)):
        for _ in range(-(-calls // 100)):
            start = time.perf_counter()
            for _ in range(100):
                call()
            rounds.append((time.perf_counter() - start) / 100)
    return statistics.median(rounds)


@click.command()
@click.option("--device", "spec", help="As for `oclbn bench`.")
@click.option("--shape", default="2,8,4,4", show_default=True)
@click.option("--calls", default=3000, show_default=True, type=click.IntRange(10))
@click.option("--warm", "in_a_loop", is_flag=True, help="One call after the other, without enqueueing.")
def main(spec: str | None, shape: str, calls: int, in_a_loop: bool) -> None:
    """Print one line per form of the call."""
    queue = oclbn.device.queue_for(spec)
    size = tuple(int(part) for part in shape.split(","))
    platform = queue.device.platform
    print(f"{queue.device.name.strip()}, {platform.version.strip()[:40]}, pyopencl {cl.VERSION_TEXT}, {size}")
    columns = "" if in_a_loop else f"{'10 %':>8}{'90 %':>8}{'enqueue':>9}{'rest':>8}{'launches':>10}"
    print(f"{'':44}{'median':>8}{columns}")
    forms = {f"functional, {kind}": functional_calls(queue, size, kind) for kind in ("fresh", "pool", "out")}
    forms |= {"bound": bound_calls(queue, size), "module": module_calls(queue, size)}
    for form, made in forms.items():
        for name, call in made.items():
            seconds(queue, call, calls // 10)  # warms
            if in_a_loop:
                print(f"{form + ': ' + name:44}{1e6 * warm(queue, call, calls):8.1f}")
                continue
            times, inside, launches = seconds(queue, call, calls)
            low, *_, high = statistics.quantiles(times, n=10)
            rest = statistics.median(time - own for time, own in zip(times, inside, strict=True))
            row = (statistics.median(times), low, high)
            print(
                f"{form + ': ' + name:44}"
                + "".join(f"{1e6 * value:8.1f}" for value in row)
                + f"{1e6 * statistics.median(inside):9.1f}{1e6 * rest:8.1f}{launches:10d}"
            )


if __name__ == "__main__":
    main()
