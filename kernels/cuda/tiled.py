"""Convolution as a product of two matrices that are never formed: tiles of them are gathered into shared memory.

forward, and dI for each phase of the input grid: m filters of a group, n outputs (image and position), t terms (channel and tap)

    out[m, n] = sum_t weight[m, t] * x[t, n]      x[t, n] = x[place of n + offset of t], 0 where the tap lies outside of the image

dW: m filters of a group, t terms, summed over the outputs n

    out[m, t] = sum_n dy[m, n] * x[t, n]

A block of threads computes a tile of `rows` x `columns`. Copies run `stages - 1` slices of `depth` summands ahead of the products
and do not pass through registers. Each thread multiplies `thread_rows` x `thread_columns`. Whether a tap lies inside is a bit:
every output has a word of bits, one for each tap, and a term has the bit of its tap.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32, uint64
from numba.cuda import types

from . import scalars
from .ptx import (
    address,
    commit,
    copy_async,
    copy_quad,
    load_quad,
    matrix_products,
    outer_products,
    put,
    put_matrix,
    wait,
    zeros,
)
from .tile import RUN, Tile


class Geometry(NamedTuple):
    """Where the operands of `correlate` stand, in elements; all fit 32 bits."""

    rows: int  # filters of a group
    pixels: int  # outputs of all images
    terms: int
    chunk: int  # terms of one split, whole slices of them
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
    splits: int  # of each phase; what differs from phase to phase is read from the head of the terms


class GradGeometry(NamedTuple):
    """Where the operands of `weight_grad` stand, in elements; `shift` and `magic` divide: n // d = n * magic >> shift."""

    rows: int  # filters of a group
    columns: int  # channels of a group times taps
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
    x_image: int
    x_group: int
    y_image: int
    y_group: int
    y_row: int
    y0: int
    y1: int
    y2: int
    w_split: int
    w_group: int
    w_row: int


class Product(NamedTuple):
    """How a block multiplies: types of operands and of results in shared memory, and what the threads of a block do with them."""

    memory: Any
    results: Any
    itemsize: int
    start: Any  # () -> sums
    multiply: Any  # (sums, shared, place of rows, place of columns) -> sums
    put: tuple[Any, Any]  # (sums, output, place): store the upper and the lower part of the rows
    places: Any  # (thread) -> places of its rows, columns and results

    @classmethod
    def of(cls, tile: Tile, name: str) -> "Product":
        """The product of a tile."""
        a_pitch, b_pitch = tile.rows + tile.pad, tile.columns + tile.pad
        down, side = tile.down, 32 // tile.down
        across = tile.columns // tile.thread_columns // side
        results = scalars.summed(name)
        memory = types.uint16 if tile.unit == "half" else scalars.STORED[name]
        start = zeros(tile.thread_rows * tile.thread_columns, results)
        if tile.unit == "fma":
            rows, columns = tile.thread_rows, tile.thread_columns
            row_step, column_step = tile.rows * RUN // rows, tile.columns * RUN // columns
            part = rows // tile.parts

            @cuda.jit(device=True)
            def places(thread):
                warp, lane = int32(thread // 32), int32(thread % 32)
                row = int32((warp // across * down + lane // side) * RUN)
                column = int32((warp % across * side + lane % side) * RUN)
                return row, column, int32(row * b_pitch + column)

            multiply = outer_products(rows, columns, tile.depth, row_step, column_step, a_pitch, b_pitch)
            upper = put(0, part, columns, row_step, column_step, b_pitch)
            lower = put(rows - part, part, columns, row_step, column_step, b_pitch)
        else:
            rows, columns = tile.thread_rows * 8, tile.thread_columns * 4
            halves = tile.unit == "half"

            @cuda.jit(device=True)
            def places(thread):
                warp, lane = int32(thread // 32), int32(thread % 32)
                row, column = int32(warp // across * rows), int32(warp % across * columns)
                result = int32((row + lane // 4) * b_pitch + column + lane % 4 * 2)
                if halves:
                    a = int32((lane // 16 * 8 + lane % 8) * a_pitch + lane // 8 % 2 * 8)
                    b = int32((lane // 8 % 2 * 8 + lane % 8) * b_pitch + lane // 16 * 8)
                else:
                    a, b = int32(lane % 4 * a_pitch + lane // 4), int32(lane % 4 * b_pitch + lane // 4)
                return int32(row + a), int32(column + b), result

            unit = name if halves else tile.unit
            multiply = matrix_products(unit, rows, columns, tile.depth, a_pitch, b_pitch, True, True)
            upper = lower = put_matrix(rows, columns, b_pitch)
        kept = types.float32 if tile.unit == "half" else memory
        return cls(memory, kept, memory.bitwidth // 8, start, multiply, (upper, lower), places)


@functools.cache
def make_correlate(sizes: Any, by_row: bool, phased: bool, name: str, out_name: str, function: Any = None) -> Any:
    """The kernel for one tile, dtype of operands and of results, and activation.

    `by_row`: neighbouring threads copy weights of neighbouring rows, and not of neighbouring terms. `phased`: several phases of a
    grid in one launch.
    """
    tile = Tile(*sizes)
    narrow, widen, activation = scalars.narrow(out_name), scalars.widen(name), scalars.activation(function)
    ROWS, COLUMNS, DEPTH, THREADS, STAGES, STAGE = (
        tile.rows, tile.columns, tile.depth, tile.threads, tile.stages, tile.stage,
    )  # fmt: skip
    A_PITCH, B_PITCH = ROWS + tile.pad, COLUMNS + tile.pad
    A_COPIES, B_COPIES = ROWS * DEPTH // THREADS, COLUMNS * DEPTH // THREADS
    A_STEP, B_STEP = THREADS // (ROWS if by_row else DEPTH), THREADS // COLUMNS
    KEPT, RING = ROWS // tile.parts, 2 * STAGES
    product = Product.of(tile, name)
    PARTS, TERMS = tile.parts, tile.terms_at(product.itemsize)
    memory, results = product.memory, product.results
    start, multiply, put_upper, put_lower, places = product.start, product.multiply, *product.put, product.places
    wait_for_stage, wait_all = wait(STAGES - 2), wait(0)

    def correlate(x, weight, bias, out, terms, g):
        """Compute one tile; `terms` has for each term its offset in x, in weight, and the bit of its tap in two words."""
        shared, output = cuda.shared.array(0, memory), cuda.shared.array(0, results)
        words = cuda.shared.array(0, int32)
        offsets, valid = cuda.local.array(B_COPIES, int32), cuda.local.array(B_COPIES, int32)
        w_offsets = cuda.local.array(A_COPIES, int32)
        thread = uint32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        pixels, count, chunk, begin = g.pixels, g.terms, g.chunk, int32(0)
        out0, out1, out2, start0, start1, start2 = g.out0, g.out1, g.out2, g.start0, g.start1, g.start2
        kernel0, kernel1, kernel2 = g.kernel0, g.kernel1, g.kernel2
        if phased:
            head = int32(16 * (split // g.splits))
            split = int32(split % g.splits)
            pixels, count, chunk = terms[head], terms[head + 1], terms[head + 2]
            out0, out1, out2 = terms[head + 3], terms[head + 4], terms[head + 5]
            start0, start1, start2 = terms[head + 6], terms[head + 7], terms[head + 8]
            kernel0, kernel1, kernel2 = terms[head + 9], terms[head + 10], terms[head + 11]
            begin = terms[head + 12]
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        if first_column >= pixels:
            return
        first, last = int32(begin + split * chunk), int32(begin + min(split * chunk + chunk, count))
        slices = int32((last - first + DEPTH - 1) // DEPTH)
        for i in range(thread, (RING - 2) * DEPTH, THREADS):
            if i < slices * DEPTH:
                copy_quad(words, TERMS + 4 * i, terms, 4 * (first + i))

        # the output whose column of x this thread copies, and stores in the end
        column = int32(thread % COLUMNS)
        pixel = uint32(min(first_column + column, pixels - 1))
        plane = uint32(out1 * out2)
        image = int32(pixel // uint32(plane * uint32(out0)))
        cell = uint32(pixel % uint32(plane * uint32(out0)))
        o0, o1, o2 = int32(cell // plane), int32(cell % plane // uint32(out2)), int32(cell % uint32(out2))
        p0, p1, p2 = int32(o0 * g.step0 + start0), int32(o1 * g.step1 + start1), int32(o2 * g.step2 + start2)
        x_place = int64(image) * g.x_image + int64(group) * g.x_group + int64(p0) * g.x0 + int64(p1) * g.x1 + int64(p2) * g.x2
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
        low, high = int32(uint32(inside)), int32(uint32(inside >> uint64(32)))
        b_term = int32(thread // COLUMNS)
        b_place = int32(DEPTH * A_PITCH + b_term * B_PITCH + column)

        # the term and the row whose weight this thread copies
        if by_row:
            a_row, a_term = int32(thread % ROWS), int32(thread // ROWS)
        else:
            a_term, a_row = int32(thread % DEPTH), int32(thread // DEPTH)
        a_place = int32(a_term * A_PITCH + a_row)
        w_place = int64(group) * g.w_group + int64(first_row + a_row) * g.w_row
        w_step = int32(g.w_row * A_STEP)
        rows_left = int32(g.rows - first_row - a_row)

        a_lane, b_lane, result = places(thread)
        from_x, from_w = address(x, x_place), address(weight, w_place)
        commit()
        wait_all()
        cuda.syncthreads()

        sums = start()
        into, ring, read = int32(0), int32(0), int32(0)
        for k in range(int32(slices + STAGES - 1)):
            if k >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
                slot = int32(ring + STAGES - 1 if ring <= STAGES else ring - STAGES - 1)
                if thread < DEPTH and int32(k + STAGES - 1) < slices:
                    place = int32(4 * (first + (k + STAGES - 1) * DEPTH + thread))
                    copy_quad(words, int32(TERMS + 4 * thread + slot * (4 * DEPTH)), terms, place)
            if k < slices:
                a_at, b_at = int32(into * STAGE + a_place), int32(into * STAGE + b_place)
                table = int32(TERMS + 4 * DEPTH * ring)
                left = int32(last - first - k * DEPTH - a_term)
                # all loads from shared memory first: one between copies costs three instructions that do nothing
                for i in range(B_COPIES):
                    term = load_quad(words, int32(table + 4 * b_term) + 4 * i * B_STEP)
                    offsets[i], valid[i] = term[0], int32(term[2] & low) | int32(term[3] & high)
                if by_row:
                    for i in range(A_COPIES):
                        w_offsets[i] = words[int32(table + 4 * a_term) + 4 * i * A_STEP + 1]
                    rows_here = int32(left if rows_left > 0 else 0)
                    for i in range(A_COPIES):
                        copy_async(shared, a_at + i * A_STEP * A_PITCH, from_w, w_offsets[i], i * A_STEP < rows_here)
                else:
                    rows_here = int32(rows_left if left > 0 else 0)
                    row_at = address(from_w, words[int32(table + 4 * a_term) + 1])
                    for i in range(A_COPIES):
                        copy_async(shared, a_at + i * A_STEP, row_at, int32(0), i * A_STEP < rows_here)
                        row_at = address(row_at, w_step)
                for i in range(B_COPIES):
                    copy_async(shared, b_at + i * B_STEP * B_PITCH, from_x, offsets[i], valid[i] != 0)
                into = int32(0 if into == STAGES - 1 else into + 1)
                ring = int32(0 if ring == RING - 1 else ring + 1)
            commit()
            if k >= STAGES - 1:
                sums = multiply(sums, shared, int32(read * STAGE + a_lane), int32(read * STAGE + DEPTH * A_PITCH + b_lane))
                read = int32(0 if read == STAGES - 1 else read + 1)

        wait_all()
        # read again: registers are short while sums are
        pixels, y_start = g.pixels, int32(0)
        if phased:
            head = int32(16 * (int32(cuda.blockIdx.z) // g.splits))
            pixels, y_start = terms[head], terms[head + 13]
        y_place = (
            int64(split) * g.y_split + y_start + int64(image) * g.y_image + int64(group) * g.y_group
            + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
        )  # fmt: skip
        for part in range(PARTS):
            cuda.syncthreads()
            if part == 0:
                put_upper(sums, output, result)
            else:
                put_lower(sums, output, result)
            cuda.syncthreads()
            if first_column + column < pixels:
                for r in range(thread // COLUMNS, KEPT, B_STEP):
                    m = first_row + part * KEPT + r
                    if m < g.rows:
                        value = output[r * B_PITCH + column]
                        if g.biased:
                            value += widen(bias[group * g.rows + m])
                        if activation is not None:
                            value = activation(value)
                        out[y_place + int64(m) * g.y_row] = narrow(value)

    return correlate


@functools.cache
def make_weight_grad(sizes: Any, name: str, out_name: str) -> Any:
    """The kernel for one tile, dtype of operands and of results."""
    tile, narrow = Tile(*sizes), scalars.narrow(out_name)
    ROWS, COLUMNS, DEPTH, THREADS, STAGES, STAGE = (
        tile.rows, tile.columns, tile.depth, tile.threads, tile.stages, tile.stage,
    )  # fmt: skip
    A_PITCH, B_PITCH = ROWS + tile.pad, COLUMNS + tile.pad
    A_COPIES, B_COPIES, STEP = ROWS * DEPTH // THREADS, COLUMNS * DEPTH // THREADS, THREADS // DEPTH
    KEPT = ROWS // tile.parts
    product = Product.of(tile, name)
    PARTS, TERMS = tile.parts, tile.terms_at(product.itemsize)
    memory, results = product.memory, product.results
    start, multiply, put_upper, put_lower, places = product.start, product.multiply, *product.put, product.places
    wait_for_stage, wait_all = wait(STAGES - 2), wait(0)

    def weight_grad(dy, x, out, terms, g):
        """Compute one tile, summed over one split of the outputs.

        `terms` has for each term its offset in x, 0, and the bit of its tap in two words; then for each output coordinate of each
        axis the offset of its first cell in x, 0, and the bits of the taps that lie inside, as if the other axes had one tap: the
        bits of an output are the product of its three words.
        """
        shared, output = cuda.shared.array(0, memory), cuda.shared.array(0, results)
        words = cuda.shared.array(0, int32)
        offsets, valid = cuda.local.array(B_COPIES, int32), cuda.local.array(B_COPIES, int32)
        thread = uint32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        first, last = int32(split * g.chunk), int32(min(split * g.chunk + g.chunk, g.pixels))
        slices = int32((last - first + DEPTH - 1) // DEPTH)
        for i in range(thread, COLUMNS, THREADS):
            copy_quad(words, TERMS + 4 * i, terms, 4 * min(first_column + i, g.columns))

        # the output of a slice, and the rows and columns, that this thread copies
        depth, other = int32(thread % DEPTH), int32(thread // DEPTH)
        a_place = int32(depth * A_PITCH + other)
        b_place = int32(DEPTH * A_PITCH + depth * B_PITCH + other)
        y_group = int64(group) * g.y_group + int64(first_row + other) * g.y_row
        y_step = int32(g.y_row * STEP)
        rows_left = int32(g.rows - first_row - other)
        x_group, columns = int64(group) * g.x_group, int32(TERMS + 4 * other)

        a_lane, b_lane, result = places(thread)
        commit()
        wait_all()
        cuda.syncthreads()

        sums = start()
        into, read = int32(0), int32(0)
        for k in range(int32(slices + STAGES - 1)):
            # the place of this thread's output, found before the barrier that the copies need
            pixel = int32(min(first + k * DEPTH + depth, g.pixels - 1))
            here = first + k * DEPTH + depth < last
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
            if not here:
                inside = uint64(0)
            low, high = int32(uint32(inside)), int32(uint32(inside >> uint64(32)))
            from_x = address(x, x_group + int64(image) * g.x_image + int64(terms[at0] + terms[at1] + terms[at2]))
            y_place = (
                y_group + int64(image) * g.y_image + int64(int32(o0)) * g.y0 + int64(int32(o1)) * g.y1 + int64(int32(o2)) * g.y2
            )
            from_y = address(dy, y_place)
            if k >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
            if k < slices:
                a_at, b_at = int32(into * STAGE + a_place), int32(into * STAGE + b_place)
                rows_here = int32(rows_left if here else 0)
                for i in range(B_COPIES):
                    term = load_quad(words, columns + 4 * i * STEP)
                    offsets[i], valid[i] = term[0], int32(term[2] & low) | int32(term[3] & high)
                for i in range(A_COPIES):
                    copy_async(shared, a_at + i * STEP, from_y, int32(0), i * STEP < rows_here)
                    from_y = address(from_y, y_step)
                for i in range(B_COPIES):
                    copy_async(shared, b_at + i * STEP, from_x, offsets[i], valid[i] != 0)
                into = int32(0 if into == STAGES - 1 else into + 1)
            commit()
            if k >= STAGES - 1:
                sums = multiply(sums, shared, int32(read * STAGE + a_lane), int32(read * STAGE + DEPTH * A_PITCH + b_lane))
                read = int32(0 if read == STAGES - 1 else read + 1)

        wait_all()
        column = int32(thread % COLUMNS)
        w_place = int64(split) * g.w_split + int64(group) * g.w_group + first_column + column
        for part in range(PARTS):
            cuda.syncthreads()
            if part == 0:
                put_upper(sums, output, result)
            else:
                put_lower(sums, output, result)
            cuda.syncthreads()
            if first_column + column < g.columns:
                for r in range(thread // COLUMNS, KEPT, THREADS // COLUMNS):
                    m = first_row + part * KEPT + r
                    if m < g.rows:
                        out[w_place + int64(m) * g.w_row] = narrow(output[r * B_PITCH + column])

    return weight_grad
