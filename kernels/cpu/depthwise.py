"""Depthwise convolution, its dI and its dW where borders are zeros: one filter on each channel, in place on whole planes.

    out[n, c, o] = bias[c] + sum_t weight[c, t] * x[n, c, position of o and t]
    dw[c, t] = sum_n sum_o dy[n, c, o] * x[n, c, position of o and t]

The micro-kernels `depthwise` and `depthwise_grad` do it all; a job is a plane, or for dW a channel. Arrays are contiguous.
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
def jobs(first, last, x, weight, bias, out, runs, table, zeros, room, apply):
    """Compute planes `first` to `last` of all N * C.

    x (N, C, ...), weight (C, taps) in the order of the runs, bias (C,), out (N, C, ...). A row of `runs` is: address of the
    micro-kernel, first place in `table`, bytes from slice to slice and tap to tap there, slices, rows, first cell in out, cells
    from slice to slice and row to row there, first weight. `zeros` is a row of them; `room`, scratch for a plane where a function
    takes the results.
    """
    size = x.itemsize
    taken = stores(apply)
    channels = x.shape[1]
    x_plane, y_plane = x.shape[2] * x.shape[3] * x.shape[4], out.shape[2] * out.shape[3] * out.shape[4]
    most = last - first if runs.shape[0] == 1 else max(1, NEAR // ((x_plane + y_plane) * size))
    if apply != 0:
        most = 1 if taken else min(most, max(1, HELD // (y_plane * size)))
    plane = first
    while plane < last:
        c = plane % channels
        planes = min(last - plane, channels - c, most)
        target = out.ctypes.data + plane * y_plane * size
        place = room.ctypes.data if taken else target
        for i in range(runs.shape[0]):
            call_kernel(
                runs[i, 0], x.ctypes.data + plane * x_plane * size, x_plane * size,
                place + runs[i, 6] * size, y_plane * size, runs[i, 7] * size, runs[i, 8] * size,
                weight.ctypes.data + (c * weight.shape[1] + runs[i, 9]) * size, weight.shape[1] * size, bias.ctypes.data + c * size,
                planes, table.ctypes.data + runs[i, 1] * 8, runs[i, 2], runs[i, 3], runs[i, 4], runs[i, 5],
                x.shape[4], out.shape[4], zeros.ctypes.data,
            )  # fmt: skip
        if apply != 0:
            run_at(apply, place, planes * y_plane, target)
        plane += planes


@kernel(parallel=True)
def parallel(run_jobs, threads, count, x, weight, bias, out, runs, table, zeros, room, apply):
    """Compute `count` planes, an equal share on each thread, which has an equal share of `room` to itself."""
    cells = room.size // threads
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        own = room[thread * cells : (thread + 1) * cells]
        call(run_jobs, first, last, x, weight, bias, out, runs, table, zeros, own, apply)


@kernel
def grad_jobs(first, last, dy, x, dw, runs, table, zeros):
    """Compute channels `first` to `last` of dw (C, taps) from dy and x, with the one row of `runs`."""
    size = x.itemsize
    channels = x.shape[1]
    x_plane, dy_plane = x.shape[2] * x.shape[3] * x.shape[4], dy.shape[2] * dy.shape[3] * dy.shape[4]
    call_kernel(
        runs[0, 0], x.ctypes.data + first * x_plane * size, x_plane * size, channels * x_plane * size,
        dy.ctypes.data + first * dy_plane * size, dy_plane * size, channels * dy_plane * size, runs[0, 7] * size, runs[0, 8] * size,
        dw.ctypes.data + first * dw.shape[1] * size, last - first, x.shape[0], table.ctypes.data + runs[0, 1] * 8,
        runs[0, 2], runs[0, 3], runs[0, 4], runs[0, 5], x.shape[4], dy.shape[4], zeros.ctypes.data,
    )  # fmt: skip


@kernel(parallel=True)
def grad_parallel(run_jobs, threads, count, dy, x, dw, runs, table, zeros):
    """Compute `count` channels, an equal share on each thread."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, dy, x, dw, runs, table, zeros)
