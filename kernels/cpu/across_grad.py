"""dW of small groups on small planes: as many groups side by side as a vector has lanes.

    dw[k, c, t] = sum_n sum_o  dy[n, k, o] * x[n, c, position of o and t]      k and c of one group

Planes are transposed in cache as in `across`, those of dy too, and so the micro-kernel is the same: taps are its results, and what
they sum are products of outputs and cells that lie inside. Rows are cut into pieces; pieces alike share a micro-kernel.

A job is one (block of groups, block of filters, split), a split being a run of the list of (images, band of outputs). Arrays are
contiguous.
"""

import numba

from ..jit import address_of, call, kernel
from .microkernel import call_kernel

# Places in the array of micro-kernels: `pack` to whole vectors and to cells, `fetch` where whole planes lie in memory; then for
# each piece of a band's rows `across`, bytes from the first sum to the piece's, and from the first table to its.
PACK, UNPACK, FETCH, FIRST = range(4)
# Columns of the list of bands: the first cell and the number of cells of a plane of x, the same of dy, and the pieces.
X_FIRST, X_CELLS, DY_FIRST, DY_CELLS, BEGIN, END = range(6)


@kernel
def jobs(first, last, dy, x, sums, table, micro, bands, scratch, numbers):
    """Run jobs `first` to `last`, with one row of `scratch`; the rest as in `parallel`."""
    groups, lanes, block, images, together, rows, width, kinds, x_most, dy_most = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7], numbers[8], numbers[9],
    )  # fmt: skip
    size = x.itemsize
    batch, channels, filters, splits = x.shape[0], x.shape[1] // groups, dy.shape[1] // groups, sums.shape[0]
    cells, outputs = x.shape[2] * x.shape[3] * x.shape[4], dy.shape[2] * dy.shape[3] * dy.shape[4]
    vector, pairs = lanes * size, channels * rows * width
    held = pairs * lanes
    places, blocks = -(-batch // images) * bands.shape[0], -(-filters // block)
    totals, parts = scratch[: block * held], scratch[block * held : (block + kinds) * held]
    bias = scratch[totals.size + parts.size : totals.size + parts.size + lanes]
    source = address_of(scratch) + (totals.size + parts.size + bias.size) * size
    grads = source + channels * images * x_most * vector
    bias[:] = 0
    for job in range(first, last):
        split, k_first = job % splits, job // splits % blocks * block
        g = job // splits // blocks * lanes
        count, k_last = min(lanes, groups - g), min(k_first + block, filters)
        totals[:] = 0
        parts[:] = 0  # not all kinds of pieces are in all bands
        for place in range(split * places // splits, (split + 1) * places // splits):
            band, n = bands[place % bands.shape[0]], place // bands.shape[0] * images
            some = min(images, batch - n)
            if micro[FETCH] != 0:
                group, dy_group = channels * cells * size, filters * outputs * size
                for i in range(n + some, min(n + some + images, batch)):
                    call_kernel(micro[FETCH], address_of(x) + (i * groups + g) * group, count * group, 1, 0)
                    call_kernel(micro[FETCH], address_of(dy) + (i * groups + g) * dy_group, count * dy_group, 1, 0)
            for i in range(some):
                for c in range(channels):
                    begin = address_of(x) + (((n + i) * groups + g) * channels + c) * cells * size + band[X_FIRST] * size
                    target = source + (c * images + i) * x_most * vector
                    call_kernel(micro[PACK], begin, channels * cells * size, count, target, vector, band[X_CELLS])
                for k in range(k_first, k_last):
                    begin = address_of(dy) + (((n + i) * groups + g) * filters + k) * outputs * size + band[DY_FIRST] * size
                    target = grads + ((k - k_first) * images + i) * dy_most * vector
                    call_kernel(micro[PACK], begin, filters * outputs * size, count, target, vector, band[DY_CELLS])
            for k in range(k_last - k_first):
                for at in range(band[BEGIN], band[END], 3):
                    for c in range(0, channels, together):
                        call_kernel(
                            micro[at], source + c * images * x_most * vector,
                            address_of(parts) + micro[at + 1] + c * rows * width * vector,
                            grads + k * images * dy_most * vector, address_of(bias), address_of(table) + micro[at + 2], rows,
                            width * vector, some, x_most * vector, dy_most * vector, images * x_most * vector,
                            rows * width * vector,
                        )  # fmt: skip
                total = totals[k * held : (k + 1) * held]
                for kind in range(kinds):
                    part = parts[kind * held : (kind + 1) * held]
                    for i in range(held):
                        total[i] += part[i]
        for k in range(k_first, k_last):
            target = address_of(sums) + ((split * groups + g) * filters + k) * pairs * size
            for o in range(0, pairs, lanes):
                found, few = address_of(totals) + ((k - k_first) * pairs + o) * vector, min(lanes, pairs - o)
                call_kernel(micro[UNPACK], found, vector, few, target + o * size, filters * pairs * size, count)


@kernel(parallel=True)
def parallel(run_jobs, count, dy, x, sums, table, micro, bands, scratch, numbers):
    """Run `count` jobs, an equal share on each row of `scratch`.

    dy (N, K, ...), x (N, C, ...), sums (splits, K, C / groups * taps); table, what `across` reads; micro, the micro-kernels and
    what is said of them above; bands as there; scratch (threads, cells): vectors of the sums of a block, of those of each kind of
    pieces, of zeros, and of cells of x and dy. Numbers: groups, lanes, filters of a block, images and channels of a call, rows of
    taps and taps of one, kinds of pieces, and cells of x and of dy that a band has at the most.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, dy, x, sums, table, micro, bands, scratch[thread], numbers)
