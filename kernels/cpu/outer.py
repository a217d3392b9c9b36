"""Direct convolution by micro-kernels: forward and dI of float32 and float64, any stride, dilation, groups and padding mode.

    out[n, k, o * step + phase] = bias[k] + sum_t weight[k, weight offset of t] * cells[cell offset of t + position of o]

where t runs over the channels of one group and the taps of one phase. Forward has one phase; dI with stride s has s of them on an
axis, all of which read the same staged dy, each by the taps that meet it.

Stage: `tile.stage` lays the padded input of an output tile out so that every tap is a constant offset; a 1x1 convolution reads
the caller's array in place, as do the taps of one axis in tiles that reach no border, where all lie on lines of cache alike.
Compute: `microkernel.outer`, a block of filters by some vectors of positions at a time, reads the weights where they lie. For many
blocks of filters, `gather` first copies the cells that each call will read next to each other. The terms are added in order,
whatever the tiling: results are the same bits as those of the portable loop.
Store: straight into the output where a tile is one run of it, else from scratch, the phases of the last axis interleaved; then the
activation, over what was just written.

A job is one (image, group, tile, block of filters); neighbours in job order share the staged input. Where groups are small, a job
takes a bundle of them.
"""

from typing import NamedTuple

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from .epilogue import run_at, stores
from .machine import LINE
from .microkernel import call_kernel
from .tile import block_of, stage, unpack_axes

# Places in the array of micro-kernels: `outer` for a whole block of filters, with all vectors, with those at the end of a tile, and
# with one; then the same for the last block.
LOAD, STORE, GATHER = 6, 7, 8


class Layout(NamedTuple):
    """What a run adds to its axes.

    groups, mode : as in the problem, the mode as its number
    filters, channels : filters and channels of a block
    bundle : groups that are staged at once; more than one only where a block takes all filters and channels of a group
    register, vectors, tail, lanes : filters and vectors of one call, vectors of the last one of a whole tile, scalars of a vector
    inside : whether the input is read in place, where all taps of a tile lie in it: one axis, and one group at a time
    merged : phases of the last axis that are stored together
    step0, step1, step2 : cells between the outputs of a phase, on each axis
    group, block, channel : bytes of the weights from group to group, block to block of filters, channel to channel
    window, gathered : positions whose cells are gathered at once, and cells of scratch for them; 0 if none are
    once : whether all blocks of channels are staged side by side, once for all blocks of filters
    reach : cells from the first tap to the last of an input that is read in place
    by_rows : whether the rows of a tile are computed one by one, each where it belongs
    """

    groups: int
    mode: int
    filters: int
    channels: int
    bundle: int
    register: int
    vectors: int
    tail: int
    lanes: int
    inside: int
    merged: int
    step0: int
    step1: int
    step2: int
    group: int
    block: int
    channel: int
    window: int
    gathered: int
    once: int
    reach: int
    by_rows: int


@helper
def layout_of(a):
    """The layout out of the array of all numbers."""
    return Layout(
        a[27], a[28], a[29], a[30], a[31], a[32], a[33], a[34], a[35], a[36],
        a[37], a[38], a[39], a[40], a[41], a[42], a[43], a[44], a[45], a[46], a[47], a[48],
    )  # fmt: skip


@helper
def unpack(numbers):
    """The axes and the layout out of the array of all their numbers."""
    d, h, w = unpack_axes(numbers)
    return d, h, w, layout_of(numbers)


@helper
def edge_block(micro, weights, cells, terms, count, target, pitch, full, left, first, bias, size, layout):
    """Add the products of `count` terms to a register block's sums of the last `left` positions of a tile."""
    which = 0 if full else 3
    if -(-left // layout.lanes) == layout.tail:
        edge = (left - 1) % layout.lanes + 1
        call_kernel(micro[which + 1], weights, cells, terms, count, target, pitch, first, edge, bias, 0)
        return
    for j in range(0, left, layout.lanes):
        edge = min(left - j, layout.lanes)
        call_kernel(micro[which + 2], weights, cells + j * size, terms, count, target + j * size, pitch, first, edge, bias, 0)


@helper
def multiply(
    micro, weights, cells, terms, count, near, room, sums, pitch, home, out_pitch, filters, length, lead, first, bias, apply, size,
    layout,
):  # fmt: skip
    """Add the products of `count` terms to `filters` rows of `length` sums, `pitch` bytes apart, then the bias; run the activation.

    The first call takes `lead` positions, if any, for the others to begin on lines of cache: vectors that straddle two cost up to a
    third of the speed.

    `weights`, `cells`, `terms`, `sums`, `bias` and `apply` are addresses, the last two 0 for none. Where cells are gathered, `room`
    is the address of their copies and `near` that of the terms that read them. The activation is told that the rows belong at
    `home`, `out_pitch` bytes apart.
    """
    several, whole = layout.vectors * layout.lanes, filters // layout.register * layout.register
    move, k_bias = layout.register * pitch, layout.register * size if bias != 0 else 0
    window, source, table, step = length, cells, terms, several * size
    if layout.gathered:
        window, source, table, step = layout.window, room, near, count * several * size
    for begin in range(0, length, window):
        end = min(begin + window, length)
        if layout.gathered:
            call_kernel(micro[GATHER], cells + begin * size, terms, count, room, step, end - begin)
        w, b, row = weights, bias, sums
        for k in range(0, filters, layout.register):
            full = k < whole
            i, place = begin, source
            if lead > 0:
                call_kernel(micro[2 if full else 5], w, place, table, count, row, pitch, first, lead, b, 0)
                i, place = lead, place + lead * size
            while end - i >= several:
                call_kernel(micro[0 if full else 3], w, place, table, count, row + i * size, pitch, first, 0, b, 0)
                i, place = i + several, place + step
            if i < end:
                edge_block(micro, w, place, table, count, row + i * size, pitch, full, end - i, first, b, size, layout)
            if apply != 0:
                # while the rows of one block of filters are in cache
                for p in range(min(layout.register, filters - k)):
                    run_at(apply, row + p * pitch + begin * size, end - begin, home + (k + p) * out_pitch + begin * size)
            w, b, row = w + layout.block, b + k_bias, row + move


class Box(NamedTuple):
    """Of a tile and its results, what `finish` needs: a call passes every number.

    tile0, tile1, tile2, extent1, extent2 : of the axes, see `tile.Axis`
    merged, step0, step1, step2 : see `Layout`
    """

    tile0: int
    tile1: int
    tile2: int
    extent1: int
    extent2: int
    merged: int
    step0: int
    step1: int
    step2: int


@helper
def box_of(d, h, w, layout):
    """Of the axes and a layout."""
    return Box(d.tile, h.tile, w.tile, h.extent, w.extent, layout.merged, layout.step0, layout.step1, layout.step2)


@helper
def finish(
    sums, pitch, region, k, count, n, o0, o1, o2, start0, start1, start2, biases, out, store, apply, room, together, box
):  # fmt: skip
    """Add biases to the tiles of sums of filters, store what belongs to an output, and run the activation over it.

    There are `count` filters from `k` on; the biases of all lie at the address `biases`. `sums` is the first one's address in the
    first of `box.merged` phases, which lie `region` bytes apart, filters `pitch` bytes; `room`, that of scratch for the rows of one
    slice of it, those of the next filter `pitch` bytes on, which a function that takes results finds there; where `merged` is 1 it
    may begin where the sums do. If `together` is not 0, rows are but stored there: as those of all phases lie in the output, slices
    so many cells apart.
    """
    size = out.itemsize
    taken = stores(apply)
    if box.merged > 1:
        t2, step = min(box.tile2 * box.merged, out.shape[4] - o2 * box.merged), out.strides[4]
    else:
        t2, step = min(box.tile2, -(-(out.shape[4] - start2) // box.step2) - o2), out.strides[4] * box.step2
    t1 = min(box.tile1, -(-(out.shape[3] - start1) // box.step1) - o1)
    t0 = min(box.tile0, -(-(out.shape[2] - start0) // box.step0) - o0)
    row = out.strides[3] * box.step1
    corner = address_of(out) + n * out.strides[0] + (o2 * box.step2 + start2) * out.strides[4]
    corner += (o1 * box.step1 + start1) * out.strides[3] + (o0 * box.step0 + start0) * out.strides[2]
    for i in range(count):
        first = corner + (k + i) * out.strides[1]
        for j0 in range(t0):
            target = first + j0 * box.step0 * out.strides[2]
            source = sums + i * pitch + j0 * box.extent1 * box.extent2 * size
            place, place_row, gap = target, row, step
            if together > 0:
                place = room + (j0 * box.step0 + start0) * together * size + start1 * out.strides[3] + start2 * step
            elif taken:
                place, place_row, gap = room + i * pitch, t2 * size, size
            bias = biases + (k + i) * size
            call_kernel(store, source, box.extent2 * size, region, place, place_row, gap, t1, t2, bias)
            if apply != 0 and together == 0:
                neighbours = t1 if step == size and place_row == row == t2 * size else 1  # rows that are one run of the output
                for j1 in range(0, t1, neighbours):
                    if step == size:
                        run_at(apply, place + j1 * place_row, neighbours * t2, target + j1 * row)
                        continue
                    for j2 in range(t2):
                        run_at(apply, place + j1 * place_row + j2 * gap, 1, target + j1 * row + j2 * step)


@kernel
def jobs(first, last, x, weights, bias, out, terms, phases, micro, scratch, apply, numbers):
    """Run jobs `first` to `last`; arguments as in `parallel`, with one row of its scratch."""
    d, h, w, layout = unpack(numbers)
    size = out.itemsize
    channels = x.shape[1] // layout.groups
    filters = out.shape[1] // layout.groups
    filter_blocks, bundles = -(-filters // layout.filters), -(-layout.groups // layout.bundle)
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    longest = ((d.tile - 1) * h.extent + h.tile - 1) * w.extent + w.tile
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    pitch = (-(-longest // layout.lanes) + layout.inside) * layout.lanes * size
    region = layout.filters * pitch
    cells = scratch[layout.merged * region // size : scratch.size - layout.gathered]
    room = address_of(scratch) + (scratch.size - layout.gathered) * size
    whole = layout.step0 * layout.step1 * layout.step2 == 1 and out.strides[4] == size
    taken = stores(apply)
    box = box_of(d, h, w, layout)
    # an input in place is read from lines of cache on, by tiles of which the first has `early` positions more
    lines = layout.inside and not layout.gathered and whole and layout.lanes * size == LINE
    lines = lines and x.strides[0] % LINE == 0 and x.strides[1] % LINE == 0
    early = min(-(address_of(x) + w.offset * size) % LINE // size, w.out) if lines else 0
    staged = -1
    for job in range(first, last):
        place = job // filter_blocks
        k_first, k_last = block_of(job % filter_blocks, filters, layout.filters, layout.register)
        k_count = k_last - k_first
        o2 = place % tiles2 * w.tile
        o1 = place // tiles2 % tiles1 * h.tile
        o0 = place // (tiles2 * tiles1) % tiles0 * d.tile
        image_group = place // (tiles2 * tiles1 * tiles0)
        g_first = image_group % bundles * layout.bundle
        g_last = min(g_first + layout.bundle, layout.groups)
        n = image_group // bundles
        lead = early if o2 == 0 else 0
        o2 += early - lead
        if o2 >= w.out:
            continue
        t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile + lead, w.out - o2)
        length = ((t0 - 1) * h.extent + t1 - 1) * w.extent + t2
        # a tile whose sums lie in memory as its outputs do is summed where it belongs, unless a function takes the results
        direct = whole and (t1 == 1 or (w.extent == t2 and out.strides[3] == t2 * size))
        direct = direct and (t0 == 1 or (w.extent == t2 and h.extent == t1 and out.strides[2] == t1 * t2 * size))
        by_rows = whole and layout.by_rows != 0 and not direct and not taken
        if by_rows:
            direct, length = True, t2
        first_cell = o2 + w.offset
        within = layout.inside and first_cell >= 0 and first_cell + t2 + layout.reach <= w.size
        inner = address_of(out) + n * out.strides[0] + o0 * out.strides[2] + o1 * out.strides[3] + o2 * size
        for phase in range(0, phases.shape[0], layout.merged):
            reached = 0  # not `sum` of an array: to load code that uses it, numba imports scipy.linalg
            for m in range(layout.merged):
                reached += phases[phase + m, 1]
            if reached == 0:
                # outputs that no tap reaches: one row of zeros for each phase serves all filters
                for m in range(layout.merged):
                    scratch[m * region // size : (m * region + pitch) // size] = 0
                finish(
                    address_of(scratch), 0, region, g_first * filters + k_first, (g_last - 1 - g_first) * filters + k_count, n,
                    o0, o1, o2, phases[phase, 2], phases[phase, 3], phases[phase, 4], address_of(bias), out, micro[STORE], apply,
                    address_of(scratch), 0, box,
                )  # fmt: skip
                continue
            for c_first in range(0, channels, layout.channels):
                c_last = min(c_first + layout.channels, channels)
                if within:
                    source = address_of(x) + n * x.strides[0] + (g_first * channels + c_first) * x.strides[1]
                    source += first_cell * size
                else:
                    source = address_of(cells) + c_first * plane * size * layout.once
                    if staged != place or (layout.channels < channels and not layout.once):
                        begin, end = g_first * channels + c_first, (g_last - 1) * channels + (channels if layout.once else c_last)
                        stage(x, n, begin, end, o0, o1, o2, d, h, w, layout.mode, micro[LOAD], cells)
                        staged = place
                for g in range(g_first, g_last):
                    k = g * filters + k_first
                    home = inner + k * out.strides[1]
                    target, row, b, activation = address_of(scratch), pitch, 0, 0
                    if direct:
                        if not taken:
                            target, row = home, out.strides[1]
                        if c_last == channels:
                            b, activation = address_of(bias) + k * size, apply
                    packed = weights + g * layout.group + k_first // layout.register * layout.block + c_first * layout.channel
                    for m in range(layout.merged):
                        taps = phases[phase + m, 1]
                        begin = address_of(terms) + phases[phase + m, 0] * 16
                        near = begin + terms.shape[0] // 2 * 16  # the second half of the terms, where there is one
                        if layout.inside and not within:
                            begin = near
                        for j in range(t0 * t1 if by_rows else 1):
                            j0, j1 = j // t1, j % t1
                            beyond = j0 * out.strides[2] + j1 * out.strides[3]
                            multiply(
                                micro, packed, source + (j0 * h.extent + j1) * w.extent * size, begin, (c_last - c_first) * taps,
                                near, room, target + m * region + beyond, row, home + beyond, out.strides[1], k_count, length, lead,
                                c_first == 0, b, activation, size, layout,
                            )  # fmt: skip
                    source += channels * plane * size
                    if direct or c_last < channels:
                        continue
                    finish(
                        target, pitch, region, k, k_count, n, o0, o1, o2, phases[phase, 2], phases[phase, 3], phases[phase, 4],
                        address_of(bias), out, micro[STORE], apply, target, 0, box,
                    )  # fmt: skip


@kernel(parallel=True)
def parallel(run_jobs, count, x, weights, bias, out, terms, phases, micro, scratch, apply, numbers):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    x (N, C, ...); weights, their address, and what `Layout` says of them; bias (K,), contiguous; out (N, K, ...); terms, pairs of
    the offsets in bytes of a term's cells and its weight, for the channels of a block, one phase after another, then what `outer`
    asks for beyond; where cells are gathered, or some tiles staged, all of them again, with offsets of the copies; phases, rows of:
    first term, taps, first output on each axis; micro, the micro-kernels' addresses; scratch (threads, cells): for each merged
    phase `filters` rows of sums, each of whole vectors, then the staged channels of a block or of all, then gathered cells;
    numbers, the axes and the layout.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weights, bias, out, terms, phases, micro, scratch[thread], apply, numbers)
