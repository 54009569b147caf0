#!/usr/bin/env bash
# mpi4py 4.1.2 with MPICH 5.0.2 (NumPy 2.4.6), two ranks on one machine.
#
# Seen: Allreduce of one array in C order and one in Fortran order, of the same shape, adds elements that do not
# belong together, and Bcast of an array in Fortran order fills arrays in C order with the elements in another order.
# bcast and allreduce in lower case, which pickle, are right.
#
# Why it surprises: arrays that are not dense (`x[:, ::2]`), of the other byte order, of other sizes or other types
# are each refused with an error; mpi4py sees the strides when it checks that. NumPy keeps Fortran order through
# arithmetic, and results of LAPACK, HDF5 and `.T` have it, so that two ranks that load their weights by different
# ways differ in nothing that can be printed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install -q mpi4py==4.1.2 mpich==5.0.2 numpy==2.4.6

cat >seen.py <<'PY'
import numpy as np
from mpi4py import MPI

ranks = MPI.COMM_WORLD
x = np.arange(6.0).reshape(2, 3)
mine = x if ranks.rank == 0 else np.asfortranarray(x)
total = np.empty((2, 3))
ranks.Allreduce(mine, total)
lower = ranks.allreduce(mine)
got = np.asfortranarray(x) if ranks.rank == 0 else np.empty((2, 3))
ranks.Bcast(got)
at_rank_1 = ranks.gather(got.tolist())
try:
    ranks.Allreduce(x[:, ::2], np.empty((2, 2)))
    refused = "no"
except BufferError as error:
    refused = str(error)
if ranks.rank == 0:
    print("2 x:", (2 * x).tolist())
    print("Allreduce:", total.tolist(), "allreduce:", lower.tolist())
    print("Bcast of x:", at_rank_1[1])
    print("x[:, ::2]:", refused)
PY

cat >expected <<'TEXT'
2 x: [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
Allreduce: [[0.0, 4.0, 3.0], [7.0, 6.0, 10.0]] allreduce: [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
Bcast of x: [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
x[:, ::2]: dlpack: buffer is not contiguous
TEXT

timeout 60 venv/bin/mpiexec -n 2 venv/bin/python -I seen.py | tee seen
diff expected seen
