"""Convolution and dI where each group has one filter, in place on whole planes.

    out[n, g, o] = bias[g] + sum_(c, t) weight[g, c, t] * x[n, c of g, position of o and t]          c: one channel or some

Where borders are copies, or zeros that are wide, a thread stages rows of a plane within them, or folds the gradient of a padded
plane; see `frame`.

The micro-kernel `depthwise` does it all, a block of taps in one run. A job is a block of rows of a plane; where there is one row, a
part of it. Arrays are contiguous.
"""

import numba

from ..helper import helper
from ..jit import address_of, call, kernel
from .epilogue import run_at, stores
from .frame import CELLS, COLUMNS, fold_plane, folds, rows_read, stage_rows, stages
from .microkernel import call_kernel

# Bytes of planes that runs, one after another, read and write: they stay in second-level cache.
NEAR = 128 * 1024
# Bytes of planes that an activation is run over at once: small planes one by one cost 1.27 of the time without, so many 1.21.
HELD = 32 * 1024


@helper
def rows_of(block, blocks, rows, unit):
    """First row, and the one after the last, of one of `blocks` about equal blocks of whole units; of one block, all of them."""
    if blocks == 1:
        return 0, rows
    units = -(-rows // unit)
    return min(block * units // blocks * unit, rows), min((block + 1) * units // blocks * unit, rows)


@kernel
def jobs(first, last, x, weight, bias, out, runs, table, zeros, room, frame, blocks, apply):
    """Compute jobs `first` to `last` of all N * G planes of `blocks` blocks; more than one only where a run is over one slice.

    x (N, C, ...), weight (C, taps) in the order of the runs, C being the planes of x; bias (G,), out (N, G, ...). A row of `runs`
    is: address of the micro-kernel, first place in `table`, bytes from slice to slice, tap to tap and row to row there, slices,
    rows, first cell in out, cells from slice to slice and row to row there, first weight of a channel, shift, whether the bias is
    added, rows and cells of a row that the kernel computes at once, and the first of the channels that it adds. `zeros` is a row of
    them; `room`, scratch: a plane where a function takes the results, then what `frame` says.
    """
    size = x.itemsize
    taken = stores(apply)
    staged, folded = stages(frame), folds(frame)
    width, y_width = frame[COLUMNS] if staged else x.shape[4], frame[COLUMNS] if folded else out.shape[4]
    cells = room[room.size - frame[CELLS] :] if frame.size != 0 else room[:0]
    groups = out.shape[1]
    channels = x.shape[1] // groups
    parts = blocks if out.shape[3] == 1 else 1  # of each row
    x_plane, y_plane = x.shape[2] * x.shape[3] * x.shape[4], out.shape[2] * out.shape[3] * out.shape[4]
    most = last - first if runs.shape[0] == 1 else max(1, NEAR // ((channels * x_plane + y_plane) * size))
    if apply != 0:
        most = 1 if taken else min(most, max(1, HELD // (y_plane * size)))
    job = first
    while job < last:
        plane, block = job // blocks, job % blocks
        g = plane % groups
        planes = 1 if blocks > 1 or frame.size != 0 else min(last - plane, groups - g, most)
        target = address_of(out) + plane * y_plane * size
        place = address_of(room) if taken else target
        base = address_of(x) + plane * channels * x_plane * size
        if staged:
            row, end = rows_of(block, blocks // parts, runs[0, 6], runs[0, 13])
            row, end = rows_read(frame, row, end)
            stage_rows(x, plane // groups, g, frame, row, end, cells)
            base = address_of(cells) - row * width * size
        if folded:
            place = address_of(cells)
        for i in range(runs.shape[0]):
            row, end = rows_of(block, blocks // parts, runs[i, 6], runs[i, 13])
            ends = runs[i, 12] != 0
            call_kernel(
                runs[i, 0], base + runs[i, 15] * x_plane * size, channels * x_plane * size,
                place + (runs[i, 7] + row * runs[i, 9]) * size, y_plane * size, runs[i, 8] * size, runs[i, 9] * size,
                address_of(weight) + ((g * channels + runs[i, 15]) * weight.shape[1] + runs[i, 10]) * size,
                channels * weight.shape[1] * size,
                address_of(bias) + g * size if ends else address_of(zeros), size if ends else 0,
                planes, address_of(table) + runs[i, 1] * 8 + row * runs[i, 4], runs[i, 2], runs[i, 3], runs[i, 5], end - row,
                width, y_width, address_of(zeros), runs[i, 11], block if parts > 1 else 0, parts,
                channels, x_plane * size, weight.shape[1] * size,
            )  # fmt: skip
        if folded:
            fold_plane(cells, frame, out, plane // groups, g)
        if apply != 0:
            row, end = rows_of(block, blocks // parts, out.shape[3], runs[0, 13])
            begin, count = row * out.shape[4], (end - row) * out.shape[4]
            if parts > 1:
                begin, end = rows_of(block, parts, out.shape[4], runs[0, 14])
                count = end - begin
            run_at(apply, place + begin * size, planes * y_plane if blocks == 1 else count, target + begin * size)
        job += planes


@kernel(parallel=True)
def parallel(run_jobs, count, x, weight, bias, out, runs, table, zeros, room, frame, blocks, apply):
    """Run `count` jobs, an equal share on each row of `room`."""
    threads = room.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weight, bias, out, runs, table, zeros, room[thread], frame, blocks, apply)
