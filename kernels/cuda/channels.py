"""Convolution on matrix units: channels stand side by side in memory, so that every copy to shared memory moves 16 bytes.

The sums are those of `tiled`, but a term is a chunk of 16 bytes of channels at one tap. What kernels read was put into that order
before (`stage.make_channels_last`), each group's channels filled up with zeros to whole chunks.

forward, and dI for each phase of the input grid: shared memory holds [filter][term] and [output][term]; dW: [output][filter] and
[output][term], the terms of whole taps and chunks.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32, uint64
from numba.cuda import types

from . import scalars
from .ptx import address, commit, copy_bytes, load_quad, matrix_products, put_matrix, wait, zeros
from .store import TOGETHER, make_store
from .tile import CHUNK, Tile
from .tiled import Product

WORDS = CHUNK // 4  # words of 4 bytes of a chunk


class GradGeometry(NamedTuple):
    """Where the operands of `weight_grad` stand, as `correlate` counts; `shift` and `magic` divide: n // d = n * magic >> shift."""

    rows: int  # filters of a group
    chunks: int  # chunks of channels of a group, times taps
    pixels: int  # outputs of all images
    chunk: int  # outputs of one split, whole slices of them
    out1: int
    out2: int
    image_cells: int  # outputs of one image
    image_magic: int
    image_shift: int
    plane_magic: int
    plane_shift: int
    row_magic: int
    row_shift: int
    table0: int  # entries of the table of terms at which those of each axis begin
    table1: int
    table2: int
    order: int  # entry at which the order of the results begins
    x_image: int
    x_group: int
    y_image: int
    y_group: int
    w_split: int
    w_group: int
    w_row: int


@functools.cache
def make_correlate(sizes: Any, phased: bool, pairs: bool, name: str, out_name: str, function: Any = None) -> Any:
    """The kernel for one tile, dtype of operands and of results, and activation; `phased` as in `tiled`, `pairs` as in `store`.

    Operands are seen as words of 4 bytes: strides of x, of weight and of dy count words, those of results elements.
    """
    tile = Tile(*sizes)
    ROWS, COLUMNS, THREADS, STAGES = tile.rows, tile.columns, tile.threads, tile.stages
    CHUNKS = tile.depth * (4 if name == "float32" else 2) // CHUNK
    DEPTH = CHUNKS * WORDS
    PITCH = DEPTH + WORDS  # so that 8 rows of a chunk meet all banks
    STAGE, OUT_PITCH = (ROWS + COLUMNS) * PITCH, COLUMNS + tile.pad
    STEP = THREADS // CHUNKS
    A_COPIES, B_COPIES = ROWS // STEP, COLUMNS // STEP
    PIXELS, SIDE = tile.pixels_at, COLUMNS // (2 if pairs else 1)
    warp_rows, warp_columns = tile.thread_rows * tile.down, tile.thread_columns * 32 // tile.down
    across = COLUMNS // warp_columns
    unit = "tf32" if name == "float32" else name
    multiply = matrix_products(unit, warp_rows, warp_columns, DEPTH, PITCH, PITCH, False, False)
    store = make_store(sizes, pairs, name, out_name, function)
    put = put_matrix(warp_rows, warp_columns, OUT_PITCH)
    start = zeros(tile.thread_rows * tile.thread_columns, types.float32)
    wait_for_stage, wait_all, copy = wait(STAGES - 2), wait(0), copy_bytes(CHUNK)

    def correlate(x, weight, bias, out, terms, g):
        """Compute one tile; `terms` has for each term its offset in x, in weight, and the bit of its tap in two words."""
        shared, output = cuda.shared.array(0, uint32), cuda.shared.array(0, types.float32)
        words = cuda.shared.array(0, int32)
        offsets = cuda.local.array(B_COPIES, int32)
        lows, highs = cuda.local.array(B_COPIES, int32), cuda.local.array(B_COPIES, int32)
        thread = uint32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        pixels, count, chunk, begin, y_start = g.pixels, g.terms, g.chunk, int32(0), int32(0)
        out0, out1, out2, start0, start1, start2 = g.out0, g.out1, g.out2, g.start0, g.start1, g.start2
        kernel0, kernel1, kernel2 = g.kernel0, g.kernel1, g.kernel2
        if phased:
            head = int32(16 * (split // g.splits))
            split = int32(split % g.splits)
            pixels, count, chunk = terms[head], terms[head + 1], terms[head + 2]
            out0, out1, out2 = terms[head + 3], terms[head + 4], terms[head + 5]
            start0, start1, start2 = terms[head + 6], terms[head + 7], terms[head + 8]
            kernel0, kernel1, kernel2 = terms[head + 9], terms[head + 10], terms[head + 11]
            begin, y_start = terms[head + 12], terms[head + 13]
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        if first_column >= pixels:
            return
        first, last = int32(begin + split * chunk), int32(begin + min(split * chunk + chunk, count))
        slices = int32((last - first + CHUNKS - 1) // CHUNKS)

        # of each output of the tile: where it stands in x, the bits of the taps that lie inside, where it stands in y
        for column in range(thread, COLUMNS, THREADS):
            pixel = uint32(min(first_column + int32(column), pixels - 1))
            plane = uint32(out1 * out2)
            image = int32(pixel // uint32(plane * uint32(out0)))
            cell = uint32(pixel % uint32(plane * uint32(out0)))
            o0, o1, o2 = int32(cell // plane), int32(cell % plane // uint32(out2)), int32(cell % uint32(out2))
            p0, p1, p2 = int32(o0 * g.step0 + start0), int32(o1 * g.step1 + start1), int32(o2 * g.step2 + start2)
            inside = uint64(0)
            for r2 in range(kernel2):
                if uint32(p2 + r2 * g.reach2) < uint32(g.size2):
                    inside |= uint64(1) << uint64(r2)
            rows_inside = uint64(0)
            for r1 in range(kernel1):
                if uint32(p1 + r1 * g.reach1) < uint32(g.size1):
                    rows_inside |= inside << uint64(r1 * kernel2)
            inside = uint64(0)
            for r0 in range(kernel0):
                if uint32(p0 + r0 * g.reach0) < uint32(g.size0):
                    inside |= rows_inside << uint64(r0 * kernel1 * kernel2)
            at = int32(PIXELS + 4 * int32(column))
            words[at] = int32(image * g.x_image + p0 * g.x0 + p1 * g.x1 + p2 * g.x2)
            words[at + 1], words[at + 2] = int32(uint32(inside)), int32(uint32(inside >> uint64(32)))
            words[at + 3] = int32(y_start + image * g.y_image + o0 * g.y0 + o1 * g.y1 + o2 * g.y2)
        cuda.syncthreads()

        # the chunk of a slice, and the rows and columns, that this thread copies
        part, other = int32(thread % CHUNKS), int32(thread // CHUNKS)
        for i in range(B_COPIES):
            quad = load_quad(words, int32(PIXELS + 4 * other) + 4 * i * STEP)
            offsets[i], lows[i], highs[i] = quad[0], quad[1], quad[2]
        place = int32(other * PITCH + part * WORDS)
        rows_left, w_step = int32(g.rows - first_row - other), int32(g.w_row * STEP)
        from_x = address(x, int64(group) * g.x_group)
        from_w = address(weight, int64(group) * g.w_group + int64(first_row + other) * g.w_row)
        warp, lane = int32(thread // 32), int32(thread % 32)
        row, left = int32(warp // across * warp_rows), int32(warp % across * warp_columns)
        a_lane = int32((row + lane % 16) * PITCH + lane // 16 * WORDS)
        b_lane = int32((ROWS + left + lane % 8 + lane // 16 * 8) * PITCH + lane // 8 % 2 * WORDS)

        sums = start()
        into, read = int32(0), int32(0)
        at = int32(4 * (first + part))
        term_x, term_w, term_low, term_high = terms[at], terms[at + 1], terms[at + 2], terms[at + 3]
        for k in range(int32(slices + STAGES - 1)):
            if k >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
            if k < slices:
                to = int32(into * STAGE + place)
                for i in range(B_COPIES):
                    valid = (lows[i] & term_low) | (highs[i] & term_high)
                    copy(shared, to + (ROWS + i * STEP) * PITCH, from_x, offsets[i] + term_x, valid != 0)
                rows_here = int32(rows_left if (term_low | term_high) != 0 else 0)
                row_at = address(from_w, term_w)
                for i in range(A_COPIES):
                    copy(shared, to + i * STEP * PITCH, row_at, int32(0), i * STEP < rows_here)
                    row_at = address(row_at, w_step)
                into = int32(0 if into == STAGES - 1 else into + 1)
                at += 4 * CHUNKS
                term_x, term_w, term_low, term_high = terms[at], terms[at + 1], terms[at + 2], terms[at + 3]
            commit()
            if k >= STAGES - 1:
                sums = multiply(sums, shared, int32(read * STAGE + a_lane), int32(read * STAGE + b_lane))
                read = int32(0 if read == STAGES - 1 else read + 1)

        wait_all()
        column = int32(thread % SIDE * (COLUMNS // SIDE))
        y_place = int64(split) * g.y_split + int64(group) * g.y_group + words[PIXELS + 4 * column + 3]
        cuda.syncthreads()
        put(sums, output, int32((row + lane // 4) * OUT_PITCH + left + lane % 4 * 2))
        cuda.syncthreads()
        if phased:
            pixels = terms[int32(16 * (int32(cuda.blockIdx.z) // g.splits))]
        if first_column + column < pixels:
            m = int32(group * g.rows + first_row)
            store(
                output, out, y_place + int64(first_row) * g.y_row, g.y_row, int32(g.rows - first_row),
                address(bias, m if g.biased else 0), g.biased, thread,
            )  # fmt: skip

    return correlate


@functools.cache
def make_weight_grad(sizes: Any, name: str, out_name: str) -> Any:
    """The kernel for one tile, dtype of operands and of results."""
    tile, narrow = Tile(*sizes), scalars.narrow(out_name)
    ROWS, COLUMNS, DEPTH, THREADS, STAGES, STAGE = (
        tile.rows, tile.columns, tile.depth, tile.threads, tile.stages, tile.stage,
    )  # fmt: skip
    A_PITCH, B_PITCH = ROWS + tile.pad, COLUMNS + tile.pad
    LANES = CHUNK // (4 if name == "float32" else 2)
    A_CHUNKS, B_CHUNKS = ROWS // LANES, COLUMNS // LANES
    A_STEP, B_STEP = THREADS // A_CHUNKS, THREADS // B_CHUNKS
    A_COPIES, B_COPIES = DEPTH // A_STEP, DEPTH // B_STEP
    product = Product.of(tile, name)
    PIXELS = tile.pixels_at
    memory, start, multiply, put, places = product.memory, product.start, product.multiply, product.put[0], product.places
    wait_for_stage, wait_all, copy = wait(STAGES - 2), wait(0), copy_bytes(CHUNK)

    @cuda.jit(device=True)
    def locate(pixel, terms, g):
        """Where an output stands in x, the bits of its taps that lie inside, and where it stands in dy."""
        n = uint64(uint32(pixel))
        image = uint32((n * uint64(uint32(g.image_magic))) >> uint64(uint32(g.image_shift)))
        cell = uint32(uint32(pixel) - uint32(image * uint32(g.image_cells)))
        o0 = uint32((uint64(cell) * uint64(uint32(g.plane_magic))) >> uint64(uint32(g.plane_shift)))
        rest = uint32(cell - uint32(o0 * uint32(g.out1 * g.out2)))
        o1 = uint32((uint64(rest) * uint64(uint32(g.row_magic))) >> uint64(uint32(g.row_shift)))
        o2 = uint32(rest - uint32(o1 * uint32(g.out2)))
        at0, at1, at2 = int32(4 * (g.table0 + o0)), int32(4 * (g.table1 + o1)), int32(4 * (g.table2 + o2))
        inside = uint64(uint32(terms[at2 + 2])) | uint64(uint32(terms[at2 + 3])) << uint64(32)
        inside *= uint64(uint32(terms[at1 + 2])) | uint64(uint32(terms[at1 + 3])) << uint64(32)
        inside *= uint64(uint32(terms[at0 + 2])) | uint64(uint32(terms[at0 + 3])) << uint64(32)
        x_place = int32(int32(image) * g.x_image + terms[at0] + terms[at1] + terms[at2])
        y_place = int32(int32(image) * g.y_image + terms[at0 + 1] + terms[at1 + 1] + terms[at2 + 1])
        return x_place, int32(uint32(inside)), int32(uint32(inside >> uint64(32))), y_place

    def weight_grad(dy, x, out, terms, g):
        """Compute one tile, summed over one split of the outputs.

        `terms` has for each term its offset in x, 0, and the bit of its tap in two words; then for each output coordinate of each
        axis what it has in `tiled`, with its offset in dy; then, in the order in which a tile's results stand in `out`, pairs of a
        column of the tile and its offset in `out`, -1 for channels that only fill a chunk.
        """
        shared, output = cuda.shared.array(0, memory), cuda.shared.array(0, types.float32)
        words = cuda.shared.array(0, int32)
        thread = uint32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        column_tile = int32(int32(cuda.blockIdx.x) // row_tiles)
        first, last = int32(split * g.chunk), int32(min(split * g.chunk + g.chunk, g.pixels))
        slices = int32((last - first + DEPTH - 1) // DEPTH)

        # the chunks and the outputs of a slice that this thread copies
        a_part, a_depth = int32(thread % A_CHUNKS), int32(thread // A_CHUNKS)
        b_part, b_depth = int32(thread % B_CHUNKS), int32(thread // B_CHUNKS)
        a_place = int32(a_depth * A_PITCH + a_part * LANES)
        b_place = int32(DEPTH * A_PITCH + b_depth * B_PITCH + b_part * LANES)
        a_valid = first_row + a_part * LANES < g.rows
        at = int32(4 * min(column_tile * B_CHUNKS + b_part, g.chunks))
        term_x, term_low, term_high = terms[at], terms[at + 2], terms[at + 3]
        from_x = address(x, int64(group) * g.x_group + int64(term_x))
        from_y = address(dy, int64(group) * g.y_group + int64((first_row // LANES + a_part) * WORDS))
        a_lane, b_lane, result = places(thread)

        depth = int32(thread % DEPTH)
        quad = locate(int32(min(first + depth, g.pixels - 1)), terms, g)
        if thread < DEPTH:
            at = int32(PIXELS + 4 * depth)
            words[at], words[at + 1], words[at + 2], words[at + 3] = quad
        cuda.syncthreads()

        sums = start()
        into, read = int32(0), int32(0)
        for k in range(int32(slices + STAGES - 1)):
            if k >= STAGES - 1:
                wait_for_stage()
            if k > 0:
                cuda.syncthreads()
            if k < slices:
                pixel_at = int32(PIXELS + k % 2 * (4 * DEPTH))
                left = int32(last - first - k * DEPTH)
                a_at, b_at = int32(into * STAGE + a_place), int32(into * STAGE + b_place)
                for i in range(A_COPIES):
                    offset = words[int32(pixel_at + 4 * a_depth) + 4 * i * A_STEP + 3]
                    copy(shared, a_at + i * A_STEP * A_PITCH, from_y, offset, a_valid and a_depth + i * A_STEP < left)
                for i in range(B_COPIES):
                    pixel = load_quad(words, int32(pixel_at + 4 * b_depth) + 4 * i * B_STEP)
                    valid = (pixel[1] & term_low) | (pixel[2] & term_high)
                    copy(shared, b_at + i * B_STEP * B_PITCH, from_x, pixel[0], valid != 0 and b_depth + i * B_STEP < left)
                into = int32(0 if into == STAGES - 1 else into + 1)
            commit()
            quad = locate(int32(min(first + (k + 1) * DEPTH + depth, g.pixels - 1)), terms, g)
            if k >= STAGES - 1:
                sums = multiply(sums, shared, int32(read * STAGE + a_lane), int32(read * STAGE + DEPTH * A_PITCH + b_lane))
                read = int32(0 if read == STAGES - 1 else read + 1)
            if thread < DEPTH:
                at = int32(PIXELS + (k + 1) % 2 * (4 * DEPTH) + 4 * depth)
                words[at], words[at + 1], words[at + 2], words[at + 3] = quad

        wait_all()
        cuda.syncthreads()
        put(sums, output, result)
        cuda.syncthreads()
        at = int32(4 * g.order + 2 * (column_tile * COLUMNS + int32(thread % COLUMNS)))
        column, offset = terms[at], terms[at + 1]
        values = cuda.local.array(TOGETHER, types.float32)
        w_place = int64(split) * g.w_split + int64(group) * g.w_group + offset
        if offset >= 0:
            m, step = int32(thread // COLUMNS), THREADS // COLUMNS
            w_place += int64(first_row + m) * g.w_row
            at = int32(m * B_PITCH + column)
            rows_left = int32(g.rows - first_row - m)
            for _ in range(ROWS // step // TOGETHER):
                for i in range(TOGETHER):
                    values[i] = output[at + i * step * B_PITCH]
                for i in range(TOGETHER):
                    if i * step < rows_left:
                        out[w_place + int64(i * step) * g.w_row] = narrow(values[i])
                at += TOGETHER * step * B_PITCH
                rows_left -= TOGETHER * step
                w_place += int64(TOGETHER * step) * g.w_row

    return weight_grad
