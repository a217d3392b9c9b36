"""Sums of products of spectra, and results of them, with bias and activation: the last step of `spectral`.

A job is some rows, whose transforms are called together: a row is the sum of a filter for one tile, or for one channel.
"""

from typing import NamedTuple

from ..helper import helper
from ..jit import address_of, kernel
from .epilogue import run, stores
from .fourier import inverse
from .spectral import parallel as parallel
from .tile import tile_of, unpack_axes

# Frequencies of which all terms of a row stay in second-level cache, for the next row.
CHUNK = 512


class Sums(NamedTuple):
    """Which rows of sums, and what becomes of them.

    job : rows of a job
    begin, images : the first image or tile (b of `spectral`), and how many
    filter, filters : the first filter of each group (a of `spectral`), and how many
    whole : filters of a group in the output
    terms : channels, or tiles (m of `spectral`)
    p_group, p_row, p_term : rows of p from group to group, filter to filter, term to term
    q_group, q_row, q_term : rows of q from group to group, image to image, term to term
    fresh, last : whether sums begin with these terms, and whether they end with them
    conjugated : whether results are conjugated
    step0, step1, step2 : cells of a tile between results
    """

    job: int
    begin: int
    images: int
    filter: int
    filters: int
    whole: int
    terms: int
    p_group: int
    p_row: int
    p_term: int
    q_group: int
    q_row: int
    q_term: int
    fresh: int
    last: int
    conjugated: int
    step0: int
    step1: int
    step2: int


@helper(fastmath={"contract"})
def add(p, q, total, left, right, begin, of):
    """Add the products of terms from rows `left` of p and `right` of q on, of frequencies from `begin` on, to `total`."""
    end = begin + total.shape[0]
    if of.fresh != 0:
        total[:] = 0
    m = 0
    while m + 4 <= of.terms:
        p0, q0 = p[left + m * of.p_term, begin:end], q[right + m * of.q_term, begin:end]
        p1, q1 = p[left + (m + 1) * of.p_term, begin:end], q[right + (m + 1) * of.q_term, begin:end]
        p2, q2 = p[left + (m + 2) * of.p_term, begin:end], q[right + (m + 2) * of.q_term, begin:end]
        p3, q3 = p[left + (m + 3) * of.p_term, begin:end], q[right + (m + 3) * of.q_term, begin:end]
        for f in range(end - begin):
            total[f] = total[f] + p0[f] * q0[f] + p1[f] * q1[f] + p2[f] * q2[f] + p3[f] * q3[f]
        m += 4
    while m < of.terms:
        p0, q0 = p[left + m * of.p_term, begin:end], q[right + m * of.q_term, begin:end]
        for f in range(end - begin):
            total[f] = total[f] + p0[f] * q0[f]
        m += 1


@helper
def deliver(cells, scale, bias, target, apply, conjugated, size, steps):
    """Store the results of one row of sums: every `steps` cells of a tile of `size`, times `scale`."""
    for j0 in range(target.shape[0]):
        for j1 in range(target.shape[1]):
            at = (j0 * steps[0] * size[1] + j1 * steps[1]) * size[2]
            row, results = cells[at : at + target.shape[2]], target[j0, j1]
            if steps[2] == 1:
                for j2 in range(row.shape[0]):
                    row[j2] = row[j2] * scale + bias
            else:
                for j2 in range(row.shape[0]):
                    row[j2] = cells[at + j2 * steps[2]] * scale + bias
            if conjugated != 0:
                for j2 in range(row.shape[0]):
                    row[j2] = row[j2].conjugate()
            run(apply, row, address_of(results))
            if not stores(apply):
                for j2 in range(row.shape[0]):
                    results[j2] = row[j2]


@kernel
def jobs(first, last, cells, p, q, sums, bias, loops, failed, scratch, apply, numbers):
    """Add products of p and q to sums, by group, filter, and image or tile, and write results to `cells`, as in `spectral`."""
    d, h, w = unpack_axes(numbers)
    a = numbers[27:]
    of = Sums(
        a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17], a[18]
    )  # fmt: skip
    size, steps = (d.extent, h.extent, w.extent), (of.step0, of.step1, of.step2)
    box = d.extent * h.extent * w.extent
    scale = scratch.dtype.type(1) / scratch.dtype.type(box)
    values = scratch[: of.job * box]
    work = address_of(scratch) + (of.job * box + 1) * scratch.itemsize
    for job in range(first, last):
        start, end = job * of.job, min((job + 1) * of.job, sums.shape[0])
        for begin in range(0, sums.shape[1], CHUNK):
            for row in range(start, end):
                g, k, n = row // (of.filters * of.images), row // of.images % of.filters, row % of.images
                left, right = g * of.p_group + k * of.p_row, g * of.q_group + n * of.q_row
                add(p, q, sums[row, begin : begin + CHUNK], left, right, begin, of)
        if of.last == 0:
            continue
        part = sums[start:end]
        inverse(loops, failed, address_of(part), address_of(values), work, end - start, size, scratch.itemsize, sums.itemsize)
        for row in range(start, end):
            k = row // (of.filters * of.images) * of.whole + of.filter + row // of.images % of.filters
            n, _, _, _, o0, o1, o2 = tile_of(of.begin + row % of.images, d, h, w, (1, 1, 1))
            e0, e1, e2 = min(o0 + d.tile, d.out), min(o1 + h.tile, h.out), min(o2 + w.tile, w.out)
            target = cells[0, k, n, o0:e0, o1:e1, o2:e2]
            deliver(values[(row - start) * box :], scale, bias[k], target, apply, of.conjugated, size, steps)
