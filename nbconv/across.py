"""Carries a plan for small planes of one filter each out on the CPU, by lists of what each output sums."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .across_schedule import scratch_cells, sums_of
from .arrays import Array
from .dispatch import Plan
from .drivers import INTEGER, ScratchTwin, assign, contiguous, dense_array, scratch
from .kernels.cpu import across
from .kernels.cpu.epilogue import takes_results
from .kernels.cpu.microkernel import kernel_address


class _Run(NamedTuple):
    """What the driver needs besides arrays: see `kernels.cpu.across`."""

    table: Array
    micro: Array
    rows: int
    cells: int


@functools.lru_cache(maxsize=512)
def _prepare(plan: Plan) -> _Run:
    machine, s, p = plan.machine, plan.schedule, plan.problem
    assert machine is not None
    itemsize = machine.vector // s.lanes
    at = functools.partial(kernel_address, machine, itemsize)
    read = p.out if plan.direction == "input_grad" else p.size
    deep, high, wide = (sums_of(plan.direction, p, axis) for axis in range(3))
    table: list[int] = []
    for slices, rows in itertools.product(deep, high):
        pairs = [
            ((d * p.kernel[1] + h) * p.kernel[2], (slice_ * read[1] + row) * read[2]) for d, slice_ in slices for h, row in rows
        ]
        table += [len(pairs), *(place * machine.vector for pair in pairs for place in pair)]
    micro = [at("pack", 2), at("pack", 1)]
    for first in range(0, len(wide), s.tile[2]):
        sums = tuple(map(tuple, wide[first : first + s.tile[2]]))
        held = len(sums) + len({cell for pairs in sums for _, cell in pairs}) + 2 <= machine.registers
        micro.append(at("across", sums, first, len(wide), held))
    return _Run(np.array(table, np.intp), np.array(micro, np.intp), len(deep) * len(high), scratch_cells(p, s.lanes))


@functools.cache
def _driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, vector, table = dense_array(dtype, 5, True), dense_array(dtype, 1, True), dense_array(INTEGER, 1)
    arrays = x, dense_array(dtype, 2, True), vector, dense_array(dtype, 5), table, table
    return ScratchTwin(across, dtype, arrays, (types.intp, types.intp, types.intp))


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0) -> None:
    """out = activation(bias + sum of products) over planes of x; for dI, x is dy. The activation is as in `outer.run`."""
    prepared, dtype, lanes = _prepare(plan), out.dtype, plan.schedule.lanes
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    taps = contiguous(weight, dtype).reshape(len(weight), math.prod(plan.problem.kernel))
    arrays = contiguous(x, dtype), taps, contiguous(bias, dtype), target, prepared.table, prepared.micro
    cells = prepared.cells + (math.prod(out.shape[2:]) * lanes if takes_results(apply) else 0)
    jobs = -(-x.shape[1] // lanes) * x.shape[0]
    _driver(dtype).run(plan.parallel, jobs, cells, arrays, (lanes, prepared.rows, apply))
    if target is not out:
        assign(out, target)
