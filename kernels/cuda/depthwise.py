"""Convolutions of few channels a group, read from the caches of the GPU: one filter a thread, neighbouring columns side by side.

A thread computes `DOWN` outputs below each other, so that a cell it has loaded serves all taps of its column that reach it. Kernel
size and strides of the last two axes are constants of the compiled kernel; larger kernels are looped over.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32

from . import scalars


class Window(NamedTuple):
    """What is fixed at compile time: taps, steps and distances on the last two axes."""

    kernel1: int
    kernel2: int
    stride1: int
    stride2: int
    dilation1: int
    dilation2: int


class Planes(NamedTuple):
    """Sizes, and strides in elements; all fit 32 bits."""

    batch: int
    groups: int
    channels: int  # of a group, of what is read
    filters: int  # of a group, of what is written
    kernel0: int
    stride0: int
    dilation0: int
    start0: int  # cell read by output 0 and tap 0
    start1: int
    start2: int
    size0: int  # of what is read
    size1: int
    size2: int
    out0: int
    out1: int
    out2: int
    x_image: int
    x_channel: int
    x0: int
    x1: int
    x2: int
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
    w_group: int
    biased: int


UNROLLED = 32  # taps


@functools.cache
def make_correlate(name: str, window: Window, function: Any = None, down: int = 4) -> Any:
    """out[n,k,o] = activation(bias[k] + sum weight[k,c,r] * x[n, c, o * stride + r * dilation + start]), x being 0 outside."""
    widen, narrow, kind = scalars.widen(name), scalars.narrow(name), scalars.summed(name)
    activation = scalars.activation(function)
    K1, K2, S1, S2, D1, D2 = window
    DOWN, REACH = down, (down - 1) * S1 + (K1 - 1) * D1 + 1
    unrolled = K1 * K2 <= UNROLLED

    def correlate(x, weight, bias, out, g):
        sums = cuda.local.array(DOWN, kind)
        index = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        down_blocks = uint32((g.out1 + DOWN - 1) // DOWN)
        if index >= uint32(down_blocks * uint32(g.out2)):
            return
        o1, o2 = int32(index // uint32(g.out2)) * DOWN, int32(index % uint32(g.out2))
        k = int32(cuda.blockIdx.y)
        o0, n = int32(cuda.blockIdx.z % g.out0), int32(cuda.blockIdx.z // g.out0)
        group = k // g.filters
        start = kind(0)
        if g.biased:
            start = widen(bias[k])
        for j in range(DOWN):
            sums[j] = start
        p1, p2 = o1 * S1 + g.start1, o2 * S2 + g.start2
        for c in range(g.channels):
            for r0 in range(g.kernel0):
                p0 = o0 * g.stride0 + r0 * g.dilation0 + g.start0
                if 0 <= p0 < g.size0:
                    xi = int64(n) * g.x_image + int64(group * g.channels + c) * g.x_channel + int64(p0) * g.x0
                    wi = int64(group) * g.w_group + (k % g.filters) * g.w_filter + c * g.w_channel + r0 * g.w0
                    if unrolled:
                        for i in range(REACH):
                            row = p1 + i
                            if 0 <= row < g.size1:
                                for r2 in range(K2):
                                    column = p2 + r2 * D2
                                    if 0 <= column < g.size2:
                                        value = widen(x[xi + row * g.x1 + column * g.x2])
                                        for j in range(DOWN):
                                            far = i - j * S1
                                            if far >= 0 and far % D1 == 0 and far // D1 < K1:
                                                sums[j] += value * widen(weight[wi + far // D1 * g.w1 + r2 * g.w2])
                    else:
                        for r1 in range(K1):
                            for r2 in range(K2):
                                column = p2 + r2 * D2
                                w = widen(weight[wi + r1 * g.w1 + r2 * g.w2])
                                if 0 <= column < g.size2:
                                    for j in range(DOWN):
                                        row = p1 + j * S1 + r1 * D1
                                        if 0 <= row < g.size1:
                                            sums[j] += w * widen(x[xi + row * g.x1 + column * g.x2])
        yi = int64(n) * g.y_image + int64(k) * g.y_filter + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
        for j in range(DOWN):
            if o1 + j < g.out1:
                value = sums[j]
                if activation is not None:
                    value = activation(value)
                out[yi + j * g.y1] = narrow(value)

    return correlate


@functools.cache
def make_input_grad(name: str, out_name: str, window: Window) -> Any:
    """out[n,c,i] = bias[c] + sum of dy[n,k,o] * weight[k,c,r] over the taps with o * stride + r * dilation + start = i.

    Here `x` of the geometry is dy, and channels and filters change places: `g.channels` is the group's filters.
    """
    widen, narrow, kind = scalars.widen(name), scalars.narrow(out_name), scalars.summed(name)
    K1, K2, S1, S2, D1, D2 = window

    def input_grad(dy, weight, bias, out, g):
        index = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        if index >= uint32(uint32(g.out1) * uint32(g.out2)):
            return
        i1, i2 = int32(index // uint32(g.out2)), int32(index % uint32(g.out2))
        c = int32(cuda.blockIdx.y)
        i0, n = int32(cuda.blockIdx.z % g.out0), int32(cuda.blockIdx.z // g.out0)
        group = c // g.filters
        total = kind(0)
        if g.biased:
            total = widen(bias[c])
        for k in range(g.channels):
            for r0 in range(g.kernel0):
                q0 = i0 - g.start0 - r0 * g.dilation0
                o0 = q0 // g.stride0
                if q0 >= 0 and o0 * g.stride0 == q0 and o0 < g.size0:
                    yi = int64(n) * g.x_image + int64(group * g.channels + k) * g.x_channel + int64(o0) * g.x0
                    wi = int64(group) * g.w_group + (c % g.filters) * g.w_filter + k * g.w_channel + r0 * g.w0
                    for r1 in range(K1):
                        q1 = i1 - g.start1 - r1 * D1
                        o1 = int32(uint32(q1) // uint32(S1))
                        if q1 >= 0 and o1 * S1 == q1 and o1 < g.size1:
                            for r2 in range(K2):
                                q2 = i2 - g.start2 - r2 * D2
                                o2 = int32(uint32(q2) // uint32(S2))
                                if q2 >= 0 and o2 * S2 == q2 and o2 < g.size2:
                                    total += widen(weight[wi + r1 * g.w1 + r2 * g.w2]) * widen(dy[yi + o1 * g.x1 + o2 * g.x2])
        out[int64(n) * g.y_image + int64(c) * g.y_filter + int64(i0) * g.y0 + int64(i1) * g.y1 + int64(i2) * g.y2] = narrow(total)

    return input_grad


@functools.cache
def make_weight_grad(name: str, out_name: str, window: Window, taps1: int, taps2: int, threads: int) -> Any:
    """out[split,k,c,r] = sum of dy[n,k,o] * x[n, c, o * stride + r * dilation + start] over one split of the outputs.

    A block sums `taps1` x `taps2` taps of one filter and channel; its threads' sums are added pairwise.
    """
    widen, narrow, kind = scalars.widen(name), scalars.narrow(out_name), scalars.summed(name)
    K1, K2, S1, S2, D1, D2 = window
    TAPS1, TAPS2, TAPS = taps1, taps2, taps1 * taps2
    WINDOWS1, WINDOWS2 = -(-K1 // taps1), -(-K2 // taps2)

    def weight_grad(dy, x, out, splits, split_stride, g):
        sums = cuda.local.array(TAPS, kind)
        shared = cuda.shared.array(threads, kind)
        thread = int32(cuda.threadIdx.x)
        window = int32(cuda.blockIdx.x)
        split = int32(cuda.blockIdx.z)
        first2, first1 = window % WINDOWS2 * TAPS2, window // WINDOWS2 % WINDOWS1 * TAPS1
        r0 = window // (WINDOWS2 * WINDOWS1)
        k, c = int32(cuda.blockIdx.y) // g.channels, int32(cuda.blockIdx.y) % g.channels
        group = k // g.filters
        for t in range(TAPS):
            sums[t] = kind(0)
        cells = g.out0 * g.out1 * g.out2
        pixels = g.batch * cells
        first, last = int64(pixels) * split // splits, int64(pixels) * (split + 1) // splits
        for i in range(first + thread, last, threads):
            n, o = uint32(i) // uint32(cells), uint32(i) % uint32(cells)
            o2, rest = int32(o % uint32(g.out2)), uint32(o // uint32(g.out2))
            o1, o0 = int32(rest % uint32(g.out1)), int32(rest // uint32(g.out1))
            p0 = o0 * g.stride0 + r0 * g.dilation0 + g.start0
            if 0 <= p0 < g.size0:
                place = int64(n) * g.y_image + int64(k) * g.y_filter + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
                dz = widen(dy[place])
                xi = int64(n) * g.x_image + int64(group * g.channels + c) * g.x_channel + int64(p0) * g.x0
                p1 = o1 * S1 + first1 * D1 + g.start1
                p2 = o2 * S2 + first2 * D2 + g.start2
                for t1 in range(TAPS1):
                    row = p1 + t1 * D1
                    if 0 <= row < g.size1:
                        for t2 in range(TAPS2):
                            column = p2 + t2 * D2
                            if 0 <= column < g.size2:
                                sums[t1 * TAPS2 + t2] += dz * widen(x[xi + row * g.x1 + column * g.x2])
        for t in range(TAPS):
            shared[thread] = sums[t]
            cuda.syncthreads()
            half = threads // 2
            while half > 0:
                if thread < half:
                    shared[thread] += shared[thread + half]
                cuda.syncthreads()
                half //= 2
            r1, r2 = first1 + t // TAPS2, first2 + t % TAPS2
            if thread == 0 and r1 < K1 and r2 < K2:
                at = split * split_stride + int64(k) * g.w_filter + c * g.w_channel + r0 * g.w0 + r1 * g.w1 + r2 * g.w2
                out[at] = narrow(shared[0])
            cuda.syncthreads()

    return weight_grad
