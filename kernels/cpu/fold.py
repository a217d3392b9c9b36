"""The gradient of a copied border: each padded cell is added onto the input cell that it was copied from."""

import numba

from ..jit import address_of, call, kernel
from .microkernel import call_kernel


@kernel
def fold(slab, places, dx):
    """dx[n, c, i, j, k] += slab[n, c, ...]; `places` are the i of the slab on the first axis, then all j, then all k."""
    second, third = places[slab.shape[2] :], places[slab.shape[2] + slab.shape[3] :]
    for n in range(slab.shape[0]):
        for c in range(slab.shape[1]):
            for j0 in range(slab.shape[2]):
                for j1 in range(slab.shape[3]):
                    row, target = slab[n, c, j0, j1], dx[n, c, places[j0], second[j1]]
                    for j2 in range(slab.shape[4]):
                        target[third[j2]] += row[j2]


@kernel
def crop(first, last, padded, places, before, load, dx):
    """Planes `first` to `last` of dx: the cells of padded ones within their borders, and the borders added as `fold` does.

    `load` is the micro-kernel for neighbouring cells.
    """
    second, third = places[padded.shape[2] :], places[padded.shape[2] + padded.shape[3] :]
    for plane in range(first, last):
        n, c = plane // dx.shape[1], plane % dx.shape[1]
        for i0 in range(dx.shape[2]):
            source, wide = padded[n, c, before[0] + i0, before[1] :, before[2] :], dx.shape[4]
            call_kernel(
                load, address_of(source), address_of(dx[n, c, i0]), 1, 0, 0, dx.shape[3], padded.strides[3], dx.strides[3], 0, wide,
                wide, 1, 0, 1, 1, 1,
            )  # fmt: skip
        for j0 in range(padded.shape[2]):
            for j1 in range(padded.shape[3]):
                row, target = padded[n, c, j0, j1], dx[n, c, places[j0], second[j1]]
                own = before[0] <= j0 < before[0] + dx.shape[2] and before[1] <= j1 < before[1] + dx.shape[3]
                for j2 in range(before[2] if own else padded.shape[4]):
                    target[third[j2]] += row[j2]
                for j2 in range(before[2] + dx.shape[4] if own else padded.shape[4], padded.shape[4]):
                    target[third[j2]] += row[j2]


@kernel(parallel=True)
def parallel_crop(run_jobs, threads, count, padded, places, before, load, dx):
    """Crop `count` planes, an equal share on each thread; `run_jobs` is the address of `crop`."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, padded, places, before, load, dx)
