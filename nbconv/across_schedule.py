"""Schedules for small planes of one filter each, whose vectors lie across planes."""

import dataclasses
import math

from .kernels.cpu.machine import Machine
from .phases import triple
from .problem import ConvProblem
from .schedule import Limits, Schedule, Sweep, even
from .sums import pieces, sums_of

# Multiplications that a micro-kernel unrolls, and those of all micro-kernels of a row, which are different ones; pairs of rows of
# taps and of cells, which a table holds; outputs of a row that are summed at once.
CODE, ROW, TABLED, WIDEST = 256, 1024, 10_000, 16
# Taps from which other algorithms may cost less.
MANY = 49
# Nanoseconds on a Granite Rapids: of a vector of a row of results by the kernel along rows, and of each of its taps; of a vector of
# cells that is transposed, and of a product. With these the kernel across planes is taken where it takes 0.12 (9x9 on 7x7) to 0.9
# of the time; on 14x14 3x3 would take 1.6 times as long, 5x5 1.1.
ALONG, TAP, CELL, PRODUCT = 2.0, 0.35, 4.5, 0.19
# Bytes of a thread's scratch.
MOST = 256 * 1024


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


def bands(problem: ConvProblem, rows: int) -> list[tuple[int, int, int, int]]:
    """Bands of so many rows of dy of a plane, or all of it: the first of them, their number, and the same of the rows of x they read."""
    p = problem
    if rows >= p.out[1]:
        return [(0, p.out[0] * p.out[1], 0, p.size[0] * p.size[1])]
    found = []
    for first in range(0, p.out[1], rows):
        count = min(rows, p.out[1] - first)
        read = [row for pairs in sums_of("weight_grad", p, 1) for o, row in pairs if first <= o < first + count] or [0]
        found.append((first, count, min(read), max(read) - min(read) + 1))
    return found


def kinds_of(problem: ConvProblem, schedule: Schedule) -> int:
    """Kinds of pieces of rows, at the most, for a weight gradient of some taps of a row."""
    assert schedule.taps is not None
    wide, columns = sums_of("weight_grad", problem, 2), schedule.taps[2]
    parts = range(0, len(wide), columns)
    return max(len(pieces(wide[first : first + columns], problem.out[2], schedule.tile[2])) for first in parts)


def grad_cells(problem: ConvProblem, schedule: Schedule) -> int:
    """Cells of a thread's scratch for `across_grad`."""
    p, (images, rows, _) = problem, schedule.tile
    found = bands(p, rows)
    x, dy = max(band[3] for band in found) * p.size[2], max(band[1] for band in found) * p.out[2]
    channels, filters = p.channels // p.groups, p.filters // p.groups
    sums = (filters + kinds_of(p, schedule)) * channels * math.prod(p.kernel)
    return (sums + 1 + images * (channels * x + filters * dy)) * schedule.lanes


def across_grad(problem: ConvProblem, itemsize: int, limits: Limits, machine: Machine) -> Schedule:
    """Micro-kernel of dW over pieces of rows, for so many taps of a row, and channels of a group, as leave registers for their sums.

    Images, or bands of rows, are as many as scratch holds; pieces of rows as long as code allows, of equal length.
    """
    p, lanes = problem, machine.vector // itemsize
    channels, filters = p.channels // p.groups, p.filters // p.groups
    columns = even(p.kernel[2], machine.registers - 3)
    together = max(n for n in range(1, channels + 1) if channels % n == 0 and (n == 1 or n * columns <= machine.registers - 3))
    length = even(p.out[2], max(1, CODE // (columns * together)))
    whole = (channels * math.prod(p.size) + filters * math.prod(p.out)) * machine.vector
    images = even(p.batch, max(1, MOST // whole))
    flat = p.size[0] == p.out[0] == 1
    rows = even(p.out[1], -(-p.out[1] // -(-whole // MOST))) if whole > MOST and flat else p.out[1]
    schedule = Schedule(
        (images, rows, length), filters, channels, register=together, lanes=lanes, taps=triple((1, 1, columns))
    )
    places, blocks = -(-p.batch // images) * -(-p.out[1] // rows), -(-p.groups // lanes)
    return dataclasses.replace(schedule, splits=max(1, min(places, -(-limits.jobs // blocks))))
