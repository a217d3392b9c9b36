"""Direct convolution in plain loops, one thread a result: any dtype, memory layout, padding mode and size.

`g` holds sizes and strides in elements, 64 bits each; x, dy, weight and out are flat.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda, int64

from . import scalars


class Strides(NamedTuple):
    """Elements from one index to the next, on the five axes of an array."""

    s0: int
    s1: int
    s2: int
    s3: int
    s4: int


class Sizes(NamedTuple):
    """Sizes of a convolution: results, and what one of them is summed over."""

    batch: int
    channels: int  # of x
    filters: int
    groups: int
    mode: int
    size0: int
    size1: int
    size2: int
    kernel0: int
    kernel1: int
    kernel2: int
    stride0: int
    stride1: int
    stride2: int
    dilation0: int
    dilation1: int
    dilation2: int
    before0: int
    before1: int
    before2: int
    out0: int
    out1: int
    out2: int


@functools.cache
def make_forward(name: str, function: Any = None) -> Any:
    """out[n,k,o] = activation(bias[k] + sum weight[k,c,r] * x[n, c, source of o * stride + r * dilation - before])."""
    widen, narrow, kind = scalars.widen(name), scalars.narrow(name), scalars.summed(name)
    zero = kind(0)
    activation, source_index = scalars.activation(function), scalars.source_index

    def forward(x, weight, bias, out, biased, g, xs, ws, ys):
        i = int64(cuda.grid(1))
        if i >= g.batch * g.filters * g.out0 * g.out1 * g.out2:
            return
        o2, i = i % g.out2, i // g.out2
        o1, i = i % g.out1, i // g.out1
        o0, i = i % g.out0, i // g.out0
        k, n = i % g.filters, i // g.filters
        channels = g.channels // g.groups
        first = k // (g.filters // g.groups) * channels
        total = zero
        if biased:
            total = widen(bias[k])
        for r0 in range(g.kernel0):
            i0 = source_index(o0 * g.stride0 + r0 * g.dilation0 - g.before0, g.size0, g.mode)
            for r1 in range(g.kernel1):
                i1 = source_index(o1 * g.stride1 + r1 * g.dilation1 - g.before1, g.size1, g.mode)
                for r2 in range(g.kernel2):
                    i2 = source_index(o2 * g.stride2 + r2 * g.dilation2 - g.before2, g.size2, g.mode)
                    if i0 >= 0 and i1 >= 0 and i2 >= 0:
                        xi = n * xs.s0 + first * xs.s1 + i0 * xs.s2 + i1 * xs.s3 + i2 * xs.s4
                        wi = k * ws.s0 + r0 * ws.s2 + r1 * ws.s3 + r2 * ws.s4
                        for c in range(channels):
                            total += widen(weight[wi + c * ws.s1]) * widen(x[xi + c * xs.s1])
        if activation is not None:
            total = activation(kind(total))  # which integers may have outgrown
        out[n * ys.s0 + k * ys.s1 + o0 * ys.s2 + o1 * ys.s3 + o2 * ys.s4] = narrow(total)

    return forward


@functools.cache
def make_input_grad(name: str, out_name: str, conjugated: bool) -> Any:
    """out[n,c,i] = bias[c] + sum over the taps r that reach padded cell i from an output; `g.size` cells from `g.before` on."""
    widen, narrow, zero = scalars.widen(name), scalars.narrow(out_name), scalars.summed(name)(0)

    def input_grad(dy, weight, bias, out, biased, g, ys, ws, xs):
        i = int64(cuda.grid(1))
        if i >= g.batch * g.channels * g.size0 * g.size1 * g.size2:
            return
        i2, i = i % g.size2, i // g.size2
        i1, i = i % g.size1, i // g.size1
        i0, i = i % g.size0, i // g.size0
        c, n = i % g.channels, i // g.channels
        channels, filters = g.channels // g.groups, g.filters // g.groups
        first = c // channels * filters
        total = zero
        if biased:
            total = widen(bias[c])
        for r0 in range(g.kernel0):
            q0 = i0 + g.before0 - r0 * g.dilation0
            o0 = q0 // g.stride0
            if q0 >= 0 and o0 * g.stride0 == q0 and o0 < g.out0:
                for r1 in range(g.kernel1):
                    q1 = i1 + g.before1 - r1 * g.dilation1
                    o1 = q1 // g.stride1
                    if q1 >= 0 and o1 * g.stride1 == q1 and o1 < g.out1:
                        for r2 in range(g.kernel2):
                            q2 = i2 + g.before2 - r2 * g.dilation2
                            o2 = q2 // g.stride2
                            if q2 >= 0 and o2 * g.stride2 == q2 and o2 < g.out2:
                                yi = n * ys.s0 + first * ys.s1 + o0 * ys.s2 + o1 * ys.s3 + o2 * ys.s4
                                wi = first * ws.s0 + c % channels * ws.s1 + r0 * ws.s2 + r1 * ws.s3 + r2 * ws.s4
                                for k in range(filters):
                                    w = widen(weight[wi + k * ws.s0])
                                    if conjugated:
                                        w = w.conjugate()
                                    total += w * widen(dy[yi + k * ys.s1])
        out[n * xs.s0 + c * xs.s1 + i0 * xs.s2 + i1 * xs.s3 + i2 * xs.s4] = narrow(total)

    return input_grad


@functools.cache
def make_weight_grad(name: str, out_name: str) -> Any:
    """out[split,k,c,r] = sum of dy[n,k,o] * x[n, c, source of o * stride + r * dilation - before] over one split of (n, o0)."""
    widen, narrow, zero = scalars.widen(name), scalars.narrow(out_name), scalars.summed(name)(0)
    conjugated, source_index = name.startswith("complex"), scalars.source_index

    def weight_grad(dy, x, out, splits, split_stride, g, ys, xs, ws):
        i = int64(cuda.grid(1))
        channels, filters = g.channels // g.groups, g.filters // g.groups
        if i >= splits * g.filters * channels * g.kernel0 * g.kernel1 * g.kernel2:
            return
        r2, i = i % g.kernel2, i // g.kernel2
        r1, i = i % g.kernel1, i // g.kernel1
        r0, i = i % g.kernel0, i // g.kernel0
        c, i = i % channels, i // channels
        k, split = i % g.filters, i // g.filters
        rows = g.batch * g.out0
        total = zero
        for row in range(rows * split // splits, rows * (split + 1) // splits):
            n, o0 = row // g.out0, row % g.out0
            i0 = source_index(o0 * g.stride0 + r0 * g.dilation0 - g.before0, g.size0, g.mode)
            for o1 in range(g.out1):
                i1 = source_index(o1 * g.stride1 + r1 * g.dilation1 - g.before1, g.size1, g.mode)
                if i0 >= 0 and i1 >= 0:
                    yi = n * ys.s0 + k * ys.s1 + o0 * ys.s2 + o1 * ys.s3
                    xi = n * xs.s0 + (k // filters * channels + c) * xs.s1 + i0 * xs.s2 + i1 * xs.s3
                    for o2 in range(g.out2):
                        i2 = source_index(o2 * g.stride2 + r2 * g.dilation2 - g.before2, g.size2, g.mode)
                        if i2 >= 0:
                            value = widen(x[xi + i2 * xs.s4])
                            if conjugated:
                                value = value.conjugate()
                            total += value * widen(dy[yi + o2 * ys.s4])
        out[split * split_stride + k * ws.s0 + c * ws.s1 + r0 * ws.s2 + r1 * ws.s3 + r2 * ws.s4] = narrow(total)

    return weight_grad


@functools.cache
def make_bias_grad(name: str, threads: int) -> Any:
    """out[k] = sum over n and o of dy[n,k,o]: a block a filter, whose threads' sums are added pairwise."""
    widen, narrow, kind = scalars.widen(name), scalars.narrow(name), scalars.summed(name)

    def bias_grad(dy, out, out_stride, g, ys):
        sums = cuda.shared.array(threads, kind)
        thread = cuda.threadIdx.x
        k = int64(cuda.blockIdx.x)
        total = kind(0)
        cells = g.out0 * g.out1 * g.out2
        for i in range(thread, g.batch * cells, threads):
            n, o = i // cells, i % cells
            o2, o1, o0 = o % g.out2, o // g.out2 % g.out1, o // (g.out2 * g.out1)
            total += widen(dy[n * ys.s0 + k * ys.s1 + o0 * ys.s2 + o1 * ys.s3 + o2 * ys.s4])
        sums[thread] = total
        cuda.syncthreads()
        half = threads // 2
        while half > 0:
            if thread < half:
                sums[thread] += sums[thread + half]
            cuda.syncthreads()
            half //= 2
        if thread == 0:
            out[k * out_stride] = narrow(sums[0])

    return bias_grad
