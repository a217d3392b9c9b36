"""Carries a plan of Winograd's algorithm out: forward, dI or dW, of stride 1 and any dilation."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .arrays import Array
from .copies import contiguous
from .drivers import INTEGER, ScratchTwin, any_array, dense_array, last_block, loaded
from .kernels.cpu import outer, winograd, winograd_grad
from .kernels.cpu.emitters import OTHER_CALL
from .kernels.cpu.microkernel import kernel_address
from .kernels.cpu.tile import Axis, Blocks
from .kernels.cpu.transforms import matrices
from .kernels.padding import MODES, ZEROS
from .packing import places
from .phases import own_phases, triple
from .plans import Plan
from .schedule import Schedule, Sweep, axes_of, cell_offsets
from .weight_grad import add_splits
from .winograd_schedule import (
    FAR,
    gathered,
    grad_regions,
    ordered_by_vectors,
    results_fetched,
    separate,
    tile_extents,
    tile_regions,
    tile_slots,
)


class _Run(NamedTuple):
    """What the driver needs besides its arrays; see `kernels.cpu.winograd`."""

    offsets: Array
    micro: Array
    numbers: Array
    jobs: int
    cells: int


def _kernels(plan: Plan, alike: bool, near: tuple[int, ...], distant: bool, axis: Axis, formula: str) -> list[int]:
    """Addresses of the micro-kernels in the order of the driver; `axis` is the last one."""
    machine, sweep, s = plan.machine, plan.sweep, plan.schedule
    assert machine is not None
    itemsize = machine.vector // s.lanes
    at = functools.partial(kernel_address, machine, itemsize)
    outputs, weights, cells = zip(*(matrices(m, k - m + 1) for k, m in zip(sweep.kernel, sweep.stride, strict=True)), strict=True)
    filters = s.register, last_block(sweep.filters, s.register)
    sizes, _ = tile_regions(sweep, s, itemsize)
    fetched = OTHER_CALL if sizes["weights"] * itemsize > FAR else 0
    micro = [at("outer", p, v, 0, itemsize, fetched, 0) for p in filters for v in (s.vectors, 1)]
    if gathered(sweep, s):
        axis = axis._replace(stride=axis.dilation, slots=1)
    micro.append(loaded(axis, at, s.lanes) if alike else 0)
    steps = 1 if sweep.dilation != (1, 1, 1) else sweep.stride[2]
    short = steps > 1 and axis.dilation == 1 and s.tile[2] <= s.lanes
    micro.append(at("store", int(axis.dilation > 1), steps, formula, -(-s.tile[2] * steps // s.lanes) if short else 0))
    spread = int(gathered(sweep, s))
    return [
        *micro,
        at("pack", 2),
        at("pack_taps", near, 0) if near else 0,
        at("fetch") if distant else 0,
        *(at("transform", axes, g) for axes, g in ((cells, spread), (weights, 0), (outputs, 0))),
        at("fetch") if results_fetched(sweep, plan.problem, itemsize, machine) else 0,
        at("order", sweep.stride[2], sweep.dilation[2]) if ordered_by_vectors(sweep, s.lanes) else 0,
    ]


@functools.lru_cache(maxsize=2048)
def _prepare(
    plan: Plan,
    x: tuple[int, ...],
    out: tuple[int, ...],
    alike: bool,
    weights: tuple[int, ...],
    near: tuple[int, ...],
    formula: str,
) -> _Run:
    """Prepare a run over arrays of shapes `x` and `out`.

    `alike` tells whether x is of the results' dtype; `weights` are bytes from group to group, filter to filter, channel to channel,
    and `near`, where the taps of a channel lie, as `packing.places` has it; `formula`, the activation, or "".
    """
    problem, s, sweep, machine = plan.problem, plan.schedule, plan.sweep, plan.machine
    assert machine is not None
    itemsize = machine.vector // s.lanes
    turned = plan.direction == "input_grad"
    offset = triple(-side for side in problem.before)
    if turned:
        offset = triple(phases[0].offset for phases in own_phases(problem))
    together = gathered(sweep, s)
    extents = tile_extents(sweep, s)
    apart = separate(sweep, problem)
    d, h, w = (
        axis._replace(slots=slots, extent=extent, stride=m * gap, dilation=gap, period=axis.period if all(s.dense) else m * gap)
        for axis, slots, extent, m, gap in zip(
            axes_of(sweep, s, triple(x[2:]), offset, sweep.out), tile_slots(sweep, s), extents, sweep.stride, apart, strict=True
        )
    )
    group, row, channel = weights
    mode = ZEROS if turned else MODES.index(problem.mode)
    sizes, cells = tile_regions(sweep, s, itemsize)
    counts = [min(-(-size // gap), t * m) for size, gap, t, m in zip(out[2:], apart, s.tile, sweep.stride, strict=True)]
    order = _order(sweep, s, sizes["pitch"], counts)
    steps = (1, 1, 1) if len(order) else sweep.stride
    layout = outer.Layout(
        problem.groups, mode, s.filters, s.channels, 1, s.register, s.vectors, 1, s.lanes, 0, steps[2], *steps,
        group, 0, channel, 0, 0, 0, 0, 0,
    )  # fmt: skip
    staged = _places(extents, sweep.kernel, sweep.dilation) if together else cell_offsets(sweep, dataclasses.replace(s, channels=1))
    taps = np.arange(sizes["taps"])[:: -1 if turned else 1] * sizes["wide"]
    planes = np.arange(sizes["products"]) * sizes["sum_plane"]
    terms = np.arange(s.channels)[:, None] * (sizes["pitch"], sizes["wide"])
    tables = staged, taps, planes, terms.reshape(-1)
    starts = np.cumsum([len(table) for table in tables])
    regions = winograd.Regions(
        row=row, **sizes, tap_table=starts[0], plane_table=starts[1], term_table=starts[2],
        order_table=starts[3] if len(order) else 0, lane_table=starts[3] + len(order) if together else 0,
    )  # fmt: skip
    jobs = x[0] * problem.groups * math.prod(apart) * -(-sweep.filters // s.filters)
    jobs *= math.prod(-(-axis.out // axis.tile) for axis in (d, h, w))
    numbers = np.array([*d, *h, *w, *layout, *regions], np.intp)
    offsets = np.concatenate([np.concatenate(tables) * itemsize, order]).astype(np.intp)
    if together:
        parts = zip(s.tile, sweep.stride, sweep.dilation, strict=True)
        corners_of = [np.arange(t) // gap * m * gap + np.arange(t) % gap for t, m, gap in parts]
        corners = np.arange(math.prod(extents)).reshape(extents)[np.ix_(*corners_of)].reshape(-1)
        lanes = np.zeros(-(-len(corners) // s.lanes) * s.lanes + s.lanes % 2, np.int32)
        lanes[: len(corners)] = corners * itemsize
        offsets = np.concatenate([offsets, lanes.view(np.intp)])
    distant = row == sizes["taps"] * itemsize != channel  # filters lie side by side, as in dI
    whole = near == tuple(range(len(near))) and channel == len(near) * itemsize  # all channels of a filter are one run
    return _Run(offsets, np.array(_kernels(plan, alike, () if whole else near, distant, w, formula), np.intp), numbers, jobs, cells)


@functools.cache
def _driver(x: np.dtype[Any], out: np.dtype[Any]) -> ScratchTwin:
    """The kernel for input and output dtypes."""
    vector = dense_array(INTEGER, 1)
    arrays = any_array(x, 5, True), types.intp, dense_array(out, 1), any_array(out, 5), vector, vector
    return ScratchTwin(winograd, out, arrays, (types.intp, vector))


def run(plan: Plan, x: Array, weight: Array, bias: Array, out: Array, apply: Any = 0, formula: str = "") -> None:
    """Run the kernel; `weight` is (groups, filters, channels, ...), filters and channels being those of this direction.

    The activation is a function, at `apply`, or a formula, or neither.
    """
    weight = weight.astype(out.dtype, copy=False)
    near = places(weight)
    if not near and not weight[0, 0, 0].flags.c_contiguous:
        weight = contiguous(weight, weight.dtype)
    if plan.sweep.folded:
        x, out = x.swapaxes(0, 2), out.swapaxes(0, 2)
    alike = x.dtype == out.dtype
    prepared = _prepare(plan, x.shape, out.shape, alike, weight.strides[:3], near, formula)
    arrays = x, weight.ctypes.data, contiguous(bias, out.dtype), out, *prepared[:2]
    _driver(x.dtype, out.dtype).run(plan.parallel, prepared.jobs, prepared.cells, arrays, (apply, prepared.numbers))


def _places(extents: tuple[int, ...], counts: tuple[int, ...], gaps: tuple[int, ...] = (1, 1, 1)) -> Array:
    """Positions of the cells of a box of `counts` cells, `gaps` apart, within one of `extents`."""
    picked = tuple(slice(0, count * gap, gap) for count, gap in zip(counts, gaps, strict=True))
    return np.arange(math.prod(extents)).reshape(extents)[picked].reshape(-1)


def _order(sweep: Sweep, schedule: Schedule, pitch: int, counts: list[int]) -> Array:
    """Where the `counts` outputs of a block lie among those of its tiles, of several phases; a row holds one of each tile."""
    if sweep.dilation == (1, 1, 1):
        return np.empty(0, np.intp)
    tiles, within = [], []
    for count, m, gap in zip(counts, sweep.stride, sweep.dilation, strict=True):
        phase, place = np.arange(count) % gap, np.arange(count) // gap
        tiles.append(place // m * gap + phase)
        within.append(place % m)
    rows = np.arange(math.prod(sweep.stride)).reshape(sweep.stride)[np.ix_(*within)]
    order: Array = rows * pitch + np.arange(math.prod(schedule.tile)).reshape(schedule.tile)[np.ix_(*tiles)]
    return order.reshape(-1)


def _grad_kernels(plan: Plan, axis: Axis) -> list[int]:
    """Addresses of the micro-kernels in the order of the driver of dW; `axis` is the last one."""
    machine, sweep, s = plan.machine, plan.sweep, plan.schedule
    assert machine is not None
    at = functools.partial(kernel_address, machine, machine.vector // s.lanes)
    last = -(-last_block(sweep.filters, s.vectors * s.lanes) // s.lanes)
    scalars = s.register, last_block(sweep.channels, s.register)
    micro = [*(at("panel", p, v) for p in scalars for v in (s.vectors, last))]
    micro += [loaded(axis, at, s.lanes), at("pack", 0)]
    sums, dy, cells = zip(*(matrices(k, m) for k, m in zip(sweep.kernel, plan.outputs, strict=True)), strict=True)
    return [*micro, at("pack", 1), *(at("transform", axes, 0) for axes in (cells, dy, sums))]


@functools.lru_cache(maxsize=2048)
def _prepare_grad(plan: Plan, x: tuple[int, ...], dy: tuple[int, ...]) -> _Run:
    """Prepare dW of arrays of shapes `x` and `dy`."""
    problem, s, sweep, machine, steps = plan.problem, plan.schedule, plan.sweep, plan.machine, plan.outputs
    assert machine is not None
    itemsize = machine.vector // s.lanes
    whole = axes_of(sweep, s, triple(x[2:]), triple(-side for side in problem.before), sweep.out)
    axes = [axis._replace(stride=gap) for axis, gap in zip(whole, separate(sweep, problem), strict=True)]
    blocks = Blocks(
        problem.groups, MODES.index(problem.mode), s.filters, s.channels, 1, s.register, s.vectors, 0, s.lanes, 0
    )  # fmt: skip
    sizes, cells = grad_regions(sweep, s, steps, itemsize)
    products = triple(k + m - 1 for k, m in zip(sweep.kernel, steps, strict=True))
    tables = (
        _places(tuple(axis.extent for axis in axes), products, sweep.dilation) * s.lanes,
        _places(s.tile, steps, sweep.dilation) * s.lanes,
        np.arange(sizes["products"]) * sizes["sum_plane"],
    )
    starts = np.cumsum([len(table) for table in tables])
    regions = winograd_grad.Regions(*steps, *sweep.dilation, **sizes, dy_table=starts[0], sum_table=starts[1])
    jobs = s.splits * problem.groups * -(-sweep.channels // s.channels) * -(-sweep.filters // s.filters)
    numbers = np.array([value for part in (*axes, blocks, regions) for value in part], np.intp)
    offsets = (np.concatenate(tables) * itemsize).astype(np.intp)
    return _Run(offsets, np.array(_grad_kernels(plan, axes[2]), np.intp), numbers, jobs, cells)


@functools.cache
def _grad_driver(dtype: np.dtype[Any]) -> ScratchTwin:
    vector, array = dense_array(INTEGER, 1), any_array(dtype, 5, True)
    return ScratchTwin(winograd_grad, dtype, (array, array, dense_array(dtype, 3), vector, vector), (vector,))


def weight_grad(plan: Plan, dy: Array, x: Array, out: Array) -> None:
    """out = gradient of conv(x, weight) for the weight."""
    dy = contiguous(dy, dy.dtype)  # its layout would change the order of the sum
    if plan.sweep.folded:
        x, dy = x.swapaxes(0, 2), dy.swapaxes(0, 2)
    prepared = _prepare_grad(plan, x.shape, dy.shape)

    def fill(sums: Array) -> None:
        arrays = dy, x, sums, prepared.offsets, prepared.micro
        _grad_driver(out.dtype).run(plan.parallel, prepared.jobs, prepared.cells, arrays, (prepared.numbers,))

    add_splits(plan.schedule.splits, fill, out, plan.parallel)
