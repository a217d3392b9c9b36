"""What NumPy does between kernels, as kernels, for programs that run without Python: copies, gathers, conjugates, sums."""

import numba

from ..jit import call, kernel


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
def add_bias(values, bias):
    """values[n, c] += bias[c], three axes."""
    for n in range(values.shape[0]):
        for c in range(values.shape[1]):
            for i in range(values.shape[2]):
                values[n, c, i] += bias[c]


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
