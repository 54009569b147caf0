#!/usr/bin/env bash
# PyTorch 2.13.0, CPU.
#
# Seen: nn.GroupNorm of one and the same tensor gives other values if its memory format is channels_last. For float32
# of mean 1000 and standard deviation 1, 64 by 64 pixels, the largest error is above 100 (right values reach 5), for
# mean 100 about 0.05; of the contiguous tensor they are 0.0001 and 0.00001. BatchNorm2d and InstanceNorm2d are good in
# both formats.
#
# Why it surprises: channels_last is documented to be about memory and speed, `model.to(memory_format=...)` to be all
# it takes, and neither moves a value. Group norm takes the variance as E[x^2] - E[x]^2 in the one format, and in
# float32, and by deviations in the other, so that the numbers of a model change by a line that a guide to tuning
# recommends. Behind a convolution with a bias, a mean of ten deviations and more is nothing rare.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6

cat >seen.py <<'PY'
import torch

generator = torch.Generator().manual_seed(0)
layers = {
    "GroupNorm": torch.nn.GroupNorm(4, 8),
    "InstanceNorm2d": torch.nn.InstanceNorm2d(8),
    "BatchNorm2d": torch.nn.BatchNorm2d(8),
}
for mean, right, wrong in ((100, 0.002, 0.02), (1000, 0.02, 100)):
    x = torch.randn(2, 8, 64, 64, generator=generator) + mean
    other = x.to(memory_format=torch.channels_last)
    print("mean", mean, "same tensor:", torch.equal(x, other))
    for name, layer in layers.items():
        exact = layer.double()(x.double())
        layer.float()
        verdicts = []
        for form in (x, other):
            error = (layer(form) - exact).abs().max().item()
            verdicts.append(f"off by less than {right}" if error < right else f"off by more than {wrong}" if error > wrong else error)
        print(f"  {name}: contiguous {verdicts[0]}, channels_last {verdicts[1]}")
PY

cat >expected <<'TEXT'
mean 100 same tensor: True
  GroupNorm: contiguous off by less than 0.002, channels_last off by more than 0.02
  InstanceNorm2d: contiguous off by less than 0.002, channels_last off by less than 0.002
  BatchNorm2d: contiguous off by less than 0.002, channels_last off by less than 0.002
mean 1000 same tensor: True
  GroupNorm: contiguous off by less than 0.02, channels_last off by more than 100
  InstanceNorm2d: contiguous off by less than 0.02, channels_last off by less than 0.02
  BatchNorm2d: contiguous off by less than 0.02, channels_last off by less than 0.02
TEXT

venv/bin/python -I seen.py | tee seen
diff expected seen
