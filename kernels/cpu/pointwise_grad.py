"""dW of 1x1 convolutions whose arrays are runs of memory.

    dw[k, c] = sum_n sum_i  dy[n, k, i] * x[n, c, i]

One of the two, `across`, is transposed in panels of neighbouring channels of it; the other, `along`, is read where it lies.
Compute: `microkernel.rows`, which broadcasts cells of several rows of `along` over vectors of a panel.
Store: the sums of each split, which the caller adds in order. They are added up in the order of `panel_grad`.

A job is one (split, group, block of along, block of across). A split is a run of the list of (images, tile).
"""

from typing import NamedTuple

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from .microkernel import call_kernel
from .panel_grad import PACK, store_sums

COPY = 7  # after the micro-kernels of `panel_grad`, whose places are shared


class Points(NamedTuple):
    """How the positions and the channels are cut.

    groups : as in the problem
    images, tile : images of a tile, and positions of each
    along, across : channels of a block of either array
    register, vectors, lanes : rows and vectors of one call, scalars of a vector
    swapped : whether `across` is x
    """

    groups: int
    images: int
    tile: int
    along: int
    across: int
    register: int
    vectors: int
    lanes: int
    swapped: int


@helper
def width_of(channels, k, points):
    """Channels of the panel that begins at `k`, of `channels`: a whole number of vectors."""
    return min(points.vectors * points.lanes, -(-(channels - k) // points.lanes) * points.lanes)


@helper
def transpose(across, n, images, first, count, o, length, micro, target, points):
    """Transpose `count` channels from `first` on of `length` positions of some images, (panel, image, position, channel)."""
    size, wide = across.itemsize, points.vectors * points.lanes
    for k in range(0, count, points.lanes):
        begin = k // wide * wide
        width = width_of(count, begin, points)
        place = target + (begin * images * length + k - begin) * size
        for i in range(images):
            source = address_of(across) + (n + i) * across.strides[0] + (first + k) * across.strides[1] + o * size
            call_kernel(micro[PACK], source, across.strides[1], min(points.lanes, count - k), place, width * size, length)
            place += length * width * size


@helper
def multiply(along, n, images, first, count, o, length, micro, panels, others, totals, fresh, points):
    """Add a tile's products to the totals, (panel, channel of along, channel of across); `panels` and `totals` are addresses."""
    size, wide = along.itemsize, points.vectors * points.lanes
    source = address_of(along) + n * along.strides[0] + o * size
    for c in range(0, count, points.register):
        whole = count - c >= points.register
        cells = source + (first + c) * along.strides[1]
        for k in range(0, others, wide):
            width = width_of(others, k, points)
            call_kernel(
                micro[(0 if whole else 2) + (0 if width == wide else 1)], cells, along.strides[1], along.strides[0],
                panels + k * images * length * size, length, images, totals + (k * count + c * width) * size, width * size, fresh,
            )  # fmt: skip


@helper
def store_rows(micro, totals, rows, columns, target, room, points):
    """Store totals, (panel, row, column of the panel); `room` is a cell of scratch."""
    size = totals.itemsize
    room[0] = 0  # the bias
    for k in range(0, columns, points.vectors * points.lanes):
        width = width_of(columns, k, points)
        call_kernel(
            micro[COPY], address_of(totals) + k * rows * size, width * size, 0, address_of(target) + k * size, target.strides[0],
            size, rows, min(width, columns - k), address_of(room),
        )  # fmt: skip


@kernel
def jobs(first, last, along, across, sums, micro, scratch, points):
    """Run jobs `first` to `last`; arguments as in `parallel`, with one row of its scratch."""
    size = sums.itemsize
    rows, columns = along.shape[1] // points.groups, across.shape[1] // points.groups
    row_blocks, column_blocks = -(-rows // points.along), -(-columns // points.across)
    tiles = -(-along.shape[2] // points.tile)
    places = -(-along.shape[0] // points.images) * tiles
    totals = scratch[: points.along * -(-points.across // points.lanes) * points.lanes]
    panels = address_of(scratch) + totals.size * size
    for job in range(first, last):
        k_first = job % column_blocks * points.across
        c_first = job // column_blocks % row_blocks * points.along
        g = job // (column_blocks * row_blocks) % points.groups
        split = job // (column_blocks * row_blocks * points.groups)
        k_count, c_count = min(points.across, columns - k_first), min(points.along, rows - c_first)
        k, c = g * columns + k_first, g * rows + c_first
        begin = split * places // sums.shape[0]
        for place in range(begin, (split + 1) * places // sums.shape[0]):
            n, o = place // tiles * points.images, place % tiles * points.tile
            images, length = min(points.images, along.shape[0] - n), min(points.tile, along.shape[2] - o)
            transpose(across, n, images, k, k_count, o, length, micro, panels, points)
            multiply(along, n, images, c, c_count, o, length, micro, panels, k_count, address_of(totals), place == begin, points)
        if points.swapped:
            store_rows(micro, totals, c_count, k_count, sums[split, c:, k_first:], scratch[totals.size :], points)
        else:
            store_sums(micro, totals, k_count, c_count, sums[split, k:, c_first:], points)


@kernel(parallel=True)
def parallel(run_jobs, count, along, across, sums, micro, scratch, points):
    """Run `count` jobs, an equal share on each row of `scratch`; `run_jobs` is the address of `jobs`.

    along, across (N, C, positions) and (N, K, positions) or the other way round; sums (splits, K, C / groups); micro, the
    micro-kernels' addresses in the places of `panel_grad`; scratch (threads, cells): the totals of a block, and its panels.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, along, across, sums, micro, scratch[thread], points)
