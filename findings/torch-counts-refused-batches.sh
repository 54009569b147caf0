#!/usr/bin/env bash
# PyTorch 2.13.0, CPU.
#
# Seen: batches that nn.BatchNorm1d refuses (one value per channel) count in num_batches_tracked, though the
# statistics do not move. With momentum=None, a plain average over the batches so far, nine refused batches before a
# good one of mean 5 leave a running mean of 0.5, and the variance near its first value of 1 as well.
#
# Why it surprises: an exception is expected to leave the module as it was, and the loop that skips the last, too
# small batch by `except ValueError` looks harmless. With the default momentum nothing shows but the counter, which is
# saved in every state_dict.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import torch

for momentum in (0.1, None):
    bn = torch.nn.BatchNorm1d(1, momentum=momentum)
    for _ in range(9):
        try:
            bn(torch.tensor([[5.0]]))
        except ValueError:
            pass
    print("momentum:", momentum, "refused: 9, counted:", bn.num_batches_tracked.item(), "mean:", bn.running_mean.item())
    bn(torch.tensor([[2.0], [8.0]]))
    print("  after a batch of mean 5, variance 18:", round(bn.running_mean.item(), 4), round(bn.running_var.item(), 4))
PY

cat >expected <<'TEXT'
momentum: 0.1 refused: 9, counted: 9 mean: 0.0
  after a batch of mean 5, variance 18: 0.5 2.7
momentum: None refused: 9, counted: 9 mean: 0.0
  after a batch of mean 5, variance 18: 0.5 2.7
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
