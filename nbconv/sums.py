"""What each result of an axis sums, cell by cell: the products that lie inside of the input, and no others."""

import functools
import itertools
from typing import Any, NamedTuple

from .kernels.cpu.machine import Machine
from .kernels.padding import MODES, source_index
from .problem import ConvProblem

# For each result of one axis, the (tap, cell) pairs that it sums; in a weight gradient, (output, cell) for each tap.
Pairs = list[list[tuple[int, int]]]


@functools.lru_cache(maxsize=16)
def sums_of(direction: str, problem: ConvProblem, axis: int) -> Pairs:
    """The pairs of one axis, in the order in which cells of a padded input rise."""
    if direction == "weight_grad":
        found: Pairs = [[] for _ in range(problem.kernel[axis])]
        for output, pairs in enumerate(sums_of("forward", problem, axis)):
            for tap, cell in pairs:
                found[tap].append((output, cell))
        return found
    before, size, out, kernel = problem.before[axis], problem.size[axis], problem.out[axis], problem.kernel[axis]
    stride, gap, mode = problem.stride[axis], problem.dilation[axis], problem.mode
    if direction == "input_grad":
        reach = [[(t, i + before - t * gap) for t in range(kernel - 1, -1, -1)] for i in range(size)]
        return [[(t, cell // stride) for t, cell in pairs if 0 <= cell < out * stride and cell % stride == 0] for pairs in reach]
    firsts = range(-before, out * stride - before, stride)
    if mode == "zeros":
        inside = [range(max(0, -(first // gap)), min(kernel, (size - first + gap - 1) // gap)) for first in firsts]
        return [[(t, first + t * gap) for t in taps] for first, taps in zip(firsts, inside, strict=True)]
    return [[(t, source_index(first + t * gap, size, MODES.index(mode))) for t in range(kernel)] for first in firsts]


def row_table(direction: str, problem: ConvProblem, tap: int, cell: int) -> list[list[int]]:
    """What the micro-kernel `across` reads for each row of results, `tap` and `cell` being bytes of one of a weight and of x."""
    read = problem.out if direction == "input_grad" else problem.size
    deep, high = (sums_of(direction, problem, axis) for axis in range(2))
    rows = []
    for slices, lines in itertools.product(deep, high):
        places = [
            ((d * problem.kernel[1] + h) * problem.kernel[2] * tap, (slice_ * read[1] + row) * read[2] * cell)
            for d, slice_ in slices
            for h, row in lines
        ]
        rows.append([len(places), *itertools.chain(*places)])
    return rows


def shifted(wide: Pairs, columns: int) -> list[tuple[int, Pairs]]:
    """The parts of a row, of so many columns: the first cell of each, and its pairs, with cells counted from there."""
    found = []
    for first in range(0, len(wide), columns):
        some = wide[first : first + columns]
        begin = min((cell for pairs in some for _, cell in pairs), default=0)
        found.append((begin, [[(tap, cell - begin) for tap, cell in pairs] for pairs in some]))
    return found


def code(wide: Pairs, columns: int) -> int:
    """Products of all parts of a row that are not alike."""
    alike = {tuple(map(tuple, pairs)) for _, pairs in shifted(wide, columns)}
    return sum(len(pairs) for part in alike for pairs in part)


class Piece(NamedTuple):
    """Pieces of rows of outputs that are alike: the first output and the first cell of each, and the pairs counted from there."""

    places: list[tuple[int, int]]
    pairs: Pairs


def pieces(taps: Pairs, outputs: int, length: int) -> list[Piece]:
    """The rows of so many outputs in pieces of a length, for a weight gradient of some taps of a row."""
    cut: list[Pairs] = [[[] for _ in taps] for _ in range(0, outputs, length)]
    for tap, pairs in enumerate(taps):
        for o, cell in pairs:
            cut[o // length][tap].append((o % length, cell))
    alike: dict[Any, list[tuple[int, int]]] = {}
    for i, some in enumerate(cut):
        begin = min((cell for pairs in some for _, cell in pairs), default=0)
        pattern = tuple(tuple((o, cell - begin) for o, cell in pairs) for pairs in some)
        alike.setdefault(pattern, []).append((i * length, begin))
    return [Piece(places, [list(pairs) for pairs in pattern]) for pattern, places in alike.items() if any(pattern)]


class Part(NamedTuple):
    """What computes some results of a row: the shape of the micro-kernel `across`, and where its x and its y begin, in bytes."""

    shape: tuple[Any, ...]
    x: int
    y: int


def parts(wide: Pairs, columns: int, images: int, cell: int, vectors: int, formula: str, machine: Machine) -> list[Part]:
    """The parts of a row, of whose last axis `wide` tells, of so many `columns` each; parts alike have one micro-kernel.

    `cell` is the bytes of one of x: a vector across planes, or a scalar, which is broadcast.
    """
    found = []
    for i, (begin, some) in enumerate(shifted(wide, columns)):
        shape = shape_of(some, images, cell, vectors, formula, machine)
        found.append(Part(shape, begin * cell, i * columns * vectors * machine.vector))
    return found


def shape_of(pairs: Pairs, images: int, cell: int, vectors: int, formula: str, machine: Machine) -> tuple[Any, ...]:
    """Shape of the micro-kernel `across` for results of so many images at once; `cell` as in `parts`."""
    sums = tuple(tuple((tap, place * cell) for tap, place in some) for some in pairs)
    loaded = len({place for some in sums for _, place in some})
    held = images * (len(sums) * vectors + loaded) + vectors + 1 <= machine.registers
    return sums, images, vectors, cell < machine.vector, "" if held else machine.letter, formula
