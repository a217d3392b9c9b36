"""Schedules: how a kernel cuts a problem into tiles and blocks, as plain data.

A schedule decides speed and workspace, never a result: sums run in the same order under every schedule of a kernel, except for the
splits of a weight gradient, which follow from the shapes and the limits alone, never from how many threads there are at the time.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from .arrays import Array
from .kernels.cpu.tile import Axis
from .phases import Phase, own_phases, triple
from .problem import LARGEST, ConvProblem, Triple
from .turns import even

NOWHERE = (False, False, False)


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """How a direct kernel cuts one sweep over a problem.

    Attributes
    ----------
    tile : tuple of three ints
        Outputs of a tile on each axis.
    filters, channels : int
        Filters whose sums are kept at once, channels that are staged at once, or that a depthwise kernel adds.
    splits : int
        Parts of the sum over (n, o) in a weight gradient.
    taps : tuple of three ints or None
        Taps of one run of a depthwise kernel on each axis, if it is one.
    dense : tuple of three bools
        Axes that are staged with a copy for each tap; see `kernels.cpu.tile`.
    bundle : int
        Groups that are staged at once.
    register, vectors, lanes : int
        Filters and vectors of one call of a micro-kernel, and scalars of a vector; 0, 1, 1 for the portable loop.
    packed : bool
        Whether weights are copied into the order of a micro-kernel, instead of read where they lie.
    in_place : bool
        Whether a contiguous input is read where it lies, instead of staged; but for tiles whose taps reach beyond it.
    window : int
        Positions whose cells are first copied next to each other in the order of a micro-kernel's calls, for all blocks of filters,
        or are transposed at once; 0 if they are read where they lie.
    together : int
        Tiles of a weight gradient by Winograd's algorithm that are transformed before they are multiplied.
    once : bool
        Whether all blocks of channels are staged side by side, once for all blocks of filters.
    lined : bool
        Whether staged rows of tiles of one row are padded to whole vectors.
    by_rows : bool
        Whether the rows of a tile are computed one by one, each where it belongs in the output.
    """

    tile: Triple
    filters: int
    channels: int
    splits: int = 1
    dense: tuple[bool, bool, bool] = NOWHERE
    bundle: int = 1
    register: int = 0
    vectors: int = 1
    lanes: int = 1
    packed: bool = False
    in_place: bool = False
    taps: Triple | None = None
    window: int = 0
    together: int = 1
    once: bool = False
    lined: bool = False
    by_rows: bool = False


class Limits(NamedTuple):
    """Sizes that a family's tiles should stay within.

    sums : cells of one filter's output tile; of POINTS, those that a panel has at the least.
    staged : bytes of a block of staged channels, read again for every block of filters; it belongs in second-level cache.
    filters : filters that share a staged tile, for the portable loop.
    held : bytes of sums of the filters that share a staged tile, for a micro-kernel.
    jobs : jobs that are enough to keep the threads busy; a weight gradient splits its sum until it has them.
    parallel : floating-point operations from which several threads pay for their launch.
    near : bytes of the gathered cells of one call, where calls have few positions; 0 to gather none.
    """

    sums: int
    staged: int
    filters: int
    held: int
    jobs: int
    parallel: int
    near: int = 0


# From cache sizes (32 KiB first-level, 512 KiB or more second-level).
DIRECT = Limits(sums=2048, staged=256 * 1024, filters=16, held=0, jobs=32, parallel=500_000)

# Phases of the last axis that are stored together at the most.
INTERLEAVED = 8
# Stride from which gathering cells beats loading all and picking.
SHUFFLED = 5
# Bytes between rows at which all fall on the same lines of first-level cache.
ALIASED = 4096
# Registers below which a call of a micro-kernel has few positions.
FEW = 28
# Part of an image that its last vector may lack before several images share a tile.
EMPTY = 0.1


class Sweep(NamedTuple):
    """One run of a direct kernel over one group: what its schedule depends on."""

    channels: int
    filters: int
    out: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    folded: bool = False
    apart: bool = False  # whether outputs of a row are no neighbours: those of a phase of dI

    def slots(self, schedule: Schedule) -> Triple:
        """Staged rows of each axis: one for each tap where it is dense, else one for each phase that the taps read."""
        return triple(
            k if dense else min(k, s // math.gcd(s, d))
            for dense, k, s, d in zip(schedule.dense, self.kernel, self.stride, self.dilation, strict=True)
        )

    def extents(self, schedule: Schedule) -> Triple:
        """Cells of a staged row on each axis; where a tile is one row, it may begin on a line of cache, at no cost of positions."""
        d, h, w = triple(
            tile if dense else tile + shift for tile, dense, shift in zip(schedule.tile, schedule.dense, self.shifts, strict=True)
        )
        if schedule.in_place and self.shifts[2]:  # the first tile is longer where the others begin on lines of cache
            w += schedule.lanes
        if schedule.lined and (schedule.tile[:2] == (1, 1) or schedule.by_rows):
            w = (-(-w // schedule.lanes) | 1) * schedule.lanes  # an odd number of vectors: see ALIASED
        return d, h, w

    @property
    def shifts(self) -> Triple:
        """Cells by which a staged row exceeds the outputs' row, on each axis, where taps share it."""
        return triple((k - 1) * d // s for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))


def forward_sweep(problem: ConvProblem) -> Sweep:
    """The forward convolution; a weight gradient stages its input in the same way."""
    channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
    return Sweep(channels, filters, problem.out, problem.kernel, problem.stride, problem.dilation)


def input_grad_sweep(problem: ConvProblem, merged: bool) -> Sweep:
    """dI as convolutions over dy with stride 1, one for each phase of the input grid: all in one if `merged`, else the largest.

    Taps that meet on one phase lie stride / gcd(stride, dilation) apart, which is dilation / gcd(stride, dilation) outputs.
    """
    common = [math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    out = triple(-(-size // s) for size, s in zip(problem.size, problem.stride, strict=True))
    kernel = triple(-(-k // (s // g)) for k, s, g in zip(problem.kernel, problem.stride, common, strict=True))
    dilation = triple(d // g for d, g in zip(problem.dilation, common, strict=True))
    channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
    sweep = Sweep(filters, channels, out, kernel, (1, 1, 1), dilation, apart=problem.stride != (1, 1, 1))
    if not merged:
        return sweep
    return phased(sweep, problem, own_phases(problem))[0]


def flat(sweep: Sweep) -> Sweep:
    """The sweep of a 1x1 convolution over images that are one run of memory: a single axis."""
    return sweep._replace(out=(1, 1, math.prod(sweep.out)))


def stored_together(problem: ConvProblem, direction: str, size: int) -> int:
    """Phases of the last axis, of `size` cells, that are interleaved as they are stored."""
    phases = min(problem.stride[2], size) if direction == "input_grad" else 1
    return phases if phases <= INTERLEAVED else 1


def folded(sweep: Sweep, problem: ConvProblem, limits: Limits, lanes: int, few: int) -> Sweep:
    """Small images, several to a tile: the batch takes the place of the first axis, where the problem leaves that free.

    Only where the last vector of an image would be empty enough, or where it has no more than `few` vectors: an image of its own is
    stored without a detour.
    """
    cells = math.prod(sweep.out)
    if 2 * cells > limits.sums or (cells > few * lanes and -cells % lanes < EMPTY * cells):
        return sweep
    return together(sweep, problem)


def together(sweep: Sweep, problem: ConvProblem) -> Sweep:
    """The sweep with the batch in place of its first axis, where the problem leaves that free."""
    if problem.axes == 3 or problem.batch < 2:
        return sweep
    return sweep._replace(out=(problem.batch, *sweep.out[1:]), folded=True)


def direct(sweep: Sweep, itemsize: int, limits: Limits) -> Schedule:
    """Portable loop: tiles whose rows of sums stay within `limits.sums` cells, and the channels that `limits.staged` bytes hold."""
    schedule = Schedule(tile_within(sweep, limits, NOWHERE), max(1, min(sweep.filters, limits.filters)), 1)
    return with_channels(sweep, schedule, itemsize, limits)


def tile_within(sweep: Sweep, limits: Limits, dense: tuple[bool, bool, bool]) -> Triple:
    """The tile of at the most `limits.sums` cells, as equal as can be on each axis; the last axis is filled first."""
    sizes: list[int] = []
    room = limits.sums
    for out, extra, whole in zip(reversed(sweep.out), reversed(sweep.shifts), reversed(dense), strict=True):
        sizes.insert(0, even(out, room))
        room //= sizes[0] + extra * (not whole)
    return triple(sizes)


def with_channels(sweep: Sweep, schedule: Schedule, itemsize: int, limits: Limits) -> Schedule:
    """The schedule with as many channels as `limits.staged` bytes hold of a tile's input."""
    most = limits.staged // (staged_cells(sweep, schedule) * itemsize)
    return dataclasses.replace(schedule, channels=even(sweep.channels, max(1, most)))


def bundled(sweep: Sweep, schedule: Schedule, itemsize: int, limits: Limits, groups: int, jobs: int) -> Schedule:
    """Small groups together, as many as `limits.staged` holds while `limits.jobs` of `jobs` jobs remain."""
    if schedule.filters < sweep.filters or schedule.channels < sweep.channels:
        return schedule
    most = min(limits.staged // (staged_cells(sweep, schedule) * itemsize), jobs // limits.jobs)
    return dataclasses.replace(schedule, bundle=even(groups, min(groups, max(1, most))))


def staged_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Cells of staged input of one block of channels, or of all where they are staged once."""
    channels = sweep.channels if schedule.once else schedule.channels
    return schedule.bundle * channels * math.prod(sweep.extents(schedule)) * math.prod(sweep.slots(schedule))


def sum_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Cells of the sums of one block of filters, each row a whole number of vectors."""
    t, e = schedule.tile, sweep.extents(schedule)
    longest = ((t[0] - 1) * e[1] + t[1] - 1) * e[2] + t[2]
    return schedule.filters * -(-longest // schedule.lanes) * schedule.lanes


def outer_cells(sweep: Sweep, schedule: Schedule, phases: int) -> int:
    """Scratch of a micro-kernel: sums of the phases stored together, staged input, and gathered cells."""
    block = schedule.vectors * schedule.lanes
    staged = 0 if schedule.in_place and not sweep.shifts[2] else staged_cells(sweep, schedule)
    early = schedule.filters * schedule.lanes if schedule.in_place else 0  # for the first tile to end where a line of cache does
    cells = phases * (sum_cells(sweep, schedule) + early) + staged
    unit = block if schedule.window else schedule.lanes  # for what follows, and the next thread's, to begin on a line of cache
    return -(-cells // unit) * unit + gathered_cells(sweep, schedule)


def gathered_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Cells of gathered positions, for all terms of a block of channels."""
    return schedule.channels * math.prod(sweep.kernel) * schedule.window


def direct_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Scratch of the portable kernel: sums and staged input."""
    return sum_cells(sweep, schedule) + staged_cells(sweep, schedule)


def phased(sweep: Sweep, problem: ConvProblem, phases: list[list[Phase]]) -> tuple[Sweep, Triple, list[list[list[int]]]]:
    """One sweep that stages dy for all phases of dI: it, its first cell, and the taps of it that each phase reads."""
    kernel, dilation, offset, virtual = [], [], [], []
    for a, axis in enumerate(phases):
        apart = problem.dilation[a] // math.gcd(problem.stride[a], problem.dilation[a])
        shifts = [[phase.offset + t * apart for t in range(len(phase.taps))] for phase in axis]
        low = min(itertools.chain(*shifts), default=0)
        gap = math.gcd(*(shift - low for shift in itertools.chain(*shifts))) or 1
        virtual.append([[(shift - low) // gap for shift in row] for row in shifts])
        kernel.append(max(itertools.chain(*virtual[a]), default=0) + 1)
        dilation.append(gap)
        offset.append(low)
    return sweep._replace(kernel=triple(kernel), dilation=triple(dilation)), triple(offset), virtual


def cell_offsets(sweep: Sweep, schedule: Schedule) -> Array:
    """Position of each tap of a block of channels in the staged input, in cells: (channels * taps,); see `kernels.cpu.tile`."""
    slots, extents = sweep.slots(schedule), sweep.extents(schedule)
    position = np.zeros((1,) * 3, np.intp)
    for a in range(3):
        taps = np.arange(sweep.kernel[a])
        slot = taps % slots[a]
        cell = 0 * taps if schedule.dense[a] else taps * sweep.dilation[a] // sweep.stride[a]
        below, inner = math.prod(slots[a + 1 :] + extents), math.prod(extents[a + 1 :])
        shape = [1, 1, 1]
        shape[a] = -1
        position = position + (slot * below + cell * inner).reshape(shape)
    plane = math.prod(slots + extents)
    return (np.arange(schedule.channels)[:, None] * plane + position.reshape(1, -1)).reshape(-1)


def axes_of(sweep: Sweep, schedule: Schedule, size: Triple, offset: Triple, out: Triple) -> tuple[Axis, Axis, Axis]:
    """The kernel's view of the three axes: `size` input cells, `out` outputs, the first at input position `offset`."""
    slots, extents = sweep.slots(schedule), sweep.extents(schedule)
    d, h, w = (
        Axis(
            size[a],
            sweep.stride[a],
            sweep.dilation[a],
            offset[a],
            out[a],
            schedule.tile[a],
            slots[a],
            extents[a],
            LARGEST if schedule.dense[a] else sweep.stride[a],
        )
        for a in range(3)
    )
    return d, h, w
