"""Which outputs of an axis are reached by the same taps, and which padded cells a gradient is sought for: plain geometry."""

import dataclasses
import math
import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .problem import ConvProblem, Triple


def triple(values: Iterable[int]) -> Triple:
    """Three values as a tuple."""
    d, h, w = values
    return d, h, w


class Phase(NamedTuple):
    """Outputs of one axis that are reached by the same taps: every so many from `start` on.

    Output j of a phase reads input cell  j * stride + offset  by its first tap, and further cells by the others, all at one
    distance. `taps` are kernel cells in the order in which cells rise.
    """

    start: int
    taps: range
    offset: int


def forward_phases(problem: ConvProblem, axis: int) -> list[Phase]:
    """All outputs are one phase."""
    return [Phase(0, range(problem.kernel[axis]), -problem.before[axis])]


def input_grad_phases(problem: ConvProblem, axis: int, low: int, size: int) -> list[Phase]:
    """The phases of `size` padded cells from `low` on, whose gradient is sought; the input is dy, stride 1.

    Padded cell p = low + start + j * stride is reached by tap r from output (p - r * dilation) / stride where that is whole: by the
    taps r = first + t * step, which lie step * dilation / stride outputs apart. Of the cells of a copied border, taps that reach
    none of them from an output that exists are left out.
    """
    stride, dilation, kernel = problem.stride[axis], problem.dilation[axis], problem.kernel[axis]
    step = stride // math.gcd(stride, dilation)
    first, last = 0, kernel
    if low != problem.before[axis] or size != problem.size[axis]:
        first = max(0, -(-(low - (problem.out[axis] - 1) * stride) // dilation))
        last = max(first, min(kernel, (low + size - 1) // dilation + 1))
    found = []
    for start in range(min(stride, size)):
        meeting = (r for r in range(first, min(first + step, last)) if (low + start - r * dilation) % stride == 0)
        taps = range(next(meeting, last), last, step)[::-1]
        found.append(Phase(start, taps, (low + start - taps[0] * dilation) // stride if taps else 0))
    return found


def taps_of_a_phase(problem: ConvProblem) -> int:
    """Taps of the phase of the input's gradient that has most."""
    axes = zip(problem.kernel, problem.stride, problem.dilation, strict=True)
    return math.prod(-(-kernel * math.gcd(stride, dilation) // stride) for kernel, stride, dilation in axes)


def input_grad_border(problem: ConvProblem, axis: int, low: int, size: int) -> tuple[int, int]:
    """How wide a border of zeros around dy must be for no tap of any phase to lie outside, before and after."""
    step = problem.stride[axis] // math.gcd(problem.stride[axis], problem.dilation[axis])
    reach = step * problem.dilation[axis] // problem.stride[axis]
    before = after = 0
    for phase in input_grad_phases(problem, axis, low, size):
        if phase.taps:
            outputs = -(-(size - phase.start) // problem.stride[axis])
            last = phase.offset + outputs - 1 + (len(phase.taps) - 1) * reach
            before, after = max(before, -phase.offset), max(after, last - problem.out[axis] + 1)
    return before, after


class Slab(NamedTuple):
    """A box of padded input cells, from `low` to below `high` on each axis."""

    low: Triple
    high: Triple

    @property
    def shape(self) -> Triple:
        return triple(high - low for low, high in zip(self.low, self.high, strict=True))


def interior(problem: ConvProblem) -> Slab:
    """The padded cells that are the input's own."""
    return Slab(problem.before, triple(map(operator.add, problem.before, problem.size)))


def with_borders(problem: ConvProblem) -> ConvProblem:
    """The problem whose input is the padded one."""
    size = triple(map(sum, zip(problem.before, problem.size, problem.after, strict=True)))
    return dataclasses.replace(problem, size=size, before=(0, 0, 0), after=(0, 0, 0), mode="zeros")


def border_slabs(problem: ConvProblem) -> Iterator[Slab]:
    """The padded cells that were copied from the input: up to six boxes, each cell in one. None where padding is zero."""
    if problem.mode == "zeros":
        return
    inner = interior(problem)
    padded = triple(map(operator.add, inner.high, problem.after))
    for axis in range(3):
        for low, high in ((0, inner.low[axis]), (inner.high[axis], padded[axis])):
            if low < high:
                corners = (*inner.low[:axis], low, *(0, 0)[axis:]), (*inner.high[:axis], high, *padded[axis + 1 :])
                yield Slab(*map(triple, corners))
