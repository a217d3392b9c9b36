"""dW where a group has channels and filters enough to fill a register tile with them.

    dw[k, c, t] = sum_n sum_o  dy[n, k, o] * cells[offsets[t] + position of o, c]      t over the taps

Stage: the input of an output tile as in `tile.stage`, some channels at a time, then transposed: channels lie side by side. dy is
transposed too: panels of neighbouring filters.
Compute: `microkernel.panel`, which broadcasts channels over vectors of filters, one tap at a time.
Store: the sums of each split, transposed, which the caller adds in order, so that the result does not depend on threads.

A job is one (split, group, block of filters, block of channels). A split is a run of the list of (image, tile); how many there are
follows from the shapes alone. `weight_grad.parallel` launches the jobs.
"""

from ..helper import helper
from ..jit import address_of, kernel
from .microkernel import call_kernel
from .tile import block_of, stage

# Places in the array of micro-kernels: `panel` for a whole block of channels by a whole panel of filters, by the last panel; then
# the same for the last block of channels.
LOAD, PACK, STORE = 4, 5, 6


@helper
def stage_channels(x, n, c_first, c_last, o0, o1, o2, plane, micro, cells, target, d, h, w, blocks, wide):
    """Stage input channels, in blocks of `blocks.register` that lie side by side for each cell; cells are `wide` channels apart,
    or with 0 as many as a block has.

    Where the staged cells are the input's own, they are transposed in place.
    """
    size = target.itemsize
    inside = micro[LOAD] != 0 and x.strides[4] == target.itemsize and d.stride * h.stride * w.stride == 1
    for axis, start in ((d, o0), (h, o1), (w, o2)):
        inside = inside and start + axis.offset >= 0 and start + axis.offset + axis.extent <= axis.size
    for c in range(c_first, c_last, blocks.register):
        rows = min(blocks.register, c_last - c)
        if not inside:
            stage(x, n, c, c + rows, o0, o1, o2, d, h, w, blocks.mode, micro[LOAD], cells)
        pitch = (wide if wide != 0 else rows) * size
        block = address_of(target) + (c - c_first) * plane * size
        for r in range((rows - 1) // blocks.lanes * blocks.lanes, -1, -blocks.lanes):  # a piece may spill into the ones before it
            count = min(blocks.lanes, rows - r)
            if not inside:
                source = address_of(cells) + r * plane * size
                call_kernel(micro[PACK], source, plane * size, count, block + r * size, pitch, plane)
                continue
            corner = address_of(x) + n * x.strides[0] + (c + r) * x.strides[1] + (o2 + w.offset) * size
            whole = x.strides[3] == w.extent * size
            place = block + r * size
            for j0 in range(d.extent):
                for j1 in range(0, h.extent, h.extent if whole else 1):
                    source = corner + (o0 + d.offset + j0) * x.strides[2] + (o1 + h.offset + j1) * x.strides[3]
                    length = h.extent * w.extent if whole else w.extent
                    call_kernel(micro[PACK], source, x.strides[1], count, place, pitch, length)
                    place += length * pitch


@helper
def stage_filters(dy, n, k_first, k_last, o0, o1, o2, t0, t1, t2, micro, target, blocks):
    """Stage dy in panels of `blocks.vectors` vectors of filters for each position."""
    size = target.itemsize
    wide = blocks.vectors * blocks.lanes
    whole = dy.strides[3] == t2 * size
    for k in range(k_first, k_last, blocks.lanes):
        first = (k - k_first) // wide * wide
        across = min(wide, -(-(k_last - k_first - first) // blocks.lanes) * blocks.lanes)
        place = address_of(target) + (first * t0 * t1 * t2 + k - k_first - first) * size
        for j0 in range(t0):
            for j1 in range(0, t1, t1 if whole else 1):
                source = (
                    address_of(dy) + n * dy.strides[0] + k * dy.strides[1] + (o0 + j0) * dy.strides[2] + (o1 + j1) * dy.strides[3]
                )
                count = t1 * t2 if whole else t2
                call_kernel(
                    micro[PACK], source + o2 * size, dy.strides[1], min(blocks.lanes, k_last - k), place, across * size, count
                )
                place += count * across * size


@helper
def multiply(micro, channels, filters, taps, t0, t1, t2, plane, cells, dys, offsets, sums, first, h, w, blocks):
    """Add one tile's products to the sums, (panel, channel, tap, filter of the panel)."""
    size = sums.itemsize
    wide = blocks.vectors * blocks.lanes
    for k in range(0, filters, wide):
        across = min(wide, -(-(filters - k) // blocks.lanes) * blocks.lanes)
        panel = address_of(dys) + k * t0 * t1 * t2 * size
        target = address_of(sums) + k * channels * taps * size
        for c in range(0, channels, blocks.register):
            rows = min(blocks.register, channels - c)
            which = micro[(0 if rows == blocks.register else 2) + (0 if across == wide else 1)]
            block, step = address_of(cells) + c * plane * size, rows * size
            for t in range(taps):
                call_kernel(
                    which, block + offsets[t] * step, step, w.extent * step, h.extent * w.extent * step, panel, t2, t1, t0,
                    target + (c * taps + t) * across * size, taps * across * size, first,
                )  # fmt: skip


@helper
def store_sums(micro, totals, filters, terms, target, blocks):
    """Store sums, (panel, channel and tap, filter of the panel), as rows of filters."""
    size = totals.itemsize
    wide = blocks.vectors * blocks.lanes
    for k in range(0, filters, wide):
        across = min(wide, -(-(filters - k) // blocks.lanes) * blocks.lanes)
        source = address_of(totals) + k * terms * size
        for r in range(0, terms, blocks.lanes):
            rows = min(blocks.lanes, terms - r)
            place = address_of(target) + k * target.strides[0] + r * size
            call_kernel(
                micro[STORE], source + r * across * size, across * size, rows, place, target.strides[0], min(wide, filters - k), 0
            )


@kernel
def jobs(first, last, dy, x, sums, offsets, micro, scratch, d, h, w, blocks):
    """Run jobs `first` to `last`; arguments as those of `weight_grad.parallel`, with one row of its scratch.

    Offsets are in cells; scratch: sums of a block, its dy, its staged channels, and `blocks.register` of them before they are
    transposed.
    """
    channels, filters = x.shape[1] // blocks.groups, dy.shape[1] // blocks.groups
    taps = sums.shape[2] // channels
    channel_blocks, filter_blocks = -(-channels // blocks.channels), -(-filters // blocks.filters)
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    places = dy.shape[0] * tiles0 * tiles1 * tiles2
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    padded = -(-blocks.filters // blocks.lanes) * blocks.lanes
    totals = scratch[: padded * blocks.channels * taps]
    dys = scratch[totals.size : totals.size + padded * d.tile * h.tile * w.tile]
    staged = scratch[totals.size + dys.size : totals.size + dys.size + blocks.channels * plane]
    cells = scratch[totals.size + dys.size + staged.size :]
    if filters % blocks.lanes != 0:
        dys[:] = 0  # see `winograd.clear_spare`
    for job in range(first, last):
        c_first, c_last = block_of(job % channel_blocks, channels, blocks.channels, blocks.register)
        k_first, k_last = block_of(job // channel_blocks % filter_blocks, filters, blocks.filters, blocks.vectors * blocks.lanes)
        g = job // (filter_blocks * channel_blocks) % blocks.groups
        split = job // (filter_blocks * channel_blocks * blocks.groups)
        k_count, c_count = k_last - k_first, c_last - c_first
        k, c = g * filters + k_first, g * channels + c_first
        begin = split * places // sums.shape[0]
        for place in range(begin, (split + 1) * places // sums.shape[0]):
            o2 = place % tiles2 * w.tile
            o1 = place // tiles2 % tiles1 * h.tile
            o0 = place // (tiles2 * tiles1) % tiles0 * d.tile
            n = place // (tiles2 * tiles1 * tiles0)
            t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
            stage_channels(x, n, c, c + c_count, o0, o1, o2, plane, micro, cells, staged, d, h, w, blocks, 0)
            stage_filters(dy, n, k, k + k_count, o0, o1, o2, t0, t1, t2, micro, dys, blocks)
            multiply(micro, c_count, k_count, taps, t0, t1, t2, plane, staged, dys, offsets, totals, place == begin, h, w, blocks)
        store_sums(micro, totals, k_count, c_count * taps, sums[split, k:, c_first * taps :], blocks)
