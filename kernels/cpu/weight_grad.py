"""dW for any dtype, stride, dilation, groups and padding mode.

    dw[k, t] = sum_n sum_o  dy[n, k, o] * cells[offsets[t] + position of o]      t over channels and taps of one group

Stage: the input of an output tile as in `tile.stage`.
Compute: dot products of rows of dy with the staged rows under each tap; `microkernel.dots` by address, some filters by some
taps at a time with a vector of sums for each pair, or the portable `dot`.
Store: the sums of each split, which the caller adds in order, so that the result does not depend on threads.

A job is one (split, group, block of filters, block of channels). A split is a run of the list of (image, tile); how many there are
follows from the shapes alone. Where groups are small, a job takes a bundle of them.
"""

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from .microkernel import call_kernel
from .tile import block_of, stage

# Places in the array of micro-kernels: `dots` for a whole block of filters, by a whole block of taps, by what is left of them in a
# block of channels, and in the last block of channels; then the same for the last block of filters.
LOAD, COLLAPSE = 6, 7


@helper(fastmath={"contract", "reassoc"})
def dot(a, b):
    """sum_i a[i] * b[i], in the order that suits the machine's vectors."""
    total = a.dtype.type(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@helper
def multiply(micro, dy, n, k_first, k_last, taps, o0, o1, o2, cells, offsets, sums, left, d, h, w, blocks):
    """Add one tile's products to the vectors of sums, (filters, taps, lanes); `cells` is an address."""
    size = sums.itemsize
    t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
    vector = blocks.lanes * size
    for j0 in range(t0):
        # rows that lie side by side in dy and in the staged input are one; whole planes of both are rows in turn
        rows, count, dy_row, cells_row = t1, t2, dy.strides[3], w.extent * size
        planes = 1
        if t2 == w.extent and dy.strides[3] == t2 * size:
            rows, count = 1, t1 * t2
            if t1 == h.extent:
                rows, dy_row, cells_row = t0, dy.strides[2], h.extent * w.extent * size
                planes = t0
        if planes > 1 and j0 > 0:
            break
        corner = address_of(dy) + n * dy.strides[0] + (o0 + j0) * dy.strides[2] + o1 * dy.strides[3] + o2 * size
        source = cells + j0 * h.extent * w.extent * size
        for k in range(k_first, k_last, blocks.register):
            which = 3 if k_last - k < blocks.register else 0
            for t in range(0, taps, blocks.vectors):
                kernel = which if taps - t >= blocks.vectors else which + left
                target = address_of(sums) + ((k - k_first) * taps + t) * vector
                call_kernel(
                    micro[kernel], corner + k * dy.strides[1], dy.strides[1], dy_row, source, cells_row,
                    address_of(offsets) + t * 8, rows, count, target, taps * vector,
                )  # fmt: skip


@helper
def multiply_portably(dy, n, k, taps, o0, o1, o2, cells, offsets, sums, row, d, h, w):
    """Add one tile's products to one filter's sums, (taps,)."""
    t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
    for j0 in range(t0):
        for j1 in range(t1):
            source = dy[n, k, o0 + j0, o1 + j1, o2 : o2 + t2]
            for j2 in range(t2):
                row[j2] = source[j2]
            base = (j0 * h.extent + j1) * w.extent
            for t in range(taps):
                at = base + offsets[t]
                sums[t] += dot(row[:t2], cells[at : at + t2])


@kernel
def jobs(first, last, dy, x, sums, offsets, micro, scratch, d, h, w, blocks):
    """Run jobs `first` to `last`; shapes as in `parallel`, with one row of its scratch."""
    channels = x.shape[1] // blocks.groups
    filters = dy.shape[1] // blocks.groups
    taps = sums.shape[2] // channels
    channel_blocks, filter_blocks = -(-channels // blocks.channels), -(-filters // blocks.filters)
    bundles = -(-blocks.groups // blocks.bundle)
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    places = dy.shape[0] * tiles0 * tiles1 * tiles2
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    row = scratch[: w.tile]
    vectors = blocks.bundle * blocks.filters * blocks.channels * taps * blocks.lanes if blocks.register else w.tile
    lanes = scratch[:vectors]
    cells = scratch[vectors + blocks.lanes * blocks.lanes :]
    for job in range(first, last):
        c_first = job % channel_blocks * blocks.channels
        c_last = min(c_first + blocks.channels, channels)
        g_first = job // (filter_blocks * channel_blocks) % bundles * blocks.bundle
        g_last = min(g_first + blocks.bundle, blocks.groups)
        split = job // (filter_blocks * channel_blocks * bundles)
        k_first, k_last = block_of(job // channel_blocks % filter_blocks, filters, blocks.filters, max(blocks.register, 1))
        begin, count = c_first * taps, (c_last - c_first) * taps
        held = (k_last - k_first) * count * blocks.lanes
        if blocks.register:
            scratch[: (g_last - g_first) * held + blocks.lanes * blocks.lanes] = 0
        else:
            for k in range(g_first * filters + k_first, (g_last - 1) * filters + k_last):
                sums[split, k, begin : begin + count] = 0
        for place in range(split * places // sums.shape[0], (split + 1) * places // sums.shape[0]):
            o2 = place % tiles2 * w.tile
            o1 = place // tiles2 % tiles1 * h.tile
            o0 = place // (tiles2 * tiles1) % tiles0 * d.tile
            n = place // (tiles2 * tiles1 * tiles0)
            first_plane, last_plane = g_first * channels + c_first, (g_last - 1) * channels + c_last
            if not blocks.inside:
                stage(x, n, first_plane, last_plane, o0, o1, o2, d, h, w, blocks.mode, micro[LOAD], cells)
            if blocks.conjugate:
                for i in range((last_plane - first_plane) * plane):
                    cells[i] = cells[i].conjugate()
            for g in range(g_first, g_last):
                low, high = g * filters + k_first, g * filters + k_last
                if blocks.register:
                    left = 1 if c_last - c_first == blocks.channels else 2
                    pairs = lanes[(g - g_first) * held :]
                    source = address_of(cells) + (g - g_first) * channels * plane * cells.itemsize
                    if blocks.inside:
                        source = address_of(x) + n * x.strides[0] + (g * channels + c_first) * x.strides[1]
                        source += o0 * x.strides[2] + o1 * x.strides[3] + o2 * x.strides[4]
                    multiply(micro, dy, n, low, high, count, o0, o1, o2, source, offsets, pairs, left, d, h, w, blocks)
                else:
                    planes = cells[(g - g_first) * channels * plane :]
                    for k in range(low, high):
                        target = sums[split, k, begin : begin + count]
                        multiply_portably(dy, n, k, count, o0, o1, o2, planes, offsets, target, row, d, h, w)
        if blocks.register:
            place = address_of(lanes)
            for g in range(g_first, g_last):
                for k in range(g * filters + k_first, g * filters + k_last):
                    call_kernel(micro[COLLAPSE], place, address_of(sums[split, k, begin:]), count)
                    place += count * blocks.lanes * lanes.itemsize


@kernel(parallel=True)
def parallel(run_jobs, count, dy, x, sums, offsets, micro, scratch, d, h, w, blocks):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`, of this file or another.

    dy (N, K, ...), the last axis of which is contiguous for micro-kernels; x (N, C, ...), sums (splits, K, C / groups * taps),
    offsets of the taps of a block of channels, in cells or, for a micro-kernel, in bytes; micro, the micro-kernels' addresses;
    scratch (threads, cells): here a vector of sums for each pair of filter and tap of a block and a square of lanes to spare, or
    a row of dy, then `blocks.channels` staged planes.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, dy, x, sums, offsets, micro, scratch[thread], d, h, w, blocks)
