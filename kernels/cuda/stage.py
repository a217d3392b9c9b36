"""What comes before and after a product: a padded copy, the fold of a padded gradient, the sum of splits."""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32

from . import scalars
from .ptx import to_tf32


@functools.cache
def make_pad(name: str) -> Any:
    """out[n,c,p] = x[n, c, source of p - before], contiguous; 0 where the padding is zero. `g.out` is the padded size."""
    source_index, narrow, zero = scalars.source_index, scalars.narrow(name), scalars.summed(name)(0)

    def pad(x, out, g, xs):
        i = int64(cuda.grid(1))
        if i >= g.batch * g.channels * g.out0 * g.out1 * g.out2:
            return
        at = i
        p2, i = i % g.out2, i // g.out2
        p1, i = i % g.out1, i // g.out1
        p0, i = i % g.out0, i // g.out0
        c, n = i % g.channels, i // g.channels
        i0 = source_index(p0 - g.before0, g.size0, g.mode)
        i1 = source_index(p1 - g.before1, g.size1, g.mode)
        i2 = source_index(p2 - g.before2, g.size2, g.mode)
        if i0 >= 0 and i1 >= 0 and i2 >= 0:
            out[at] = x[n * xs.s0 + c * xs.s1 + i0 * xs.s2 + i1 * xs.s3 + i2 * xs.s4]
        else:
            out[at] = narrow(zero)

    return pad


@functools.cache
def make_fold(name: str) -> Any:
    """out[n,c,i] = sum of the cells of `padded`, contiguous and in the summing dtype, that were copied from cell i."""
    source_index, narrow, zero = scalars.source_index, scalars.narrow(name), scalars.summed(name)(0)

    def fold(padded, out, g, xs):
        i = int64(cuda.grid(1))
        if i >= g.batch * g.channels * g.size0 * g.size1 * g.size2:
            return
        i2, i = i % g.size2, i // g.size2
        i1, i = i % g.size1, i // g.size1
        i0, i = i % g.size0, i // g.size0
        c, n = i % g.channels, i // g.channels
        total = zero
        plane = (n * g.channels + c) * g.out0
        # The border's cells, in front and behind, may have been copied from here; of the others only one was.
        for j0 in range(g.out0 - g.size0 + 1):
            p0 = j0 if j0 < g.before0 else (i0 + g.before0 if j0 == g.before0 else j0 + g.size0 - 1)
            if source_index(p0 - g.before0, g.size0, g.mode) == i0:
                for j1 in range(g.out1 - g.size1 + 1):
                    p1 = j1 if j1 < g.before1 else (i1 + g.before1 if j1 == g.before1 else j1 + g.size1 - 1)
                    if source_index(p1 - g.before1, g.size1, g.mode) == i1:
                        for j2 in range(g.out2 - g.size2 + 1):
                            p2 = j2 if j2 < g.before2 else (i2 + g.before2 if j2 == g.before2 else j2 + g.size2 - 1)
                            if source_index(p2 - g.before2, g.size2, g.mode) == i2:
                                total += padded[((plane + p0) * g.out1 + p1) * g.out2 + p2]
        out[n * xs.s0 + c * xs.s1 + i0 * xs.s2 + i1 * xs.s3 + i2 * xs.s4] = narrow(total)

    return fold


class Order(NamedTuple):
    """How an array is put in order: sizes, and strides in elements; cells have up to three axes.

    A block of threads moves 2**(11 - cell_bits) channels of 2**cell_bits cells; 3 <= cell_bits <= 8.
    """

    blocks: int
    cell_blocks: int  # of one outer index
    channel_blocks: int
    cell_bits: int
    inner: int  # the outer index o is (o // inner, o % inner) in the array
    channels: int
    padded: int
    cells: int
    out1: int  # cells of the border included
    out2: int
    size0: int
    size1: int
    size2: int
    before0: int
    before1: int
    before2: int
    mode: int
    outer: int
    inside: int
    channel: int
    s0: int
    s1: int
    s2: int
    to_outer: int
    to_inside: int
    to_cell: int


MOVED = 2048  # elements of a block
MOST_CELL_BITS = 8


@functools.cache
def make_channels_last(name: str) -> Any:
    """Copies of two arrays whose channels stand side by side, filled up with zeros, and whose borders are part of them.

    out[o // inner, o % inner, cell, c] = x[o // inner, o % inner, c, cell - before], in words of 4 bytes; `name` is "uint16" for
    any type of two bytes, and "float32" for what is rounded to TF32.
    """
    source_index = scalars.source_index
    halves, kept = name == "uint16", scalars.stored("uint16" if name == "uint16" else "uint32")
    EACH = MOVED // 256
    PACK = 2 if halves else 1
    AREA = MOVED + PACK * (1 << MOST_CELL_BITS)

    @cuda.jit(device=True)
    def move(x, out, g, block, tile):
        thread = int32(cuda.threadIdx.x)
        channels = int32(MOVED >> g.cell_bits)
        pitch = int32(channels + PACK)
        first_cell = int32(block % g.cell_blocks << g.cell_bits)
        rest = int32(block // g.cell_blocks)
        first_channel = int32(rest % g.channel_blocks * channels)
        o = int32(rest // g.channel_blocks)
        outer, inside = int32(o // g.inner), int32(o % g.inner)

        # the threads' neighbours are cells
        lane = int32(thread & ((1 << g.cell_bits) - 1))
        cell = uint32(first_cell + lane)
        p2, row = int32(cell % uint32(g.out2)), uint32(cell // uint32(g.out2))
        p1, p0 = int32(row % uint32(g.out1)), int32(row // uint32(g.out1))
        i0 = int32(source_index(int64(p0 - g.before0), int64(g.size0), int64(g.mode)))
        i1 = int32(source_index(int64(p1 - g.before1), int64(g.size1), int64(g.mode)))
        i2 = int32(source_index(int64(p2 - g.before2), int64(g.size2), int64(g.mode)))
        here = i0 >= 0 and i1 >= 0 and i2 >= 0 and int32(cell) < g.cells
        channel = int32(thread >> g.cell_bits)
        place = (
            int64(outer) * g.outer + int64(inside) * g.inside + int64(i0) * g.s0 + int64(i1) * g.s1 + int64(i2) * g.s2
            + int64(first_channel + channel) * g.channel
        )  # fmt: skip
        step = int32(256 >> g.cell_bits)
        left = int32(g.channels - first_channel - channel if here else 0)
        held = cuda.local.array(EACH, kept)
        for i in range(EACH):
            held[i] = 0
            if i * step < left:
                value = x[place + int64(i * step) * g.channel]
                held[i] = value if halves else to_tf32(value)
        at = int32(lane * pitch + channel)
        for i in range(EACH):
            tile[at + i * step] = held[i]
        cuda.syncthreads()

        # the threads' neighbours are channels
        bits = int32(11 - g.cell_bits - (1 if halves else 0))
        word = int32(thread & ((1 << bits) - 1))
        lane, step = int32(thread >> bits), int32(256 >> bits)
        if first_channel + word * PACK < g.padded:
            place = (
                int64(outer) * g.to_outer + int64(inside) * g.to_inside + int64(first_cell + lane) * g.to_cell
                + int64(first_channel // PACK + word)
            )  # fmt: skip
            for i in range(EACH // PACK):
                if first_cell + lane + i * step < g.cells:
                    at = int32((lane + i * step) * pitch + word * PACK)
                    if halves:
                        out[place] = uint32(tile[at]) | uint32(tile[at + 1]) << uint32(16)
                    else:
                        out[place] = tile[at]
                place += int64(step) * g.to_cell

    def channels_last(x, x_out, weight, weight_out, g, h):
        tile = cuda.shared.array(AREA, kept)
        block = int32(cuda.blockIdx.x)
        if block < g.blocks:
            move(x, x_out, g, block, tile)
        else:
            move(weight, weight_out, h, int32(block - g.blocks), tile)

    return channels_last


class Sum(NamedTuple):
    """Sizes and strides, in elements, of what parts are summed to."""

    results: int
    splits: int
    channels: int
    cells1: int  # cells of one channel, of a plane, of a row
    cells2: int
    cells3: int
    y_image: int
    y_channel: int
    y0: int
    y1: int
    y2: int
    biased: int


@functools.cache
def make_sum_splits(name: str, function: Any = None) -> Any:
    """out[i] = activation(bias[k] + sum_s parts[s, i]) in the order of s; parts are contiguous, out has strides."""
    widen, narrow, kind = scalars.widen(name), scalars.narrow(name), scalars.summed(name)
    zero = kind(0)
    activation = scalars.activation(function)

    def sum_splits(parts, bias, out, g):
        i = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        if i >= uint32(g.results):
            return
        total = zero
        for split in range(g.splits):
            total += parts[int64(split) * g.results + i]
        plane, cell = uint32(i // uint32(g.cells1)), uint32(i % uint32(g.cells1))
        n, k = int32(plane // uint32(g.channels)), int32(plane % uint32(g.channels))
        o0, rest = int32(cell // uint32(g.cells2)), uint32(cell % uint32(g.cells2))
        o1, o2 = int32(rest // uint32(g.cells3)), int32(rest % uint32(g.cells3))
        if g.biased:
            total += widen(bias[k])
        if activation is not None:
            total = activation(kind(total))
        place = int64(n) * g.y_image + int64(k) * g.y_channel + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
        out[place] = narrow(total)

    return sum_splits
