"""Convolution as a product of two matrices that are never formed: tiles of them are gathered into shared memory.

    sums[m, n] = sum_t weight[m, t] * x[t, n]     m filters of a group, n outputs (image and position), t terms (channel and tap)
    x[t, n]    = x[place of n + offset of t], or 0 where the tap lies outside of the image

forward, and dI for each phase of the input grid.
A block of threads computes `rows` x `columns` outputs. Copies run `stages` blocks of `depth` terms ahead of the products, without
passing through registers. Each thread multiplies a tile of `thread_rows` x `thread_columns`, in runs of four.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32, uint64

from . import scalars
from .ptx import RUN, commit, copy_async, outer_products, put, wait, zeros


class Tile(NamedTuple):
    """Sizes of a block of threads' work, in elements."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    stages: int
    interleaved: int = 0  # whether eight neighbouring threads of a warp form 2 x 4 instead of 1 x 8

    @property
    def threads(self) -> int:
        return self.rows * self.columns // (self.thread_rows * self.thread_columns)


class Geometry(NamedTuple):
    """Where the operands of a product stand, in elements; all fit 32 bits."""

    rows: int  # filters of a group
    pixels: int  # outputs of all images
    terms: int
    chunk: int  # terms of one split, whole blocks of them
    out0: int
    out1: int
    out2: int
    step0: int  # input cells from one output to the next
    step1: int
    step2: int
    start0: int  # input cell of output 0 and tap 0
    start1: int
    start2: int
    size0: int
    size1: int
    size2: int
    kernel0: int
    kernel1: int
    kernel2: int
    reach0: int  # input cells from one tap to the next
    reach1: int
    reach2: int
    x_image: int
    x_group: int
    x0: int
    x1: int
    x2: int
    w_group: int
    w_row: int
    y_split: int
    y_image: int
    y_group: int
    y_row: int
    y0: int
    y1: int
    y2: int
    biased: int


PAD = 4  # elements between rows of shared memory: stores of 8 terms x 4 rows then meet all 32 banks


@functools.cache
def shared_elements(tile: Tile) -> int:
    """Elements of shared memory that a block takes: the stages, or half of its results where that is more."""
    return max(tile.stages * tile.depth * (tile.rows + tile.columns + 2 * PAD), tile.rows // 2 * (tile.columns + PAD))


@functools.cache
def make_correlate(sizes: tuple[int, ...], name: str, out_name: str, function: Any = None) -> Any:
    """The kernel for one tile, dtype of operands and of results, and activation."""
    tile, dtype, memory = Tile(*sizes), scalars.stored(name), scalars.STORED[name]
    narrow, widen, activation = scalars.narrow(out_name), scalars.widen(name), scalars.activation(function)
    ROWS, COLUMNS, DEPTH, THREADS, STAGES = tile.rows, tile.columns, tile.depth, tile.threads, tile.stages
    A_PITCH, B_PITCH, INTERLEAVED = ROWS + PAD, COLUMNS + PAD, tile.interleaved
    STAGE = DEPTH * (A_PITCH + B_PITCH)
    # threads of a block side by side over columns, and a warp 4 x 8 of them
    ACROSS = COLUMNS // tile.thread_columns
    WARPS_ACROSS = ACROSS // 8
    A_COPIES, B_COPIES = ROWS * DEPTH // THREADS, COLUMNS * DEPTH // THREADS
    A_STEP, B_TERMS = THREADS // DEPTH, THREADS // COLUMNS
    HALF = tile.thread_rows // 2
    ROW_STEP, COLUMN_STEP = ROWS * RUN // tile.thread_rows, COLUMNS * RUN // tile.thread_columns
    KEPT = ROWS * HALF // tile.thread_rows
    start = zeros(tile.thread_rows * tile.thread_columns, dtype)
    multiply = outer_products(tile.thread_rows, tile.thread_columns, DEPTH, ROW_STEP, COLUMN_STEP, A_PITCH, B_PITCH)
    put_upper = put(tile.thread_rows, tile.thread_columns, 0, HALF, B_PITCH, COLUMN_STEP)
    put_lower = put(tile.thread_rows, tile.thread_columns, HALF, HALF, B_PITCH, COLUMN_STEP)
    wait_for_stage, wait_all = wait(STAGES - 2), wait(0)

    def correlate(x, weight, bias, out, terms, g):
        """Compute the outputs of one block; `terms` holds offset in x, number of the tap, offset in weight, and 0 of each term."""
        shared = cuda.shared.array(0, memory)
        thread = int32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        first, last = int32(split * g.chunk), int32(min(split * g.chunk + g.chunk, g.terms))

        # the output whose column of x this thread copies, and stores in the end
        column = int32(thread % COLUMNS)
        pixel = int32(min(first_column + column, g.pixels - 1))
        plane = int32(g.out1 * g.out2)
        image, cell = int32(pixel // (g.out0 * plane)), int32(pixel % (g.out0 * plane))
        o0, o1, o2 = int32(cell // plane), int32(cell % plane // g.out2), int32(cell % g.out2)
        p0 = int32(o0 * g.step0 + g.start0)
        p1 = int32(o1 * g.step1 + g.start1)
        p2 = int32(o2 * g.step2 + g.start2)
        x_place = int64(image) * g.x_image + int64(group) * g.x_group + int64(p0) * g.x0 + int64(p1) * g.x1 + int64(p2) * g.x2
        inside = uint64(0)
        for r0 in range(g.kernel0):
            c0 = p0 + r0 * g.reach0
            for r1 in range(g.kernel1):
                c1 = p1 + r1 * g.reach1
                for r2 in range(g.kernel2):
                    c2 = p2 + r2 * g.reach2
                    if 0 <= c0 < g.size0 and 0 <= c1 < g.size1 and 0 <= c2 < g.size2:
                        inside |= uint64(1) << uint64((r0 * g.kernel1 + r1) * g.kernel2 + r2)
        b_term = int32(thread // COLUMNS)
        b_place = int32(DEPTH * A_PITCH + b_term * B_PITCH + column)

        # the term and the rows whose weights this thread copies
        a_term, a_row = int32(thread % DEPTH), int32(thread // DEPTH)
        a_place = int32(a_term * A_PITCH + a_row)
        w_place = int64(group) * g.w_group + int64(first_row + a_row) * g.w_row
        w_step = int64(g.w_row) * A_STEP
        rows_left = int32(g.rows - first_row - a_row)

        warp, lane = int32(thread // 32), int32(thread % 32)
        if INTERLEAVED:
            row = int32((warp // WARPS_ACROSS * 4 + lane // 16 * 2 + lane % 2) * RUN)
            across = int32((warp % WARPS_ACROSS * 8 + lane % 16 // 2) * RUN)
        else:
            row = int32((warp // WARPS_ACROSS * 4 + lane // 8) * RUN)
            across = int32((warp % WARPS_ACROSS * 8 + lane % 8) * RUN)

        sums = start()
        blocks = int32((last - first + DEPTH - 1) // DEPTH)
        into, source = int32(0), int32(first)
        for block in range(blocks + STAGES - 1):
            if block >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
            if block < blocks:
                at = into * STAGE
                term = source + a_term
                here = term < last
                offset = int64(terms[4 * term + 2]) + w_place
                for i in range(A_COPIES):
                    copy_async(shared, at + a_place + i * A_STEP, weight, offset + i * w_step, here and i * A_STEP < rows_left)
                for i in range(B_COPIES):
                    t = source + b_term + i * B_TERMS
                    tap = uint64(terms[4 * t + 1])
                    start_at = x_place + terms[4 * t]
                    ok = (inside >> tap) & uint64(1) != 0
                    copy_async(shared, at + b_place + i * B_TERMS * B_PITCH, x, start_at, ok)
                source += DEPTH
                into += 1
                if into == STAGES:
                    into = 0
            commit()
            if block >= STAGES - 1:
                at = (block - (STAGES - 1)) % STAGES * STAGE
                sums = multiply(sums, shared, at + row, at + DEPTH * A_PITCH + across)

        wait_all()
        cuda.syncthreads()
        y_place = (
            int64(split) * g.y_split + int64(image) * g.y_image + int64(group) * g.y_group
            + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
        )  # fmt: skip
        stored = first_column + column < g.pixels
        for half in range(2):
            cuda.syncthreads()
            if half == 0:
                put_upper(sums, shared, row * B_PITCH + across)
            else:
                put_lower(sums, shared, row * B_PITCH + across)
            cuda.syncthreads()
            if stored:
                for r in range(thread // COLUMNS, KEPT, B_TERMS):
                    k = first_row + half * KEPT + r
                    if k < g.rows:
                        value = shared[r * B_PITCH + column]
                        if g.biased:
                            value += widen(bias[group * g.rows + k])
                        if activation is not None:
                            value = activation(value)
                        out[y_place + int64(k) * g.y_row] = narrow(value)

    return correlate


class GradGeometry(NamedTuple):
    """Where the operands of a weight gradient stand, in elements; `shift` and `magic` divide: n // d = n * magic >> shift."""

    rows: int  # filters of a group
    columns: int  # channels of a group times taps
    pixels: int  # outputs of all images
    chunk: int  # pixels of one split, whole blocks of them
    out1: int
    out2: int
    image_cells: int  # outputs of one image
    image_magic: int
    image_shift: int
    plane_magic: int
    plane_shift: int
    row_magic: int
    row_shift: int
    step0: int
    step1: int
    step2: int
    start0: int
    start1: int
    start2: int
    size0: int
    size1: int
    size2: int
    kernel0: int
    kernel1: int
    kernel2: int
    reach0: int
    reach1: int
    reach2: int
    bordered: int  # whether a tap can lie outside of the image
    x_image: int
    x_group: int
    x0: int
    x1: int
    x2: int
    y_image: int
    y_group: int
    y_row: int
    y0: int
    y1: int
    y2: int
    w_split: int
    w_group: int
    w_row: int


@functools.cache
def make_weight_grad(sizes: tuple[int, ...], name: str, out_name: str) -> Any:
    """The kernel for one tile, dtype of operands and of results."""
    tile, dtype, narrow = Tile(*sizes), scalars.stored(name), scalars.narrow(out_name)
    memory, PLACES = scalars.STORED[name], 2 * tile.columns
    ROWS, COLUMNS, DEPTH, THREADS, STAGES = tile.rows, tile.columns, tile.depth, tile.threads, tile.stages
    A_PITCH, B_PITCH, INTERLEAVED = ROWS + PAD, COLUMNS + PAD, tile.interleaved
    STAGE = DEPTH * (A_PITCH + B_PITCH)
    ACROSS = COLUMNS // tile.thread_columns
    WARPS_ACROSS = ACROSS // 8
    A_COPIES, B_COPIES = ROWS * DEPTH // THREADS, COLUMNS * DEPTH // THREADS
    STEP = THREADS // DEPTH
    HALF = tile.thread_rows // 2
    ROW_STEP, COLUMN_STEP = ROWS * RUN // tile.thread_rows, COLUMNS * RUN // tile.thread_columns
    KEPT = ROWS * HALF // tile.thread_rows
    start = zeros(tile.thread_rows * tile.thread_columns, dtype)
    multiply = outer_products(tile.thread_rows, tile.thread_columns, DEPTH, ROW_STEP, COLUMN_STEP, A_PITCH, B_PITCH)
    put_upper = put(tile.thread_rows, tile.thread_columns, 0, HALF, B_PITCH, COLUMN_STEP)
    put_lower = put(tile.thread_rows, tile.thread_columns, HALF, HALF, B_PITCH, COLUMN_STEP)
    wait_for_stage, wait_all = wait(STAGES - 2), wait(0)

    def weight_grad(dy, x, out, terms, g):
        """Compute the weights of one block, summed over one split of the pixels; `terms` as in `correlate`."""
        shared = cuda.shared.array(0, memory)
        places = cuda.shared.array(PLACES, int32)
        thread = int32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        first, last = int32(split * g.chunk), int32(min(split * g.chunk + g.chunk, g.pixels))

        # the pixel of a block, and the rows and columns, that this thread copies
        depth, other = int32(thread % DEPTH), int32(thread // DEPTH)
        a_place = int32(depth * A_PITCH + other)
        b_place = int32(DEPTH * A_PITCH + depth * B_PITCH + other)
        y_place = int64(group) * g.y_group + int64(first_row + other) * g.y_row
        y_step = int64(g.y_row) * STEP
        rows_left = int32(g.rows - first_row - other)
        x_group = int64(group) * g.x_group
        for i in range(thread, COLUMNS, THREADS):
            known = first_column + i < g.columns
            places[2 * i] = terms[4 * (first_column + i)] if known else 0
            places[2 * i + 1] = terms[4 * (first_column + i) + 1] if known else 63
        cuda.syncthreads()

        warp, lane = int32(thread // 32), int32(thread % 32)
        if INTERLEAVED:
            row = int32((warp // WARPS_ACROSS * 4 + lane // 16 * 2 + lane % 2) * RUN)
            across = int32((warp % WARPS_ACROSS * 8 + lane % 16 // 2) * RUN)
        else:
            row = int32((warp // WARPS_ACROSS * 4 + lane // 8) * RUN)
            across = int32((warp % WARPS_ACROSS * 8 + lane % 8) * RUN)

        sums = start()
        blocks = int32((last - first + DEPTH - 1) // DEPTH)
        into, pixel = int32(0), int32(first + depth)
        for block in range(blocks + STAGES - 1):
            if block >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
            if block < blocks:
                at = into * STAGE
                here = pixel < last
                n = uint64(uint32(pixel))
                image = uint32((n * uint64(uint32(g.image_magic))) >> uint64(uint32(g.image_shift)))
                cell = uint32(uint32(pixel) - uint32(image * uint32(g.image_cells)))
                o0 = uint32((uint64(cell) * uint64(uint32(g.plane_magic))) >> uint64(uint32(g.plane_shift)))
                rest = uint32(cell - uint32(o0 * uint32(g.out1 * g.out2)))
                o1 = uint32((uint64(rest) * uint64(uint32(g.row_magic))) >> uint64(uint32(g.row_shift)))
                o2 = uint32(rest - uint32(o1 * uint32(g.out2)))
                i0, i1, i2 = int32(o0), int32(o1), int32(o2)
                p0 = int32(i0 * g.step0 + g.start0)
                p1 = int32(i1 * g.step1 + g.start1)
                p2 = int32(i2 * g.step2 + g.start2)
                inside = uint64(0)
                if here:
                    inside = ~uint64(0) >> uint64(1)
                    if g.bordered:
                        row_bits = uint32(0)
                        for r2 in range(g.kernel2):
                            if uint32(p2 + r2 * g.reach2) < uint32(g.size2):
                                row_bits |= uint32(1) << uint32(r2)
                        inside = uint64(0)
                        for r0 in range(g.kernel0):
                            in0 = uint32(p0 + r0 * g.reach0) < uint32(g.size0)
                            for r1 in range(g.kernel1):
                                if in0 and uint32(p1 + r1 * g.reach1) < uint32(g.size1):
                                    inside |= uint64(row_bits) << uint64(uint32((r0 * g.kernel1 + r1) * g.kernel2))
                from_y = y_place + int64(image) * g.y_image + int64(i0) * g.y0 + int64(i1) * g.y1 + int64(i2) * g.y2
                from_x = x_group + int64(image) * g.x_image + int64(p0) * g.x0 + int64(p1) * g.x1 + int64(p2) * g.x2
                for i in range(A_COPIES):
                    copy_async(shared, at + a_place + i * STEP, dy, from_y + i * y_step, here and i * STEP < rows_left)
                for i in range(B_COPIES):
                    at_term = 2 * (other + i * STEP)
                    ok = (inside >> uint64(uint32(places[at_term + 1]))) & uint64(1) != 0
                    copy_async(shared, at + b_place + i * STEP, x, from_x + places[at_term], ok)
                pixel += DEPTH
                into += 1
                if into == STAGES:
                    into = 0
            commit()
            if block >= STAGES - 1:
                at = (block - (STAGES - 1)) % STAGES * STAGE
                sums = multiply(sums, shared, at + row, at + DEPTH * A_PITCH + across)

        wait_all()
        column = int32(thread % COLUMNS)
        w_place = int64(split) * g.w_split + int64(group) * g.w_group + first_column + column
        for half in range(2):
            cuda.syncthreads()
            if half == 0:
                put_upper(sums, shared, row * B_PITCH + across)
            else:
                put_lower(sums, shared, row * B_PITCH + across)
            cuda.syncthreads()
            if first_column + column < g.columns:
                for r in range(thread // COLUMNS, KEPT, THREADS // COLUMNS):
                    k = first_row + half * KEPT + r
                    if k < g.rows:
                        out[w_place + int64(k) * g.w_row] = narrow(shared[r * B_PITCH + column])

    return weight_grad
