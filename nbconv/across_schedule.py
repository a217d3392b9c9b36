"""Schedules for small planes of one filter each, whose vectors lie across planes."""

import math

from .kernels.cpu.machine import Machine
from .phases import triple
from .problem import ConvProblem
from .schedule import Schedule, Sweep, even
from .sums import sums_of

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
