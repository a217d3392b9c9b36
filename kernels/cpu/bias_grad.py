"""dB: the sum of dy over images and positions.

    db[k] = sum_n sum_o  dy[n, k, o]

A job is one k; the sum over one image runs in the order that suits the machine's vectors, then over the images in turn.
"""

import numba

from ..helper import helper
from ..jit import call, kernel


@helper(fastmath={"reassoc"})
def sum_of(row):
    """sum_i row[i]."""
    total = row.dtype.type(0)
    for i in range(row.shape[0]):
        total += row[i]
    return total


@kernel
def jobs(first, last, dy, db):
    """Run jobs `first` to `last`; dy (N, K, positions), db (K,)."""
    for k in range(first, last):
        total = dy.dtype.type(0)
        for n in range(dy.shape[0]):
            total += sum_of(dy[n, k])
        db[k] = total


@kernel(parallel=True)
def parallel(run_jobs, threads, count, dy, db):
    """Run all jobs, an equal share on each thread; `run_jobs` is the address of `jobs`."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, dy, db)
