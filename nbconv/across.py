"""Carries a plan for small planes of one filter each out on the CPU, by lists of what each output sums."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .across_schedule import scratch_cells
from .arrays import Array
from .dispatch import Plan
from .drivers import INTEGER, ScratchTwin, assign, contiguous, dense_array, scratch
from .kernels.cpu import across
from .kernels.cpu.epilogue import takes_results
from .kernels.cpu.microkernel import kernel_address
from .sums import parts, row_table, sums_of


class _Run(NamedTuple):
    """What the driver needs besides arrays: see `kernels.cpu.across`."""

    table: Array
    micro: Array
    rows: int
    cells: int


@functools.lru_cache(maxsize=512)
def _prepare(plan: Plan, formula: str) -> _Run:
    machine, s, p = plan.machine, plan.schedule, plan.problem
    assert machine is not None
    itemsize = machine.vector // s.lanes
    at = functools.partial(kernel_address, machine, itemsize)
    rows, wide = row_table(plan.direction, p, machine.vector, machine.vector), sums_of(plan.direction, p, 2)
    micro = [at("pack", 2), at("pack", 1)]
    for part in parts(wide, s.tile[2], 1, machine.vector, 1, formula, machine):
        micro += at("across", *part.shape), part.x, part.y
    table = np.fromiter(itertools.chain(*rows), np.intp)
    return _Run(table, np.array(micro, np.intp), len(rows), scratch_cells(p, s.lanes))


@functools.cache
def _driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, vector, table = dense_array(dtype, 5, True), dense_array(dtype, 1, True), dense_array(INTEGER, 1)
    arrays = x, dense_array(dtype, 2, True), vector, dense_array(dtype, 5), table, table
    return ScratchTwin(across, dtype, arrays, (types.intp, types.intp, types.intp))


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0, formula: str = "") -> None:
    """out = activation(bias + sum of products) over planes of x; for dI, x is dy. The activation is as in `outer.run`."""
    prepared, dtype, lanes = _prepare(plan, formula), out.dtype, plan.schedule.lanes
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    taps = contiguous(weight, dtype).reshape(len(weight), math.prod(plan.problem.kernel))
    arrays = contiguous(x, dtype), taps, contiguous(bias, dtype), target, prepared.table, prepared.micro
    cells = prepared.cells + (math.prod(out.shape[2:]) * lanes if takes_results(apply) else 0)
    jobs = -(-x.shape[1] // lanes) * x.shape[0]
    _driver(dtype).run(plan.parallel, jobs, cells, arrays, (lanes, prepared.rows, apply))
    if target is not out:
        assign(out, target)
