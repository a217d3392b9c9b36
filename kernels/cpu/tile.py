"""Staging: the padded, phase-split input of one output tile, copied to contiguous scratch.

For one axis, tap `r` of output `o` reads padded cell  o * stride + r * dilation = stride * (o + shift) + phase  with

    phase = r * dilation mod stride,  shift = r * dilation div stride.

The cells of one phase are stored side by side, so that a tap is a constant offset from the output's own position, whatever the
stride and dilation. Taps r and r + phases, phases = stride / gcd(stride, dilation), share a phase: slot `r mod phases`. With three
axes a channel is staged as [slot0, slot1, slot2, cell0, cell1, cell2], and an output tile [t0, t1, t2] becomes one run of
((t0 - 1) * extent1 + t1 - 1) * extent2 + t2 cells, which also passes over some cells between its rows that nobody asked for.

An axis may instead be staged densely, with a slot for each tap: then extent = tile, and no cell between its rows is wasted, at
the cost of a copy for each tap. That pays where many filters read the same staged input.
"""

from typing import NamedTuple

from ..helper import helper
from ..jit import address_of
from ..padding import ZEROS, source_index
from .microkernel import call_kernel


class Axis(NamedTuple):
    """One spatial axis of a convolution, and how its outputs are tiled.

    size : input cells
    stride, dilation : input cells between outputs, and between taps
    offset : input position of output 0, tap 0
    out, tile : outputs, and outputs of a tile
    slots, extent : staged rows, and cells of each
    period : slot q starts at cell  q * dilation mod period : the stride where taps share slots, beyond any cell where they do not
    """

    size: int
    stride: int
    dilation: int
    offset: int
    out: int
    tile: int
    slots: int
    extent: int
    period: int


class Blocks(NamedTuple):
    """What the tiling of a kernel adds to its axes.

    groups, mode : as in the problem, the mode as its number
    filters, channels : filters and channels of a block
    bundle : groups that are staged at once; more than one only where a block takes all filters and channels of a group
    register : filters of one call of a micro-kernel; 0 for the portable loop
    vectors, lanes : vectors of one call, scalars of a vector
    inside : whether the input is read in place
    conjugate : whether the input is to be conjugated
    """

    groups: int
    mode: int
    filters: int
    channels: int
    bundle: int
    register: int
    vectors: int
    inside: int
    lanes: int
    conjugate: int


@helper
def unpack_axes(a):
    """Three axes out of an array of all their numbers, which crosses from Python in 0.3 us, as tuples in 0.8."""
    d = Axis(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])
    h = Axis(a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17])
    w = Axis(a[18], a[19], a[20], a[21], a[22], a[23], a[24], a[25], a[26])
    return d, h, w


@helper
def block_of(place, size, block, unit):
    """Where a block begins and ends: of `size`, in blocks of some units each, as equal as can be, of at the most `block`."""
    units, count = -(-size // unit), -(-size // block)
    return place * units // count * unit, min((place + 1) * units // count * unit, size)


@helper
def tile_of(place, d, h, w, gaps):
    """A place of a list of tiles as (the rest, phase on each axis, first output on each axis).

    Of each image, tiles of the last axis follow one another fastest, and of each tile its phases, as many as `gaps` on each axis.
    """
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    block = place // (gaps[0] * gaps[1] * gaps[2])
    q0, q1, q2 = place // (gaps[1] * gaps[2]) % gaps[0], place // gaps[2] % gaps[1], place % gaps[2]
    o0, o1, o2 = block // (tiles1 * tiles2) % tiles0 * d.tile, block // tiles2 % tiles1 * h.tile, block % tiles2 * w.tile
    return block // (tiles0 * tiles1 * tiles2), q0, q1, q2, o0, o1, o2


@helper
def stage_row(row, source, start, low, high, axis, mode):
    """Fill a staged row from one row of the input; see `stage` for the rest."""
    inside, target = source[start + low * axis.stride :], row[low:high]
    if axis.stride == 1:
        for j in range(high - low):
            target[j] = inside[j]
    else:
        for j in range(high - low):
            target[j] = inside[j * axis.stride]
    zero = row.dtype.type(0)  # a literal 0 would make uint64 and it meet in float64
    for k in range(low + row.shape[0] - high):
        j = k if k < low else high + k - low
        i = source_index(start + j * axis.stride, axis.size, mode)
        row[j] = source[i] if i >= 0 else zero


@helper
def stage(x, n, c_first, c_last, o0, o1, o2, d, h, w, mode, load, cells):
    """Stage channels `c_first` to `c_last` of image `n` for the output tile at (o0, o1, o2).

    `load` is the address of the micro-kernel for the slots of the last axis, or for any, which takes dense rows; 0 for the portable
    loop, which converts.
    """
    size = cells.itemsize
    channels = c_last - c_first
    box = d.extent * h.extent * w.extent
    plane = d.slots * h.slots * w.slots * box
    start = o2 * w.stride + w.offset
    for q01 in range(d.slots * h.slots):
        front = o0 * d.stride + q01 // h.slots * d.dilation % d.period + d.offset
        top = o1 * h.stride + q01 % h.slots * h.dilation % h.period + h.offset
        for j0 in range(d.extent):
            i0 = source_index(front + j0 * d.stride, d.size, mode)
            j1 = 0
            while j1 < h.extent:
                i1 = source_index(top + j1 * h.stride, h.size, mode)
                begin = q01 * w.slots * box + (j0 * h.extent + j1) * w.extent
                rows = 1
                if i0 < 0 or i1 < 0:
                    for c in range(channels):
                        for q2 in range(w.slots):
                            at = c * plane + q2 * box + begin
                            cells[at : at + w.extent] = 0
                    j1 += 1
                    continue
                if load != 0:
                    # rows that lie one stride apart in the input are loaded in one go
                    if i1 == top + j1 * h.stride:
                        rows = min(h.extent - j1, (h.size - 1 - i1) // h.stride + 1)
                    source = address_of(x) + n * x.strides[0] + c_first * x.strides[1] + i0 * x.strides[2] + i1 * x.strides[3]
                    call_kernel(
                        load, source + start * size, address_of(cells) + begin * size, channels, x.strides[1],
                        plane * size, rows, h.stride * x.strides[3], w.extent * size, start, w.size, w.extent, w.slots, box * size,
                        w.stride, w.dilation, w.period,
                    )  # fmt: skip
                if load == 0 or mode != ZEROS:
                    for q2 in range(w.slots):
                        left = start + q2 * w.dilation % w.period
                        # cells low to high of a staged row lie inside the input
                        low = min(max(-(left // w.stride), 0), w.extent)
                        high = min(max((w.size - 1 - left) // w.stride + 1, low), w.extent)
                        at = q2 * box + begin
                        if load != 0:
                            for k in range(low + w.extent - high):
                                j = k if k < low else high + k - low
                                i2 = source_index(left + j * w.stride, w.size, mode)
                                for r in range(rows):
                                    column = x[n, c_first:c_last, i0, i1 + r * h.stride, i2]
                                    target = cells[at + r * w.extent + j :: plane]
                                    for c in range(channels):
                                        target[c] = column[c]
                            continue
                        for c in range(channels):
                            row = cells[c * plane + at : c * plane + at + w.extent]
                            stage_row(row, x[n, c_first + c, i0, i1], left, low, high, w, mode)
                j1 += rows
