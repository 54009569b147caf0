"""kernels.cl on a device, called with arrays; matrix products by CLBlast where pyclblast is installed."""

from pathlib import Path

import numpy as np
import pyopencl as cl
import pyopencl.array as cl_array
import pyopencl.tools as cl_tools

try:
    import pyclblast
except ImportError:
    pyclblast = None

TILE = 4  # as in kernels.cl: rows and columns that a work-item multiplies


class Kernels:
    """The kernels on the device of a queue, which is in order, and arrays for them from a pool of memory."""

    def __init__(self, queue, clblast=pyclblast is not None):
        self.queue, self.clblast = queue, clblast
        text = Path(__file__).with_suffix(".cl").read_text(encoding="utf-8")
        program = cl.Program(queue.context, text).build()
        self._kernels = {kernel.function_name: kernel for kernel in program.all_kernels()}
        self._pool = cl_tools.MemoryPool(cl_tools.ImmediateAllocator(queue))

    def put(self, host):
        """A NumPy array's copy on the device."""
        return cl_array.to_device(self.queue, np.ascontiguousarray(host), allocator=self._pool)

    def empty(self, *shape):
        """A new array of float32; its elements are whatever the memory held."""
        return cl_array.empty(self.queue, shape, np.float32, allocator=self._pool)

    def run(self, name, grid, *given):
        """A kernel with arrays, whole numbers and floats; the driver chooses the size of work-groups."""
        kinds = {int: np.int32, float: np.float32}
        arguments = [kinds[type(one)](one) if type(one) in kinds else one.data for one in given]
        self._kernels[name](self.queue, grid, None, *arguments)

    def matmul(self, a, b, into=None, *, transpose_a=False, transpose_b=False, beta=0.0):
        """a b + beta into, written over `into`, or to a new array; two axes each, transposed as it is asked for."""
        m, k = a.shape[::-1] if transpose_a else a.shape
        n = b.shape[0 if transpose_b else 1]
        c = self.empty(m, n) if into is None else into
        if self.clblast:
            pyclblast.gemm(self.queue, m, n, k, a, b, c, a.shape[1], b.shape[1], n, 1.0, beta, transpose_a, transpose_b)
        else:
            a_steps = (1, m) if transpose_a else (k, 1)  # from row to row, from column to column
            b_steps = (1, k) if transpose_b else (n, 1)
            self.run("matmul", (-(-n // TILE), -(-m // TILE)), m, n, k, a, *a_steps, b, *b_steps, beta, c)
        return c
