#!/usr/bin/env bash
# opencv-python-headless 4.14.0.94 (CPU).
#
# Seen: cv2.dnn.readNetFromDarknet reads the weights of a [connected] layer with batch_normalize=1 in the order of a
# [convolutional] one: biases, scales, means, variances, weights. Darknet saves biases, weights, scales, means,
# variances (save_connected_weights in src/parser.c, alike in pjreddie/darknet f6afaab and AlexeyAB/darknet 59596d7), so
# that from Darknet's file parts of the weights become variances. Nothing is said; y is off by several units, and where
# a weight that is taken for a variance is negative, NaN. Without batch_normalize, where both orders are one, all is
# right.
#
# Why it surprises: the file has the right size either way, the layer is one that the importer knows, and the same
# option is read right on the layer beside it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q opencv-python-headless==4.14.0.94 numpy==2.4.6

cat >seen.py <<'PY'
import struct

import cv2
import numpy as np

rng = np.random.default_rng(1)
parts = {
    "biases": rng.normal(size=3),
    "scales": rng.uniform(0.5, 2, 3),
    "means": rng.normal(size=3),
    "variances": rng.uniform(0.5, 2, 3),
    "weights": rng.uniform(0.5, 2, (3, 4)),
}
parts = {name: part.astype(np.float32) for name, part in parts.items()}
x = rng.normal(size=4).astype(np.float32)


def seen(kind, options, order):
    with open("net.cfg", "w") as file:
        file.write(f"[net]\nwidth=1\nheight=1\nchannels=4\n\n[{kind}]\nactivation=linear\n{options}\n")
    with open("net.weights", "wb") as file:
        file.write(struct.pack("<3iQ", 0, 2, 5, 0))
        for name in order:
            file.write(parts[name].tobytes())
    net = cv2.dnn.readNetFromDarknet("net.cfg", "net.weights")
    net.setInput(x.reshape(1, 4, 1, 1))
    return net.forward().ravel()


plain = parts["weights"] @ x
normal = (plain - parts["means"]) / np.sqrt(parts["variances"] + 1e-6) * parts["scales"] + parts["biases"]
darknet = ("biases", "weights", "scales", "means", "variances")
convolution = ("biases", "scales", "means", "variances", "weights")
for kind, options, order, wanted in (
    ("connected", "output=3", ("biases", "weights"), plain + parts["biases"]),
    ("connected", "output=3\nbatch_normalize=1", darknet, normal),
    ("connected", "output=3\nbatch_normalize=1", convolution, normal),
    ("convolutional", "filters=3\nsize=1\nbatch_normalize=1", convolution, normal),
):
    right = np.allclose(seen(kind, options, order), wanted, atol=1e-5)
    print(f"[{kind}] of {', '.join(order)}: {'right' if right else 'wrong'}")
PY

cat >expected <<'TEXT'
[connected] of biases, weights: right
[connected] of biases, weights, scales, means, variances: wrong
[connected] of biases, scales, means, variances, weights: right
[convolutional] of biases, scales, means, variances, weights: right
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
