#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, three ranks with Gloo on one machine.
#
# Seen: all_reduce of six float32 numbers, on each rank six times the same one (1e8, 1 and -1e8), gives 0 in some places
# and 1, the right sum, in others; of one or two numbers, 0 in all. With 0.1, 0.2 and 0.4 the sums differ in their last
# bit. All ranks get the same.
#
# Why it surprises: addition of three floats is known to depend on order, the order is thought to be that of the ranks.
# It is that of a ring which starts at another rank for each part of the array, so that place and length decide: two
# channels that are the same on every rank part ways, and sending two small arrays as one gives other bits than each
# alone. MPICH 5.0.2 gives one sum at every place.
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


def sums(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    for values in ((1e8, 1.0, -1e8), (0.1, 0.2, 0.4)):
        for count in (1, 2, 3, 6):
            x = torch.full((count,), values[rank])
            dist.all_reduce(x)
            of_all = [None] * 3
            dist.all_gather_object(of_all, x.tolist())
            if rank == 0:
                text = " ".join(f"{value:.9g}" for value in of_all[0])
                print(f"{count} times the sum of {values}: {text}; the same on all ranks: {of_all == of_all[:1] * 3}")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(sums, (sys.argv[1],), 3)
PY

cat >expected <<'TEXT'
1 times the sum of (100000000.0, 1.0, -100000000.0): 0; the same on all ranks: True
2 times the sum of (100000000.0, 1.0, -100000000.0): 0 0; the same on all ranks: True
3 times the sum of (100000000.0, 1.0, -100000000.0): 0 0 1; the same on all ranks: True
6 times the sum of (100000000.0, 1.0, -100000000.0): 0 0 1 1 0 0; the same on all ranks: True
1 times the sum of (0.1, 0.2, 0.4): 0.700000048; the same on all ranks: True
2 times the sum of (0.1, 0.2, 0.4): 0.700000048 0.700000048; the same on all ranks: True
3 times the sum of (0.1, 0.2, 0.4): 0.700000048 0.700000048 0.699999988; the same on all ranks: True
6 times the sum of (0.1, 0.2, 0.4): 0.700000048 0.700000048 0.699999988 0.699999988 0.700000048 0.700000048; the same on all ranks: True
TEXT

timeout 120 venv/bin/python -I -W ignore seen.py "$folder" | tee seen
diff expected seen
