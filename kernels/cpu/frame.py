"""Planes within their borders, for kernels that read zeros outside of what they are given: padded rows in a thread's scratch.

A frame is an array of integers: padded slices, rows and columns; border in front of rows; input rows from output to output, and
those that an output reads; cells of a thread's scratch; whether the input is staged, or else the result folded; then the input
slice of each padded slice, the input row of each padded row, and pairs of padded columns, one of the border and the one that it is
a copy of. Rows and columns of zeros are copies of -1. It is empty where planes are read in place.
"""

from ..helper import helper

SLICES, ROWS, COLUMNS, BEFORE, STEP, REACH, CELLS, STAGED, HEAD = range(9)


@helper
def stages(frame):
    """Whether rows of the input are staged within their border."""
    return frame.size != 0 and frame[STAGED] != 0


@helper
def folds(frame):
    """Whether results are those of padded cells, whose border belongs to the cells that it was copied from."""
    return frame.size != 0 and frame[STAGED] == 0


@helper
def rows_read(frame, first, last):
    """The padded rows that rows `first` to `last` of the results read; of several slices all, which lie as in a whole plane."""
    if frame[SLICES] > 1:
        return 0, frame[ROWS]
    return first * frame[STEP], (last - 1) * frame[STEP] + frame[REACH]


@helper
def stage_rows(x, n, c, frame, first, last, cells):
    """Copy the padded rows `first` to `last` of each padded slice of plane (n, c) to `cells`, side by side."""
    slices, columns, before, count = frame[SLICES], frame[COLUMNS], frame[BEFORE], last - first
    for j0 in range(slices):
        for j in range(count):
            found, at = frame[HEAD + slices + first + j], (j0 * count + j) * columns
            if found < 0:
                cells[at : at + columns] = 0
                continue
            source = x[n, c, frame[HEAD + j0], found]
            target = cells[at + before : at + before + source.size]
            for i in range(source.size):
                target[i] = source[i]
    for p in range(HEAD + slices + frame[ROWS], frame.size, 2):
        for row in range(slices * count):
            value = cells.dtype.type(0)
            if frame[p + 1] >= 0:
                value = cells[row * columns + frame[p + 1]]
            cells[row * columns + frame[p]] = value


@helper
def fold_plane(cells, frame, out, n, c):
    """out[n, c] = the padded plane in `cells`, whose border is added to the cells that it was copied from, axis by axis."""
    slices, rows, columns, before = frame[SLICES], frame[ROWS], frame[COLUMNS], frame[BEFORE]
    plane = rows * columns
    for p in range(HEAD + slices + rows, frame.size, 2):
        for row in range(slices * rows):
            cells[row * columns + frame[p + 1]] += cells[row * columns + frame[p]]
    out[n, c] = 0
    for j0 in range(slices):
        for j1 in range(rows):
            at = j0 * plane + j1 * columns + before
            target = out[n, c, frame[HEAD + j0], frame[HEAD + slices + j1]]
            source = cells[at : at + target.size]
            for i in range(target.size):
                target[i] += source[i]
