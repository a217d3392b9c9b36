"""What NumPy does between kernels, as kernels, for programs that run without Python: copies, gathers, conjugates, sums."""

import numba

from ..jit import address_of, call, kernel
from .epilogue import run_at
from .microkernel import call_kernel

# Cells of a job of `transpose` along the axis that is dense in the target, and along the other one at a time: lines of cache of
# both arrays are whole, and stay there. 64 and 32 take up to 1.4 of the time, 512 and 16 up to 1.5.
ALONG, ACROSS = 256, 64
# Rows of a job of `copy_rows`.
TOGETHER = 4096


@kernel
def copy(source, target):
    """target = source, six axes of any strides; an axis of stride 0 repeats what it has."""
    for a in range(target.shape[0]):
        for b in range(target.shape[1]):
            for c in range(target.shape[2]):
                for d in range(target.shape[3]):
                    for e in range(target.shape[4]):
                        for f in range(target.shape[5]):
                            target[a, b, c, d, e, f] = source[a, b, c, d, e, f]


@kernel
def transpose(first, last, source, target, squares):
    """Jobs `first` to `last` of target = source, squares of cells; both are addresses.

    `squares` are the bytes of a cell and the lanes of a vector; how many there are on each of three axes, how many bytes apart in
    the source and in the target; a square's cells that are neighbours in the source, and bytes from one to the next in the target;
    those that are neighbours in the target, and bytes in the source; two micro-kernels `pack`, for as many of the latter as there
    are lanes, and for fewer. There are as many of the former at the least, of which the last are copied together, some of them once
    more: a masked store of nothing at an address beyond the array takes 500 cycles.
    """
    size, lanes, _, n1, n2, a0, a1, a2, b0, b1, b2, m, far, n, wide, whole, ends = squares
    blocks = -(-n // ALONG)
    for job in range(first, last):
        square, begin = job // blocks, job % blocks * ALONG
        i, j, k = square // (n1 * n2), square // n2 % n1, square % n2
        source_square, target_square = source + i * a0 + j * a1 + k * a2, target + i * b0 + j * b1 + k * b2
        for r in range(0, m, ACROSS):
            for c in range(begin, min(begin + ALONG, n), lanes):
                rows = min(lanes, n - c)
                micro, across, along = whole if rows == lanes else ends, source_square + c * wide, target_square + c * size
                count = min(ACROSS, m - r) // lanes * lanes
                call_kernel(micro, across + r * size, wide, rows, along + r * far, far, count)
                if r + ACROSS > m > r + count:
                    call_kernel(micro, across + (m - lanes) * size, wide, rows, along + (m - lanes) * far, far, lanes)


@kernel(parallel=True)
def parallel_transpose(run_jobs, threads, count, source, target, squares):
    """Run `count` jobs, an equal share on each thread; `run_jobs` is the address of `transpose`."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, source, target, squares)


@kernel
def copy_rows(first, last, source, target, rows):
    """Jobs `first` to `last` of target = source, rows of few cells; both are addresses.

    `rows` are how many there are, bytes from one to the next in the source and in the target, cells of each, and the micro-kernel
    `short_rows`.
    """
    count, row, pitch, cells, micro = rows
    for job in range(first, last):
        begin = job * TOGETHER
        call_kernel(micro, source + begin * row, row, min(TOGETHER, count - begin), target + begin * pitch, pitch, cells)


@kernel(parallel=True)
def parallel_copy_rows(run_jobs, threads, count, source, target, rows):
    """Run `count` jobs, an equal share on each thread; `run_jobs` is the address of `copy_rows`."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, source, target, rows)


@kernel
def take(source, order, target):
    """target[:, i] = source[:, order[i]]."""
    for row in range(target.shape[0]):
        for i in range(target.shape[1]):
            target[row, i] = source[row, order[i]]


@kernel
def conjugate(source, target):
    """target = the conjugate of source, one axis."""
    for i in range(target.shape[0]):
        target[i] = source[i].conjugate()


@kernel
def finish(values, bias, apply, home):
    """values[n, c] += bias[c], three axes, contiguous; then `apply` over each n, whose values belong from the address `home` on."""
    size = values.shape[1] * values.shape[2]
    for n in range(values.shape[0]):
        for c in range(values.shape[1]):
            for i in range(values.shape[2]):
                values[n, c, i] += bias[c]
        if apply != 0:
            begin = n * size * values.itemsize
            run_at(apply, address_of(values) + begin, size, home + begin)


@kernel
def add(first, last, sums, target):
    """target = sums[0] + sums[1] + sums[2] ..., in this order, two and more, rows `first` to `last`: three axes, and two."""
    for row in range(first, last):
        for i in range(target.shape[1]):
            target[row, i] = sums[0, row, i] + sums[1, row, i]
        for split in range(2, sums.shape[0]):
            for i in range(target.shape[1]):
                target[row, i] += sums[split, row, i]


@kernel(parallel=True)
def parallel_add(run_jobs, threads, count, sums, target):
    """Add `count` rows, an equal share on each thread; `run_jobs` is the address of `add`."""
    for thread in numba.prange(threads):
        call(run_jobs, thread * count // threads, (thread + 1) * count // threads, sums, target)
