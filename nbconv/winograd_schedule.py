"""Schedules of Winograd's algorithm: which tiles of outputs, how many of them in a block, and what that costs."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .arrays import Array
from .grad_schedule import shared, with_splits
from .kernels.cpu.machine import LINE, Machine
from .phases import triple
from .problem import ConvProblem, Triple
from .schedule import NOWHERE, Limits, Schedule, Sweep, staged_cells, tile_within
from .turns import Turn, block_choices, block_sizes, even, shortest, turn

TILES = Limits(sums=256, staged=3000 * 1024, filters=0, held=256 * 1024, jobs=4, parallel=1_000_000)
GRAD_TILES = Limits(sums=256, staged=1000 * 1024, filters=0, held=1700 * 1024, jobs=4, parallel=1_000_000)

# Tiles of a split of dW from which on splits cost up to 1 % on one thread.
EACH = 350
# Bytes of the sums of all splits, which leave most of the workspace to threads.
SPLIT = 2 << 20
# Products of dW that take as long as transforming a cell, or an output.
TRANSFORMED = 8
# Outputs of a tile by the taps of an axis. More of them need fewer products and lose accuracy: F(6x6, 3x3) has 64 products for 36
# outputs, where F(4x4, 3x3) has 36 for 16, and four times its error.
OUTPUTS = {1: (1,), 2: (3, 5), 3: (2, 4), 5: (2, 4), 7: (2,)}
# Products of a tile, whose transforms a micro-kernel unrolls.
PRODUCTS = 144

# Products that take as long as a vector of transformed cells of a channel, if they are gathered, what one of short rows takes more
# if those have one tile, a vector of transformed weights, and of outputs of a filter.
PREPARED = 8.0, 40.0, 16.0, 10.0, 10.0
# Parts of a block of tiles that threads may share.
PARTS = 1, 2, 3, 4, 6, 8, 12, 16
# Phases of a dilated convolution, each of which is a job, even without outputs.
PHASES = 4096
# Part of a vector that a row of tiles fills, below which rows of tiles are staged side by side for each product: 3x3 layers of 64
# and 128 channels on 14x14 to 32x32 take 0.84 to 0.95 of the time of gathering tiles (25 cycles a vector on a Zen 4), which is left
# for rows of one or two tiles and for dilated layers; 12 tiles of 16 lanes would take 1.01 of that of rows in vectors of their own.
NARROW = 0.65
# Bytes of staged cells that are transformed at once.
FIRST = 96 * 1024
# Bytes of second-level cache from which a block's transformed cells stay in it, that is in 0.7 of it; but blocks of so many tiles
# at the least, since weights are transformed for each. On a Granite Rapids (2 MiB, and a slow third level) 3x3 layers of 64 to 256
# channels take 0.83 to 0.99 of the time of blocks of 3 MB; on a Zen 4, 512 channels on 64x64 take 1.24 of it in half of that. For
# tiles of several phases twice as many: 256 channels on 65x65 with dilation 6 take 0.41 of the time of phases one by one.
ROOMY, LEAST_TILES = 2 << 20, 32
# Channels and filters below which a Zen 5 takes a quarter less tiles in a block: 64 of three taps take 0.97 of the time of half as
# many tiles, with all of them 1.04; 1x7 of 128 channels with all of them 0.92 to 0.95.
BROAD = 96
# Bytes of transformed cells from which those of the next call are fetched while one computes: on the same machine 3x3 layers of 64
# to 512 channels take 0.78 to 0.87 of the time; with fewer cells it would be 1.0 to 1.06.
FAR = 900 * 1024
# Parts of last-level cache from which on, filled by input and results, results are fetched while products are computed, for fewer
# channels than so many, and for more. On a Zen 4 3x3 of 3 channels to 64 filters takes 0.72 to 0.83 of the time with 26 MB of
# results, 16 of 13 MB 0.88, 64 of 6 to 13 MB 0.93 to 0.96; with fewer bytes, of 3 and 16 channels it would take 1.03 to 1.06.
FETCHED, MANY = (1 / 3, 1 / 8), 32


def choices(problem: ConvProblem) -> Iterator[Triple]:
    """Outputs of a tile on each axis that could serve a problem; none where Winograd's algorithm cannot."""
    ones = (1, 1, 1)
    if problem.stride != ones or math.prod(phases(problem)) > PHASES:
        return
    for outputs in itertools.product(*(OUTPUTS.get(k, ()) for k in problem.kernel)):
        products = math.prod(k + m - 1 for k, m in zip(problem.kernel, outputs, strict=True))
        if outputs != ones and products <= PRODUCTS:
            yield triple(outputs)


def phases(problem: ConvProblem) -> Triple:
    """Convolutions without dilation on each axis, of which one with dilation consists."""
    return triple(d if k > 1 else 1 for d, k in zip(problem.dilation, problem.kernel, strict=True))


def of_phase(sweep: Sweep, problem: ConvProblem) -> Sweep:
    """The sweep of the largest of the phases."""
    out = triple(-(-size // d) for size, d in zip(sweep.out, phases(problem), strict=True))
    return sweep._replace(out=out, dilation=(1, 1, 1))


def tile_sweep(sweep: Sweep, outputs: Triple) -> Sweep:
    """A sweep without stride and dilation in tiles of `outputs`: they are its outputs, and the cells that a tile reads its taps."""
    out = triple(-(-size // m) for size, m in zip(sweep.out, outputs, strict=True))
    kernel = triple(k + m - 1 for k, m in zip(sweep.kernel, outputs, strict=True))
    return sweep._replace(out=out, kernel=kernel, stride=outputs)


def merged(sweep: Sweep, problem: ConvProblem, itemsize: int, limits: Limits, machine: Machine) -> Sweep:
    """The tiles of a dilated convolution's phases side by side, where all of an image fit a block.

    Each of `dilation` phases of an axis then has its tile in turn, whose cells lie `dilation` apart. Phases of their own would be
    blocks of few tiles, each of which transforms all weights.
    """
    return merge(sweep, problem, tile_limits(sweep._replace(dilation=phases(problem)), itemsize, limits, machine).sums)


def merge(sweep: Sweep, problem: ConvProblem, most: int) -> Sweep:
    """The sweep of tiles with those of all phases, on as many axes as leave at the most `most`."""
    out, gaps = list(sweep.out), [1, 1, 1]
    for axis, gap in reversed(list(enumerate(phases(problem)))):
        if math.prod(out) * gap <= most:
            out[axis], gaps[axis] = out[axis] * gap, gap
    return sweep._replace(out=triple(out), dilation=triple(gaps))


def separate(sweep: Sweep, problem: ConvProblem) -> Triple:
    """Phases on each axis that are computed one by one."""
    return triple(gap // one for gap, one in zip(phases(problem), sweep.dilation, strict=True))


def tile_limits(sweep: Sweep, itemsize: int, limits: Limits, machine: Machine) -> Limits:
    """The limits with as many tiles in a block as `limits.staged` bytes hold of their transformed cells; see `ROOMY`."""
    tile = math.prod(sweep.kernel) * sweep.channels * itemsize
    room = limits.staged // tile
    if machine.cache >= ROOMY:
        least = LEAST_TILES if sweep.dilation == (1, 1, 1) else 2 * LEAST_TILES
        room = min(room, max(machine.cache * 7 // 10 // tile, least))
    most = limits.sums * 3 // 4 if machine.straight and min(sweep.channels, sweep.filters) < BROAD else limits.sums
    return limits._replace(sums=max(min(most, room), machine.vector // itemsize))


def tiles(sweep: Sweep, itemsize: int, limits: Limits, machine: Machine, problem: ConvProblem) -> Schedule:
    """Winograd's convolution: blocks of many tiles, because the weights are transformed for each block."""
    lanes = machine.vector // itemsize
    register = even(sweep.filters, (machine.registers - 3) // 2)
    tile = _block(sweep, tile_limits(sweep, itemsize, limits, machine))
    dense = narrow(sweep, lanes) and phases(problem) == (1, 1, 1) and sweep.out[2] > 2
    block = -(-sweep.filters // register) * register
    if machine.threads > 1:
        images = math.prod(separate(sweep, problem)) * problem.groups * (1 if sweep.folded else problem.batch)
        tile, block = shared_tiles(sweep, tile, register, lanes, machine.threads, images, dense)
    vectors = 2 if math.prod(tile) > lanes else 1
    wide = -(-register // lanes) * lanes
    channels = even(sweep.channels, max(1, limits.held // (math.prod(sweep.kernel) * wide * itemsize)))
    return Schedule(tile, block, channels, 1, (dense,) * 3, 1, register, vectors, lanes, True, lined=not dense)


def shared_tiles(
    sweep: Sweep, tile: Triple, register: int, lanes: int, threads: int, images: int, dense: bool
) -> tuple[Triple, int]:
    """Tiles of a block, `tile` or fewer, and its filters, by which the longest turn of a thread is shortest."""
    cell, gather, row, weight, output = PREPARED
    cell = cell + row / sweep.out[2] if dense else gather if narrow(sweep, lanes) else cell

    def turn_of(found: tuple[Triple, int]) -> Turn:
        vectors = np.tile(block_vectors(sweep.out, found[0], lanes), images)
        filters = block_sizes(sweep.filters, found[1], register)
        each = vectors * (sweep.channels + output) + weight * sweep.channels / lanes
        return turn(threads, np.outer(each, filters), vectors * sweep.channels * cell)

    parts = PARTS if sweep.dilation == (1, 1, 1) else (1,)  # tiles of several phases stay side by side
    tiles = dict.fromkeys(_block(sweep, TILES._replace(sums=-(-math.prod(tile) // part))) for part in parts)
    whole = -(-sweep.filters // register) * register
    others: Iterator[tuple[Triple, int]] = itertools.product(tiles, block_choices(sweep.filters, whole, register))
    return shortest((tile, whole), others, turn_of)


def results_fetched(sweep: Sweep, problem: ConvProblem, itemsize: int, machine: Machine) -> bool:
    """Whether results are fetched before they are stored; see `FETCHED`. Those of dilated layers lie between others."""
    least = FETCHED[sweep.channels >= MANY] * machine.last
    return phases(problem) == (1, 1, 1) and 0 < least <= problem.cells * itemsize


def _block(sweep: Sweep, limits: Limits) -> Triple:
    """Tiles of a block, `limits.sums` at the most; there is nothing between their rows once they are transformed."""
    return tile_within(sweep._replace(kernel=sweep.stride, dilation=(1, 1, 1)), limits, NOWHERE)


def block_vectors(out: Triple, tile: Triple, lanes: int) -> Array:
    """Vectors of products of each block of `tile` of an image of `out` tiles, which lie in it as in a whole one."""
    d, h, w = (np.minimum(t, size - np.arange(0, max(size, 1), t)) for size, t in zip(out, tile, strict=True))
    length = np.add.outer((d - 1) * tile[1] * tile[2], np.add.outer((h - 1) * tile[2], w))
    vectors: Array = -(-np.maximum(length.reshape(-1), 0) // lanes)
    return vectors


def narrow(sweep: Sweep, lanes: int) -> bool:
    """Whether rows of tiles are too short for vectors of neighbouring ones, or tiles of several phases lie side by side."""
    return sweep.out[2] < NARROW * lanes or sweep.dilation != (1, 1, 1)


def gathered(sweep: Sweep, schedule: Schedule) -> bool:
    """Whether tiles are gathered from rows that are staged as they are."""
    return narrow(sweep, schedule.lanes) and not all(schedule.dense)


def ordered_by_vectors(sweep: Sweep, lanes: int) -> bool:
    """Whether vectors put outputs of several phases in order: where runs of a phase are parts of them, or whole ones."""
    run = sweep.dilation[2]
    return sweep.dilation != (1, 1, 1) and (lanes % run == 0 or run % lanes == 0)


def tile_slots(sweep: Sweep, schedule: Schedule) -> Triple:
    """Staged rows of each axis: one for each cell of a tile but those that it shares with the next; all in one if gathered."""
    return (1, 1, 1) if gathered(sweep, schedule) else sweep.slots(schedule)


def tile_extents(sweep: Sweep, schedule: Schedule) -> Triple:
    """Cells of a staged row on each axis."""
    if not gathered(sweep, schedule):
        return sweep.extents(schedule)
    parts = zip(schedule.tile, sweep.stride, sweep.kernel, sweep.dilation, strict=True)
    return triple(((t // gap - 1) * m + k) * gap for t, m, k, gap in parts)


def tile_regions(sweep: Sweep, schedule: Schedule, itemsize: int) -> tuple[dict[str, int], int]:
    """Parts of a thread's scratch, by the names of `kernels.cpu.winograd.Regions`, and their cells altogether."""
    s, lanes = schedule, schedule.lanes
    products, taps = math.prod(sweep.kernel), math.prod(k - m + 1 for k, m in zip(sweep.kernel, sweep.stride, strict=True))
    wide = -(-s.register // lanes) * lanes
    # rows that do not lie side by side are transformed in whole vectors, the last one too
    longest = math.prod(s.tile) + (0 if narrow(sweep, lanes) else -s.tile[2] % lanes)
    pitch = -(-longest // lanes) * lanes
    planes = sweep.channels * pitch, s.channels * wide, s.register * pitch
    cell_plane, weight_plane, sum_plane = (odd_lines(cells, itemsize) for cells in planes)
    plane = math.prod(tile_extents(sweep, s)) * math.prod(tile_slots(sweep, s))
    together = even(sweep.channels, max(1, FIRST // (plane * itemsize)))
    weights = products * cell_plane
    sums = weights + products * weight_plane
    outputs = sums + products * sum_plane
    ordered = outputs + math.prod(sweep.stride) * pitch
    spilled = sweep.stride[2] * max(sweep.dilation[2], lanes)  # by vectors that put outputs in order
    staged = ordered + (math.prod(sweep.stride) * pitch + spilled if sweep.dilation != (1, 1, 1) else 0)
    total = staged + max(together * plane + lanes, s.channels * taps * wide)
    sizes = {
        "products": products, "taps": taps, "together": together, "wide": wide, "pitch": pitch, "cell_plane": cell_plane,
        "weight_plane": weight_plane, "sum_plane": sum_plane, "weights": weights, "sums": sums, "outputs": outputs,
        "ordered": ordered, "staged": staged,
    }  # fmt: skip
    return sizes, total


class GradBlocks(NamedTuple):
    """Filters and channels of a block of dW, and of one call; vectors of a call, and tiles whose cells are held transformed."""

    filters: int
    channels: int
    register: int
    vectors: int
    room: int


def grad_blocks(sweep: Sweep, outputs: Triple, itemsize: int, limits: Limits, machine: Machine) -> GradBlocks:
    """Blocks whose sums of all products stay within `limits.held` bytes: the larger, the rarer cells and dy are transformed.

    Transformed cells and dy stay within `limits.staged` bytes.
    """
    lanes = machine.vector // itemsize
    products = math.prod(k + m - 1 for k, m in zip(sweep.kernel, outputs, strict=True))
    vectors = min(2, -(-sweep.filters // lanes))
    register = even(sweep.channels, min(14, (machine.registers - 1 - vectors) // vectors))
    most = max(1, math.isqrt(limits.held // (products * itemsize)))
    filters = vectors * lanes * even(-(-sweep.filters // (vectors * lanes)), max(1, most // (vectors * lanes)))
    channels = register * even(-(-sweep.channels // register), max(1, most // register))
    room = max(1, limits.staged // (products * (filters + channels) * itemsize))
    return GradBlocks(filters, channels, register, vectors, room)


def merged_grad(sweep: Sweep, problem: ConvProblem, outputs: Triple, room: int) -> Sweep:
    """The sweep of dW with the outputs of all phases of an axis, where the tiles of an image hold about `room` of them or fewer.

    Phases of their own are rows of few cells, which take long to stage.
    """
    tiles = merge(tile_sweep(sweep, outputs), problem, room * 3 // 2)
    out = (o if gap > 1 else one for o, one, gap in zip(problem.out, sweep.out, tiles.dilation, strict=True))
    return sweep._replace(out=triple(out), dilation=tiles.dilation)


def grad_tiles(sweep: Sweep, outputs: Triple, itemsize: int, limits: Limits, machine: Machine, groups: int, batch: int) -> Schedule:
    """dW by Winograd's algorithm, in blocks of whole tiles of `outputs`."""
    filters, channels, register, vectors, room = grad_blocks(sweep, outputs, itemsize, limits, machine)
    phases = (-(-out // gap) for out, gap in zip(sweep.out, sweep.dilation, strict=True))
    tiles = triple(-(-out // m) * gap for out, m, gap in zip(phases, outputs, sweep.dilation, strict=True))
    whole = math.prod(tiles[1:] if sweep.folded else tiles) if sweep.dilation != (1, 1, 1) else 0
    tile = _block(sweep._replace(out=tiles, stride=(1, 1, 1)), limits._replace(sums=max(min(room, limits.sums), whole)))
    few = math.prod(tile)
    tile = triple(t * m for t, m in zip(tile, outputs, strict=True))
    lanes = machine.vector // itemsize
    schedule = Schedule(tile, filters, channels, 1, NOWHERE, 1, register, vectors, lanes)
    schedule = with_splits(sweep, schedule, limits, groups, batch, EACH * math.prod(outputs))
    weights = groups * sweep.filters * sweep.channels * math.prod(sweep.kernel) * itemsize
    most = max(1, SPLIT // max(1, weights))
    schedule = dataclasses.replace(schedule, splits=min(schedule.splits, 1 << most.bit_length() - 1))
    ones = sweep._replace(kernel=(1, 1, 1))  # each product of a tile is that of one tap
    schedule = shared(ones, schedule, machine, groups, (vectors * lanes, register), (TRANSFORMED, TRANSFORMED))
    products = math.prod(k + m - 1 for k, m in zip(sweep.kernel, outputs, strict=True))
    room = max(1, limits.staged // (products * (schedule.filters + schedule.channels) * itemsize))
    places = batch * math.prod(-(-out // size) for out, size in zip(sweep.out, tile, strict=True))
    return dataclasses.replace(schedule, together=max(1, min(room // few, -(-places // schedule.splits))))


def grad_regions(sweep: Sweep, schedule: Schedule, outputs: Triple, itemsize: int) -> tuple[dict[str, int], int]:
    """Parts of a thread's scratch, by the names of `kernels.cpu.winograd_grad.Regions`, and their cells altogether."""
    s, lanes = schedule, schedule.lanes
    products = math.prod(k + m - 1 for k, m in zip(sweep.kernel, outputs, strict=True))
    tiles = s.together * math.prod(t // m for t, m in zip(s.tile, outputs, strict=True))
    row = -(-s.channels // lanes) * lanes
    padded = -(-s.filters // lanes) * lanes
    plane = max(staged_cells(sweep, s) // s.channels, math.prod(s.tile))
    cell_plane, dy_plane, sum_plane = (odd_lines(cells, itemsize) for cells in (tiles * row, tiles * padded, padded * s.channels))
    cells = products * sum_plane
    dy = cells + products * cell_plane
    staged = max(dy + products * dy_plane, cells + padded * s.channels * math.prod(sweep.kernel))
    spare = staged + plane * lanes + lanes
    sizes = {
        "products": products, "together": s.together, "room": tiles, "row": row, "cell_plane": cell_plane, "dy_plane": dy_plane,
        "sum_plane": sum_plane, "cells": cells, "dy": dy, "staged": staged, "spare": spare,
    }  # fmt: skip
    return sizes, spare + plane * lanes + lanes


def odd_lines(cells: int, itemsize: int) -> int:
    """Cells rounded up to an odd number of cache lines: targets an even number apart would fall on few sets of a cache."""
    line = LINE // itemsize
    lines = -(-cells // line)
    return (lines + 1 - lines % 2) * line
