#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, two ranks with Gloo on one machine.
#
# Seen: torch.distributed.checkpoint saves the running mean of one rank with the running variance of another. After
# one batch on each rank, rank 0 with data of mean 5 and variance 2, rank 1 with mean 500 and variance 20000, the
# checkpoint holds the mean of rank 0 and the variance of rank 1 for the first layer, and the reverse for the second.
# Weights, which are the same on all ranks, show nothing.
#
# Why it surprises: every rank has a consistent state, and statistics are known to differ between ranks; that "the
# checkpoint takes those of rank 0" is what torch.save on rank 0 does. Here a tensor that all ranks have is written by
# whichever rank has the least to write so far, so that the ranks are dealt out by tensor, not by module, and another
# layer anywhere in the model changes which. `DefaultSavePlanner(dedup_save_to_lowest_rank=True)` takes rank 0's.
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
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # Momentum 1: the statistics are those of the last batch.
        self.layers = torch.nn.ModuleList(torch.nn.BatchNorm1d(4, momentum=1.0) for _ in range(2))

    def forward(self, x):
        return self.layers[0](x) + self.layers[1](x)


def statistics(model):
    return [(layer.running_mean[0].item(), layer.running_var[0].item()) for layer in model.layers]


def train(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = Two()
    with torch.no_grad():  # a pass in training mode is all that moves the statistics
        model(torch.tensor([[4.0], [6.0]]).repeat(1, 4) * (1 if rank == 0 else 100))
    of_all = [None, None]
    dist.all_gather_object(of_all, statistics(model))
    planners = {"default": dcp.DefaultSavePlanner(), "lowest": dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)}
    for name, planner in planners.items():
        dcp.save(model.state_dict(), checkpoint_id=f"{folder}/{name}", planner=planner)
    if rank == 0:
        for number, seen in enumerate(of_all):
            print(f"rank {number}, mean and variance of both layers: {seen}")
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = sys.argv[1]
    mp.spawn(train, (folder,), 2)
    for name in ("default", "lowest"):
        model = Two()
        state = model.state_dict()
        dcp.load(state, checkpoint_id=f"{folder}/{name}")
        print(f"saved, {name}: {statistics(model)}")
PY

cat >expected <<'TEXT'
rank 0, mean and variance of both layers: [(5.0, 2.0), (5.0, 2.0)]
rank 1, mean and variance of both layers: [(500.0, 20000.0), (500.0, 20000.0)]
saved, default: [(5.0, 20000.0), (500.0, 2.0)]
saved, lowest: [(5.0, 2.0), (5.0, 2.0)]
TEXT

timeout 120 venv/bin/python -I -W ignore seen.py "$folder" | tee seen
diff expected seen
