"""Schedules: how a kernel cuts a problem into tiles and blocks, as plain data.

A schedule decides speed and workspace, never a result: sums run in the same order under every schedule of a kernel, except for the
splits of a weight gradient, which follow from the shapes alone.
"""

import dataclasses
import math
import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .kernels.cpu.tile import Axis
from .problem import ConvProblem, Triple


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Tile of outputs, filters and channels of a block, splits of the sum over (n, o) in a weight gradient."""

    tile: Triple
    filters: int
    channels: int
    splits: int = 1


class Limits(NamedTuple):
    """Sizes that a family's tiles should stay within.

    sums : cells of one filter's output tile; it is read and written for every four taps, so it belongs in first-level cache.
    staged : bytes of staged input, read again for every filter; it belongs in second-level cache.
    filters : filters that share a staged tile.
    jobs : jobs that are enough to keep the threads busy; a weight gradient splits its sum until it has them.
    parallel : floating-point operations from which several threads pay for their launch.
    """

    sums: int
    staged: int
    filters: int
    jobs: int
    parallel: int


# First values, from cache sizes (32 KiB first-level, 512 KiB or more second-level); not tuned.
DIRECT = Limits(sums=2048, staged=256 * 1024, filters=16, jobs=32, parallel=500_000)


class Sweep(NamedTuple):
    """One run of a direct kernel over one group: what its schedule depends on."""

    channels: int
    filters: int
    out: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple

    @property
    def shifts(self) -> Triple:
        """Cells by which a staged row exceeds the outputs' row, on each axis."""
        return triple((k - 1) * d // s for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))

    @property
    def phases(self) -> Triple:
        """Phases of the input grid that the taps read, on each axis."""
        return triple(min(k, s // math.gcd(s, d)) for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))


def triple(values: Iterable[int]) -> Triple:
    """Three values as a tuple."""
    d, h, w = values
    return d, h, w


def forward_sweep(problem: ConvProblem) -> Sweep:
    """The forward convolution; a weight gradient stages its input in the same way."""
    channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
    return Sweep(channels, filters, problem.out, problem.kernel, problem.stride, problem.dilation)


def input_grad_sweep(problem: ConvProblem) -> Sweep:
    """The largest of the stride-1 convolutions over dy that make up dI, one for each phase of the input grid.

    Taps that meet on one phase lie stride / gcd(stride, dilation) apart, which is dilation / gcd(stride, dilation) outputs.
    """
    common = [math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    out = triple(-(-size // s) for size, s in zip(problem.size, problem.stride, strict=True))
    kernel = triple(-(-k // (s // g)) for k, s, g in zip(problem.kernel, problem.stride, common, strict=True))
    dilation = triple(d // g for d, g in zip(problem.dilation, common, strict=True))
    channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
    return Sweep(filters, channels, out, kernel, (1, 1, 1), dilation)


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


def even(count: int, most: int) -> int:
    """Size of the equal tiles, of at most `most` cells, that cover `count` cells."""
    tiles = max(1, -(-count // max(most, 1)))
    return max(1, -(-count // tiles))


def direct(sweep: Sweep, itemsize: int, limits: Limits) -> Schedule:
    """Tiles whose rows of sums stay within `limits.sums` cells, and as many channels as `limits.staged` bytes hold."""
    sizes: list[int] = []
    room = limits.sums
    for out, extra in zip(reversed(sweep.out), reversed(sweep.shifts), strict=True):
        sizes.insert(0, even(out, room))
        room //= sizes[0] + extra
    schedule = Schedule(triple(sizes), max(1, min(sweep.filters, limits.filters)), 1)
    plane = staged_cells(sweep, schedule)
    channels = max(1, min(sweep.channels, limits.staged // (plane * itemsize)))
    return dataclasses.replace(schedule, channels=channels)


def direct_weight_grad(sweep: Sweep, itemsize: int, limits: Limits, groups: int, batch: int) -> Schedule:
    """As `direct`, with the sum over images and tiles split until there are `limits.jobs` jobs."""
    schedule = direct(sweep, itemsize, limits)
    blocks = groups * -(-max(sweep.channels, 1) // schedule.channels) * -(-max(sweep.filters, 1) // schedule.filters)
    places = batch * math.prod(-(-out // size) for out, size in zip(sweep.out, schedule.tile, strict=True))
    return dataclasses.replace(schedule, splits=max(1, min(places, -(-limits.jobs // blocks))))


def staged_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Cells of staged input of one block of channels."""
    plane = math.prod(size + extra for size, extra in zip(schedule.tile, sweep.shifts, strict=True))
    return schedule.channels * plane * math.prod(sweep.phases)


def sum_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Cells of the sums of one block of filters."""
    t, s = schedule.tile, sweep.shifts
    return schedule.filters * (((t[0] - 1) * (t[1] + s[1]) + t[1] - 1) * (t[2] + s[2]) + t[2])


def axes_of(sweep: Sweep, schedule: Schedule, size: Triple, offset: Triple, out: Triple) -> tuple[Axis, Axis, Axis]:
    """The kernel's view of the three axes: `size` input cells, `out` outputs, the first at input position `offset`."""
    d, h, w = (
        Axis(size[a], sweep.stride[a], sweep.dilation[a], offset[a], out[a], schedule.tile[a], sweep.phases[a],
             schedule.tile[a] + sweep.shifts[a])
        for a in range(3)
    )  # fmt: skip
    return d, h, w
