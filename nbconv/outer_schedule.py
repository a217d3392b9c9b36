"""Schedules of the micro-kernel `outer`: its tile, blocks of filters and channels, and what is copied before it is read."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from .kernels.cpu.machine import LINE, Machine
from .problem import Triple
from .schedule import (
    ALIASED,
    FEW,
    Limits,
    Schedule,
    Sweep,
    bundled,
    staged_cells,
    sum_cells,
    tile_within,
    with_channels,
)
from .turns import Turn, block_choices, block_sizes, even, shortest, tile_cells, turn

# Chosen from some dozens of values on layers of 3x3 and 256 or 512 channels, on Zen 4, within cache sizes as `schedule.DIRECT`.
OUTER = Limits(sums=1024, staged=256 * 1024, filters=0, held=512 * 1024, jobs=4, parallel=1_000_000, near=24 * 1024)
# A staged cell costs about this many times a multiplication of it: a load, a store, and their share of a row's overhead.
STAGING = 3
# Filters whose weights may fall on the same lines of a Zen 5's first-level cache: 14 of 1x1 from 1024 and 2048 channels take 1.06
# times as long.
WAYS = 12
# Vectors of a call that reads gathered cells, which do not straddle lines of cache: 0.96 of the time of two (Granite Rapids). With
# registers enough, the cells of a tile are gathered, in 0.94 of the time of a 1x1 layer; else those of one call, which has few
# positions then, in 0.7 to 0.9 (Zen 3).
ALIGNED = 3
# Channels whose rows lie on more pages than the machine knows at once: gathering pays for few blocks of filters too.
PAGES = 96
# Bytes of all channels of a position, times the blocks of filters that read them, but at the most SEVERAL: up to there an input in
# place is read as fast as gathered cells or faster, up to 1.7 times, where calls can begin on lines of cache (Granite Rapids). With
# FEWER blocks up to four times as many are: 64 and 96 filters from 256 to 1024 channels take 0.81 to 0.97 of the time, mostly.
STRAIGHT, SEVERAL, FEWER = 10_240, 12, 7
# Blocks of filters from which a Zen 5 gathers the cells of an input in place; others it reads, and those of staged tiles: of 2,000
# layers of 1x1, and of 1x1 and 3x3 with stride 2, this takes 1.00 to 1.02 of the best time, by the rules above it 1.02 to 1.09.
MANY = 16
# Outputs of a tile of one axis whose input several taps read in place, and tiles of a row from which few are staged, at its ends.
SLIDING, INNER = 512, 8
# Filters, and bytes of a channel, up to which calls of one vector for all filters beat gathered cells, which two blocks of filters
# read: 1x1 of 16 to 20 filters from 128 to 2048 channels on 14x14 to 28x28 takes 0.73 to 1.02 of the time (Granite Rapids); of 28
# filters 1.02, in float64 1.2; on 65x65 1.26.
SINGLE, SHORT = 20, 8192
# Bytes between lines of second-level cache that share a set: rows so far apart, or by a large part of it, drive one another out.
WAY = 128 * 1024
# Outputs of an image, or of a folded batch, and taps up to which the cells of several taps are gathered: 3x3 with stride 2 to 14x14
# and 7x7 outputs takes 0.91 to 0.93 of the time (Granite Rapids), to 28x28 1.04, 7x7 to 1x1 1.15.
GATHERED = 256, 16
# Channels or filters up to which a Zen 5 takes larger tiles, for each has so few products: 3x3 from 1 to 8 channels takes 0.89 to
# 0.98 of the time, dI of 3x3 of 1 to 6 channels 0.89 to 1, of 7x7 with stride 2 0.92 to 1.
THIN, LARGER = 8, 4
# Terms of a call, of few taps and so many channels that a smaller tile is worth them.
TERMS = 192
# Outputs of a tile whose input is read once, in place; rows that are then read at once, as a small machine foresees: 64 rows, a
# power of two apart, take 2.8 times as long together.
STREAMED = 16384
STREAMS = 8
# Bytes of channels that are staged once for all blocks of filters: 1x1 of 1024-2048 with stride 2 takes 0.9 of the time.
ONCE = 1 << 20
# Parts of a tile that threads may share; products that take as long as a cell that is read in place, staged, and gathered for a
# tap.
PARTS = 1, 1.25, 1.5, 2, 3, 4, 6, 8
READ, STAGED, GATHERED_CELL = 2.0, 6.0, 3.0
# The same, of a weight that is read again, and of a vector of sums that is; and the part of all products that a smaller tile must
# spare.
WEIGHT, SUMMED, SPARED = 0.5, 5.0, 0.01
# Vectors of a row from which a tile's rows are computed one by one; what a call of the micro-kernel, for all its filters, and a
# vector that is stored afterwards, cost over a vector of products. Fitted to 2,900 layers of 1 to 64 channels on a Zen 4, float32,
# float64 and AVX2 code: the choice takes 1.01 to 1.02 of the better time, and 3x3 from 1 to 64 channels on 256x256 0.5 of that of
# all rows as one. Less than 3 % is no gain.
ROW, CALLED, MOVED = 5, 80.0, 3.0


def outer(
    sweep: Sweep, itemsize: int, limits: Limits, machine: Machine, groups: int, batch: int, row: int, in_place: bool
) -> Schedule:
    """Micro-kernel: equal blocks of filters, and as many vectors as leave registers for a vector of input each and for one weight.

    The weights of two filters lie `row` bytes apart, or are packed, where that is 0.
    An axis is staged densely where the cells wasted between its rows cost more than the copies. All filters share a staged
    tile, as far as their sums fit and a job remains for each thread; the sweep is done for each of `groups` groups of `batch`
    images.
    """
    lanes = machine.vector // itemsize
    if machine.straight and min(sweep.channels, sweep.filters) <= THIN:
        limits = limits._replace(sums=limits.sums * LARGER)
    sliding = in_place and sweep.shifts[2] > 0
    gathered = limits.near > 0 and not sliding and gathers(sweep, machine, itemsize, in_place)
    single = (
        gathered and in_place and machine.registers >= FEW and sweep.filters <= SINGLE and math.prod(sweep.out) * itemsize <= SHORT
    )
    gathered = gathered and not single
    whole = gathered and machine.registers >= FEW
    most = most_filters(machine, 1 if single else ALIGNED if whole else 2)
    if machine.straight and row > 0 and row % ALIASED == 0:
        most = min(most, WAYS)
    register = even(sweep.filters, most)
    vectors = min(8, (machine.registers - 1 - machine.masks) // (register + 1))
    k, out = sweep.kernel, sweep.out
    wide = copies_fit(sweep, itemsize, limits)
    wide = wide and sweep.shifts[2] / max(1, min(out[2], limits.sums)) > STAGING / (sweep.filters * k[0] * k[1])
    high = wide and sweep.folded and sweep.shifts[1] / max(1, out[1]) > STAGING / (sweep.filters * k[0])
    dense = (False, high, wide and not in_place)
    if in_place:
        # blocks of filters pass over the tile one after another, so all channels of it belong in second-level cache; but where
        # there is one block, rows are read once, and long ones best
        block = vectors * lanes
        room = min(limits.sums, limits.staged // (sweep.channels * itemsize)) // block * block
        if sliding:
            room = min(room, SLIDING // block * block)
        elif sweep.filters <= register:
            room = STREAMED
        tile = 1, 1, min(out[2], max(block, room))
    else:
        # channels enough for a call to add many terms to the sums that it loads and stores
        copies = math.prod(k[a] if dense[a] else 1 for a in range(3))
        wanted = min(sweep.channels, -(-TERMS // math.prod(k)))
        room = limits.staged // (wanted * copies * itemsize)
        limits = limits._replace(sums=max(min(limits.sums, room), min(limits.sums, 4 * vectors * lanes)))
        tile = tile_within(sweep, limits, dense)
    together = vectors * lanes

    def tiled(tile: Triple) -> Schedule:
        window = -(-math.prod(tile) // together) * together if whole else together if gathered else 0
        found = Schedule(tile, register, 1, 1, dense, 1, register, vectors, lanes, row == 0, in_place, window=window, lined=True)
        found = dataclasses.replace(found, by_rows=not (in_place or window or sweep.apart) and rows_pay(sweep, found))
        most = max(register, limits.held // (sum_cells(sweep, found) * itemsize) * register)
        return dataclasses.replace(found, filters=register * even(-(-sweep.filters // register), most // register))

    def smaller() -> Iterator[Schedule]:
        """The same with parts of the tile, and with all of it in tiles as equal as can be."""
        cells = [math.prod(tile) / part for part in PARTS]
        if in_place:
            rows = (-(-even(out[2], max(together, int(room))) // together) * together for room in cells)
            return map(tiled, dict.fromkeys((1, 1, min(out[2], row)) for row in rows))
        return map(tiled, dict.fromkeys(tile_within(sweep, limits._replace(sums=math.ceil(room)), dense) for room in cells))

    schedule = tiled(tile)
    if not (in_place or gathered or sweep.apart) and schedule.filters < sweep.filters:
        moved = functools.partial(_moved, sweep, itemsize=itemsize, limits=limits)
        small = min(smaller(), key=moved)
        products = math.prod(out) * math.prod(k) * sweep.filters / lanes
        schedule = small if moved(schedule) - moved(small) > SPARED * products else schedule
    if machine.threads > 1:
        schedule = shared(sweep, schedule, smaller(), machine.threads, groups * batch)
    places = max(1, batch * groups * math.prod(-(-size // tile) for size, tile in zip(out, schedule.tile, strict=True)))
    channels = sweep.channels if in_place else with_channels(sweep, schedule, itemsize, limits).channels
    if machine.registers < FEW and in_place and sweep.filters <= register:
        channels = even(sweep.channels, STREAMS)
    elif gathered:
        room = (limits.staged if whole else limits.near) // (math.prod(k) * schedule.window * itemsize)
        channels = min(channels, even(sweep.channels, max(1, room)))
    schedule = dataclasses.replace(schedule, channels=channels)
    if in_place:
        return schedule
    staged = staged_cells(sweep, schedule) * -(-sweep.channels // channels) * itemsize
    once = schedule.filters < sweep.filters and channels < sweep.channels and staged <= ONCE
    limits = limits._replace(jobs=max(limits.jobs, 2 * machine.threads))
    return bundled(sweep, dataclasses.replace(schedule, once=once), itemsize, limits, groups, places)


def _moved(sweep: Sweep, schedule: Schedule, itemsize: int, limits: Limits) -> float:
    """Products of a channel that take as long as staging cells for each block of filters, reading weights for each tile, and sums.

    Fitted to 1,267 schedules of 189 strided layers of 160 and more filters on a Zen 4, in float32 and float64, to within 2 % of
    their times (root mean square).
    """
    schedule = with_channels(sweep, schedule, itemsize, limits)
    tiles = math.prod(-(-out // tile) for out, tile in zip(sweep.out, schedule.tile, strict=True))
    staged = staged_cells(sweep, schedule) / schedule.channels * -(-sweep.filters // schedule.filters) / schedule.lanes
    sums = sweep.filters * math.prod(schedule.tile) / schedule.lanes * -(-sweep.channels // schedule.channels) / sweep.channels
    return tiles * (STAGED * staged + WEIGHT * sweep.filters * math.prod(sweep.kernel) + SUMMED * sums)


def rows_pay(sweep: Sweep, schedule: Schedule) -> bool:
    """Whether to compute the rows of a tile one by one, where they belong, takes less time than as one, to be stored; see `ROW`."""
    lanes, vectors = schedule.lanes, schedule.vectors
    row, rows = schedule.tile[2], schedule.tile[0] * schedule.tile[1]
    if rows == 1 or row < ROW * lanes:
        return False
    _, h, w = sweep.extents(schedule)
    alone, merged = -(-row // lanes), -(-(((schedule.tile[0] - 1) * h + schedule.tile[1] - 1) * w + row) // lanes)
    products, call = sweep.channels * math.prod(sweep.kernel), CALLED / schedule.register
    one_by_one = products * rows * alone + call * rows * -(-alone // vectors)
    return 1.03 * one_by_one < products * merged + call * -(-merged // vectors) + MOVED * rows * row / lanes


def shared(sweep: Sweep, schedule: Schedule, others: Iterable[Schedule], threads: int, images: int) -> Schedule:
    """The schedule, or one of the same or another tile and fewer filters that shortens the longest turn of a thread.

    Three blocks of 1x1 from 320 to 1280 channels on 7x7 take two threads 1.33 times as long as four.
    """
    taps = math.prod(sweep.kernel)

    def turn_of(found: Schedule) -> Turn:
        vectors = np.tile(-(-tile_cells(sweep.out, found.tile) // found.lanes), images)
        more = math.prod((t + shift) / t for t, shift in zip(found.tile, sweep.shifts, strict=True))
        staged = READ if found.in_place else STAGED * more
        gathered = GATHERED_CELL * taps if found.window else 0.0
        jobs = np.outer(vectors * taps, block_sizes(sweep.filters, found.filters, found.register))
        return turn(threads, jobs, vectors * (staged + gathered))

    def offers() -> Iterator[Schedule]:
        for found in others:
            for filters in block_choices(sweep.filters, found.filters, found.register):
                yield dataclasses.replace(found, filters=filters)

    return shortest(schedule, offers(), turn_of)


def most_filters(machine: Machine, vectors: int) -> int:
    """Filters of a call whose sums leave registers for `vectors` vectors of input each and for one weight."""
    return (machine.registers - 1 - vectors) // vectors


def gathers(sweep: Sweep, machine: Machine, itemsize: int, in_place: bool) -> bool:
    """Whether cells are first copied into the order of the calls, for several blocks of filters.

    With registers enough that is done for a whole tile, of one tap or of few outputs: more taps are as many copies, which leave
    room for few channels. Else it is done for the positions of one call, which are so few that it reads little more than a line of
    each of many terms.
    """
    blocks = -(-sweep.filters // most_filters(machine, 2))
    if machine.registers >= FEW and math.prod(sweep.kernel) == 1:
        lines = runs_on_lines(sweep, machine, math.prod(sweep.out) * itemsize)
        read = sweep.channels * itemsize * min(blocks, SEVERAL)
        if in_place and lines and read <= (4 * STRAIGHT if blocks <= FEWER else STRAIGHT):
            return False
        if not machine.straight:
            return blocks > (1 if sweep.channels >= PAGES else 4)
    if machine.straight:
        return in_place and blocks >= MANY
    few = machine.registers < FEW or (math.prod(sweep.out) <= GATHERED[0] and math.prod(sweep.kernel) <= GATHERED[1])
    return few and blocks > 4 and sweep.channels >= (16 if in_place else 32)


def runs_on_lines(sweep: Sweep, machine: Machine, plane: int) -> bool:
    """Whether channels, `plane` bytes apart, all lie alike on lines of cache, without driving one another out."""
    alike = machine.vector == LINE and plane % LINE == 0
    return alike and sweep.channels * math.gcd(plane, WAY) <= max(machine.cache, WAY)


def copies_fit(sweep: Sweep, itemsize: int, limits: Limits) -> bool:
    """Whether one channel's copies of a tile for the taps of dense axes stay within `limits.staged`."""
    cells = min(math.prod(sweep.out), limits.sums)
    copies = sweep.kernel[2] * (sweep.kernel[1] if sweep.folded else 1)
    return cells * copies * itemsize <= limits.staged
