"""Carries a plan of the `pointwise_grad` kernel out."""

import functools
import math
from typing import Any, NamedTuple

import numba
import numpy as np

from .arrays import Array
from .dispatch import Plan
from .drivers import INTEGER, ScratchTwin, contiguous, dense_array, last_block
from .grad_schedule import channels_across, point_cells
from .kernels.cpu import pointwise_grad
from .kernels.cpu.microkernel import kernel_address
from .kernels.cpu.pointwise_grad import Points
from .weight_grad import add_splits

POINTS = numba.typeof(Points(*[0] * 9))


class _Run(NamedTuple):
    """What the driver needs besides its arrays."""

    micro: Array
    points: Points
    jobs: int
    cells: int


@functools.lru_cache(maxsize=2048)
def _prepare(plan: Plan) -> _Run:
    machine, sweep, s = plan.machine, plan.sweep, plan.schedule
    assert machine is not None
    at = functools.partial(kernel_address, machine, machine.vector // s.lanes)
    swapped, sizes, whole = channels_across(sweep, s.lanes), (s.channels, s.filters), (sweep.channels, sweep.filters)
    along, across = sizes[::-1] if swapped else sizes
    rows, columns = whole[::-1] if swapped else whole
    # the last panel of the last block of `across`
    last = -(-last_block(columns, s.vectors * s.lanes) // s.lanes)
    scalars = s.register, last_block(rows, s.register)
    micro = [*(at("rows", p, v) for p in scalars for v in (s.vectors, last)), 0, at("pack", 0), at("pack", 1), at("store", 0, 1)]
    points = Points(plan.problem.groups, s.tile[0], s.tile[2], along, across, s.register, s.vectors, s.lanes, int(swapped))
    jobs = s.splits * plan.problem.groups * -(-rows // along) * -(-columns // across)
    return _Run(np.array(micro, np.intp), points, jobs, point_cells(sweep, s))


@functools.cache
def _driver(dtype: np.dtype[Any]) -> ScratchTwin:
    operand = dense_array(dtype, 3, True)
    return ScratchTwin(pointwise_grad, dtype, (operand, operand, dense_array(dtype, 3), dense_array(INTEGER, 1)), (POINTS,))


def run(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """out = gradient of a 1x1 conv(x, weight) for the weight."""
    prepared = _prepare(plan)
    dy, x = (contiguous(array, out.dtype).reshape(*array.shape[:2], math.prod(array.shape[2:])) for array in (dy, x))
    along, across = (dy, x) if prepared.points.swapped else (x, dy)

    def fill(sums: Array) -> None:
        arrays = along, across, sums, prepared.micro
        _driver(out.dtype).run(plan.parallel, prepared.jobs, prepared.cells, arrays, (prepared.points,))

    add_splits(plan.schedule.splits, fill, out)
