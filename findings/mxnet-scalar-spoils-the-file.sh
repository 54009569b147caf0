#!/usr/bin/env bash
# MXNet 1.9.1 with NumPy 1.23.5, CPU; NumPy asks for Python 3.11 or earlier.
#
# Seen: nd.array(3.0) has shape (), and nd.save writes it, its device and its value, without a word; nd.load takes an
# array without axes for one that was never given a shape, behind which nothing follows, and reads on in the middle of
# it. So no array of the file can be loaded, wherever the scalar stands. Under np semantics scalars are kept.
#
# Why it surprises: a step counter, a learning rate or a loss beside the weights is what a checkpoint has, saving raises
# nothing, and the weights are lost with it. nd.array([3.0]) loads, and so does anything that an operator has reduced,
# which has shape (1,).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q mxnet==1.9.1 numpy==1.23.5 requests==2.34.2 graphviz==0.8.4

cat >seen.py <<'PY'
import mxnet
from mxnet import nd

weight = nd.array([1.0, 2.0])


def seen(name, arrays):
    nd.save("arrays.params", arrays)
    try:
        loaded = nd.load("arrays.params")
        told = {key: array.asnumpy().tolist() for key, array in loaded.items()}
    except mxnet.MXNetError:
        told = "cannot be loaded"
    print(f"{name}: {told}")


print("shapes:", nd.array(3.0).shape, nd.array([3.0]).shape, weight.sum().shape)
seen("one element", {"step": nd.array([3.0]), "weight": weight})
seen("scalar first", {"step": nd.array(3.0), "weight": weight})
seen("scalar last", {"weight": weight, "step": nd.array(3.0)})
PY

cat >expected <<'TEXT'
shapes: () (1,) (1,)
one element: {'step': [3.0], 'weight': [1.0, 2.0]}
scalar first: cannot be loaded
scalar last: cannot be loaded
TEXT

venv/bin/python -I seen.py 2>errors | tee seen
diff expected seen
