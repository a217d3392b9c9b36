"""Weights in the order in which a direct kernel reads them: blocks of filters, in a block tap by tap, its filters side by side.

    packed[group, block, t, p] = weight[group, block * size + p, t]      t over channels and taps

Where a block may be whole vectors, which are multiplied as such, places of filters that the last one of a group lacks hold zeros or
other weights. Else they are left as they are. A job is one block.
"""

import numba

from ..jit import address_of, call, kernel
from .microkernel import call_kernel

# Channels that are packed for all blocks, before the next.
SOME = 16
# What of a weight lies side by side in memory: nothing, all terms of a filter, the taps of each of its channels, filters; or its
# taps lie at places that are known.
NOTHING, TERMS, TAPS, FILTERS, PLACES = range(5)


@kernel
def jobs(first, last, weight, size, together, micro, fetch, lanes, packed):
    """Pack blocks `first` to `last` of a weight (groups, filters, channels, ...) of any strides; `packed` is flat.

    `together` tells what lies side by side, and `micro` is the address of the micro-kernel for it, which takes no more than `lanes`
    filters at once: `pack` for terms and taps, `pack_taps` for places, `short_rows` for filters, which then have one tap.
    `fetch` is the address of the one that fetches filters to come, or 0.
    """
    filters, channels = weight.shape[1], weight.shape[2]
    taps = weight.shape[3] * weight.shape[4] * weight.shape[5]
    blocks, cell = -(-filters // size), packed.itemsize
    # filters may lie near one another: what lies between those of a block serves the next one, if that comes soon
    some = channels if together == TERMS else SOME
    for c_first in range(0, channels, some):
        c_count = min(some, channels - c_first)
        for job in range(first, last):
            g, k_first = job // blocks, job % blocks * size
            count = min(size, filters - k_first)
            at = (job * channels + c_first) * taps * size
            if count < size and size % lanes == 0:  # what was left in memory may be denormal, and slow
                for t in range(c_count * taps):
                    packed[at + t * size + count : at + (t + 1) * size] = 0
            if together == NOTHING:
                for c in range(c_first, c_first + c_count):
                    for r0 in range(weight.shape[3]):
                        for r1 in range(weight.shape[4]):
                            for r2 in range(weight.shape[5]):
                                for p in range(count):
                                    packed[at + p] = weight[g, k_first + p, c, r0, r1, r2]
                                at += size
                continue
            for p in range((count - 1) // lanes * lanes, -1, -lanes):  # a piece may spill into the ones before it
                source = (
                    address_of(weight) + g * weight.strides[0] + (k_first + p) * weight.strides[1] + c_first * weight.strides[2]
                )
                target, rows = address_of(packed) + (at + p) * cell, min(lanes, count - p)
                if together == FILTERS:
                    call_kernel(micro, source, weight.strides[2], c_count, target, size * cell, rows)
                elif together == TERMS:
                    call_kernel(micro, source, weight.strides[1], rows, target, size * cell, channels * taps)
                elif together == PLACES:
                    # filters may lie near one another, and the next block's are read some channels later
                    ahead = rows * weight.strides[1]
                    call_kernel(micro, source, weight.strides[1], rows, target, size * cell, c_count, weight.strides[2], ahead)
                else:
                    for _ in range(c_count):
                        if fetch != 0:
                            call_kernel(fetch, source + rows * weight.strides[1], rows * weight.strides[1], 1, 0)
                        call_kernel(micro, source, weight.strides[1], rows, target, size * cell, taps)
                        source, target = source + weight.strides[2], target + taps * size * cell


@kernel(parallel=True)
def parallel(run_jobs, threads, count, weight, size, together, micro, fetch, lanes, packed):
    """Pack `count` blocks, an equal share on each thread; `run_jobs` is the address of `jobs`."""
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, weight, size, together, micro, fetch, lanes, packed)
