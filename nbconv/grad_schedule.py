"""Schedules of weight gradients: the direct kernels, of which each splits the sum over (n, o) until there are jobs enough."""

import dataclasses
import itertools
import math

import numpy as np

from .kernels.cpu.machine import Machine
from .outer_schedule import copies_fit, most_filters
from .schedule import (
    ALIASED,
    NOWHERE,
    Limits,
    Schedule,
    Sweep,
    bundled,
    direct,
    staged_cells,
    tile_within,
)
from .turns import Turn, block_choices, block_sizes, even, shortest, turn

# From cache sizes; DOTS was then chosen from some dozens of values on 3x3 layers of 256 and 512 channels, on Zen 4.
PANELS = Limits(sums=256, staged=320 * 1024, filters=0, held=256 * 1024, jobs=4, parallel=1_000_000)
POINTS = Limits(sums=256, staged=320 * 1024, filters=0, held=512 * 1024, jobs=4, parallel=1_000_000)
DOTS = Limits(sums=1024, staged=96 * 1024, filters=0, held=448 * 1024, jobs=4, parallel=1_000_000)

# Bytes of a row that is read in place, and by no other filters, before the next one is: of 512 rows of 50 KB, by 4 filters, runs of
# 4, 12 and 24 KB take 1.44, 1.15 and 1.17 ms, in float64 2.56, 2.31 and 2.11 (Zen 4).
RUN = 24 * 1024
# Rows that are read at once where all fall on the same lines of first-level cache: 15 of 8 KB take twice the time of 15 of 7.8 KB.
FEW_ALIASED = 6
# Taps of a block of a weight gradient: more would leave fewer filters to share a staged tile.
TAPS = 48
# Products that take as long as transposing a cell of a weight gradient's operand, on a Granite Rapids.
TRANSPOSED = 18
# The same for a cell that is staged as it is.
READ = 4
# The same for storing a sum and adding it to those of other splits.
ADDED = 48
# Jobs that keep the threads of larger machines busy; cells of a split from which on splits cost up to 1 % on one thread, and those
# of 1x1, whose weights are few.
JOBS, EACH, EACH_POINT = 32, 2500, 1500
# Sums of all splits, beyond what the jobs need.
HELD = 1 << 19
# Nanoseconds on a Zen 4 of a product of two vectors, where it takes them whole (in AVX2 code) and where in halves. Then, fitted to
# 670 layers drawn at random of 8 to 64 filters and 8 to 256 channels, in AVX-512 and AVX2 code alike: of `panels`, 4 bytes of a
# staged cell, a staged row, a vector of sums of a tile, a transposed cell of dy; of `dots`, its products over those, the same of
# cells, rows and sums, and a vector of sums whose lanes are added. By them the choice takes 1.01 of the time of the better one
# (`panels` always: 1.16, in AVX2 code 1.07).
PRODUCT = 0.15, 0.29
PANEL, DOT = (0.26, 0.8, 1.24, 0.14), (1.1, 0.086, 1.4, 0.97, 1.08)


def direct_weight_grad(sweep: Sweep, itemsize: int, limits: Limits, groups: int, batch: int) -> Schedule:
    """As `direct`, with the sum over images and tiles split until there are `limits.jobs` jobs."""
    return with_splits(sweep, direct(sweep, itemsize, limits), limits, groups, batch)


def dots(sweep: Sweep, itemsize: int, limits: Limits, machine: Machine, groups: int, batch: int, in_place: bool) -> Schedule:
    """Micro-kernel of dW: as many taps and filters as leave registers for a vector of input each and one of dy.

    Rows that are not read in place are staged densely, so that they are one to the kernel, unless it has so many taps that the
    copies do not fit.
    The vectors of sums of all pairs of filter and tap of a block stay within `limits.held` bytes.
    """
    lanes, terms = machine.vector // itemsize, math.prod(sweep.kernel)
    pairs = limits.held // machine.vector
    register = even(sweep.filters, min(6 if machine.registers >= 32 else 3, max(1, pairs // terms)))
    most = max(1, (machine.registers - 2) // (register + 1))
    if in_place and register == sweep.filters:
        limits = limits._replace(sums=RUN // itemsize, staged=TAPS * RUN)
        most = min(most, FEW_ALIASED) if math.prod(sweep.out) * itemsize % ALIASED == 0 else most
    wide = copies_fit(sweep, itemsize, limits)
    dense = (False, sweep.folded and wide, wide)
    schedule = Schedule(tile_within(sweep, limits, dense), 1, 1, 1, dense, 1, register, 1, lanes)
    held = limits.staged // (staged_cells(sweep, schedule) * itemsize)
    channels = even(sweep.channels, max(1, min(held, TAPS // terms)))
    vectors = even(channels * terms, most)
    block = max(register, pairs // (channels * terms) // register * register)
    filters = -(-even(sweep.filters, block) // register) * register
    schedule = dataclasses.replace(schedule, filters=filters, channels=channels, vectors=vectors, in_place=in_place)
    schedule = bundled(sweep, schedule, itemsize, limits, groups, groups)
    bundles = -(-groups // schedule.bundle)
    schedule = with_splits(sweep, schedule, limits, bundles, 1 if sweep.folded else batch)
    return shared(sweep, schedule, machine, bundles, (register, channels), (0, READ)) if schedule.bundle == 1 else schedule


def panels(sweep: Sweep, itemsize: int, limits: Limits, machine: Machine, groups: int, batch: int) -> Schedule:
    """Micro-kernel of dW that broadcasts channels over vectors of filters.

    dy of all filters of a block stays within `limits.held` bytes, the staged channels within `limits.staged`, and the sums of the
    block within the two. Both are transposed again for each block of the other: small tiles leave room for large blocks, and those
    of float64 have half the cells (on 1x1 layers, by 512 cells 1.13 times the time in float64; by 128 in float32 1.04).
    """
    limits = limits._replace(sums=limits.sums * 4 // itemsize)
    lanes = machine.vector // itemsize
    vectors = min(2, -(-sweep.filters // lanes))
    register = even(sweep.channels, min(14, (machine.registers - 1 - vectors) // vectors))
    schedule = Schedule(tile_within(sweep, limits, NOWHERE), 1, 1, 1, NOWHERE, 1, register, vectors, lanes)
    wide = vectors * lanes
    most = max(1, limits.held // (math.prod(schedule.tile) * itemsize * wide))
    filters = wide * even(-(-sweep.filters // wide), most)
    held = min(
        limits.staged // (staged_cells(sweep, schedule) * itemsize),
        (limits.held + limits.staged) // (filters * math.prod(sweep.kernel) * itemsize),
    )
    channels = register * even(-(-sweep.channels // register), max(1, held // register))
    schedule = dataclasses.replace(schedule, filters=filters, channels=channels)
    schedule = with_splits(sweep, schedule, limits, groups, 1 if sweep.folded else batch)
    return shared(sweep, schedule, machine, groups, (wide, register), (TRANSPOSED, TRANSPOSED))


def panel_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Scratch of `panels`: sums of a block, its dy, its staged channels, and some of them before they are transposed."""
    filters = -(-schedule.filters // schedule.lanes) * schedule.lanes
    plane = staged_cells(sweep, schedule) // schedule.channels
    sums = filters * schedule.channels * math.prod(sweep.kernel)
    return sums + filters * math.prod(schedule.tile) + plane * (schedule.channels + schedule.register)


def product(machine: Machine) -> float:
    """Nanoseconds of a product of two vectors."""
    return PRODUCT[machine.halved]


def unit(machine: Machine) -> float:
    """Nanoseconds of a unit of the cost model, by which other algorithms are chosen."""
    return product(machine) / 1.1


def _staging(sweep: Sweep, schedule: Schedule, machine: Machine, batch: int) -> tuple[int, float, int]:
    """Tiles of all images of a group; 4 bytes, and rows, that are staged for each channel."""
    tiles = math.prod(-(-out // tile) for out, tile in zip(sweep.out, schedule.tile, strict=True)) * (1 if sweep.folded else batch)
    extents = sweep.extents(schedule)
    rows = tiles * -(-sweep.filters // schedule.filters) * math.prod(extents[:2]) * math.prod(sweep.slots(schedule))
    return tiles, rows * extents[2] * machine.vector / schedule.lanes / 4, rows


def panels_time(sweep: Sweep, schedule: Schedule, machine: Machine, batch: int) -> float:
    """Nanoseconds of `panels` for one group: vectors take filters that do not exist."""
    tiles, staged, rows = _staging(sweep, schedule, machine, batch)
    cells = math.prod(sweep.out) * (1 if sweep.folded else batch)
    vectors, terms = -(-sweep.filters // schedule.lanes), sweep.channels * math.prod(sweep.kernel)
    stage, row, total, transposed = PANEL
    return (
        cells * vectors * terms * product(machine)
        + sweep.channels * (staged * stage + rows * row)
        + tiles * vectors * terms * total
        + cells * vectors * schedule.lanes * -(-sweep.channels // schedule.channels) * transposed
    )


def dots_time(sweep: Sweep, schedule: Schedule, machine: Machine, batch: int) -> float:
    """Nanoseconds of `dots` for one group: vectors take cells beyond a row, and each of the sums is a vector."""
    tiles, staged, rows = _staging(sweep, schedule, machine, batch)
    deep, high, wide = schedule.tile
    merged = wide == sweep.out[2] == sweep.extents(schedule)[2]  # rows that are one to the kernel
    vectors = deep * (-(-high * wide // schedule.lanes) if merged else high * -(-wide // schedule.lanes))
    pairs = sweep.filters * sweep.channels * math.prod(sweep.kernel)
    more, stage, row, total, collapsed = DOT
    return (
        tiles * vectors * pairs * more * product(machine)
        + sweep.channels * (staged * stage + rows * row)
        + pairs * (tiles * total + schedule.splits * collapsed)
    )


def channels_across(sweep: Sweep, lanes: int) -> bool:
    """Whether `points` broadcasts filters over vectors of channels, instead of the reverse.

    Vectors take scalars that do not exist, and transposing one costs as many products as `TRANSPOSED` for all scalars.
    """

    def cost(across: int, along: int) -> float:
        return -(-across // lanes) * lanes / across + TRANSPOSED / along

    return cost(sweep.channels, sweep.filters) <= cost(sweep.filters, sweep.channels)


def points(sweep: Sweep, itemsize: int, limits: Limits, machine: Machine, groups: int) -> Schedule:
    """Micro-kernel of dW of 1x1 convolutions: panels of one array stay within `limits.staged` bytes, sums within `limits.held`.

    Jobs are made by blocks of the array that is read in place, or by splits, of which each has a tile at the least.
    """
    lanes, positions = machine.vector // itemsize, math.prod(sweep.out)
    swapped, sizes = channels_across(sweep, lanes), (sweep.channels, sweep.filters)
    along, across = sizes[::-1] if swapped else sizes
    vectors = min(2, -(-across // lanes))
    wide = vectors * lanes
    columns = wide * even(-(-across // wide), limits.staged // (max(1, limits.sums) * itemsize * wide))
    register = even(along, most_filters(machine, vectors))
    blocks = groups * -(-across // columns)

    def splits(count: int) -> int:
        """Of `count` blocks of rows: what the jobs still need."""
        return max(1, min(positions, splits_of(blocks * count, positions, groups * along * across, limits, EACH_POINT)))

    def cost(count: int) -> int:
        """Of `count` blocks of rows: what is transposed for each, and sums of splits."""
        return across * (count * positions * TRANSPOSED + (splits(count) > 1) * splits(count) * along * ADDED)

    least = -(-along * columns * itemsize // max(1, limits.held))
    most = max(least, min(least + limits.jobs, -(-along // register)))
    count = min(range(least, most + 1), key=cost)
    rows = register * -(-even(along, -(-along // count)) // register)
    room = even(-(-positions // splits(-(-along // rows))), limits.staged // (columns * itemsize))
    tile = tile_within(sweep, limits._replace(sums=room), NOWHERE)
    filters, channels = (rows, columns) if swapped else (columns, rows)
    schedule = Schedule(tile, filters, channels, 1, NOWHERE, 1, register, vectors, lanes, in_place=not swapped)
    schedule = with_splits(sweep, schedule, limits, groups, 1, EACH_POINT)
    if swapped:
        return shared(sweep, schedule, machine, groups, (register, wide), (0, TRANSPOSED))
    return shared(sweep, schedule, machine, groups, (wide, register), (TRANSPOSED, 0))


def point_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Scratch of `points`: sums of a block, and its panels."""
    sizes = schedule.channels, schedule.filters
    along, across = sizes if schedule.in_place else sizes[::-1]
    return -(-across // schedule.lanes) * schedule.lanes * (along + math.prod(schedule.tile))


def with_splits(sweep: Sweep, schedule: Schedule, limits: Limits, groups: int, batch: int, each: int = EACH) -> Schedule:
    """The schedule with the sum over images and tiles split until there are `limits.jobs` jobs, or `JOBS` where that is cheap."""
    blocks = groups * -(-max(sweep.channels, 1) // schedule.channels) * -(-max(sweep.filters, 1) // schedule.filters)
    places = batch * math.prod(-(-out // size) for out, size in zip(sweep.out, schedule.tile, strict=True))
    cells, weights = batch * math.prod(sweep.out), groups * sweep.channels * sweep.filters * math.prod(sweep.kernel)
    return dataclasses.replace(schedule, splits=max(1, min(places, splits_of(blocks, cells, weights, limits, each))))


def splits_of(blocks: int, cells: int, weights: int, limits: Limits, each: int = EACH) -> int:
    """Splits of sums over `cells` in so many blocks: what the jobs need, or more that cost little, a power of two."""
    cheap = min(JOBS // blocks, cells // each, HELD // max(1, weights))
    return max(-(-limits.jobs // blocks), 1 << cheap.bit_length() - 1 if cheap > 0 else 1)


def shared(
    sweep: Sweep, schedule: Schedule, machine: Machine, groups: int, units: tuple[int, int], prepared: tuple[float, float]
) -> Schedule:
    """The schedule with smaller blocks of filters and channels, where the longest turn of a thread is shorter by them.

    Tile and splits stay as they are, and so does the order of sums. Blocks are of some `units` of filters and channels; for each of
    a block, a cell takes as long to prepare as so many products.
    """
    sizes, blocks, taps = (sweep.filters, sweep.channels), (schedule.filters, schedule.channels), math.prod(sweep.kernel)

    def turn_of(found: tuple[int, int]) -> Turn:
        filters, channels = found
        k, c = block_sizes(sizes[0], filters, units[0]), block_sizes(sizes[1], channels, units[1])
        jobs = np.outer(k, c) * taps + np.add.outer(k * prepared[0], c * prepared[1])
        return turn(machine.threads, np.tile(jobs, (schedule.splits * groups, 1)))

    if machine.threads == 1:
        return schedule
    of_filters, of_channels = (block_choices(*each) for each in zip(sizes, blocks, units, strict=True))
    filters, channels = shortest(blocks, itertools.product(of_filters, of_channels), turn_of)
    return dataclasses.replace(schedule, filters=filters, channels=channels)


def weight_grad_cells(sweep: Sweep, schedule: Schedule) -> int:
    """Scratch of a weight gradient: a row of dy or the vectors of sums, and staged input."""
    pairs = schedule.bundle * schedule.filters * schedule.channels * math.prod(sweep.kernel) * schedule.lanes
    staged = 0 if schedule.in_place else staged_cells(sweep, schedule)
    return (pairs if schedule.register else schedule.tile[2]) + schedule.lanes**2 + staged
