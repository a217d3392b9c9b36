"""Convolution in the frequency domain: `analysis` makes spectra, `synthesis` multiplies them and makes results of the sums.

Overlap-save: a tile of S cells, of which neighbours share all but S - span + 1, gives that many outputs; span is the reach of the
taps. For each frequency f the channels are summed up,

    sums[g, a, b, f] = sum_m  p[g, a, m, f] * q[g, m, b, f]

forward and dI: a over filters, b over tiles, m over channels; dW: a over filters, b over channels, m over tiles. Terms are added in
the order of m.
"""

import numba

from ..jit import call, kernel


@kernel(parallel=True)
def parallel(run_jobs, count, cells, p, q, sums, bias, loops, failed, scratch, apply, numbers):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs` of either step.

    cells (groups, N, C, ...): what is analysed, or the output as (1, K, N, ...). p, q and sums are (rows, frequencies), bias (K,).
    `loops` as `fourier` takes them; failed (1,) becomes 1 where memory runs short. scratch (threads, cells): the cells of a job's
    rows, one to spare, and what transforms of several axes keep between them. `numbers` are three axes, then the fields of the
    step's own record. Arrays that a step does not need are empty.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, cells, p, q, sums, bias, loops, failed, scratch[thread], apply, numbers)
