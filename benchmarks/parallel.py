"""What it costs to normalise over ranks: training steps by all ranks' statistics beside the same ranks' own.

    mpiexec -n 2 python benchmarks/parallel.py                  # ResNet-50's layers, batch 32 per rank
    mpiexec -n 2 python benchmarks/parallel.py --host           # the host's share, on a tensor too small to matter
    mpiexec -n 4 python benchmarks/parallel.py --exchange       # the exchange alone, by bytes of a rank's message
    mpiexec -n 2 python benchmarks/parallel.py --gloo           # a layer's exchanges beside Gloo's (needs torch)

Needs the extras `mpi`, `cli` and `pocl`. Each rank has one core, where there are enough, and a POCL device of one
thread. A step is a module's forward call and its backward: of a plain module ("own": one kernel reads what a cache
holds twice), of a group of this rank alone ("alone": moments, then the rest, and no exchange), and of the group of all
("whole"). Every round times all kinds, one after the other, in all ranks at once, and counts the slowest rank. Shown
are medians of rounds; the total takes each shape as often as the network has it.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
from mpi4py import MPI

from oclbn.tools.bench.suites import SUITES

os.environ.setdefault("POCL_MAX_PTHREAD_COUNT", "1")  # before pyopencl asks POCL for devices

import oclbn.device
from oclbn import BatchNorm2D, gpuarray
from oclbn.sync import DeviceGroup, MPIGroup, SyncBatchNorm

# How often ResNet-50 has each shape of SUITES["resnet50"]: its blocks' strides are in their 3x3 convolutions.
TIMES = (1, 6, 4, 1, 7, 5, 1, 11, 7, 1, 5, 4)
WORLD = MPI.COMM_WORLD
STEADY = 20  # calls before the first that is timed: kernels are built, messages foreseen


def slowest(seconds: float) -> float:
    return float(WORLD.allreduce(seconds, MPI.MAX))


def timed(call: Callable[[], Any], calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call, of the slowest rank."""
    WORLD.Barrier()
    begun = clock()
    for _ in range(calls):
        call()
    return slowest(clock() - begun) / calls


def steps(group: MPIGroup, shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    """A training step by the ranks' own statistics, of a plain module and of a group, and by those of all."""
    rng = np.random.default_rng(group.rank)
    x, dy = (gpuarray.to_gpu(rng.standard_normal(shape, np.float32)) for _ in range(2))
    queue = oclbn.device.default_queue()

    def step(bn: Any) -> Callable[[], None]:
        def run() -> None:
            bn(x)
            bn.backward(dy)
            queue.finish()

        return run

    return {
        "own": step(BatchNorm2D(shape[1])),
        "alone": step(SyncBatchNorm(BatchNorm2D(shape[1]), DeviceGroup([queue]))),
        "whole": step(SyncBatchNorm(BatchNorm2D(shape[1]), group)),
    }


def layers(group: MPIGroup, batch: int, rounds: int) -> Iterator[tuple[tuple[int, ...], int, dict[str, float]]]:
    """Of each shape: how often the network has it, and seconds of a step of each kind."""
    for (shape, _), often in zip(SUITES["resnet50"], TIMES, strict=True):
        kinds = steps(group, (batch, *shape[1:]))
        for call in kinds.values():
            for _ in range(3):
                call()
        found: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(rounds):
            for name in list(kinds)[:: 1 if turn % 2 else -1]:
                found[name].append(timed(kinds[name], 1))
        yield (batch, *shape[1:]), often, {name: statistics.median(times) for name, times in found.items()}


def report_layers(group: MPIGroup, batch: int, rounds: int) -> None:
    say(f"{'a step, ms':>20} {'times':>6} {'own':>8} {'alone':>8} {'whole':>8} {'whole/alone':>12} {'whole/own':>10}")
    total = dict.fromkeys(("own", "alone", "whole"), 0.0)

    def row(title: str, times: int, taken: dict[str, float]) -> None:
        own, alone, whole = (taken[name] * 1e3 for name in total)
        say(f"{title:>20} {times:6} {own:8.2f} {alone:8.2f} {whole:8.2f} {whole / alone:12.3f} {whole / own:10.3f}")

    for shape, often, taken in layers(group, batch, rounds):
        total = {name: one + often * taken[name] for name, one in total.items()}
        row("x".join(map(str, shape)), often, taken)
    row("all layers", sum(TIMES), total)


def report_host(group: MPIGroup, rounds: int) -> None:
    """Of a step on a tiny tensor: the time from its beginning to the empty queue, and the main thread's share of it."""
    kinds = steps(group, (2, 64, 4, 4))
    for call in kinds.values():
        for _ in range(STEADY):
            call()
    say(f"{'a step on 2x64x4x4':>20} {'elapsed us':>11} {'main thread us':>15}")
    clocks: tuple[Callable[[], float], ...] = (time.perf_counter, time.thread_time)
    found: dict[str, list[list[float]]] = {name: [[], []] for name in kinds}
    for _ in range(rounds):
        for name, call in kinds.items():
            for times, clock in zip(found[name], clocks, strict=True):
                times.append(timed(call, 50, clock))
    for name, both in found.items():
        elapsed, host = (statistics.median(times) * 1e6 for times in both)
        say(f"{name:>20} {elapsed:11.0f} {host:15.0f}")


def report_exchange(group: MPIGroup, rounds: int) -> None:
    """Of group.agree, whose payload is moved and not read."""
    say(f"{'bytes of a rank':>20} {'exchange us':>12}")
    for power in range(6, 21, 2):
        payload = bytes(1 << power)

        def exchange(payload: bytes = payload) -> None:
            group.agree("bytes", payload)

        for _ in range(STEADY):
            exchange()
        times = [timed(exchange, 20) for _ in range(rounds)]
        say(f"{1 << power:20} {statistics.median(times) * 1e6:12.1f}")


def report_gloo(group: MPIGroup, rounds: int) -> None:
    """What a layer exchanges, forward and backward, by itself; and the collectives of PyTorch's SyncBatchNorm by Gloo.

    PyTorch's layer, which refuses tensors of a processor, gathers mean, 1 / deviation and count, and sums two
    gradients.
    """
    import torch
    from torch import distributed

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = WORLD.bcast(one.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=WORLD.rank, world_size=WORLD.size)
    torch.set_num_threads(1)
    say(f"{'channels':>20} {'oclbn us':>9} {'gloo us':>8}   (a gathering each way; all_gather and all_reduce)")
    for channels in (64, 256, 1024, 2048):
        forward, backward = bytes(8 + 16 * channels), bytes(8 + 24 * channels)
        sent = torch.zeros(2 * channels + 1)
        received, summed = [torch.zeros(2 * channels + 1) for _ in range(WORLD.size)], torch.zeros(2 * channels)

        def ours(forward: bytes = forward, backward: bytes = backward) -> None:
            group.agree("forward", forward)
            group.agree("backward", backward)

        def theirs(sent: Any = sent, received: Any = received, summed: Any = summed) -> None:
            distributed.all_gather(received, sent)
            distributed.all_reduce(summed)

        found: list[list[float]] = [[], []]
        for call in (ours, theirs):
            for _ in range(STEADY):
                call()
        for _ in range(rounds):
            for times, call in zip(found, (ours, theirs), strict=True):
                times.append(timed(call, 50))
        say(f"{channels:20} " + " ".join(f"{statistics.median(times) * 1e6:8.1f}" for times in found))
    distributed.destroy_process_group()


def say(line: str) -> None:
    if WORLD.rank == 0:
        click.echo(line)


@click.command(help=__doc__)
@click.option("--batch", default=32, show_default=True, help="Samples of each rank.")
@click.option("--rounds", default=7, show_default=True, help="Rounds of turns.")
@click.option("--host", "kind", flag_value="host", help="A step on a tensor too small to matter.")
@click.option("--exchange", "kind", flag_value="exchange", help="The exchange alone, by bytes.")
@click.option("--gloo", "kind", flag_value="gloo", help="A layer's exchanges beside those of PyTorch's by Gloo.")
def main(batch: int, rounds: int, kind: str | None) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if WORLD.size <= len(cores):
        os.sched_setaffinity(0, {cores[WORLD.rank]})
    with MPIGroup(WORLD) as group:
        say(f"{WORLD.size} ranks on {len(cores)} cores, {group.queues[0].device.name.strip()}")
        if kind == "host":
            report_host(group, rounds)
        elif kind == "exchange":
            report_exchange(group, rounds)
        elif kind == "gloo":
            report_gloo(group, rounds)
        else:
            report_layers(group, batch, rounds)


if __name__ == "__main__":
    main()
