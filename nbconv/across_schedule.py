"""Schedules for small planes of one filter each, and for dW of small groups, whose vectors lie across planes."""

import functools
import math
from typing import NamedTuple

from .grad_schedule import product, splits_of
from .kernels.cpu.machine import Machine
from .phases import triple
from .problem import ConvProblem
from .schedule import Limits, Schedule, Sweep
from .sums import Piece, pieces, sums_of
from .turns import even

# Multiplications that a micro-kernel unrolls, and those of all micro-kernels of a row, which are different ones; pairs of rows of
# taps and of cells, which a table holds; outputs of a row that are summed at once.
CODE, ROW, TABLED, WIDEST = 256, 1024, 10_000, 16
# Taps from which other algorithms may cost less.
MANY = 49
# Nanoseconds on a Granite Rapids: of a vector of a row of results by the kernel along rows, and of each of its taps; of a vector of
# cells that is transposed, and of a product. With these the kernel across planes is taken where it takes 0.12 (9x9 on 7x7) to 0.9
# of the time; on 14x14 3x3 would take 1.6 times as long, 5x5 1.1.
ALONG, TAP, CELL, PRODUCT = 2.0, 0.35, 4.5, 0.19
# Bytes of a thread's scratch, and of a weight gradient's: its sums and what is transposed stay within MOST each, but one plane's or
# one row's, and one filter's sums, may be more.
MOST, GRAD_MOST = 256 * 1024, 1 << 20
# Bytes of transposed planes for which images share a call in dW. More are no faster in cache, and where memory holds them what is
# fetched is not spread over the work: 960 of 7x7, 3x3, batch 128 take 2.0 times as long by 32 images, 5x5 1.6.
FEW_BYTES = 8 * 1024
# Of a weight gradient, operations from which a layer is worth code of its own, of some 40 ms a micro-kernel; pairs of taps and
# outputs of a row, and entries of tables, up to which plans are made in some 100 ms. Nanoseconds, fitted to 500 layers drawn at
# random on a Zen 4, in AVX-512 and AVX2 code alike: of a product over those of `grad_schedule`, of what it waits where sums are too
# few to hide its latency; of a byte that is transposed, and that is added to the sums of a group; of a piece of a row for a row of
# taps; of a call. By them the choice takes 1.02 of the time of the better kernel, of which without this one it took 1.77.
LEAST, LONGEST, LISTED = 200_000, 50_000, 100_000
GRAD_PRODUCT, WAITING, LATENCY, TRANSPOSED, ADDED, PIECE, CALL = 1.12, 0.18, 8, 0.034, 0.006, 0.5, 2_000.0


def across(sweep: Sweep, problem: ConvProblem, direction: str, itemsize: int, machine: Machine) -> Schedule:
    """Micro-kernel over rows, or parts of them whose sums fit registers and whose products are not too much code."""
    pairs = sums_of(direction, problem, 2)
    most = min(WIDEST, machine.registers - 3, max(1, CODE * len(pairs) // max(1, sum(map(len, pairs)))))
    taps = sweep.kernel if math.prod(sweep.kernel) <= MANY else triple((1, 1, problem.kernel[2]))
    return Schedule((1, 1, even(len(pairs), most)), 1, 1, register=1, lanes=machine.vector // itemsize, taps=taps)


def scratch_cells(problem: ConvProblem, lanes: int) -> int:
    """Cells of a thread's scratch: vectors of a plane of x and of out, of the taps and of the bias."""
    return (math.prod(problem.size) + math.prod(problem.out) + math.prod(problem.kernel) + 1) * lanes


def pays(sweep: Sweep, problem: ConvProblem, direction: str, itemsize: int, machine: Machine) -> bool:
    """Whether vectors across planes beat vectors along rows, which short rows leave empty, with taps that reach over borders."""
    lanes = machine.vector // itemsize
    deep, high, wide = (k * max(pair) for k, *pair in zip(problem.kernel, problem.size, problem.out, strict=True))
    if scratch_cells(problem, lanes) * itemsize > MOST or wide > ROW or problem.kernel[2] > CODE or deep * high > TABLED:
        return False
    products = math.prod(sum(map(len, sums_of(direction, problem, axis))) for axis in range(3))
    phases = math.prod(problem.stride) if direction == "input_grad" else 1
    vectors = phases * math.prod(sweep.out[:2]) * -(-sweep.out[2] // lanes)
    blocks = -(-problem.groups // lanes)
    along = problem.groups * vectors * (ALONG + TAP * math.prod(sweep.kernel))
    return blocks * (CELL * scratch_cells(problem, 1) + PRODUCT * products) < along


class Band(NamedTuple):
    """A run of outputs of a plane, and the run of cells that they read: the first of each, and how many."""

    dy_first: int
    dy_cells: int
    x_first: int
    x_cells: int


def bands(problem: ConvProblem, outputs: int) -> list[Band]:
    """A plane in bands of so many outputs, whole rows or parts of its only one."""
    p = problem
    if outputs >= math.prod(p.out):
        return [Band(0, math.prod(p.out), 0, math.prod(p.size))]
    axis = 1 if p.out[1] > 1 else 2
    row, line = math.prod(p.out[axis + 1 :]), math.prod(p.size[axis + 1 :])
    found = []
    for first in range(0, p.out[axis], outputs // row):
        reading = sums_of("forward", p, axis)[first : first + outputs // row]
        read = [cell for pairs in reading for _, cell in pairs]
        begin, end = (min(read), max(read) + 1) if read else (0, 0)
        found.append(Band(first * row, len(reading) * row, begin * line, (end - begin) * line))
    return found


@functools.lru_cache(maxsize=16)
def pieces_of(problem: ConvProblem, schedule: Schedule) -> list[tuple[int, list[Piece]]]:
    """The taps of a row in parts whose sums registers hold: the first tap of each part, and its pieces of rows."""
    assert schedule.taps is not None
    wide, columns = sums_of("weight_grad", problem, 2), schedule.taps[2]
    firsts = range(0, len(wide), columns)
    return [(first, pieces(wide[first : first + columns], problem.out[2], schedule.tile[2])) for first in firsts]


def kinds_of(problem: ConvProblem, schedule: Schedule) -> int:
    """Kinds of pieces of rows, at the most, of a part of the taps."""
    return max(len(found) for _, found in pieces_of(problem, schedule))


def grad_cells(problem: ConvProblem, schedule: Schedule) -> int:
    """Cells of a thread's scratch for `across_grad`."""
    found, channels = bands(problem, schedule.window), schedule.channels
    sums = (schedule.filters + kinds_of(problem, schedule)) * channels * math.prod(problem.kernel)
    cells = channels * max(band.x_cells for band in found) + schedule.filters * max(band.dy_cells for band in found)
    return (sums + 1 + schedule.tile[0] * cells) * schedule.lanes


def across_grad(problem: ConvProblem, itemsize: int, limits: Limits, machine: Machine) -> Schedule:
    """Micro-kernel of dW over pieces of rows, for so many taps of a row and channels of a group as registers hold the sums of.

    Filters, and bands of outputs, which `window` counts, are as many as scratch holds, images as many as leave a call little, and
    all leave jobs enough; pieces of rows, of equal length, are as long as code allows.
    """
    p, lanes = problem, machine.vector // itemsize
    channels = p.channels // p.groups
    columns = even(p.kernel[2], machine.registers - 3)
    together = max(n for n in range(1, channels + 1) if channels % n == 0 and (n == 1 or n * columns <= machine.registers - 3))
    length = even(p.out[2], max(1, CODE // (columns * together)))
    filters = even(p.filters // p.groups, max(1, MOST // (channels * math.prod(p.kernel) * machine.vector)))
    jobs = -(-p.groups // lanes) * -(-p.filters // p.groups // filters)
    whole = (channels * math.prod(p.size) + filters * math.prod(p.out)) * machine.vector
    wanted = splits_of(jobs, p.batch * math.prod(p.out), math.prod(p.weight_shape), limits)
    images = even(p.batch, min(max(1, FEW_BYTES // whole), max(1, p.batch // wanted)))
    parts, window = -(-whole // MOST), math.prod(p.out)
    if parts > 1 and p.size[0] == p.out[0] == 1 < p.out[1]:
        window = even(p.out[1], -(-p.out[1] // parts)) * p.out[2]
    elif parts > 1 and p.size[:2] == p.out[:2] == (1, 1):
        window = -(-p.out[2] // parts // length) * length
    places = -(-p.batch // images) * -(-math.prod(p.out) // window)
    return Schedule(
        (images, 1, length), filters, channels, max(1, min(places, wanted)), register=together, lanes=lanes,
        taps=triple((1, 1, columns)), window=window,
    )  # fmt: skip


def grad_fits(problem: ConvProblem, schedule: Schedule, itemsize: int) -> bool:
    """Whether there is enough to compute, tables are short, code is little, and scratch is small."""
    p = problem
    deep, high, long = (k * max(pair) for k, *pair in zip(p.kernel, p.size, p.out, strict=True))
    if p.flops < LEAST or deep * high > TABLED or long > LONGEST:
        return False
    found = pieces_of(p, schedule)
    code = sum(sum(map(len, piece.pairs)) for _, some in found for piece in some) * schedule.register
    rows = math.prod(k * o for k, o in zip(p.kernel[:2], p.out[:2], strict=True)) * sum(len(some) for _, some in found)
    return code <= ROW and rows <= TABLED and _met(p, schedule) <= LISTED and grad_cells(p, schedule) * itemsize <= GRAD_MOST


def _met(problem: ConvProblem, schedule: Schedule) -> int:
    """Pieces of rows, for each row of taps that reads one: the tables' entries."""
    deep, high = (sum(map(len, sums_of("weight_grad", problem, axis))) for axis in range(2))
    return deep * high * sum(len(piece.places) for _, some in pieces_of(problem, schedule) for piece in some)


def grad_time(problem: ConvProblem, schedule: Schedule, machine: Machine) -> float:
    """Nanoseconds of `across_grad`."""
    p, s = problem, schedule
    filters, taps, listed = p.filters // p.groups, math.prod(p.kernel), bands(problem, schedule.window)
    products = math.prod(sum(map(len, sums_of("weight_grad", p, axis))) for axis in range(3))
    assert s.taps is not None
    pairs = p.batch * filters * s.channels
    waiting = max(0.0, 1 - s.register * s.taps[2] / LATENCY) * WAITING * (not machine.halved)
    staged = s.channels * -(-filters // s.filters) * sum(band.x_cells for band in listed) + filters * math.prod(p.out)
    places = -(-p.batch // s.tile[0]) * len(listed)
    added = places * filters * (kinds_of(p, s) + 2) * s.channels * taps
    total = (
        pairs * products * (GRAD_PRODUCT * product(machine) + waiting)
        + machine.vector * (TRANSPOSED * p.batch * staged + ADDED * added)
        + PIECE * (pairs // s.register) * _met(p, s)
    )
    return -(-p.groups // s.lanes) * total + CALL
