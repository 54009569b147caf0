"""Batch normalization in float32 by several hands, from data on the host to results on the host.

oclbn and PyTorch are themselves. The others are formulas, carried out by NumPy, every operation rounded to float32:

    E[x²]-E[x]²  dlprimitives' kernels: each work-item adds its neighbouring values and their squares, groups add in a
                 halving tree, a second launch adds the groups likewise; y = x a + b with b = bias - mean a; backward
                 from sum(x dy) - mean sum(dy), and dx = x fx + dy fdy + b
    Welford      one value after the other in each lane; 512 lanes where a channel has more than 65,536 values, else
                 one; lanes merged in a tree by Chan's formula; y = (x - mean) gain + bias
    two-pass     sum(x), then sum((x - mean)^2), added pairwise as np.sum does; y as Welford's

A compiler that contracts products and sums into fma() rounds a little less often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from oclbn import gpuarray
from oclbn.functional import batch_norm_backward, batch_norm_train, moments
from oclbn.truth.hostile import Data

try:
    import torch
except ImportError:  # its column is then left out
    torch = None  # type: ignore[assignment,unused-ignore]

Float32s = NDArray[np.float32]
Results = dict[str, NDArray[Any]]  # "mean", "var", "dscale", "dbias": (C,); "y", "dx": (C, values of a channel)

OURS = "oclbn"
_ALONE = 65_536  # values that one lane of Welford's takes
_LANES = 512


@dataclass(frozen=True)
class Case:
    """Data, and where its channels lie."""

    name: str
    host: Data
    axis: int = 1
    epsilon: float = 1e-5

    def rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """(channels, values of a channel), each channel in one piece."""
        front = np.moveaxis(array, self.axis, 0)
        return np.ascontiguousarray(front).reshape(front.shape[0], -1)


Method = Callable[[Case], Results]


def ours(queue: cl.CommandQueue) -> Method:
    """oclbn on the device of this queue."""

    def results(case: Case) -> Results:
        h, axis = case.host, case.axis
        x, dy, scale, bias = (gpuarray.to_gpu(array, queue=queue) for array in (h.x, h.dy, h.scale, h.bias))
        count, mean, m2 = moments(x, axis=axis)
        y, *saved = batch_norm_train(x, scale, bias, None, None, epsilon=case.epsilon, axis=axis)
        found: Results = {"mean": mean.get(), "var": m2.get().astype(np.longdouble) / count, "y": case.rows(y.get())}
        dx, dscale, dbias = batch_norm_backward(x, dy, scale, *saved, axis=axis, out=y)
        return {**found, "dx": case.rows(dx.get()), "dscale": dscale.get(), "dbias": dbias.get()}

    return results


def pytorch(case: Case) -> Results:
    """torch.nn.functional.batch_norm on the processor and its autograd; channels on axis 1."""
    h = case.host
    x = torch.from_numpy(h.x).requires_grad_()
    scale, bias = (torch.from_numpy(array).requires_grad_() for array in (h.scale, h.bias))
    mean, var = torch.zeros(h.scale.size), torch.zeros(h.scale.size)
    y = torch.nn.functional.batch_norm(x, mean, var, scale, bias, True, 1.0, case.epsilon)
    y.backward(torch.from_numpy(h.dy))
    count = h.x.size // h.scale.size
    return {
        "mean": mean.numpy(),
        "var": var.numpy().astype(np.longdouble) * (count - 1) / count,  # the running one is that of the sample
        "y": case.rows(y.detach().numpy()),
        "dx": case.rows(x.grad.numpy()),
        "dscale": scale.grad.numpy(),
        "dbias": bias.grad.numpy(),
    }


def squares(case: Case) -> Results:
    """dlprimitives' formula: E[x^2] - E[x]^2."""
    x, dy = case.rows(case.host.x), case.rows(case.host.dy)
    count = np.float32(x.shape[1])
    mean = _dlprimitives_sum(x) / count
    var = _dlprimitives_sum(x * x) / count - mean * mean
    one, gain = np.float32(1), case.host.scale
    invstd = one / np.sqrt(var + np.float32(case.epsilon))
    a = invstd * gain
    b = -mean * invstd * gain + case.host.bias
    dbias = _dlprimitives_sum(dy)
    product = _dlprimitives_sum(x * dy) - mean * dbias
    slope = np.float32(-0.5) * gain * product * (invstd * invstd * invstd)
    share = one / count
    fx = np.float32(2) * slope * share
    shift = share * (-dbias * a - slope * np.float32(2) * mean)
    return {
        "mean": mean,
        "var": var,
        "y": x * a[:, None] + b[:, None],
        "dx": fx[:, None] * x + a[:, None] * dy + shift[:, None],
        "dscale": product * invstd,
        "dbias": dbias,
    }


def welford(case: Case) -> Results:
    x = case.rows(case.host.x)
    channels, count = x.shape
    lanes = math.gcd(count, _LANES) if count > _ALONE else 1
    mean, m2 = np.zeros((2, channels, lanes), np.float32)
    steps = np.ascontiguousarray(np.moveaxis(x.reshape(channels, lanes, -1), 2, 0))
    for k, value in enumerate(steps, start=1):
        delta = value - mean
        mean += delta / np.float32(k)
        m2 += delta * (value - mean)
    size = np.float32(len(steps))
    while lanes > 1:  # sets of equal size: half the distance, half of n
        delta = mean[:, 1::2] - mean[:, ::2]
        m2 = m2[:, ::2] + m2[:, 1::2] + delta * delta * (size / np.float32(2))
        mean = mean[:, ::2] + delta * np.float32(0.5)
        size, lanes = size * np.float32(2), lanes // 2
    return _normalized(case, x, mean[:, 0], m2[:, 0] / np.float32(count))


def two_pass(case: Case) -> Results:
    x = case.rows(case.host.x)
    count = np.float32(x.shape[1])
    mean = np.sum(x, axis=1) / count
    centred = x - mean[:, None]
    return _normalized(case, x, mean, np.sum(centred * centred, axis=1) / count)


def methods(queues: list[cl.CommandQueue]) -> dict[str, Method]:
    """By name: oclbn ("oclbn", "oclbn 1" and so on, a queue each), PyTorch where it is installed, the formulas."""
    found: dict[str, Method] = {f"{OURS} {i}" if i else OURS: ours(queue) for i, queue in enumerate(queues)}
    if torch is not None:
        found["PyTorch"] = pytorch
    return {**found, "E[x²]-E[x]²": squares, "Welford": welford, "two-pass": two_pass}


def torch_version() -> str | None:
    return None if torch is None else str(torch.__version__)


def plain(number: float) -> str:
    """100 as it is, 1e4 as a power."""
    return f"{number:g}" if 1 <= number < 1e3 else f"{number:.0e}".replace("e+0", "e").replace("e+", "e")


def _normalized(case: Case, x: Float32s, mean: Float32s, var: Float32s) -> Results:
    invstd = np.float32(1) / np.sqrt(var + np.float32(case.epsilon))
    gain = invstd * case.host.scale
    y = (x - mean[:, None]) * gain[:, None] + case.host.bias[:, None]
    return {"mean": mean, "var": var, "y": y}


def _dlprimitives_sum(terms: Float32s) -> Float32s:
    """Sums of rows in the order of bn_sums.cl: work-items, then the tree of a group, then that of the groups."""
    channels, count = terms.shape
    groups = 1
    items = next((size for size in (256, 128) if count >= size), 64)
    if (wanted := -(-count // 256)) >= 64:
        groups = next((size for size in (256, 128) if wanted >= size), 64)
    each = -(-count // (items * groups))
    padded = np.zeros((channels, items * groups * each), np.float32)
    padded[:, :count] = terms
    sums = np.zeros((channels, items * groups), np.float32)
    for value in np.ascontiguousarray(np.moveaxis(padded.reshape(channels, -1, each), 2, 0)):
        sums += value
    return _tree(_tree(sums.reshape(channels, groups, items)))


def _tree(sums: Float32s) -> Float32s:
    while (half := sums.shape[-1] // 2) > 0:
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]
