"""What tests do with a device in a process of its own: `python apart.py ACTION P:D [...]` prints a line of JSON."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from calls import everything
from conftest import hasten_the_kernel_cache
from data import FEW_SHAPES
from pyopencl.tools import ImmediateAllocator, MemoryPool

import oclbn
from oclbn import device
from oclbn.errors import ContextError
from oclbn.functional import batch_norm_backward, batch_norm_train, bind, moments, recording
from oclbn.truth.hostile import make

EACH_WALK = slice(1, 5)  # of FEW_SHAPES: rows, rows in slices, runs and columns


def digests(queue: cl.CommandQueue, some: slice = slice(None)) -> list[str]:
    """A hash of all results of all operations, by shape of FEW_SHAPES."""
    told = []
    for row in FEW_SHAPES[some]:
        shape, axis = row.values
        told.append(hashlib.sha256(b"".join(everything(queue, make(shape, axis), axis))).hexdigest())
    return told


def work(spec: str, some: slice = slice(None)) -> list[str]:
    """For a process pool: the hashes of a device."""
    queue = device.queue_for(spec)
    hasten_the_kernel_cache()
    return digests(queue, some)


def anew(spec: str) -> list[str]:
    """For a process that compiles everything: the hashes of a shape for each walk."""
    return work(spec, EACH_WALK)


def forked_late(spec: str) -> str:
    """What a child says that is forked after the device was used."""
    queue = device.queue_for(spec)
    x = cla.zeros(queue, (4, 3), np.float32)
    batch_norm_train(x, None, None, None, None)
    bn = oclbn.BatchNorm(3, queue=queue)
    queue.finish()

    def child() -> str:
        said = []
        for call in (
            lambda: batch_norm_train(x, None, None, None, None),
            lambda: bn(x),
            lambda: device.queue_for(spec),
            lambda: oclbn.gpuarray.zeros((2, 3), queue=queue),
        ):
            try:
                call()
                said.append("worked")
            except ContextError as error:
                said.append(str(error))
        return "\n".join(said)

    return _in_child(child)


def forked_early(spec: str) -> list[str]:
    """What a child finds that is forked before any device was used."""
    found: list[str] = json.loads(_in_child(lambda: json.dumps(work(spec))))
    return found


def _in_child(what: Any) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, what().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def growth(spec: str, before: int, steps: int, kind: str) -> int:
    """Bytes by which the process grows over so many training steps with evaluation, all arrays dropped each time.

    before: steps that it makes first.
    """
    info = device.select(spec)
    context = cl.Context([info.device])
    hasten_the_kernel_cache()
    free = cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE
    queue = cl.CommandQueue(context, properties=free if kind == "out of order" else 0)
    allocator = MemoryPool(ImmediateAllocator(queue)) if kind == "pool" else None
    bn = oclbn.BatchNorm2D(3, queue=queue)
    hosts = [np.random.default_rng(n).standard_normal((2 + n, 3, 2, 5)).astype(np.float32) for n in range(4)]
    kept = [cla.to_device(queue, host, allocator=allocator) for host in hosts]

    leaked: list[object] = []
    bound: list[list[Callable[[], object]]] = [[] for _ in kept]
    for x, calls in zip(kept, bound, strict=True):
        if kind == "bound":
            train = bind(batch_norm_train, x, bn.scale, bn.bias, bn.mean, bn.var)
            calls += [train, bind(batch_norm_backward, x, x, bn.scale, *train()[1:]), bind(moments, x)]

    def step(number: int) -> None:
        x = kept[number % len(kept)]
        for call in bound[number % len(kept)]:
            call()
        if kind != "bound":
            bn.trainMode()
            bn(x)
            bn.backward(x)
            bn.updateParams(-1e-3)
            bn.evalMode()
            bn(x)
        if number % 64 == 0:  # drivers keep what is enqueued until somebody waits
            queue.finish()

    def steps_of(first: int, count: int) -> None:
        for number in range(first, first + count):
            if kind in ("recording", "a leak"):
                with recording() as launches:
                    step(number)
                if kind == "a leak":
                    leaked.append(launches)
            else:
                step(number)
            if kind == "threads" and number % 50 == 0:
                thread = threading.Thread(target=step, args=(number,))
                thread.start()
                thread.join()
        queue.finish()
        gc.collect()

    steps_of(0, before)
    resident = _resident()
    steps_of(before, steps)
    events = max(len(array.events) for array in (*kept, bn.mean, bn.var, bn.vars["scale"].data))
    assert events <= 64, f"an array waits for {events} events"
    return _resident() - resident


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    action, spec, *more = sys.argv[1:]
    if action == "growth":
        print(json.dumps(growth(spec, int(more[0]), int(more[1]), more[2])))
    else:
        actions = {"digests": work, "anew": anew, "forked late": forked_late, "forked early": forked_early}
        print(json.dumps(actions[action](spec)))


if __name__ == "__main__":
    main()
