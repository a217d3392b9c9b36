"""Schedules of convolution in the frequency domain: how large tiles are, and how many are transformed at once."""

import itertools
import math
from typing import NamedTuple

from .phases import triple
from .problem import ConvProblem, Triple
from .schedule import Limits

SPECTRA = Limits(sums=0, staged=0, filters=0, held=0, jobs=4, parallel=1_000_000)

# Bytes of cells that are transformed at once, in second-level cache; and what a transform holds, in times its cells, as measured.
CHUNK = 96 * 1024
CHUNKS = 10
# Tiles from which more at once no longer spare anything.
MANY = 64
# Cells of a tile by the reach of the taps: the longer, the fewer cells neighbours share, and the less of a tile is in a cache.
REACHES = (1.5, 2, 3, 4, 6, 8)


class Spectra(NamedTuple):
    """How one direction is computed in the frequency domain.

    size : cells of a tile on each axis
    valid : outputs of one
    tiles, filters : tiles, and filters of each group, whose spectra are held at once
    bytes : of all that is held at once
    operations : floating-point operations of all transforms
    products : multiplications of complex numbers
    stores : results of one filter and one tile
    """

    size: Triple
    valid: Triple
    tiles: int
    filters: int
    bytes: int
    operations: float
    products: float
    stores: int


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


def _sizes(cells: int, span: int) -> list[int]:
    """Sizes of a tile that are worth a look, for an axis of some outputs."""
    whole = fast_length(cells + span - 1)
    if span == 1:  # nothing is shared, nothing is transformed: any will do
        return [min(cells, 64)]
    return sorted({min(whole, fast_length(math.ceil(times * span))) for times in REACHES} | {whole})


def _halves(count: int) -> list[int]:
    """`count`, half of it, a quarter, down to 1."""
    return sorted({-(-count >> shift) for shift in range(count.bit_length() + 1)}, reverse=True)


def spectra(direction: str, problem: ConvProblem, itemsize: int, complex_: bool, limit: int) -> list[Spectra]:
    """A design for each size of tiles that is worth a look, within `limit` bytes if that can be."""
    p = problem
    span = reach(p)
    out = p.size if direction == "input_grad" else p.out
    scalar, value = itemsize, itemsize * (1 if complex_ else 2)
    found = []
    for size in itertools.product(*(_sizes(o, k) for o, k in zip(out, span, strict=True))):
        size = triple(size)
        valid = triple(s - k + 1 for s, k in zip(size, span, strict=True))
        count = p.batch * math.prod(-(-o // v) for o, v in zip(out, valid, strict=True))
        cells, spectrum = math.prod(size), frequencies(size, complex_)
        inner, outer = p.channels // p.groups, p.filters // p.groups
        if direction == "input_grad":
            inner, outer = outer, inner
        options = []
        for tiles, filters in itertools.product(_halves(count), _halves(outer)):
            blocks = -(-outer // filters)
            if direction == "weight_grad":
                kept = tiles * inner + tiles * filters + filters * inner
                transforms, row = count * inner * blocks + count * outer + outer * inner, p.groups * max(inner, filters)
            else:
                kept = tiles * inner + inner * filters + tiles * filters
                transforms, row = count * inner * blocks + inner * outer + count * outer, max(p.groups * inner, tiles)
            chunk = max(CHUNK, row * cells * scalar) * CHUNKS
            options.append((p.groups * kept * spectrum * value + chunk, transforms, tiles, filters))
        fitting = [option for option in options if option[0] <= limit] or [min(options)]
        total, transforms, tiles, filters = min(fitting, key=lambda option: (option[1], -min(option[2], MANY), option[0]))
        operations = p.groups * transforms * 2.5 * cells * math.log2(max(cells, 2)) * (2 if complex_ else 1)
        products = float(p.groups * count * inner * outer) * spectrum
        stores = p.groups * outer * (inner if direction == "weight_grad" else count)
        found.append(Spectra(size, valid, tiles, filters, total, operations, products, stores))
    return found
