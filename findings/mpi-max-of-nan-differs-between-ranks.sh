#!/usr/bin/env bash
# mpi4py 4.1.2 with MPICH 5.0.2 (NumPy 2.4.6), two ranks on one machine.
#
# Seen: Allreduce with MPI.MAX (MIN alike) of 33 numbers, all NaN on rank 0 and all 1 on rank 1, gives an array that
# is NaN in one part and 1 in the other; Reduce to rank 0 gives 33 ones. Of two float32 numbers, NaN on the one rank
# and 1 on the other, the two ranks of one Allreduce get different answers. SUM gives NaN everywhere.
#
# Why it surprises: a maximum over ranks is how "has any rank gone bad?" or a gradient's largest element is asked, and
# that an Allreduce gives every rank the same is what the call is for: here one rank stops and the other waits for it.
# NumPy's maximum keeps NaN, its fmax drops it, both on every element; here the place in the array decides, which is
# what "a > b ? a : b" gives if a and b change places with the part of the array that a rank reduces.
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
for operation, name in ((MPI.MAX, "MAX"), (MPI.SUM, "SUM")):
    mine = np.full(33, np.nan if ranks.rank == 0 else 1.0)
    everywhere, at_root = np.empty(33), np.empty(33)
    ranks.Allreduce(mine, everywhere, operation)
    ranks.Reduce(mine, at_root, operation)
    if ranks.rank == 0:
        lost = not np.isnan(everywhere).all()
        print(name, "Allreduce: some NaN:", np.isnan(everywhere).any(), "some lost:", lost, end=" ")
        print("Reduce: NaN of 33:", np.isnan(at_root).sum())
    pair = np.array([np.nan, 1] if ranks.rank == 0 else [1, np.nan], np.float32)
    result = np.empty_like(pair)
    ranks.Allreduce(pair, result, operation)
    of_all = ranks.gather(result.tolist())
    if ranks.rank == 0:
        print(name, "Allreduce of a pair, rank 0:", of_all[0], "rank 1:", of_all[1])
PY

cat >expected <<'TEXT'
MAX Allreduce: some NaN: True some lost: True Reduce: NaN of 33: 0
MAX Allreduce of a pair, rank 0: [1.0, nan] rank 1: [nan, 1.0]
SUM Allreduce: some NaN: True some lost: False Reduce: NaN of 33: 33
SUM Allreduce of a pair, rank 0: [nan, nan] rank 1: [nan, nan]
TEXT

timeout 60 venv/bin/mpiexec -n 2 venv/bin/python -I seen.py | tee seen
diff expected seen
