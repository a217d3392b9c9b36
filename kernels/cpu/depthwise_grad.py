"""dW where each group has one filter, in place on whole planes.

    dw[c, t] = sum_n sum_o dy[n, c's group, o] * x[n, c, position of o and t]

The micro-kernel `depthwise_grad` does it, a block of taps in one run. A job is a block of rows of all images of a channel, with
sums of its own, which the caller adds in order; where there is one row, a part of it. Copied borders are staged as in `depthwise`.
"""

import numba

from ..jit import address_of, call, kernel
from .depthwise import NEAR, rows_of
from .frame import COLUMNS, SLICES, rows_read, stage_rows, stages
from .microkernel import call_kernel


@kernel
def jobs(first, last, dy, x, sums, runs, table, zeros, room, frame):
    """Compute jobs `first` to `last`, all channels of each split one after another, of sums (splits, C, taps) from dy and x.

    A split is a block as in `depthwise.jobs`; `runs`, `zeros`, `room` and `frame` are as there.
    """
    staged = stages(frame)
    width = frame[COLUMNS] if staged else x.shape[4]
    size = x.itemsize
    splits, channels, taps = sums.shape
    share = channels // dy.shape[1]  # channels of a filter
    parts = splits if dy.shape[3] == 1 else 1
    x_plane, dy_plane = x.shape[2] * x.shape[3] * x.shape[4], dy.shape[2] * dy.shape[3] * dy.shape[4]
    most = channels if runs.shape[0] == 1 else max(1, NEAR // ((x_plane + dy_plane) * x.shape[0] * size))
    if staged:
        most = 1
    job = first
    while job < last:
        split, c = job // channels, job % channels
        planes = min(last - job, channels - c, most, share - c % share if share > 1 else channels)
        base, image = address_of(x) + c * x_plane * size, channels * x_plane * size
        if staged:
            row, end = rows_of(split, splits // parts, runs[0, 6], runs[0, 13])
            row, end = rows_read(frame, row, end)
            image = frame[SLICES] * (end - row) * width * size
            for n in range(x.shape[0]):
                stage_rows(x, n, c, frame, row, end, room[n * image // size :])
            base = address_of(room) - row * width * size
        for i in range(runs.shape[0]):
            row, end = rows_of(split, splits // parts, runs[i, 6], runs[i, 13])
            call_kernel(
                runs[i, 0], base, x_plane * size, image,
                address_of(dy) + (c // share * dy_plane + row * runs[i, 9]) * size, dy_plane * size if share == 1 else 0,
                dy.shape[1] * dy_plane * size,
                runs[i, 8] * size, runs[i, 9] * size,
                address_of(sums) + (job * taps + runs[i, 10]) * size, taps * size, planes, x.shape[0],
                address_of(table) + runs[i, 1] * 8 + row * runs[i, 4], runs[i, 2], runs[i, 3], runs[i, 5], end - row,
                width, dy.shape[4], address_of(zeros), runs[i, 11], split if parts > 1 else 0, parts,
            )  # fmt: skip
        job += planes


@kernel(parallel=True)
def parallel(run_jobs, count, dy, x, sums, runs, table, zeros, room, frame):
    """Run `count` jobs, an equal share on each row of `room`."""
    threads = room.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, dy, x, sums, runs, table, zeros, room[thread], frame)
