"""Device functions for callers' own kernels: one result of a convolution or of its gradients, or a block's tile of them.

Forward and dI are one loop, over terms: the channels of x, or the filters of dy, each followed by all taps. Tap r of result o or i
meets, axis by axis,

    forward   x  at  o * stride - before + r * dilation
    dI        dy at  (i + before - r * dilation) / stride, where that is whole

and in a tile the same in a slice of terms in shared memory. dI of a cell that the border copies sums the copies first. dW sums
images, and outputs row by row, which a tile reads from shared memory in pieces. So a result is summed in one order everywhere.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda.types import int64, uint32, uint64

from ..padding import ZEROS
from .device_tools import (
    Options,
    as_sum,
    device,
    element,
    inside,
    lifted,
    make_check,
    make_geometry,
    plus,
    source_index,
    stage,
    thread,
    threads,
    trimmed,
    unravel,
)


@functools.cache
def make_products(options: Options, gradient: bool, staged: bool, width: int) -> Any:
    """A function that adds to the first one or all of four totals, of neighbouring results, what they sum over `terms` terms.

    `source` is the array, or cells that hold a box of it, of `sizes` at `origin`; `weight[a, b]` belongs to first term and result;
    `base` is what tap 0 meets.
    """
    s0, s1, s2 = options.stride if gradient else (1, 1, 1)
    d0, d1, d2 = (-gap for gap in options.dilation) if gradient else options.dilation
    mode = ZEROS if gradient else options.mode

    @device
    def located(p, stride, origin, size):
        return p // stride - origin if staged else source_index(p // stride, size, mode)

    @device
    def read(source, n, c, place, sizes):
        if staged:
            return source[uint32(((c * sizes[0] + place[0]) * sizes[1] + place[1]) * sizes[2] + place[2])]
        return element(source, n, c, place)

    @device
    def factor(weight, a, b, term, result, tap):
        if gradient:
            return as_sum(weight, weight[uint64(a + term), uint64(b + result), *trimmed(weight, tap)]).conjugate()
        return as_sum(weight, weight[uint64(a + result), uint64(b + term), *trimmed(weight, tap)])

    def products(source, n, first, terms, origin, sizes, weight, a, b, kernel, base, totals):
        t0, t1, t2, t3 = totals
        for term in range(terms):
            for r0 in range(kernel[0]):
                p0 = base[0] + r0 * d0
                if p0 % s0 == 0:
                    j0 = located(p0, s0, origin[0], sizes[0])
                    for r1 in range(kernel[1]):
                        p1 = base[1] + r1 * d1
                        if p1 % s1 == 0:
                            j1 = located(p1, s1, origin[1], sizes[1])
                            r2 = int64(0)  # four products take 27 instructions so, and 38 by `range`
                            while r2 < kernel[2]:
                                p2 = base[2] + r2 * d2
                                if p2 % s2 == 0:
                                    place, tap = (j0, j1, located(p2, s2, origin[2], sizes[2])), (r0, r1, r2)
                                    value = as_sum(weight, read(source, n, first + term, place, sizes))
                                    t0 = as_sum(weight, t0 + factor(weight, a, b, term, 0, tap) * value)
                                    if width == 4:
                                        t1 = as_sum(weight, t1 + factor(weight, a, b, term, 1, tap) * value)
                                        t2 = as_sum(weight, t2 + factor(weight, a, b, term, 2, tap) * value)
                                        t3 = as_sum(weight, t3 + factor(weight, a, b, term, 3, tap) * value)
                                r2 += 1
        return t0, t1, t2, t3

    return device(products)


@functools.cache
def make_sums(options: Options, gradient: bool) -> tuple[Any, Any]:
    """Two functions, of forward or of dI: one result; a block's tile of them. `source` is x or dy."""
    groups, mode = options.groups, options.mode
    (s0, s1, s2), (d0, d1, d2) = options.stride, options.dilation
    geometry, direct = make_geometry(options), make_products(options, gradient, False, 1)

    @device
    def terms_of(weight, k):
        """Results and terms of a group; the first term of result k, and the indices of its weight."""
        filters, channels = weight.shape[0] // groups, weight.shape[1]
        if gradient:
            first = k // channels * filters
            return channels, filters, first, first, k % channels
        return filters, channels, k // filters * channels, k, int64(0)

    @device
    def left(source, weight, n, k):
        """Results from k to the end of its group; none if k or n is in no array."""
        results = terms_of(weight, k)[0]
        return results - k % results if 0 <= n < source.shape[0] and 0 <= k < results * groups else int64(0)

    @device
    def base_of(place, before):
        if gradient:
            return plus(place, before)
        return place[0] * s0 - before[0], place[1] * s1 - before[1], place[2] * s2 - before[2]

    @device
    def met(first, size, taps, before, stride, dilation):
        """Cells that `size` results meet on an axis: the first, and their number."""
        span = dilation * (taps - 1)
        if gradient:
            start = (first + before - span) // stride
            return start, (first + before + size - 1) // stride - start + 1
        return first * stride - before, (size - 1) * stride + span + 1

    @device
    def added(source, weight, n, k, g, place, total):
        """A total and all terms of a result."""
        _, terms, first, a, b = terms_of(weight, k)
        sizes, base = lifted(source.shape[2:], 1), base_of(place, g.before)
        return direct(source, n, first, terms, sizes, sizes, weight, a, b, g.kernel, base, (total, total, total, total))[0]

    @device
    def copy_of(number, i, size, before):
        """A cell itself, or one of the border: first those in front."""
        if number == 0:
            return i
        return -number if number <= before else size + number - before - 1

    @device
    def border(source, weight, n, k, g, place):
        """The gradient of all cells of the border that are copies of the cell at `place`."""
        total = as_sum(weight, 0)
        if not gradient or mode == ZEROS:
            return total
        for a0 in range(1 + g.before[0] + g.after[0]):
            p0 = copy_of(a0, place[0], g.size[0], g.before[0])
            for a1 in range(1 + g.before[1] + g.after[1] if source_index(p0, g.size[0], mode) == place[0] else 0):
                p1 = copy_of(a1, place[1], g.size[1], g.before[1])
                for a2 in range(1 + g.before[2] + g.after[2] if source_index(p1, g.size[1], mode) == place[1] else 0):
                    p2 = copy_of(a2, place[2], g.size[2], g.before[2])
                    if source_index(p2, g.size[2], mode) == place[2] and a0 + a1 + a2 > 0:
                        total = added(source, weight, n, k, g, (p0, p1, p2), total)
        return total

    def at(source, weight, input_shape, n, k, position):
        g = geometry(source, input_shape[2:], weight.shape[2:])
        n, k, place = int64(n), int64(k), lifted(position, 0)
        if left(source, weight, n, k) > 0 and inside(place, g.size if gradient else g.out):
            return added(source, weight, n, k, g, place, border(source, weight, n, k, g, place))
        return as_sum(weight, 0)

    def make_add(width):
        """A function that adds the terms in cells to results `done` to `count`, a thread `width` of them at a place."""
        products = make_products(options, gradient, True, width)

        def add(weight, a, b, g, first, terms, corner, box, done, count, cells, sums):
            size = lifted(sums.shape[1:], 1)
            positions = size[0] * size[1] * size[2]
            for entry in range(thread(), (count - done) // width * positions, threads()):
                at = unravel(entry % positions, size)
                place, at, k = plus(first, at), trimmed(weight, at), done + entry // positions * width
                if inside(place, g.size if gradient else g.out):
                    i, j, base = a if gradient else a + k, b + k if gradient else b, base_of(place, g.before)
                    t0 = t1 = t2 = t3 = sums[uint64(k), *at]
                    if width == 4:
                        t1, t2, t3 = sums[uint64(k + 1), *at], sums[uint64(k + 2), *at], sums[uint64(k + 3), *at]
                    totals = products(cells, 0, 0, terms, corner, box, weight, i, j, g.kernel, base, (t0, t1, t2, t3))
                    sums[uint64(k), *at] = totals[0]
                    if width == 4:
                        sums[uint64(k + 1), *at] = totals[1]
                        sums[uint64(k + 2), *at] = totals[2]
                        sums[uint64(k + 3), *at] = totals[3]

        return device(add)

    add, add_by_four = make_add(1), make_add(4)

    def tile(source, weight, input_shape, n, k, origin, cells, sums):
        g = geometry(source, input_shape[2:], weight.shape[2:])
        n, k, start, size = int64(n), int64(k), lifted(origin, 0), lifted(sums.shape[1:], 1)
        positions = size[0] * size[1] * size[2]
        _, terms, first, a, b = terms_of(weight, k)
        count = min(sums.shape[0], left(source, weight, n, k))
        c0, e0 = met(start[0], size[0], g.kernel[0], g.before[0], s0, d0)
        c1, e1 = met(start[1], size[1], g.kernel[1], g.before[1], s1, d1)
        c2, e2 = met(start[2], size[2], g.kernel[2], g.before[2], s2, d2)
        corner, box = (c0, c1, c2), (e0, e1, e2)
        depth = cells.size // (e0 * e1 * e2)
        cuda.syncthreads()
        for entry in range(thread(), sums.shape[0] * positions, threads()):
            at, result = unravel(entry % positions, size), entry // positions
            place, total = plus(start, at), as_sum(weight, 0)
            if result < count and inside(place, g.size if gradient else g.out):
                total = border(source, weight, n, k + result, g, place)
                if depth == 0:
                    total = added(source, weight, n, k + result, g, place, total)
            sums[uint64(result), *trimmed(weight, at)] = total
        if depth > 0 and count > 0:
            for done in range(0, terms, depth):
                taken = min(depth, terms - done)
                cuda.syncthreads()
                stage(source, n, first + done, taken, corner, (1, 1, 1), box, ZEROS if gradient else mode, cells, 0)
                cuda.syncthreads()
                i, j, fours = a + done if gradient else a, b if gradient else b + done, count // 4 * 4
                add_by_four(weight, i, j, g, start, taken, corner, box, 0, fours, cells, sums)
                add(weight, i, j, g, start, taken, corner, box, fours, count, cells, sums)
        cuda.syncthreads()

    return device(at), device(tile)


@functools.cache
def make_forward(options: Options) -> tuple[Any, Any]:
    """`conv_at` and `conv_tile`."""
    at, tile = make_sums(options, False)
    check = make_check(options.axes, "input", "weight", "position")
    check_tile = make_check(options.axes, "input", "weight", "origin", "sums")

    def conv_at(input, weight, n, k, position):
        check((input, weight), (position,), ())
        return at(input, weight, input.shape, n, k, position)

    def conv_tile(input, weight, n, k, origin, cells, sums):
        check_tile((input, weight), (origin, sums.shape[1:]), (cells, sums))
        tile(input, weight, input.shape, n, k, origin, cells, sums)

    return cuda.jit(device=True)(conv_at), cuda.jit(device=True)(conv_tile)


@functools.cache
def make_input_grad(options: Options) -> tuple[Any, Any]:
    """`conv_input_grad_at` and `conv_input_grad_tile`."""
    at, tile = make_sums(options, True)
    check = make_check(options.axes, "grad_output", "weight", "input_shape", "position")
    check_tile = make_check(options.axes, "grad_output", "weight", "input_shape", "origin", "sums")

    def conv_input_grad_at(grad_output, weight, input_shape, n, c, position):
        check((grad_output, weight), (input_shape[2:], position), ())
        return at(grad_output, weight, input_shape, n, c, position)

    def conv_input_grad_tile(grad_output, weight, input_shape, n, c, origin, cells, sums):
        check_tile((grad_output, weight), (input_shape[2:], origin, sums.shape[1:]), (cells, sums))
        tile(grad_output, weight, input_shape, n, c, origin, cells, sums)

    return cuda.jit(device=True)(conv_input_grad_at), cuda.jit(device=True)(conv_input_grad_tile)


@functools.cache
def make_weight_grad(options: Options) -> tuple[Any, Any]:
    """`conv_weight_grad_at` and `conv_weight_grad_tile`."""
    geometry, groups, mode = make_geometry(options), options.groups, options.mode
    (s0, s1, s2), (d0, d1, d2) = options.stride, options.dilation
    check = make_check(options.axes, "grad_output", "input", "weight_shape", "tap")
    check_tile = make_check(options.axes, "grad_output", "input", "weight_shape", "sums")

    @device
    def summed(grad_output, input, first, last, k, channel, g, tap):
        """The sum over some images."""
        total, out = as_sum(input, 0), lifted(grad_output.shape[2:], 1)
        for n in range(first, last):
            for o0 in range(out[0]):
                i0 = source_index(o0 * s0 + tap[0] * d0 - g.before[0], g.size[0], mode)
                for o1 in range(out[1]):
                    i1 = source_index(o1 * s1 + tap[1] * d1 - g.before[1], g.size[1], mode)
                    for o2 in range(out[2]):
                        i2 = source_index(o2 * s2 + tap[2] * d2 - g.before[2], g.size[2], mode)
                        value = element(input, n, channel, (i0, i1, i2)).conjugate()
                        total = as_sum(input, total + value * element(grad_output, n, k, (o0, o1, o2)))
        return total

    def conv_weight_grad_at(grad_output, input, weight_shape, k, c, tap):
        check((grad_output, input), (weight_shape[2:], tap), ())
        g, k, c, place = geometry(input, input.shape[2:], weight_shape[2:]), int64(k), int64(c), lifted(tap, 0)
        if 0 <= k < weight_shape[0] and 0 <= c < weight_shape[1] and inside(place, g.kernel):
            channel = k // (weight_shape[0] // groups) * weight_shape[1] + c
            return summed(grad_output, input, 0, input.shape[0], k, channel, g, place)
        return as_sum(input, 0)

    @device
    def add(cells, filters, channels, length, width, g, sums):
        """Add the products of `length` outputs of a row; cells hold these of each filter, then rows of x, `width` cells each."""
        volume = g.kernel[0] * g.kernel[1] * g.kernel[2]
        for entry in range(thread(), filters * channels * volume, threads()):
            f, i, tap = entry // volume // channels, entry // volume % channels, unravel(entry % volume, g.kernel)
            at = (uint64(f), uint64(i), *trimmed(sums, tap))
            total, y = sums[at], f * length
            x = filters * length + ((i * g.kernel[0] + tap[0]) * g.kernel[1] + tap[1]) * width + tap[2] * d2
            for o2 in range(length):
                value = as_sum(sums, cells[uint32(x + o2 * s2)]).conjugate()
                total = as_sum(sums, total + value * as_sum(sums, cells[uint32(y + o2)]))
            sums[at] = total

    def conv_weight_grad_tile(grad_output, input, weight_shape, k, c, first, last, cells, sums):
        check_tile((grad_output, input), (weight_shape[2:], sums.shape[2:]), (cells, sums))
        g, k, c, taps = geometry(input, input.shape[2:], weight_shape[2:]), int64(k), int64(c), lifted(sums.shape[2:], 1)
        out = lifted(grad_output.shape[2:], 1)
        first, last, volume = max(int64(first), 0), min(int64(last), input.shape[0]), taps[0] * taps[1] * taps[2]
        per_group = weight_shape[0] // groups
        channel = k // per_group * weight_shape[1] + c
        filters = min(sums.shape[0], per_group - k % per_group) if 0 <= k < weight_shape[0] else int64(0)
        channels = min(sums.shape[1], weight_shape[1] - c) if 0 <= c < weight_shape[1] else int64(0)
        # cells hold `length` outputs of a row of each filter, and the `rows` rows of each channel that their taps meet
        rows, span = channels * g.kernel[0] * g.kernel[1], d2 * (g.kernel[2] - 1) + 1
        length = min(out[2], (cells.size - rows * (span - s2)) // max(filters + rows * s2, 1))
        cuda.syncthreads()
        for entry in range(thread(), sums.shape[0] * sums.shape[1] * volume, threads()):
            f, i, tap = entry // volume // sums.shape[1], entry // volume % sums.shape[1], unravel(entry % volume, taps)
            total = as_sum(input, 0)
            if length < 1 and f < filters and i < channels and inside(tap, g.kernel):
                total = summed(grad_output, input, first, last, k + f, channel + i, g, tap)
            sums[uint64(f), uint64(i), *trimmed(input, tap)] = total
        if length > 0 and filters > 0 and channels > 0:
            outputs = out[0] * out[1]
            for row in range(first * outputs, last * outputs):
                n, o0, o1 = row // outputs, row // out[1] % out[0], row % out[1]
                for o2 in range(0, out[2], length):
                    taken = min(length, out[2] - o2)
                    corner = o0 * s0 - g.before[0], o1 * s1 - g.before[1], o2 * s2 - g.before[2]
                    width = (taken - 1) * s2 + span
                    cuda.syncthreads()
                    stage(grad_output, n, k, filters, (o0, o1, o2), (1, 1, 1), (1, 1, taken), ZEROS, cells, 0)
                    box = g.kernel[0], g.kernel[1], width
                    stage(input, n, channel, channels, corner, (d0, d1, 1), box, mode, cells, filters * taken)
                    cuda.syncthreads()
                    add(cells, filters, channels, taken, width, g, sums)
        cuda.syncthreads()

    return cuda.jit(device=True)(conv_weight_grad_at), cuda.jit(device=True)(conv_weight_grad_tile)
