"""ResNet-50's batch norm layers, forward and backward, by oclbn.torch beside torch.nn.BatchNorm2d, host included.

    python benchmarks/torch_layers.py --device "PoCL 3.0"

Both as people run them: a layer in training mode, called on a tensor, and autograd's backward for the tensor and both
parameters, results allocated in each call. In each round both have turns, in shuffled order: an untimed step, then
timed ones. Shown are medians in milliseconds, PyTorch's over oclbn's, and geometric means of those ratios, over the
distinct layers and over all 53 as the network has them. Results are compared before anything is timed.

--channels-last: tensors of PyTorch's other memory format. --dtype bfloat16: those, with parameters of float32.
"""

from __future__ import annotations

import collections
import math
import random
import statistics
import time
from typing import Any

import click

from oclbn.tools.bench.suites import NETWORKS

# channels, pixels a side, how many layers of ResNet-50 have these
_LAYERS = tuple((*layer, times) for layer, times in collections.Counter(NETWORKS["resnet50"]).items())
_STEPS = 3  # timed, of a turn
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def step(layer: Any, x: Any, dy: Any) -> tuple[float, float, tuple[Any, ...]]:
    """Seconds of forward and of backward, and what they made."""
    import torch

    begun = time.perf_counter()
    y = layer(x)
    between = time.perf_counter()
    gradients = torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)
    return between - begun, time.perf_counter() - between, (y.detach(), *gradients)


def measure(
    layers: dict[str, Any], x: Any, dy: Any, rounds: int, tolerance: float
) -> dict[str, tuple[float, float, float]]:
    """Medians of forward, backward and both, by name; AssertionError where results differ."""
    made = [step(layer, x, dy)[2] for layer in layers.values()]
    for mine, theirs in zip(*made, strict=True):
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)
    del made, mine, theirs
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in random.sample([*layers.items()], len(layers)):
            step(layer, x, dy)
            taken[name] += [step(layer, x, dy)[:2] for _ in range(_STEPS)]
    return {
        name: (
            statistics.median(one for one, _ in times),
            statistics.median(one for _, one in times),
            statistics.median(map(sum, times)),
        )
        for name, times in taken.items()
    }


def mean(ratios: list[tuple[float, float, float]], weights: list[int]) -> list[float]:
    """Geometric means of forward's, backward's and both's."""
    total = sum(weights)
    return [
        math.exp(sum(weight * math.log(ratio[k]) for ratio, weight in zip(ratios, weights, strict=True)) / total)
        for k in range(3)
    ]


@click.command(help=__doc__.partition("\n")[0])
@click.option("--device", "spec", metavar="SPEC", help="The device, as oclbn takes it.")
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", type=int, help="PyTorch's threads; otherwise as many as the device has compute units.")
@click.option("--channels-last", is_flag=True, help="Tensors with channels last.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def main(spec: str | None, batch: int, rounds: int, threads: int | None, channels_last: bool, dtype: str) -> None:
    import torch

    import oclbn.device
    import oclbn.torch

    info = oclbn.device.select(spec)
    torch.set_num_threads(threads or info.limits.compute_units)
    form = torch.channels_last if channels_last else torch.contiguous_format
    click.echo(f"{info.title}, PyTorch {torch.__version__} with {torch.get_num_threads()} threads, {dtype}, {form}")
    click.echo(f"{'':22s}{'oclbn.torch':>20s}{'torch.nn':>20s}{'times as long':>24s}")
    both = f"{'forward':>10s}{'backward':>10s}"
    click.echo(f"{'milliseconds':22s}{both * 2}{'forward':>8s}{'backward':>9s}{'both':>7s}")
    ratios, weights = [], []
    for channels, side, number in _LAYERS:
        shape = batch, channels, side, side
        x, dy = (torch.randn(shape).to(getattr(torch, dtype)).to(memory_format=form) for _ in range(2))
        theirs = torch.nn.BatchNorm2d(channels)
        mine = oclbn.torch.BatchNorm2d(channels, opencl=info)
        found = measure({"mine": mine, "theirs": theirs}, x.requires_grad_(), dy, rounds, _TOLERANCE[dtype])
        ratio = tuple(slow / fast for slow, fast in zip(found["theirs"], found["mine"], strict=True))
        times = "".join(f"{1e3 * one:10.2f}" for name in ("mine", "theirs") for one in found[name][:2])
        click.echo(f"{'x'.join(map(str, shape)):22s}{times}{ratio[0]:8.2f}{ratio[1]:9.2f}{ratio[2]:7.2f}")
        ratios.append(ratio)
        weights.append(number)
    for name, of in (("geometric mean", [1] * len(ratios)), ("of all 53 layers", weights)):
        found_means = mean(ratios, of)
        click.echo(f"{name:62s}{found_means[0]:8.2f}{found_means[1]:9.2f}{found_means[2]:7.2f}")


if __name__ == "__main__":
    main()
