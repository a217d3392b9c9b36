"""dW by Winograd's algorithm: a convolution in which a tile of dy is the filter, stride 1, any dilation.

    dw[k, c] = A^T [ sum_n sum_tiles (G dy_k G^T) * (B^T x_c B) ] A          F(taps, m) on each axis, m outputs a tile

Stage: the input of a block of tiles, and dy, transposed as for `panel_grad`: channels or filters lie side by side, so that the
vectors of a transform are of neighbouring channels. dy is followed by zeros up to a whole tile. With dilation d on an axis, outputs
q, q + d, ... and the cells that they read are one phase, which is staged as if they were neighbours; or, where an image has few
tiles, all phases are staged as they lie, and each takes its cells d apart.
Compute: for each product of a tile, `microkernel.panel`, which broadcasts channels over vectors of filters, over the tiles of a
block, or of several that have few, since all sums are loaded and stored each time.
Store: the sums of each split, transformed once, which the caller adds in order.

A job is one (split, group, block of filters, block of channels), as in `panel_grad`.
"""

from typing import NamedTuple

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from ..padding import ZEROS
from .microkernel import call_kernel
from .panel_grad import stage_channels, store_sums
from .tile import Axis, Blocks, block_of, tile_of, unpack_axes

# Places in the array of micro-kernels, behind those of `panel_grad`.
CELLS, DY, SUMS = 7, 8, 9


class Regions(NamedTuple):
    """What Winograd's driver adds to axes and blocks.

    step0, step1, step2 : outputs of a tile on each axis
    gap0, gap1, gap2 : phases on each axis whose cells are staged together, those of a tile so far apart
    products : of a tile
    together, room : blocks of tiles that are transformed before they are multiplied, and tiles of them at the most
    row : cells of a row of transformed channels
    cell_plane, dy_plane, sum_plane : cells from product to product of transformed cells, of dy and of sums
    cells, dy, staged, spare : first cells of the parts of scratch; the first part holds the sums
    dy_table, sum_table : first entries of the offsets for the transforms of dy and sums
    """

    step0: int
    step1: int
    step2: int
    gap0: int
    gap1: int
    gap2: int
    products: int
    together: int
    room: int
    row: int
    cell_plane: int
    dy_plane: int
    sum_plane: int
    cells: int
    dy: int
    staged: int
    spare: int
    dy_table: int
    sum_table: int


@helper
def unpack(numbers):
    """Axes, blocks and regions out of the array of all their numbers."""
    a = numbers
    d, h, w = unpack_axes(a)
    blocks = Blocks(a[27], a[28], a[29], a[30], a[31], a[32], a[33], a[34], a[35], a[36])
    regions = Regions(
        a[37], a[38], a[39], a[40], a[41], a[42], a[43], a[44], a[45], a[46], a[47], a[48], a[49], a[50], a[51], a[52],
        a[53], a[54], a[55],
    )  # fmt: skip
    return d, h, w, blocks, regions


@helper
def phase_of(axis, start, outputs):
    """The axis of the outputs `start`, `start` + stride, ... of `outputs`; the stride is the dilation."""
    count = max(0, -(-(outputs - start) // axis.stride))
    return Axis(axis.size, axis.stride, 1, axis.offset + start, count, axis.tile, axis.slots, axis.extent, axis.period)


@helper
def outputs_of(axis, start, outputs):
    """dy's own axis of a phase: its cells, and a tile of them without a border."""
    return Axis(outputs, axis.stride, 1, start, axis.out, axis.tile, 1, axis.tile, 1)


@helper
def tiles_of(outputs, phase, gap, step):
    """Tiles of the outputs `phase`, `phase` + gap, ... of `outputs`."""
    return -(-max(0, -(-(outputs - phase) // gap)) // step)


@helper
def transform(address, offsets, source, target, plane, n0, n1, n2, h, w, lanes, row, r, size):
    """Transform all tiles of a block of outputs, of `lanes` channels that lie side by side, and return how many there are.

    Rows of the target are `row` cells apart. Phases that are staged together follow one another.
    """
    done, cell = 0, lanes * size
    for q0 in range(r.gap0):
        for q1 in range(r.gap1):
            for q2 in range(r.gap2):
                t0, t1 = tiles_of(n0, q0, r.gap0, r.step0), tiles_of(n1, q1, r.gap1, r.step1)
                t2 = tiles_of(n2, q2, r.gap2, r.step2)
                for j0 in range(t0):
                    corner = ((q0 + j0 * r.step0 * r.gap0) * h.extent + q1) * w.extent + q2
                    call_kernel(
                        address, source + corner * cell, offsets, target + (done + j0 * t1 * t2) * row * size, plane * size, t1,
                        r.step1 * r.gap1 * w.extent * cell, t2 * row * size, t2, r.step2 * r.gap2 * cell, row * size,
                    )  # fmt: skip
                done += t0 * t1 * t2
    return done


@kernel
def jobs(first, last, dy, x, sums, offsets, micro, scratch, numbers):
    """Run jobs `first` to `last`; shapes as in `parallel`, with one row of its scratch."""
    every0, every1, every2, blocks, r = unpack(numbers)
    size = sums.itemsize
    lanes = blocks.lanes
    base, table = address_of(scratch), address_of(offsets)
    channels, filters = x.shape[1] // blocks.groups, dy.shape[1] // blocks.groups
    taps = sums.shape[2] // channels
    wide = blocks.vectors * lanes
    channel_blocks, filter_blocks = -(-channels // blocks.channels), -(-filters // blocks.filters)
    tiles0, tiles1, tiles2 = -(-every0.out // every0.tile), -(-every1.out // every1.tile), -(-every2.out // every2.tile)
    gaps = every0.stride, every1.stride, every2.stride
    places = dy.shape[0] * gaps[0] * gaps[1] * gaps[2] * tiles0 * tiles1 * tiles2
    plane = every0.extent * every1.extent * every2.extent
    plane_dy = every0.tile * every1.tile * every2.tile
    # channels and filters are staged by a vector of them at a time, and dy within zeros
    of_x = Blocks(1, blocks.mode, 0, 0, 1, lanes, 1, 0, lanes, 0)
    of_dy = Blocks(1, ZEROS, 0, 0, 1, lanes, 1, 0, lanes, 0)
    staged, spare = scratch[r.staged :], scratch[r.spare :]
    if channels % lanes != 0 or filters % lanes != 0:
        staged[:] = 0  # see `winograd.clear_spare`
    for job in range(first, last):
        c_first, c_last = block_of(job % channel_blocks, channels, blocks.channels, blocks.register)
        k_first, k_last = block_of(job // channel_blocks % filter_blocks, filters, blocks.filters, wide)
        group = job // (filter_blocks * channel_blocks) % blocks.groups
        split = job // (filter_blocks * channel_blocks * blocks.groups)
        k_count, c_count = k_last - k_first, c_last - c_first
        k_base, c_base = group * filters + k_first, group * channels + c_first
        begin, end = split * places // sums.shape[0], (split + 1) * places // sums.shape[0]
        done, fresh = 0, True
        for place in range(begin, end):
            n, q0, q1, q2, o0, o1, o2 = tile_of(place, every0, every1, every2, gaps)
            d, h, w = phase_of(every0, q0, dy.shape[2]), phase_of(every1, q1, dy.shape[3]), phase_of(every2, q2, dy.shape[4])
            e, f, g = outputs_of(d, q0, dy.shape[2]), outputs_of(h, q1, dy.shape[3]), outputs_of(w, q2, dy.shape[4])
            n0, n1, n2 = min(d.tile, d.out - o0), min(h.tile, h.out - o1), min(w.tile, w.out - o2)
            count = 0
            for c in range(0, c_count, lanes):
                last_c = c_base + min(c + lanes, c_count)
                stage_channels(x, n, c_base + c, last_c, o0, o1, o2, plane, micro, spare, staged, d, h, w, of_x, lanes)
                target = base + (r.cells + done * r.row + c) * size
                count = transform(
                    micro[CELLS], table, address_of(staged), target, r.cell_plane, n0, n1, n2, h, w, lanes, r.row, r, size
                )  # fmt: skip
            for k in range(0, k_count, lanes):
                last_k = k_base + min(k + lanes, k_count)
                stage_channels(dy, n, k_base + k, last_k, o0, o1, o2, plane_dy, micro, spare, staged, e, f, g, of_dy, lanes)
                panel = k // wide * wide
                across = min(wide, -(-(k_count - panel) // lanes) * lanes)
                target = base + (r.dy + panel * r.room + done * across + k - panel) * size
                transform(
                    micro[DY], table + r.dy_table * 8, address_of(staged), target, r.dy_plane, n0, n1, n2, f, g, lanes, across, r,
                    size,
                )  # fmt: skip
            done += count
            if (place - begin + 1) % r.together != 0 and place + 1 < end:
                continue
            for xi in range(r.products):
                for k in range(0, k_count, wide):
                    across = min(wide, -(-(k_count - k) // lanes) * lanes)
                    panel = base + (r.dy + xi * r.dy_plane + k * r.room) * size
                    target = base + (xi * r.sum_plane + k * c_count) * size
                    for c in range(0, c_count, blocks.register):
                        rows = min(blocks.register, c_count - c)
                        which = micro[(0 if rows == blocks.register else 2) + (0 if across == wide else 1)]
                        cells = base + (r.cells + xi * r.cell_plane + c) * size
                        call_kernel(  # without tiles, it sets the sums to zero if they are the first
                            which, cells, r.row * size, 0, 0, panel, done, 1, 1, target + c * across * size, across * size, fresh
                        )
            done, fresh = 0, False
        for k in range(0, k_count, wide):
            across = min(wide, -(-(k_count - k) // lanes) * lanes)
            done = base + (r.cells + k * c_count * taps) * size
            call_kernel(
                micro[SUMS], base + k * c_count * size, table + r.sum_table * 8, done, across * size, c_count, across * size,
                taps * across * size, across // lanes, lanes * size, lanes * size,
            )  # fmt: skip
        store_sums(micro, scratch[r.cells :], k_count, c_count * taps, sums[split, k_base:, c_first * taps :], blocks)


@kernel(parallel=True)
def parallel(run_jobs, count, dy, x, sums, offsets, micro, scratch, numbers):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    dy (N, K, ...), the last axis of which is contiguous; x (N, C, ...), sums (splits, K, C / groups * taps), offsets in bytes for
    the transforms of cells, dy and sums; micro, the micro-kernels' addresses; scratch (threads, cells); numbers, the axes, the
    blocks and the regions.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, dy, x, sums, offsets, micro, scratch[thread], numbers)
