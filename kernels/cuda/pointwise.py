"""Convolutions of one tap and stride 1 on matrix units, on arrays as they are: each image is a matrix of channels and outputs.

forward, and dI with the weight transposed:  out[m, n] = sum_c weight[m, c] * x[c, n]      dW:  out[m, c] = sum_n dy[m, n] * x[c, n]

Copies to shared memory move `lanes` neighbouring outputs, of 4 to 16 bytes, none of which belongs to another image: those of an
image are a multiple of them. float16, bfloat16 and TF32.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32
from numba.cuda import types

from .ptx import address, commit, copy_bytes, matrix_products, put_matrix, wait, zeros
from .store import make_store
from .tile import CHUNK, Tile

SPACE = 8  # elements between terms, so that fragments meet all banks


class Matrices(NamedTuple):
    """Sizes, and strides in elements, of the operands; outputs of an image lie side by side."""

    rows: int  # filters of a group, of dI its channels
    columns: int  # outputs of all images, of dW channels of a group
    terms: int  # channels of a group, of dI its filters, of dW outputs of all images
    chunk: int  # terms of one split, whole slices of them
    cells: int  # outputs of an image
    x_image: int
    x_group: int
    x_channel: int
    w_image: int  # of dW, where dy takes the weight's place
    w_group: int
    w_row: int
    w_term: int
    y_split: int
    y_image: int
    y_group: int
    y_row: int
    biased: int


def _memory(name: str) -> tuple[int, Any, str]:
    """Bytes and type of an element in shared memory, and the unit that multiplies."""
    return (4, types.uint32, "tf32") if name == "float32" else (2, types.uint16, name)


@functools.cache
def make_correlate(sizes: Any, lanes: int, transposed: bool, name: str, out_name: str, function: Any = None) -> Any:
    """The kernel for one tile and activation; `transposed`: neighbours in memory are rows of the weight, not its terms."""
    tile = Tile(*sizes)
    ROWS, COLUMNS, DEPTH, THREADS, STAGES = tile.rows, tile.columns, tile.depth, tile.threads, tile.stages
    SIZE, memory, unit = _memory(name)
    LANES = CHUNK // SIZE  # of a copy of the weight
    A_PITCH = ROWS + SPACE if transposed else DEPTH + LANES
    B_PITCH = COLUMNS + SPACE
    A_AREA = (DEPTH if transposed else ROWS) * A_PITCH
    STAGE = A_AREA + DEPTH * B_PITCH
    A_PARTS, B_PARTS = (ROWS if transposed else DEPTH) // LANES, COLUMNS // lanes
    A_STEP, B_STEP = THREADS // A_PARTS, THREADS // B_PARTS
    A_COPIES, B_COPIES = (DEPTH if transposed else ROWS) // A_STEP, DEPTH // B_STEP
    warp_rows, warp_columns = tile.thread_rows * tile.down, tile.thread_columns * 32 // tile.down
    across, OUT_PITCH = COLUMNS // warp_columns, COLUMNS + tile.pad
    multiply = matrix_products(unit, warp_rows, warp_columns, DEPTH, A_PITCH, B_PITCH, transposed, True, False)
    put = put_matrix(warp_rows, warp_columns, OUT_PITCH)
    store = make_store(sizes, lanes > 1, name, out_name, function)
    start = zeros(tile.thread_rows * tile.thread_columns, types.float32)
    wait_for_stage, wait_all = wait(STAGES - 2), wait(0)
    copy_weight, copy_outputs = copy_bytes(CHUNK), copy_bytes(SIZE * lanes)
    halves, SIDE = SIZE == 2, COLUMNS // (2 if lanes > 1 else 1)

    def correlate(x, weight, bias, out, g):
        """Compute one tile."""
        shared, output = cuda.shared.array(0, memory), cuda.shared.array(0, types.float32)
        thread = uint32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        first, last = int32(split * g.chunk), int32(min(split * g.chunk + g.chunk, g.terms))
        slices = int32((last - first + DEPTH - 1) // DEPTH)

        b_part, b_term = int32(thread % B_PARTS), int32(thread // B_PARTS)
        pixel = int32(first_column + b_part * lanes)
        b_valid = pixel < g.columns
        image, cell = int32(uint32(pixel) // uint32(g.cells)), int32(uint32(pixel) % uint32(g.cells))
        from_x = address(
            x, int64(group) * g.x_group + int64(image) * g.x_image + int64(first + b_term) * g.x_channel + int64(cell)
        )  # fmt: skip
        b_place = int32(A_AREA + b_term * B_PITCH + b_part * lanes)
        a_part, a_other = int32(thread % A_PARTS * LANES), int32(thread // A_PARTS)
        a_place = int32(a_other * A_PITCH + a_part)
        if transposed:
            a_row, a_term = int32(first_row + a_part), a_other
            a_valid = a_row < g.rows
        else:
            a_row, a_term = int32(first_row + a_other), a_part
            a_valid = True
        from_w = address(weight, int64(group) * g.w_group + int64(a_row) * g.w_row + int64(first + a_term) * g.w_term)
        warp, lane = int32(thread // 32), int32(thread % 32)
        row, left = int32(warp // across * warp_rows), int32(warp % across * warp_columns)
        if not transposed:
            a_lane = int32((row + lane % 16) * A_PITCH + lane // 16 * LANES)
        elif halves:
            a_lane = int32((lane // 16 * 8 + lane % 8) * A_PITCH + row + lane // 8 % 2 * 8)
        else:
            a_lane = int32(lane % 4 * A_PITCH + row + lane // 4)
        if halves:
            b_lane = int32(A_AREA + (lane // 8 % 2 * 8 + lane % 8) * B_PITCH + left + lane // 16 * 8)
        else:
            b_lane = int32(A_AREA + lane % 4 * B_PITCH + left + lane // 4)

        sums = start()
        into, read = int32(0), int32(0)
        for k in range(int32(slices + STAGES - 1)):
            if k >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
            if k < slices:
                terms_left = int32(last - first - k * DEPTH)
                to = int32(into * STAGE)
                x_at = from_x
                for i in range(B_COPIES):
                    copy_outputs(
                        shared, to + b_place + i * B_STEP * B_PITCH, x_at, int32(0), b_valid and b_term + i * B_STEP < terms_left
                    )
                    x_at = address(x_at, int32(g.x_channel * B_STEP))
                w_at = from_w
                for i in range(A_COPIES):
                    if transposed:
                        here = a_valid and a_term + i * A_STEP < terms_left
                    else:
                        here = a_term < terms_left and a_row + i * A_STEP < g.rows
                    copy_weight(shared, to + a_place + i * A_STEP * A_PITCH, w_at, int32(0), here)
                    w_at = address(w_at, int32((g.w_term if transposed else g.w_row) * A_STEP))
                from_x = address(from_x, int32(g.x_channel * DEPTH))
                from_w = address(from_w, int32(g.w_term * DEPTH))
                into = int32(0 if into == STAGES - 1 else into + 1)
            commit()
            if k >= STAGES - 1:
                sums = multiply(sums, shared, int32(read * STAGE + a_lane), int32(read * STAGE + b_lane))
                read = int32(0 if read == STAGES - 1 else read + 1)

        wait_all()
        cuda.syncthreads()
        put(sums, output, int32((row + lane // 4) * OUT_PITCH + left + lane % 4 * 2))
        cuda.syncthreads()
        pixel = int32(first_column + int32(thread % SIDE) * (COLUMNS // SIDE))
        if pixel < g.columns:
            image, cell = int32(uint32(pixel) // uint32(g.cells)), int32(uint32(pixel) % uint32(g.cells))
            place = int64(split) * g.y_split + int64(group) * g.y_group + int64(image) * g.y_image + int64(cell)
            m = int32(group * g.rows + first_row)
            store(
                output, out, place + int64(first_row) * g.y_row, g.y_row, int32(g.rows - first_row),
                address(bias, m if g.biased else 0), g.biased, thread,
            )  # fmt: skip

    return correlate


@functools.cache
def make_weight_grad(sizes: Any, lanes: int, name: str, out_name: str) -> Any:
    """The kernel for one tile; the gradient of the output takes the weight's place in `Matrices`."""
    tile = Tile(*sizes)
    ROWS, COLUMNS, DEPTH, THREADS, STAGES = tile.rows, tile.columns, tile.depth, tile.threads, tile.stages
    SIZE, memory, unit = _memory(name)
    LANES = CHUNK // SIZE
    PITCH = DEPTH + LANES
    STAGE = (ROWS + COLUMNS) * PITCH
    PARTS = DEPTH // lanes
    STEP = THREADS // PARTS
    A_COPIES, B_COPIES = ROWS // STEP, COLUMNS // STEP
    warp_rows, warp_columns = tile.thread_rows * tile.down, tile.thread_columns * 32 // tile.down
    across, OUT_PITCH = COLUMNS // warp_columns, COLUMNS + tile.pad
    multiply = matrix_products(unit, warp_rows, warp_columns, DEPTH, PITCH, PITCH, False, False, False)
    put = put_matrix(warp_rows, warp_columns, OUT_PITCH)
    store = make_store(sizes, False, name, out_name, None)
    start = zeros(tile.thread_rows * tile.thread_columns, types.float32)
    wait_for_stage, wait_all = wait(STAGES - 2), wait(0)
    copy = copy_bytes(SIZE * lanes)

    def weight_grad(dy, x, out, g):
        """Compute one tile, summed over one split of the outputs."""
        shared, output = cuda.shared.array(0, memory), cuda.shared.array(0, types.float32)
        thread = uint32(cuda.threadIdx.x)
        group, split = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row_tiles = int32((g.rows + ROWS - 1) // ROWS)
        first_row = int32(int32(cuda.blockIdx.x) % row_tiles * ROWS)
        first_column = int32(int32(cuda.blockIdx.x) // row_tiles * COLUMNS)
        first, last = int32(split * g.chunk), int32(min(split * g.chunk + g.chunk, g.terms))
        slices = int32((last - first + DEPTH - 1) // DEPTH)

        part, other = int32(thread % PARTS * lanes), int32(thread // PARTS)
        from_y = address(dy, int64(group) * g.w_group + int64(first_row + other) * g.w_row)
        from_x = address(x, int64(group) * g.x_group + int64(first_column + other) * g.x_channel)
        place = int32(other * PITCH + part)
        rows_left, columns_left = int32(g.rows - first_row - other), int32(g.columns - first_column - other)
        warp, lane = int32(thread // 32), int32(thread % 32)
        row, left = int32(warp // across * warp_rows), int32(warp % across * warp_columns)
        a_lane = int32((row + lane % 16) * PITCH + lane // 16 * LANES)
        b_lane = int32((ROWS + left + lane % 8 + lane // 16 * 8) * PITCH + lane // 8 % 2 * LANES)

        sums = start()
        into, read = int32(0), int32(0)
        for k in range(int32(slices + STAGES - 1)):
            if k >= STAGES - 1:
                wait_for_stage()
                cuda.syncthreads()
            if k < slices:
                pixel = int32(first + k * DEPTH + part)
                image, cell = int32(uint32(pixel) // uint32(g.cells)), int32(uint32(pixel) % uint32(g.cells))
                here = pixel < last
                to = int32(into * STAGE + place)
                y_at = address(from_y, int64(image) * g.w_image + int64(cell))
                for i in range(A_COPIES):
                    copy(shared, to + i * STEP * PITCH, y_at, int32(0), here and i * STEP < rows_left)
                    y_at = address(y_at, int32(g.w_row * STEP))
                x_at = address(from_x, int64(image) * g.x_image + int64(cell))
                for i in range(B_COPIES):
                    copy(shared, to + (ROWS + i * STEP) * PITCH, x_at, int32(0), here and i * STEP < columns_left)
                    x_at = address(x_at, int32(g.x_channel * STEP))
                into = int32(0 if into == STAGES - 1 else into + 1)
            commit()
            if k >= STAGES - 1:
                sums = multiply(sums, shared, int32(read * STAGE + a_lane), int32(read * STAGE + b_lane))
                read = int32(0 if read == STAGES - 1 else read + 1)

        wait_all()
        cuda.syncthreads()
        put(sums, output, int32((row + lane // 4) * OUT_PITCH + left + lane % 4 * 2))
        cuda.syncthreads()
        column = int32(first_column + int32(thread % COLUMNS))
        if column < g.columns:
            place_out = int64(split) * g.y_split + int64(group) * g.y_group + int64(column)
            store(
                output, out, place_out + int64(first_row) * g.y_row, g.y_row, int32(g.rows - first_row), address(out, 0), False,
                thread,
            )  # fmt: skip

    return weight_grad
