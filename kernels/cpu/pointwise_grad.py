"""dW of 1x1 convolutions whose arrays are runs of memory.

    dw[k, c] = sum_n sum_i  dy[n, k, i] * x[n, c, i]

One of the two, `across`, is transposed in panels of neighbouring channels of it; the other, `along`, is read where it lies.
Compute: `microkernel.rows`, which broadcasts cells of several rows of `along` over vectors of a panel.
Store: the sums of each split, which the caller adds in order. They are added up in the order of `panel_grad`.

A job is one (split, group, block of filters, block of channels). A split is a run of the list of (images, tile).
`weight_grad.parallel` launches them.
"""

from ..helper import helper
from ..jit import address_of, kernel
from .microkernel import call_kernel
from .panel_grad import PACK, store_sums
from .tile import block_of

COPY = 7  # after the micro-kernels of `panel_grad`, whose places are shared


@helper
def width_of(channels, k, blocks):
    """Channels of the panel that begins at `k`, of `channels`: a whole number of vectors."""
    return min(blocks.vectors * blocks.lanes, -(-(channels - k) // blocks.lanes) * blocks.lanes)


@helper
def transpose(across, n, images, first, count, o, length, micro, target, blocks):
    """Transpose `count` channels from `first` on of `length` positions of some images, (panel, image, position, channel)."""
    size, wide = across.itemsize, blocks.vectors * blocks.lanes
    for k in range(0, count, blocks.lanes):
        begin = k // wide * wide
        width = width_of(count, begin, blocks)
        place = target + (begin * images * length + k - begin) * size
        for i in range(images):
            source = address_of(across) + (n + i) * across.strides[0] + (first + k) * across.strides[1] + o * size
            call_kernel(micro[PACK], source, across.strides[1], min(blocks.lanes, count - k), place, width * size, length)
            place += length * width * size


@helper
def multiply(along, n, images, first, count, o, length, micro, panels, others, totals, fresh, blocks):
    """Add a tile's products to the totals, (panel, channel of along, channel of across); `panels` and `totals` are addresses."""
    size, wide = along.itemsize, blocks.vectors * blocks.lanes
    source = address_of(along) + n * along.strides[0] + o * size
    for c in range(0, count, blocks.register):
        whole = count - c >= blocks.register
        cells = source + (first + c) * along.strides[1]
        for k in range(0, others, wide):
            width = width_of(others, k, blocks)
            call_kernel(
                micro[(0 if whole else 2) + (0 if width == wide else 1)], cells, along.strides[1], along.strides[0],
                panels + k * images * length * size, length, images, totals + (k * count + c * width) * size, width * size, fresh,
            )  # fmt: skip


@helper
def store_rows(micro, totals, rows, columns, target, room, blocks):
    """Store totals, (panel, row, column of the panel); `room` is a cell of scratch."""
    size = totals.itemsize
    room[0] = 0  # the bias
    for k in range(0, columns, blocks.vectors * blocks.lanes):
        width = width_of(columns, k, blocks)
        call_kernel(
            micro[COPY], address_of(totals) + k * rows * size, width * size, 0, address_of(target) + k * size, target.strides[0],
            size, rows, min(width, columns - k), address_of(room),
        )  # fmt: skip


@kernel
def jobs(first, last, dy, x, sums, offsets, micro, scratch, d, h, w, blocks):
    """Run jobs `first` to `last`; arguments as those of `weight_grad.parallel`, with one row of its scratch.

    x and dy are (N, channels, 1, 1, positions), the one that is `along` a run of memory; tiles are of some images and positions.
    `blocks.inside` tells whether that is x. Scratch: the totals of a block, and its panels.
    """
    size = sums.itemsize
    along, across = (x, dy) if blocks.inside else (dy, x)
    row_block, column_block = (blocks.channels, blocks.filters) if blocks.inside else (blocks.filters, blocks.channels)
    rows, columns = along.shape[1] // blocks.groups, across.shape[1] // blocks.groups
    row_blocks, column_blocks = -(-rows // row_block), -(-columns // column_block)
    tiles = -(-w.out // w.tile)
    places = -(-along.shape[0] // d.tile) * tiles
    totals = scratch[: row_block * -(-column_block // blocks.lanes) * blocks.lanes]
    panels = address_of(scratch) + totals.size * size
    if columns % blocks.lanes != 0:
        scratch[totals.size :] = 0  # see `winograd.clear_spare`
    for job in range(first, last):
        row, column = job % row_blocks, job // row_blocks % column_blocks
        if not blocks.inside:
            row, column = job // column_blocks % row_blocks, job % column_blocks
        c_first, c_last = block_of(row, rows, row_block, blocks.register)
        k_first, k_last = block_of(column, columns, column_block, blocks.vectors * blocks.lanes)
        g = job // (column_blocks * row_blocks) % blocks.groups
        split = job // (column_blocks * row_blocks * blocks.groups)
        k_count, c_count = k_last - k_first, c_last - c_first
        k, c = g * columns + k_first, g * rows + c_first
        begin = split * places // sums.shape[0]
        for place in range(begin, (split + 1) * places // sums.shape[0]):
            n, o = place // tiles * d.tile, place % tiles * w.tile
            images, length = min(d.tile, along.shape[0] - n), min(w.tile, w.out - o)
            transpose(across, n, images, k, k_count, o, length, micro, panels, blocks)
            multiply(along, n, images, c, c_count, o, length, micro, panels, k_count, address_of(totals), place == begin, blocks)
        if blocks.inside:
            store_sums(micro, totals, k_count, c_count, sums[split, k:, c_first:], blocks)
        else:
            store_rows(micro, totals, c_count, k_count, sums[split, c:, k_first:], scratch[totals.size :], blocks)
