#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, two and three ranks with Gloo on one machine.
#
# Seen: the gradient of mse_loss of a DTensor whose rows are spread over ranks is the right one times the number of
# ranks: -1.1333 on two and -1.7 on three instead of -0.5667. huber_loss and binary_cross_entropy do the same; l1_loss
# and ((a - b) ** 2).mean() are right. With five rows over two ranks the loss itself is wrong as well, 0.6233 for
# 0.6455: the mean of the means of three rows and of two.
#
# Why it surprises: a DTensor is meant to compute what one tensor would, and the loss is right wherever the rows divide
# evenly, so that only training goes wrong, as if the learning rate grew with the ranks. Adam hides that. cross_entropy
# refuses rows that do not divide evenly for a "biased mean result"; mse_loss gives it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

LOSSES = {
    "mse_loss": F.mse_loss,
    "huber_loss": F.huber_loss,
    "binary_cross_entropy": F.binary_cross_entropy,
    "l1_loss": F.l1_loss,
    "square and mean": lambda a, b: ((a - b) ** 2).mean(),
}


def loss_and_gradient(loss, weight, x, target):
    value = loss(x @ weight.requires_grad_(), target)
    value.backward()
    return value, weight.grad


def losses(rank, ranks, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for rows in (6, 5):
        x = torch.tensor([[0.1], [0.2], [0.6], [0.9], [0.3], [0.3]])[:rows]
        target = torch.ones(rows, 1)
        spread = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, target)]
        for name, loss in LOSSES.items():
            one = loss_and_gradient(loss, torch.tensor([[0.5]]), x, target)
            weight = distribute_tensor(torch.tensor([[0.5]]), mesh, [Replicate()])
            many = [value.full_tensor() for value in loss_and_gradient(loss, weight, *spread)]
            if rank == 0:
                text = [f"{a.item():.4f} (one tensor: {b.item():.4f})" for a, b in zip(many, one, strict=True)]
                print(f"{rows} rows, {ranks} ranks, {name}: loss {text[0]} gradient {text[1]}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    for ranks in (2, 3):
        mp.spawn(losses, (ranks, sys.argv[1]), ranks)
PY

cat >expected <<'TEXT'
6 rows, 2 ranks, mse_loss: loss 0.6583 (one tensor: 0.6583) gradient -1.1333 (one tensor: -0.5667)
6 rows, 2 ranks, huber_loss: loss 0.3292 (one tensor: 0.3292) gradient -0.5667 (one tensor: -0.2833)
6 rows, 2 ranks, binary_cross_entropy: loss 1.8492 (one tensor: 1.8492) gradient -4.0000 (one tensor: -2.0000)
6 rows, 2 ranks, l1_loss: loss 0.8000 (one tensor: 0.8000) gradient -0.4000 (one tensor: -0.4000)
6 rows, 2 ranks, square and mean: loss 0.6583 (one tensor: 0.6583) gradient -0.5667 (one tensor: -0.5667)
5 rows, 2 ranks, mse_loss: loss 0.6233 (one tensor: 0.6455) gradient -1.2133 (one tensor: -0.5780)
5 rows, 2 ranks, huber_loss: loss 0.3117 (one tensor: 0.3228) gradient -0.6067 (one tensor: -0.2890)
5 rows, 2 ranks, binary_cross_entropy: loss 1.7576 (one tensor: 1.8396) gradient -4.0000 (one tensor: -2.0000)
5 rows, 2 ranks, l1_loss: loss 0.7900 (one tensor: 0.7900) gradient -0.4200 (one tensor: -0.4200)
5 rows, 2 ranks, square and mean: loss 0.6455 (one tensor: 0.6455) gradient -0.5780 (one tensor: -0.5780)
6 rows, 3 ranks, mse_loss: loss 0.6583 (one tensor: 0.6583) gradient -1.7000 (one tensor: -0.5667)
6 rows, 3 ranks, huber_loss: loss 0.3292 (one tensor: 0.3292) gradient -0.8500 (one tensor: -0.2833)
6 rows, 3 ranks, binary_cross_entropy: loss 1.8492 (one tensor: 1.8492) gradient -6.0000 (one tensor: -2.0000)
6 rows, 3 ranks, l1_loss: loss 0.8000 (one tensor: 0.8000) gradient -0.4000 (one tensor: -0.4000)
6 rows, 3 ranks, square and mean: loss 0.6583 (one tensor: 0.6583) gradient -0.5667 (one tensor: -0.5667)
5 rows, 3 ranks, mse_loss: loss 0.6583 (one tensor: 0.6455) gradient -1.7000 (one tensor: -0.5780)
5 rows, 3 ranks, huber_loss: loss 0.3292 (one tensor: 0.3228) gradient -0.8500 (one tensor: -0.2890)
5 rows, 3 ranks, binary_cross_entropy: loss 1.8492 (one tensor: 1.8396) gradient -6.0000 (one tensor: -2.0000)
5 rows, 3 ranks, l1_loss: loss 0.7900 (one tensor: 0.7900) gradient -0.4200 (one tensor: -0.4200)
5 rows, 3 ranks, square and mean: loss 0.6455 (one tensor: 0.6455) gradient -0.5780 (one tensor: -0.5780)
TEXT

timeout 120 venv/bin/python -I -W ignore seen.py "$folder" | tee seen
diff expected seen
