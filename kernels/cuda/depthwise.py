"""Convolutions of few channels a group, read from the caches of the GPU.

    correlate      out[n,k,o] = activation(bias[k] + sum_(c,r) weight[k,c,r] * x[n,c,i])      forward and dI
    weight_grad    out[k,c,r] = sum_(n,o) dy[n,k,o] * x[n,c,i]

Which tap r joins output o to cell i is decided at compile time on the last two axes (see `axis.Axis`), at run time on the first. A
thread holds a window of taps, all of them if they are few, and works on a block of outputs below each other, or side by side where
there is one row, so that a cell it has loaded serves all taps that reach it. Neighbouring threads have neighbours of a row.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32, uint64

from . import scalars
from .axis import Axis


class Planes(NamedTuple):
    """Sizes, and strides in elements; all fit 32 bits. `_magic` and `_shift` divide by what they are named after."""

    windows: int  # of taps, of forward and dI
    total: int  # blocks of outputs: of all planes, or for dW of all images
    positions: int  # threads of a plane, or blocks of threads where each has one plane only
    positions_magic: int
    positions_shift: int
    columns: int  # blocks of outputs side by side
    columns_magic: int
    columns_shift: int
    rows: int  # blocks of outputs below each other
    rows_magic: int
    rows_shift: int
    out0: int
    out0_magic: int
    out0_shift: int
    out1: int
    out2: int
    planes: int  # of an image that is written
    planes_magic: int
    planes_shift: int
    filters: int  # of a group, of what is written
    filters_magic: int
    filters_shift: int
    channels: int  # of a group, of what is read
    channels_magic: int
    channels_shift: int
    kernel0: int
    kernel0_magic: int
    kernel0_shift: int
    stride0: int
    dilation0: int  # below 0 where later taps meet earlier cells
    start0: int  # cell read by output 0 and tap 0
    start1: int  # first cell read by block 0
    start2: int
    size0: int  # of what is read
    size1: int
    size2: int
    x_image: int
    x_channel: int
    x0: int
    x1: int
    x2: int
    w_group: int
    w_filter: int
    w_channel: int
    w0: int
    w1: int
    w2: int
    y_image: int
    y_filter: int
    y0: int
    y1: int
    y2: int
    biased: int


PIECE = 1024  # taps, about, that shared memory holds at a time


@cuda.jit(device=True)
def divide(n, magic, shift):
    """The quotient n // divisor, for n < 2**31."""
    return int32(uint32((uint64(uint32(n)) * uint64(uint32(magic))) >> uint64(uint32(shift))))


@functools.cache
def make_correlate(
    name: str, out_name: str, function: Any, axis1: Axis, axis2: Axis, over0: int, single: bool, dense: bool, looped: bool,
    shared: bool, threads: int,
) -> Any:  # fmt: skip
    """The kernel for one geometry; on the first axis, cell i is (o * stride + r * dilation + start) / over0, where that is whole.

    `single`: there is one plane to each filter and image, and one filter to each group. `dense`: neighbours of the last axis are
    neighbours in memory, in filters those of the last two. `looped`: windows are not unrolled. `shared`: a block of threads works
    on one plane, whose filter waits in shared memory.
    """
    widen, narrow, kind = scalars.widen(name), scalars.narrow(out_name), scalars.summed(name)
    activation = scalars.activation(function)
    KERNEL1, TAPS1, BLOCK1, STEP1, ADVANCE1, SPACING1, REACH1, OFFSET1, BY_OUTPUT1, BY_TAP1, OVER1 = axis1
    KERNEL2, TAPS2, BLOCK2, STEP2, ADVANCE2, SPACING2, REACH2, OFFSET2, BY_OUTPUT2, BY_TAP2, OVER2 = axis2
    WINDOWS2, WINDOWS = axis2.windows, axis1.windows * axis2.windows
    TAPS, CELLS, OUTPUTS, THREADS = TAPS1 * TAPS2, REACH1 * REACH2, BLOCK1 * BLOCK2, threads
    OVER0, SINGLE, DENSE, LOOPED, SHARED = over0, single, dense, looped, shared
    EXACT = KERNEL1 % TAPS1 == 0 and KERNEL2 % TAPS2 == 0
    WAITING = min(WINDOWS, max(1, PIECE // TAPS)) if shared else WINDOWS
    PIECES = -(-WINDOWS // WAITING)
    WAITING_TAPS = WAITING * TAPS

    def correlate(x, weight, bias, out, g):
        sums = cuda.local.array(OUTPUTS, kind)
        taps = cuda.local.array(TAPS, kind)
        cells = cuda.local.array(CELLS, kind)
        thread = int32(cuda.threadIdx.x)
        if SHARED:
            waiting = cuda.shared.array(WAITING_TAPS, kind)
            block = uint32(cuda.blockIdx.x)
            plane = divide(block, g.positions_magic, g.positions_shift)
            position = uint32((block - uint32(plane) * uint32(g.positions)) * uint32(THREADS) + uint32(thread))
        else:
            index = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(thread))
            if index >= uint32(g.total):
                return
            plane = divide(index, g.positions_magic, g.positions_shift)
            position = uint32(index - uint32(plane) * uint32(g.positions))
        a1 = divide(position, g.columns_magic, g.columns_shift)
        a2 = int32(position - uint32(a1) * uint32(g.columns))
        if SINGLE:
            n = divide(plane, g.planes_magic, g.planes_shift)
            k = int32(plane - n * g.planes)
            o0, group, filter_, channels, kernel0 = int32(0), k, int32(0), int32(1), int32(1)
        else:
            nk = divide(plane, g.out0_magic, g.out0_shift)
            o0 = int32(plane - nk * g.out0)
            n = divide(nk, g.planes_magic, g.planes_shift)
            k = int32(nk - n * g.planes)
            group = divide(k, g.filters_magic, g.filters_shift)
            filter_, channels, kernel0 = int32(k - group * g.filters), int32(g.channels), int32(g.kernel0)
        x2, w1, w2, y2 = int64(g.x2), int64(g.w1), int64(g.w2), int64(g.y2)
        if DENSE:
            x2, w1, w2, y2 = int64(1), int64(KERNEL2), int64(1), int64(1)

        start = kind(0)
        if g.biased:
            start = widen(bias[k])
        for j in range(OUTPUTS):
            sums[j] = start
        p1, p2 = int32(a1 * STEP1 + g.start1), int32(a2 * STEP2 + g.start2)
        x_place = int64(n) * g.x_image + int64(int32(group * channels)) * g.x_channel + int64(p1) * g.x1 + p2 * x2
        w_place = int64(group) * g.w_group + int64(filter_) * g.w_filter
        windows = g.windows if LOOPED else WINDOWS
        for c in range(channels):
            for r0 in range(kernel0):
                p0, inside = int32(0), True
                if not SINGLE:
                    q0 = int32(o0 * g.stride0 + r0 * g.dilation0 + g.start0)
                    p0 = int32(uint32(q0) // uint32(OVER0))
                    inside = q0 >= 0 and p0 * OVER0 == q0 and p0 < g.size0
                if inside:
                    xi = x_place + int64(c) * g.x_channel + int64(p0) * g.x0
                    wi = w_place + int64(c) * g.w_channel + int64(r0) * g.w0
                    for piece in range(PIECES):
                        if SHARED:
                            cuda.syncthreads()
                            for t in range(thread, WAITING_TAPS, THREADS):
                                window = piece * WAITING + t // TAPS
                                r1 = window // WINDOWS2 * TAPS1 + t % TAPS // TAPS2
                                r2 = window % WINDOWS2 * TAPS2 + t % TAPS2
                                if r1 < KERNEL1 and r2 < KERNEL2:
                                    waiting[t] = widen(weight[wi + r1 * w1 + r2 * w2])
                            cuda.syncthreads()
                        for here in range(min(WAITING, windows - piece * WAITING)):
                            window = int32(piece * WAITING + here)
                            window1, window2 = int32(window // WINDOWS2), int32(window % WINDOWS2)
                            if SHARED:
                                for t in range(TAPS):
                                    taps[t] = waiting[here * TAPS + t]
                            else:
                                wj = wi + window1 * TAPS1 * w1 + window2 * TAPS2 * w2
                                for r1 in range(TAPS1):
                                    for r2 in range(TAPS2):
                                        if EXACT or (window1 * TAPS1 + r1 < KERNEL1 and window2 * TAPS2 + r2 < KERNEL2):
                                            taps[r1 * TAPS2 + r2] = widen(weight[wj + r1 * w1 + r2 * w2])
                            for i1 in range(REACH1):
                                shift1 = int32(window1 * ADVANCE1 + i1 * SPACING1)
                                row_inside = uint32(p1 + shift1) < uint32(g.size1)
                                for i2 in range(REACH2):
                                    shift2 = int32(window2 * ADVANCE2 + i2 * SPACING2)
                                    value = kind(0)
                                    if row_inside & (uint32(p2 + shift2) < uint32(g.size2)):
                                        value = widen(x[xi + int64(shift1) * g.x1 + shift2 * x2])
                                    cells[i1 * REACH2 + i2] = value
                            for r1 in range(TAPS1):
                                for r2 in range(TAPS2):
                                    if EXACT or (window1 * TAPS1 + r1 < KERNEL1 and window2 * TAPS2 + r2 < KERNEL2):
                                        for j1 in range(BLOCK1):
                                            i1 = OFFSET1 + j1 * BY_OUTPUT1 + r1 * BY_TAP1
                                            if i1 % OVER1 == 0:
                                                for j2 in range(BLOCK2):
                                                    i2 = OFFSET2 + j2 * BY_OUTPUT2 + r2 * BY_TAP2
                                                    if i2 % OVER2 == 0:
                                                        cell = cells[i1 // OVER1 * REACH2 + i2 // OVER2]
                                                        sums[j1 * BLOCK2 + j2] += cell * taps[r1 * TAPS2 + r2]
        o1, o2 = int32(a1 * BLOCK1), int32(a2 * BLOCK2)
        yi = int64(n) * g.y_image + int64(k) * g.y_filter + int64(o0) * g.y0 + int64(o1) * g.y1 + o2 * y2
        for j1 in range(BLOCK1):
            for j2 in range(BLOCK2):
                if (o1 + j1 < g.out1) & (o2 + j2 < g.out2):
                    value = sums[j1 * BLOCK2 + j2]
                    if activation is not None:
                        value = activation(value)
                    out[yi + int64(j1) * g.y1 + j2 * y2] = narrow(value)

    return correlate


@functools.cache
def make_weight_grad(name: str, out_name: str, axis1: Axis, axis2: Axis, single: bool, dense: bool, threads: int) -> Any:
    """out[split,k,c,r]: a block of threads sums a window of taps of one filter and channel over one split of (n, o).

    `single` and `dense` are as in `make_correlate`, for x and dy.
    Each thread adds up its blocks of outputs; then, in shared memory, halves of the threads are added, all taps at once.
    """
    widen, narrow, kind = scalars.widen(name), scalars.narrow(out_name), scalars.summed(name)
    KERNEL1, TAPS1, BLOCK1, STEP1, ADVANCE1, SPACING1, REACH1 = axis1[:7]
    KERNEL2, TAPS2, _, STEP2, ADVANCE2, SPACING2, _ = axis2[:7]
    WINDOWS2, WINDOWS = axis2.windows, axis1.windows * axis2.windows
    TAPS, THREADS, SINGLE, DENSE = TAPS1 * TAPS2, threads, single, dense
    CELLS, SUMS, LEVELS = REACH1 * TAPS2, TAPS * threads, threads.bit_length() - 1
    # cells from one output of a block to the next, and from one tap to the next
    BY_OUTPUT, BY_TAP = axis1.by_output, axis1.by_tap

    def weight_grad(dy, x, out, chunk, split_stride, g):
        shared = cuda.shared.array(SUMS, kind)
        sums = cuda.local.array(TAPS, kind)
        cells = cuda.local.array(CELLS, kind)
        dz = cuda.local.array(BLOCK1, kind)
        thread, split = int32(cuda.threadIdx.x), int32(cuda.blockIdx.y)
        window = int32(uint32(cuda.blockIdx.x) % uint32(WINDOWS))
        window1, window2 = int32(window // WINDOWS2), int32(window % WINDOWS2)
        rest = int32(uint32(cuda.blockIdx.x) // uint32(WINDOWS))
        if SINGLE:
            k, group, c, r0 = rest, rest, int32(0), int32(0)
        else:
            kc = divide(rest, g.kernel0_magic, g.kernel0_shift)
            r0 = int32(rest - kc * g.kernel0)
            k = divide(kc, g.channels_magic, g.channels_shift)
            c = int32(kc - k * g.channels)
            group = divide(k, g.filters_magic, g.filters_shift)
        x2, y2 = int64(g.x2), int64(g.y2)
        if DENSE:
            x2, y2 = int64(1), int64(1)
        y_plane = int64(k) * g.y_filter
        x_plane = int64(int32(group * g.channels + c)) * g.x_channel
        start0 = int32(r0 * g.dilation0 + g.start0)
        start1, start2 = int32(window1 * ADVANCE1 + g.start1), int32(window2 * ADVANCE2 + g.start2)
        for t in range(TAPS):
            sums[t] = kind(0)
        first = int64(split) * chunk
        for item in range(first + thread, min(first + chunk, int64(g.total)), THREADS):
            above = divide(item, g.columns_magic, g.columns_shift)
            o2 = int32(item - above * g.columns)
            higher = divide(above, g.rows_magic, g.rows_shift)
            a1 = int32(above - higher * g.rows)
            n, o0, p0 = higher, int32(0), int32(0)
            if not SINGLE:
                n = divide(higher, g.out0_magic, g.out0_shift)
                o0 = int32(higher - n * g.out0)
                p0 = int32(o0 * g.stride0 + start0)
            p1, p2, o1 = int32(a1 * STEP1 + start1), int32(o2 * STEP2 + start2), int32(a1 * BLOCK1)
            if SINGLE or uint32(p0) < uint32(g.size0):
                yi = y_plane + int64(n) * g.y_image + int64(o0) * g.y0 + int64(o1) * g.y1 + o2 * y2
                xi = x_plane + int64(n) * g.x_image + int64(p0) * g.x0 + int64(p1) * g.x1 + p2 * x2
                for j in range(BLOCK1):
                    dz[j] = kind(0)
                    if o1 + j < g.out1:
                        dz[j] = widen(dy[yi + int64(j) * g.y1])
                for i1 in range(REACH1):
                    row_inside = uint32(p1 + i1 * SPACING1) < uint32(g.size1)
                    for t2 in range(TAPS2):
                        value = kind(0)
                        if row_inside & (uint32(p2 + t2 * SPACING2) < uint32(g.size2)):
                            value = widen(x[xi + int64(i1 * SPACING1) * g.x1 + int64(t2 * SPACING2) * x2])
                        cells[i1 * TAPS2 + t2] = value
                for j in range(BLOCK1):
                    if o1 + j < g.out1:
                        for t1 in range(TAPS1):
                            for t2 in range(TAPS2):
                                sums[t1 * TAPS2 + t2] += dz[j] * cells[(j * BY_OUTPUT + t1 * BY_TAP) * TAPS2 + t2]

        for t in range(TAPS):
            shared[t * THREADS + thread] = sums[t]
        cuda.syncthreads()
        for level in range(LEVELS):
            bits = uint32(LEVELS - 1 - level)
            half = uint32(uint32(1) << bits)
            for i in range(thread, TAPS * int32(half), THREADS):
                at = uint32((uint32(i) >> bits) * uint32(THREADS) + (uint32(i) & uint32(half - uint32(1))))
                shared[at] += shared[at + half]
            cuda.syncthreads()
        r1, r2 = int32(window1 * TAPS1 + thread // TAPS2), int32(window2 * TAPS2 + thread % TAPS2)
        if thread < TAPS and r1 < KERNEL1 and r2 < KERNEL2:
            place = int64(split) * split_stride + int64(k) * g.w_filter + int64(c) * g.w_channel + int64(r0) * g.w0
            out[place + r1 * g.w1 + r2 * g.w2] = narrow(shared[thread * THREADS])

    return weight_grad
