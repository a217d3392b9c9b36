"""dW for any dtype, stride, dilation, groups and padding mode.

    dw[k, t] = sum_n sum_o  dy[n, k, o] * cells[offsets[t] + position of o]      t over channels and taps of one group

Stage: the input of an output tile as in `tile.stage`, and the rows of dy, copied to be contiguous.
Compute: a dot product of a row of dy with the staged row under each tap.
Store: the sums of each split, which the caller adds in order, so that the result does not depend on threads.

A job is one (split, group, block of channels, block of filters). A split is a run of the list of (image, tile); how many there are
follows from the shapes alone.
"""

import numba

from ..jit import call, kernel
from .tile import stage


@kernel(fastmath={"contract", "reassoc"})
def dot(a, b):
    """sum_i a[i] * b[i], in the order that suits the machine's vectors."""
    total = a.dtype.type(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@kernel
def jobs(first, last, dy, x, sums, offsets, scratch, d, h, w, blocks):
    """Run jobs `first` to `last`; shapes as in `parallel`, with one row of its scratch."""
    channels = x.shape[1] // blocks.groups
    filters = dy.shape[1] // blocks.groups
    taps = sums.shape[2] // channels
    channel_blocks, filter_blocks = -(-channels // blocks.channels), -(-filters // blocks.filters)
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    places = dy.shape[0] * tiles0 * tiles1 * tiles2
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    row = scratch[: w.tile]
    cells = scratch[w.tile :]
    for job in range(first, last):
        k_first = job % filter_blocks * blocks.filters
        k_last = min(k_first + blocks.filters, filters)
        c_first = job // filter_blocks % channel_blocks * blocks.channels
        c_last = min(c_first + blocks.channels, channels)
        g = job // (filter_blocks * channel_blocks) % blocks.groups
        split = job // (filter_blocks * channel_blocks * blocks.groups)
        for k in range(g * filters + k_first, g * filters + k_last):
            sums[split, k, c_first * taps : c_last * taps] = 0
        for place in range(split * places // sums.shape[0], (split + 1) * places // sums.shape[0]):
            o2 = place % tiles2 * w.tile
            o1 = place // tiles2 % tiles1 * h.tile
            o0 = place // (tiles2 * tiles1) % tiles0 * d.tile
            n = place // (tiles2 * tiles1 * tiles0)
            t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
            channel = g * channels
            stage(x, n, channel + c_first, channel + c_last, o0, o1, o2, d, h, w, blocks.mode, 0, cells)
            if blocks.conjugate:
                for i in range((c_last - c_first) * plane):
                    cells[i] = cells[i].conjugate()
            for k in range(g * filters + k_first, g * filters + k_last):
                for j0 in range(t0):
                    for j1 in range(t1):
                        source = dy[n, k, o0 + j0, o1 + j1, o2 : o2 + t2]
                        for j2 in range(t2):
                            row[j2] = source[j2]
                        base = (j0 * h.extent + j1) * w.extent
                        for t in range((c_last - c_first) * taps):
                            at = base + offsets[t]
                            sums[split, k, c_first * taps + t] += dot(row[:t2], cells[at : at + t2])


@kernel(parallel=True)
def parallel(run_jobs, count, dy, x, sums, offsets, scratch, d, h, w, blocks):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    dy (N, K, ...), x (N, C, ...), sums (splits, K, C / groups * taps), offsets (channels of a block * taps,),
    scratch (threads, cells): a row of dy, then `blocks.channels` staged planes.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, dy, x, sums, offsets, scratch[thread], d, h, w, blocks)
