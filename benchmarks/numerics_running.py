"""Running statistics after many batches, against the same averages in np.longdouble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
from numerics_errors import EPS, Long
from numerics_methods import plain, torch

from oclbn import gpuarray
from oclbn.functional import batch_norm_train
from oclbn.modules.averaging import averaging_factor
from oclbn.truth.bounds import Bound

SHAPE = (8, 16, 5, 5)


@dataclass(frozen=True)
class Averages:
    """The largest errors over the channels, in units of eps (|mean| + std) and eps var."""

    name: str
    error: dict[tuple[str, str], float]  # (method, "mean" or "var")
    of_bound: dict[str, float]  # oclbn's, of the bound that oclbn.truth.bounds adds up over the batches


def study(queue: cl.CommandQueue, ratio: float, least: float, batches: int) -> Averages:
    """Batches of SHAPE with channels of mean/std +-ratio; batch n enters with max(1 / n, least)."""
    rng = np.random.default_rng(int(ratio))
    channels = SHAPE[1]
    centre = (ratio + rng.uniform(size=(channels, 1, 1))) * np.where(np.arange(channels) % 2, -1.0, 1.0)[:, None, None]
    on_device = [gpuarray.zeros(channels, queue=queue), gpuarray.ones(channels, queue=queue)]
    on_host = [] if torch is None else [torch.zeros(channels), torch.ones(channels)]
    mean, var = np.zeros(channels, Long), np.ones(channels, Long)
    room = {"mean": np.zeros(channels), "var": np.zeros(channels)}
    for n in range(1, batches + 1):
        factor = averaging_factor(n, 1.0, least)
        x = (rng.standard_normal(SHAPE) + centre).astype(np.float32)
        batch_norm_train(gpuarray.to_gpu(x, queue=queue), None, None, *on_device, factor=factor)
        if on_host:
            torch.nn.functional.batch_norm(torch.from_numpy(x), *on_host, training=True, momentum=factor)
        rows = np.moveaxis(x, 1, 0).reshape(channels, -1).astype(Long)
        new = rows.mean(axis=1)
        new += (rows - new[:, None]).mean(axis=1)
        sample = ((rows - new[:, None]) ** 2).sum(axis=1) / (rows.shape[1] - 1)
        bound = Bound(x, new, 1 / np.sqrt(sample), None, None, axis=1, dtype=np.float32)
        room["mean"] = (1 - factor) * room["mean"] + bound.running_mean(mean, factor)
        room["var"] = (1 - factor) * room["var"] + bound.running_var(var, sample, factor)
        mean = (1 - Long(factor)) * mean + Long(factor) * new
        var = (1 - Long(factor)) * var + Long(factor) * sample
    right: dict[str, Any] = {"mean": mean, "var": var}
    scale = {"mean": np.abs(mean) + np.sqrt(var), "var": var}
    found = {"oclbn": [array.get() for array in on_device]}
    if on_host:
        found["PyTorch"] = [array.numpy() for array in on_host]
    error, of_bound = {}, {}
    for method, statistics in found.items():
        for name, values in zip(right, statistics, strict=True):
            off = np.abs(values - right[name])
            error[method, name] = float(np.max(off / (EPS * scale[name])))
            if method == "oclbn":
                of_bound[name] = float(np.max(off / room[name]))
    weight = f"{least:g}" if least else "1/n"
    return Averages(f"mean/std {plain(ratio)}, batch n weighs {weight}", error, of_bound)
