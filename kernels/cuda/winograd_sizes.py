"""Sizes of the blocks of Winograd's kernels, in elements: known to the dispatcher, which needs no GPU and no numba."""

ROWS, COLUMNS, DEPTH, THREADS = 64, 32, 8, 256
ELEMENTS = 16  # of the transform of a tile
PART = ROWS // 2  # rows of results that pass through shared memory at once
PITCH = COLUMNS + 4  # of results and, in dW, of columns: neighbouring threads meet different banks
ROW_PITCH = ROWS + 4  # of rows in dW
SLICE = ELEMENTS * DEPTH * ROWS  # transformed weights that a block multiplies between two barriers
CELLS = ELEMENTS * DEPTH * COLUMNS
GRADS, GRAD_CELLS = ELEMENTS * DEPTH * ROW_PITCH, ELEMENTS * DEPTH * PITCH
RESULTS = ELEMENTS * PART * PITCH
# Bytes of shared memory of a block: two slices, or a part of the results.
SHARED = 4 * max(2 * (SLICE + CELLS), RESULTS)
GRAD_SHARED = 4 * max(2 * (GRADS + GRAD_CELLS), RESULTS)
