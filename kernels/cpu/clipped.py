"""Convolution and dI of small images by many filters, without the taps that reach beyond the image.

    out[n, k, o] = bias[k] + sum_c sum_t weight[k, c, t] * x[n, c, position of o and t]

Short rows leave much of a vector empty, and much of a large kernel lies outside of a small image. So a vector holds one output of
some filters, each cell that lies inside is broadcast to it from where it is in memory, at any stride, and nothing is staged.

A job is one (group, block of filters, images, band of rows). Arrays are contiguous, and the weights packed.
"""

import numba

from ..jit import address_of, call, kernel
from .epilogue import run_at, stores
from .microkernel import call_kernel

# Places in the array of micro-kernels: `pack` to whole vectors and to cells, then for each part of the rows of as many images as
# share a call `across`, and the bytes from the first cell and the first result to the part's; the same for the last images.
PACK, UNPACK, FIRST = range(3)


@kernel
def jobs(first, last, x, weight, bias, out, table, starts, micro, scratch, numbers, apply):
    """Run jobs `first` to `last`, with one row of `scratch`; the rest as in `parallel`."""
    groups, images, band, width, vectors, lanes, parts = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
    )  # fmt: skip
    size = x.itemsize
    batch, channels, filters = x.shape[0], x.shape[1] // groups, out.shape[1] // groups
    cells, outputs = x.shape[2] * x.shape[3] * x.shape[4], out.shape[2] * out.shape[3] * out.shape[4]
    vector, block = lanes * size, vectors * lanes
    rows, blocks, calls, bands = outputs // width, -(-filters // block), -(-batch // images), starts.size
    biases = address_of(scratch)
    results = biases + block * size
    pitch = width * block * size
    place = results + images * band * pitch
    for job in range(first, last):
        row = job % bands * band
        n = job // bands % calls * images
        g = job // bands // calls // blocks
        k = job // bands // calls % blocks * block
        together, high, count = min(images, batch - n), min(band, rows - row), min(block, filters - k)
        which = FIRST if together == images else FIRST + 3 * parts
        begin = address_of(table) + starts[job % bands] * table.itemsize
        weights = address_of(weight) + (g * blocks + k // block) * weight.strides[0]
        source = address_of(x) + (n * groups + g) * channels * cells * size
        for v in range(0, count, lanes):
            some = min(lanes, count - v)
            call_kernel(micro[PACK], address_of(bias) + (g * filters + k + v) * size, size, some, biases + v * size, vector, 1)
        for i in range(which, which + 3 * parts, 3):
            call_kernel(
                micro[i], source + micro[i + 1], results + micro[i + 2], weights, biases, begin, high, pitch, channels,
                cells * size, weight.strides[1], x.strides[0], band * pitch,
            )  # fmt: skip
        length = high * width
        for i in range(together):
            target = address_of(out) + (((n + i) * groups + g) * filters + k) * outputs * size + row * width * size
            stored, plane = (place, length * size) if stores(apply) else (target, outputs * size)
            for v in range(0, count, lanes):
                some = min(lanes, count - v)
                for o in range(0, length, lanes):
                    found, few = results + i * band * pitch + (o * block + v) * size, min(lanes, length - o)
                    call_kernel(micro[UNPACK], found, block * size, few, stored + v * plane + o * size, plane, some)
            if apply != 0:
                for f in range(count):
                    run_at(apply, stored + f * plane, length, target + f * outputs * size)


@kernel(parallel=True)
def parallel(run_jobs, count, x, weight, bias, out, table, starts, micro, scratch, numbers, apply):
    """Run `count` jobs, an equal share on each row of `scratch`.

    x (N, C, ...), weight (blocks of all groups, C / groups, taps * filters of a block), bias (K,), out (N, K, ...); table, what
    `across` reads, and starts, where each band's part begins; micro, the micro-kernels' addresses; scratch (threads, cells):
    vectors of the bias and of results, then rows of results where a function takes them. Numbers: groups, images of a call, rows
    of a band, results of a row, vectors of a block of filters, lanes of one, and parts of a row.
    """
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        first, last = thread * count // threads, (thread + 1) * count // threads
        call(run_jobs, first, last, x, weight, bias, out, table, starts, micro, scratch[thread], numbers, apply)
