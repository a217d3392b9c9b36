"""Winograd's algorithm F(2x2, 3x3) in float32, in one kernel: transform, multiply and transform back without an array in between.

An image is cut into tiles of 2 x 2 outputs, which read 4 x 4 cells; a tile has 16 elements of a transform, each of which sums over
the channels by itself, so that 16 products do for what 36 did (Lavin and Gray 2016, arXiv:1509.09308):

    out = At [ sum_c (G w G') * (Bt x B) ] A     w of 3 x 3, x of 4 x 4, out of 2 x 2; ' and t: transposed; *: by elements

dI is the same with the taps of the weight reversed. dW sums over tiles and not over channels, with gradients of 2 x 2 outputs in
the place of the weight and F(3x3, 2x2), whose inner transforms are the same but for signs:

    dw = Dt [ sum_tiles (H dy H') * (Bt x B) ] D     dy of 2 x 2, dw of 3 x 3

A block of 256 threads multiplies 64 rows (filters) by 32 columns (tiles; of dW channels), all 16 elements of them, `DEPTH` summands
at a time; each of its eight warps has two elements, which are products of matrices as in `tiled`. Cells and gradients are copied
asynchronously, one slice ahead of the products, by the thread that will transform them: to where their transform will stand.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64, uint32

from . import scalars
from .ptx import address, commit, copy_quad, copy_sized, outer_products, put, store_pair, wait, zeros
from .winograd_sizes import CELLS, COLUMNS, DEPTH, ELEMENTS, GRAD_CELLS, GRADS, PART, PITCH, ROW_PITCH, ROWS, SLICE, THREADS


class Transform(NamedTuple):
    """Where weights stand, in elements; those that are transformed stand as a block's threads copy them."""

    rows: int  # filters of a group, of dI its channels
    channels: int
    row_tiles: int  # blocks of rows and slices of channels of a group
    slices: int
    threads: int  # rows times channels of all groups, with those that fill blocks and slices
    w_group: int
    w_row: int
    w_channel: int
    w1: int
    w2: int
    first: int  # offset of the first tap


class Geometry(NamedTuple):
    """Where the operands of `correlate` stand, in elements."""

    rows: int  # filters of a group, of dI its channels
    tiles: int  # of all images
    channels: int
    slices: int  # of channels, with those of all splits
    chunk: int  # slices of one split
    out0: int  # planes of an image, each of which is an image by itself
    out1: int
    out2: int
    down: int  # tiles of a plane
    across: int
    start1: int  # input cell of the first tile
    start2: int
    size1: int
    size2: int
    x_image: int
    x_group: int
    x_channel: int
    x0: int
    x1: int
    x2: int
    y_split: int
    y_image: int
    y_group: int
    y_row: int
    y0: int
    y1: int
    y2: int
    biased: int


class GradGeometry(NamedTuple):
    """Where the operands of `weight_grad` stand, in elements; `w_*` of contiguous parts."""

    rows: int  # filters of a group
    columns: int  # channels of a group
    tiles: int  # of all images
    chunk: int  # slices of tiles of one split
    out0: int
    out1: int
    out2: int
    down: int
    across: int
    start1: int
    start2: int
    size1: int
    size2: int
    x_image: int
    x_group: int
    x_channel: int
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


@cuda.jit(device=True)
def cells_of_line(a, b, c, d):
    """Bt of four cells."""
    return a - c, b + c, c - b, b - d


@cuda.jit(device=True)
def outputs_of_line(a, b, c, d):
    """At of four elements."""
    return a + b + c, b - c - d


@cuda.jit(device=True)
def weights_of_line(a, b, c):
    """G of three taps."""
    half, other = float32(0.5) * (a + c), float32(0.5) * b
    return a, half + other, half - other, c


@cuda.jit(device=True)
def grads_of_line(a, b):
    """H of two gradients."""
    return a, float32(0.5) * (a + b), float32(0.5) * (a - b), b


@cuda.jit(device=True)
def taps_of_line(a, b, c, d):
    """Dt of four elements."""
    return a + b + c, b - c, b + c - d


@cuda.jit(device=True)
def transform_cells(shared, place, step):
    """Bt x B of this thread's cells, `step` apart, in their place."""
    lines = cuda.local.array(ELEMENTS, float32)
    for i in range(4):
        at = int32(place + i * 4 * step)
        found = cells_of_line(shared[at], shared[at + step], shared[at + 2 * step], shared[at + 3 * step])
        for j in range(4):
            lines[i * 4 + j] = found[j]
    for j in range(4):
        found = cells_of_line(lines[j], lines[4 + j], lines[8 + j], lines[12 + j])
        for i in range(4):
            shared[place + int32((i * 4 + j) * step)] = found[i]


@cuda.jit(device=True)
def column_of(shared, place):
    """Elements below each other of a transform's sums."""
    step = 4 * PART * PITCH
    return shared[place], shared[place + step], shared[place + 2 * step], shared[place + 3 * step]


@functools.cache
def make_hand_over() -> Any:
    """A function by which a block's threads hand a part of the rows of all elements to one another, in shared memory."""
    put_upper, put_lower = (put(first, 4, 8, ROWS // 2, COLUMNS // 2, PITCH, 4) for first in (0, 4))

    @cuda.jit(device=True)
    def hand_over(one, other, shared, place, part):
        cuda.syncthreads()
        if part == 0:
            put_upper(one, shared, place)
            put_upper(other, shared, int32(place + PART * PITCH))
        else:
            put_lower(one, shared, place)
            put_lower(other, shared, int32(place + PART * PITCH))
        cuda.syncthreads()

    return hand_over


@functools.cache
def make_transform() -> Any:
    """The kernel that transforms weights: a thread has a row and a channel, neighbours have neighbouring rows."""

    def transform(weight, out, g):
        i = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        if i < uint32(g.threads):
            row, rest = int32(i % uint32(ROWS)), uint32(i // uint32(ROWS))
            depth, rest = int32(rest % uint32(DEPTH)), uint32(rest // uint32(DEPTH))
            slot, rest = int32(rest % uint32(g.slices)), uint32(rest // uint32(g.slices))
            row_tile, group = int32(rest % uint32(g.row_tiles)), int32(rest // uint32(g.row_tiles))
            m, c = int32(row_tile * ROWS + row), int32(slot * DEPTH + depth)
            at = int64(group) * g.w_group + int64(m) * g.w_row + int64(c) * g.w_channel + g.first
            here = m < g.rows and c < g.channels
            lines = cuda.local.array(12, float32)
            for s in range(3):
                a = weight[at + s * g.w2] if here else float32(0)
                b = weight[at + g.w1 + s * g.w2] if here else float32(0)
                d = weight[at + 2 * g.w1 + s * g.w2] if here else float32(0)
                found = weights_of_line(a, b, d)
                for r in range(4):
                    lines[r * 3 + s] = found[r]
            place = int64(i // uint32(ROWS * DEPTH)) * SLICE + int64(depth * ROWS + row)
            for r in range(4):
                found = weights_of_line(lines[r * 3], lines[r * 3 + 1], lines[r * 3 + 2])
                for s in range(4):
                    out[place + (r * 4 + s) * DEPTH * ROWS] = found[s]

    return transform


@functools.cache
def make_correlate(near: bool, pairs: bool, out_name: str, function: Any = None) -> Any:
    """The kernel for one activation.

    `near`: cells of a row are neighbours in memory; `pairs`: so are outputs, none of which lies outside of the image by itself.
    """
    narrow, activation = scalars.narrow(out_name), scalars.activation(function)
    start = zeros(ROWS * COLUMNS // 32, scalars.summed("float32"))
    multiply = outer_products(8, 8, DEPTH, ROWS // 2, COLUMNS // 2, ROWS, COLUMNS)
    hand_over = make_hand_over()
    wait_all = wait(0)
    WEIGHTS = 2 * CELLS

    def correlate(x, weight, bias, out, g):
        shared = cuda.shared.array(0, float32)
        thread = int32(cuda.threadIdx.x)
        warp, lane = int32(thread // 32), int32(thread % 32)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        row_tile = int32(int32(cuda.blockIdx.x) % row_tiles)
        column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS + lane)
        first = int32(split * g.chunk)
        slices = int32(min(g.chunk, g.slices - first))

        # this thread's tile, of the channels of its warp
        tile = uint32(min(column, g.tiles - 1))
        t2, rest = int32(tile % uint32(g.across)), uint32(tile // uint32(g.across))
        t1, rest = int32(rest % uint32(g.down)), uint32(rest // uint32(g.down))
        o0, image = int32(rest % uint32(g.out0)), int32(rest // uint32(g.out0))
        p1, p2 = int32(2 * t1 + g.start1), int32(2 * t2 + g.start2)
        channel = int32(first * DEPTH + warp)
        from_x = address(
            x,
            int64(image) * g.x_image + int64(group) * g.x_group + int64(o0) * g.x0 + int64(p1) * g.x1 + int64(p2) * g.x2
            + int64(channel) * g.x_channel,
        )  # fmt: skip
        from_w = address(weight, ((int64(group) * row_tiles + row_tile) * g.slices + first) * SLICE)
        # bytes to copy of each row and column of cells: 4, or none outside of the image
        rows, columns = cuda.local.array(4, int32), cuda.local.array(4, int32)
        for i in range(4):
            rows[i] = 4 if uint32(p1 + uint32(i)) < uint32(g.size1) else 0
            columns[i] = 4 if uint32(p2 + uint32(i)) < uint32(g.size2) else 0
        # 8 rows and 8 columns of two elements
        a_place = int32(WEIGHTS + 2 * warp * DEPTH * ROWS + lane // 4 * 4)
        b_place = int32(2 * warp * DEPTH * COLUMNS + lane % 4 * 4)

        one, other = start(), start()
        for k in range(int32(-1), slices):
            if k >= 0:
                wait_all()
                transform_cells(shared, int32((k & 1) * CELLS + thread), THREADS)
                cuda.syncthreads()
            if int32(k + 1) < slices:
                own = int32(((k + 1) & 1) * CELLS + thread)
                here = int32(4 if channel < g.channels else 0)
                row = from_x
                for i in range(4):
                    size = int32(rows[i] & here)
                    for j in range(4):
                        step = int64(j) if near else int64(j) * g.x2
                        copy_sized(shared, int32(own + (i * 4 + j) * THREADS), row, step, int32(size & columns[j]))
                    row = address(row, g.x1)
                to = int32(WEIGHTS + ((k + 1) & 1) * SLICE + 4 * thread)
                for i in range(SLICE // (4 * THREADS)):
                    copy_quad(shared, to + i * 4 * THREADS, from_w, 4 * (thread + i * THREADS))
                channel += DEPTH
                from_x = address(from_x, int32(DEPTH * g.x_channel))
                from_w = address(from_w, SLICE)
            commit()
            if k >= 0:
                a, b = int32(a_place + (k & 1) * SLICE), int32(b_place + (k & 1) * CELLS)
                one = multiply(one, shared, a, b)
                other = multiply(other, shared, int32(a + DEPTH * ROWS), int32(b + DEPTH * COLUMNS))

        result = int32(2 * warp * PART * PITCH + lane // 4 * 4 * PITCH + lane % 4 * 4)
        m = int32(row_tile * ROWS + warp)
        y_place = (
            int64(split) * g.y_split + int64(image) * g.y_image + int64(group) * g.y_group + int64(m) * g.y_row
            + int64(o0) * g.y0 + int64(2 * t1) * g.y1 + int64(2 * t2) * g.y2
        )  # fmt: skip
        down, across = int32(g.out1 - 2 * t1), int32(g.out2 - 2 * t2)
        lines = cuda.local.array(8, float32)
        values = cuda.local.array(4, float32)
        for part in range(2):
            hand_over(one, other, shared, result, part)
            for i in range(PART // 8):
                if m < g.rows and column < g.tiles:
                    at = int32((warp + i * 8) * PITCH + lane)
                    for j in range(4):
                        a, b, c, d = column_of(shared, int32(at + j * PART * PITCH))
                        found = outputs_of_line(a, b, c, d)
                        lines[j], lines[4 + j] = found[0], found[1]
                    for o in range(2):
                        found = outputs_of_line(lines[4 * o], lines[4 * o + 1], lines[4 * o + 2], lines[4 * o + 3])
                        values[2 * o], values[2 * o + 1] = found[0], found[1]
                    if g.biased:
                        more = bias[group * g.rows + m]
                        for o in range(4):
                            values[o] += more
                    if activation is not None:
                        for o in range(4):
                            values[o] = activation(values[o])
                    for o in range(2):
                        if o < down:
                            to = y_place + int64(o) * g.y1
                            if pairs:
                                store_pair(out, to, narrow(values[2 * o]), narrow(values[2 * o + 1]))
                            else:
                                out[to] = narrow(values[2 * o])
                                if across > 1:
                                    out[to + g.y2] = narrow(values[2 * o + 1])
                m += 8
                y_place += int64(8) * g.y_row

    return correlate


@functools.cache
def make_weight_grad(near: bool) -> Any:
    """The kernel of dW: a thread copies the cells of one tile and channel, and the gradients of that tile and of two filters.

    `near`: cells of a row, and gradients, are neighbours in memory.
    """
    start = zeros(ROWS * COLUMNS // 32, scalars.summed("float32"))
    multiply = outer_products(8, 8, DEPTH, ROWS // 2, COLUMNS // 2, ROW_PITCH, PITCH)
    hand_over = make_hand_over()
    wait_all = wait(0)
    GRADS_AT = 2 * GRAD_CELLS
    CELL, GRAD = DEPTH * PITCH, DEPTH * ROW_PITCH  # from one element to the next

    def weight_grad(dy, x, out, g):
        shared = cuda.shared.array(0, float32)
        thread = int32(cuda.threadIdx.x)
        warp, lane = int32(thread // 32), int32(thread % 32)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        depth, other_ = int32(lane % DEPTH), int32(warp * 4 + lane // DEPTH)
        first = int32(split * g.chunk)
        slices = int32(min(g.chunk, (g.tiles + DEPTH - 1) // DEPTH - first))
        channel, filter_ = int32(first_column + other_), int32(first_row + other_)
        x_here = int32(4 if channel < g.columns else 0)
        rows, columns = cuda.local.array(4, int32), cuda.local.array(4, int32)
        x_group = int64(group) * g.x_group + int64(channel) * g.x_channel
        y_group = int64(group) * g.y_group + int64(filter_) * g.y_row
        own_cells = int32(depth * PITCH + other_)
        own_grads = int32(GRADS_AT + depth * ROW_PITCH + other_)
        a_place = int32(GRADS_AT + 2 * warp * DEPTH * ROW_PITCH + lane // 4 * 4)
        b_place = int32(2 * warp * DEPTH * PITCH + lane % 4 * 4)
        lines = cuda.local.array(8, float32)

        one, other = start(), start()
        for k in range(int32(-1), slices):
            if k >= 0:
                wait_all()
                transform_cells(shared, int32(own_cells + (k & 1) * GRAD_CELLS), CELL)
                for half in range(2):
                    to = int32(own_grads + (k & 1) * GRADS + 32 * half)
                    for i in range(2):
                        found = grads_of_line(shared[to + i * 2 * GRAD], shared[to + (i * 2 + 1) * GRAD])
                        for j in range(4):
                            lines[i * 4 + j] = found[j]
                    for j in range(4):
                        found = grads_of_line(lines[j], lines[4 + j])
                        for i in range(4):
                            shared[to + (i * 4 + j) * GRAD] = found[i]
                cuda.syncthreads()
            if int32(k + 1) < slices:
                tile = uint32((first + k + 1) * DEPTH + depth)
                here = int32(4 if tile < uint32(g.tiles) else 0)
                t2, rest = int32(tile % uint32(g.across)), uint32(tile // uint32(g.across))
                t1, rest = int32(rest % uint32(g.down)), uint32(rest // uint32(g.down))
                o0, image = int32(rest % uint32(g.out0)), int32(rest // uint32(g.out0))
                o1, o2 = int32(2 * t1), int32(2 * t2)
                p1, p2 = int32(o1 + g.start1), int32(o2 + g.start2)
                for i in range(4):
                    rows[i] = x_here & here if uint32(p1 + uint32(i)) < uint32(g.size1) else 0
                    columns[i] = 4 if uint32(p2 + uint32(i)) < uint32(g.size2) else 0
                row = address(x, x_group + int64(image) * g.x_image + int64(o0) * g.x0 + int64(p1) * g.x1 + int64(p2) * g.x2)
                to = int32(own_cells + ((k + 1) & 1) * GRAD_CELLS)
                for i in range(4):
                    for j in range(4):
                        step = int64(j) if near else int64(j) * g.x2
                        copy_sized(shared, int32(to + (i * 4 + j) * CELL), row, step, int32(rows[i] & columns[j]))
                    row = address(row, g.x1)
                for i in range(2):
                    rows[i] = here if uint32(o1 + uint32(i)) < uint32(g.out1) else 0
                    columns[i] = 4 if uint32(o2 + uint32(i)) < uint32(g.out2) else 0
                from_y = address(dy, y_group + int64(image) * g.y_image + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2)
                for half in range(2):
                    served = int32(4 if int32(filter_ + 32 * half) < g.rows else 0)
                    to = int32(own_grads + ((k + 1) & 1) * GRADS + 32 * half)
                    row = from_y
                    for i in range(2):
                        for j in range(2):
                            step = int32(j if near else j * g.y2)
                            copy_sized(shared, int32(to + (i * 2 + j) * GRAD), row, step, int32(served & rows[i] & columns[j]))
                        row = address(row, g.y1)
                    from_y = address(from_y, int32(32 * g.y_row))
            commit()
            if k >= 0:
                a, b = int32(a_place + (k & 1) * GRADS), int32(b_place + (k & 1) * GRAD_CELLS)
                one = multiply(one, shared, a, b)
                other = multiply(other, shared, int32(a + GRAD), int32(b + CELL))

        result = int32(2 * warp * PART * PITCH + lane // 4 * 4 * PITCH + lane % 4 * 4)
        m, column = int32(first_row + warp), int32(first_column + lane)
        w_place = int64(split) * g.w_split + int64(group) * g.w_group + int64(m) * g.w_row + int64(column) * 9
        taps = cuda.local.array(12, float32)
        for part in range(2):
            hand_over(one, other, shared, result, part)
            for i in range(PART // 8):
                if m < g.rows and column < g.columns:
                    at = int32((warp + i * 8) * PITCH + lane)
                    for j in range(4):
                        a, b, c, d = column_of(shared, int32(at + j * PART * PITCH))
                        found = taps_of_line(a, b, c, d)
                        for r in range(3):
                            taps[4 * r + j] = found[r]
                    for r in range(3):
                        found = taps_of_line(taps[4 * r], taps[4 * r + 1], taps[4 * r + 2], taps[4 * r + 3])
                        for s in range(3):
                            out[w_place + r * 3 + s] = found[s]
                m += 8
                w_place += int64(8) * g.w_row

    return weight_grad
