#!/usr/bin/env bash
# MXNet 1.9.1 with NumPy 1.23.5, CPU; NumPy asks for Python 3.11 or earlier.
#
# Seen: gluon.nn.BatchNorm moves its running statistics in the backward pass. A training pass forward, recorded or in
# train_mode, normalises by the batch, and the running mean stays 0; backward makes it 2.5 (momentum 0.5, batches of
# mean 5), and a second backward of the same graph, with retain_graph, 3.75. Hybridized blocks do the same.
#
# Why it surprises: everywhere else the training pass forward is what moves them. Passing data through in train_mode,
# to set the statistics anew after averaging weights or for another domain, changes nothing here; two losses that share
# a forward pass count a batch twice, and a batch whose loss is thrown away not at all. What forward computes is the
# same.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q mxnet==1.9.1 numpy==1.23.5 requests==2.34.2 graphviz==0.8.4

cat >seen.py <<'PY'
import mxnet
from mxnet import autograd, gluon, nd

x = nd.array([[4.0], [6.0]])
x.attach_grad()
for hybrid in (False, True):
    layer = gluon.nn.BatchNorm(momentum=0.5)
    layer.initialize()
    if hybrid:
        layer.hybridize()

    def seen(name, y, layer=layer, hybrid=hybrid):
        nd.waitall()
        mean = layer.running_mean.data().asscalar()
        print("hybrid:", hybrid, f"{name}:", "y", y.asnumpy().ravel().round(3).tolist(), f"running mean {mean:g}")

    with autograd.train_mode():
        y = layer(x)
    seen("train_mode", y)
    with autograd.record():
        y = layer(x)
    seen("recorded", y)
    y.backward(retain_graph=True)
    seen("backward", y)
    y.backward()
    seen("backward again", y)
PY

cat >expected <<'TEXT'
hybrid: False train_mode: y [-1.0, 1.0] running mean 0
hybrid: False recorded: y [-1.0, 1.0] running mean 0
hybrid: False backward: y [-1.0, 1.0] running mean 2.5
hybrid: False backward again: y [-1.0, 1.0] running mean 3.75
hybrid: True train_mode: y [-1.0, 1.0] running mean 0
hybrid: True recorded: y [-1.0, 1.0] running mean 0
hybrid: True backward: y [-1.0, 1.0] running mean 2.5
hybrid: True backward again: y [-1.0, 1.0] running mean 3.75
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
