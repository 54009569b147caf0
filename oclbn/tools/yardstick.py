"""The yardstick of speed: a kernel that copies and does nothing else."""

from __future__ import annotations

from typing import Any

from pyopencl.array import Array

from oclbn.call import arguments, order
from oclbn.call.order import Order
from oclbn.call.results import queue_of
from oclbn.device import limits
from oclbn.plan.words import Build
from oclbn.program import building

_COPY_GROUPS = 64  # per compute unit: enough to share the work evenly, few enough to cost nothing


def plain_copy(x: Array, y: Array, /, *, stream: bool = False) -> None:
    """y = x by a kernel that does nothing else: the yardstick of oclbn.tools.bench.benchmark.

    x, y: contiguous float32 arrays of equal size that start their buffers. stream: write past the cache, where the
    compiler can.
    """
    arguments.flat({"x": x, "y": y})
    queue = queue_of(x)
    facts = limits(queue.device)
    lanes, vec = (1, 8) if facts.kind == "cpu" else (min(256, facts.max_group), 1)
    piece = max(lanes * vec, x.size // (facts.compute_units * _COPY_GROUPS) // (lanes * vec) * (lanes * vec))
    build = Build("copy.cl", (("DOUBLE", 0), ("LANES", lanes), ("STREAM", int(stream)), ("VEC", vec)))
    kernel = building.kernel(queue.context, build, "copy")
    memory: tuple[Any, ...] = (x.base_data, y.base_data)
    kernel.set_args(*memory, x.size, piece)
    waiting, size = Order(queue, (x, y)), -(-x.size // piece) * lanes
    waiting.note(order.enqueue("copy", queue, kernel, (size,), (lanes,), waiting.events), (y,))
