#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, four ranks with Gloo on one machine.
#
# Seen: reduce to rank 0 leaves partial sums in the tensors of the other ranks. Of 1, 2, 3 and 4 rank 0 gets 10; rank 1,
# which had eight times 2, has 9 9 10 10 2 2 5 5 afterwards, each place another subset of the ranks added up.
#
# Why it surprises: only the destination is said to receive a result, MPI's Reduce leaves what is sent alone, and a rank
# that is no destination has no reason to copy its statistics first. Used again (for the running average of that rank,
# or a second reduce) they are sums here, own values there; the mean over such a tensor looks plausible.
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


def total(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    x = torch.full((8,), rank + 1)
    dist.reduce(x, dst=0)
    of_all = [None] * 4
    dist.all_gather_object(of_all, x.tolist())
    if rank == 0:
        for number, seen in enumerate(of_all):
            print(f"rank {number}: {number + 1} became", *seen)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(total, (sys.argv[1],), 4)
PY

cat >expected <<'TEXT'
rank 0: 1 became 10 10 10 10 10 10 10 10
rank 1: 2 became 9 9 10 10 2 2 5 5
rank 2: 3 became 7 7 8 8 10 10 3 3
rank 3: 4 became 4 4 5 5 7 7 10 10
TEXT

timeout 120 venv/bin/python -I -W ignore seen.py "$folder" | tee seen
diff expected seen
