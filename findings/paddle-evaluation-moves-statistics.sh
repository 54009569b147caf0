#!/usr/bin/env bash
# PaddlePaddle 3.3.1, CPU.
#
# Seen: BatchNorm1D(use_global_stats=False) moves its running statistics in evaluation: after eval(), under no_grad,
# each pass moves the mean on its way to that of the data it is shown (0, 2.5, 3.75 for batches of mean 5 and momentum
# 0.5). Without the argument evaluation leaves them alone.
#
# Why it surprises: the argument is explained as which statistics normalise, and normalising by those of the batch in
# evaluation is what it is given for; that the layer still learns after eval() is another thing. The statistics that
# training left are gone after a validation, are saved with the model, and evaluating twice gives two models. PyTorch's
# counterpart for it, a layer without running statistics, has none to move.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q paddlepaddle==3.3.1 numpy==2.4.6

cat >seen.py <<'PY'
import paddle

x = paddle.to_tensor([[4.0], [6.0]])
for given in (None, False):
    layer = paddle.nn.BatchNorm1D(1, momentum=0.5, use_global_stats=given)
    layer.eval()
    means = [layer._mean.item()]
    with paddle.no_grad():
        for _ in range(2):
            y = layer(x).numpy().ravel().round(3).tolist()
            means.append(round(layer._mean.item(), 3))
    print("use_global_stats:", given, "training:", layer.training, "y:", y, "running mean:", means)
PY

cat >expected <<'TEXT'
use_global_stats: None training: False y: [4.0, 6.0] running mean: [0.0, 0.0, 0.0]
use_global_stats: False training: False y: [-1.0, 1.0] running mean: [0.0, 2.5, 3.75]
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
