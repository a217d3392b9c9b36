"""Winograd's convolution by micro-kernels: forward and dI of float32 and float64 with stride 1, any dilation, padding mode, groups.

    out = A^T [ sum_c (G w_c G^T) * (B^T x_c B) ] A          for each tile of outputs, on all axes; see `transforms`

Stage: `tile.stage` with the tile for a stride: each cell of all tiles of outputs lies side by side, so that the vectors of a
transform are neighbouring tiles. Rows of few tiles would leave such vectors empty: those are staged densely, so that they follow
one another; rows of one tile or two are staged as they are, and gathered.
Transform: cells of all channels, and weights of one register block at a time.
Compute: for each of the products of a tile, `microkernel.outer` over channels: filters are broadcast over vectors of tiles.
Store: the sums of one filter are transformed to outputs, and stored as the phases of a strided dI are.

Dilation d leaves d convolutions without it on each axis: outputs q, q + d, ... read the input from cell q on in steps of d. Such a
phase is computed where it lies, by tiles whose cells are d apart. Where all tiles of an axis fit a block, those of all its phases
lie side by side in it, gathered out of rows that are staged as they are; their outputs are then put in order.

A job is one (image, group, block of tiles, phase, block of filters); neighbours in job order share the transformed cells. Sums are
added in the order of channels and a tile does not depend on its neighbours: results are the same bits for any schedule.
"""

from typing import NamedTuple

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from .epilogue import run_at, stores
from .microkernel import call_kernel
from .outer import box_of, finish, layout_of
from .tile import Axis, block_of, stage, tile_of, unpack_axes

# Places in the array of micro-kernels: `outer` for a whole block of filters, with all vectors and with those at the end of a tile;
# the same for the last block; what fetches weights that lie far apart, and where results will be stored; transforms; what puts
# outputs of several phases in order, if there is such a kernel.
LOAD, STORE, PACK, PLACES, FETCH, CELLS, WEIGHTS, OUTPUTS, RESULTS, ORDER = range(4, 14)
# Channels before whose turn their weights are fetched, where they lie far apart: dI of 512 filters takes 0.84 to 0.97 of the time.
SOON = 8


class Regions(NamedTuple):
    """What Winograd's driver adds to axes and layout.

    products : of a tile
    taps : of a filter
    together : channels that are staged at once
    row : bytes from filter to filter of the weights
    wide : cells of a row of transformed weights
    pitch : cells of a row of tiles' vectors
    cell_plane, weight_plane, sum_plane : cells from product to product of transformed cells, weights and of sums
    weights, sums, outputs, ordered, staged : first cells of the parts of scratch; the first part holds the transformed cells
    tap_table, plane_table, term_table, order_table, lane_table : first entries of the offsets for the transforms of weights and
        outputs, of the terms, of outputs of several phases, 0 for tiles of one, and of gathered tiles, 0 if they are not
    """

    products: int
    taps: int
    together: int
    row: int
    wide: int
    pitch: int
    cell_plane: int
    weight_plane: int
    sum_plane: int
    weights: int
    sums: int
    outputs: int
    ordered: int
    staged: int
    tap_table: int
    plane_table: int
    term_table: int
    order_table: int
    lane_table: int


@helper
def regions_of(a):
    """The regions out of the array of all numbers."""
    return Regions(
        a[49], a[50], a[51], a[52], a[53], a[54], a[55], a[56], a[57], a[58], a[59], a[60], a[61], a[62], a[63], a[64], a[65],
        a[66], a[67],
    )  # fmt: skip


@helper
def phase_of(axis, start, outputs):
    """The axis of the outputs `start`, `start` + dilation, ... of `outputs`, whose number becomes one of tiles."""
    count = max(0, -(-(outputs - start) // axis.dilation))
    return Axis(
        axis.size, axis.stride, axis.dilation, axis.offset + start, -(-count * axis.dilation // axis.stride), axis.tile, axis.slots,
        axis.extent, axis.period,
    )  # fmt: skip


@helper
def phase_with(axis, start, outputs, merged):
    """As `phase_of`; `merged` tells whether an axis without separate phases holds tiles of all, side by side."""
    return axis if merged and axis.dilation == 1 else phase_of(axis, start, outputs)


@helper
def plain(axis, outputs):
    """The axis, of `outputs` in all its phases, as those of a block are stored that lie in their order."""
    count = min(-(-outputs // axis.dilation), axis.tile * (axis.stride // axis.dilation))
    return Axis(axis.size, axis.stride, axis.dilation, axis.offset, count, count, 1, count, axis.period)


@helper
def dense(axis):
    """The axis as tiles lie after their transform, without cells between rows."""
    return Axis(
        axis.size, axis.stride, axis.dilation, axis.offset, axis.out, axis.tile, axis.slots, axis.tile, axis.period
    )  # fmt: skip


@helper
def apart(axis):
    """The axis as cells are staged that will be gathered: in one row."""
    return Axis(axis.size, axis.dilation, axis.dilation, axis.offset, axis.out, axis.tile, 1, axis.extent, axis.dilation)


@helper
def transform_cells(micro, offsets, scratch, n, begin, end, o0, o1, o2, x, d, h, w, layout, r):
    """Stage the channels `begin` to `end` of one block of tiles, some at a time, and transform them."""
    size = scratch.itemsize
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
    vector = layout.lanes * size
    cells = scratch[r.staged :]
    for first in range(begin, end, r.together):
        last = min(first + r.together, end)
        source, target = address_of(cells), address_of(scratch) + (first - begin) * r.pitch * size
        if r.lane_table != 0:
            start0, start1, start2 = o0 * layout.step0, o1 * layout.step1, o2 * layout.step2
            stage(x, n, first, last, start0, start1, start2, apart(d), apart(h), apart(w), layout.mode, micro[LOAD], cells)
            table, count = address_of(offsets) + r.lane_table * 8, ((t0 - 1) * h.tile + t1 - 1) * w.tile + t2
            call_kernel(
                micro[CELLS], source, address_of(offsets), target, r.cell_plane * size, last - first, plane * size,
                r.pitch * size, -(-count // layout.lanes), table, vector,
            )  # fmt: skip
            continue
        stage(x, n, first, last, o0, o1, o2, d, h, w, layout.mode, micro[LOAD], cells)
        if h.extent == h.tile and w.extent == w.tile:  # there is nothing between rows: all are one
            count = ((t0 - 1) * h.tile + t1 - 1) * w.tile + t2
            call_kernel(
                micro[CELLS], source, address_of(offsets), target, r.cell_plane * size, last - first, plane * size,
                r.pitch * size, -(-count // layout.lanes), vector, vector,
            )  # fmt: skip
            continue
        for c in range(last - first):
            for j0 in range(t0):
                call_kernel(
                    micro[CELLS], source + (c * plane + j0 * h.extent * w.extent) * size, address_of(offsets),
                    target + (c * r.pitch + j0 * h.tile * w.tile) * size, r.cell_plane * size, t1, w.extent * size, w.tile * size,
                    -(-t2 // layout.lanes), vector, vector,
                )  # fmt: skip


@helper
def clear_spare(scratch, channels, t0, t1, t2, d, h, w, layout, r):
    """Clear the lanes that a block of t0 x t1 x t2 tiles does not fill, since vectors are computed whole.

    What memory held before may be denormal numbers, each of which can take a processor 150 cycles: four times the time of a whole
    call was measured on a Granite Rapids. Later blocks leave normal numbers there.
    """
    across = -(-t2 // layout.lanes) * layout.lanes
    gaps = (across < w.tile and t0 * t1 > 1) or (t1 < h.tile and t0 > 1)
    begin = 0 if gaps else ((t0 - 1) * h.tile + t1 - 1) * w.tile + across
    for xi in range(r.products):
        for c in range(channels):
            row = xi * r.cell_plane + c * r.pitch
            scratch[row + begin : row + r.pitch] = 0
    plane = d.slots * h.slots * w.slots * d.extent * h.extent * w.extent
    end = r.staged + min(r.together, channels) * plane
    scratch[end : end + layout.lanes] = 0


@helper
def transform_weights(micro, offsets, weights, filters, channels, target, packed, layout, r, size):
    """Transform the weights of `filters` filters and some channels; `weights`, `target` and `packed` are addresses.

    Keeping them transformed from call to call does not pay: they are four times as many, and reading them from memory takes longer
    than transforming them in cache (512 x 512 x 3 x 3 on 16 tiles: 7.9 ms, not 5.3; kept in packed order 5.5, not 4.6).
    """
    row = r.wide * size
    whole = layout.channel == r.taps * size
    for p in range(0, filters, layout.lanes):
        source, place = weights + p * r.row, packed + p * size
        rows = min(layout.lanes, filters - p)
        if micro[PLACES] != 0:
            call_kernel(micro[PLACES], source, r.row, rows, place, row, channels, layout.channel, SOON * layout.channel)
        elif whole:
            call_kernel(micro[PACK], source, r.row, rows, place, row, channels * r.taps)
        else:
            for c in range(channels):
                one = source + c * layout.channel
                if micro[FETCH] != 0:
                    call_kernel(micro[FETCH], one + SOON * layout.channel, r.row * rows, 1, 0)
                call_kernel(micro[PACK], one, r.row, rows, place + c * r.taps * row, row, r.taps)
        call_kernel(
            micro[WEIGHTS], place, address_of(offsets) + r.tap_table * 8, target + p * size, r.weight_plane * size, 1, 0, 0,
            channels, r.taps * row, row,
        )  # fmt: skip


@helper
def fetch_results(fetch, home, count, o0, o1, o2, out, d, h, w, layout, part, parts):
    """Fetch one of `parts` parts of the rows where the tiles of `count` filters will be stored; the first one's plane is at `home`.

    Stores of a tile come all at once: in the time of its products, memory gives what they write to.
    """
    slices = min(d.tile * layout.step0, out.shape[2] - o0 * layout.step0)
    rows = min(h.tile * layout.step1, out.shape[3] - o1 * layout.step1)
    cells = min(w.tile * layout.step2, out.shape[4] - o2 * layout.step2)
    home += o0 * layout.step0 * out.strides[2] + o1 * layout.step1 * out.strides[3] + o2 * layout.step2 * out.strides[4]
    row, last = part * count * slices * rows // parts, (part + 1) * count * slices * rows // parts
    while row < last:
        plane, i, j = row // (slices * rows), row // rows % slices, row % rows
        some = min(rows - j, last - row)
        begin = home + plane * out.strides[1] + i * out.strides[2] + j * out.strides[3]
        call_kernel(fetch, begin, cells * out.itemsize, some, out.strides[3])
        row += some


@helper
def cells_together(out, o0, o1, o2, d, h, w, layout, room):
    """Cells of a slice of one filter's tile, if all phases of it are held in scratch, of `room` cells, for a function; else 0.

    A call of the function costs 17 ns and more: as much as a row of 14 takes.
    """
    size = out.itemsize
    cells = min(h.tile * layout.step1, out.shape[3] - o1 * layout.step1) * out.shape[4]
    slices = min(d.tile * layout.step0, out.shape[2] - o0 * layout.step0)
    across = o2 == 0 and w.tile * layout.step2 >= out.shape[4]
    dense = out.strides[4] == size and out.strides[3] == out.shape[4] * size
    return cells if across and dense and slices * cells <= room else 0


@kernel
def jobs(first, last, x, weights, bias, out, offsets, micro, scratch, apply, numbers):
    """Run jobs `first` to `last`; arguments as in `parallel`, with one row of its scratch."""
    layout, r = layout_of(numbers), regions_of(numbers)
    size = out.itemsize
    channels, filters = x.shape[1] // layout.groups, out.shape[1] // layout.groups
    filter_blocks = -(-filters // layout.filters)
    every0, every1, every2 = unpack_axes(numbers)
    gaps = every0.dilation, every1.dilation, every2.dilation
    base = address_of(scratch)
    vector = layout.lanes * size
    several = layout.vectors * layout.lanes
    staged = -1
    for job in range(first, last):
        place = job // filter_blocks
        k_first, k_last = block_of(job % filter_blocks, filters, layout.filters, layout.register)
        image_group, q0, q1, q2, o0, o1, o2 = tile_of(place, every0, every1, every2, gaps)
        g = image_group % layout.groups
        n = image_group // layout.groups
        merged = r.order_table != 0
        d, h = phase_with(every0, q0, out.shape[2], merged), phase_with(every1, q1, out.shape[3], merged)
        w = phase_with(every2, q2, out.shape[4], merged)
        target = out[:, :, q0 :: d.dilation, q1 :: h.dilation, q2 :: w.dilation]
        d_out, h_out, w_out = dense(d), dense(h), dense(w)
        if merged:
            d_out, h_out, w_out = plain(d, out.shape[2]), plain(h, out.shape[3]), plain(w, out.shape[4])
        if o0 >= d.out or o1 >= h.out or o2 >= w.out:
            continue
        box = box_of(d_out, h_out, w_out, layout)
        together, coming = 0, micro[RESULTS]
        if stores(apply):
            coming = 0
            together = cells_together(target, o0, o1, o2, d_out, h_out, w_out, layout, scratch.size - r.staged)
        t0, t1, t2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
        length = ((t0 - 1) * h.tile + t1 - 1) * w.tile + t2
        vectors = -(-length // layout.lanes)
        if staged != place:
            begin = g * channels
            if staged < 0 and r.lane_table == 0:
                clear_spare(scratch, channels, t0, t1, t2, d, h, w, layout, r)
            transform_cells(micro, offsets, scratch, n, begin, begin + channels, o0, o1, o2, x, d, h, w, layout, r)
            staged = place
        for k in range(k_first, k_last, layout.register):
            count = min(layout.register, k_last - k)
            which = 0 if count == layout.register else 2
            for c in range(0, channels, layout.channels):
                c_count = min(layout.channels, channels - c)
                source = weights + g * layout.group + k * r.row + c * layout.channel
                transform_weights(
                    micro, offsets, source, count, c_count, base + r.weights * size, base + r.staged * size, layout, r, size
                )  # fmt: skip
                for xi in range(r.products):
                    if coming != 0 and c == 0:
                        home = address_of(out) + n * out.strides[0] + (g * filters + k) * out.strides[1]
                        fetch_results(coming, home, count, o0, o1, o2, out, d, h, w, layout, xi, r.products)
                    v = base + (xi * r.cell_plane + c * r.pitch) * size
                    u = base + (r.weights + xi * r.weight_plane) * size
                    m = base + (r.sums + xi * r.sum_plane) * size
                    terms = address_of(offsets) + r.term_table * 8
                    for i in range(0, vectors * layout.lanes, several):
                        left = vectors * layout.lanes - i
                        # the cells of all channels are more than second-level cache holds: those of the next call come meanwhile
                        ahead = several if left > several else r.cell_plane - i
                        call_kernel(
                            micro[which + (0 if left >= several else 1)], u, v + i * size, terms, c_count, m + i * size,
                            r.pitch * size, c == 0, layout.lanes, 0, ahead * size,
                        )  # fmt: skip
            room = base + r.staged * size
            for p in range(count):
                sums = base + (r.sums + p * r.pitch) * size
                outputs = base + r.outputs * size
                call_kernel(
                    micro[OUTPUTS], sums, address_of(offsets) + r.plane_table * 8, outputs, r.pitch * size, 1, 0, 0,
                    vectors, vector, vector,
                )  # fmt: skip
                if merged and micro[ORDER] != 0:
                    for j in range(0, d_out.tile * h_out.tile * w_out.tile, w_out.tile):
                        here = outputs + offsets[r.order_table + j] * size
                        call_kernel(micro[ORDER], here, r.pitch * size, base + (r.ordered + j) * size, w_out.tile)
                    outputs = base + r.ordered * size
                elif merged:
                    for j in range(d_out.tile * h_out.tile * w_out.tile):
                        scratch[r.ordered + j] = scratch[r.outputs + offsets[r.order_table + j]]
                    outputs = base + r.ordered * size
                for start0 in range(layout.step0):
                    for start1 in range(layout.step1):
                        finish(
                            outputs, 0, r.pitch * size, g * filters + k + p, 1, n, o0, o1, o2, start0, start1, 0,
                            address_of(bias), target, micro[STORE], apply, room, together, box,
                        )  # fmt: skip
                        outputs += layout.step2 * r.pitch * size
                if together > 0:
                    home = address_of(target) + n * target.strides[0] + (g * filters + k + p) * target.strides[1]
                    home += o0 * layout.step0 * target.strides[2] + o1 * layout.step1 * target.strides[3]
                    for j in range(min(d_out.tile * layout.step0, target.shape[2] - o0 * layout.step0)):
                        run_at(apply, room + j * together * size, together, home + j * target.strides[2])


@kernel(parallel=True)
def parallel(run_jobs, count, x, weights, bias, out, offsets, micro, scratch, apply, numbers):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    x (N, C, ...); weights, their address, and what `Layout` and `Regions` say of them; bias (K,), contiguous; out (N, K, ...);
    offsets in bytes, of the cells of a tile, then the tables that `Regions` names; micro, the micro-kernels' addresses; scratch
    (threads, cells); numbers, the axes, in tiles, the layout and the regions.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weights, bias, out, offsets, micro, scratch[thread], apply, numbers)
