"""Carries a plan of a weight gradient out: one run over tiles, then the sum of the splits."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array
from .copies import assign, contiguous
from .drivers import (
    AXIS,
    BLOCKS,
    INTEGER,
    ScratchTwin,
    Twin,
    any_array,
    dense_array,
    last_block,
    loaded,
    scratch,
)
from .grad_schedule import panel_cells, point_cells, weight_grad_cells
from .kernels.cpu import panel_grad, pointwise_grad, transfer, weight_grad
from .kernels.cpu.microkernel import kernel_address
from .kernels.cpu.tile import Axis, Blocks
from .kernels.padding import MODES
from .packing import PARALLEL
from .phases import triple
from .plans import Plan
from .schedule import axes_of, cell_offsets


class _Run(NamedTuple):
    """What the driver needs besides its arrays."""

    offsets: Array
    micro: Array
    axes: tuple[Axis, Axis, Axis]
    blocks: Blocks
    jobs: int
    cells: int


def _kernels(plan: Plan, axis: Axis) -> list[int]:
    """Addresses of the micro-kernels in the order of the driver; `axis` is the last one."""
    machine, sweep, s = plan.machine, plan.sweep, plan.schedule
    if machine is None:
        return [0] * 8
    at = functools.partial(kernel_address, machine, machine.vector // s.lanes)
    if plan.kernel == "pointwise_grad":
        sizes = (sweep.channels, sweep.filters) if s.in_place else (sweep.filters, sweep.channels)
        scalars, last = (s.register, last_block(sizes[0], s.register)), -(-last_block(sizes[1], s.vectors * s.lanes) // s.lanes)
        panels = (at("rows", p, v) for p in scalars for v in (s.vectors, last))
        return [*panels, 0, at("pack", 0), at("pack", 1), at("store", 0, 1)]
    row = loaded(axis, at, s.lanes)
    if plan.kernel == "panels":
        last = -(-last_block(sweep.filters, s.vectors * s.lanes) // s.lanes)
        scalars = s.register, last_block(sweep.channels, s.register)
        return [*(at("panel", p, v) for p in scalars for v in (s.vectors, last)), row, at("pack", 0), at("pack", 1)]
    terms = math.prod(sweep.kernel)
    blocks = s.channels * terms, last_block(sweep.channels, s.channels) * terms
    taps = s.vectors, *(last_block(block, s.vectors) for block in blocks)
    return [*(at("dots", p, v) for p in (s.register, last_block(sweep.filters, s.register)) for v in taps), row, at("collapse")]


@functools.lru_cache(maxsize=2048)
def _prepare(plan: Plan, x: tuple[int, ...], dy: tuple[int, ...], plane: int) -> _Run:
    """Prepare a run over arrays of shapes `x` and `dy`; `plane` is bytes from channel to channel of an x that is read in place."""
    problem, s, sweep = plan.problem, plan.schedule, plan.sweep
    axes = axes_of(sweep, s, triple(x[2:]), triple(-side for side in problem.before), triple(dy[2:]))
    sizes = s.filters, s.channels, s.bundle, s.register, s.vectors, int(s.in_place), s.lanes
    blocks = Blocks(problem.groups, MODES.index(problem.mode), *sizes, int(plan.dtype.kind == "c"))
    bundles = -(-problem.groups // s.bundle)
    jobs = s.splits * bundles * -(-sweep.channels // s.channels) * -(-sweep.filters // s.filters)
    cells = {"panels": panel_cells, "pointwise_grad": point_cells}.get(plan.kernel, weight_grad_cells)(sweep, s)
    offsets = np.arange(s.channels) * plane if s.in_place else cell_offsets(sweep, s)
    if plan.kernel == "dots" and plan.machine is not None and not s.in_place:
        offsets = offsets * (plan.machine.vector // s.lanes)
    micro = _kernels(plan, axes[2])
    return _Run(offsets, np.array(micro, np.intp), axes, blocks, jobs, cells)


class _Family(NamedTuple):
    """A kernel's loop over jobs, and the launch that all of them share."""

    jobs: Any
    parallel: Any = weight_grad.parallel


@functools.cache
def _driver(kernel: str, dtype: np.dtype[Any]) -> ScratchTwin:
    vector = dense_array(INTEGER, 1)
    arrays = any_array(dtype, 5, True), any_array(dtype, 5, True), dense_array(dtype, 3), vector, vector
    module = {"panels": panel_grad, "pointwise_grad": pointwise_grad}.get(kernel, weight_grad)
    return ScratchTwin(_Family(module.jobs), dtype, arrays, (AXIS, AXIS, AXIS, BLOCKS))


def run(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """out = gradient of conv(x, weight) for the weight; a complex x is conjugated."""
    s = plan.schedule
    if s.register:
        dy = contiguous(dy, dy.dtype)  # its layout would change the order of the sum
    if plan.kernel == "pointwise_grad":
        dy, x = (contiguous(array, out.dtype).reshape(*array.shape[:2], 1, 1, -1) for array in (dy, x))
    elif s.in_place:
        x = contiguous(x, x.dtype)
    elif plan.sweep.folded:
        x, dy = x.swapaxes(0, 2), dy.swapaxes(0, 2)
    prepared = _prepare(plan, x.shape, dy.shape, x.strides[1] if s.in_place else 0)

    def fill(sums: Array) -> None:
        arrays, rest = (dy, x, sums, prepared.offsets, prepared.micro), (*prepared.axes, prepared.blocks)
        _driver(plan.kernel, out.dtype).run(plan.parallel, prepared.jobs, prepared.cells, arrays, rest)

    add_splits(s.splits, fill, out, plan.parallel)


@functools.cache
def _adding(dtype: np.dtype[Any]) -> Twin:
    return Twin(transfer.add, transfer.parallel_add, dense_array(dtype, 3), dense_array(dtype, 2))


def add_splits(splits: int, fill: Callable[[Array], None], out: Array, many: bool) -> None:
    """Have `fill` write the sums of all splits, (splits, K, C / groups * taps), and add them in order to `out`."""
    whole = out.flags.c_contiguous
    sums = (out if whole and splits == 1 else scratch((splits, *out.shape), out.dtype)).reshape(splits, len(out), -1)
    fill(sums)
    total = out.reshape(sums.shape[1:]) if whole else sums[0]
    if splits > 1:
        adding = _adding(out.dtype)
        if many:
            adding.compile()
        adding.run(many and sums.size >= PARALLEL, len(total), sums, total)
    if not whole:
        assign(out, total.reshape(out.shape))
