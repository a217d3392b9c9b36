"""What comes before and after a product: a padded copy, the fold of a padded gradient, the sum of splits."""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32, uint64

from . import scalars
from .ptx import address, to_tf32
from .tile import MOVED


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

    A block of threads moves 2**(11 - cell_bits) channels of 2**cell_bits cells; 3 <= cell_bits <= 8. Block
    b = (o * channel_blocks + channel block) * cell_blocks + cell block; the outer index o is (o // inner, o % inner) in the array.
    `shift` and `magic` divide: n // d = n * magic >> shift.
    """

    blocks: int
    cell_bits: int
    cell_blocks: int
    cell_blocks_magic: int
    cell_blocks_shift: int
    channel_blocks: int
    channel_blocks_magic: int
    channel_blocks_shift: int
    inner: int
    inner_magic: int
    inner_shift: int
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


@functools.cache
def make_channels_last(name: str, x_kind: str, weight_kind: str) -> Any:
    """Copies of two arrays whose channels stand side by side, filled up with zeros, and whose borders are part of them.

    out[o // inner, o % inner, cell, c] = x[o // inner, o % inner, c, cell - before], in words of 4 bytes; `name` is "uint16" for
    any type of two bytes, and "float32" for what is rounded to TF32. Kinds: "dense", cells lie s2 apart; "strided"; "bordered".
    """
    source_index = scalars.source_index
    halves, kept = name == "uint16", scalars.stored("uint16" if name == "uint16" else "uint32")
    read = scalars.stored(name)
    EACH = MOVED // 256
    PACK = 2 if halves else 1
    AREA = MOVED + PACK * 256  # rows of cells, filled up so that they meet all banks

    @cuda.jit(device=True)
    def divide(n, magic, shift):
        return int32((uint64(uint32(n)) * uint64(uint32(magic))) >> uint64(uint32(shift)))

    def make_move(kind):
        @cuda.jit(device=True)
        def move(x, out, g, block, tile):
            thread = int32(cuda.threadIdx.x)
            channels = int32(MOVED >> g.cell_bits)
            pitch = int32(channels + PACK)
            rest = divide(block, g.cell_blocks_magic, g.cell_blocks_shift)
            first_cell = int32(int32(block - rest * g.cell_blocks) << g.cell_bits)
            o = divide(rest, g.channel_blocks_magic, g.channel_blocks_shift)
            first_channel = int32(int32(rest - o * g.channel_blocks) * channels)
            outer = divide(o, g.inner_magic, g.inner_shift)
            inside = int32(o - outer * g.inner)

            # the threads' neighbours are cells
            lane, channel = int32(thread & ((1 << g.cell_bits) - 1)), int32(thread >> g.cell_bits)
            cell = int32(first_cell + lane)
            here = cell < g.cells
            place = int32(outer * g.outer + inside * g.inside + int32(first_channel + channel) * g.channel)
            if kind == "dense":
                place += int32(cell * g.s2)
            else:
                p2, row = int32(uint32(cell) % uint32(g.out2)), uint32(uint32(cell) // uint32(g.out2))
                p1, p0 = int32(row % uint32(g.out1)), int32(row // uint32(g.out1))
                if kind == "bordered":
                    p0 = int32(source_index(int64(p0 - g.before0), int64(g.size0), int64(g.mode)))
                    p1 = int32(source_index(int64(p1 - g.before1), int64(g.size1), int64(g.mode)))
                    p2 = int32(source_index(int64(p2 - g.before2), int64(g.size2), int64(g.mode)))
                    here = here and p0 >= 0 and p1 >= 0 and p2 >= 0
                place += int32(p0 * g.s0 + p1 * g.s1 + p2 * g.s2)
            step = int32(256 >> g.cell_bits)
            left = int32(g.channels - first_channel - channel if here else 0)
            held = cuda.local.array(EACH, read)
            at_x, step_x = address(x, place), int32(step * g.channel)
            for i in range(EACH):
                held[i] = at_x[0] if i * step < left else 0
                at_x = address(at_x, step_x)
            at = int32(lane * pitch + channel)
            for i in range(EACH):
                tile[at] = held[i] if halves else to_tf32(held[i])
                at += step
            cuda.syncthreads()

            # the threads' neighbours are channels
            bits = int32(11 - g.cell_bits - (1 if halves else 0))
            word = int32(thread & ((1 << bits) - 1))
            lane, step = int32(thread >> bits), int32(256 >> bits)
            if first_channel + word * PACK < g.padded:
                to = address(out, int32(outer * g.to_outer + inside * g.to_inside + int32(first_cell + lane) * g.to_cell))
                to = address(to, int32(first_channel // PACK + word))
                at, cells_left = int32(lane * pitch + word * PACK), int32(g.cells - first_cell - lane)
                for i in range(EACH // PACK):
                    if i * step < cells_left:
                        if halves:
                            to[0] = uint32(tile[at]) | uint32(tile[at + 1]) << uint32(16)
                        else:
                            to[0] = tile[at]
                    at += step * pitch
                    to = address(to, int32(step * g.to_cell))

        return move

    move_x, move_weight = make_move(x_kind), make_move(weight_kind)

    def channels_last(x, x_out, weight, weight_out, g, h):
        tile = cuda.shared.array(AREA, kept)
        block = int32(cuda.blockIdx.x)
        if block < g.blocks:
            move_x(x, x_out, g, block, tile)
        else:
            move_weight(weight, weight_out, h, int32(block - g.blocks), tile)

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
def make_sum_splits(name: str, dense: bool, each: int, function: Any = None) -> Any:
    """out[i] = activation(bias[k] + sum_s parts[s, i]) in the order of s, for `each` results a thread.

    Parts are contiguous; out has strides unless `dense`.
    """
    widen, narrow, kind = scalars.widen(name), scalars.narrow(name), scalars.summed(name)
    zero = kind(0)
    activation = scalars.activation(function)

    def sum_splits(parts, bias, out, g):
        first = uint32(cuda.blockIdx.x * cuda.blockDim.x * each + cuda.threadIdx.x)
        for turn in range(each):
            i = uint32(first + turn * cuda.blockDim.x)
            if i < uint32(g.results):
                total = zero
                at, split = int64(i), 0
                while split + 4 <= g.splits:  # loads that do not wait for each other
                    p0, p1 = parts[at], parts[at + g.results]
                    p2, p3 = parts[at + 2 * int64(g.results)], parts[at + 3 * int64(g.results)]
                    total = total + p0 + p1 + p2 + p3
                    at += 4 * int64(g.results)
                    split += 4
                while split < g.splits:
                    total += parts[at]
                    at += g.results
                    split += 1
                place = int64(i)
                if g.biased or not dense:
                    plane, cell = uint32(i // uint32(g.cells1)), uint32(i % uint32(g.cells1))
                    n, k = int32(plane // uint32(g.channels)), int32(plane % uint32(g.channels))
                    if g.biased:
                        total += widen(bias[k])
                    if not dense:
                        o0, rest = int32(cell // uint32(g.cells2)), uint32(cell % uint32(g.cells2))
                        o1, o2 = int32(rest // uint32(g.cells3)), int32(rest % uint32(g.cells3))
                        place = int64(n) * g.y_image + int64(k) * g.y_channel
                        place += int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
                if activation is not None:
                    total = activation(kind(total))
                out[place] = narrow(total)

    return sum_splits
