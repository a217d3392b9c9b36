"""Depthwise convolution, its dI and its dW where borders are zeros: one filter on each channel, in place on whole planes.

    out[n, c, o] = bias[c] + sum_t weight[c, t] * x[n, c, position of o and t]
    dw[c, t] = sum_n sum_o dy[n, c, o] * x[n, c, position of o and t]

The micro-kernels `depthwise` and `depthwise_grad` do it all, a block of taps in one run. A job is a block of rows of a plane, or
for dW of all images of a channel. Arrays are contiguous.
"""

import numba

from ..jit import call, kernel
from .epilogue import run_at, stores
from .microkernel import call_kernel

# Bytes of planes that runs, one after another, read and write: they stay in second-level cache.
NEAR = 128 * 1024
# Bytes of planes that an activation is run over at once: small planes one by one cost 1.27 of the time without, so many 1.21.
HELD = 32 * 1024


@kernel
def part(block, blocks, rows, unit):
    """First of the rows of one of `blocks` about equal blocks, which all but the last have whole units."""
    return min(block * -(-rows // unit) // blocks * unit, rows)


@kernel
def jobs(first, last, x, weight, bias, out, runs, table, zeros, room, blocks, apply):
    """Compute jobs `first` to `last` of all N * C planes of `blocks` blocks of rows; more than one only where planes are one slice.

    x (N, C, ...), weight (C, taps) in the order of the runs, bias (C,), out (N, C, ...). A row of `runs` is: address of the
    micro-kernel, first place in `table`, bytes from slice to slice, tap to tap and row to row there, slices, rows, first cell in
    out, cells from slice to slice and row to row there, first weight, shift, whether the bias is added, and rows that the kernel
    computes at once. `zeros` is a row of them; `room`, scratch for a plane where a function takes the results.
    """
    size = x.itemsize
    taken = stores(apply)
    channels = x.shape[1]
    x_plane, y_plane = x.shape[2] * x.shape[3] * x.shape[4], out.shape[2] * out.shape[3] * out.shape[4]
    most = last - first if runs.shape[0] == 1 else max(1, NEAR // ((x_plane + y_plane) * size))
    if apply != 0:
        most = 1 if taken else min(most, max(1, HELD // (y_plane * size)))
    job = first
    while job < last:
        plane, block = job // blocks, job % blocks
        c = plane % channels
        planes = 1 if blocks > 1 else min(last - plane, channels - c, most)
        target = out.ctypes.data + plane * y_plane * size
        place = room.ctypes.data if taken else target
        for i in range(runs.shape[0]):
            row, end = part(block, blocks, runs[i, 6], runs[i, 13]), part(block + 1, blocks, runs[i, 6], runs[i, 13])
            ends = runs[i, 12] != 0
            call_kernel(
                runs[i, 0], x.ctypes.data + plane * x_plane * size, x_plane * size,
                place + (runs[i, 7] + row * runs[i, 9]) * size, y_plane * size, runs[i, 8] * size, runs[i, 9] * size,
                weight.ctypes.data + (c * weight.shape[1] + runs[i, 10]) * size, weight.shape[1] * size,
                bias.ctypes.data + c * size if ends else zeros.ctypes.data, size if ends else 0,
                planes, table.ctypes.data + runs[i, 1] * 8 + row * runs[i, 4], runs[i, 2], runs[i, 3], runs[i, 5], end - row,
                x.shape[4], out.shape[4], zeros.ctypes.data, runs[i, 11],
            )  # fmt: skip
        if apply != 0:
            row, end = part(block, blocks, out.shape[3], runs[0, 13]), part(block + 1, blocks, out.shape[3], runs[0, 13])
            begin = row * out.shape[4] * size
            run_at(apply, place + begin, planes * y_plane if blocks == 1 else (end - row) * out.shape[4], target + begin)
        job += planes


@kernel(parallel=True)
def parallel(run_jobs, threads, count, x, weight, bias, out, runs, table, zeros, room, blocks, apply):
    """Run `count` jobs, an equal share on each thread, which has an equal share of `room` to itself."""
    cells = room.size // threads
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        own = room[thread * cells : (thread + 1) * cells]
        call(run_jobs, first, last, x, weight, bias, out, runs, table, zeros, own, blocks, apply)


@kernel
def grad_jobs(first, last, dy, x, sums, runs, table, zeros):
    """Compute jobs `first` to `last`, all channels of each split one after another, of sums (splits, C, taps) from dy and x.

    A split is a block of rows, more than one only where planes are one slice. `runs` and `zeros` are as in `jobs`.
    """
    size = x.itemsize
    splits, channels, taps = sums.shape
    x_plane, dy_plane = x.shape[2] * x.shape[3] * x.shape[4], dy.shape[2] * dy.shape[3] * dy.shape[4]
    most = channels if runs.shape[0] == 1 else max(1, NEAR // ((x_plane + dy_plane) * x.shape[0] * size))
    job = first
    while job < last:
        split, c = job // channels, job % channels
        planes = min(last - job, channels - c, most)
        for i in range(runs.shape[0]):
            row, end = part(split, splits, runs[i, 6], runs[i, 13]), part(split + 1, splits, runs[i, 6], runs[i, 13])
            call_kernel(
                runs[i, 0], x.ctypes.data + c * x_plane * size, x_plane * size, channels * x_plane * size,
                dy.ctypes.data + (c * dy_plane + row * runs[i, 9]) * size, dy_plane * size, channels * dy_plane * size,
                runs[i, 8] * size, runs[i, 9] * size,
                sums.ctypes.data + (job * taps + runs[i, 10]) * size, taps * size, planes, x.shape[0],
                table.ctypes.data + runs[i, 1] * 8 + row * runs[i, 4], runs[i, 2], runs[i, 3], runs[i, 5], end - row,
                x.shape[4], dy.shape[4], zeros.ctypes.data, runs[i, 11],
            )  # fmt: skip
        job += planes


@kernel(parallel=True)
def grad_parallel(run_jobs, threads, count, dy, x, sums, runs, table, zeros):
    """Run `count` jobs, an equal share on each thread."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, dy, x, sums, runs, table, zeros)
