"""Schedules of convolution in the frequency domain: how large tiles are, and how many are transformed at once."""

import itertools
import math
from typing import NamedTuple

from .phases import triple
from .problem import ConvProblem, Triple
from .schedule import Limits

SPECTRA = Limits(sums=0, staged=0, filters=0, held=0, jobs=4, parallel=1_000_000)

# Bytes of cells that are transformed at once, in second-level cache.
CHUNK = 96 * 1024
# Rows that are transformed at once where there are so many of them, which those of one axis are given up to so many bytes.
LANES, LONG = 4, 1 << 20
# How many times as long fewer of them take.
ALONE = 2.2
# What a transform of one axis holds, in complex numbers for each of its cells: twiddles, and rows of four lanes.
HELD = 5
# Tiles from which more at once no longer spare anything.
MANY = 64
# Cells of a tile by the reach of the taps: the longer, the fewer cells neighbours share, and the less of a tile is in a cache.
REACHES = (1.5, 2, 3, 4, 6, 8)


class Spectra(NamedTuple):
    """How one direction is computed in the frequency domain.

    size : cells of a tile on each axis
    valid : outputs of one
    tiles, filters, groups : tiles, filters of each group, and groups whose spectra are held at once
    bytes : of all spectra that are held at once
    thread : bytes of each thread besides
    transforms, cells : of tiles, of taps and of sums, and their real numbers, or as many as take the same time
    products : multiplications of complex numbers
    """

    size: Triple
    valid: Triple
    tiles: int
    filters: int
    groups: int
    bytes: int
    thread: int
    transforms: int
    cells: float
    products: int


def fast_length(count: int) -> int:
    """The smallest number from `count` on without a prime factor above 5, of which transforms are fast."""
    best = 1 << max(count - 1, 0).bit_length()
    for fives, threes in itertools.product(range(8), range(8)):
        odd = 5**fives * 3**threes
        best = min(best, odd << max(0, -(-count // odd) - 1).bit_length())
    return best


def reach(problem: ConvProblem) -> Triple:
    """Cells from the first tap to the last, both included, on each axis."""
    return triple((k - 1) * d + 1 for k, d in zip(problem.kernel, problem.dilation, strict=True))


def frequencies(size: Triple, complex_: bool) -> int:
    """Values of the spectrum of a tile."""
    return size[0] * size[1] * (size[2] if complex_ else size[2] // 2 + 1)


def thread_rows(size: Triple, itemsize: int) -> int:
    """Rows of a job: tiles of one channel that are transformed at once."""
    row = math.prod(size) * itemsize
    rows = max(1, CHUNK // row)
    if math.prod(size[:2]) > 1 or LANES * row > LONG:
        return rows
    return max(1, rows // LANES) * LANES


def thread_cells(size: Triple, itemsize: int, complex_: bool) -> int:
    """Cells of a thread's scratch: those of a job's rows, one to spare, and what transforms of several axes hold between them."""
    rows, wide = thread_rows(size, itemsize), 1 if complex_ else 2
    between = sum(axis > 1 for axis in size[:2]) * frequencies(size, complex_) * wide
    return rows * (math.prod(size) + between) + 1


def _whole(direction: str, problem: ConvProblem, axis: int) -> int:
    """Cells of a tile that gives all outputs of an axis: what reaches over its end meets the zeros of the border in front."""
    p, span = problem, reach(problem)[axis]
    out, size, before = p.out[axis], p.size[axis], p.before[axis]
    if direction == "input_grad":
        out, size, before = size, out, span - 1 - before
    elif p.mode != "zeros":
        before = 0
    return max(out, span, out + span - 1 - max(before, 0), size + before if before > 0 else 0)


def _sizes(cells: int, span: int, most: int) -> list[int]:
    """Sizes of a tile that are worth a look, for an axis of some outputs; of `most` cells one is enough."""
    whole = fast_length(most)
    if span == 1:  # nothing is shared, nothing is transformed: any will do
        return [min(cells, 64)]
    return sorted({min(whole, fast_length(math.ceil(times * span))) for times in REACHES} | {whole})


def _halves(count: int) -> list[int]:
    """`count`, half of it, a quarter, down to 1."""
    return sorted({-(-count >> shift) for shift in range(count.bit_length() + 1)}, reverse=True)


def spectra(
    direction: str, problem: ConvProblem, itemsize: int, complex_: bool, limit: int, threads: float = 1, only: Triple | None = None
) -> list[Spectra]:  # fmt: skip
    """A design for each size of tiles that is worth a look, or one, within `limit` bytes on so many threads if that can be."""
    p = problem
    span = reach(p)
    out = p.size if direction == "input_grad" else p.out
    value = itemsize * (1 if complex_ else 2)
    found = []
    whole = [_whole(direction, p, axis) for axis in range(3)]
    for size in [only] if only else itertools.product(*map(_sizes, out, span, whole)):
        size = triple(size)
        valid = triple(o if s >= most else s - k + 1 for o, s, k, most in zip(out, size, span, whole, strict=True))
        count = p.batch * math.prod(-(-o // v) for o, v in zip(out, valid, strict=True))
        cells, spectrum = math.prod(size), frequencies(size, complex_)
        thread = thread_cells(size, itemsize, complex_) * itemsize + HELD * max(size) * value
        inner, outer = p.channels // p.groups, p.filters // p.groups
        if direction == "input_grad":
            inner, outer = outer, inner
        options = []
        for tiles, filters, groups in itertools.product(_halves(count), _halves(outer), _halves(p.groups)):
            blocks = -(-outer // filters)
            if direction == "weight_grad":
                kept = tiles * inner + tiles * filters + filters * inner
                transforms = count * inner * blocks + count * outer + outer * inner
            else:
                kept = tiles * inner + inner * filters + tiles * filters
                transforms = count * inner * blocks + inner * outer + count * outer
            options.append((groups * kept * spectrum * value, transforms, tiles, filters, groups))
        fitting = [option for option in options if option[0] + threads * thread <= limit] or [min(options)]
        total, transforms, tiles, filters, groups = min(
            fitting, key=lambda option: (option[1], -min(option[2] * option[4], MANY), -option[4], option[0])
        )
        transforms *= p.groups
        products = p.groups * count * inner * outer * spectrum
        numbers = float(transforms * cells * (2 if complex_ else 1))
        if max(size[:2]) == 1 and min(thread_rows(size, itemsize), groups * tiles * min(inner, filters)) < LANES:
            numbers *= ALONE
        found.append(Spectra(size, valid, tiles, filters, groups, total, thread, transforms, numbers, products))
    return found
