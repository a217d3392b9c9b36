"""Carries a plan for small images out on the CPU, by lists of what each output sums."""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .arrays import Array
from .clipped_schedule import scratch_cells
from .copies import assign, contiguous
from .drivers import INTEGER, ScratchTwin, dense_array, scratch
from .kernels.cpu import clipped
from .kernels.cpu.epilogue import takes_results
from .kernels.cpu.microkernel import kernel_address
from .packing import kept, packed
from .plans import Plan
from .prepared import Forms
from .sums import parts, row_table, sums_of


class _Run(NamedTuple):
    """What the driver needs besides arrays: see `kernels.cpu.clipped`."""

    table: Array
    starts: Array
    micro: Array
    numbers: Array
    jobs: int


@functools.lru_cache(maxsize=512)
def _prepare(plan: Plan, formula: str) -> _Run:
    machine, s, p = plan.machine, plan.schedule, plan.problem
    assert machine is not None
    itemsize = machine.vector // s.lanes
    at = functools.partial(kernel_address, machine, itemsize)
    images, band, columns = s.tile
    rows, wide = row_table(plan.direction, p, s.register * itemsize, itemsize), sums_of(plan.direction, p, 2)
    micro = [at("pack", 2), at("pack", 1)]
    for count in (images, p.batch % images or images):
        for part in parts(wide, columns, count, itemsize, s.vectors, formula, machine):
            micro += at("across", *part.shape), part.x, part.y
    lengths = [sum(map(len, rows[first : first + band])) for first in range(0, len(rows), band)]
    numbers = p.groups, images, band, len(wide), s.vectors, s.lanes, -(-len(wide) // columns)
    jobs = p.groups * -(-plan.sweep.filters // s.register) * -(-p.batch // images) * len(lengths)
    table, starts = np.fromiter(itertools.chain(*rows), np.intp), np.cumsum([0, *lengths[:-1]])
    return _Run(table, starts, np.array(micro, np.intp), np.array(numbers, np.intp), jobs)


@functools.cache
def _driver(dtype: np.dtype[Any]) -> ScratchTwin:
    x, table = dense_array(dtype, 5, True), dense_array(INTEGER, 1)
    arrays = x, dense_array(dtype, 3, True), dense_array(dtype, 1, True), dense_array(dtype, 5), table, table, table
    return ScratchTwin(clipped, dtype, arrays, (table, types.intp))


def run(
    plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0, formula: str = "", forms: Forms | None = None
) -> None:
    """out = activation(bias + sum of products); `weight` is (groups, filters, channels, ...) and `forms` as in `outer.run`."""
    prepared, dtype, s = _prepare(plan, formula), out.dtype, plan.schedule
    target = out if out.flags.c_contiguous else scratch(out.shape, dtype)
    blocks = packed(weight, s.register, dtype, plan.parallel, plan.machine) if forms is None else kept(forms, plan, weight)
    blocks = blocks.reshape(blocks.shape[0] * blocks.shape[1], blocks.shape[2], -1)
    arrays = contiguous(x, dtype), blocks, contiguous(bias, dtype), target, *prepared[:3]
    cells = scratch_cells(plan.problem, plan.direction, s, takes_results(apply))
    _driver(dtype).run(plan.parallel, prepared.jobs, cells, arrays, (prepared.numbers, apply))
    if target is not out:
        assign(out, target)
