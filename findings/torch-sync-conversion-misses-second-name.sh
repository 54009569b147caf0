#!/usr/bin/env bash
# PyTorch 2.13.0, CPU.
#
# Seen: convert_sync_batchnorm replaces a layer that has two names in its parent under the first of them only. The
# second name keeps the BatchNorm1d that does not synchronise, with the same weights and the same running statistics. A
# layer that two parents share becomes two layers. A SyncBatchNorm that is there already loses its process group.
#
# Why it surprises: the conversion is documented for "all BatchNorm layers", the printed model has the new layer in it,
# and weights stay shared, so that nothing fails: one pass uses the statistics of all ranks, the other those of its own,
# and both move one running average. The group, made to synchronise within one machine, becomes all ranks, as a second
# call (a library's after the user's) is enough.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
from torch import nn

convert = nn.SyncBatchNorm.convert_sync_batchnorm

norm = nn.BatchNorm1d(2)
model = nn.Module()
model.before, model.after = norm, norm
model = convert(model)
print("two names in one parent:", type(model.before).__name__, type(model.after).__name__, end=" ")
print("weights shared:", model.before.weight is model.after.weight, end=" ")
print("running mean shared:", model.before.running_mean is model.after.running_mean)

norm = nn.BatchNorm1d(2)
model = convert(nn.Sequential(nn.Sequential(norm), nn.Sequential(norm)))
print("one name in two parents:", *(type(part[0]).__name__ for part in model), end=" ")
print("one layer:", model[0][0] is model[1][0])

# Any object serves as a group here: it is kept, not used, until the layer trains.
group = object()
first = convert(nn.BatchNorm1d(2), group)
print("converted once, has its group:", first.process_group is group, end=" ")
print("twice:", convert(first).process_group)
PY

cat >expected <<'TEXT'
two names in one parent: SyncBatchNorm BatchNorm1d weights shared: True running mean shared: True
one name in two parents: SyncBatchNorm SyncBatchNorm one layer: False
converted once, has its group: True twice: None
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
