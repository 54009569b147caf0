#!/usr/bin/env bash
# PyTorch 2.13.0, CPU.
#
# Seen: torch.utils.checkpoint around nn.BatchNorm1d moves its statistics twice per training step, as the
# recomputation in backward is a training pass like the first: after one batch of mean 5 the running mean is 0.95
# instead of 0.5, and the counter says 2.
#
# Why it surprises: checkpointing is described as trading time for memory at the same result, and it takes care of the
# random numbers (dropout is replayed alike). y and all gradients are in fact the same; only the state that evaluation
# uses is another, as if momentum were 0.19.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import torch
from torch.utils.checkpoint import checkpoint

for name, run in (("plain", lambda bn, x: bn(x)), ("checkpoint", lambda bn, x: checkpoint(bn, x, use_reentrant=False))):
    bn = torch.nn.BatchNorm1d(1)
    x = torch.tensor([[4.0], [6.0]], requires_grad=True)
    y = run(bn, x)
    (y * torch.tensor([[1.0], [2.0]])).sum().backward()
    print(name, "y:", [round(v, 4) for v in y.flatten().tolist()], end=" ")
    print("weight.grad:", round(bn.weight.grad.item(), 4), end=" ")
    print("running mean:", round(bn.running_mean.item(), 6), "batches:", bn.num_batches_tracked.item())
PY

cat >expected <<'TEXT'
plain y: [-1.0, 1.0] weight.grad: 1.0 running mean: 0.5 batches: 1
checkpoint y: [-1.0, 1.0] weight.grad: 1.0 running mean: 0.95 batches: 2
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
