"""Errors of oclbn and of PyTorch's CPU kernels against float64, on data whose mean is large beside its spread.

    python -m pip install torch==2.13.0 && python benchmarks/exactness_against_torch.py [DEVICE]

Prints, for each ratio of mean to standard deviation, the largest error of y and of dx relative to the largest value of
the float64 reference, and how many times closer oclbn is.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import oclbn.device
from oclbn import gpuarray, reference
from oclbn.functional import batch_norm_backward, batch_norm_train

SHAPE = (32, 64, 28, 28)


def largest(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest error, relative to the largest value."""
    return float(np.abs(got.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max())


def main() -> None:
    queue = oclbn.device.queue_for(sys.argv[1] if len(sys.argv) > 1 else None)
    print(
        f"{queue.device.name.strip()}, {queue.device.platform.version.strip()[:24]}, torch {torch.__version__}, {SHAPE}"
    )
    print(f"{'mean/std':>9} {'result':>8} {'torch':>10} {'oclbn':>10} {'closer':>8}")
    for ratio in (0, 1, 1e2, 1e4, 1e6):
        rng = np.random.default_rng(1)
        x = (rng.standard_normal(SHAPE) + ratio).astype(np.float32)
        dy = rng.standard_normal(SHAPE).astype(np.float32)
        scale, bias = rng.standard_normal((2, SHAPE[1])).astype(np.float32)
        wanted = reference.train(x, scale, bias)
        wanted_dx = reference.backward(x, dy, scale, wanted.mean, wanted.invstd)[0]

        leaf = torch.from_numpy(x.copy()).requires_grad_()
        y = torch.nn.functional.batch_norm(leaf, None, None, torch.from_numpy(scale), torch.from_numpy(bias), True)
        y.backward(torch.from_numpy(dy))
        theirs = {"y": y.detach().numpy(), "dx": leaf.grad.numpy()}

        device = [gpuarray.to_gpu(array, queue=queue) for array in (x, dy, scale, bias)]
        out, mean, invstd = batch_norm_train(device[0], device[2], device[3], None, None)
        dx = batch_norm_backward(device[0], device[1], device[2], mean, invstd)[0]
        ours = {"y": out.get(), "dx": dx.get()}
        for name, reference_value in (("y", wanted.y), ("dx", wanted_dx)):
            torch_error, our_error = largest(theirs[name], reference_value), largest(ours[name], reference_value)
            print(f"{ratio:9.0e} {name:>8} {torch_error:10.1e} {our_error:10.1e} {torch_error / our_error:7.1f}x")


if __name__ == "__main__":
    main()
