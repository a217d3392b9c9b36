"""Which outputs of an axis are reached by the same taps, and which padded cells a gradient is sought for: plain geometry."""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable
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
    taps r = first + t * step, which lie step * dilation / stride outputs apart.
    """
    stride, dilation, kernel = problem.stride[axis], problem.dilation[axis], problem.kernel[axis]
    step = stride // math.gcd(stride, dilation)
    found = []
    for start in range(min(stride, size)):
        meeting = (r for r in range(min(step, kernel)) if (low + start - r * dilation) % stride == 0)
        taps = range(next(meeting, kernel), kernel, step)[::-1]
        found.append(Phase(start, taps, (low + start - taps[0] * dilation) // stride if taps else 0))
    return found


def own_phases(problem: ConvProblem) -> list[list[Phase]]:
    """The phases of the input's own cells on each axis."""
    return [input_grad_phases(problem, axis, problem.before[axis], problem.size[axis]) for axis in range(3)]


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


class Border(NamedTuple):
    """Padded cells of dI that were copied from the input, and the smaller problem, without copied borders, whose dI they are.

    `outputs` and `taps` of each axis are what reaches them; `order` is that of the spatial axes in the smaller problem, where the
    thin one of columns does not come last: so its rows are long.
    """

    slab: Slab
    problem: ConvProblem
    outputs: tuple[slice, slice, slice]
    taps: tuple[slice, slice, slice]
    order: Triple

    @property
    def cells(self) -> int:
        """Cells of all images and channels."""
        return self.problem.batch * self.problem.channels * math.prod(self.problem.size)

    @property
    def copied(self) -> int:
        """Outputs that may be copied, since they lie apart."""
        return self.problem.batch * self.problem.filters * math.prod(self.problem.out)


@functools.lru_cache(maxsize=512)
def borders(problem: ConvProblem) -> tuple[Border, ...]:
    """The padded cells that were copied from the input and are reached by a tap: up to six boxes, each cell in one."""
    if problem.mode == "zeros":
        return ()
    inner = interior(problem)
    padded = triple(map(operator.add, inner.high, problem.after))
    found = []
    for axis in range(3):
        for low, high in ((0, inner.low[axis]), (inner.high[axis], padded[axis])):
            before = zip(inner.low[:axis], inner.high[:axis], strict=True)
            spans = *before, (low, high), *((0, size) for size in padded[axis + 1 :])
            reached = [_reached(problem, a, *span) for a, span in enumerate(spans)]
            if all(reached):
                found.append(_border(problem, axis, [each for each in reached if each]))
    return tuple(found)


class _Reached(NamedTuple):
    """Cells of one axis from `low` to below `high`, and the outputs and taps that reach them."""

    low: int
    high: int
    outputs: range
    taps: range


def _reached(problem: ConvProblem, axis: int, low: int, high: int) -> _Reached | None:
    """Of the padded cells from `low` to below `high` those between the first and the last that a tap reaches; None if none is."""
    step, gap = problem.stride[axis], problem.dilation[axis]
    firsts = [max(0, -(-(low - t * gap) // step)) for t in range(problem.kernel[axis])]
    lasts = [min(problem.out[axis], (high - 1 - t * gap) // step + 1) for t in range(problem.kernel[axis])]
    meeting = [t for t, (first, last) in enumerate(zip(firsts, lasts, strict=True)) if first < last]
    if not meeting:
        return None
    taps = range(meeting[0], meeting[-1] + 1)
    outputs = range(min(firsts[t] for t in meeting), max(lasts[t] for t in meeting))
    begin, end = outputs[0] * step + taps[0] * gap, outputs[-1] * step + taps[-1] * gap + 1
    return _Reached(max(low, begin), min(high, end), outputs, taps)


def _border(problem: ConvProblem, axis: int, reached: list[_Reached]) -> Border:
    """A box of cells that is thin on one axis."""
    order = (0, 1, 2) if axis < 2 or problem.axes == 1 else (0, 2, 1) if problem.axes == 2 else (2, 0, 1)

    def ordered(values: Iterable[int]) -> Triple:
        values = list(values)
        return triple(values[a] for a in order)

    axes = list(zip(reached, problem.stride, problem.dilation, strict=True))
    smaller = dataclasses.replace(
        problem,
        mode="zeros",
        size=ordered(r.high - r.low for r in reached),
        kernel=ordered(len(r.taps) for r in reached),
        out=ordered(len(r.outputs) for r in reached),
        stride=ordered(problem.stride),
        dilation=ordered(problem.dilation),
        before=ordered(r.low - r.outputs[0] * step - r.taps[0] * gap for r, step, gap in axes),
        after=ordered(r.outputs[-1] * step + r.taps[-1] * gap + 1 - r.high for r, step, gap in axes),
    )
    slab = Slab(triple(r.low for r in reached), triple(r.high for r in reached))
    return Border(slab, smaller, _slices(r.outputs for r in reached), _slices(r.taps for r in reached), order)


def _slices(parts: Iterable[range]) -> tuple[slice, slice, slice]:
    d, h, w = (slice(part.start, part.stop) for part in parts)
    return d, h, w
