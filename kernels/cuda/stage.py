"""What comes before and after a product: a padded copy, the fold of a padded gradient, the sum of splits."""

import functools
from typing import Any, NamedTuple

from numba import cuda, int32, int64, uint32

from . import scalars


@functools.cache
def make_pad(name: str) -> Any:
    """out[n,c,p] = x[n, c, source of p - before], contiguous; 0 where the padding is zero. `g.out` is the padded size."""
    source_index, narrow, zero = scalars.source_index, scalars.narrow(name), scalars.summed(name)(0)

    def pad(x, out, g, xs):
        i = int64(cuda.grid(1))
        if i >= g.batch * g.channels * g.out0 * g.out1 * g.out2:
            return
        at = i
        p2, i = i % g.out2, i // g.out2
        p1, i = i % g.out1, i // g.out1
        p0, i = i % g.out0, i // g.out0
        c, n = i % g.channels, i // g.channels
        i0 = source_index(p0 - g.before0, g.size0, g.mode)
        i1 = source_index(p1 - g.before1, g.size1, g.mode)
        i2 = source_index(p2 - g.before2, g.size2, g.mode)
        if i0 >= 0 and i1 >= 0 and i2 >= 0:
            out[at] = x[n * xs.s0 + c * xs.s1 + i0 * xs.s2 + i1 * xs.s3 + i2 * xs.s4]
        else:
            out[at] = narrow(zero)

    return pad


@functools.cache
def make_fold(name: str) -> Any:
    """out[n,c,i] = sum of the cells of `padded`, contiguous and in the summing dtype, that were copied from cell i."""
    source_index, narrow, zero = scalars.source_index, scalars.narrow(name), scalars.summed(name)(0)

    def fold(padded, out, g, xs):
        i = int64(cuda.grid(1))
        if i >= g.batch * g.channels * g.size0 * g.size1 * g.size2:
            return
        i2, i = i % g.size2, i // g.size2
        i1, i = i % g.size1, i // g.size1
        i0, i = i % g.size0, i // g.size0
        c, n = i % g.channels, i // g.channels
        total = zero
        plane = (n * g.channels + c) * g.out0
        # The border's cells, in front and behind, may have been copied from here; of the others only one was.
        for j0 in range(g.out0 - g.size0 + 1):
            p0 = j0 if j0 < g.before0 else (i0 + g.before0 if j0 == g.before0 else j0 + g.size0 - 1)
            if source_index(p0 - g.before0, g.size0, g.mode) == i0:
                for j1 in range(g.out1 - g.size1 + 1):
                    p1 = j1 if j1 < g.before1 else (i1 + g.before1 if j1 == g.before1 else j1 + g.size1 - 1)
                    if source_index(p1 - g.before1, g.size1, g.mode) == i1:
                        for j2 in range(g.out2 - g.size2 + 1):
                            p2 = j2 if j2 < g.before2 else (i2 + g.before2 if j2 == g.before2 else j2 + g.size2 - 1)
                            if source_index(p2 - g.before2, g.size2, g.mode) == i2:
                                total += padded[((plane + p0) * g.out1 + p1) * g.out2 + p2]
        out[n * xs.s0 + c * xs.s1 + i0 * xs.s2 + i1 * xs.s3 + i2 * xs.s4] = narrow(total)

    return fold


class Sum(NamedTuple):
    """Sizes and strides, in elements, of what parts are summed to."""

    results: int
    splits: int
    channels: int
    cells1: int  # cells of one channel, of a plane, of a row
    cells2: int
    cells3: int
    y_image: int
    y_channel: int
    y0: int
    y1: int
    y2: int
    biased: int


@functools.cache
def make_sum_splits(name: str, function: Any = None) -> Any:
    """out[i] = activation(bias[k] + sum_s parts[s, i]) in the order of s; parts are contiguous, out has strides."""
    widen, narrow, kind = scalars.widen(name), scalars.narrow(name), scalars.summed(name)
    zero = kind(0)
    activation = scalars.activation(function)

    def sum_splits(parts, bias, out, g):
        i = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        if i >= uint32(g.results):
            return
        total = zero
        for split in range(g.splits):
            total += parts[int64(split) * g.results + i]
        plane, cell = uint32(i // uint32(g.cells1)), uint32(i % uint32(g.cells1))
        n, k = int32(plane // uint32(g.channels)), int32(plane % uint32(g.channels))
        o0, rest = int32(cell // uint32(g.cells2)), uint32(cell % uint32(g.cells2))
        o1, o2 = int32(rest // uint32(g.cells3)), int32(rest % uint32(g.cells3))
        if g.biased:
            total += widen(bias[k])
        if activation is not None:
            total = activation(kind(total))
        place = int64(n) * g.y_image + int64(k) * g.y_channel + int64(o0) * g.y0 + int64(o1) * g.y1 + int64(o2) * g.y2
        out[place] = narrow(total)

    return sum_splits
