#!/usr/bin/env bash
# PaddlePaddle 3.3.1, CPU.
#
# Seen: BatchNorm1D in training, given one value per channel, gives x back as it came. Not 0, which is what one value
# less its mean is; the scale of 2 and the bias of 1 are left out as well, and so are the statistics. Gradients are
# those of y = x: of y summed 1 for x, 0 for scale and bias. BatchNorm2D with one picture of one pixel does the same,
# with two pixels it normalises.
#
# Why it surprises: PyTorch and MLX refuse such a batch, Flax and Keras give the bias. Here the layer is switched off
# for it, bias and all, so that a value of 5 (or 5000) goes to the next layer where others send numbers of about 1; the
# last batch of an epoch, or pooling to one pixel with a batch of one, is enough, and the loss has one outlier without
# a message.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q paddlepaddle==3.3.1 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
import paddle


def constant(value):
    return paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(value))


for kind, shape in (
    (paddle.nn.BatchNorm1D, (1, 1)),
    (paddle.nn.BatchNorm2D, (1, 1, 1, 1)),
    (paddle.nn.BatchNorm2D, (1, 1, 1, 2)),
):
    layer = kind(1, weight_attr=constant(2.0), bias_attr=constant(1.0))
    x = paddle.to_tensor(5 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape), stop_gradient=False)
    y = layer(x)
    y.sum().backward()
    gradients = [float(g.grad.sum().abs().round(decimals=3)) for g in (x, layer.weight, layer.bias)]
    print(kind.__name__, shape, "y:", y.numpy().ravel().round(3).tolist(), f"mean: {layer._mean.item():g}", end=" ")
    print("gradients of x, scale, bias:", gradients)
PY

cat >expected <<'TEXT'
BatchNorm1D (1, 1) y: [5.0] mean: 0 gradients of x, scale, bias: [1.0, 0.0, 0.0]
BatchNorm2D (1, 1, 1, 1) y: [5.0] mean: 0 gradients of x, scale, bias: [1.0, 0.0, 0.0]
BatchNorm2D (1, 1, 1, 2) y: [-1.0, 3.0] mean: 0.55 gradients of x, scale, bias: [0.0, 0.0, 2.0]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
