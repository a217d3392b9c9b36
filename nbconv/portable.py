"""Carries a plan of the portable `direct` kernel out, for any dtype and machine."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .arrays import Array
from .copies import assign
from .drivers import AXIS, BLOCKS, INTEGER, ScratchTwin, any_array, dense_array
from .kernels.cpu import direct
from .kernels.cpu.tile import Axis, Blocks
from .kernels.padding import MODES, ZEROS
from .packing import packed
from .phases import own_phases, triple
from .plans import Plan
from .problem import Triple
from .schedule import Sweep, axes_of, cell_offsets, direct_cells, input_grad_sweep


class _Run(NamedTuple):
    """What the driver needs besides its arrays."""

    offsets: Array
    axes: tuple[Axis, Axis, Axis]
    blocks: Blocks
    jobs: int
    cells: int


@functools.lru_cache(maxsize=2048)
def _prepare(plan: Plan, sweep: Sweep, x: tuple[int, ...], out: tuple[int, ...], offset: Triple, mode: int) -> _Run:
    """Prepare a run over arrays of shapes `x` and `out`."""
    s, groups = plan.schedule, plan.problem.groups
    axes = axes_of(sweep, s, triple(x[2:]), offset, triple(out[2:]))
    blocks = Blocks(groups, mode, s.filters, s.channels, 1, 0, 1, 0, 1, 0)
    tiles = math.prod(-(-axis.out // axis.tile) for axis in axes)
    jobs = x[0] * groups * tiles * -(-(out[1] // groups) // s.filters)
    return _Run(cell_offsets(sweep, s), axes, blocks, jobs, direct_cells(sweep, s))


@functools.cache
def _driver(x: np.dtype[Any], out: np.dtype[Any]) -> ScratchTwin:
    """The kernel for input and output dtypes."""
    arrays = any_array(x, 5, True), dense_array(out, 1), any_array(out, 1, True), any_array(out, 5), dense_array(INTEGER, 1)
    return ScratchTwin(direct, out, arrays, (types.intp, AXIS, AXIS, AXIS, BLOCKS))


def _run(plan: Plan, sweep: Sweep, x: Array, weight: Array, bias: Array, out: Array, offset: Triple, mode: int, apply: Any) -> None:
    """Run the kernel: output `o` is the sum over taps of x at  o * stride + tap * dilation + offset."""
    prepared = _prepare(plan, sweep, x.shape, out.shape, offset, mode)
    arrays = x, packed(weight, 1, out.dtype, plan.parallel, None).reshape(-1), bias, out, prepared.offsets
    rest = apply, *prepared.axes, prepared.blocks
    _driver(x.dtype, out.dtype).run(plan.parallel, prepared.jobs, prepared.cells, arrays, rest)


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0) -> None:
    """Compute the output, or dI: one run for each phase of the grid.

    `weight` is (groups, filters, channels, ...), filters and channels being those of this direction.
    """
    problem = plan.problem
    if plan.direction == "forward":
        offset = triple(-side for side in problem.before)
        return _run(plan, plan.sweep, x, weight, bias, out, offset, MODES.index(problem.mode), apply)
    for phases in itertools.product(*own_phases(problem)):
        d, h, w = (slice(phase.start, None, step) for phase, step in zip(phases, problem.stride, strict=True))
        target = out[:, :, d, h, w]
        if not all(phase.taps for phase in phases):
            assign(target, bias[:, None, None, None])
            continue
        d, h, w = (slice(t.start, t.stop if t.stop >= 0 else None, t.step) for t in (phase.taps for phase in phases))
        sweep = input_grad_sweep(problem, False)._replace(kernel=triple(len(phase.taps) for phase in phases))
        _run(plan, sweep, x, weight[:, :, :, d, h, w], bias, target, triple(phase.offset for phase in phases), ZEROS, 0)
