#!/usr/bin/env bash
# mpi4py 4.1.2 with MPICH 5.0.2 (NumPy 2.4.6), five ranks on one machine.
#
# Seen: the sum of 1e8, 1, -1e8, 1 and 1 in float32, one number per rank, is 2 by Allreduce and 1 by Reduce. If the
# array that is reduced has more than 512 elements (2 KiB), Reduce says 2 as well, for each of them. With 0.1, 0.3,
# 0.8, 0.9 and 1.1 the two differ in the last bit.
#
# Why it surprises: Allreduce is explained as a Reduce whose result everyone gets, and what stands beside an element in
# its array is not expected to have a part in its sum. A rank that compares its log of a Reduce with the Allreduce that
# training used, or a model with one channel more, sees other bits. Three and four ranks do not show it.
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
for values in ((1e8, 1, -1e8, 1, 1), (0.1, 0.3, 0.8, 0.9, 1.1)):
    for count in (1, 512, 513, 10000):
        mine = np.full(count, values[ranks.rank], np.float32)
        everywhere, at_root = np.empty_like(mine), np.empty_like(mine)
        ranks.Allreduce(mine, everywhere)
        ranks.Reduce(mine, at_root)
        if ranks.rank == 0:
            text = [", ".join(f"{value:.9g}" for value in np.unique(result)) for result in (everywhere, at_root)]
            print(f"{count} times the sum of {values}: Allreduce {text[0]} Reduce {text[1]}", flush=True)
PY

cat >expected <<'TEXT'
1 times the sum of (100000000.0, 1, -100000000.0, 1, 1): Allreduce 2 Reduce 1
512 times the sum of (100000000.0, 1, -100000000.0, 1, 1): Allreduce 2 Reduce 1
513 times the sum of (100000000.0, 1, -100000000.0, 1, 1): Allreduce 2 Reduce 2
10000 times the sum of (100000000.0, 1, -100000000.0, 1, 1): Allreduce 2 Reduce 2
1 times the sum of (0.1, 0.3, 0.8, 0.9, 1.1): Allreduce 3.20000005 Reduce 3.20000029
512 times the sum of (0.1, 0.3, 0.8, 0.9, 1.1): Allreduce 3.20000005 Reduce 3.20000029
513 times the sum of (0.1, 0.3, 0.8, 0.9, 1.1): Allreduce 3.20000005 Reduce 3.20000005
10000 times the sum of (0.1, 0.3, 0.8, 0.9, 1.1): Allreduce 3.20000005 Reduce 3.20000005
TEXT

timeout 60 venv/bin/mpiexec -n 5 venv/bin/python -I seen.py | tee seen
diff expected seen
