#!/usr/bin/env bash
# PyTorch 2.13.0, CPU.
#
# Seen: a batch norm layer is called in evaluation mode, then in training mode on another batch, and only then comes
# backward, as where two losses are added. The gradient of the evaluation's y is made from the running variance as the
# training has left it: 0.0075 instead of 1.0, without a word.
#
# Why it surprises: the same change by hand, `bn.running_var.fill_(2.0)`, is caught, as all changes in place of what
# backward needs are ("modified by an inplace operation"). What training does to the running statistics is in place as
# well, but the counter by which such changes are seen does not move.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import torch

x = torch.tensor([[1.0], [3.0]], requires_grad=True)


def gradient(between):
    bn = torch.nn.BatchNorm1d(1, affine=False)
    y = bn.eval()(x)
    version = bn.running_var._version
    between(bn)
    print("running variance:", round(bn.running_var.item()), "seen as changed:", bn.running_var._version != version)
    try:
        (dx,) = torch.autograd.grad(y.sum(), x)
    except RuntimeError as error:
        return str(error).partition(":")[0]
    return [round(value, 4) for value in dx.flatten().tolist()]


print("backward at once:", gradient(lambda bn: None))
print("after training:", gradient(lambda bn: bn.train()(torch.tensor([[-300.0], [300.0]]))))
print("after fill_:", gradient(lambda bn: bn.running_var.fill_(2.0)))
PY

cat >expected <<'TEXT'
running variance: 1 seen as changed: False
backward at once: [1.0, 1.0]
running variance: 18001 seen as changed: False
after training: [0.0075, 0.0075]
running variance: 2 seen as changed: True
after fill_: one of the variables needed for gradient computation has been modified by an inplace operation
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
