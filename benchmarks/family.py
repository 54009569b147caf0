"""What the relatives of batch normalization take, forward and backward, beside a copy of the same tensor.

    python benchmarks/family.py --device "PoCL 3.0"

Batch normalization itself, four ghost batches, instance, group and layer normalization, batch renormalization, and
batch normalization with a random mask of three positions in four: calls that are bound, into outputs that are there,
interleaved with the copy, medians; times over the copy's. Where PyTorch is installed, its instance_norm, group_norm and
layer_norm with as many threads as the device has compute units run in the same rounds: theirs are in brackets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import pyopencl as cl

from oclbn import device, gpuarray
from oclbn.functional import batch_norm_backward, batch_norm_train, bind
from oclbn.group_norm import group_norm, group_norm_backward, layer_norm, layer_norm_backward
from oclbn.renorm import batch_renorm_backward, batch_renorm_train

_MAPS = ((32, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7), (8, 320, 32, 32))
_ROWS = ((4096, 768), (16384, 256), (1024, 4096))
_GROUPS = 32
_GHOSTS = 4

Calls = dict[str, Callable[[], Any]]


def of_maps(queue: cl.CommandQueue, host: np.ndarray[Any, Any]) -> Calls:
    """By name, what is timed on feature maps."""
    x, dy = gpuarray.to_gpu(host, queue=queue), gpuarray.to_gpu(host[::-1].copy(), queue=queue)
    out, channels, samples = gpuarray.empty_like(x), host.shape[1], host.shape[0]
    scale, bias, mean, var = (gpuarray.ones(channels, queue=queue) for _ in range(4))
    mask = np.random.default_rng(1).random((samples, *host.shape[2:])) < 0.75
    calls: Calls = {"copy": lambda: cl.enqueue_copy(queue, out.base_data, x.base_data)}
    for name, options in (
        ("batch", {}),
        ("ghost", {"groups": _GHOSTS}),
        ("instance", {"groups": samples}),
        ("masked", {"mask": mask}),
    ):
        saved = batch_norm_train(x, scale, bias, **options)[1:]  # type: ignore[arg-type]
        calls[f"{name} forward"] = bind(batch_norm_train, x, scale, bias, out=out, **options)
        calls[f"{name} backward"] = bind(batch_norm_backward, x, dy, scale, *saved, out=out, **options)
    saved = group_norm(x, _GROUPS, scale, bias)[1:]
    calls["group forward"] = bind(group_norm, x, _GROUPS, scale, bias, out=out)
    calls["group backward"] = bind(group_norm_backward, x, dy, _GROUPS, scale, *saved, out=out)
    saved = batch_renorm_train(x, scale, bias, mean, var)[1:]
    calls["renorm forward"] = bind(batch_renorm_train, x, scale, bias, mean, var, out=out)
    calls["renorm backward"] = bind(batch_renorm_backward, x, dy, scale, *saved, out=out)
    return calls


def of_rows(queue: cl.CommandQueue, host: np.ndarray[Any, Any]) -> Calls:
    """By name, what is timed on rows."""
    x, dy = gpuarray.to_gpu(host, queue=queue), gpuarray.to_gpu(host[::-1].copy(), queue=queue)
    out = gpuarray.empty_like(x)
    scale, bias = (gpuarray.ones(host.shape[1], queue=queue) for _ in range(2))
    saved = layer_norm(x, 1, scale, bias)[1:]
    return {
        "copy": lambda: cl.enqueue_copy(queue, out.base_data, x.base_data),
        "layer forward": bind(layer_norm, x, 1, scale, bias, out=out),
        "layer backward": bind(layer_norm_backward, x, dy, 1, scale, *saved, out=out),
    }


def of_torch(torch: Any, host: np.ndarray[Any, Any]) -> Calls:
    """PyTorch's, under the same names."""
    functional, names = torch.nn.functional, ("instance", "group") if host.ndim > 2 else ("layer",)
    x, dy = (torch.from_numpy(one.copy()) for one in (host, host[::-1]))
    x.requires_grad_()
    scale, bias = (torch.ones(host.shape[1], requires_grad=True) for _ in range(2))
    made = {
        "instance": lambda x: functional.instance_norm(x, weight=scale, bias=bias),
        "group": lambda x: functional.group_norm(x, _GROUPS, scale, bias),
        "layer": lambda x: functional.layer_norm(x, host.shape[1:], scale, bias),
    }
    calls: Calls = {}
    for name in names:
        y = made[name](x)

        def forward(call: Callable[[Any], Any] = made[name]) -> Any:
            with torch.no_grad():
                return call(x)

        calls[f"{name} forward"] = forward
        calls[f"{name} backward"] = lambda y=y: torch.autograd.grad(y, (x, scale, bias), dy, retain_graph=True)
    return calls


def medians(calls: Calls, finish: Callable[[], None], rounds: int) -> dict[str, float]:
    """Seconds of each, interleaved; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            finish()
            begun = time.perf_counter()
            call()
            finish()
            taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


@click.command(help=__doc__.partition("\n")[0])
@click.option("--device", "spec", metavar="SPEC", help="The device, as oclbn takes it.")
@click.option("--rounds", default=15, show_default=True)
def main(spec: str | None, rounds: int) -> None:
    queue, rng = device.queue_for(spec), np.random.default_rng(0)
    try:
        import torch
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(queue.device.max_compute_units)
    print(f"{queue.device.name.strip()}: times over the copy's" + ("; in brackets PyTorch's" if torch else ""))
    for shape in (*_MAPS, *_ROWS):
        host = rng.standard_normal(shape).astype(np.float32)
        own = of_maps(queue, host) if len(shape) > 2 else of_rows(queue, host)
        theirs = {f"torch {name}": call for name, call in (of_torch(torch, host) if torch else {}).items()}
        found = medians({**own, **theirs}, queue.finish, rounds)
        print(f"{'x'.join(map(str, shape))}: a copy takes {1e3 * found['copy']:.2f} ms")
        for name in own:
            if name != "copy":
                beside = found.get(f"torch {name}")
                other = f"  ({beside / found['copy']:.2f})" if beside else ""
                print(f"    {name:18}{found[name] / found['copy']:6.2f}{other}")


if __name__ == "__main__":
    main()
