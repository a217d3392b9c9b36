"""Direct convolution in plain loops: forward and, with rotated weights, dI; any dtype, stride, dilation, groups and padding mode.

    out[n, k, o] = bias[k] + sum_t weight[k, t] * cells[offsets[t] + position of o]      t over channels and taps of one group

Stage: `tile.stage` lays the padded input of an output tile out so that every tap is a constant offset.
Compute: `accumulate`, one filter at a time over the whole tile, adds terms in the order of `t`, whatever the tiling.
Store: bias and activation on each row of the tile, then the caller's layout.

A job is one (image, group, tile, block of filters); neighbours in job order share the staged input.
"""

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from .epilogue import run, stores
from .tile import stage


@helper(fastmath={"contract"})
def accumulate(taps, offsets, cells, sums):
    """sums[i] += sum_t taps[t] * cells[offsets[t] + i], four taps a pass: sums are loaded and stored once for four products."""
    length = sums.shape[0]
    count = taps.shape[0]
    whole = count - count % 4
    for t in range(0, whole, 4):
        w0, w1, w2, w3 = taps[t], taps[t + 1], taps[t + 2], taps[t + 3]
        x0 = cells[offsets[t] : offsets[t] + length]
        x1 = cells[offsets[t + 1] : offsets[t + 1] + length]
        x2 = cells[offsets[t + 2] : offsets[t + 2] + length]
        x3 = cells[offsets[t + 3] : offsets[t + 3] + length]
        for i in range(length):
            sums[i] = sums[i] + w0 * x0[i] + w1 * x1[i] + w2 * x2[i] + w3 * x3[i]
    for t in range(whole, count):
        w0 = taps[t]
        x0 = cells[offsets[t] : offsets[t] + length]
        for i in range(length):
            sums[i] = sums[i] + w0 * x0[i]


@helper
def finish(sums, n, k, o0, o1, o2, bias, out, apply, d, h, w):
    """Add the bias to one filter's tile of sums, run the activation, and store what belongs to an output."""
    taken = stores(apply)
    t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
    for j0 in range(t0):
        for j1 in range(t1):
            at = (j0 * h.extent + j1) * w.extent
            row = sums[at : at + t2]
            for j2 in range(t2):
                row[j2] += bias[k]
            target = out[n, k, o0 + j0, o1 + j1, o2 : o2 + t2]
            run(apply, row, address_of(target))
            if not taken:
                for j2 in range(t2):
                    target[j2] = row[j2]


@kernel
def jobs(first, last, x, weight, bias, out, offsets, scratch, apply, d, h, w, blocks):
    """Run jobs `first` to `last`; shapes as in `parallel`, with one row of its scratch."""
    channels = x.shape[1] // blocks.groups
    filters = out.shape[1] // blocks.groups
    terms = weight.shape[0] // max(out.shape[1], 1)
    taps = terms // max(channels, 1)
    filter_blocks = -(-filters // blocks.filters)
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    pitch = ((d.tile - 1) * h.extent + h.tile - 1) * w.extent + w.tile
    sums = scratch[: blocks.filters * pitch]
    cells = scratch[blocks.filters * pitch :]
    staged = -1
    for job in range(first, last):
        place = job // filter_blocks
        k_first = job % filter_blocks * blocks.filters
        k_last = min(k_first + blocks.filters, filters)
        o2 = place % tiles2 * w.tile
        o1 = place // tiles2 % tiles1 * h.tile
        o0 = place // (tiles2 * tiles1) % tiles0 * d.tile
        g = place // (tiles2 * tiles1 * tiles0) % blocks.groups
        n = place // (tiles2 * tiles1 * tiles0 * blocks.groups)
        t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
        length = ((t0 - 1) * h.extent + t1 - 1) * w.extent + t2
        sums[: (k_last - k_first) * pitch] = 0
        for c_first in range(0, channels, blocks.channels):
            c_last = min(c_first + blocks.channels, channels)
            if blocks.channels < channels or staged != place:
                stage(x, n, g * channels + c_first, g * channels + c_last, o0, o1, o2, d, h, w, blocks.mode, 0, cells)
                staged = place
            for k in range(k_last - k_first):
                begin = (g * filters + k_first + k) * terms
                row = weight[begin + c_first * taps : begin + c_last * taps]
                accumulate(row, offsets, cells, sums[k * pitch : k * pitch + length])
        for k in range(k_first, k_last):
            finish(sums[(k - k_first) * pitch :], n, g * filters + k, o0, o1, o2, bias, out, apply, d, h, w)


@kernel(parallel=True)
def parallel(run_jobs, count, x, weight, bias, out, offsets, scratch, apply, d, h, w, blocks):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    x (N, C, ...), weight as `pack` orders it in blocks of one filter, bias (K,), out (N, K, ...), offsets of the taps of a block of
    channels, in cells; scratch (threads, cells): `blocks.filters` rows of sums, then `blocks.channels` staged planes.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weight, bias, out, offsets, scratch[thread], apply, d, h, w, blocks)
