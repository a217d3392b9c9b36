"""Spectra of the tiles of a padded input, or of weights: the first step of `spectral`.

A job is some rows, whose transforms are called together: a row is one channel of a tile, or the taps of a filter for one channel.
"""

from typing import NamedTuple

from ..helper import helper
from ..jit import address_of, kernel
from .fourier import forward
from .spectral import parallel as parallel
from .tile import stage, tile_of, unpack_axes


class Rows(NamedTuple):
    """Which rows, and what is done with them.

    job : rows of a job
    begin, images : the first image or tile of each group, and how many
    mode : of the border, as its number
    load : as `tile.stage` takes it
    cells, spectra : whether cells and their spectra are conjugated
    step0, step1, step2 : cells between taps; zeros for tiles
    kept0, kept1, kept2 : cells of a tile on each axis, beyond which it is zeroed
    """

    job: int
    begin: int
    images: int
    mode: int
    load: int
    cells: int
    spectra: int
    step0: int
    step1: int
    step2: int
    kept0: int
    kept1: int
    kept2: int


@helper
def spread(taps, steps, size, cells):
    """Lay taps (channels, *kernel) out in tiles of `size` cells, `steps` cells apart, with zeros between them."""
    cells[: taps.shape[0] * size[0] * size[1] * size[2]] = 0
    for c in range(taps.shape[0]):
        for r0 in range(taps.shape[1]):
            for r1 in range(taps.shape[2]):
                at = ((c * size[0] + r0 * steps[0]) * size[1] + r1 * steps[1]) * size[2]
                for r2 in range(taps.shape[3]):
                    cells[at + r2 * steps[2]] = taps[c, r0, r1, r2]


@helper
def clear(rows, size, kept, cells):
    """Zero the cells of tiles of `size` beyond the first `kept` on each axis."""
    for row in range(rows * size[0] * size[1]):
        inside = row // size[1] % size[0] < kept[0] and row % size[1] < kept[1]
        cells[row * size[2] + (kept[2] if inside else 0) : (row + 1) * size[2]] = 0


@helper
def conjugate(cells):
    for i in range(cells.shape[0]):
        cells[i] = cells[i].conjugate()


@kernel
def jobs(first, last, cells, p, q, sums, bias, loops, failed, scratch, apply, numbers):
    """Write spectra of `cells` to p, by group, image or tile, and channel; the rest as in `spectral.parallel`."""
    d, h, w = unpack_axes(numbers)
    a = numbers[27:]
    of = Rows(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12])
    channels = cells.shape[2]
    size = d.extent, h.extent, w.extent
    steps, kept = (of.step0, of.step1, of.step2), (of.kept0, of.kept1, of.kept2)
    box = d.extent * h.extent * w.extent
    staged = scratch[: of.job * box]
    work = address_of(scratch) + (of.job * box + 1) * scratch.itemsize
    for job in range(first, last):
        start, end = job * of.job, min((job + 1) * of.job, p.shape[0])
        row = start
        while row < end:
            g, image, c = row // (channels * of.images), of.begin + row // channels % of.images, row % channels
            c_last = min(channels, c + end - row)
            part = staged[(row - start) * box :]
            if steps[0] > 0:
                spread(cells[g, image, c:c_last], steps, size, part)
            else:
                n, _, _, _, o0, o1, o2 = tile_of(image, d, h, w, (1, 1, 1))
                stage(cells[g], n, c, c_last, o0, o1, o2, d, h, w, of.mode, of.load, part)
                if kept != size:
                    clear(c_last - c, size, kept, part)
            row += c_last - c
        if of.cells != 0:
            conjugate(staged[: (end - start) * box])
        target = p[start:end].reshape(-1)
        forward(loops, failed, address_of(staged), address_of(target), work, end - start, size, scratch.itemsize, p.itemsize)
        if of.spectra != 0:
            conjugate(target)
