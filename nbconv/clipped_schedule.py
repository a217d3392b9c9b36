"""Schedules for small images of many filters, whose vectors lie across filters and whose taps end where the image does."""

import dataclasses
import math
from typing import NamedTuple

from . import grad_schedule
from .kernels.cpu.machine import Machine
from .problem import ConvProblem, Triple
from .schedule import FEW, Schedule, Sweep, sum_cells
from .sums import code, sums_of
from .turns import even

# Products that a micro-kernel unrolls, and those of all micro-kernels of a row, which are different ones; pairs of rows of taps and
# of cells, which a table holds.
CODE, ROW, TABLED = 320, 1024, 20_000
# Sums of one vector of filters, where registers are few and the compiler loads cells far ahead of their products.
ALONE = 8
# Operations from which a layer is worth code of its own, of some 40 ms a micro-kernel: below, a call takes some 20 us.
LEAST = 1_000_000
# Rows of all jobs that threads may share at the least, however many there are: the choice does not depend on them.
SHARED = 4
# Bytes of a thread's results; of second-level cache where the machine's is not known.
MOST, UNKNOWN = 256 * 1024, 256 * 1024


class Across(NamedTuple):
    """Nanoseconds of vectors across filters.

    product, waiting : of a product, and what it waits where sums are too few to hide its latency
    row : of a row of results in each channel
    packing, heavy : of a vector of weights that is packed, within second-level cache, beyond it, or beyond so many times as much
    result : of storing one of results
    reading : of one of weights that is read, and where a block of them exceeds half of that cache
    call : of a call
    """

    product: float
    waiting: float
    row: float
    packing: tuple[float, float, float]
    heavy: int
    result: float
    reading: tuple[float, float]
    call: float = 0.0


class Along(NamedTuple):
    """Nanoseconds of vectors along rows.

    product, alone : of a product, and over the square of the filters of a call
    cell : of a staged vector
    result, at_once : of a vector of sums, and the part of that where it is stored as it is computed
    weight, apart : of a vector of packed weights, and of those that are not
    call : of a call
    phased : what phases of dI, stored together, take over others
    """

    product: float
    alone: float
    cell: float
    result: float
    at_once: float
    weight: float
    apart: float
    call: float
    phased: float


# Fitted to 404 layers drawn at random on a Granite Rapids, to 210 on a Zen 4: what the model chooses takes 1.01 of the time of the
# better one of the two, on both. On a Zen 5 see cost.py.
ACROSS = {
    "": Across(0.174, 0.24, 1.6, (5.5, 8.1, 21.0), 16, 5.2, (0.0, 1.3)),
    "znver4": Across(0.261, 0.24, 1.6, (2.75, 4.05, 10.5), 16, 5.2, (0.3, 1.3)),
    "znver5": Across(0.14, 0.337, 0.39, (2.0, 2.9, 7.0), 8, 2.53, (0.0, 0.25), 9_400.0),
}
ALONG = {
    "": Along(0.174, 0.0, 2.7, 3.0, 0.6, 6.1, 0.0, 14_000.0, 1.25),
    "znver4": Along(0.287, 0.0, 2.7, 3.0, 0.6, 6.1, 0.0, 14_000.0, 1.25),
    "znver5": Along(0.138, 0.23, 1.25, 0.89, 0.74, 6.4, 1.2, 8_100.0, 1.33),
}
# Sums that hide a product's latency.
LATENCY = 8
# Nanoseconds of a unit of the cost model, by which other algorithms are chosen, for three taps on an axis; by how much it grows for
# few filters and falls with taps. Of 420 layers the choice takes 1.03 of the best time, which is 0.76 of that without this kernel.
UNIT, NARROW, TAPS = 0.22, 3.6, 0.26


def results_of(problem: ConvProblem, direction: str) -> Triple:
    """Cells of an image of the result."""
    return problem.size if direction == "input_grad" else problem.out


def clipped(sweep: Sweep, problem: ConvProblem, direction: str, itemsize: int, machine: Machine) -> Schedule:
    """Micro-kernel over a row, part of one or rows of some images, whose sums fit registers; `tile` is images, rows, columns.

    Two vectors of filters share what is loaded, where they are not half empty and their weights stay in second-level cache.
    """
    lanes, pairs = machine.vector // itemsize, sums_of(direction, problem, 2)
    light = 4 * sweep.channels * math.prod(problem.kernel) * machine.vector <= (machine.cache or UNKNOWN)
    vectors = 2 - -(-sweep.filters // lanes) % 2 if light else 1
    block = vectors * lanes
    most = (machine.registers - 1) // vectors - 1 if vectors > 1 or machine.registers >= FEW else ALONE
    room = CODE * len(pairs) // max(1, vectors * sum(map(len, pairs)))
    columns = even(len(pairs), min(most, max(1, room)))
    images = even(problem.batch, min(most, room) // columns) if columns == len(pairs) else 1
    rows = math.prod(results_of(problem, direction)[:2])
    jobs = problem.groups * -(-sweep.filters // block) * -(-problem.batch // images)
    bands = max(-(-machine.threads // jobs), -(-images * rows * len(pairs) * block * itemsize // MOST))
    band = even(rows, -(-rows // bands))
    return Schedule((images, band, columns), block, sweep.channels, register=block, vectors=vectors, lanes=lanes, packed=True)


def scratch_cells(problem: ConvProblem, direction: str, schedule: Schedule, stored: bool) -> int:
    """Cells of a thread's scratch: vectors of the bias and of results, and rows of an image's that are `stored` by a function."""
    images, band, _ = schedule.tile
    return schedule.register * (1 + (images + stored) * band * results_of(problem, direction)[2])


def possible(sweep: Sweep, problem: ConvProblem, direction: str, itemsize: int, machine: Machine) -> bool:
    """Whether there is enough to compute, second-level cache holds an image, and tables are short.

    Without FMA, products need the registers of sums.
    """
    p, fused = problem, bool(machine.masks) or machine.registers >= FEW
    image = sweep.channels * math.prod(p.out if direction == "input_grad" else p.size) * itemsize
    deep, high, wide = (k * max(pair) for k, *pair in zip(p.kernel, p.size, p.out, strict=True))
    short = p.kernel[2] <= CODE and max(wide, deep * high) <= TABLED
    return fused and short and p.flops >= LEAST and image <= (machine.cache or UNKNOWN)


def cost(sweep: Sweep, schedule: Schedule, problem: ConvProblem, direction: str, machine: Machine) -> float:
    """Nanoseconds of vectors across filters; infinite for too much code, rows too long or too few for threads to share."""
    images, _, columns = schedule.tile
    pairs = [sums_of(direction, problem, axis) for axis in range(3)]
    deep, high, wide = (sum(map(len, axis)) for axis in pairs)
    rows, width = math.prod(results_of(problem, direction)[:2]), results_of(problem, direction)[2]
    blocks = problem.groups * -(-sweep.filters // schedule.register)
    jobs = blocks * -(-problem.batch // images)
    long = images * width * schedule.vectors * machine.vector > MOST
    if long or jobs * rows < SHARED or code(pairs[2], columns) * images * schedule.vectors > ROW:
        return math.inf
    calls = jobs * -(-width // columns)
    sums = min(images * columns * schedule.vectors, LATENCY)
    products = problem.batch * blocks * schedule.vectors * sweep.channels * deep * high * wide
    weights = blocks * schedule.vectors * sweep.channels * math.prod(problem.kernel)
    results = problem.batch * blocks * schedule.vectors * rows * width
    n = ACROSS[machine.model]
    reads = calls * schedule.vectors * sweep.channels * deep * high * problem.kernel[2]
    cache = machine.cache or UNKNOWN
    packed = weights * machine.vector
    far = packed > blocks * cache // 2
    return (
        products * (n.product + n.waiting * (1 - sums / LATENCY))
        + calls * sweep.channels * rows * n.row
        + weights * n.packing[(packed > cache) + (packed > n.heavy * cache)]
        + results * n.result
        + reads * n.reading[far]
        + n.call
    )


def unit(sweep: Sweep, problem: ConvProblem, machine: Machine) -> float:
    """Nanoseconds of a unit of other algorithms' costs: on a Zen 4 or 5 the same for all; the choice takes 1.03 of the best."""
    if machine.model:
        return grad_schedule.unit(machine)
    return UNIT * math.exp(NARROW / max(1, sweep.filters)) * math.pow(3 / max(problem.kernel), TAPS)


def along(sweep: Sweep, schedule: Schedule, problem: ConvProblem, phases: int, machine: Machine) -> float:
    """Nanoseconds of vectors along rows: those of a design of `outer`, with so many phases of dI."""
    tiles = problem.groups * math.prod(-(-out // tile) for out, tile in zip(sweep.out, schedule.tile, strict=True))
    tiles *= 1 if sweep.folded else problem.batch
    rows, row = math.prod(schedule.tile[:2]), -(-schedule.tile[2] // schedule.lanes)
    sums = rows * row * schedule.lanes if schedule.by_rows else sum_cells(sweep, dataclasses.replace(schedule, filters=1))
    vectors = tiles * sums // schedule.lanes
    staged = tiles * sweep.channels * math.prod(sweep.extents(schedule)) * math.prod(sweep.slots(schedule)) // schedule.lanes
    n = ALONG[machine.model]
    product = n.product + n.alone / max(1, schedule.register) ** 2
    result = n.result * (n.at_once if schedule.by_rows else 1.0)
    total = (
        vectors * sweep.filters * (sweep.channels * math.prod(problem.kernel) * product + phases * result)
        + (0 if schedule.in_place and machine.straight else staged) * n.cell
        + problem.filters * problem.taps / schedule.lanes * (n.weight if schedule.packed else n.apart)
        + n.call
    )
    return total * (n.phased if phases > 1 else 1.0)
