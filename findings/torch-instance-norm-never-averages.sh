#!/usr/bin/env bash
# PyTorch 2.13.0, CPU.
#
# Seen: nn.InstanceNorm1d(track_running_stats=True, momentum=None) never moves its statistics: after a hundred batches
# of mean 5 the running mean is 0 and the variance 1, and evaluation gives x back as it came. nn.BatchNorm1d with the
# same arguments has 5 and 2. Its num_batches_tracked is 0 after any number of batches, with every momentum.
#
# Why it surprises: None is, for the batch norm layers, the average over all batches; instance norm takes it, has the
# same counter in its state, and makes it a momentum of 0. The shared base class, and the state_dict with all of its
# keys, promise that what works for one works for the other. In training nothing is to be seen.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import torch

x = torch.tensor([[[4.0, 6.0]]])
for momentum in (None, 0.1):
    for kind in (torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d):
        layer = kind(1, track_running_stats=True, momentum=momentum)
        for _ in range(100):
            layer(x)
        mean, variance = layer.running_mean.item(), layer.running_var.item()
        print(kind.__name__, "momentum:", momentum, f"mean {mean:.3f} variance {variance:.3f}", end=" ")
        y = [f"{y:.2f}" for y in layer.eval()(x).flatten().tolist()]
        print("batches:", layer.num_batches_tracked.item(), "y:", y)
PY

cat >expected <<'TEXT'
BatchNorm1d momentum: None mean 5.000 variance 2.000 batches: 100 y: ['-0.71', '0.71']
InstanceNorm1d momentum: None mean 0.000 variance 1.000 batches: 0 y: ['4.00', '6.00']
BatchNorm1d momentum: 0.1 mean 5.000 variance 2.000 batches: 100 y: ['-0.71', '0.71']
InstanceNorm1d momentum: 0.1 mean 5.000 variance 2.000 batches: 0 y: ['-0.71', '0.71']
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
