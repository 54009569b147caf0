"""Valid calls of every operation, to be spoiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla

from oclbn import functional
from oclbn.truth.hostile import Data, make

SHAPE, AXIS = (6, 4, 5), 1
WRITTEN = {
    "train": ("out", "skipped"),
    "infer": ("out",),
    "backward": ("out", "scale_grad", "bias_grad"),
    "moments": (),
    "double_backward": ("out", "gdy"),
}
PER_CHANNEL = [
    ("train", "scale"),
    ("train", "bias"),
    ("train", "running_mean"),
    ("train", "running_var"),
    ("train", "skipped"),
    ("infer", "scale"),
    ("infer", "bias"),
    ("infer", "mean"),
    ("infer", "var"),
    ("backward", "scale"),
    ("backward", "save_mean"),
    ("backward", "save_invstd"),
    ("backward", "scale_grad"),
    ("backward", "bias_grad"),
    ("double_backward", "scale"),
    ("double_backward", "save_mean"),
    ("double_backward", "save_invstd"),
    ("double_backward", "ddscale"),
    ("double_backward", "ddbias"),
]
TENSORS = [
    ("train", "x"),
    ("train", "out"),
    ("infer", "x"),
    ("infer", "out"),
    ("backward", "x"),
    ("backward", "dy"),
    ("backward", "out"),
    ("moments", "x"),
    ("double_backward", "x"),
    ("double_backward", "dy"),
    ("double_backward", "ddx"),
    ("double_backward", "out"),
    ("double_backward", "gdy"),
]
CALLS = {
    "train": (functional.batch_norm_train, ("x", "scale", "bias", "running_mean", "running_var")),
    "infer": (functional.batch_norm_infer, ("x", "scale", "bias", "mean", "var")),
    "backward": (functional.batch_norm_backward, ("x", "dy", "scale", "save_mean", "save_invstd")),
    "moments": (functional.moments, ("x",)),
    "double_backward": (
        functional.batch_norm_double_backward,
        ("x", "dy", "scale", "save_mean", "save_invstd"),
    ),
}
BY_KEYWORD = {"double_backward": ("ddx", "ddscale", "ddbias")}
EVERY = TENSORS + PER_CHANNEL


def valid(queue: cl.CommandQueue, call: str, shape: tuple[int, ...] = SHAPE, axis: int = AXIS) -> dict[str, Any]:
    """Arguments that the call accepts, by name; what it would write is given too, to see that it stays untouched."""
    host = make(shape, axis)
    arrays = {
        "x": host.x,
        "dy": host.dy,
        "scale": host.scale,
        "bias": host.bias,
        "running_mean": host.running_mean,
        "running_var": host.running_var,
        "mean": host.running_mean,
        "var": host.running_var,
        "save_mean": host.running_mean,
        "save_invstd": host.running_var,
        "ddx": host.dy[::-1].copy(),
        "ddscale": host.bias,
        "ddbias": host.scale,
        "out": np.full(shape, 7.0, np.float32),
        "gdy": np.full(shape, 9.0, np.float32),
        "skipped": np.arange(shape[axis], dtype=np.uint32),
        "scale_grad": np.full(shape[axis], 5.0, np.float32),
        "bias_grad": np.full(shape[axis], 3.0, np.float32),
    }
    wanted = [*CALLS[call][1], *BY_KEYWORD.get(call, ()), *WRITTEN[call]]
    return {name: cla.to_device(queue, arrays[name]) for name in wanted}


def state(arguments: dict[str, Any]) -> dict[str, bytes]:
    """The bits of every buffer that the arguments lie in."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, cla.Array) and value.base_data is not None:
            whole = np.empty(value.base_data.size, np.uint8)
            cl.enqueue_copy(value.queue or cl.CommandQueue(value.context), whole, value.base_data)
            found[name] = whole.tobytes()
    return found


def arrays_of(queue: cl.CommandQueue, host: Data) -> tuple[cla.Array, ...]:
    names = ("x", "dy", "scale", "bias", "running_mean", "running_var")
    return tuple(cla.to_device(queue, getattr(host, name)) for name in names)
