"""Every bit of what the kernels compute, in every form: written before a change that must not move any, and compared.

    python tests/bits.py --device SPEC write FILE
    python tests/bits.py --device SPEC compare FILE   # exit status 1 where a result has other bits

A file holds a digest per form and shape of tests/forms.py; it is worth something on one device and driver only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OCLBN_PROVE", "0")  # each form is compared here, and a refused one would be another

import click
import numpy as np
import pyopencl.array as cla
import pytest
from calls import all_bits, everything, put
from forms import CHAINED, FORMS, SHAPES, shrink

import oclbn.device
from oclbn.functional import batch_norm_backward, batch_norm_train, explain, merge, statistics
from oclbn.gpuarray import pack
from oclbn.truth.hostile import Offset, make
from oclbn.tuning import using


def digests(spec: str) -> Iterator[tuple[str, str]]:
    """Name and digest of each case."""
    queue = oclbn.device.queue_for(spec)
    dtypes = [np.float32, *([np.float64] if oclbn.device.limits(queue.device).fp64 else [])]
    narrow = queue.device.platform.name == "rusticl"
    for form in (pytest.param({}, id="as planned"), *FORMS):
        chosen: dict[str, Any] = dict(form.values[0])
        if narrow and chosen.get("vec", 0) > 4:
            chosen["vec"] = 2
        for shape, axis in (param.values for param in SHAPES):
            for dtype in dtypes if form.id in ("as planned", "serial") else dtypes[:1]:
                digest = hashlib.sha256()
                for maker in ({}, {"maker": Offset(1_000_003.0)}):
                    host = make(shape, axis, **maker, dtype=dtype)
                    with using(**chosen, **({} if form.id == "as planned" else {"chunk_bytes": 4096})):
                        digest.update(b"".join(everything(queue, host, axis)))
                        digest.update(b"".join(_more(queue, host, axis)))
                yield f"{form.id} | {shape} {axis} {np.dtype(dtype)}", digest.hexdigest()[:16]
    for param in CHAINED:
        shape, form = param.values
        with pytest.MonkeyPatch.context() as patch:
            shrink(queue, patch, compute_units=1)
            host = make(shape, 1, maker=Offset(1e4))
            more = {**form, "vec": 2} if narrow and form["vec"] > 4 else form
            with using(**{"variant": "resident", "lanes": 1, "stream": True, "chains": 1, "most_steps": 0, **more}):
                told = explain(put(queue, host.x), operation="train")
                told = told.replace("fused", "resident", 1)  # as the stored digests call it
                yield f"chains {shape} {told}", hashlib.sha256(b"".join(everything(queue, host, 1))).hexdigest()[:16]


def _more(queue: Any, host: Any, axis: int) -> Iterator[bytes]:
    """What test_functional.everything leaves out: absent arrays, gathering, counters, merging, packing, constants."""
    x, dy = put(queue, host.x), put(queue, host.dy)
    channels = host.scale.size
    entered, skipped = (cla.zeros(queue, channels, np.uint32) for _ in range(2))
    mean, var = put(queue, host.running_mean), put(queue, host.running_var)
    y, *saved = batch_norm_train(
        x, None, None, mean, var, axis=axis, factor=0.3, entered=entered, skipped=skipped, init_factor=0.7
    )
    yield from all_bits((y, *saved, mean, var, entered, skipped))
    into = {name: cla.zeros(queue, channels, host.x.dtype) + 1 for name in ("scale_grad", "bias_grad")}
    gathering = {**into, "grad_scale": 0.5, "grad_momentum": 0.25}
    yield from all_bits(batch_norm_backward(x, dy, None, *saved, axis=axis, **gathering))
    yield from all_bits(tuple(into.values()))
    constants = {"training": False, "epsilon": 1e-3, "axis": axis}
    yield from all_bits(batch_norm_backward(x, dy, None, mean, var, **constants, **gathering))
    yield from all_bits(tuple(into.values()))
    yield pack(x.transpose(tuple(range(x.ndim))[::-1])).get().tobytes()
    if host.x.shape[0] > 1 and axis != 0:
        parts = [np.ascontiguousarray(part) for part in (host.x[:1], host.x[1:])]
        merged = merge(*(statistics(put(queue, part), axis=axis) for part in parts))
        yield from all_bits((merged.mean, merged.mean_rest, merged.m2, merged.m2_rest))


@click.command(help=__doc__.partition("\n")[0])
@click.option("--device", default="pocl", show_default=True)
@click.argument("what", type=click.Choice(["write", "compare"]))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def main(device: str, what: str, file: Path) -> None:
    if what == "write":
        found = dict(digests(device))
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} digests in {file}")
        return
    wanted = json.loads(file.read_text())
    found = dict(digests(device))
    other = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
    for name in sorted(other):
        print(f"other bits: {name}" if name in wanted and name in found else f"only one has: {name}")
    print(f"{len(wanted) - len(other)} of {len(wanted)} are the same")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
