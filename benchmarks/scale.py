"""PURE: a model of what exchanging statistics costs from 2 to 10,000 ranks, from constants that are measured.

    python benchmarks/scale.py [--latency 50] [--bandwidth 12.5] [--skew 500] [--merge 13] [--plot scale.png]

latency: microseconds that a message takes to another rank; bandwidth: GB/s that a rank receives with; skew: the
standard deviation of the ranks' times for a layer, in microseconds, of which everybody waits for the worst; merge:
nanoseconds to merge a rank's numbers of one channel on the host. Shown is what all layers of ResNet-50 take in a step:

all-gather      what oclbn does: everybody's moments to all, by recursive doubling: log2(p) latencies, p - 1 messages
ring            the same, handed on from neighbour to neighbour: p - 1 latencies
merging         recursive doubling that merges on the way, as an Allreduce of moments would: log2(p) messages
tree            merging up to one rank and sending down again: 2 log2(p) messages
groups of 64    all-gather in communicators of 64 ranks each: statistics of their part of the batch
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import click

# Channels of each of ResNet-50's 53 layers, as (channels, how many).
LAYERS = ((64, 7), (128, 8), (256, 4 + 12), (512, 5 + 6), (1024, 7), (2048, 4))
HEADER = 36 + 8  # bytes of a message beside its numbers
FORWARD, BACKWARD = 16, 24  # bytes of a channel's
SIZES = (2, 4, 8, 16, 64, 256, 1024, 4096, 10_000)


@dataclass(frozen=True)
class Network:
    """Seconds, bytes per second, seconds, and seconds per number and rank."""

    latency: float
    bandwidth: float
    skew: float
    merge: float

    def waiting(self, ranks: int) -> float:
        """For the slowest of normally distributed times: what the largest of so many exceeds their mean by, about."""
        return self.skew * math.sqrt(2 * math.log(ranks)) if ranks > 1 else 0.0


Way = Callable[[Network, int, int, int], float]


def all_gather(net: Network, ranks: int, size: int, channels: int) -> float:
    return _rounds(ranks) * net.latency + (ranks - 1) * size / net.bandwidth + ranks * channels * net.merge


def ring(net: Network, ranks: int, size: int, channels: int) -> float:
    return (ranks - 1) * (net.latency + size / net.bandwidth) + ranks * channels * net.merge


def merging(net: Network, ranks: int, size: int, channels: int) -> float:
    return _rounds(ranks) * (net.latency + size / net.bandwidth + 2 * channels * net.merge)


def tree(net: Network, ranks: int, size: int, channels: int) -> float:
    return _rounds(ranks) * (2 * (net.latency + size / net.bandwidth) + 2 * channels * net.merge)


def groups(net: Network, ranks: int, size: int, channels: int) -> float:
    return all_gather(net, min(64, ranks), size, channels)


WAYS: dict[str, Way] = {
    "all-gather": all_gather,
    "ring": ring,
    "merging": merging,
    "tree": tree,
    "groups of 64": groups,
}


def step(net: Network, ranks: int, way: Way, together: int = 1) -> float:
    """Seconds of all exchanges of a training step, `together` layers in one message."""
    total = 0.0
    for channels, layers in LAYERS:
        for each in (FORWARD, BACKWARD):
            messages, left = divmod(layers, together)
            for count, number in ((together, messages), (left, 1 if left else 0)):
                one = way(net, ranks, HEADER + each * channels * count, channels * count)
                total += number * (one + net.waiting(min(64, ranks) if way is groups else ranks))
    return total


def _rounds(ranks: int) -> int:
    return math.ceil(math.log2(ranks))


@click.command(help=__doc__)
@click.option("--latency", default=50.0, show_default=True, help="Microseconds.")
@click.option("--bandwidth", default=12.5, show_default=True, help="GB/s.")
@click.option("--skew", default=500.0, show_default=True, help="Microseconds.")
@click.option("--merge", default=13.0, show_default=True, help="Nanoseconds.")
@click.option("--plot", type=click.Path(dir_okay=False), help="A picture of the first table.")
def main(latency: float, bandwidth: float, skew: float, merge: float, plot: str | None) -> None:
    net = Network(latency * 1e-6, bandwidth * 1e9, skew * 1e-6, merge * 1e-9)
    click.echo("Milliseconds of all exchanges of a training step of ResNet-50, a layer in a message:")
    click.echo(f"{'ranks':>7}" + "".join(f"{name:>15}" for name in WAYS) + f"{'of it waiting':>15}")
    exchanges = 2 * sum(layers for _, layers in LAYERS)
    for ranks in SIZES:
        times = "".join(f"{step(net, ranks, way) * 1e3:15.1f}" for way in WAYS.values())
        click.echo(f"{ranks:7}{times}{exchanges * net.waiting(ranks) * 1e3:15.1f}")
    click.echo()
    click.echo("The same by all-gather, with layers of one width that do not wait for each other in one message:")
    click.echo(f"{'ranks':>7}" + "".join(f"{count:>15}" for count in (1, 2, 4)) + "   layers")
    for ranks in SIZES:
        times = "".join(f"{step(net, ranks, all_gather, count) * 1e3:15.1f}" for count in (1, 2, 4))
        click.echo(f"{ranks:7}{times}")
    if plot:
        draw(net, plot)


def draw(net: Network, path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [2**power for power in range(1, 14)] + [10_000]
    for name, way in WAYS.items():
        axes.plot(sizes, [step(net, ranks, way) * 1e3 for ranks in sizes], label=name)
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="milliseconds of all exchanges of a step of ResNet-50")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.supxlabel(
        f"latency {net.latency * 1e6:g} us, {net.bandwidth * 1e-9:g} GB/s, skew {net.skew * 1e6:g} us: a model",
        fontsize="small",
    )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
