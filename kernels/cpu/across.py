"""Convolution and dI of small planes of one filter each: as many planes side by side as a vector has lanes.

    out[n, c, o] = bias[c] + sum_t weight[c, t] * x[n, c, position of o and t]

Rows of seven or fourteen cells leave most of a vector empty, and most of many taps lie outside of the plane. So planes are
transposed in cache: a vector holds one cell of some channels, a weight is a vector too, and only what lies inside is multiplied.

A job is one (block of channels, image); those of a block share the transposed weights. Arrays are contiguous.
"""

import numba

from ..jit import address_of, call, kernel
from .epilogue import run_at, stores
from .microkernel import call_kernel

# Places in the array of micro-kernels: `pack` to whole vectors and to cells, `fetch` where planes lie in memory, then for each part
# of a row `across`, and the bytes from the first cell and the first result to the part's.
PACK, UNPACK, FETCH, FIRST = range(4)


@kernel
def jobs(first, last, x, weight, bias, out, table, micro, scratch, lanes, rows, apply):
    """Run jobs `first` to `last`, with one row of `scratch`; the rest as in `parallel`."""
    size = x.itemsize
    images, channels, taps = x.shape[0], x.shape[1], weight.shape[1]
    cells, outputs = x.shape[2] * x.shape[3] * x.shape[4], out.shape[2] * out.shape[3] * out.shape[4]
    vector = lanes * size
    source = address_of(scratch)
    results = source + cells * vector
    weights = results + outputs * vector
    biases = weights + taps * vector
    packed = -1
    for job in range(first, last):
        block, n = job // images, job % images
        c = block * lanes
        count = min(lanes, channels - c)
        if packed != block:
            call_kernel(micro[PACK], address_of(weight) + c * taps * size, taps * size, count, weights, vector, taps)
            call_kernel(micro[PACK], address_of(bias) + c * size, size, count, biases, vector, 1)
            packed = block
        begin = address_of(x) + (n * channels + c) * cells * size
        target = address_of(out) + (n * channels + c) * outputs * size
        if micro[FETCH] != 0:
            coming = (job + 1) % images * channels + (job + 1) // images * lanes
            call_kernel(micro[FETCH], address_of(x) + coming * cells * size, lanes * cells * size, 1, 0)
            call_kernel(micro[FETCH], target, count * outputs * size, 1, 0)
        call_kernel(micro[PACK], begin, cells * size, count, source, vector, cells)
        for i in range(FIRST, micro.size, 3):
            call_kernel(
                micro[i], source + micro[i + 1], results + micro[i + 2], weights, biases, address_of(table), rows,
                out.shape[4] * vector, 1, 0, 0, 0, 0,
            )  # fmt: skip
        place = biases + vector if stores(apply) else target
        for o in range(0, outputs, lanes):
            few = min(lanes, outputs - o)
            call_kernel(micro[UNPACK], results + o * vector, vector, few, place + o * size, outputs * size, count)
        if apply != 0:
            run_at(apply, place, count * outputs, target)


@kernel(parallel=True)
def parallel(run_jobs, count, x, weight, bias, out, table, micro, scratch, lanes, rows, apply):
    """Run `count` jobs, an equal share on each row of `scratch`.

    x (N, C, ...), weight (C, taps), bias (C,), out (N, C, ...); table, what `across` reads; micro, the micro-kernels' addresses;
    scratch (threads, cells): a vector for each cell of a plane of x and of out, for each tap and for the bias, then planes of
    results where a function takes them; rows, those of a plane of out.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weight, bias, out, table, micro, scratch[thread], lanes, rows, apply)
