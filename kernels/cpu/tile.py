"""Staging: the padded, phase-split input of one output tile, copied to contiguous scratch.

For one axis, tap `r` of output `o` reads padded cell  o * stride + r * dilation = stride * (o + shift) + phase  with

    phase = r * dilation mod stride,  shift = r * dilation div stride.

The cells of one phase are stored side by side, so that a tap is a constant offset from the output's own position, whatever the
stride and dilation. Taps r and r + phases, phases = stride / gcd(stride, dilation), share a phase: slot `r mod phases`. With three
axes a channel is staged as [slot0, slot1, slot2, cell0, cell1, cell2], and an output tile [t0, t1, t2] becomes one run of
((t0 - 1) * extent1 + t1 - 1) * extent2 + t2 cells, which also passes over some cells between its rows that nobody asked for.
"""

from typing import NamedTuple

from ..jit import kernel
from ..padding import source_index


class Axis(NamedTuple):
    """One spatial axis of a convolution, and how its outputs are tiled; `offset` is the input position of output 0, tap 0."""

    size: int
    stride: int
    dilation: int
    offset: int
    out: int
    tile: int
    phases: int
    extent: int


class Blocks(NamedTuple):
    """What the tiling of a kernel adds to its axes."""

    groups: int
    mode: int
    filters: int
    channels: int
    conjugate: int


@kernel
def stage_row(row, start, stride, size, mode, cells):
    """Copy cells `start, start + stride, ...` of the padded `row` to `cells`."""
    count = cells.shape[0]
    zero = cells.dtype.type(0)  # a literal 0 would make uint64 and it meet in float64
    low = min(max(-(start // stride), 0), count)
    high = min(max((size - 1 - start) // stride + 1, low), count)
    for j in range(low):
        i = source_index(start + j * stride, size, mode)
        cells[j] = row[i] if i >= 0 else zero
    inside = row[start + low * stride :]
    target = cells[low:high]
    if stride == 1:
        for j in range(high - low):
            target[j] = inside[j]
    else:
        for j in range(high - low):
            target[j] = inside[j * stride]
    for j in range(high, count):
        i = source_index(start + j * stride, size, mode)
        cells[j] = row[i] if i >= 0 else zero


@kernel
def stage(x, n, c, o0, o1, o2, d, h, w, mode, cells):
    """Stage channel `c` of image `n` for the output tile at (o0, o1, o2)."""
    at = 0
    start2 = o2 * w.stride + w.offset
    for q0 in range(d.phases):
        for q1 in range(h.phases):
            for q2 in range(w.phases):
                phase2 = q2 * w.dilation % w.stride
                for j0 in range(d.extent):
                    i0 = source_index((o0 + j0) * d.stride + q0 * d.dilation % d.stride + d.offset, d.size, mode)
                    for j1 in range(h.extent):
                        i1 = source_index((o1 + j1) * h.stride + q1 * h.dilation % h.stride + h.offset, h.size, mode)
                        row = cells[at : at + w.extent]
                        if i0 >= 0 and i1 >= 0:
                            stage_row(x[n, c, i0, i1], start2 + phase2, w.stride, w.size, mode, row)
                        else:
                            row[:] = 0
                        at += w.extent
