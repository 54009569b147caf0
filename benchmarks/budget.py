"""Where the time of backward along runs goes: the kernel with one of its parts left out, by the device's clock.

    python benchmarks/budget.py [--device SPEC] [--shape 32,64,7,7 --shape 8,256,7,7]

One core walks tensors that its own cache holds, so that neither memory nor another core is waited for. Each row is the
kernel without a part; what it saves is that part's share, as far as parts do not hide each other's time. Results
without a part are wrong, and nobody looks at them. Before them stand kernels that do nothing but read two tensors, or
read two and write one. Microseconds: the least of many runs; cycles per vector of 64 bytes at --ghz, which no driver
tells.

The parts are taken out of the kernels' text; where that has changed, the script says so and times nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import click

# Part: what is left out, as (file, text, what stands in its place).
PARTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "whole": (),
    "without the first pass": (
        ("walks/strip_sum.clh", "strip_many_sums(from, r, length SUMS(SUM_GIVEN));", ";"),
        ("walks/strip_sum.clh", "for (; r < r1; ++r) strip_one_sums", "for (; r < LEAST(r1, 0); ++r) strip_one_sums"),
    ),
    "without the second pass": (
        ("walks/runs_write.inc", "(&strip, 0, out->g.rows SUMMED", "(&strip, 0, LEAST(out->g.rows, 0) SUMMED"),
    ),
    "without levels": (("walks/strip_sum.clh", "        SUMS(CARRIED)\n        carried = 1;", ""),),
    "without gathering by channel": (
        ("walks/runs.clh", "sum[c] = channel_sum(table, c * g->columns, g->columns);", "sum[c] = ONE_AT(table, c);"),
    ),
    "with tables of one number": (
        (
            "walks/runs.clh",
            (
                "for (int c = 0; c < g->left; ++c)\n        for (int i = 0; i < g->columns; i += VEC) "
                "SAVE_AT(table, c * g->columns + i, (ACCV)(value[c]));"
            ),
            "for (int v = 0; v < strip_vectors(g->left * g->columns); ++v) table[v] = (ACCV)(value[0]);",
        ),
    ),
    "without the finish": (
        (
            "backward.cl",
            (
                "gradient_finish(&sums[u], &g, u, scale, scale_start, from.mean[u], SAVED_INVSTD, count, count_rest, "
                "&of_scale,\n                            &of_bias, &out.level[u], &out.gain[u], &out.tilt[u], "
                "&out.shift[u]);"
            ),
            "of_scale = of_bias = out.level[u] = out.gain[u] = out.tilt[u] = out.shift[u] = sums[u].gradient * 1e-3f;",
        ),
    ),
}
_FLOORS = """
typedef float16 V __attribute__((aligned(4)));
__kernel void both_read(__global const float *x, __global const float *dy, __global float *dx, const int n)
{
    float16 a = 0, b = 0;
    for (int i = 0; i < n; i += 16) {
        a += *(__global const V *)(x + i);
        b += *(__global const V *)(dy + i);
    }
    *(__global V *)dx = a + b;
}
__kernel void one_written(__global const float *x, __global const float *dy, __global float *dx, const int n)
{
    for (int i = 0; i < n; i += 16)
        *(__global V *)(dx + i) = *(__global const V *)(x + i) + *(__global const V *)(dy + i);
}
"""
_RUNS = 300


def changed(folder: Path, part: str) -> None:
    """Leave a part out of the kernels in a folder."""
    for file, text, instead in PARTS[part]:
        path = folder / file
        source = path.read_text(encoding="utf-8")
        if text not in source:
            raise click.ClickException(f"{part}: {file} no longer has {text!r}; change PARTS in {Path(__file__).name}")
        path.write_text(source.replace(text, instead), encoding="utf-8")


def child(spec: str | None, shapes: list[tuple[int, ...]], part: str) -> dict[str, dict[str, float]]:
    """By shape and kernel, the least seconds of many runs; "floors" is a part, too."""
    import numpy as np
    import pyopencl as cl
    import pyopencl.array as cla

    import oclbn.device
    from oclbn.call.order import recording
    from oclbn.functional import batch_norm_backward, batch_norm_train, bind

    own = oclbn.device.queue_for(spec)
    queue = cl.CommandQueue(own.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}

    def least(run: Any) -> float:
        times = []
        for _ in range(_RUNS):
            event = run()
            event.wait()
            times.append(event.profile.end - event.profile.start)
        return min(times) * 1e-9

    for shape in shapes:
        x, dy = (cla.to_device(queue, rng.standard_normal(shape, np.float32)) for _ in range(2))
        dx = cla.empty_like(x)
        if part == "floors":
            program = cl.Program(queue.context, _FLOORS).build()
            kernels = {name: cl.Kernel(program, name) for name in ("both_read", "one_written")}
            memory: tuple[Any, ...] = (x.base_data, dy.base_data, dx.base_data)
            for kernel in kernels.values():
                kernel.set_args(*memory, np.int32(x.size // 16 * 16))
            found[str(shape)] = {
                name: least(lambda kernel=kernel: cl.enqueue_nd_range_kernel(queue, kernel, (1,), (1,)))
                for name, kernel in kernels.items()
            }
            continue
        _, *saved = batch_norm_train(x)
        step = bind(batch_norm_backward, x, dy, None, *saved, out=dx)

        def launched(step: Any = step) -> Any:
            with recording() as launches:
                step()
            return launches[-1][1]

        found[str(shape)] = {part: least(launched)}
    return found


@click.command(help=__doc__)
@click.option("--device", "spec", help="As for `oclbn bench`; a processor's.")
@click.option("--shape", "shapes", multiple=True, default=("32,64,7,7", "8,256,7,7"), show_default=True)
@click.option("--ghz", type=float, help="The core's clock, for cycles.")
@click.option("--part", hidden=True)
def main(spec: str | None, shapes: tuple[str, ...], ghz: float | None, part: str | None) -> None:
    sizes = [tuple(map(int, shape.split(","))) for shape in shapes]
    if part:
        if part == "floors":
            click.echo(json.dumps(child(spec, sizes, part)))
            return
        from oclbn.program import sources

        with tempfile.TemporaryDirectory() as folder:
            kernels = Path(folder) / "kernels"
            shutil.copytree(sources.kernel_directory(), kernels)
            changed(kernels, part)
            with mock.patch.object(sources, "kernel_directory", return_value=kernels):
                click.echo(json.dumps(child(spec, sizes, part)))
        return
    rows: dict[str, dict[str, float]] = {}
    alone = {"POCL_MAX_PTHREAD_COUNT": "1", "OCLBN_PROVE": "0"}  # wrong results are meant to be timed
    for name in ("floors", *PARTS):
        command = [sys.executable, __file__, "--part", name]
        command += ["--device", spec] if spec else []
        command += [word for shape in shapes for word in ("--shape", shape)]
        done = subprocess.run(command, env=os.environ | alone, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        for shape, times in json.loads(done.stdout.splitlines()[-1]).items():
            rows.setdefault(shape, {}).update(times)
    for shape, times in rows.items():
        size = 1
        for side in json.loads(shape.replace("(", "[").replace(")", "]")):
            size *= side
        click.echo(f"{shape}: {size:,} elements, {3 * 4 * size / 1e6:.1f} MB in three tensors")
        for name, spent in times.items():
            cycles = f"{spent * ghz * 1e9 / (size / 16):8.1f} cycles a vector" if ghz else ""
            saved = f"{1e6 * (times['whole'] - spent):8.1f} us less" if name in PARTS and name != "whole" else " " * 16
            click.echo(f"  {name:30}{1e6 * spent:8.1f} us{saved}{cycles}")


if __name__ == "__main__":
    main()
