"""Normalise uint8 pictures in place: the mean and deviation of a whole data set first, then every batch with them.

The pictures are NumPy arrays (N, H, W, 3), as Pillow or OpenCV give them. Channels last is axis=-1. The statistics of
the batches are merged without loss; out=x writes the result over its input; a memory pool hands the memory of one batch
on to the next. Everything is compared with float64 NumPy, and the exit status is 1 where it differs.
"""

import sys

import numpy as np
import pyopencl.array as cl_array
import pyopencl.tools as cl_tools

import oclbn.device
from oclbn import gpuarray
from oclbn.functional import batch_norm_infer, merge, statistics

BATCHES, BATCH, HEIGHT, WIDTH = 6, 8, 120, 160


def pictures(index):
    """A batch of pictures, (N, H, W, 3) of uint8: noise on a gradient, in reddish light. Yours come from files."""
    rng = np.random.default_rng(index)
    light = np.linspace(40, 160, WIDTH)[:, np.newaxis] * [1.2, 0.9, 0.7]
    noise = rng.normal(0, 20, (BATCH, HEIGHT, WIDTH, 3))
    return np.clip(light + noise, 0, 255).astype(np.uint8)


def main():
    queue = oclbn.device.queue_for()  # the default device; queue_for("gpu") and the like choose one
    print(queue.device.name.strip(), file=sys.stderr)
    pool = cl_tools.MemoryPool(cl_tools.ImmediateAllocator(queue))

    def to_device(images):
        """float32 on the device, in memory of the pool."""
        return cl_array.to_device(queue, images.astype(np.float32), allocator=pool)

    # First pass: one set of statistics for all pictures.
    whole = None
    for index in range(BATCHES):
        part = statistics(to_device(pictures(index)), axis=-1)
        whole = part if whole is None else merge(whole, part)
    mean = whole.mean
    var = gpuarray.to_gpu(whole.m2.get() / np.float32(whole.count), queue=queue)
    print(f"{BATCHES * BATCH} pictures, {whole.count:,} pixels")
    print("mean     ", *(f"{value:7.2f}" for value in mean.get()))
    print("deviation", *(f"{value:7.2f}" for value in np.sqrt(var.get())))

    # Second pass: normalise. epsilon=0, as no channel is constant.
    normalised = []
    for index in range(BATCHES):
        x = to_device(pictures(index))
        batch_norm_infer(x, mean=mean, var=var, epsilon=0.0, axis=-1, out=x)  # in place: x is normalised from here on
        # Here a network would go on with x. Hold x until its work is done: the pool hands out again what is let go of.
        normalised.append(x.get())  # waits for the device
    print("memory in the pool:", f"{pool.managed_bytes / x.nbytes:.0f} batches of {x.nbytes / 2**20:.1f} MB")

    # The same in float64, on the host.
    host = np.concatenate([pictures(index) for index in range(BATCHES)]).astype(np.float64)
    exact = (host - host.mean((0, 1, 2))) / host.std((0, 1, 2))
    difference = np.abs(np.concatenate(normalised) - exact).max()
    print(f"as in NumPy: {'yes' if difference < 1e-5 else f'no, off by {difference:.2g}'}")
    return 0 if difference < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
