"""Weights in the order in which a direct kernel reads them: blocks of filters, in a block tap by tap, its filters side by side.

    packed[group, block, t, p] = weight[group, block * size + p, t]      t over channels and taps

The places of filters that the last block of a group lacks are left as they are. A job is one block.
"""

import numba

from ..jit import address_of, call, kernel
from .microkernel import call_kernel

# Channels that are packed for all blocks, before the next.
SOME = 16


@kernel
def jobs(first, last, weight, size, transpose, lanes, packed):
    """Pack blocks `first` to `last` of a weight (groups, filters, channels, ...) of any strides; `packed` is flat.

    `transpose` is the address of the micro-kernel for weights whose terms lie side by side in memory, else 0; it takes no more
    than `lanes` filters at once.
    """
    filters, channels = weight.shape[1], weight.shape[2]
    taps = weight.shape[3] * weight.shape[4] * weight.shape[5]
    blocks = -(-filters // size)
    if transpose != 0:
        cell = packed.itemsize
        for job in range(first, last):
            g, k_first = job // blocks, job % blocks * size
            count = min(size, filters - k_first)
            block = packed[job * size * channels * taps :]
            for p in range((count - 1) // lanes * lanes, -1, -lanes):  # a piece may spill into the ones before it
                source = address_of(weight) + g * weight.strides[0] + (k_first + p) * weight.strides[1]
                target = address_of(block) + p * cell
                call_kernel(transpose, source, weight.strides[1], min(lanes, count - p), target, size * cell, channels * taps)
        return
    # filters lie near one another: what lies between those of a block serves the next one, if that comes soon
    for c_first in range(0, channels, SOME):
        for job in range(first, last):
            g, k_first = job // blocks, job % blocks * size
            count = min(size, filters - k_first)
            at = (job * channels + c_first) * taps * size
            for c in range(c_first, min(c_first + SOME, channels)):
                for r0 in range(weight.shape[3]):
                    for r1 in range(weight.shape[4]):
                        for r2 in range(weight.shape[5]):
                            for p in range(count):
                                packed[at + p] = weight[g, k_first + p, c, r0, r1, r2]
                            at += size


@kernel(parallel=True)
def parallel(run_jobs, threads, count, weight, size, transpose, lanes, packed):
    """Pack `count` blocks, an equal share on each thread; `run_jobs` is the address of `jobs`."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, weight, size, transpose, lanes, packed)
