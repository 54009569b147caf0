"""PyTorch's part of benchmarks/sequences.py, in an environment that has PyTorch; oclbn is not needed.

The first line of the input is {"layers": [[channels, side], ...], "batch": N, "threads": K}, the others are
{"operation": "inference", "forward" or "both", "rounds": R}; each is answered by a line: PyTorch's version, and the
seconds of each round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def rounds_of(layers: list[list[int]], batch: int) -> dict[str, Callable[[], None]]:
    """By operation, what a round does."""
    inputs = [torch.randn(batch, channels, side, side) for channels, side in layers]
    trained = [torch.nn.BatchNorm2d(channels) for channels, _ in layers]
    evaluated = [torch.nn.BatchNorm2d(channels).eval() for channels, _ in layers]
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = [torch.randn_like(x) for x in inputs]

    @torch.no_grad()
    def inference() -> None:
        for x, module in zip(inputs, evaluated, strict=True):
            module(x)

    @torch.no_grad()
    def forward() -> None:
        for x, module in zip(inputs, trained, strict=True):
            module(x)

    def both() -> None:
        for x, module, gradient in zip(leaves, trained, gradients, strict=True):
            module(x).backward(gradient)

    return {"inference": inference, "forward": forward, "both": both}


def answer(asked: dict[str, Any], made: dict[str, Callable[[], None]]) -> list[float]:
    """Seconds of each round that is asked for."""
    found = []
    for _ in range(asked["rounds"]):
        begun = time.perf_counter()
        made[asked["operation"]]()
        found.append(time.perf_counter() - begun)
    return found


def main() -> None:
    """Answer until the input ends."""
    start = json.loads(sys.stdin.readline())
    torch.set_num_threads(start["threads"])
    made = rounds_of(start["layers"], start["batch"])
    print(json.dumps(torch.__version__), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), made)), flush=True)


if __name__ == "__main__":
    main()
