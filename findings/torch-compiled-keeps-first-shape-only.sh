#!/usr/bin/env bash
# PyTorch 2.13.0, CPU; a C++ compiler has to be there.
#
# Seen: a compiled relu(batch_norm(x) + residual) gives its gradients again and again with retain_graph=True for the
# first shape that it is called with. With any other shape the first such call is a RuntimeError about donated buffers.
# The same shapes in a fresh process, each alone, work all of them.
#
# Why it surprises: what a function may do with its graph depends on what it was called with before. The second shape is
# compiled with sizes as variables, and only that version gives buffers of the forward pass away. A test with one shape
# passes; accumulating gradients or timing backward fails in the second layer of a network.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import sys

import torch


def layer(x, scale, bias, residual):
    y = torch.nn.functional.batch_norm(x, None, None, scale, bias, True)
    return torch.relu(y + residual)


compiled = torch.compile(layer, fullgraph=True)
shapes = [(4, 3, 8, 8), (4, 5, 6, 6), (2, 7, 4, 4)]
for shape in shapes if len(sys.argv) == 1 else [shapes[int(sys.argv[1])]]:
    x, residual = (torch.randn(shape, requires_grad=True) for _ in range(2))
    scale, bias = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    y = compiled(x, scale, bias, residual)
    for _ in range(2):
        try:
            torch.autograd.grad(y, (x, scale, bias, residual), torch.ones(shape), retain_graph=True)
            print(shape, "gradients")
        except RuntimeError as error:
            print(shape, str(error).partition(" which")[0])
PY

cat >expected <<'TEXT'
(4, 3, 8, 8) gradients
(4, 3, 8, 8) gradients
(4, 5, 6, 6) This backward function was compiled with non-empty donated buffers
(4, 5, 6, 6) This backward function was compiled with non-empty donated buffers
(2, 7, 4, 4) This backward function was compiled with non-empty donated buffers
(2, 7, 4, 4) This backward function was compiled with non-empty donated buffers
alone:
(4, 5, 6, 6) gradients
(4, 5, 6, 6) gradients
TEXT

export TORCHINDUCTOR_CACHE_DIR="$folder/cache"
{
    venv/bin/python -I seen.py
    echo alone:
    venv/bin/python -I seen.py 1
} | tee seen
diff expected seen
