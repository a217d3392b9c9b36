"""Direct convolution: forward and, with rotated weights, dI; any dtype, stride, dilation, groups and padding mode.

    out[n, k, o] = bias[k] + sum_t weight[k, t] * cells[offsets[t] + position of o]      t over channels and taps of one group

Stage: `tile.stage` lays the padded input of an output tile out so that every tap is a constant offset.
Compute: `microkernel.outer` by address, a block of filters by some vectors of positions at a time; or the portable
`accumulate`, one filter at a time over the whole tile. Both add terms in the order of `t`, whatever the tiling: their results
are the same bits.
Store: bias and activation on each row of the tile, then the caller's layout.

A job is one (image, group, tile, block of filters); neighbours in job order share the staged input. Where
groups are small, a job takes a bundle of them.
"""

import numba

from ..jit import call, kernel
from .epilogue import run
from .microkernel import call_kernel
from .tile import stage

# Places in the array of micro-kernels: `outer` for a whole block of filters, with all vectors, with those at the end of a tile, and
# with one; then the same for the last block.
LOAD, STORE = 6, 7


@kernel(fastmath={"contract"})
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


@kernel
def multiply(micro, weight, terms, begin, count, cells, offsets, sums, pitch, filters, length, blocks):
    """Add the products of terms `begin` to `begin + count` to `filters` rows of `length` sums, `pitch` apart.

    `weight` holds the packed blocks of filters, each with `terms` weights a filter.
    """
    size = sums.itemsize
    several = (blocks.vectors - 1) * blocks.lanes
    for i in range(0, length, blocks.vectors * blocks.lanes):
        source = cells.ctypes.data + i * size
        for k in range(0, filters, blocks.register):
            rows = min(blocks.register, filters - k)
            which = 0 if rows == blocks.register else 3
            weights = weight.ctypes.data + (k * terms + begin * rows) * size
            target = sums.ctypes.data + (k * pitch + i) * size
            step = length - i
            if length - i <= several:
                if -(-step // blocks.lanes) == blocks.tail:
                    which += 1
                else:
                    which, step = which + 2, blocks.lanes
            for j in range(0, length - i, step):
                x, y = source + j * size, target + j * size
                call_kernel(micro[which], weights, x, offsets.ctypes.data, count, y, pitch * size, begin == 0)


@kernel
def finish(sums, n, k, o0, o1, o2, bias, out, store, apply, d, h, w):
    """Add the bias to one filter's tile of sums, run the activation, and store what belongs to an output."""
    t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
    size = sums.itemsize
    for j0 in range(t0):
        base = j0 * h.extent * w.extent
        if store != 0 and apply == 0:
            target = out.ctypes.data + n * out.strides[0] + k * out.strides[1] + (o0 + j0) * out.strides[2] + o1 * out.strides[3]
            source = sums.ctypes.data + base * size
            b = bias.ctypes.data + k * bias.strides[0]
            step = out.strides[4]
            if w.extent == t2 and out.strides[3] == t2 * step:
                call_kernel(store, source, 0, target, 0, step, 1, t1 * t2, b)
            else:
                call_kernel(store, source, w.extent * size, target + o2 * step, out.strides[3], step, t1, t2, b)
            continue
        for j1 in range(t1):
            row = sums[base + j1 * w.extent : base + j1 * w.extent + t2]
            for j2 in range(t2):
                row[j2] += bias[k]
            run(apply, row)
            target = out[n, k, o0 + j0, o1 + j1, o2 : o2 + t2]
            for j2 in range(t2):
                target[j2] = row[j2]


@kernel
def jobs(first, last, x, weight, bias, out, offsets, micro, scratch, apply, d, h, w, blocks):
    """Run jobs `first` to `last`; shapes as in `parallel`, with one row of its scratch."""
    channels = x.shape[1] // blocks.groups
    filters = out.shape[1] // blocks.groups
    terms = weight.shape[0] // max(out.shape[1], 1)
    taps = terms // max(channels, 1)
    filter_blocks, bundles = -(-filters // blocks.filters), -(-blocks.groups // blocks.bundle)
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    longest = ((d.tile - 1) * h.extent + h.tile - 1) * w.extent + w.tile
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    pitch = -(-longest // blocks.lanes) * blocks.lanes
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
        image_group = place // (tiles2 * tiles1 * tiles0)
        g_first = image_group % bundles * blocks.bundle
        g_last = min(g_first + blocks.bundle, blocks.groups)
        n = image_group // bundles
        t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
        length = ((t0 - 1) * h.extent + t1 - 1) * w.extent + t2
        if blocks.register == 0 or channels == 0:
            sums[: (k_last - k_first) * pitch] = 0
        for c_first in range(0, channels, blocks.channels):
            c_last = min(c_first + blocks.channels, channels)
            if blocks.channels < channels or staged != place:
                begin, end = g_first * channels + c_first, (g_last - 1) * channels + c_last
                stage(x, n, begin, end, o0, o1, o2, d, h, w, blocks.mode, micro[LOAD], cells)
                staged = place
            begin, count = c_first * taps, (c_last - c_first) * taps
            for g in range(g_first, g_last):
                packed = weight[(g * filters + k_first) * terms :]
                planes = cells[(g - g_first) * channels * plane :]
                if blocks.register:
                    multiply(micro, packed, terms, begin, count, planes, offsets, sums, pitch, k_last - k_first, length, blocks)
                else:
                    for k in range(k_last - k_first):
                        row = packed[k * terms + begin : k * terms + begin + count]
                        accumulate(row, offsets, planes, sums[k * pitch : k * pitch + length])
                if c_last == channels:
                    for k in range(k_first, k_last):
                        tile = sums[(k - k_first) * pitch :]
                        finish(tile, n, g * filters + k, o0, o1, o2, bias, out, micro[STORE], apply, d, h, w)
        if channels == 0:
            for k in range(k_first, k_last):
                tile = sums[(k - k_first) * pitch :]
                finish(tile, n, g_first * filters + k, o0, o1, o2, bias, out, micro[STORE], apply, d, h, w)


@kernel(parallel=True)
def parallel(run_jobs, count, x, weight, bias, out, offsets, micro, scratch, apply, d, h, w, blocks):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    x (N, C, ...), weight as `pack` orders it in blocks of `blocks.register` filters, or of one, bias (K,), out (N, K, ...),
    offsets of the taps of a block of channels, in cells or, for a micro-kernel, in bytes; micro, the micro-kernels' addresses;
    scratch (threads, cells): `blocks.filters` rows of sums, each a whole number of vectors, then `blocks.channels` staged
    planes and a vector to spare.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weight, bias, out, offsets, micro, scratch[thread], apply, d, h, w, blocks)
