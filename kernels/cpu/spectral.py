"""Convolution in the frequency domain, but for the transforms themselves: tiles of a padded input, and products of spectra.

Overlap-save: a tile of S cells, of which neighbours share all but S - span + 1, gives that many outputs; span is the reach of the
taps. For each frequency f the channels are summed up,

    sums[g, a, b, f] = sum_m  p[g, a, m, f] * q[g, m, b, f]

forward and dI: a over filters, b over tiles, m over channels; dW: a over filters, b over channels, m over tiles. Terms are added in
the order of m.
"""

import numba

from ..jit import call, kernel
from .epilogue import run
from .tile import stage

# Frequencies whose sums stay in first-level cache while terms are added to them.
CHUNK = 512


@kernel
def cut(first, last, x, tiles, begin, d, h, w, mode, load):
    """Stage tiles `first` to `last` of those from `begin` on; `tiles` is (tiles, channels, cells), `load` as in `tile.stage`."""
    tiles0, tiles1, tiles2 = -(-d.out // d.tile), -(-h.out // h.tile), -(-w.out // w.tile)
    for tile in range(first, last):
        place = begin + tile
        o2 = place % tiles2 * w.tile
        o1 = place // tiles2 % tiles1 * h.tile
        o0 = place // (tiles2 * tiles1) % tiles0 * d.tile
        n = place // (tiles2 * tiles1 * tiles0)
        stage(x, n, 0, tiles.shape[1], o0, o1, o2, d, h, w, mode, load, tiles[tile].reshape(-1))


@kernel(fastmath={"contract"})
def multiply(first, last, p, q, sums, shape, steps, fresh):
    """Add the products of rows `first` to `last` of the sums, which start at zero if `fresh`.

    p, q and sums are (rows, frequencies). `shape` is (a, b, m) of a group; `steps`, rows of p from g to g, a to a and m to m, then
    rows of q from g to g, b to b and m to m.
    """
    count_a, count_b, count_m = shape
    for row in range(first, last):
        b = row % count_b
        a = row // count_b % count_a
        g = row // (count_b * count_a)
        left, right = g * steps[0] + a * steps[1], g * steps[3] + b * steps[4]
        for begin in range(0, sums.shape[1], CHUNK):
            end = min(begin + CHUNK, sums.shape[1])
            total = sums[row, begin:end]
            if fresh:
                total[:] = 0
            m = 0
            while m + 4 <= count_m:
                p0, q0 = p[left + m * steps[2], begin:end], q[right + m * steps[5], begin:end]
                p1, q1 = p[left + (m + 1) * steps[2], begin:end], q[right + (m + 1) * steps[5], begin:end]
                p2, q2 = p[left + (m + 2) * steps[2], begin:end], q[right + (m + 2) * steps[5], begin:end]
                p3, q3 = p[left + (m + 3) * steps[2], begin:end], q[right + (m + 3) * steps[5], begin:end]
                for f in range(end - begin):
                    total[f] = total[f] + p0[f] * q0[f] + p1[f] * q1[f] + p2[f] * q2[f] + p3[f] * q3[f]
                m += 4
            while m < count_m:
                p0, q0 = p[left + m * steps[2], begin:end], q[right + m * steps[5], begin:end]
                for f in range(end - begin):
                    total[f] = total[f] + p0[f] * q0[f]
                m += 1


@kernel(parallel=True)
def parallel_multiply(run_jobs, threads, count, p, q, sums, shape, steps, fresh):
    """Add to `count` rows of sums, an equal share on each thread; `run_jobs` is the address of `multiply`."""
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, p, q, sums, shape, steps, fresh)


@kernel
def activate(apply, values):
    """Run a compiled activation over the whole output, contiguous, or hand it to a function that takes results."""
    run(apply, values, 0)
